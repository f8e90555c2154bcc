"""The forecaster as a regressor of scikit-learn: rows are times, and may be of several series.

`fit` remembers the points of each series, `predict` forecasts each row from the points of its
series strictly before it (`as_of`), so that pipelines, cross-validation by time and scores work as
for any other regressor. The network is not trained on: fit a `Forecaster` for that and give it as
`model`.

Columns beside time and series are covariates, known at the asked times too. A model of anonymous
series reads none, so they enter by a ridge regression within the series, and the forecaster goes on
with what it leaves: a regression with errors that are a time series.

Needs the extra `baselines` (scikit-learn).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm.errors import InputError, TsfmError
from tsfm.forecasting.as_of import Floats, Model, SeriesPoints, forecast_as_of, open_forecaster
from tsfm.forecasting.forecaster import DECILES
from tsfm.forecasting.frames import is_rounding, read_frame, read_ids
from tsfm.forecasting.quantile_levels import check_quantile_levels
from tsfm.forecasting.time_axis import TimeAxis

try:
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.linear_model import Ridge
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise TsfmError(
        "scikit-learn 1.6 or later is not installed", code="missing_package",
        place="scikit-learn", remedy="Install it with `pip install tsfm[baselines]`.",
    ) from error  # fmt: skip

_FRAMES = {("pandas", "DataFrame"), ("polars", "DataFrame")}


class SeriesRegressor(RegressorMixin, BaseEstimator):
    """Forecasts the value of a series at the time of each row.

    `X` has a column of times, perhaps one that says the series, and perhaps covariates. Times may
    lie anywhere, in any order and with gaps. In a frame of pandas or polars, times may be dates or
    date-times and series texts; elsewhere both are numbers. Neither `X` nor `y` may have missing
    values: leave such rows out, for a gap needs no filling.

    Args:
        model: Name or folder of a model of anonymous series, or a `Forecaster` of such.
        time_column: Index or name of the column of times.
        series_column: Index or name of the column that says the series; None is one series.
        time_unit: Unit of times that are numbers: ns, us, ms, s, min, h, d or w. It has no default.
        context_length: The most points that are read before a time; None is all.
        ridge: Penalty of the covariates' coefficients, for standardised covariates; not negative.
        device: Where a model that is loaded computes.

    Attributes:
        forecaster_: The forecaster.
        coef_: Effect of each covariate, in units of `y` for one of its own, (n_covariates,).
        series_: Label of each series, ascending; a series of its own number in a frame of texts.
        points_: Points of each series, less what the covariates explain.
        n_features_in_: Columns of `X`.
        feature_names_in_: Their names, if they have any.

    Examples:
        >>> import numpy as np
        >>> from tsfm.models.forecaster import ForecasterConfig
        >>> untrained = ForecasterConfig(clock="context", scale="context", calendar=True)
        >>> hours = np.arange(48.0)[:, None]
        >>> regressor = SeriesRegressor(untrained, time_unit="h").fit(hours, np.full(48, 7.0))
        >>> regressor.predict([[50.5], [60.0]]).round(3).tolist()
        [7.0, 7.0]
    """

    n_features_in_: int

    def __init__(
        self,
        model: Model = "forecaster-zero",
        *,
        time_column: int | str = 0,
        series_column: int | str | None = None,
        time_unit: str | None = None,
        context_length: int | None = 1024,
        ridge: float = 1.0,
        device: str = "cpu",
    ) -> None:
        """Keep the parameters; they are checked in `fit`."""
        self.model = model
        self.time_column = time_column
        self.series_column = series_column
        self.time_unit = time_unit
        self.context_length = context_length
        self.ridge = ridge
        self.device = device

    def fit(self, X: Any, y: Any) -> SeriesRegressor:
        """Remember the series and learn the effects of the covariates.

        Args:
            X: Times, series, covariates, (n_samples, n_features).
            y: Values, (n_samples,).

        Raises:
            InputError: A column is not there, times have no unit, the ridge is below zero, or
                there is no model.
            ValueError: `X` or `y` is not as scikit-learn asks for: shapes, NaN, infinite, sparse.
        """
        if not 0 <= self.ridge < math.inf:
            raise InputError(
                "the penalty of the covariates is below zero or infinite", code="bad_ridge",
                place="ridge", remedy="Give 0 or more; 1 is usual.",
            )  # fmt: skip
        plain, axis, self.series_names_ = self._with_numbers(X, None)
        both: Any = validate_data(self, plain, y, dtype=np.float64, y_numeric=True)
        checked, y = both
        self.forecaster_ = open_forecaster(self.model, self.device)
        time, series = self._places()
        self.time_axis_ = axis or self._numeric_axis(checked[:, time])
        seconds, labels, covariates = self._parts(checked, time, series)
        self.series_, of_row = np.unique(labels, return_inverse=True)
        values = np.asarray(y, np.float64)
        self.coef_ = _effects(covariates, values, of_row, self.ridge)
        rest = values - covariates @ self.coef_
        rows = np.split(np.argsort(of_row, kind="stable"), np.cumsum(np.bincount(of_row))[:-1])
        self.points_ = [SeriesPoints.of(seconds[r], rest[r]) for r in rows]
        return self

    def predict(self, X: Any) -> NDArray[np.float32]:
        """Mean of each row's value, from the points of its series strictly before its time.

        A row of a series that was not fitted, or with no point before it, gets the mean of all
        fitted values, less and then plus what its covariates explain.

        Args:
            X: As for `fit`, (n_samples, n_features).

        Returns:
            Means, (n_samples,), in float32, in which the network computes: asked beside others, a
            row's answer may differ in the last digits of that.

        Raises:
            InputError: Times are on another clock than those fitted, or series are texts where they
                were numbers or the other way round.
            ValueError: `X` is not as scikit-learn asks for.
        """
        return self._forecast(X, ())[0].astype(np.float32)

    def predict_quantiles(
        self, X: Any, quantile_levels: Sequence[float] = DECILES
    ) -> NDArray[np.float32]:
        """Quantiles of each row's value; see `predict`. They never cross.

        Args:
            X: As for `fit`, (n_samples, n_features).
            quantile_levels: Levels between 0 and 1.

        Returns:
            Quantiles, (n_samples, n_levels).

        Raises:
            InputError: As `predict`, or the levels are no such levels.
            ValueError: `X` is not as scikit-learn asks for.
        """
        return self._forecast(X, check_quantile_levels(quantile_levels))[1].astype(np.float32)

    def _forecast(self, X: Any, levels: tuple[float, ...]) -> tuple[Floats, Floats]:
        check_is_fitted(self)
        plain, axis, _ = self._with_numbers(X, self.series_names_)
        checked: Any = validate_data(self, plain, dtype=np.float64, reset=False)
        time, series = self._places()
        axis = axis or self._numeric_axis(checked[:, time])
        self.time_axis_.check_same_clock(axis, "X")
        seconds, labels, covariates = self._parts(checked, time, series)
        place = np.searchsorted(self.series_, labels).clip(max=len(self.series_) - 1)
        of_row = np.where(self.series_[place] == labels, place, -1)
        mean, quantiles = forecast_as_of(
            self.forecaster_, self.points_, of_row, seconds, levels or (0.5,),
            context_length=self.context_length,
        )  # fmt: skip
        quantiles = quantiles[:, : len(levels)]
        if (alone := np.isnan(mean)).any():
            every = np.concatenate([points.values for points in self.points_])
            mean[alone], quantiles[alone] = every.mean(), np.quantile(every, levels)
        explained = covariates @ self.coef_
        return mean + explained, quantiles + explained[:, None]

    def _with_numbers(
        self, X: Any, known: dict[str, int] | None
    ) -> tuple[Any, TimeAxis | None, dict[str, int]]:
        """`X` with times in seconds and series as numbers where a frame has dates and texts.

        Args:
            X: As the user gave it.
            known: Numbers of the series' names, none if series are numbers; None gives them, in the
                order of the alphabet.

        Returns:
            `X`, what its times were if they were no numbers, and the numbers of names.

        Raises:
            InputError: Series are texts and the known ones numbers, or the other way round.
        """
        names = dict(known or {})
        if (type(X).__module__.partition(".")[0], type(X).__name__) not in _FRAMES:
            if names:
                raise _other_ids()
            if getattr(getattr(X, "dtype", None), "kind", "") == "M":
                raise InputError(
                    "X is an array of date-times", code="bad_time_column", place="X",
                    remedy="Give a data frame, or numbers with time_unit.",
                )  # fmt: skip
            return X, None, names
        asked = [c for c in (self.time_column, self.series_column) if c is not None]
        columns: list[Any] = [
            X.columns[c] if isinstance(c, int) and -len(X.columns) <= c < len(X.columns) else c
            for c in asked
        ]
        frame, _ = read_frame(X, columns, "X")
        axis, numbers = None, {}
        if not (frame.is_empty() or frame.to_series(0).dtype.is_numeric()):
            axis = TimeAxis.of(frame.to_series(0), self.time_unit, f"X, {columns[0]}")
            numbers[columns[0]] = axis.seconds(frame.to_series(0))
        of_text = frame.width > 1 and not frame.to_series(1).dtype.is_numeric()
        if known is not None and of_text != bool(known):
            raise _other_ids()
        if of_text:
            labels = frame.to_series(1).cast(pl.String)
            found = read_ids(frame.with_columns(labels), frame.columns[1], "X").sort()
            if known is None:
                names = {name: i for i, name in enumerate(found)}
            numbers[columns[1]] = np.array([float(names.get(name, -1)) for name in labels])
        if not numbers:
            return X, None, names
        if isinstance(X, pl.DataFrame):
            return X.with_columns(**numbers), axis, names
        X = X.copy()
        for column, values in numbers.items():
            X[column] = values
        return X, axis, names

    def _numeric_axis(self, times: Floats) -> TimeAxis:
        return TimeAxis.of(pl.Series(times), self.time_unit, "X")

    def _places(self) -> tuple[int, int | None]:
        """Indices of the columns of times and series."""
        given = {"time_column": self.time_column, "series_column": self.series_column}
        names = list(getattr(self, "feature_names_in_", ()))
        found = []
        for parameter, column in given.items():
            if column is None and parameter == "series_column":
                found.append(None)
            elif isinstance(column, str) and column in names:
                found.append(names.index(column))
            elif isinstance(column, int) and -self.n_features_in_ <= column < self.n_features_in_:
                found.append(column % self.n_features_in_)
            else:
                raise InputError(
                    "X does not have the column", code="missing_column", place=parameter,
                    remedy="Give the index of a column, or the name of one of a data frame.",
                )  # fmt: skip
        if found[0] == found[1]:
            raise InputError(
                "times and series are said to be the same column", code="missing_column",
                place="series_column", remedy="Name two columns, or None for one series.",
            )  # fmt: skip
        return found[0], found[1]

    def _parts(self, X: Floats, time: int, series: int | None) -> tuple[Floats, Floats, Floats]:
        """Seconds, labels of series, and covariates of each row."""
        labels = np.zeros(len(X)) if series is None else X[:, series]
        others = [j for j in range(X.shape[1]) if j not in (time, series)]
        return X[:, time] * self.time_axis_.unit_seconds, labels, X[:, others]


def _other_ids() -> InputError:
    return InputError(
        "series are texts in one of fit and predict and numbers in the other", code="other_ids",
        place="X", remedy="Give the column that says the series the same type in both.",
    )  # fmt: skip


def _effects(covariates: Floats, values: Floats, of_row: NDArray[np.int64], ridge: float) -> Floats:
    """Coefficients by ridge regression of deviations from each series' means.

    Levels of series differ for reasons of their own, so only differences within a series count.

    Args:
        covariates: (row, covariate).
        values: (row,).
        of_row: Series of each row.
        ridge: Penalty, for standardised covariates.

    Raises:
        InputError: A covariate is so large that it has no spread.
    """
    if not covariates.shape[1]:
        return np.zeros(0)
    counts = np.bincount(of_row)

    def within(column: Floats) -> Floats:
        return column - (np.bincount(of_row, column) / counts)[of_row]

    with np.errstate(over="ignore", invalid="ignore"):
        deviations = np.column_stack([within(column) for column in covariates.T])
        spread = deviations.std(0)
    if not np.isfinite(spread).all():
        raise InputError(
            "a covariate has no finite spread", code="bad_covariate", place="X",
            remedy="Look for values that are off by many powers of ten.",
        )  # fmt: skip
    constant = [is_rounding(s, column) for s, column in zip(spread, covariates.T, strict=True)]
    deviations[:, constant], spread[constant] = 0.0, 1.0
    fitted = Ridge(alpha=ridge, fit_intercept=False).fit(deviations / spread, within(values))
    return fitted.coef_ / spread
