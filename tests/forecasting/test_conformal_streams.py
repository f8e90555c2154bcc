"""Streams: covered in the long run whatever comes, which is more than a split can promise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tsfm.errors import InputError
from tsfm.forecasting.conformal import AdaptiveConformal, SplitConformal, fit_split_conformal

Array = NDArray[Any]
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
SHAPE = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])


def stream(truth: Array, start: SplitConformal) -> Array:
    """Whether each truth was in the widest interval, each forecast after the truths before it."""
    state, held = AdaptiveConformal(start), []
    for y in truth.tolist():
        low, *_, high = state.apply(["x"], [1.0], LEVELS, SHAPE[None])[0]
        held.append(low <= y <= high)
        state = state.update("x", 1.0, SHAPE, y)
    return np.array(held)


def calibrated(edges: tuple[float, ...], variables: tuple[str, ...] = ("x",)) -> SplitConformal:
    """Of forecasts that are too sure of a standard normal, some hours ahead."""
    generator = np.random.default_rng(0)
    truth = generator.standard_normal(2000)
    return fit_split_conformal(
        generator.choice(variables, 2000), generator.choice([1.0, 12.0, 48.0], 2000), LEVELS,
        np.tile(SHAPE, (2000, 1)), truth, lead_edges_hours=edges,
    )  # fmt: skip


def identity(edges: tuple[float, ...]) -> SplitConformal:
    return fit_split_conformal([], [], LEVELS, np.zeros((0, 5)), [], lead_edges_hours=edges)


def test_a_stream_that_drifts_is_covered_where_a_split_is_not() -> None:
    generator = np.random.default_rng(1)
    split, t = calibrated(()), np.arange(2000)
    drifting = generator.standard_normal(2000) * (1 + t / 1000) + 3 * np.sin(t / 150)
    low, *_, high = split.apply(["x"], [1.0], LEVELS, SHAPE[None])[0]
    assert ((low <= drifting) & (drifting <= high)).mean() < 0.7
    quiet = generator.standard_normal(2000)
    for truth in (drifting, quiet):
        assert stream(truth, split).mean() == pytest.approx(0.9, abs=0.02)


@settings(max_examples=50, deadline=None)
@given(
    truths=st.lists(st.floats(-8, 8), min_size=1, max_size=60),
    gamma=st.sampled_from([0.01, 0.1, 1.0]),
)
def test_long_run_coverage_is_kept_whatever_comes(truths: list[float], gamma: float) -> None:
    state = AdaptiveConformal(identity(()), gamma)
    below = np.zeros(5)
    spread = SHAPE[-1] - SHAPE[0]
    for y in truths:
        shift = np.array(state.shifts.get(("x", 0), (0.0,) * 5))
        below += y <= SHAPE + shift * spread
        state = state.update("x", 1.0, SHAPE, y)
    bound = np.abs([np.subtract(-8, SHAPE), np.subtract(8, SHAPE)]).max() / spread
    off = np.abs(below / len(truths) - LEVELS)
    assert (off <= (bound + gamma) / (gamma * len(truths)) + 1e-9).all()
    assert state.n_updates == len(truths)


def test_streams_of_variables_and_lead_bins_are_apart_and_start_at_the_split() -> None:
    split = calibrated((6.0, 24.0), ("x", "y"))
    variable, lead = np.array(["x", "y"] * 3), np.repeat([1.0, 12.0, 48.0], 2)
    quantiles = np.tile(SHAPE, (6, 1))
    before = split.apply(variable, lead, LEVELS, quantiles)
    start = AdaptiveConformal(split)
    np.testing.assert_array_equal(start.apply(variable, lead, LEVELS, quantiles), before)
    moved = start
    for y in (50.0, 60.0, 70.0):
        moved = moved.update("y", 12.0, SHAPE, y)
    assert moved.apply([], [], LEVELS, quantiles[:0]).shape == (0, 5)
    changed = (moved.apply(variable, lead, LEVELS, quantiles) != before).any(1)
    assert changed.tolist() == [False, False, False, True, False, False]
    assert (start.shifts, start.n_updates, moved.n_updates) == ({}, 0, 3)
    # All five quantiles lay below: each has risen by three steps of its level.
    assert moved.shifts["y", 1] == pytest.approx([3 * moved.gamma * level for level in LEVELS])


def test_units_do_not_matter_to_a_stream() -> None:
    generator = np.random.default_rng(3)
    one = other = AdaptiveConformal(identity(()))
    for y in generator.standard_normal(50) + 2:
        one = one.update("x", 1.0, SHAPE, y)
        other = other.update("x", 1.0, 1000 * SHAPE + 7, 1000 * y + 7)
    assert one.shifts["x", 0] == pytest.approx(other.shifts["x", 0])


def test_what_is_missing_is_passed_over_and_counted() -> None:
    later = AdaptiveConformal(calibrated(())).update("x", 1.0, SHAPE, math.nan)
    later = later.update("x", 1.0, np.full(5, math.nan), 1.0)
    assert (later.shifts, later.n_updates, later.n_ignored) == ({}, 0, 2)


def test_what_cannot_be_is_refused() -> None:
    for gamma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="gamma"):
            AdaptiveConformal(identity(()), gamma=gamma)
    with pytest.raises(InputError, match="do not fit"):
        AdaptiveConformal(identity(())).update("x", 1.0, SHAPE[:4], 1.0)
    with pytest.raises(InputError, match="cross"):
        AdaptiveConformal(identity(())).update("x", 1.0, SHAPE[::-1], 1.0)


def test_what_was_fitted_on_one_name_holds_for_any_unless_names_are_known() -> None:
    n = 60
    own = np.tile(np.array(LEVELS) - 0.5, (n, 1))

    def fitted(names: list[str]) -> SplitConformal:
        return fit_split_conformal(
            names, np.ones(n), LEVELS, own, np.full(n, 5.0), lead_edges_hours=(2.0,)
        )

    one, two = fitted(["glucose"] * n), fitted(["glucose", "lactate"] * (n // 2))
    assert one.called(["target", "glucose"], ()).tolist() == ["glucose", "glucose"]
    assert one.called(["target", "glucose"], ("target",)).tolist() == ["target", "glucose"]
    assert two.called(["target"], ()).tolist() == ["target"]
