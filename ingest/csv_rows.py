# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
"""Rows of CSV and CSV.gz files as text, in chunks of bounded size, without silent loss.

Data frame readers guess types and fill a short row with nulls; both lose values without a word.
Here nothing is guessed (every column is text until a caller parses it) and every row that does not
have as many fields as the header is handed back with its number. A last row without its newline is
handed back too: it may be whole, but a cut `14` of `140` looks exactly like a value. A quotation
mark that is never closed would hide the rows behind it: the file is refused (`csv_quotes`).

Parsing is pyarrow's; this file knows rows and fields, not what they mean.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from tsfm.errors import FormatError, LimitExceeded
from tsfm.ingest.csv_quotes import RowEnds

LINE = "_line"
"""Column of a row's number in the file: the header is 1; blank lines do not count, and a row of
several lines counts once."""

BLOCK_BYTES = 32 << 20
MAX_GZIP_RATIO = 250
_RATIO_FREE_BYTES = 64 << 20
_HEADER_BYTES = 1 << 20
_MARKS = {0xDC00 + byte: 0x10FF00 + byte for byte in range(0x80, 0x100)}
_UNMARKED = {mark: lone for lone, mark in _MARKS.items()}
_MARKED = r"[\x{10FF80}-\x{10FFFF}]"
"""A byte that is not UTF-8 passes the parser as a private character, since a row that the parser
hands back must be text."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is not a row of this table.

    Attributes:
        reason: `ragged_row` (another number of fields than the header), `bad_encoding` (not
            UTF-8) or `unfinished_row` (the file ends within it, or just before its newline).
        line: Its number, counted as `LINE`.
        raw: Its bytes.
    """

    reason: str
    line: int
    raw: bytes


class CsvRows:
    """Chunked reader of one file; iterate over `chunks`.

    Args:
        path: File; gzip when its name ends in `.gz`.
        columns: Names to read, lower case; all others are skipped. A name that the header lacks is
            an error.
        place: How errors name the file.
        block_bytes: Text held in memory at a time, and the longest row.

    Attributes:
        n_bytes: Bytes of the file read so far (compressed ones, where it is compressed).
    """

    def __init__(
        self, path: Path, columns: Sequence[str], *, place: str, block_bytes: int = BLOCK_BYTES
    ) -> None:
        """Read the header and check that it has the columns.

        Raises:
            FormatError: `no_header`, `duplicate_column`, `missing_column` or `truncated_gzip`.
        """
        self.path, self.place, self.block_bytes = path, place, block_bytes
        self.header = _read_header(path, place)
        self.columns = list(columns)
        missing = [name for name in self.columns if name not in self.header]
        if missing:
            raise FormatError(
                f"column '{missing[0]}' is missing",
                code="missing_column",
                place=f"{place}, column {missing[0]}",
                remedy=f"The table needs {', '.join(self.columns)}.",
            )
        self.n_bytes = 0
        self._bad: list[BadRow] = []
        self._bad_lines: list[int] = []

    def chunks(self) -> Iterator[tuple[pl.DataFrame, list[BadRow]]]:
        """Yield whole rows as text columns with their `LINE`, and the bad rows met meanwhile.

        Empty fields are null.

        Raises:
            FormatError: `truncated_gzip` or `bad_csv`.
            LimitExceeded: `gzip_bomb` or `line_too_long`.
        """
        with self.path.open("rb") as raw:
            stream = _WholeRows(raw, self.path, self.place, len(self.header))
            n_rows = 0
            for batch in self._batches(stream):
                self.n_bytes = raw.tell()
                frame = self._to_text(batch, n_rows)
                if stream.has_marks:
                    frame = self._without_bad_text(frame)
                n_rows += batch.num_rows
                yield frame, self._take_bad()
            self.n_bytes = raw.tell()
            if stream.n_given and stream.rest.strip():
                line = n_rows + len(self._bad_lines) + 2
                self._bad.append(BadRow("unfinished_row", line, stream.rest.rstrip(b"\r")))
            if self._bad:
                empty = pl.DataFrame(schema=dict.fromkeys(self.columns, pl.String))
                yield empty.with_columns(pl.lit(0, pl.Int64).alias(LINE)), self._take_bad()

    def _batches(self, stream: _WholeRows) -> Iterator[pa.RecordBatch]:
        try:
            reader = pa_csv.open_csv(
                stream,
                read_options=pa_csv.ReadOptions(
                    use_threads=False,  # only then are rows numbered
                    block_size=self.block_bytes,
                    column_names=self.header,
                    skip_rows=1,
                ),
                parse_options=pa_csv.ParseOptions(
                    newlines_in_values=True, invalid_row_handler=self._set_aside
                ),
                convert_options=pa_csv.ConvertOptions(
                    # Bytes, not text: one bad byte must not fail the whole block.
                    column_types=dict.fromkeys(self.header, pa.binary()),
                    include_columns=self.columns,
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )
            yield from reader
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _corrupt(self.place) from error
        except pa.ArrowInvalid as error:
            if stream.n_given == 0:  # a header without its newline
                return
            raise FormatError(
                "the rows can't be told apart",
                code="bad_csv",
                place=self.place,
                remedy="Look for a quotation mark that is opened and never closed.",
            ) from error

    def _set_aside(self, row: Any) -> str:
        self._bad_lines.append(int(row.number))
        self._bad.append(BadRow("ragged_row", int(row.number), _unmark(str(row.text))))
        return "skip"

    def _take_bad(self) -> list[BadRow]:
        bad, self._bad = self._bad, []
        return bad

    def _to_text(self, batch: pa.RecordBatch, n_before: int) -> pl.DataFrame:
        # The k-th good row stands after as many bad ones as had at most k good ones before them.
        index = np.arange(n_before, n_before + batch.num_rows)
        bad = np.asarray(self._bad_lines, dtype=np.int64) - 2 - np.arange(len(self._bad_lines))
        line = index + np.searchsorted(bad, index, side="right") + 2
        table = pa.Table.from_batches([batch]).append_column(LINE, pa.array(line))
        texts = [(name, pa.string()) for name in self.columns]
        table = table.cast(pa.schema([*texts, (LINE, pa.int64())]))
        return cast(pl.DataFrame, pl.from_arrow(table)).select(*self.columns, LINE)

    def _without_bad_text(self, frame: pl.DataFrame) -> pl.DataFrame:
        is_bad = pl.any_horizontal(pl.col(self.columns).str.contains(_MARKED).fill_null(False))
        for *fields, line in frame.filter(is_bad).select(*self.columns, LINE).iter_rows():
            raw = _unmark(",".join(field or "" for field in fields))
            self._bad.append(BadRow("bad_encoding", line, raw))
        return frame.filter(~is_bad)


def _mark(block: bytes) -> bytes:
    """Lines of which those that are not UTF-8 have their bad bytes marked."""
    return b"".join(
        line if _is_text(line) else line.decode(errors="surrogateescape").translate(_MARKS).encode()
        for line in block.splitlines(keepends=True)
    )


def _unmark(text: str) -> bytes:
    return text.translate(_UNMARKED).encode(errors="surrogateescape")


def _is_text(block: bytes) -> bool:
    try:
        return block.isascii() or bool(block.decode())
    except UnicodeDecodeError:
        return False


class _WholeRows(io.RawIOBase):
    """Byte stream that gives nothing after the last whole row; what is left over stays in `rest`.

    What is not UTF-8 is given marked.
    """

    def __init__(self, raw: BinaryIO, path: Path, place: str, n_fields: int) -> None:
        super().__init__()
        self._raw = raw
        self._zipped = path.name.lower().endswith(".gz")
        self._source: Any = gzip.GzipFile(fileobj=raw) if self._zipped else raw
        self._place = place
        self._ends = RowEnds(n_fields, place)
        self._ready = b""
        self.rest = b""
        self.n_given = 0
        self.has_marks = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        size = size if size > 0 else BLOCK_BYTES
        if not self._ready:
            self._ready = self._whole_rows(size)
            if not _is_text(self._ready):
                self.has_marks, self._ready = True, _mark(self._ready)
        # Marks are longer than what they stand for.
        block, self._ready = self._ready[:size], self._ready[size:]
        return block

    def _whole_rows(self, size: int) -> bytes:
        while True:
            if len(self.rest) >= size:
                self._ends.check_rest(self.rest)  # a mark that is never closed, more likely
                raise LimitExceeded(
                    f"a row is longer than {size:,} bytes",
                    code="line_too_long",
                    place=self._place,
                    remedy="Look for a quotation mark that is opened and never closed.",
                )
            new: bytes = self._source.read(size - len(self.rest))
            if not new:
                self._ends.check_rest(self.rest)
                return b""
            block = self.rest + new
            end = self._ends.last(block)
            self.rest = block[end:]
            if end:
                self.n_given += end
                self._check_ratio()
                return block[:end]

    def _check_ratio(self) -> None:
        limit = max(_RATIO_FREE_BYTES, self._raw.tell() * MAX_GZIP_RATIO)
        if self._zipped and self.n_given > limit:
            raise LimitExceeded(
                f"a gzip file swells more than {MAX_GZIP_RATIO} fold",
                code="gzip_bomb",
                place=self._place,
                remedy="Decompress it yourself if you trust it.",
            )


def _read_header(path: Path, place: str) -> list[str]:
    zipped = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if zipped else path.open("rb") as stream:
            first = stream.readline(_HEADER_BYTES)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _corrupt(place) from error
    text = first.decode("utf-8-sig", errors="replace").strip()
    if not text:
        raise FormatError(
            "the file has no header", code="no_header", place=place, remedy="Export it again."
        )
    try:
        names = [name.strip().lower() for name in next(csv.reader([text]))]
    except csv.Error as error:
        raise FormatError(
            "the header is not one line of CSV",
            code="bad_csv",
            place=place,
            remedy="Write the file with a newline after each row.",
        ) from error
    if len(set(names)) != len(names):
        raise FormatError(
            "two columns have the same name",
            code="duplicate_column",
            place=place,
            remedy="Export it again.",
        )
    return names


def _corrupt(place: str) -> FormatError:
    return FormatError(
        "the gzip stream is cut short or corrupt",
        code="truncated_gzip",
        place=place,
        remedy="Copy the file again from its source, then run once more.",
    )
