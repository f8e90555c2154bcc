"""A run's folder gives back what an evaluation is made from, whatever of it is there."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from tsfm import schema
from tsfm.errors import InputError
from tsfm.event_table import write_table
from tsfm.reports.evaluation_data import EvaluationData, load_run
from tsfm.reports.html_report import write_run_report
from tsfm.scoring.predictions import write_scores
from tsfm.scoring.run_manifest import RunManifest, count_stays


def write_run(run: EvaluationData, folder: Path) -> Path:
    """Scores and manifest, as a scoring run leaves them."""
    write_scores(run.scores, folder / "scores.parquet")
    RunManifest(
        run_id="r",
        task=run.task,
        model_name="demo",
        model_hash="ab" * 32,
        inputs={},
        dataset={"clock": "utc"},
        threads=1,
        started="2026-03-01T00:00:00+00:00",
        ended="2026-03-01T00:01:00+00:00",
        counts=count_stays(run.scores, run.cohort),
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
