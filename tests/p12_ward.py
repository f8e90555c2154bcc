"""A made-up ward in the tables of PhysioNet 2012, for the tests of its benchmarks."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

Row = tuple[int, int, str, float]
BENCHMARKS = str(Path(__file__).resolve().parents[1] / "benchmarks")


def load(name: str) -> Any:
    """The module `p12_<name>` of the benchmarks, which are scripts and no package."""
    if BENCHMARKS not in sys.path:
        sys.path.insert(0, BENCHMARKS)
    return importlib.import_module(f"p12_{name}")


def write(folder: Path, rows: list[Row], name: str = "a") -> Path:
    folder.mkdir(exist_ok=True)
    schema = {
        "record_id": pl.Int64, "minute": pl.Int32, "parameter": pl.String, "value": pl.Float32,
    }  # fmt: skip
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(
        folder / f"observations-{name}.parquet"
    )
    return folder


def ward(n_stays: int, seed: int = 0, first_id: int = 1) -> list[Row]:
    """Stays whose HR wanders about a level of their own; Lactate is seldom, MechVent is 1.

    TroponinI stands once in every second stay, often without any before the cut.
    """
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for stay in range(first_id, first_id + n_stays):
        rows += [(stay, 0, "Age", float(rng.integers(20, 90))), (stay, 0, "Weight", 70.0)]
        level = rng.normal(80, 15)
        minutes = np.sort(rng.choice(2880, 60, replace=False))
        troponin = rng.choice(minutes) if stay % 2 else -1
        for minute in minutes:
            rows.append((stay, int(minute), "HR", float(level + rng.normal(0, 3))))
            if rng.random() < 0.2:
                rows.append((stay, int(minute), "Lactate", float(rng.gamma(2.0))))
            if rng.random() < 0.3:
                rows.append((stay, int(minute), "MechVent", 1.0))
            if minute == troponin:
                rows.append((stay, int(minute), "TroponinI", float(rng.gamma(2.0))))
    return rows


def told(protocol: Any, points: Any) -> set[tuple[int, str, float, float]]:
    """Points in native units."""
    native = points.value * protocol.scale[points.variable] + protocol.location[points.variable]
    return {
        (int(protocol.record_ids[s]), protocol.variables[v], round(float(h), 4), round(float(x), 3))
        for s, v, h, x in zip(points.stay, points.variable, points.hours, native, strict=True)
    }
