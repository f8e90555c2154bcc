# pyright: strict
"""The words of EHRMamba (Fallahpour et al. 2024, arXiv 2405.14567) over our vocabulary.

Four marks, 18 intervals between visits, one prompt a task, and for each code of a fitted vocabulary
a word of its own and five more for the quintiles of its value, where training has seen values. So
codes, their parents and their quantiles are those of our own model on the same events, and a lab
test in two units is two codes, where the original leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tsfm import codes
from tsfm.errors import InputError
from tsfm.tokens.value_scale import N_BINS, ValueScale
from tsfm.tokens.vocabulary import Vocabulary

CLS, VISIT_START, VISIT_END, REGISTER = "[CLS]", "[VS]", "[VE]", "[REG]"
INTERVALS = (*(f"[W_{k}]" for k in range(4)), *(f"[M_{k}]" for k in range(13)), "[LT]")
"""Weeks up to 28 days, months of 30 days up to a year, and longer."""

CLS_ID, VISIT_START_ID, VISIT_END_ID, REGISTER_ID = range(4)
FIRST_INTERVAL_ID = 4
FIRST_TASK_ID = FIRST_INTERVAL_ID + len(INTERVALS)
N_QUINTILES = 5
_WEEK_DAYS, _MONTH_DAYS, _WEEKS_END_DAYS, _YEAR_DAYS = 7.0, 30.0, 28.0, 365.0


class Kind(IntEnum):
    """What a word is; the first nine numbers are the paper's, of which 0 was its padding."""

    NONE = 0
    CLS = 1
    VISIT_START = 2
    VISIT_END = 3
    INTERVAL = 4
    LAB = 5
    MEDICATION = 6
    PROCEDURE = 7
    REGISTER = 8
    OTHER = 9
    TASK = 10


_KIND_OF_CLASS = {
    codes.LAB: Kind.LAB,
    codes.MEDICATION: Kind.MEDICATION,
    codes.PROCEDURE: Kind.PROCEDURE,
}


@dataclass(frozen=True)
class EhrMambaWords:
    """Ids of all words: specials, task prompts, then each code's own with its quintiles.

    Attributes:
        vocabulary: Codes of the token streams.
        has_value: (V,) codes whose values training has seen; each has five words more.
        tasks: Names that can be prompted, in the order of their ids.
    """

    vocabulary: Vocabulary
    has_value: NDArray[np.bool_]
    tasks: tuple[str, ...] = ()

    @classmethod
    def create(
        cls, vocabulary: Vocabulary, scale: ValueScale, tasks: Sequence[str] = ()
    ) -> EhrMambaWords:
        """Words of a fitted vocabulary with its scales.

        Raises:
            InputError: A task's name is there twice.
        """
        if len(set(tasks)) != len(tasks):
            raise InputError("a task is named twice", code="duplicate_task", place="tasks")
        return cls(vocabulary, np.isfinite(scale.median), tuple(tasks))

    def __len__(self) -> int:
        """Number of words."""
        return int(self._first[-1])

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        """(V + 1,) first word of each code, and the number of words."""
        sizes = 1 + N_QUINTILES * self.has_value.astype(np.int64)
        before = FIRST_TASK_ID + len(self.tasks)
        return before + np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @cached_property
    def _kinds(self) -> NDArray[np.int64]:
        """(V,) kind of each code."""
        classes = [codes.code_class(code) for code in self.vocabulary.codes]
        return np.array([_KIND_OF_CLASS.get(name, Kind.OTHER) for name in classes], np.int64)

    def of_tokens(
        self, code: NDArray[np.int32], decile: NDArray[np.int8]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Word and kind of each token.

        Args:
            code: (T,) ids of the vocabulary.
            decile: (T,) 1 to 10, 0 where there is no value.
        """
        quintile = (decile.astype(np.int64) * N_QUINTILES + N_BINS - 1) // N_BINS
        return self._first[code] + quintile * self.has_value[code], self._kinds[code]

    def prompt(self, task: str) -> int:
        """Word that asks for a task.

        Raises:
            InputError: There is none.
        """
        if task not in self.tasks:
            raise InputError(
                f"no prompt for '{task}'",
                code="no_prompt",
                place="tasks",
                remedy=f"Use one of {', '.join(self.tasks) or 'none'}, or make words with it.",
            )
        return FIRST_TASK_ID + self.tasks.index(task)


def interval_of(days: float) -> int:
    """Place in `INTERVALS` of a time between two visits."""
    if days < _WEEKS_END_DAYS:
        return int(days // _WEEK_DAYS)
    if days < _YEAR_DAYS:
        return 4 + int(days // _MONTH_DAYS)
    return len(INTERVALS) - 1
