"""A stream forecasts what the model makes of all points, and costs no more for a long past."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tsfm.forecasting import serving_model
from tsfm.forecasting.stream import ForecastStream
from tsfm.models.forecast_data import Forecast, ForecastContext, ForecastQueries

from .stream_cases import (
    AHEAD,
    EMPTY,
    FORECAST_FIELDS,
    KNOWN_SCALE,
    LENGTHS,
    NAMES,
    OF_CONTEXT,
    ORIGIN,
    as_context,
    assert_same,
    everywhere,
    feed,
    frozen,
    make_model,
    make_points,
    of_model,
)


@pytest.mark.parametrize("options", KNOWN_SCALE, ids=str)
@torch.no_grad()
def test_a_stream_forecasts_what_the_model_makes_of_all_points(options: dict[str, Any]) -> None:
    model, points = make_model(**options), make_points()
    stream = ForecastStream(model, NAMES)
    known = None
    if model.config.n_known:
        known = torch.randn(len(AHEAD) * len(NAMES), model.config.n_known)
        known[::3, 0] = torch.nan
    done = 0
    for upto in (1, 2, 15, 16, len(points)):
        feed(stream, points[done:upto])
        done = upto
        now = max(p[1] for p in points[:upto]) + 500.0 * (upto % 3)
        queries = everywhere(now, known)
        context = as_context(points[:upto], now)
        context.check()
        given = stream.forecast([now + ahead for ahead in AHEAD], now=now, known=known)
        assert_same(given, model(context, queries))


@torch.no_grad()
def test_layers_that_can_not_be_compiled_answer_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_model, "_compiles", lambda block: False)
    model, points = make_model(), make_points()
    stream = ForecastStream(model, NAMES)
    feed(stream, points)
    now = max(p[1] for p in points)
    given = stream.forecast([now + ahead for ahead in AHEAD])
    assert_same(given, model(as_context(points), everywhere(now)))


@torch.no_grad()
def test_a_slip_of_the_keyboard_is_read_as_the_model_reads_it() -> None:
    model, points = make_model(), make_points()
    now = max(p[1] for p in points)
    points = [*points, (0, now, 1e25), (0, now + 60.0, 81.0)]
    stream = ForecastStream(model, NAMES)
    feed(stream, points)
    given = stream.forecast([now + 60.0 + ahead for ahead in AHEAD])
    wanted = model(as_context(points), everywhere(now + 60.0))
    # Sums of squares of 1e4 hold fewer digits of what is near nought.
    assert_same(given, wanted, tolerance=1e-3)


@pytest.mark.parametrize("options", OF_CONTEXT, ids=str)
@torch.no_grad()
def test_scale_and_clock_of_the_warm_up_are_kept(options: dict[str, Any]) -> None:
    model, points = make_model(**options), make_points()
    n_warm = 60
    warm_up = of_model(as_context(points[:n_warm]), model)
    stream = ForecastStream(model, NAMES, warm_up)
    now = float(warm_up.now_seconds)
    queries = everywhere(now)
    given = stream.forecast([now + ahead for ahead in AHEAD])
    expected = model(warm_up, queries)  # takes the scale itself
    there = torch.repeat_interleave(warm_up.cu_points.diff() > 0, len(AHEAD))
    assert torch.equal(given.location[there], expected.location[there])
    torch.testing.assert_close(given.mean, expected.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(given.quantiles, expected.quantiles, atol=1e-5, rtol=1e-5)
    known = set((warm_up.cu_points.diff() > 0).nonzero().flatten().tolist())
    points = [p for i, p in enumerate(points) if i < n_warm or p[0] in known]
    scale = [x.clone() for x in (stream.location, stream.spread, stream.clock)]
    feed(stream, points[n_warm:])
    for before, after in zip(scale, (stream.location, stream.spread, stream.clock), strict=True):
        torch.testing.assert_close(after, before, equal_nan=True, atol=0.0, rtol=0.0)
    now = max(p[1] for p in points)
    context = of_model(as_context(points), model)
    given = stream.forecast([now + ahead for ahead in AHEAD])
    assert_same(given, frozen(model, context, stream)(everywhere(now)))


@torch.no_grad()
def test_a_stream_of_one_anonymous_series_needs_no_name() -> None:
    model = make_model(**OF_CONTEXT[2])
    seconds = ORIGIN + torch.arange(30, dtype=torch.float64) * 604_800
    values = 1e6 + 1e3 * torch.randn(30, dtype=torch.float64)
    one = torch.tensor([0, 20])
    start = ForecastContext(
        seconds[:20], values[:20], one, torch.tensor([0]), torch.tensor([0, 1]), seconds[19:20]
    )
    stream = ForecastStream(model, 1, start)
    for at, value in zip(seconds[20:].tolist(), values[20:].tolist(), strict=True):
        stream.update(0, at, value)
    context = replace(
        start, seconds=seconds, values=values, cu_points=torch.tensor([0, 30]),
        now_seconds=seconds[-1:],
    )  # fmt: skip
    queries = ForecastQueries(seconds[-1:] + torch.tensor([1e5, 1e6]), torch.tensor([0, 2]))
    assert_same(stream.forecast(queries.seconds), frozen(model, context, stream)(queries))


@torch.no_grad()
def test_nothing_read_is_forecast_as_the_model_forecasts_nothing() -> None:
    model = make_model()
    given = ForecastStream(model, NAMES).forecast([ORIGIN + a for a in AHEAD], now=ORIGIN)
    context = as_context([], ORIGIN)
    assert_same(given, model(context, everywhere(ORIGIN)))


@pytest.mark.parametrize("options", [{}, {"query_reads_points": True}, {"n_known": 1}], ids=str)
def test_some_variables_in_any_order_are_answered_as_among_all(options: dict[str, Any]) -> None:
    model, points = make_model(**options), make_points()
    stream = ForecastStream(model, NAMES)
    feed(stream, points)
    now, k = max(p[1] for p in points), len(AHEAD)
    at = [now + ahead for ahead in AHEAD]
    known = torch.randn(k * len(NAMES), 1) if model.config.n_known else None
    everything = stream.forecast(at, known=known)
    for rows in ([4, 0, EMPTY], [EMPTY], [2], [1, 3]):
        index = torch.tensor([row * k + i for row in rows for i in range(k)])
        asked: list[str | int] = [NAMES[row] if row % 2 else row for row in rows]
        some = stream.forecast(at, asked, known=None if known is None else known[index])
        assert_same(some, Forecast(*(getattr(everything, f)[index] for f in FORECAST_FIELDS)), 1e-6)


@torch.no_grad()
def test_forecasts_change_nothing() -> None:
    model, points = make_model(), make_points()
    asked, silent = ForecastStream(model, NAMES), ForecastStream(model, NAMES)
    for i, (row, seconds, value) in enumerate(points):
        for stream in (asked, silent):
            stream.update(row, seconds, value)
        if i % 5 == 0:
            asked.forecast([ORIGIN + 1e6, ORIGIN + 2e6])
    end = ORIGIN + 1e6
    assert_same(asked.forecast([end], now=end), silent.forecast([end], now=end), 1e-6)
    weights = make_model().state_dict()
    assert all(torch.equal(held, weights[name]) for name, held in model.state_dict().items())


def test_a_given_forecast_does_not_change_with_later_points() -> None:
    model, points = make_model(), make_points()
    stream = ForecastStream(model, NAMES)
    feed(stream, points[:50])
    first = stream.forecast([ORIGIN + 1e6])
    before = first.mean.clone()
    feed(stream, points[50:])
    second = stream.forecast([ORIGIN + 1e6])
    assert torch.equal(first.mean, before)
    assert not torch.allclose(second.mean, before)


def test_the_context_gives_back_the_points() -> None:
    points = make_points()
    stream = ForecastStream(make_model(), NAMES)
    feed(stream, points)
    given, expected = stream.context(), as_context(points)
    given.check()
    for name in ("seconds", "values", "cu_points", "variable", "cu_series", "now_seconds"):
        assert torch.equal(getattr(given, name), getattr(expected, name))
    assert float(stream.context(ORIGIN + 1e7).now_seconds) == ORIGIN + 1e7


class _Sizes(TorchDispatchMode):
    """Notes how many elements every operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = func(*args, **(kwargs or {}))
        for tensor in given if isinstance(given, (tuple, list)) else (given,):
            if isinstance(tensor, Tensor):
                self.sizes.append(tensor.numel())
        return given


def test_a_point_costs_the_same_whatever_came_before() -> None:
    model = make_model(query_reads_points=True)
    stream = ForecastStream(model, NAMES)
    costs, i = [], 0
    for upto in (100, 600):
        while i < upto:
            stream.update(i % 2, ORIGIN + 60.0 * i, 80.0 + i % 7)
            i += 1
        with _Sizes() as noted:
            stream.update(i % 2, ORIGIN + 60.0 * i, 80.0)
            i += 1
        costs.append(noted.sizes)
    assert len(costs[0]) > 50  # it was counted
    assert costs[0] == costs[1]


def test_a_forecast_projects_each_point_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    project = serving_model.keys_and_values

    def noted(points: np.ndarray, *others: Any) -> Any:
        seen.append(len(points))
        return project(points, *others)

    monkeypatch.setattr(serving_model, "keys_and_values", noted)
    model = make_model(n_variable_layers=1)
    stream = ForecastStream(model, NAMES)
    feed(stream, make_points())
    stream.forecast([ORIGIN + 1e6])
    stream.update("HR", ORIGIN + 1e6, 80.0)
    stream.forecast([ORIGIN + 1e6])
    assert seen == [sum(LENGTHS), 1]
