# pyright: strict
"""Where the rows of a CSV file end, and whether a quotation mark swallows some of them.

A newline between quotation marks belongs to its row (RFC 4180). So a mark that is opened and never
closed joins all rows up to the next mark, or to the end of the file, and a parser takes them for
one. A row of several lines is refused where its marks are out of order and a line of it is a row in
itself. Where they are in order it is a text of several lines, unless each line has so many fields
that no text has and begins as rows of this file do.

Only lines whose marks do not come in pairs, one before a field and one behind it, are looked at one
by one: a file whose rows keep to their lines is read at the speed of a search for two bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from tsfm.errors import FormatError

# As pyarrow reads it: a mark counts at the start of a field only; what follows the closing one is
# part of the field.
_FIELD = re.compile(rb'(?:"[^"]*(?:""[^"]*)*"(?!")([^,\n]*)|[^",\n][^,\n]*|)([,\n])')
_MANY_FIELDS = 5  # a line of text has fewer commas, or has not the same number in every line
_PIECE_BYTES = 1 << 22


class RowEnds:
    """Finds the ends of rows in one file, block by block.

    Args:
        n_fields: Fields of the header.
        place: How errors name the file.

    Attributes:
        n_lines: Lines of the rows found so far.
    """

    def __init__(self, n_fields: int, place: str) -> None:
        """Start before the header."""
        self.n_lines = 0
        self._n_fields, self._place = n_fields, place

    def last(self, block: bytes) -> int:
        """End of the last whole row of a block that begins with a row; 0 where none is whole.

        Raises:
            FormatError: `bad_csv`, where a quotation mark swallows rows.
        """
        end = self._last(block)
        self.n_lines += block.count(b"\n", 0, end)
        return end

    def check_rest(self, rest: bytes) -> None:
        """Check what is left at the end of the file: a line without its newline, or nothing.

        Raises:
            FormatError: `bad_csv`, where whole lines are left, since a mark is never closed.
        """
        if b"\n" in rest and _row(rest + b"\n", 0) is None:
            raise self._unclosed(self.n_lines + 1)

    def _last(self, block: bytes) -> int:
        end = block.rfind(b"\n") + 1
        at = 0
        for start in _doubtful_lines(block, end):
            if start < at:
                continue  # a line of the row before
            row = _row(block, start)
            if row is None:
                return start
            at, n_fields, in_order = row
            if _swallows(block[start:at], self._n_fields, n_fields, in_order):
                raise self._unclosed(self.n_lines + block.count(b"\n", 0, start) + 1)
        return end

    def _unclosed(self, line: int) -> FormatError:
        return FormatError(
            "the rows can't be told apart",
            code="bad_csv",
            place=f"{self._place}, line {line:,}",
            remedy="Look for a quotation mark that is opened and never closed.",
        )


def _row(block: bytes, at: int) -> tuple[int, int, bool] | None:
    """End of the row that begins at `at`, its fields, whether its marks are in order.

    None where it does not end in this block.
    """
    n_fields, in_order = 0, True
    while field := _FIELD.match(block, at):
        n_fields, at = n_fields + 1, field.end()
        in_order = in_order and (field[1] or b"").strip(b"\r") == b""
        if field[2] == b"\n":
            return at, n_fields, in_order
    return None


def _swallows(row: bytes, expected: int, n_fields: int, in_order: bool) -> bool:
    """Whether lines of a row are rows in themselves."""
    lines = row[:-1].split(b"\n")
    if len(lines) == 1:
        return False
    are_rows = [_n_fields(line + b"\n") == expected for line in lines]
    if not in_order:
        return any(are_rows[1:])
    if expected < _MANY_FIELDS:
        return False
    first = _shape(lines[0])
    alike = [is_row and _shape(line) == first for is_row, line in zip(are_rows, lines, strict=True)]
    return all(alike) if n_fields == expected else any(alike[1:])


def _shape(line: bytes) -> bytes:
    """The first field without its values: runs of digits are 9, of letters a."""
    field = line.partition(b",")[0].strip(b'"')
    return re.sub(rb"[A-Za-z]+", b"a", re.sub(rb"[0-9]+", b"9", field))


def _n_fields(line: bytes) -> int:
    n_fields = at = 0
    while field := _FIELD.match(line, at):
        n_fields, at = n_fields + 1, field.end()
    return n_fields + (at < len(line))  # the rest is one field that is not closed


def _doubtful_lines(block: bytes, end: int) -> Iterator[int]:
    """Starts of the lines that may not be a row each, by their quotation marks."""
    at = 0
    while (mark := block.find(b'"', at, end)) >= 0:
        at = block.rfind(b"\n", 0, mark) + 1
        stop = block.rfind(b"\n", at, min(end, at + _PIECE_BYTES)) + 1
        stop = stop or block.index(b"\n", at) + 1
        yield from (at + start for start in _unpaired(block, at, stop))
        at = stop


def _unpaired(block: bytes, at: int, stop: int) -> list[int]:
    byte = np.frombuffer(block, np.uint8, stop - at, at)
    marks, ends = (np.flatnonzero(byte == ord(sign)) for sign in ('"', "\n"))
    # Before the first byte comes the last one, which is a newline too.
    opens, closes = _BEFORE_FIELD[byte[marks - 1]], _BEHIND_FIELD[byte[marks + 1]]
    is_within = np.searchsorted(marks, ends) % 2 == 1  # the last newline too, if marks are odd
    if not is_within.any() and opens[::2].all() and closes[1::2].all():
        return []
    line = np.searchsorted(ends, marks)
    is_opening = (np.arange(len(marks)) - np.searchsorted(line, line)) % 2 == 0
    is_last = np.append(line[1:] != line[:-1], True)
    is_paired = np.where(is_opening, opens & ~is_last, closes)
    doubtful = np.unique(line[~is_paired])
    return np.where(doubtful > 0, ends[doubtful - 1] + 1, 0).tolist()


def _table(signs: bytes) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    table = np.zeros(256, dtype=np.bool_)
    table[list(signs)] = True
    return table


_BEFORE_FIELD, _BEHIND_FIELD = _table(b',\n"'), _table(b',\r\n"')
