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
which each cross-attention over points looks at kept keys, and hands it the last points as context.

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

import copy
import json
import math
import operator
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from numpy.typing import ArrayLike
from torch import Tensor, nn

from tsfm.errors import FormatError, InputError
from tsfm.models.attention import CrossAttention, KeyValueCache, SelfAttention
from tsfm.models.ct_rope import rotate
from tsfm.models.experts import BAND_LOOKBACK, N_RATE_FEATURES
from tsfm.models.forecast_blocks import QueryBlock, VariableBlock
from tsfm.models.forecast_data import Forecast, ForecastContext, ForecastQueries
from tsfm.models.forecaster import EncodedContext, ForecasterModel
from tsfm.models.mamba import BlockState, MambaState, RMSNorm
from tsfm.models.series_summary import SeriesSummary, summarise

_STATE_KEYS = {"names", "seconds", "values", "cu_points", "location", "spread", "clock", "now"}
_LEAST_ROOM = 64


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
        self._reader = model.reader
        self._by_variable = model.variable
        self._model, self._kept = _with_kept_points(model)
        device = model.variable.weight.device
        self._variable = torch.arange(n, device=device) if config.n_variables == n else (
            torch.zeros(n, dtype=torch.int64, device=device)
        )  # fmt: skip
        self._slots = [torch.tensor([row], device=device) for row in range(n)]
        self._all = torch.tensor([0, n], device=device)
        hidden = model.variable.weight.new_zeros(0, config.d_model)
        times = torch.zeros(0, dtype=torch.float64, device=device)
        self._seconds, self._values, self._points = _Rows(times), _Rows(times), _Rows(hidden)
        self._series = _Rows(times.long())
        self._recent: list[deque[tuple[float, float]]] = [
            deque(maxlen=BAND_LOOKBACK + 1) for _ in range(n)
        ]
        empty = SeriesSummary.empty(n, device)
        self._summary = _map_summary(empty, Tensor.clone)  # rows are written to: none may be shared
        self._last_hidden = hidden.new_zeros(n, config.d_model)
        self._last_seconds = torch.zeros(n, dtype=torch.float64, device=device)
        self._rates = hidden.new_zeros(n, N_RATE_FEATURES)
        self._rates_behind: set[int] = set()
        self._mamba_state = _empty_state(model, n)
        self._read_keys: list[list[KeyValueCache]] = []
        for layer in self._reader.attention or ():
            attend = layer.get_submodule("attend")
            assert isinstance(attend, SelfAttention)
            self._read_keys.append([attend.new_cache(1) for _ in range(n)])
        self._latest = -math.inf
        self._encoded: tuple[tuple[float, int], EncodedContext] | None = None
        self._set_scale(*self._scale_of(self._empty_context()))
        if start is not None:
            self.start(start)

    @property
    def n_points(self) -> int:
        """Points so far, of all series."""
        return self._series.n

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
        recent = self._recent[row]
        self._check_point(row, seconds, value)
        recent.append((seconds, (value - self._offsets[row]) / self._spreads[row]))
        context = self._recent_context([row])
        gap, slot = context.gaps()[-1:], self._slots[row]
        x = self._reader.embed(self._reader.features(context)[-1:])
        x = x + self._by_variable(context.variable)
        if self._reader.mamba is not None:
            assert self._mamba_state is not None
            x = self._reader.mamba.step(x, gap, self._mamba_state, slot, slot)
        x = self._attend(x, context.seconds[-1:], row)
        before = _map_summary(self._summary, lambda held: held[row : row + 1])
        after = before.update(context.values[-1:], gap)
        for field in fields(after):
            getattr(before, field.name).copy_(getattr(after, field.name))
        self._last_hidden[row : row + 1] = x
        self._last_seconds[row : row + 1] = seconds
        self._seconds.append(context.seconds[-1:])
        self._values.append(context.seconds.new_tensor([value]))
        self._series.append(slot)
        self._points.append(x)
        self._rates_behind.add(row)
        self._latest = max(self._latest, seconds)

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
        order = self._series.held.argsort(stable=True)
        counts = torch.bincount(self._series.held, minlength=len(self.names))
        return replace(
            self._empty_context(), seconds=self._seconds.held[order],
            values=self._values.held[order], cu_points=F.pad(counts.cumsum(0), (1, 0)),
            now_seconds=self._last_seconds.new_tensor([self._now(now)]),
        )  # fmt: skip

    def to_state(self) -> dict[str, Tensor]:
        """Plain tensors from which `from_state` goes on: the points, the names and the scale.

        Not what the network made of the points, which another version of it would not understand.
        """
        known = math.isfinite(self._latest)
        context = self.context() if known else self._empty_context()
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
            stream._empty_context(), seconds=held["seconds"], values=held["values"],
            cu_points=held["cu_points"], now_seconds=held["now"],
        )  # fmt: skip
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
        recent = self._recent[row]
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
        now = self._latest if now is None else float(now)
        problem = "the stream has been told of no moment" if not math.isfinite(now) else None
        if now < self._latest:
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

    def _empty_context(self) -> ForecastContext:
        none = self._seconds.held[:0]
        borders = torch.zeros(len(self.names) + 1, dtype=torch.int64, device=none.device)
        now = none.new_tensor([self._latest])
        return ForecastContext(none, none, borders, self._variable, self._all, now)

    def _recent_context(self, rows: list[int]) -> ForecastContext:
        """The last points of some series, standardised."""
        points = [point for row in rows for point in self._recent[row]]
        seconds = self._last_seconds.new_tensor([at for at, _ in points])
        device, index = seconds.device, torch.tensor(rows, device=seconds.device)
        borders = [0, *accumulate(len(self._recent[row]) for row in rows)]
        return ForecastContext(
            seconds, torch.tensor([z for _, z in points], device=device),
            torch.tensor(borders, device=device), self._variable[index],
            torch.tensor([0, len(rows)], device=device), seconds[-1:], self.location[index],
            self.spread[index], self.clock[index],
        )  # fmt: skip

    def _read(self, context: ForecastContext) -> None:
        """Read points of empty series, all at once."""
        self._latest = max(self._latest, float(context.now_seconds))
        if not len(context.seconds):
            return
        raw = context.values.double()
        context = replace(context.scaled_by(self.location, self.spread), clock=self.clock)
        series, borders = context.series_of_point(), context.cu_points.tolist()
        there = context.cu_points.diff() > 0
        x = self._reader.embed(self._reader.features(context)) + self._by_variable(
            context.variable[series]
        )
        if self._reader.mamba is not None:
            assert self._mamba_state is not None
            x, left = self._reader.mamba(
                x, context.gaps(), context.cu_points.unique_consecutive(), return_state=True
            )
            for table, block in zip(self._mamba_state.blocks, left.blocks, strict=True):
                for held, after in zip(table, block, strict=True):
                    held[there] = after
        parts = []
        for row, (first, end) in enumerate(pairwise(borders)):
            if end > first:
                parts.append(self._attend(x[first:end], context.seconds[first:end], row))
                z = ((raw[first:end] - self.location[row]) / self.spread[row]).tolist()
                at = context.seconds[first:end].tolist()
                self._recent[row].extend(zip(at, z, strict=True))
                self._rates_behind.add(row)
        x = torch.cat(parts)
        self._summary = summarise(context.values, context.clock_times(), context.cu_points)
        last = context.cu_points[1:][there] - 1
        self._last_hidden[there], self._last_seconds[there] = x[last], context.seconds[last]
        self._seconds.append(context.seconds)
        self._values.append(raw)
        self._series.append(series)
        self._points.append(x)

    def _attend(self, x: Tensor, seconds: Tensor, row: int) -> Tensor:
        """The reader's attention over further points of one series."""
        if self._reader.attention is None:
            return x
        borders = torch.tensor([0, len(x)], device=x.device)
        times = self._rotary_times(seconds, row)
        for layer, caches in zip(self._reader.attention, self._read_keys, strict=True):
            assert isinstance(layer, nn.ModuleDict)
            attend = layer["attend"]
            assert isinstance(attend, SelfAttention)
            x = x + attend.extend(layer["norm"](x), times, caches[row], borders)
            x = x + layer["feed_forward"](layer["forward_norm"](x))
        return x

    def _rotary_times(self, seconds: Tensor, series: Tensor | int) -> Tensor:
        return seconds / self.clock[series] if self._model.config.clock == "context" else seconds

    def _encode(self, now: float) -> EncodedContext:
        """What the model would make of all points, its layers looking at kept keys."""
        key = (now, self.n_points)
        if self._encoded is not None and self._encoded[0] == key:
            return self._encoded[1]
        there = self._summary.count > 0
        for kept in self._kept:
            new = slice(kept.n_points, self.n_points)
            if new.start < new.stop:
                series = self._series.held[new]
                seconds = self._rotary_times(self._seconds.held[new], series)
                kept.take(self._points.held[new], seconds, series)
            kept.groups = there.nonzero().squeeze(-1)
        if self._rates_behind and self._model.variable_layers:
            rows = sorted(self._rates_behind)
            self._rates[rows] = self._recent_context(rows).rates()
        self._rates_behind.clear()
        context = _LastPoints(
            self._last_seconds[there], self._summary.last[there],
            F.pad(there.cumsum(0), (1, 0)), self._variable, self._all,
            self._last_seconds.new_tensor([now]), self.location, self.spread, self.clock,
            self._rates.clone(),
        )  # fmt: skip
        summary = _map_summary(self._summary, Tensor.clone)
        encoded = self._model.encoded(context, self._last_hidden[there], summary)
        self._encoded = (key, encoded)
        return encoded


@dataclass(frozen=True)
class _LastPoints(ForecastContext):
    """A context of each series' last point alone, with the rates that all points would tell."""

    known_rates: Float[Tensor, "series feature"] | None = None

    def rates(self) -> Float[Tensor, "series feature"]:
        """How fast each series moves at its last point."""
        assert self.known_rates is not None
        return self.known_rates


class _Rows:
    """Rows in order of arrival; room is doubled where it does not suffice."""

    def __init__(self, none: Tensor) -> None:
        """Begin with no rows of this kind."""
        self.n, self._room = 0, none

    @property
    def held(self) -> Tensor:
        """All rows, a view."""
        return self._room[: self.n]

    def append(self, rows: Tensor) -> None:
        """Add rows behind the others."""
        end = self.n + len(rows)
        if end > len(self._room):
            n_room = max(end, 2 * len(self._room), _LEAST_ROOM)
            room = self._room.new_empty(n_room, *self._room.shape[1:])
            room[: self.n] = self.held
            self._room = room
        self._room[self.n : end] = rows
        self.n = end


class _KeptPoints(nn.Module):
    """A cross-attention whose points are kept as turned keys and values.

    Attributes:
        groups: Series of each group of queries, where a group sees its own series only.
    """

    groups: Tensor | None

    def __init__(self, attention: CrossAttention, norm: RMSNorm, *, own_series: bool) -> None:
        """Keep nothing yet; the parameters are those of `attention`."""
        super().__init__()
        self.attention, self.norm, self.own_series = attention, norm, own_series
        none = attention.key.weight.new_zeros(0, attention.n_kv_heads, attention.head_dim)
        self._keys, self._values = _Rows(none), _Rows(none)
        self._series = _Rows(torch.zeros(0, dtype=torch.int64, device=none.device))
        self.groups = None

    @property
    def n_points(self) -> int:
        """Points kept."""
        return self._keys.n

    def take(
        self, points: Float[Tensor, "point model"], seconds: Float64[Tensor, " point"],
        series: Tensor,
    ) -> None:  # fmt: skip
        """Keep further points: their hidden states, times for the bank and series."""
        x, attention = self.norm(points), self.attention
        turn = attention.rotary(seconds, None, x.dtype)
        shape = (-1, attention.n_kv_heads, attention.head_dim)
        self._keys.append(rotate(attention.key(x).view(shape), *turn))
        self._values.append(attention.value(x).view(shape))
        self._series.append(series)

    def forward(
        self, query: Float[Tensor, "query model"], query_seconds: Float64[Tensor, " query"],
        context: Tensor, context_seconds: Tensor, cu_queries: Tensor, cu_context: Tensor,
    ) -> Float[Tensor, "query model"]:  # fmt: skip
        """What `CrossAttention.forward` gives for all points kept, whatever `context` holds."""
        if not len(query):
            return query
        attention, mask = self.attention, None
        if self.own_series and len(cu_queries) > 2:
            # Where every series has points, groups are all series, else those with points: the same
            assert self.groups is not None
            group = torch.repeat_interleave(self.groups, cu_queries.diff())
            mask = group.unsqueeze(1) == self._series.held
        turn = attention.rotary(query_seconds, None, query.dtype)
        q = rotate(attention.query(query).unflatten(-1, (-1, attention.head_dim)), *turn)
        q, keys, values = (x.transpose(0, 1) for x in (q, self._keys.held, self._values.held))
        shared = len(q) != len(keys)
        y = F.scaled_dot_product_attention(
            q[None], keys[None], values[None], attn_mask=mask, enable_gqa=shared
        )[0]
        return attention.out(y.transpose(0, 1).flatten(1))


def _with_kept_points(model: ForecasterModel) -> tuple[ForecasterModel, list[_KeptPoints]]:
    """The model with the same parameters, in which layers over points look at kept ones."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    twin, kept = copy.deepcopy(model, shared), []
    for block in [*twin.variable_layers, *twin.query_layers]:
        if isinstance(block, VariableBlock):
            kept.append(_KeptPoints(block.points, block.point_norm, own_series=False))
        elif isinstance(block, QueryBlock) and block.points is not None:
            assert block.point_norms is not None
            norm = block.point_norms[1]
            assert isinstance(norm, RMSNorm)
            kept.append(_KeptPoints(block.points, norm, own_series=True))
        else:
            continue
        block.add_module("points", kept[-1])
    return twin, kept


def _empty_state(model: ForecasterModel, n_rows: int) -> MambaState | None:
    """State of a reader's scan that has read nothing."""
    if model.reader.mamba is None:
        return None
    token = model.variable.weight.new_zeros(1, model.config.d_model)
    _, left = model.reader.mamba(token, token[:, 0], return_state=True)
    return MambaState(
        tuple(
            BlockState(*(held.new_zeros(n_rows, *held.shape[1:]) for held in block))
            for block in left.blocks
        )
    )


def _map_summary(summary: SeriesSummary, change: Callable[[Tensor], Tensor]) -> SeriesSummary:
    return SeriesSummary(**{f.name: change(getattr(summary, f.name)) for f in fields(summary)})


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
