"""Fine-tuning a timeline model to several tasks at once.

One forward pass over a patient's timeline gives the state at every token; each task's head reads it
at the task's own moments. So five tasks cost the one pass that one costs, in training and in
scoring, and the states must serve them all. A stay weighs so that every task counts by its weight,
however many stays it has: the loss on a split is the weighted mean of the tasks' mean losses. As in
`tsfm.training.finetune`, the pretraining losses stay on with a small weight, and calibration is
fitted a task on the tuning split: slope and offset of the positive probability's logit, or one
temperature of the logits of a task with classes.

A task that must not see the history (`tsfm.training.questions`) reads a stream of its own in the
same pass.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from tsfm import schema
from tsfm.batches.batch import Batch
from tsfm.batches.dataset import TokenDataset
from tsfm.batches.patient_views import PatientViews
from tsfm.errors import InputError
from tsfm.models.checkpoint import ModelDirectory, load_model, refuse_existing, save_model
from tsfm.models.timeline import TimelineModel
from tsfm.tasks.class_tasks import ClassTask
from tsfm.tasks.cohorts import Task
from tsfm.training.finetune import FINETUNE_DEFAULTS
from tsfm.training.loop import BatchLoss, TrainConfig, TrainResult, fingerprint, train
from tsfm.training.losses import LossWeights, pretraining_loss
from tsfm.training.questions import Question, Site, open_site
from tsfm.training.task_answers import calibrate_tasks, task_losses


@dataclass(frozen=True)
class MultitaskConfig:
    """How to fine-tune several tasks.

    Attributes:
        train: Epochs, rates and the like.
        pretraining_weight: Weight of the pretraining losses beside the tasks'.
        task_weights: Task name to its weight; 1 where it is not named.
    """

    train: TrainConfig = FINETUNE_DEFAULTS
    pretraining_weight: float = 0.1
    task_weights: Mapping[str, float] = field(default_factory=dict)


def multitask_finetune(
    model_dir: str | Path,
    tokens: str | Path,
    cohorts: Mapping[str, pl.DataFrame],
    out: str | Path,
    *,
    hidden_tokens: str | Path | None = None,
    config: MultitaskConfig | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> TrainResult:
    """Fine-tune on the training split's stays of all tasks and write one model directory.

    Args:
        model_dir: Pretrained (or fine-tuned) model.
        tokens: Token store made with this model's vocabulary.
        cohorts: Task name to a frame with the columns of `schema.COHORT`.
        out: Model directory to write.
        hidden_tokens: Token store of `hidden_token_store`, if a task is asked on hidden history.
        config: How to fine-tune.
        facts: Further plain facts for `config.json`.
        progress: Show a bar; None: on a terminal only.

    Raises:
        ModelMismatch: A store's vocabulary is not the model's.
        InputError: See `open_site`; a task without a known stay in training; the output folder is
            not empty.
    """
    config = config or MultitaskConfig()
    refuse_existing(out)
    start = load_model(model_dir)
    site = open_site(
        tokens, cohorts, vocabulary_hash=start.vocabulary.hash, hidden_tokens=hidden_tokens,
        signal_encoder=start.model.config.signal_encoder,
    )  # fmt: skip
    training = site.patients(schema.TRAIN)
    torch.manual_seed(config.train.seed)
    model = with_heads(start.model, site.questions, training)
    loss = shared_loss([site], config)
    result = fit(
        model, start, site, training, loss, config, out=out, what="finetune tasks",
        progress=progress,
    )  # fmt: skip
    save_fitted(out, model, start, site, result, config, {**(facts or {}), "stage": "finetune"})
    return result


def with_heads(
    start: TimelineModel, questions: Sequence[Question], training: PatientViews
) -> TimelineModel:
    """The model with a head for every task; those that it has are kept as they are.

    A new readmission head starts from the admission head, other new heads at the training stays'
    own rates or shares.

    Raises:
        InputError: A task has no known stay in training.
    """
    tasks = [q.task for q in questions]
    names = [t.name for t in tasks if isinstance(t, Task)]
    classes = {t.name: len(t.classes) for t in tasks if isinstance(t, ClassTask)}
    old = dict(zip(start.config.class_tasks, start.config.n_classes, strict=True))
    config = replace(
        start.config,
        tasks=tuple(dict.fromkeys([*start.config.tasks, *names])),
        class_tasks=tuple({**old, **classes}),
        n_classes=tuple({**old, **classes}.values()),
    )
    model = TimelineModel(config)
    model.load_state_dict(start.state_dict(), strict=False)
    for question in questions:
        task = question.task
        taught = np.isin(question.keys, training.keys)
        if not taught.any():
            raise InputError(
                "no eligible stay with a known outcome in training", code="empty_cohort",
                place=task.name, remedy="Check the cohort with `tsfm label`.",
            )  # fmt: skip
        if isinstance(task, ClassTask):
            if task.name not in old:
                model.class_head(task.name).set_baseline(torch.from_numpy(question.label[taught]))
        elif task.name in start.config.tasks:
            continue
        elif task.name.startswith("readmission"):
            model.tasks[task.name] = copy.deepcopy(start.admission)
        else:
            index = question.index
            outcome, days = (torch.from_numpy(x[taught]) for x in (index.outcome, index.days))
            model.task_head(task.name).set_baseline(outcome, days)
    return model


def shared_loss(sites: Sequence[Site], config: MultitaskConfig) -> BatchLoss:
    """Loss of a batch of any of the sites, whose keys differ; the first one is evaluated.

    A stay weighs w / sum(w) * N / n, with its task's weight w and number of stays n, and N stays in
    all, counted among the training subjects of the first site that asks the task; the sum is over
    the tasks of all sites. In evaluation it is all of the first site and its tuning subjects.

    Raises:
        InputError: A weight is not positive, or of no task.
    """
    shares = _shares(sites, config)
    training: dict[str, float] = {}
    for site in sites:
        own = _stay_weights(site.n_stays(site.patients(schema.TRAIN)), shares)
        training = {**own, **training}
    tuned = sites[0].patients(schema.TUNING)
    weights = {
        True: training,
        False: _stay_weights(sites[0].n_stays(tuned), _shares(sites[:1], config, also=shares)),
    }
    losses = LossWeights()

    def loss(
        model: TimelineModel, batch: Batch, hidden: Tensor
    ) -> tuple[Tensor, float, dict[str, float]] | None:
        # A batch is of one site: the one that the first of its keys belongs to.
        key = int(batch.subject_id[0])
        site = next(s for s in sites if s.views[0].first_key <= key < s.views[-1].end_key)
        found = {q.task.name: q.losses(model, batch, hidden) for q in site.questions}
        n_stays = sum(len(each) for each in found.values())
        if n_stays == 0:
            return None
        own = {
            name: weights[model.training].get(name, 0.0) * each.sum() / n_stays
            for name, each in found.items()
        }
        total = torch.stack(list(own.values())).sum()
        parts = {name: part.item() for name, part in own.items()}
        if model.training and config.pretraining_weight:
            course = pretraining_loss(model, batch, hidden, site.targets, losses)[0]
            total = total + config.pretraining_weight * course
        return total, float(n_stays), parts

    return loss


def fit(
    model: TimelineModel,
    start: ModelDirectory,
    site: Site,
    training: TokenDataset,
    loss: BatchLoss,
    config: MultitaskConfig,
    *,
    out: str | Path,
    what: str,
    progress: bool | None,
    rehearsed: Sequence[Site] = (),
    extra: Sequence[Any] = (),
) -> TrainResult:
    """Train in place; a stopped run of the same parts goes on from `<out>.work`."""
    rows = {q.task.name: q.stays.height for q in site.questions}
    return train(
        model, training, site.patients(schema.TUNING), loss, config.train,
        folder=_work(out), what=what, progress=progress,
        fingerprint=fingerprint(
            model.config, config.train, config.pretraining_weight, dict(config.task_weights),
            start.hash, rows, training.n_tokens, list(extra),
        ),
        data=fingerprint(site.hash, *(earlier.hash for earlier in rehearsed)),
    )  # fmt: skip


def save_fitted(
    out: str | Path,
    model: TimelineModel,
    start: ModelDirectory,
    site: Site,
    result: TrainResult,
    config: MultitaskConfig,
    facts: Mapping[str, Any],
) -> None:
    """Calibrate every task on the site's tuning subjects and write the model directory."""
    tuning = site.patients(schema.TUNING)
    n_training = site.n_stays(site.patients(schema.TRAIN))
    mean_loss = task_losses(model, site, schema.TUNING)
    own: dict[str, Any] = {}
    for name, n in n_training.items():
        own[f"{name}.dataset_name"] = site.store.config.get("dataset_name")
        own[f"{name}.n_training_stays"] = n
        own[f"{name}.n_epochs"] = len(result.history)
        own[f"{name}.epoch_kept"] = result.best_epoch + 1
        own[f"{name}.tuning_loss"] = mean_loss.get(name)
        own[f"{name}.seed"] = config.train.seed
    save_model(
        out, model, site.store.vocabulary, site.store.scale,
        calibration={**start.calibration, **calibrate_tasks(model, site, tuning)},
        facts={**start.facts, **facts, **own},
    )  # fmt: skip
    shutil.rmtree(_work(out), ignore_errors=True)


def _shares(
    sites: Sequence[Site], config: MultitaskConfig, also: Iterable[str] = ()
) -> dict[str, float]:
    """Shares of the sites' tasks in the loss; `also` names others that may have a weight."""
    names = list(dict.fromkeys(q.task.name for site in sites for q in site.questions))
    weights = {name: float(config.task_weights.get(name, 1.0)) for name in names}
    if not set(config.task_weights) <= {*names, *also} or not all(w > 0 for w in weights.values()):
        raise InputError(
            "task weights must be positive and of tasks that are trained", code="bad_task_weights",
            place="MultitaskConfig.task_weights", remedy=f"Tasks here: {', '.join(names)}.",
        )  # fmt: skip
    return {name: w / sum(weights.values()) for name, w in weights.items()}


def _stay_weights(n_stays: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, float]:
    n_all = sum(n_stays.values())
    return {name: shares[name] * n_all / n for name, n in n_stays.items() if n}


def _work(out: str | Path) -> Path:
    return Path(out).with_name(f"{Path(out).name}.work")
