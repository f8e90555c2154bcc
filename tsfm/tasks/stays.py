"""Hospital stays: admissions paired with their discharges, and which of them are one episode.

Deaths are often dates. A death stamped at midnight sharp is read as a date, that is as the last
microsecond of its day; whether such a death belongs to a stay that ended on the same day is then
for the discharge disposition to say.

Everything is vectorised over subjects. This module reads the whole of a subject's record, the
future too: it serves outcomes and index stays, and is not for features.
"""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from tsfm import codes, schema


def in_class(*names: str) -> pl.Expr:
    """Whether a frame's `code` is one of the classes, or below one: `codes.is_class` for frames."""
    code = pl.col(schema.CODE)
    return pl.any_horizontal(
        [(code == name) | code.str.starts_with(name + codes.SEPARATOR) for name in names]
    )


def code_part(position: int) -> pl.Expr:
    """Part of a frame's `code` at a position from 0; null where absent or `UNK`."""
    part = pl.col(schema.CODE).str.split(codes.SEPARATOR).list.get(position, null_on_oob=True)
    return pl.when(~part.is_in([codes.UNKNOWN, ""])).then(part)


def hospital_stays(events: pl.DataFrame) -> pl.DataFrame:
    """One row for every recorded admission, in order of subject and time.

    Admissions and discharges are paired by `encounter_id`; where an event has none, an admission
    takes the next discharge without one that comes before the next admission. A discharge that
    belongs to no admission makes no stay.

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
        code_part(1).alias("kind"),
    )
    admissions = moments.filter(in_class(codes.ADMISSION)).rename({schema.TIME: "admit_time"})
    discharges = moments.filter(in_class(codes.DISCHARGE)).rename({schema.TIME: "discharge_time"})
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
        .with_columns(
            _fits=pl.col("_next").is_null() | (pl.col("discharge_time") <= pl.col("_next"))
        )
        .with_columns(
            pl.when("_fits").then("discharge_time").alias("discharge_time"),
            pl.when("_fits").then("disposition").alias("disposition"),
        )
    )
    taken = pl.col("discharge_time").shift(1).over(subject).eq_missing(pl.col("admit_time"))
    at_once = loose.rename({"discharge_time": "_at", "disposition": "_at_disposition"})
    found = (
        later.with_columns(_taken=taken)
        .join(at_once.with_columns(admit_time="_at"), on=[subject, "admit_time"], how="left")
        .with_columns(
            _zero=pl.col("discharge_time").is_null()
            & ~pl.col("_taken")
            & pl.col("_at").is_not_null()
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
        timed.filter(in_class(codes.BIRTH)).group_by(subject).agg(birth=pl.col(schema.TIME).min())
    )
    deaths = (
        timed.filter(in_class(codes.DEATH))
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
    open_to_death = left.is_null() & ~pl.col("flawed") & is_last & (pl.col("_death") >= admit)
    # Of a date of death on the day of discharge the disposition knows whether it was before.
    untold = pl.col("disposition").is_null()
    timed_within = pl.when(same_day).then(untold).otherwise(within)
    died = pl.any_horizontal(by_disposition, timed_within, open_to_death).fill_null(False)
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
        .with_columns(age_years=age_years("birth", "admit_time"))
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


def age_years(birth: str, moment: str) -> pl.Expr:
    """Calendar age of two columns: exactly 18 on the eighteenth birthday, whatever the leap years.

    Args:
        birth: Name of the column of births.
        moment: Name of the column of moments.
    """
    born, now = pl.col(birth), pl.col(moment)
    turned = now.dt.year() - born.dt.year()
    years = turned - (born.dt.offset_by(pl.format("{}y", turned)) > now).cast(pl.Int32)
    since = (now - born.dt.offset_by(pl.format("{}y", years))).dt.total_seconds() / 86_400
    return years + since / 366  # a year's last moment is below 366 days: never rounds up


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
