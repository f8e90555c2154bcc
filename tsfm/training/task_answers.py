"""What a model answers to several tasks, from one forward pass a batch: losses, calibrated
probabilities, and the calibration itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from tsfm import schema
from tsfm.batches.patient_views import PatientViews
from tsfm.evaluation.recalibration import Recalibration
from tsfm.models.checkpoint import ModelDirectory, load_model
from tsfm.models.timeline import TimelineModel
from tsfm.tasks.class_tasks import ClassTask
from tsfm.tasks.cohorts import Task
from tsfm.training.finetune import calibrate
from tsfm.training.questions import UNKNOWN_CLASS, Site, batch_states, open_site

MAX_TOKENS = 16384
_TEMPERATURES = (0.05, 20.0)


def score_tasks(
    model: ModelDirectory | str | Path,
    tokens: str | Path,
    cohorts: Mapping[str, pl.DataFrame],
    *,
    hidden_tokens: str | Path | None = None,
    split: str | None = None,
    max_tokens: int = MAX_TOKENS,
) -> dict[str, pl.DataFrame]:
    """Calibrated probabilities of all tasks from one forward pass a batch of patients.

    Args:
        model: Model fine-tuned for the tasks, or its folder.
        tokens: Token store made with its vocabulary.
        cohorts: Task name to a frame with the columns of `schema.COHORT`; outcomes are not read.
        hidden_tokens: Token store of hidden history, if a task needs it.
        split: Subjects of one split only.
        max_tokens: Tokens a batch.

    Returns:
        Task name to one row for every eligible stay of these subjects: subject_id, prediction_time
        and `probability` of a true label, or a column a class. Null where nothing was known yet.

    Raises:
        ModelMismatch: The model has no head for a task, or another vocabulary.
        InputError: See `open_site`; or a stored calibration is none.
    """
    found = model if isinstance(model, ModelDirectory) else load_model(model)
    site = open_site(
        tokens, cohorts, vocabulary_hash=found.vocabulary.hash, hidden_tokens=hidden_tokens,
        signal_encoder=found.model.config.signal_encoder,
        known=False,
    )  # fmt: skip
    patients = site.patients(split)
    answers = read_answers(found.model, site, patients, max_tokens)
    frames: dict[str, pl.DataFrame] = {}
    for question in site.questions:
        name, own = question.task.name, answers[question.task.name]
        stored = found.calibration.get(name, {})
        if isinstance(question.task, ClassTask):
            chances = torch.softmax(own / stored.get("temperature", 1.0), -1).numpy()
            columns = dict(zip(question.task.classes, chances.T, strict=True))
        else:
            event, competing = own.double().numpy().T
            none = np.clip(1.0 - event - competing, 0.0, 1.0)
            raw = event.copy() if question.task.positive == "event" else none
            known = ~np.isnan(raw)
            raw[known] = Recalibration.from_dict(stored).apply(raw[known])
            columns = {"probability": raw}
        stays = question.stays.select(schema.SUBJECT_ID, schema.PREDICTION_TIME)
        frames[name] = stays.with_columns(
            pl.Series(column, values, dtype=pl.Float32).fill_nan(None)
            for column, values in columns.items()
        ).filter(pl.col(schema.SUBJECT_ID).is_in(patients.subject_id.tolist()))
    return frames


@torch.no_grad()
def read_answers(
    model: TimelineModel, site: Site, patients: PatientViews, max_tokens: int = MAX_TOKENS
) -> dict[str, Tensor]:
    """What every task's head says of every stay, before calibration; NaN where it was not asked.

    Returns:
        Task name to (R, 2): P(event) and P(competing) within the horizon; or (R, C): logits.
    """
    answers = {
        q.task.name: torch.full(
            (q.stays.height, len(q.task.classes) if isinstance(q.task, ClassTask) else 2),
            float("nan"),
        )
        for q in site.questions
    }
    for batch, hidden in batch_states(model, patients, max_tokens):
        for question in site.questions:
            points = question.index.points_in(batch)
            if len(points) == 0:
                continue
            read, task = question.read(model, hidden, points), question.task
            if isinstance(task, Task):
                read = model.task_head(task.name).cumulative_incidence(read, task.horizon_days)
            answers[task.name][points.row] = read
    return answers


def task_losses(model: TimelineModel, site: Site, split: str | None) -> dict[str, float]:
    """Mean negative log-likelihood of each task's stays in a split, in nats, from one pass."""
    total = {q.task.name: 0.0 for q in site.questions}
    count = dict.fromkeys(total, 0)
    for batch, hidden in batch_states(model, site.patients(split), MAX_TOKENS):
        for question in site.questions:
            with torch.no_grad():
                each = question.losses(model, batch, hidden)
            total[question.task.name] += each.double().sum().item()
            count[question.task.name] += len(each)
    return {name: total[name] / n for name, n in count.items() if n}


def calibrate_tasks(
    model: TimelineModel, site: Site, tuning: PatientViews
) -> dict[str, dict[str, float]]:
    """Platt's line of tasks in time, a temperature of tasks with classes."""
    found: dict[str, dict[str, float]] = {}
    by_class = tuple(q for q in site.questions if isinstance(q.task, ClassTask))
    logits = read_answers(model, replace(site, questions=by_class), tuning) if by_class else {}
    for question in site.questions:
        if isinstance(question.task, Task):
            found[question.task.name] = calibrate(model, tuning, question.index, question.task)
        else:
            label = torch.from_numpy(question.label)
            own = logits[question.task.name]
            known = (label != UNKNOWN_CLASS) & ~torch.isnan(own[:, 0])
            found[question.task.name] = _temperature(own[known], label[known])
    return found


def _temperature(logits: Tensor, label: Tensor) -> dict[str, float]:
    """Temperature of least loss; 1 where fewer than 20 stays, or one class, are known."""
    if len(label) < 20 or len(label.unique()) < 2:
        return {"temperature": 1.0, "n": len(label)}

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits.double() / np.exp(log_temperature), label))

    low, high = (float(np.log(t)) for t in _TEMPERATURES)
    for _ in range(60):  # the loss is convex in 1 / T, so it has one valley
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return {"temperature": float(np.exp((low + high) / 2)), "n": len(label)}
