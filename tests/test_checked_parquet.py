"""Parquet is read as it was written, or an error says why not."""

from __future__ import annotations

import errno
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from tsfm.checked_parquet import read_table, typed_errors, write_table
from tsfm.errors import FormatError, InputError, IntegrityError

TABLE = pa.table({"n": list(range(5000))})


def test_a_table_comes_back_as_written_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_table(TABLE, tmp_path / "below" / "a.parquet")
    assert read_table(tmp_path / "below" / "a.parquet").equals(TABLE)
    assert [p.name for p in (tmp_path / "below").iterdir()] == ["a.parquet"]


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_table(TABLE, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match="checksum_mismatch") as caught:
        read_table(path)
    assert caught.value.exit_code == 4


def test_what_is_no_table_and_what_is_not_there_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(FormatError, match="bad_parquet"):
        read_table(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="missing_table"):
        read_table(tmp_path / "b.parquet")


def test_what_the_system_refuses_is_no_change_of_bytes() -> None:
    with pytest.raises(PermissionError), typed_errors("a.parquet", remedy=""):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(IntegrityError), typed_errors("a.parquet", remedy=""):
        raise OSError("CRC checksum verification failed")
    with pytest.raises(FormatError), typed_errors("a.parquet", remedy=""):
        raise pl.exceptions.InvalidOperationError("conversion failed")
