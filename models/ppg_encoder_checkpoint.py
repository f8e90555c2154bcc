"""The model directory of a PPG encoder, beside that of a timeline model (`checkpoint`).

It holds `config.json` (sizes, the sampling rate and length of the segments that it was trained on,
facts of the training), `model.safetensors`, `README.md` (the card) and `manifest.json`. Matrices of
the convolutions may be stored in half precision, which halves the file; norms and their statistics
never are. Sizes are checked before a network is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsfm import __version__
from tsfm.errors import InputError, ModelMismatch
from tsfm.models.checkpoint import find_model, load_weights
from tsfm.models.efficientnet1d import EfficientNet1d, EfficientNet1dConfig, standardise
from tsfm.models.signal_checkpoint import (
    check_readable,
    read_signal_directory,
    read_sizes,
    save_signal_model,
)
from tsfm.models.signal_grid import rate_ratio, read_rate, refuse_infinite, to_grid, to_tensor

PPG_ENCODER_TYPE = "ppg-encoder"
_LIMITS = (
    "It knows the shapes that it was trained on, and no claim about health is made for it.",
    "Segments are standardised one by one: amplitude, perfusion and units are gone.",
    "Segments of another rate are brought to the one it was trained at; feed it about the same"
    " length.",
)


@dataclass(frozen=True)
class SegmentSpec:
    """What the encoder was trained on.

    Attributes:
        fs_hz: Sampling rate.
        duration_s: Length of a segment.
    """

    fs_hz: float
    duration_s: float

    def __post_init__(self) -> None:
        """Refuse what is no length of time."""
        if not (0 < self.fs_hz < 1e6 and 0 < self.duration_s < 1e6):
            raise ValueError("a positive rate and a positive length")


@dataclass(frozen=True)
class PpgEncoderDirectory:
    """A loaded encoder with what belongs to it.

    Attributes:
        encoder: The network, in evaluation mode.
        segments: What it was trained on.
        facts: Plain facts about its training.
        hash: sha256 of its manifest.
    """

    encoder: EfficientNet1d
    segments: SegmentSpec
    facts: dict[str, Any]
    hash: str

    @torch.no_grad()
    def embed(
        self, segments: NDArray[np.floating] | Tensor, *, fs_hz: SupportsFloat, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """(segment, 256) vectors of segments in any unit.

        Args:
            segments: (segment, channel, time) samples; NaN where there are none.
            fs_hz: Their sampling rate; another than the encoder's is brought to it, with nothing
                folded.
            batch_size: Segments at once.

        Raises:
            InputError: `bad_sampling_rate`: another rate than the encoder's, and not 50 to 4000 Hz;
                `bad_batch_size`; `bad_signal`: segments that are no numbers; `infinite_signal`.
            ModelMismatch: Other channels than the encoder's.
        """
        if not batch_size >= 1:
            raise InputError(
                "a batch of no segments", code="bad_batch_size", place="batch_size",
                remedy="Use 1 or more.",
            )  # fmt: skip
        samples = to_tensor(segments)
        n_channels = self.encoder.config.n_channels
        if samples.dim() != 3 or samples.shape[1] != n_channels or samples.shape[2] == 0:
            raise ModelMismatch(
                "not what the encoder reads", code="bad_segments", place="embed",
                remedy=f"Give (segment, {n_channels}, time).",
            )  # fmt: skip
        refuse_infinite(samples, "segments")
        fs_hz, own_hz = read_rate(fs_hz), self.segments.fs_hz
        if not abs(fs_hz - own_hz) <= 1e-3 * own_hz:
            rate_ratio(fs_hz, own_hz)  # refuses what is no rate, without segments as well
        if not len(samples):
            return np.zeros((0, 256), np.float32)
        parts = []
        for part in samples.split(batch_size):
            if abs(fs_hz - own_hz) > 1e-3 * own_hz:
                values, known = to_grid(part, fs_hz=fs_hz, grid_hz=own_hz)
                part = torch.where(known, values, torch.nan)
            parts.append(self.encoder(standardise(part)))
        return torch.cat(parts).numpy()


def save_ppg_encoder(
    path: str | Path,
    encoder: EfficientNet1d,
    *,
    segments: SegmentSpec,
    facts: Mapping[str, Any] | None = None,
    half: bool = False,
) -> str:
    """Write a model directory atomically and return its hash.

    Args:
        path: Final folder.
        encoder: Network to save.
        segments: What it was trained on.
        facts: Plain scalars about the training.
        half: Store matrices in float16.

    Raises:
        InputError: As `save_encoder`; segments that are no lengths which a directory may hold.
    """
    check_readable(asdict(segments), segments, str(path))
    card = ppg_encoder_card(encoder, segments=segments, facts=facts, half=half)
    return save_signal_model(
        path, PPG_ENCODER_TYPE, encoder, encoder.config, facts=facts or {}, card=card, half=half,
        segments=asdict(segments),
    )  # fmt: skip


def load_ppg_encoder(path_or_name: str | Path) -> PpgEncoderDirectory:
    """Load an encoder's model directory, by its path or by the name of a packaged one.

    Raises:
        InputError: There is no model.
        IntegrityError: A file differs from what was written.
        ModelMismatch: Its parts do not belong together.
    """
    folder = find_model(path_or_name)
    stored, digest = read_signal_directory(folder, PPG_ENCODER_TYPE, "segments")
    place = str(folder)
    sizes = read_sizes(stored["model"], EfficientNet1dConfig(1, 1), place, complete=True)
    segments = read_sizes(stored["segments"], SegmentSpec(1.0, 1.0), place, complete=True)
    encoder = EfficientNet1d(sizes)
    load_weights(encoder, folder / "model.safetensors")
    return PpgEncoderDirectory(encoder.eval(), segments, stored["facts"], digest)


def ppg_encoder_card(
    encoder: EfficientNet1d,
    *,
    segments: SegmentSpec,
    facts: Mapping[str, Any] | None = None,
    half: bool = False,
) -> str:
    """Model card in Markdown, with the header that model hubs read."""
    n = sum(p.numel() for p in encoder.parameters())
    told = [f"- {name}: {value}" for name, value in (facts or {}).items()]
    return "\n".join(
        [
            "---", "library_name: tsfm", "pipeline_tag: feature-extraction", "tags:", "- ppg",
            "- photoplethysmography", "- self-supervised", "---", "", "# PPG encoder", "",
            "## What it gives", "",
            "A vector of 256 numbers for a segment of a photoplethysmogram, learned from which"
            " segments belong to one person. For a probe to be trained on; it answers nothing by"
            " itself.", "", "## How to use it", "", "```python",
            "from tsfm.models.ppg_encoder_checkpoint import load_ppg_encoder", "",
            "vectors = load_ppg_encoder(folder).embed(segments, fs_hz="
            f"{segments.fs_hz:g})  # (segment, {encoder.config.n_channels}, time)", "```", "",
            "## Model", "", f"- parameters: {n:,}", f"- channels: {encoder.config.n_channels}",
            f"- expansion: {encoder.config.expansion}",
            f"- segments: {segments.duration_s:g} s at {segments.fs_hz:g} Hz",
            f"- matrices stored in: {'float16' if half else 'float32'}",
            f"- written by: tsfm {__version__}", "", "## Training", "", *(told or ["- not told"]),
            "", "## Limits", "", *(f"- {limit}" for limit in _LIMITS), "",
        ]
    )  # fmt: skip
