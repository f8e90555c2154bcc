"""A run's folder gives back what an evaluation is made from, whatever of it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tsfm import schema
from tsfm.errors import InputError, IntegrityError
from tsfm.event_table import EventWriter, write_table
from tsfm.reports.evaluation_data import EvaluationData, keep_split, load_run
from tsfm.reports.html_report import write_run_report
from tsfm.reports.run_evaluation import evaluate_run
from tsfm.scoring.predictions import write_scores
from tsfm.scoring.run_manifest import RunManifest, count_stays, hash_dataset, hash_file


def write_run(run: EvaluationData, folder: Path, events: Path | None = None) -> Path:
    """Scores and manifest, as a scoring run leaves them."""
    write_scores(run.scores, folder / "scores.parquet")
    RunManifest(
        run_id="r",
        task=run.task,
        model_name="demo",
        model_hash="ab" * 32,
        inputs=hash_dataset(events) if events else {},
        dataset={"clock": "utc"},
        threads=1,
        started="2026-03-01T00:00:00+00:00",
        ended="2026-03-01T00:01:00+00:00",
        counts=count_stays(run.scores, run.cohort),
        outputs={"scores.parquet": hash_file(folder / "scores.parquet")},
    ).write(folder / "run.json")
    return folder


def write_labels(run: EvaluationData, folder: Path) -> None:
    assert run.labels is not None
    table = schema.align(run.labels.to_arrow(), schema.LABELS)
    write_table(table, folder / "labels.parquet")


def test_scores_alone_are_enough(run: EvaluationData, tmp_path: Path) -> None:
    data = load_run(write_run(run, tmp_path))
    assert (data.task, data.model_name) == (run.task, "demo")
    assert data.scores.height == run.scores.height
    assert data.labels is None
    assert data.cohort is None
    assert data.subgroups is None
    assert data.baselines == {}
    assert data.manifest["counts"]["scored"] == 390


def test_what_else_is_in_the_folder_is_read(run: EvaluationData, tmp_path: Path) -> None:
    write_run(run, tmp_path)
    write_labels(run, tmp_path)
    assert run.subgroups is not None
    write_table(run.subgroups.to_arrow(), tmp_path / "groups.parquet")
    write_table(run.baselines["noisy"].to_arrow(), tmp_path / "baselines" / "noisy.parquet")
    data = load_run(tmp_path)
    assert data.labels is not None
    assert run.labels is not None
    assert data.labels.equals(run.labels)
    assert data.subgroups is not None
    assert data.subgroups.equals(run.subgroups)
    assert list(data.baselines) == ["noisy"]
    assert data.baselines["noisy"].equals(run.baselines["noisy"])


def test_labels_may_lie_elsewhere_and_frames_may_be_handed_over(
    run: EvaluationData, tmp_path: Path
) -> None:
    folder = write_run(run, tmp_path / "run")
    write_labels(run, tmp_path / "labels")
    groups = pl.DataFrame({"subject_id": [1], "sex": ["F"]})
    data = load_run(folder, labels_dir=tmp_path / "labels", subgroups=groups, baselines={})
    assert data.labels is not None
    assert data.labels.height == 400
    assert data.subgroups is groups


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing_manifest"):
        load_run(tmp_path)


def test_the_report_of_a_run_lies_in_its_folder(run: EvaluationData, tmp_path: Path) -> None:
    path = write_run_report(write_run(run, tmp_path))
    assert path == tmp_path / "report.html"
    assert "No outcome is" in path.read_text(encoding="utf-8")


def write_events(run: EvaluationData, root: Path, splits: dict[int, str]) -> Path:
    """An event table of the run's subjects, whose splits are given."""
    subjects = run.scores["subject_id"].unique().to_list()
    with EventWriter(root, n_shards=1) as writer:
        writer.add(pl.DataFrame({"subject_id": subjects, "code": "GENDER//F"}))
        writer.finish(
            dataset={"dataset_name": "test", "clock": "utc"},
            subject_splits={s: splits.get(s, "held_out") for s in subjects},
        )
    return root


def test_a_split_is_judged_by_the_table_that_was_scored_and_by_no_other(
    run: EvaluationData, tmp_path: Path
) -> None:
    events = write_events(run, tmp_path / "events", dict.fromkeys(range(1, 101), "train"))
    # The same subjects, and those that training saw are called others.
    other = write_events(run, tmp_path / "other", {})
    folder = write_run(run, tmp_path / "run", events)
    write_labels(run, folder)
    asked: dict[str, Any] = {"split": "held_out"}
    assert evaluate_run(folder, events=events, **asked).n_subjects == 100
    before = (folder / "evaluation.json").read_bytes()
    write_run_report(folder, events=events, **asked)
    ask: dict[str, Any]
    for ask in (asked, {}):
        with pytest.raises(InputError, match="other_events"):
            evaluate_run(folder, events=other, **ask)
        with pytest.raises(InputError, match="other_events"):
            write_run_report(folder, events=other, **ask)
    with pytest.raises(InputError, match="empty_split"):
        evaluate_run(folder, events=events, split="tuning")
    assert (folder / "evaluation.json").read_bytes() == before


def test_a_run_that_does_not_name_its_table_is_judged_with_a_caution(
    run: EvaluationData, tmp_path: Path
) -> None:
    events = write_events(run, tmp_path / "events", {})
    folder = write_run(run, tmp_path / "run")
    write_labels(run, folder)
    judged = evaluate_run(folder, events=events, split="held_out")
    assert judged.n_subjects == 195
    assert "was not checked" in judged.note
    assert "was not checked" in judged.as_text()


def test_no_labelled_stay_in_a_split_is_not_an_outcome_unknown_to_all(
    run: EvaluationData, tmp_path: Path
) -> None:
    events = write_events(run, tmp_path / "events", dict.fromkeys(range(1, 101), "train"))
    folder = write_run(run, tmp_path / "run", events)
    assert run.labels is not None
    some = run.labels.filter(pl.col("subject_id") <= 100)
    write_table(schema.align(some.to_arrow(), schema.LABELS), folder / "labels.parquet")
    judged = evaluate_run(folder, events=events, split="held_out")
    assert judged.as_text().endswith("no labelled stay in this split")
    page = write_run_report(folder, events=events, split="held_out").read_text(encoding="utf-8")
    assert "of none of them the outcome is known" in page
    assert "No outcome is" not in page


def test_a_run_with_the_scores_of_another_is_refused(run: EvaluationData, tmp_path: Path) -> None:
    folder = write_run(run, tmp_path)
    write_scores(run.scores.filter(pl.col("subject_id") > 3), folder / "scores.parquet")
    read: Any
    for read in (load_run, write_run_report):
        with pytest.raises(IntegrityError, match="output_changed"):
            read(folder)
    (folder / "scores.parquet").write_bytes(b"PAR1")
    with pytest.raises(IntegrityError, match="output_changed"):
        load_run(folder)


def test_a_split_of_frames_is_judged_with_a_caution_too(
    run: EvaluationData, tmp_path: Path
) -> None:
    events = write_events(run, tmp_path / "events", {1: "train"})
    assert keep_split(run, events, "train").scores["subject_id"].unique().to_list() == [1]
    assert keep_split(run, events, "train").caution
