"""Augmentations of a batch of standardised segments, all at once and where the batch lies.

Five of them, in this order, each with a coin of its own a segment: cut out a block, multiply by a
smooth curve, run time faster and slower, add noise, permute channels. Kinds, probabilities and
parameters are those of Abbaspourazad et al. (ICLR 2024) and the settings published with it
(`PPG_AUGMENTATION`, `ECG_AUGMENTATION`). Curves are cubic splines through seven knots; at fixed
knots a spline is linear in its values, so all curves of a batch are one matrix product.

Two things differ on purpose from what was published. Time is warped by one curve for all channels,
where a curve a channel takes the optical paths out of step (`time_together=False` brings that
back). And time never stands still or turns back: a drawn curve would in about half of all segments,
where the published interpolation is undefined; here its pace is held at a tenth of the usual one.

In float32 on the CPU all of it is one compiled pass (`tsfm.kernels.numba_augment`); elsewhere torch
does one augmentation after the other. Both draw alike but for the noise itself.

This is for training alone. It changes what a segment says about heart rate, amplitude and gaps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from tsfm.errors import InputError

N_KNOTS = 7
_LEAST_PACE = 0.1  # of warped time, where 1 is as recorded


@dataclass(frozen=True)
class SignalAugmentation:
    """Which augmentations happen how often, and how strong they are.

    Attributes:
        cut_out: Probability of zeroing a block in all channels.
        magnitude_warp: Probability of multiplying by a smooth curve, shared by the channels.
        time_warp: Probability of warping time.
        noise: Probability of added white noise.
        channel_permute: Probability of a random order of the channels.
        cut_share: Least and most of the segment that is cut out.
        magnitude_deviation: Of the curve's knots around 1.
        time_deviation: Of the factors around 1 on the knots' times.
        noise_deviation: Least and most, in units of the standardised signal.
        time_together: One curve of time for all channels, or one for each.

    Raises:
        InputError: `bad_augmentation`: what is no probability, share or deviation.
    """

    cut_out: float
    magnitude_warp: float
    time_warp: float
    noise: float
    channel_permute: float
    cut_share: tuple[float, float] = (0.3, 0.5)
    magnitude_deviation: float = 0.2
    time_deviation: float = 0.1
    noise_deviation: tuple[float, float] = (0.05, 0.10)
    time_together: bool = True

    def __post_init__(self) -> None:
        """Refuse what is no probability, share or deviation."""
        coins = (self.cut_out, self.magnitude_warp, self.time_warp, self.noise,
                 self.channel_permute)  # fmt: skip
        if not (
            all(0 <= coin <= 1 for coin in coins)
            and 0 <= self.cut_share[0] <= self.cut_share[1] <= 1
            and 0 <= self.noise_deviation[0] <= self.noise_deviation[1] < math.inf
            and 0 <= self.magnitude_deviation < math.inf
            and 0 <= self.time_deviation < math.inf
        ):
            raise InputError(
                "what is no probability, share or deviation", code="bad_augmentation",
                place="SignalAugmentation",
                remedy="Use probabilities and shares of 0 to 1, no negative deviations, and the"
                " smaller limit first.",
            )  # fmt: skip


PPG_AUGMENTATION = SignalAugmentation(0.40, 0.25, 0.15, 0.25, 0.25)
ECG_AUGMENTATION = SignalAugmentation(0.80, 0.50, 0.30, 0.50, 0.0)


def augment(
    segments: Tensor, augmentation: SignalAugmentation, *, generator: torch.Generator
) -> Tensor:
    """Augmented copy of a batch.

    Args:
        segments: (segment, channel, time) standardised samples without gaps, on any device.
        augmentation: What to do.
        generator: Source of chance, on the segments' device.

    Raises:
        InputError: Segments of another shape, or too short for a spline.
    """
    if segments.dim() != 3 or segments.shape[-1] < N_KNOTS:
        raise InputError(
            "not a batch of segments", code="bad_segments", place="augment",
            remedy=f"Give (segment, channel, time) with at least {N_KNOTS} samples.",
        )  # fmt: skip
    n, _, n_samples = segments.shape
    probabilities = torch.tensor(
        [
            augmentation.cut_out, augmentation.magnitude_warp, augmentation.time_warp,
            augmentation.noise, augmentation.channel_permute,
        ],
        device=segments.device,
    )  # fmt: skip
    coins = torch.rand(5, n, generator=generator, device=segments.device)
    cut, scaled, warped, noisy, permuted = (
        torch.nonzero(tails).squeeze(1) for tails in coins < probabilities[:, None]
    )
    chosen = (cut, scaled, warped, noisy, permuted)
    on_cpu = segments.device.type == "cpu" and segments.dtype == torch.float32
    if on_cpu and not segments.requires_grad:
        return _augment_in_one_pass(segments, augmentation, chosen, generator)
    # An order of the channels changes nothing that comes before it here, and this is the copy that
    # has to be made anyway. What multiplies is gathered, so that it costs one pass.
    changed = order_channels(segments, permuted, generator)
    gain = segments.new_ones(n, n_samples)
    if len(cut):
        gain[cut] = cut_out_gain(segments, len(cut), augmentation, generator)
    if len(scaled):
        gain[scaled] *= magnitude_gain(segments, len(scaled), augmentation, generator)
    changed *= gain.unsqueeze(1)
    if len(warped):
        changed[warped] = time_warp(changed[warped], augmentation, generator)
    if len(noisy):
        noise = white_noise(segments, len(noisy), augmentation, generator)
        changed.index_add_(0, noisy, noise)
    return changed


def cut_out_gain(
    like: Tensor, n: int, how: SignalAugmentation, generator: torch.Generator
) -> Tensor:
    """(n, time) 0 in one block, 1 elsewhere; the block's length and place are uniform.

    Args:
        like: Segments whose last axis is time.
        n: How many to draw.
        how: Its parameters.
        generator: Source of chance.
    """
    start, stop = cut_blocks(like, n, how, generator).split(1, dim=1)
    sample = torch.arange(like.shape[-1], device=like.device, dtype=torch.float32)
    return ((sample < start) | (sample >= stop)).to(like.dtype)


def cut_blocks(like: Tensor, n: int, how: SignalAugmentation, generator: torch.Generator) -> Tensor:
    """(n, 2) first sample of a block and the first behind it; arguments as `cut_out_gain`'s."""
    n_samples = like.shape[-1]
    shortest, longest = how.cut_share
    share, place = torch.rand(2, n, 1, generator=generator, device=like.device)
    length = (n_samples * (shortest + (longest - shortest) * share)).floor()
    start = (place * (n_samples - length + 1)).floor()
    return torch.cat([start, start + length], dim=1)


def magnitude_gain(
    like: Tensor, n: int, how: SignalAugmentation, generator: torch.Generator
) -> Tensor:
    """(n, time) splines through knots that are normal around 1; arguments as `cut_out_gain`'s."""
    knots = _normal((n, N_KNOTS), like, generator) * how.magnitude_deviation + 1
    return knots @ spline_matrix(like).mT


def time_warp(segments: Tensor, how: SignalAugmentation, generator: torch.Generator) -> Tensor:
    """Move each sample to its warped time, and read the signal again at every sample."""
    n, n_channels, n_samples = segments.shape
    n_curves = 1 if how.time_together else n_channels
    times = warped_times((n, n_curves), segments, how.time_deviation, generator)
    # How many warped times lie before each sample: counted, which is faster than searching.
    curve = torch.arange(n * n_curves, device=times.device).view(n, n_curves, 1) * (n_samples + 1)
    cells = (times.long() + 1 + curve).flatten()
    count = torch.bincount(cells, minlength=n * n_curves * (n_samples + 1))
    after = count.view(n, n_curves, n_samples + 1)[..., :n_samples].cumsum(-1)
    after = after.clamp_(1, n_samples - 1)
    before = after - 1
    before_s, after_s = times.gather(-1, before), times.gather(-1, after)
    sample = torch.arange(n_samples, dtype=times.dtype, device=times.device)
    weight = ((sample - before_s) / (after_s - before_s)).clamp_(0, 1).to(segments.dtype)
    left = segments.gather(-1, before.expand(segments.shape))
    return left.lerp_(segments.gather(-1, after.expand(segments.shape)), weight)


def white_noise(
    like: Tensor, n: int, how: SignalAugmentation, generator: torch.Generator
) -> Tensor:
    """(n, channel, time) noise; its deviation is uniform between two limits, one draw a segment."""
    least, most = how.noise_deviation
    share = torch.rand(n, 1, 1, generator=generator, device=like.device)
    deviation = (least + (most - least) * share).to(like.dtype)
    return _normal((n, *like.shape[1:]), like, generator).mul_(deviation)


def order_channels(segments: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Copy with the channels of the chosen segments in random orders, all equally likely."""
    n, n_channels, n_samples = segments.shape
    order = channel_orders(segments, chosen, generator)
    rows = (order + torch.arange(n, device=segments.device)[:, None] * n_channels).flatten()
    return segments.reshape(-1, n_samples).index_select(0, rows).view(segments.shape)


def channel_orders(segments: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """(segment, channel) which channel comes there; arguments as `order_channels`'."""
    n, n_channels, _ = segments.shape
    order = torch.arange(n_channels, device=segments.device).repeat(n, 1)
    keys = torch.rand(len(chosen), n_channels, generator=generator, device=segments.device)
    order[chosen] = keys.argsort(1)
    return order


def warped_times(
    shape: tuple[int, ...], like: Tensor, deviation: float, generator: torch.Generator
) -> Tensor:
    """Strictly increasing times of the samples, from 0 to the last sample's own.

    The knots' times are multiplied by normal factors around 1; the spline through them is scaled
    back to the segment's length.

    Args:
        shape: Leading axes.
        like: Segments whose last axis is time.
        deviation: Of the factors.
        generator: Source of chance.

    Returns:
        (*shape, time) in float32: warped times in samples.
    """
    last = like.shape[-1] - 1
    factors = torch.randn(
        (*shape, N_KNOTS), generator=generator, device=like.device, dtype=torch.float32
    )
    places = torch.linspace(0, last, N_KNOTS, device=like.device)
    matrix = spline_matrix(like).to(torch.float32)
    times = (places * (1 + deviation * factors)) @ matrix.mT
    # A curve that ends close to its beginning would be stretched without bound.
    pace = times.diff(dim=-1) * (last / times[..., -1:].clamp_min(_LEAST_PACE * last))
    times = pace.clamp_min_(_LEAST_PACE).cumsum(-1)
    times = times * (last / times[..., -1:])
    return torch.cat([torch.zeros_like(times[..., :1]), times], dim=-1)


def spline_matrix(like: Tensor) -> Tensor:
    """(time, knot) matrix that takes values at equally spaced knots to a cubic spline.

    The knots lie on the first and last sample and evenly between; the spline is not-a-knot.

    Args:
        like: Segments whose last axis is time.
    """
    return _spline_matrix(like.shape[-1], like.device, like.dtype)


@lru_cache(maxsize=16)
def _spline_matrix(n_samples: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    spline = CubicSpline(np.linspace(0, n_samples - 1, N_KNOTS), np.eye(N_KNOTS))
    return torch.from_numpy(spline(np.arange(n_samples))).to(device=device, dtype=dtype)


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


def _augment_in_one_pass(
    segments: Tensor, how: SignalAugmentation, chosen: tuple[Tensor, ...],
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """The same draws in the same order, compiled; only the noise is of another stream."""
    from tsfm.kernels.numba_augment import augment_rows

    cut, scaled, warped, noisy, permuted = chosen
    n, n_channels, _ = segments.shape
    order = channel_orders(segments, permuted, generator)
    blocks = torch.zeros(n, 2, dtype=torch.int64)
    blocks[cut] = cut_blocks(segments, len(cut), how, generator).long()
    gains = magnitude_gain(segments, len(scaled), how, generator)
    n_curves = 1 if how.time_together else n_channels
    times = warped_times((len(warped), n_curves), segments, how.time_deviation, generator)
    least, most = how.noise_deviation
    deviations = least + (most - least) * torch.rand(len(noisy), generator=generator)
    seeds = torch.empty(len(noisy), dtype=torch.int64).random_(generator=generator)
    return augment_rows(
        segments, order, blocks, scaled, gains, warped, times, noisy, deviations, seeds
    )
