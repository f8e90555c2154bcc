# pyright: strict
"""Numeric values on one scale, code by code, without cutting any of them off.

    z = asinh((x - median) / scale),   scale = interquartile range / 1.349

The inverse hyperbolic sine is linear near the median and logarithmic far from it: a value a hundred
times too large stays a number that a network can read, and can be turned back. Beside z each value
has the decile it falls in. Patients differ more from each other than from themselves an hour ago,
so changes have a scale of their own: the typical step between two successive values of one subject.
All are fitted on training subjects only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm.errors import ModelMismatch

N_BINS = 10
FILE_NAME = "value_scale.npz"
_IQR_OF_UNIT_NORMAL = 1.349
_ROWS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class ValueScale:
    """Median, scale and deciles of each code's values.

    Attributes:
        median: (V,) float32; NaN where training saw no value of the code.
        scale: (V,) float32, positive.
        edges: (V, N_BINS - 1) float32, ascending deciles.
        step: (V,) float32, positive: typical change of z between a subject's successive values.
    """

    median: NDArray[np.float32]
    scale: NDArray[np.float32]
    edges: NDArray[np.float32]
    step: NDArray[np.float32]

    def apply(
        self, ids: NDArray[np.int32], values: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """Standardise values.

        Args:
            ids: Token ids.
            values: Values in the codes' own units; NaN for none.

        Returns:
            z, NaN where there is no value or no scale for it; and the bin, 1 to `N_BINS`, 0 where
            z is NaN.
        """
        z = np.arcsinh((values - self.median[ids]) / self.scale[ids]).astype(np.float32)
        bins = np.zeros(len(ids), np.int8)
        for start in range(0, len(ids), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            above = values[part, None] > self.edges[ids[part]]
            bins[part] = 1 + above.sum(1, dtype=np.int8)
        bins[np.isnan(z)] = 0
        return z, bins

    def invert(self, ids: NDArray[np.int32], z: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values in the codes' own units from standardised ones."""
        return (np.sinh(z) * self.scale[ids] + self.median[ids]).astype(np.float32)

    def save(self, folder: str | Path) -> None:
        """Write `value_scale.npz` into a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        np.savez(
            Path(folder) / FILE_NAME,
            median=self.median,
            scale=self.scale,
            edges=self.edges,
            step=self.step,
        )

    @classmethod
    def load(cls, folder: str | Path, *, n_codes: int) -> ValueScale:
        """Read `value_scale.npz`; no pickled objects are accepted.

        Raises:
            ModelMismatch: Missing, unreadable or of another vocabulary's size.
        """
        path = Path(folder) / FILE_NAME
        try:
            with np.load(path, allow_pickle=False) as stored:
                scale = cls(
                    stored["median"].astype(np.float32),
                    stored["scale"].astype(np.float32),
                    stored["edges"].astype(np.float32),
                    stored["step"].astype(np.float32),
                )
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ModelMismatch(
                "no readable value scales",
                code="bad_value_scale",
                place=str(path),
                remedy="Use the folder as it was written by tsfm.",
            ) from error
        shapes = {x.shape for x in (scale.median, scale.scale, scale.step)}
        if shapes != {(n_codes,)} or scale.edges.shape != (n_codes, N_BINS - 1):
            raise ModelMismatch(
                f"value scales are not those of a vocabulary of {n_codes} codes",
                code="value_scale_size",
                place=str(path),
                remedy="Use the vocabulary folder as it was written by tsfm.",
            )
        return scale


def fit_value_scale(
    ids: NDArray[np.int32],
    values: NDArray[np.float32],
    *,
    n_codes: int,
    subjects: NDArray[np.int64] | None = None,
    min_values: int = 5,
) -> ValueScale:
    """Fit medians, scales, deciles and steps.

    Args:
        ids: Token ids of the training subjects' events that carry a value.
        values: Their values; infinities and NaN are left out.
        n_codes: Size of the vocabulary.
        subjects: Whose values they are, each subject's in order of time; without them every code's
            step is one.
        min_values: Codes with fewer values get no scale.
    """
    frame = pl.DataFrame({"id": ids, "x": values}).filter(pl.col("x").is_finite())
    quantiles = [pl.col("x").quantile(q / N_BINS).alias(f"q{q}") for q in range(1, N_BINS)]
    stats = (
        frame.group_by("id")
        .agg(
            pl.len().alias("n"),
            pl.col("x").median().alias("median"),
            (pl.col("x").quantile(0.75) - pl.col("x").quantile(0.25)).alias("iqr"),
            pl.col("x").std().alias("std"),
            *quantiles,
        )
        .filter(pl.col("n") >= min_values)
    )
    median = np.full(n_codes, np.nan, np.float32)
    scale = np.ones(n_codes, np.float32)
    edges = np.zeros((n_codes, N_BINS - 1), np.float32)
    at = stats["id"].to_numpy()
    median[at] = stats["median"].to_numpy()
    iqr = stats["iqr"].fill_null(0.0).to_numpy() / _IQR_OF_UNIT_NORMAL
    std = stats["std"].fill_null(0.0).to_numpy()
    # More than half of the values may be equal: then the spread of the others, else one unit.
    scale[at] = np.where(iqr > 0, iqr, np.where(std > 0, std, 1.0))
    for q in range(1, N_BINS):
        edges[at, q - 1] = stats[f"q{q}"].to_numpy()
    fitted = ValueScale(median, scale, edges, np.ones(n_codes, np.float32))
    if subjects is not None:
        z, _ = fitted.apply(ids, values)
        fitted.step[:] = _typical_steps(ids, z, subjects, n_codes, min_values)
    return fitted


def _typical_steps(
    ids: NDArray[np.int32],
    z: NDArray[np.float32],
    subjects: NDArray[np.int64],
    n_codes: int,
    min_values: int,
) -> NDArray[np.float32]:
    """Root mean square change between successive values, the largest hundredth left out."""
    steps = (
        pl.DataFrame({"id": ids, "z": z, "subject": subjects})
        .filter(pl.col("z").is_finite())
        .with_columns(pl.col("z").diff().over("subject", "id").abs().alias("step"))
        .drop_nulls("step")
        .group_by("id")
        .agg(
            pl.len().alias("n"),
            (pl.col("step").clip(upper_bound=pl.col("step").quantile(0.99)) ** 2)
            .mean()
            .sqrt()
            .alias("typical"),
        )
        .filter((pl.col("n") >= min_values) & (pl.col("typical") > 0))
    )
    found = np.ones(n_codes, np.float32)
    found[steps["id"].to_numpy()] = steps["typical"].to_numpy()
    return found
