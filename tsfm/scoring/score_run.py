"""A scoring run on disk: what a night of scoring leaves in its folder.

`scores.parquet` (one row an eligible stay), `cohort.parquet` (every stay with its reason),
`labels.parquet` and `predictions.parquet` (where outcomes are known), `groups.parquet` (for the
breakdown of an evaluation), `risk_assessments.ndjson` (FHIR R4) and `run.json`, written last: a
folder with a `run.json` is a whole run.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import torch

from tsfm import __version__, event_table, schema
from tsfm.errors import InputError
from tsfm.models.checkpoint import ModelDirectory, load_model
from tsfm.scoring.batch_score import ScoredCohort, score_events
from tsfm.scoring.predictions import write_predictions, write_scores
from tsfm.scoring.risk_assessment import (
    OutcomeText,
    RiskBands,
    outcome_text,
    write_risk_assessments,
)
from tsfm.scoring.run_manifest import (
    FILE_NAME,
    RunManifest,
    UnknownCodes,
    count_splits,
    count_stays,
    hash_dataset,
    hash_files,
    new_run_id,
)
from tsfm.tasks.characteristics import describe_stays
from tsfm.tasks.cohorts import Followup

SCORES, COHORT, LABELS, GROUPS = (
    "scores.parquet",
    "cohort.parquet",
    "labels.parquet",
    "groups.parquet",
)
PREDICTIONS, RISK_ASSESSMENTS = "predictions.parquet", "risk_assessments.ndjson"


def run_scoring(
    model_dir: str | Path,
    root: str | Path,
    task_name: str,
    out: str | Path,
    *,
    bands: RiskBands,
    threshold: float | None = None,
    followup: Followup | None = None,
    capacity: float | None = None,
    progress: bool | None = None,
) -> RunManifest:
    """Score an event table and write the run's folder.

    Args:
        model_dir: Fine-tuned model.
        root: Root of the event table.
        task_name: Task to score.
        out: Folder of the run; must not hold one.
        bands: Where the words of risk begin.
        threshold: Probability from which `predicted_boolean_value` is true.
        followup: Instead of what the data set says.
        capacity: Share of stays of the report that follows; kept in the manifest, used for nothing.
        progress: Show a bar; None: on a terminal only.

    Raises:
        InputError: The folder already holds a run, or there are no words for the task.
    """
    folder = Path(out)
    words = outcome_text(task_name)  # known before hours of scoring
    if (folder / FILE_NAME).exists():
        raise InputError(
            "the output folder already holds a run",
            code="output_exists",
            place=str(folder),
            remedy="Choose another --out, or remove the old one; where its report alone is missing "
            f"or old, `tsfm report {shlex.quote(str(folder))}` writes that.",
        )
    started = datetime.now(UTC)
    model = load_model(model_dir)
    scored = score_events(model, root, task_name, followup=followup, progress=progress)
    folder.mkdir(parents=True, exist_ok=True)
    # `tsfm score . events` has a name too: that of the folder.
    name = model.path.absolute().name
    names = write_tables(
        scored, model, root, folder, name=name, bands=bands, threshold=threshold, words=words
    )
    facts = event_table.dataset_facts(root)
    manifest = RunManifest(
        run_id=new_run_id(started),
        task=task_name,
        model_name=name,
        model_hash=model.hash,
        inputs=hash_dataset(root),
        dataset=facts,
        threads=torch.get_num_threads(),
        started=started.isoformat(timespec="seconds"),
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
        counts=count_stays(scored.scores, scored.cohort),
        unknown_codes=UnknownCodes(
            tokens=scored.counts.exact + scored.counts.fallback + scored.counts.unknown,
            mapped_to_parent=scored.counts.fallback,
            unknown=scored.counts.unknown,
        ),
        data_as_of=facts.get("data_as_of"),
        outputs=hash_files(folder, names),
        scored_by_split=count_splits(scored.scores, event_table.subject_splits(root)),
        settings={
            "bands": asdict(bands),
            "threshold": threshold,
            "followup": None if followup is None else asdict(followup),
            "capacity": capacity,
        },
    )
    manifest.write(folder / FILE_NAME)
    return manifest


def write_tables(
    scored: ScoredCohort,
    model: ModelDirectory,
    root: str | Path,
    folder: Path,
    *,
    name: str,
    bands: RiskBands,
    threshold: float | None,
    words: OutcomeText,
) -> list[str]:
    """Write every file of a run but `run.json`; returns their names."""
    write_scores(scored.scores, folder / SCORES)
    _write(scored.cohort, folder / COHORT, schema.COHORT)
    _write(scored.labels, folder / LABELS, schema.LABELS)
    groups = describe_stays(root, scored.cohort.filter("eligible"))
    event_table.write_table(groups.to_arrow(), folder / GROUPS)
    names = [SCORES, COHORT, LABELS, GROUPS, RISK_ASSESSMENTS]
    if scored.labels.height and scored.scores.filter(pl.col("status") == "scored").height:
        write_predictions(scored.scores, scored.labels, folder / PREDICTIONS, threshold=threshold)
        names.append(PREDICTIONS)
    write_risk_assessments(
        scored.scores,
        folder / RISK_ASSESSMENTS,
        subject_sources=event_table.subject_ids(root),
        encounter_sources=None,
        task=scored.task.name,
        model_name=name,
        model_version=__version__,
        model_hash=model.hash,
        bands=bands,
        generated_at=datetime.now(UTC),
        clock=event_table.dataset_facts(root).get("clock", "wall"),
        words=words,
    )
    return names


def _write(frame: pl.DataFrame, path: Path, columns: pa.Schema) -> None:
    event_table.write_table(schema.align(frame.to_arrow(), columns, place=path.name), path)
