"""The published stays of the Challenge 2012, read whole and held against the source's counts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tsfm import event_table
from tsfm.ingest.physionet2012 import ingest_physionet2012
from tsfm.ingest.physionet2012_tables import PARAMETERS
from tsfm.ingest.provenance import IngestSummary
from tsfm.tasks.registry import find_cohort, labels_of, task_named

Release = tuple[pl.DataFrame, IngestSummary, Path, Path]


@pytest.fixture(scope="module")
def release(data_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Events, summary, source and data set of all sets that are there."""
    src, out = data_dir("physionet2012"), tmp_path_factory.mktemp("p12")
    summary = ingest_physionet2012(src, out)
    return pl.concat(event_table.scan_events(out)), summary, src, out


@pytest.mark.slow
def test_the_release_is_read_whole_and_every_row_is_accounted_for(release: Release) -> None:
    events, summary, src, _ = release
    raw = pl.concat([pl.read_parquet(path) for path in sorted(src.glob("observations-*"))])
    stays = raw["record_id"].n_unique()
    assert summary.n_subjects == stays == 8000
    assert summary.rows_read == {"observations": raw.height, "outcomes": stays}
    accounted = (summary.rows_used, summary.rows_ignored, summary.quarantined)
    assert summary.n_rows == sum(sum(counts.values()) for counts in accounted)
    unknown = raw.filter(pl.col("value") == -1).height
    assert summary.rows_ignored == {"observations": unknown, "outcomes": 90}
    assert summary.quarantined.keys() == {
        "implausible_value", "no_discharge_time", "contradictory_outcome", "bad_outcome",
    }  # fmt: skip
    assert summary.quarantined["implausible_value"] < 0.0011 * raw.height
    names = raw["parameter"].cast(pl.String)
    for name in ("TroponinI", "HR", "MechVent", "GCS", "Urine"):
        n = (events["code"] == PARAMETERS[name].code(name)).sum()
        assert (names == name).sum() - 100 < n <= (names == name).sum()
    times = events.filter(pl.col("time").is_not_null())
    assert (times["available_time"] >= times["time"]).all()


@pytest.mark.slow
def test_labels_of_the_tasks_are_those_of_the_outcomes(release: Release) -> None:
    _, summary, src, out = release
    outcomes = pl.concat([pl.read_parquet(path) for path in sorted(src.glob("outcomes-*"))])
    told = outcomes.rename({"record_id": "subject_id"})
    for name, truth in (
        ("mortality_in_hospital", pl.col("In-hospital_death") == 1),
        ("length_of_stay_7d", pl.col("Length_of_stay") >= 7),
    ):
        task = task_named(name)
        labels = labels_of(find_cohort(out, task), task).join(told, on="subject_id")
        if name == "length_of_stay_7d":  # where the patient died, the stay ended with the death
            labels = labels.filter(pl.col("In-hospital_death") == 0)
        assert labels.height > 6700
        assert (labels["boolean_value"] == labels.select(truth).to_series()).all()
    assert summary.events_by_class["HOSPITAL_DISCHARGE"] == 8000 - 117


def test_the_published_text_files_give_the_events_of_the_parquet(
    data_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    src = data_dir("physionet2012")
    shutil.copytree(src / "raw" / "set-a", tmp_path / "text")
    shutil.copy(src / "raw" / "Outcomes-a-subset.txt", tmp_path / "text" / "Outcomes-a.txt")
    stays = [int(path.stem) for path in (src / "raw" / "set-a").glob("*.txt")]
    (tmp_path / "parquet").mkdir()
    for name in ("observations-a", "outcomes-a"):
        table = pl.read_parquet(src / f"{name}.parquet")
        rows = table.filter(pl.col("record_id").is_in(stays))
        rows.write_parquet(tmp_path / "parquet" / f"{name}.parquet")
    for kind in ("text", "parquet"):
        summary = ingest_physionet2012(tmp_path / kind, tmp_path / f"{kind}-out")
        assert summary.n_subjects == len(stays)
    text, parquet = (
        pl.concat(event_table.scan_events(tmp_path / f"{kind}-out")) for kind in ("text", "parquet")
    )
    assert text.equals(parquet)
