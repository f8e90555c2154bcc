"""A cardiograph's measurements of simulated records whose truth is known."""

import math

import numpy as np
import pytest

from tsfm.errors import InputError
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


def test_a_flat_record_has_the_same_names_and_no_beats():
    found = measure_ecg(np.zeros((12, 1000)), fs_hz=100.0)
    assert set(found) == set(measure_ecg(_record(), fs_hz=250.0))
    assert math.isnan(found["qrs_s"])


def test_another_shape_is_refused():
    with pytest.raises(InputError):
        measure_ecg(np.zeros((3, 100)), fs_hz=100.0)
