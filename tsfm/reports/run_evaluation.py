"""Judge a scoring run that lies on disk, if asked beside the baselines."""

from __future__ import annotations

from pathlib import Path

from tsfm import event_table
from tsfm.errors import InputError
from tsfm.reports.evaluation_data import check_events, keep_split, load_run
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
        InputError: Baselines or a split without `events`, `events` that were not scored, or nothing
            to judge.
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
    if events is not None:
        data = check_events(data, events)
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
        data = check_events(load_run(folder), events)
    if split is not None and events is not None:
        data = keep_split(data, events, split)
    result = evaluate(data, capacity=capacity)
    (folder / "evaluation.json").write_text(json.dumps(result.as_dict(), indent=2) + "\n")
    return result
