"""Each outcome of a task as it was predicted and as it came, over all scored stays.

The outcome and its competitor are observed by Aalen and Johansen's estimate, which counts a stay
for as long as it was followed, so that nobody's end of follow-up is read as "nothing happened".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import polars as pl

from tsfm import schema
from tsfm.reports.small_cells import of_few
from tsfm.scoring.predictions import SCORED


@dataclass(frozen=True)
class Outcomes:
    """Mean predicted probability and observed incidence of each outcome, at the task's horizon.

    Attributes:
        horizon_days: Days from the prediction time.
        n: Scored stays.
        predicted: Mean probability of `event`, `competing` and `none`.
        observed: Aalen-Johansen estimate of the same.
        names: What the event and the competing event are.
    """

    horizon_days: float
    n: int
    predicted: dict[str, float]
    observed: dict[str, float]
    names: dict[str, str]


def compare_outcomes(
    task: str, scores: pl.DataFrame, cohort: pl.DataFrame | None
) -> Outcomes | None:
    """Predicted and observed outcomes of the scored stays.

    None where they are not known, or where the stays, those with one of the outcomes, or those with
    neither are of one to ten subjects: the shares would tell how many.

    Args:
        task: Name of the task.
        scores: `schema.SCORES`.
        cohort: `schema.COHORT`; None where it is not at hand.
    """
    from tsfm.evaluation.competing_risks import observed_incidence
    from tsfm.tasks.registry import CLAIM_TASKS, TASKS

    known = (TASKS | CLAIM_TASKS).get(task)
    if cohort is None or known is None:
        return None
    stay = [schema.SUBJECT_ID, schema.PREDICTION_TIME]
    rows = (
        scores.filter((pl.col("status") == SCORED) & pl.col("probability_competing").is_not_null())
        .join(cohort.filter("eligible").select(*stay, "outcome", "outcome_days"), on=stay)
        .drop_nulls(["outcome", "outcome_days"])
    )
    by_then = pl.col("outcome_days") <= known.horizon_days
    came = (
        pl.when(by_then).then(pl.col("outcome").replace("none", "censored")).fill_null("censored")
    )
    if not rows.height or any(
        map(of_few, [rows, *rows.with_columns(came).partition_by("outcome")])
    ):
        return None
    observed = observed_incidence(
        rows["outcome"].to_list(), rows["outcome_days"].to_list(), known.horizon_days
    )
    if not math.isfinite(observed.event):
        return None
    positive = float(rows["probability"].cast(pl.Float64).mean())  # type: ignore[arg-type]
    competing = float(rows["probability_competing"].cast(pl.Float64).mean())  # type: ignore[arg-type]
    rest = 1 - positive - competing
    event, none = (positive, rest) if known.positive == "event" else (rest, positive)
    return Outcomes(
        horizon_days=known.horizon_days,
        n=rows.height,
        predicted={"event": event, "competing": competing, "none": none},
        observed=dict(observed._asdict()),
        names={"event": known.event_name, "competing": known.competing_name},
    )
