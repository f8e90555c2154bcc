# pyright: strict
"""A folder of CSV tables, found by their names and read in chunks, every row counted."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from tsfm.errors import InputError
from tsfm.ingest.csv_rows import BLOCK_BYTES, LINE, BadRow, CsvRows
from tsfm.ingest.provenance import IngestSummary
from tsfm.ingest.source_table import SourceTable
from tsfm.ingest.table_events import TableEvents

_SUFFIXES = (".csv", ".csv.gz")
Chunks = Iterator[tuple[pl.DataFrame, list[BadRow]]]


def find_tables(
    src: Path, folders: Iterable[Path], known: Collection[str], remedy: str, *, nested: bool
) -> tuple[dict[str, Path], list[str]]:
    """Files by table name, and the names of those that are not read.

    These are CSV files of no known table, and known tables that are no CSV files.

    Args:
        src: What the user gave, for errors.
        folders: Where tables may lie.
        known: Names of tables.
        remedy: What to give instead if there is none.
        nested: Names are `folder/table`, else `table`.

    Raises:
        InputError: `ambiguous_table` or `empty_source`.
    """
    files: dict[str, Path] = {}
    unknown: list[str] = []
    for path in (path for folder in folders for path in sorted(folder.iterdir())):
        suffix = next((s for s in reversed(_SUFFIXES) if path.name.lower().endswith(s)), "")
        is_csv = bool(suffix) and path.is_file()
        stem, point, ending = path.name.lower().partition(".")
        name = path.name.lower().removesuffix(suffix) if is_csv else stem
        name = f"{path.parent.name.lower()}/{name}" if nested else name
        if not is_csv:
            unknown += [name + point + ending] if name in known else []
        elif name not in known:
            unknown.append(name)
        elif name in files:
            raise InputError(
                f"table {name} is there twice",
                code="ambiguous_table",
                place=f"{files[name].name}, {path.name}",
                remedy="Remove one of the files.",
            )
        else:
            files[name] = path
    if not files:
        raise InputError("no tables found", code="empty_source", place=str(src), remedy=remedy)
    return files, unknown


def check_folder(src: Path) -> None:
    """Check that a source is a folder.

    Raises:
        InputError: `missing_source`.
    """
    if not src.is_dir():
        raise InputError(
            "no such folder", code="missing_source", place=str(src), remedy="Check the path."
        )


@dataclass
class TableFolder:
    """The tables of one run.

    Attributes:
        files: By table name.
        events: From rows to events.
        summary: Counts.
        block_bytes: Text held in memory at a time.
        in_file: Name in the files of columns that have another name here.
    """

    files: dict[str, Path]
    events: TableEvents
    summary: IngestSummary
    block_bytes: int = BLOCK_BYTES
    in_file: dict[str, str] = field(default_factory=dict[str, str])

    @contextmanager
    def progress(self, shown: bool | None) -> Generator[None, None, None]:
        """A bar over the bytes of all files, around all reading."""
        size = sum(path.stat().st_size for path in self.files.values())
        with tqdm(
            total=size, unit="B", unit_scale=True, desc=self.summary.source,
            disable=None if shown is None else not shown,
        ) as self.bar:  # fmt: skip
            yield

    def note_absent(self, names: Iterable[str]) -> None:
        """Say which tables are not there."""
        if absent := [name for name in names if name not in self.files]:
            self.summary.notes.append(f"absent: {', '.join(absent)}")

    def chunks(self, name: str, columns: Sequence[str]) -> Chunks:
        """Rows of a table and those that can't be read; nothing of an absent one."""
        path = self.files.get(name)
        if path is None:
            return
        wanted = [self.in_file.get(column, column) for column in columns]
        rows = CsvRows(path, wanted, place=path.name, block_bytes=self.block_bytes)
        ours = {theirs: column for column, theirs in self.in_file.items()}
        self.bar.set_description(name)
        self.summary.rows_read.setdefault(name, 0)
        before = 0
        for chunk, bad in rows.chunks():
            yield chunk.rename(ours, strict=False), bad
            self.bar.update(rows.n_bytes - before)
            before = rows.n_bytes

    def look_ahead(self, name: str, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Rows of a table that is read and counted later."""
        path = self.files[name]
        for chunk, _ in CsvRows(
            path, columns, place=path.name, block_bytes=self.block_bytes
        ).chunks():
            yield chunk

    def whole(self, table: SourceTable) -> pl.DataFrame:
        """All rows of a table at once, cleaned."""
        chunks = list(self.chunks(table.name, table.columns))
        bad = [row for _, bad_rows in chunks for row in bad_rows]
        schema: Any = {**dict.fromkeys(table.columns, pl.String), LINE: pl.Int64}
        empty = pl.DataFrame(schema=schema)
        rows = pl.concat([empty, *(rows.select(empty.columns) for rows, _ in chunks)])
        return self.events.clean(table, self.files[table.name].name, rows, bad)

    def stream(self, tables: Sequence[SourceTable]) -> None:
        """Make events of tables, chunk by chunk."""
        for table in tables:
            for rows, bad in self.chunks(table.name, table.columns):
                self.events.read(table, self.files[table.name].name, rows, bad)
        self.events.add_notes({table.name: table for table in tables})

    def count_ignored(self, name: str) -> bool:
        """Count the rows of a table that is not read; give whether it is there."""
        path = self.files.get(name)
        if path is None:
            return False
        header = CsvRows(path, (), place=path.name).header
        for rows, bad in self.chunks(name, (header[0],)):
            self.count(name, rows.height + len(bad), self.summary.rows_ignored, rows.height)
            self.events.set_aside(name, path.name, bad)
        return True

    def count(self, name: str, n_read: int, counts: dict[str, int], n: int) -> None:
        """Add rows to those read and to one of the summary's counts."""
        self.summary.rows_read[name] = self.summary.rows_read.get(name, 0) + n_read
        counts[name] = counts.get(name, 0) + n
