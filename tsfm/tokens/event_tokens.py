# pyright: strict
"""Events to tokens: one event, one token, in the order of knowing.

A subject's stream is ordered by when each fact became available, ties by when it was true, then
by the table's order. The lag between the two is a feature of the token. So every position is a
valid moment of prediction, and new facts only ever append.

Static facts known from the start, and the birth, have no place on the clock of care: they stand at
the subject's first contact, in front of it. The age at every token comes from the birth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import codes, event_table, schema
from tsfm.tokens.signal_vectors import NO_SIGNAL, SignalVectors
from tsfm.tokens.value_scale import ValueScale
from tsfm.tokens.vocabulary import EncodingCounts, Vocabulary

_US_PER_SECOND = 1e6

TOKEN_FIELDS: dict[str, str] = {
    "code": "int32",
    "value": "float32",
    "bin": "int8",
    "time_s": "float64",
    "lag_hours": "float32",
    "modality": "int8",
    "signal": "int32",
}
"""Per-token arrays and their types; the token store writes one file each."""


@dataclass(frozen=True)
class SubjectTokens:
    """Token streams of some subjects, end to end.

    Attributes:
        code: (T,) token ids.
        value: (T,) standardised values, NaN where there is none.
        bin: (T,) decile of the value, 1 to 10; 0 where there is none.
        time_s: (T,) when each fact became available, seconds on the data set's clock.
        lag_hours: (T,) hours from when the fact was true to when it was available.
        modality: (T,) 1 where the event points to a waveform, else 0.
        signal: (T,) row of the waveform in `signals`, -1 where there is none or it was not encoded.
        subject_id: (S,) subjects in the order of their tokens.
        start: (S + 1,) borders of the subjects' tokens.
        birth_s: (S,) birth in seconds, NaN where unknown.
        counts: How faithfully the codes were encoded.
        signals: Vectors of the waveforms, None where none are given.
    """

    code: NDArray[np.int32]
    value: NDArray[np.float32]
    bin: NDArray[np.int8]
    time_s: NDArray[np.float64]
    lag_hours: NDArray[np.float32]
    modality: NDArray[np.int8]
    signal: NDArray[np.int32]
    subject_id: NDArray[np.int64]
    start: NDArray[np.int64]
    birth_s: NDArray[np.float64]
    counts: EncodingCounts
    signals: SignalVectors | None = None


def tokenize_events(
    events: pl.DataFrame,
    vocabulary: Vocabulary,
    scale: ValueScale,
    *,
    signals: SignalVectors | None = None,
) -> SubjectTokens:
    """Tokenise whole subjects.

    Args:
        events: Event frame, every subject complete.
        vocabulary: Fitted vocabulary.
        scale: Fitted value scales of the same vocabulary.
        signals: Vectors of the waveforms that the events point to; without them a waveform is told
            by its code alone.

    Raises:
        InputError: See `on_the_clock`.
    """
    stream = order_of_knowing(events)
    ids, exact, counts = vocabulary.encode(stream[schema.CODE])
    values = stream[schema.NUMERIC_VALUE].fill_null(float("nan")).to_numpy().astype(np.float32)
    # A parent's scale would read another unit's number: such a token keeps its code alone.
    values = np.where(exact & np.isfinite(values), values, np.float32(np.nan))
    z, bins = scale.apply(ids, values)
    subject = stream[schema.SUBJECT_ID].to_numpy()
    borders = np.flatnonzero(subject[1:] != subject[:-1]) + 1
    inner = [0, *borders.tolist()] if len(subject) else []
    start = np.array([*inner, len(subject)], np.int64)
    return SubjectTokens(
        code=ids,
        value=z,
        bin=bins,
        time_s=stream["_stream_us"].to_numpy() / _US_PER_SECOND,
        lag_hours=stream["_lag_hours"].to_numpy().astype(np.float32),
        modality=stream[schema.SIGNAL_ID].is_not_null().to_numpy().astype(np.int8),
        signal=_signal_rows(stream, signals),
        subject_id=subject[start[:-1]].astype(np.int64),
        start=start,
        birth_s=stream["_birth_us"].to_numpy()[start[:-1]].astype(np.float64) / _US_PER_SECOND
        if len(subject)
        else np.zeros(0),
        counts=counts,
        signals=signals,
    )


def told_signals(stream: pl.DataFrame, code_class: str) -> pl.Series:
    """(event,) id of the waveform whose vectors belong to the event, null for all others."""
    code = pl.col(schema.CODE)
    own = (code == code_class) | code.str.starts_with(code_class + codes.SEPARATOR)
    return stream.select(pl.when(own).then(pl.col(schema.SIGNAL_ID))).to_series()


def _signal_rows(stream: pl.DataFrame, signals: SignalVectors | None) -> NDArray[np.int32]:
    rows = np.full(stream.height, NO_SIGNAL, np.int32)
    if signals is not None:
        ids = told_signals(stream, signals.code_class)
        there = ids.is_not_null().to_numpy()
        rows[there] = signals.rows(ids.drop_nulls().to_list())
    return rows


def on_the_clock(events: pl.DataFrame) -> pl.DataFrame:
    """The events with naive times in microseconds, cut to the one that they lie in.

    A time stamp is a number of something since 1970: milliseconds or nanoseconds read as
    microseconds would tell the future or hide the past. A fact with a time of which nobody says
    when it was known is known at its time.

    Raises:
        InputError: `bad_time_type`: times are missing or no date-times, or have a zone.
    """
    for name in (schema.TIME, schema.AVAILABLE_TIME):
        event_table.check_time(name, events.schema.get(name, "missing"), place="events")
    known = pl.coalesce(schema.AVAILABLE_TIME, schema.TIME)
    return events.with_columns(
        pl.col(schema.TIME, schema.AVAILABLE_TIME).cast(pl.Datetime("us"))
    ).with_columns(known.alias(schema.AVAILABLE_TIME))


def order_of_knowing(events: pl.DataFrame) -> pl.DataFrame:
    """Events in stream order with `_stream_us`, `_lag_hours` and `_birth_us` added.

    Raises:
        InputError: See `on_the_clock`.
    """
    events = on_the_clock(events)
    is_birth = pl.col(schema.CODE) == codes.BIRTH
    timeless = pl.col(schema.AVAILABLE_TIME).is_null() | is_birth
    known_us = pl.col(schema.AVAILABLE_TIME).cast(pl.Int64)
    frame = events.with_columns(
        pl.when(is_birth)
        .then(pl.col(schema.TIME).cast(pl.Int64))
        .otherwise(None)
        .min()
        .over(schema.SUBJECT_ID)
        .cast(pl.Float64)
        .fill_null(float("nan"))
        .alias("_birth_us"),
        pl.when(timeless).then(None).otherwise(known_us).alias("_stream_us"),
    ).with_columns(
        pl.col("_stream_us").min().over(schema.SUBJECT_ID).alias("_first_us"),
        pl.when(timeless)
        .then(0.0)
        .otherwise(
            (pl.col(schema.AVAILABLE_TIME) - pl.col(schema.TIME)).dt.total_microseconds() / 3.6e9
        )
        .fill_null(0.0)
        .clip(lower_bound=0.0)  # a time that is still to come when it is read would tell the future
        .alias("_lag_hours"),
    )
    frame = frame.with_columns(
        pl.when(timeless).then(0).otherwise(1).alias("_order"),
        # A subject with static facts alone has no clock: its tokens stand at its birth, or at 0.
        pl.coalesce(
            "_stream_us",
            "_first_us",
            pl.when(pl.col("_birth_us").is_nan()).then(None).otherwise(pl.col("_birth_us")),
            pl.lit(0),
        )
        .cast(pl.Int64)
        .alias("_stream_us"),
    )
    return frame.sort(
        [schema.SUBJECT_ID, "_order", "_stream_us", schema.TIME],
        nulls_last=[False, False, False, False],
        maintain_order=True,
    ).drop("_order", "_first_us")


def training_counts(events: pl.DataFrame, training_subjects: pl.Series) -> dict[str, int]:
    """Events of each code among the training subjects of a shard."""
    rows = events.filter(pl.col(schema.SUBJECT_ID).is_in(training_subjects.implode()))
    return dict(rows[schema.CODE].value_counts().iter_rows())


def scan_training_values(
    root: str, training_subjects: pl.Series, vocabulary: Vocabulary
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]:
    """Training subjects' values whose own code is in the vocabulary: ids, values, subjects."""
    ids: list[NDArray[np.int32]] = []
    subjects: list[NDArray[np.int64]] = []
    values: list[NDArray[np.float32]] = []
    for shard in event_table.scan_events(root):
        rows = shard.filter(
            pl.col(schema.NUMERIC_VALUE).is_not_null()
            & pl.col(schema.SUBJECT_ID).is_in(training_subjects.implode())
        )
        found, exact, _ = vocabulary.encode(rows[schema.CODE])
        ids.append(found[exact])
        values.append(rows[schema.NUMERIC_VALUE].to_numpy()[exact].astype(np.float32))
        subjects.append(rows[schema.SUBJECT_ID].to_numpy()[exact].astype(np.int64))
    if not ids:
        return np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    return np.concatenate(ids), np.concatenate(values), np.concatenate(subjects)
