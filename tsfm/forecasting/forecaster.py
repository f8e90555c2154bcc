"""A forecaster in a user's hands: a data frame in, a data frame of quantiles out.

Time stamps may be any: with gaps, doubled, unsorted, with a time zone or without, at different
moments for each variable. Nothing is put on a grid. The calls and the columns of the answer are
those of Chronos-2 (`predict_df`, Ansari et al., 2025); `fit` and `calibrate` return a new
forecaster and leave this one as it is.

A forecaster of known variables reads all variables of an item together, in the scales it learnt;
a forecaster of anonymous series takes each series by itself, in the scale of its own past.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from tsfm.errors import InputError
from tsfm.forecasting.conformal import SplitConformal
from tsfm.forecasting.fine_tuning import (
    UNTRAINED,
    Training,
    calibrate,
    fine_tune,
    named,
    plain_calibration,
    read_calibration,
    training_series,
    untrained_model,
)
from tsfm.forecasting.forecast_plot import plot_forecast, rows_of_series
from tsfm.forecasting.forecaster_html import forecaster_html
from tsfm.forecasting.frame_answers import answer_frame, answer_questions, embed_frame
from tsfm.forecasting.frame_questions import ask, ask_frame
from tsfm.forecasting.frames import Layout, PredictReport, read_frame, read_history
from tsfm.forecasting.live import LiveForecaster
from tsfm.forecasting.quantile_levels import check_quantile_levels
from tsfm.forecasting.series_arrays import frames_of_arrays
from tsfm.models.forecaster import ForecasterConfig, ForecasterModel
from tsfm.models.forecaster_checkpoint import Covariate, Variable, load_forecaster, save_forecaster

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Forecaster:
    """A model with the names of its variables and the calibration of its quantiles.

    Args:
        model: Network.
        variables: Known variables in its order; none for anonymous series.
        covariates: Known covariates in its order.
        calibration: What makes its quantiles hold.
        facts: Plain facts about its training.
        hash: Hash of its model directory; empty if it was never saved.
    """

    def __init__(
        self, model: ForecasterModel, *, variables: Sequence[Variable] = (),
        covariates: Sequence[Covariate] = (), calibration: SplitConformal | None = None,
        facts: Mapping[str, Any] | None = None, hash: str = "",
    ) -> None:  # fmt: skip
        """Keep the parts, the network in evaluation mode."""
        self.model = model.eval()
        self.variables, self.covariates = tuple(variables), tuple(covariates)
        self.calibration, self.facts, self.hash = calibration, dict(facts or {}), hash

    @classmethod
    def new(
        cls, *, variables: Sequence[str | Variable] = (), covariates: Sequence[str] = (),
        config: ForecasterConfig | None = None, seed: int = 0,
    ) -> Forecaster:  # fmt: skip
        """An untrained forecaster, for `fit`.

        Args:
            variables: Known variables; none for anonymous series.
            covariates: Columns that will be known of asked times.
            config: Sizes; None takes the usual ones for known variables or for anonymous series.
            seed: Of the weights.

        Raises:
            InputError: The configuration is for another number of variables or covariates, a name
                is there twice, or the seed is none.
        """
        known, told = named(variables, covariates)
        model = untrained_model(len(known), len(told), config, seed=seed)
        return cls(model, variables=known, covariates=told, facts={UNTRAINED: True})

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path, device: str = "cpu") -> Forecaster:
        """Load a model directory, or a model that comes with the package; needs no network.

        Args:
            path_or_name: Folder, or a name such as `forecaster-zero`.
            device: Where it computes.

        Raises:
            InputError: There is no model, or no such device.
            IntegrityError: A file differs from what was written.
            ModelMismatch: Its parts do not belong together.
        """
        found = load_forecaster(path_or_name)
        return cls(
            _on_device(found.model, device), variables=found.variables, covariates=found.covariates,
            calibration=read_calibration(found.calibration), facts=found.facts, hash=found.hash,
        )  # fmt: skip

    def save_pretrained(self, path: str | Path) -> str:
        """Write a model directory atomically and return its hash.

        Raises:
            InputError: The folder is not empty, or is a file.
        """
        return save_forecaster(
            path, self.model, variables=self.variables, covariates=self.covariates,
            calibration=plain_calibration(self.calibration), facts=self.facts,
        )  # fmt: skip

    def predict_df(
        self,
        df: Any,
        future_df: Any = None,
        *,
        id_column: str = "item_id",
        timestamp_column: str = "timestamp",
        target: str | Sequence[str] = "target",
        variable_column: str | None = None,
        prediction_length: int | None = None,
        freq: Any = None,
        quantile_levels: Sequence[float] = DECILES,
        batch_size: int = 256,
        context_length: int | None = None,
        calibrated: bool = True,
        now: Any = None,
        point: str = "mean",
        on_missing: str = "raise",
        time_unit: str | None = None,
        return_report: bool = False,
    ) -> Any:
        """Forecast every series of a frame.

        Rows of the answer: items in the order of their first appearance in `df`; within an item
        variables (of a wide frame as named in `target`, of a long one as the model orders them or
        as they appear); within a variable times as they stand in `future_df`, or ascending.

        Args:
            df: What is known, in a frame of pandas or polars or a table of pyarrow: wide (columns
                of ids, times, and values of one or several targets) or, with `variable_column`,
                long. Missing values may be null or NaN.
            future_df: Asked ids and times, any times from now on, and known covariates. Of a long
                frame it may name the variable of each row; otherwise all of the item are asked.
            id_column: Column of ids.
            timestamp_column: Column of times: dates, date-times, or numbers with `time_unit`.
            target: Column of values, or several of a wide frame.
            variable_column: Column that names the variable of each row of a long frame.
            prediction_length: Steps to forecast of each series after its item's last row, or after
                `now`, where no `future_df` says the times.
            freq: Length of a step ('15min', '1d', 'MS', a timedelta, or a number of a numeric
                axis); None is the typical step of each series (see `time_axis`).
            quantile_levels: Levels between 0 and 1 (see `quantile_levels`).
            batch_size: Items, or anonymous series, read at once. Answers do not depend on it.
            context_length: The most points of a series that are read, its last; None is all.
            calibrated: Apply the calibration if there is one.
            now: When all items are forecast from; later rows are left out. None is the last row of
                each item, whether its value is missing or not.
            point: `mean` or `median`: what `predictions` are.
            on_missing: `raise`, or `nan`: what becomes of anonymous series without any value. Known
                variables are forecast from the item's others, or from what is usual.
            time_unit: Unit of a numeric time column: ns, us, ms, s, min, h, d or w.
            return_report: Also return what became of the rows.

        Returns:
            A frame of the kind of `df`: ids, times, `target_name`, `predictions`, and a column a
            level, such as `0.1`; with `return_report` a pair of it and a `PredictReport`.

        Raises:
            InputError: Something can't be read as it stands; the message says what and where.
        """
        levels = check_quantile_levels(quantile_levels)
        layout = self._layout(id_column, timestamp_column, target, variable_column, time_unit)
        frame, give_back = read_frame(df, layout.columns, "df")
        history = read_history(frame, layout, now=now, context_length=context_length)
        asked, borrowed = ask(history, layout, future_df, prediction_length, freq)
        found, counts = answer_frame(
            self.model, self.calibration if calibrated else None, history, layout, asked, levels,
            batch_size=batch_size, on_missing=on_missing, point=point,
        )  # fmt: skip
        own_times = future_df is None and not history.axis.dtype.is_numeric()
        like = [id_column, *([timestamp_column] if own_times else [])]
        answered = give_back(found, like)
        if not return_report:
            return answered
        counts |= history.counts | {"n_steps_borrowed": borrowed}
        return answered, PredictReport(**counts)

    def predict_quantiles(
        self, series: Sequence[tuple[ArrayLike, ArrayLike]], query_times: Any,
        quantile_levels: Sequence[float] = DECILES, *, variables: Sequence[str] | None = None,
        items: Sequence[Any] | None = None, time_unit: str | None = None, now: Any = None,
        batch_size: int = 256, calibrated: bool = True,
    ) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:  # fmt: skip
        """Forecast series given as arrays.

        Args:
            series: Times and values of each series: datetime64, or numbers with `time_unit`.
            query_times: Asked times, one array for all series or a list of one for each.
            quantile_levels: Levels between 0 and 1.
            variables: Known variable of each series.
            items: Item of each series, where series of one item are read together; None is an item
                a series.
            time_unit: Unit of numeric times: ns, us, ms, s, min, h, d or w.
            now: When all are forecast from; None is the last time of each item.
            batch_size: Items, or anonymous series, read at once.
            calibrated: Apply the calibration if there is one.

        Returns:
            Quantiles (query, level) and means (query,) of each series.

        Raises:
            InputError: As `predict_df`.
        """
        levels = check_quantile_levels(quantile_levels)
        layout = self._layout("item", "time", "value", "variable", time_unit)
        frame, future, lengths = frames_of_arrays(series, query_times, variables, items, now)
        history = read_history(frame, layout, place="series", now=now)
        asked = ask_frame(future, history, layout, "query_times")
        mean, quantiles, _ = answer_questions(
            self.model, self.calibration if calibrated else None, history, layout, asked, levels,
            batch_size=batch_size,
        )  # fmt: skip
        order, borders = np.argsort(asked["row"].to_numpy()), np.cumsum(lengths)[:-1]
        return np.split(quantiles[order], borders), np.split(mean[order], borders)

    def predict(
        self, series: Sequence[tuple[ArrayLike, ArrayLike]], query_times: Any, **options: Any
    ) -> list[NDArray[np.float64]]:
        """Mean of each series at its asked times; see `predict_quantiles`."""
        return self.predict_quantiles(series, query_times, (0.5,), **options)[1]

    def embed(
        self, df: Any, *, batch_size: int = 256, context_length: int | None = None,
        now: Any = None, **columns: Any,
    ) -> Any:  # fmt: skip
        """One vector a series: its state after it has seen the others of its item.

        Args:
            df: As for `predict_df`.
            batch_size: Items, or anonymous series, read at once.
            context_length: The most points of a series that are read; None is all.
            now: When all items are seen from; None is each item's last row.
            columns: `id_column`, `timestamp_column`, `target`, `variable_column` and `time_unit`,
                as for `predict_df`.

        Returns:
            A frame of the kind of `df`, a row a series in the order of `predict_df`: ids,
            `target_name`, and columns `e0`, `e1`, ...

        Raises:
            InputError: As `predict_df`.
        """
        layout = self._layout(**columns)
        frame, give_back = read_frame(df, layout.columns, "df")
        history = read_history(frame, layout, now=now, context_length=context_length)
        found = embed_frame(self.model, history, layout, batch_size=batch_size)
        return give_back(found, [layout.id])

    def fit(
        self, df: Any, *, prediction_length: int = 24, validation_fraction: float = 0.1,
        steps: int = 500, learning_rate: float = 1e-3, batch_size: int = 32, seed: int = 0,
        folder: str | Path | None = None, progress: bool | None = None, **columns: Any,
    ) -> Forecaster:  # fmt: skip
        """A new forecaster, trained on from this one, and calibrated on the items held out.

        Whole items are held out. An untrained forecaster first learns the scales of its known
        variables from the items for training, and those of its covariates from all.

        Args:
            df: Items, wide or long, with the covariates as columns.
            prediction_length: Points of each series that are asked after a random cut.
            validation_fraction: Share of the items that is held out.
            steps: Steps of training.
            learning_rate: Its peak.
            batch_size: Items, or anonymous series, of a step.
            seed: Of all chance.
            folder: Where to keep a checkpoint, to go on after a stop; None keeps none.
            progress: Show a bar; None: on a terminal only.
            columns: As for `embed`.

        Raises:
            InputError: As `predict_df`, too few items, or an argument that can't be meant.
        """
        how = Training(prediction_length, validation_fraction, batch_size, seed)
        config = how.config(steps, learning_rate)
        model, learn = copy.deepcopy(self.model), bool(self.facts.get(UNTRAINED))
        packed, names, covariates = training_series(df, self._layout(**columns), learn=learn)
        facts, calibration = fine_tune(
            model, packed, names, how, config,
            folder=Path(folder) if folder else None, learn_scale=learn, progress=progress,
        )  # fmt: skip
        return Forecaster(
            model, variables=self.variables, covariates=covariates, calibration=calibration,
            facts=facts | {"trained_from": self.hash},
        )  # fmt: skip

    def calibrate(
        self, df: Any, *, prediction_length: int = 24, batch_size: int = 256, seed: int = 0,
        **columns: Any,
    ) -> Forecaster:  # fmt: skip
        """A new forecaster whose quantiles hold on items like these; see `conformal`.

        Args:
            df: Items that took no part in training, as for `fit`.
            prediction_length: Points of each series that are asked after a random cut.
            batch_size: Items, or anonymous series, read at once.
            seed: Of the cuts.
            columns: As for `embed`.

        Raises:
            InputError: As `predict_df`, or no item has two times.
        """
        packed, names, _ = training_series(df, self._layout(**columns), learn=False)
        found = calibrate(
            self.model, packed, names, n_ahead=prediction_length, batch_size=batch_size, seed=seed
        )
        other = copy.copy(self)
        other.calibration, other.hash, other.facts = found, "", dict(self.facts)
        return other

    def live(
        self, *, adaptive: float | None = None, time_unit: str | None = None
    ) -> LiveForecaster:
        """This forecaster for points that arrive one at a time; see `live`.

        Args:
            adaptive: Step of the adaptive calibration, such as 0.05; None keeps the split one.
            time_unit: Unit of times that are numbers: ns, us, ms, s, min, h, d or w.

        Raises:
            InputError: `adaptive` without a calibration, or an unknown unit.
        """
        return LiveForecaster(
            self.model, [v.name for v in self.variables], self.covariates, self.calibration,
            adaptive=adaptive, time_unit=time_unit,
        )  # fmt: skip

    def plot(
        self, df: Any, forecast: Any, *, item_id: Any, target_name: str | None = None,
        ax: Any = None, **columns: Any,
    ) -> Axes:  # fmt: skip
        """Draw what was measured of one series, and the median and bands of its forecast.

        Args:
            df: What `predict_df` was given.
            forecast: What it returned; with levels .025, .1, .5, .9 and .975 for both bands.
            item_id: Which item.
            target_name: Which of its variables; None is the first.
            ax: Axes to draw on; None makes a figure, `ax.figure`.
            columns: As for `embed`.

        Raises:
            InputError: There is nothing to draw.
        """
        layout = self._layout(**columns)
        past, future, name = rows_of_series(df, forecast, layout, item_id, target_name)
        unit = next((v.unit for v in self.variables if v.name == name), "")
        return plot_forecast(past, future, title=f"{name}, {item_id}", unit=unit, ax=ax)

    def _layout(
        self, id_column: str = "item_id", timestamp_column: str = "timestamp",
        target: str | Sequence[str] = "target", variable_column: str | None = None,
        time_unit: str | None = None,
    ) -> Layout:  # fmt: skip
        return Layout.of(
            target, variable_column, id=id_column, timestamp=timestamp_column,
            time_unit=time_unit, known=tuple(v.name for v in self.variables),
            covariates=self.covariates,
        )  # fmt: skip

    def _repr_html_(self) -> str:
        told = {"calibrated": "yes" if self.calibration else "no", "hash": self.hash[:12]}
        return forecaster_html(self.model, self.variables, self.covariates, told)


def _on_device(model: ForecasterModel, device: str) -> ForecasterModel:
    try:
        return model.to(torch.device(device))
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(
            "there is no such device, or torch can't use it", code="bad_device", place="device",
            remedy="Give such as 'cpu' or 'cuda'.",
        ) from error  # fmt: skip
