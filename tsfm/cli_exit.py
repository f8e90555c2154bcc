"""How a command ends that does not end well: one line on stderr, and an exit code."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import typer

from tsfm.errors import InputError, TsfmError

TRACEBACK = "TSFM_TRACEBACK"
"""Environment variable that asks for the whole trace of an error nobody foresaw."""
USAGE, STOPPED = 2, 130
"""Exit codes of wrong usage and of a command that was stopped by hand."""


@contextmanager
def note_interrupts() -> Iterator[threading.Event]:
    """Note Ctrl-C while a command runs, and let it stop the command as ever."""
    interrupted = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.default_int_handler(number, frame)

    # Who ignores interrupts, such as a job in the background, goes on ignoring them.
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if is_ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def tell_stopped() -> int:
    """Write how to go on after Ctrl-C, and return the exit code."""
    typer.echo(
        "tsfm: stopped; run the same command again: a training goes on where it stopped, anything "
        "else begins anew and says if something is to be removed before",
        err=True,
    )
    return STOPPED


def tell_error(error: Exception) -> int:
    """Write an error's one line, and return the exit code."""
    if isinstance(error, TsfmError):
        typer.echo(f"tsfm: {error}", err=True)
        is_usage = isinstance(error, InputError) and error.place.startswith("--")
        return USAGE if is_usage else error.exit_code
    if isinstance(error, OSError):
        place = f" ({error.filename})" if error.filename else ""
        what, remedy = error.strerror, "Check the path, its permissions and the free space."
        # A folder that is there already is no error, so what exists is a file.
        if isinstance(error, FileExistsError | NotADirectoryError):
            what, remedy = "a file stands where a folder is needed", "Choose another folder."
        typer.echo(
            f"tsfm: [unusable_path] {what or 'the system refused'}{place}. {remedy}", err=True
        )
        return 1
    if os.environ.get(TRACEBACK):
        raise error
    typer.echo(
        f"tsfm: [unexpected] {type(error).__name__} in {_place_of(error)}. This is a fault of "
        f"tsfm: please report it. {TRACEBACK}=1 shows the whole trace, which may quote data.",
        err=True,
    )
    return 1


def _place_of(error: BaseException) -> str:
    """File and line where an error arose, the last one of our own if there is one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"
