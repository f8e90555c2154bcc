# pyright: strict
"""Frames that ask about subjects at moments, as they come from outside: checked and brought to us.

A time stamp is a number of something since 1970. Read as microseconds, nanoseconds lie thousands of
years ahead, where all that ever became known is known: a score would see the whole future. So every
cohort passes here before its moments meet a stream, whose clock is naive microseconds.
"""

from __future__ import annotations

import polars as pl

from tsfm import schema
from tsfm.errors import FormatError


def read_asked(frame: pl.DataFrame, *columns: str, place: str = "cohort") -> pl.DataFrame:
    """The frame with int64 subjects and naive moments in microseconds, all that it needs in it.

    Moments in a finer unit are cut to the microsecond that they lie in.

    Args:
        frame: With subject_id and prediction_time.
        columns: Others that it needs.
        place: For the message.

    Raises:
        FormatError: A column is missing or of another type, a subject or a moment is null, or the
            moments have a time zone.
    """
    needed = (schema.SUBJECT_ID, schema.PREDICTION_TIME, *columns)
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise FormatError(
            f"column '{missing[0]}' is missing", code="missing_column", place=place,
            remedy=f"The table needs {', '.join(needed)}.",
        )  # fmt: skip
    for name in needed[:2]:
        if n := frame[name].null_count():
            raise FormatError(
                f"column '{name}' holds {n} nulls", code="null_in_required_column", place=place,
                remedy="Drop or mend these rows before this step.",
            )  # fmt: skip
    subject, moment = (frame.schema[name] for name in needed[:2])
    if not subject.is_integer():
        raise _wrong_type(schema.SUBJECT_ID, subject, place, "Cast it to int64.")
    if not isinstance(moment, pl.Datetime):
        raise _wrong_type(schema.PREDICTION_TIME, moment, place, "Cast it to naive microseconds.")
    if moment.time_zone is not None:
        raise _wrong_type(
            schema.PREDICTION_TIME, moment, place,
            "Bring it to the data set's clock and drop the zone.",
        )  # fmt: skip
    if "outcome_days" in columns and not _is_number(frame.schema["outcome_days"]):
        raise _wrong_type("outcome_days", frame.schema["outcome_days"], place, "Give days.")
    days = [pl.col("outcome_days").cast(pl.Float64)] if "outcome_days" in columns else []
    found = frame.with_columns(
        pl.col(schema.SUBJECT_ID).cast(pl.Int64, strict=False),
        pl.col(schema.PREDICTION_TIME).cast(pl.Datetime("us")),
        *days,
    )
    if found[schema.SUBJECT_ID].has_nulls():
        raise _wrong_type(schema.SUBJECT_ID, subject, place, "Ids of 64 bits and a sign are read.")
    return found


def _is_number(kind: pl.DataType) -> bool:
    return kind.is_numeric() or kind == pl.Null


def _wrong_type(column: str, kind: pl.DataType, place: str, remedy: str) -> FormatError:
    return FormatError(
        f"column '{column}' is {kind}", code="wrong_column_type", place=place, remedy=remedy
    )
