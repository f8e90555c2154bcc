"""What callers ask about one patient: a record, a moment and a limit, checked before they are read.

A record is taken as `EventWriter.add` takes it (`event_table.read_columns`), so that the same frame
gets the same scores on every road.
"""

from __future__ import annotations

from datetime import datetime
from numbers import Integral
from typing import Any

import polars as pl

from tsfm import clock, schema
from tsfm.errors import InputError
from tsfm.event_table import POLARS_EVENTS, read_columns
from tsfm.tokens.event_tokens import on_the_clock

_NEEDED = (schema.SUBJECT_ID, schema.TIME, schema.CODE)


def read_records(events: Any) -> pl.DataFrame:
    """Whole records as a frame of `schema.EVENTS`, times in microseconds.

    Args:
        events: Data frame of polars, pandas or pyarrow; columns of other names are not looked at.

    Raises:
        InputError: `unknown_frame`, `missing_column`, `bad_column_type`, `bad_time_type` or
            `null_in_required_column`.
    """
    columns = _columns(events)
    absent = [name for name in _NEEDED if name not in columns]
    if absent:
        raise InputError(
            f"the frame lacks {', '.join(absent)}", code="missing_column", place="events",
            remedy=f"It needs {', '.join(_NEEDED)}, and may have {', '.join(POLARS_EVENTS)}.",
        )  # fmt: skip
    n = len(columns[schema.CODE])
    columns.setdefault(schema.AVAILABLE_TIME, pl.Series(schema.AVAILABLE_TIME, [None] * n))
    frame = read_columns(on_the_clock(pl.DataFrame(list(columns.values()))), place="events")
    if frame[schema.SUBJECT_ID].null_count() or frame[schema.CODE].null_count():
        raise InputError(
            "an event has no subject or no code", code="null_in_required_column", place="events",
            remedy="Drop or mend these rows.",
        )  # fmt: skip
    return frame


def moment_us(moment: Any) -> int:
    """Microseconds of a moment on the data set's clock.

    Raises:
        InputError: `bad_prediction_time`: no naive date-time.
    """
    us = None
    if isinstance(moment, datetime) and moment.tzinfo is None:
        us = clock.to_us(moment)
    if not isinstance(us, int):  # of a moment that is none, as pandas has it, us is NaN
        raise InputError(
            f"the moment is a {type(moment).__name__} or has a time zone",
            code="bad_prediction_time", place="prediction_time",
            remedy="Give a datetime on the data set's clock, without a zone.",
        )  # fmt: skip
    return us


def check_max_tokens(max_tokens: Any) -> None:
    """Check the number of tokens that are read at once.

    Raises:
        InputError: `bad_max_tokens`: no whole number from 1.
    """
    if not (isinstance(max_tokens, Integral) and int(max_tokens) >= 1):
        raise InputError(
            "the tokens read at once are no whole number from 1", code="bad_max_tokens",
            place="max_tokens", remedy="Use for example 16384.",
        )  # fmt: skip


def _columns(events: Any) -> dict[str, pl.Series]:
    """The columns of the event table that a frame has."""
    kind = type(events).__module__.partition(".")[0]
    if isinstance(events, pl.DataFrame):
        names = events.columns
    elif kind == "pandas" and hasattr(events, "columns"):
        names = list(events.columns)
    elif kind == "pyarrow" and hasattr(events, "schema"):
        names = events.schema.names
    else:
        raise InputError(
            f"events are a {type(events).__name__}", code="unknown_frame", place="events",
            remedy="Give a table of polars, pandas or pyarrow.",
        )  # fmt: skip
    found: dict[str, pl.Series] = {}
    for name in (name for name in POLARS_EVENTS if name in names):
        if names.count(name) > 1:
            raise _bad_column(name, "is there twice", "Give it once.")
        try:
            found[name] = pl.Series(name, events[name])
        except (TypeError, ValueError, pl.exceptions.PolarsError):  # whose messages quote values
            what = "holds values of several types"
            raise _bad_column(name, what, f"Cast it to {POLARS_EVENTS[name]}.") from None
    return found


def _bad_column(name: str, what: str, remedy: str) -> InputError:
    return InputError(
        f"column '{name}' {what}", code="bad_column_type", place="events", remedy=remedy
    )
