"""Site robustness: embeddings of known make get the index they must."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import StandardScaler

from tsfm.errors import InputError
from tsfm.evaluation.site_robustness import nearest_neighbours, probe_auroc, site_robustness


@dataclass(frozen=True)
class Stays:
    outcome: np.ndarray
    site: np.ndarray
    subject: np.ndarray
    noise: np.ndarray


@pytest.fixture(scope="module")
def stays() -> Stays:
    """600 rows of 300 subjects at three sites; the outcome is independent of the site."""
    rng = np.random.default_rng(0)
    subject = np.arange(600) // 2
    site = np.array(["north", "south", "west"])[(subject % 3)]
    return Stays(rng.integers(0, 2, 600), site, subject, rng.normal(size=(600, 8)))


def one_hot(column: np.ndarray) -> np.ndarray:
    return (column[:, None] == np.unique(column)).astype(float)


def measure(embedding: np.ndarray, stays: Stays, **more):
    return site_robustness(embedding, stays.outcome, stays.site, stays.subject, **{"n": 50, **more})


def test_an_embedding_of_the_site_alone_has_index_zero(stays: Stays) -> None:
    found = measure(one_hot(stays.site) + 1e-3 * stays.noise[:, :3], stays)
    assert found.index.value == 0
    assert found.index.high == 0
    assert found.site_auroc > 0.999
    assert abs(found.outcome_auroc - 0.5) < 0.08


def test_an_embedding_of_the_outcome_alone_has_index_one(stays: Stays) -> None:
    found = measure(one_hot(stays.outcome) + 1e-3 * stays.noise[:, :2], stays)
    assert found.index.value == 1
    assert found.index.low == 1
    assert found.outcome_auroc > 0.999
    assert abs(found.site_auroc - 0.5) < 0.08


def test_an_embedding_of_neither_has_the_index_of_chance(stays: Stays) -> None:
    found = measure(stays.noise, stays)
    assert found.index.low < found.by_chance < found.index.high
    # Same outcome 1/2, same site 1/3: (1/2 * 2/3) / (1/2 * 2/3 + 1/2 * 1/3).
    assert found.by_chance == pytest.approx(2 / 3, abs=0.02)
    assert abs(found.site_auroc - 0.5) < 0.08
    assert "by chance 0.67" in found._repr_html_()


def test_the_more_of_the_site_the_lower_the_index(stays: Stays) -> None:
    indices = []
    for weight in (0.0, 0.5, 1.0, 2.0, 4.0):
        signal = np.hstack([one_hot(stays.outcome), weight * one_hot(stays.site)])
        # A common scale of noise, so that standardising does not undo the weight.
        embedding = signal + 0.7 * stays.noise[:, : signal.shape[1]]
        indices.append(measure(embedding, stays, n=2).index.value)
    assert indices == sorted(indices, reverse=True)
    assert indices[0] > 0.75 > 0.6 > indices[-1]


def test_chance_is_counted_over_pairs_of_different_subjects(stays: Stays) -> None:
    part = slice(0, 80)
    outcome, site, subject = stays.outcome[part], stays.site[part], stays.subject[part]
    found = site_robustness(stays.noise[part], outcome, site, subject, n_neighbours=500, n=2)
    different = subject[:, None] != subject
    same_outcome, same_site = outcome[:, None] == outcome, site[:, None] == site
    state = (different & same_outcome & ~same_site).sum()
    place = (different & ~same_outcome & same_site).sum()
    assert found.by_chance == pytest.approx(state / (state + place))
    # All rows as neighbours: the index is that of chance.
    assert found.index.value == pytest.approx(found.by_chance)


def test_neighbours_are_those_of_scikit_learns_cosine(stays: Stays) -> None:
    x = stays.noise[:90] * np.array([1, 5, 0.1, 1, 1, 20, 1, 1])
    likeness = cosine_similarity(StandardScaler().fit_transform(x))
    likeness[stays.subject[:90, None] == stays.subject[:90]] = -np.inf
    expected = np.argsort(-likeness, axis=1)[:, :7]
    np.testing.assert_array_equal(nearest_neighbours(x, stays.subject[:90], 7), expected)


def test_rows_of_a_subject_are_not_each_others_neighbours() -> None:
    x = np.array([[1.0, 0], [1.0, 0.01], [0, 1.0], [0.01, 1.0]])
    found = nearest_neighbours(x, [1, 1, 2, 2], 3)
    assert [sorted(row) for row in found.tolist()] == [
        [-1, 2, 3],
        [-1, 2, 3],
        [-1, 0, 1],
        [-1, 0, 1],
    ]


def test_a_probe_does_not_read_what_it_knows_of_a_subject(stays: Stays) -> None:
    # An embedding that names the subject, whose rows share a label: only leakage could read it.
    rng = np.random.default_rng(1)
    fingerprint = rng.normal(size=(300, 400))[stays.subject] + 0.01 * rng.normal(size=(600, 400))
    label = rng.integers(0, 2, 300)[stays.subject]
    assert abs(probe_auroc(fingerprint, label, stays.subject) - 0.5) < 0.1
    assert probe_auroc(fingerprint, label, np.arange(600)) > 0.8  # what a split of rows would say


def test_a_probe_finds_a_linear_direction(stays: Stays) -> None:
    label = (stays.noise @ np.arange(8) > 0).astype(int)
    assert probe_auroc(stays.noise, label, stays.subject) > 0.97


def test_what_can_not_be_judged_is_refused(stays: Stays) -> None:
    x, o, s, i = stays.noise, stays.outcome, stays.site, stays.subject
    for arguments, code in (
        ((x[:5], o, s, i), "bad_embedding"),
        ((x[:, 0], o, s, i), "bad_embedding"),
        ((np.where(x > 2, np.nan, x), o, s, i), "bad_embedding"),
        ((x, np.zeros(600), s, i), "single_class"),
        ((x, o, np.repeat("north", 600), i), "single_class"),
        ((x, np.where(np.arange(600) < 3, np.nan, o), s, i), "missing_value"),
        ((x, o, [None, *s[1:]], i), "missing_value"),
    ):
        with pytest.raises(InputError, match=code):
            site_robustness(*arguments)
    with pytest.raises(InputError, match="bad_n_neighbours"):
        nearest_neighbours(x, i, 0)
    with pytest.raises(InputError, match="nothing_to_probe"):
        probe_auroc(x[:4], o[:4], i[:4])
