"""Parquet whose bytes are checked: page checksums written always, verified always.

A flipped bit in parquet is otherwise read without a word, by every reader we know of. Files are
written beside their name and renamed, so a reader sees a whole file or none; that goes for the many
files of an event table, too (`tsfm.output_folder`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tsfm.errors import FormatError, InputError, IntegrityError


def write_table(table: pa.Table, path: Path) -> None:
    """Write parquet atomically and with page checksums."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    os.replace(temporary, path)


def write_frame(frame: pl.DataFrame, path: Path) -> None:
    """Write a frame; see `write_table`."""
    write_table(frame.to_arrow(), path)


def write_spill(frame: pl.DataFrame, path: Path) -> None:
    """Write a working file, quickly, that is read again soon and by nobody else.

    By way of pyarrow: of a full disk polars says that the file is out of specification.
    """
    texts = [name for name, kind in frame.schema.items() if kind == pl.String]
    options: dict[str, Any] = {"compression": "lz4", "use_dictionary": texts or False}
    pq.write_table(frame.to_arrow(), path, **options)


def read_table(path: str | Path, *, columns: list[str] | None = None) -> pa.Table:
    """Read parquet, verifying its page checksums.

    Raises:
        InputError: There is no such file.
        FormatError: Not a parquet file.
        IntegrityError: A page differs from what was written.
    """
    remedy = "Restore it from its source or write it anew."
    with typed_errors(Path(path).name, remedy=remedy):
        try:
            return pq.read_table(path, columns=columns, page_checksum_verification=True)
        except FileNotFoundError:
            raise InputError(
                "no such table", code="missing_table", place=str(path), remedy="Check the folder."
            ) from None


@contextmanager
def typed_errors(place: str, *, remedy: str) -> Iterator[None]:
    """Turn what parquet's readers raise into our errors.

    Args:
        place: How the errors name the file.
        remedy: What to do about it.

    Raises:
        FormatError: `bad_parquet`.
        IntegrityError: `checksum_mismatch`.
        OSError: As it came, where it is the system's (no permission, a failing disk).
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise IntegrityError(
            "the file's bytes differ from what was written",
            code="checksum_mismatch",
            place=place,
            remedy=remedy,
        ) from error
    except (pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise FormatError(
            "not a readable parquet table", code="bad_parquet", place=place, remedy=remedy
        ) from error
