"""Trees in arrays score as LightGBM does, to the last bit, and forged ones are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tsfm.errors import InputError, ModelMismatch
from tsfm.models.boosted_trees import BoostedTrees, from_lightgbm

lightgbm = pytest.importorskip("lightgbm")

MISSING: dict[str, dict[str, bool]] = {
    "NaN": {}, "zero and NaN": {"zero_as_missing": True}, "nothing": {"use_missing": False},
}  # fmt: skip


def some_rows(seed: int, n: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """Rows with NaN, zeros and infinities, and three of four classes that depend on them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8)).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    x[rng.random(n) < 0.5, 3] = 0.0
    x[rng.random(n) < 0.05, 5] = np.inf
    y = np.where(np.nan_to_num(x[:, 0]) > 0.3, 1, 2 * np.isnan(x[:, 1]))
    return x, np.where(rng.random(n) < 0.1, 0, y)


def boosters(n: int = 1, *, rounds: int = 15, **parameters: Any) -> list[Any]:
    x, y = some_rows(0)
    usual = {"objective": "multiclass", "num_class": 4, "num_leaves": 6, "verbose": -1}
    usual |= {"bagging_fraction": 0.7, "bagging_freq": 1, "num_threads": 1}
    return [
        lightgbm.train(
            {**usual, "seed": seed, **parameters}, lightgbm.Dataset(x, y, weight=1.0 + y), rounds
        )
        for seed in range(n)
    ]


@pytest.fixture(scope="module")
def trees() -> BoostedTrees:
    return from_lightgbm(*boosters())


@pytest.mark.parametrize("kind", MISSING)
def test_raw_scores_are_those_of_lightgbm(kind: str) -> None:
    fitted = boosters(2, **MISSING[kind])
    found = from_lightgbm(*fitted)
    assert set(found.missing.tolist()) == {("nothing", "zero and NaN", "NaN").index(kind)}
    x, _ = some_rows(1)
    raw = np.concatenate([booster.predict(x, raw_score=True) for booster in fitted], axis=1)
    np.testing.assert_array_equal(found.score(x), raw)


def test_values_on_a_threshold_and_next_to_it_go_where_lightgbm_sends_them() -> None:
    (booster,) = boosters()
    found = from_lightgbm(booster)
    rng = np.random.default_rng(2)
    x = np.zeros((600, found.n_features))
    for column in range(found.n_features):
        own = found.threshold[found.feature == column]
        at = rng.choice(own, len(x)) if len(own) else np.zeros(len(x))
        x[:, column] = rng.choice([at, np.nextafter(at, 9), np.nextafter(at, -9)])
    np.testing.assert_array_equal(found.score(x), booster.predict(x, raw_score=True))
    assert np.isinf(found.threshold).any()  # of nodes that ask whether a value is there
    with np.errstate(over="ignore"):
        single = x.astype(np.float32)
    np.testing.assert_array_equal(found.score(single), booster.predict(single, raw_score=True))


def test_a_class_that_is_not_there_and_a_single_leaf_are_trees_too() -> None:
    (booster,) = boosters(rounds=3)
    found = from_lightgbm(booster)
    assert (found.root < 0).any()  # the class that no row has
    x, _ = some_rows(3, n=50)
    np.testing.assert_array_equal(found.score(x), booster.predict(x, raw_score=True))
    assert found.score(x[:0]).shape == (0, 4)


def test_a_regression_has_one_column() -> None:
    (booster,) = boosters(objective="regression", num_class=1)
    found = from_lightgbm(booster)
    x, _ = some_rows(4)
    np.testing.assert_array_equal(found.score(x)[:, 0], booster.predict(x, raw_score=True))


def test_its_arrays_are_its_state(trees: BoostedTrees) -> None:
    again = BoostedTrees.from_state(trees.state(), n_features=8, n_columns=4)
    x, _ = some_rows(5)
    np.testing.assert_array_equal(again.score(x), trees.score(x))
    assert all(x.dtype != object for x in trees.state().values())


def test_what_is_not_copied_is_refused() -> None:
    x, y = some_rows(0)
    parameters = {"objective": "binary", "verbose": -1, "num_threads": 1}
    x[:, 0] = y
    data = lightgbm.Dataset(x, y > 0, categorical_feature=[0])
    with pytest.raises(InputError, match="unknown_trees"):
        from_lightgbm(lightgbm.train(parameters, data, 2))
    with pytest.raises(InputError, match="unknown_trees"):
        from_lightgbm(*boosters(boosting="rf", objective="regression", num_class=1))
    with pytest.raises(InputError, match="unknown_trees"):
        from_lightgbm(*boosters(linear_tree=True, objective="regression", num_class=1))
    with pytest.raises(InputError, match="unknown_trees"):
        from_lightgbm()


def changed(name: str, place: int, value: Any) -> Callable[[dict[str, np.ndarray]], None]:
    def change(state: dict[str, np.ndarray]) -> None:
        state[name] = state[name].copy()
        state[name][place] = value

    return change


def taken(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda state: state.update({name: state[name][:-1]})


def typed(name: str, dtype: Any) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda state: state.update({name: state[name].astype(dtype)})


def exchanged(state: dict[str, np.ndarray]) -> None:
    """A child and the root of a tree change places: each is reached once, and the way is a ring."""
    inner = int(np.flatnonzero(state["left"] >= 0)[0])
    tree = int(np.flatnonzero(state["root"] == inner)[0])
    left, root = state["left"].copy(), state["root"].copy()
    left[inner], root[tree] = root[tree], left[inner]
    state["left"], state["root"] = left, root


FORGED: dict[str, Callable[[dict[str, np.ndarray]], Any]] = {
    "a ring": exchanged,
    "a node of its own": changed("left", 0, 0),
    "a far node": changed("right", 0, 10**6),
    "a far leaf": changed("right", 0, -(10**6)),
    "a node reached twice": changed("root", 1, 0),
    "a feature not there": changed("feature", 0, 8),
    "a negative feature": changed("feature", 0, -1),
    "a column not there": changed("column", 0, 4),
    "an endless leaf": changed("leaf", 0, np.inf),
    "no threshold": changed("threshold", 0, np.nan),
    "an unknown missing": changed("missing", 0, 3),
    "too few thresholds": taken("threshold"),
    "too few leaves": taken("leaf"),
    "too few columns": taken("column"),
    "other floats": typed("leaf", np.float32),
    "floats for places": typed("left", np.float64),
    "a table": lambda state: state.update(leaf=state["leaf"][None]),
    "an array less": lambda state: state.pop("leaf"),
    "an array more": lambda state: state.update(code=state["leaf"]),
    "no tree": lambda state: state.update({name: x[:0] for name, x in state.items()}),
}


@pytest.mark.parametrize("kind", FORGED)
def test_forged_arrays_are_refused(trees: BoostedTrees, kind: str) -> None:
    state = trees.state()
    FORGED[kind](state)
    with pytest.raises(ModelMismatch, match="bad_trees"):
        BoostedTrees.from_state(state, n_features=8, n_columns=4)


@pytest.mark.parametrize(("n_features", "n_columns"), [(0, 4), (8, 0), (8, 5), (10**6, 4)])
def test_impossible_sizes_are_refused(trees: BoostedTrees, n_features: int, n_columns: int) -> None:
    with pytest.raises(ModelMismatch, match="bad_trees"):
        BoostedTrees.from_state(trees.state(), n_features=n_features, n_columns=n_columns)


def test_rows_of_other_features_are_refused(trees: BoostedTrees) -> None:
    for shape in ((3, 7), (3, 9), (8,)):
        with pytest.raises(ModelMismatch, match="other_features"):
            trees.score(np.zeros(shape))
