"""Frames, arrays and arguments at the edge of what can be meant: answered in full, or refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from tsfm.errors import InputError
from tsfm.forecasting.fine_tuning import calibrate, training_series
from tsfm.forecasting.forecaster import Forecaster
from tsfm.forecasting.frames import Layout, fit_covariates
from tsfm.forecasting.time_axis import TimeAxis
from tsfm.models.forecaster import ForecasterConfig

SMALL: dict[str, Any] = {
    "d_model": 16, "n_heads": 2, "n_reader_layers": 1, "n_variable_layers": 1, "n_query_layers": 1,
    "experts": 2, "d_state": 4,
}  # fmt: skip
HOURS: dict[str, Any] = {"time_unit": "h", "quantile_levels": [0.5]}


@pytest.fixture(scope="module")
def zero() -> Forecaster:
    config = ForecasterConfig(
        clock="context", scale="context", rotary_periods_s=(2.0, 2000.0), **SMALL
    )
    return Forecaster.new(config=config)


@pytest.fixture(scope="module")
def icu() -> Forecaster:
    return Forecaster.new(variables=["HR", "K"], config=ForecasterConfig(n_variables=2, **SMALL))


@pytest.fixture
def later() -> pl.DataFrame:
    """Two items, the second of which begins after hour 20."""
    return pl.DataFrame({
        "item_id": np.repeat(["early", "late"], 20), "timestamp": np.arange(40.0),
        "name": ["HR"] * 40, "target": np.sin(np.arange(40.0)),
    })  # fmt: skip


def code_of(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Of the error that a call ends in."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    assert caught.value.remedy
    assert "Smith" not in str(caught.value)
    return caught.value.code


def test_an_item_that_begins_after_now_is_an_item_without_a_value(
    zero: Forecaster, icu: Forecaster, later: pl.DataFrame
) -> None:
    options: dict[str, Any] = {"variable_column": "name", "now": 19.0, **HOURS}
    ahead: dict[str, Any] = {"prediction_length": 2, "freq": 1, **options}
    assert code_of(zero.predict_df, later, **ahead) == "all_missing"
    future = pl.DataFrame({"item_id": ["early", "late"], "timestamp": [20.0, 20.0]})
    for found in (
        zero.predict_df(later, on_missing="nan", **ahead),
        zero.predict_df(later, future, on_missing="nan", **options),
    ):
        late = found.filter(pl.col("item_id") == "late")
        assert late.height == found.height / 2
        assert found["target_name"].to_list() == ["HR"] * found.height
        assert late["0.5"].is_nan().all()
        assert found.filter(pl.col("item_id") == "early")["0.5"].is_finite().all()
    for found in (icu.predict_df(later, **ahead), icu.predict_df(later, future, **options)):
        assert set(found["item_id"]) == {"early", "late"}
        assert found["0.5"].is_finite().all()
    vectors = icu.embed(later, variable_column="name", now=19.0, time_unit="h")
    assert vectors["item_id"].to_list() == ["early", "late"]


@pytest.mark.parametrize("column", ["predictions", "target_name", "0.5"])
def test_a_column_of_the_answer_is_not_overwritten(
    zero: Forecaster, later: pl.DataFrame, column: str
) -> None:
    for given, argument in (("item_id", "id_column"), ("timestamp", "timestamp_column")):
        frame, options = later.rename({given: column}), {argument: column, **HOURS}
        code = code_of(zero.predict_df, frame, prediction_length=1, **options)
        assert code == "reserved_column"
    renamed = later.rename({"item_id": "e3"})
    assert code_of(zero.embed, renamed, id_column="e3", time_unit="h") == "reserved_column"
    found = zero.predict_df(renamed, id_column="e3", prediction_length=1, **HOURS)
    assert found["e3"].to_list() == ["early", "late"]


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_the_last_row_is_not_after_itself_to_the_nanosecond(
    zero: Forecaster, zone: str | None
) -> None:
    times = pd.date_range("2026-03-01", periods=9, freq="1h", tz=zone) + pd.Timedelta(700, "ns")
    frame = pd.DataFrame({"item_id": "a", "timestamp": times, "target": np.arange(9.0)})
    options: dict[str, Any] = {"prediction_length": 2, "return_report": True}
    found, report = zero.predict_df(frame, now=frame["timestamp"].max(), **options)
    assert report.n_after_now == 0
    pd.testing.assert_frame_equal(found, zero.predict_df(frame, **options)[0])
    one_less = frame["timestamp"].max() - pd.Timedelta(1, "us")
    assert zero.predict_df(frame, now=one_less, **options)[1].n_after_now == 1


def test_a_moment_may_be_of_any_library_but_must_be_one() -> None:
    column = pl.Series([datetime(2026, 3, 1)])
    axis = TimeAxis.of(column, None, "t")
    for when in (
        datetime(2026, 3, 1), pd.Timestamp("2026-03-01").as_unit("s"),
        np.datetime64("2026-03-01"), np.datetime64("2026-03-01T00:00", "ns"),
    ):  # fmt: skip
        moment = axis.moment(when, None, "now")
        assert moment.dtype == column.dtype
        assert moment.to_list() == column.to_list()
    for when in (pd.NaT, np.datetime64("NaT"), "2026-03-01", True):
        assert code_of(axis.moment, when, None, "now") == "bad_time"


@pytest.mark.parametrize(
    ("times", "dtype", "asked"),
    [
        (range(0, 250, 10), pl.UInt8, [250, 260]),
        ([-100, 100], pl.Int8, [300, 500]),
        ([0, 10], pl.UInt64, [20, 30]),
    ],
)
def test_small_integers_of_time_do_not_wrap_around(
    zero: Forecaster, times: Any, dtype: Any, asked: list[int]
) -> None:
    frame = pl.DataFrame({"timestamp": pl.Series(times, dtype=dtype)})
    frame = frame.with_columns(item_id=pl.lit("a"), target=pl.col("timestamp").cast(pl.Float64))
    found = zero.predict_df(frame, prediction_length=2, **HOURS)
    assert found["timestamp"].to_list() == asked
    short = zero.predict_df(frame, prediction_length=1, freq=1, **HOURS)
    assert short["timestamp"].dtype == dtype


def test_items_of_arrays_are_told_apart_by_what_they_are(zero: Forecaster) -> None:
    time, low, high = np.arange(9.0), np.ones(9), np.full(9, 500.0)
    series, asked = [(time, low), (time, high)], np.array([10.0])
    wanted = zero.predict(series, asked, time_unit="h")
    for items in ([1, "1"], [("ward", 1), ("ward", 2)], ["b", "a"]):
        found = zero.predict(series, asked, items=items, time_unit="h")
        np.testing.assert_array_equal(found, wanted)
    one = (time, low)
    for given, times, options in (
        ([(time, ["Smith"] * 9)], asked, {}),
        ([one], 10.0, {}),
        ([one, one], [np.array(10.0), np.array([11.0])], {}),
        ([one], asked, {"items": [["Smith"]]}),
        ([one], asked, {"items": 3}),
        ([(time, low, low)], asked, {}),
        ([one, (np.arange(9).astype("datetime64[h]"), low)], asked, {}),
        ([one, one], asked, {"items": [0, 0], "variables": [1, "1"]}),
    ):
        assert code_of(zero.predict, given, times, time_unit="h", **options) == "bad_arrays"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        *(({"steps": value}, "bad_steps") for value in (0, 1.5, True)),
        *(({"prediction_length": value}, "bad_prediction_length") for value in (0, -2, 2.5, "2")),
        ({"batch_size": 0}, "bad_batch_size"),
        *(({"learning_rate": x}, "bad_learning_rate") for x in (0, -1.0, np.nan, np.inf, "1")),
        *(({"seed": value}, "bad_seed") for value in (-1, None, 0.5)),
        *(({"validation_fraction": x}, "bad_fraction") for x in (1.5, np.nan, None)),
    ],
)
def test_a_training_that_can_not_be_meant_is_refused(
    zero: Forecaster, later: pl.DataFrame, options: dict[str, Any], code: str
) -> None:
    assert code_of(zero.fit, later, time_unit="h", **options) == code
    if set(options) <= {"prediction_length", "batch_size", "seed"}:
        assert code_of(zero.calibrate, later, time_unit="h", **options) == code


def test_a_calibration_rests_on_something(zero: Forecaster, later: pl.DataFrame) -> None:
    layout = Layout.of("target", None, id="item_id", timestamp="timestamp", time_unit="h")
    packed, names, _ = training_series(later, layout, learn=False)
    options: dict[str, Any] = {"batch_size": 4, "seed": 0}
    code = code_of(calibrate, zero.model, packed, names, n_ahead=0, **options)
    assert code == "bad_prediction_length"
    assert calibrate(zero.model, packed, names, n_ahead=1, **options).n_points > 0


def test_numbers_of_other_calls_are_whole_too(zero: Forecaster, later: pl.DataFrame) -> None:
    for options, code in (
        ({"context_length": 2.5}, "bad_context_length"), ({"batch_size": 0}, "bad_batch_size"),
        ({"batch_size": -1}, "bad_batch_size"),
    ):  # fmt: skip
        assert code_of(zero.embed, later, time_unit="h", **options) == code
        assert code_of(zero.predict_df, later, prediction_length=1, **HOURS, **options) == code
    whole: Any = np.int64(5)
    assert zero.embed(later, time_unit="h", batch_size=whole).height == 2


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"variables": "HR"}, "bad_names"),
        ({"variables": ["a", "a"]}, "bad_names"),
        ({"covariates": "dose"}, "bad_names"),
        ({"covariates": ["dose", "dose"]}, "bad_names"),
        ({"seed": -1}, "bad_seed"),
    ],
)
def test_a_forecaster_has_each_name_once(options: dict[str, Any], code: str) -> None:
    assert code_of(Forecaster.new, **options) == code


def test_a_constant_covariate_has_no_scale_and_an_endless_one_is_refused() -> None:
    for value in (0.1, 0.3, 36.6, 1e6 + 0.1, 0.0):
        (found,) = fit_covariates(pl.DataFrame({"dose": [value] * 37}), ["dose"])
        assert found.scale == 1.0
    (small,) = fit_covariates(pl.DataFrame({"dose": [1e6, 1e6 + 1]}), ["dose"])
    assert small.scale == pytest.approx(0.5**0.5)
    huge = pl.DataFrame({"dose": [1e300, 0.3, 0.3]})
    assert code_of(fit_covariates, huge, ["dose"]) == "bad_covariate"


def test_a_picture_of_an_id_of_another_type_is_refused(
    zero: Forecaster, later: pl.DataFrame
) -> None:
    found = zero.predict_df(later, prediction_length=2, **HOURS)
    for item in (1, timedelta(1), object()):
        assert code_of(zero.plot, later, found, item_id=item, time_unit="h") == "other_ids"
    unknown = code_of(zero.plot, later, found, item_id="Smith", time_unit="h")
    assert unknown == "nothing_to_draw"
    assert zero.plot(later, found, item_id="late", time_unit="h").get_title(loc="left")


def test_a_device_that_is_not_there_is_refused() -> None:
    for device in ("gpu", "cuda:99", 1.5):
        assert code_of(Forecaster.from_pretrained, "forecaster-zero", device) == "bad_device"
