"""When a simulated heart beats, and where each beat comes from.

Sinus rhythm breathes and wanders. An atrial premature beat comes early and resets the sinus node,
so no full pause follows; a ventricular one leaves the node alone, so the pause compensates. A
fibrillating atrium makes the intervals irregular (a gamma law above the refractory time); flutter
lets every second, third or fourth of its 250 to 320 waves a minute pass. Fibrillatory and flutter
waves come with the beats, because flutter waves keep their step with them.

Test and pretraining material; rates and spreads are round numbers of our own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tsfm.errors import InputError
from tsfm.simulation.ecg_findings import EcgFindings

Signal = npt.NDArray[np.float64]

KINDS = ("normal", "atrial_premature", "ventricular_premature")
NORMAL, ATRIAL, VENTRICULAR = range(3)

_MARGIN_S = 0.8  # of time simulated before and behind the record
_REFRACTORY_S = 0.30


@dataclass(frozen=True, eq=False)
class BeatTrain:
    """Beats of one record.

    Attributes:
        times_s: (n,) moments of the R waves from the record's start; some lie just outside it.
        intervals_s: (n,) time since the beat before.
        kinds: (n,) places in `KINDS`.
        flutter_hz: Rate of the flutter waves; 0 without flutter.
        breaths_hz: Rate of breathing.
        breath_phase: Of the breathing at the record's start, radians.
    """

    times_s: Signal
    intervals_s: Signal
    kinds: npt.NDArray[np.int64]
    flutter_hz: float
    breaths_hz: float
    breath_phase: float


def draw_beats(rng: np.random.Generator, findings: EcgFindings, *, duration_s: float) -> BeatTrain:
    """Draw the beats of one record.

    The mean interval of the underlying rhythm is that of `heart_rate_bpm`, before early beats come.
    They raise the rate: a ventricular beat in a regular rhythm is paid back by its pause, an atrial
    one, or any in fibrillation or flutter, is not.

    Args:
        rng: Source of chance.
        findings: Rhythm, rate and shares of early beats are taken from here.
        duration_s: Length of the record.

    Raises:
        InputError: `bad_duration`.
    """
    if not 0 < duration_s < math.inf:
        raise InputError(
            "no such duration", code="bad_duration", place="duration_s",
            remedy="Give some seconds.",
        )  # fmt: skip
    mean_s = 60.0 / findings.heart_rate_bpm
    n = math.ceil((duration_s + 2 * _MARGIN_S) / mean_s)
    # Early beats shorten the train by a share of their interval, which is not always paid back.
    n += max(5, math.ceil(n * 0.5 * (findings.atrial_ectopy + findings.ventricular_ectopy)))
    breaths_hz, phase = rng.uniform(0.15, 0.35), rng.uniform(0, 2 * np.pi)
    flutter_hz = 0.0
    if findings.rhythm == "atrial_fibrillation":
        floor = min(_REFRACTORY_S, 0.65 * mean_s) / mean_s
        relative = floor + (1 - floor) * rng.gamma(rng.uniform(2.5, 5.0), 1.0, n)
        relative = floor + (relative - floor) * (1 - floor) / np.mean(relative - floor)
    elif findings.rhythm == "atrial_flutter":
        relative, flutter_hz = _flutter(rng, n, mean_s)
    elif findings.rhythm == "paced":
        relative = np.ones(n)
    else:
        age = rng.random()  # the old breathe less into their rhythm
        depth = 0.07 * (1 - age) ** 1.5 + 0.006
        breath = np.sin(2 * np.pi * breaths_hz * mean_s * np.arange(n) + phase)
        relative = 1 + depth * breath + _wander(rng, n) * rng.uniform(0.006, 0.040)
        relative /= relative.mean()
    intervals = mean_s * relative
    kinds = _draw_kinds(rng, findings, n)
    early = rng.uniform(0.60, 0.78, 2)  # of the interval; one focus keeps its coupling
    for i in np.flatnonzero(kinds == ATRIAL):
        intervals[i] *= early[0] + rng.normal(0, 0.02)
        intervals[i + 1] *= 1.04
    for i in np.flatnonzero(kinds == VENTRICULAR):
        gain = (1 - early[1] + rng.normal(0, 0.01)) * intervals[i]
        intervals[i] -= gain
        if findings.rhythm not in ("atrial_fibrillation", "atrial_flutter"):
            intervals[i + 1] += gain
    start = -_MARGIN_S - rng.random() * mean_s
    times = start + np.cumsum(intervals)
    keep = times < duration_s + _MARGIN_S
    return BeatTrain(times[keep], intervals[keep], kinds[keep], flutter_hz, breaths_hz, phase)


def atrial_waves(
    rng: np.random.Generator, findings: EcgFindings, beats: BeatTrain, time_s: Signal
) -> Signal:
    """(sample,) waves of a fibrillating or fluttering atrium, about one unit high; else zeros."""
    if findings.rhythm == "atrial_flutter":
        steps = (time_s - beats.times_s[0]) * beats.flutter_hz + rng.random()
        harmonics = np.arange(1, 4)[:, None]
        # A saw with its corners rounded: three harmonics, the last damped.
        weights = np.array([1.0, 0.45, 0.2])[:, None]
        return (weights * np.sin(2 * np.pi * harmonics * steps) / 1.3).sum(0)
    if findings.rhythm != "atrial_fibrillation":
        return np.zeros(len(time_s))
    step_s = time_s[1] - time_s[0] if len(time_s) > 1 else 0.0
    rate_hz = rng.uniform(5.0, 8.0)
    rate = rate_hz + 1.2 * np.sin(2 * np.pi * (rng.uniform(0.2, 0.6) * time_s + rng.random()))
    angle = 2 * np.pi * (np.cumsum(rate) * step_s + rng.random())
    swell = 1 + 0.5 * np.sin(2 * np.pi * (rng.uniform(0.2, 0.5) * time_s + rng.random()))
    return swell * (np.sin(angle) + 0.35 * np.sin(2 * angle + rng.uniform(0, 2 * np.pi)))


def _flutter(rng: np.random.Generator, n: int, mean_s: float) -> tuple[Signal, float]:
    """Intervals of whole flutter waves, relative to the mean, and the rate of the waves."""
    ratio = min(range(2, 9), key=lambda r: abs(r / mean_s - 4.75))
    ratios = np.full(n, ratio)
    if rng.random() < 0.4:
        ratios = np.maximum(ratios + rng.choice([-1, 0, 1], n, p=[0.2, 0.6, 0.2]), 2)
    return ratios / ratios.mean(), float(ratios.mean() / mean_s)


def _draw_kinds(rng: np.random.Generator, findings: EcgFindings, n: int) -> npt.NDArray[np.int64]:
    """Early beats at the shares asked, never two in a row."""
    kinds = np.full(n, NORMAL)
    share = findings.atrial_ectopy + findings.ventricular_ectopy
    if share == 0:
        return kinds
    n_early = min(math.floor(share * n + rng.random()), (n - 2) // 2)
    # Gaps that add up: choosing places in a shorter row and spreading them keeps neighbours apart.
    places = np.sort(rng.choice(n - 2 - n_early, n_early, replace=False)) + np.arange(n_early) + 1
    from_atrium = rng.random(n_early) < findings.atrial_ectopy / share
    kinds[places] = np.where(from_atrium, ATRIAL, VENTRICULAR)
    return kinds


def _wander(rng: np.random.Generator, n: int) -> Signal:
    """(n,) a slow random walk that returns, of unit deviation."""
    memory, series = 0.85, np.empty(n)
    shocks = rng.standard_normal(n) * math.sqrt(1 - memory**2)
    last = rng.standard_normal()
    for i in range(n):
        last = memory * last + shocks[i]
        series[i] = last
    return series
