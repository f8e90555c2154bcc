"""The recipe learns ectopic beats from made-up records, and scores nobody it was fitted on."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tsfm.errors import InputError, TsfmError
from tsfm.models.beat_classifier import CLASSES
from tsfm.simulation.waveforms import simulate_beats, simulate_ecg
from tsfm.training.beat_classifier import (
    BeatTable,
    choose_s_scale,
    class_f1,
    fit_beat_classifier,
    fit_boosters,
    fit_rows,
    folds_of,
    out_of_fold,
)

pytest.importorskip("lightgbm")


@dataclass(frozen=True, eq=False)
class Record:
    name: str
    subject: str
    fs_hz: float
    signal: Any
    beats: Any
    classes: Any


def record(seed: int, *, subject: str | None = None) -> Record:
    rng = np.random.default_rng(seed)
    beats = simulate_beats(
        rng, duration_s=60.0, heart_rate_bpm=rng.uniform(60, 90), ectopic_fraction=0.15
    )
    leads = simulate_ecg(rng, fs_hz=250.0, duration_s=60.0, beats=beats)
    at = np.rint(beats.times_s * 250).astype(np.int64)
    inside = (at >= 0) & (at < 60 * 250)
    classes = np.where(beats.ectopic, "V", "N")[inside]
    name = f"r{seed}"
    return Record(name, subject or name, 250.0, np.stack(list(leads.values())), at[inside], classes)


@pytest.fixture(scope="module")
def table() -> BeatTable:
    return BeatTable([record(seed) for seed in range(6)])


def test_it_finds_ectopic_beats_of_another_person(table: BeatTable) -> None:
    classifier = fit_beat_classifier(table, n_seeds=1)
    other = record(100)
    found = classifier.classify(other.signal, fs_hz=other.fs_hz, r_peaks=other.beats)
    assert class_f1(other.classes, found.classes, "V") > 0.9
    assert classifier.config.n_members == 1


def test_the_same_records_make_the_same_classifier(table: BeatTable) -> None:
    rows = np.ones(len(table.y), np.bool_)
    one, two = (fit_rows(table, rows, n_seeds=2) for _ in range(2))
    for name, array in one.trees.state().items():
        np.testing.assert_array_equal(array, two.trees.state()[name])
    single = fit_rows(table, rows, n_seeds=1).score(table.x[:, table.columns])
    assert not np.allclose(single, one.score(table.x[:, table.columns]))


def test_scores_are_the_mean_of_what_lightgbm_predicts(table: BeatTable) -> None:
    x = table.x[:, table.columns]
    weight = np.where(table.y == 1, 3.0, 1.0)
    boosters = fit_boosters(x, table.y, weight, n_seeds=2)
    expected = np.mean([booster.predict(x) for booster in boosters], axis=0)
    rows = np.ones(len(table.y), np.bool_)
    np.testing.assert_allclose(fit_rows(table, rows, n_seeds=2).score(x), expected, atol=1e-12)


def test_v_is_shared_within_a_record_only(table: BeatTable) -> None:
    found = np.tile([0.7, 0.1, 0.1, 0.1], (len(table.y), 1))
    rows = table.record == "r3"
    found[rows] = [0.1, 0.1, 0.7, 0.1]
    shared = table.shared(found, 1.0)
    np.testing.assert_allclose(shared, found, atol=1e-6)


def test_records_of_one_person_are_in_one_fold() -> None:
    records = [record(seed, subject=f"p{seed // 2}") for seed in range(8)]
    table = BeatTable(records)
    fold = folds_of(table)
    for one, two in zip(records[::2], records[1::2], strict=True):
        of_both = fold[np.isin(table.record, [one.name, two.name])]
        assert len(np.unique(of_both)) == 1
    assert len(np.unique(fold)) == 4


def test_scores_out_of_fold_are_of_fits_without_the_person(table: BeatTable) -> None:
    seen: list[tuple[set[str], int]] = []

    def fit(some: BeatTable, rows: Any, n_seeds: int) -> Any:
        seen.append((set(some.record[rows].tolist()), n_seeds))
        fitted = float(len(seen))
        return lambda other: np.full((len(other.y), len(CLASSES)), fitted)

    found = out_of_fold(table, n_seeds=3, fit=fit)
    assert [n for _, n in seen] == [3] * 6
    for name in table.subject:
        (which,) = np.unique(found[table.record == name])
        assert name not in seen[int(which) - 1][0]


def test_the_weight_of_s_is_that_of_the_best_f1(table: BeatTable) -> None:
    some = BeatTable([record(0)])
    some.y[:] = 0
    early = np.flatnonzero(some.regular)[::3]
    some.y[early] = 1
    found = np.tile([0.6, 0.1, 0.0, 0.0], (len(some.y), 1))
    found[early, 1] = 0.2  # four times as much makes S of these only, eight times of all
    assert choose_s_scale(some, found) == 4.0


def test_beats_of_unknown_classes_count_as_normal() -> None:
    one = record(0)
    table = BeatTable([replace(one, classes=np.full(len(one.beats), "Q"))])
    assert set(table.y.tolist()) == {0}


def test_what_can_not_be_fitted_is_refused(table: BeatTable) -> None:
    with pytest.raises(InputError, match="no_records"):
        BeatTable([])
    with pytest.raises(InputError, match="one_class"):
        fit_rows(table, table.y == 0, n_seeds=1)
    with pytest.raises(InputError, match="too_few_subjects"):
        fit_beat_classifier([record(0), record(1, subject="r0")])


def test_without_lightgbm_it_says_what_to_install(
    table: BeatTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(TsfmError, match="missing_package"):
        fit_rows(table, np.ones(len(table.y), np.bool_), n_seeds=1)
