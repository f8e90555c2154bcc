"""Series end to end in numpy: taking some, cutting them at a moment, and having them answered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tsfm.errors import InputError
from tsfm.models.forecast_data import ForecastContext, ForecastQueries
from tsfm.models.forecaster import ForecasterModel
from tsfm.models.quantile_head import LEVELS

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
_MOST_POINTS = 200_000  # read at once, as far as whole entities allow


@dataclass(frozen=True)
class Questions:
    """Times at which series are asked for, in the order of the series.

    Attributes:
        series: Series of each question.
        seconds: Time of each.
        known: Covariates of each, standardised, NaN where not known, (question, covariate).
        truth: What came, where that is known already.
    """

    series: Integers
    seconds: Floats
    known: Floats
    truth: Floats | None = None

    def take(self, rows: Any) -> Questions:
        """Some of the rows."""
        truth = None if self.truth is None else self.truth[rows]
        return Questions(self.series[rows], self.seconds[rows], self.known[rows], truth)

    def queries(self, n_series: int, device: torch.device | str = "cpu") -> ForecastQueries:
        """As tensors.

        Args:
            n_series: Series of the context.
            device: Where the tensors go.
        """
        counts = np.bincount(self.series, minlength=n_series)
        return ForecastQueries(
            torch.as_tensor(self.seconds, device=device),
            torch.as_tensor(np.r_[0, counts.cumsum()], device=device),
            torch.as_tensor(self.known, dtype=torch.float32, device=device),
        )


@dataclass(frozen=True)
class PackedSeries:
    """Points of all series, series of all entities; borders as in `ForecastContext`.

    Attributes:
        seconds: Times, ascending within a series, (point,).
        values: Finite values, (point,).
        known: Covariates, standardised, NaN where not known, (point, covariate).
        cu_points: Borders of the series' points.
        variable: Variable of each series as the model counts them.
        name: Index of each series' name.
        cu_series: Borders of the entities' series.
        item: Item that each entity belongs to.
        now_seconds: When each entity is forecast from.
    """

    seconds: Floats
    values: Floats
    known: Floats
    cu_points: Integers
    variable: Integers
    name: Integers
    cu_series: Integers
    item: Integers
    now_seconds: Floats

    def entity_of_series(self) -> Integers:
        """Entity of each series."""
        return np.repeat(np.arange(len(self.item)), np.diff(self.cu_series))

    def series_of_point(self) -> Integers:
        """Series of each point."""
        return np.repeat(np.arange(len(self.variable)), np.diff(self.cu_points))

    def take(self, entities: Integers) -> PackedSeries:
        """Some entities, in this order; one may come twice."""
        n_series = np.diff(self.cu_series)[entities]
        series = _ranges(self.cu_series[entities], n_series)
        n_points = np.diff(self.cu_points)[series]
        points = _ranges(self.cu_points[series], n_points)
        return PackedSeries(
            self.seconds[points], self.values[points], self.known[points],
            np.r_[0, n_points.cumsum()], self.variable[series], self.name[series],
            np.r_[0, n_series.cumsum()], self.item[entities], self.now_seconds[entities],
        )  # fmt: skip

    def cut(self, now_seconds: Floats, n_ahead: int) -> tuple[PackedSeries, Questions]:
        """What was known at a moment, and the next points of each series as questions.

        Args:
            now_seconds: Moment of each entity; its points at it are known.
            n_ahead: The most questions of a series.
        """
        series = self.series_of_point()
        now = now_seconds[self.entity_of_series()][series]
        past = self.seconds <= now
        n_past = np.bincount(series[past], minlength=len(self.variable))
        place = np.arange(len(series)) - self.cu_points[series] - n_past[series]
        asked = ~past & (place < n_ahead)
        context = replace(
            self, seconds=self.seconds[past], values=self.values[past], known=self.known[past],
            cu_points=np.r_[0, n_past.cumsum()], now_seconds=now_seconds,
        )  # fmt: skip
        questions = Questions(
            series[asked], self.seconds[asked], self.known[asked], self.values[asked]
        )
        return context, questions

    def context(self, device: torch.device | str = "cpu") -> ForecastContext:
        """As tensors."""

        def tensor(array: NDArray[Any]) -> torch.Tensor:
            return torch.as_tensor(array, device=device)

        return ForecastContext(
            tensor(self.seconds), tensor(self.values), tensor(self.cu_points),
            tensor(self.variable), tensor(self.cu_series), tensor(self.now_seconds),
        )  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """Forecasts of questions, in the units of the series.

    Attributes:
        mean: Means, (question,).
        quantiles: Of `quantile_head.LEVELS`, (question, level).
        lead: Time from now to each question, in units of its series' clock: hours for known
            variables, typical steps for anonymous series.
    """

    mean: Floats
    quantiles: Floats
    lead: Floats


@torch.no_grad()
def answer(
    model: ForecasterModel,
    packed: PackedSeries,
    questions: Questions,
    *,
    batch_size: int,
) -> Answers:
    """Forecast all questions, batch by batch.

    Args:
        model: Network in evaluation mode.
        packed: What is known.
        questions: What is asked, in the order of the series.
        batch_size: Entities read at once.

    Raises:
        InputError: A forecast is not finite.
    """
    device = model.variable_scale.device
    means, quantiles, leads = [np.empty(0)], [np.empty((0, len(LEVELS)))], [np.empty(0)]
    entity = packed.entity_of_series()[questions.series]
    for entities in batches(packed, np.unique(entity), batch_size):
        part = packed.take(entities)
        rows = slice(*np.searchsorted(entity, (entities[0], entities[-1] + 1)))
        place = np.searchsorted(entities, entity[rows])  # of an entity in this batch
        series = questions.series[rows] - packed.cu_series[entity[rows]] + part.cu_series[place]
        asked = replace(questions.take(rows), series=series)
        encoded = model.encode(part.context(device))
        forecast = model.answer(encoded, asked.queries(len(part.variable), device))
        clock = encoded.context.clock_seconds.cpu().numpy()[series]
        means.append(forecast.mean_in_units().cpu().numpy())
        quantiles.append(forecast.quantiles_in_units().cpu().numpy())
        leads.append((asked.seconds - part.now_seconds[place]) / clock)
    found = Answers(np.concatenate(means), np.concatenate(quantiles), np.concatenate(leads))
    wrong = ~(np.isfinite(found.mean) & np.isfinite(found.quantiles).all(1))
    if wrong.any():
        n_series = len(np.unique(questions.series[wrong]))
        raise InputError(
            f"forecasts of {n_series} series are not finite", code="forecast_not_finite",
            place="values", remedy="Look for values that are off by many powers of ten.",
        )  # fmt: skip
    return found


@torch.no_grad()
def embed(
    model: ForecasterModel, packed: PackedSeries, series: Integers, *, batch_size: int
) -> NDArray[np.float32]:
    """State of some series after they have seen the others of their entity, (row, width).

    Args:
        model: Network in evaluation mode.
        packed: What is known.
        series: Which of them.
        batch_size: Entities read at once.
    """
    tokens = np.zeros((len(packed.variable), model.config.d_model), np.float32)
    for entities in batches(packed, np.unique(packed.entity_of_series()[series]), batch_size):
        part = packed.take(entities)
        rows = _ranges(packed.cu_series[entities], np.diff(packed.cu_series)[entities])
        tokens[rows] = model.encode(part.context(model.variable_scale.device)).tokens.cpu().numpy()
    return tokens[series]


def batches(packed: PackedSeries, entities: Integers, batch_size: int) -> list[Integers]:
    """Entities in order, not more at once than asked for, nor than fit in memory."""
    sizes = np.diff(packed.cu_points[packed.cu_series])[entities]
    found: list[Integers] = []
    first = n_points = 0
    for i, size in enumerate(sizes.tolist()):
        if i > first and (i - first == batch_size or n_points + size > _MOST_POINTS):
            found.append(entities[first:i])
            first, n_points = i, 0
        n_points += size
    return [*found, entities[first:]] if len(entities) else []


def _ranges(starts: Integers, lengths: Integers) -> Integers:
    """Numbers from each start on, as many as its length, end to end."""
    before = lengths.cumsum() - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())
