"""Who the stays belong to: the groups by which an evaluation is broken down."""

from __future__ import annotations

import itertools
from pathlib import Path

import polars as pl

from tsfm import codes, event_table, schema
from tsfm.tasks.stays import age_years, code_part, in_class

AGE_EDGES = (18, 45, 65, 75, 85)
COLUMNS = ("age", "sex", "race", "admission type")


def describe_stays(root: str | Path, cohort: pl.DataFrame) -> pl.DataFrame:
    """Age band, sex, race and admission type of every row of a cohort.

    Args:
        root: Root of the event table.
        cohort: Rows of `schema.COHORT`.

    Returns:
        subject_id, prediction_time and `COLUMNS` as text, null where the record says nothing.
    """
    parts = [
        _describe_shard(shard, cohort.filter(_of_shard(shard)))
        for shard in event_table.scan_events(root)
    ]
    return pl.concat(parts)


def _of_shard(shard: pl.DataFrame) -> pl.Expr:
    return pl.col(schema.SUBJECT_ID).is_in(shard[schema.SUBJECT_ID].unique().implode())


def _describe_shard(events: pl.DataFrame, cohort: pl.DataFrame) -> pl.DataFrame:
    subject = schema.SUBJECT_ID

    def last_part(name: str, column: str) -> pl.DataFrame:
        # A static fact first, else the one that came to be known first.
        found = events.filter(in_class(name)).sort(
            schema.AVAILABLE_TIME, nulls_last=False, maintain_order=True
        )
        return found.group_by(subject, maintain_order=True).agg(code_part(1).first().alias(column))

    births = (
        events.filter(in_class(codes.BIRTH)).group_by(subject).agg(birth=pl.col(schema.TIME).min())
    )
    admissions = (
        events.filter(in_class(codes.ADMISSION))
        .select(
            subject,
            pl.col(schema.TIME).alias("start_time"),
            code_part(1).alias("admission type"),
        )
        .unique([subject, "start_time"], keep="first", maintain_order=True)
    )
    age = age_years("birth", schema.PREDICTION_TIME)
    return (
        cohort.select(subject, schema.PREDICTION_TIME, "start_time")
        .join(births, on=subject, how="left", maintain_order="left")
        .join(last_part(codes.GENDER, "sex"), on=subject, how="left", maintain_order="left")
        .join(last_part(codes.RACE, "race"), on=subject, how="left", maintain_order="left")
        .join(admissions, on=[subject, "start_time"], how="left", maintain_order="left")
        .with_columns(_age_group(age).alias("age"))
        .select(subject, schema.PREDICTION_TIME, *COLUMNS)
    )


def _age_group(age: pl.Expr) -> pl.Expr:
    group = pl.when(age.is_null()).then(None).when(age < AGE_EDGES[0]).then(pl.lit("under 18"))
    for low, high in itertools.pairwise(AGE_EDGES):
        group = group.when(age < high).then(pl.lit(f"{low}-{high - 1}"))
    return group.otherwise(pl.lit(f"{AGE_EDGES[-1]} and over"))
