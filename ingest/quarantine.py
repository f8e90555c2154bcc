# pyright: strict
"""Rows that can't be used, set aside and counted instead of lost.

A quarantined row is written to `quarantine/<reason>.ndjson` as its place and a hash: of NDJSON the
file, line, byte offset and bytes, of a table the file, the number of the row and the columns that
are read. Its contents stay in the source, where access to them is already governed; no value, name
or date of a patient is copied.
"""

from __future__ import annotations

import hashlib
import json
from io import TextIOWrapper
from pathlib import Path
from typing import Any, cast

from tsfm.errors import InputError


def check_largest_share(max_quarantined: float) -> None:
    """Refuse what is no share: compared with no number, no share of rows would be too large.

    Raises:
        InputError: `bad_max_quarantined`.
    """
    if not 0 <= max_quarantined <= 1:
        raise InputError(
            "the largest share set aside is not between 0 and 1",
            code="bad_max_quarantined",
            place="--max-quarantined",
            remedy="Give a share such as 0.5.",
        )


class Quarantine:
    """Counts unusable rows by reason and writes where they are.

    Args:
        root: Root of the data set; `quarantine/` is made below it when the first row comes.
        append: Keep what an earlier source of the same data set had set aside.
    """

    def __init__(self, root: str | Path, *, append: bool = False) -> None:
        """Start with nothing set aside."""
        self._mode = "a" if append else "w"
        self.folder = Path(root) / "quarantine"
        self.counts: dict[str, int] = {}
        self._files: dict[str, TextIOWrapper] = {}

    def add(
        self,
        reason: str,
        *,
        file: str,
        line: int | None = None,
        offset: int | None = None,
        raw: bytes | None = None,
        kind: str | None = None,
        rows: int = 1,
    ) -> None:
        """Set a row aside.

        Args:
            reason: Stable snake_case reason code; names the file it is written to.
            file: File name within the source, without folders above it.
            line: Line number, from 1; of a table the number of the row, `csv_rows.LINE`.
            offset: Byte offset in the (uncompressed) file, where it is known.
            raw: The row's bytes, or its columns that are read: only their hash is kept.
            kind: Resource type or table.
            rows: How many source rows this stands for.
        """
        self.counts[reason] = self.counts.get(reason, 0) + rows
        entry: dict[str, Any] = {"file": file}
        if line is not None:
            entry["line"] = line
        if offset is not None:
            entry["offset"] = offset
        if kind is not None:
            entry["kind"] = kind
        if rows != 1:
            entry["rows"] = rows
        if raw is not None:
            entry["blake2b"] = hashlib.blake2b(raw, digest_size=16).hexdigest()
        self._open(reason).write(json.dumps(entry) + "\n")

    def _open(self, reason: str) -> TextIOWrapper:
        if reason not in self._files:
            if not reason.replace("_", "").isalnum():
                raise InputError("a quarantine reason is one word", code="bad_reason")
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{reason}.ndjson"
            self._files[reason] = cast(TextIOWrapper, path.open(self._mode, encoding="utf-8"))
        return self._files[reason]

    @property
    def total(self) -> int:
        """Rows set aside so far."""
        return sum(self.counts.values())

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()
