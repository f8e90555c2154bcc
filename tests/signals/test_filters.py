"""Filters keep what they promise to keep, at any length, around any gap, in pieces of any size."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from tsfm.errors import InputError
from tsfm.signals.beats import find_r_peaks
from tsfm.signals.filters import (
    CausalFilter,
    band_pass,
    clean_ecg,
    design,
    high_pass,
    low_pass,
    notch,
    resample,
    subtract_wander,
)
from tsfm.simulation.waveforms import simulate_beats, simulate_ecg

FILTERS: dict[str, Callable[..., Any]] = {
    "high_pass": lambda x, **how: high_pass(x, fs_hz=250, cut_hz=0.5, **how),
    "low_pass": lambda x, **how: low_pass(x, fs_hz=250, cut_hz=40, **how),
    "band_pass": lambda x, **how: band_pass(x, fs_hz=250, low_hz=0.5, high_hz=40, **how),
    "notch": lambda x, **how: notch(x, fs_hz=250, mains_hz=50, **how),
}
every_filter = pytest.mark.parametrize("name", FILTERS)


def sine(frequency_hz: float, *, fs_hz: float, duration_s: float) -> np.ndarray:
    return np.sin(2 * np.pi * frequency_hz * np.arange(round(fs_hz * duration_s)) / fs_hz)


def amplitude(x: np.ndarray) -> float:
    """Of a sine, from the middle half."""
    quarter = len(x) // 4
    return float(np.sqrt(2) * x[quarter:-quarter].std())


@pytest.mark.parametrize("zero_phase", [True, False])
@pytest.mark.parametrize("frequency_hz", [0.3, 0.5, 2.0, 20.0, 49.0, 50.0, 90.0])
@every_filter
def test_gain_is_the_one_of_the_closed_form(
    name: str, frequency_hz: float, zero_phase: bool
) -> None:
    def butterworth(ratio: float) -> float:
        return 1 / np.sqrt(1 + ratio**4)

    # The bilinear transform maps f to tan(pi f / fs).
    warped = np.tan(np.pi * frequency_hz / 250)
    low, high = np.tan(np.pi * 0.5 / 250), np.tan(np.pi * 40 / 250)
    band_ratio = abs(warped**2 - low * high) / (warped * (high - low))
    width = np.tan(np.pi * 50 / 30 / 250)
    cosine, mains = np.cos(2 * np.pi * frequency_hz / 250), np.cos(2 * np.pi * 50 / 250)
    stop_ratio = width * np.sin(2 * np.pi * frequency_hz / 250) / max(abs(cosine - mains), 1e-12)
    expected = {
        "high_pass": butterworth(low / warped),
        "low_pass": butterworth(warped / high),
        "band_pass": butterworth(band_ratio),
        "notch": 1 / np.sqrt(1 + stop_ratio**2),
    }[name] ** (2 if zero_phase else 1)
    wave = sine(frequency_hz, fs_hz=250, duration_s=120)
    assert amplitude(FILTERS[name](wave, zero_phase=zero_phase)) == pytest.approx(
        expected, abs=0.005
    )


@every_filter
def test_zero_phase_delays_nothing(name: str) -> None:
    pulse = np.zeros(2001)
    pulse[1000] = 1.0
    out = FILTERS[name](pulse)
    np.testing.assert_allclose(out, out[::-1], atol=1e-6)


@every_filter
def test_a_causal_filter_does_not_know_the_future(name: str) -> None:
    x = np.random.default_rng(0).standard_normal(600)
    changed = np.concatenate([x[:400], x[400:] + 5])
    filtered = FILTERS[name](x, zero_phase=False)
    np.testing.assert_array_equal(filtered[:400], FILTERS[name](changed, zero_phase=False)[:400])
    assert not np.array_equal(FILTERS[name](x)[:400], FILTERS[name](changed)[:400])


@pytest.mark.parametrize("zero_phase", [True, False])
@every_filter
def test_a_record_with_a_gap_equals_its_runs_filtered_apart(name: str, zero_phase: bool) -> None:
    x = np.random.default_rng(1).standard_normal((3, 900)).cumsum(axis=1)
    x[:, 300:340] = np.nan
    x[1, 700] = np.inf  # no measurement either, in one lead alone
    filtered = FILTERS[name](x, zero_phase=zero_phase)
    for lead, runs in enumerate([[(0, 300), (340, 900)], [(0, 300), (340, 700), (701, 900)]]):
        assert np.isnan(filtered[lead]).sum() == 900 - sum(b - a for a, b in runs)
        for a, b in runs:
            apart = FILTERS[name](x[lead, a:b], zero_phase=zero_phase)
            np.testing.assert_allclose(filtered[lead, a:b], apart, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("zero_phase", [True, False])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 40])
@every_filter
def test_a_constant_of_any_length_is_kept_or_taken_away(
    name: str, n: int, zero_phase: bool
) -> None:
    level = 0.0 if name in ("high_pass", "band_pass") else 3.0
    filtered = FILTERS[name](np.full((2, n), 3.0), zero_phase=zero_phase)
    np.testing.assert_allclose(filtered, np.full((2, n), level), atol=1e-6)


@every_filter
def test_float32_stays_and_integers_are_not_cut_to_integers(name: str) -> None:
    x = np.random.default_rng(2).integers(-200, 200, 500)
    wide = FILTERS[name](x.astype(np.float64))
    assert FILTERS[name](x.astype(np.float32)).dtype == np.float32
    np.testing.assert_allclose(FILTERS[name](x.astype(np.float32)), wide, atol=1e-4)
    np.testing.assert_array_equal(FILTERS[name](x.astype(np.int16)), wide)


@pytest.mark.parametrize("cut_hz", [0.0, -1.0, 125.0, 200.0, float("nan")])
def test_a_cut_the_rate_cannot_hold_is_an_error(cut_hz: float) -> None:
    with pytest.raises(InputError, match="bad_filter"):
        low_pass(np.zeros(10), fs_hz=250, cut_hz=cut_hz)


def test_a_qrs_at_the_end_of_a_record_tilts_no_baseline() -> None:
    x = np.zeros(5000)
    x[:10] = 1.0
    assert np.abs(high_pass(x, fs_hz=500, cut_hz=0.05)[100:]).max() < 0.02


@every_filter
def test_inside_a_record_it_is_the_filter_that_runs_forwards_and_backwards(name: str) -> None:
    x = np.random.default_rng(10).standard_normal(20_000)
    design_of = {"high_pass": 0.5, "low_pass": 40.0, "band_pass": (0.5, 40.0), "notch": 50.0}
    sos = design(name, fs_hz=250, cut_hz=design_of[name])
    theirs = signal.sosfiltfilt(sos, x)
    np.testing.assert_allclose(FILTERS[name](x)[4000:-4000], theirs[4000:-4000], atol=1e-5)


@every_filter
def test_long_runs_are_filtered_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(11).standard_normal((2, 3000)) + np.linspace(0, 9, 3000)
    short = FILTERS[name](x)
    monkeypatch.setattr("tsfm.signals.filters._LONG", 100)
    np.testing.assert_allclose(FILTERS[name](x), short, atol=0.01)


@pytest.mark.parametrize("fs_hz", [100, 250, 500, 1000])
def test_clean_ecg_keeps_an_st_plateau(fs_hz: float) -> None:
    time = np.arange(10 * fs_hz) / fs_hz
    x = np.where((time >= 5.0) & (time < 5.2), 0.2, 0.0)
    inside = (time > 5.03) & (time < 5.17)
    cleaned = clean_ecg(x, fs_hz=fs_hz, mains_hz=50)
    np.testing.assert_allclose(cleaned[inside], 0.2, rtol=0.05)


def test_clean_ecg_keeps_an_st_plateau_in_every_beat() -> None:
    rng = np.random.default_rng(3)
    beats = simulate_beats(rng, duration_s=10, heart_rate_bpm=75)
    x = simulate_ecg(rng, fs_hz=500, duration_s=10, beats=beats, noise_mv=0.0, leads=["V5"])["V5"]
    time = np.arange(5000) / 500
    since = np.array([t - beats.times_s for t in time])
    raised = x + 0.2 * ((since > 0.06) & (since < 0.26)).any(axis=1)
    change = clean_ecg(raised, fs_hz=500) - clean_ecg(x, fs_hz=500)
    inside = ((since > 0.09) & (since < 0.23)).any(axis=1)
    before = ((since > -0.12) & (since < -0.03)).any(axis=1) & ~inside
    assert change[inside].mean() - change[before].mean() == pytest.approx(0.2, rel=0.02)


def test_clean_ecg_takes_away_drift_hum_and_nothing_of_a_clean_record() -> None:
    rng = np.random.default_rng(4)
    x = simulate_ecg(rng, fs_hz=500, duration_s=20, heart_rate_bpm=70, noise_mv=0.0)["II"]
    drift = 0.8 * np.linspace(-1, 1, len(x))
    hum = 0.2 * sine(50, fs_hz=500, duration_s=20)
    cleaned = clean_ecg(x + drift + hum, fs_hz=500, mains_hz=50)
    middle = slice(500, -500)
    error = (cleaned - x)[middle]
    assert np.std(error) < 0.03
    assert np.abs((clean_ecg(x, fs_hz=500) - x)[middle]).std() < 0.02
    with_hum = clean_ecg(x + drift + hum, fs_hz=500)  # nobody said what the mains are
    assert np.std((with_hum - x)[middle]) == pytest.approx(0.2 / np.sqrt(2), rel=0.15)


def test_subtract_wander_flattens_breathing_and_keeps_the_st_level() -> None:
    rng = np.random.default_rng(5)
    beats = simulate_beats(rng, duration_s=30, heart_rate_bpm=75)
    time = np.arange(15000) / 500
    wander = 0.4 * np.sin(2 * np.pi * 0.25 * time + 1)
    clean = simulate_ecg(rng, fs_hz=500, duration_s=30, beats=beats, noise_mv=0.0)["V5"]
    peaks = np.rint(beats.times_s * 500).astype(np.int64)
    straight = subtract_wander(clean, fs_hz=500, r_peaks=peaks)
    flat = subtract_wander(clean + wander, fs_hz=500, r_peaks=peaks)
    inside = slice(1000, -1000)
    assert np.abs(flat - straight)[inside].max() < 0.05
    st_level = np.array([flat[p + 50] for p in peaks if 1000 < p < 14000])
    assert np.abs(st_level).max() < 0.06
    gappy = clean + wander
    gappy[7000:7400] = np.nan
    assert np.isnan(subtract_wander(gappy, fs_hz=500, r_peaks=peaks)).sum() == 400


def test_subtract_wander_without_beats_takes_the_median() -> None:
    out = subtract_wander([1.0, 2.0, 6.0], fs_hz=100, r_peaks=np.zeros(0, np.int64))
    np.testing.assert_array_equal(out, [-1.0, 0.0, 4.0])


@pytest.mark.parametrize("r_peaks", [[np.nan, 300.0], [0.9, 1.7], ["1"]])
def test_r_peaks_that_are_no_samples_are_refused(r_peaks):
    with pytest.raises(InputError, match="bad_beats"):
        subtract_wander(np.arange(1000.0), fs_hz=250, r_peaks=np.array(r_peaks))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    gaps=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 399), st.integers(1, 30)), max_size=4
    ),
    kind=st.sampled_from(["high_pass", "low_pass", "notch", "band_pass"]),
)
def test_pieces_of_any_size_give_what_the_whole_gives(
    seed: int, cuts: list[int], gaps: list[tuple[int, int, int]], kind: str
) -> None:
    x = np.random.default_rng(seed).standard_normal((3, 400)) + 5
    for lead, start, length in gaps:
        x[lead, start : start + length] = np.nan
    cut_hz = (1.0, 30.0) if kind == "band_pass" else 10.0
    sos = design(kind, fs_hz=100, cut_hz=cut_hz)
    whole = CausalFilter(sos, 3).push(x)
    stream = CausalFilter(sos, 3)
    edges = [0, *sorted(cuts), 400]
    pieces = [stream.push(x[:, a:b]) for a, b in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    if kind == "low_pass":
        batch = low_pass(x, fs_hz=100, cut_hz=10.0, zero_phase=False)
        np.testing.assert_allclose(whole, batch, atol=1e-12)


def test_a_stream_keeps_a_state_of_constant_size() -> None:
    stream = CausalFilter(design("high_pass", fs_hz=250, cut_hz=0.5), 2)
    size = stream.state.nbytes
    rng = np.random.default_rng(6)

    def minutes() -> Any:
        for i in range(7 * 24):  # a week, thinned to a minute an hour
            chunk = rng.standard_normal((2, 250 * 60)) + 1000.0
            if i % 24 == 5:
                chunk[0, 100:5000] = np.nan
            yield chunk

    for chunk in minutes():
        out = stream.push(chunk)
        assert out.shape == chunk.shape
        assert stream.state.nbytes == size
        assert np.nanmax(np.abs(out)) < 10  # it forgot the level, and did not drift


def test_a_stream_restarts_after_a_gap_and_after_reset() -> None:
    sos = design("low_pass", fs_hz=100, cut_hz=5)
    stream = CausalFilter(sos)
    stream.push(np.full(50, 7.0))
    after_gap = stream.push(np.array([np.nan, 2.0, 2.0]))
    np.testing.assert_allclose(after_gap, [np.nan, 2.0, 2.0])
    stream.push(np.array([np.nan]))
    np.testing.assert_allclose(stream.push(np.array([9.0, 9.0])), [9.0, 9.0])
    stream.reset()
    np.testing.assert_allclose(stream.push(np.array([4.0, 4.0])), [4.0, 4.0])
    with pytest.raises(InputError, match="bad_signal_shape"):
        stream.push(np.zeros((2, 5)))


@pytest.mark.parametrize(("fs_hz", "to_hz"), [(360, 100), (500, 100), (100, 250), (62.4725, 100)])
def test_resampling_a_band_limited_wave_is_exact(fs_hz: float, to_hz: float) -> None:
    x = sine(7.0, fs_hz=fs_hz, duration_s=20)
    out = resample(x, fs_hz=fs_hz, to_hz=to_hz)
    expected = np.sin(2 * np.pi * 7.0 * np.arange(len(out)) / to_hz)
    inside = slice(round(to_hz), -round(to_hz))
    np.testing.assert_allclose(out[inside], expected[inside], atol=1e-3)


@pytest.mark.parametrize("frequency_hz", [50.0, 52.0, 60.0, 99.0, 101.0, 160.0])
def test_what_the_new_rate_cannot_hold_does_not_fold_back(frequency_hz: float) -> None:
    x = sine(frequency_hz, fs_hz=360, duration_s=20)
    assert amplitude(resample(x, fs_hz=360, to_hz=100)) < 0.005


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(0, 300),
    fs_hz=st.sampled_from([62.4725, 100.0, 125.0, 128.0, 250.0, 360.0, 1000.0]),
    to_hz=st.sampled_from([32.0, 64.0, 100.0, 117.3, 240.0, 500.0]),
)
def test_resampling_keeps_the_duration_and_a_straight_line(
    n: int, fs_hz: float, to_hz: float
) -> None:
    line = 2.0 - 0.5 * np.arange(n) / fs_hz
    out = resample(np.stack([line, 0 * line]), fs_hz=fs_hz, to_hz=to_hz)
    assert out.shape == (2, round(n * to_hz / fs_hz))
    if n > 1:
        np.testing.assert_allclose(out[0], 2.0 - 0.5 * np.arange(out.shape[1]) / to_hz, atol=1e-3)
    np.testing.assert_array_equal(out[1], 0.0)


def test_seventy_two_beats_a_minute_stay_seventy_two() -> None:
    rng = np.random.default_rng(7)
    x = simulate_ecg(rng, fs_hz=300, duration_s=30, heart_rate_bpm=72)["II"]

    def rate(lead: np.ndarray, fs_hz: float) -> float:
        peaks = find_r_peaks(lead, fs_hz=fs_hz)
        return 60 * fs_hz * (len(peaks) - 1) / (peaks[-1] - peaks[0])

    low = resample(x, fs_hz=300, to_hz=100)
    back = resample(low, fs_hz=100, to_hz=300)
    assert len(low) == 3000
    assert len(back) == len(x)
    original = rate(x, 300)
    assert original == pytest.approx(72, abs=2.5)  # a mean over thirty seconds
    assert rate(low, 100) == pytest.approx(original, abs=0.05)
    assert rate(back, 300) == pytest.approx(original, abs=0.05)


@pytest.mark.parametrize("to_hz", [64.0, 100.0, 333.3, 720.0])
def test_a_gap_stays_where_it_was_in_seconds(to_hz: float) -> None:
    x = sine(3.0, fs_hz=360, duration_s=10)
    x[1000:1500] = np.nan
    out = resample(x, fs_hz=360, to_hz=to_hz)
    times = np.flatnonzero(np.isnan(out)) / to_hz
    half_a_step = 0.5 / 360 + 1 / to_hz
    assert times[0] == pytest.approx(1000 / 360, abs=half_a_step)
    assert times[-1] == pytest.approx(1499 / 360, abs=half_a_step)
    assert np.isfinite(out).sum() == pytest.approx(len(out) * 3100 / 3600, abs=3)


def test_resampled_runs_equal_the_runs_resampled_apart() -> None:
    x = np.random.default_rng(8).standard_normal(2000)
    x[720:1080] = np.nan
    whole = resample(x, fs_hz=360, to_hz=100)
    np.testing.assert_allclose(whole[:200], resample(x[:720], fs_hz=360, to_hz=100), atol=1e-12)
    np.testing.assert_allclose(whole[300:], resample(x[1080:], fs_hz=360, to_hz=100), atol=1e-12)


def test_resampling_agrees_with_a_polyphase_filter_below_the_cut() -> None:
    x = low_pass(np.random.default_rng(9).standard_normal(5000), fs_hz=500, cut_hz=15, order=4)
    theirs = signal.resample_poly(x, 1, 5)
    ours = resample(x.astype(np.float32), fs_hz=500, to_hz=100)
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs)[20:-20].max() < 0.02 * np.abs(theirs).max()


def test_a_rate_that_is_no_rate_is_an_error() -> None:
    with pytest.raises(InputError, match="bad_sampling_rate"):
        resample(np.zeros(3), fs_hz=100, to_hz=0)
