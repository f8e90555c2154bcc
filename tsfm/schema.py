# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
"""The law: columns, types and order of every table that crosses a room's wall.

Events follow MEDS 0.4.1 with four columns of our own. `time` is when a fact was true of the
patient, `available_time` when it could first be known (a laboratory result's release, a billing
code's coding), and nothing computed at a prediction time may read an event that was not available
by then. All times are naive microseconds on one clock a data set; which clock is written in
`metadata/dataset.json`.

On disk, below the root of a data set:
`data/<shard>.parquet` (EVENTS), `metadata/{codes,subject_splits,subject_ids}.parquet`,
`metadata/dataset.json`, `quarantine/<reason>.ndjson`, `signals/` (see `tsfm.signals.store`).
Labels live apart, below `<labels>/<task>/`: `labels.parquet` (LABELS, closed as MEDS asks) and
`cohort.parquet` (COHORT: every index stay, eligible or not, with its reason).

This module is not a validator of meaning: it knows types and order, not medicine.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from tsfm.errors import FormatError

MEDS_VERSION = "0.4.1"

SUBJECT_ID = "subject_id"
TIME = "time"
CODE = "code"
NUMERIC_VALUE = "numeric_value"
TEXT_VALUE = "text_value"
AVAILABLE_TIME = "available_time"
ENCOUNTER_ID = "encounter_id"
SIGNAL_ID = "signal_id"
PREDICTION_TIME = "prediction_time"
BOOLEAN_VALUE = "boolean_value"

TRAIN, TUNING, HELD_OUT = "train", "tuning", "held_out"
SPLITS = (TRAIN, TUNING, HELD_OUT)

_US = pa.timestamp("us")

EVENTS = pa.schema(
    [
        pa.field(SUBJECT_ID, pa.int64(), nullable=False),
        pa.field(TIME, _US),  # null: a static fact
        pa.field(CODE, pa.string(), nullable=False),
        pa.field(NUMERIC_VALUE, pa.float32()),
        pa.field(TEXT_VALUE, pa.large_string()),
        pa.field(AVAILABLE_TIME, _US),  # null only where `time` is null: known from the start
        pa.field(ENCOUNTER_ID, pa.int64()),
        pa.field(SIGNAL_ID, pa.string()),  # key into the signal store
    ]
)
"""Event table. One subject in one shard, contiguous, ordered by time with null times first."""

LABELS = pa.schema(
    [
        pa.field(SUBJECT_ID, pa.int64(), nullable=False),
        pa.field(PREDICTION_TIME, _US, nullable=False),  # inclusive end of usable data
        pa.field(BOOLEAN_VALUE, pa.bool_(), nullable=False),
    ]
)
"""Labels whose answer is known. Censored stays have no row here; COHORT names them."""

COHORT = pa.schema(
    [
        pa.field(SUBJECT_ID, pa.int64(), nullable=False),
        pa.field(PREDICTION_TIME, _US, nullable=False),
        pa.field(ENCOUNTER_ID, pa.int64()),
        pa.field("start_time", _US, nullable=False),  # admission
        pa.field("end_time", _US),  # discharge or death
        pa.field("eligible", pa.bool_(), nullable=False),
        pa.field("reason", pa.string()),  # why not eligible; null where eligible
        # "event", "competing", "none", "censored"; of a task with classes, the class's name
        pa.field("outcome", pa.string()),
        pa.field("outcome_days", pa.float64()),  # from prediction_time to outcome or last knowledge
    ]
)
"""One row an index stay: nothing that was looked at is lost."""

SCORES = pa.schema(
    [
        pa.field(SUBJECT_ID, pa.int64(), nullable=False),
        pa.field(PREDICTION_TIME, _US, nullable=False),
        pa.field(ENCOUNTER_ID, pa.int64()),
        pa.field("task", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # "scored" or "not_scored"
        pa.field("reason", pa.string()),  # set where not scored
        pa.field("probability", pa.float32()),  # of a true label: mostly of the task's event
        pa.field("probability_competing", pa.float32()),  # of the competing event first
        pa.field("probability_none", pa.float32()),  # of neither
        pa.field("model_hash", pa.string(), nullable=False),
    ]
)
"""One row for every eligible index stay; a missing score must never look like a low risk."""

PREDICTIONS = pa.schema(
    [
        pa.field(SUBJECT_ID, pa.int64(), nullable=False),
        pa.field(PREDICTION_TIME, _US, nullable=False),
        pa.field(BOOLEAN_VALUE, pa.bool_(), nullable=False),
        pa.field("predicted_boolean_value", pa.bool_()),
        pa.field("predicted_boolean_probability", pa.float32()),
    ]
)
"""The closed prediction table of `meds-evaluation`: scored stays whose label is known."""

SUBJECT_IDS = pa.schema(
    [
        pa.field(SUBJECT_ID, pa.int64(), nullable=False),
        pa.field("source_id", pa.string(), nullable=False),  # id in the source system
    ]
)

SUBJECT_SPLITS = pa.schema(
    [
        pa.field(SUBJECT_ID, pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)

CODE_METADATA = pa.schema(
    [
        pa.field(CODE, pa.string(), nullable=False),
        pa.field("description", pa.string()),
        pa.field("parent_codes", pa.list_(pa.string())),
        pa.field("n_events", pa.int64()),
    ]
)

SIGNAL_INDEX = pa.schema(
    [
        pa.field(SIGNAL_ID, pa.string(), nullable=False),
        pa.field(SUBJECT_ID, pa.int64(), nullable=False),
        pa.field("record", pa.string(), nullable=False),  # name in the source
        pa.field("start_time", _US),  # null: the record says no date
        pa.field("lead", pa.string(), nullable=False),  # signal name as in the record
        pa.field("modality", pa.string(), nullable=False),  # "ecg", "ppg", "abp", "resp", "other"
        pa.field("fs_hz", pa.float64(), nullable=False),
        pa.field("n_samples", pa.int64(), nullable=False),
        pa.field("units", pa.string()),
        pa.field("gain", pa.float64()),  # ADC steps per unit; null: uncalibrated
        pa.field("baseline", pa.int64()),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),  # first sample within the shard
        pa.field("gap_starts", pa.list_(pa.int64())),  # invalid runs, sample numbers
        pa.field("gap_lengths", pa.list_(pa.int64())),
        pa.field("checksum_ok", pa.bool_()),  # null: the header gives none
    ]
)


def align(table: pa.Table, schema: pa.Schema, *, place: str = "") -> pa.Table:
    """Return `table` with exactly the columns and types of `schema`, in its order.

    Missing nullable columns are added as nulls; casts that would lose information are refused, a
    time zone's among them.

    Raises:
        FormatError: A required column is missing, holds nulls, or can't be cast.
    """
    columns: list[pa.ChunkedArray] = []
    for field in schema:
        if field.name not in table.column_names:
            if not field.nullable:
                raise FormatError(
                    f"column '{field.name}' is missing",
                    code="missing_column",
                    place=place,
                    remedy=f"The table needs {', '.join(schema.names)}.",
                )
            columns.append(pa.chunked_array([pa.nulls(table.num_rows, field.type)]))
            continue
        column = table.column(field.name)
        if not field.nullable and column.null_count:
            raise FormatError(
                f"column '{field.name}' holds {column.null_count} nulls",
                code="null_in_required_column",
                place=place,
                remedy="Drop or mend these rows before this step.",
            )
        if pa.types.is_timestamp(column.type) and column.type.tz is not None:
            # Cast, it would be shifted to UTC, whatever the data set's clock.
            raise FormatError(
                f"column '{field.name}' is {column.type}, not {field.type}",
                code="wrong_column_type",
                place=place,
                remedy="Bring it to the data set's clock and drop the zone.",
            )
        if column.type != field.type:
            # Halving a double's precision is what MEDS asks of numeric_value: not an error.
            safe = not pa.types.is_floating(field.type)
            try:
                column = column.cast(field.type, safe=safe)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise FormatError(
                    f"column '{field.name}' is {column.type}, not {field.type}",
                    code="wrong_column_type",
                    place=place,
                    remedy="Cast it before this step.",
                ) from error
        columns.append(column)
    return pa.table(columns, schema=schema)


def check_order(events: pa.Table, *, place: str = "") -> None:
    """Check that subjects are contiguous and each one's times ascend, null times first.

    `meds.DataSchema.validate` checks types but not this.

    Raises:
        FormatError: A subject appears in two runs, or a time goes backwards.
    """
    import numpy as np

    if events.num_rows == 0:
        return
    subject = events.column(SUBJECT_ID).to_numpy()
    times = events.column(TIME).cast(pa.int64()).fill_null(np.iinfo(np.int64).min).to_numpy()
    new_subject = subject[1:] != subject[:-1]
    if len(np.unique(subject)) != int(new_subject.sum()) + 1:
        raise FormatError(
            "a subject's events are not contiguous",
            code="subject_not_contiguous",
            place=place,
            remedy="Re-shard the table with `tsfm ingest meds`.",
        )
    if bool(((times[1:] < times[:-1]) & ~new_subject).any()):
        raise FormatError(
            "a subject's events are not ordered by time",
            code="events_not_ordered",
            place=place,
            remedy="Re-sort the table with `tsfm ingest meds`.",
        )


def data_dir(root: str | Path) -> Path:
    """Folder of the event shards below a data set's root."""
    return Path(root) / "data"


def metadata_dir(root: str | Path) -> Path:
    """Folder of the metadata tables below a data set's root."""
    return Path(root) / "metadata"
