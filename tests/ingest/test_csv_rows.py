"""Every row of a CSV file is either read whole or handed back; nothing is guessed."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsfm.errors import FormatError, LimitExceeded
from tsfm.ingest.csv_rows import LINE, BadRow, CsvRows


def read(
    path: Path, columns: list[str], block_bytes: int = 1 << 20
) -> tuple[pl.DataFrame, list[BadRow]]:
    chunks = list(CsvRows(path, columns, place=path.name, block_bytes=block_bytes).chunks())
    bad = [row for _, rows in chunks for row in rows]
    return pl.concat([frame for frame, _ in chunks]), bad


def write(folder: Path, content: bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def test_values_stay_text_and_empty_fields_are_null(tmp_path: Path) -> None:
    frame, bad = read(write(tmp_path, b"a,b\n007,\n1e5,NA\n"), ["a", "b"])
    assert frame.rows() == [("007", None, 2), ("1e5", "NA", 3)]
    assert bad == []


def test_bom_crlf_quotes_and_upper_case_names_are_read(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfA,"B"\r\n1,"x, ""y""\nz"\r\n2,3\r\n'
    frame, bad = read(write(tmp_path, content, "T.CSV.gz"), ["b", "a"])
    assert frame.rows() == [('x, "y"\nz', "1", 2), ("3", "2", 3)]
    assert bad == []


def test_short_and_long_rows_are_handed_back_with_their_numbers(tmp_path: Path) -> None:
    frame, bad = read(write(tmp_path, b"a,b\n1,2\n3\n4,5\n6,7,8\n9,10\n"), ["a"])
    assert frame[LINE].to_list() == [2, 4, 6]
    assert [(row.reason, row.line, row.raw) for row in bad] == [
        ("ragged_row", 3, b"3"),
        ("ragged_row", 5, b"6,7,8"),
    ]


@pytest.mark.parametrize("tail", [b"3,14", b"3"])
def test_a_last_row_without_newline_is_never_taken_for_whole(tmp_path: Path, tail: bytes) -> None:
    frame, bad = read(write(tmp_path, b"a,b\n1,2\n" + tail), ["a", "b"])
    assert frame.rows() == [("1", "2", 2)]
    assert bad == [BadRow("unfinished_row", 3, tail)]


def test_a_row_that_is_not_utf8_is_handed_back_and_its_neighbours_stay(tmp_path: Path) -> None:
    frame, bad = read(write(tmp_path, b"a,b\n1,2\n3,\xff\n5,6\n"), ["a", "b"])
    assert frame.rows() == [("1", "2", 2), ("5", "6", 4)]
    assert [(row.reason, row.line) for row in bad] == [("bad_encoding", 3)]


def test_a_short_row_that_is_not_utf8_is_handed_back_with_its_bytes(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    content = b"a,b\n1,2\ncaf\xe9\n5,\xff6\n7,8\n"
    for block_bytes in (1 << 20, 16):
        frame, bad = read(write(tmp_path, content), ["a", "b"], block_bytes)
        assert frame.rows() == [("1", "2", 2), ("7", "8", 5)]
        assert sorted(bad, key=lambda row: row.line) == [
            BadRow("ragged_row", 3, b"caf\xe9"),
            BadRow("bad_encoding", 4, b"5,\xff6"),
        ]
    assert capfd.readouterr().err == ""
    assert not recwarn.list


def test_a_header_alone_is_an_empty_table(tmp_path: Path) -> None:
    for content in (b"a,b\n", b"a,b"):
        chunks = list(CsvRows(write(tmp_path, content), ["a"], place="t").chunks())
        assert sum(frame.height for frame, _ in chunks) == 0
        assert [bad for _, bad in chunks if bad] == []


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "no_header"),
        (b"a,a\n", "duplicate_column"),
        (b"a,c\n1,2\n", "missing_column"),
        (b"a,b\r1,2\r3,4\r", "bad_csv"),  # of a system that ends lines with CR alone
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, content: bytes, code: str) -> None:
    with pytest.raises(FormatError) as caught:
        CsvRows(write(tmp_path, content), ["a", "b"], place="hosp/t")
    assert caught.value.code == code
    assert "hosp/t" in str(caught.value)


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.95, "crc"])
def test_a_cut_or_damaged_gzip_is_refused(tmp_path: Path, keep: float | str) -> None:
    rows = b"".join(b"%d,%d\n" % (i, i * 7919 % 10007) for i in range(20_000))
    packed = gzip.compress(b"a,b\n" + rows)
    damaged = (
        packed[:-8] + b"\0" * 8 if isinstance(keep, str) else packed[: int(len(packed) * keep)]
    )
    path = tmp_path / "t.csv.gz"
    path.write_bytes(damaged)
    with pytest.raises(FormatError) as caught:
        read(path, ["a"])
    assert caught.value.code == "truncated_gzip"


def test_joined_gzip_members_and_zero_padding_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a\n1\n") + gzip.compress(b"2\n") + b"\0" * 512)
    assert read(path, ["a"])[0]["a"].to_list() == ["1", "2"]


def test_a_row_without_end_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    path = write(tmp_path, b"a,b\n1,2\n" + b"x" * 500_000 + b"\n")
    with pytest.raises(LimitExceeded) as caught:
        read(path, ["a"], block_bytes=1 << 16)
    assert caught.value.code == "line_too_long"


def test_a_gzip_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    with gzip.open(path, "wb", compresslevel=9) as stream:
        stream.write(b"a,b\n")
        for _ in range(90):
            stream.write(b"0,0\n" * (1 << 18))
    with pytest.raises(LimitExceeded) as caught:
        for _ in CsvRows(path, ["a"], place="t", block_bytes=8 << 20).chunks():
            pass
    assert caught.value.code == "gzip_bomb"


FIELDS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(FIELDS, min_size=1, max_size=4), max_size=25), st.booleans())
def test_rows_survive_as_python_reads_them_wherever_blocks_are_cut(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], small: bool
) -> None:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([["a", "b"], *rows])
    path = tmp_path_factory.mktemp("rows") / "t.csv"
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    frame, bad = [], []
    for chunk, aside in CsvRows(
        path, ["a", "b"], place="t", block_bytes=256 if small else 1 << 16
    ).chunks():
        frame += chunk.rows()
        bad += aside
    whole = [(number, row) for number, row in enumerate(rows, 2) if len(row) == 2]
    assert frame == [(row[0] or None, row[1] or None, number) for number, row in whole]
    assert sorted(row.line for row in bad) == [
        number for number, row in enumerate(rows, 2) if len(row) != 2
    ]
