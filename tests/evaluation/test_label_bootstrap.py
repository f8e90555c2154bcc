"""Macro AUROC with intervals that keep rare labels."""

from typing import Any

import numpy as np
import pytest

from tsfm.errors import InputError
from tsfm.evaluation.discrimination import auroc
from tsfm.evaluation.label_bootstrap import (
    macro_auroc,
    macro_auroc_interval,
    paired_macro_difference,
)


def _case(n=200, labels=3, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random((n, labels)) < [0.5, 0.2, 0.02][:labels]).astype(int)
    y[0], y[1] = 1, 0
    return y, np.round(y + rng.normal(0, 1.5, y.shape), 1)  # rounded: ties


def test_it_is_the_mean_of_the_labels_own_auroc():
    y, p = _case()
    expected = np.mean([auroc(y[:, j], p[:, j]) for j in range(3)])
    assert macro_auroc(y, p) == pytest.approx(expected)


def test_a_label_of_one_kind_is_left_out():
    y, p = _case(labels=2)
    more = np.column_stack([y, np.zeros(len(y), int)])
    assert macro_auroc(more, np.column_stack([p, p[:, 0]])) == pytest.approx(macro_auroc(y, p))


def test_the_interval_holds_the_point_although_a_label_is_rare():
    y, p = _case()
    found = macro_auroc_interval(y, p, n_resamples=400)
    assert found.low < found.value < found.high
    assert found.n_used == 400


def test_a_model_against_itself_differs_by_nothing():
    y, p = _case()
    found = paired_macro_difference(y, p, p)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_a_better_model_is_better_with_certainty():
    y, p = _case()
    found = paired_macro_difference(y, y + 0.1 * p, p)
    assert found.low > 0


def test_scores_that_are_not_finite_are_refused():
    y, p = _case()
    p[3, 1] = np.nan
    with pytest.raises(InputError):
        macro_auroc(y, p)
    with pytest.raises(InputError, match="both kinds"):
        macro_auroc(np.zeros((5, 2)), np.zeros((5, 2)))


@pytest.mark.parametrize("label", [np.nan, 2.0])
def test_a_label_that_is_not_known_is_no_negative(label: float) -> None:
    y = np.array([[1.0], [0.0], [label]])
    with pytest.raises(InputError, match="bad_label"):
        macro_auroc(y, np.array([[0.8], [0.1], [0.9]]))


def test_draws_and_levels_that_are_none_are_refused_and_no_draws_have_no_ends() -> None:
    y, p = _case()
    refused: list[tuple[dict[str, Any], str]] = [
        ({"level": 2.0}, "bad_level"), ({"n_resamples": -1}, "bad_resamples"),
    ]  # fmt: skip
    for options, code in refused:
        with pytest.raises(InputError, match=code):
            macro_auroc_interval(y, p, **options)
        with pytest.raises(InputError, match=code):
            paired_macro_difference(y, p, p, **options)
    none = macro_auroc_interval(y, p, n_resamples=0)
    assert np.isnan([none.low, none.high]).all()
    assert none.value == macro_auroc(y, p)
