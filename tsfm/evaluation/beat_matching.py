"""Which of the found beats are reference beats: a one-to-one matching within a tolerance.

Both lists are walked in time. A reference beat takes the nearest found beat within the tolerance
that no earlier one has taken; a found beat is taken once. A tight tolerance (50 ms) also judges
where the beats are put, a wide one (150 ms, as in ANSI/AAMI EC57) whether they are found at all.
No start of the record is left out, and no rhythm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tsfm.errors import InputError


@dataclass(frozen=True, eq=False)
class BeatMatch:
    """Reference beats and found beats, matched.

    Attributes:
        n_matched: Pairs.
        n_missed: Reference beats without a found one.
        n_extra: Found beats without a reference one.
        pairs: (n_matched, 2) indices into reference and found.
    """

    n_matched: int
    n_missed: int
    n_extra: int
    pairs: npt.NDArray[np.int64]

    @property
    def sensitivity(self) -> float:
        """Share of the reference beats that were found; NaN if there is none."""
        return _share(self.n_matched, self.n_missed)

    @property
    def positive_predictivity(self) -> float:
        """Share of the found beats that are reference beats; NaN if there is none."""
        return _share(self.n_matched, self.n_extra)


def match_beats(reference: npt.ArrayLike, found: npt.ArrayLike, *, tolerance: float) -> BeatMatch:
    """Match two lists of beats.

    Args:
        reference: (n,) times or samples, in order.
        found: (m,) the same.
        tolerance: Largest distance of a pair, in the same unit.

    Raises:
        InputError: `unordered_beats`, or a negative tolerance.
    """
    known, seen = np.asarray(reference, np.float64), np.asarray(found, np.float64)
    if tolerance < 0 or (np.diff(known) < 0).any() or (np.diff(seen) < 0).any():
        raise InputError(
            "beats are not in order, or the tolerance is negative", code="unordered_beats",
            place="match_beats", remedy="Sort both lists by time.",
        )  # fmt: skip
    taken = np.zeros(len(seen), np.bool_)
    first = np.searchsorted(seen, known - tolerance, side="left")
    last = np.searchsorted(seen, known + tolerance, side="right")
    pairs = []
    for i, (low, high) in enumerate(zip(first, last, strict=True)):
        free = [j for j in range(low, high) if not taken[j]]
        if free:
            nearest = min(free, key=lambda j: abs(seen[j] - known[i]))
            taken[nearest] = True
            pairs.append((i, nearest))
    matched = np.array(pairs, np.int64).reshape(-1, 2)
    return BeatMatch(len(matched), len(known) - len(matched), len(seen) - len(matched), matched)


def _share(hits: int, others: int) -> float:
    return hits / (hits + others) if hits + others else float("nan")
