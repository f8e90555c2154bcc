"""A stream forecasts what the model makes of all points, and costs no more for a long past."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tsfm.errors import FormatError, InputError
from tsfm.forecasting.stream import ForecastStream
from tsfm.models.experts import BAND_LOOKBACK
from tsfm.models.forecast_data import Forecast, ForecastContext, ForecastQueries
from tsfm.models.forecaster import ForecasterConfig, ForecasterModel
from tsfm.models.series_summary import summarise

NAMES = ["HR", "MAP", "Temp", "Lactate", "pH", "GCS"]
LENGTHS = [BAND_LOOKBACK + 20, 9, 1, 0, 30, 8]  # one fills the rates' window, one stays empty
EMPTY, CONSTANT = NAMES.index("Lactate"), NAMES.index("GCS")
ORIGIN = 1.7e9
AHEAD = [0.0, 600.0, 5400.0, 90_000.0]
SMALL = {"d_model": 16, "n_heads": 2, "d_state": 4, "rotary_periods_s": (600.0, 2_592_000.0)}
KNOWN_SCALE = [
    {},
    {"experts": 0},
    {"n_variable_layers": 0},
    {"n_query_layers": 0, "n_variable_layers": 1},
    {"flow": "ode"},
    {"flow": "none", "rotary": False},
    {"query_reads_points": True},
    {"sees_queries": True, "calendar": True},
    {"n_known": 2},
    {"reader": "attention"},
    {"reader": "both", "query_reads_points": True, "calendar": True},
]
OF_CONTEXT = [
    {"scale": "context"},
    {"clock": "context", "rotary_periods_s": (3.0, 3000.0)},
    {"scale": "context", "clock": "context", "rotary_periods_s": (3.0, 3000.0),
     "calendar": True, "query_reads_points": True, "n_variables": 1},
    {"scale": "context", "clock": "context", "rotary_periods_s": (3.0, 3000.0),
     "reader": "both", "query_reads_points": True, "n_variables": 1},
]  # fmt: skip
FORECAST_FIELDS = ("mean", "quantiles", "location", "spread")
Point = tuple[int, float, float]


def make_model(**options: Any) -> ForecasterModel:
    """A model whose every part has a say: at the start of training many weights are nought."""
    torch.manual_seed(0)
    config = ForecasterConfig(**{"n_variables": len(NAMES), **SMALL, **options})
    model = ForecasterModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for layer in model.variable_layers:
            for name, buffer in layer.named_buffers():
                if name.endswith("balance_bias"):
                    buffer += 0.3 * torch.randn_like(buffer)
    if config.scale == "variable" and config.n_variables == len(NAMES):
        n = torch.arange(len(NAMES))
        model.set_variable_scale(80.0 - 10.0 * n, 20.0 / (1.0 + n))
    return model


def make_points(seed: int = 1) -> list[Point]:
    """Points in an order of arrival that keeps to time within a variable only; some share one."""
    generator = torch.Generator().manual_seed(seed)
    waiting: list[list[Point]] = []
    for row, n in enumerate(LENGTHS):
        gaps = 3600 * torch.rand(n, generator=generator, dtype=torch.float64) ** 2
        gaps[3::7] = 0.0
        values = 80.0 - 10.0 * row + 15 * torch.randn(n, generator=generator, dtype=torch.float64)
        if row == CONSTANT:
            values[:] = 14.0
        seconds = ORIGIN + gaps.cumsum(0)
        waiting.append([(row, *p) for p in zip(seconds.tolist(), values.tolist(), strict=True)])
    points = []
    while any(waiting):
        weights = torch.tensor([float(len(points)) for points in waiting])
        row = int(torch.multinomial(weights, 1, generator=generator))
        points.append(waiting[row].pop(0))
    return points


def as_context(points: list[Point], now: float | None = None) -> ForecastContext:
    """The same points as the model takes them."""
    series = [[p for p in points if p[0] == row] for row in range(len(NAMES))]
    flat = [p for part in series for p in part]
    borders = torch.tensor([0, *(len(part) for part in series)]).cumsum(0)
    return ForecastContext(
        torch.tensor([p[1] for p in flat], dtype=torch.float64),
        torch.tensor([p[2] for p in flat], dtype=torch.float64), borders,
        torch.arange(len(NAMES)), torch.tensor([0, len(NAMES)]),
        torch.tensor([max([p[1] for p in flat]) if now is None else now], dtype=torch.float64),
    )  # fmt: skip


def everywhere(now: float, known: Tensor | None = None) -> ForecastQueries:
    """All variables at all times."""
    k = len(AHEAD)
    seconds = torch.tensor([now + ahead for ahead in AHEAD], dtype=torch.float64)
    borders = k * torch.arange(len(NAMES) + 1)
    return ForecastQueries(seconds.repeat(len(NAMES)), borders, known)


def frozen(
    model: ForecasterModel, context: ForecastContext, stream: ForecastStream
) -> Callable[[ForecastQueries], Forecast]:
    """The model over all points, on a scale and a clock that it is told."""
    scaled = replace(context.scaled_by(stream.location, stream.spread), clock=stream.clock)
    summary = summarise(scaled.values, scaled.clock_times(), scaled.cu_points)
    points = model.reader(scaled, model.variable(scaled.variable))
    encoded = model.encoded(scaled, points, summary)
    return lambda queries: model.answer(encoded, queries)


def of_model(context: ForecastContext, model: ForecasterModel) -> ForecastContext:
    """With the variables that the model knows."""
    if model.config.n_variables == 1:
        return replace(context, variable=torch.zeros_like(context.variable))
    return context


def assert_same(given: Forecast, expected: Forecast, tolerance: float = 1e-5) -> None:
    for name in ("mean", "quantiles"):
        actual, wanted = getattr(given, name), getattr(expected, name)
        assert bool(wanted.isfinite().all())
        torch.testing.assert_close(actual, wanted, atol=tolerance, rtol=tolerance)
    for name in ("location", "spread"):
        torch.testing.assert_close(getattr(given, name), getattr(expected, name), equal_nan=True)


def feed(stream: ForecastStream, points: list[Point]) -> None:
    for row, seconds, value in points:
        stream.update(NAMES[row], seconds, value)


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


@pytest.mark.parametrize("options", [{}, {"reader": "both"}, *OF_CONTEXT[2:]], ids=str)
def test_a_stream_survives_a_restart(options: dict[str, Any]) -> None:
    model, points = make_model(**options), make_points()
    stream = ForecastStream(model, NAMES, of_model(as_context(points[:60]), model))
    later = [p for p in points[60:] if stream.location[p[0]].isfinite()]
    feed(stream, later[:20])
    again = ForecastStream.from_state(model, load(save(stream.to_state())))
    assert again.names == stream.names
    end = ORIGIN + 1e6
    for part in ([], later[20:]):
        feed(stream, part)
        feed(again, part)
        assert_same(again.forecast([end]), stream.forecast([end]))


def test_a_stream_restarts_before_its_first_point() -> None:
    for options in ({}, OF_CONTEXT[2]):
        model = make_model(**options)
        again = ForecastStream.from_state(model, ForecastStream(model, NAMES).to_state())
        assert again.n_points == 0
        with pytest.raises(InputError, match="bad_now"):
            again.forecast([ORIGIN])
        again.start(of_model(as_context(make_points()[:60]), model))
        assert again.n_points == 60


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


def test_a_forecast_projects_each_point_once() -> None:
    model = make_model()
    seen: list[int] = []
    block = model.variable_layers[0]
    block.points.key.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))  # type: ignore[union-attr]
    stream = ForecastStream(model, NAMES)
    feed(stream, make_points())
    stream.forecast([ORIGIN + 1e6])
    stream.update("HR", ORIGIN + 1e6, 80.0)
    stream.forecast([ORIGIN + 1e6])
    assert seen == [sum(LENGTHS), 1]


def fresh() -> ForecastStream:
    stream = ForecastStream(make_model(), NAMES)
    feed(stream, make_points()[:40])
    return stream


@pytest.mark.parametrize(
    ("point", "code"),
    [
        (("HR", ORIGIN - 1.0, 80.0), "late_point"),
        (("HR", ORIGIN + 1e6, float("nan")), "not_finite"),
        (("HR", float("inf"), 80.0), "not_finite"),
        (("SpO2", ORIGIN + 1e6, 98.0), "unknown_variable"),
        ((len(NAMES), ORIGIN + 1e6, 98.0), "unknown_variable"),
    ],
)
def test_a_refused_point_leaves_the_stream_as_it_was(point: Any, code: str) -> None:
    stream = fresh()
    with pytest.raises(InputError) as caught:
        stream.update(*point)
    assert caught.value.code == code
    assert caught.value.remedy
    assert "98" not in str(caught.value)
    assert stream.n_points == 40
    stream.update("HR", ORIGIN + 1e6, 80.0)
    assert_same(
        stream.forecast([ORIGIN + 2e6]), ForecastStream.from_state(
            make_model(), stream.to_state()
        ).forecast([ORIGIN + 2e6]),
    )  # fmt: skip


def test_what_can_not_be_forecast_is_refused() -> None:
    stream = fresh()
    latest = float(stream.context().now_seconds)
    refused: list[tuple[tuple[Any, ...], str]] = [
        (([latest - 1.0],), "query_before_now"),
        (([float("nan")],), "query_before_now"),
        (([latest + 9.0], ["HR", 0]), "repeated_variable"),
        (([latest + 9.0], ["SpO2"]), "unknown_variable"),
        (([latest + 9.0], None, latest - 1.0), "bad_now"),
        (([latest + 9.0], None, float("nan")), "bad_now"),
    ]
    for arguments, code in refused:
        with pytest.raises(InputError) as caught:
            stream.forecast(*arguments)
        assert caught.value.code == code


def test_a_scale_of_the_context_must_be_known_first() -> None:
    model = make_model(**OF_CONTEXT[2])
    stream = ForecastStream(model, NAMES)
    with pytest.raises(InputError, match="unknown_scale"):
        stream.update("HR", ORIGIN, 80.0)
    with pytest.raises(InputError, match="unknown_scale"):
        stream.forecast([ORIGIN], now=ORIGIN)
    stream.start(of_model(as_context(make_points()[:60]), model))
    with pytest.raises(InputError, match="unknown_scale"):
        stream.update(EMPTY, ORIGIN + 1e6, 2.0)
    assert stream.forecast([ORIGIN + 1e6], ["Lactate"]).mean_in_units().isnan().all()


def test_wrong_beginnings_are_refused() -> None:
    model, points = make_model(), make_points()
    for names in (NAMES[:-1], [*NAMES[:-1], NAMES[0]], 7, 0):
        with pytest.raises(InputError, match="wrong_variables"):
            ForecastStream(model, names)
    with pytest.raises(InputError, match="model_in_training"):
        ForecastStream(make_model().train(), NAMES)
    stream = ForecastStream(model, NAMES, as_context(points[:9]))
    with pytest.raises(InputError, match="bad_start"):
        stream.start(as_context(points))
    backwards = replace(as_context(points), variable=torch.arange(len(NAMES)).flip(0))
    with pytest.raises(InputError, match="bad_start"):
        ForecastStream(model, NAMES, backwards)
    state = stream.to_state()
    with pytest.raises(FormatError):
        ForecastStream.from_state(model, {**state, "more": state["now"]})
    with pytest.raises(FormatError):
        ForecastStream.from_state(model, {**state, "names": state["names"][:-3]})
