"""Questions to futures, and what each decoding step adds to their answers.

An outcome is the first arrival of any code of a set within a horizon, before any code of a
competing set; death ends a future and so competes with everything else. Before each token, the
chance that it decides the outcome is known:

    p_t = P(code in the set) P(wait <= what is left of the horizon)

a product, since code and time are independent given the state. Three unbiased estimates follow
(SCOPE and REACH: arXiv 2602.03730, there for single codes and a horizon in tokens):

    Monte Carlo   1 if the outcome came                         along ordinary futures
    SCOPE         sum of p_t over the steps until it is decided along ordinary futures
    REACH         1 - product of (1 - p_t)                      along futures kept from the outcome

SCOPE is the compensator of Monte Carlo's counting process: both have one mean. REACH is right if
the futures are drawn given that no step decides the outcome, its time included; then it is Monte
Carlo with the coin of every step taken out, and varies less for every patient.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from numpy.typing import NDArray

from tsfm.errors import InputError
from tsfm.rollouts.waits import Waits
from tsfm.tokens.vocabulary import Vocabulary

HOURS_PER_DAY = 24.0


@dataclass(frozen=True)
class Outcome:
    """A question to a future.

    Attributes:
        name: Stands in the table of answers.
        codes: Token ids of which the first to come is the outcome.
        horizon_days: Days from the prediction within which it counts, the last moment included.
        competing: Token ids after which it no longer counts.
    """

    name: str
    codes: tuple[int, ...]
    horizon_days: float
    competing: tuple[int, ...] = ()

    @classmethod
    def of_classes(
        cls,
        name: str,
        vocabulary: Vocabulary,
        classes: Sequence[str],
        *,
        horizon_days: float,
        competing: Sequence[str] = (),
    ) -> Outcome:
        """An outcome of codes and all that is below them, such as `HOSPITAL_ADMISSION`.

        Below an ICD or ATC code are also the longer ones that begin with it: `E119` is an `E11`.

        Raises:
            InputError: The vocabulary has no such code, or a string stands for a list of them.
        """
        ids: list[tuple[int, ...]] = []
        for wanted in (classes, competing):
            if isinstance(wanted, str):
                raise InputError(
                    "codes are a string, not a list of strings", code="bad_outcome", place=name,
                    remedy='Give for example ["HOSPITAL_ADMISSION"].',
                )  # fmt: skip
            found = {name: vocabulary.ids_of_class(name) for name in wanted}
            absent = [name for name, below in found.items() if not below]
            if absent:
                raise InputError(
                    f"the vocabulary knows no '{absent[0]}'", code="unknown_outcome_code",
                    place=name, remedy="Ask for codes that the model was trained on.",
                )  # fmt: skip
            ids.append(tuple(sorted({i for below in found.values() for i in below})))
        return cls(name, ids[0], horizon_days, ids[1])

    def check(self, n_codes: int, horizon_days: float | None = None) -> None:
        """Check against a model and, if it is given, the horizon of its futures.

        Raises:
            InputError: The outcome cannot be asked for.
        """
        problem = None
        if not (_are_ids(self.codes) and _are_ids(self.competing)):
            problem = "has token ids that are no whole numbers"
        elif not len(self.codes):
            problem = "has no codes"
        elif any(not 0 <= one < n_codes for one in (*self.codes, *self.competing)):
            problem = f"has token ids outside the {n_codes} of the vocabulary"
        elif set(self.codes) & set(self.competing):
            problem = "competes with itself"
        elif not (isinstance(self.horizon_days, Real) and 0 < self.horizon_days < math.inf):
            problem = "needs a finite horizon above 0 days"
        elif horizon_days is not None and self.horizon_days > horizon_days:
            problem = f"needs a horizon up to the futures' {horizon_days} days"
        if problem is not None:
            raise InputError(
                f"the outcome {problem}", code="bad_outcome", place=self.name,
                remedy="Give ids of the vocabulary, two separate sets and a horizon in days.",
            )  # fmt: skip


def _are_ids(ids: object) -> bool:
    return isinstance(ids, Collection) and all(isinstance(one, Integral) for one in ids)


@dataclass(frozen=True)
class OutcomeTally:
    """What futures have shown so far of some outcomes; `decide` changes the arrays in place.

    Attributes:
        outcomes: The outcomes.
        member: (V, O) whether a code belongs to the outcome's set.
        rival: (V, O) whether it competes.
        horizon_hours: (O,) horizons.
        undecided: (F, O) whether the outcome may still come.
        came: (F, O) whether it came.
        expected: (F, O) sum of p_t.
        escaped: (F, O) product of 1 - p_t.
    """

    outcomes: tuple[Outcome, ...]
    member: NDArray[np.bool_]
    rival: NDArray[np.bool_]
    horizon_hours: NDArray[np.float64]
    undecided: NDArray[np.bool_]
    came: NDArray[np.bool_]
    expected: NDArray[np.float64]
    escaped: NDArray[np.float64]

    @classmethod
    def create(cls, outcomes: Sequence[Outcome], n_futures: int, n_codes: int) -> OutcomeTally:
        """Nothing has come yet."""
        sets = np.zeros((2, n_codes, len(outcomes)), bool)
        for column, outcome in enumerate(outcomes):
            sets[0, list(outcome.codes), column] = True
            sets[1, list(outcome.competing), column] = True
        shape = (n_futures, len(outcomes))
        return cls(
            outcomes=tuple(outcomes),
            member=sets[0],
            rival=sets[1],
            horizon_hours=np.array([o.horizon_days * HOURS_PER_DAY for o in outcomes]),
            undecided=np.ones(shape, bool),
            came=np.zeros(shape, bool),
            expected=np.zeros(shape),
            escaped=np.ones(shape),
        )

    def decide(
        self,
        future: NDArray[np.int64],
        in_set: NDArray[np.float64],
        waits: Waits,
        since_prediction_hours: NDArray[np.float64],
        code: NDArray[np.int64],
        wait_hours: NDArray[np.float64],
    ) -> NDArray[np.bool_]:
        """Take in one token of some futures, with the chances there were before it.

        Args:
            future: (R,) rows of the arrays, all different.
            in_set: (R, O) chance that the token's code belongs to each outcome's set.
            waits: Laws of the wait.
            since_prediction_hours: (R,) hours from the prediction to the token before it.
            code: (R,) the token's code.
            wait_hours: (R,) hours from the token before it.

        Returns:
            (R,) whether no outcome is left to decide.
        """
        open_now = self.undecided[future]
        left = self.horizon_hours - since_prediction_hours[:, None]
        p = np.where(open_now, in_set * waits.within(torch.from_numpy(left)).numpy(), 0.0)
        self.expected[future] += p
        self.escaped[future] *= 1.0 - p
        in_time = open_now & (wait_hours[:, None] <= left)
        came = in_time & self.member[code]
        self.came[future] |= came
        still = in_time & ~came & ~self.rival[code]
        self.undecided[future] = still
        return np.asarray(~still.any(axis=1))
