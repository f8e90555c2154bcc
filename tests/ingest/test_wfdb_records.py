"""WFDB records come in as they are, and hostile ones are set aside: no hang, no other error."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
import wfdb

from tsfm import event_table, schema
from tsfm.errors import FormatError, InputError
from tsfm.ingest.provenance import IngestSummary
from tsfm.ingest.wfdb_records import ingest_wfdb
from tsfm.signals.store import SignalStore

rdrecord = cast(Any, wfdb.rdrecord)
SAMPLES = np.arange(-40, 60, dtype=np.int16)


def write_raw(folder: Path, name: str = "r", header: str | bytes | None = None) -> None:
    """A good record of one signal (format 16), or one whose header is given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.dat").write_bytes(SAMPLES.astype("<i2").tobytes())
    if header is None:
        checksum = int(SAMPLES.sum()) % 65536
        header = f"{name} 1 250 100\n{name}.dat 16 200/mV 16 0 -40 {checksum} 0 II\n"
    data = header.encode() if isinstance(header, str) else header
    (folder / f"{name}.hea").write_bytes(data)


def ingest_with_a_good_record(tmp_path: Path, **options: Any) -> IngestSummary:
    """Read `tmp_path/in` after adding one good record: the others must not spoil it."""
    write_raw(tmp_path / "in" / "good", "good")
    start = time.perf_counter()
    summary = ingest_wfdb(tmp_path / "in", tmp_path / "out", max_quarantined=1.0, **options)
    assert time.perf_counter() - start < 10
    assert_all_accounted(summary)
    assert "good/good" in SignalStore(tmp_path / "out").index["record"].to_list()
    return summary


def assert_all_accounted(summary: IngestSummary) -> None:
    assert summary.rows_read["record"] == (
        summary.rows_used["record"]
        + sum(summary.quarantined.values())
        + sum(summary.rows_ignored.values())
    )


def physical(stem: Path) -> list[np.ndarray]:
    return rdrecord(str(stem), physical=True, smooth_frames=False).e_p_signal


# Real records


def test_mitdb_is_bit_equal(data_dir: Callable[[str], Path], tmp_path: Path) -> None:
    folder = data_dir("wfdb/mitdb")
    summary = ingest_wfdb(folder, tmp_path)
    assert (summary.rows_read["record"], summary.rows_used["record"]) == (23, 23)
    assert summary.events_by_class == {"ECG": 23}
    store = SignalStore(tmp_path)
    store.verify()
    assert set(store.index["checksum_ok"]) == {True}
    for signal_id, name in store.index.select("signal_id", "record").unique().iter_rows():
        theirs = rdrecord(str(folder / name), physical=False)
        for i, lead in enumerate(theirs.sig_name):
            np.testing.assert_array_equal(
                store.read_digital(signal_id, lead), theirs.d_signal[:, i]
            )
    assert store.leads(store.index.filter(record="114")["signal_id"][0]) == ("V5", "MLII")


def test_ptb_xl_twelve_leads(data_dir: Callable[[str], Path], tmp_path: Path) -> None:
    folder = data_dir("wfdb/ptb-xl")
    summary = ingest_wfdb(folder / "records500", tmp_path)
    n_records = summary.rows_used["record"]
    assert n_records == summary.rows_read["record"] > 0
    store = SignalStore(tmp_path)
    events = pl.concat(event_table.scan_events(tmp_path))
    assert events["code"].unique().to_list() == ["ECG//12"]
    assert set(events["signal_id"]) == set(store.index["signal_id"])
    signal_id, name = store.index.select("signal_id", "record").row(0)
    record = store.read_record(signal_id, ["aVR", "V6", "MLII"])
    assert record.present.tolist() == [True, True, False]
    theirs = physical(folder / "records500" / name)
    np.testing.assert_array_equal(record.values[0], theirs[3].astype(np.float32))


def test_cinc_matlab_records_have_no_checksum(
    data_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = data_dir("wfdb/cinc2017")
    for path in sorted(folder.glob("A*"))[:20]:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    summary = ingest_wfdb(tmp_path / "in", tmp_path / "out")
    assert summary.rows_used["record"] == 10
    store = SignalStore(tmp_path / "out")
    assert set(store.index["checksum_ok"]) == {None}
    assert set(store.index["fs_hz"]) == {300.0}
    for signal_id, name in store.index.select("signal_id", "record").iter_rows():
        theirs = physical(tmp_path / "in" / name)[0]
        np.testing.assert_array_equal(store.read(signal_id, "ECG"), theirs.astype(np.float32))
    start = wfdb.rdheader(str(tmp_path / "in" / name)).base_datetime
    assert start is not None
    event = pl.concat(event_table.scan_events(tmp_path / "out")).filter(signal_id=signal_id)
    assert event["time"].to_list() == [start]
    assert event["available_time"].to_list() == [start + timedelta(seconds=len(theirs) / 300)]


@pytest.fixture(scope="module")
def samples(
    data_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, SignalStore, IngestSummary]:
    folder = data_dir("wfdb/wfdb-python-samples")
    out = tmp_path_factory.mktemp("samples")
    summary = ingest_wfdb(folder, out)
    return folder, SignalStore(out), summary


def test_every_sample_record_is_accounted_for(
    samples: tuple[Path, SignalStore, IngestSummary],
) -> None:
    _, store, summary = samples
    assert_all_accounted(summary)
    assert summary.quarantined == {
        "missing_signal_file": 5,
        "missing_segment": 1,
        "no_measurement": 1,
    }
    assert summary.rows_ignored == {"layout header": 4, "segment of another record": 41}
    entries = [
        json.loads(line)["file"]
        for path in (store.root / "quarantine").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert {"1003.hea", "12726.hea", "drive02.hea"} < set(entries)


def test_all_formats_and_rates_equal_wfdb(
    samples: tuple[Path, SignalStore, IngestSummary],
) -> None:
    folder, store, _ = samples
    n_checked = 0
    for signal_id, name in store.index.select("signal_id", "record").unique().iter_rows():
        if name == "test01_00s_skewframe":  # see the test of skew below
            continue
        record = store.read_record(signal_id)
        theirs = rdrecord(str(folder / name), physical=True, smooth_frames=False, return_res=64)
        by_name = dict(zip(theirs.sig_name, theirs.e_p_signal, strict=True))
        units = dict(zip(theirs.sig_name, theirs.units, strict=True)) if theirs.units else {}
        for lead, values in zip(store.leads(signal_id), record.values, strict=True):
            np.testing.assert_allclose(values, by_name[lead], rtol=2e-7, atol=1e-9, err_msg=name)
            row = store.index.filter(signal_id=signal_id, lead=lead)
            assert row["fs_hz"][0] == pytest.approx(theirs.fs * len(values) / theirs.sig_len)
            assert row["units"][0] == units.get(lead, row["units"][0])
            n_checked += 1
        for absent in set(by_name) - set(store.leads(signal_id)):
            assert np.isnan(by_name[absent]).all()
    assert n_checked > 80


def test_mixed_rates_are_not_averaged(samples: tuple[Path, SignalStore, IngestSummary]) -> None:
    _, store, _ = samples
    rows = store.index.filter(record="mixedsignals")
    rates = dict(zip(rows["lead"], rows["fs_hz"], strict=True))
    assert rates == pytest.approx(
        {
            "II": 249.89,
            "III": 249.89,
            "V": 249.89,
            "ABP": 124.945,
            "Pleth": 124.945,
            "Resp": 62.4725,
        }
    )
    assert dict(zip(rows["lead"], rows["modality"], strict=True)) == {
        "II": "ecg", "III": "ecg", "V": "ecg", "ABP": "abp", "Pleth": "ppg", "Resp": "resp"
    }  # fmt: skip
    events = pl.concat(event_table.scan_events(store.root)).filter(signal_id=rows["signal_id"][0])
    assert sorted(events["code"]) == ["ECG//3", "PPG", "WAVEFORM//abp", "WAVEFORM//resp"]


def test_segments_of_unequal_gain_become_physical(
    samples: tuple[Path, SignalStore, IngestSummary],
) -> None:
    folder, store, _ = samples
    stem = "multi-segment/s25047/s25047-2704-05-04-10-44"
    rows = store.index.filter(record=stem)
    assert rows["lead"].to_list() == ["II", "V", "ABP"]
    assert all(shard.endswith(".f32") for shard in rows["shard"])
    assert rows["start_time"][0] == datetime(2704, 5, 4, 10, 44, 18, 529000)
    signal_id = rows["signal_id"][0]
    # 25,740 frames of null segment, then segments without ABP up to the last two.
    assert np.isnan(store.read(signal_id, "II", 0, 25_740)).all()
    assert np.isfinite(store.read(signal_id, "II", 25_740, 25_750)).any()
    assert np.isnan(store.read(signal_id, "ABP", 0, 543_240 - 93_975 - 3_525)).all()
    assert np.isfinite(store.read(signal_id, "ABP", 543_240 - 93_975)).mean() > 0.9
    last = physical(folder / "multi-segment/s25047/3234460_0018")
    np.testing.assert_allclose(store.read(signal_id, "V", 543_240 - 93_975), last[1], rtol=2e-7)


def test_skew_shifts_frames_and_leaves_a_gap(
    samples: tuple[Path, SignalStore, IngestSummary],
) -> None:
    folder, store, _ = samples
    rows = store.index.filter(record="test01_00s_skewframe")
    signal_id = rows["signal_id"][0]
    assert rows["checksum_ok"].to_list() == [True, True, True]
    unskewed = physical(folder / "test01_00s_frame")[0]
    values = store.read(signal_id, "ECG_1")
    np.testing.assert_allclose(values[:-3], unskewed[3:], rtol=2e-7)
    assert np.isnan(values[-3:]).all()


def test_a_length_left_to_the_file_is_counted(
    samples: tuple[Path, SignalStore, IngestSummary],
) -> None:
    _, store, _ = samples
    rows = store.index.filter(record="a103l-no-len")
    assert rows["n_samples"].to_list() == [82_500] * 3
    assert rows["checksum_ok"].to_list() == [True] * 3


# What a header says


def test_a_signal_without_gain_claims_no_millivolts(tmp_path: Path) -> None:
    write_raw(tmp_path / "in", "zero", "zero 1 250 100\nzero.dat 16 0/mV 16 0 -40 0 0 II\n")
    write_raw(tmp_path / "in", "none", "none 1 250 100\nnone.dat 16\n")
    summary = ingest_with_a_good_record(tmp_path)
    assert summary.rows_used["record"] == 3
    store = SignalStore(tmp_path / "out")
    for name in ("zero", "none"):
        row = store.index.filter(record=name)
        assert (row["gain"][0], row["units"][0]) == (None, None)
        values = store.read(row["signal_id"][0], row["lead"][0])
        np.testing.assert_array_equal(values, SAMPLES)
    assert any("2 signals have no gain" in note for note in summary.notes)


def test_micro_volts_are_not_read_as_volts(tmp_path: Path) -> None:
    for name, encoding in (("utf", "utf-8"), ("latin", "latin-1")):
        header = f"{name} 1 250 100\n{name}.dat 16 2/µV 16 0 -40 0 0 II\n# née Müller\n"
        write_raw(tmp_path / "in", name, header.encode(encoding))
    ingest_with_a_good_record(tmp_path)
    index = SignalStore(tmp_path / "out").index
    assert index.filter(pl.col("record") != "good/good")["units"].to_list() == ["µV", "µV"]


def test_the_value_for_no_measurement_is_a_gap(tmp_path: Path) -> None:
    write_raw(tmp_path / "in")
    data = SAMPLES.copy()
    data[10:15] = -(2**15)
    (tmp_path / "in" / "r.dat").write_bytes(data.tobytes())
    (tmp_path / "in" / "r.hea").write_text("r 1 250 100\nr.dat 16 200/mV 16 0 -40 0 0 II\n")
    ingest_wfdb(tmp_path / "in", tmp_path / "out")
    store = SignalStore(tmp_path / "out")
    values = store.read(store.index["signal_id"][0], "II")
    assert np.flatnonzero(np.isnan(values)).tolist() == list(range(10, 15))


def test_signals_of_one_name_are_both_kept(tmp_path: Path) -> None:
    header = "r 2 250 50\nr.dat 16 200 16 0 0 0 0 ECG\nr.dat 16 200 16 0 0 0 0 ECG\n"
    write_raw(tmp_path / "in", "r", header)
    ingest_wfdb(tmp_path / "in", tmp_path / "out")
    store = SignalStore(tmp_path / "out")
    signal_id = store.index["signal_id"][0]
    assert store.leads(signal_id) == ("ECG", "ECG#2")
    np.testing.assert_array_equal(store.read_digital(signal_id, "ECG#2"), SAMPLES[1::2])


# Whole runs


def test_a_second_run_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    write_raw(tmp_path / "in")
    ingest_wfdb(tmp_path / "in", tmp_path / "out")
    before = {p: p.read_bytes() for p in sorted((tmp_path / "out").rglob("*")) if p.is_file()}
    (tmp_path / "s.csv").write_text("record,subject\nr,1\n")
    with pytest.raises(InputError, match="output_exists"):
        ingest_wfdb(tmp_path / "in", tmp_path / "out", subjects=tmp_path / "s.csv")
    after = {p: p.read_bytes() for p in sorted((tmp_path / "out").rglob("*")) if p.is_file()}
    assert after == before


def test_events_never_point_to_signals_that_are_gone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_raw(tmp_path / "in", name)
    subjects = tmp_path / "s.csv"
    subjects.write_text("record,subject,start_time\na,1,2030-01-01\nb,2,2030-01-01\n")
    ingest_wfdb(tmp_path / "in", tmp_path / "out", subjects=subjects)
    shutil.rmtree(tmp_path / "out" / "signals")
    write_raw(tmp_path / "fewer", "a")
    with pytest.raises(FormatError, match="dangling_signals"):
        ingest_wfdb(tmp_path / "fewer", tmp_path / "out", subjects=subjects)
    assert not (tmp_path / "out" / "signals").exists()
    summary = ingest_wfdb(tmp_path / "in", tmp_path / "out", subjects=subjects)
    assert summary.events_by_class == {"ECG": 2}


def test_a_folder_that_holds_something_else_is_refused_before_it_is_read(tmp_path: Path) -> None:
    write_raw(tmp_path / "src")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.docx").touch()
    with pytest.raises(InputError, match="output_exists"):
        ingest_wfdb(tmp_path / "src", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.docx"]


def test_too_many_bad_records_fail_the_run(tmp_path: Path) -> None:
    write_raw(tmp_path / "in", "good")
    for name in ("bad1", "bad2"):
        write_raw(tmp_path / "in", name, b"")
    with pytest.raises(FormatError, match="too_many_quarantined"):
        ingest_wfdb(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out" / "signals").exists()
    assert not (tmp_path / "out" / "data").exists()
    assert (tmp_path / "out" / "quarantine" / "empty_header.ndjson").is_file()


def test_an_empty_folder_and_no_folder_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no_records"):
        ingest_wfdb(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="missing_source"):
        ingest_wfdb(tmp_path / "nothing", tmp_path / "out")


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_raw(tmp_path / "in", name)
    for out in ("one", "two"):
        ingest_wfdb(tmp_path / "in", tmp_path / out)
    for path in sorted((tmp_path / "one" / "signals").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / "signals" / path.name).read_bytes()
    assert os.listdir(tmp_path / "one") != []
    assert schema.data_dir(tmp_path / "one").is_dir()
