"""Every participant comes once an epoch, with two different segments, by quality and by seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsfm.batches.participant_sampler import ParticipantSampler
from tsfm.errors import InputError


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=4, max_size=60), st.integers(2, 7), st.integers(0, 2**31)
)
def test_an_epoch_meets_everyone_who_has_two_segments_once(
    participants: list[int], size: int, seed: int
) -> None:
    owners = np.array(participants) * 1001 - 7  # ids need not count from nought
    names, counts = np.unique(owners, return_counts=True)
    able = names[counts >= 2]
    if len(able) < 2:
        with pytest.raises(InputError, match="no_pairs"):
            ParticipantSampler(owners, size, seed)
        return
    sampler = ParticipantSampler(owners, size, seed)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert all(2 <= len(first) <= size + 1 for first, _ in batches)
    first, second = (np.concatenate(side) for side in zip(*batches, strict=True))
    assert first.dtype == second.dtype == np.int64
    assert (first != second).all()
    assert (owners[first] == owners[second]).all()
    assert sorted(owners[first]) == sorted(able)


def test_epochs_differ_and_are_the_same_for_the_same_seed() -> None:
    owners = np.repeat(np.arange(20), 5)
    one, other = ParticipantSampler(owners, 8, 3), ParticipantSampler(owners, 8, 3)
    first, second = list(one), list(one)
    assert not np.array_equal(first[0][0], second[0][0])
    again = list(other.epoch(1))  # without having gone through the one before
    for a, b in zip(second, again, strict=True):
        np.testing.assert_array_equal(a, b)
    changed = list(ParticipantSampler(owners, 8, 4))
    assert not np.array_equal(first[0][0], changed[0][0])


def test_pairs_are_drawn_in_proportion_to_the_weights() -> None:
    weight = np.array([0.0, 1.0, 2.0, 5.0])
    owners = np.repeat(np.arange(500), 4)
    sampler = ParticipantSampler(owners, 500, 0, np.tile(weight, 500))
    seen = np.zeros((4, 4))
    for _ in range(40):
        for first, second in sampler:
            np.add.at(seen, (first % 4, second % 4), 1)
    share = seen / seen.sum()
    p = weight / weight.sum()
    expected = np.zeros((4, 4))
    for i in range(1, 4):
        for j in range(1, 4):
            if i != j:
                both_orders = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
                expected[i, j] = both_orders / 2
    np.testing.assert_allclose(expected.sum(), 1.0)
    np.testing.assert_allclose(share, expected, atol=0.01)


def test_who_has_one_segment_of_any_weight_is_left_out() -> None:
    owners = np.array([0, 0, 1, 1, 2, 2])
    sampler = ParticipantSampler(owners, 2, 0, [1, 1, 1, 1, 1, 0])
    assert sampler.n_participants == 2
    assert {int(row) for first, second in sampler for row in (*first, *second)} == {0, 1, 2, 3}


@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 1, 1, -1], [1, 1, 1, np.nan]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(InputError, match="bad_segment_weights"):
        ParticipantSampler([0, 0, 1, 1], 2, 0, weights)


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(InputError, match="bad_batch_size"):
        ParticipantSampler([0, 0, 1, 1], 1, 0)
