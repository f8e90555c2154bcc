"""Augmentations of a whole batch at once, against one segment after the other in numpy and scipy.

The peer is written here the way that published training code does it (recipe and probabilities of
Abbaspourazad et al., ICLR 2024): each segment throws its own coins, draws its own spline and is
interpolated by itself. Both get the same standardised segments in float32 and the same
probabilities, on one thread. Ours is timed twice: as it is used, with one curve of time for all
channels, and with a curve a channel, which is what the peer does. Collecting the peer's segments
into a batch is not counted. Time is the processor's for this process, so that what else the machine
does slows neither; both take turns.

It times and checks nothing else: what each augmentation does is in
`tests/training/test_signal_augmentations.py`.

    python benchmarks/signal_augment_speed.py            256 segments of 4 x 3,840; a minute
    python benchmarks/signal_augment_speed.py --quick    16 segments of 4 x 960

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from measure import Row, machine_line, show
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from tsfm.kernels.heap import keep_freed_memory
from tsfm.models.efficientnet1d import standardise
from tsfm.training.signal_augmentations import (
    N_KNOTS,
    PPG_AUGMENTATION,
    SignalAugmentation,
    augment,
)

MUST, AIM = 10.0, 20.0
TURNS, CALLS = 9, 4
KINDS = ("cut_out", "magnitude_warp", "time_warp", "noise", "channel_permute")
Segment = NDArray[np.floating]
Draws = np.random.Generator


def cut_out(x: Segment, how: SignalAugmentation, rng: Draws) -> Segment:
    """Zeros in one block of all channels."""
    n_samples = x.shape[-1]
    length = int(n_samples * rng.uniform(*how.cut_share))
    start = rng.integers(0, n_samples - length + 1)
    x = x.copy()
    x[:, start : start + length] = 0
    return x


def magnitude_warp(x: Segment, how: SignalAugmentation, rng: Draws) -> Segment:
    """A smooth curve around 1 multiplies all channels."""
    n_samples = x.shape[-1]
    places = np.linspace(0, n_samples - 1, N_KNOTS)
    curve = CubicSpline(places, rng.normal(1.0, how.magnitude_deviation, N_KNOTS))
    return x * curve(np.arange(n_samples))


def time_warp(x: Segment, how: SignalAugmentation, rng: Draws) -> Segment:
    """Each channel runs along a smooth curve of time of its own."""
    n_samples = x.shape[-1]
    samples = np.arange(n_samples)
    places = np.linspace(0, n_samples - 1, N_KNOTS)
    warped = np.empty_like(x)
    for channel in range(len(x)):
        moved = places * rng.normal(1.0, how.time_deviation, N_KNOTS)
        times = CubicSpline(places, moved)(samples)
        times *= (n_samples - 1) / times[-1]
        warped[channel] = np.interp(samples, times, x[channel])
    return warped


def noise(x: Segment, how: SignalAugmentation, rng: Draws) -> Segment:
    """White noise of a random size."""
    return x + rng.normal(0.0, rng.uniform(*how.noise_deviation), x.shape)


def channel_permute(x: Segment, how: SignalAugmentation, rng: Draws) -> Segment:
    """The channels in a random order."""
    return x[rng.permutation(len(x))]


def one_by_one(batch: Segment, how: SignalAugmentation, rng: Draws) -> list[Segment]:
    """The published way: a coin for each augmentation of each segment.

    Args:
        batch: (segment, channel, time) standardised samples.
        how: Probabilities and strengths.
        rng: Source of chance.
    """
    each = (cut_out, magnitude_warp, time_warp, noise, channel_permute)
    found = []
    for x in batch:
        for name, work in zip(KINDS, each, strict=True):
            if rng.random() < getattr(how, name):
                x = work(x, how, rng)
        found.append(x)
    return found


def seconds(work: Callable[[], object], calls: int) -> float:
    """Processor time of one call, the mean of some: coins make a single call uneven."""
    started = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - started) / calls


def medians(works: dict[str, Callable[[], object]], turns: int, calls: int) -> dict[str, float]:
    """Median seconds of each work, which take turns."""
    for work in works.values():
        work()  # the first use of a size asks the system for memory
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns):
        for name, work in works.items():
            found[name].append(seconds(work, calls))
    return {name: statistics.median(each) for name, each in found.items()}


def alone(kind: str) -> SignalAugmentation:
    """One augmentation that happens to every segment, and no other."""
    return replace(PPG_AUGMENTATION, **{name: float(name == kind) for name in KINDS})


def main() -> None:
    """Time both ways and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a second, and no claim")
    quick = parser.parse_args().quick
    n_segments, n_samples, turns, calls = (16, 960, 3, 2) if quick else (256, 3840, TURNS, CALLS)
    torch.set_num_threads(1)
    keep_freed_memory()
    print(machine_line())
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    batch = standardise(torch.randn(n_segments, 4, n_samples, generator=generator).cumsum(-1))
    samples = batch.numpy()
    apart = replace(PPG_AUGMENTATION, time_together=False)
    took = medians(
        {
            "one segment after the other": lambda: one_by_one(samples, PPG_AUGMENTATION, rng),
            "all at once": lambda: augment(batch, PPG_AUGMENTATION, generator=generator),
            "all at once, a curve of time a channel": lambda: augment(
                batch, apart, generator=generator
            ),
        },
        turns, calls,
    )  # fmt: skip
    theirs, ours, same = took.values()
    print(f"\n{n_segments} segments of 4 x {n_samples}, one thread")
    for name, value in took.items():
        a_segment = value / n_segments * 1e6
        print(f"{name:40} {value * 1e3:9.1f} ms a batch {a_segment:9.1f} us a segment")
    print(f"\n{'each augmentation alone, always':34}{'numpy':>9}{'ours':>9}   ms a batch")
    for kind in KINDS:
        how = replace(alone(kind), time_together=False)
        each = medians(
            {"numpy": lambda how=how: one_by_one(samples, how, rng),
             "ours": lambda how=how: augment(batch, how, generator=generator)},
            max(3, turns // 3), 1,
        )  # fmt: skip
        print(f"{kind:34}{each['numpy'] * 1e3:9.1f}{each['ours'] * 1e3:9.1f}")
    show([
        Row("faster than one by one", theirs / ours, MUST, AIM, True),
        Row("the same, a curve of time a channel", theirs / same, MUST, AIM, True),
    ])  # fmt: skip
    answer = {
        "speedup": round(theirs / ours, 2), "speedup_time_apart": round(theirs / same, 2),
        "ms_numpy": round(theirs * 1e3, 2), "ms_ours": round(ours * 1e3, 2),
        "ms_ours_time_apart": round(same * 1e3, 2), "n_segments": n_segments,
    }  # fmt: skip
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
