"""A biosignal encoder in a researcher's hands: `tsfm.load("ecg-encoder")`, then `.embed(...)`.

The encoder itself takes what has been cleaned (`biosignal_encoder`); this room does to a record
what was done to the records of its training: millivolts, less each lead's median, spikes cut at
5 mV. It also says what a timeline's tokens are given of a record: the summary vectors, and behind
them the embedding cut into pieces of the same width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from tsfm.models.signal_grid import to_grid

LARGEST_MV = 5.0


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

    @torch.no_grad()
    def encode(
        self, signal_mv: NDArray[np.floating] | Tensor, *, fs_hz: float | int, leads: Sequence[str]
    ) -> Encoded:
        """Token states, embedding and summary vectors of records; see `BiosignalEncoder`.

        Args:
            signal_mv: (record, lead, sample) millivolts, NaN where nothing was measured.
            fs_hz: Sampling rate.
            leads: Name of each lead, any of the twelve in any order and case.

        Raises:
            InputError: Rate, leads or shape do not fit, or values that are no millivolts.
        """
        signal = torch.as_tensor(signal_mv, dtype=torch.float32)
        check_signal(signal, leads)
        values, known = to_grid(
            level(signal), fs_hz=fs_hz, grid_hz=self.encoder.config.grid_hz
        )  # fmt: skip
        return self.encoder.encode_grid(values, known, lead_slots(leads))

    def embed(
        self, signal_mv: NDArray[np.floating] | Tensor, *, fs_hz: float | int,
        leads: Sequence[str], batch_size: int = 32,
    ) -> NDArray[np.float32]:  # fmt: skip
        """(record, d_embedding) vectors of records, some at a time; see `encode`."""
        signal = torch.as_tensor(signal_mv, dtype=torch.float32)
        check_signal(signal, leads)
        if not len(signal):
            return np.zeros((0, self.encoder.config.d_embedding), np.float32)
        parts = [
            self.encode(part, fs_hz=fs_hz, leads=leads).embedding
            for part in signal.split(batch_size)
        ]
        return torch.cat(parts).numpy()

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
    if torch.isinf(signal_mv).any():
        raise InputError(
            "infinite values in a signal", code="infinite_signal", place="signal_mv",
            remedy="Give NaN where nothing was measured.",
        )  # fmt: skip
    middle = signal_mv.nanmedian(-1, keepdim=True).values
    return (signal_mv - middle).clamp(-LARGEST_MV, LARGEST_MV)


def open_encoder(path_or_name: str | Path) -> EncoderDirectory:
    """Load an encoder's model directory, by its path or by the name of a packaged one.

    Raises:
        InputError: There is no model.
        IntegrityError: A file differs from what was written.
        ModelMismatch: Its parts do not belong together.
    """
    folder = find_model(path_or_name)
    stored, digest = read_signal_directory(folder, ENCODER_TYPE)
    encoder = BiosignalEncoder(read_sizes(stored["model"], BiosignalConfig(), str(folder)))
    load_weights(encoder, folder / "model.safetensors")
    return EncoderDirectory(encoder.eval(), stored["facts"], digest)
