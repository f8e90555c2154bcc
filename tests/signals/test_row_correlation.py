"""Correlation of rows is numpy's, with a template and row by row."""

import numpy as np

from tsfm.signals.row_correlation import row_correlation


def test_it_is_the_correlation_coefficient():
    rng = np.random.default_rng(0)
    rows, other = rng.standard_normal((2, 5, 30))
    one = [np.corrcoef(row, other[0])[0, 1] for row in rows]
    np.testing.assert_allclose(row_correlation(rows, other[0]), one)
    each = [np.corrcoef(a, b)[0, 1] for a, b in zip(rows, other, strict=True)]
    np.testing.assert_allclose(row_correlation(rows, other), each)


def test_what_does_not_vary_is_like_nothing():
    assert row_correlation(np.ones((1, 5)), np.arange(5.0))[0] == 0
