"""Which of the found beats are reference beats: a one-to-one matching within a tolerance.

As many pairs are made as the tolerance allows, and among such matchings the one whose distances add
up to least. On a line the best pairs never cross, so a short dynamic program finds them; beats with
no other within the tolerance need none. A tight tolerance (50 ms) also judges where the beats are
put, a wide one (150 ms, as in ANSI/AAMI EC57) whether they are found at all. No start of the record
is left out, and no rhythm.
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
    first = np.searchsorted(seen, known - tolerance, side="left")
    last = np.searchsorted(seen, known + tolerance, side="right")
    pairs: list[tuple[int, int]] = []
    start, n = 0, len(known)
    for i in range(n):
        # A cluster: reference beats that share found beats with their neighbours.
        if i + 1 < n and first[i + 1] < last[i]:
            continue
        low, high = int(first[start]), int(last[i])
        pairs += [
            (start + row, low + column)
            for row, column in _pairs(known[start : i + 1], seen[low:high], tolerance)
        ]
        start = i + 1
    matched = np.array(pairs, np.int64).reshape(-1, 2)
    return BeatMatch(len(matched), len(known) - len(matched), len(seen) - len(matched), matched)


def _pairs(
    known: npt.NDArray[np.float64], seen: npt.NDArray[np.float64], tolerance: float
) -> list[tuple[int, int]]:
    if not len(seen):
        return []
    if len(known) == 1:
        return [(0, int(np.abs(seen - known[0]).argmin()))]
    # A pair counts 1 less a little for its distance, so little that no pair is given up for it.
    distance = np.abs(known[:, None] - seen[None, :])
    little = 2.0 * max(tolerance, np.finfo(np.float64).tiny) * (min(distance.shape) + 1)
    gain = np.where(distance <= tolerance, 1.0 - distance / little, -np.inf)
    best = np.zeros((len(known) + 1, len(seen) + 1))
    for i, row in enumerate(gain):
        taken = np.maximum(best[i, 1:], best[i, :-1] + row)
        best[i + 1, 1:] = np.maximum.accumulate(taken)
    pairs, i, j = [], len(known), len(seen)
    while i and j:
        if best[i, j] == best[i - 1, j]:
            i -= 1
        elif best[i, j] == best[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


def _share(hits: int, others: int) -> float:
    return hits / (hits + others) if hits + others else float("nan")
