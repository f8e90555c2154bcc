"""Simulated signals have the rhythm they were asked for."""

from __future__ import annotations

import numpy as np
import pytest

from tsfm.errors import InputError
from tsfm.signals.store import STANDARD_LEADS
from tsfm.simulation.waveforms import simulate_beats, simulate_ecg, simulate_ppg


def find_peaks_s(values: np.ndarray, fs_hz: float, *, above: float, apart_s: float) -> np.ndarray:
    """Times of the highest sample of each run above a height; later ones too near are dropped."""
    is_peak = (values[1:-1] > values[:-2]) & (values[1:-1] >= values[2:]) & (values[1:-1] > above)
    kept: list[float] = []
    for at in (np.flatnonzero(is_peak) + 1) / fs_hz:
        if not kept or at - kept[-1] > apart_s:
            kept.append(at)
    return np.array(kept)


@pytest.mark.parametrize("rate", [40.0, 75.0, 160.0])
def test_heart_rate_is_recovered_from_the_r_peaks(rate: float) -> None:
    ecg = simulate_ecg(np.random.default_rng(1), fs_hz=500, duration_s=120, heart_rate_bpm=rate)
    peaks = find_peaks_s(ecg["II"], 500, above=0.6, apart_s=0.2)
    assert 60 / np.diff(peaks).mean() == pytest.approx(rate, rel=0.01)


def test_r_peaks_are_where_the_beats_are() -> None:
    rng = np.random.default_rng(2)
    beats = simulate_beats(rng, duration_s=30, heart_rate_bpm=70)
    ecg = simulate_ecg(rng, fs_hz=500, duration_s=30, beats=beats, noise_mv=0.0)["V5"]
    inside = beats.times_s[(beats.times_s > 0.1) & (beats.times_s < 29.9)]
    peaks = find_peaks_s(ecg, 500, above=0.6, apart_s=0.2)
    assert np.abs(peaks[:, None] - inside).min(axis=0).max() < 0.005


def test_pulse_follows_its_beat() -> None:
    rng = np.random.default_rng(3)
    beats = simulate_beats(rng, duration_s=60, heart_rate_bpm=72)
    ecg = simulate_ecg(rng, fs_hz=250, duration_s=60, beats=beats)["II"]
    ppg = simulate_ppg(rng, fs_hz=125, duration_s=60, beat_times_s=beats.times_s)
    r_peaks = find_peaks_s(ecg, 250, above=0.6, apart_s=0.2)
    pulses = find_peaks_s(ppg, 125, above=0.7, apart_s=0.4)
    lags = np.array([pulses[pulses > r][0] - r for r in r_peaks[:-2]])
    assert lags.min() > 0.2
    assert np.median(lags) == pytest.approx(0.32, abs=0.02)
    assert 60 / np.diff(pulses).mean() == pytest.approx(72, rel=0.01)


def test_fibrillation_is_irregular_and_has_no_p_wave() -> None:
    def p_wave_and_variation(fibrillating: bool) -> tuple[float, float]:
        rng = np.random.default_rng(4)
        beats = simulate_beats(
            rng, duration_s=120, heart_rate_bpm=70, atrial_fibrillation=fibrillating
        )
        ecg = simulate_ecg(rng, fs_hz=250, duration_s=120, beats=beats)["II"]
        inside = beats.times_s[(beats.times_s > 1) & (beats.times_s < 119)]
        windows = np.array([ecg[round(t * 250) - 75 : round(t * 250) - 10] for t in inside])
        average = np.median(windows, axis=0)
        return float(np.ptp(average)), float(beats.intervals_s.std() / beats.intervals_s.mean())

    sinus_p, sinus_variation = p_wave_and_variation(False)
    fibrillation_p, fibrillation_variation = p_wave_and_variation(True)
    assert sinus_p > 0.1 > 0.06 > fibrillation_p
    assert fibrillation_variation > 0.15 > 0.08 > sinus_variation


def test_ectopic_beats_come_early_and_pause_after() -> None:
    beats = simulate_beats(
        np.random.default_rng(5), duration_s=300, heart_rate_bpm=60, ectopic_fraction=0.1
    )
    early = np.flatnonzero(beats.ectopic)
    assert 15 < len(early) < 50
    assert np.all(np.diff(early) > 1)
    assert beats.intervals_s[early].mean() < 0.75
    assert beats.intervals_s[early + 1].mean() > 1.25
    pairs = beats.intervals_s[early] + beats.intervals_s[early + 1]
    assert pairs.mean() == pytest.approx(2.0, rel=0.02)


def test_limb_leads_obey_einthoven_and_goldberger() -> None:
    ecg = simulate_ecg(
        np.random.default_rng(6), fs_hz=100, duration_s=5, heart_rate_bpm=80, leads=STANDARD_LEADS
    )
    assert tuple(ecg) == STANDARD_LEADS
    np.testing.assert_allclose(ecg["I"] + ecg["III"], ecg["II"], atol=1e-12)
    np.testing.assert_allclose(ecg["aVR"] + ecg["aVL"] + ecg["aVF"], 0, atol=1e-12)


def test_a_seed_fixes_the_signal() -> None:
    first, second = (
        simulate_ecg(np.random.default_rng(7), fs_hz=100, duration_s=5, heart_rate_bpm=80)["II"]
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("unknown_lead", {"leads": ("II", "V9"), "heart_rate_bpm": 70}),
        ("no_heart_rate", {}),
        ("bad_rhythm", {"heart_rate_bpm": 700}),
        ("bad_recording", {"heart_rate_bpm": 70, "fs_hz": 0}),
        ("bad_recording", {"heart_rate_bpm": 70, "fs_hz": -250}),
        ("bad_recording", {"heart_rate_bpm": 70, "fs_hz": float("nan")}),
        ("bad_recording", {"heart_rate_bpm": 70, "fs_hz": float("inf")}),
        ("bad_recording", {"heart_rate_bpm": 70, "duration_s": float("inf")}),
        ("bad_recording", {"heart_rate_bpm": 70, "duration_s": 1e300}),
    ],
)
def test_what_is_no_ecg_is_refused(code: str, arguments: dict) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError) as caught:
        simulate_ecg(rng, **{"fs_hz": 100, "duration_s": 5, **arguments})
    assert caught.value.code == code
    if code == "bad_recording":
        with pytest.raises(InputError, match="bad_recording"):
            simulate_ppg(rng, **{"fs_hz": 100, "duration_s": 5, **arguments})


@pytest.mark.parametrize("duration_s", [float("inf"), float("nan"), 0.0, 1e300])
def test_beats_of_no_length_are_refused(duration_s: float) -> None:
    with pytest.raises(InputError, match="bad_recording"):
        simulate_beats(np.random.default_rng(0), duration_s=duration_s, heart_rate_bpm=70)


@pytest.mark.parametrize(
    "rhythm",
    [{"heart_rate_bpm": 180}, {"atrial_fibrillation": True}, {"ectopic_fraction": 0.5}],
    ids=str,
)
def test_beats_have_their_own_rhythm(rhythm: dict) -> None:
    rng = np.random.default_rng(0)
    beats = simulate_beats(rng, duration_s=5, heart_rate_bpm=70)
    with pytest.raises(InputError, match="rhythm_and_beats"):
        simulate_ecg(rng, fs_hz=100, duration_s=5, beats=beats, **rhythm)
    with pytest.raises(InputError, match="rhythm_and_beats"):
        simulate_ppg(rng, fs_hz=9, duration_s=5, beat_times_s=beats.times_s, heart_rate_bpm=70)


def test_a_single_name_is_one_lead() -> None:
    ecg = simulate_ecg(
        np.random.default_rng(0), fs_hz=100, duration_s=5, heart_rate_bpm=70, leads="ii"
    )
    assert list(ecg) == ["II"]


def test_a_fibrillating_record_has_beats_to_its_end() -> None:
    for seed in (1950, *range(40)):
        beats = simulate_beats(
            np.random.default_rng(seed), duration_s=30, heart_rate_bpm=70, atrial_fibrillation=True
        )
        assert beats.times_s[-1] >= 30
        assert len(beats.times_s) == len(beats.intervals_s) == len(beats.ectopic)
        np.testing.assert_allclose(np.diff(beats.times_s), beats.intervals_s[1:])


def test_ectopic_beats_have_the_share_that_is_told() -> None:
    beats = simulate_beats(
        np.random.default_rng(9), duration_s=20_000, heart_rate_bpm=60, ectopic_fraction=0.5
    )
    assert beats.ectopic.mean() == pytest.approx(0.5 / 1.5, abs=0.01)
