# pyright: strict
"""Code to token id, with parents for codes that training never saw.

The vocabulary is fitted on training subjects only. A code that is too rare there, or that only
another hospital uses, takes the id of its nearest known parent (`DIAGNOSIS//ICD//10//I5023` falls
back to `I502`, `I50`, ...), and is counted. Id 0 is what even the widest class does not know.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import codes
from tsfm.errors import ModelMismatch

UNKNOWN_ID = 0
FILE_NAME = "codes.json"


@dataclass
class EncodingCounts:
    """How many events were encoded, and how faithfully.

    Attributes:
        exact: Events whose own code is in the vocabulary.
        fallback: Events that took a parent's id.
        unknown: Events of a class that the vocabulary does not know.
    """

    exact: int = 0
    fallback: int = 0
    unknown: int = 0

    def add(self, other: EncodingCounts) -> None:
        """Add another frame's counts to these."""
        self.exact += other.exact
        self.fallback += other.fallback
        self.unknown += other.unknown


@dataclass(frozen=True)
class Vocabulary:
    """Token ids of codes.

    Attributes:
        codes: Code of each id; the first one stands for the unknown.
    """

    codes: tuple[str, ...]
    _memo: dict[str, tuple[int, bool]] = field(
        default_factory=lambda: dict[str, tuple[int, bool]](), repr=False, compare=False
    )

    def __len__(self) -> int:
        """Number of ids, the unknown included."""
        return len(self.codes)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Code to id."""
        return {code: index for index, code in enumerate(self.codes)}

    @cached_property
    def hash(self) -> str:
        """sha256 of the codes in order: what ties a model to its vocabulary."""
        return hashlib.sha256("\n".join(self.codes).encode()).hexdigest()

    def lookup(self, code: str) -> tuple[int, bool]:
        """Id of a code or of its nearest known parent, and whether it is the code's own."""
        known = self._memo.get(code)
        if known is None:
            known = self._lookup(code)
            self._memo[code] = known
        return known

    def _lookup(self, code: str) -> tuple[int, bool]:
        own = self.ids.get(code)
        if own is not None:
            return own, True
        for parent in codes.parents(code):
            index = self.ids.get(parent)
            if index is not None:
                return index, False
        return UNKNOWN_ID, False

    def encode(
        self, column: pl.Series
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_], EncodingCounts]:
        """Ids of a column of codes, which ones are exact, and the counts."""
        unique = column.unique()
        looked_up = [self.lookup(code) for code in unique.to_list()]
        table = pl.DataFrame(
            {
                "code": unique,
                "id": pl.Series([i for i, _ in looked_up], dtype=pl.Int32),
                "exact": pl.Series([e for _, e in looked_up], dtype=pl.Boolean),
            }
        )
        found = column.to_frame("code").join(table, on="code", how="left", maintain_order="left")
        ids = found["id"].to_numpy().astype(np.int32)
        exact = found["exact"].to_numpy().astype(np.bool_)
        unknown = int((ids == UNKNOWN_ID).sum())
        n_exact = int(exact.sum())
        return ids, exact, EncodingCounts(n_exact, len(ids) - n_exact - unknown, unknown)

    def ids_of_class(self, name: str) -> list[int]:
        """All ids whose code is `name` or below it, as a code falls back to its parents."""
        return [
            i
            for i, code in enumerate(self.codes)
            if code == name or (code.startswith(name) and name in codes.parents(code))
        ]

    def save(self, folder: str | Path) -> None:
        """Write `codes.json` into a folder."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"codes": list(self.codes), "sha256": self.hash}, indent=0)
        (path / FILE_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Vocabulary:
        """Read `codes.json` from a folder.

        Raises:
            ModelMismatch: The file is missing, or its codes do not have the hash written with them.
        """
        path = Path(folder) / FILE_NAME
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            vocabulary = cls(tuple(str(code) for code in stored["codes"]))
            expected = str(stored["sha256"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelMismatch(
                "no readable vocabulary",
                code="bad_vocabulary",
                place=str(path),
                remedy="Use the folder as it was written by tsfm.",
            ) from error
        if vocabulary.hash != expected:
            raise ModelMismatch(
                "the vocabulary was changed after it was written",
                code="vocabulary_hash_mismatch",
                place=str(path),
                remedy="Restore the file that belongs to this model.",
            )
        return vocabulary


def fit_vocabulary(counts: Mapping[str, int], *, min_count: int = 10) -> Vocabulary:
    """Choose the codes that get an id of their own.

    Args:
        counts: Events of each code among training subjects.
        min_count: Rarer codes are left to their parents. A parent counts all that is below it;
            classes always get an id.

    >>> v = fit_vocabulary({"LAB//1//mg": 50, "LAB//2//mg": 1}, min_count=10)
    >>> v.codes
    ('UNK', 'LAB', 'LAB//1', 'LAB//1//mg')
    """
    total: dict[str, int] = dict(counts)
    for code, n in counts.items():
        for parent in codes.parents(code):
            total[parent] = total.get(parent, 0) + n
    chosen: Iterable[str] = (
        code for code, n in total.items() if n >= min_count or codes.SEPARATOR not in code
    )
    return Vocabulary((codes.UNKNOWN, *sorted(set(chosen) - {codes.UNKNOWN})))
