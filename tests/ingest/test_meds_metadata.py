"""What a MEDS data set says beside its events is kept, and what it can't mean is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tsfm import event_table, splits
from tsfm.errors import FormatError, IntegrityError
from tsfm.ingest.meds_dataset import ingest_meds
from tsfm.signals.store import Lead, SignalStore, SignalWriter

from .meds_sources import IN, OUT, STAY, error_of, ingest, shard, write


def source(folder: Path, facts: Any = None, **tables: dict[str, Any]) -> Path:
    """A stay of subject 1 with tables of metadata."""
    metadata = {f"metadata/{name}": pa.table(columns) for name, columns in tables.items()}
    write(folder, {"data/0": shard(STAY), **metadata})
    if facts is not None:
        (folder / "metadata").mkdir(exist_ok=True)
        (folder / "metadata" / "dataset.json").write_text(json.dumps(facts))
    return folder


def test_splits_come_from_the_table_else_the_folders_else_the_hash(tmp_path: Path) -> None:
    one, two, three = (shard([(s, IN, "A", None)]) for s in (1, 2, 3))
    folders = {"train/0": one, "tuning/0": two, "held_out/0": three}
    *_, out = ingest(write(tmp_path / "bare", folders))
    assert event_table.subject_splits(out) == {1: "train", 2: "tuning", 3: "held_out"}

    src = write(tmp_path / "table", {f"data/{name}": table for name, table in folders.items()})
    given = pa.table({"subject_id": [1, 2], "split": ["held_out", "train"]})
    write(src, {"metadata/subject_splits": given})
    *_, out = ingest(src)
    assert event_table.subject_splits(out) == {1: "held_out", 2: "train", 3: "held_out"}

    *_, out = ingest(write(tmp_path / "none", {"data/0": one}))
    assert event_table.subject_splits(out) == {1: splits.split_of(1)}


def test_a_subject_in_two_split_folders_is_kept_from_training(tmp_path: Path) -> None:
    folders = {name: shard([(1, IN, "A", None)]) for name in ("train/0", "tuning/0")}
    _, summary, out = ingest(write(tmp_path / "a", folders))
    assert event_table.subject_splits(out) == {1: "tuning"}
    assert any("folders of two splits" in note for note in summary.notes)


def test_descriptions_are_kept(data_dir: Callable[[str], Path], tmp_path: Path) -> None:
    ingest_meds(data_dir("meds-sample") / "meds-transforms-example", tmp_path / "out")
    rows = event_table.read_table(tmp_path / "out" / "metadata" / "codes.parquet").to_pylist()
    texts = {row["code"]: row["description"] for row in rows}
    assert texts["EYE_COLOR//BLUE"] == "Blue Eyes. Less common than brown."


@pytest.mark.parametrize(
    ("name", "facts", "option", "shifted"),
    [
        ("MIMIC-x", None, None, True),
        ("site", {"dataset_name": "my mimic copy"}, None, True),
        ("mimic", {"dates_shifted": False}, None, False),
        ("site", None, True, True),
        ("site", None, None, False),
    ],
)
def test_shifted_dates_have_no_last_day(
    tmp_path: Path, name: str, facts: dict[str, Any] | None, option: bool | None, shifted: bool
) -> None:
    src = write(tmp_path / name, {"data/0": shard(STAY)})
    if facts is not None:
        (src / "metadata").mkdir()
        (src / "metadata" / "dataset.json").write_text(json.dumps(facts))
    *_, out = ingest(src, dates_shifted=option)
    written = event_table.dataset_facts(out)
    assert written["dates_shifted"] is shifted
    assert written["data_as_of"] == (None if shifted else "2020-04-01T00:00:00")


@pytest.mark.parametrize("listed", [["held_out", "train"], ["train", "held_out"]])
def test_a_subject_listed_with_two_splits_is_kept_from_training(
    tmp_path: Path, listed: list[str]
) -> None:
    table = {"subject_id": [1, 1], "split": listed}
    _, summary, out = ingest(source(tmp_path / "a", subject_splits=table))
    assert event_table.subject_splits(out) == {1: "held_out"}
    assert any(note.startswith("1 subjects") and "two splits" in note for note in summary.notes)


def test_a_name_of_its_own_is_kept_and_goes_before_training(tmp_path: Path) -> None:
    table = {"subject_id": [1, 1, 1], "split": ["train", "external", "tuning"]}
    *_, out = ingest(source(tmp_path / "a", subject_splits=table))
    assert event_table.subject_splits(out) == {1: "external"}


def test_a_subject_that_the_table_leaves_out_keeps_the_split_of_its_folder(tmp_path: Path) -> None:
    one, two, three = (shard([(s, IN, "A", None)]) for s in (1, 2, 3))
    listed = pa.table({"subject_id": [2, None], "split": ["train", "train"]})
    src = write(
        tmp_path / "a",
        {"data/held_out/0": one, "data/0": two, "data/1": three, "metadata/subject_splits": listed},
    )
    _, summary, out = ingest(src)
    assert event_table.subject_splits(out) == {1: "held_out", 2: "train", 3: splits.split_of(3)}
    assert any(note.startswith("1 subjects are in no split") for note in summary.notes)


def test_a_table_that_contradicts_the_folders_is_followed_and_noted(tmp_path: Path) -> None:
    src = write(tmp_path / "a", {"data/train/0": shard(STAY)})
    write(src, {"metadata/subject_splits": pa.table({"subject_id": [1], "split": ["tuning"]})})
    _, summary, out = ingest(src)
    assert event_table.subject_splits(out) == {1: "tuning"}
    assert any(note.startswith("1 subjects are in a folder of another") for note in summary.notes)


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("subject_splits", {"subject_id": ["1"], "split": ["train"]}),
        ("subject_splits", {"subject_id": [1.0], "split": ["train"]}),
        ("subject_splits", {"subject_id": pa.array([2**63], pa.uint64()), "split": ["train"]}),
        ("subject_splits", {"subject_id": [1], "split": [3]}),
        ("subject_splits", {"subject_id": [1]}),
        ("codes", {"code": [1], "description": ["x"]}),
        ("codes", {"description": ["x"]}),
        ("subject_ids", {"subject_id": [1]}),
        ("subject_ids", {"subject_id": [1], "source_id": [1]}),
    ],
)
def test_tables_of_metadata_that_are_none_are_refused(
    tmp_path: Path, name: str, columns: dict[str, Any]
) -> None:
    error = error_of(source(tmp_path / "a", **{name: columns}))
    assert isinstance(error, FormatError)
    assert error.code == "bad_metadata"
    assert name in error.place


def test_texts_may_be_dictionaries(tmp_path: Path) -> None:
    table = {"subject_id": [1], "split": pa.array(["tuning"]).dictionary_encode()}
    codes = {"code": pa.array(["LAB//1"]).dictionary_encode(), "description": ["Glucose"]}
    *_, out = ingest(source(tmp_path / "a", subject_splits=table, codes=codes))
    assert event_table.subject_splits(out) == {1: "tuning"}
    rows = event_table.read_table(out / "metadata" / "codes.parquet").to_pylist()
    assert [row["description"] for row in rows if row["code"] == "LAB//1"] == ["Glucose"]


@pytest.mark.parametrize(
    "facts",
    [
        {"clock": "foo"},
        {"data_as_of": "notadate"},
        {"data_as_of": 2020},
        {"data_as_of": "9999-12-31"},
        {"dates_shifted": "perhaps"},
        {"coding_delay_hours": "a day"},
    ],
)
def test_facts_that_are_acted_on_must_mean_something(tmp_path: Path, facts: dict[str, Any]) -> None:
    error = error_of(source(tmp_path / "a", facts))
    assert (error.code, error.place) == ("bad_metadata", "metadata/dataset.json")
    assert str(next(iter(facts.values()))) not in str(error)


def test_broken_metadata_is_refused(tmp_path: Path) -> None:
    src = write(tmp_path / "a", {"data/0": shard(STAY)})
    (src / "metadata").mkdir()
    for text in ("[1]", "{", '{"a": ' * 100_000):
        (src / "metadata" / "dataset.json").write_text(text)
        assert error_of(src).code == "bad_metadata"


def test_our_own_data_set_comes_out_as_it_went_in(
    data_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    ingest_meds(data_dir("meds-sample") / "meds-transforms-example", tmp_path / "first")
    write(tmp_path / "src", {"data/0": shard(STAY)})
    ingest_meds(tmp_path / "src", tmp_path / "own", n_shards=2)
    for name in ("first", "own"):
        n = len(event_table.shard_paths(tmp_path / name))
        ingest_meds(
            tmp_path / name, tmp_path / f"{name}-again", n_shards=4 if name == "first" else 2
        )
        again = event_table.shard_paths(tmp_path / f"{name}-again")
        assert len(again) == n
        for path in again:
            before = event_table.read_events(tmp_path / name / "data" / path.name)
            assert event_table.read_events(path).equals(before)
        for table in ("codes", "subject_splits"):
            paths = (
                tmp_path / f / "metadata" / f"{table}.parquet" for f in (name, f"{name}-again")
            )
            first, second = (event_table.read_table(path) for path in paths)
            assert first.equals(second)
        facts = [event_table.dataset_facts(tmp_path / f) for f in (name, f"{name}-again")]
        assert facts[0] | {"created_at": ""} == facts[1] | {"created_at": ""}


def test_facts_are_kept_but_for_those_of_the_run_that_wrote_them(tmp_path: Path) -> None:
    own = {
        "synthetic_clock": "made up",
        "subject_is": "hospital stay",
        "nominal_discharge_day": "07-01",
        "culture_delay_hours": 48.0,
        "license": "ODbL-1.0",
        "clock": "utc",
    }
    theirs = {"etl_name": "theirs", "meds_version": "0.3.3", "site_id_columns": ["site"]}
    *_, out = ingest(source(tmp_path / "a", {**own, **theirs}))
    facts = event_table.dataset_facts(out)
    assert own.items() <= facts.items()
    assert facts["etl_name"] == "tsfm.ingest.meds_dataset"
    assert facts["meds_version"] == "0.4.1"
    assert "site_id_columns" not in facts


def test_the_coding_delay_is_the_one_that_the_times_were_made_with(tmp_path: Path) -> None:
    src = source(tmp_path / "a", {"coding_delay_hours": 24})
    _, _, filled = ingest(src)
    assert event_table.dataset_facts(filled)["coding_delay_hours"] == 120
    src = write(tmp_path / "b", {"data/0": shard(STAY)})
    ingest_meds(src, tmp_path / "first", coding_delay_hours=24)
    before, _, out = ingest(tmp_path / "first")
    assert event_table.dataset_facts(out)["coding_delay_hours"] == 24
    assert before.equals(pl.concat(event_table.scan_events(tmp_path / "first")))


def with_signals(root: Path, *signal_ids: str) -> Path:
    """A data set whose one event points to each of some records, of which `s1` is there."""
    rows = [(1, OUT, "ECG//1", None, signal_id) for signal_id in signal_ids]
    write(root, {"data/0": shard(rows, signal_id=pa.string())})
    samples = np.arange(9, dtype=np.int16)
    lead = Lead("II", "ecg", 250.0, samples, units="mV", gain=200.0)
    with SignalWriter(root) as writer:
        writer.add([lead], signal_id="s1", subject_id=1, record="r", start_time=OUT)
    return root


def test_waveforms_are_copied_with_the_events_that_point_to_them(tmp_path: Path) -> None:
    src = with_signals(tmp_path / "a", "s1", "lost")
    _, summary, out = ingest(src)
    np.testing.assert_array_equal(SignalStore(out).read_digital("s1", "II"), np.arange(9))
    assert {p.name: p.read_bytes() for p in (out / "signals").iterdir()} == {
        p.name: p.read_bytes() for p in (src / "signals").iterdir()
    }
    assert any(note.startswith("waveforms of 1 records were copied") for note in summary.notes)
    assert any(note.startswith("waveforms of 1 records are not") for note in summary.notes)


def test_waveforms_that_are_not_there_are_noted(tmp_path: Path) -> None:
    src = write(tmp_path / "a", {"data/0": shard([(1, OUT, "PPG", None, "s")],
                                                 signal_id=pa.string())})  # fmt: skip
    _, summary, out = ingest(src)
    assert not (out / "signals").exists()
    assert any(note.startswith("waveforms of 1 records are not") for note in summary.notes)


def test_waveforms_that_changed_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    src = with_signals(tmp_path / "a", "s1")
    path = src / "signals" / "0000.i16"
    for broken in (path.write_bytes, lambda _: path.unlink()):
        broken(b"\0" * 18)
        error = error_of(src)
        assert isinstance(error, IntegrityError)
        assert list((tmp_path / "out").iterdir()) == []
