"""Any time of a series is forecast from what lies strictly before it, and from nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tsfm.errors import InputError
from tsfm.forecasting import as_of
from tsfm.forecasting.as_of import SeriesPoints, forecast_as_of, open_forecaster
from tsfm.forecasting.forecaster import Forecaster
from tsfm.models.forecaster import ForecasterConfig

SMALL: dict[str, Any] = {
    "d_model": 16, "n_heads": 2, "n_reader_layers": 1, "n_variable_layers": 1, "n_query_layers": 1,
    "experts": 2, "d_state": 4,
}  # fmt: skip
ANONYMOUS = ForecasterConfig(
    clock="context", scale="context", calendar=True, query_reads_points=True,
    rotary_periods_s=(2.0, 2000.0), **SMALL,
)  # fmt: skip
LEVELS = (0.1, 0.5, 0.9)


@pytest.fixture(scope="module")
def shaken() -> Forecaster:
    """With weights that do not start as a mean of simple rules."""
    found = Forecaster.new(config=ANONYMOUS)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return found


@pytest.fixture(scope="module")
def series() -> list[SeriesPoints]:
    rng = np.random.default_rng(0)
    return [
        SeriesPoints.of(rng.uniform(0, 100_000, 30), rng.normal(50, 10, 30)),
        SeriesPoints.of(rng.uniform(0, 100_000, 12), rng.normal(-3, 1, 12)),
    ]


def ask(forecaster: Forecaster, series: list[SeriesPoints], **options: Any) -> Any:
    """Times within and after both series, and at some of their points."""
    rng = np.random.default_rng(1)
    of, seconds = rng.integers(0, 2, 25), rng.uniform(0, 150_000, 25)
    seconds[:3], of[:3] = series[0].seconds[5:8], 0
    return of, seconds, *forecast_as_of(forecaster, series, of, seconds, LEVELS, **options)


def test_each_time_is_forecast_from_the_points_before_it_alone(
    shaken: Forecaster, series: list[SeriesPoints]
) -> None:
    of, seconds, mean, quantiles = ask(shaken, series)
    for s, second, m, q in zip(of, seconds, mean, quantiles, strict=True):
        before = series[s].seconds < second
        if not before.any():
            assert np.isnan([m, *q]).all()
            continue
        past = (series[s].seconds[before], series[s].values[before])
        found, means = shaken.predict_quantiles([past], [second], LEVELS, time_unit="s")
        np.testing.assert_allclose(m, means[0][0], rtol=2e-5)
        np.testing.assert_allclose(q, found[0][0], rtol=2e-5)


def test_what_comes_at_a_time_or_later_changes_nothing(
    shaken: Forecaster, series: list[SeriesPoints]
) -> None:
    moment = series[0].seconds[14]
    of, asked = np.zeros(15, np.int64), series[0].seconds[:15]
    later = series[0].seconds >= moment
    other = SeriesPoints(series[0].seconds, np.where(later, 1e6, series[0].values))
    first = forecast_as_of(shaken, series, of, asked, LEVELS)
    second = forecast_as_of(shaken, [other], of, asked, LEVELS)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_order_and_repetition_of_questions_change_nothing(
    shaken: Forecaster, series: list[SeriesPoints]
) -> None:
    of, seconds, mean, quantiles = ask(shaken, series)
    order = np.r_[np.arange(25)[::-1], 3, 3]
    found = forecast_as_of(shaken, series, of[order], seconds[order], LEVELS)
    np.testing.assert_array_equal(found[0], mean[order])
    np.testing.assert_array_equal(found[1], quantiles[order])


def test_many_contexts_are_read_in_several_calls(
    shaken: Forecaster, series: list[SeriesPoints], monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, mean, _ = ask(shaken, series)
    monkeypatch.setattr(as_of, "_MOST_POINTS", 20)
    *_, again, _ = ask(shaken, series)
    np.testing.assert_allclose(again, mean, rtol=2e-5)


def test_only_the_last_points_before_a_time_are_read(
    shaken: Forecaster, series: list[SeriesPoints]
) -> None:
    of, asked = np.zeros(1, np.int64), np.array([200_000.0])
    short = [SeriesPoints(series[0].seconds[-6:], series[0].values[-6:])]
    found = forecast_as_of(shaken, series, of, asked, LEVELS, context_length=6)
    np.testing.assert_array_equal(found[0], forecast_as_of(shaken, short, of, asked, LEVELS)[0])
    with pytest.raises(InputError, match="context_length"):
        forecast_as_of(shaken, series, of, asked, LEVELS, context_length=0)


def test_a_series_that_is_not_known_is_not_forecast(
    shaken: Forecaster, series: list[SeriesPoints]
) -> None:
    mean, quantiles = forecast_as_of(shaken, series, np.array([-1]), np.array([5e5]), LEVELS)
    assert np.isnan(mean).all()
    assert np.isnan(quantiles).all()


def test_a_folder_is_read_once_until_its_manifest_changes(
    shaken: Forecaster, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shaken.save_pretrained(folder)
    first = open_forecaster(folder)
    assert open_forecaster(str(folder)) is first
    folder.rename(tmp_path / "old")
    Forecaster.new(config=ANONYMOUS).save_pretrained(folder)
    assert open_forecaster(folder).hash != first.hash


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (Forecaster.new(variables=["HR", "K"], config=ForecasterConfig(n_variables=2, **SMALL)),
         "named_variables"),
        (None, "bad_model"),
        ("no-such-model", "missing_model"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_is_refused(model: Any, code: str) -> None:
    with pytest.raises(InputError) as caught:
        open_forecaster(model)
    assert caught.value.code == code
