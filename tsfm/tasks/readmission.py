"""Readmission within 30 days of a discharge from hospital.

Index stays are adult stays that ended alive; the prediction time is the exact time of discharge.
The event is the next admission, at its exact hour; a death before it competes, and is neither
dropped nor a plain negative. A subject with one stay is in the cohort like any other. Stays that
are no index stay keep a row with the reason.

This is the all-cause definition with switches, not the CMS planned-readmission algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from tsfm import clock, codes, schema
from tsfm.tasks.cohorts import (
    COMPLETE_DAYS,
    Followup,
    Task,
    conclude,
    days_between,
    first_reason,
)
from tsfm.tasks.stays import hospital_stays, merge_stays

PLANNED_TYPES = ("ELECTIVE", "SURGICAL SAME DAY ADMISSION")
"""Admission types that `unplanned_only` passes over."""


@dataclass(frozen=True)
class ReadmissionRules:
    """Which discharges are index discharges, and what counts as a return.

    Attributes:
        exclude_against_advice: Drop stays left against advice.
        exclude_hospice: Drop discharges to hospice.
        exclude_transfers: Drop discharges to another acute hospital.
        merge_same_day: Count a stay that begins on the day the last one ended as its continuation.
        unplanned_only: Pass over planned admissions (`PLANNED_TYPES`): they are neither events nor
            do they end the wait, and the next unplanned one is looked for behind them.
        min_age: Years at admission, inclusive.
    """

    exclude_against_advice: bool = True
    exclude_hospice: bool = True
    exclude_transfers: bool = True
    merge_same_day: bool = True
    unplanned_only: bool = False
    min_age: float = 18.0


def find_readmission_cohort(
    events: pl.DataFrame, followup: Followup, rules: ReadmissionRules | None = None
) -> pl.DataFrame:
    """One row of `schema.COHORT` for every recorded stay.

    An episode of several stays is asked about once, in the row of its last discharge. Where a stay
    has no discharge its row carries the admission as prediction time.

    Args:
        events: Whole records, columns of `schema.EVENTS`.
        followup: How long subjects were watched.
        rules: Switches; the defaults if None.
    """
    rules = rules or ReadmissionRules()
    stays = merge_stays(hospital_stays(events), merge_same_day=rules.merge_same_day)
    subject, left = schema.SUBJECT_ID, pl.col("end_time")
    disposition = pl.col("disposition")
    is_open = left.is_null()
    reasons = [
        (pl.col("start_time") > pl.col("death_time"), "admitted_after_death"),
        (pl.col("flawed"), "discharge_before_admission"),
        (pl.col("episode_died"), "died_in_hospital"),
        (is_open & pl.col("_is_followed"), "discharge_unknown"),
        (is_open, "still_in_hospital"),
        (pl.col("age_years").is_null(), "unknown_age"),
        (pl.col("age_years") < rules.min_age, "minor"),
    ]
    for excluded, value, name in (
        (rules.exclude_hospice, codes.HOSPICE, "hospice"),
        (rules.exclude_against_advice, codes.AGAINST_ADVICE, "against_advice"),
        (rules.exclude_transfers, codes.ACUTE_HOSPITAL, "transferred_to_acute_hospital"),
    ):
        if excluded:
            reasons.append((disposition == value, name))
    counts = ~pl.col("start_type").is_in(PLANNED_TYPES).fill_null(False)
    returns = pl.when(counts).then("start_time") if rules.unplanned_only else pl.col("start_time")
    until = None
    if followup.until_us is not None:
        until = pl.lit(clock.from_us(followup.until_us), dtype=pl.Datetime("us"))

    def seen(moment: pl.Expr) -> pl.Expr:
        """The moment, if it was watched: what is known of later would be known of some only."""
        return moment if until is None else pl.when(moment <= until).then(moment)

    returns_at, died_at = seen(pl.col("_returns_at")), seen(pl.col("death_time"))
    came_back = returns_at.is_not_null() & (died_at.is_null() | (returns_at <= died_at))
    watched_days = pl.lit(COMPLETE_DAYS) if until is None else days_between(left, until)
    episodes = (
        stays.filter("last")
        .sort(subject, "start_time", maintain_order=True)
        .with_columns(
            _returns_at=returns.shift(-1).backward_fill().over(subject),
            _is_followed=pl.col("start_time").shift(-1).over(subject).is_not_null(),
        )
        .with_columns(
            pl.coalesce("end_time", "start_time").alias(schema.PREDICTION_TIME),
            first_reason(reasons).alias("reason"),
            outcome=pl.when(came_back)
            .then(pl.lit("event"))
            .when(died_at.is_not_null())
            .then(pl.lit("competing"))
            .otherwise(pl.lit("censored")),
            outcome_days=pl.when(came_back)
            .then(days_between(left, returns_at))
            .when(died_at.is_not_null())
            .then(days_between(left, died_at))
            .otherwise(watched_days)
            .clip(0.0),
        )
    )
    continued = stays.filter(~pl.col("last")).with_columns(
        pl.coalesce("discharge_time", "admit_time").alias(schema.PREDICTION_TIME),
        start_time="admit_time",
        end_time="discharge_time",
        reason=pl.lit("merged_into_next_stay"),
        outcome=pl.lit(None, dtype=pl.String),
        outcome_days=pl.lit(None, dtype=pl.Float64),
    )
    return conclude(pl.concat([episodes.select(continued.columns), continued]))


READMISSION_30D = Task(
    name="readmission_30d",
    description="Admitted again within 30 days of a discharge alive, before dying",
    horizon_days=30.0,
    positive="event",
    event_name="readmission",
    competing_name="death before readmission",
    find_cohort=find_readmission_cohort,
    rules=ReadmissionRules(),
)
