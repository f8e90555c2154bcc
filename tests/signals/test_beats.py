"""R peaks are found whatever the rate, the gain, the polarity, the gaps and the length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tsfm.errors import InputError
from tsfm.evaluation.beat_matching import match_beats
from tsfm.signals.beats import find_r_peaks, find_r_peaks_in_parts, measured_throughout
from tsfm.simulation.waveforms import Beats, simulate_beats, simulate_ecg

MINUTE_S = 60.0


def rhythm(seed: int, **kind: float | bool) -> Beats:
    settings = {"duration_s": MINUTE_S, "heart_rate_bpm": 75.0, **kind}
    return simulate_beats(np.random.default_rng(seed), **settings)


def lead(
    beats: Beats, fs_hz: float, name: str = "II", noise_mv: float = 0.01, seed: int = 7
) -> np.ndarray:
    signals = simulate_ecg(
        np.random.default_rng(seed), fs_hz=fs_hz, duration_s=MINUTE_S, beats=beats, leads=(name,),
        noise_mv=noise_mv,
    )  # fmt: skip
    return signals[name]


def inside(beats: Beats, edge_s: float = 0.2) -> np.ndarray:
    """Beats whose QRS complex is whole in the record."""
    return beats.times_s[(beats.times_s > edge_s) & (beats.times_s < MINUTE_S - edge_s)]


def assert_found(beats: Beats, peaks: np.ndarray, fs_hz: float, tolerance_s: float) -> None:
    assert match_beats(inside(beats), peaks / fs_hz, tolerance=tolerance_s).n_missed == 0
    assert match_beats(beats.times_s, peaks / fs_hz, tolerance=tolerance_s).n_extra == 0


@pytest.mark.parametrize("fs_hz", [50.0, 64.0, 100.0, 128.0, 180.5, 250.0, 360.0, 500.0, 1000.0])
def test_every_beat_is_found_at_any_rate(fs_hz: float) -> None:
    beats = rhythm(1)
    tolerance_s = max(0.012, 1.5 / fs_hz)
    assert_found(beats, find_r_peaks(lead(beats, fs_hz), fs_hz=fs_hz), fs_hz, tolerance_s)


@pytest.mark.parametrize("heart_rate_bpm", [30.0, 50.0, 110.0, 180.0])
def test_slow_and_fast_hearts(heart_rate_bpm: float) -> None:
    beats = rhythm(2, heart_rate_bpm=heart_rate_bpm)
    peaks = find_r_peaks(lead(beats, 250.0), fs_hz=250.0)
    assert_found(beats, peaks, 250.0, 0.012)


@pytest.mark.parametrize("heart_rate_bpm", [220.0, 250.0])
def test_a_tachycardia_with_narrow_complexes_is_not_taken_for_fibrillation(
    heart_rate_bpm: float,
) -> None:
    step_s = 60 / heart_rate_bpm
    n = round(heart_rate_bpm)
    jitter = np.random.default_rng(0).normal(0, 0.01, n)
    times = np.asarray(step_s * (np.arange(n) + 0.5 + jitter), np.float64)
    beats = Beats(times, np.full(n, step_s), np.zeros(n, np.bool_), atrial_fibrillation=False)
    at = find_r_peaks(lead(beats, 360.0), fs_hz=360.0) / 360.0
    found = match_beats(inside(beats), at, tolerance=0.02)
    assert found.n_missed == 0
    assert found.n_extra <= 2


def test_fibrillation_and_ectopic_beats() -> None:
    irregular = rhythm(3, atrial_fibrillation=True, heart_rate_bpm=95.0)
    assert_found(irregular, find_r_peaks(lead(irregular, 250.0), fs_hz=250.0), 250.0, 0.012)
    early = rhythm(4, ectopic_fraction=0.2)
    assert early.ectopic.sum() > 5
    assert_found(early, find_r_peaks(lead(early, 250.0), fs_hz=250.0), 250.0, 0.05)


@pytest.mark.parametrize("name", ["I", "aVR", "V1", "V2", "V6"])
def test_leads_of_either_polarity(name: str) -> None:
    """In aVR the R wave points down; in V1 the S wave, 28 ms later, is the largest."""
    beats = rhythm(5)
    peaks = find_r_peaks(lead(beats, 360.0, name), fs_hz=360.0)
    assert_found(beats, peaks, 360.0, 0.045)
    late = [peaks[j] / 360 - beats.times_s[i] for i, j in match_beats(
        beats.times_s, peaks / 360, tolerance=0.045).pairs]  # fmt: skip
    assert np.ptp(late) < 0.012  # always on the same deflection


def test_gain_offset_and_sign_change_nothing() -> None:
    ecg = lead(rhythm(6), 360.0)
    peaks = find_r_peaks(ecg, fs_hz=360.0)
    assert len(peaks) > 60
    for other in (ecg * 2.0**12, ecg * 2.0**-20, -ecg):
        assert np.array_equal(find_r_peaks(other, fs_hz=360.0), peaks)
    assert np.array_equal(find_r_peaks(ecg + 64.0, fs_hz=360.0), peaks)
    counts = np.rint(ecg * 200)
    as_float = find_r_peaks(counts, fs_hz=360.0)
    assert np.array_equal(find_r_peaks(counts.astype(np.int16), fs_hz=360.0), as_float)


def test_a_gap_costs_only_the_beats_in_it() -> None:
    beats, fs_hz = rhythm(8), 360.0
    ecg = lead(beats, fs_hz)
    for start_s in (7.3, 20.0, 41.5):
        ecg[round(start_s * fs_hz) : round((start_s + 0.8) * fs_hz)] = np.nan
    peaks = find_r_peaks(ecg, fs_hz=fs_hz)
    assert np.isfinite(ecg[peaks]).all()
    there = [
        t for t in inside(beats)
        if np.isfinite(ecg[round((t - 0.06) * fs_hz) : round((t + 0.06) * fs_hz)]).all()
    ]  # fmt: skip
    assert len(there) < len(inside(beats))
    assert match_beats(np.array(there), peaks / fs_hz, tolerance=0.012).n_missed == 0
    assert match_beats(beats.times_s, peaks / fs_hz, tolerance=0.02).n_extra == 0


def test_samples_lost_one_by_one_cost_nothing() -> None:
    beats, fs_hz = rhythm(9), 250.0
    ecg = lead(beats, fs_hz)
    ecg[np.random.default_rng(0).random(len(ecg)) < 0.05] = np.nan
    assert_found(beats, find_r_peaks(ecg, fs_hz=fs_hz), fs_hz, 0.02)


def test_what_holds_no_beats_has_none() -> None:
    noise = np.random.default_rng(0).standard_normal(20_000)
    for ecg in (noise, np.full(20_000, 3.0), np.full(20_000, np.nan), np.zeros(3), np.zeros(0)):
        peaks = find_r_peaks(ecg, fs_hz=360.0)
        assert peaks.dtype == np.int64
        assert peaks.size == 0


def test_waves_of_ventricular_fibrillation_are_no_beats_and_cost_none_beside_them() -> None:
    beats, fs_hz = rhythm(10), 360.0
    ecg = lead(beats, fs_hz)
    t = np.arange(len(ecg)) / fs_hz
    wild = (t >= 24) & (t < 36)
    ecg[wild] = 0.8 * np.sin(2 * np.pi * (4.5 * t[wild] + 0.1 * np.sin(2 * np.pi * 0.7 * t[wild])))
    at = find_r_peaks(ecg, fs_hz=fs_hz) / fs_hz
    assert ((at > 25) & (at < 35)).sum() <= 3  # of 45 waves
    kept = inside(beats)
    kept = kept[(kept < 20) | (kept > 40)]
    assert match_beats(kept, at, tolerance=0.012).n_missed == 0


def test_a_heart_that_pauses_is_not_filled_up_with_noise() -> None:
    beats, fs_hz = rhythm(11), 250.0
    ecg = lead(beats, fs_hz)
    silent = slice(round(30 * fs_hz), round(42 * fs_hz))
    ecg[silent] = np.random.default_rng(1).normal(0, 0.01, 12 * round(fs_hz))
    at = find_r_peaks(ecg, fs_hz=fs_hz) / fs_hz
    assert not ((at > 30.2) & (at < 41.8)).any()


@pytest.mark.parametrize("band_hz", [(0.1, 0.6), (1.0, 9.0), (30.0, 120.0)])
def test_noise_as_strong_as_the_signal_costs_few_beats(band_hz: tuple[float, float]) -> None:
    """Wander, moving electrodes, muscle: at least 97 of 100 beats, and as many true."""
    from scipy.signal import butter, sosfiltfilt

    rng = np.random.default_rng(12)
    beats, fs_hz = rhythm(12), 360.0
    ecg = lead(beats, fs_hz)
    noise = sosfiltfilt(
        butter(2, band_hz, "bandpass", fs=fs_hz, output="sos"), rng.standard_normal(len(ecg))
    )
    noisy = ecg + noise * ecg.std() / noise.std()
    found = match_beats(inside(beats), find_r_peaks(noisy, fs_hz=fs_hz) / fs_hz, tolerance=0.05)
    assert found.sensitivity > 0.97
    assert found.positive_predictivity > 0.95


def test_a_long_record_in_parts_is_read_in_bounded_pieces_and_has_no_seams() -> None:
    fs_hz, minutes = 128.0, 90
    beats = rhythm(13)
    minute = lead(beats, fs_hz)
    pieces = []

    def read(start: int, stop: int) -> np.ndarray:
        pieces.append(stop - start)
        return minute[np.arange(start, stop) % len(minute)]

    n = minutes * len(minute)
    peaks = find_r_peaks_in_parts(read, n, fs_hz=fs_hz)
    assert max(pieces) < 25 * len(minute)
    assert np.array_equal(peaks, find_r_peaks(minute[np.arange(n) % len(minute)], fs_hz=fs_hz))
    assert (np.diff(peaks) > 0.2 * fs_hz).all()
    # The same minute gives the same beats, wherever it lies: those within it, away from its edges.
    phase = peaks % len(minute)
    kept = (phase > fs_hz) & (phase < len(minute) - fs_hz)
    counts = np.bincount(peaks[kept] // len(minute), minlength=minutes)
    assert set(counts) == {counts[0]}
    assert counts[0] > 60


def test_the_answer_does_not_wait_for_units_or_shapes_to_be_guessed() -> None:
    with pytest.raises(InputError, match="not one lead") as caught:
        find_r_peaks(np.zeros((2, 500)), fs_hz=250.0)
    assert caught.value.code == "bad_signal_shape"
    for rate in (0.0, 49.0, -250.0, np.nan, np.inf):
        with pytest.raises(InputError) as caught:
            find_r_peaks(np.zeros(500), fs_hz=rate)
        assert caught.value.code == "bad_sampling_rate"


def test_real_records_of_either_kind(data_dir: Callable[[str], Path]) -> None:
    """101 is plain; 102 is paced, 119 has ectopic beats in pairs with normal ones."""
    wfdb = pytest.importorskip("wfdb")
    folder = data_dir("wfdb/mitdb")
    for name in ("101", "102", "119"):
        signal = wfdb.rdrecord(str(folder / name), sampto=108_000).p_signal[:, 0]
        marks = wfdb.rdann(str(folder / name), "atr", sampto=108_000)
        beats = [
            at for at, symbol in zip(marks.sample, marks.symbol, strict=True)
            if symbol in "NLRBejnrAaJSVEF/fQ"
        ]  # fmt: skip
        found = match_beats(beats, find_r_peaks(signal, fs_hz=360.0), tolerance=54)
        assert len(beats) > 300
        assert found.sensitivity > 0.99
        assert found.positive_predictivity > 0.98


def test_an_interval_is_measured_throughout_if_no_gap_could_hide_a_beat() -> None:
    there = np.ones(1000, np.bool_)
    there[150:153] = False  # 12 ms
    there[300:360] = False
    there[540:580] = False  # the peak at 560 was put into it
    peaks = np.array([100, 200, 280, 400, 500, 560, 600, 700])
    found = measured_throughout(peaks, there, fs_hz=250.0)
    assert found.tolist() == [True, True, False, True, False, False, True]
    assert len(measured_throughout(peaks[:1], there, fs_hz=250.0)) == 0
    assert len(measured_throughout(peaks[:0], there, fs_hz=250.0)) == 0
