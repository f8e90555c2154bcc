"""The forecaster as a regressor: scikit-learn's own suite, and what its columns mean."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import TimeSeriesSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from tsfm.errors import InputError
from tsfm.forecasting.forecaster import DECILES, Forecaster
from tsfm.forecasting.sklearn_adapter import SeriesRegressor
from tsfm.models.forecaster import ForecasterConfig

SMALL = ForecasterConfig(
    d_model=16, n_heads=2, n_reader_layers=1, n_variable_layers=1, n_query_layers=1, experts=2,
    d_state=4, clock="context", scale="context", calendar=True, query_reads_points=True,
    rotary_periods_s=(2.0, 2000.0),
)  # fmt: skip
NOT_RUN_ANYWHERE = {"check_array_api_input"}  # scikit-learn asks for SCIPY_ARRAY_API=1 to run it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model near a mean of simple rules but not at it, so that its rounding shows."""
    found = Forecaster.new(config=SMALL)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("models") / "shaken"
    found.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def wards() -> pd.DataFrame:
    """Two series at uneven moments, side by side in one frame, not sorted."""
    rng = np.random.default_rng(0)
    hours = rng.uniform(0, 100, 60)
    frame = pd.DataFrame({
        "ward": np.repeat(["north", "east"], 30),
        "when": pd.Timestamp("2024-03-20", tz="Europe/Berlin") + pd.to_timedelta(hours, "h"),
        "beds": np.r_[rng.normal(50, 10, 30), rng.normal(5, 1, 30)],
    })  # fmt: skip
    return frame.sample(frac=1, random_state=0, ignore_index=True)


def unfitted(regressor: Any) -> Any:
    """A copy with the same parameters."""
    return clone(regressor)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_it_passes_the_suite_of_scikit_learn_without_an_exception(folder: Path) -> None:
    results: Any = check_estimator(SeriesRegressor(folder, time_unit="s"), on_fail=None)
    assert len(results) > 40
    wrong = {r["check_name"]: r["exception"] for r in results if r["status"] != "passed"}
    assert set(wrong) <= NOT_RUN_ANYWHERE, wrong


def test_rows_to_come_are_forecast_as_the_forecaster_does(folder: Path) -> None:
    rng = np.random.default_rng(2)
    hours, values = np.sort(rng.uniform(0, 50, 40)), rng.normal(80, 5, 40)
    asked = np.array([51.0, 55.5, 53.25])
    regressor = SeriesRegressor(folder, time_unit="h").fit(hours[:, None], values)
    quantiles, means = Forecaster.from_pretrained(folder).predict_quantiles(
        [(hours, values)], asked, time_unit="h"
    )
    np.testing.assert_allclose(regressor.predict(asked[:, None]), means[0], rtol=1e-5)
    found = regressor.predict_quantiles(asked[:, None])
    np.testing.assert_allclose(found, quantiles[0], rtol=1e-5)
    assert found.shape == (3, len(DECILES))
    assert (np.diff(found, axis=1) >= 0).all()


def test_fitted_rows_are_forecast_from_earlier_rows_only(folder: Path) -> None:
    hours = np.arange(20.0)[:, None]
    values = np.random.default_rng(3).normal(size=20)
    before: Any = SeriesRegressor(folder, time_unit="h").fit(hours, values)
    after = unfitted(before).fit(hours, np.where(np.arange(20) >= 12, 1e3, values))
    np.testing.assert_array_equal(before.predict(hours[1:13]), after.predict(hours[1:13]))
    assert (before.predict(hours[13:]) != after.predict(hours[13:])).all()


def test_dates_and_names_of_series_are_read_from_frames_of_pandas_and_polars(
    folder: Path, wards: pd.DataFrame
) -> None:
    X, y = wards[["when", "ward"]], wards["beds"]
    regressor: Any = SeriesRegressor(folder, time_column="when", series_column="ward")
    found = regressor.fit(X, y).predict(X)
    assert list(regressor.feature_names_in_) == ["when", "ward"]
    for ward in ("north", "east"):
        of_ward = (wards["ward"] == ward).to_numpy()
        first = wards.loc[of_ward, "when"].idxmin()
        alone = unfitted(regressor).set_params(series_column=None)
        alone.fit(X.loc[of_ward, ["when"]], y[of_ward])
        rows = of_ward & (wards.index != first)
        np.testing.assert_allclose(alone.predict(X.loc[rows, ["when"]]), found[rows], rtol=1e-4)
    polars = pl.from_pandas(wards)
    other = unfitted(regressor).fit(polars.select("when", "ward"), polars["beds"].to_numpy())
    np.testing.assert_array_equal(other.predict(polars.select("when", "ward")), found)


def test_numbers_and_dates_of_the_same_times_say_the_same(folder: Path) -> None:
    rng = np.random.default_rng(4)
    seconds, values = np.sort(rng.integers(0, 400_000, 30)), rng.normal(size=30)
    dates = pd.DataFrame({"t": pd.to_datetime(seconds, unit="s")})
    by_date = SeriesRegressor(folder).fit(dates, values)
    by_number = SeriesRegressor(folder, time_unit="s").fit(seconds[:, None], values)
    np.testing.assert_array_equal(by_date.predict(dates), by_number.predict(seconds[:, None]))


def test_a_covariate_explains_what_it_can_and_the_rest_is_forecast(folder: Path) -> None:
    rng = np.random.default_rng(5)
    n = 200
    X = np.column_stack(
        [rng.normal(size=n), np.tile(np.arange(n / 2), 2), np.repeat([3, 7], n // 2)]
    )
    level = np.where(X[:, 2] == 3, 10.0, 500.0)  # must not be taken for an effect
    y = level + 4.0 * X[:, 0] + 0.1 * rng.normal(size=n)
    options: dict[str, Any] = {"time_column": 1, "series_column": 2, "time_unit": "h"}
    regressor = SeriesRegressor(SMALL, **options).fit(X, y)
    np.testing.assert_allclose(regressor.coef_, [4.0], atol=0.1)
    asked = np.array([[2.0, 101.0, 7], [-2.0, 101.0, 7], [0.0, 101.0, 3]])
    np.testing.assert_allclose(regressor.predict(asked), [508.0, 492.0, 10.0], atol=1.0)
    quantiles = regressor.predict_quantiles(asked, (0.5,))
    assert quantiles[0] - quantiles[1] == pytest.approx(4 * regressor.coef_[0], rel=1e-4)


def test_without_a_past_a_row_gets_what_all_fitted_values_say() -> None:
    X = np.array([[0.0, 1], [1.0, 1], [0.0, 2], [1.0, 2]])
    regressor = SeriesRegressor(SMALL, series_column=1, time_unit="h").fit(X, [1.0, 2.0, 3.0, 4.0])
    asked = [[-1.0, 1], [5.0, 9]]
    np.testing.assert_allclose(regressor.predict(asked), 2.5)
    np.testing.assert_allclose(regressor.predict_quantiles(asked, (0.25, 0.5)), [[1.75, 2.5]] * 2)


def test_pipelines_and_cross_validation_by_time_take_it(folder: Path) -> None:
    days = np.arange(60.0)[:, None]
    y = 10 + 0.5 * days.ravel() + np.sin(days.ravel())
    regressor = SeriesRegressor(folder, time_unit="h")
    pipeline = make_pipeline(FunctionTransformer(lambda X: 24 * X), regressor)
    scores = cross_val_score(
        pipeline, days, y, cv=TimeSeriesSplit(3), scoring="neg_mean_absolute_error"
    )
    assert np.isfinite(scores).all()


HOURS = np.arange(5.0)[:, None]
DATES = pd.DataFrame({"t": pd.date_range("2024-01-01", periods=5), "s": [*list("aabb"), None]})


@pytest.mark.parametrize(
    ("options", "X", "code"),
    [
        ({}, HOURS, "no_time_unit"),
        ({"time_unit": "fortnight"}, HOURS, "no_time_unit"),
        ({"time_unit": "h", "time_column": "t"}, HOURS, "missing_column"),
        ({"time_unit": "h", "time_column": 1}, HOURS, "missing_column"),
        ({"time_unit": "h", "series_column": 0}, HOURS, "missing_column"),
        ({"time_unit": "h", "time_column": "u"}, DATES, "missing_column"),
        ({"series_column": "s"}, DATES, "null_id"),
        ({"time_column": "s"}, DATES, "null_timestamp"),
        ({}, DATES[["t"]].to_numpy(), "bad_time_column"),
    ],
)
def test_what_can_not_be_read_is_said(options: dict[str, Any], X: Any, code: str) -> None:
    with pytest.raises(InputError) as caught:
        SeriesRegressor(SMALL, **options).fit(X, np.arange(5.0))
    assert caught.value.code == code


def test_numbers_are_not_asked_of_a_regressor_that_was_fitted_on_dates() -> None:
    regressor = SeriesRegressor(SMALL, time_unit="h").fit(DATES[["t"]], np.arange(5.0))
    with pytest.raises(InputError) as caught:
        regressor.predict(pd.DataFrame({"t": [1.0]}))
    assert caught.value.code == "other_clock"


@pytest.mark.parametrize(
    ("module", "package"), [("sklearn_adapter", "sklearn"), ("sktime_adapter", "sktime")]
)
def test_without_its_package_an_adapter_says_what_to_install(module: str, package: str) -> None:
    code = (
        f"import sys\nsys.modules['{package}'] = None\nfrom tsfm.errors import TsfmError\n"
        f"try:\n    import tsfm.forecasting.{module}\n"
        "except TsfmError as error:\n    print(error.code, error.remedy)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout.startswith("missing_package Install it with `pip install tsfm[")


@pytest.mark.parametrize("fitted", [["1", "2"], [1, 2]])
def test_ids_of_another_type_than_those_fitted_are_refused(fitted: list[Any]) -> None:
    def rows(ids: list[Any], kind: Any = pd.DataFrame) -> Any:
        return kind({"t": [*np.arange(5.0), *np.arange(5.0)], "id": np.repeat(ids, 5).tolist()})

    y = np.repeat([1.0, 500.0], 5)
    regressor = SeriesRegressor(SMALL, series_column="id", time_unit="h").fit(rows(fitted), y)
    asked = rows(fitted).assign(t=6.0)
    np.testing.assert_allclose(regressor.predict(asked), y)
    others = [1, 2] if isinstance(fitted[0], str) else ["1", "2"]
    wrong: list[Any] = [rows(others), rows(others, pl.DataFrame)]
    if isinstance(fitted[0], str):
        wrong.append(rows(others).to_numpy())
    for X in wrong:
        with pytest.raises(InputError) as caught:
            regressor.predict(X)
        assert caught.value.code == "other_ids"


@pytest.mark.parametrize("value", [0.1, 36.6, 1e6 + 0.1])
def test_a_covariate_that_is_constant_in_each_series_explains_nothing(value: float) -> None:
    n = 37
    X = np.column_stack([np.tile(np.arange(n), 3), np.repeat([1, 2, 3], n), np.full(3 * n, value)])
    X[:, 2] += np.repeat([0.0, 63.7, 71.3], n)
    y = np.random.default_rng(0).normal(size=3 * n) + 100 * X[:, 1]
    regressor = SeriesRegressor(SMALL, series_column=1, time_unit="h").fit(X, y)
    assert regressor.coef_.tolist() == [0.0]


def test_a_covariate_without_a_finite_spread_is_refused() -> None:
    X = np.column_stack([np.arange(9.0), np.r_[1e300, np.zeros(8)]])
    with pytest.raises(InputError) as caught:
        SeriesRegressor(SMALL, time_unit="h").fit(X, np.arange(9.0))
    assert caught.value.code == "bad_covariate"


@pytest.mark.parametrize("ridge", [-1.0, np.nan, np.inf])
def test_a_penalty_below_zero_is_refused(ridge: float) -> None:
    X = np.column_stack([np.arange(9.0), np.arange(9.0) % 2])
    with pytest.raises(InputError) as caught:
        SeriesRegressor(SMALL, time_unit="h", ridge=ridge).fit(X, np.arange(9.0))
    assert caught.value.code == "bad_ridge"
