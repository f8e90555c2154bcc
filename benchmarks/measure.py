"""Rows of a table that says what was measured, what it must be, and on which machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tsfm.kernels import native_library

WARM_UP_S = 0.05


@dataclass(frozen=True)
class Row:
    """One line of the table: `value` is to be at least, or at most, `must`."""

    name: str
    value: float | None
    must: float
    aim: float
    at_least: bool
    unit: str = "x"
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.must if self.at_least else self.value <= self.must


def medians_ms(works: dict[str, Callable[[], Any]], runs: int, rounds: int = 5) -> dict[str, float]:
    """Median time of each work; NaN for a peer that is not installed.

    The works take turns in rounds, so that what else the machine does for a moment meets all of
    them and moves no median. Each warms up for a while first: pools of threads spin on for some
    milliseconds after they were last used, and that is not the next work's doing.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            try:
                _times(work, WARM_UP_S, 1)
                times[name] += _times(work, 0.0, max(3, runs // rounds))
            except ImportError:
                times[name].append(float("nan"))
    return {name: statistics.median(found) * 1e3 for name, found in times.items()}


def _times(work: Callable[[], Any], least_seconds: float, least_runs: int) -> list[float]:
    times: list[float] = []
    while len(times) < least_runs or sum(times) < least_seconds:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return times


def show(rows: list[Row]) -> None:
    width = max(len(row.name) for row in rows)
    print(f"\n{'':{width}}  {'measured':>9}  {'must':>9}  {'aim':>9}")
    for row in rows:
        sign = ">=" if row.at_least else "<="
        value = "-" if row.value is None else number(row.value, row.unit)
        verdict = {True: "met", False: "MISSED", None: row.note or "not measured"}[row.met]
        must, aim = (f"{sign} {number(x, row.unit)}" for x in (row.must, row.aim))
        print(f"{row.name:{width}}  {value:>9}  {must:>9}  {aim:>9}  {verdict}")


def number(x: float, unit: str) -> str:
    return f"{x:.1e}" if x < 1e-3 else f"{x:.3g}{unit}"


def machine_line() -> str:
    """The same as one line for people."""
    return ", ".join(f"{name} {value}" for name, value in machine().items())


def machine() -> dict[str, Any]:
    names = (
        [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        if Path("/proc/cpuinfo").exists()
        else []
    )
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "kernels": native_library.describe(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
