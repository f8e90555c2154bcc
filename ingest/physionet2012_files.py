# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
"""The files of PhysioNet/CinC Challenge 2012: one text file a stay, or all of a set as parquet.

As published, a set is a folder of `<record>.txt` (`Time,Parameter,Value`, the time as HH:MM since
the admission) with `Outcomes-<set>.txt` beside it. As parquet, a folder holds
`observations-*.parquet` (record_id, minute, parameter, value) and `outcomes-*.parquet`. Both give
the same rows; what these mean is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tsfm.checked_parquet import typed_errors
from tsfm.errors import FormatError, InputError
from tsfm.ingest.csv_rows import LINE, BadRow, CsvRows

Chunk = tuple[pl.DataFrame, list[BadRow]]

_RECORD = re.compile(r"\d+\.txt")
_CLOCK = r"^(\d+):([0-5]\d)$"


def find_files(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Files of observations and of outcomes, in the order of the folders.

    Raises:
        InputError: `missing_source` or `empty_source`.
    """
    observations: list[Path] = []
    outcomes: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(
                "no such folder", code="missing_source", place=str(folder), remedy="Check the path."
            )
        names = sorted(path for path in folder.iterdir() if path.is_file())
        records = [path for path in names if _RECORD.fullmatch(path.name)]
        records += [path for path in names if path.match("observations-*.parquet")]
        if not records:
            raise InputError(
                "neither observations-*.parquet nor <record>.txt",
                code="empty_source",
                place=str(folder),
                remedy="Give the folder of a set of the Challenge 2012.",
            )
        observations += records
        beside = folder.with_name(f"Outcomes-{folder.name.removeprefix('set-')}.txt")
        told = [
            path
            for path in names
            if path.match("outcomes-*.parquet") or path.match("Outcomes-*.txt")
        ]
        outcomes += told or [path for path in (beside,) if path.is_file()]
    return observations, outcomes


def read_observations(path: Path, batch_rows: int) -> Iterator[Chunk]:
    """Rows as text columns `subject_id`, `record_id`, `minute`, `parameter`, `value` and `LINE`.

    Args:
        path: File; of a text file the name says which stay it is.
        batch_rows: Rows of a parquet file held in memory at a time.

    Raises:
        FormatError: `missing_column`, `no_header`, `bad_csv` or `bad_parquet`.
        IntegrityError: `checksum_mismatch`.
    """
    if path.suffix == ".parquet":
        for frame in _batches(path, ("record_id", "minute", "parameter", "value"), batch_rows):
            yield frame.with_columns(pl.col("record_id").alias("subject_id")), []
        return
    record = pl.lit(path.stem)
    clock = pl.col("time").str.strip_chars().str.extract_groups(_CLOCK)
    hours, minutes = (clock.struct[part].cast(pl.Int64, strict=False) for part in ("1", "2"))
    minute = (hours * 60 + minutes).cast(pl.String)
    for frame, bad in CsvRows(path, ("time", "parameter", "value"), place=path.name).chunks():
        yield (
            frame.select(
                record.alias("subject_id"),
                record.alias("record_id"),
                minute.alias("minute"),
                "parameter",
                "value",
                LINE,
            ),
            bad,
        )


def read_outcomes(path: Path, columns: Sequence[str]) -> Chunk:
    """All rows of a file of outcomes as text columns and `LINE`.

    Args:
        path: File.
        columns: Names of the published columns in lower case, after `subject_id` and `record_id`.

    Raises:
        FormatError: `missing_column`, `no_header`, `bad_csv` or `bad_parquet`.
        IntegrityError: `checksum_mismatch`.
    """
    names = [name for name in columns if name not in ("subject_id", "record_id")]
    key = "record_id" if path.suffix == ".parquet" else "recordid"
    frames = [pl.DataFrame(schema={**dict.fromkeys([key, *names], pl.String), LINE: pl.Int64})]
    bad: list[BadRow] = []
    if path.suffix == ".parquet":
        frames += _batches(path, (key, *names), 1 << 18)
    else:
        for frame, bad_rows in CsvRows(path, (key, *names), place=path.name).chunks():
            frames.append(frame)
            bad += bad_rows
    rows = pl.concat(frames).rename({key: "record_id"})
    return rows.with_columns(pl.col("record_id").alias("subject_id")), bad


def _batches(path: Path, columns: Sequence[str], batch_rows: int) -> Iterator[pl.DataFrame]:
    """Rows of a parquet file as text columns with their number in the file, from 1."""
    n_before = 0
    with typed_errors(path.name, remedy="Copy the file again from its source."):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        names = {name.lower(): name for name in file.schema_arrow.names}
        for name in columns:
            if name not in names:
                raise FormatError(
                    f"column '{name}' is missing",
                    code="missing_column",
                    place=f"{path.name}, column {name}",
                    remedy=f"The table needs {', '.join(columns)}.",
                )
        for batch in file.iter_batches(batch_rows, columns=[names[name] for name in columns]):
            frame = pl.DataFrame(pa.Table.from_batches([batch])).rename(str.lower)
            lines = pl.int_range(n_before + 1, n_before + frame.height + 1, dtype=pl.Int64)
            n_before += frame.height
            yield frame.select(pl.col(*columns).cast(pl.String), lines.alias(LINE))
