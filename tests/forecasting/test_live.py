"""Points one at a time: the same forecasts as from a frame of all points, whatever arrives."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tsfm.errors import InputError
from tsfm.forecasting.conformal import fit_split_conformal
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
    for upto in (25, 61):  # the second time, streams have been read anew in between
        feed(live, frame[live.n_points : upto])
        if names:
            live.predict("a", asked)
        now = frame[:upto]["timestamp"].max()
        future = pl.DataFrame({"item_id": ["a"] * 3, "timestamp": asked})
        # Anonymous scales are those of the last reading unless the item is read anew.
        given = live if names else made.live()
        if not names:
            feed(given, frame[:upto])
        found = given.predict("a", asked, (0.1, 0.9), now=now)
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
