"""Streaming files that may be hostile: lines, documents, gzip, links, pipes."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsfm.errors import FormatError, LimitExceeded
from tsfm.ingest import fhir_files
from tsfm.ingest.fhir_files import Block, ByteCount, SourceFile, find_files, read_blocks


def blocks(path: Path) -> list[Block]:
    return list(read_blocks(find_files(path).files[0], ByteCount()))


def lines(path: Path) -> list[bytes]:
    return [line for block in blocks(path) for line in block.lines]


def test_lines_keep_their_number_and_offset_whatever_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ndjson"
    text = b'\xef\xbb\xbf{"a":1}\n\n{"bb":22}\n{}'
    path.write_bytes(text)
    for size in range(4, 30):
        monkeypatch.setattr(fhir_files, "_WRITE_BYTES", size)
        seen = [
            (block.line_number(i), block.line_offset(i), line)
            for block in blocks(path)
            for i, line in enumerate(block.lines)
        ]
        assert [line for _, _, line in seen] == [b'{"a":1}', b"", b'{"bb":22}', b"{}"]
        assert [number for number, _, _ in seen] == [1, 2, 3, 4]
        assert all(text[offset : offset + len(line)] == line for _, offset, line in seen)


def test_offsets_may_be_asked_for_in_any_order() -> None:
    block = Block(SourceFile(Path("x"), "x", 0, 0, True), [b"a" * n for n in range(9)], 1, 100)
    expected = [block.offset + sum(n + 1 for n in range(i)) for i in range(9)]
    for order in (range(9), reversed(range(9)), (4, 2, 8, 8, 0)):
        for index in order:
            assert block.line_offset(index) == expected[index]


def test_a_line_beyond_the_limit_is_a_problem_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fhir_files, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(fhir_files, "_WRITE_BYTES", 64)
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"{}\n" + b"x" * 5000 + b"\n{}\n" + b"y" * 5000)
    found = blocks(path)
    assert [block.problem for block in found] == ["", "line_too_long", "", "line_too_long"]
    assert [block.first_line for block in found] == [1, 2, 3, 4]
    assert [block.offset for block in found] == [0, 3, 5004, 5007]
    assert max(len(line) for block in found for line in block.lines) < 100


def test_a_json_file_is_one_document_or_lines_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{\n "a": {\n  "b": 1 }\n}\n')
    assert lines(path) == [path.read_bytes()]
    path.write_bytes(b'{"a":1}\n{"b":2}\n')
    assert lines(path) == [b'{"a":1}', b'{"b":2}']
    path.write_bytes(b'{"a":\n{"b":2}\n')
    assert lines(path) == [b'{"a":', b'{"b":2}']
    path.write_bytes(b"")
    assert lines(path) == []


def test_gzip_is_known_by_its_bytes_members_and_padding_included(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(gzip.compress(b"{}\n") + gzip.compress(b'{"a":1}\n') + b"\0" * 700)
    assert lines(path) == [b"{}", b'{"a":1}']


@pytest.mark.parametrize("damage", ["cut", "flip", "garbage", "empty", "plain"])
def test_damaged_gzip_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    data = bytearray(gzip.compress(os.urandom(5000).hex().encode() + b"\n"))
    if damage == "cut":
        data = data[:-20]
    elif damage == "flip":
        data[len(data) // 2] ^= 0xFF
    elif damage == "garbage":
        data += b"garbage"
    else:
        data = bytearray(b"" if damage == "empty" else b"{}\n")
    (tmp_path / "b.ndjson.gz").write_bytes(data)
    with pytest.raises(FormatError) as caught:
        lines(tmp_path)
    assert (caught.value.code, caught.value.place) == ("truncated_gzip", "b.ndjson.gz")


def test_a_gzip_bomb_is_refused(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, wbits=31)
    chunk = (b"{}" + b" " * 997 + b"\n") * 1000
    data = b"".join(packer.compress(chunk) for _ in range(80)) + packer.flush()
    (tmp_path / "bomb.ndjson.gz").write_bytes(data)
    with pytest.raises(LimitExceeded) as caught:
        for _ in read_blocks(find_files(tmp_path).files[0], ByteCount()):
            pass
    assert caught.value.code == "gzip_bomb"


def test_only_regular_json_files_inside_the_folder_are_read(tmp_path: Path) -> None:
    src = tmp_path / "src"
    (src / "deep").mkdir(parents=True)
    (tmp_path / "secret.ndjson").write_text("{}\n")
    (src / "deep" / "B.NDJSON").write_text("{}\n")
    (src / "a.json.gz").write_bytes(gzip.compress(b"{}"))
    (src / "same.ndjson").symlink_to(src / "deep" / "B.NDJSON")
    (src / "out.ndjson").symlink_to(tmp_path / "secret.ndjson")
    (src / "loop.ndjson").symlink_to(src / "loop.ndjson")
    os.mkfifo(src / "pipe.ndjson")
    (src / "notes.xml").write_text("<x/>")
    found = find_files(src)
    assert [file.path.name for file in found.files] == ["a.json.gz", "B.NDJSON"]
    assert found.n_unsafe == 3
    assert dict(found.others) == {".xml": 1}


@given(st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")), max_size=30))
def test_any_bytes_come_back_line_by_line(
    tmp_path_factory: pytest.TempPathFactory, texts: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.ndjson.gz"
    text = b"\n".join(texts)
    path.write_bytes(gzip.compress(text, 1))
    whole = text.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n")
    expected = whole.split(b"\n") if text.removeprefix(b"\xef\xbb\xbf") else []
    assert lines(path) == expected
