"""Other answers in a cohort, so that a leak audit tells whether a scorer reads them.

A scorer is handed rows of `schema.COHORT`: the outcome and its days, the reason, the end of the
stay. Each is altered where it came after a cut. `eligible` is left as it is, so that a scorer that
leaves others out answers the same rows.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from tsfm import clock, schema

CUT = "_cut"
"""Column of the moment after which a subject's record is altered."""
FURTHEST_HOURS = 5000.0
"""From a cut to the times that are made up."""
_FARTHEST_DAYS = 1e6


def alter_answers(
    cohort: pl.DataFrame, cuts: pl.DataFrame, rng: np.random.Generator
) -> tuple[pl.DataFrame, int]:
    """Change what a cohort says of the time after each subject's cut, and nothing else.

    The end of a stay is known once it is over, an outcome once its days have passed.

    Args:
        cohort: Rows of `schema.COHORT`; columns that it lacks are not altered.
        cuts: subject_id and `CUT`, one row a subject; all other subjects are left alone.
        rng: Of all draws.

    Returns:
        The cohort with its rows in their order, and how many were altered.
    """
    beside = cohort.join(cuts, on=schema.SUBJECT_ID, how="left", maintain_order="left")
    cut, moment = pl.col(CUT), pl.Datetime("us")
    hours = np.exp(rng.uniform(np.log(1e-3), np.log(FURTHEST_HOURS), cohort.height))
    since = pl.duration(microseconds=pl.lit(pl.Series((hours * clock.HOUR_US).astype(np.int64))))
    known = pl.lit(None, dtype=moment)
    if "outcome_days" in cohort.columns:
        days = pl.col("outcome_days").cast(pl.Float64)
        # Farther than any cut is far enough, and what no calendar holds can't be added.
        days = days.clip(-_FARTHEST_DAYS, _FARTHEST_DAYS)
        days_us = pl.when(days.is_finite()).then(days) * clock.DAY_US
        passed = pl.duration(microseconds=days_us.round().cast(pl.Int64))
        known = pl.col(schema.PREDICTION_TIME) + passed
    # A column, when its value was known, and another value.
    parts = [
        ("end_time", pl.col("end_time").cast(moment), cut + since),
        ("outcome", known, _other_words(beside, "outcome", rng)),
        ("reason", known, _other_words(beside, "reason", rng)),
        ("outcome_days", known, pl.lit(pl.Series(hours / 24))),
    ]
    parts = [part for part in parts if part[0] in cohort.columns]
    if not parts:
        return cohort, 0
    later = {name: cut.is_not_null() & ~(when <= cut).fill_null(False) for name, when, _ in parts}
    altered = beside.with_columns(
        pl.when(later[name]).then(other).otherwise(name).alias(name) for name, _, other in parts
    )
    n = beside.select(pl.any_horizontal(list(later.values())).sum()).item()
    return altered.select(cohort.columns), n


def _other_words(frame: pl.DataFrame, name: str, rng: np.random.Generator) -> pl.Expr:
    """For each row a word of a column that is not its own, or none."""
    if name not in frame.columns:
        return pl.lit(None)
    words = frame[name].cast(pl.String)
    known = list(dict.fromkeys([*words.unique().sort(), None, "event", "censored"]))
    place = {word: number for number, word in enumerate(known)}
    steps = rng.integers(1, len(known), len(words)).tolist()
    others = [
        known[(place[word] + step) % len(known)] for word, step in zip(words, steps, strict=True)
    ]
    return pl.lit(pl.Series(others, dtype=pl.String))
