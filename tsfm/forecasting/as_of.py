"""Forecasts of any times of anonymous series, past ones too, each from what lies before it.

`scikit-learn` and `sktime` ask an estimator for times that it was fitted on as well. To look such a
time up would be no forecast: here every time is forecast from the points of its series strictly
before it, so an answer within the past is what would have been said then, and a score on the past
is an honest backtest. Times that have the same points before them are asked together.

A time with nothing before it is not forecast; the caller decides what it gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tsfm.errors import InputError
from tsfm.forecasting.forecaster import Forecaster
from tsfm.forecasting.frames import check_whole
from tsfm.models.checkpoint import find_model
from tsfm.models.forecaster import ForecasterConfig

Floats = NDArray[np.float64]
Model = str | Path | Forecaster | ForecasterConfig
"""A name or folder, a forecaster, or sizes of an untrained one, which is a mean of simple rules."""
_MOST_POINTS = 200_000  # of the contexts of one call


@dataclass(frozen=True)
class SeriesPoints:
    """What is known of one series.

    Attributes:
        seconds: Times, ascending, (point,).
        values: Finite values, (point,).
    """

    seconds: Floats
    values: Floats

    @classmethod
    def of(cls, seconds: Floats, values: Floats) -> SeriesPoints:
        """From points in any order."""
        order = np.argsort(seconds, kind="stable")
        return cls(seconds[order], values[order])


def open_forecaster(model: Model, device: str = "cpu") -> Forecaster:
    """A forecaster of anonymous series, as an estimator's `model` names it.

    `sktime` fits a copy of an estimator to each series of a panel, so a folder is read once for as
    long as its manifest stays the same.

    Args:
        model: See `Model`.
        device: Where a loaded one computes.

    Raises:
        InputError: There is none, or it is one of known variables or with covariates.
        IntegrityError: A file differs from what was written.
        ModelMismatch: Its parts do not belong together.
    """
    if isinstance(model, ForecasterConfig):
        found = Forecaster.new(config=model)
    elif isinstance(model, str | Path):
        folder = find_model(model).resolve()
        try:
            manifest = (folder / "manifest.json").read_bytes()
        except OSError:
            manifest = b""  # what is wrong with it the loader says
        found = _loaded(folder, device, manifest)
    elif isinstance(model, Forecaster):
        found = model
    else:
        raise InputError(
            f"model is of type {type(model).__name__}", code="bad_model", place="model",
            remedy="Give a name such as 'forecaster-zero', a folder, or a Forecaster.",
        )  # fmt: skip
    if found.variables or found.covariates:
        raise InputError(
            "the model knows variables by name, and series here have none",
            code="named_variables", place="model",
            remedy="Use a model of anonymous series, or Forecaster.predict_df.",
        )  # fmt: skip
    return found


def forecast_as_of(
    forecaster: Forecaster,
    series: Sequence[SeriesPoints],
    asked_series: NDArray[np.int64],
    asked_seconds: Floats,
    levels: Sequence[float],
    *,
    context_length: int | None = None,
) -> tuple[Floats, Floats]:
    """Mean and quantiles at each asked time from the points strictly before it.

    An answer does not depend on which others are asked, nor on their order, beyond the rounding
    of float32 in which a network computes.

    Args:
        forecaster: Of anonymous series.
        series: What is known.
        asked_series: Series of each question, or -1 for one that is not known, (question,).
        asked_seconds: Time of each, (question,).
        levels: Levels of the quantiles.
        context_length: The most points that are read before a time, its last; None is all.

    Returns:
        Means (question,) and quantiles (question, level), NaN where nothing lies before.

    Raises:
        InputError: `context_length` is less than one, or see `Forecaster.predict_quantiles`.
    """
    if context_length is not None:
        check_whole("context_length", context_length)
    mean = np.full(len(asked_seconds), np.nan)
    quantiles = np.full((len(asked_seconds), len(levels)), np.nan)
    n_before = np.zeros(len(asked_seconds), np.int64)
    for s in np.unique(asked_series[asked_series >= 0]):
        of_series = asked_series == s
        times = series[s].seconds
        n_before[of_series] = np.searchsorted(times, asked_seconds[of_series], side="left")
    there = np.flatnonzero(n_before)
    if not len(there):
        return mean, quantiles
    questions = np.column_stack([asked_series[there], n_before[there], asked_seconds[there]])
    questions, place = np.unique(questions, axis=0, return_inverse=True)
    contexts, first = np.unique(questions[:, :2].astype(np.int64), axis=0, return_index=True)
    times_of = np.split(questions[:, 2], first[1:])
    pasts = [_past(series[s], n, context_length) for s, n in contexts]
    means, found = [], []
    for some in _calls([len(t) for t, _ in pasts]):
        q, m = forecaster.predict_quantiles(pasts[some], times_of[some], levels, time_unit="s")
        means += m
        found += q
    mean[there] = np.concatenate(means)[place.ravel()]
    quantiles[there] = np.concatenate(found)[place.ravel()]
    return mean, quantiles


@lru_cache(maxsize=2)
def _loaded(folder: Path, device: str, manifest: bytes) -> Forecaster:
    return Forecaster.from_pretrained(folder, device)


def _past(points: SeriesPoints, n: int, context_length: int | None) -> tuple[Floats, Floats]:
    start = 0 if context_length is None else max(0, n - context_length)
    return points.seconds[start:n], points.values[start:n]


def _calls(sizes: Sequence[int]) -> list[slice]:
    """Contexts in order, as many a call as have not too many points together."""
    call = np.cumsum(sizes) // _MOST_POINTS
    borders = [0, *(np.flatnonzero(np.diff(call)) + 1).tolist(), len(sizes)]
    return [slice(a, b) for a, b in pairwise(borders)]
