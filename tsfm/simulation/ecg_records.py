"""Simulated twelve-lead electrocardiograms with everything known about them.

A record is a heart (`ecg_findings`), its waves (`ecg_morphology`) and its beats (`ecg_rhythm`) put
together: each beat's waves are evaluated around it, turn and swell a little with the breath, and
are projected on the leads. Noise arises at the nine electrodes, so a loose one disturbs exactly the
leads that use it and the limb leads still agree: wander, muscle and motion of `signal_noise`,
the breath, and mains hum, each at a level of the record's own.

Beside the signal stand its truths: beats and their origin, onsets and ends, binary labels,
superclasses and numeric targets. This is test and pretraining material, no model of a heart, and
nothing about real recordings may be concluded from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tsfm.errors import InputError
from tsfm.signals.store import STANDARD_LEADS
from tsfm.simulation.ecg_findings import (
    LABELS,
    EcgFindings,
    draw_findings,
    label_findings,
    superclasses,
)
from tsfm.simulation.ecg_morphology import Heart, Waves, draw_heart, twelve_leads, wave_values
from tsfm.simulation.ecg_rhythm import (
    ATRIAL,
    NORMAL,
    VENTRICULAR,
    BeatTrain,
    atrial_waves,
    draw_beats,
)
from tsfm.simulation.signal_noise import make_noise

Signal = npt.NDArray[np.float64]

TARGETS = (
    "heart_rate_bpm", "pr_ms", "qrs_ms", "qt_ms", "axis_deg", "r_v5_mv", "s_v1_mv", "r_v1_mv",
    "r_avl_mv", "st_ii_mv", "st_v2_mv", "st_v5_mv", "t_ii_mv", "t_v2_mv", "t_v5_mv",
)  # fmt: skip

_BEFORE_S, _AFTER_S = 0.45, 0.85  # of a beat's waves, from its QRS onset
_FINE_HZ = 500.0
_MEDIAN_NOISE_MV = {"wander": 0.030, "muscle": 0.006, "electrode": 0.004}
_SPREAD_NOISE = {"wander": 0.8, "muscle": 0.7, "electrode": 1.0}
_LEAST_FS_HZ, _LEAST_S = 60.0, 2.0


@dataclass(frozen=True, eq=False)
class SimulatedEcg:
    """One record and its truth.

    Attributes:
        signal_mv: (12, sample) millivolts.
        fs_hz: Sampling rate.
        leads: Names of the rows, as in `STANDARD_LEADS`.
        findings: What the heart has.
        beat_times_s: (beat,) moments of the longest QRS vector, of the beats inside the record.
        beat_kinds: (beat,) places in `ecg_rhythm.KINDS`.
        qrs_onset_s: (beat,) where the QRS complex begins.
        qrs_end_s: (beat,) where it ends.
        p_onset_s: (beat,) where the P wave begins; NaN where the beat has none.
        targets: (target,) values of `TARGETS`, of a usual beat without noise; NaN where absent.
            `heart_rate_bpm` is that of the underlying rhythm: early beats that are not paid back
            make the signal's faster (`ecg_rhythm.draw_beats`).
    """

    signal_mv: npt.NDArray[np.float32]
    fs_hz: float
    leads: tuple[str, ...]
    findings: EcgFindings
    beat_times_s: Signal
    beat_kinds: npt.NDArray[np.int64]
    qrs_onset_s: Signal
    qrs_end_s: Signal
    p_onset_s: Signal
    targets: Signal

    @property
    def labels(self) -> npt.NDArray[np.bool_]:
        """(label,) `ecg_findings.LABELS`; early beats only where the record shows some."""
        found = label_findings(self.findings)
        found[LABELS.index("atrial_ectopy")] = (self.beat_kinds == ATRIAL).any()
        found[LABELS.index("ventricular_ectopy")] = (self.beat_kinds == VENTRICULAR).any()
        return found

    @property
    def superclasses(self) -> npt.NDArray[np.bool_]:
        """(5,) whether each of `ecg_findings.SUPERCLASSES` holds."""
        return superclasses(self.findings)


def simulate_record(
    rng: np.random.Generator, findings: EcgFindings | None = None, *, fs_hz: float,
    duration_s: float = 10.0, noise: float = 1.0,
) -> SimulatedEcg:  # fmt: skip
    """Simulate one record.

    Args:
        rng: Source of chance.
        findings: What the heart has; drawn if not given.
        fs_hz: Sampling rate, 60 to 2000.
        duration_s: Length, 2 to 3600 seconds.
        noise: Factor on the drawn levels of noise; 0 for none.

    Raises:
        InputError: `bad_recording`: a rate, length or noise that cannot be.
    """
    _require(fs_hz, duration_s, noise)
    findings = draw_findings(rng) if findings is None else findings
    heart = draw_heart(rng, findings)
    beats = draw_beats(rng, findings, duration_s=duration_s)
    time_s = np.arange(round(duration_s * fs_hz)) / fs_hz
    dipole = _draw_dipole(heart, beats, findings, time_s, fs_hz)
    dipole[3:] += heart.atrium_mv[:, None] * atrial_waves(rng, findings, beats, time_s)
    independent = heart.leads @ dipole
    if noise > 0:
        independent += noise * _lead_noise(rng, beats, time_s, fs_hz)
    inside = (beats.times_s >= 0) & (beats.times_s < duration_s)
    times, kinds = beats.times_s[inside], beats.kinds[inside]
    onset = times - np.array([heart.waves[k].peak_s for k in kinds])
    has_p = np.array([(heart.waves[k].p_onset_s is not None) for k in kinds], np.bool_)
    p_from = np.array([heart.waves[k].p_onset_s or 0.0 for k in kinds])
    return SimulatedEcg(
        signal_mv=twelve_leads(independent).astype(np.float32),
        fs_hz=float(fs_hz),
        leads=tuple(STANDARD_LEADS),
        findings=findings,
        beat_times_s=times,
        beat_kinds=kinds,
        qrs_onset_s=onset,
        qrs_end_s=onset + np.array([heart.waves[k].qrs_s for k in kinds]),
        p_onset_s=np.where(has_p, onset + p_from, np.nan),
        targets=_measure(heart, findings),
    )


def simulate_records(
    seed: int, n: int, *, fs_hz: float, duration_s: float = 10.0, noise: float = 1.0
) -> Iterator[SimulatedEcg]:
    """Simulate `n` records one by one; record `i` depends on `seed` and `i` only.

    Args:
        seed: 0 or more.
        n: How many.
        fs_hz: See `simulate_record`.
        duration_s: See `simulate_record`.
        noise: See `simulate_record`.

    Raises:
        InputError: `bad_recording`.
    """
    if seed < 0 or n < 0:
        _refuse("seed, n", "Give numbers of 0 or more.")
    _require(fs_hz, duration_s, noise)
    return (
        simulate_record(
            np.random.default_rng((seed, i)), fs_hz=fs_hz, duration_s=duration_s, noise=noise
        )
        for i in range(n)
    )


def _draw_dipole(
    heart: Heart, beats: BeatTrain, findings: EcgFindings, time_s: Signal, fs_hz: float
) -> Signal:
    """(6, sample) the vectors of ventricles and atria, without noise."""
    reach, before = math.ceil((_BEFORE_S + _AFTER_S) * fs_hz), math.ceil(_BEFORE_S * fs_hz)
    margin = reach + math.ceil(2 * fs_hz)
    dipole = np.zeros((6, len(time_s) + 2 * margin))
    mean_s = 60.0 / findings.heart_rate_bpm
    # Repolarisation follows the interval before, with less than its whole root within one beat.
    stretch = np.clip(beats.intervals_s / mean_s, 0.5, 1.5) ** 0.3 - 1
    delays = findings.qt_ms / 1000 * stretch
    breath = np.sin(2 * np.pi * beats.breaths_hz * beats.times_s + beats.breath_phase)
    for kind, waves in heart.waves.items():
        of_kind = np.flatnonzero(beats.kinds == kind)
        if not len(of_kind):
            continue
        onset = beats.times_s[of_kind] - waves.peak_s
        first = np.ceil(onset * fs_hz).astype(np.int64) - before
        local = (first[:, None] + np.arange(reach)) / fs_hz - onset[:, None]
        shapes = wave_values(waves, local, delays[of_kind])
        moved = np.einsum("kv,bkn->bvn", waves.vector_mv, shapes)
        swell = 1 + heart.breath[0] * breath[of_kind]
        angle = heart.breath[1] * breath[of_kind]
        moved *= swell[:, None, None]
        x, y = moved[:, ::3].copy(), moved[:, 1::3].copy()
        cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
        moved[:, ::3], moved[:, 1::3] = cos * x - sin * y, sin * x + cos * y
        for start, values in zip(first + margin, moved, strict=True):
            dipole[:, start : start + reach] += values
    return dipole[:, margin : margin + len(time_s)]


def _lead_noise(rng: np.random.Generator, beats: BeatTrain, time_s: Signal, fs_hz: float) -> Signal:
    """(8, sample) noise in I, II, V1 to V6 from nine electrodes: both arms, a leg, the chest."""
    n = len(time_s)
    noise = np.zeros((9, n))
    for kind, median in _MEDIAN_NOISE_MV.items():
        level = median * np.exp(rng.normal(0, _SPREAD_NOISE[kind]))
        each = level * np.exp(rng.normal(0, 0.5, (9, 1)))
        # One long row cut in nine costs one filter; the pieces know nothing of each other.
        noise += each * make_noise(kind, 9 * n, fs_hz, rng).reshape(9, n)
    breath = np.sin(2 * np.pi * beats.breaths_hz * time_s + beats.breath_phase)
    noise += 0.02 * np.exp(rng.normal(0, 0.8)) * rng.normal(0, 1, (9, 1)) * breath
    noise += 0.003 * np.exp(rng.normal(0, 0.6)) * rng.standard_normal((9, n))
    mains_hz = 50.0 if rng.random() < 0.5 else 60.0
    hum = rng.random() < 0.25
    if hum and fs_hz > 2.2 * mains_hz:
        phase = rng.uniform(0, 2 * np.pi, (9, 1))
        size = 0.008 * np.exp(rng.normal(0, 0.7)) * rng.random((9, 1))
        noise += size * np.sin(2 * np.pi * mains_hz * time_s + phase)
    right, left, foot = noise[:3]
    return np.vstack([left - right, foot - right, noise[3:] - noise[:3].mean(0)])


def _measure(heart: Heart, findings: EcgFindings) -> Signal:
    """(target,) of the usual beat at its mean interval."""
    waves = heart.waves[NORMAL]
    time = np.arange(-_BEFORE_S, _AFTER_S, 1 / _FINE_HZ)
    shapes = wave_values(waves, time, np.array(0.0))
    leads = twelve_leads(heart.leads @ (waves.vector_mv.T @ shapes))
    lead = dict(zip(STANDARD_LEADS, leads, strict=True))
    qrs = (time >= 0) & (time <= waves.qrs_s)
    area_one, area_foot = lead["I"][qrs].sum(), lead["aVF"][qrs].sum()
    j60 = int(np.searchsorted(time, waves.qrs_s + 0.06))
    t_at = int(np.searchsorted(time, _t_peak_s(waves)))
    return np.array([
        findings.heart_rate_bpm, findings.pr_ms if findings.rhythm == "sinus" else np.nan,
        findings.qrs_ms, findings.qt_ms, math.degrees(math.atan2(area_foot, area_one)),
        lead["V5"][qrs].max(), lead["V1"][qrs].min(), lead["V1"][qrs].max(),
        lead["aVL"][qrs].max(), lead["II"][j60], lead["V2"][j60], lead["V5"][j60],
        lead["II"][t_at], lead["V2"][t_at], lead["V5"][t_at],
    ])  # fmt: skip


def _t_peak_s(waves: Waves) -> float:
    return float(waves.centre_s[waves.part == 2][1])


def _require(fs_hz: float, duration_s: float, noise: float) -> None:
    if not _LEAST_FS_HZ <= fs_hz <= 2000:
        _refuse("fs_hz", f"Give {_LEAST_FS_HZ:g} to 2000.")
    if not _LEAST_S <= duration_s <= 3600:
        _refuse("duration_s", f"Give {_LEAST_S:g} to 3600 seconds.")
    if not 0 <= noise < math.inf:
        _refuse("noise", "Give 0 or more.")


def _refuse(place: str, remedy: str) -> None:
    raise InputError("no such recording", code="bad_recording", place=place, remedy=remedy)
