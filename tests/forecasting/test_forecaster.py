"""A frame of any kind and any times in, the same kind with quantiles that never cross out."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import tsfm
from tsfm.errors import InputError
from tsfm.forecasting.forecaster import DECILES, Forecaster
from tsfm.models import checkpoint
from tsfm.models.forecaster import ForecasterConfig

from .frame_cases import LONG, long_frame

SMALL: dict[str, Any] = {
    "d_model": 16, "n_heads": 2, "n_reader_layers": 1, "n_variable_layers": 1, "n_query_layers": 1,
    "experts": 2, "d_state": 4,
}  # fmt: skip
START = datetime(2024, 3, 20, tzinfo=UTC)
LEVEL_COLUMNS = [str(level) for level in DECILES]


def shaken(forecaster: Forecaster) -> Forecaster:
    """With weights that do not start as a mean of simple rules."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in forecaster.model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return forecaster


@pytest.fixture(scope="module")
def zero() -> Forecaster:
    config = ForecasterConfig(
        clock="context", scale="context", calendar=True, query_reads_points=True,
        rotary_periods_s=(2.0, 2000.0), **SMALL,
    )  # fmt: skip
    return shaken(Forecaster.new(config=config))


@pytest.fixture(scope="module")
def icu() -> Forecaster:
    config = ForecasterConfig(n_variables=3, n_known=1, **SMALL)
    found = shaken(Forecaster.new(variables=["HR", "K", "Na"], covariates=["dose"], config=config))
    found.model.set_variable_scale(torch.tensor([80.0, 4.0, 140.0]), torch.tensor([15.0, 0.5, 4.0]))
    return found


@pytest.fixture(scope="module")
def wide() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    hours = np.sort(rng.uniform(0, 100, (3, 20)), 1).ravel()
    frame = pl.DataFrame({
        "item_id": np.repeat(["b", "a", "c"], 20),
        "timestamp": [START + timedelta(hours=h) for h in hours],
        "target": rng.normal(50, 10, 60), "other": rng.normal(0, 1, 60),
    })  # fmt: skip
    return frame.with_columns(pl.col("timestamp").dt.convert_time_zone("Europe/Berlin"))


@pytest.fixture(scope="module")
def long() -> pl.DataFrame:
    return long_frame()


def levels_of(found: pl.DataFrame) -> np.ndarray:
    return found.select(LEVEL_COLUMNS).to_numpy()


def test_the_layout_is_that_of_chronos_2(zero: Forecaster, wide: pl.DataFrame) -> None:
    found = zero.predict_df(wide, prediction_length=3, target=["target", "other"])
    assert found.columns == ["item_id", "timestamp", "target_name", "predictions", *LEVEL_COLUMNS]
    assert found["item_id"].to_list() == [i for i in "bac" for _ in range(6)]
    assert found["target_name"].to_list() == (["target"] * 3 + ["other"] * 3) * 3
    assert found["timestamp"].dtype == wide["timestamp"].dtype
    last = wide.group_by("item_id", maintain_order=True).agg(pl.col("timestamp").max())
    first = found.filter(pl.col("target_name") == "other").group_by("item_id", maintain_order=True)
    assert (first.first()["timestamp"] > last["timestamp"]).all()
    assert bool(found.select(pl.col(pl.Float64).is_finite().all()).to_numpy().all())


def test_quantiles_never_cross(zero: Forecaster, wide: pl.DataFrame) -> None:
    asked = (0.999, 0.001, 0.01, 0.02, 0.025, 0.03, 0.5, 0.51, 0.96, 0.975, 0.98)
    found = zero.predict_df(wide, prediction_length=9, quantile_levels=asked)
    assert found.columns[4:] == [str(level) for level in asked]
    ordered = found.select([str(level) for level in sorted(asked)]).to_numpy()
    assert (np.diff(ordered, axis=1) >= 0).all()


def test_pandas_polars_and_pyarrow_say_the_same_and_come_back(
    zero: Forecaster, wide: pl.DataFrame
) -> None:
    polars = zero.predict_df(wide, prediction_length=4)
    given = wide.to_pandas().astype({"item_id": "category"})
    given.index = pd.Index([7] * len(given))
    pandas = zero.predict_df(given, prediction_length=4)
    assert isinstance(pandas, pd.DataFrame)
    assert pandas.dtypes["item_id"] == given.dtypes["item_id"]
    assert pandas.dtypes["timestamp"] == given.dtypes["timestamp"]
    table = wide.to_arrow().cast(
        pa.schema([("item_id", pa.dictionary(pa.int32(), pa.string())),
                   ("timestamp", pa.timestamp("us", "Europe/Berlin")),
                   ("target", pa.float64()), ("other", pa.float64())])
    )  # fmt: skip
    arrow = zero.predict_df(table, prediction_length=4)
    assert isinstance(arrow, pa.Table)
    assert arrow.schema.field("item_id").type == table.schema.field("item_id").type
    for found in (pandas["0.3"].to_numpy(), arrow["0.3"].to_numpy()):
        assert (found == polars["0.3"].to_numpy()).all()
    assert arrow["timestamp"].to_pylist() == polars["timestamp"].to_list()
    assert list(pandas["timestamp"]) == polars["timestamp"].to_list()


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt64, pl.Float64, pl.Categorical])
def test_ids_keep_their_type(zero: Forecaster, wide: pl.DataFrame, dtype: Any) -> None:
    code = {"a": "1", "b": "2", "c": "3"}
    given = wide.with_columns(pl.col("item_id").replace(code))
    if dtype != pl.Categorical:
        given = given.with_columns(pl.col("item_id").cast(pl.Int64))
    given = given.with_columns(pl.col("item_id").cast(dtype))
    assert zero.predict_df(given, prediction_length=1)["item_id"].dtype == dtype


def test_neither_order_nor_doubled_nor_missing_nor_infinite_rows_change_a_forecast(
    zero: Forecaster, wide: pl.DataFrame
) -> None:
    clean, no = zero.predict_df(wide, prediction_length=3, return_report=True)
    early = wide.head(1).with_columns(pl.lit(None, pl.Float64).alias("target"))
    wild = wide.slice(25, 1).with_columns(pl.lit(float("inf")).alias("target"))
    dirty = pl.concat([wide, wide.slice(7, 3), early, wild]).sample(
        fraction=1, shuffle=True, seed=3
    )
    found, report = zero.predict_df(dirty, prediction_length=3, return_report=True)
    order = ["item_id", "timestamp"]
    np.testing.assert_allclose(
        levels_of(found.sort(order)), levels_of(clean.sort(order)), rtol=1e-6
    )
    assert (no.n_duplicates, no.n_missing, no.n_not_finite) == (0, 0, 0)
    assert (report.n_duplicates, report.n_missing, report.n_not_finite) == (3, 1, 1)
    assert report.n_rows == 65


def test_any_time_may_be_asked_and_asking_others_changes_nothing(
    zero: Forecaster, wide: pl.DataFrame
) -> None:
    rng = np.random.default_rng(2)
    moments = [START + timedelta(hours=100 + h) for h in rng.uniform(0, 50, 12)]
    asked = pl.DataFrame({"item_id": rng.choice(["a", "b"], 12), "timestamp": moments})
    found = zero.predict_df(wide, asked)
    expected = pl.concat([asked.filter(pl.col("item_id") == i) for i in "ba"])
    assert found["item_id"].to_list() == expected["item_id"].to_list()
    assert found["timestamp"].to_list() == expected["timestamp"].to_list()
    one = zero.predict_df(wide, expected.slice(5, 1))
    np.testing.assert_allclose(levels_of(one), levels_of(found)[5:6], rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_forecasts_do_not_depend_on_the_batch(
    zero: Forecaster, icu: Forecaster, wide: pl.DataFrame, long: pl.DataFrame, batch_size: int
) -> None:
    for model, frame, columns in ((zero, wide, {}), (icu, long, LONG)):
        whole = model.predict_df(frame, prediction_length=3, **columns)
        parts = model.predict_df(frame, prediction_length=3, batch_size=batch_size, **columns)
        np.testing.assert_allclose(levels_of(parts), levels_of(whole), rtol=2e-5, atol=2e-5)


def test_what_comes_after_now_is_not_read(zero: Forecaster, wide: pl.DataFrame) -> None:
    now = (START + timedelta(hours=50)).astimezone(ZoneInfo("Europe/Berlin"))
    before = wide.filter(pl.col("timestamp") <= now)
    found, report = zero.predict_df(
        wide, prediction_length=2, now=now, freq="1h", return_report=True
    )
    assert report.n_after_now == wide.height - before.height > 0
    assert found.equals(zero.predict_df(before, prediction_length=2, now=now, freq="1h"))
    assert found["timestamp"].to_list()[:2] == [now + timedelta(hours=k) for k in (1, 2)]


def test_only_the_last_points_of_a_series_may_be_read(zero: Forecaster, wide: pl.DataFrame) -> None:
    last = wide.group_by("item_id", maintain_order=True).tail(5)
    found, report = zero.predict_df(
        wide, prediction_length=2, freq="1h", context_length=5, return_report=True
    )
    assert found.equals(zero.predict_df(last, prediction_length=2, freq="1h"))
    assert report.n_beyond_context == 45


def test_one_row_and_a_constant_are_forecast(zero: Forecaster) -> None:
    given = pl.DataFrame(
        {"item_id": [1, *[2] * 9], "timestamp": [0, *range(9)], "target": [3.0] * 10}
    )
    found = zero.predict_df(given, prediction_length=2, time_unit="d")
    assert found["timestamp"].to_list() == [1, 2, 9, 10]
    assert np.isfinite(levels_of(found)).all()


def test_a_series_without_a_value_is_refused_or_nan(
    zero: Forecaster, wide: pl.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    empty = pl.when(pl.col("item_id") == "a").then(None).otherwise("other")
    given = wide.with_columns(other=empty)
    with pytest.raises(InputError, match=r"1 series .*other") as caught:
        zero.predict_df(given, prediction_length=2, target=["target", "other"])
    assert caught.value.code == "all_missing"
    with caplog.at_level(logging.WARNING, logger="tsfm"):
        found = zero.predict_df(
            given, prediction_length=2, target=["target", "other"], on_missing="nan"
        )
    assert "1 series" in caplog.text
    missing = np.isnan(levels_of(found)).all(1)
    assert (
        missing == ((found["item_id"] == "a") & (found["target_name"] == "other")).to_numpy()
    ).all()
    kept = zero.predict_df(given, prediction_length=2)
    np.testing.assert_allclose(
        levels_of(kept), levels_of(found.filter(pl.col("target_name") == "target")), rtol=1e-5
    )


def test_a_known_variable_is_forecast_without_a_value_of_its_own(
    icu: Forecaster, long: pl.DataFrame
) -> None:
    asked = pl.DataFrame({"stay": [2, 2], "hours": [60.0, 61.0], "name": ["Na", "K"]})
    asked = asked.with_columns(pl.col("stay").cast(pl.Int32))
    found, report = icu.predict_df(long, asked, return_report=True, **LONG)
    assert found["target_name"].to_list() == ["K", "Na"]
    assert report.n_empty_series == 1
    assert np.isfinite(levels_of(found)).all()
    none = long.with_columns(value=pl.lit(None, pl.Float64))
    prior = icu.predict_df(none, asked, **LONG)
    assert np.isfinite(levels_of(prior)).all()


def test_known_variables_of_an_item_look_at_each_other_and_at_no_other_item(
    icu: Forecaster, long: pl.DataFrame
) -> None:
    asked = pl.DataFrame({"stay": [1, 2], "hours": [60.0, 60.0], "name": ["HR", "HR"]})
    asked = asked.with_columns(pl.col("stay").cast(pl.Int32))
    other = (pl.col("name") == "K") & (pl.col("stay") == 1)
    moved = long.with_columns(value=pl.when(other).then(pl.col("value") + 3).otherwise("value"))
    before = levels_of(icu.predict_df(long, asked, **LONG))
    after = levels_of(icu.predict_df(moved, asked, **LONG))
    assert np.abs(after - before)[0].max() > 1e-3
    np.testing.assert_allclose(after[1], before[1], rtol=1e-6)


def test_covariates_of_asked_times_are_read(icu: Forecaster, long: pl.DataFrame) -> None:
    asked = pl.DataFrame({"stay": [1, 1], "hours": [60.0, 60.0], "dose": [0.0, 2.0]})
    asked = asked.with_columns(pl.col("stay").cast(pl.Int32), name=pl.lit("HR"))
    told = levels_of(icu.predict_df(long, asked, **LONG))
    untold = levels_of(icu.predict_df(long, asked.drop("dose"), **LONG))
    assert np.abs(told[0] - told[1]).max() > 1e-3
    assert (untold[0] == untold[1]).all()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({}, "no_times"),
        ({"prediction_length": 0}, "bad_prediction_length"),
        ({"prediction_length": 2, "point": "mode"}, "unknown_choice"),
        ({"prediction_length": 2, "target": ["target", "target"]}, "bad_target"),
        ({"prediction_length": 2, "target": "nothing"}, "missing_column"),
        ({"prediction_length": 2, "context_length": 0}, "bad_context_length"),
        ({"prediction_length": 2, "batch_size": 0}, "bad_batch_size"),
        ({"prediction_length": 2, "now": START - timedelta(hours=1), "freq": "1h"}, "all_missing"),
        ({"future_df": pl.DataFrame({"item_id": ["z"], "timestamp": [START]})}, "unknown_item"),
        ({"future_df": pl.DataFrame({"item_id": ["a"], "timestamp": [START]})}, "query_before_now"),
        ({"future_df": pl.DataFrame({"item_id": [1], "timestamp": [START]})}, "other_ids"),
        ({"future_df": pl.DataFrame({"item_id": ["a"], "timestamp": [3.0]})}, "no_time_unit"),
        ({"future_df": pl.DataFrame({"item_id": ["a"], "timestamp": [datetime(2025, 1, 1)]})},
         "other_clock"),
    ],
)  # fmt: skip
def test_what_can_not_be_forecast_is_a_typed_error(
    zero: Forecaster, wide: pl.DataFrame, arguments: dict[str, Any], code: str
) -> None:
    with pytest.raises(InputError) as caught:
        zero.predict_df(wide, **arguments)
    assert caught.value.code == code
    assert caught.value.remedy


def test_an_unknown_variable_is_refused_without_telling_it(
    icu: Forecaster, long: pl.DataFrame
) -> None:
    given = long.with_columns(name=pl.lit("Smith"))
    with pytest.raises(InputError) as caught:
        icu.predict_df(given, prediction_length=1, **LONG)
    assert caught.value.code == "unknown_variable"
    assert "Smith" not in str(caught.value)


def test_arrays_and_frames_say_the_same(zero: Forecaster, wide: pl.DataFrame) -> None:
    items = [wide.filter(pl.col("item_id") == i) for i in "bac"]
    naive = [i["timestamp"].dt.convert_time_zone("UTC").dt.replace_time_zone(None) for i in items]
    series = [(t.to_numpy(), i["target"].to_numpy()) for t, i in zip(naive, items, strict=True)]
    asked = [np.array(["2024-03-25T00:00", "2024-03-26T12:00"], "datetime64[us]")] * 3
    quantiles, mean = zero.predict_quantiles(series, asked)
    future = pl.DataFrame(
        {"item_id": np.repeat(["b", "a", "c"], 2), "timestamp": np.concatenate(asked)}
    )
    future = future.with_columns(pl.col("timestamp").dt.replace_time_zone("UTC"))
    found = zero.predict_df(wide, future)
    assert (np.concatenate(quantiles) == levels_of(found)).all()
    assert (np.concatenate(mean) == found["predictions"].to_numpy()).all()
    same = zero.predict(series, asked[0])
    assert all((a == b).all() for a, b in zip(same, mean, strict=True))


def test_arrays_that_do_not_fit_are_refused(icu: Forecaster) -> None:
    good, asked = (np.arange(3.0), np.ones(3)), np.array([5.0])
    cases: list[tuple[Any, dict[str, Any]]] = [
        ([], {}),
        ([(np.arange(3.0), np.ones(2))], {}),
        ([good, good], {"variables": ["HR"]}),
        ([good, good], {"variables": ["HR", "HR"], "items": [1, 1]}),
        ([(np.empty(0), np.empty(0))], {"variables": ["HR"]}),
    ]
    for series, options in cases:
        with pytest.raises(InputError) as caught:
            icu.predict_quantiles(series, asked, time_unit="h", **options)
        assert caught.value.code == "bad_arrays"
    empty = [(np.empty(0), np.empty(0)), good]
    found = icu.predict(empty, asked, variables=["HR", "K"], items=[1, 1], time_unit="h", now=4.0)
    assert np.isfinite(found).all()


def test_an_embedding_is_a_row_a_series(icu: Forecaster, long: pl.DataFrame) -> None:
    found = icu.embed(long, **LONG)
    assert found.columns == ["stay", "target_name", *(f"e{j}" for j in range(16))]
    assert found["stay"].dtype == pl.Int32
    assert found.height == long.select("stay", "name").n_unique()
    some = icu.embed(long.filter(pl.col("stay") == 3), **LONG)
    both = found.filter(pl.col("stay") == 3)
    np.testing.assert_allclose(some[:, 2:].to_numpy(), both[:, 2:].to_numpy(), rtol=1e-4, atol=1e-5)


def test_a_packaged_model_is_loaded_by_its_name(
    zero: Forecaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path)
    digest = zero.save_pretrained(tmp_path / "forecaster-tiny")
    found = tsfm.load("forecaster-tiny")
    assert isinstance(found, Forecaster)
    assert found.hash == digest
    for name in ("forecaster-none", "../forecaster-tiny", "", "."):
        with pytest.raises(InputError):
            Forecaster.from_pretrained(name)


def test_a_plot_shows_history_median_and_bands(zero: Forecaster, wide: pl.DataFrame) -> None:
    found = zero.predict_df(
        wide, prediction_length=8, quantile_levels=(0.025, 0.1, 0.5, 0.9, 0.975)
    )
    axes = zero.plot(wide, found, item_id="a")
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()][::-1] == [
        "95 %", "80 %", "measured", "median",
    ]  # fmt: skip
    median = found.filter(pl.col("item_id") == "a")["0.5"].to_numpy()
    assert (axes.lines[1].get_ydata() == median).all()
    with pytest.raises(InputError):
        zero.plot(wide, found, item_id="z")


def test_names_are_escaped_in_notebooks() -> None:
    config = ForecasterConfig(n_variables=1, **SMALL)
    shown = Forecaster.new(variables=["<script>"], config=config)._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
