"""Matching of beats is one-to-one, as large as can be, and as close as can be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsfm.errors import InputError
from tsfm.evaluation.beat_matching import match_beats

times = st.lists(st.integers(0, 40), max_size=6, unique=True).map(sorted)


def best(reference: list[int], found: list[int], tolerance: float) -> tuple[int, float]:
    """Most pairs, and the least sum of distances of so many, by trying all."""
    for n in range(min(len(reference), len(found)), 0, -1):
        sums = [
            sum(abs(a - b) for a, b in zip(some, others, strict=True))
            for some in itertools.combinations(reference, n)
            for others in itertools.permutations(found, n)
            if all(abs(a - b) <= tolerance for a, b in zip(some, others, strict=True))
        ]
        if sums:
            return n, min(sums)
    return 0, 0


@given(times, times, st.integers(0, 12))
def test_no_other_matching_has_more_pairs_or_closer_ones(
    reference: list[int], found: list[int], tolerance: int
) -> None:
    match = match_beats(reference, found, tolerance=tolerance)
    distances = [abs(reference[i] - found[j]) for i, j in match.pairs]
    assert (match.n_matched, sum(distances)) == best(reference, found, tolerance)
    assert all(d <= tolerance for d in distances)
    for side, n in ((0, len(reference)), (1, len(found))):
        assert len(set(match.pairs[:, side])) == match.n_matched
        assert set(match.pairs[:, side]) <= set(range(n))
    assert match.n_missed == len(reference) - match.n_matched
    assert match.n_extra == len(found) - match.n_matched


def test_a_beat_found_twice_counts_once() -> None:
    match = match_beats([100, 200], [98, 101, 199], tolerance=10)
    assert match.pairs.tolist() == [[0, 1], [1, 2]]
    assert (match.n_missed, match.n_extra) == (0, 1)
    assert match.sensitivity == 1
    assert match.positive_predictivity == pytest.approx(2 / 3)


def test_the_nearest_is_left_to_who_has_no_other() -> None:
    """Taking the nearest first would pair 0 with 45 and leave 100 alone."""
    assert match_beats([0, 100], [-50, 45], tolerance=60).pairs.tolist() == [[0, 0], [1, 1]]


def test_the_tolerance_itself_is_within_it() -> None:
    assert match_beats([100], [118], tolerance=18).n_matched == 1
    assert match_beats([100], [118.1], tolerance=18).n_matched == 0
    assert match_beats([100], [100], tolerance=0).n_matched == 1


def test_without_beats_shares_are_not_a_number() -> None:
    match = match_beats([], [], tolerance=5)
    assert match.n_matched == match.n_missed == match.n_extra == 0
    assert match.pairs.shape == (0, 2)
    assert np.isnan(match.sensitivity)
    assert np.isnan(match.positive_predictivity)
    assert match_beats([], [3], tolerance=5).positive_predictivity == 0
    assert match_beats([3], [], tolerance=5).sensitivity == 0


def test_a_detector_with_a_constant_delay_loses_by_a_tight_tolerance_alone() -> None:
    beats = np.arange(0, 100_000, 300)
    assert match_beats(beats, beats + 36, tolerance=54).sensitivity == 1
    assert match_beats(beats, beats + 36, tolerance=18).sensitivity == 0


def test_many_found_beats_around_many_beats() -> None:
    """One cluster from end to end still gives every beat its own."""
    beats = np.arange(0, 60_000, 100)
    found = np.sort(np.concatenate([beats + 40, beats + 3]))
    match = match_beats(beats, found, tolerance=60)
    assert match.n_missed == 0
    assert np.abs(beats[match.pairs[:, 0]] - found[match.pairs[:, 1]]).max() == 3


@pytest.mark.parametrize("lists", [([3, 2], [1]), ([1], [3, 2])])
def test_lists_out_of_order_are_refused(lists: tuple[list[int], list[int]]) -> None:
    with pytest.raises(InputError) as caught:
        match_beats(*lists, tolerance=1)
    assert caught.value.code == "unordered_beats"
    with pytest.raises(InputError):
        match_beats([1], [1], tolerance=-1)
