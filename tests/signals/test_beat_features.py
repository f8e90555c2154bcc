"""Features of beats: relative to the patient, and blind to gain."""

import numpy as np
import pytest

from tsfm.errors import InputError
from tsfm.signals.beat_features import mean_over_alike, read_beats
from tsfm.simulation.waveforms import simulate_beats, simulate_ecg


def _record(fs_hz=360.0, seed=0, **kind):
    rng = np.random.default_rng(seed)
    beats = simulate_beats(rng, duration_s=120.0, heart_rate_bpm=70.0, **kind)
    leads = simulate_ecg(rng, fs_hz=fs_hz, duration_s=120.0, beats=beats)
    at = np.rint(beats.times_s * fs_hz).astype(int)
    keep = (at >= 0) & (at < round(120 * fs_hz))
    return np.stack(list(leads.values())), at[keep], beats.ectopic[keep]


def _features(**kind):
    signal, at, _ = _record(**kind)
    return read_beats(signal, at, fs_hz=360.0)


def _column(found, name):
    return found.values[:, found.names.index(name)]


def test_a_ventricular_beat_is_early_wide_and_unlike_the_others():
    signal, at, ectopic = _record(ectopic_fraction=0.1)
    found = read_beats(signal, at, fs_hz=360.0)
    for name, larger in (("qrs_like", False), ("qrs_width", True), ("before_base", False)):
        values = _column(found, name)
        high, low = (ectopic, ~ectopic) if larger else (~ectopic, ectopic)
        assert np.median(values[high]) > np.median(values[low]), name


def test_fibrillation_is_irregular_and_single_early_beats_are_not():
    sinus = _features(ectopic_fraction=0.1)
    atrial = _features(atrial_fibrillation=True)
    assert np.median(_column(atrial, "irregular")) > 0.12
    assert np.quantile(_column(sinus, "irregular"), 0.9) < 0.12


def test_gain_does_not_matter():
    signal, at, _ = _record()
    one = read_beats(signal, at, fs_hz=360.0)
    other = read_beats(250.0 * signal, at, fs_hz=360.0)
    np.testing.assert_allclose(one.values, other.values, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(one.windows, other.windows, rtol=2e-3, atol=2e-3)


def test_a_run_of_early_beats_stays_early_against_the_rhythm_before_it():
    signal, _, _ = _record()
    rr = np.concatenate([np.full(40, 0.8), np.full(20, 0.4), np.full(40, 0.8)])
    at = np.rint(np.cumsum(rr) * 360).astype(int)
    before = _column(read_beats(signal, at, fs_hz=360.0), "before_base")
    np.testing.assert_allclose(before[42:58], 0.5, atol=0.05)
    np.testing.assert_allclose(before[70:], 1.0, atol=0.05)


def test_one_lead_gives_the_same_names():
    signal, at, _ = _record()
    one = read_beats(signal[:1], at, fs_hz=360.0)
    assert one.names == read_beats(signal, at, fs_hz=360.0).names
    assert one.windows.shape[:2] == (len(at), 2)


def test_peaks_out_of_order_are_refused():
    with pytest.raises(InputError):
        read_beats(np.zeros(1000), [500, 100], fs_hz=360.0)


def test_a_record_without_beats_has_no_features_but_their_names() -> None:
    some = read_beats(np.random.default_rng(0).normal(size=(1, 3600)), [900, 1200], fs_hz=360.0)
    none = read_beats(np.zeros((2, 3600)), [], fs_hz=360.0)
    assert none.values.shape == (0, len(some.names))
    assert none.names == some.names


def test_means_over_a_long_record_are_those_of_its_shapes():
    rng = np.random.default_rng(0)
    n = 9001
    kind = rng.random(n) < 0.3
    narrow, wide, own = np.zeros((3, 2, 85), np.float32)
    narrow[:, 33:37], wide[:, 25:50], own[:, 30:50:2] = 1.0, -2.0, 3.0
    windows = np.where(kind[:, None, None], wide, narrow)
    alone = 5  # of a shape of its own, and none of those that all are held against
    windows[alone] = own
    told = rng.random((n, 1)) + kind[:, None]
    found = mean_over_alike(windows, told)[:, 0]
    rest = np.arange(n) != alone
    for k in (False, True):
        rows = rest & (kind == k)
        np.testing.assert_allclose(found[rows], told[rows].mean(), atol=0.03)
    assert abs(found[alone] - told[alone, 0]) < 0.01
