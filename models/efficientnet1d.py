"""The one-dimensional EfficientNet that reads wearable biosignals.

Inverted bottlenecks (1x1 convolution to a wider space, a depthwise convolution along time, a gate
per channel, 1x1 back) under an average over time, so 60 seconds at 64 Hz become 60 frames and then
one vector of 256 numbers. Sizes are those of the encoder in Abbaspourazad et al., "Large-scale
training of foundation models for wearable biosignals" (ICLR 2024): 3.146 million parameters with
four channels and expansion 7, 2.469 million with one channel and expansion 6.

It works on segments that were standardised (`standardise`): amplitude and units are gone, on
purpose. It knows nothing of the sampling rate, so whoever feeds it must keep to the one that it was
trained at.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

EMBEDDING_WIDTH = 256
TOTAL_STRIDE = 64
_STEM_WIDTH = 42
_GATE_SHARE = 0.25
_BATCH_NORM_EPS = 1e-3


@dataclass(frozen=True)
class Stage:
    """Blocks of one width.

    Attributes:
        width: Channels that leave each of them.
        taps: Length of the depthwise filter.
        n_blocks: How many.
        stride: Of the first; the others keep the length.
    """

    width: int
    taps: int
    n_blocks: int
    stride: int


_FIRST = Stage(28, 3, 1, 1)  # its blocks do not expand
_STAGES = (
    Stage(35, 3, 2, 2),
    Stage(49, 5, 2, 2),
    Stage(64, 3, 3, 2),
    Stage(78, 5, 3, 2),
    Stage(99, 5, 4, 2),
    Stage(128, 5, 1, 1),
)


@dataclass(frozen=True)
class EfficientNet1dConfig:
    """Sizes of the encoder.

    Attributes:
        n_channels: Channels of a segment: optical paths of a PPG, or leads.
        expansion: How much wider the inside of a block is than what enters it.
    """

    n_channels: int
    expansion: int

    def __post_init__(self) -> None:
        """Refuse sizes that are none."""
        if not (1 <= self.n_channels <= 1024 and 1 <= self.expansion <= 16):
            raise ValueError("1 to 1024 channels and an expansion of 1 to 16")


class EfficientNet1d(nn.Module):
    """Encoder of segments of any length; `TOTAL_STRIDE` samples a frame.

    Args:
        config: Its sizes.
    """

    def __init__(self, config: EfficientNet1dConfig) -> None:
        """Start at random."""
        super().__init__()
        self.config = config
        blocks: list[nn.Module] = [InvertedBottleneck(_STEM_WIDTH, _FIRST.width, _FIRST.taps)]
        widths = pairwise([_FIRST.width, *(stage.width for stage in _STAGES)])
        for stage, (n_in, n_out) in zip(_STAGES, widths, strict=True):
            for i in range(stage.n_blocks):
                blocks.append(
                    InvertedBottleneck(
                        n_out if i else n_in, n_out, stage.taps,
                        stride=1 if i else stage.stride, expansion=config.expansion,
                    )
                )  # fmt: skip
        self.stem = _convolution(config.n_channels, _STEM_WIDTH, 3, stride=2)
        self.blocks = nn.Sequential(*blocks)
        self.top = _convolution(_STAGES[-1].width, EMBEDDING_WIDTH, 1)

    def forward(
        self, segments: Float[Tensor, "segment channel time"]
    ) -> Float[Tensor, "segment embedding"]:
        """One vector a segment.

        Args:
            segments: Standardised samples, of any length.
        """
        return self.frames(segments).mean(-1)

    def frames(
        self, segments: Float[Tensor, "segment channel time"]
    ) -> Float[Tensor, "segment embedding frame"]:
        """What is averaged: a vector for each `TOTAL_STRIDE` samples begun."""
        return self.top(self.blocks(self.stem(segments)))


class InvertedBottleneck(nn.Module):
    """Wider, along time, gated, narrow again; added to what entered where the shape allows.

    Args:
        n_in: Channels that enter.
        n_out: Channels that leave.
        taps: Length of the depthwise filter, odd.
        stride: Of the depthwise filter.
        expansion: Width inside, in widths of the entry; 1 leaves the first convolution out.
    """

    def __init__(
        self, n_in: int, n_out: int, taps: int, *, stride: int = 1, expansion: int = 1
    ) -> None:
        """Start at random."""
        super().__init__()
        inside = n_in * expansion
        self.widen = _convolution(n_in, inside, 1) if expansion > 1 else nn.Identity()
        self.along = _convolution(inside, inside, taps, stride=stride, groups=inside)
        self.gate = ChannelGate(inside)
        self.narrow = _convolution(inside, n_out, 1, active=False)
        self.skips = n_in == n_out and stride == 1

    def forward(self, x: Float[Tensor, "row channel time"]) -> Float[Tensor, "row out step"]:
        """Map of the same length, or of a `stride`-th of it."""
        y = self.narrow(self.gate(self.along(self.widen(x))))
        return x + y if self.skips else y


class ChannelGate(nn.Module):
    """Squeeze and excitation: each channel is scaled by what the whole segment holds.

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        """Start at random."""
        super().__init__()
        squeezed = max(1, int(width * _GATE_SHARE))
        self.squeeze = nn.Linear(width, squeezed)
        self.excite = nn.Linear(squeezed, width)

    def forward(self, x: Float[Tensor, "row channel time"]) -> Float[Tensor, "row channel time"]:
        """Scaled input."""
        gate = self.excite(nn.functional.silu(self.squeeze(x.mean(-1))))
        return x * torch.sigmoid(gate).unsqueeze(-1)


def standardise(
    segments: Float[Tensor, "segment channel time"],
) -> Float[Tensor, "segment channel time"]:
    """Mean 0 and deviation 1 in each segment and channel; a gap (NaN) takes the mean, 0.

    A channel that never moves becomes zeros.
    """
    known = ~torch.isnan(segments)
    n = known.sum(-1, keepdim=True).clamp_min(1)
    mean = torch.where(known, segments, 0.0).sum(-1, keepdim=True) / n
    centred = torch.where(known, segments - mean, 0.0)
    deviation = (centred.square().sum(-1, keepdim=True) / n).sqrt()
    # Rounding of the mean leaves a constant channel with a trace of its size.
    flat = deviation <= 1e-6 * mean.abs()
    return torch.where(flat, 0.0, centred / torch.where(flat, 1.0, deviation))


def _convolution(
    n_in: int, n_out: int, taps: int, *, stride: int = 1, groups: int = 1, active: bool = True
) -> nn.Sequential:
    """Convolution, batch norm and swish; the norm's offset serves as bias."""
    parts = [
        nn.Conv1d(n_in, n_out, taps, stride, taps // 2, groups=groups, bias=False),
        nn.BatchNorm1d(n_out, eps=_BATCH_NORM_EPS),
    ]
    return nn.Sequential(*parts, nn.SiLU()) if active else nn.Sequential(*parts)
