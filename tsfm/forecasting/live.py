"""A forecaster beside the bed: points come one at a time, and any moment can be asked for.

    live = tsfm.load("forecaster-icu").live()
    live.update("stay 7", when, 92.0, "HR")
    live.predict("stay 7", [when + timedelta(hours=1)])

Each item has a `ForecastStream`: a point costs the same however many came before it. Answers are
those of `Forecaster.predict_df` on all points so far, to rounding.

A model of anonymous series takes its scale from the past, so its streams are read anew whenever
the points of a series have doubled: the scale follows, and a point still costs the same on average.
Between two readings the scale is that of the last one. A point that comes late makes its item be
read anew too.

With `adaptive`, every point is first forecast from what came before it, and moves the quantiles of
its item, variable and lead time (`conformal.AdaptiveConformal`): they hold in the long run whatever
the patient does, at the price of a forecast a point.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Hashable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import ArrayLike

from tsfm.errors import InputError
from tsfm.forecasting.conformal import AdaptiveConformal, SplitConformal
from tsfm.forecasting.quantile_levels import at_levels, check_quantile_levels
from tsfm.forecasting.stream import ForecastStream
from tsfm.forecasting.time_axis import UNIT_SECONDS
from tsfm.models.forecast_data import ForecastContext
from tsfm.models.forecaster import ForecasterModel
from tsfm.models.forecaster_checkpoint import Covariate
from tsfm.models.quantile_head import LEVELS

ONLY = "target"


class LiveForecaster:
    """Items whose points arrive one at a time; made by `Forecaster.live`.

    Args:
        model: In evaluation mode.
        variables: Names of its known variables; none for anonymous series.
        covariates: Its known covariates.
        calibration: Of its quantiles.
        adaptive: Step of the adaptive calibration, in units of a variable's spread; None moves
            nothing.
        time_unit: Unit of times that are numbers: ns, us, ms, s, min, h, d or w.

    Attributes:
        n_points: Points taken.
        n_missing: Values that were missing or not finite, and left out.
        n_late: Points that came after a later one of their series.

    Raises:
        InputError: `adaptive` without a calibration, or an unknown unit.
    """

    def __init__(
        self, model: ForecasterModel, variables: Sequence[str] = (),
        covariates: Sequence[Covariate] = (), calibration: SplitConformal | None = None, *,
        adaptive: float | None = None, time_unit: str | None = None,
    ) -> None:  # fmt: skip
        """Begin without items."""
        if adaptive is not None and calibration is None:
            raise InputError(
                "adaptive quantiles start from a calibration, and there is none",
                code="no_calibration", place="adaptive", remedy="Call calibrate() or fit() first.",
            )  # fmt: skip
        self._model, self._known = model, tuple(variables)
        self._covariates, self._calibration = tuple(covariates), calibration
        self._gamma = adaptive
        self._clock = _Clock(time_unit)
        self._items: dict[Hashable, _Item] = {}
        self.n_points = self.n_missing = self.n_late = 0

    @property
    def items(self) -> tuple[Hashable, ...]:
        """Ids so far, in the order of their first points."""
        return tuple(self._items)

    def update(
        self, item_id: Hashable, timestamp: Any, value: float | None, variable: str = ONLY
    ) -> bool:
        """Take one more point.

        Args:
            item_id: Whose it is.
            timestamp: When: a date-time, or a number with `time_unit`.
            value: What; one that is missing or not finite is counted and left out.
            variable: Of which variable.

        Returns:
            Whether it was taken.

        Raises:
            InputError: An unknown variable, or a time that can't be read; nothing has changed then.
        """
        seconds = self._clock.read(timestamp)
        value = math.nan if value is None else float(value)
        if self._known and variable not in self._known:
            raise InputError(
                "the model does not know this variable", code="unknown_variable", place="variable",
                remedy=f"It knows {', '.join(self._known[:8])}, ...",
            )  # fmt: skip
        item = self._items.get(item_id)
        if item is None:
            item = self._items[item_id] = _Item(self._known, self._gamma, self._calibration)
        if not math.isfinite(value):
            self.n_missing += 1
            item.latest = max(item.latest, seconds)
            return False
        if item.adaptive and item.has(variable) and seconds >= item.latest > -math.inf:
            at = np.array([seconds])
            _, found = item.forecast(self._model, [variable], at, item.latest, None)
            lead = (seconds - item.latest) / 3600
            item.adaptive = item.adaptive.update(variable, lead, found[0], value)
        self.n_late += not item.take(variable, seconds, value)
        self.n_points += 1
        return True

    def predict(
        self, item_id: Hashable, timestamps: Sequence[Any],
        quantile_levels: Sequence[float] = (0.1, 0.5, 0.9), *,
        variables: Sequence[str] | None = None, now: Any = None, calibrated: bool = True,
        covariates: Mapping[str, ArrayLike] | None = None,
    ) -> pl.DataFrame:  # fmt: skip
        """Forecast an item from all its points so far.

        Args:
            item_id: Which.
            timestamps: Asked times, from now on.
            quantile_levels: Levels between 0 and 1.
            variables: Which; None is all known ones, or all that the item has.
            now: When it is asked; None is the item's latest point.
            calibrated: Apply the calibration if there is one, adapted if `adaptive` is on.
            covariates: Known values for each asked time, by name; what is not named is not known.

        Returns:
            A row for each variable and time: `item_id`, `timestamp`, `target_name`, `predictions`
            (means), and a column a level.

        Raises:
            InputError: No such item or variable, or a time before now.
        """
        levels = check_quantile_levels(quantile_levels)
        item = self._items.get(item_id)
        if item is None:
            raise InputError(
                "there is no point of this item", code="unknown_item", place="item_id",
                remedy="update() it first; items lists what there is.",
            )  # fmt: skip
        names = list(variables) if variables is not None else list(self._known or item.names)
        seconds = np.array([self._clock.read(stamp) for stamp in timestamps])
        at = item.latest if now is None else self._clock.read(now)
        known = self._standardised(covariates, len(seconds))
        if not all(map(item.has, names)):
            raise InputError(
                "there is no such series", code="unknown_variable", place="variables",
                remedy="Ask for variables that the model knows, or that have a point.",
            )  # fmt: skip
        mean, found = item.forecast(self._model, names, seconds, at, known)
        told = [name for name in names for _ in range(len(seconds))]
        shift = (item.adaptive or self._calibration) if calibrated else None
        if shift is not None and told:
            lead = np.tile((seconds - at) / 3600, len(names))
            found = shift.apply(told, lead, LEVELS, found).astype(np.float64)
        rows = at_levels(found, levels)
        return pl.DataFrame({
            "item_id": [item_id] * len(told),
            "timestamp": list(timestamps) * len(names),
            "target_name": pl.Series(told, dtype=pl.String),
            "predictions": mean,
            **{str(level): rows[:, j] for j, level in enumerate(levels)},
        })  # fmt: skip

    def forget(self, item_id: Hashable) -> None:
        """Drop an item, such as a patient who left; nothing happens if there is none."""
        self._items.pop(item_id, None)

    def _standardised(self, given: Mapping[str, ArrayLike] | None, n: int) -> torch.Tensor | None:
        if unknown := set(given or ()) - {one.name for one in self._covariates}:
            raise InputError(
                f"the model has no covariate '{sorted(unknown)[0]}'", code="unknown_covariate",
                place="covariates", remedy="Name those that it was trained with.",
            )  # fmt: skip
        if not self._covariates:
            return None
        table = np.full((n, len(self._covariates)), np.nan)
        for j, one in enumerate(self._covariates):
            if one.name in (given or {}):
                values = np.asarray((given or {})[one.name], dtype=np.float64)
                table[:, j] = (values - one.location) / one.scale
        return torch.from_numpy(table).float()


class _Item:
    """One item: its points, and a stream of all its known variables or of each anonymous series."""

    def __init__(
        self, known: tuple[str, ...], gamma: float | None, calibration: SplitConformal | None
    ) -> None:
        self.known = known
        self.points: dict[str, list[tuple[float, float]]] = {name: [] for name in known}
        self.streams: dict[str, ForecastStream] = {}
        self.read_at: dict[str, int] = {}
        self.latest = -math.inf
        self.adaptive: AdaptiveConformal | None = None
        if gamma is not None and calibration is not None:
            self.adaptive = AdaptiveConformal(calibration, gamma)

    @property
    def names(self) -> list[str]:
        return list(self.points)

    def has(self, name: str) -> bool:
        return name in self.known or bool(self.points.get(name))

    def take(self, name: str, seconds: float, value: float) -> bool:
        """Keep a point; give whether it came in order."""
        series = self.points.setdefault(name, [])
        in_order = not series or seconds >= series[-1][0]
        if in_order:
            series.append((seconds, value))
        else:
            insort(series, (seconds, value), key=lambda point: point[0])
        key = "" if self.known else name
        stream = self.streams.get(key)
        if stream is not None:
            outgrown = not self.known and len(series) >= 2 * self.read_at[name]
            if in_order and not outgrown:
                stream.update(name if self.known else 0, seconds, value)
            else:
                del self.streams[key]
        self.latest = max(self.latest, seconds)
        return in_order

    def forecast(
        self, model: ForecasterModel, names: list[str], seconds: np.ndarray, now: float,
        known: torch.Tensor | None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Means and quantiles, a row for each name and time, (row,) and (row, level)."""
        mean, quantiles = [np.empty(0)], [np.empty((0, len(LEVELS)))]
        together = [names] if self.known else [[name] for name in names]
        for some in together if len(seconds) else ():
            stream = self._stream(model, some[0])
            asked = some if self.known else [0]
            covariates = None if known is None else known.repeat(len(some), 1)
            found = stream.forecast(seconds, asked, now, covariates)
            mean.append(found.mean_in_units().double().cpu().numpy())
            quantiles.append(found.quantiles_in_units().double().cpu().numpy())
        return np.concatenate(mean), np.concatenate(quantiles)

    def _stream(self, model: ForecasterModel, name: str) -> ForecastStream:
        """The stream of a series, made from all points if there is none."""
        key = "" if self.known else name
        if key in self.streams:
            return self.streams[key]
        names = self.known or (name,)
        each = [self.points[one] for one in names]
        points = np.array([point for series in each for point in series]).reshape(-1, 2)
        self.read_at[name] = len(points)

        def tensor(array: ArrayLike) -> torch.Tensor:
            return torch.as_tensor(np.array(array), device=model.variable.weight.device)

        context = ForecastContext(
            seconds=tensor(points[:, 0]), values=tensor(points[:, 1]),
            cu_points=tensor(np.cumsum([0, *map(len, each)])),
            variable=tensor(np.arange(len(names))), cu_series=tensor([0, len(names)]),
            now_seconds=tensor([max(points[:, 0], default=self.latest)]),
        )  # fmt: skip
        self.streams[key] = ForecastStream(model, names if self.known else 1, start=context)
        return self.streams[key]


class _Clock:
    """Reads times: all with a zone, all without, or all numbers of one unit."""

    def __init__(self, time_unit: str | None) -> None:
        if time_unit is not None and time_unit not in UNIT_SECONDS:
            raise InputError(
                f"'{time_unit}' is no unit of time", code="bad_time_unit", place="time_unit",
                remedy=f"Give one of {', '.join(UNIT_SECONDS)}.",
            )  # fmt: skip
        self.unit, self.kind = time_unit, ""

    def read(self, when: Any) -> float:
        """Seconds since 1970 of a date-time (one without a zone as if in UTC), or of a number."""
        kind, seconds = "", math.nan
        if isinstance(when, np.datetime64):
            kind, seconds = "naive", float(when.astype("datetime64[us]").astype(np.int64)) / 1e6
        elif isinstance(when, datetime):
            kind = "aware" if when.tzinfo else "naive"
            seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
        elif self.unit and isinstance(when, int | float | np.number):
            kind, seconds = "number", float(when) * UNIT_SECONDS[self.unit]
        if not kind or not -1e12 < seconds < 1e12:
            raise InputError(
                "a time can't be read", code="bad_time", place="timestamp",
                remedy="Give a date-time, or a number and its time_unit.",
            )  # fmt: skip
        if kind != (self.kind or kind):
            raise InputError(
                f"a time is {kind} among {self.kind} ones", code="mixed_clocks", place="timestamp",
                remedy="Give all times a zone, or none, or all as numbers.",
            )  # fmt: skip
        self.kind = kind
        return seconds
