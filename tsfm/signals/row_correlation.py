"""How alike shapes are: correlation of rows, by which beats are compared with a template."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Signal = npt.NDArray[np.float64]


def row_correlation(rows: Signal, to: Signal) -> Signal:
    """Correlation coefficient of each row with a template, or with the same row of another table.

    Args:
        rows: (row, point).
        to: (point,) or (row, point).

    Returns:
        (row,) from -1 to 1; 0 where either does not vary.
    """
    rows = rows - rows.mean(-1, keepdims=True)
    to = to - to.mean(-1, keepdims=True)
    size = np.sqrt((rows**2).sum(-1) * (to**2).sum(-1))
    return (rows * to).sum(-1) / np.maximum(size, 1e-12)
