"""Made-up stays in the shape of PhysioNet 2012's tables, to run the benchmarks without its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from p12_data import SERIES, STATIC

from tsfm.ingest.physionet2012_tables import PARAMETERS

_DESCRIPTORS = {"Age": (54.0, 71.0), "Gender": (0.0, 1.0), "ICUType": (1.0, 3.0)}


def write_stays(folder: Path, n_stays: int, seed: int) -> None:
    """Write `observations-made-up.parquet` and `outcomes-made-up.parquet`.

    Levels drift within their plausible bounds, measured at hours of their own; the ill die more.

    Args:
        folder: Made if missing.
        n_stays: Stays.
        seed: Of all chance.
    """
    rng = np.random.default_rng(seed)
    columns: dict[str, list[np.ndarray]] = {n: [] for n in ("id", "minute", "parameter", "value")}
    illness = rng.normal(size=n_stays)
    for stay, ill in enumerate(illness):
        for place, parameter in enumerate((*STATIC, *SERIES)):
            static = parameter in STATIC
            minutes = np.zeros(1, dtype=np.int64)
            if not static:
                minutes = np.sort(rng.choice(2880, rng.poisson(2 + 16 * (place % 3)), False))
            walk = rng.normal(size=len(minutes)).cumsum() * 0.3
            if parameter in PARAMETERS:
                low, high = PARAMETERS[parameter].low, PARAMETERS[parameter].high
                share = 0.4 + 0.1 * ill * np.cos(place) + 0.03 * walk
                value = low + (high - low) * np.clip(share, 0.01, 0.99)
            else:
                value = np.full(len(minutes), _DESCRIPTORS[parameter][stay % 2])
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
    died = rng.random(n_stays) < 1 / (1 + np.exp(1.0 - 2 * illness))
    days = 2 + rng.integers(0, 12, n_stays)
    pl.DataFrame(
        {
            "record_id": 100_000 + np.arange(n_stays), "SAPS-I": np.full(n_stays, -1),
            "SOFA": np.full(n_stays, -1), "Length_of_stay": days,
            "Survival": np.where(died, days, -1), "In-hospital_death": died.astype(np.int64),
        }
    ).write_parquet(folder / "outcomes-made-up.parquet")  # fmt: skip
