"""The LACE index: length of stay, acuity, comorbidity, emergency visits (0 to 19).

van Walraven et al., CMAJ 182 (2010), derived for death or unplanned readmission within 30 days of
a discharge. Points: L nights in hospital below 1: 0, 1: 1, 2: 2, 3: 3, 4 to 6: 4, 7 to 13: 5, from
14: 7; A acute admission: 3; C comorbidity 0 to 3 as they are, from 4: 5; E emergency visits in the
six months before the admission, up to 4.

Only events available at the prediction time are read. Where billing codes come days after the
discharge, C therefore rests on earlier stays; the index a coder would compute later is a little
better. C tells grave liver disease (4) from mild (2) but gives renal disease of any stage 2: Quan's
code lists have one category of it.
"""

from __future__ import annotations

import polars as pl

from tsfm import codes, schema
from tsfm.tasks.charlson import LACE_WEIGHTS, charlson_index
from tsfm.tasks.stays import code_part, hospital_stays, in_class, merge_stays

OWN_VISIT_HOURS = 24
"""An emergency visit this close before the admission is taken to be the way in, and not counted."""

_KEYS = [schema.SUBJECT_ID, schema.PREDICTION_TIME]


def lace_scores(events: pl.DataFrame, cohort: pl.DataFrame) -> pl.DataFrame:
    """LACE at each prediction time.

    Args:
        events: Records of the cohort's subjects, columns of `schema.EVENTS`.
        cohort: Rows of `schema.COHORT`; repeated (subject, prediction time) pairs give one row.

    Returns:
        subject_id, prediction_time, lace, and its parts lace_l, lace_a, lace_c, lace_e.
    """
    asked = asked_of(cohort)
    nights = nights_in_hospital()
    comorbidity = charlson_index(events, asked, LACE_WEIGHTS).select(*_KEYS, "charlson")
    visits = count_before(
        events.filter(in_class(codes.ED_ARRIVAL)),
        asked,
        since=pl.col("start_time").dt.offset_by("-6mo"),
        until=pl.col("start_time").dt.offset_by(f"-{OWN_VISIT_HOURS}h"),
    )
    return (
        acute_admissions(events, asked)
        .join(comorbidity, on=_KEYS, how="left")
        .join(visits, on=_KEYS, how="left")
        .with_columns(
            lace_l=pl.when(nights < 4)
            .then(nights)
            .when(nights < 7)
            .then(4)
            .when(nights < 14)
            .then(5)
            .otherwise(7),
            lace_a=pl.col("acute").cast(pl.Int64) * 3,
            lace_c=pl.when(pl.col("charlson") >= 4).then(5).otherwise(pl.col("charlson")),
            lace_e=pl.min_horizontal(pl.col("n"), 4),
        )
        .select(
            *_KEYS,
            pl.sum_horizontal("lace_l", "lace_a", "lace_c", "lace_e").cast(pl.Int64).alias("lace"),
            pl.col("lace_l", "lace_a", "lace_c", "lace_e").cast(pl.Int64),
        )
    )


def asked_of(cohort: pl.DataFrame) -> pl.DataFrame:
    """Prediction times with the start of their stay, each once, in the order of the cohort."""
    return cohort.select(*_KEYS, "start_time").unique(_KEYS, keep="first", maintain_order=True)


def nights_in_hospital() -> pl.Expr:
    """Midnights from start_time to prediction_time."""
    span = pl.col(schema.PREDICTION_TIME).dt.date() - pl.col("start_time").dt.date()
    return span.dt.total_days()


def acute_admissions(events: pl.DataFrame, asked: pl.DataFrame) -> pl.DataFrame:
    """`asked` with a column acute: the admission that opens the stay is an emergency or urgent.

    It is acute if its type names an emergency or urgency, or if it comes from an emergency room
    (MIMIC's observation stays do); an admission of no known type is not.
    """
    kind, source = (code_part(part).fill_null("").str.to_uppercase() for part in (1, 2))
    kinds = (
        events.filter(in_class(codes.ADMISSION))
        .select(
            schema.SUBJECT_ID,
            pl.col(schema.TIME).alias("start_time"),
            pl.coalesce(schema.AVAILABLE_TIME, schema.TIME).alias("_known"),
            (
                kind.str.contains("EMER")
                | kind.str.contains("URGENT")
                | source.str.contains("EMERGENCY")
                | (source == "EMD")  # HL7 admit-source: accident or emergency department
            ).alias("acute"),
        )
        .drop_nulls("start_time")
    )
    known = (
        asked.join(kinds, on=[schema.SUBJECT_ID, "start_time"])
        .filter(pl.col("_known") <= pl.col(schema.PREDICTION_TIME))
        .group_by(_KEYS)
        .agg(pl.col("acute").any())
    )
    return asked.join(known, on=_KEYS, how="left").with_columns(pl.col("acute").fill_null(False))


def count_before(
    events: pl.DataFrame, asked: pl.DataFrame, *, since: pl.Expr, until: pl.Expr
) -> pl.DataFrame:
    """How many events lie in [since, until) and are available at the prediction time.

    Args:
        events: The events to count.
        asked: From `asked_of`.
        since: Of the columns of `asked`, inclusive.
        until: Exclusive.

    Returns:
        subject_id, prediction_time, n; every row of `asked`.
    """
    stamps = events.select(
        schema.SUBJECT_ID,
        schema.TIME,
        pl.coalesce(schema.AVAILABLE_TIME, schema.TIME).alias("_known"),
    ).drop_nulls(schema.TIME)
    found = (
        asked.join(stamps, on=schema.SUBJECT_ID)
        .filter(
            (pl.col(schema.TIME) >= since)
            & (pl.col(schema.TIME) < until)
            & (pl.col("_known") <= pl.col(schema.PREDICTION_TIME))
        )
        .group_by(_KEYS)
        .agg(pl.len().cast(pl.Int64).alias("n"))
    )
    return _counted(asked, found)


def count_stays_before(
    events: pl.DataFrame, asked: pl.DataFrame, *, since: pl.Expr
) -> pl.DataFrame:
    """How many episodes of care began in [since, start_time), by what is available when asked.

    Several admissions of one encounter are one, and so are stays that overlap, touch or follow one
    another within a calendar day, such as transfers (`merge_stays`).

    Args:
        events: Whole records, columns of `schema.EVENTS`.
        asked: From `asked_of`.
        since: Of the columns of `asked`, inclusive.

    Returns:
        subject_id, prediction_time, n; every row of `asked`.
    """
    marks = events.filter(
        in_class(codes.ADMISSION, codes.DISCHARGE) & pl.col(schema.TIME).is_not_null()
    ).select(
        schema.SUBJECT_ID,
        schema.TIME,
        schema.CODE,
        schema.ENCOUNTER_ID,
        pl.coalesce(schema.AVAILABLE_TIME, schema.TIME).alias("_known"),
    )
    start = pl.col("start_time")
    # A question stands in for a subject: each has stays of its own, of what was known by then.
    numbered = asked.with_row_index("_row").with_columns(pl.col("_row").cast(pl.Int64))
    record = (
        numbered.join(marks, on=schema.SUBJECT_ID)
        .filter(
            (pl.when(in_class(codes.ADMISSION)).then(pl.col(schema.TIME) < start)
             .otherwise(pl.col(schema.TIME) <= start))
            & (pl.col("_known") <= pl.col(schema.PREDICTION_TIME))
        )
        .select(
            pl.col("_row").alias(schema.SUBJECT_ID), schema.ENCOUNTER_ID, schema.TIME, schema.CODE
        )
    )  # fmt: skip
    episodes = merge_stays(hospital_stays(record)).filter("first")
    found = (
        episodes.select(pl.col(schema.SUBJECT_ID).alias("_row"), began="start_time")
        .join(numbered, on="_row")
        .filter(pl.col("began") >= since)
        .group_by(_KEYS)
        .agg(pl.len().cast(pl.Int64).alias("n"))
    )
    return _counted(asked, found)


def _counted(asked: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    """Every row of `asked` with its n; 0 where none was found."""
    return (
        asked.select(_KEYS).join(found, on=_KEYS, how="left").with_columns(pl.col("n").fill_null(0))
    )
