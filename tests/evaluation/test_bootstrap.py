"""Intervals that respect subjects."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import polars as pl
import pytest

from tsfm.errors import InputError
from tsfm.evaluation.bootstrap import bootstrap_interval, paired_difference
from tsfm.evaluation.discrimination import auroc, brier


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    p = generator.random(n)
    return (generator.random(n) < p).astype(float), p


def test_an_interval_repeats_with_its_seed_and_holds_its_value():
    y, p = drawn(400)
    first = bootstrap_interval(auroc, np.arange(400), y, p, 200, 3)
    assert first == bootstrap_interval(auroc, np.arange(400), y, p, 200, 3)
    assert first.low < first.value < first.high
    assert first.value == pytest.approx(auroc(y, p))
    assert first.n_used == first.n_drawn == 200


def test_the_width_is_that_of_the_standard_error():
    y = np.tile([0.0, 1.0], 200)
    p = np.zeros(400)  # the Brier score is then the mean of y
    found = bootstrap_interval(brier, np.arange(400), y, p, 4000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 400), rel=0.08)


def test_rows_copied_within_subjects_add_no_certainty():
    y, p = drawn(300)
    single = bootstrap_interval(auroc, np.arange(300), y, p, 500)
    copied = bootstrap_interval(
        auroc, np.repeat(np.arange(300), 4), np.repeat(y, 4), np.repeat(p, 4), 500
    )
    assert copied.high - copied.low == pytest.approx(single.high - single.low, rel=0.15)


def test_resamples_of_one_class_are_counted_out():
    found = bootstrap_interval(auroc, [1, 2, 3], [0, 0, 1], [0.1, 0.2, 0.3], 200)
    assert 0 < found.n_used < found.n_drawn == 200
    nothing = bootstrap_interval(auroc, [1, 2], [0, 0], [0.1, 0.2], 50)
    assert nothing.n_used == 0
    assert math.isnan(nothing.low)


def test_a_model_differs_from_itself_by_nothing():
    y, p = drawn(300)
    same = paired_difference(auroc, np.arange(300), y, p, p, 100)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_a_paired_interval_is_narrower_than_either_alone():
    y, p = drawn(500)
    worse = np.clip(p + np.random.default_rng(1).normal(0, 0.1, 500), 0, 1)
    difference = paired_difference(auroc, np.arange(500), y, p, worse, 300)
    alone = bootstrap_interval(auroc, np.arange(500), y, p, 300)
    assert difference.value == pytest.approx(auroc(y, p) - auroc(y, worse))
    assert difference.high - difference.low < alone.high - alone.low


def test_a_thousand_resamples_of_ten_thousand_rows_take_seconds():
    y, p = drawn(10_000)
    start = time.perf_counter()
    bootstrap_interval(auroc, np.arange(10_000) // 2, y, p, 1000)
    assert time.perf_counter() - start < 10


def test_every_row_needs_a_subject():
    with pytest.raises(InputError, match="unequal_lengths"):
        bootstrap_interval(auroc, [1], [0, 1], [0.1, 0.2], 10)


@pytest.mark.parametrize("level", [95, 0.0, 1.0, -0.5, math.nan])
def test_a_coverage_is_a_share(level: float):
    with pytest.raises(InputError, match="bad_level"):
        bootstrap_interval(auroc, [1, 2], [0, 1], [0.1, 0.2], 10, level=level)
    with pytest.raises(InputError, match="bad_level"):
        paired_difference(auroc, [1, 2], [0, 1], [0.1, 0.2], [0.2, 0.1], 10, level=level)


def test_a_single_subject_has_no_interval():
    y, p = drawn(50)
    for found in (
        bootstrap_interval(auroc, np.zeros(50), y, p),
        paired_difference(auroc, np.zeros(50), y, p, 1 - p),
    ):
        assert np.isfinite(found.value)
        assert np.isnan([found.low, found.high]).all()
        assert found.n_used == 0


@pytest.mark.parametrize(
    "ids",
    [[None, *range(39)], [float("nan")] * 20 + list(range(20)), ["a", None] * 20,
     ["a", 1.0] * 20, pl.Series([None] * 20 + list(range(20))),
     pl.Series([None] * 20 + list("abcde") * 4)],
    ids=["none", "nan", "names", "types", "series", "series of names"],
)  # fmt: skip
def test_rows_of_nobody_are_not_drawn_as_one_subject(ids: Any) -> None:
    y, p = drawn(40)
    for measure in (bootstrap_interval, paired_difference):
        with pytest.raises(InputError, match="missing_value"):
            measure(auroc, ids, y, *([p] if measure is bootstrap_interval else [p, p]), n=5)


@pytest.mark.parametrize("names", [list("ab") * 20, np.array(["a", "b"] * 20), [1, 2] * 20])
def test_subjects_may_be_names_or_numbers(names: Any) -> None:
    y, p = drawn(40)
    found = bootstrap_interval(brier, names, y, p, n=20)
    assert found == bootstrap_interval(brier, [0, 1] * 20, y, p, n=20)


@pytest.mark.parametrize("n", [-1, 2.5, True])
def test_a_number_of_resamples_that_is_none_is_refused(n: Any) -> None:
    y, p = drawn(40)
    with pytest.raises(InputError, match="bad_resamples"):
        bootstrap_interval(auroc, np.arange(40), y, p, n=n)
