"""A forecaster beside the bed: points come one at a time, and any moment can be asked for.

    live = tsfm.load("forecaster-icu").live()
    live.update("stay 7", when, 92.0, "HR")
    live.predict("stay 7", [when + timedelta(hours=1)])

Each item has a `ForecastStream`: a point costs the same however many came before it. Answers are
those of `Forecaster.predict_df` on all points so far: to rounding with known variables, and without
as long as a series is not longer than some thousand points.

A model of anonymous series takes scale and clock from the past. So a stream of it is read anew as
long as that costs little, and then when its points have grown by a quarter or have left the scale
(`running_summary.FrozenScale`): a point still costs the same on average. Between two readings scale
and clock are those of the last one. A point that comes late, or at the time of another one of its
series, makes its item be read anew too; of values at one time the mean is taken.

With `adaptive`, every point is first forecast from what came before it, and moves the quantiles of
its item, variable and lead time (`conformal.AdaptiveConformal`): they hold in the long run whatever
the patient does, at the price of a forecast a point.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import ArrayLike

from tsfm.errors import InputError
from tsfm.forecasting.conformal import AdaptiveConformal, SplitConformal
from tsfm.forecasting.quantile_levels import at_levels, check_quantile_levels
from tsfm.forecasting.running_summary import FrozenScale
from tsfm.forecasting.stream import ForecastStream
from tsfm.forecasting.time_axis import PointClock
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
        InputError: `adaptive` without a calibration or no positive number, or an unknown unit.
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
        real = isinstance(adaptive, int | float) and not isinstance(adaptive, bool)
        if adaptive is not None and not (real and 0 < adaptive < math.inf):
            raise InputError(
                "the step of the adaptive calibration is no positive number", code="bad_step",
                place="adaptive", remedy="Give a small share of a spread, such as 0.05.",
            )  # fmt: skip
        self._model, self._known = model, tuple(variables)
        self._covariates, self._calibration = tuple(covariates), calibration
        self._gamma = adaptive
        self._clock = PointClock(time_unit)
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
            InputError: An unknown variable, or an id, a time or a value that can't be read; nothing
                has changed then.
        """
        kind, seconds = self._clock.read(timestamp)
        value = _number(value)
        if self._known and variable not in self._known:
            raise InputError(
                "the model does not know this variable", code="unknown_variable", place="variable",
                remedy=f"It knows {', '.join(self._known[:8])}, ...",
            )  # fmt: skip
        item = self._find(item_id)
        if item is None:
            item = self._items[item_id] = _Item(self._known, self._gamma, self._calibration)
        self._clock.kind = kind
        if not math.isfinite(value):
            self.n_missing += 1
            item.latest = max(item.latest, seconds)
            return False
        if self._gamma is not None and item.has(variable) and seconds >= item.latest > -math.inf:
            item.adapt(self._model, variable, seconds, value)
        self.n_late += not item.take(variable, seconds, value)
        self.n_points += 1
        return True

    def predict(
        self, item_id: Hashable, timestamps: Any,
        quantile_levels: Sequence[float] = (0.1, 0.5, 0.9), *,
        variables: Sequence[str] | None = None, now: Any = None, calibrated: bool = True,
        covariates: Mapping[str, ArrayLike] | None = None,
    ) -> pl.DataFrame:  # fmt: skip
        """Forecast an item from all its points so far.

        Args:
            item_id: Which.
            timestamps: Asked times, from now on; one or several.
            quantile_levels: Levels between 0 and 1.
            variables: Which; None is all known ones, or all that the item has.
            now: When it is asked; None is the item's latest point.
            calibrated: Apply the calibration if there is one, adapted if `adaptive` is on.
            covariates: Known values for each asked time, by name; what is not named is not known.

        Returns:
            A row for each variable and time: `item_id`, `timestamp`, `target_name`, `predictions`
            (means), and a column a level.

        Raises:
            InputError: No such item or variable, a time before now, or one that can't be read.
        """
        levels = check_quantile_levels(quantile_levels)
        item = self._find(item_id)
        if item is None:
            raise InputError(
                "there is no point of this item", code="unknown_item", place="item_id",
                remedy="update() it first; items lists what there is.",
            )  # fmt: skip
        names = list(variables) if variables is not None else list(self._known or item.names)
        stamps = self._clock.listed(timestamps)
        seconds = np.array([self._clock.read(stamp)[1] for stamp in stamps])
        at = item.latest if now is None else self._clock.read(now)[1]
        known = self._standardised(covariates, len(seconds))
        if not all(map(item.has, names)):
            raise InputError(
                "there is no such series", code="unknown_variable", place="variables",
                remedy="Ask for variables that the model knows, or that have a point.",
            )  # fmt: skip
        mean, found, lead = item.forecast(self._model, names, seconds, at, known)
        told = [name for name in names for _ in stamps]
        if calibrated and self._calibration is not None and told:
            found = item.calibrated(names, lead, found)
        rows = at_levels(found, levels)
        return pl.DataFrame({
            "item_id": _ids(item_id, len(told)),
            "timestamp": self._clock.column(stamps * len(names)),
            "target_name": pl.Series(told, dtype=pl.String),
            "predictions": mean,
            **{str(level): rows[:, j] for j, level in enumerate(levels)},
        })  # fmt: skip

    def forget(self, item_id: Hashable) -> None:
        """Drop an item, such as a patient who left; nothing happens if there is none."""
        if self._find(item_id) is not None:
            del self._items[item_id]

    def _find(self, item_id: Hashable) -> _Item | None:
        try:
            return self._items.get(item_id)
        except TypeError:
            raise InputError(
                f"an id of type {type(item_id).__name__} can't be looked up", code="bad_id",
                place="item_id", remedy="Give a text, a number, or a tuple of such.",
            ) from None  # fmt: skip

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
                values = _numbers((given or {})[one.name], n, f"covariates, {one.name}")
                table[:, j] = (values - one.location) / one.scale
        return torch.from_numpy(table).float()


class _Item:
    """One item: its points, and a stream of all its known variables or of each anonymous series.

    Streams, scales and adaptive calibrations go by the name of an anonymous series, or by "".
    """

    def __init__(
        self, known: tuple[str, ...], gamma: float | None, calibration: SplitConformal | None
    ) -> None:
        self.known = known
        self.points: dict[str, list[tuple[float, float]]] = {name: [] for name in known}
        self.streams: dict[str, ForecastStream] = {}
        self.scales: dict[str, FrozenScale] = {}
        self.latest = -math.inf
        self.split = calibration
        self.unmoved: AdaptiveConformal | None = None
        self.adaptive: dict[str, AdaptiveConformal] = {}
        if gamma is not None and calibration is not None:
            self.unmoved = AdaptiveConformal(calibration, gamma)

    @property
    def names(self) -> list[str]:
        return list(self.points)

    def has(self, name: str) -> bool:
        return name in self.known or bool(self.points.get(name))

    def take(self, name: str, seconds: float, value: float) -> bool:
        """Keep a point; give whether it came in order."""
        series = self.points.setdefault(name, [])
        last = series[-1][0] if series else -math.inf
        if seconds >= last:
            series.append((seconds, value))
        else:
            insort(series, (seconds, value), key=lambda point: point[0])
        key = "" if self.known else name
        stream = self.streams.get(key)
        if stream is not None:
            outgrown = not self.known and self.scales[key].left_by(seconds, value)
            if seconds > last and not outgrown:
                stream.update(name if self.known else 0, seconds, value)
            else:
                del self.streams[key]
        self.latest = max(self.latest, seconds)
        return seconds >= last

    def adapt(self, model: ForecasterModel, name: str, seconds: float, value: float) -> None:
        """Move the calibration by a truth, forecast from all before it."""
        key = "" if self.known else name
        moved = self.adaptive.get(key, self.unmoved)
        assert moved is not None
        _, found, lead = self.forecast(model, [name], np.array([seconds]), self.latest, None)
        called = moved.split.called([name], self.known)[0]
        self.adaptive[key] = moved.update(called, lead[0], found[0], value)

    def calibrated(self, names: list[str], lead: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Quantiles of `forecast` as the calibration has them, adapted if it adapts."""
        k, done = len(lead) // len(names), []
        for i, some in self._together(names):
            rows = slice(i * k, (i + len(some)) * k)
            shift = self.adaptive.get("" if self.known else some[0], self.unmoved) or self.split
            assert self.split is not None
            assert shift is not None
            called = np.repeat(self.split.called(some, self.known), k)
            done.append(shift.apply(called, lead[rows], LEVELS, found[rows]).astype(np.float64))
        return np.concatenate(done)

    def forecast(
        self, model: ForecasterModel, names: list[str], seconds: np.ndarray, now: float,
        known: torch.Tensor | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """Means, quantiles, and lead times in units of the series' clocks.

        A row for each name and time: (row,), (row, level), (row,).
        """
        mean, quantiles, lead = [np.empty(0)], [np.empty((0, len(LEVELS)))], [np.empty(0)]
        for _, some in self._together(names) if len(seconds) and names else ():
            stream = self._stream(model, some[0])
            asked = some if self.known else [0]
            covariates = None if known is None else known.repeat(len(some), 1)
            found = stream.forecast(seconds, asked, now, covariates)
            mean.append(found.mean_in_units().double().cpu().numpy())
            quantiles.append(found.quantiles_in_units().double().cpu().numpy())
            rows = [self.known.index(name) for name in some] if self.known else [0]
            clock = stream.clock.double().cpu().numpy()[rows]
            lead.append(((seconds - now) / clock[:, None]).ravel())
        return np.concatenate(mean), np.concatenate(quantiles), np.concatenate(lead)

    def _together(self, names: list[str]) -> list[tuple[int, list[str]]]:
        """Names that one stream forecasts, and the place of their first."""
        return [(0, names)] if self.known else [(i, [name]) for i, name in enumerate(names)]

    def _stream(self, model: ForecasterModel, name: str) -> ForecastStream:
        """The stream of a series, made from all points if there is none."""
        key = "" if self.known else name
        if key in self.streams:
            return self.streams[key]
        names = self.known or (name,)
        each = [_one_a_time(self.points[one]) for one in names]
        points = np.concatenate(each)

        def tensor(array: ArrayLike) -> torch.Tensor:
            return torch.as_tensor(np.array(array), device=model.variable.weight.device)

        context = ForecastContext(
            seconds=tensor(points[:, 0]), values=tensor(points[:, 1]),
            cu_points=tensor(np.cumsum([0, *map(len, each)])),
            variable=tensor(np.arange(len(names))), cu_series=tensor([0, len(names)]),
            now_seconds=tensor([max(points[:, 0], default=self.latest)]),
        )  # fmt: skip
        stream = ForecastStream(model, names if self.known else 1, start=context)
        self.streams[key] = stream
        if not self.known:
            told = (float(x[0]) for x in (stream.location, stream.spread, stream.clock))
            self.scales[key] = FrozenScale(points[:, 0], points[:, 1], *told)
        return stream


def _one_a_time(points: list[tuple[float, float]]) -> np.ndarray:
    """Points of a series by time, the mean of values at one time, (point, 2)."""
    table = np.array(points, np.float64).reshape(-1, 2)
    seconds, first, counts = np.unique(table[:, 0], return_index=True, return_counts=True)
    if len(seconds) < len(table):
        table = np.column_stack([seconds, np.add.reduceat(table[:, 1], first) / counts])
    return table


def _ids(item_id: Hashable, n: int) -> pl.Series:
    """A column of one id, of the type that polars has for it, or of objects where it has none."""
    try:
        return pl.Series([item_id] * n)
    except (TypeError, pl.exceptions.PolarsError):
        return pl.Series([item_id] * n, dtype=pl.Object)


def _number(value: Any) -> float:
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"a value of type {type(value).__name__} is no number", code="not_numeric",
            place="value", remedy="Give a number, or None for a missing one.",
        ) from None  # fmt: skip


def _numbers(values: ArrayLike, n: int, place: str) -> np.ndarray:
    """Numbers, one for each of n times or one for all."""
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        found = None
    if found is None or found.shape not in ((), (n,)):
        raise InputError(
            "values are no numbers, or not one for each time", code="bad_covariate", place=place,
            remedy="Give a number for each asked time, or one for all; NaN is not known.",
        )  # fmt: skip
    return found
