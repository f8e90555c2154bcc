"""Forms of our timeline model that are compared: what they change, and their training.

`FORMS` is the one place that names what differs. The gap-blind form is not told how much time lies
between events, neither by decay nor at the token, and must still say when the next one comes. The
form of attention has no recurrence at all, the event memory included.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
from tsfm.models.checkpoint import load_model, save_model
from tsfm.models.mamba import MambaConfig
from tsfm.models.timeline import TimelineConfig, TimelineModel
from tsfm.tokens.token_store import TokenStore
from tsfm.training.loop import TrainConfig, fingerprint, train
from tsfm.training.losses import AdmissionTargets, LossWeights, pretraining_loss

_MAX_TOKENS = 16384


class GapBlind(TimelineModel):
    """A timeline model to which no gap and no hour of the day is shown."""

    def forward(self, batch: Batch) -> Tensor:
        none = torch.zeros_like(batch.gap_hours)
        return super().forward(
            replace(batch, gap_hours=none, since_hours=none, rate=none, hour=none)
        )


@dataclass(frozen=True)
class Form:
    """Attributes: changes of the backbone's configuration and the model's, and the class."""

    backbone: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    kind: type[TimelineModel] = TimelineModel


FORMS = {
    "mamba": Form(),
    "gap-blind": Form({"real_time": False}, kind=GapBlind),
    "attention": Form(model={"attention_only": True, "memory_width": 0}),
}


def pretrain_form(
    name: str, store: TokenStore, out: Path, backbone: MambaConfig, config: TrainConfig
) -> dict[str, float]:
    """Pretrain one form as `tsfm.pretrain` does, and say what it came to."""
    form = FORMS[name]
    configuration = TimelineConfig(
        len(store.vocabulary), replace(backbone, **form.backbone), **form.model
    )
    torch.manual_seed(config.seed)
    model = form.kind(configuration)
    training = TokenDataset(store, schema.TRAIN)
    targets, weights = AdmissionTargets.create(store), LossWeights()
    first = training.plan(max_tokens=8 * config.max_tokens, seed=config.seed, epoch=0)[0]
    points = targets.points(training.batch(first))
    model.admission.set_baseline(points.outcome, points.days)

    def loss(
        model: TimelineModel, batch: Batch, hidden: Tensor
    ) -> tuple[Tensor, float, dict[str, float]]:
        total, parts = pretraining_loss(model, batch, hidden, targets, weights)
        return total, float(batch.n_tokens), parts

    work = out.with_name(f"{out.name}.work")
    result = train(
        model, training, TokenDataset(store, schema.TUNING), loss, config,
        folder=work, what=name, progress=False,
        fingerprint=fingerprint(configuration, config, store.vocabulary.hash, name),
    )  # fmt: skip
    shutil.rmtree(out, ignore_errors=True)
    save_model(out, model, store.vocabulary, store.scale, facts={"stage": "pretrain", "form": name})
    shutil.rmtree(work, ignore_errors=True)
    return {
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "tokens": float(len(result.history) * training.n_tokens),
        "passes": float(len(result.history)),
        "tuning_loss": result.tuning_loss,
    }


def load_form(name: str, folder: Path) -> TimelineModel:
    """The form as it was trained, in evaluation mode."""
    stored = load_model(folder).model
    model = FORMS[name].kind(stored.config)
    model.load_state_dict(stored.state_dict())
    return model.eval()


@torch.no_grad()
def states_at(
    model: TimelineModel, store: TokenStore, stays: pl.DataFrame
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """State after the last token known at each stay's prediction time, and the hours since then.

    Hours are NaN where nothing was known.
    """
    index = CohortIndex.create(stays)
    owners = set(stays[schema.SUBJECT_ID].to_list())
    states = np.zeros((stays.height, model.config.backbone.d_model), np.float32)
    hours = np.full(stays.height, np.nan)
    for batch in TokenDataset(store, None, subjects=owners).batches(max_tokens=_MAX_TOKENS):
        points = index.points_in(batch)
        states[points.row] = model(batch)[points.position].numpy()
        hours[points.row] = points.elapsed_hours.numpy()
    return states, hours


@torch.no_grad()
def incidence_at(
    model: TimelineModel, store: TokenStore, stays: pl.DataFrame, task: str,
    days: NDArray[np.float64],
) -> NDArray[np.float64]:  # fmt: skip
    """(stay, day) P(event by each day, before its competing event), NaN where nothing was known."""
    index, head = CohortIndex.create(stays), model.task_head(task)
    owners = set(stays[schema.SUBJECT_ID].to_list())
    found = np.full((stays.height, len(days)), np.nan)
    for batch in TokenDataset(store, None, subjects=owners).batches(max_tokens=_MAX_TOKENS):
        points = index.points_in(batch)
        log_hazard = model.log_hazard(task, model(batch), points.position, points.elapsed_hours)
        for k, day in enumerate(days):
            reached = head.cumulative_incidence(log_hazard, float(day))[:, 0]
            found[points.row.numpy(), k] = reached.numpy()
    return found
