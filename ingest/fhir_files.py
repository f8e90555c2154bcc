# pyright: strict
"""Finding and streaming the files of a FHIR export, without trusting any of them.

A hospital's export is a folder of NDJSON, gzip NDJSON and single JSON files under any names. Files
are found by suffix and read by content: gzip by its first two bytes, one document or many lines by
whether the first line is a whole JSON object. Memory stays bounded whatever a file holds: a line
is at most 16 MiB, a single document 512 MiB, and a gzip stream that swells beyond any plausible
ratio is refused.

This file knows bytes and lines, not FHIR: nothing here looks at a resource.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tsfm.errors import FormatError, InputError, LimitExceeded

SUFFIXES = (".ndjson", ".jsonl", ".json")
MAX_LINE_BYTES = 16 << 20
MAX_DOCUMENT_BYTES = 512 << 20
MAX_GZIP_RATIO = 250  # FHIR NDJSON packs 10 to 60 fold; deflate's limit is 1032
_RATIO_FREE_BYTES = 64 << 20  # small files of equal lines may pack better than any real export
_READ_BYTES = 256 << 10
_WRITE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to read.

    Attributes:
        path: Where it is, links resolved.
        name: Path below the source folder.
        size: Bytes on disk.
        modified_ns: Time of its last change.
        many_lines: Whether its suffix says one resource a line.
    """

    path: Path
    name: str
    size: int
    modified_ns: int
    many_lines: bool


@dataclass(slots=True)
class Found:
    """Files of a source folder.

    Attributes:
        files: What will be read, by name.
        others: Files of other kinds, by suffix.
        n_unsafe: Links out of the folder, pipes, devices: never opened.
    """

    files: list[SourceFile] = field(default_factory=list[SourceFile])
    others: Counter[str] = field(default_factory=Counter[str])
    n_unsafe: int = 0


@dataclass(slots=True)
class Block:
    """Consecutive lines of one file.

    Attributes:
        file: Where they are from.
        lines: Their bytes, without the newline; blank lines included.
        first_line: Line number of the first, from 1.
        offset: Its byte offset in the uncompressed file.
        problem: Reason code when `lines` is one unreadable line, not held in memory.
    """

    file: SourceFile
    lines: list[bytes]
    first_line: int
    offset: int
    problem: str = ""
    _reached: tuple[int, int] = (0, 0)  # last index asked for, and the bytes before it

    def line_number(self, index: int) -> int:
        """Line number of `lines[index]`."""
        return self.first_line + index

    def line_offset(self, index: int) -> int:
        """Byte offset of `lines[index]`; asking in ascending order costs one walk in all."""
        start, before = self._reached if index >= self._reached[0] else (0, 0)
        before += sum(len(line) + 1 for line in self.lines[start:index])
        self._reached = index, before
        return self.offset + before


def find_files(src: str | Path) -> Found:
    """All JSON files at or below `src`, each real file once, sorted by name.

    Raises:
        InputError: `src` does not exist.
    """
    root = Path(src)
    if not root.exists():
        raise InputError(
            "no such folder", code="missing_source", place=str(src), remedy="Check the path."
        )
    found = Found()
    real_root = root.resolve()
    if root.is_file():
        _consider(real_root, real_root.parent, found, set())
        return found
    seen: set[Path] = set()
    for folder, subfolders, names in os.walk(real_root):
        subfolders.sort()
        for name in sorted(names):
            _consider(Path(folder) / name, real_root, found, seen)
    found.files.sort(key=lambda file: file.name)
    return found


def _consider(path: Path, root: Path, found: Found, seen: set[Path]) -> None:
    suffix = _data_suffix(path.name)
    if not suffix:
        found.others[path.suffix.lower() or "(none)"] += 1
        return
    try:
        real = path.resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError):  # a link to nothing, or to itself
        found.n_unsafe += 1
        return
    if not real.is_relative_to(root) or not stat.S_ISREG(status.st_mode):
        found.n_unsafe += 1
    elif real not in seen:
        seen.add(real)
        name = path.relative_to(root).as_posix()
        found.files.append(
            SourceFile(real, name, status.st_size, status.st_mtime_ns, suffix != ".json")
        )


def _data_suffix(name: str) -> str:
    stem = name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if stem.endswith(suffix)), "")


class ByteCount:
    """Compressed bytes read so far: what a progress bar shows."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.total = 0


def read_blocks(file: SourceFile, read: ByteCount) -> Iterator[Block]:
    """Lines of a file, or the whole file as one line if it holds a single document.

    Raises:
        FormatError: `truncated_gzip`: the compressed stream is cut or corrupt.
        LimitExceeded: `gzip_bomb` or `document_too_large`.
    """
    chunks = _read_chunks(file, read)
    if file.many_lines:
        yield from _split_lines(file, chunks)
        return
    head = bytearray()
    for chunk in chunks:
        head += chunk
        if b"\n" in chunk or len(head) > MAX_LINE_BYTES:
            break
    if _is_object(bytes(head.removeprefix(_BOM).partition(b"\n")[0])):
        yield from _split_lines(file, _join(bytes(head), chunks))
        return
    for chunk in chunks:
        head += chunk
        if len(head) > MAX_DOCUMENT_BYTES:
            raise LimitExceeded(
                f"a single JSON document is larger than {MAX_DOCUMENT_BYTES >> 20} MiB",
                code="document_too_large",
                place=file.name,
                remedy="Export it as NDJSON.",
            )
    document = bytes(head)
    if not _is_object(document.removeprefix(_BOM)) and _looks_like_lines(document):
        yield from _split_lines(file, iter([document]))
    elif document.strip():
        bom = document.startswith(_BOM)
        yield Block(file, [document.removeprefix(_BOM)], 1, len(_BOM) if bom else 0)


def _join(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from rest


def _is_object(text: bytes) -> bool:
    import msgspec

    try:
        msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _looks_like_lines(document: bytes) -> bool:
    """Whether text that is no JSON document is rather NDJSON with a broken line."""
    lines = [line for line in document.split(b"\n", 50)[:50] if line.strip()]
    return len(lines) > 1 and any(_is_object(line) for line in lines[1:])


def _split_lines(file: SourceFile, chunks: Iterator[bytes]) -> Iterator[Block]:
    line, offset, rest = 1, 0, b""
    first, skipping, skipped = True, False, 0
    for chunk in chunks:
        if first:
            first = False
            if chunk.startswith(_BOM):
                chunk, offset = chunk[len(_BOM) :], len(_BOM)
        if skipping:
            before, newline, chunk = chunk.partition(b"\n")
            skipped += len(before)
            if not newline:
                continue
            yield Block(file, [b""], line, offset, "line_too_long")
            line, offset, skipping = line + 1, offset + skipped + 1, False
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        if lines:
            yield Block(file, lines, line, offset)
            line += len(lines)
            offset += sum(map(len, lines)) + len(lines)
        if len(rest) > MAX_LINE_BYTES:
            skipping, skipped, rest = True, len(rest), b""
    if skipping:
        yield Block(file, [b""], line, offset, "line_too_long")
    elif rest:
        yield Block(file, [rest], line, offset)


def _read_chunks(file: SourceFile, read: ByteCount) -> Iterator[bytes]:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(file.path, flags)
    except OSError as error:
        raise InputError(
            "the file can't be opened",
            code="unreadable_file",
            place=file.name,
            remedy="Check its permissions and that it is still there.",
        ) from error
    with open(descriptor, "rb", buffering=0) as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError(
                "not a regular file",
                code="not_a_regular_file",
                place=file.name,
                remedy="Put plain files into the source folder.",
            )
        magic = stream.read(2)
        stream.seek(0)
        if magic == _GZIP_MAGIC or file.name.lower().endswith(".gz"):
            yield from _decompress(file, stream, read)
            return
        while chunk := stream.read(_WRITE_BYTES):
            read.total += len(chunk)
            yield chunk


def _decompress(file: SourceFile, stream: BinaryIO, read: ByteCount) -> Iterator[bytes]:
    """Decompressed chunks; several gzip members and zero padding are allowed, garbage is not."""
    member = zlib.decompressobj(wbits=31)
    bytes_in = bytes_out = 0
    pending = b""
    complete = False  # the last member met its end
    while True:
        if not pending:
            pending = stream.read(_READ_BYTES)
            if not pending:
                break
            bytes_in += len(pending)
            read.total += len(pending)
        if complete:
            pending = pending.lstrip(b"\0")
            if not pending:
                continue
            member, complete = zlib.decompressobj(wbits=31), False
        try:
            chunk = member.decompress(pending, _WRITE_BYTES)
        except zlib.error as error:
            raise _corrupt(file) from error
        complete = member.eof
        pending = member.unused_data if complete else member.unconsumed_tail
        bytes_out += len(chunk)
        if bytes_out > max(_RATIO_FREE_BYTES, bytes_in * MAX_GZIP_RATIO):
            raise LimitExceeded(
                f"a gzip file swells more than {MAX_GZIP_RATIO} fold",
                code="gzip_bomb",
                place=file.name,
                remedy="Decompress it yourself if you trust it.",
            )
        if chunk:
            yield chunk
    if not complete:
        raise _corrupt(file)


def _corrupt(file: SourceFile) -> FormatError:
    return FormatError(
        "the gzip stream is cut short or corrupt",
        code="truncated_gzip",
        place=file.name,
        remedy="Copy the file again from the export, then run once more.",
    )
