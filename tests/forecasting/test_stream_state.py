"""A stream survives a restart, and refuses what it can't take without a change to itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from tsfm.errors import FormatError, InputError
from tsfm.forecasting.stream import ForecastStream

from .stream_cases import (
    EMPTY,
    NAMES,
    OF_CONTEXT,
    ORIGIN,
    as_context,
    assert_same,
    feed,
    make_model,
    make_points,
    of_model,
)


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
