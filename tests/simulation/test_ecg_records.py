"""Simulated twelve-lead records: truths that can be read off the signal."""

from __future__ import annotations

import numpy as np
import pytest

from tsfm.errors import InputError
from tsfm.signals.beats import find_r_peaks
from tsfm.signals.ecg_measurements import measure_ecg
from tsfm.simulation.ecg_findings import (
    LABELS,
    SUPERCLASSES,
    Conduction,
    EcgFindings,
    draw_findings,
    label_findings,
    superclasses,
)
from tsfm.simulation.ecg_morphology import draw_heart, wave_values
from tsfm.simulation.ecg_records import TARGETS, SimulatedEcg, simulate_record, simulate_records
from tsfm.simulation.ecg_rhythm import ATRIAL, NORMAL, VENTRICULAR, draw_beats

FS_HZ = 250.0


def record(
    seed: int = 0, *, fs_hz: float = FS_HZ, noise: float = 0.0, duration_s: float = 10.0, **has
) -> SimulatedEcg:
    findings = EcgFindings(**{"heart_rate_bpm": 66.0, **has})
    rng = np.random.default_rng(seed)
    return simulate_record(rng, findings, fs_hz=fs_hz, duration_s=duration_s, noise=noise)


def medians(n: int = 13, **has) -> dict[str, float]:
    """Median of each measurement over some people who have the same findings."""
    records = [record(i, fs_hz=125.0, duration_s=5.0, **has) for i in range(n)]
    rows = [measure_ecg(simulated.signal_mv, fs_hz=125.0) for simulated in records]
    return {name: float(np.nanmedian([row[name] for row in rows])) for name in rows[0]}


@pytest.fixture(scope="module")
def healthy() -> dict[str, float]:
    return medians()


def test_limb_leads_agree_noise_included():
    for simulated in simulate_records(3, 5, fs_hz=100.0):
        lead = dict(zip(simulated.leads, simulated.signal_mv.astype(float), strict=True))
        one, two = lead["I"], lead["II"]
        np.testing.assert_allclose(lead["III"], two - one, atol=1e-6)
        np.testing.assert_allclose(lead["aVR"], -(one + two) / 2, atol=1e-6)
        np.testing.assert_allclose(lead["aVL"], one - two / 2, atol=1e-6)
        np.testing.assert_allclose(lead["aVF"], two - one / 2, atol=1e-6)


def test_shape_and_type_are_as_promised():
    simulated = next(simulate_records(1, 1, fs_hz=500.0, duration_s=7.0))
    assert simulated.signal_mv.shape == (12, 3500)
    assert simulated.signal_mv.dtype == np.float32
    assert np.isfinite(simulated.signal_mv).all()
    assert simulated.targets.shape == (len(TARGETS),)
    assert simulated.labels.shape == (len(LABELS),)


@pytest.mark.parametrize("rate", [48.0, 75.0, 120.0])
def test_the_beats_are_where_they_are_said_to_be(rate: float):
    simulated = record(4, heart_rate_bpm=rate, qt_ms=390 * (60 / rate) ** 0.4, duration_s=30.0,
                       noise=0.5)  # fmt: skip
    found_s = find_r_peaks(simulated.signal_mv[10], fs_hz=FS_HZ) / FS_HZ
    inner = simulated.beat_times_s[1:-1]
    assert np.abs(found_s[:, None] - inner).min(0).max() < 0.05
    assert 60 / np.diff(found_s).mean() == pytest.approx(rate, rel=0.04)


@pytest.mark.parametrize(
    ("conduction", "qrs_ms"),
    [("none", 75), ("none", 105), ("rbbb", 140), ("lbbb", 160), ("slow", 130)],
)
def test_the_qrs_complex_is_as_wide_as_asked(conduction: Conduction, qrs_ms: float):
    for seed in range(10):
        # P and T would lie in the way: the vectors of QRS alone.
        findings = EcgFindings(66.0, conduction=conduction, qrs_ms=qrs_ms)
        waves = draw_heart(np.random.default_rng(seed), findings).waves[NORMAL]
        time = np.arange(-0.2, 0.5, 0.001)
        shapes = wave_values(waves, time, np.array(0.0))[waves.part == 1]
        length = np.linalg.norm(waves.vector_mv[waves.part == 1].T @ shapes, axis=0)
        inside = time[length > 0.02 * length.max()]
        assert inside[-1] - inside[0] == pytest.approx(qrs_ms / 1000, abs=0.010)
        assert inside[0] == pytest.approx(0.0, abs=0.005)


def test_wider_complexes_are_measured_wider():
    asked = np.array([80, 100, 130, 160])
    found = [medians(9, qrs_ms=ms, conduction="slow")["qrs_s"] * 1000 for ms in asked]
    assert (np.diff(found) > 10).all()
    assert np.abs(np.array(found) - asked).max() < 25


def test_the_axis_is_as_asked():
    for axis in (-60.0, 0.0, 45.0, 100.0):
        found = medians(11, axis_deg=axis)["axis_qrs"]
        assert (found - axis + 180) % 360 - 180 == pytest.approx(0.0, abs=15)


def test_a_right_bundle_branch_block_ends_to_the_right(healthy: dict[str, float]):
    found = medians(conduction="rbbb", qrs_ms=140.0)
    assert found["r_V1"] > healthy["r_V1"] + 0.15
    assert found["peak_time_V1"] > 0.07 > healthy["peak_time_V1"]  # the second R
    assert found["s_I"] < healthy["s_I"] - 0.15
    assert found["s_V6"] < healthy["s_V6"] - 0.15


def test_a_left_bundle_branch_block_goes_to_the_left(healthy: dict[str, float]):
    found = medians(conduction="lbbb", qrs_ms=150.0)
    assert min(found["q_V1"], found["s_V1"]) < -0.7
    assert found["r_V1"] < healthy["r_V1"]
    assert found["q_V6"] > -0.03
    assert found["peak_time_V6"] > healthy["peak_time_V6"] + 0.02
    assert found["t_V6"] < 0 < healthy["t_V6"]


def test_a_hypertrophied_left_ventricle_is_loud(healthy: dict[str, float]):
    found = medians(lvh=1.0, st_t="strain", st_t_amount=1.0)
    assert found["sokolow_lyon_mv"] > max(3.5, 1.4 * healthy["sokolow_lyon_mv"])
    assert found["s_V2"] < 1.2 * healthy["s_V2"]
    assert found["st60_V6"] < -0.04
    assert found["t_V6"] < 0


def test_a_hypertrophied_right_ventricle_turns_the_heart_right(healthy: dict[str, float]):
    found = medians(rvh=1.0, axis_deg=110.0)
    assert found["r_V1"] > healthy["r_V1"] + 0.2
    assert found["right_mv"] > healthy["right_mv"] + 0.3


@pytest.mark.parametrize(
    ("infarct", "leads"),
    [("inferior", ("III", "aVF")), ("anteroseptal", ("V2", "V3")), ("lateral", ("I", "aVL"))],
)
def test_an_infarct_shows_in_its_territory(
    infarct: str, leads: tuple[str, ...], healthy: dict[str, float]
):
    old = medians(infarct=infarct, infarct_size=1.0)
    acute = medians(infarct=infarct, infarct_size=1.0, infarct_age="acute")
    for lead in leads:
        assert old[f"q_{lead}"] < healthy[f"q_{lead}"] - 0.04
        assert acute[f"st60_{lead}"] > healthy[f"st60_{lead}"] + 0.06


def test_a_blocked_anterior_fascicle_turns_the_axis_up():
    found = medians(fascicle="lafb", axis_deg=-55.0)
    assert found["axis_qrs"] < -35
    assert found["r_III"] > 0.03  # a small R before the deep S
    assert found["s_III"] < -0.5
    assert found["q_aVL"] < -0.03


def test_a_fibrillating_atrium_is_irregular_and_without_p():
    regular = record(2, duration_s=60.0)
    irregular = record(2, duration_s=60.0, rhythm="atrial_fibrillation", heart_rate_bpm=85.0)

    def spread(simulated: SimulatedEcg) -> float:
        intervals = np.diff(simulated.beat_times_s)
        return float(intervals.std() / intervals.mean())

    assert spread(irregular) > 0.12 > spread(regular)
    assert np.isnan(irregular.p_onset_s).all()
    assert np.isfinite(regular.p_onset_s).all()
    assert medians(9, rhythm="atrial_fibrillation")["p_II"] < 0.05 < medians(9)["p_II"]
    assert 60 * len(irregular.beat_times_s) / 60.0 == pytest.approx(85, rel=0.1)


def test_flutter_waves_stay_between_250_and_320_a_minute_for_common_rates():
    for seed, rate in enumerate((72.0, 95.0, 145.0)):
        findings = EcgFindings(rate, rhythm="atrial_flutter", qt_ms=330.0)
        beats = draw_beats(np.random.default_rng(seed), findings, duration_s=20.0)
        assert 240 < 60 * beats.flutter_hz < 330
        steps = np.diff(beats.times_s) * beats.flutter_hz
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_early_beats_come_as_often_as_asked(share: float):
    simulated = record(5, duration_s=600.0, ventricular_ectopy=share, atrial_ectopy=0.1)
    kinds = simulated.beat_kinds
    assert np.mean(kinds == VENTRICULAR) == pytest.approx(share, abs=0.04)
    assert np.mean(kinds == ATRIAL) == pytest.approx(0.1, abs=0.04)
    assert not ((kinds[1:] != NORMAL) & (kinds[:-1] != NORMAL)).any()


def test_a_ventricular_beat_is_early_wide_and_followed_by_a_full_pause():
    simulated = record(6, duration_s=120.0, ventricular_ectopy=0.1)
    early = np.flatnonzero(simulated.beat_kinds == VENTRICULAR)
    early = early[(early > 0) & (early < len(simulated.beat_kinds) - 1)]
    before = simulated.beat_times_s[early] - simulated.beat_times_s[early - 1]
    behind = simulated.beat_times_s[early + 1] - simulated.beat_times_s[early]
    assert (before < 0.85 * 60 / 66).all()
    np.testing.assert_allclose((before + behind).mean(), 2 * 60 / 66, rtol=0.03)
    width = simulated.qrs_end_s - simulated.qrs_onset_s
    assert width[early].min() >= 0.12
    assert np.isnan(simulated.p_onset_s[early]).all()


def test_labels_of_early_beats_are_those_that_the_record_shows():
    place = LABELS.index("ventricular_ectopy")
    for seed in range(20):
        simulated = record(seed, ventricular_ectopy=0.02, duration_s=5.0)
        assert simulated.labels[place] == (simulated.beat_kinds == VENTRICULAR).any()


def test_onsets_stand_in_order():
    simulated = record(7, pr_ms=180.0)
    np.testing.assert_allclose(simulated.qrs_onset_s - simulated.p_onset_s, 0.18, atol=1e-9)
    assert (simulated.qrs_onset_s < simulated.beat_times_s).all()
    assert (simulated.beat_times_s < simulated.qrs_end_s).all()


def test_the_same_seed_gives_the_same_record_whatever_comes_before():
    first = list(simulate_records(11, 4, fs_hz=100.0))
    again = list(simulate_records(11, 3, fs_hz=100.0))
    for a, b in zip(first, again, strict=False):
        np.testing.assert_array_equal(a.signal_mv, b.signal_mv)
        assert a.findings == b.findings
    assert not np.array_equal(first[0].signal_mv, first[1].signal_mv)


def test_every_superclass_has_its_share_and_they_come_together():
    rng = np.random.default_rng(0)
    found = np.array([superclasses(draw_findings(rng)) for _ in range(500)])
    assert ((found.mean(0) > 0.15) & (found.mean(0) < 0.5)).all()
    sick = found[:, 1:].sum(1)
    assert (sick[found[:, 0]] == 0).all()
    assert np.mean(sick >= 2) > 0.15
    for i in range(1, 5):
        assert all((found[:, i] & found[:, j]).any() for j in range(1, 5))


def test_labels_follow_from_findings():
    findings = EcgFindings(52.0, pr_ms=240.0, infarct="anterolateral", infarct_size=0.5)
    names = {name for name, holds in zip(LABELS, label_findings(findings), strict=True) if holds}
    assert names == {
        "sinus_bradycardia", "first_degree_block", "anterior_infarct", "lateral_infarct",
    }  # fmt: skip
    classes = dict(zip(SUPERCLASSES, superclasses(findings), strict=True))
    assert classes == {"NORM": False, "MI": True, "STTC": False, "CD": True, "HYP": False}


@pytest.mark.parametrize(
    "has",
    [
        {"heart_rate_bpm": 5.0},
        {"rhythm": "jazz"},
        {"infarct": "inferior"},
        {"st_t_amount": 0.5},
        {"ventricular_ectopy": 0.3, "atrial_ectopy": 0.3},
        {"qrs_ms": float("nan")},
    ],
)
def test_a_heart_that_cannot_be_is_refused(has: dict):
    with pytest.raises(InputError, match="bad_findings"):
        EcgFindings(**{"heart_rate_bpm": 66.0, **has})


@pytest.mark.parametrize(
    "how", [{"fs_hz": 20.0}, {"duration_s": 0.5}, {"noise": -1.0}, {"fs_hz": float("nan")}]
)
def test_a_recording_that_cannot_be_is_refused(how: dict):
    with pytest.raises(InputError, match="bad_recording"):
        simulate_record(np.random.default_rng(0), **{"fs_hz": 100.0, **how})
    with pytest.raises(InputError, match="bad_recording"):
        simulate_records(0, 1, **{"fs_hz": 100.0, **how})


def test_a_long_record_with_early_beats_has_beats_to_its_end() -> None:
    for heart in (
        EcgFindings(72, atrial_ectopy=0.3, ventricular_ectopy=0.1),
        EcgFindings(72, rhythm="atrial_fibrillation", ventricular_ectopy=0.3),
    ):
        record = simulate_record(np.random.default_rng(0), heart, fs_hz=100, duration_s=400)
        assert record.beat_times_s[-1] > 395
