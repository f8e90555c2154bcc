"""Fine-tuning a pretrained model to one task's hazards, and calibrating what it says.

Every index stay of the training subjects teaches through the likelihood of its outcome and time,
so stays whose end is not known teach what is known of them, and a death before the event is a
competing outcome, not a negative. The pretraining losses stay on with a small weight: they keep the
states from forgetting the course of events. After training, one slope and one offset on the logit
of the horizon's probability are fitted on the tuning split and stored with the model.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsfm import schema
from tsfm.batches.batch import Batch
from tsfm.batches.dataset import CohortIndex, TokenDataset
from tsfm.errors import InputError
from tsfm.evaluation.calibration import fit_platt
from tsfm.models.checkpoint import load_model, refuse_existing, save_model
from tsfm.models.timeline import TimelineModel
from tsfm.tasks.registry import Task, task_named
from tsfm.tokens.asked_frame import read_asked
from tsfm.tokens.token_store import TokenStore
from tsfm.training.loop import TrainConfig, TrainResult, fingerprint, train
from tsfm.training.losses import AdmissionTargets, LossWeights, pretraining_loss
from tsfm.training.questions import TEACHES, stays_hash

FINETUNE_DEFAULTS = TrainConfig(epochs=3, lr=1.2e-3, patience=3, warmup=0.1)


@dataclass(frozen=True)
class FinetuneConfig:
    """How to fine-tune.

    Attributes:
        train: Epochs, rates and the like.
        pretraining_weight: Weight of the pretraining losses beside the task's.
    """

    train: TrainConfig = FINETUNE_DEFAULTS
    pretraining_weight: float = 0.1


def finetune(
    model_dir: str | Path,
    tokens: str | Path,
    cohort: pl.DataFrame,
    task_name: str,
    out: str | Path,
    *,
    config: FinetuneConfig | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> TrainResult:
    """Fine-tune on the training split's index stays and write a model directory.

    Args:
        model_dir: Pretrained (or fine-tuned) model.
        tokens: Token store made with this model's vocabulary.
        cohort: Frame with the columns of `schema.COHORT`.
        task_name: Task the cohort belongs to.
        out: Model directory to write.
        config: How to fine-tune.
        facts: Further plain facts for `config.json`.
        progress: Show a bar; None: on a terminal only.

    Raises:
        ModelMismatch: The store's vocabulary, or the encoder of its waveforms, is not the model's.
        InputError: No eligible stay with a known outcome in training or tuning, none of a subject
            of the token store, an outcome that is none, or the output folder is not empty.
        FormatError: The cohort lacks a column, or its times are not naive; see `read_asked`.
    """
    config = config or FinetuneConfig()
    task = task_named(task_name)
    refuse_existing(out)
    start = load_model(model_dir)
    store = TokenStore.open(tokens)
    store.require_model(start.vocabulary.hash, start.model.config.signal_encoder)
    cohort = read_asked(cohort, "eligible", "outcome", "outcome_days", place=task_name)
    known = cohort.filter(pl.col("eligible") & TEACHES)
    index = CohortIndex.create(known)
    owners = set(known[schema.SUBJECT_ID].to_list())
    training = TokenDataset(store, schema.TRAIN, subjects=owners)
    tuning = TokenDataset(store, schema.TUNING, subjects=owners)
    if owners and owners.isdisjoint(store.subjects[schema.SUBJECT_ID].to_list()):
        raise InputError(
            "no subject of the labels is in the token store",
            code="empty_cohort",
            place=str(tokens),
            remedy="Use labels and tokens that were made from the same event table.",
        )
    if len(training) == 0 or len(tuning) == 0:
        raise InputError(
            "no eligible stay with a known outcome in training or tuning",
            code="empty_cohort",
            place=task_name,
            remedy="Check the cohort with `tsfm label`.",
        )
    torch.manual_seed(config.train.seed)
    model = _with_task(start.model, task)
    head = model.task_head(task.name)
    targets = AdmissionTargets.create(store)
    weights = LossWeights()

    def loss(
        model: TimelineModel, batch: Batch, hidden: Tensor
    ) -> tuple[Tensor, float, dict[str, float]] | None:
        points = index.points_in(batch)
        if len(points) == 0:
            return None
        log_hazard = model.log_hazard(task.name, hidden, points.position, points.elapsed_hours)
        own = head.negative_log_likelihood(log_hazard, points.outcome, points.days).mean()
        total = own
        if model.training and config.pretraining_weight:
            total = (
                own
                + config.pretraining_weight
                * pretraining_loss(model, batch, hidden, targets, weights)[0]
            )
        return total, float(len(points)), {task.name: own.item()}

    if not task.name.startswith("readmission"):
        in_training = known.filter(pl.col(schema.SUBJECT_ID).is_in(training.subject_id.tolist()))
        sample = CohortIndex.create(in_training)
        head.set_baseline(torch.from_numpy(sample.outcome), torch.from_numpy(sample.days))
    work = Path(out).with_name(f"{Path(out).name}.work")
    result = train(
        model, training, tuning, loss, config.train,
        folder=work, what=f"finetune {task.name}", progress=progress,
        fingerprint=fingerprint(
            model.config, config.train, config.pretraining_weight, start.hash, known.height
        ),
        data=fingerprint(store.hash, stays_hash(known)),
    )  # fmt: skip
    calibration = {
        **start.calibration,
        task.name: calibrate(model, tuning, index, task),
    }
    save_model(
        out,
        model,
        store.vocabulary,
        store.scale,
        calibration=calibration,
        facts={
            **start.facts,
            **(facts or {}),
            "stage": "finetune",
            f"{task.name}.dataset_name": store.config.get("dataset_name"),
            f"{task.name}.n_training_stays": int(
                known.filter(pl.col(schema.SUBJECT_ID).is_in(training.subject_id.tolist())).height
            ),
            f"{task.name}.n_epochs": len(result.history),
            f"{task.name}.epoch_kept": result.best_epoch + 1,
            f"{task.name}.tuning_loss": result.tuning_loss,
            f"{task.name}.seed": config.train.seed,
        },
    )
    shutil.rmtree(work, ignore_errors=True)
    return result


def _with_task(start: TimelineModel, task: Task) -> TimelineModel:
    """The model with a head for the task; a readmission starts from the admission head."""
    names = (*(n for n in start.config.tasks if n != task.name), task.name)
    model = TimelineModel(replace(start.config, tasks=names))
    weights = {
        k: v for k, v in start.state_dict().items() if not k.startswith(f"tasks.{task.name}.")
    }
    model.load_state_dict(weights, strict=False)
    if task.name in start.config.tasks:
        model.tasks[task.name] = copy.deepcopy(start.tasks[task.name])
    elif task.name.startswith("readmission"):
        model.tasks[task.name] = copy.deepcopy(start.admission)
    return model


@torch.no_grad()
def predict_incidence(
    model: TimelineModel, subjects: TokenDataset, index: CohortIndex, task: Task, max_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Cohort rows and (P(event), P(competing)) within the task's horizon, before calibration."""
    model.eval()
    rows: list[NDArray[np.int64]] = []
    incidence: list[NDArray[np.float32]] = []
    for batch in subjects.batches(max_tokens=max_tokens):
        points = index.points_in(batch)
        if len(points):
            log_hazard = model.log_hazard(
                task.name, model(batch), points.position, points.elapsed_hours
            )
            head = model.task_head(task.name)
            incidence.append(head.cumulative_incidence(log_hazard, task.horizon_days).numpy())
            rows.append(points.row.numpy())
    if not rows:
        return np.zeros(0, np.int64), np.zeros((0, 2), np.float32)
    return np.concatenate(rows), np.concatenate(incidence)


def calibrate(
    model: TimelineModel, tuning: TokenDataset, index: CohortIndex, task: Task
) -> dict[str, float]:
    """Slope and offset on the logit of the positive probability, fitted on the tuning split.

    Stays whose label is not known by the horizon are left out. Too few of either label leave the
    probabilities as they are.
    """
    rows, incidence = predict_incidence(model, tuning, index, task, 16384)
    none = np.clip(1 - incidence.sum(1), 0.0, 1.0)
    positive = incidence[:, 0] if task.positive == "event" else none
    outcome, days = index.outcome[rows], index.days[rows]
    seen = days <= task.horizon_days
    known = (outcome > 0) | ~seen | (days >= task.horizon_days)
    is_event = (outcome == 1) & seen
    label = is_event if task.positive == "event" else ~((outcome > 0) & seen)
    label, positive = label[known], positive[known]
    n_rare = int(min(label.sum(), (~label).sum()))
    if n_rare < 20:
        return {"slope": 1.0, "offset": 0.0, "n": len(label)}
    line = fit_platt(label.astype(float), positive.astype(float))
    return {"slope": float(line.slope), "offset": float(line.intercept), "n": len(label)}
