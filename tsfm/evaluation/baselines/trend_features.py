"""Slopes of a record's values at prediction times, for gradient boosting beside `count_features`.

How a value has gone is what trees find hard to make of a last value, a mean and a spread. For each
code that is measured again and again, the slope of a straight line through its values is given,
once for each time constant: a value weighs the less, the longer ago it was taken. To the spread of
the times an eighth of the time constant is added, so that two samples of one hour give a slope near
zero and not a wild one.

A value counts by its `available_time`, and stands in the line at its own time; so nothing that was
not known is used. Codes are chosen from what was known at some prediction time of a training
subject. Nothing else is learned.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import clock, event_table, schema
from tsfm.evaluation.baselines.count_features import MIN_SUBJECTS

TIME_CONSTANTS_DAYS = (1.0, 4.0, 16.0)

_FORGOTTEN = 6.0  # time constants after which a value weighs next to nothing
_LEAST_SPREAD = 1 / 8
_ROW = "_row"
_KNOWN = pl.coalesce(schema.AVAILABLE_TIME, schema.TIME)


def trend_features(
    root: str | Path,
    cohort: pl.DataFrame,
    train_subjects: Iterable[int],
    *,
    max_codes: int = 40,
) -> tuple[NDArray[np.float32], list[str]]:
    """Slopes of every row of a cohort.

    Args:
        root: Root of the event table.
        cohort: Rows of `schema.COHORT`, usually the eligible ones.
        train_subjects: Subjects from whom the codes are chosen.
        max_codes: Codes of most training subjects that have two values of them.

    Returns:
        Matrix of shape (rows of the cohort, codes x time constants) in the cohort's order, a day's
        change of the value's unit, NaN where fewer than two values weigh anything; and the names.
    """
    asked = cohort.select(schema.SUBJECT_ID, schema.PREDICTION_TIME).with_row_index(_ROW)
    chosen = _repeated(root, asked, set(train_subjects), max_codes)
    place = {code: i for i, code in enumerate(chosen)}
    n = len(TIME_CONSTANTS_DAYS)
    features = np.full((cohort.height, len(chosen) * n), np.nan, np.float32)
    if not chosen:
        return features, []
    for path in event_table.shard_paths(root):
        found = _slopes(_known_values(path, asked).filter(pl.col(schema.CODE).is_in(chosen)))
        rows = found[_ROW].to_numpy()
        codes_of = found[schema.CODE].replace_strict(place, return_dtype=pl.Int64).to_numpy()
        for i in range(n):
            features[rows, codes_of * n + i] = found[f"slope_{i}"].to_numpy()
    names = [f"{code}/slope/{days:g}d" for code in chosen for days in TIME_CONSTANTS_DAYS]
    return features, names


def _known_values(path: Path, asked: pl.DataFrame) -> pl.DataFrame:
    """A row for each question and each value known by then, with its age."""
    day = pl.lit(clock.DAY_US, dtype=pl.Float64)
    age = (pl.col(schema.PREDICTION_TIME) - pl.col(schema.TIME)).dt.total_microseconds() / day
    values = event_table.read_events(path).select(
        schema.SUBJECT_ID, schema.CODE, schema.TIME, known=_KNOWN,
        value=pl.col(schema.NUMERIC_VALUE).fill_nan(None).cast(pl.Float64),
    )  # fmt: skip
    return (
        values.lazy()
        .drop_nulls([schema.TIME, "value"])
        .join(asked.lazy(), on=schema.SUBJECT_ID)
        .filter(pl.col("known") <= pl.col(schema.PREDICTION_TIME))
        .with_columns(age.alias("age"))
        .filter(pl.col("age").is_between(0.0, _FORGOTTEN * max(TIME_CONSTANTS_DAYS)))
        .select(_ROW, schema.SUBJECT_ID, schema.CODE, "age", "value")
        .collect()
    )


def _repeated(
    root: str | Path, asked: pl.DataFrame, train_subjects: set[int], max_codes: int
) -> list[str]:
    """Codes of which most training subjects have two values at some prediction time."""
    train = asked.filter(pl.col(schema.SUBJECT_ID).is_in(list(train_subjects)))
    counts = [
        _known_values(path, train)
        .group_by(_ROW, schema.SUBJECT_ID, schema.CODE)
        .len()
        .filter(pl.col("len") > 1)
        .group_by(schema.CODE)
        .agg(subjects=pl.col(schema.SUBJECT_ID).n_unique())
        for path in event_table.shard_paths(root)
    ]
    chosen = (
        pl.concat(counts)
        .group_by(schema.CODE)
        .agg(pl.col("subjects").sum())
        .filter(pl.col("subjects") >= MIN_SUBJECTS)
        .sort(["subjects", schema.CODE], descending=[True, False])
        .head(max_codes)
    )
    return chosen[schema.CODE].to_list()


def _slopes(values: pl.DataFrame) -> pl.DataFrame:
    """Slopes of each question and code, null where fewer than two values weigh anything."""
    t, v = -pl.col("age"), pl.col("value")
    wanted = []
    for i, days in enumerate(TIME_CONSTANTS_DAYS):
        w = pl.when(pl.col("age") <= _FORGOTTEN * days).then((t / days).exp()).otherwise(0.0)
        mean_t, mean_v = ((w * x).sum() / w.sum() for x in (t, v))
        spread = (w * (t - mean_t) ** 2).sum() / w.sum()
        together = (w * (t - mean_t) * (v - mean_v)).sum() / w.sum()
        slope = together / (spread + (_LEAST_SPREAD * days) ** 2)
        wanted.append(pl.when((w > 0).sum() > 1).then(slope).alias(f"slope_{i}"))
    return values.group_by(_ROW, schema.CODE).agg(wanted).sort(_ROW, schema.CODE)
