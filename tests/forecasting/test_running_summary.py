"""A running summary, point by point, is the summary of all points."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import torch

from tsfm.forecasting.running_summary import RunningSummary
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
