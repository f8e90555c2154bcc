"""No quotation mark swallows rows in silence, and texts of several lines stay what they are."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsfm.errors import FormatError
from tsfm.ingest.csv_quotes import RowEnds
from tsfm.ingest.csv_rows import BadRow, CsvRows

HEADER = b"id,time,value,unit,comments\n"
ROWS = b"".join(b"%d,2180-05-07,5,mg,\n" % number for number in range(1000))
GOOD = b"1,2180-05-07,5,mg,\n"


def read(
    folder: Path, content: bytes, block_bytes: int = 1 << 20
) -> tuple[list[str], list[BadRow]]:
    """First fields of the rows read, and the bad rows."""
    path = folder / "t.csv"
    path.write_bytes(content)
    ids: list[str] = []
    bad: list[BadRow] = []
    for frame, rows in CsvRows(path, ["id"], place="t.csv", block_bytes=block_bytes).chunks():
        ids += frame["id"].to_list()
        bad += rows
    return ids, bad


@pytest.mark.parametrize("block_bytes", [1 << 20, 1 << 16])
@pytest.mark.parametrize("last", [b"", b'9,2180-05-07,5,mg,"quoted"\n'])
@pytest.mark.parametrize(
    "opened", [b'2,2180-05-07,5,mg,"abc\n', b'2,2180-05-07,"abc,mg,\n', b'"2,2180-05-07,5,mg,\n']
)
def test_a_mark_never_closed_is_an_error_that_names_its_line(
    tmp_path: Path, opened: bytes, last: bytes, block_bytes: int
) -> None:
    for behind in (ROWS, b""):
        with pytest.raises(FormatError) as caught:
            read(tmp_path, HEADER + GOOD + opened + behind + last, block_bytes)
        assert caught.value.code == "bad_csv"
        assert "t.csv, line 3" in str(caught.value)


def test_a_mark_never_closed_is_named_though_a_block_has_no_other_end(tmp_path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        read(tmp_path, HEADER + GOOD + b'2,2180-05-07,5,mg,"abc\n' + ROWS, block_bytes=2048)
    assert (caught.value.code, "t.csv, line 3" in str(caught.value)) == ("bad_csv", True)


def test_two_marks_never_closed_are_an_error_though_they_look_like_a_pair(tmp_path: Path) -> None:
    opened = b'2,2180-05-07,5,mg,"abc\n'
    for between in (ROWS, b""):
        with pytest.raises(FormatError):
            read(tmp_path, HEADER + opened + between + opened + GOOD)
        with pytest.raises(FormatError):  # the second one is closed where a field ends
            read(tmp_path, HEADER + opened + between + b'3,2180-05-07,5,mg,"\n' + GOOD)


def test_a_text_of_several_lines_is_one_field(tmp_path: Path) -> None:
    text = b'2,2180-05-07,5,mg,"first line,\n\nsecond, ""third"", line\n"\n3,,,,\n'
    for block_bytes in (1 << 20, 128):
        assert read(tmp_path, HEADER + text + GOOD, block_bytes) == (["2", "3", "1"], [])
    # Lines of a text may have as many commas as rows, but do not begin as they do.
    listed = b'2,2180-05-07,5,mg,"Medication:\naspirin, statin, ramipril, bisoprolol, torasemide"\n'
    assert read(tmp_path, HEADER + listed + GOOD) == (["2", "1"], [])
    # Of a table of two columns a line of text may well have as many commas as the header.
    assert read(tmp_path, b'id,text\n1,"a, b\nc, d\ne"\n2,x\n') == (["1", "2"], [])


def test_marks_within_a_field_are_part_of_it(tmp_path: Path) -> None:
    lines = b'1,5" tube,5,mg,\n2,2180-05-07,"5" x 6",mg,\n3,a"b,"c",mg,x"\n'
    assert read(tmp_path, HEADER + lines + ROWS[:60])[0][:3] == ["1", "2", "3"]
    with pytest.raises(FormatError):  # an even number of marks, the last of them open
        read(tmp_path, HEADER + b'1,a"b,5,mg,"c\n' + ROWS)


def test_a_row_of_too_few_fields_with_a_text_of_several_lines_is_one_bad_row(
    tmp_path: Path,
) -> None:
    ids, bad = read(tmp_path, HEADER + GOOD + b'2,"a\nb",5\n' + GOOD)
    assert ids == ["1", "1"]
    assert bad == [BadRow("ragged_row", 3, b'2,"a\nb",5')]


@pytest.mark.parametrize("tail", [b'2,,,,"one\ntwo"', b'2,,,,"one'])
def test_a_last_row_of_several_lines_without_newline_is_handed_back_whole(
    tmp_path: Path, tail: bytes
) -> None:
    assert read(tmp_path, HEADER + GOOD + tail) == (["1"], [BadRow("unfinished_row", 3, tail)])


def test_windows_line_ends_and_quoted_columns_are_no_reason_for_doubt(tmp_path: Path) -> None:
    text = io.StringIO()
    rows = [[str(number), "x, y", 'a "b"', "two\r\nlines", ""] for number in range(500)]
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows(rows)
    content = HEADER.replace(b"\n", b"\r\n") + text.getvalue().encode()
    ids, bad = read(tmp_path, content, 1 << 12)
    assert (ids, bad) == ([str(number) for number in range(500)], [])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.text('a,"\n', max_size=6), min_size=1, max_size=5), min_size=1))
def test_rows_end_where_python_says(rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    block = text.getvalue().encode()
    cut = random.Random(len(block)).randrange(len(block) + 1)
    end = RowEnds(4, "t").last(block[:cut])
    ends = [0]
    for row in rows:
        one = io.StringIO()
        csv.writer(one, lineterminator="\n").writerow(row)
        ends.append(ends[-1] + len(one.getvalue()))
    assert end == max(stop for stop in ends if stop <= cut)


def test_rows_are_found_beyond_the_first_piece_of_a_large_block() -> None:
    quoted = b'1,"a, ""b""",2,3,"x"\n' * 300_000  # some 6 MB
    rows = RowEnds(5, "t")
    assert rows.last(HEADER + quoted + b'1,"a') == len(HEADER + quoted)
    with pytest.raises(FormatError) as caught:
        RowEnds(5, "t").last(HEADER + quoted + b'1,"a\n' + quoted)
    assert "line 300,002" in str(caught.value)
