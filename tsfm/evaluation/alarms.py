"""Alarms that a ward can answer: a threshold from a budget, and what it finds.

A risk course crosses a threshold again and again. An alarm is raised at a moment whose risk is at
or above the threshold, unless the stay has had one less than the silence ago. Raised greedily from
the start, alarms are the largest number of such moments that lie a silence apart; a lower threshold
has all the moments of a higher one and so never fewer alarms. That makes the threshold of a budget
unique, and bisection finds it.

A budget is in alarms per 100 patient-days, the unit in which wards of any size compare. Choose the
threshold on the tuning split and report on another one: on the data it was chosen on the budget is
kept by construction.

An alarm is true if its stay has the event within the horizon after it. At and after the event a
stay is no longer watched.
"""

from __future__ import annotations

import math
from datetime import timedelta
from numbers import Real
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import schema
from tsfm.clock import DAY_US
from tsfm.errors import InputError
from tsfm.evaluation.alarm_report import AlarmPolicy as AlarmPolicy
from tsfm.evaluation.alarm_report import AlarmReport, is_silence
from tsfm.evaluation.bootstrap import Interval, bootstrap_interval
from tsfm.evaluation.discrimination import alerts_at_capacity

START, END, EVENT = "start_time", "end_time", "event_time"
STAY = [schema.SUBJECT_ID, START]
LEAD_QUANTILES = (0.25, 0.5, 0.75)
_HOUR_US = DAY_US / 24


def alarms_per_100_days(alarms_per_day: float, n_beds: float) -> float:
    """Budget of a ward: alarms a day for its occupied beds, as alarms per 100 patient-days.

    >>> alarms_per_100_days(3, n_beds=24)
    12.5
    """
    if not (alarms_per_day > 0 and n_beds > 0):
        raise InputError(
            "alarms a day and beds are not both positive", code="bad_budget", place="n_beds"
        )
    return 100 * alarms_per_day / n_beds


def choose_threshold(
    course: pl.DataFrame,
    stays: pl.DataFrame,
    budget: float,
    *,
    silence: timedelta = timedelta(hours=12),
) -> AlarmPolicy:
    """The lowest threshold whose alarms stay within a budget.

    Args:
        course: Risk over time, such as `risk_course` gives it: subject_id, start_time of the stay,
            time, probability (null: not scored, raises nothing) and, if it is there, settled.
        stays: The stays watched, with or without an alarm: subject_id, start_time, end_time and
            event_time (null: it did not happen).
        budget: Most alarms per 100 patient-days.
        silence: See `AlarmPolicy`.

    Raises:
        InputError: Not a positive budget or silence below zero, nothing watched or scored, columns
            missing or of another type, stays that end before they start or stand twice.
    """
    course, stays = _on_one_clock(course, stays)
    watched = _watched(course, stays)
    usable = isinstance(budget, Real) and math.isfinite(budget) and budget > 0
    n_most = int(budget * _stay_days(stays).sum() / 100 + 1e-9) if usable else 0
    if not usable or not is_silence(silence):
        raise InputError(
            "the budget is no positive number, or the silence is below zero", code="bad_budget",
            place="budget", remedy="Use for example 10 alarms per 100 patient-days.",
        )  # fmt: skip
    if watched.height == 0:
        raise InputError(
            "no stay has a risk to choose a threshold from", code="no_scores", place="course",
            remedy="Use a risk course of the stays' own subjects.",
        )  # fmt: skip
    risk = watched["probability"].to_numpy()
    scores = np.unique(risk)
    high = len(scores)
    if n_most >= 1:
        # Without a silence every row is an alarm: above the risk of the row at which the budget
        # is full, it is kept in any case.
        full = alerts_at_capacity(np.zeros(len(risk)), risk, min(n_most, len(risk)))
        high = int(np.searchsorted(scores, full.threshold, side="right"))
    low = 0
    while low < high:
        middle = (low + high) // 2
        if _raise(watched, float(scores[middle]), silence).height <= n_most:
            high = middle
        else:
            low = middle + 1
    # Where even the highest risk would raise too many, the threshold is one that nobody reaches.
    threshold = scores[low] if low < len(scores) else np.nextafter(scores[-1], np.inf)
    return AlarmPolicy(float(threshold), silence)


def raise_alarms(course: pl.DataFrame, stays: pl.DataFrame, policy: AlarmPolicy) -> pl.DataFrame:
    """The alarms of a policy, in order of subject and time.

    Args:
        course: See `choose_threshold`.
        stays: See `choose_threshold`.
        policy: When to raise one.

    Returns:
        subject_id, start_time, time, probability, event_time (null: none in this stay).

    Raises:
        InputError: See `choose_threshold`.
    """
    watched = _watched(*_on_one_clock(course, stays))
    return _raise(watched, policy.threshold, policy.silence).drop("_stay")


def report_alarms(
    course: pl.DataFrame,
    stays: pl.DataFrame,
    policy: AlarmPolicy,
    *,
    horizon: timedelta | None = None,
    n: int = 500,
    seed: int = 0,
) -> AlarmReport:
    """What a policy does on some stays, with intervals over resampled subjects.

    Args:
        course: See `choose_threshold`.
        stays: See `choose_threshold`.
        policy: When alarms are raised.
        horizon: An alarm is true if the event comes this soon; None: at any later time of the stay.
        n: Resamples.
        seed: Of the draws.

    Raises:
        InputError: See `choose_threshold`; or the horizon is no time above 0.
    """
    if horizon is not None and not (isinstance(horizon, timedelta) and horizon > timedelta(0)):
        raise InputError(
            "the horizon is no time above 0", code="bad_horizon", place="horizon",
            remedy="Use for example timedelta(days=2).",
        )  # fmt: skip
    course, stays = _on_one_clock(course, stays)
    lead = pl.col(EVENT) - pl.col(schema.TIME)
    is_true = pl.col(EVENT).is_not_null()
    if horizon is not None:
        is_true = is_true & (lead <= horizon)
    alarms = raise_alarms(course, stays, policy).with_columns(
        is_true.alias("is_true"), (lead.dt.total_microseconds() / _HOUR_US).alias("lead_hours")
    )
    found = alarms.filter("is_true").group_by(STAY).agg(pl.col("lead_hours").max())
    happened = pl.col(EVENT).is_not_null()
    with_event = stays.filter(happened).join(found, on=STAY, how="left")
    detected = with_event.filter(pl.col("lead_hours").is_not_null())

    def interval(metric: Any, frame: pl.DataFrame, y: Any, p: Any) -> Interval:
        return bootstrap_interval(metric, frame[schema.SUBJECT_ID].to_numpy(), y, p, n, seed)

    hit = with_event["lead_hours"].is_not_null().to_numpy().astype(float)
    true = alarms["is_true"].to_numpy().astype(float)
    hours = detected["lead_hours"].to_numpy()
    # One row an alarm (label 1, no days) and one a stay (label 0, its days), so that a resample
    # draws both with the subject.
    both = pl.concat([alarms.select(schema.SUBJECT_ID), stays.select(schema.SUBJECT_ID)])
    is_alarm = np.repeat([1.0, 0.0], [alarms.height, stays.height])
    days = np.concatenate([np.zeros(alarms.height), _stay_days(stays)])
    return AlarmReport(
        policy=policy,
        n_stays=stays.height,
        n_subjects=stays[schema.SUBJECT_ID].n_unique(),
        n_by_event=(_n_subjects(stays, happened), _n_subjects(stays, ~happened)),
        n_by_alarm=(
            _n_subjects(alarms, pl.lit(True)), _n_subjects(alarms, pl.col("is_true")),
            _n_subjects(alarms, ~pl.col("is_true")),
        ),
        n_by_finding=(
            _n_subjects(detected, pl.lit(True)),
            _n_subjects(with_event, pl.col("lead_hours").is_null()),
        ),
        n_events=with_event.height,
        n_alarms=alarms.height,
        patient_days=float(days.sum()),
        sensitivity=interval(_mean_label, with_event, hit, np.zeros_like(hit)),
        ppv=interval(_mean_label, alarms, true, np.zeros_like(true)),
        per_100_days=interval(_per_100, both, is_alarm, days),
        lead_hours={
            q: interval(_quantile(q), detected, np.zeros_like(hours), hours) for q in LEAD_QUANTILES
        },
    )  # fmt: skip


def _n_subjects(stays: pl.DataFrame, chosen: pl.Expr) -> int:
    return stays.filter(chosen)[schema.SUBJECT_ID].n_unique()


def _mean_label(y: NDArray[np.float64], p: NDArray[np.float64]) -> float:
    return float(y.mean()) if len(y) else float("nan")


def _per_100(y: NDArray[np.float64], p: NDArray[np.float64]) -> float:
    return 100 * float(y.sum() / p.sum()) if p.sum() else float("nan")


def _quantile(q: float) -> Any:
    return lambda y, p: float(np.quantile(p, q)) if len(p) else float("nan")


def _on_one_clock(course: pl.DataFrame, stays: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both frames with int64 subjects and naive times in microseconds, all that they need in them.

    Raises:
        InputError: No polars frame, or a column is missing or of another type.
    """
    return (
        _read(course, (schema.TIME, "probability"), "course"),
        _read(stays, (END, EVENT), "stays"),
    )


def _read(frame: pl.DataFrame, more: tuple[str, ...], place: str) -> pl.DataFrame:
    wanted = [*STAY, *more]
    if not isinstance(frame, pl.DataFrame):
        raise InputError(
            f"{place} is a {type(frame).__name__}", code="unknown_frame", place=place,
            remedy="Give a polars frame.",
        )  # fmt: skip
    absent = [name for name in wanted if name not in frame.columns]
    if absent:
        raise InputError(
            f"the frame lacks {', '.join(absent)}", code="missing_column", place=place,
            remedy=f"It needs {', '.join(wanted)}.",
        )  # fmt: skip
    for name in wanted:
        kind = frame.schema[name]
        if name == schema.SUBJECT_ID:
            fits, cast = kind.is_integer(), pl.Int64()
        elif name == "probability":
            # What is a float stays it: a threshold is compared in the precision of the risks.
            fits, cast = kind.is_numeric(), kind if kind.is_float() else pl.Float64()
        else:
            fits = isinstance(kind, pl.Datetime) and kind.time_zone is None
            cast = pl.Datetime("us")
        if not fits and kind != pl.Null:
            raise InputError(
                f"column '{name}' is {kind}", code="bad_column_type", place=place,
                remedy="Give integer subjects, numbers, and date-times of one clock without zones.",
            )  # fmt: skip
        frame = frame.with_columns(pl.col(name).cast(cast))
    return frame


def _watched(course: pl.DataFrame, stays: pl.DataFrame) -> pl.DataFrame:
    """Scored moments of the stays while they are watched, ordered by stay and time."""
    ill = stays.select(STAY).is_duplicated().any() or (_stay_days(stays) < 0).any()
    if ill or stays[END].null_count():
        raise InputError(
            "stays stand twice, have no end or end before they start", code="bad_stay",
            place="stays",
            remedy="Give each stay once, with start_time and end_time; leave out those not over.",
        )  # fmt: skip
    if (stays[EVENT] > stays[END]).any():
        raise InputError(
            "an event comes after the end of its stay", code="bad_stay", place="stays",
            remedy="Alarms are judged by events within a stay: leave event_time empty.",
        )  # fmt: skip
    moments = course.filter(pl.col("settled")) if "settled" in course.columns else course
    over = pl.min_horizontal(END, EVENT)
    return (
        moments.select(*STAY, schema.TIME, "probability")
        .with_columns(pl.col("probability").fill_nan(None))
        .drop_nulls("probability")
        .join(stays.select(*STAY, over.alias("_over"), EVENT), on=STAY)
        .filter((pl.col(schema.TIME) >= pl.col(START)) & (pl.col(schema.TIME) < pl.col("_over")))
        .sort(*STAY, schema.TIME, maintain_order=True)
        .with_columns(pl.struct(STAY).rle_id().alias("_stay"))
        .select(*STAY, schema.TIME, "probability", EVENT, "_stay")
    )


def _stay_days(stays: pl.DataFrame) -> NDArray[np.float64]:
    """Days that each stay is watched: to its end or its event."""
    span = pl.min_horizontal(END, EVENT) - pl.col(START)
    days = stays.select((span.dt.total_microseconds() / DAY_US).alias("days"))["days"]
    return days.fill_null(0.0).to_numpy()


def _raise(watched: pl.DataFrame, threshold: float, silence: timedelta) -> pl.DataFrame:
    """Moments of alarms: from each alarm the next one is looked for behind its silence."""
    above = watched.filter(pl.col("probability") >= threshold)
    # A silence longer than all that is watched is as good as one that reaches beyond the calendar.
    times = above[schema.TIME].cast(pl.Int64)
    whole_us = int(np.ptp(times.to_numpy())) if len(times) else 0
    silence = min(silence, timedelta(microseconds=whole_us + 1))
    later = above.select("_stay", schema.TIME).with_row_index("_row")
    behind = (
        above.select("_stay", pl.col(schema.TIME) + silence)
        .join_asof(later, on=schema.TIME, by="_stay", strategy="forward", check_sortedness=False)
        .get_column("_row")
        .fill_null(above.height)
        .to_numpy()
        .astype(np.int64)
    )
    stay = above["_stay"].to_numpy()
    behind = np.maximum(behind, np.arange(len(stay)) + 1)  # a silence of nothing finds itself
    ends = np.searchsorted(stay, stay, side="right")
    raised = np.zeros(len(stay), bool)
    rows = np.flatnonzero(np.diff(stay.astype(np.int64), prepend=-1))  # the first of each stay
    while len(rows):
        raised[rows] = True
        rows = behind[rows][behind[rows] < ends[rows]]
    return above.filter(pl.Series(raised, dtype=pl.Boolean))
