"""What an evaluation is made from: scores, known outcomes, groups, baselines and the run's facts.

`load_run` reads it from the folder of a scoring run; a notebook builds it from data frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

_TABLES = ("scores.parquet", "cohort.parquet", "labels.parquet", "groups.parquet")


@dataclass(frozen=True)
class EvaluationData:
    """What an evaluation is made from.

    Attributes:
        task: Name of the task.
        model_name: Name of our model.
        scores: `schema.SCORES` of one task and one model.
        labels: `schema.LABELS`; None or empty while no outcome is known.
        cohort: `schema.COHORT` with every stay that was looked at; None where it is not at hand.
        subgroups: subject_id, optionally prediction_time, and one text column for each way to
            divide the stays, such as `sex`; None for no subgroups.
        baselines: Name to subject_id, prediction_time, probability, of the same stays.
        manifest: Contents of `run.json`; may be empty.
        subset: Which of the run's subjects are judged, in a word; None for all.
        caution: What could not be checked about the data, in a sentence; empty where all was.
    """

    task: str
    model_name: str
    scores: pl.DataFrame
    labels: pl.DataFrame | None = None
    cohort: pl.DataFrame | None = None
    subgroups: pl.DataFrame | None = None
    baselines: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    subset: str | None = None
    caution: str = ""

    @property
    def outcome(self) -> str:
        """A few words for what is predicted."""
        from tsfm.scoring.risk_assessment import OUTCOME_TEXTS

        words = OUTCOME_TEXTS.get(self.task)
        return words.short or words.outcome if words else self.task


def load_run(
    run_dir: str | Path,
    *,
    labels_dir: str | Path | None = None,
    subgroups: pl.DataFrame | None = None,
    baselines: Mapping[str, pl.DataFrame] | None = None,
) -> EvaluationData:
    """Read what a scoring run left behind.

    Args:
        run_dir: Folder with `scores.parquet` and `run.json`; what else may be there is
            `labels.parquet`, `cohort.parquet`, `groups.parquet` (the subgroups) and
            `baselines/<name>.parquet`.
        labels_dir: Folder with `labels.parquet` and `cohort.parquet`, where they are not the
            run's own.
        subgroups: Instead of `groups.parquet`.
        baselines: Instead of `baselines/`.

    Raises:
        InputError: `run_dir` holds no scores or no manifest.
        IntegrityError: A table of the run is not the one that was written.
    """
    from tsfm.scoring.predictions import read_scores
    from tsfm.scoring.run_manifest import FILE_NAME, RunManifest

    run = Path(run_dir)
    answers = Path(labels_dir) if labels_dir is not None else run
    manifest = RunManifest.read(run / FILE_NAME)
    manifest.check_outputs(run, _TABLES)
    if baselines is None:
        paths = sorted((run / "baselines").glob("*.parquet"))
        baselines = {path.stem: _read(path) for path in paths}
    return EvaluationData(
        task=manifest.task,
        model_name=manifest.model_name,
        scores=read_scores(run / "scores.parquet"),
        labels=_read_if_there(answers / "labels.parquet"),
        cohort=_read_if_there(answers / "cohort.parquet"),
        subgroups=_read_if_there(run / "groups.parquet") if subgroups is None else subgroups,
        baselines=baselines,
        manifest=manifest.as_dict(),
    )


def check_events(data: EvaluationData, events: str | Path) -> EvaluationData:
    """The same data, once an event table is known to be the one that was scored.

    The table's splits are compared by their hash. A run whose manifest does not have it can't be
    checked, and gets a caution.

    Args:
        data: Data of the evaluation.
        events: Root of the event table.

    Raises:
        InputError: It is another table, or none.
    """
    from tsfm import schema
    from tsfm.errors import InputError
    from tsfm.scoring.run_manifest import hash_file

    splits = schema.metadata_dir(events) / "subject_splits.parquet"
    named = (data.manifest.get("inputs") or {}).get(splits.relative_to(events).as_posix())
    if named is None:
        return replace(
            data,
            caution="The run does not name the event table that it scored: whose splits these are "
            "was not checked.",
        )
    if not splits.exists():
        raise InputError(
            "no event table here",
            code="no_events",
            place="--events",
            remedy="Give the folder that `tsfm ingest` wrote and `tsfm score` read.",
        )
    if hash_file(splits) != named:
        raise InputError(
            "the event table is not the one that was scored",
            code="other_events",
            place="--events",
            remedy="Give the table that the run was made from, or score this one.",
        )
    return data


def keep_split(data: EvaluationData, events: str | Path, split: str) -> EvaluationData:
    """The same run, judged on one split's subjects only.

    Args:
        data: Data of the evaluation.
        events: Event table that was scored, which knows the splits.
        split: One of `schema.SPLITS`.

    Raises:
        InputError: Unknown split, another event table, or no stay of the split's subjects.
    """
    from tsfm import event_table, schema
    from tsfm.errors import InputError

    if split not in schema.SPLITS:
        raise InputError(
            f"unknown split '{split}'",
            code="unknown_split",
            place="--split",
            remedy=f"Use one of {', '.join(schema.SPLITS)}.",
        )
    data = check_events(data, events)
    known = event_table.subject_splits(events)
    chosen = [subject for subject, own in known.items() if own == split]
    own = pl.col(schema.SUBJECT_ID).is_in(chosen)
    if data.scores.filter(own).is_empty():
        raise InputError(
            f"no stay of the run is of a subject of the split '{split}'",
            code="empty_split",
            place="--split",
            remedy="Choose another split, or leave it out.",
        )
    return replace(
        data,
        scores=data.scores.filter(own),
        labels=None if data.labels is None else data.labels.filter(own),
        cohort=None if data.cohort is None else data.cohort.filter(own),
        baselines={name: frame.filter(own) for name, frame in data.baselines.items()},
        subset=split,
    )


def _read(path: Path) -> pl.DataFrame:
    from tsfm.event_table import read_table

    frame = pl.from_arrow(read_table(path))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _read_if_there(path: Path) -> pl.DataFrame | None:
    return _read(path) if path.exists() else None
