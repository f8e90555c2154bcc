"""A long frame of stays, and how its columns are called."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

LONG: dict[str, Any] = {
    "id_column": "stay", "timestamp_column": "hours", "target": "value", "variable_column": "name",
    "time_unit": "h",
}  # fmt: skip


def long_frame() -> pl.DataFrame:
    """Eight stays with two variables and a covariate, unsorted."""
    rng = np.random.default_rng(1)
    return pl.DataFrame({
        "stay": np.repeat(np.arange(8, dtype=np.int32), 20),
        "hours": rng.uniform(0, 48, 160),
        "name": rng.choice(["HR", "K"], 160),
        "value": rng.normal(size=160) + 4.0,
        "dose": rng.normal(5.0, 2.0, 160),
    })  # fmt: skip
