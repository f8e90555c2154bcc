"""The algebra of limb leads, and every fault that is planted in a sound record."""

import csv
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsfm.errors import InputError
from tsfm.signals.limb_leads import (
    LIMB_LEADS,
    derive_limb_leads,
    einthoven_residual,
    find_lead_faults,
)
from tsfm.signals.store import STANDARD_LEADS, canonical_lead
from tsfm.simulation.waveforms import simulate_ecg

FS_HZ = 250.0
PAIRS = list(combinations(range(6), 2))


def _record(seed=0):
    leads = simulate_ecg(
        np.random.default_rng(seed), fs_hz=FS_HZ, duration_s=10.0, heart_rate_bpm=70.0,
        leads=STANDARD_LEADS,
    )  # fmt: skip
    return np.stack([leads[name] for name in STANDARD_LEADS])


def _faults(signal, leads=STANDARD_LEADS, fs_hz=FS_HZ, **options):
    return [(f.kind, f.leads) for f in find_lead_faults(signal, leads, fs_hz=fs_hz, **options)]


@pytest.fixture(scope="module")
def ptbxl(data_dir):
    """(record, lead, sample) mV at 100 Hz."""
    wfdb = pytest.importorskip("wfdb")
    folder = data_dir("wfdb") / "ptb-xl"
    with open(folder / "ptbxl_database.csv", newline="") as file:
        names = [row["filename_lr"] for row in csv.DictReader(file)]
    records = [wfdb.rdrecord(str(folder / name)) for name in names]
    order = [[canonical_lead(x) for x in r.sig_name] for r in records]
    return np.stack(
        [
            r.p_signal.T[[names.index(lead) for lead in STANDARD_LEADS]]
            for r, names in zip(records, order, strict=True)
        ]
    )


@given(
    st.integers(0, 2**31), st.sampled_from(PAIRS), st.sampled_from([1e-3, 1.0, 1e3]),
    st.sampled_from([np.float32, np.float64]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_two_limb_leads_tell_the_others(seed, pair, size, dtype):
    rng = np.random.default_rng(seed)
    one, two = size * rng.standard_normal((2, 50))
    truth = np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2])
    given_leads = [LIMB_LEADS[i].upper() for i in pair]
    signal, leads = derive_limb_leads(truth[list(pair)].astype(dtype), given_leads)
    assert leads == LIMB_LEADS
    assert signal.dtype == dtype
    close = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(signal, truth, rtol=0, atol=close * size)
    residuals = einthoven_residual(signal, leads)
    assert max(residuals.values()) < close * size


def test_from_i_and_ii_the_formulas_hold_to_the_bit():
    one, two = np.random.default_rng(0).standard_normal((2, 1000))
    signal, _ = derive_limb_leads(np.stack([two, one]), ["II", "I"])
    assert (signal[2] == two - one).all()
    assert (signal[4] == one - two / 2).all()
    assert (signal[5] == two - one / 2).all()


def test_gaps_stay_gaps_and_present_leads_stay_as_they_are():
    record = _record()
    record[0, 100:200] = np.nan
    record[2] = np.nan
    record[5, 7] = 99.0
    signal, leads = derive_limb_leads(record[[6, 5, 2, 1, 0]], ["V1", "aVF", "III", "II", "I"])
    assert leads == (*LIMB_LEADS, "V1")
    assert np.isnan(signal[2:5, 100:200]).all()
    assert np.isfinite(signal[2:5, 200:]).all()
    np.testing.assert_array_equal(signal[[0, 1, 5, 6]], record[[0, 1, 5, 6]])


def test_the_residual_is_in_the_signals_unit_and_skips_gaps():
    record = _record()
    record[4] += 0.25
    record[5, :900] = np.nan
    residual = einthoven_residual(record, STANDARD_LEADS)
    assert residual["aVL"] == pytest.approx(0.25)
    assert residual["aVF"] == pytest.approx(0, abs=1e-12)
    assert set(residual) == {"III", "aVR", "aVL", "aVF"}
    assert einthoven_residual(record[:2], ["I", "II"]) == {}


@pytest.mark.parametrize(
    ("signal", "leads", "code"),
    [
        (np.zeros(5), ["I"], "bad_signal_shape"),
        (np.zeros((2, 5)), ["I"], "bad_signal_shape"),
        (np.zeros((2, 5)), ["avr", "aVR"], "repeated_lead"),
        (np.zeros((2, 5)), ["I", "V1"], "too_few_limb_leads"),
        (np.full((2, 5), np.nan), ["I", "II"], "too_few_limb_leads"),
    ],
)
def test_what_cannot_be_used_is_refused(signal, leads, code):
    with pytest.raises(InputError) as refused:
        derive_limb_leads(signal, leads)
    assert refused.value.code == code


def test_a_unit_of_nothing_is_refused():
    with pytest.raises(InputError) as refused:
        find_lead_faults(_record(), STANDARD_LEADS, fs_hz=FS_HZ, unit_mv=0.0)
    assert refused.value.code == "bad_scale"


@pytest.mark.parametrize("step_mv", [None, 0.001, 0.005])
def test_a_sound_record_has_no_faults_in_any_order_and_rounding(step_mv):
    record = _record()
    if step_mv:
        record = np.rint(record / step_mv) * step_mv
    order = np.random.default_rng(1).permutation(12)
    assert _faults(record) == []
    assert _faults(record[order], [STANDARD_LEADS[i].upper() for i in order]) == []
    assert _faults(record, lsb_mv=step_mv) == []


def test_offsets_gaps_and_other_leads_are_no_faults():
    record = np.vstack([_record(), _record(1)[1:2]])
    record[:6] += np.arange(6)[:, None]
    record[3, 300:700] = np.nan
    assert _faults(record, (*STANDARD_LEADS, "MLII")) == []


@pytest.mark.parametrize("pair", PAIRS)
def test_any_two_limb_leads_interchanged_are_named(pair):
    record = _record()
    record[list(pair)] = record[list(pair)[::-1]]
    assert _faults(record) == [("swapped", tuple(LIMB_LEADS[i] for i in pair))]


def test_three_leads_in_a_circle_are_named():
    record = _record()
    record[[0, 1, 4]] = record[[1, 4, 0]]
    assert _faults(record) == [("swapped", ("I", "II", "aVL"))]


@pytest.mark.parametrize("lead", range(6))
def test_one_inverted_limb_lead_is_named(lead):
    record = _record()
    record[lead] *= -1
    assert _faults(record) == [("inverted", (LIMB_LEADS[lead],))]


@given(st.integers(0, 5), st.sampled_from([1e-3, 0.1, 0.5, 0.8, 1.25, 2.0, 10.0, 1e3, -2.0]))
@settings(max_examples=40, deadline=None)
def test_a_limb_lead_of_another_gain_is_named(lead, factor):
    record = _record()
    record[lead] *= factor
    assert _faults(record) == [("wrong_scale", (LIMB_LEADS[lead],))]


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_units_are_checked_against_what_a_heart_makes(factor):
    record = _record()
    assert _faults(record * factor) == [("wrong_unit", STANDARD_LEADS)]
    assert _faults(record * factor, unit_mv=1 / factor) == []
    record[8] *= factor
    assert _faults(record) == [("wrong_scale", ("V3",))]


@pytest.mark.parametrize("lead", [0, 4, 9])
def test_dead_leads_are_named_and_nothing_else(lead):
    name = (STANDARD_LEADS[lead],)
    flat, low, high, gone = (_record() for _ in range(4))
    flat[lead, 400:] = flat[lead, 400]
    low[lead] = np.maximum(low[lead], np.quantile(low[lead], 0.1))
    high[lead, 1000:1200] = 5.0
    gone[lead, :1500] = np.nan
    assert _faults(flat) == [("flat", name)]
    assert _faults(low) == [("saturated", name)]
    assert _faults(high) == [("saturated", name)]
    assert _faults(gone) == [("missing", name)]


@pytest.mark.parametrize("pair", [(0, 1), (2, 7), (6, 11)])
def test_a_copied_lead_is_named(pair):
    record = _record()
    record[pair[1]] = record[pair[0]] + 0.1
    assert _faults(record) == [("duplicated", tuple(STANDARD_LEADS[i] for i in pair))]


def test_a_contradiction_without_a_simple_cause_is_told_as_such():
    record = _record()
    record[3] = _record(5)[7]
    assert _faults(record) == [("not_einthoven", ("aVR",))]


def test_with_three_leads_faults_that_look_the_same_are_all_told():
    record = _record()[:3]
    record[0] *= -1
    (fault,) = find_lead_faults(record, LIMB_LEADS[:3], fs_hz=FS_HZ)
    assert fault.kind == "not_einthoven"
    assert "inverted I" in fault.detail
    assert "swapped II/III" in fault.detail


def test_reversed_arms_are_suspected_but_no_mirrored_heart():
    record = _record()
    record[1] *= 0.6  # a heart that lies more across, so that aVL is upright
    record[:6], _ = derive_limb_leads(record[:2], LIMB_LEADS[:2])
    assert _faults(record) == []
    record[0] *= -1
    record[[1, 2, 3, 4]] = record[[2, 1, 4, 3]]
    assert max(einthoven_residual(record, STANDARD_LEADS).values()) < 1e-9
    assert [kind for kind, _ in _faults(record)] == ["arm_reversal"]
    record[[10, 11]] *= -1
    assert _faults(record) == []


def test_reversed_arms_are_suspected_through_gaps():
    record = _record()
    record[1] *= 0.6
    record[:6], _ = derive_limb_leads(record[:2], LIMB_LEADS[:2])
    record[0] *= -1
    record[[1, 2, 3, 4]] = record[[2, 1, 4, 3]]
    n = record.shape[1] // 2
    for row in (0, 3, 11):
        for at in range(n, n + 500, 25):  # before, in and behind a beat
            gapped = record.copy()
            gapped[row, at] = np.nan
            assert [kind for kind, _ in _faults(gapped)] == ["arm_reversal"], (row, at)


def test_no_published_record_is_flagged(ptbxl):
    assert [i for i, x in enumerate(ptbxl) if find_lead_faults(x, STANDARD_LEADS, fs_hz=100)] == []
    residuals = [einthoven_residual(x, STANDARD_LEADS) for x in ptbxl]
    assert max(max(r.values()) for r in residuals) < 0.001  # mV: one rounding step


def test_faults_planted_in_published_records_are_found(ptbxl):
    missed = []
    for i, record in enumerate(ptbxl[::4]):
        a, b = PAIRS[i % len(PAIRS)]
        swapped, inverted, scaled = (record.copy() for _ in range(3))
        swapped[[a, b]] = swapped[[b, a]]
        inverted[i % 6] *= -1
        scaled[i % 12] *= (1e-3, 1e3)[i % 2]
        for planted, fault in (
            (swapped, ("swapped", (LIMB_LEADS[a], LIMB_LEADS[b]))),
            (inverted, ("inverted", (LIMB_LEADS[i % 6],))),
            (scaled, ("wrong_scale", (STANDARD_LEADS[i % 12],))),
        ):
            if _faults(planted, fs_hz=100.0) != [fault]:
                missed.append((i, fault))
    assert missed == []


def test_hand_held_and_two_lead_records_are_not_flagged(data_dir):
    wfdb = pytest.importorskip("wfdb")
    flagged = []
    for path in sorted((data_dir("wfdb") / "mitdb").glob("*.hea")):
        record = wfdb.rdrecord(str(path.with_suffix("")), sampto=100_000)
        if find_lead_faults(record.p_signal.T, record.sig_name, fs_hz=record.fs):
            flagged.append(path.stem)
    assert flagged == []
