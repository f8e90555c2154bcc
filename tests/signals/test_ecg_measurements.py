"""A cardiograph's measurements of simulated records whose truth is known."""

import math

import numpy as np
import pytest

from tsfm.errors import InputError
from tsfm.signals import ecg_measurements
from tsfm.signals.ecg_measurements import measure_ecg
from tsfm.signals.store import STANDARD_LEADS
from tsfm.simulation.waveforms import simulate_ecg


def _record(rate=70.0, fs_hz=250.0, **kind):
    leads = simulate_ecg(
        np.random.default_rng(1), fs_hz=fs_hz, duration_s=10.0, heart_rate_bpm=rate,
        leads=STANDARD_LEADS, noise_mv=0.002, **kind,
    )  # fmt: skip
    return np.stack([leads[name] for name in STANDARD_LEADS])


@pytest.mark.parametrize("fs_hz", [100.0, 250.0, 500.0])
def test_rate_and_waves_are_found_at_any_sampling_rate(fs_hz):
    found = measure_ecg(_record(fs_hz=fs_hz), fs_hz=fs_hz)
    assert found["rate_bpm"] == pytest.approx(70, abs=2)
    assert 0.04 < found["qrs_s"] < 0.12
    assert found["r_II"] == pytest.approx(1.05, abs=0.2)
    assert found["s_V1"] == pytest.approx(-0.95, abs=0.25)
    assert found["t_II"] == pytest.approx(0.28, abs=0.1)
    assert 0 < found["axis_qrs"] < 90


def test_voltages_are_kept_and_not_normalised():
    signal = _record()
    one, two = (measure_ecg(k * signal, fs_hz=250.0) for k in (1.0, 2.0))
    assert two["sokolow_lyon_mv"] == pytest.approx(2 * one["sokolow_lyon_mv"], rel=0.02)


def test_the_order_of_leads_does_not_matter():
    signal = _record()
    order = np.random.default_rng(0).permutation(12)
    one = measure_ecg(signal, fs_hz=250.0)
    other = measure_ecg(signal[order], fs_hz=250.0, leads=[STANDARD_LEADS[i] for i in order])
    assert all(one[k] == pytest.approx(other[k], nan_ok=True) for k in one)


def test_a_missing_lead_leaves_its_own_features_out():
    found = measure_ecg(_record()[:11], fs_hz=250.0, leads=STANDARD_LEADS[:11])
    assert math.isnan(found["r_V6"])
    assert math.isfinite(found["r_V5"])
    assert math.isfinite(found["qrs_s"])


@pytest.mark.parametrize("absent", ["V5", "V6"])
def test_v5_and_v6_stand_in_for_each_other(absent):
    signal, row = _record(), STANDARD_LEADS.index(absent)
    whole = measure_ecg(signal, fs_hz=250.0)
    signal[row] = np.nan
    found = measure_ecg(signal, fs_hz=250.0)
    other = {"V5": "V6", "V6": "V5"}[absent]
    assert all(math.isnan(v) for k, v in found.items() if k.endswith(f"_{absent}"))
    assert found["sokolow_lyon_mv"] == pytest.approx(found[f"r_{other}"] - found["s_V1"])
    assert found["right_mv"] == pytest.approx(found["r_V1"] - found[f"s_{other}"])
    assert found["r_V1"] == pytest.approx(whole["r_V1"], abs=0.02)


@pytest.mark.parametrize("rows", [[6], list(range(12))], ids=["one lead", "all leads"])
@pytest.mark.parametrize("offset_mv", [0.0, 3.0])
def test_a_short_gap_costs_its_beat_and_nothing_else(rows, offset_mv):
    signal = _record(rate=60.0) + offset_mv
    whole = measure_ecg(signal, fs_hz=250.0)
    assert sum(math.isnan(v) for v in whole.values()) == 0
    for at in range(1000, 1250, 10):  # all over one beat
        gapped = signal.copy()
        gapped[rows, at] = np.nan
        found = measure_ecg(gapped, fs_hz=250.0)
        for name in ("rate_bpm", "qrs_s", "qrs_to_t_s", "p_size_mv", "r_V1", "s_V1", "axis_qrs"):
            assert found[name] == pytest.approx(whole[name], rel=0.05, abs=0.01), (at, name)
        assert sum(math.isnan(v) for v in found.values()) == 0


def test_a_lead_with_a_gap_in_every_beat_is_not_measured():
    signal = _record()
    signal[6, ::50] = np.nan
    found = measure_ecg(signal, fs_hz=250.0)
    assert all(math.isnan(v) for k, v in found.items() if k.endswith("_V1"))
    assert math.isfinite(found["r_V2"])
    signal[:, ::50] = np.nan
    found = measure_ecg(signal, fs_hz=250.0)
    assert math.isfinite(found["rate_bpm"])
    assert math.isnan(found["qrs_s"])
    assert math.isnan(found["p_size_mv"])


def test_a_gap_is_no_long_interval():
    signal = _record(rate=60.0)
    signal[:, 1000:1800] = np.nan
    found = measure_ecg(signal, fs_hz=250.0)
    assert found["rr_longest"] < 1.3
    assert found["n_beats_a_minute"] == pytest.approx(60, abs=10)


def test_leads_are_known_by_name_in_any_case():
    signal = _record()
    one = measure_ecg(signal, fs_hz=250.0)
    assert measure_ecg(signal, fs_hz=250.0, leads=[x.upper() for x in STANDARD_LEADS]) == one
    with pytest.raises(InputError) as error:
        measure_ecg(signal[:2], fs_hz=250.0, leads=["AVR", "aVR"])
    assert error.value.code == "repeated_lead"


def test_a_flat_record_has_the_same_names_and_no_beats():
    found = measure_ecg(np.zeros((12, 1000)), fs_hz=100.0)
    assert set(found) == set(measure_ecg(_record(), fs_hz=250.0))
    assert math.isnan(found["qrs_s"])


@pytest.mark.parametrize("shape", [(3, 100), (12, 0), (12,)])
def test_another_shape_is_refused(shape):
    with pytest.raises(InputError):
        measure_ecg(np.zeros(shape), fs_hz=100.0)


@pytest.mark.parametrize("fs_hz", [0.0, -5.0, np.nan, np.inf, 49.0])
def test_a_rate_that_is_none_is_refused(fs_hz):
    with pytest.raises(InputError) as error:
        measure_ecg(np.zeros((12, 100)), fs_hz=fs_hz)
    assert error.value.code == "bad_sampling_rate"


@pytest.mark.parametrize("n_samples", [1, 2, 10, 100])
def test_a_record_too_short_for_beats_has_the_same_names(n_samples):
    found = measure_ecg(_record()[:, :n_samples], fs_hz=250.0)
    assert math.isnan(found["qrs_s"])


def test_leads_that_are_not_read_may_share_a_name() -> None:
    signal = np.random.default_rng(0).normal(size=(2, 1000))
    assert np.isnan(measure_ecg(signal, fs_hz=100, leads=["ECG", "ECG"])["r_I"])


def test_a_long_record_is_measured_on_some_of_its_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.tile(_record(fs_hz=100.0), 60)
    every = measure_ecg(whole, fs_hz=100.0)
    seen: list[int] = []
    align = ecg_measurements._align

    def spy(signal: np.ndarray, peaks: np.ndarray, reach: int, slack: int) -> np.ndarray:
        seen.append(len(peaks))
        return align(signal, peaks, reach, slack)

    monkeypatch.setattr(ecg_measurements, "_align", spy)
    monkeypatch.setattr(ecg_measurements, "_MOST_BEATS", 40)
    some = measure_ecg(whole, fs_hz=100.0)
    assert seen == [40]
    assert some["rr_median_s"] == every["rr_median_s"]
    assert some["n_beats_a_minute"] == every["n_beats_a_minute"]
    for name in ("r_II", "s_V1", "t_II", "qrs_s"):
        assert some[name] == pytest.approx(every[name], rel=0.05), name
