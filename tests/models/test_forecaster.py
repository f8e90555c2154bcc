"""A query is answered by itself, entities by themselves, in real time, in the context's scale."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsfm.errors import InputError
from tsfm.models.forecast_data import Forecast, ForecastContext, ForecastQueries
from tsfm.models.forecaster import ForecasterConfig, ForecasterModel
from tsfm.models.quantile_head import LEVELS, bounded_square, pinball
from tsfm.models.seasonal_lags import SeasonalLags

HOUR, WEEK = 3600.0, 604_800.0
YEARS_30 = 30 * 365.25 * 86_400
TINY: dict[str, Any] = {
    "d_model": 16, "n_heads": 2, "d_state": 2, "n_reader_layers": 1, "n_variable_layers": 1,
    "n_query_layers": 1, "dropout": 0.0,
}  # fmt: skip
KNOWN: dict[str, Any] = {**TINY, "n_variables": 3}
ANONYMOUS: dict[str, Any] = {
    **TINY, "clock": "context", "scale": "context", "calendar": True, "query_reads_points": True,
    "rotary_periods_s": (2.0, 2000.0),
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "known": KNOWN,
    "anonymous": ANONYMOUS,
    "both readers, ode, experts": {**KNOWN, "reader": "both", "flow": "ode", "query_experts": 4},
    "attention, no flow": {**KNOWN, "reader": "attention", "flow": "none", "experts": 0},
    "table": {**KNOWN, "table": 8},
}
Points = Sequence[tuple[float, float]]


def awake(seed: int = 0, **sizes: Any) -> ForecasterModel:
    """A model none of whose parts still waits at its zero start."""
    torch.manual_seed(seed)
    model = ForecasterModel(ForecasterConfig(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def pack(entities: Sequence[Sequence[Points]], now: Sequence[float]) -> ForecastContext:
    """Variables are counted within an entity."""
    series = [points for entity in entities for points in entity]
    rows = [point for points in series for point in points]
    context = ForecastContext(
        torch.tensor([t for t, _ in rows], dtype=torch.float64),
        torch.tensor([v for _, v in rows], dtype=torch.float32),
        torch.tensor([0, *itertools.accumulate(map(len, series))]),
        torch.tensor([i for entity in entities for i in range(len(entity))]),
        torch.tensor([0, *itertools.accumulate(map(len, entities))]),
        torch.tensor(now, dtype=torch.float64),
    )
    context.check()
    return context


def ask(context: ForecastContext, ahead: Sequence[float]) -> ForecastQueries:
    """Every series at the same seconds after now."""
    n = len(context.variable)
    seconds = torch.full((n,), float(context.now_seconds.max()), dtype=torch.float64)
    seconds = seconds[:, None] + torch.tensor(ahead, dtype=torch.float64)
    return ForecastQueries(seconds.flatten(), torch.arange(n + 1) * len(ahead))


def drawn(seed: int, n: int, span: float = 40 * HOUR) -> list[tuple[float, float]]:
    generator = torch.Generator().manual_seed(seed)
    seconds = (torch.rand(n, generator=generator).double() * span).sort().values
    return list(zip(seconds.tolist(), torch.randn(n, generator=generator).tolist(), strict=True))


def entities(empty: bool = True) -> list[list[Points]]:
    """Two patients of three variables, one of which was never measured in either."""
    n = 0 if empty else 6
    first: list[Points] = [drawn(0, 9), drawn(1, n), drawn(2, 12)]
    return [first, [drawn(3, n), drawn(4, 7), drawn(5, max(1, n))]]


def for_kind(sizes: dict[str, Any], series: list[list[Points]], now: float) -> ForecastContext:
    """Anonymous series are an entity each."""
    if sizes.get("clock") == "context":
        series = [[points] for entity in series for points in entity]
    return pack(series, [now] * len(series))


@torch.no_grad()
def answers(model: ForecasterModel, context: ForecastContext, queries: ForecastQueries) -> Tensor:
    """Mean and quantiles in units, side by side."""
    forecast = model(context, queries)
    return torch.cat([forecast.mean_in_units()[:, None], forecast.quantiles_in_units()], -1)


def assert_sound(forecast: Forecast) -> None:
    assert bool(forecast.mean.isfinite().all() & forecast.quantiles.isfinite().all())
    assert bool((forecast.quantiles.diff(dim=-1) >= 0).all())
    assert bool((forecast.quantiles_in_units().diff(dim=-1) >= 0).all())


def some_asked(queries: ForecastQueries, kept: Tensor) -> ForecastQueries:
    counts = torch.zeros(len(queries.cu_queries), dtype=torch.int64)
    counts[1:].index_add_(0, queries.series()[kept], torch.ones(int(kept.sum()), dtype=torch.int64))
    return ForecastQueries(queries.seconds[kept], counts.cumsum(0))


@pytest.mark.parametrize("kind", KINDS)
def test_other_queries_change_no_answer(kind: str) -> None:
    model = awake(**KINDS[kind])
    context = for_kind(KINDS[kind], entities(), 42 * HOUR)
    queries = ask(context, [60.0, 3 * HOUR, 30 * HOUR])
    whole = answers(model, context, queries)
    series = queries.series()
    for kept in (series == 2, series != 0, torch.arange(len(series)) % 3 == 1):
        some = answers(model, context, some_asked(queries, kept))
        torch.testing.assert_close(some, whole[kept], rtol=1e-6, atol=2e-6)


def test_queries_that_see_each_other_do_change_answers_within_their_entity() -> None:
    model = awake(**KNOWN, sees_queries=True)
    context = for_kind(KNOWN, entities(), 42 * HOUR)
    queries = ask(context, [60.0, 3 * HOUR, 30 * HOUR])
    kept = (torch.arange(18) != 0) & (torch.arange(18) != 4)  # both of the first patient's
    change = (answers(model, context, some_asked(queries, kept))
              - answers(model, context, queries)[kept]).abs().amax(-1)  # fmt: skip
    assert float(change[:7].min()) > 1e-5
    assert float(change[7:].max()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_entities_do_not_touch_each_other(kind: str) -> None:
    model = awake(**KINDS[kind])
    series = entities()
    together = for_kind(KINDS[kind], series, 42 * HOUR)
    whole = answers(model, together, ask(together, [60.0, 9 * HOUR])).split(6)
    for entity, expected in zip(series, whole, strict=True):
        alone = for_kind(KINDS[kind], [entity], 42 * HOUR)
        got = answers(model, alone, ask(alone, [60.0, 9 * HOUR]))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


CONTEXTS: dict[str, list[list[Points]]] = {
    "no point in the whole batch": [[[], [], []], [[], [], []]],
    "an entity without a point": [[[], [], []], [drawn(0, 5), [], drawn(1, 3)]],
    "one point": [[[], [(5.0, 2.0)], []]],
    "constant": [[[(HOUR * i, 7.0) for i in range(9)]] * 3],
    "all of one moment": [[[(60.0, float(i)) for i in range(9)]] * 3],
    "a moment twice": [[[(0.0, 1.0), (60.0, 2.0), (60.0, 5.0), (90.0, 3.0)], [], drawn(1, 3)]],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", CONTEXTS)
def test_scanty_contexts_are_answered(kind: str, what: str) -> None:
    model = awake(**KINDS[kind])
    context = for_kind(KINDS[kind], CONTEXTS[what], 50 * HOUR)
    with torch.no_grad():
        assert_sound(model(context, ask(context, [0.0, 60.0, 90 * HOUR])))


@pytest.mark.parametrize(
    ("kind", "empty", "asked"),
    [
        ("known", True, []), ("known", True, [1]), ("known", False, []), ("anonymous", True, []),
        ("anonymous", True, [1]), ("anonymous", False, [1]),
        ("anonymous", False, []),
    ],
)  # fmt: skip
def test_any_list_of_queries_is_answered(kind: str, empty: bool, asked: list[int]) -> None:
    """Also none, and of a series alone that was never measured."""
    context = for_kind(KINDS[kind], entities(empty), 42 * HOUR)
    queries = ask(context, [60.0])
    kept = torch.isin(queries.series(), torch.tensor(asked, dtype=torch.int64))
    some = answers(MODELS[kind], context, some_asked(queries, kept))
    assert some.shape == (len(asked), 1 + len(LEVELS))
    assert some.isfinite().all()


def test_an_entity_without_series_is_refused_by_the_check() -> None:
    with pytest.raises(InputError, match="no series"):
        pack([entities()[0], []], [42 * HOUR, 42 * HOUR]).check()


@pytest.mark.parametrize("reader", ["mamba", "attention", "both"])
def test_later_points_leave_earlier_states_alone(reader: str) -> None:
    model = awake(**{**KNOWN, "reader": reader})
    long = [drawn(i, n) for i, n in enumerate((9, 1, 12))]
    short = [points[: max(1, 2 * len(points) // 3)] for points in long]
    states = []
    for series in (long, short):
        context = model.standardised(pack([series], [50 * HOUR]))
        with torch.no_grad():
            read = model.reader(context, model.variable(context.variable))
        states.append(read.split([len(points) for points in series]))
    for whole, part in zip(*states, strict=True):
        torch.testing.assert_close(whole[: len(part)], part, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(states[0][0][1:], states[0][0][:-1])


@pytest.mark.parametrize(("n_layers", "table"), [(0, 0), (2, 0), (0, 8)])
def test_other_variables_matter_if_there_are_parts_for_it(n_layers: int, table: int) -> None:
    model = awake(**{**KNOWN, "n_variable_layers": n_layers, "table": table})
    context = for_kind(KNOWN, entities(empty=False), 42 * HOUR)
    queries = ask(context, [60.0, 9 * HOUR])
    values = context.values.clone()
    changed_series = context.series_of_point() == 2
    values[changed_series] += 1.5
    before, after = (answers(model, replace(context, values=v), queries)
                     for v in (context.values, values))  # fmt: skip
    change = (after - before).abs().amax(-1).view(6, 2).amin(-1)
    assert float(change[2]) > 1e-3
    assert float(change[3:].max()) < 1e-5  # another patient's
    if n_layers or table:
        assert float(change[:2].min()) > 1e-5
    else:
        assert float(change[:2].max()) < 1e-6


@pytest.mark.parametrize("clock", ["hours", "context"])
@pytest.mark.parametrize("scale", ["variable", "context"])
def test_a_quarter_of_a_kilohertz_is_not_weekly(clock: str, scale: str) -> None:
    model = awake(**{**ANONYMOUS, "calendar": False, "clock": clock, "scale": scale})
    values = [v for _, v in drawn(0, 20)]
    seen = []
    for step in (0.004, WEEK):
        context = pack([[[(step * i, v) for i, v in enumerate(values)]]], [19 * step])
        seen.append(answers(model, context, ask(context, [step, 5 * step])))
    assert float((seen[0] - seen[1]).abs().amax(-1).min()) > 1e-3


@pytest.mark.parametrize("clock", ["hours", "context"])
@pytest.mark.parametrize("calendar", [False, True])
def test_the_date_matters_only_to_a_calendar(clock: str, calendar: bool) -> None:
    shift = 1.6e9 + 12_345.625
    model = awake(**{**ANONYMOUS, "clock": clock, "calendar": calendar})
    context = for_kind(ANONYMOUS, entities(empty=False), 42 * HOUR)
    later = replace(
        context, seconds=context.seconds + shift, now_seconds=context.now_seconds + shift
    )
    before, after = (answers(model, c, ask(c, [60.0, 9 * HOUR])) for c in (context, later))
    if calendar:
        assert float((after - before).abs().max()) > 1e-2
    else:
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("a", "b"), [(3.0, -40.0), (1e-3, 0.0), (1e6, 1e6)])
def test_forecasts_follow_the_units_of_the_context(a: float, b: float) -> None:
    model = awake(**ANONYMOUS)
    context = for_kind(ANONYMOUS, entities(empty=False), 42 * HOUR)
    queries = ask(context, [60.0, 9 * HOUR])
    other = replace(context, values=context.values.double() * a + b)
    expected = answers(model, context, queries) * a + b
    torch.testing.assert_close(answers(model, other, queries), expected, rtol=1e-4, atol=1e-4 * a)


def test_a_variables_scale_is_kept_with_the_weights_and_undone() -> None:
    location, scale = torch.tensor([1.0, -5.0, 80.0]), torch.tensor([2.0, 0.1, 30.0])
    plain, scaled = awake(**KNOWN), awake(**KNOWN)
    scaled.set_variable_scale(location, scale)
    context = for_kind(KNOWN, entities(), 42 * HOUR)
    queries = ask(context, [60.0, 9 * HOUR])
    of_point = context.variable[context.series_of_point()]
    of_query = context.variable[queries.series()]
    raw = context.values.double() * scale[of_point] + location[of_point]
    expected = answers(plain, context, queries) * scale[of_query, None] + location[of_query, None]
    got = answers(scaled, replace(context, values=raw), queries)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(scaled.state_dict()["variable_scale"], scale)
    for wrong in torch.tensor([0.0, -1.0, float("nan"), float("inf")]):
        with pytest.raises(InputError, match="bad_scale"):
            scaled.set_variable_scale(location, wrong.expand(3))


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.just(0.0), st.floats(1e-3, 1.0), st.floats(1.0, YEARS_30)),
            st.one_of(st.floats(-100, 100, width=32), st.floats(-(2.0**40), 2.0**40, width=32)),
        ),
        min_size=1, max_size=12,
    ),
    st.sampled_from([0.0, 1e-3, HOUR, YEARS_30]),
)  # fmt: skip
def test_quantiles_never_cross_and_are_finite(points: Points, ahead: float) -> None:
    seconds = itertools.accumulate(gap for gap, _ in points)
    series = [(t, v) for t, (_, v) in zip(seconds, points, strict=True)]
    for kind in ("known", "anonymous"):
        context = for_kind(KINDS[kind], [[series, [], series[:1]]], series[-1][0])
        with torch.no_grad():
            assert_sound(MODELS[kind](context, ask(context, [ahead])))


MODELS = {kind: awake(**KINDS[kind]) for kind in ("known", "anonymous")}


@pytest.mark.parametrize("kind", ["known", "anonymous"])
def test_values_up_to_1e30_are_answered(kind: str) -> None:
    series = [(60.0 * i, 1e30 if i == 7 else 1e-3 * i) for i in range(20)]
    context = for_kind(KINDS[kind], [[series]], 1200.0)
    with torch.no_grad():
        assert_sound(MODELS[kind](context, ask(context, [60.0])))


@pytest.mark.parametrize("kind", ["known", "anonymous"])
def test_a_fresh_model_mixes_simple_rules(kind: str) -> None:
    torch.manual_seed(0)
    model = ForecasterModel(ForecasterConfig(**KINDS[kind])).eval()
    context = for_kind(KINDS[kind], entities(), 42 * HOUR)
    queries = ask(context, [60.0, 9 * HOUR])
    encoded = model.encode(context)
    series = queries.series()
    since = queries.seconds - encoded.context.last_seconds()[series]
    since = (since / encoded.context.clock_seconds[series]).float()
    bases = encoded.summary.base_forecasts(series, since)
    if model.config.calendar:  # what the series was a season ago, where it is known
        lags, there = SeasonalLags(encoded.context).base_forecasts(
            series, queries.seconds, encoded.summary.last
        )
        bases = torch.cat([bases, torch.where(there, lags, bases[:, :1])], -1)
    forecast = model.answer(encoded, queries)
    for middle in (forecast.mean, forecast.quantiles[:, LEVELS.index(0.5)]):
        assert bool(((middle > bases.amin(-1) - 1e-5) & (middle < bases.amax(-1) + 1e-5)).all())


Batch = tuple[ForecastContext, ForecastQueries, Tensor]


def loss_of(model: ForecasterModel, batch: Batch) -> Tensor:
    forecast = model(batch[0], batch[1])
    truth = forecast.standardise(batch[2])
    return (bounded_square(forecast.mean - truth, 5.0) + pinball(forecast.quantiles, truth)).mean()


BUILDS: list[dict[str, Any]] = [
    {**KNOWN, "flow": "closed", "experts": 4, "query_experts": 4, "reader": "mamba"},
    {**KNOWN, "flow": "ode", "experts": 0, "query_experts": 4, "reader": "attention"},
    {**KNOWN, "flow": "none", "experts": 4, "query_experts": 0, "reader": "both"},
    {**KNOWN, "flow": "ode", "experts": 4, "reader": "mamba", "sees_queries": True, "n_known": 2},
    {**ANONYMOUS, "flow": "closed", "experts": 0, "reader": "both"},
    {**KNOWN, "rotary": False, "reader": "attention", "query_reads_points": True},
    {**KNOWN, "table": 8},
]


NO_SAY = {"none": {"flow.out.weight"}}  # a model without flow keeps the flow's last layer
# A series that is its entity's only one has but itself to look at, whatever query and key are.
ALONE = {
    f"variable_layers.0.series.{name}"
    for name in ("query.weight", "key.weight", "rotary.log_frequency_shift")
}


@pytest.mark.parametrize("sizes", BUILDS)
def test_each_build_trains_every_parameter(sizes: dict[str, Any]) -> None:
    context = for_kind(sizes, entities(empty=False), 42 * HOUR)
    queries = ask(context, [HOUR, 9 * HOUR])
    if sizes.get("n_known"):
        queries = replace(queries, known=torch.randn(len(queries.seconds), 2))
    batch = (context, queries, torch.randn(len(queries.seconds)) + 2)
    model = awake(**sizes)
    before = loss_of(model, batch)
    before.backward()
    idle = set()
    # What is nought by the equations may be a rounding off it, which differs between processors.
    rounding = 1e-8 * max(
        float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None
    )
    for name, parameter in model.named_parameters():
        if parameter.grad is None or float(parameter.grad.abs().max()) <= rounding:
            idle.add(name)
        else:
            assert bool(parameter.grad.isfinite().all()), name
    alone = ALONE if sizes.get("clock") == "context" else set()
    assert idle == alone | NO_SAY.get(sizes.get("flow", ""), set())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(6):
        optimizer.step()
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        model.update_balance()
    assert float(loss_of(model, batch).detach()) < float(before.detach())


@pytest.mark.parametrize("name", ["reader", "clock", "scale", "flow"])
def test_a_slip_in_the_configuration_is_named(name: str) -> None:
    slip: dict[str, Any] = {name: "lstm"}
    with pytest.raises(InputError) as raised:
        ForecasterConfig(**slip)
    assert (raised.value.code, raised.value.place) == ("bad_forecaster_config", name)
