"""What a scoring run writes first: one row for every eligible stay, and the table for evaluators.

`scores.parquet` (`schema.SCORES`) is the record of the run. A stay that could not be scored has a
row too, with its reason and no probability: a missing score must never look like a low risk. Its
key is (subject_id, prediction_time, task, model_hash), so a run that is repeated replaces its own
rows and no one else's. `probability` is that of a true label: of the event, or for a task that asks
whether nothing happens (a long stay) of neither outcome.

`predictions.parquet` (`schema.PREDICTIONS`) is the closed table of `meds-evaluation`: the scored
stays whose label is known, ready for any evaluator that reads MEDS.

This module writes tables; what the numbers are worth is the business of `tsfm.evaluation`.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa

from tsfm import schema
from tsfm.errors import FormatError, InputError
from tsfm.event_table import read_table, write_table

SCORED, NOT_SCORED = "scored", "not_scored"
KEY = (schema.SUBJECT_ID, schema.PREDICTION_TIME, "task", "model_hash")
PROBABILITIES = ("probability", "probability_competing", "probability_none")

# A float32 softmax over three outcomes adds up to one within a few units of 1e-7.
_SUM_TOLERANCE = 1e-3


def check_scores(scores: pl.DataFrame, *, place: str = "scores") -> pl.DataFrame:
    """Return `scores` with the columns of `schema.SCORES`, ordered by `KEY`, or refuse them.

    Raises:
        FormatError: Wrong columns, two rows of one key, a scored row without a probability within
            0 and 1, probabilities that add up to more than one, or a row that is not scored but
            has no reason or has a probability.
    """
    frame = _as_frame(schema.align(scores.to_arrow(), schema.SCORES, place=place))
    _refuse_duplicates(frame, KEY, place)
    status = pl.col("status")
    _refuse(
        frame.filter(~status.is_in([SCORED, NOT_SCORED])),
        "a row is neither scored nor not_scored",
        "bad_status",
        place,
    )
    _refuse(
        frame.filter((status == SCORED) & ~_is_probability("probability").fill_null(False)),
        "a scored row has no probability between 0 and 1",
        "bad_probability",
        place,
    )
    for name in PROBABILITIES[1:]:
        _refuse(
            frame.filter((status == SCORED) & ~_is_probability(name)),
            f"'{name}' is not between 0 and 1",
            "bad_probability",
            place,
        )
    # Where a true label means that nothing happens, two of the three are one probability.
    largest = pl.max_horizontal("probability", "probability_none").cast(pl.Float64)
    _refuse(
        frame.filter(
            (status == SCORED) & (largest + pl.col("probability_competing") > 1 + _SUM_TOLERANCE)
        ),
        "the probabilities of a row add up to more than one",
        "bad_probability",
        place,
    )
    has_number = pl.any_horizontal(pl.col(name).is_not_null() for name in PROBABILITIES)
    _refuse(
        frame.filter((status == NOT_SCORED) & has_number),
        "a row that is not scored holds a probability",
        "probability_not_scored",
        place,
    )
    no_reason = pl.col("reason").fill_null("").str.strip_chars() == ""
    _refuse(
        frame.filter((status == NOT_SCORED) & no_reason),
        "a row that is not scored gives no reason",
        "no_reason",
        place,
    )
    return frame.sort(list(KEY))


def write_scores(scores: pl.DataFrame, path: str | Path) -> None:
    """Write `schema.SCORES` parquet, ordered by `KEY`, atomically and with page checksums.

    Raises:
        FormatError: The table breaks a rule of `check_scores`.
    """
    target = Path(path)
    frame = check_scores(scores, place=target.name)
    write_table(schema.align(frame.to_arrow(), schema.SCORES, place=target.name), target)


def read_scores(path: str | Path) -> pl.DataFrame:
    """Read a table that `write_scores` wrote, checking its bytes and its rules."""
    return check_scores(_as_frame(read_table(path)), place=Path(path).name)


def labelled_scores(scores: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """Scored rows whose label is known, in the order of `KEY`.

    Returns:
        `schema.SCORES` with `boolean_value`; `probability` is that of a true label.

    Raises:
        FormatError: `scores` or `labels` break their contract, or a stay has two labels.
        InputError: The scores are of more than one task or model.
    """
    frame = check_scores(scores)
    if frame.select("task", "model_hash").unique().height > 1:
        raise InputError(
            "the scores are of more than one task or model",
            code="mixed_scores",
            place="scores",
            remedy="Pass the rows of one task and one model_hash.",
        )
    answers = _as_frame(schema.align(labels.to_arrow(), schema.LABELS, place="labels"))
    stay = (schema.SUBJECT_ID, schema.PREDICTION_TIME)
    _refuse_duplicates(answers, stay, "labels")
    return (
        frame.filter(pl.col("status") == SCORED)
        .join(answers, on=list(stay), how="inner")
        .sort(list(KEY))
    )


def write_predictions(
    scores: pl.DataFrame,
    labels: pl.DataFrame,
    path: str | Path,
    *,
    threshold: float | None = None,
) -> int:
    """Write the closed prediction table of `meds-evaluation` and return its number of rows.

    Args:
        scores: `schema.SCORES` of one task and one model.
        labels: `schema.LABELS`; stays without a label are left out.
        path: Parquet file to write.
        threshold: `predicted_boolean_value` is true where the probability of a true label is at
            least this; None leaves that column null: an alert threshold has no default.

    Raises:
        FormatError: See `labelled_scores`.
        InputError: See `labelled_scores`; or the threshold is not within 0 and 1.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(
            "the alert threshold is not a probability",
            code="bad_threshold",
            place="threshold",
            remedy="Give a fraction between 0 and 1.",
        )
    joined = labelled_scores(scores, labels)
    alert = (
        pl.lit(None, dtype=pl.Boolean)
        if threshold is None
        else pl.col("probability") >= pl.lit(threshold, dtype=pl.Float32)
    )
    table = joined.select(
        schema.SUBJECT_ID,
        schema.PREDICTION_TIME,
        schema.BOOLEAN_VALUE,
        alert.alias("predicted_boolean_value"),
        pl.col("probability").alias("predicted_boolean_probability"),
    ).to_arrow()
    target = Path(path)
    write_table(schema.align(table, schema.PREDICTIONS, place=target.name), target)
    return joined.height


def _as_frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _is_probability(name: str) -> pl.Expr:
    column = pl.col(name)
    return column.is_nan().not_() & column.is_between(0, 1)


def _refuse_duplicates(frame: pl.DataFrame, key: tuple[str, ...], place: str) -> None:
    surplus = frame.height - frame.select(key).n_unique()
    if surplus:
        raise FormatError(
            f"{surplus} rows repeat a key of {', '.join(key)}",
            code="duplicate_rows",
            place=place,
            remedy="Keep one row a key.",
        )


def _refuse(rows: pl.DataFrame, message: str, code: str, place: str) -> None:
    if rows.height:
        raise FormatError(
            f"{message} ({rows.height} rows)",
            code=code,
            place=place,
            remedy="Mend the rows before they are written.",
        )
