"""Reading of one entity's points as they come: the scan's state and the reader's kept keys.

`PointReader.forward` reads whole series. This one goes on from where a series stands, with the
reader's own layers, so that a point costs the same however many came before it (with an attention
reader a pass over its series).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from tsfm.models.attention import KeyValueCache, SelfAttention
from tsfm.models.forecast_data import ForecastContext
from tsfm.models.forecaster import CLIPPED, ForecasterModel
from tsfm.models.mamba import BlockState, MambaState
from tsfm.models.seasonal_lags import calendar_features


class StreamReader:
    """What a model's reader remembers of some series.

    Args:
        model: In evaluation mode.
        n_series: Series.
    """

    def __init__(self, model: ForecasterModel, n_series: int) -> None:
        """Begin with nothing read."""
        self._reader, self._by_variable, self._config = model.reader, model.variable, model.config
        self._mamba_state = _empty_state(model, n_series)
        # Views: what a step writes into one is in the table.
        self._state_of = [] if self._mamba_state is None else [
            MambaState(tuple(BlockState(*(x[row : row + 1] for x in block))
                             for block in self._mamba_state.blocks))
            for row in range(n_series)
        ]  # fmt: skip
        self._keys: list[list[KeyValueCache]] = []
        for layer in self._reader.attention or ():
            attend = layer.get_submodule("attend")
            assert isinstance(attend, SelfAttention)
            self._keys.append([attend.new_cache(1) for _ in range(n_series)])

    def read_one(
        self, row: int, variable: Tensor, seconds: float, clock: float, z: float,
        before: tuple[float, float] | None,
    ) -> Float[Tensor, "1 model"]:  # fmt: skip
        """Read one more point of one series.

        Args:
            row: The series.
            variable: Its variable, (1,).
            seconds: Time of the point.
            clock: Seconds of the series' clock unit.
            z: Standardised value.
            before: Time and standardised value of the series' last point, if there is one.

        Returns:
            Its hidden state.
        """
        gap, step = (0.0, 0.0) if before is None else ((seconds - before[0]) / clock, z - before[1])
        device = variable.device
        # As `PointReader.features` has them.
        told = torch.tensor(
            [[math.asinh(z), min(max(z, -CLIPPED), CLIPPED), math.asinh(step),
              math.log1p(gap), math.log(clock / 3600.0) / 5.0]], device=device,
        )  # fmt: skip
        at = torch.tensor([seconds], dtype=torch.float64, device=device)
        if self._config.calendar:
            told = torch.cat([told, calendar_features(at).to(told)], -1)
        x = self._reader.embed(told) + self._by_variable(variable)
        if self._reader.mamba is not None:
            gaps = torch.tensor([gap], device=device)
            x = self._reader.mamba.step(x, gaps, self._state_of[row])
        return self._attend(x, at, row, clock)

    def read(self, context: ForecastContext) -> Float[Tensor, "point model"]:
        """Read the first points of all series at once.

        Args:
            context: Standardised, with at least one point; its series have been read no point of.

        Returns:
            Hidden states.
        """
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
        clocks = context.clock_seconds.tolist()
        return torch.cat([
            self._attend(x[first:end], context.seconds[first:end], row, clocks[row])
            for row, (first, end) in enumerate(pairwise(borders)) if end > first
        ])  # fmt: skip

    def _attend(
        self, x: Tensor, seconds: Float64[Tensor, " point"], row: int, clock: float
    ) -> Tensor:
        """The reader's attention over further points of one series."""
        if self._reader.attention is None:
            return x
        borders = torch.tensor([0, len(x)], device=x.device)
        times = seconds / clock if self._config.clock == "context" else seconds
        for layer, caches in zip(self._reader.attention, self._keys, strict=True):
            assert isinstance(layer, nn.ModuleDict)
            attend = layer["attend"]
            assert isinstance(attend, SelfAttention)
            x = x + attend.extend(layer["norm"](x), times, caches[row], borders)
            x = x + layer["feed_forward"](layer["forward_norm"](x))
        return x


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
