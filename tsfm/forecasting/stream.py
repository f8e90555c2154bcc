"""A forecaster at the bedside: one point in, and a forecast of any variable and time out.

    stream = ForecastStream(model, names)
    stream.update("HR", seconds, 83.0)
    stream.forecast([seconds + 3600.0], ["HR", "MAP"]).mean_in_units()

`ForecasterModel.forward` reads the whole past for every forecast. A stream reads each point once
and gives the same answers, to rounding: the scan goes on from each series' state, simple statistics
are running sums, and what layers look at, hidden states of points, only grows. A key is turned by
the time of its own point, so that keys and values are made once and kept (`attention`). A point
costs the same whether ten or ten thousand came before it, with an attention reader a pass over its
series; a forecast costs a pass over the kept keys.

The model's own code answers: the stream holds a copy of its structure that shares the weights, in
which some layers are arranged for few rows (`serving_model`), and hands it the last points as
context (`stream_points`). Points are read by `stream_reader`.

**Scale.** A model of known variables has its scale and clock. One that takes them from the context
(`scale="context"`, `clock="context"`) would have to read everything anew whenever they move, so the
stream freezes them: `start(context)` takes them from a warm-up, and from then on answers are the
model's for all points so far on that scale. Start again when a series has left it far behind. A
series without points in the warm-up has no scale: it takes none later, and what is forecast of it
is NaN in units.

Serve with one thread (OMP_NUM_THREADS=1, NUMBA_NUM_THREADS=1): the products of one point are so
small that threads only wait for each other.

One entity a stream: entities never meet, and many streams share a model. Not here: training, points
that come late, and calibration (`conformal.AdaptiveConformal` follows a stream's truths).
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from tsfm.errors import FormatError, InputError
from tsfm.forecasting.serving_model import serving_model
from tsfm.forecasting.stream_points import StreamPoints
from tsfm.forecasting.stream_reader import StreamReader
from tsfm.models.forecast_data import (
    LARGEST_STANDARDISED,
    Forecast,
    ForecastContext,
    ForecastQueries,
)
from tsfm.models.forecaster import EncodedContext, ForecasterModel
from tsfm.models.series_summary import summarise

_STATE_KEYS = {"names", "seconds", "values", "cu_points", "location", "spread", "clock", "now"}


class ForecastStream:
    """The present state of one entity's series.

    Args:
        model: In evaluation mode; its weights are shared and must not change.
        variables: Names of the series in the order of the model's variables, or how many there
            are. A model of one anonymous variable takes any number of series.
        start: Warm-up, see `start`.

    Attributes:
        names: Names of the series; their numbers if they have none.
        location: What is taken off the values of each series, float64.
        spread: What they are divided by, float64.
        clock: Seconds of the clock unit of each series, float64.

    Raises:
        InputError: The model is training, or the variables are not the model's.
    """

    @torch.inference_mode()
    def __init__(
        self, model: ForecasterModel, variables: Sequence[str] | int,
        start: ForecastContext | None = None,
    ) -> None:  # fmt: skip
        """Begin with empty series."""
        names = [str(i) for i in range(variables)] if isinstance(variables, int) else variables
        self.names = tuple(names)
        self._row_of = {name: row for row, name in enumerate(self.names)}
        n, config = len(self.names), model.config
        _check_model(model, n, len(self._row_of))
        self._model, self._kept = serving_model(model)
        weight = model.variable.weight
        variable = torch.arange(n, device=weight.device)
        self._variable = variable if config.n_variables == n else torch.zeros_like(variable)
        self._variable_of = self._variable.split(1)
        self._reader = StreamReader(self._model, n)
        asks_rates = bool(config.n_variable_layers or config.query_experts)
        hidden = weight.new_zeros(0, config.d_model)
        self._points = StreamPoints(
            self._variable, hidden, rates=asks_rates, keep_hidden=bool(self._kept)
        )
        self._encoded: tuple[tuple[float, int], EncodedContext] | None = None
        self._set_scale(*self._scale_of(self._points.empty_context()))
        if start is not None:
            self.start(start)

    @property
    def n_points(self) -> int:
        """Points so far, of all series."""
        return self._points.n

    @torch.inference_mode()
    def start(self, context: ForecastContext) -> None:
        """Read a warm-up at once; scales and clocks taken from a context are frozen as of it.

        Args:
            context: Of one entity, its series those of the stream, in their own units.

        Raises:
            InputError: The stream has points already, or the context is not of its series.
        """
        context.check()
        fits = torch.equal(context.variable, self._variable) and len(context.now_seconds) == 1
        if self.n_points or not fits:
            raise InputError(
                "a stream can't start from this context", code="bad_start", place="context",
                remedy="Start an empty stream, once, from one entity with the stream's series.",
            )  # fmt: skip
        self._set_scale(*self._scale_of(context))
        self._read(context)

    @torch.inference_mode()
    def update(self, variable: str | int, seconds: float, value: float) -> None:
        """Take one more point.

        Args:
            variable: Name or number of its series.
            seconds: When, absolute; not before the series' last point.
            value: What, in the series' own units.

        Raises:
            InputError: The point can't be taken; the stream is then as it was.
        """
        row = self._row(variable)
        seconds, value = float(seconds), float(value)
        recent = self._points.recent[row]
        self._check_point(row, seconds, value)
        clock = self._clocks[row]
        z = (value - self._offsets[row]) / self._spreads[row]
        # In float32, as the model has it: small steps between large values are told from these.
        z = float(np.float32(min(max(z, -LARGEST_STANDARDISED), LARGEST_STANDARDISED)))
        before = recent[-1] if recent else None
        hidden = self._reader.read_one(row, self._variable_of[row], seconds, clock, z, before)
        gap = (seconds - before[0]) / clock if before else 0.0
        self._points.take(row, seconds, value, z, gap, hidden)

    @torch.inference_mode()
    def forecast(
        self, query_seconds: ArrayLike | Tensor, variables: Sequence[str | int] | None = None,
        now: float | None = None, known: Float[Tensor, "query covariate"] | None = None,
    ) -> Forecast:  # fmt: skip
        """Forecast some variables at some times; the stream stays as it is.

        Args:
            query_seconds: Absolute times, (k,), asked of every variable.
            variables: Names or numbers, each once; None is all.
            now: When it is asked; None is the latest moment that the stream has been told of.
            known: Covariates known for each query, standardised, NaN where not known.

        Returns:
            Queries one variable after another in the order given, k each.

        Raises:
            InputError: A time before now, a now before a point, an unknown variable, or no scale.
        """
        rows = list(range(len(self.names))) if variables is None else [
            self._row(variable) for variable in variables
        ]  # fmt: skip
        device = self._variable.device
        seconds = torch.as_tensor(query_seconds, dtype=torch.float64, device=device).reshape(-1)
        now = self._now(now)
        if math.isnan(self._clocks[0]):
            raise _unknown_scale("forecast")
        if not bool(((seconds >= now) & seconds.isfinite()).all()):
            raise InputError(
                "a query is not at or after now", code="query_before_now", place="query_seconds",
                remedy="Ask for finite times from now on; the past is in context().",
            )  # fmt: skip
        if len(set(rows)) < len(rows):
            raise InputError(
                "a variable is asked for twice", code="repeated_variable", place="variables",
                remedy="Name each variable once and give all times in query_seconds.",
            )  # fmt: skip
        asked, k = set(rows), len(seconds)
        borders = [0, *accumulate(k if row in asked else 0 for row in range(len(self.names)))]
        place = {row: i for i, row in enumerate(sorted(rows))}
        order = torch.tensor([place[row] * k + i for row in rows for i in range(k)], device=device)
        ordered = rows == sorted(rows)
        if known is not None and not ordered:
            known = known[order.argsort()]
        queries = ForecastQueries(
            seconds.repeat(len(rows)), torch.tensor(borders, device=device), known
        )
        answer = self._model.answer(self._encode(now), queries)
        if ordered:
            return answer
        return Forecast(*(getattr(answer, field.name)[order] for field in fields(answer)))

    @torch.inference_mode()
    def context(self, now: float | None = None) -> ForecastContext:
        """All points so far as the model takes them, values in their own units and float64.

        Args:
            now: See `forecast`.

        Raises:
            InputError: A now before a point.
        """
        return self._points.context(self._now(now))

    def to_state(self) -> dict[str, Tensor]:
        """Plain tensors from which `from_state` goes on: the points, the names and the scale.

        Not what the network made of the points, which another version of it would not understand.
        """
        known = math.isfinite(self._points.latest)
        context = self.context() if known else self._points.empty_context()
        names = list(json.dumps(self.names).encode())
        told = {
            "names": torch.tensor(names, dtype=torch.uint8), "now": context.now_seconds,
            "seconds": context.seconds, "values": context.values, "cu_points": context.cu_points,
            "location": self.location, "spread": self.spread, "clock": self.clock,
        }  # fmt: skip
        return {name: tensor.detach().cpu().clone() for name, tensor in told.items()}

    @classmethod
    @torch.inference_mode()
    def from_state(cls, model: ForecasterModel, state: Mapping[str, Tensor]) -> ForecastStream:
        """Go on where `to_state` was called: reads the points once; equal to rounding.

        Args:
            model: The same, or a later one of the same variables: a frozen scale stays, a scale
                that belongs to the model is the new one's.
            state: From `to_state`.

        Raises:
            FormatError: The state is none.
            InputError: It is of other variables.
        """
        if set(state) != _STATE_KEYS:
            raise FormatError(
                "a state has not exactly the tensors of a stream", code="bad_stream_state",
                place="state", remedy="Give what to_state returned, all of it.",
            )  # fmt: skip
        try:
            names = json.loads(bytes(state["names"].tolist()))
        except ValueError as error:
            raise FormatError(
                "the names of a state can't be read", code="bad_stream_state", place="names",
                remedy="Give what to_state returned, unchanged.",
            ) from error  # fmt: skip
        stream = cls(model, names)
        device = stream._variable.device
        held = {name: state[name].to(device) for name in _STATE_KEYS - {"names"}}
        context = replace(
            stream._points.empty_context(), seconds=held["seconds"], values=held["values"],
            cu_points=held["cu_points"], now_seconds=held["now"],
        )  # fmt: skip
        if len(context.seconds):  # before its first point a stream knows no moment
            context.check()
        scale, clock = (held["location"], held["spread"]), held["clock"]
        if model.config.scale == "variable":
            scale = stream.location, stream.spread
        stream._set_scale(*scale, stream.clock if model.config.clock == "hours" else clock)
        stream._read(context)
        return stream

    def _row(self, variable: str | int) -> int:
        row = self._row_of.get(variable, -1) if isinstance(variable, str) else (
            operator.index(variable)
        )  # fmt: skip
        if not 0 <= row < len(self.names):
            raise InputError(
                f"the stream has no variable '{variable}'", code="unknown_variable",
                place="variable", remedy=f"Use one of its {len(self.names)} names or numbers.",
            )  # fmt: skip
        return row

    def _check_point(self, row: int, seconds: float, value: float) -> None:
        recent = self._points.recent[row]
        if not (math.isfinite(seconds) and math.isfinite(value)):
            raise InputError(
                "a value or a time is not finite", code="not_finite", place=self.names[row],
                remedy="Leave out points without a value.",
            )  # fmt: skip
        if recent and seconds < recent[-1][0]:
            raise InputError(
                "a point is earlier than the last of its variable", code="late_point",
                place=self.names[row], remedy="Leave it out, or put it in its place in context() "
                "and start a new stream from that.",
            )  # fmt: skip
        if not (math.isfinite(self._offsets[row]) and math.isfinite(self._clocks[row])):
            raise _unknown_scale(self.names[row])

    def _now(self, now: float | None) -> float:
        now = self._points.latest if now is None else float(now)
        problem = "the stream has been told of no moment" if not math.isfinite(now) else None
        if now < self._points.latest:
            problem = "now is before a point that has been read"
        if problem is not None:
            raise InputError(
                problem, code="bad_now", place="now",
                remedy="Give the present time, in the seconds of the points.",
            )  # fmt: skip
        return now

    def _scale_of(self, context: ForecastContext) -> tuple[Tensor, Tensor, Tensor]:
        """Location, spread and clock; NaN where a context that is to tell them has no points."""
        config, scaled = self._model.config, self._model.standardised(context)
        assert scaled.location is not None
        assert scaled.spread is not None
        there = context.cu_points.diff() > 0
        known = there if config.scale == "context" else torch.ones_like(there)
        timed = there.any() if config.clock == "context" else torch.ones_like(there)
        location, spread = (x.where(known, math.nan) for x in (scaled.location, scaled.spread))
        return location, spread, scaled.clock_seconds.where(timed, math.nan)

    def _set_scale(self, location: Tensor, spread: Tensor, clock: Tensor) -> None:
        self.location, self.spread, self.clock = location, spread, clock
        # Numbers of Python for the arithmetic of one point.
        self._offsets, self._spreads, self._clocks = (x.tolist() for x in (location, spread, clock))

    def _read(self, context: ForecastContext) -> None:
        """Read points of empty series, all at once."""
        self._points.latest = max(self._points.latest, float(context.now_seconds))
        if not len(context.seconds):
            return
        raw = context.values.double()
        context = replace(context.scaled_by(self.location, self.spread), clock=self.clock)
        summary = summarise(context.values, context.clock_times(), context.cu_points)
        self._points.take_all(context, raw, self._reader.read(context), summary)

    def _encode(self, now: float) -> EncodedContext:
        """What the model would make of all points, its layers looking at kept keys."""
        key, points = (now, self.n_points), self._points
        if self._encoded is not None and self._encoded[0] == key:
            return self._encoded[1]
        for kept in self._kept:
            kept.groups = points.present
        if self._kept and self._kept[0].n_points < points.n:
            hidden, seconds, series = points.new_points(self._kept[0].n_points)
            if self._model.config.clock == "context":
                seconds = seconds / self.clock[series]
            for kept in self._kept:
                kept.take(hidden, seconds, series)
        scale = self.location, self.spread, self.clock
        encoded = self._model.encoded(
            *points.last_points(now, scale, history=self._model.config.calendar)
        )
        self._encoded = (key, encoded)
        return encoded


def _check_model(model: ForecasterModel, n_series: int, n_names: int) -> None:
    if model.training:
        raise InputError(
            "the model is in training, where dropout blurs every answer", code="model_in_training",
            place="model", remedy="Call model.eval() first.",
        )  # fmt: skip
    n_known = model.config.n_variables
    if n_series < 1 or n_names < n_series or n_known not in (1, n_series):
        raise InputError(
            f"{n_series} series of {n_names} names for a model of {n_known} variables",
            code="wrong_variables", place="variables",
            remedy="Name every variable of the model once, in its order.",
        )  # fmt: skip


def _unknown_scale(place: str) -> InputError:
    return InputError(
        "the series has no scale or clock: the model takes them from a context",
        code="unknown_scale", place=place,
        remedy="Give start() a warm-up in which the variable has points.",
    )  # fmt: skip
