"""Bad input: a typed error in one line or a counted row set aside, and nothing of a patient."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tsfm import event_table, schema

TASKS = ("readmission_30d", "mortality_in_hospital", "length_of_stay_7d")
TASK = TASKS[0]
SECRET = "Lovelace-19151"

PATIENT = {"resourceType": "Patient", "id": "p", "gender": "female", "birthDate": "1950-03-04"}
STAY = {
    "resourceType": "Encounter",
    "id": "e",
    "status": "finished",
    "class": {"code": "IMP"},
    "subject": {"reference": "Patient/p"},
    "period": {"start": "2020-01-01T10:00:00Z", "end": "2020-01-05T12:00:00Z"},
}
LAB = {
    "resourceType": "Observation",
    "id": "o",
    "status": "final",
    "code": {"coding": [{"system": "http://loinc.org", "code": "2345-7"}]},
    "subject": {"reference": "Patient/p"},
    "effectiveDateTime": "2020-01-02T08:00:00Z",
    "valueString": SECRET,
}
BAD_ROWS: dict[str, Any] = {
    "bad_json": f'{{"resourceType": "Observation", "valueString": "{SECRET}'.encode(),
    "unknown_patient": {**LAB, "id": "o2", "subject": {"reference": f"Patient/{SECRET}"}},
    "discharge_before_admission": {
        **STAY,
        "id": SECRET,
        "period": {"start": "2020-03-05T12:00:00Z", "end": "2020-03-01T12:00:00Z"},
    },
    "bad_time": {**LAB, "id": "o3", "effectiveDateTime": "0000-00-00"},
}


def export(folder: Path, *rows: Any) -> Path:
    """Write a FHIR export of one file."""
    folder.mkdir()
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (folder / "all.ndjson").write_bytes(b"\n".join(lines) + b"\n")
    return folder


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_a_bad_row_is_set_aside_counted_and_told_by_exit_code_3(
    tsfm: Callable[..., Any], tmp_path: Path, reason: str
) -> None:
    source = export(tmp_path / "src", PATIENT, STAY, BAD_ROWS[reason], LAB)
    ended = tsfm("ingest", "fhir", source, "--out", tmp_path / "out", "--json")
    assert ended.code == 3
    assert ended.stderr == ""
    summary = json.loads(ended.stdout)
    assert summary["quarantined"] == {reason: 1}
    counted = [summary[part].values() for part in ("rows_used", "rows_ignored", "quarantined")]
    assert sum(map(sum, counted)) == sum(summary["rows_read"].values()) == 4
    (entry,) = (tmp_path / "out" / "quarantine" / f"{reason}.ndjson").read_text().splitlines()
    assert json.loads(entry)["line"] == 3
    assert SECRET not in ended.stdout + entry
    codes = pl.concat(event_table.scan_events(tmp_path / "out"))["code"].to_list()
    assert any("2345-7" in code for code in codes)  # the good rows are there


def test_an_export_that_is_mostly_bad_is_refused_unless_that_is_wanted(
    tsfm: Callable[..., Any], tmp_path: Path
) -> None:
    source = export(tmp_path / "src", PATIENT, LAB, *BAD_ROWS.values())
    ended = tsfm("ingest", "fhir", source, "--out", tmp_path / "out")
    assert (ended.code, ended.error_code) == (1, "too_many_quarantined")
    assert SECRET not in ended.stderr
    more = tsfm("ingest", "fhir", source, "--out", tmp_path / "out", "--max-quarantined", 1)
    assert more.code == 3
    assert re.search(r"bad_json +1\n", more.stdout)


def empty(folder: Path) -> None:
    folder.mkdir()


def cut(folder: Path) -> None:
    rows = [json.dumps({**LAB, "id": f"o{i}"}) for i in range(500)]
    whole = gzip.compress("\n".join([json.dumps(PATIENT), *rows]).encode())
    folder.mkdir()
    (folder / "all.ndjson.gz").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(("make", "code"), [(empty, "empty_source"), (cut, "truncated_gzip")])
def test_a_source_that_cannot_be_read_fails_and_leaves_no_table(
    tsfm: Callable[..., Any], tmp_path: Path, make: Callable[[Path], None], code: str
) -> None:
    make(tmp_path / "src")
    ended = tsfm("ingest", "fhir", tmp_path / "src", "--out", tmp_path / "out")
    assert (ended.code, ended.error_code, ended.stdout) == (1, code, "")
    assert SECRET not in ended.stderr
    assert not list(tmp_path.glob("out/data/*.parquet"))


@pytest.mark.parametrize("kind", ["fhir", "mimic4", "meds", "wfdb", "eicu", "p12"])
def test_a_folder_that_is_empty_or_not_there_is_named(
    tsfm: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    (tmp_path / "empty").mkdir()
    for source in ("empty", "absent"):
        ended = tsfm("ingest", kind, tmp_path / source, "--out", tmp_path / "out")
        assert ended.code == 1
        assert ended.error_code in {"empty_source", "missing_source", "no_records"}
        assert source in ended.stderr


def test_steps_without_their_input_say_which_command_makes_it(
    tsfm: Callable[..., Any], road: Any, tmp_path: Path
) -> None:
    absent, out = tmp_path / "absent", ("--out", tmp_path / "out")
    task = ("--task", TASK)
    model, events, tokens = road / "model", road / "events", road / "tokens"
    for arguments, code in (
        (("tokenize", absent, *out), "missing_table"),
        (("label", absent, *task, *out), "no_events"),
        (("pretrain", absent, *out), "missing_token_store"),
        (("finetune", absent, tokens, "--labels", road / "labels", *task, *out), "missing_model"),
        (("finetune", model, tokens, "--labels", absent, *task, *out), "missing_table"),
        (("score", absent, events, *task, *out), "missing_model"),
        (("score", model, absent, *task, *out), "no_events"),
        (("score", model, events, "--task", TASKS[1], *out), "task_not_trained"),
        (("evaluate", absent), "missing_manifest"),
        (("report", absent), "missing_manifest"),
    ):
        ended = tsfm(*arguments)
        assert (ended.code, ended.error_code) == (1, code), arguments
        assert not (tmp_path / "out").exists(), arguments


def test_an_output_that_is_a_file_is_called_one_and_left_alone(
    tsfm: Callable[..., Any], road: Any, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    source = export(tmp_path / "src", PATIENT, STAY, LAB)
    for arguments, code, words in (
        (("ingest", "fhir", source), "output_exists", "is no folder"),
        (("tokenize", road / "events"), "unusable_path", "a file"),
        (("label", road / "events", "--task", TASK), "unusable_path", "a file"),
        (("score", road / "model", road / "events", "--task", TASK), "unusable_path", "a file"),
    ):
        ended = tsfm(*arguments, "--out", file)
        assert (ended.code, ended.error_code) == (1, code), ended
        assert words in ended.stderr
        assert str(file) in ended.stderr
        assert "exists" not in ended.stderr.removeprefix("tsfm: [output_exists]")
        assert file.read_text() == "mine"


def test_a_model_that_is_none_of_timelines_is_named_as_what_it_is(
    tsfm: Callable[..., Any], road: Any, tmp_path: Path
) -> None:
    task = ("--task", TASK, "--out", tmp_path / "run")
    for name, kind in (
        ("ecg-encoder", "biosignal_encoder"),
        ("ppg-encoder", "ppg-encoder"),
        ("ecg-beats", "beat_classifier"),
        ("forecaster-icu", "forecaster"),
    ):
        ended = tsfm("score", name, road / "events", *task)
        assert (ended.code, ended.error_code) == (1, "unknown_model_type")
        assert kind in ended.stderr
        assert "tsfm finetune" in ended.stderr


def test_labels_of_another_hospital_are_told_from_labels_without_outcomes(
    tsfm: Callable[..., Any], road: Any, tmp_path: Path
) -> None:
    labels = tmp_path / "labels" / TASK
    other = road.table(f"labels/{TASK}/cohort.parquet").with_columns(pl.col("subject_id") + 1)
    event_table.write_table(
        schema.align(other.to_arrow(), schema.COHORT, place="cohort"), labels / "cohort.parquet"
    )
    asked = ("--labels", labels.parent, "--task", TASK, "--out", tmp_path / "model")
    ended = tsfm("finetune", road / "pretrained", road / "tokens", *asked)
    assert (ended.code, ended.error_code) == (1, "empty_cohort")
    assert "no subject of the labels is in the token store" in ended.stderr


def test_events_that_are_no_event_table_are_not_called_another_one(
    tsfm: Callable[..., Any], road: Any
) -> None:
    ended = tsfm("evaluate", road / "run", "--events", road / "hospital")
    assert (ended.code, ended.error_code) == (2, "no_events")
    assert "no event table" in ended.stderr


def test_a_model_whose_file_was_changed_ends_with_exit_code_4(
    tsfm: Callable[..., Any], road: Any, tmp_path: Path
) -> None:
    model = shutil.copytree(road / "model", tmp_path / "model")
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (model / "model.safetensors").write_bytes(bytes(weights))
    ended = tsfm("score", model, road / "events", "--task", TASK, "--out", tmp_path / "run")
    assert (ended.code, ended.error_code) == (4, "model_changed")
    assert not (tmp_path / "run").exists()


def test_events_whose_bytes_changed_end_with_exit_code_4(
    tsfm: Callable[..., Any], road: Any, tmp_path: Path
) -> None:
    events = shutil.copytree(road / "events", tmp_path / "events")
    shard = event_table.shard_paths(events)[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(bytes(data))
    ended = tsfm("score", road / "model", events, "--task", TASK, "--out", tmp_path / "run")
    assert (ended.code, ended.error_code) == (4, "checksum_mismatch")


def test_a_model_with_another_vocabulary_is_refused(
    tsfm: Callable[..., Any], road: Any, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    assert tsfm("tokenize", road / "events", "--out", other, "--min-count", 10_000).code == 0
    labels = ("--labels", road / "labels", "--task", TASK, "--out", tmp_path / "model")
    ended = tsfm("finetune", road / "pretrained", other, *labels)
    assert (ended.code, ended.error_code) == (1, "vocabulary_mismatch")
    # Also where somebody put another vocabulary into the model and mended its list of hashes.
    model = shutil.copytree(road / "model", tmp_path / "changed")
    shutil.copytree(other / "vocabulary", model / "vocabulary", dirs_exist_ok=True)
    digests = {
        name: hashlib.sha256((model / name).read_bytes()).hexdigest()
        for name in json.loads((model / "manifest.json").read_text())
    }
    (model / "manifest.json").write_text(json.dumps(digests))
    ended = tsfm("score", model, road / "events", "--task", TASK, "--out", tmp_path / "run")
    assert (ended.code, ended.error_code) == (1, "vocabulary_mismatch")
