"""One small hospital taken the whole road by the command line, once for all tests of it.

The commands run in this process, through the same `main` as the installed script.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tsfm import cli

TASKS = ("readmission_30d", "mortality_in_hospital", "length_of_stay_7d")
TASK = TASKS[0]
SMALL = ("--epochs", "1", "--d-model", "16", "--layers", "1", "--max-tokens", "4096")


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it said."""

    code: int
    stdout: str
    stderr: str

    @property
    def error_code(self) -> str:
        """Code of the one line on stderr."""
        lines = self.stderr.splitlines()
        found = re.fullmatch(r"tsfm: \[(\w+)\] .+", lines[0]) if len(lines) == 1 else None
        assert found, self.stderr
        return found[1]


def run_tsfm(*arguments: object) -> Ended:
    """Run a command in this process as the installed script does."""
    out, err = io.StringIO(), io.StringIO()
    before, mask = sys.argv, os.umask(0o022)
    sys.argv = ["tsfm", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv = before
        os.umask(mask)
    code = ended.value.code
    return Ended(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


def run_script(*arguments: object) -> Ended:
    """Run a command in a process of its own, without a terminal."""
    command = [sys.executable, "-m", "tsfm.cli", *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, timeout=120, text=True, check=False)
    return Ended(process.returncode, process.stdout, process.stderr)


@pytest.fixture(scope="session")
def tsfm() -> Callable[..., Ended]:
    """Return the function that runs a command."""
    return run_tsfm


@pytest.fixture(scope="session")
def tsfm_script() -> Callable[..., Ended]:
    """Return the function that runs a command in a process of its own."""
    return run_script


@dataclass(frozen=True)
class Road:
    """Folders of a hospital that went the whole road, and what each command said."""

    root: Path
    said: dict[str, Ended]

    def __truediv__(self, name: str) -> Path:
        return self.root / name

    def table(self, name: str) -> pl.DataFrame:
        """A parquet file below the root."""
        return pl.read_parquet(self.root / name)

    @property
    def run(self) -> dict[str, Any]:
        """The scoring run's manifest."""
        return json.loads((self.root / "run" / "run.json").read_text())


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    root = tmp_path_factory.mktemp("road")
    said: dict[str, Ended] = {}

    def walk(name: str, *arguments: object) -> None:
        said[name] = run_tsfm(*arguments)
        assert said[name].code == 0, said[name]

    hospital, events, model = root / "hospital", root / "events", root / "model"
    walk("simulate", "simulate", "--out", hospital, "--patients", 90, "--seed", 1)
    walk("fhir", "ingest", "fhir", hospital / "fhir", "--out", events)
    shutil.copytree(events, root / "events_without_signals")
    records = hospital / "wfdb" / "records.csv"
    walk("wfdb", "ingest", "wfdb", hospital / "wfdb", "--out", events, "--subjects", records)
    walk("tokenize", "tokenize", events, "--out", root / "tokens")
    for task in TASKS:
        walk(f"label {task}", "label", events, "--task", task, "--out", root / "labels", "--json")
    walk("pretrain", "pretrain", root / "tokens", "--out", root / "pretrained", *SMALL)
    walk(
        "finetune", "finetune", root / "pretrained", root / "tokens", "--labels", root / "labels",
        "--task", TASK, "--out", model, "--epochs", 1,
    )  # fmt: skip
    walk("score", "score", model, events, "--task", TASK, "--out", root / "run")
    walk(
        "evaluate", "evaluate", root / "run", "--events", events, "--split", "held_out",
        "--baselines", "--json",
    )  # fmt: skip
    walk("report", "report", root / "run", "--capacity", 0.2)
    return Road(root, said)
