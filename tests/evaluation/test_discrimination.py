"""Ranking measures against scikit-learn, and alerts counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from tsfm.errors import InputError
from tsfm.evaluation.discrimination import alerts_at_capacity, auprc, auroc, brier

# A coarse grid makes ties the rule.
rows = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=60)


@settings(max_examples=200, deadline=None)
@given(rows)
def test_measures_equal_scikit_learn_with_ties(pairs):
    y = np.array([label for label, _ in pairs])
    p = np.array([score / 8 for _, score in pairs])
    assert brier(y, p) == pytest.approx(np.mean((y - p) ** 2))
    if 0 < y.sum() < len(y):
        assert auroc(y, p) == pytest.approx(metrics.roc_auc_score(y, p))
        assert auprc(y, p) == pytest.approx(metrics.average_precision_score(y, p))
        assert auroc(y, -p) == pytest.approx(1 - auroc(y, p))


def test_what_is_not_defined_is_nan():
    assert math.isnan(auroc([1, 1], [0.2, 0.3]))
    assert math.isnan(auprc([0, 0], [0.2, 0.3]))
    assert math.isnan(brier([], []))


def test_bad_vectors_are_refused():
    with pytest.raises(InputError, match="unequal"):
        auroc([0, 1], [0.1])
    with pytest.raises(InputError, match="nan_score"):
        auroc([0, 1], [0.1, float("nan")])
    with pytest.raises(InputError, match="bad_label"):
        auroc([0, 2], [0.1, 0.2])


def test_alerts_are_the_highest_scores():
    y = [0, 1, 0, 1, 0, 0, 0, 0, 0, 1]
    p = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05]
    alerts = alerts_at_capacity(y, p, 4)
    assert (alerts.threshold, alerts.n_alerts, alerts.true_positives) == (0.6, 4, 2)
    assert alerts.ppv == 0.5
    assert alerts.sensitivity == pytest.approx(2 / 3)
    assert alerts.number_needed_to_evaluate == 2
    assert alerts_at_capacity(y, p, 0.4) == alerts
    assert alerts_at_capacity(y, p, 1.0).sensitivity == 1.0
    assert alerts_at_capacity(y, p, 1).number_needed_to_evaluate == math.inf


@pytest.mark.parametrize(
    ("share", "n", "expected"), [(0.07, 100, 7), (0.071, 100, 8), (1e-12, 5, 1)]
)
def test_a_share_is_rounded_up_and_not_past_itself(share, n, expected):
    assert alerts_at_capacity([1, *[0] * (n - 1)], list(range(n)), share).n_alerts == expected


def test_alerts_that_tie_are_a_fair_draw():
    alerts = alerts_at_capacity([1, 0, 1, 0], [0.9, 0.5, 0.5, 0.5], 2)
    assert alerts.n_alerts == 2
    assert alerts.true_positives == pytest.approx(1 + 1 / 3)


@pytest.mark.parametrize("capacity", [0, -1, 0.0, 1.5])
def test_a_capacity_must_make_sense(capacity):
    with pytest.raises(InputError, match="bad_capacity"):
        alerts_at_capacity([0, 1], [0.1, 0.2], capacity)
