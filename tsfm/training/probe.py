"""What frozen states already know: linear probes, and how much of it a few labels bring out.

A probe reads the hidden state after the last token known at each prediction time, and the wait
since, with a penalised logistic regression (scikit-learn, optional). The model is not trained. How
good the probe is tells of the states and not of a long fine-tuning; how it grows with the number of
labelled patients tells how many a new question needs. Patients are never shared between what a
probe learns from, what chooses its penalty and what it is scored on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from tsfm import schema
from tsfm.errors import InputError
from tsfm.evaluation.discrimination import auroc
from tsfm.models.checkpoint import load_model
from tsfm.tasks.class_tasks import ClassTask
from tsfm.tasks.cohorts import label_of
from tsfm.training.questions import Question, batch_states, open_site

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse strengths (scikit-learn's C) that are tried."""

_MAX_TOKENS = 16384


@dataclass(frozen=True)
class FrozenStates:
    """States at the labelled prediction times of one task.

    Attributes:
        states: (n, d_model + 1) hidden states, and the logarithm of the wait.
        label: (n,) place of the class; 0 and 1 of a task in time.
        subject_id: (n,) whose they are.
        split: (n,) split of each.
        classes: Names of the classes.
    """

    states: NDArray[np.float32]
    label: NDArray[np.int64]
    subject_id: NDArray[np.int64]
    split: NDArray[np.str_]
    classes: tuple[str, ...]

    def of_split(self, split: str) -> NDArray[np.bool_]:
        """Rows of a split.

        Raises:
            InputError: There are none.
        """
        found = self.split == split
        if not found.any():
            raise InputError(
                f"no labelled prediction time in {split}", code="empty_split", place=split,
                remedy="Check the cohort with `tsfm label`.",
            )  # fmt: skip
        return found


@dataclass(frozen=True)
class ProbeResult:
    """What a probe came to on the subjects that it was scored on.

    Attributes:
        task: The task.
        n_training: Labelled stays that it learnt from.
        n_scored: Labelled stays that it was scored on.
        penalty: Inverse strength chosen on the tuning subjects.
        log_loss: Mean negative log-likelihood, in nats.
        auroc: Of the positive class; of several classes, the mean of each against the rest.
    """

    task: str
    n_training: int
    n_scored: int
    penalty: float
    log_loss: float
    auroc: float


def linear_probe(
    model_dir: str | Path,
    tokens: str | Path,
    cohort: pl.DataFrame,
    task_name: str,
    *,
    hidden_tokens: str | Path | None = None,
    split: str = schema.HELD_OUT,
    penalties: Sequence[float] = PENALTIES,
) -> ProbeResult:
    """Fit a probe on the training subjects, choose its penalty on the tuning ones, score it.

    Args:
        model_dir: Any model of these tokens' vocabulary, pretrained or fine-tuned.
        tokens: Token store.
        cohort: Frame with the columns of `schema.COHORT`.
        task_name: Task that the cohort belongs to, of any kind.
        hidden_tokens: Token store of hidden history, if the task needs it.
        split: Subjects to score on.
        penalties: Inverse strengths to try.

    Raises:
        InputError: scikit-learn is missing, a split has no labelled stay, or training has only one
            class.
        ModelMismatch: The vocabularies differ.
    """
    found = frozen_states(model_dir, tokens, cohort, task_name, hidden_tokens=hidden_tokens)
    training, tuning = found.of_split(schema.TRAIN), found.of_split(schema.TUNING)
    scored = found.of_split(split)
    if len(np.unique(found.label[training])) < 2:
        raise InputError(
            "all training stays are of one class", code="one_class", place=task_name,
            remedy="A probe needs both.",
        )  # fmt: skip
    losses = [_log_loss(found, tuning, _fit(found, training, penalty)) for penalty in penalties]
    penalty = float(penalties[int(np.argmin(losses))])
    chances = _fit(found, training, penalty)
    return ProbeResult(
        task=task_name,
        n_training=int(training.sum()),
        n_scored=int(scored.sum()),
        penalty=penalty,
        log_loss=_log_loss(found, scored, chances),
        auroc=_auroc(found.label[scored], chances[scored]),
    )


def few_shot_curve(
    model_dir: str | Path,
    tokens: str | Path,
    cohort: pl.DataFrame,
    task_name: str,
    *,
    n_subjects: Sequence[int] = (8, 16, 32, 64, 128, 256),
    n_draws: int = 5,
    penalty: float = 0.01,
    seed: int = 0,
    hidden_tokens: str | Path | None = None,
    split: str = schema.HELD_OUT,
) -> pl.DataFrame:
    """How a probe grows with the number of labelled training subjects.

    A draw is an order of the training subjects; its first n teach, so a larger number holds the
    smaller one. The penalty is fixed: one chosen on the tuning subjects would use their labels. A
    draw with one class alone knows no better than that class's share, one of each added.

    Args:
        model_dir: Any model of these tokens' vocabulary.
        tokens: Token store.
        cohort: Frame with the columns of `schema.COHORT`.
        task_name: Task that the cohort belongs to.
        n_subjects: Numbers of subjects; those above what there is are left out.
        n_draws: Draws.
        penalty: Inverse strength of the penalty.
        seed: Of the draws.
        hidden_tokens: Token store of hidden history, if the task needs it.
        split: Subjects to score on.

    Returns:
        A row a number: n_subjects, n_draws, n_stays (mean), and mean and sd (of the draws) of
        auroc and log_loss.

    Raises:
        InputError: As `linear_probe`, but for one class; or no number is small enough.
    """
    found = frozen_states(model_dir, tokens, cohort, task_name, hidden_tokens=hidden_tokens)
    training, scored = found.of_split(schema.TRAIN), found.of_split(split)
    pool = np.unique(found.subject_id[training])
    numbers = [n for n in n_subjects if 0 < n <= len(pool)]
    if not numbers or n_draws < 1:
        raise InputError(
            f"no draw can be made from {len(pool)} subjects", code="too_few_subjects",
            place="n_subjects", remedy="Ask for smaller numbers, and for at least one draw.",
        )  # fmt: skip
    orders = [np.random.default_rng([seed, k]).permutation(pool) for k in range(n_draws)]
    rows: list[dict[str, float]] = []
    for n in numbers:
        measured: list[tuple[float, float, int]] = []
        for order in orders:
            taught = training & np.isin(found.subject_id, order[:n])
            chances = _fit(found, taught, penalty)
            measured.append(
                (
                    _auroc(found.label[scored], chances[scored]),
                    _log_loss(found, scored, chances),
                    int(taught.sum()),
                )
            )
        ranks, losses, stays = (np.array(column, float) for column in zip(*measured, strict=True))
        spread = 1 if n_draws > 1 else 0
        rows.append(
            {
                "n_subjects": n,
                "n_draws": n_draws,
                "n_stays": float(stays.mean()),
                "auroc_mean": float(ranks.mean()),
                "auroc_sd": float(ranks.std(ddof=spread)),
                "log_loss_mean": float(losses.mean()),
                "log_loss_sd": float(losses.std(ddof=spread)),
            }
        )
    return pl.DataFrame(rows)


def frozen_states(
    model_dir: str | Path,
    tokens: str | Path,
    cohort: pl.DataFrame,
    task_name: str,
    *,
    hidden_tokens: str | Path | None = None,
) -> FrozenStates:
    """States of a model, as it is, at the stays whose label is known.

    Raises:
        ModelMismatch: The vocabularies differ.
        InputError: See `tsfm.training.questions.open_site`.
    """
    start = load_model(model_dir)
    site = open_site(
        tokens, {task_name: cohort}, vocabulary_hash=start.vocabulary.hash,
        signal_encoder=start.model.config.signal_encoder,
        hidden_tokens=hidden_tokens,
    )  # fmt: skip
    question = site.questions[0]
    label, classes = _labels(question)
    patients = site.patients(None)
    states: list[NDArray[np.float32]] = []
    rows: list[NDArray[np.int64]] = []
    for batch, hidden in batch_states(start.model, patients, _MAX_TOKENS):
        points = question.index.points_in(batch)
        waited = torch.log1p(points.elapsed_hours).unsqueeze(-1) / 5.0
        states.append(torch.cat([hidden[points.position], waited], dim=-1).numpy())
        rows.append(points.row.numpy())
    row = np.concatenate(rows)
    known = label[row] >= 0
    row = row[known]
    subject = question.stays[schema.SUBJECT_ID].to_numpy()[row]
    split_of = dict(site.store.subjects.select(schema.SUBJECT_ID, "split").iter_rows())
    return FrozenStates(
        np.concatenate(states)[known], label[row], subject,
        np.array([split_of[s] for s in subject.tolist()], str), classes,
    )  # fmt: skip


def _labels(question: Question) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    task = question.task
    if isinstance(task, ClassTask):
        return question.label, task.classes
    stays = question.stays
    label = label_of(stays["outcome"], stays["outcome_days"], task.horizon_days, task.positive)
    return label.cast(pl.Int64).fill_null(-1).to_numpy(), ("false", "true")


def _fit(found: FrozenStates, rows: NDArray[np.bool_], penalty: float) -> NDArray[np.float64]:
    """(n, C) chances of every stay by a probe that learnt from some rows."""
    label, n_classes = found.label[rows], len(found.classes)
    counts = np.bincount(label, minlength=n_classes).astype(float)
    if (counts > 0).sum() < 2:
        return np.tile((counts + 1) / (counts + 1).sum(), (len(found.label), 1))
    pipeline = _regression(penalty).fit(found.states[rows], label)
    chances = np.zeros((len(found.label), n_classes))
    chances[:, pipeline.classes_] = pipeline.predict_proba(found.states)
    # A class that was not seen keeps the chance of one stay, so that its first one costs not all.
    floor = 1.0 / (rows.sum() + n_classes)
    chances = np.where(counts > 0, chances, floor)
    return chances / chances.sum(1, keepdims=True)


def _regression(penalty: float) -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise InputError(
            "a probe needs scikit-learn", code="missing_scikit_learn", place="linear_probe",
            remedy="Install it with `pip install tsfm[baselines]`.",
        ) from error  # fmt: skip
    return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=500))


def _log_loss(found: FrozenStates, rows: NDArray[np.bool_], chances: NDArray[np.float64]) -> float:
    own = chances[rows, found.label[rows]]
    return float(-np.log(np.maximum(own, 1e-12)).mean())


def _auroc(label: NDArray[np.int64], chances: NDArray[np.float64]) -> float:
    if chances.shape[1] == 2:
        return auroc(label == 1, chances[:, 1])
    each = [auroc(label == k, chances[:, k]) for k in range(chances.shape[1])]
    defined = [value for value in each if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
