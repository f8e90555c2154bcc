"""The recipe of the beat classifier: boosting on the features of beats, several seeds.

Gradient boosting (LightGBM) is fitted to the class of each annotated beat. Supraventricular beats
are rare and weighted up in the fit; how much more they weigh in the decision is chosen by their F1
on beats of other people, in folds of the training records, of which none has one person on two
sides. LightGBM is needed here only: what comes out is plain trees.

It is no general trainer: features, classes and parameters are those of `tsfm.signals.beat_features`
and `tsfm.models.beat_classifier`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tsfm.errors import InputError, TsfmError
from tsfm.evaluation.evaluation_ledger import EvaluationLedger
from tsfm.models.beat_classifier import (
    CLASSES,
    REGULARITY,
    BeatClassifier,
    BeatClassifierConfig,
    decide,
    share_v,
)
from tsfm.models.boosted_trees import from_lightgbm
from tsfm.signals.beat_features import read_beats

N_FOLDS = 6
N_SEEDS = 3
N_ROUNDS = 120
IRREGULAR = 0.12
"""Median step of the intervals around, as a share of them: above it no S."""

S_WEIGHT = 3.0
F_SCALE = 0.3
V_SHARED = 0.8
"""How much of the probability of V is the mean over the record's beats of the same shape."""

S_SCALES = (0.5, 1.0, 2.0, 4.0, 8.0)
_BOOSTING: dict[str, Any] = {
    "objective": "multiclass", "num_class": len(CLASSES), "num_leaves": 8, "learning_rate": 0.08,
    "min_data_in_leaf": 40, "feature_fraction": 0.3, "bagging_fraction": 0.7, "bagging_freq": 1,
    "lambda_l2": 10.0, "num_threads": 1, "verbose": -1,
}  # fmt: skip

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.bool_]


class AnnotatedEcg(Protocol):
    """One record with its annotated beats; any object that has these."""

    @property
    def name(self) -> str:
        """Of the record, no two alike."""
        ...

    @property
    def subject(self) -> str:
        """Whose it is."""
        ...

    @property
    def fs_hz(self) -> float:
        """Sampling rate."""
        ...

    @property
    def signal(self) -> npt.NDArray[Any]:
        """(lead, sample) in any unit, NaN in gaps."""
        ...

    @property
    def beats(self) -> npt.NDArray[np.int64]:
        """(beat,) samples, in order."""
        ...

    @property
    def classes(self) -> npt.NDArray[np.str_]:
        """(beat,) N, S, V or F; anything else counts as N."""
        ...


class BeatTable:
    """Features and classes of the beats of some records.

    Attributes:
        names: (n_features,) of all features, the waveform's points among them.
        x: (n_beats, n_features).
        windows: (n_beats, 2, n_points) as `read_beats` gives them.
        y: (n_beats,) places in `CLASSES`.
        record: (n_beats,) name of the record.
        subject: Of each record.

    Args:
        records: One or more.

    Raises:
        InputError: `no_records`: there is none.
    """

    def __init__(self, records: Sequence[AnnotatedEcg]) -> None:
        """Measure all beats."""
        if not records:
            raise InputError(
                "no records", code="no_records", place="BeatTable", remedy="Give at least one."
            )
        beats = [read_beats(r.signal[:2], r.beats, fs_hz=r.fs_hz) for r in records]
        parts = [each.with_waveform() for each in beats]
        self.names = parts[0][1]
        self.x = np.nan_to_num(np.concatenate([x for x, _ in parts]))
        self.windows = np.concatenate([each.windows for each in beats])
        number = {name: i for i, name in enumerate(CLASSES)}
        self.y = np.concatenate([[number.get(str(c), 0) for c in r.classes] for r in records])
        self.record = np.concatenate([[r.name] * len(r.beats) for r in records])
        self.subject = {r.name: r.subject for r in records}

    @property
    def columns(self) -> npt.NDArray[np.int64]:
        """Features that are fitted: neither the waveform's points nor the second lead's."""
        kept = ["shape" not in name and not name.startswith("second_") for name in self.names]
        return np.flatnonzero(kept)

    @property
    def regular(self) -> Rows:
        """(n_beats,) where the rhythm is regular."""
        return self.x[:, self.names.index(REGULARITY)] <= IRREGULAR

    def shared(self, found: Floats, share: float = V_SHARED) -> Floats:
        """Scores of all beats with V shared among those that look alike, record by record."""
        told = np.empty_like(found)
        for name in self.subject:
            rows = self.record == name
            told[rows] = share_v(found[rows], self.windows[rows], share)
        return told


Predict = Callable[[BeatTable], Floats]
Fit = Callable[[BeatTable, Rows, int], Predict]


def fit_beat_classifier(
    records: Sequence[AnnotatedEcg] | BeatTable,
    *,
    n_seeds: int = N_SEEDS,
    s_scale: float | None = None,
) -> BeatClassifier:
    """Fit the classifier on all records.

    Args:
        records: Annotated records of several people, or their table.
        n_seeds: Fits whose probabilities are averaged.
        s_scale: Weight of S in the decision; chosen in folds if not given.

    Raises:
        InputError: No record, beats of one class only, or too few people for folds.
        TsfmError: `missing_package`: LightGBM is not installed.
    """
    table = records if isinstance(records, BeatTable) else BeatTable(records)
    if s_scale is None:
        s_scale = choose_s_scale(table, out_of_fold(table, n_seeds=1))
    return fit_rows(table, np.ones(len(table.y), np.bool_), n_seeds=n_seeds, s_scale=s_scale)


def fit_rows(table: BeatTable, rows: Rows, *, n_seeds: int, s_scale: float = 1.0) -> BeatClassifier:
    """Fit the classifier on some beats.

    Args:
        table: All beats.
        rows: (n_beats,) which to fit on.
        n_seeds: Fits whose probabilities are averaged.
        s_scale: Weight of S in the decision.

    Raises:
        InputError: `one_class`: they are of one class only.
        TsfmError: `missing_package`: LightGBM is not installed.
    """
    y = table.y[rows]
    weight = np.where(y == CLASSES.index("S"), S_WEIGHT, 1.0)
    boosters = fit_boosters(table.x[rows][:, table.columns], y, weight, n_seeds=n_seeds)
    config = BeatClassifierConfig(
        features=" ".join(table.names[i] for i in table.columns), n_members=n_seeds,
        irregular=IRREGULAR, s_weight=S_WEIGHT, s_scale=s_scale, f_scale=F_SCALE, v_shared=V_SHARED,
    )  # fmt: skip
    return BeatClassifier(from_lightgbm(*boosters), config)


def fit_boosters(x: npt.NDArray[Any], y: npt.NDArray[Any], weight: Floats, *, n_seeds: int) -> Any:
    """Fit LightGBM boosters with the parameters of the recipe, one for each seed.

    Args:
        x: (n_beats, n_features).
        y: (n_beats,) places in `CLASSES`.
        weight: (n_beats,) of each beat.
        n_seeds: How many.

    Returns:
        List of `lightgbm.Booster`.

    Raises:
        InputError: `one_class`: beats of one class only, or none.
        TsfmError: `missing_package`: LightGBM is not installed.
    """
    try:
        import lightgbm
    except ImportError as error:
        raise TsfmError(
            "LightGBM is not installed", code="missing_package", place="lightgbm",
            remedy="Install it with `pip install tsfm[baselines]`.",
        ) from error  # fmt: skip
    if len(np.unique(y)) < 2:
        raise InputError(
            "beats of one class only, or none", code="one_class", place="fit_boosters",
            remedy="Give records with beats of two classes or more.",
        )  # fmt: skip
    return [
        lightgbm.train({**_BOOSTING, "seed": seed}, lightgbm.Dataset(x, y, weight=weight), N_ROUNDS)
        for seed in range(n_seeds)
    ]


def fit_scores(table: BeatTable, rows: Rows, n_seeds: int) -> Predict:
    """Fit on some beats, and give what scores the beats of any table.

    Args:
        table: All beats.
        rows: (n_beats,) which to fit on.
        n_seeds: Fits whose probabilities are averaged.
    """
    classifier = fit_rows(table, rows, n_seeds=n_seeds)
    return lambda other: other.shared(classifier.score(other.x[:, other.columns]))


def out_of_fold(table: BeatTable, *, n_seeds: int, fit: Fit = fit_scores) -> Floats:
    """Scores of every beat from fits on other people.

    Args:
        table: All beats.
        n_seeds: Fits that are averaged, in each fold.
        fit: The recipe, or another one to compare it with.

    Returns:
        (n_beats, 4) as `share_v` gives them.

    Raises:
        InputError: As `fit_rows`; `too_few_subjects`: there is one person only.
    """
    fold = folds_of(table)
    if len(np.unique(fold)) < 2:
        raise InputError(
            "one person can't be told from others", code="too_few_subjects", place="out_of_fold",
            remedy="Give records of two people or more, or choose s_scale.",
        )  # fmt: skip
    found = np.zeros((len(table.y), len(CLASSES)))
    for k in np.unique(fold):
        ledger = EvaluationLedger(table.subject)
        ledger.fit("boosting", np.unique(table.record[fold != k]).tolist())
        ledger.score("classes", np.unique(table.record[fold == k]).tolist())
        found[fold == k] = fit(table, fold != k, n_seeds)(table)[fold == k]
    return found


def folds_of(table: BeatTable) -> npt.NDArray[np.int64]:
    """Fold of each beat: whole people, those with many supraventricular beats spread evenly."""
    whose = np.array([table.subject[name] for name in table.record.tolist()])
    subjects = sorted(set(whose.tolist()))
    s = CLASSES.index("S")
    subjects.sort(key=lambda subject: -int(np.sum((whose == subject) & (table.y == s))))
    fold_of = {subject: i % N_FOLDS for i, subject in enumerate(subjects)}
    return np.array([fold_of[subject] for subject in whose.tolist()])


def choose_s_scale(table: BeatTable, found: Floats) -> float:
    """Weight of S in the decision that has the best F1 of S on out-of-fold scores."""
    s = CLASSES.index("S")

    def gain(s_scale: float) -> float:
        classes = decide(found, table.regular, s_scale=s_scale, f_scale=F_SCALE)
        return class_f1(table.y, classes, s)

    return max(S_SCALES, key=gain)


def class_f1(y: npt.NDArray[Any], found: npt.NDArray[Any], k: int | str) -> float:
    """F1 of one class, zero where it is neither there nor found."""
    hit = np.sum((y == k) & (found == k))
    return float(2 * hit / max(np.sum(y == k) + np.sum(found == k), 1))


def class_rates(y: npt.NDArray[Any], found: npt.NDArray[Any], k: int | str) -> tuple[float, float]:
    """Sensitivity and positive predictive value of one class, zero where there is none."""
    hit = np.sum((y == k) & (found == k))
    return float(hit / max(np.sum(y == k), 1)), float(hit / max(np.sum(found == k), 1))
