"""Pairs of segments of the same participant, for objectives that learn who somebody is.

An epoch meets every participant once, with two different segments of theirs (Abbaspourazad et al.
2024): a participant with a year of recordings counts as much as one with a day. Segments may carry
a weight, such as their quality: the two are drawn one after the other in proportion to it, without
replacement, which Gumbel noise on the logarithms does for all participants at once (Efraimidis and
Spirakis 2006). A weight of nought is never drawn.

It knows numbers of rows and nothing of signals; who is in training is for the caller to decide.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsfm.errors import InputError

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows of the first and of the second segment of each participant of a batch."""


class ParticipantSampler:
    """Batches of pairs; going through it again gives the next epoch.

    Batches are as even as they can be, since a batch of one participant has nobody to contrast
    with; where that takes it, one has a participant more than was asked for.

    Args:
        participants: Participant of each segment.
        n_participants_per_batch: Pairs a batch, two or more.
        seed: Of all draws: the k-th epoch is the same whatever was drawn before.
        weights: Weight of each segment, nought or more; None weighs them alike.

    Raises:
        InputError: Weights or sizes do not fit, or fewer than two participants have two segments.
    """

    def __init__(
        self,
        participants: ArrayLike,
        n_participants_per_batch: int,
        seed: int,
        weights: ArrayLike | None = None,
    ) -> None:
        """Sort the rows by participant; those who cannot give a pair are left out."""
        owners = np.asarray(participants)
        weight = np.ones(len(owners)) if weights is None else np.asarray(weights, np.float64)
        if owners.ndim != 1 or weight.shape != owners.shape or not _are_weights(weight):
            raise InputError(
                "participants and weights do not fit each other", code="bad_segment_weights",
                place="ParticipantSampler",
                remedy="Give one participant and one finite weight, nought or more, a segment.",
            )  # fmt: skip
        if n_participants_per_batch < 2:
            raise InputError(
                "a batch of fewer than two participants", code="bad_batch_size",
                place="n_participants_per_batch", remedy="Contrast needs two or more.",
            )  # fmt: skip
        usable = np.flatnonzero(weight > 0)
        _, owner, count = np.unique(owners[usable], return_inverse=True, return_counts=True)
        usable, owner = usable[count[owner] >= 2], owner[count[owner] >= 2]
        order = np.argsort(owner, kind="stable")
        self._rows, owner = usable[order], owner[order]
        self._starts = np.flatnonzero(np.append(True, owner[1:] != owner[:-1])[: len(owner)])
        self._owner = np.repeat(
            np.arange(len(self._starts)), np.diff(np.append(self._starts, len(owner)))
        )
        self._log_weight = np.log(weight[self._rows])
        self._seed, self._size = seed, n_participants_per_batch
        self._next_epoch = 0
        if self.n_participants < 2:
            raise InputError(
                "fewer than two participants have two segments", code="no_pairs",
                place="participants", remedy="Give more segments of more participants.",
            )  # fmt: skip

    @property
    def n_participants(self) -> int:
        """Those who have two segments of some weight."""
        return len(self._starts)

    def __len__(self) -> int:
        """Batches an epoch."""
        return min(-(-self.n_participants // self._size), self.n_participants // 2)

    def __iter__(self) -> Iterator[Pairs]:
        """Go through the next epoch."""
        epoch = self._next_epoch
        self._next_epoch += 1
        return self.epoch(epoch)

    def epoch(self, index: int) -> Iterator[Pairs]:
        """Go through the epoch of this number, whichever comes next otherwise.

        Args:
            index: 0 for the first.
        """
        rng = np.random.default_rng([self._seed, index])
        key = self._log_weight + rng.gumbel(size=len(self._rows))
        best = self._starts[:, None] + np.arange(2)
        pairs = self._rows[np.lexsort((-key, self._owner))[best]].astype(np.int64)
        # Of the two, the heavier one comes first too often; either side is to see the same mix.
        pairs = rng.permuted(pairs, axis=1)
        for who in np.array_split(rng.permutation(len(pairs)), len(self)):
            yield pairs[who, 0], pairs[who, 1]


def _are_weights(weight: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(weight).all() and (weight >= 0).all())
