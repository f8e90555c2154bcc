"""Points one at a time: the same forecasts as from a frame of all points, whatever arrives."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from tsfm.errors import InputError
from tsfm.forecasting.conformal import SplitConformal, fit_split_conformal
from tsfm.forecasting.forecaster import Forecaster
from tsfm.forecasting.live import LiveForecaster
from tsfm.models.forecaster import ForecasterConfig
from tsfm.models.quantile_head import LEVELS

START = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)
SMALL: dict[str, Any] = {"d_model": 16, "n_heads": 2, "d_state": 4}
CONTEXT: dict[str, Any] = {
    "scale": "context", "clock": "context", "rotary_periods_s": (2.0, 2000.0),
    "n_variable_layers": 0, "query_reads_points": True, "experts": 0,
}  # fmt: skip


def forecaster(*names: str) -> Forecaster:
    form = SMALL if names else SMALL | CONTEXT
    made = Forecaster.new(
        variables=names, config=ForecasterConfig(n_variables=max(1, len(names)), **form)
    )
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


def rows(n: int, names: tuple[str, ...], seed: int = 0) -> pl.DataFrame:
    """Points in the order of time at uneven gaps, of two items."""
    rng = np.random.default_rng(seed)
    at = [START + timedelta(seconds=float(s)) for s in rng.exponential(900, n).cumsum().round()]
    return pl.DataFrame({
        "item_id": rng.choice(["a", "b"], n), "timestamp": at,
        "name": rng.choice(list(names), n), "target": rng.normal(80, 10, n),
    })  # fmt: skip


def feed(live: LiveForecaster, frame: pl.DataFrame) -> None:
    for item, when, name, value in frame.iter_rows():
        live.update(item, when, value, name)


@pytest.mark.parametrize("names", [("HR", "MAP", "Temp"), ()])
def test_forecasts_are_those_of_a_frame_with_the_same_points(names: tuple[str, ...]) -> None:
    made, frame = forecaster(*names), rows(61, names or ("x", "y"))
    live = made.live()
    asked = [START + timedelta(hours=100 + i) for i in range(3)]
    for upto in (25, 61):
        feed(live, frame[live.n_points : upto])
        now = frame[:upto]["timestamp"].max()
        future = pl.DataFrame({"item_id": ["a"] * 3, "timestamp": asked})
        found = live.predict("a", asked, (0.1, 0.9), now=now)
        wanted = made.predict_df(
            frame[:upto].filter(pl.col("item_id") == "a"), future, variable_column="name",
            quantile_levels=(0.1, 0.9), now=now,
        )  # fmt: skip
        keys = ["target_name", "timestamp"]
        found, wanted = found.sort(keys), wanted.sort(keys)
        assert found["target_name"].to_list() == wanted["target_name"].to_list()
        for column in ("predictions", "0.1", "0.9"):
            np.testing.assert_allclose(found[column], wanted[column], rtol=1e-5, atol=1e-3)


def test_a_scale_taken_from_the_past_follows_a_series_that_leaves_it() -> None:
    live = forecaster().live(time_unit="s")
    for i in range(8):
        live.update("a", i, 1.0 + 0.1 * i)
    live.predict("a", [9])
    for i in range(8, 64):
        live.update("a", i, 1e4 + i)
    assert live.predict("a", [65])["predictions"][0] > 1e3


def test_a_late_point_is_taken_and_counted() -> None:
    made = forecaster("HR", "MAP")
    early, late = made.live(time_unit="h"), made.live(time_unit="h")
    points = [(0, 80.0), (1, 90.0), (2, 85.0)]
    for hour, value in points:
        early.update("a", hour, value, "HR")
    for hour, value in (points[0], points[2]):
        late.update("a", hour, value, "HR")
    late.predict("a", [3])
    late.update("a", *points[1], "HR")
    assert (early.n_late, late.n_late, late.n_points) == (0, 1, 3)
    np.testing.assert_allclose(
        late.predict("a", [4])["predictions"], early.predict("a", [4])["predictions"], rtol=1e-5
    )


def test_missing_values_are_counted_and_move_only_the_clock() -> None:
    live = forecaster("HR").live(time_unit="h")
    assert live.update("a", 0, 80.0, "HR")
    assert not live.update("a", 5, None, "HR")
    assert not live.update("a", 5, float("inf"), "HR")
    assert (live.n_points, live.n_missing) == (1, 2)
    with pytest.raises(InputError, match="now"):
        live.predict("a", [4])
    assert live.predict("a", [5])["predictions"].is_finite().all()


@pytest.mark.parametrize("adaptive", ["x", np.nan, 0.0, -0.1, np.inf, True])
def test_the_step_of_the_adaptive_calibration_is_a_positive_number(adaptive: Any) -> None:
    made = forecaster("HR")
    made.calibration = steps_calibration()
    with pytest.raises(InputError) as caught:
        made.live(adaptive=adaptive)
    assert caught.value.code == "bad_step"


def test_quantiles_that_adapt_cover_a_patient_whom_the_calibration_does_not_fit() -> None:
    made = forecaster("HR")
    rng = np.random.default_rng(0)
    n = 200
    own = np.tile(np.array(LEVELS) - 0.5, (n, 1))
    made.calibration = fit_split_conformal(
        ["HR"] * n, np.full(n, 1.0), LEVELS, own, rng.normal(0, 3.0, n), groups=np.arange(n),
        lead_edges_hours=(6.0,),
    )  # fmt: skip
    live = made.live(adaptive=1.0, time_unit="h")
    inside: list[bool] = []
    for hour in range(300):
        value = float(rng.normal(30, 9))
        if hour:
            low, high = live.predict("a", [hour], (0.1, 0.9)).select("0.1", "0.9").row(0)
            inside.append(low <= value <= high)
        live.update("a", hour, value, "HR")
    assert np.mean(inside[150:]) == pytest.approx(0.8, abs=0.07)


def test_what_is_wrong_is_said_and_changes_nothing() -> None:
    live = forecaster("HR").live()
    live.update("a", START, 80.0, "HR")
    for wrong in (
        lambda: live.update("a", START, 80.0, "SpO2"),
        lambda: live.update("a", "noon", 80.0, "HR"),
        lambda: live.update("a", 12.0, 80.0, "HR"),
        lambda: live.update("a", datetime(2026, 3, 29), 80.0, "HR"),
        lambda: live.predict("b", [START]),
        lambda: live.predict("a", [START], variables=["SpO2"]),
        lambda: live.predict("a", [START], covariates={"dose": [1.0]}),
        lambda: forecaster("HR").live(adaptive=0.1),
        lambda: forecaster("HR").live(time_unit="fortnight"),
    ):
        with pytest.raises(InputError):
            wrong()
    assert (live.items, live.n_points) == (("a",), 1)
    live.forget("a")
    assert live.items == ()


LEVEL, HIGH = np.zeros(64), 37000 + 100 * np.random.default_rng(0).normal(size=50)


@pytest.mark.parametrize(
    ("values", "asked_at"),
    [
        (np.r_[LEVEL, HIGH], {63}),
        (np.r_[LEVEL, HIGH], set(range(114))),
        (np.r_[HIGH, LEVEL], set(range(114))),
        (np.r_[LEVEL + 5.0, LEVEL + 5.1], {63, 70}),
    ],
)
def test_forecasts_of_anonymous_series_do_not_depend_on_earlier_ones(
    values: np.ndarray, asked_at: set[int]
) -> None:
    made = forecaster()
    live = made.live(time_unit="h")
    for hour, value in enumerate(values):
        live.update("a", hour, value)
        if hour in asked_at:
            live.predict("a", [hour + 1])
    n = len(values)
    frame = pl.DataFrame({"item_id": ["a"] * n, "timestamp": range(n), "target": values})
    future = pl.DataFrame({"item_id": ["a"] * 2, "timestamp": [n, n + 5]})
    wanted = made.predict_df(frame, future, time_unit="h", quantile_levels=(0.1, 0.5, 0.9))
    found = live.predict("a", [n, n + 5])
    for column in ("predictions", "0.1", "0.5", "0.9"):
        np.testing.assert_allclose(found[column], wanted[column], rtol=1e-5)


def steps_calibration(**options: Any) -> SplitConformal:
    """Of series of one name: nothing up to two steps ahead, far up beyond."""
    n = 100
    own = np.tile(np.array(LEVELS) - 0.5, (n, 1))
    truth = np.r_[np.random.default_rng(0).normal(0, 0.3, n // 2), np.full(n // 2, 9.0)]
    return fit_split_conformal(
        ["glucose"] * n, np.repeat([1.0, 9.0], n // 2), LEVELS, own, truth,
        lead_edges_hours=(2.0,), **options,
    )  # fmt: skip


@pytest.mark.parametrize("minutes", [5, 60, 1440])
def test_the_calibration_counts_steps_of_anonymous_series_whatever_their_name(minutes: int) -> None:
    made = forecaster()
    made.calibration = steps_calibration()
    live, step = made.live(), timedelta(minutes=minutes)
    values = np.random.default_rng(0).normal(size=30)
    times = [START + i * step for i in range(30)]
    for when, value in zip(times, values, strict=True):
        live.update("a", when, value)
    asked = [times[-1] + k * step for k in (1, 9)]
    found = live.predict("a", asked, LEVELS)
    for name in ("target", "glucose"):
        frame = pl.DataFrame({"item_id": ["a"] * 30, "timestamp": times, name: values})
        wanted = made.predict_df(
            frame, pl.DataFrame({"item_id": ["a"] * 2, "timestamp": asked}), target=name,
            quantile_levels=LEVELS,
        )  # fmt: skip
        for level in map(str, LEVELS):
            np.testing.assert_allclose(found[level], wanted[level], rtol=1e-4, atol=1e-4)
    naive = [np.datetime64(when.replace(tzinfo=None)) for when in (*times, *asked)]
    arrays, _ = made.predict_quantiles([(naive[:30], values)], naive[30:], LEVELS)
    np.testing.assert_allclose(
        found.select(map(str, LEVELS)).to_numpy(), arrays[0], rtol=1e-4, atol=1e-4
    )


def test_truths_a_step_ahead_move_quantiles_of_that_step_and_series_only() -> None:
    made = forecaster()
    made.calibration = steps_calibration()
    options: dict[str, Any] = {"time_unit": "min"}
    moving, still = made.live(adaptive=1.0, **options), made.live(**options)
    for i in range(12):
        for live in (moving, still):
            live.update("a", 5 * i, float(i % 3), "x")
            live.update("a", 5 * i, float(i % 5), "y")
    for name in "xy":
        moved, same = (live.predict("a", [60, 150], variables=[name]) for live in (moving, still))
        gap = np.abs(moved["0.9"] - same["0.9"])
        assert gap[0] > 0.05
        assert gap[1] == pytest.approx(0, abs=1e-4)
    shifts = moving._items["a"].adaptive
    assert {name: one.n_updates for name, one in shifts.items()} == {"x": 11, "y": 11}


@pytest.mark.parametrize("names", [("HR", "MAP"), ()])
@pytest.mark.parametrize("order", [(80.0, 120.0, 85.0), (85.0, 80.0, 120.0)])
def test_values_at_one_time_are_averaged_in_any_order(
    names: tuple[str, ...], order: tuple[float, ...]
) -> None:
    made = forecaster(*names)
    name = names[0] if names else "x"
    live = made.live(time_unit="h")
    for hour in range(4):
        live.update("a", hour, 90.0 + hour, name)
    for value in order:
        live.update("a", 4, value, name)
        live.predict("a", [5])
    frame = pl.DataFrame({
        "item_id": ["a"] * 7, "timestamp": [0, 1, 2, 3, 4, 4, 4], "name": [name] * 7,
        "target": [90.0, 91.0, 92.0, 93.0, *order],
    })  # fmt: skip
    future = pl.DataFrame({"item_id": ["a"], "timestamp": [6], "name": [name]})
    wanted = made.predict_df(frame, future, variable_column="name", time_unit="h")
    found = live.predict("a", [6], variables=[name])
    assert (live.n_points, live.n_late) == (7, 0)
    assert found["predictions"][0] == pytest.approx(wanted["predictions"][0], rel=1e-5)


NAIVE = START.replace(tzinfo=None)
LATER = [NAIVE + timedelta(hours=h) for h in (1, 2)]


@pytest.mark.parametrize(
    ("times", "given", "told"),
    [
        ([NAIVE], np.array(LATER, "datetime64[ns]"), LATER),
        ([NAIVE], np.array(["2026-03-30"], "datetime64[D]"), [datetime(2026, 3, 30)]),
        ([NAIVE], [np.datetime64(LATER[0]), LATER[1]], LATER),
        ([NAIVE], pd.Timestamp(LATER[0]), LATER[:1]),
        ([NAIVE], pd.Series(LATER), LATER),
        ([START], [START, datetime(2026, 3, 29, 9, tzinfo=ZoneInfo("Europe/Berlin"))],
         [START, datetime(2026, 3, 29, 7, tzinfo=UTC)]),
        ([0], [1, 2.5], [1.0, 2.5]),
        ([0], np.array([1, 2], np.uint8), [1, 2]),
        ([0.0], np.float32(3.0), [3.0]),
    ],
)  # fmt: skip
def test_asked_times_come_back_as_they_were_meant(times: list[Any], given: Any, told: Any) -> None:
    live = forecaster("HR").live(time_unit="h")
    live.update(("ward 3", 7), times[0], 80.0, "HR")
    found = live.predict(("ward 3", 7), given, variables=["HR"])
    assert found["timestamp"].to_list() == told
    assert found["item_id"].to_list() == [("ward 3", 7)] * len(told)
    assert found["predictions"].is_finite().all()


def test_errors_hold_no_value_and_leave_no_trace() -> None:
    made = Forecaster.new(variables=["HR"], covariates=["dose"])
    live, unhashable = made.live(), cast(Any, ["Smith"])
    with pytest.raises(InputError):
        live.update("a", START, 80.0, "SpO2")
    assert live.update("a", NAIVE, 80.0, "HR")  # the refused point has not set the clock
    for wrong in (
        lambda: live.update("a", NAIVE, cast(Any, "Smith"), "HR"),
        lambda: live.update(unhashable, NAIVE, 80.0, "HR"),
        lambda: live.update("a", pd.NaT, 80.0, "HR"),
        lambda: live.predict("a", LATER, covariates={"dose": ["Smith", "x"]}),
        lambda: live.predict("a", LATER, covariates={"dose": [1.0, 2.0, 3.0]}),
        lambda: live.predict("a", "Smith"),
        lambda: live.predict("a", None),
        lambda: live.predict("a", [pd.NaT]),
        lambda: live.forget(unhashable),
    ):
        with pytest.raises(InputError) as caught:
            wrong()
        assert "Smith" not in str(caught.value)
        assert caught.value.__cause__ is None
    assert live.n_points == 1
    assert live.predict("a", LATER, covariates={"dose": 1.0}).height == 2
