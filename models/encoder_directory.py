"""A biosignal encoder in a researcher's hands: `tsfm.load("ecg-encoder")`, then `.embed(...)`.

The encoder itself takes what has been cleaned (`biosignal_encoder`); this room does to a record
what was done to the records of its training: millivolts, less each lead's median, spikes cut at
5 mV. A record in microvolts would be cut to nothing: it is refused, whatever else is in the batch.
One in volts is all but flat, as is one whose electrodes were off: that is refused where no record
of the batch moves further. A single lead of another unit among others is taken for a bad lead, and
is not noticed. It also says what a timeline's tokens are given of a record: the
summary vectors, and behind them the embedding cut into pieces of the same width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tsfm.errors import InputError
from tsfm.models.biosignal_encoder import (
    BiosignalConfig,
    BiosignalEncoder,
    Encoded,
    check_signal,
    lead_slots,
)
from tsfm.models.checkpoint import find_model, load_weights
from tsfm.models.signal_checkpoint import ENCODER_TYPE, read_signal_directory, read_sizes
from tsfm.models.signal_grid import rate_ratio, read_rate, refuse_infinite, to_grid, to_tensor

LARGEST_MV = 5.0
_SPAN_S, _MOST_MV = 2.0, 20.0  # a usual range within two seconds that no electrode measures
LEAST_MV = 0.01  # a largest one that is only of volts, or of electrodes that are off


@dataclass(frozen=True)
class EncoderDirectory:
    """A loaded encoder with what belongs to it.

    Attributes:
        encoder: The network, in evaluation mode.
        facts: Plain facts about its training.
        hash: sha256 of its manifest.
    """

    encoder: BiosignalEncoder
    facts: dict[str, Any]
    hash: str

    @property
    def n_vectors(self) -> int:
        """Vectors of a record that a timeline's token is given."""
        config = self.encoder.config
        return config.n_summary + math.ceil(config.d_embedding / config.d_model)

    def encode(
        self,
        signal_mv: NDArray[np.floating] | Tensor,
        *,
        fs_hz: SupportsFloat,
        leads: Sequence[str],
    ) -> Encoded:
        """Token states, embedding and summary vectors of records; see `BiosignalEncoder`.

        Args:
            signal_mv: (record, lead, sample) millivolts, NaN where nothing was measured.
            fs_hz: Sampling rate.
            leads: Name of each lead, any of the twelve in any order and case.

        Raises:
            InputError: Rate, leads or shape do not fit, `infinite_signal`, or `no_millivolts`: a
                record usually moves by more than 20 within two seconds, or none that moves at all
                does so by 0.01.
        """
        signal = self._read(signal_mv, fs_hz, leads)
        check_signal(signal, leads)
        return self._encode(signal, fs_hz, leads)

    def embed(
        self, signal_mv: NDArray[np.floating] | Tensor, *, fs_hz: SupportsFloat,
        leads: Sequence[str], batch_size: int = 32,
    ) -> NDArray[np.float32]:  # fmt: skip
        """(record, d_embedding) vectors of records, some at a time or none; see `encode`.

        Raises:
            InputError: As `encode`, or `bad_batch_size`.
        """
        if not batch_size >= 1:
            raise InputError(
                "a batch of no records", code="bad_batch_size", place="batch_size",
                remedy="Use 1 or more.",
            )  # fmt: skip
        signal = self._read(signal_mv, fs_hz, leads)
        if not len(signal):
            return np.zeros((0, self.encoder.config.d_embedding), np.float32)
        parts = [self._encode(part, fs_hz, leads).embedding for part in signal.split(batch_size)]
        return torch.cat(parts).numpy()

    def _read(
        self, signal_mv: NDArray[np.floating] | Tensor, fs_hz: SupportsFloat, leads: Sequence[str]
    ) -> Tensor:
        signal = to_tensor(signal_mv)
        check_signal(signal, leads, none_is_well=True)
        rate_ratio(fs_hz, self.encoder.config.grid_hz)
        _check_unit(signal, fs_hz)
        return signal

    @torch.no_grad()
    def _encode(self, signal: Tensor, fs_hz: SupportsFloat, leads: Sequence[str]) -> Encoded:
        values, known = to_grid(level(signal), fs_hz=fs_hz, grid_hz=self.encoder.config.grid_hz)
        return self.encoder.encode_grid(values, known, lead_slots(leads))

    def _repr_html_(self) -> str:
        n = sum(p.numel() for p in self.encoder.parameters())
        rows = "".join(
            f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in self.facts.items()
        )
        return f"<b>{ENCODER_TYPE}</b> {self.hash[:12]}, {n:,} parameters<table>{rows}</table>"


def token_vectors(encoded: Encoded) -> Float[Tensor, "batch vector model"]:
    """What a timeline's token is given of each record: summary, then the embedding in pieces."""
    width = encoded.summary.shape[-1]
    short = -encoded.embedding.shape[-1] % width
    pieces = F.pad(encoded.embedding, (0, short)).unflatten(-1, (-1, width))
    return torch.cat([encoded.summary, pieces], 1)


def level(signal_mv: Float[Tensor, "*record sample"]) -> Float[Tensor, "*record sample"]:
    """Records as the encoder is trained on them: less each lead's median, spikes cut.

    Raises:
        InputError: `infinite_signal`.
    """
    refuse_infinite(signal_mv, "signal_mv")
    middle = signal_mv.nanmedian(-1, keepdim=True).values
    return (signal_mv - middle).clamp(-LARGEST_MV, LARGEST_MV)


class Movement(NamedTuple):
    """How far leads move within two seconds.

    Where `wide` is more than half of `measured`, the usual range is that of microvolts or of a
    converter's steps.

    Attributes:
        wide: Stretches of two seconds that move further than electrodes do.
        measured: Stretches that anything was measured in.
        largest: Furthest that any lead moves in a stretch that is measured for the most part, or 0;
            the largest, so that leads that are all but dead don't speak for the others.
    """

    wide: int
    measured: int
    largest: float


def movement(signal: Float[Tensor, "lead sample"], fs_hz: float | int) -> Movement:
    """How far the leads of one record move; of less than two seconds, in what there is."""
    whole = round(_SPAN_S * fs_hz)
    ranges, n_there = _ranges(signal, min(max(whole, 1), signal.shape[-1]))
    measured = n_there > 0
    told = ranges[2 * n_there >= max(whole, 1)]
    largest = float(told.amax()) if len(told) and signal.shape[-1] >= whole else 0.0
    return Movement(int((ranges > _MOST_MV)[measured].sum()), int(measured.sum()), largest)


def _check_unit(signal: Float[Tensor, "batch lead sample"], fs_hz: SupportsFloat) -> None:
    """Refuse records that are not in millivolts; see `Movement`.

    A record whose electrodes were off dithers by some microvolts and looks like one in volts, so
    one of these does not speak for the records beside it.
    """
    largest = 0.0
    for i, record in enumerate(signal):  # one at a time: the copies are as large as what is read
        moved = movement(record, read_rate(fs_hz))
        if 2 * moved.wide > moved.measured:
            raise _no_millivolts(f"record {i} usually moves by more than {_MOST_MV:g}")
        largest = max(largest, moved.largest)
    if 0 < largest < LEAST_MV:
        raise _no_millivolts(f"no record moves by {LEAST_MV:g}")


def _ranges(signal: Float[Tensor, "lead sample"], width: int) -> tuple[Tensor, Tensor]:
    """(lead, window) ranges of whole windows, and how many samples of each are measured."""
    windows = signal[:, : signal.shape[-1] // width * width].unflatten(-1, (-1, width))
    there = torch.isfinite(windows)
    low = torch.where(there, windows, torch.inf).amin(-1)
    high = torch.where(there, windows, -torch.inf).amax(-1)
    return high - low, there.sum(-1)


def _no_millivolts(what: str) -> InputError:
    return InputError(
        f"{what} within {_SPAN_S:g} s: no millivolts", code="no_millivolts", place="signal_mv",
        remedy="Multiply microvolts by 0.001, volts by 1000; ADC steps by what one is in"
        " millivolts.",
    )  # fmt: skip


def open_encoder(path_or_name: str | Path) -> EncoderDirectory:
    """Load an encoder's model directory, by its path or by the name of a packaged one.

    Raises:
        InputError: There is no model.
        IntegrityError: A file differs from what was written.
        ModelMismatch: Its parts do not belong together.
    """
    folder = find_model(path_or_name)
    stored, digest = read_signal_directory(folder, ENCODER_TYPE)
    sizes = read_sizes(stored["model"], BiosignalConfig(), str(folder), complete=True)
    encoder = BiosignalEncoder(sizes)
    load_weights(encoder, folder / "model.safetensors")
    return EncoderDirectory(encoder.eval(), stored["facts"], digest)
