"""Hospital stays, follow-up and the rules that turn them into index stays.

A task is a question asked at one moment of one stay: how long until its event, its competing event,
or neither. Here the recorded admissions and discharges become stays (`hospital_stays`), stays that
are one episode of care become one (`merge_stays`), and how long subjects were watched is read from
the data set (`follow_up_of`). Everything is vectorised over subjects.

Deaths are often dates. A death stamped at midnight sharp is read as a date, that is as the last
microsecond of its day; whether such a death belongs to a stay that ended on the same day is then
for the discharge disposition to say.

This module reads the whole of a subject's record, the future too: outcomes may, features may not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from tsfm import clock, codes, event_table, schema
from tsfm.errors import FormatError, InputError

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
    rules: Any


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
        InputError: `positive` is another word.
    """
    if positive not in ("event", "none"):
        raise InputError("positive is neither event nor none", code="bad_positive", place="label_of")
    by_horizon = pl.col("days") <= horizon_days
    happened = pl.col("outcome").is_in(["event", "competing"])
    watched = happened | (pl.col("days") >= horizon_days)
    if positive == "event":
        answer = (pl.col("outcome") == "event") & by_horizon
    else:
        answer = ~(happened & by_horizon)
    frame = pl.DataFrame({"outcome": outcome, "days": outcome_days})
    return frame.select(
        pl.when(watched).then(answer).otherwise(None).cast(pl.Boolean).alias("label")
    )["label"]


def follow_up_of(root: str | Path) -> Followup:
    """Follow-up of a data set, from `metadata/dataset.json`.

    `dates_shifted` true: complete. `data_as_of` (ISO 8601): until then. Neither: until the last
    event, by its `time` or its `available_time`, whichever maximum is earlier (coding delays reach
    past the end of the data, and so do appointments).

    Raises:
        FormatError: `data_as_of` is not a time stamp.
    """
    facts = event_table.dataset_facts(root)
    if facts.get("dates_shifted"):
        return Followup("complete")
    if facts.get("data_as_of"):
        return Followup("until", _read_moment(str(facts["data_as_of"]), facts.get("clock")))
    ends: list[tuple[int, int]] = []
    for path in event_table.shard_paths(root):
        table = event_table.read_table(path)
        times = pl.from_arrow(table.select([schema.TIME]))[schema.TIME]
        known = (
            pl.from_arrow(table.select([schema.AVAILABLE_TIME]))[schema.AVAILABLE_TIME]
            if schema.AVAILABLE_TIME in table.column_names
            else times
        )
        last, last_known = times.max(), known.max()
        if isinstance(last, datetime):
            known_us = clock.to_us(last_known) if isinstance(last_known, datetime) else None
            ends.append((clock.to_us(last), known_us or clock.to_us(last)))
    if not ends:
        return Followup("until", 0)
    return Followup("until", min(max(a for a, _ in ends), max(b for _, b in ends)))


def _read_moment(text: str, clock_mode: str | None) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise FormatError(
            "data_as_of is not a time stamp",
            code="bad_data_as_of",
            place="metadata/dataset.json",
            remedy="Write it as 2024-05-31T23:59:59.",
        ) from error
    if moment.tzinfo is not None and clock_mode != "wall":
        moment = moment.astimezone(UTC)
    return clock.to_us(moment.replace(tzinfo=None))


def hospital_stays(events: pl.DataFrame) -> pl.DataFrame:
    """One row for every recorded admission, in order of subject and time.

    Admissions and discharges are paired by `encounter_id`; where an event has none, an admission
    takes the next discharge without one that comes before the next admission.

    Args:
        events: Whole records of any number of subjects, columns of `schema.EVENTS`.

    Returns:
        subject_id, encounter_id, admit_time, discharge_time (null: open, or before the admission,
        which `flawed` tells), admission_type, disposition (null: unknown), died (in this stay),
        age_years (at admission, by the calendar; null: no birth), death_time, last_time (of any
        event of the subject), flawed.
    """
    timed = events.filter(pl.col(schema.TIME).is_not_null())
    moments = timed.select(
        schema.SUBJECT_ID,
        schema.ENCOUNTER_ID,
        schema.TIME,
        schema.CODE,
        _part(1).alias("kind"),
    )
    admissions = moments.filter(is_class(codes.ADMISSION)).rename({schema.TIME: "admit_time"})
    discharges = moments.filter(is_class(codes.DISCHARGE)).rename({schema.TIME: "discharge_time"})
    keys = [schema.SUBJECT_ID, schema.ENCOUNTER_ID]
    has_id = pl.col(schema.ENCOUNTER_ID).is_not_null()
    entered = pl.concat(
        [
            admissions.filter(has_id)
            .sort("admit_time", maintain_order=True)
            .group_by(keys, maintain_order=True)
            .agg(pl.col("admit_time").first(), pl.col("kind").drop_nulls().first()),
            admissions.filter(~has_id)
            .unique([schema.SUBJECT_ID, "admit_time"], keep="first", maintain_order=True)
            .select(*keys, "admit_time", "kind"),
        ]
    ).rename({"kind": "admission_type"})
    left = (
        discharges.filter(has_id)
        .sort("discharge_time", maintain_order=True)
        .group_by(keys, maintain_order=True)
        .agg(pl.col("discharge_time").last(), pl.col("kind").drop_nulls().last())
        .rename({"kind": "disposition"})
    )
    paired = entered.join(left, on=keys, how="left", nulls_equal=False)
    loose = discharges.filter(~has_id).rename({"kind": "disposition"})
    if loose.height:
        paired = _pair_by_order(paired, loose)
    return _describe(paired, timed)


def _pair_by_order(stays: pl.DataFrame, loose: pl.DataFrame) -> pl.DataFrame:
    """Give admissions that lack a discharge the next one that belongs to no encounter."""
    subject = schema.SUBJECT_ID
    loose = (
        loose.unique([subject, "discharge_time"], keep="last", maintain_order=True)
        .select(subject, "discharge_time", "disposition")
        .sort(subject, "discharge_time")
    )
    bounds = (
        stays.select(subject, "admit_time")
        .unique()
        .sort(subject, "admit_time")
        .with_columns(_next=pl.col("admit_time").shift(-1).over(subject))
    )
    want = pl.col("discharge_time").is_null()
    unpaired = (
        stays.filter(want)
        .drop("discharge_time", "disposition")
        .join(bounds, on=[subject, "admit_time"], how="left")
        .sort(subject, "admit_time")
    )
    # Strictly later first: at a shared stamp the discharge ends the stay before, not this one.
    later = (
        unpaired.sort("admit_time")
        .join_asof(
            loose.sort("discharge_time"),
            left_on="admit_time",
            right_on="discharge_time",
            by=subject,
            strategy="forward",
            allow_exact_matches=False,
            coalesce=False,
            check_sortedness=False,
        )
        .sort(subject, "admit_time")
        .with_columns(_fits=pl.col("discharge_time") <= pl.col("_next").fill_null(datetime.max))
        .with_columns(
            pl.when("_fits").then("discharge_time").alias("discharge_time"),
            pl.when("_fits").then("disposition").alias("disposition"),
        )
    )
    taken = pl.col("discharge_time").shift(1).over(subject).eq_missing(pl.col("admit_time"))
    at_once = loose.rename({"discharge_time": "_at", "disposition": "_at_disposition"})
    found = (
        later.with_columns(_taken=taken)
        .join(
            at_once.with_columns(admit_time="_at"), on=[subject, "admit_time"], how="left"
        )
        .with_columns(
            _zero=pl.col("discharge_time").is_null() & ~pl.col("_taken") & pl.col("_at").is_not_null()
        )
        .with_columns(
            pl.when("_zero").then("_at").otherwise("discharge_time").alias("discharge_time"),
            pl.when("_zero").then("_at_disposition").otherwise("disposition").alias("disposition"),
        )
    )
    return pl.concat([stays.filter(~want), found.select(stays.columns)])


def _describe(stays: pl.DataFrame, timed: pl.DataFrame) -> pl.DataFrame:
    """Add age, death and flaws to paired stays."""
    subject = schema.SUBJECT_ID
    births = (
        timed.filter(is_class(codes.BIRTH)).group_by(subject).agg(birth=pl.col(schema.TIME).min())
    )
    deaths = (
        timed.filter(is_class(codes.DEATH))
        .group_by(subject)
        .agg(stamp=pl.col(schema.TIME).min())
        .with_columns(dated=pl.col("stamp") == pl.col("stamp").dt.truncate("1d"))
    )
    last = timed.group_by(subject).agg(last_time=pl.col(schema.TIME).max())
    end_of_day = pl.col("stamp").dt.truncate("1d") + timedelta(days=1, microseconds=-1)
    death = pl.when("dated").then(end_of_day).otherwise("stamp")
    admit, left = pl.col("admit_time"), pl.col("discharge_time")
    within = (pl.col("_death") >= admit) & (pl.col("_death") <= left)
    same_day = pl.col("_on_a_day") & (pl.col("_death").dt.date() == left.dt.date())
    by_disposition = pl.col("disposition").eq_missing(codes.DIED)
    is_last = admit == admit.max().over(subject)
    died = (
        by_disposition
        | within.fill_null(False)
        | (same_day & pl.col("disposition").is_null()).fill_null(False)
        | (left.is_null() & ~pl.col("flawed") & is_last & (pl.col("_death") >= admit)).fill_null(False)
    )
    told = pl.when(by_disposition).then(left).min().over(subject)
    return (
        stays.join(births, on=subject, how="left")
        .join(deaths, on=subject, how="left")
        .join(last, on=subject, how="left")
        .with_columns(
            flawed=(left < admit).fill_null(False),
            # The last microsecond of a day is how a date of death may come from the source.
            _on_a_day=(death == end_of_day).fill_null(False),
            _death=death,
        )
        .with_columns(discharge_time=pl.when(~pl.col("flawed")).then(left))
        .with_columns(died=died, death_time=pl.min_horizontal("_death", told))
        .with_columns(age_years=_age("birth", "admit_time"))
        .sort(subject, "admit_time", "discharge_time", nulls_last=True, maintain_order=True)
        .select(
            subject,
            schema.ENCOUNTER_ID,
            "admit_time",
            "discharge_time",
            "admission_type",
            "disposition",
            "died",
            "age_years",
            "death_time",
            "last_time",
            "flawed",
        )
    )


def _age(birth: str, moment: str) -> pl.Expr:
    """Calendar age: exactly 18 on the eighteenth birthday, whatever the leap years."""
    born, now = pl.col(birth), pl.col(moment)
    turned = now.dt.year() - born.dt.year()
    years = turned - (born.dt.offset_by(pl.format("{}y", turned)) > now).cast(pl.Int32)
    since = (now - born.dt.offset_by(pl.format("{}y", years))).dt.total_seconds() / 86_400
    return years + pl.min_horizontal(since / 366, pl.lit(1 - 1e-9))


def merge_stays(
    stays: pl.DataFrame, *, merge_same_day: bool = True, merge_hours: float | None = None
) -> pl.DataFrame:
    """Say which recorded stays are one episode of care.

    Stays that overlap or touch are always one. A stay that begins on the calendar day on which the
    previous one ended (`merge_same_day`), or within `merge_hours` of its end, continues it.

    Args:
        stays: From `hospital_stays`.
        merge_same_day: Join stays across a gap within one calendar day.
        merge_hours: Join stays across a gap of at most this many hours.

    Returns:
        The rows of `stays` with: episode (id), first, last (whether the row opens or closes its
        episode), start_time, end_time (null: open), start_type, episode_died, age_years at the
        start of the episode.
    """
    subject = schema.SUBJECT_ID
    end = pl.coalesce("discharge_time", "admit_time")
    before = pl.col("_end").cum_max().shift(1).over(subject)
    admit = pl.col("admit_time")
    joins = admit <= before
    if merge_same_day:
        joins = joins | (admit.dt.date() == before.dt.date())
    if merge_hours is not None:
        joins = joins | (admit <= before + timedelta(hours=merge_hours))
    by_end = pl.col("_row").sort_by(["_end", "_open", "_row"]).last().over("episode")
    return (
        stays.sort(subject, "admit_time", "discharge_time", nulls_last=True, maintain_order=True)
        .with_row_index("_row")
        .with_columns(_end=end, _open=pl.col("discharge_time").is_null())
        .with_columns(episode=(~joins.fill_null(False)).cum_sum())
        .with_columns(
            first=pl.col("_row") == pl.col("_row").min().over("episode"),
            last=pl.col("_row") == by_end,
            start_time=admit.min().over("episode"),
            start_type=pl.col("admission_type").first().over("episode"),
            episode_died=pl.col("died").any().over("episode"),
            age_years=pl.col("age_years").first().over("episode"),
        )
        .with_columns(
            end_time=pl.when("last").then("discharge_time").max().over("episode"),
        )
        .drop("_row", "_end", "_open")
    )
