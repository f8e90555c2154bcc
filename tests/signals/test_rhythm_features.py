"""Features of the rhythm tell rhythms apart, whatever gain and rate."""

import numpy as np
import pytest

from tsfm.errors import InputError
from tsfm.signals import rhythm_features as rhythm_features_room
from tsfm.signals.rhythm_features import interval_features, rhythm_features
from tsfm.simulation.waveforms import simulate_ecg


def _lead(seed=0, **kind):
    rng = np.random.default_rng(seed)
    settings = {"fs_hz": 300.0, "duration_s": 30.0, "heart_rate_bpm": 75.0, "leads": ("I",)}
    return simulate_ecg(rng, **{**settings, **kind})["I"]


def test_fibrillation_is_irregular_and_has_no_p_wave():
    sinus = rhythm_features(_lead(), fs_hz=300.0)
    atrial = rhythm_features(_lead(atrial_fibrillation=True), fs_hz=300.0)
    assert atrial["rmssd_relative"] > 3 * sinus["rmssd_relative"]
    assert atrial["cosen"] > sinus["cosen"]
    assert atrial["p_likeness"] < sinus["p_likeness"]
    assert set(atrial) == set(sinus)


def test_gain_changes_nothing():
    one = rhythm_features(_lead(), fs_hz=300.0)
    other = rhythm_features(1000 * _lead(), fs_hz=300.0)
    assert all(one[k] == pytest.approx(other[k], rel=1e-3, abs=1e-6) for k in one)


def test_equal_intervals_have_no_spread():
    found = interval_features(np.full(20, 0.8))
    assert found["rr_median"] == pytest.approx(0.8)
    assert found["rmssd"] == pytest.approx(0)
    assert found["regular_run"] == 1


def test_early_beats_are_counted():
    rr = np.tile([0.8, 0.8, 0.8, 0.5, 1.1], 6)
    found = interval_features(rr)
    assert found["early"] == pytest.approx(0.2)
    assert found["early_then_late"] == pytest.approx(6 / 29)


def test_a_record_of_nothing_but_noise_has_all_features():
    noise = np.random.default_rng(0).standard_normal(3000)
    assert set(rhythm_features(noise, fs_hz=300.0)) == set(rhythm_features(_lead(), fs_hz=300.0))


@pytest.mark.parametrize("level", [0.0, 1.0, -5.3, 1e6 / 3])
def test_a_lead_that_does_not_move_has_no_beats(level):
    found = rhythm_features(np.full(3000, level), fs_hz=300.0)
    assert found["n_beats"] == 0
    assert np.isnan(found["rr_mean"])
    assert set(found) == set(rhythm_features(_lead(), fs_hz=300.0))


def test_a_gap_is_no_long_interval():
    whole = _lead()
    gapped = whole.copy()
    gapped[3000:5400] = np.nan
    one, other = (rhythm_features(x, fs_hz=300.0) for x in (whole, gapped))
    assert other["rr_max"] < 1.1 * one["rr_max"]
    for name in ("rr_mean", "rr_cv", "rmssd", "rate_min_8", "tq_4_10", "tq_power"):
        assert other[name] == pytest.approx(one[name], rel=0.3), name


def test_a_few_missing_samples_cost_no_interval():
    whole = _lead()
    gapped = whole.copy()
    gapped[::700] = np.nan
    one, other = (rhythm_features(x, fs_hz=300.0) for x in (whole, gapped))
    assert other["rr_mean"] == pytest.approx(one["rr_mean"], rel=1e-3)
    assert other["rr_cv"] == pytest.approx(one["rr_cv"], abs=0.005)


@pytest.mark.parametrize("rr", [[0, 0, 0, 0], [0.8, -0.8, 0.8], [0.8, np.nan, 0.8], [[0.8] * 4]])
def test_intervals_that_are_none_are_refused(rr):
    with pytest.raises(InputError) as error:
        interval_features(rr)
    assert error.value.code == "bad_intervals"


@pytest.mark.parametrize("fs_hz", [0.0, -5.0, 0.5, 40.0, np.nan, np.inf])
def test_a_rate_that_is_none_is_refused(fs_hz):
    with pytest.raises(InputError) as error:
        rhythm_features(_lead(), fs_hz=fs_hz)
    assert error.value.code == "bad_sampling_rate"


def test_too_short_a_record_is_refused():
    with pytest.raises(InputError):
        rhythm_features(np.zeros(100), fs_hz=300.0)


@pytest.mark.parametrize("length", [1, 2])
def test_matches_are_pairs_below_the_tolerance(length: int) -> None:
    rng = np.random.default_rng(length)
    rr = np.round(0.8 + 0.05 * rng.standard_normal(400), 2)  # many apart by exactly .03
    rows = np.lib.stride_tricks.sliding_window_view(rr, length)[: len(rr) - 1]
    apart = np.abs(rows[:, None] - rows[None]).max(-1)
    assert rhythm_features_room._matches(rr, 0.03, length) == np.triu(apart < 0.03, 1).sum()


def test_a_day_of_intervals_has_features() -> None:
    """Of a hundred thousand intervals no table of pairs fits into memory."""
    rng = np.random.default_rng(0)
    one, other = (interval_features(0.8 + 0.05 * rng.standard_normal(n)) for n in (5000, 100_000))
    assert other["entropy"] == pytest.approx(one["entropy"], abs=0.05)
