"""Coverage, counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tsfm.errors import InputError
from tsfm.forecasting.coverage import coverage_table


def test_shares_widths_and_counts_of_each_cell_are_those_by_hand() -> None:
    variable = np.array(["a", "a", "a", "b"])
    quantiles = np.array([[0.0, 1.0, 2.0]] * 3 + [[0.0, 5.0, 10.0]])
    truth = np.array([0.5, 3.0, 2.0, -1.0])
    table = coverage_table(
        variable, [1.0, 2.0, 3.0, 1.0], (0.1, 0.5, 0.9), quantiles, truth,
        groups=["p", "p", "q", "q"], lead_edges_hours=(2.0,),
    )  # fmt: skip
    found = {(row.variable, row.lead_bin): row for row in table}
    assert len(found) == 3 * 3
    assert found["a", None].below == (0.0, 0.25, 0.75)
    assert (found["a", None].covered, found["a", None].width) == ((0.75,), (2.0,))
    assert (found["a", 0].n_points, found["a", 0].n_groups, found["a", 0].covered) == (2, 1, (0.5,))
    assert found["b", None].width == (10.0,)
    assert found["b", 1].n_points == 0
    assert math.isnan(found["b", 1].covered[0])
    assert found[None, None].covered == (0.5,)
    assert math.isnan(found[None, None].width[0])


def test_of_nothing_all_variables_have_an_empty_cell() -> None:
    (row,) = coverage_table([], [], (0.1, 0.9), np.zeros((0, 2)), [], lead_edges_hours=())[-1:]
    assert (row.variable, row.lead_bin, row.n_points, row.n_ignored) == (None, None, 0, 0)
    assert all(math.isnan(share) for share in (*row.below, *row.covered, *row.width))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="cross"):
        coverage_table(["x"], [1.0], (0.1, 0.9), [[1.0, 0.0]], [0.5], lead_edges_hours=())
    with pytest.raises(InputError, match="do not fit"):
        coverage_table(["x"], [1.0, 2.0], (0.1, 0.9), [[0.0, 1.0]], [0.5], lead_edges_hours=())
