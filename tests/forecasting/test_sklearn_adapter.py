"""The forecaster as a regressor: scikit-learn's own suite, and what its columns mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tsfm.forecasting.sklearn_adapter import SeriesRegressor

from sklearn.utils.estimator_checks import parametrize_with_checks

from tsfm.models.forecaster import ForecasterConfig

SMALL = ForecasterConfig(
    d_model=16, n_heads=2, n_reader_layers=1, n_variable_layers=1, n_query_layers=1, experts=2,
    d_state=4, clock="context", scale="context", calendar=True, query_reads_points=True,
    rotary_periods_s=(2.0, 2000.0),
)  # fmt: skip


@parametrize_with_checks([SeriesRegressor(SMALL, time_unit="s")])
def test_the_suite_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)
