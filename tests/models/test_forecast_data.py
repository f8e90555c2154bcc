"""A context tells its gaps, clocks and scales by series and entity, and names what is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

from tsfm.errors import InputError
from tsfm.models.experts import N_RATE_FEATURES
from tsfm.models.forecast_data import Forecast, ForecastContext, ForecastQueries

HOUR = 3600.0


def make_context() -> ForecastContext:
    """Two entities of three series: two series are empty, two points are of one moment."""
    return ForecastContext(
        seconds=torch.tensor([0, 60, 60, 180, 30, 10, 20, 40, 80], dtype=torch.float64),
        values=torch.tensor([1.0, 3.0, 2.0, 6.0, 9.0, 4.0, 4.0, 8.0, 0.0]),
        cu_points=torch.tensor([0, 4, 4, 5, 7, 7, 9]),
        variable=torch.tensor([0, 1, 2, 0, 1, 2]),
        cu_series=torch.tensor([0, 3, 6]),
        now_seconds=torch.tensor([240, 80], dtype=torch.float64),
    )


def nothing_known() -> ForecastContext:
    none = torch.zeros(0)
    return replace(
        make_context(), seconds=none.double(), values=none,
        cu_points=torch.zeros(7, dtype=torch.int64),
    )  # fmt: skip


def with_value(tensor: torch.Tensor, place: int, value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed[place] = value
    return changed


def test_a_sound_context_passes() -> None:
    make_context().check()
    nothing_known().check()


GOOD = make_context()
DEFECTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "too few borders": ("bad_borders", "cu_points", {"cu_points": GOOD.cu_points[:-1]}),
    "borders from one": ("bad_borders", "cu_points", {"cu_points": GOOD.cu_points.clamp(min=1)}),
    "borders short of the end": (
        "bad_borders", "cu_points", {"cu_points": GOOD.cu_points.clamp(max=8)},
    ),
    "borders that fall": (
        "bad_borders", "cu_points", {"cu_points": torch.tensor([0, 4, 3, 5, 7, 7, 9])},
    ),
    "entities without end": ("bad_borders", "cu_series", {"cu_series": torch.tensor([0, 3, 5])}),
    "an entity too many": ("bad_borders", "cu_series", {"cu_series": torch.tensor([0, 2, 3, 6])}),
    "value not a number": (
        "not_finite", "values", {"values": with_value(GOOD.values, 2, float("nan"))},
    ),
    "value infinite": (
        "not_finite", "values", {"values": with_value(GOOD.values, 2, float("inf"))},
    ),
    "time not a number": (
        "not_finite", "values", {"seconds": with_value(GOOD.seconds, 5, float("nan"))},
    ),
    "times fall": ("unsorted", "seconds", {"seconds": with_value(GOOD.seconds, 3, 59.0)}),
    "point after now": (
        "point_after_now", "now_seconds", {"now_seconds": with_value(GOOD.now_seconds, 1, 79.0)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_named(defect: str) -> None:
    code, place, change = DEFECTS[defect]
    with pytest.raises(InputError) as raised:
        replace(make_context(), **change).check()
    assert (raised.value.code, raised.value.place) == (code, place)


@pytest.mark.parametrize(
    "change",
    [
        {"values": GOOD.values[:-1]},
        {"now_seconds": with_value(GOOD.now_seconds, 0, float("nan"))},
    ],
    ids=["a value too few", "now not a number"],
)
def test_lengths_and_now_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises((InputError, TypeCheckError)):
        replace(make_context(), **change).check()


def test_a_message_holds_no_value() -> None:
    wrong = replace(make_context(), seconds=with_value(GOOD.seconds, 8, 98765.0))
    with pytest.raises(InputError) as raised:
        wrong.check()
    assert "98765" not in str(raised.value)


def test_times_are_counted_within_a_series() -> None:
    context = make_context().with_clock(60.0)
    assert context.series_of_point().tolist() == [0, 0, 0, 0, 2, 3, 3, 5, 5]
    assert context.is_first().nonzero().flatten().tolist() == [0, 4, 5, 7]
    expected = torch.tensor([0, 60, 0, 120, 0, 0, 10, 0, 40]) / 60.0
    torch.testing.assert_close(context.gaps(), expected)
    assert context.now_of_series().tolist() == [240, 240, 240, 80, 80, 80]
    assert context.last_seconds().tolist() == [180, 240, 30, 20, 80, 80]
    torch.testing.assert_close(context.age(), torch.tensor([60, 0, 210, 60, 0, 0]) / 60.0)
    assert context.points_of_entity().tolist() == [0, 5, 9]
    now = torch.tensor([240.0] * 5 + [80.0] * 4, dtype=torch.float64)
    torch.testing.assert_close(context.clock_times(), (context.seconds - now) / 60)


def test_a_millisecond_survives_half_a_century() -> None:
    """Gaps come from float64 times: float32 seconds since 1970 tell nothing below two minutes."""
    seconds = 1.7e9 + 0.001 * torch.arange(9, dtype=torch.float64)
    context = replace(make_context(), seconds=seconds, now_seconds=seconds[[4, 8]])
    gaps = context.with_clock(0.001).gaps()[1:4]
    torch.testing.assert_close(gaps, torch.ones(3), rtol=1e-3, atol=0.0)


def test_an_entitys_own_clock_is_the_median_of_its_gaps() -> None:
    context = make_context().with_clock(None)
    first, second = set(context.clock[:3].tolist()), set(context.clock[3:].tolist())  # type: ignore[index]
    assert len(first) == len(second) == 1  # one clock an entity
    # Gaps of different times: 60 and 120 in the first entity, 10 and 40 in the second.
    assert 60 <= first.pop() <= 120
    assert 10 <= second.pop() <= 40


def test_an_odd_number_of_gaps_has_one_median() -> None:
    seconds = torch.tensor([0, 1, 4, 104, 0, 10, 20, 40, 80], dtype=torch.float64)
    borders = torch.tensor([0, 4, 4, 5, 5, 5, 9])
    context = replace(make_context(), seconds=seconds, cu_points=borders).with_clock(None)
    assert context.clock_seconds.tolist() == [3, 3, 3, 20, 20, 20]


def test_entities_that_tell_no_step_have_some_clock() -> None:
    for context in (nothing_known(), replace(make_context(), seconds=torch.zeros(9).double())):
        clock = context.with_clock(None).clock_seconds
        assert bool((clock > 0).all() & clock.isfinite().all())


def test_standardising_is_undone_by_a_forecast() -> None:
    context = make_context()
    location = torch.tensor([1, 2, 3, 4, 5, 6], dtype=torch.float64)
    spread = torch.tensor([2, 4, 8, 0.5, 1, 3], dtype=torch.float64)
    scaled = context.scaled_by(location, spread)
    series = context.series_of_point()
    forecast = Forecast(
        scaled.values, scaled.values[:, None] + torch.arange(3.0), location[series], spread[series]
    )
    torch.testing.assert_close(forecast.mean_in_units(), context.values.double())
    torch.testing.assert_close(forecast.standardise(context.values), scaled.values)
    expected = context.values.double()[:, None] + spread[series, None] * torch.arange(3.0).double()
    torch.testing.assert_close(forecast.quantiles_in_units(), expected)


def test_a_series_own_scale_is_of_its_own_points() -> None:
    context = make_context()
    scaled = context.scaled_by_itself()
    other = replace(context, values=torch.cat([context.values[:4], context.values[4:] * 7 + 1]))
    assert scaled.location is not None
    assert scaled.spread is not None
    assert float(scaled.location[0]) == pytest.approx(2.5)
    assert bool((scaled.spread > 0).all())
    assert scaled.location[1] == 0  # an empty series is left as it is
    assert scaled.spread[1] == 1
    torch.testing.assert_close(other.scaled_by_itself().values[:4], scaled.values[:4])


def test_rates_are_of_each_series_alone() -> None:
    context = make_context().with_clock(HOUR)
    rates = context.rates()
    assert rates.shape == (6, N_RATE_FEATURES)
    assert not rates[[1, 4]].any()
    other = replace(context, values=with_value(context.values, 1, 50.0))
    torch.testing.assert_close(other.rates()[1:], rates[1:])
    assert not torch.equal(other.rates()[0], rates[0])
    assert not nothing_known().with_clock(HOUR).rates().any()


def test_an_unknown_covariate_is_told_as_such() -> None:
    known = torch.tensor([[0.5, float("nan")], [float("nan"), 100.0]])
    queries = ForecastQueries(torch.zeros(2).double(), torch.tensor([0, 0, 2]), known)
    assert queries.series().tolist() == [1, 1]
    told = queries.known_features(2)
    assert told.isfinite().all()
    assert told[:, 2:].tolist() == [[1, 0], [0, 1]]
    assert told[0, :2].tolist() == [0.5, 0]
    with pytest.raises(InputError, match="bad_known_covariates"):
        queries.known_features(3)
    assert not replace(queries, known=None).known_features(4).any()
