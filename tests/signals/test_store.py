"""The signal store gives back what was put in, and says what it does not have."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsfm import event_table, schema
from tsfm.errors import InputError, IntegrityError
from tsfm.signals.store import Lead, SignalStore, SignalWriter, canonical_lead, find_runs

START = datetime(2030, 1, 2, 3, 4, 5)


def lead(name: str = "II", samples: Any = (0, 100, 200, 300), **changes: Any) -> Lead:
    fields: dict[str, Any] = {
        "name": name,
        "modality": "ecg",
        "fs_hz": 250.0,
        "samples": samples
        if isinstance(samples, np.ndarray)
        else np.array(samples, dtype=np.int16),
        "units": "mV",
        "gain": 200.0,
        "baseline": 100,
    }
    return Lead(**{**fields, **changes})


def write(root: Path, *leads: Lead, shard_bytes: int = 2**20) -> SignalStore:
    with SignalWriter(root, shard_bytes=shard_bytes) as writer:
        writer.add(leads, signal_id="s1", subject_id=7, record="a/b", start_time=START)
    return SignalStore(root)


def test_values_are_physical(tmp_path: Path) -> None:
    store = write(tmp_path, lead())
    np.testing.assert_allclose(store.read("s1", "II"), [-0.5, 0.0, 0.5, 1.0])
    np.testing.assert_array_equal(store.read_digital("s1", "II"), [0, 100, 200, 300])
    assert store.read("s1", "II").dtype == np.float32


@settings(max_examples=40, deadline=None)
@given(
    samples=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=30),
    mask=st.lists(st.booleans(), min_size=30, max_size=30),
    window=st.tuples(st.integers(0, 30), st.integers(0, 30)),
)
def test_a_window_equals_the_slice_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    samples: list[int],
    mask: list[bool],
    window: tuple[int, int],
) -> None:
    n = len(samples)
    start, stop = sorted(min(edge, n) for edge in window)
    invalid = np.array(mask[:n])
    starts, lengths = find_runs(invalid)
    array = np.array(samples, dtype=np.int32)
    store = write(
        tmp_path_factory.mktemp("store"),
        lead("other", np.arange(5, dtype=np.int32)),
        lead(samples=array, gap_starts=starts.tolist(), gap_lengths=lengths.tolist()),
    )
    expected = np.where(invalid, np.nan, (array - 100.0) / 200.0).astype(np.float32)
    np.testing.assert_array_equal(store.read("s1", "II", start, stop), expected[start:stop])
    np.testing.assert_array_equal(store.read_digital("s1", "II"), array)


@given(st.lists(st.booleans(), max_size=40))
def test_runs_rebuild_their_mask(mask: list[bool]) -> None:
    rebuilt = np.zeros(len(mask), dtype=bool)
    starts, lengths = find_runs(np.array(mask, dtype=bool))
    for start, length in zip(starts, lengths, strict=True):
        assert length > 0
        assert not rebuilt[max(start - 1, 0) : start + length].any()
        rebuilt[start : start + length] = True
    assert rebuilt.tolist() == mask


def test_each_lead_keeps_rate_units_and_type(tmp_path: Path) -> None:
    values = np.array([0.25, np.nan, 0.75], dtype=np.float32)
    store = write(
        tmp_path,
        lead(),
        lead("big", np.array([2**30], dtype=np.int32)),
        lead("PPG", values, modality="ppg", fs_hz=125.5, units="NU", gain=1.0, baseline=0),
    )
    assert sorted(path.name for path in store.folder.glob("0*")) == [
        "0000.f32",
        "0000.i16",
        "0000.i32",
    ]
    record = store.read_record("s1")
    assert record.fs_hz == (250.0, 250.0, 125.5)
    assert record.units == ("mV", "mV", "NU")
    np.testing.assert_array_equal(record.values[2], values)
    assert store.index["gap_starts"].to_list()[2] == [1]
    schema.align(store.index.to_arrow(), schema.SIGNAL_INDEX)
    assert event_table.read_table(store.folder / "index.parquet").schema == schema.SIGNAL_INDEX


def test_an_uncalibrated_lead_has_no_unit(tmp_path: Path) -> None:
    store = write(tmp_path, lead(gain=None))
    assert store.read_record("s1", ["II"]).units == (None,)
    assert store.index["units"][0] is None
    np.testing.assert_array_equal(store.read("s1", "II"), [-100, 0, 100, 200])


def test_floats_are_in_their_unit_and_need_no_gain(tmp_path: Path) -> None:
    values = np.array([0.25, 0.5], dtype=np.float32)
    named, unnamed = lead("II", values, gain=None), lead("V5", values, gain=None, units=None)
    record = write(tmp_path, named, unnamed).read_record("s1")
    assert record.units == ("mV", None)
    np.testing.assert_array_equal(record.values[0], values)


def test_an_absent_lead_is_a_mask_and_never_zeros(tmp_path: Path) -> None:
    store = write(tmp_path, lead(), lead("V5"))
    record = store.read_record("s1", ["V5", "aVR", "ii"])
    assert record.leads == ("V5", "aVR", "II")
    assert record.present.tolist() == [True, False, True]
    assert np.stack(record.values).shape == (3, 4)
    assert np.isnan(record.values[1]).all()
    assert record.units == ("mV", None, "mV")
    only_absent = store.read_record("s1", ["aVR"])
    assert np.isnan(only_absent.values[0]).all()
    assert not only_absent.present.any()


def test_leads_are_found_in_any_case_and_the_exact_name_first(tmp_path: Path) -> None:
    store = write(
        tmp_path,
        lead("AVR"),
        lead("v", np.array([100], dtype=np.int16)),
        lead("V", np.array([300], dtype=np.int16)),
    )
    assert store.leads("s1") == ("AVR", "v", "V")
    assert store.read("s1", "aVR").size == 4
    assert store.read("s1", "V").tolist() == [1.0]
    assert store.read("s1", "v").tolist() == [0.0]
    assert [canonical_lead(name) for name in ("avf", "MLII")] == ["aVF", "MLII"]


def test_seconds_select_the_same_stretch_of_leads_of_unequal_rate(tmp_path: Path) -> None:
    fast = lead("II", np.arange(1000, dtype=np.int16))
    slow = lead("PPG", np.arange(500, dtype=np.int16), fs_hz=125.0)
    store = write(tmp_path, fast, slow)
    record = store.read_record("s1", ["II", "PPG"], start_s=1.0, stop_s=2.0)
    assert [len(values) for values in record.values] == [250, 125]
    assert record.values[0][0] == pytest.approx((250 - 100) / 200)
    assert record.values[1][0] == pytest.approx((125 - 100) / 200)


def test_a_single_name_is_one_lead(tmp_path: Path) -> None:
    store = write(tmp_path, lead("I"), lead("II"))
    record = store.read_record("s1", "II")
    assert record.leads == ("II",)
    assert len(record.values) == 1


def test_a_stretch_without_end_is_the_rest_and_no_number_is_refused(tmp_path: Path) -> None:
    store = write(tmp_path, lead("II", np.arange(1000, dtype=np.int16)))
    assert len(store.read_record("s1", start_s=1.0, stop_s=float("inf")).values[0]) == 750
    nan, inf = float("nan"), float("inf")
    for start_s, stop_s in ((nan, None), (inf, None), (0.0, nan)):
        with pytest.raises(InputError, match="bad_time_range"):
            store.read_record("s1", start_s=start_s, stop_s=stop_s)


def test_shards_are_bounded_and_a_lead_is_whole(tmp_path: Path) -> None:
    leads = [lead(f"L{i}", np.full(100, i, dtype=np.int16)) for i in range(7)]
    store = write(tmp_path, *leads, lead("long", np.arange(900, dtype=np.int16)), shard_bytes=450)
    sizes = {path.name: path.stat().st_size for path in store.folder.glob("*.i16")}
    assert sizes == {f"000{i}.i16": n for i, n in enumerate([400, 400, 400, 200, 1800])}
    for i in range(7):
        assert set(store.read_digital("s1", f"L{i}").tolist()) == {i}
    np.testing.assert_array_equal(store.read_digital("s1", "long"), np.arange(900))
    store.verify()


@pytest.mark.parametrize("name", ["0000.i16", "index.parquet"])
def test_a_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    store = write(tmp_path, lead())
    store.verify()
    path = store.folder / name
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        SignalStore(tmp_path).verify()
    assert caught.value.code == "checksum_mismatch"


def test_a_shard_cut_short_is_not_read(tmp_path: Path) -> None:
    store = write(tmp_path, lead())
    path = store.folder / "0000.i16"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(IntegrityError):
        store.read("s1", "II")


def test_a_broken_manifest_is_an_integrity_error(tmp_path: Path) -> None:
    store = write(tmp_path, lead())
    (store.folder / "manifest.json").write_text("{")
    with pytest.raises(IntegrityError):
        store.verify()


def test_a_failed_run_leaves_nothing(tmp_path: Path) -> None:
    def leads_of_a_broken_source() -> Iterator[Lead]:
        yield lead()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), SignalWriter(tmp_path) as writer:
        writer.add(
            leads_of_a_broken_source(), signal_id="s", subject_id=1, record="r", start_time=None
        )
    assert list(tmp_path.iterdir()) == []


def test_signals_are_not_written_over(tmp_path: Path) -> None:
    write(tmp_path, lead())
    with pytest.raises(InputError) as caught:
        SignalWriter(tmp_path)
    assert caught.value.code == "output_exists"


@pytest.mark.parametrize(
    ("code", "leads"),
    [
        ("duplicate_lead", [lead(), lead()]),
        ("bad_samples", [lead(samples=np.arange(3, dtype=np.int64))]),
        ("bad_samples", [lead(samples=np.zeros(0, dtype=np.int16))]),
        ("bad_sampling_rate", [lead(fs_hz=0.0)]),
        ("bad_gain", [lead(gain=0.0)]),
        ("bad_gaps", [lead(gap_starts=[-2], gap_lengths=[5])]),
        ("bad_gaps", [lead(gap_starts=[1], gap_lengths=[-1])]),
        ("bad_gaps", [lead(gap_starts=[1], gap_lengths=[0])]),
        ("bad_gaps", [lead(gap_starts=[1], gap_lengths=[4])]),
        ("bad_gaps", [lead(gap_starts=[4], gap_lengths=[1])]),
        ("bad_gaps", [lead(gap_starts=[1], gap_lengths=[])]),
    ],
)
def test_what_can_not_be_stored_is_refused(tmp_path: Path, code: str, leads: list[Lead]) -> None:
    with pytest.raises(InputError) as caught, SignalWriter(tmp_path) as writer:
        writer.add(leads, signal_id="s", subject_id=1, record="r", start_time=None)
    assert caught.value.code == code


def test_a_refused_record_has_no_lead_in_the_index(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"subject_id": 1, "record": "r", "start_time": None}
    with SignalWriter(tmp_path) as writer:
        with pytest.raises(InputError, match="bad_gain"):
            writer.add([lead(), lead("V5", gain=0.0)], signal_id="bad", **fields)
        writer.add([lead(), lead("V5")], signal_id="good", **fields)
    store = SignalStore(tmp_path)
    assert store.index["signal_id"].to_list() == ["good", "good"]
    np.testing.assert_array_equal(store.read_digital("good", "V5"), [0, 100, 200, 300])


def test_a_start_with_a_time_zone_is_refused(tmp_path: Path) -> None:
    start = datetime(2030, 1, 2, 3, tzinfo=UTC)
    with SignalWriter(tmp_path) as writer, pytest.raises(InputError, match="bad_time"):
        writer.add([lead()], signal_id="s", subject_id=1, record="r", start_time=start)


def test_an_index_that_points_beyond_its_shard_is_an_integrity_error(tmp_path: Path) -> None:
    store = write(tmp_path, lead())
    path = store.folder / "index.parquet"
    for offset in (-1, 1, 10**9):
        table = event_table.read_table(path)
        at = table.schema.get_field_index("offset")
        moved = table.set_column(at, table.schema.field(at), pa.array([offset], pa.int64()))
        event_table.write_table(moved, path)
        with pytest.raises(IntegrityError, match="bad_offset"):
            SignalStore(tmp_path).read("s1", "II")


def test_a_prefix_does_not_hide_a_lead(tmp_path: Path) -> None:
    values = [np.array([100 * i], dtype=np.int16) for i in range(3)]
    store = write(tmp_path, lead("Lead II", values[0]), lead("ii", values[1]), lead("ECG_aVR"))
    assert store.read_digital("s1", "II").tolist() == [100]
    assert store.read_record("s1", ["avr", "V1"]).present.tolist() == [True, False]
    names = ("lead ii", "ECG-V3", "ekg lead I", "IECG", "ECG", "ECG 7")
    assert [canonical_lead(n) for n in names] == ["II", "V3", "I", "IECG", "ECG", "ECG 7"]


def test_the_names_of_a_record_tell_its_leads_apart(tmp_path: Path) -> None:
    values = [np.array([100 * i], dtype=np.int16) for i in range(2)]
    store = write(tmp_path, lead("ECG II", values[0]), lead("ii", values[1]), lead("Lead V1"))
    record = store.read_record("s1")
    assert record.leads == ("ECG II", "II", "V1")
    assert store.read_record("s1", ["II", "ecg ii", "aVR"]).leads == ("II", "ECG II", "aVR")
    for name, signal in zip(record.leads, record.values, strict=True):
        np.testing.assert_array_equal(store.read("s1", name), signal)
    assert store.read_digital("s1", "lead II").tolist() == [100]


def test_what_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        SignalStore(tmp_path)
    store = write(tmp_path, lead())
    with pytest.raises(InputError, match="unknown_signal"):
        store.read("s2", "II")
    with pytest.raises(InputError, match="unknown_lead"):
        store.read("s1", "V1")
    for start, stop in ((-1, 2), (2, 1), (0, 5)):
        with pytest.raises(InputError, match="bad_sample_range"):
            store.read("s1", "II", start, stop)


def test_a_pickled_store_is_a_path_not_a_copy(tmp_path: Path) -> None:
    store = write(tmp_path, lead("II", np.zeros(10_000, dtype=np.int16)))
    store.read("s1", "II")
    data = pickle.dumps(store)
    assert len(data) < 500
    assert pickle.loads(data).read("s1", "II").size == 10_000
