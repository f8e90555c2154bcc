"""Tasks, follow-up, and what all index cohorts share.

A task is a question asked at one moment of one stay: how long until its event, its competing event,
or neither. How long subjects were watched is read from the data set (`follow_up_of`), and an answer
that the follow-up was too short for is unknown, never negative (`label_of`).

Outcomes are told in exact days, so a horizon is exact too: 30 days are 720 hours, inclusive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl

from tsfm import clock, event_table, schema
from tsfm.data_end import DataEnd
from tsfm.errors import InputError
from tsfm.tasks.stays import hospital_stays, merge_stays

__all__ = [
    "COMPLETE_DAYS",
    "AdmissionRules",
    "Followup",
    "Task",
    "check_asked_after_a_day",
    "conclude",
    "find_at_hour",
    "first_reason",
    "follow_up_of",
    "hospital_stays",
    "label_of",
    "merge_stays",
]

COMPLETE_DAYS = 365.0
"""Days for which a subject of a date-shifted release is taken to be watched after a discharge."""


@dataclass(frozen=True)
class Followup:
    """How long subjects were watched.

    Attributes:
        kind: `complete` (dates are shifted per subject, so there is no common last day, and the
            release is taken to hold all that happened) or `until`.
        until_us: Last moment of knowledge, microseconds on the data set's clock; None if complete.
    """

    kind: str
    until_us: int | None = None

    def __post_init__(self) -> None:
        """Refuse a follow-up that says nothing.

        Raises:
            InputError: Unknown kind, or `until` without its moment.
        """
        if self.kind not in ("complete", "until") or (self.kind == "until") != (
            self.until_us is not None
        ):
            raise InputError(
                "follow-up is neither complete nor until a moment",
                code="bad_follow_up",
                place="Followup",
                remedy='Use Followup("complete") or Followup("until", until_us).',
            )


@dataclass(frozen=True)
class Task:
    """A question with one answer an index stay.

    Attributes:
        name: Key in `registry.TASKS`.
        description: One line for people.
        horizon_days: Days from the prediction time, inclusive, within which the event counts.
        positive: `event`: the label is true if the event comes by the horizon and first; `none`:
            it is true if neither event nor competing event comes by then.
        event_name: What the event is.
        competing_name: What forestalls the event.
        find_cohort: From events, follow-up and rules to rows of `schema.COHORT`.
        rules: Default rules; the type that `find_cohort` accepts.
    """

    name: str
    description: str
    horizon_days: float
    positive: str
    event_name: str
    competing_name: str
    find_cohort: Callable[..., pl.DataFrame]
    rules: Any = None


def label_of(
    outcome: pl.Series, outcome_days: pl.Series, horizon_days: float, positive: str
) -> pl.Series:
    """Labels of outcomes: true, false, or null where the follow-up ended too soon to know.

    Args:
        outcome: `event`, `competing`, `none` or `censored`; null (not eligible) gives null.
        outcome_days: Days from the prediction time to the outcome or the last knowledge.
        horizon_days: Inclusive: an event at exactly the horizon counts.
        positive: `event` or `none`.

    Raises:
        InputError: `positive` or an outcome is another word.
    """
    if strange := set(outcome.drop_nulls().unique()) - {"event", "competing", "none", "censored"}:
        raise InputError(
            f"{len(strange)} outcomes are none of event, competing, none and censored",
            code="bad_outcome", place="label_of", remedy="Spell them so.",
        )  # fmt: skip
    if positive not in ("event", "none"):
        raise InputError(
            "positive is neither event nor none", code="bad_positive", place="label_of"
        )
    by_horizon = pl.col("days") <= horizon_days
    happened = pl.col("outcome").is_in(["event", "competing"])
    watched = happened | (pl.col("days") >= horizon_days)
    if positive == "event":
        answer = (pl.col("outcome") == "event") & by_horizon
    else:
        answer = ~(happened & by_horizon)
    days = outcome_days.cast(pl.Float64).fill_nan(None)
    frame = pl.DataFrame({"outcome": outcome, "days": days})
    known = pl.col("outcome").is_not_null() & pl.col("days").is_not_null()
    return frame.select(
        pl.when(known & watched).then(answer).otherwise(None).cast(pl.Boolean).alias("label")
    )["label"]


def follow_up_of(root: str | Path) -> Followup:
    """Follow-up of a data set, from `metadata/dataset.json`.

    `dates_shifted` true: complete. `data_as_of` (ISO 8601): until then. Neither: until the last
    event, by its `time` or its `available_time`, whichever maximum is earlier (coding delays reach
    past the end of the data, and so do appointments).

    Raises:
        FormatError: `data_as_of` is not a time stamp.
    """
    end = DataEnd(event_table.dataset_facts(root))
    if not end.is_told:
        for events in event_table.scan_events(root):
            end.see(events)
    return Followup("complete") if end.until_us is None else Followup("until", end.until_us)


def days_between(start: pl.Expr, end: pl.Expr) -> pl.Expr:
    """Exact days from one time to another, as a float."""
    return (end - start).dt.total_microseconds() / clock.DAY_US


def first_reason(reasons: Sequence[tuple[pl.Expr, str]]) -> pl.Expr:
    """The name of the first condition that holds, else null: why a stay is not eligible."""
    return pl.coalesce(
        *(pl.when(condition.fill_null(False)).then(pl.lit(name)) for condition, name in reasons),
        pl.lit(None, dtype=pl.String),
    )


def conclude(stays: pl.DataFrame) -> pl.DataFrame:
    """Rows of `schema.COHORT` from stays with prediction_time, reason, outcome and outcome_days."""
    eligible = pl.col("reason").is_null()
    return stays.select(
        schema.SUBJECT_ID,
        schema.PREDICTION_TIME,
        schema.ENCOUNTER_ID,
        "start_time",
        "end_time",
        eligible.alias("eligible"),
        "reason",
        pl.when(eligible).then("outcome").alias("outcome"),
        pl.when(eligible).then("outcome_days").cast(pl.Float64).alias("outcome_days"),
    ).sort(schema.SUBJECT_ID, "start_time", schema.PREDICTION_TIME, maintain_order=True)


@dataclass(frozen=True)
class AdmissionRules:
    """Which stays are asked about a fixed time after admission.

    Attributes:
        hours: From the admission to the prediction time; a task that counts its horizon from the
            admission refuses others than 24.
        min_age: Years at admission, inclusive.
        merge_same_day: Count a stay that begins on the day the last one ended as its continuation.
    """

    hours: float = 24.0
    min_age: float = 18.0
    merge_same_day: bool = True


def check_asked_after_a_day(rules: AdmissionRules, task: str) -> None:
    """Check that a task whose horizon is counted from the admission is asked when it assumes.

    Raises:
        InputError: `bad_hours`.
    """
    if rules.hours != AdmissionRules().hours:
        raise InputError(
            f"{task} is asked {AdmissionRules().hours:g} hours after admission: its horizon lies a "
            "fixed time after the admission, and is told from the question",
            code="bad_hours",
            place="AdmissionRules",
            remedy="Leave the hours, or ask mortality_in_hospital or length_of_stay_bins.",
        )


def find_at_hour(
    events: pl.DataFrame, followup: Followup, rules: AdmissionRules, *, event: str
) -> pl.DataFrame:
    """Cohort of stays still in progress some hours after admission, and how they ended.

    An end of a stay that is recorded counts, also after the end of follow-up: sources that watch
    each stay to its discharge and nobody after it (eICU, PhysioNet 2012) put that end before the
    discharges, so that what comes behind them is unknown.

    Args:
        events: Whole records, columns of `schema.EVENTS`.
        followup: How long subjects were watched; in a `complete` release an open stay is watched
            until its subject's last event.
        rules: Switches.
        event: `death` or `discharge` (alive); the other one competes.

    Returns:
        One row a recorded stay, columns of `schema.COHORT`. An episode of several stays is asked
        about once, in its first row.
    """
    stays = merge_stays(hospital_stays(events), merge_same_day=rules.merge_same_day)
    start, left = pl.col("start_time"), pl.col("end_time")
    over_at = pl.when("episode_died").then(pl.min_horizontal(left, "death_time")).otherwise(left)
    watched = (
        pl.col("last_time")
        if followup.until_us is None
        else pl.lit(clock.from_us(followup.until_us), dtype=pl.Datetime("us"))
    )
    at = start + timedelta(hours=rules.hours)
    lasts = pl.col("_over").is_null()
    followed_by = pl.col("episode") < pl.col("episode").max().over(schema.SUBJECT_ID)
    flawed = (pl.col("flawed") & pl.col("last")).any().over("episode")
    reasons = [
        (~pl.col("first"), "merged_into_previous_stay"),
        (start > pl.col("death_time"), "admitted_after_death"),
        (flawed, "discharge_before_admission"),
        (lasts & followed_by, "discharge_unknown"),
        (pl.col("age_years").is_null(), "unknown_age"),
        (pl.col("age_years") < rules.min_age, "minor"),
        (pl.col("_over") <= at, "left_before_prediction_time"),
        (lasts & (watched < at), "follow_up_ended_before_prediction_time"),
    ]
    dead = "event" if event == "death" else "competing"
    alive = "competing" if event == "death" else "event"
    return conclude(
        stays.with_columns(_over=over_at)
        .with_columns(
            at.alias(schema.PREDICTION_TIME),
            first_reason(reasons).alias("reason"),
            outcome=pl.when(lasts)
            .then(pl.lit("censored"))
            .when("episode_died")
            .then(pl.lit(dead))
            .otherwise(pl.lit(alive)),
            outcome_days=days_between(at, pl.when(lasts).then(watched).otherwise("_over")),
        )
        .with_columns(
            # A continued stay is no index stay: it keeps its own times.
            start_time=pl.when("first").then("start_time").otherwise("admit_time"),
            end_time=pl.when("first").then("end_time").otherwise("discharge_time"),
            prediction_time=pl.when("first").then(at).otherwise("admit_time"),
        )
    )
