"""The run manifest: hashes that find a change, books that balance, no patient's data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from tsfm import schema
from tsfm.errors import FormatError, InputError, IntegrityError
from tsfm.scoring.run_manifest import (
    RunManifest,
    StayCounts,
    UnknownCodes,
    count_splits,
    count_stays,
    hash_dataset,
    hash_file,
    hash_files,
)

COUNTS = {"eligible": 10, "scored": 8, "not_scored": {"no_history": 2}, "not_eligible": {}}


def make_manifest(**changes: object) -> RunManifest:
    manifest = RunManifest(
        run_id="20260301T040506Z-00000000",
        task="readmission_30d",
        model_name="demo",
        model_hash="ab" * 32,
        inputs={"data/0.parquet": "cd" * 32},
        dataset={"dataset_name": "simulated", "clock": "utc"},
        threads=2,
        started="2026-03-01T04:05:06+00:00",
        ended="2026-03-01T04:06:06+00:00",
        counts=StayCounts(10, 8, {"no_history": 2}, {"minor": 3}),
        unknown_codes=UnknownCodes(1000, 7, 1),
        data_as_of="2026-02-28T23:59:00",
        outputs={"scores.parquet": "ef" * 32},
    )
    return replace(manifest, **changes)  # type: ignore[arg-type]


def make_tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Scores and cohort of four stays: two scored, one not, one not eligible."""
    times = [datetime(2020, 1, i + 1) for i in range(4)]
    cohort = pl.DataFrame(
        {
            schema.SUBJECT_ID: [1, 2, 3, 4],
            schema.PREDICTION_TIME: times,
            "eligible": [True, True, True, False],
            "reason": [None, None, None, "minor"],
        }
    )
    scores = pl.DataFrame(
        {
            schema.SUBJECT_ID: [1, 2, 3],
            schema.PREDICTION_TIME: times[:3],
            "status": ["scored", "scored", "not_scored"],
            "reason": [None, None, "no_history"],
        }
    )
    return scores, cohort


def test_a_manifest_comes_back_as_written(tmp_path: Path) -> None:
    manifest = make_manifest()
    manifest.write(tmp_path / "run.json")
    assert RunManifest.read(tmp_path / "run.json") == manifest
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_every_stay_is_counted_once() -> None:
    counts = count_stays(*make_tables())
    assert counts == StayCounts(3, 2, {"no_history": 1}, {"minor": 1})
    assert counts.seen == 4


def test_a_stay_that_was_lost_is_an_error() -> None:
    scores, cohort = make_tables()
    with pytest.raises(IntegrityError, match="stays_unaccounted"):
        count_stays(scores.head(2), cohort)


def test_a_score_for_a_stay_that_is_not_eligible_is_an_error() -> None:
    scores, cohort = make_tables()
    with pytest.raises(IntegrityError, match="stays_unaccounted"):
        count_stays(scores, cohort.with_columns(eligible=pl.col("subject_id") < 3))


def test_books_that_do_not_balance_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="stays_unaccounted"):
        StayCounts(10, 8, {"no_history": 1})
    make_manifest().write(tmp_path / "run.json")
    raw = json.loads((tmp_path / "run.json").read_text())
    raw["counts"]["scored"] = 9
    (tmp_path / "run.json").write_text(json.dumps(raw))
    with pytest.raises(IntegrityError):
        RunManifest.read(tmp_path / "run.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"run_id": "x"}', '{"surprise": 1}'])
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(FormatError, match="bad_manifest"):
        RunManifest.read(tmp_path / "run.json")


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing_manifest"):
        RunManifest.read(tmp_path / "run.json")


def test_hashes_are_sha256_under_names_relative_to_the_root(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "metadata").mkdir()
    (tmp_path / "data" / "1.parquet").write_bytes(b"one")
    (tmp_path / "metadata" / "dataset.json").write_bytes(b"{}")
    (tmp_path / "notes.txt").write_bytes(b"not an input")
    expected = {
        "data/1.parquet": hashlib.sha256(b"one").hexdigest(),
        "metadata/dataset.json": hashlib.sha256(b"{}").hexdigest(),
    }
    assert hash_dataset(tmp_path) == expected
    assert hash_files(tmp_path, ["data/1.parquet"]) == {
        "data/1.parquet": hash_file(tmp_path / "data" / "1.parquet")
    }


def test_a_root_may_be_given_relative_to_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "events" / "data").mkdir(parents=True)
    (tmp_path / "events" / "data" / "0.parquet").write_bytes(b"one")
    monkeypatch.chdir(tmp_path)
    assert hash_dataset("events") == hash_dataset(tmp_path / "events")


def test_scored_stays_are_counted_by_split_and_those_not_scored_are_not() -> None:
    scores, _ = make_tables()
    assert count_splits(scores, {1: "held_out", 2: "train"}) == {"held_out": 1, "train": 1}
    assert count_splits(scores, {1: "train", 2: "train", 3: "train"}) == {"train": 2}
    assert count_splits(scores, {1: "train"}) == {"train": 1, "unknown": 1}


def test_a_manifest_from_before_splits_were_counted_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    make_manifest().write(path)
    old = json.loads(path.read_text())
    del old["scored_by_split"]
    path.write_text(json.dumps(old))
    assert RunManifest.read(path) == make_manifest()


def test_a_manifest_from_before_settings_were_kept_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    settings = {"bands": {"low": 0.05, "moderate": 0.15, "high": 0.3}, "threshold": None}
    make_manifest(settings=settings).write(path)
    assert RunManifest.read(path).settings == settings
    old = json.loads(path.read_text())
    del old["settings"]
    path.write_text(json.dumps(old))
    assert RunManifest.read(path) == make_manifest()


@pytest.mark.parametrize(
    ("name", "value"), [("inputs", 5), ("counts", []), ("settings", "x"), ("dataset", None)]
)
def test_a_field_of_another_type_is_no_manifest(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / "run.json"
    make_manifest().write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(FormatError, match="bad_manifest"):
        RunManifest.read(path)
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, name: {}, "counts": {**COUNTS, "not_scored": 5}}))
    with pytest.raises(FormatError, match="bad_manifest"):
        RunManifest.read(path)


def test_a_table_that_is_not_the_runs_own_is_found(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    path.write_bytes(b"mine")
    manifest = make_manifest(outputs={path.name: hash_file(path), "groups.parquet": "00"})
    manifest.check_outputs(tmp_path, [path.name, "groups.parquet", "other.parquet"])
    path.write_bytes(b"another's")
    with pytest.raises(IntegrityError, match="output_changed") as caught:
        manifest.check_outputs(tmp_path, [path.name])
    assert caught.value.exit_code == 4
