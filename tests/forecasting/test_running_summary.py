"""A running summary, point by point, is the summary of all points."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import numpy as np
import torch

from tsfm.forecasting.running_summary import FrozenScale, RunningSummary
from tsfm.models.series_scale import fit_series_scale
from tsfm.models.series_summary import SeriesSummary, summarise


def test_point_by_point_it_is_the_summary_of_all_points() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 0, 1, 30]
    borders = torch.tensor([0, *lengths]).cumsum(0)
    z = torch.randn(sum(lengths), generator=generator)
    gaps = 3 * torch.rand(len(z), generator=generator, dtype=torch.float64)
    clock = gaps.cumsum(0)
    running = RunningSummary(len(lengths))
    for row, (start, end) in enumerate(pairwise(borders.tolist())):
        for i in range(start, end):
            running.take(row, float(z[i]), float(gaps[i]))
    assert_same(running.tensors(), summarise(z, clock, borders))


def test_it_goes_on_from_a_summary() -> None:
    z, clock = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.0, 0.5, 2.5], dtype=torch.float64)
    running = RunningSummary(1)
    running.set(summarise(z[:2], clock[:2], torch.tensor([0, 2])))
    running.take(0, 2.0, 2.0)
    assert_same(running.tensors(), summarise(z, clock, torch.tensor([0, 3])))


def test_given_tensors_stay_as_they_are() -> None:
    running = RunningSummary(2)
    before = running.tensors()
    running.take(0, 3.0, 0.0)
    assert before.count.tolist() == [0.0, 0.0]
    assert running.tensors().count.tolist() == [1.0, 0.0]


def assert_same(given: SeriesSummary, wanted: SeriesSummary) -> None:
    for field in fields(SeriesSummary):
        torch.testing.assert_close(
            getattr(given, field.name), getattr(wanted, field.name), atol=2e-5, rtol=2e-5,
            msg=lambda text, name=field.name: f"{name}: {text}",
        )  # fmt: skip


N = 2000


def points_until_left(seconds: np.ndarray, values: np.ndarray) -> int:
    """How many points after the first N a series needs to leave the scale and clock of those."""
    read = torch.as_tensor(values[:N])
    fitted = fit_series_scale(read, torch.ones(N, dtype=torch.bool))
    clock = float(np.sort(np.diff(seconds[:N]))[(N - 1) // 2])
    scale = FrozenScale(seconds[:N], values[:N], float(fitted.location), float(fitted.scale), clock)
    rest = zip(seconds[N:], values[N:], strict=True)
    return next(i for i, (when, value) in enumerate(rest, 1) if scale.left_by(when, value))


def test_a_series_leaves_its_scale_by_growth_or_by_moving() -> None:
    rng = np.random.default_rng(0)
    noise, even = rng.normal(size=2 * N), np.arange(2.0 * N)
    later = even >= N
    grown = N // 4
    assert points_until_left(even, noise) == grown
    assert points_until_left(even, noise + later) < grown / 2
    assert points_until_left(even, noise * np.where(later, 0.1, 1.0)) < grown / 2
    assert points_until_left(even, noise + 100.0 * later) == 1
    constant = np.full(2 * N, 0.1)
    assert points_until_left(even, constant) == grown
    constant[N + 3] += 0.01
    assert points_until_left(even, constant) == 4
    mostly_zero = np.where(even % 5 > 0, 0.0, np.where(later, 2.5, 1.0))
    assert points_until_left(even, mostly_zero) < grown / 2


def test_a_series_leaves_its_clock_when_its_usual_gap_changes() -> None:
    gaps = np.r_[np.tile([1.0, 10.0], N // 2)[: N - 9], np.full(N + 9, 10.0)]
    gaps[:12] = 1.0
    noise = np.random.default_rng(0).normal(size=2 * N)
    assert points_until_left(gaps.cumsum(), noise) < N / 8


def test_a_short_series_is_always_read_anew() -> None:
    scale = FrozenScale(np.arange(9.0), np.zeros(9), 0.0, 1.0, 1.0)
    assert scale.left_by(9.0, 0.0)
