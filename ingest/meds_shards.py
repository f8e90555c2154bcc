# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false, reportAttributeAccessIssue=false
"""Event shards of other people's MEDS data sets, read in batches onto our column types.

MEDS has had several spellings in its life and its writers several more: times with a zone, doubles
for values, dictionaries for codes, `patient_id` for `subject_id`. What means the same is converted;
what is ambiguous is refused; what is broken is a typed error.

This file knows columns and types. What the events mean is `meds_stays`' and `meds_dataset`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, cast

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tsfm import schema
from tsfm.checked_parquet import typed_errors
from tsfm.errors import FormatError, InputError

ROW = "_row"
"""Column of a row's number in its file, from 1."""

_OLD_NAMES = {
    schema.SUBJECT_ID: ("patient_id",),
    schema.ENCOUNTER_ID: ("hadm_id",),
}
_REQUIRED = (schema.SUBJECT_ID, schema.TIME, schema.CODE)
_REMEDY = "Copy it again from its source."
_CALENDAR_DAYS = tuple((day - date(1970, 1, 1)).days for day in (date.min, date.max))


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of events.

    Attributes:
        path: Where it is.
        name: Path below the folder of events.
        split: Split that its folder names; None where it names none.
    """

    path: Path
    name: str
    split: str | None


def find_shards(src: Path) -> list[Shard]:
    """Event files below `src/data`, or below split folders in `src` itself.

    Raises:
        InputError: `missing_source` or `empty_source`.
    """
    if not src.is_dir():
        raise InputError(
            "no such folder", code="missing_source", place=str(src), remedy="Check the path."
        )
    data = schema.data_dir(src)
    roots = [data] if data.is_dir() else [src / split for split in schema.SPLITS]
    base = data if data.is_dir() else src
    shards: list[Shard] = []
    for path in sorted(path for root in roots for path in root.rglob("*.parquet")):
        name = path.relative_to(base)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            split = name.parts[0] if name.parts[0] in schema.SPLITS else None
            shards.append(Shard(path, name.as_posix(), split))
    if not shards:
        raise InputError(
            "no event shards found",
            code="empty_source",
            place=str(src),
            remedy="Give the folder that holds data/ or train/, tuning/ and held_out/.",
        )
    return shards


class ShardReader:
    """Reads one shard in batches.

    Args:
        shard: File.
        counts: Gains what was converted: `aware_times`, `float64_values`, `old_names`,
            `not_finite`, `nan`.

    Attributes:
        columns: Source column of each of our columns that the file has.
        dropped: Its other columns.
        aware: Those of our columns that are times with a zone.
    """

    def __init__(self, shard: Shard, counts: Counter[str]) -> None:
        """Open the file and check names and types.

        Raises:
            FormatError: `bad_parquet`, `missing_column`, `ambiguous_column`, `wrong_column_type`.
        """
        self.shard, self._counts = shard, counts
        with typed_errors(shard.name, remedy=_REMEDY):
            self._file = pq.ParquetFile(shard.path, page_checksum_verification=True)
            found = self._file.schema_arrow
        self.aware: set[str] = set()
        self.columns = _match(found.names, shard.name)
        self.dropped = sorted(set(found.names) - set(self.columns.values()))
        for name, source in self.columns.items():
            self._check_type(name, found.field(source).type)
        self.n_rows = int(self._file.metadata.num_rows)
        counts["old_names"] += any(name != source for name, source in self.columns.items())

    def batches(self, columns: list[str], batch_rows: int) -> Iterator[pl.DataFrame]:
        """Yield the asked columns that the file has, on the types of the event table, and `ROW`.

        Values that 32-bit floats can't hold, infinities and NaN become null and are counted. Times
        with a zone are brought to UTC; those beyond the years 1 to 9999 are brought to these.

        Raises:
            FormatError: `bad_parquet`, or `wrong_column_type`: ids beyond 64 bits with a sign.
            IntegrityError: `checksum_mismatch`.
        """
        wanted = {name: self.columns[name] for name in columns if name in self.columns}
        n = 0
        with typed_errors(self.shard.name, remedy=_REMEDY):
            for batch in self._file.iter_batches(batch_rows, columns=list(wanted.values())):
                batch.validate(full=True)
                table = pa.Table.from_batches([batch]).select(list(wanted.values()))
                arrays = [_plain(column) for column in table.columns]
                frame = cast(pl.DataFrame, pl.from_arrow(pa.table(arrays, names=list(wanted))))
                yield self._convert(frame).with_row_index(ROW, n + 1)
                n += frame.height

    def _check_type(self, name: str, kind: Any) -> None:
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        is_text = pa.types.is_string(value) or pa.types.is_large_string(value)
        is_text = is_text or pa.types.is_string_view(value)
        right = {
            schema.SUBJECT_ID: pa.types.is_integer(kind),
            schema.ENCOUNTER_ID: pa.types.is_integer(kind) or pa.types.is_null(kind),
            schema.TIME: pa.types.is_timestamp(kind) or pa.types.is_date(kind),
            schema.AVAILABLE_TIME: pa.types.is_timestamp(kind) or pa.types.is_null(kind),
            schema.NUMERIC_VALUE: pa.types.is_floating(kind)
            or pa.types.is_integer(kind)
            or pa.types.is_null(kind),
        }.get(name, is_text or pa.types.is_null(kind))
        if not right:
            raise FormatError(
                f"column '{name}' is {kind}",
                code="wrong_column_type",
                place=self.shard.name,
                remedy="MEDS asks for " + str(schema.EVENTS.field(name).type) + ".",
            )
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            self.aware.add(name)
            self._counts["aware_times"] += 1
        self._counts["float64_values"] += name == schema.NUMERIC_VALUE and pa.types.is_float64(kind)

    def _convert(self, frame: pl.DataFrame) -> pl.DataFrame:
        for name in frame.columns:
            column = frame[name]
            if name in (schema.TIME, schema.AVAILABLE_TIME):
                column = column.cast(pl.Datetime("us"))
            elif name in (schema.SUBJECT_ID, schema.ENCOUNTER_ID):
                column = self._signed(column, name)
            elif name == schema.NUMERIC_VALUE:
                column = self._finite(column)
            else:
                column = column.cast(pl.String)
            frame = frame.with_columns(column.alias(name))
        return frame

    def _signed(self, column: pl.Series, name: str) -> pl.Series:
        signed = column.cast(pl.Int64, strict=False)
        if signed.null_count() > column.null_count():
            raise FormatError(
                f"column '{name}' holds numbers beyond int64",
                code="wrong_column_type",
                place=self.shard.name,
                remedy="MEDS asks for int64: give such subjects or stays other numbers.",
            )
        return signed

    def _finite(self, column: pl.Series) -> pl.Series:
        wide, narrow = column.cast(pl.Float64), column.cast(pl.Float32)
        self._counts["nan"] += int(wide.is_nan().sum())
        self._counts["not_finite"] += int((narrow.is_infinite()).sum())
        return narrow.to_frame("v").select(pl.when(pl.col("v").is_finite()).then("v"))["v"]


def _match(names: list[str], place: str) -> dict[str, str]:
    """Our column names to the file's."""
    matched: dict[str, str] = {}
    for name in schema.EVENTS.names:
        candidates = [n for n in (name, *_OLD_NAMES.get(name, ())) if n in names]
        if (len(candidates) > 1 and name == schema.SUBJECT_ID) or names.count(name) > 1:
            raise FormatError(
                f"more than one column may be the '{name}'",
                code="ambiguous_column",
                place=place,
                remedy=f"Keep one of {', '.join(candidates)}.",
            )
        if candidates:
            matched[name] = candidates[0]
        elif name in _REQUIRED:
            raise FormatError(
                f"column '{name}' is missing",
                code="missing_column",
                place=place,
                remedy=f"MEDS events have {', '.join(_REQUIRED)}.",
            )
    return matched


def _plain(column: Any) -> Any:
    """A column without dictionaries; times without a zone, and within the calendar."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return column.cast(kind.value_type)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _within_calendar(column)
    return column


def _within_calendar(column: Any) -> Any:
    """Times as they are, those beyond the calendar at its ends.

    Other units of them overflow, to another time or to none: an event of no time is one that was
    always known.
    """
    kind = column.type
    if pa.types.is_date(kind):
        bits, per_day = (pa.int32(), 1) if pa.types.is_date32(kind) else (pa.int64(), 86_400_000)
    elif kind.unit == "ns":  # 64 bits of them end in 2262
        return column.cast(pa.timestamp("ns"))
    else:
        bits, per_day = pa.int64(), 86_400 * {"s": 1, "ms": 1000, "us": 1_000_000}[kind.unit]
        kind = pa.timestamp(kind.unit)
    ends = (pa.scalar(day * per_day, bits) for day in _CALENDAR_DAYS)
    numbers = pc.max_element_wise(column.cast(bits), next(ends), skip_nulls=False)
    return pc.min_element_wise(numbers, next(ends), skip_nulls=False).cast(kind)
