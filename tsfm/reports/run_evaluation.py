"""Judge a scoring run that lies on disk, if asked beside the baselines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl

from tsfm import event_table, schema
from tsfm.errors import InputError
from tsfm.reports.evaluation_data import load_run
from tsfm.reports.evaluation_summary import Evaluation, evaluate

BASELINES_DIR = "baselines"


def evaluate_run(
    run_dir: str | Path,
    *,
    events: str | Path | None = None,
    baselines: bool = False,
    split: str | None = None,
    capacity: float = 0.1,
) -> Evaluation:
    """Evaluate a run and keep `evaluation.json` and the baselines' predictions in its folder.

    Args:
        run_dir: Folder of the run.
        events: Event table that was scored; needed for baselines and for a split.
        baselines: Fit LACE, HOSPITAL and boosted count features on the training split.
        split: Judge only this split's subjects.
        capacity: Share of stays that can be acted on.

    Raises:
        InputError: Baselines or a split without `events`, or nothing to judge.
    """
    import json

    folder = Path(run_dir)
    if (baselines or split) and events is None:
        raise InputError(
            "baselines and splits need the event table",
            code="missing_events",
            place="--events",
            remedy="Give the event table that was scored.",
        )
    data = load_run(folder)
    if data.labels is None or data.labels.height == 0:
        raise InputError(
            "no outcome of this run is known yet",
            code="no_labels",
            place=str(folder / "labels.parquet"),
            remedy="Score again once the follow-up has passed.",
        )
    if baselines and events is not None:
        from tsfm.evaluation.baselines.panel import fit_panel

        assert data.cohort is not None
        for name, frame in fit_panel(events, data.cohort, data.labels).items():
            event_table.write_table(frame.to_arrow(), folder / BASELINES_DIR / f"{name}.parquet")
        data = load_run(folder)
    if split is not None and events is not None:
        if split not in schema.SPLITS:
            raise InputError(
                f"unknown split '{split}'",
                code="unknown_split",
                place="--split",
                remedy=f"Use one of {', '.join(schema.SPLITS)}.",
            )
        known = event_table.subject_splits(events)
        chosen = [subject for subject, own in known.items() if own == split]
        own = pl.col(schema.SUBJECT_ID).is_in(chosen)
        assert data.labels is not None
        data = replace(
            data,
            scores=data.scores.filter(own),
            labels=data.labels.filter(own),
            cohort=None if data.cohort is None else data.cohort.filter(own),
            baselines={name: frame.filter(own) for name, frame in data.baselines.items()},
        )
    result = evaluate(data, capacity=capacity)
    (folder / "evaluation.json").write_text(json.dumps(result.as_dict(), indent=2) + "\n")
    return result
