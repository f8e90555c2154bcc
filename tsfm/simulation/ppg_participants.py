"""Simulated participants whose pulses look like their own: material to train and test encoders on.

A participant is a pulse shape (when and how high the dicrotic wave comes, how wide both waves are,
how skewed), a resting rate, how much the rate and the pulse follow the breath, and how noisy the
sensor sits. A segment is a few seconds to minutes of one participant at a rate near the resting
one. Two segments share the shape and the habits, not the beats.

Distributions are plausible round numbers of our own, wide enough that people differ and overlap.
They know nothing of age or disease, and what an encoder finds in them says nothing about people.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tsfm.errors import InputError
from tsfm.simulation.waveforms import LONGEST_S, MAX_FS_HZ

Signal = npt.NDArray[np.float64]

_REACH_S = 1.2  # of one pulse from its foot


@dataclass(frozen=True)
class PpgParticipant:
    """What stays the same in all segments of a participant.

    Attributes:
        heart_rate_bpm: Resting rate.
        systole_s: From the foot to the systolic peak.
        systole_width_s: Of the systolic wave, before its peak.
        skew: How many times as wide it is behind the peak.
        dicrotic_s: From the systolic to the dicrotic peak.
        dicrotic_width_s: Of the dicrotic wave.
        dicrotic: Its height, in systolic heights.
        breaths_hz: Breathing rate at rest.
        sinus_arrhythmia: Share by which the interval follows the breath.
        wander: Share by which it wanders.
        pulse_breath: Share by which the height follows the breath.
        baseline_breath: Height of the baseline's breathing, in systolic heights.
        noise: Deviation of white noise, in systolic heights.
    """

    heart_rate_bpm: float
    systole_s: float
    systole_width_s: float
    skew: float
    dicrotic_s: float
    dicrotic_width_s: float
    dicrotic: float
    breaths_hz: float
    sinus_arrhythmia: float
    wander: float
    pulse_breath: float
    baseline_breath: float
    noise: float


def draw_participant(rng: np.random.Generator) -> PpgParticipant:
    """Draw a participant; each property by itself."""
    uniform = rng.uniform
    return PpgParticipant(
        heart_rate_bpm=uniform(52, 100),
        systole_s=uniform(0.10, 0.17),
        systole_width_s=uniform(0.045, 0.075),
        skew=uniform(1.0, 1.8),
        dicrotic_s=uniform(0.18, 0.34),
        dicrotic_width_s=uniform(0.05, 0.11),
        dicrotic=uniform(0.05, 0.65),
        breaths_hz=uniform(0.15, 0.38),
        sinus_arrhythmia=float(np.exp(uniform(math.log(0.004), math.log(0.06)))),
        wander=float(np.exp(uniform(math.log(0.004), math.log(0.04)))),
        pulse_breath=uniform(0.01, 0.15),
        baseline_breath=float(np.exp(uniform(math.log(0.01), math.log(0.4)))),
        noise=float(np.exp(uniform(math.log(0.003), math.log(0.05)))),
    )


def simulate_participant(
    rng: np.random.Generator, participant: PpgParticipant, *, fs_hz: float, duration_s: float
) -> Signal:
    """Simulate one segment, (n_samples,) in systolic heights.

    Args:
        rng: Source of chance.
        participant: Whose segment it is.
        fs_hz: Sampling rate.
        duration_s: Length, a week at most.

    Raises:
        InputError: `bad_segment`.
    """
    _require(fs_hz, duration_s, "simulate_participant")
    # A moment of the day: rate and breath differ between segments of one participant.
    mean_s = 60.0 / float(np.clip(rng.normal(participant.heart_rate_bpm, 5.0), 40, 150))
    breaths_hz = participant.breaths_hz * float(np.clip(rng.normal(1.0, 0.08), 0.7, 1.3))
    phase = rng.uniform(0, 2 * np.pi)
    feet, intervals = _beats(rng, participant, mean_s, breaths_hz, phase, duration_s)
    time = np.arange(round(duration_s * fs_hz)) / fs_hz
    breath = np.sin(2 * np.pi * breaths_hz * time + phase)
    values = participant.baseline_breath * breath
    heights = 1 + participant.pulse_breath * np.sin(2 * np.pi * breaths_hz * feet + phase + 1.0)
    for foot, interval_s, height in zip(feet, intervals, heights, strict=True):
        first, last = np.searchsorted(time, [foot - 0.2, foot + _REACH_S])
        stretch = math.sqrt(min(max(interval_s, 0.4), 1.4))
        values[first:last] += height * _pulse(time[first:last] - foot, participant, stretch)
    drift = 0.3 * rng.normal() * np.sin(2 * np.pi * rng.uniform(0.01, 0.05) * time + phase)
    return values + drift + participant.noise * rng.standard_normal(len(time))


def simulate_cohort(
    rng: np.random.Generator, *, n_participants: int, n_segments: int, fs_hz: float,
    duration_s: float,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:  # fmt: skip
    """Draw participants and some segments of each.

    Args:
        rng: Source of chance.
        n_participants: How many.
        n_segments: Of each.
        fs_hz: Sampling rate.
        duration_s: Length of a segment.

    Returns:
        (n_participants * n_segments, 1, n_samples) segments, and the participant of each from 0.

    Raises:
        InputError: `bad_segment`.
    """
    _require(fs_hz, duration_s, "simulate_cohort")
    if n_participants < 0 or n_segments < 0:
        raise InputError(
            "no such cohort", code="bad_segment", place="simulate_cohort",
            remedy="Give 0 or more participants and segments.",
        )  # fmt: skip
    segments = [
        simulate_participant(rng, participant, fs_hz=fs_hz, duration_s=duration_s)
        for participant in [draw_participant(rng) for _ in range(n_participants)]
        for _ in range(n_segments)
    ]
    owners = np.repeat(np.arange(n_participants, dtype=np.int64), n_segments)
    n_samples = round(duration_s * fs_hz)
    return np.array(segments, np.float32).reshape(len(owners), 1, n_samples), owners


def _require(fs_hz: float, duration_s: float, place: str) -> None:
    if not (0 < fs_hz <= MAX_FS_HZ and 0 < duration_s <= LONGEST_S):
        raise InputError(
            "no such segment", code="bad_segment", place=place,
            remedy=f"Give a rate of up to {MAX_FS_HZ:g} Hz and up to {LONGEST_S:g} seconds.",
        )  # fmt: skip


def _beats(
    rng: np.random.Generator, participant: PpgParticipant, mean_s: float, breaths_hz: float,
    phase: float, duration_s: float,
) -> tuple[Signal, Signal]:  # fmt: skip
    """Feet of the pulses and the intervals before them."""
    time, wander = -_REACH_S - rng.uniform(0, mean_s), 0.0
    feet, intervals = [], []
    while time < duration_s + 0.2:
        wander = 0.9 * wander + math.sqrt(1 - 0.81) * participant.wander * rng.standard_normal()
        breath = participant.sinus_arrhythmia * math.sin(2 * np.pi * breaths_hz * time + phase)
        interval = mean_s * max(0.5, 1.0 + breath + wander)
        time += interval
        feet.append(time)
        intervals.append(interval)
    return np.array(feet), np.array(intervals)


def _pulse(time_s: Signal, participant: PpgParticipant, stretch: float) -> Signal:
    """One pulse from its foot; a longer interval makes it longer."""
    from_peak = time_s - participant.systole_s
    width = participant.systole_width_s * np.where(from_peak > 0, participant.skew, 1.0)
    from_notch = from_peak - participant.dicrotic_s * stretch
    return np.exp(-0.5 * (from_peak / width) ** 2) + participant.dicrotic * np.exp(
        -0.5 * (from_notch / (participant.dicrotic_width_s * stretch)) ** 2
    )
