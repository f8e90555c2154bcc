"""Pulses, heart rate and breathing of simulated signals whose truth is known."""

import numpy as np
import pytest

from tsfm.errors import InputError
from tsfm.signals.breaths import (
    MODULATIONS,
    RATES_BPM,
    BreathModel,
    breath_spectra,
    breathing_rate,
    fit_breath_model,
    rate_from_spectra,
)
from tsfm.signals.heart_rate import heart_rate_bpm, variability
from tsfm.signals.pulses import find_pulses
from tsfm.simulation.waveforms import simulate_beats, simulate_ppg


def _ppg(rate=75.0, fs_hz=125.0, seconds=60.0, seed=0):
    rng = np.random.default_rng(seed)
    beats = simulate_beats(rng, duration_s=seconds, heart_rate_bpm=rate)
    signal = simulate_ppg(rng, fs_hz=fs_hz, duration_s=seconds, beat_times_s=beats.times_s)
    return signal, beats.times_s


@pytest.mark.parametrize("fs_hz", [64.0, 125.0, 250.0])
@pytest.mark.parametrize("rate", [50.0, 75.0, 120.0])
def test_every_pulse_is_found_once(fs_hz, rate):
    signal, beats = _ppg(rate, fs_hz)
    found = find_pulses(signal, fs_hz=fs_hz)
    inside = beats[(beats > 1) & (beats < 58)]
    at = found.upstrokes / fs_hz
    assert len(at[(at > 1.25) & (at < 58.25)]) == pytest.approx(len(inside), abs=1)
    assert (found.onsets < found.upstrokes).all()
    assert (found.upstrokes <= found.peaks).all()
    assert (found.height > 0).all()


def test_gain_offset_and_gap_cost_nothing_else():
    signal, _ = _ppg()
    whole = find_pulses(signal, fs_hz=125.0).upstrokes
    scaled = find_pulses(1e4 * signal - 7.0, fs_hz=125.0).upstrokes
    assert np.abs(whole - scaled).max() <= 1
    gapped = signal.copy()
    gapped[2500:3000] = np.nan
    left = find_pulses(gapped, fs_hz=125.0).upstrokes
    away = whole[(whole < 2300) | (whole > 3200)]
    assert all(np.abs(left - i).min() <= 3 for i in away)
    assert not ((left > 2500) & (left < 3000)).any()


def test_nothing_but_a_gap_has_no_pulses():
    assert len(find_pulses(np.full(1000, np.nan), fs_hz=125.0)) == 0
    with pytest.raises(InputError):
        find_pulses(np.zeros((2, 100)), fs_hz=125.0)


def test_a_missed_and_a_false_beat_do_not_move_the_rate():
    beats = np.arange(0, 32, 0.8)
    spoilt = np.sort(np.append(np.delete(beats, 10), beats[20] + 0.3))
    assert heart_rate_bpm(spoilt, 0, 32) == pytest.approx(75, abs=1)
    assert np.isnan(heart_rate_bpm(beats, 100, 132))


def test_thirty_seconds_at_72_stay_72():
    assert heart_rate_bpm(np.arange(0.3, 30, 60 / 72), 0, 30) == pytest.approx(72)


@pytest.mark.parametrize("start", [0.0, 0.3, 0.6, 1.2])
def test_every_second_beat_early_is_counted_with_its_pause(start):
    beats = np.cumsum(np.append(0, np.tile([0.5, 1.1], 100)))  # 75 a minute
    assert heart_rate_bpm(beats, start, start + 150) == pytest.approx(75, rel=0.01)
    assert heart_rate_bpm(beats, start, start + 10) == pytest.approx(75, rel=0.08)


def test_intervals_of_which_none_is_near_their_median_have_no_rate():
    beats = np.cumsum([0, 0.4, 0.4, 2, 2])
    assert np.isnan(heart_rate_bpm(beats[[0, 1, 1, 3, 3]], 0, 10))


def test_a_gap_within_an_uneven_rhythm_does_not_move_the_rate():
    beats = np.cumsum(np.append(0, np.tile([0.5, 1.1], 20)))
    gapped = beats[(beats < 10) | (beats > 20)]
    assert heart_rate_bpm(gapped, 0, 40, gaps=[(10, 20)]) == pytest.approx(75, rel=0.02)


def test_every_third_beat_missed_is_no_bigeminy():
    beats = np.cumsum(np.append(0, np.tile([1.0, 2.0], 10)[:-1]))
    assert heart_rate_bpm(beats, 0, 60) == pytest.approx(60)


def test_variability_is_that_of_usual_beats():
    rng = np.random.default_rng(0)
    rr = 0.8 + 0.02 * rng.standard_normal(300)
    found = variability(np.cumsum(rr))
    assert found.sdnn_ms == pytest.approx(1000 * rr[1:].std(ddof=1), rel=0.02)
    assert found.rmssd_ms == pytest.approx(1000 * np.sqrt(np.mean(np.diff(rr[1:]) ** 2)), rel=0.05)
    rr[100], rr[101] = 0.5, 1.1  # an early beat and its pause
    assert variability(np.cumsum(rr)).sdnn_ms == pytest.approx(found.sdnn_ms, rel=0.05)


def test_an_interval_over_a_gap_is_left_out():
    times = np.append(np.arange(0, 10, 0.8), np.arange(15, 25, 0.8))
    assert variability(times, gaps=[(10.0, 15.0)]).share_left_out == 0
    assert variability(times, gaps=[(10.0, 15.0)]).n_intervals == len(times) - 2


def _breathing(bpm, seed):
    """A pulse wave whose level, height and intervals breathe."""
    rng = np.random.default_rng(seed)
    t = np.arange(0, 40, 1 / 125.0)
    breath = np.sin(2 * np.pi * bpm / 60 * t + rng.random() * 6)
    phase = 2 * np.pi * np.cumsum(1.25 * (1 + 0.05 * breath)) / 125.0
    wave = np.sin(phase) + 0.3 * np.sin(2 * phase + 0.5)
    return (1 + 0.1 * breath) * wave + 0.2 * breath + 0.01 * rng.standard_normal(len(t))


@pytest.mark.parametrize("bpm", [10.0, 15.0, 24.0])
def test_a_clear_breath_is_heard(bpm):
    found = breathing_rate(_breathing(bpm, 0), fs_hz=125.0)
    assert found.bpm == pytest.approx(bpm, abs=1.0)
    assert found.low_bpm <= found.bpm <= found.high_bpm
    assert found.probability.sum() == pytest.approx(1)


@pytest.mark.parametrize("level", [np.nan, 0.0, -3.1])
def test_no_signal_has_no_breathing_rate(level):
    found = breathing_rate(np.full(2000, level), fs_hz=62.5)
    assert np.isnan([found.bpm, found.low_bpm, found.high_bpm]).all()
    assert np.isnan(found.probability).all()


def test_where_nothing_is_heard_the_usual_rate_is_said():
    flat = np.full((len(MODULATIONS), len(RATES_BPM)), 1 / len(RATES_BPM))
    found = rate_from_spectra(flat, BreathModel(centre_bpm=15.0, spread=0.2))
    assert found.bpm == pytest.approx(15, abs=0.5)
    assert found.high_bpm - found.low_bpm > 5


def test_a_fitted_model_trusts_what_was_right():
    rates = np.linspace(9, 30, 24)
    spectra = []
    for i, bpm in enumerate(rates):
        signal = _breathing(bpm, i)
        pulses = find_pulses(signal, fs_hz=125.0)
        rows = breath_spectra(signal, pulses, fs_hz=125.0, start_s=0, stop_s=40)
        rows[2] = np.roll(rows[2], 37 * i)  # one modulation says anything
        spectra.append(rows)
    model = fit_breath_model(spectra, rates)
    assert model.weights[2] < max(model.weights)
    found = [rate_from_spectra(one, model).bpm for one in spectra]
    assert np.abs(np.array(found) - rates).mean() < 1.0


def test_a_window_too_short_is_refused():
    with pytest.raises(InputError, match="ten seconds"):
        breathing_rate(np.zeros(500), fs_hz=125.0)
