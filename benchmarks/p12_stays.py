"""Made-up stays in the shape of PhysioNet 2012's tables, to run the benchmark without its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from p12_data import SERIES, STATIC


def write_stays(folder: Path, n_stays: int, seed: int) -> None:
    """Write `observations-made-up.parquet`: levels that drift, measured at hours of their own.

    Args:
        folder: Made if missing.
        n_stays: Stays.
        seed: Of all chance.
    """
    rng = np.random.default_rng(seed)
    columns: dict[str, list[np.ndarray]] = {n: [] for n in ("id", "minute", "parameter", "value")}
    for stay in range(n_stays):
        ill = rng.normal()
        for place, parameter in enumerate((*STATIC, *SERIES)):
            static = parameter in STATIC
            minutes = np.zeros(1, dtype=np.int64)
            if not static:
                minutes = np.sort(rng.choice(2880, rng.poisson(2 + 16 * (place % 3)), False))
            walk = rng.normal(size=len(minutes)).cumsum() * 0.3
            value = 50 + place + 5 * ill * np.cos(place) + walk
            if parameter == "MechVent":
                value = np.ones(len(minutes))
            columns["id"].append(np.full(len(minutes), 100_000 + stay))
            columns["minute"].append(minutes)
            columns["parameter"].append(np.full(len(minutes), parameter))
            columns["value"].append(value)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(
        {
            "record_id": joined["id"], "minute": joined["minute"].astype(np.int32),
            "parameter": joined["parameter"], "value": joined["value"].astype(np.float32),
        }
    ).write_parquet(folder / "observations-made-up.parquet")  # fmt: skip
