"""The forecaster as one of sktime: their own suite, and times that are not on a grid."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tsfm.errors import InputError
from tsfm.forecasting.forecaster import Forecaster
from tsfm.models.forecaster import ForecasterConfig

pytest.importorskip("sktime", reason="needs the extra sktime")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sktime.forecasting.base import ForecastingHorizon
    from sktime.utils.estimator_checks import check_estimator, parametrize_with_checks

    from tsfm.forecasting.sktime_adapter import TsfmForecaster

pytestmark = pytest.mark.filterwarnings("ignore:The default of config:FutureWarning")
SMALL = ForecasterConfig(
    d_model=8, n_heads=2, n_reader_layers=1, n_variable_layers=1, n_query_layers=1, experts=2,
    d_state=2, clock="context", scale="context", rotary_periods_s=(2.0, 2000.0),
)  # fmt: skip


def fitted(y: Any, time_unit: str | None = None) -> Any:
    """A forecaster of small sizes without training."""
    return TsfmForecaster(SMALL, time_unit).fit(y)


# One set of parameters: with both the suite takes twice as long and asks nothing else.
FULLER = TsfmForecaster(**TsfmForecaster.get_test_params()[1])


@pytest.mark.slow
@parametrize_with_checks(FULLER)
def test_it_passes_the_suite_of_sktime(obj: Any, test_name: str) -> None:
    results = check_estimator(obj, tests_to_run=test_name, verbose=False)
    wrong = {name: result for name, result in results.items() if result != "PASSED"}
    assert wrong == {}


@pytest.fixture(scope="module")
def uneven() -> pd.Series:
    """Moments that are on no grid, some of them without a value."""
    rng = np.random.default_rng(0)
    index = pd.Timestamp("2024-03-20") + pd.to_timedelta(np.sort(rng.uniform(0, 90, 40)), "h")
    values = rng.normal(80, 10, 40)
    values[[3, 17]] = np.nan
    return pd.Series(values, index=index.round("s"), name="HR")


def test_any_later_moment_may_be_asked(uneven: pd.Series) -> None:
    asked = pd.DatetimeIndex(["2024-03-24 01:02:03", "2024-03-24 05:00", "2024-03-25"])
    fh = ForecastingHorizon(asked, is_relative=False)
    forecaster = fitted(uneven)
    found = forecaster.predict(fh)
    quantiles = forecaster.predict_quantiles(fh, alpha=[0.05, 0.5, 0.95])
    there = uneven.dropna()
    expected, means = Forecaster.new(config=SMALL).predict_quantiles(
        [(there.index.to_numpy(), there.to_numpy())], asked.to_numpy(), (0.05, 0.5, 0.95)
    )
    assert found.index.equals(asked)
    assert found.name == "HR"
    np.testing.assert_allclose(found, means[0], rtol=1e-5)
    assert list(quantiles.columns) == [("HR", 0.05), ("HR", 0.5), ("HR", 0.95)]
    np.testing.assert_allclose(quantiles, expected[0], rtol=1e-5)


def test_a_past_moment_is_forecast_from_what_was_before_it(uneven: pd.Series) -> None:
    fh = ForecastingHorizon(uneven.index[5:12], is_relative=False)
    before = fitted(uneven).predict(fh)
    changed = uneven.where(np.arange(40) < 11, 1e4)
    pd.testing.assert_series_equal(fitted(changed).predict(fh), before)


def test_new_points_are_read_and_correct_those_of_the_same_time() -> None:
    y = pd.Series(np.random.default_rng(1).normal(size=30), index=pd.RangeIndex(30))
    early = y.iloc[:20].copy()
    early.iloc[15:] = 99.0
    forecaster = fitted(early, "h")
    forecaster.update(y.iloc[15:])
    expected = fitted(y, "h").predict([1, 5])
    pd.testing.assert_series_equal(forecaster.predict([1, 5]), expected)


def test_each_column_is_a_series_by_itself() -> None:
    rng = np.random.default_rng(2)
    index = pd.period_range("2020-01", periods=36, freq="M")
    y = pd.DataFrame({"a": rng.normal(size=36), "b": rng.normal(90, 9, 36)}, index=index)
    together = fitted(y).predict([1, 2, 3])
    for column in y:
        alone = fitted(y[column]).predict([1, 2, 3])
        np.testing.assert_allclose(together[column], alone, rtol=1e-5)


def test_a_period_is_read_at_its_start() -> None:
    y = pd.Series(np.random.default_rng(3).normal(size=36))
    periods = y.set_axis(pd.period_range("2020-01", periods=36, freq="M"))
    starts = y.set_axis(pd.date_range("2020-01", periods=36, freq="MS"))
    found = [fitted(one).predict([1, 6]).to_numpy() for one in (periods, starts)]
    np.testing.assert_array_equal(*found)


def test_whole_numbers_need_a_unit_and_a_series_a_value() -> None:
    with pytest.raises(InputError, match="time_unit"):
        fitted(pd.Series([1.0, 2.0]))
    with pytest.raises(InputError, match="no finite value"):
        fitted(pd.Series([np.nan, np.nan]), "h")
