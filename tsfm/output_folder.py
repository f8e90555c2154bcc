"""The folder that a data set is written into: claimed empty, filled out of sight, shown whole.

All is written below one hidden folder and takes its place when everything is there, the events
last: a reader finds a whole table or none, also where a run was killed. The claim is a lock that
ends with its process, which tells what a dead run left from what a live one writes: the first is
cleared by the next run, the second refused. So is a folder that holds anything else.

This file knows names of folders and files, not what is in them. `quarantine/` and `signals/` are
written by others beside it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from tsfm.errors import InputError

SIGNALS = "signals"
_HIDDEN = ".unfinished-"
_SPILL = "spill"
_SHOWN = (SIGNALS, "metadata", "data")
"""In the order in which they take their places: a reader looks for the events first."""
_NOTE = "shown-"
"""Begins the name of an empty file that says that a run was about to put something in its place."""
_CHUNKS = re.compile(r"[0-9]+-[0-9]{6}\.parquet")
_OF_THE_SYSTEM = {"lost+found", ".DS_Store"}
_METADATA = {"codes.parquet", "subject_splits.parquet", "subject_ids.parquet", "dataset.json"}


def check_apart(source: str | Path, out: str | Path) -> None:
    """Check that neither of two folders lies in the other, nor is it.

    Raises:
        InputError: `output_inside_source`.
    """
    one, other = Path(source).resolve(), Path(out).resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise InputError(
            "the output folder and the source folder lie one in the other",
            code="output_inside_source",
            place=str(out),
            remedy="Choose a folder elsewhere: a source is never written into.",
        )


class OutputFolder:
    """A folder claimed for one data set; call `show` when all is written, and always `close`.

    Args:
        root: Root of the data set; made where it is missing.
        with_signals: Whether it may hold signals, as it does where waveforms are read first.

    Attributes:
        root: The same.
        unfinished: Hidden folder in which `data/`, `metadata/` and `signals/` are made.
        spill: Folder in it for what is not shown.
    """

    def __init__(self, root: str | Path, *, with_signals: bool) -> None:
        """Refuse a folder in use; clear what dead runs left.

        Raises:
            InputError: `output_exists` or `output_in_use`.
        """
        self.root = Path(root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise InputError(
                "the output folder, or one above it, is no folder",
                code="output_exists",
                place=str(self.root),
                remedy="Choose another --out.",
            ) from None
        self._lock = _lock(self.root)
        try:
            self._clear(with_signals)
            self.unfinished = Path(tempfile.mkdtemp(prefix=_HIDDEN, dir=self.root))
            self.spill = self.unfinished / _SPILL
            self.spill.mkdir()
        except BaseException:
            self._release()
            raise

    def show(self) -> None:
        """Put what was written in its place."""
        shutil.rmtree(self.spill)
        for name in _SHOWN:
            if (self.unfinished / name).exists():
                (self.unfinished / (_NOTE + name)).touch()  # of a killed run, all that tells
                os.rename(self.unfinished / name, self.root / name)

    def close(self) -> None:
        """Remove what was not shown and end the claim."""
        shutil.rmtree(self.unfinished, ignore_errors=True)
        self._release()

    def _clear(self, with_signals: bool) -> None:
        left = [path for path in self.root.iterdir() if _is_left_over(path)]
        # Of a run that was killed before its events took their place.
        if any((path / "data").is_dir() for path in left):
            left += [self.root / name for name in _SHOWN[:-1] if self._was_shown(name, left)]
        foreign = [
            path.name
            for path in self.root.iterdir()
            if path not in left
            and path.name not in _OF_THE_SYSTEM
            and not _is_beside(path, with_signals)
        ]
        if foreign or (left and self._lock is None):
            raise _exists(self.root)
        # The hidden folders last: their notes are all that tells what a killed run had shown.
        for path in reversed(left):
            shutil.rmtree(path)

    def _was_shown(self, name: str, left: list[Path]) -> bool:
        """Whether a run whose rest is left had put this in its place."""
        shown = self.root / name
        if not _is_folder(shown) or not any(
            (path / (_NOTE + name)).exists() and not (path / name).exists() for path in left
        ):
            return False
        if name == SIGNALS:
            return _is_store(shown)
        return set(os.listdir(shown)) <= _METADATA

    def _release(self) -> None:
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # a forked child would hold it open
            os.close(self._lock)
            self._lock = None


def _lock(folder: Path) -> int | None:
    """Descriptor that holds the folder's lock; None where the file system knows none."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise InputError(
                "another run writes into the output folder",
                code="output_in_use",
                place=str(folder),
                remedy="Wait for its end, or choose another --out.",
            ) from None
        return None
    return descriptor


def _exists(root: Path) -> InputError:
    return InputError(
        "the output folder is not empty",
        code="output_exists",
        place=str(root),
        remedy="Choose another --out, or remove the old one.",
    )


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_left_over(path: Path) -> bool:
    """Whether this is a hidden folder that a run removes at its end."""
    if not _is_folder(path):
        return False
    if path.name.startswith(".spill-"):  # of an earlier version
        return all(_CHUNKS.fullmatch(name) for name in os.listdir(path))
    own = {_SPILL, *_SHOWN, *(_NOTE + name for name in _SHOWN)}
    return path.name.startswith(_HIDDEN) and set(os.listdir(path)) <= own


def _is_store(path: Path) -> bool:
    return {"index.parquet", "manifest.json"} <= set(os.listdir(path))


def _is_beside(path: Path, with_signals: bool) -> bool:
    """Whether this may lie beside a table that is not there yet."""
    if not _is_folder(path):
        return False
    if path.name == SIGNALS:
        return with_signals and _is_store(path)
    if path.name == "quarantine":
        return all(_is_quarantine(file) for file in path.iterdir())
    # A store of signals that is being written, or was: not ours to clear.
    return re.fullmatch(r"\.signals-\w+", path.name) is not None


def _is_quarantine(path: Path) -> bool:
    """Whether a file lists rows that an ingest run set aside."""
    if path.suffix != ".ndjson" or path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        line = file.readline(2**16)
    try:
        return not line or "file" in dict(json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return False
