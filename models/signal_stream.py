"""Streaming through a causal encoder: chunks of any size give what the whole record gives.

A stream keeps the samples that a grid point still waits for, the inputs of each convolution, the
state of each scan and running sums for the pooling. None of it grows: a week costs the memory of a
moment. The sums are of double precision: in float32 those of a day would stand still, since what a
chunk adds falls below their last place. A token comes out as soon as its last grid point is known,
60 ms of signal after its own moment; `finish` ends the record and gives the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsFloat

import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from tsfm.errors import InputError
from tsfm.models.biosignal_encoder import (
    BiosignalEncoder,
    Encoded,
    Pooled,
    lead_slots,
)
from tsfm.models.signal_blocks import SignalBlock, SignalState
from tsfm.models.signal_grid import GridStream, to_tensor
from tsfm.models.signal_stem import StemState


class EncoderStream:
    """One or several records of the same leads and rate, read as they are measured.

    Args:
        encoder: A causal one, in evaluation mode.
        fs_hz: Sampling rate.
        leads: Name of each lead.

    Raises:
        InputError: `not_causal`, or a rate or lead that the encoder does not take.
    """

    def __init__(
        self, encoder: BiosignalEncoder, *, fs_hz: SupportsFloat, leads: Sequence[str]
    ) -> None:
        """Start before the first sample."""
        if not encoder.config.causal or encoder.training:
            raise InputError(
                "only a causal encoder in evaluation mode can stream", code="not_causal",
                place="encoder", remedy="Use one with BiosignalConfig(causal=True), after .eval().",
            )  # fmt: skip
        self.encoder, self.leads = encoder, tuple(leads)
        self._slots = lead_slots(leads)
        self._grid = GridStream(fs_hz=fs_hz, grid_hz=encoder.config.grid_hz)
        self._stem: StemState | None = None
        self._states: list[SignalState | None] = [None] * len(encoder.blocks)
        self._sums: Pooled | None = None
        self._n_records: int | None = None
        self._ended = False

    @torch.no_grad()
    def push(
        self, chunk: Shaped[Tensor, "batch lead sample"] | NDArray[Any]
    ) -> Float[Tensor, "batch token model"]:
        """Take some samples; give the states of the tokens that they complete.

        Args:
            chunk: (record, lead, sample) of the same records every time, numbers of any type.

        Raises:
            InputError: The chunk does not fit, or the stream has been finished.
        """
        self._check_open()
        samples = chunk if isinstance(chunk, Tensor) else to_tensor(chunk)
        if samples.dim() != 3 or self._n_records not in (None, len(samples)):
            raise InputError(
                f"a chunk of shape {tuple(samples.shape)}", code="bad_signal_shape", place="chunk",
                remedy="Give (records, leads, samples), of the same records every time.",
            )  # fmt: skip
        if samples.shape[-1] == 0:
            own = self.encoder.query
            return own.new_zeros(len(samples), 0, self.encoder.config.d_model)
        samples = self.encoder.read(samples, self.leads)
        self._n_records = len(samples)
        return self._read(*self._grid.push(samples))

    @torch.no_grad()
    def finish(self) -> Float[Tensor, "batch token model"]:
        """End the record; give the states of the tokens left.

        Raises:
            InputError: Nothing has been read, or the stream has been finished before.
        """
        self._check_open()
        tokens = self._read(*self._grid.finish())
        self._ended = True
        return tokens

    @torch.no_grad()
    def pooled(self) -> Encoded:
        """Embedding and summary vectors of what has been read so far; it holds no tokens.

        Raises:
            InputError: `empty_signal`: nothing has been read.
        """
        if self._sums is None:
            raise InputError(
                "no token has been completed", code="empty_signal", place="EncoderStream",
                remedy="Push some tenths of a second first, or finish the record.",
            )  # fmt: skip
        own = self.encoder.query
        empty = own.new_zeros(len(self._sums.total), 0, self.encoder.config.d_model)
        return self.encoder.pool(empty, empty[..., 0].bool(), self._sums, self._slots)

    def _check_open(self) -> None:
        if self._ended:
            raise InputError(
                "the stream has been finished", code="stream_finished", place="EncoderStream",
                remedy="Start another one for the next record.",
            )  # fmt: skip

    def _read(self, values: Tensor, known: Tensor) -> Tensor:
        if values.shape[-1] == 0:
            return values.new_zeros(values.shape[0], 0, self.encoder.config.d_model)
        x, mask, self._stem = self.encoder.stem.go_on(values, known, self._slots, self._stem)
        if x.shape[1]:
            for i, block in enumerate(self.encoder.blocks):
                assert isinstance(block, SignalBlock)
                x, self._states[i] = block(x, mask, self._states[i], return_state=True)
            x = self.encoder.final_norm(x)
        here = Pooled(
            *(sum_.double() for sum_ in self.encoder.sums(x, mask, values.double(), known))
        )
        self._sums = here if self._sums is None else _added(self._sums, here)
        return x


def _added(a: Pooled, b: Pooled) -> Pooled:
    """Sums over the tokens of both; the queries' weights are brought to one scale."""
    peak = torch.maximum(a.peak, b.peak)
    left, right = torch.exp(a.peak - peak), torch.exp(b.peak - peak)
    return Pooled(
        n_tokens=a.n_tokens + b.n_tokens,
        total=a.total + b.total,
        largest=torch.maximum(a.largest, b.largest),
        weight=a.weight * left + b.weight * right,
        weighted=a.weighted * left.unsqueeze(-1) + b.weighted * right.unsqueeze(-1),
        peak=peak,
        n_points=a.n_points + b.n_points,
        first=a.first + b.first,
        second=a.second + b.second,
        highest=torch.maximum(a.highest, b.highest),
        lowest=torch.minimum(a.lowest, b.lowest),
    )
