"""What reaches a terminal: progress on one, nothing but errors where there is none."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TASK = "readmission_30d"


@pytest.fixture
def terminal_commands(road: Any, tmp_path: Path) -> dict[str, list[str]]:
    """Two commands and the words of their progress bars."""
    source = str(road / "hospital" / "fhir")
    model, events = str(road / "model"), str(road / "events")
    return {
        "writing events": ["ingest", "fhir", source, "--out", str(tmp_path / "events")],
        f"score {TASK}": ["score", model, events, "--task", TASK, "--out", str(tmp_path / "run")],
    }


def read_terminal(descriptor: int) -> Iterator[bytes]:
    """What was written to a pseudo-terminal until its other side closed."""
    while True:
        try:
            block = os.read(descriptor, 4096)
        except OSError:  # Linux says so when nobody writes any more
            return
        if not block:
            return
        yield block


def test_progress_is_shown_on_a_terminal(terminal_commands: dict[str, list[str]]) -> None:
    for words, arguments in terminal_commands.items():
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        process = subprocess.Popen(
            [sys.executable, "-m", "tsfm.cli", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=theirs,
        )
        os.close(theirs)
        shown = b"".join(read_terminal(ours)).decode(errors="replace")
        os.close(ours)
        assert process.wait(timeout=120) == 0
        assert words in shown
        assert re.search(r"\d+%\|", shown)


def test_without_a_terminal_only_errors_reach_stderr(
    tsfm_script: Callable[..., Any], terminal_commands: dict[str, list[str]]
) -> None:
    for arguments in terminal_commands.values():
        ended = tsfm_script(*arguments)
        assert (ended.code, ended.stderr) == (0, "")
        assert ended.stdout
    again = tsfm_script(*terminal_commands["writing events"])
    assert (again.code, again.error_code, again.stdout) == (1, "output_exists", "")
