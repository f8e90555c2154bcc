"""The forecaster as one of sktime: `fit(y)`, `predict(fh)`, quantiles, intervals, past times.

Each column of `y` is a series by itself, read at the times of its index: dates, periods (at their
start) or whole numbers, with gaps and missing values, which are left out and not filled. A past
time is forecast from what lies strictly before it (`as_of`). Panels and hierarchies are forecast
series by series, as sktime does for any forecaster. Nothing is trained on: fit a `Forecaster` for
that and give it as `model`.

Needs the extra `sktime`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from tsfm.errors import InputError, TsfmError
from tsfm.forecasting.as_of import Floats, Model, SeriesPoints, forecast_as_of, open_forecaster
from tsfm.forecasting.time_axis import TimeAxis
from tsfm.models.forecaster import ForecasterConfig

try:
    import pandas as pd
    from sktime.forecasting.base import BaseForecaster
except ImportError as error:
    raise TsfmError(
        "sktime is not installed", code="missing_package", place="sktime",
        remedy="Install it with `pip install tsfm[sktime]`.",
    ) from error  # fmt: skip


class TsfmForecaster(BaseForecaster):
    """Forecasts series at any times with a pretrained model.

    Args:
        model: Name or folder of a model of anonymous series, or a `Forecaster` of such.
        time_unit: Unit of an index of whole numbers: ns, us, ms, s, min, h, d or w. It has no
            default; dates and periods need none.
        context_length: The most points that are read before a time; None is all.
        device: Where a model that is loaded computes.

    Examples:
        >>> import pandas as pd
        >>> from tsfm.forecasting.sktime_adapter import TsfmForecaster
        >>> from tsfm.models.forecaster import ForecasterConfig
        >>> untrained = ForecasterConfig(clock="context", scale="context", calendar=True)
        >>> y = pd.Series(7.0, index=pd.period_range("2024-01", periods=36, freq="M"))
        >>> TsfmForecaster(untrained).fit(y).predict(fh=[1, 2]).round(3).tolist()
        [7.0, 7.0]
    """

    _tags = {  # noqa: RUF012 - sktime reads a plain dictionary of the class
        "authors": "tsfm developers",
        "maintainers": "tsfm developers",
        "python_dependencies": ["torch"],
        "y_inner_mtype": "pd.DataFrame",
        "X_inner_mtype": "pd.DataFrame",
        "capability:multivariate": True,
        "capability:exogenous": False,
        "capability:missing_values": True,
        "capability:update": True,
        "capability:insample": True,
        "capability:pred_int": True,
        "capability:pred_int:insample": True,
        "requires-fh-in-fit": False,
    }

    def __init__(
        self,
        model: Model = "forecaster-zero",
        time_unit: str | None = None,
        context_length: int | None = 1024,
        device: str = "cpu",
    ) -> None:
        """Keep the parameters; they are checked in `fit`."""
        self.model = model
        self.time_unit = time_unit
        self.context_length = context_length
        self.device = device
        super().__init__()

    def _fit(self, y: pd.DataFrame, X: Any = None, fh: Any = None) -> TsfmForecaster:
        self.forecaster_ = open_forecaster(self.model, self.device)
        seconds = self._seconds(y.index)
        self.columns_ = list(y.columns)
        self.points_ = []
        for values in y.to_numpy(np.float64).T:
            there = np.isfinite(values)
            self.points_.append(SeriesPoints.of(seconds[there], values[there]))
        if n_empty := sum(not len(points.values) for points in self.points_):
            raise InputError(
                f"{n_empty} series have no finite value", code="all_missing", place="y",
                remedy="Leave these series out.",
            )  # fmt: skip
        return self

    def _update(self, y: pd.DataFrame, X: Any = None, update_params: bool = True) -> TsfmForecaster:
        """Add points, where there are some already in their place; they are no parameters."""
        seconds = self._seconds(y.index)
        for j, values in enumerate(y.to_numpy(np.float64).T):
            there = np.isfinite(values)
            old = self.points_[j]
            kept = ~np.isin(old.seconds, seconds[there])
            self.points_[j] = SeriesPoints.of(
                np.r_[old.seconds[kept], seconds[there]], np.r_[old.values[kept], values[there]]
            )
        return self

    def _predict(self, fh: Any, X: Any = None) -> pd.DataFrame:
        index = self._asked(fh)
        mean, _ = self._forecast(index, [0.5])
        return pd.DataFrame(mean, index=index, columns=pd.Index(self.columns_))

    def _predict_quantiles(self, fh: Any, X: Any, alpha: list[float]) -> pd.DataFrame:
        index = self._asked(fh)
        levels, place = np.unique(alpha, return_inverse=True)  # one may be asked for twice
        _, quantiles = self._forecast(index, levels.tolist())
        columns = pd.MultiIndex.from_product([self.columns_, alpha])
        return pd.DataFrame(
            quantiles[:, :, place].reshape(len(index), -1), index=index, columns=columns
        )

    def _asked(self, fh: Any) -> Any:
        return fh.to_absolute_index(self.cutoff)

    def _forecast(self, index: Any, levels: list[float]) -> tuple[Floats, Floats]:
        """Means (time, column) and quantiles (time, column, level).

        A time with nothing before it gets what all values of its series say.
        """
        n = len(self.points_)
        mean, quantiles = forecast_as_of(
            self.forecaster_, self.points_, np.tile(np.arange(n), len(index)),
            np.repeat(self._seconds(index), n), levels, context_length=self.context_length,
        )  # fmt: skip
        mean, quantiles = mean.reshape(-1, n), quantiles.reshape(len(index), n, len(levels))
        for j, points in enumerate(self.points_):
            alone = np.isnan(mean[:, j])
            mean[alone, j] = points.values.mean()
            quantiles[alone, j] = np.quantile(points.values, levels)
        return mean, quantiles

    def _seconds(self, index: Any) -> Floats:
        if isinstance(index, pd.PeriodIndex):
            index = index.to_timestamp(how="start")
        times = pl.Series("time", pl.from_pandas(pd.Series(index)))
        return TimeAxis.of(times, self.time_unit, "index of y").seconds(times)

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Parameters for sktime's tests: small networks without training."""
        sizes: dict[str, Any] = {
            "d_model": 8, "n_heads": 2, "n_reader_layers": 1, "n_variable_layers": 1,
            "n_query_layers": 1, "experts": 2, "d_state": 2, "clock": "context",
            "scale": "context", "rotary_periods_s": (2.0, 2000.0),
        }  # fmt: skip
        plain = ForecasterConfig(**sizes)
        told = ForecasterConfig(**sizes, calendar=True, query_reads_points=True)
        return [
            {"model": plain, "time_unit": "d"},
            {"model": told, "time_unit": "h", "context_length": 16},
        ]
