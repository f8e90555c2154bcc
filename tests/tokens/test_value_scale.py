"""Values are scaled code by code, none is cut off, and all can be turned back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsfm.tokens.value_scale import ValueScale, fit_value_scale

RNG = np.random.default_rng(0)
IDS = np.repeat(np.array([1, 2, 3], np.int32), [500, 500, 3])
VALUES = np.concatenate(
    [RNG.normal(12, 1.5, 500), RNG.lognormal(3, 1, 500), [1.0, 2.0, 3.0]]
).astype(np.float32)


@pytest.fixture(scope="module")
def scale() -> ValueScale:
    return fit_value_scale(IDS, VALUES, n_codes=5)


def test_the_median_is_zero_and_the_bins_are_deciles(scale: ValueScale) -> None:
    for code in (1, 2):
        own = code == IDS
        z, bins = scale.apply(IDS[own], VALUES[own])
        assert abs(float(np.median(z))) < 1e-6
        assert np.bincount(bins, minlength=11)[1:].tolist() == pytest.approx([50] * 10, abs=2)


def test_a_code_with_too_few_values_carries_none(scale: ValueScale) -> None:
    z, bins = scale.apply(np.array([3, 4], np.int32), np.array([2.0, 2.0], np.float32))
    assert np.isnan(z).all()
    assert bins.tolist() == [0, 0]


def test_no_value_is_no_bin(scale: ValueScale) -> None:
    z, bins = scale.apply(np.array([1], np.int32), np.array([np.nan], np.float32))
    assert np.isnan(z[0])
    assert bins[0] == 0


@given(st.floats(-1e6, 1e6, width=32))
def test_values_far_out_are_kept_and_turned_back(value: float) -> None:
    scale = fit_value_scale(IDS, VALUES, n_codes=5)
    ids = np.array([1], np.int32)
    z, _ = scale.apply(ids, np.array([value], np.float32))
    assert np.isfinite(z[0])
    assert scale.invert(ids, z)[0] == pytest.approx(value, rel=1e-4, abs=1e-4)


def test_a_constant_code_has_a_scale() -> None:
    scale = fit_value_scale(np.ones(20, np.int32), np.full(20, 7.0, np.float32), n_codes=2)
    z, _ = scale.apply(np.ones(2, np.int32), np.array([7.0, 8.0], np.float32))
    assert z[0] == 0
    assert np.isfinite(z[1])
