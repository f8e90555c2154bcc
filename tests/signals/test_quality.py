"""Quality by window of simulated signals with known noise, and of records that readers judged."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsfm.errors import InputError
from tsfm.signals.quality import signal_quality
from tsfm.simulation.signal_noise import KINDS, SNR_DB, add_noise
from tsfm.simulation.waveforms import simulate_beats, simulate_ecg, simulate_ppg

SHARES = ("missing", "flat", "clipped")
RATIOS = ("baseline", "muscle", "mains")


def _signal(kind, fs_hz=125.0, seconds=120.0, seed=1):
    rng = np.random.default_rng(seed)
    beats = simulate_beats(rng, duration_s=seconds, heart_rate_bpm=72.0)
    if kind == "ecg":
        return simulate_ecg(rng, fs_hz=fs_hz, duration_s=seconds, beats=beats, leads=["II"])["II"]
    return simulate_ppg(rng, fs_hz=fs_hz, duration_s=seconds, beat_times_s=beats.times_s)


@pytest.mark.parametrize("noise", KINDS)
@pytest.mark.parametrize("fs_hz", [125.0, 250.0])
@pytest.mark.parametrize("kind", ["ecg", "ppg"])
def test_the_index_falls_as_noise_grows(kind, fs_hz, noise):
    clean = _signal(kind, fs_hz)
    mean = [signal_quality(clean, fs_hz=fs_hz, kind=kind).index.mean()]
    for snr_db in SNR_DB:
        noisy = add_noise(clean, noise, snr_db, fs_hz, seed=3)
        mean.append(signal_quality(noisy, fs_hz=fs_hz, kind=kind).index.mean())
    assert (np.diff(mean) < 0).all()
    assert mean[0] > 0.85
    assert mean[-1] < 0.5


@pytest.mark.parametrize("fs_hz", [50.0, 100.0, 300.0, 500.0, 1000.0])
@pytest.mark.parametrize("kind", ["ecg", "ppg"])
def test_clean_signals_score_well_at_any_rate(kind, fs_hz):
    quality = signal_quality(_signal(kind, fs_hz), fs_hz=fs_hz, kind=kind)
    assert len(quality.index) == 12
    assert quality.index.min() > 0.75
    assert quality.agreement.min() > 0.85
    assert all((getattr(quality, name) == 0).all() for name in SHARES)


@pytest.mark.parametrize("kind", ["ecg", "ppg"])
def test_planted_shares_are_found_to_the_sample(kind):
    signal = _signal(kind)
    top = signal.max()
    signal[1250:1875] = np.nan  # half of window 1
    signal[3900:4150] = signal[3899] + 1e-3  # a fifth of window 3
    signal[6250:6500] = top + 0.5  # a fifth of window 5, at the rail and standing still
    signal[9950:10050] = signal[9949] - 1e-3  # 50 samples in window 7, 50 in window 8
    quality = signal_quality(signal, fs_hz=125.0, kind=kind)
    missing, flat, clipped = (np.zeros(12) for _ in range(3))
    missing[1], flat[[3, 5]], clipped[5] = 0.5, 0.2, 0.2
    flat[[7, 8]] = 0.04
    np.testing.assert_allclose(quality.missing, missing)
    np.testing.assert_allclose(quality.flat, flat)
    np.testing.assert_allclose(quality.clipped, clipped)


def test_r_peaks_cut_off_at_a_rail_are_clipped():
    signal = np.minimum(_signal("ecg", 500.0), 0.6)
    quality = signal_quality(signal, fs_hz=500.0, kind="ecg")
    assert quality.clipped.sum() * 5000 == (signal == 0.6).sum()


@pytest.mark.parametrize("kind", ["ecg", "ppg"])
def test_a_gap_costs_its_own_windows_only(kind):
    signal = _signal(kind)
    whole = signal_quality(signal, fs_hz=125.0, kind=kind)
    signal[5000:7000] = np.nan
    gapped = signal_quality(signal, fs_hz=125.0, kind=kind)
    away = np.r_[0:4, 6:12]
    np.testing.assert_allclose(gapped.index[away], whole.index[away], atol=0.03)
    assert gapped.index[4] == 0
    assert gapped.missing[5] == pytest.approx(0.6)
    assert 0.2 < gapped.index[5] < 0.5 * whole.index[5]
    assert np.isnan(gapped.agreement[4])


@given(
    st.sampled_from(["ecg", "ppg"]), st.sampled_from([1e-9, 1e-3, 2.0**10, 1e6]),
    st.floats(-10, 10),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_gain_and_offset_do_not_matter(kind, gain, offset):
    signal = add_noise(_signal(kind, seconds=40.0), "muscle", 12, 125.0, seed=0)
    one = signal_quality(signal, fs_hz=125.0, kind=kind)
    other = signal_quality(gain * (signal + offset), fs_hz=125.0, kind=kind)
    np.testing.assert_allclose(other.index, one.index, rtol=1e-4)
    for name in RATIOS:
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-4, atol=1e-9)


@given(st.integers(0, 2**31), st.floats(0.0, 0.9), st.sampled_from(["ecg", "ppg"]))
@settings(max_examples=25, deadline=None)
def test_whatever_comes_the_index_lies_between_0_and_1(seed, missing, kind):
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal(rng.integers(1, 4000)) * rng.choice([0.0, 1e-6, 1.0, 1e6])
    signal[rng.random(len(signal)) < missing] = np.nan
    quality = signal_quality(signal, fs_hz=100.0, kind=kind)
    assert ((quality.index >= 0) & (quality.index <= 1)).all()
    assert quality.start[0] == 0
    assert quality.start[-1] == len(signal)
    assert (np.diff(quality.start) > 0).all()


def test_leads_are_judged_by_themselves():
    ecg = _signal("ecg")
    leads = np.stack([ecg, np.zeros_like(ecg), np.full_like(ecg, np.nan), -1000 * ecg])
    quality = signal_quality(leads, fs_hz=125.0, kind="ecg")
    alone = signal_quality(ecg, fs_hz=125.0, kind="ecg")
    assert quality.index.shape == (4, 12)
    np.testing.assert_array_equal(quality.index[0], alone.index)
    assert (quality.index[1:3] == 0).all()
    assert (quality.flat[1] == 1).all()
    assert (quality.missing[2] == 1).all()
    np.testing.assert_allclose(quality.index[3], alone.index, rtol=0.02)


@pytest.mark.parametrize("mains_hz", [50.0, 60.0])
def test_hum_is_found_where_the_rate_can_hold_it(mains_hz):
    ecg = _signal("ecg", 250.0)
    hum = 0.2 * np.sin(2 * np.pi * mains_hz * np.arange(len(ecg)) / 250.0)
    clean, humming = (signal_quality(x, fs_hz=250.0, kind="ecg") for x in (ecg, ecg + hum))
    power = 0.2**2 / 2 / np.var(ecg)
    assert clean.mains.max() < 0.01
    assert humming.mains.mean() == pytest.approx(power, rel=0.2)
    assert (humming.muscle < 0.05).all()
    assert (humming.index < 0.7 * clean.index).all()
    assert np.isnan(signal_quality(_signal("ecg", 100.0), fs_hz=100.0, kind="ecg").mains).all()


def test_a_window_without_beats_is_of_no_use():
    noise = np.random.default_rng(0).standard_normal(1250) * 0.01
    quality = signal_quality(np.cumsum(noise), fs_hz=125.0, kind="ppg")
    assert quality.index[0] < 0.5
    slow = np.sin(np.arange(1250) / 1250)
    assert signal_quality(slow, fs_hz=125.0, kind="ecg").index[0] == 0


def test_a_long_record_is_judged_as_its_parts_are():
    part = _signal("ecg", 50.0, seconds=1200.0)
    quality = signal_quality(np.tile(part, 5).astype(np.float32), fs_hz=50.0, kind="ecg")
    assert len(quality.index) == 600
    middle = quality.index[240:360]
    np.testing.assert_allclose(middle[5:-5], quality.index[120:240][5:-5], atol=0.02)


@pytest.mark.parametrize(
    ("signal", "options", "code"),
    [
        (np.zeros((2, 3, 4)), {}, "bad_signal_shape"),
        (np.zeros(0), {}, "bad_signal_shape"),
        (np.zeros((600, 2)), {}, "bad_signal_shape"),
        (np.array(["a"]), {}, "bad_signal_shape"),
        (np.zeros(100), {"fs_hz": 20.0}, "bad_sampling_rate"),
        (np.zeros(100), {"fs_hz": np.nan}, "bad_sampling_rate"),
        (np.zeros(100), {"window_s": 0.5}, "bad_window"),
        (np.zeros(100), {"kind": "eeg"}, "unknown_kind"),
    ],
)
def test_what_cannot_be_judged_is_refused(signal, options, code):
    with pytest.raises(InputError) as refused:
        signal_quality(signal, **{"fs_hz": 125.0, "kind": "ecg", **options})
    assert refused.value.code == code
    assert "." in str(refused.value)


def test_a_moment_is_of_no_use():
    ecg = _signal("ecg", 125.0)
    for n in (1, 10, 90):
        assert signal_quality(ecg[:n], fs_hz=125.0, kind="ecg").index.tolist() == [0]
    assert signal_quality(ecg[:250], fs_hz=125.0, kind="ecg").index[0] > 0
    gapped = np.full(2500, np.nan)
    gapped[:1250], gapped[1300:1350] = ecg[:1250], ecg[1300:1350]
    index = signal_quality(gapped, fs_hz=125.0, kind="ecg").index
    assert index[0] > 0
    assert index[1] == 0


def test_records_that_readers_called_noisy_score_lower(data_dir):
    wfdb = pytest.importorskip("wfdb")
    folder = data_dir("wfdb") / "cinc2017"
    with open(folder / "REFERENCE.csv", newline="") as file:
        rows = [row for row in csv.reader(file) if (folder / f"{row[0]}.hea").exists()][::2]
    index = np.array(
        [
            signal_quality(
                wfdb.rdrecord(str(folder / name)).p_signal[:, 0], fs_hz=300.0, kind="ecg"
            ).index.mean()
            for name, *_ in rows
        ]
    )
    noisy = np.array([row[1] == "~" for row in rows])
    ranked = index[noisy][:, None] < index[~noisy]
    assert noisy.sum() > 20
    assert ranked.mean() > 0.9
