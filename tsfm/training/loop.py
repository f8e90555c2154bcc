"""The training loop that pretraining and fine-tuning share.

An epoch is a seeded plan of packed batches. After each epoch the moving average of the weights is
judged on the tuning split; the best epoch's weights are kept, and a checkpoint lets a stopped run
go on with the same batches. The held-out split is never touched here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tsfm.batches.batch import Batch
from tsfm.batches.dataset import TokenDataset
from tsfm.errors import InputError, TsfmError
from tsfm.kernels.heap import keep_freed_memory
from tsfm.models.timeline import TimelineModel
from tsfm.training.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from tsfm.training.optimizer import WeightAverage, learning_rate, make_optimizer

logger = logging.getLogger("tsfm")

BatchLoss = Callable[[TimelineModel, Batch, Tensor], tuple[Tensor, float, dict[str, float]] | None]
"""Loss of a batch from its hidden states: the loss, its weight in a mean, and its parts. None where
the batch asks nothing."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: Passes over the training subjects.
        max_tokens: Tokens a batch.
        lr: Peak learning rate.
        weight_decay: On linear weights.
        warmup: Share of all steps spent warming up.
        clip: Largest norm of the gradient.
        average_decay: Decay of the weights' moving average.
        patience: Epochs without a better tuning loss before stopping.
        seed: Of initialisation, shuffling and dropout.
    """

    epochs: int = 3
    max_tokens: int = 2048
    lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0
    average_decay: float = 0.995
    patience: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a training that would train nothing.

        Raises:
            InputError: `bad_epochs`: there is no epoch. `bad_training`: batches have no room for a
                token, the learning rate is no number above 0, or the seed no whole one from 0.
        """
        if self.epochs < 1:
            raise InputError(
                "fewer than one epoch", code="bad_epochs", place="TrainConfig.epochs",
                remedy="Train for one pass or more.",
            )  # fmt: skip
        for name, fits, remedy in (
            ("max_tokens", self.max_tokens >= 1, "Use 1 or more, such as 2048."),
            ("lr", 0 < self.lr < math.inf, "Use a number above 0, such as 0.003."),
            ("seed", 0 <= self.seed < 2**63, "Use a whole number from 0 to 2^63 - 1."),
        ):
            if not fits:
                raise InputError(
                    f"{name} is out of its range", code="bad_training",
                    place=f"TrainConfig.{name}", remedy=remedy,
                )  # fmt: skip


@dataclass
class TrainResult:
    """What a run came to.

    Attributes:
        best_epoch: Epoch whose weights the model now holds.
        tuning_loss: Its loss on the tuning split.
        history: One entry an epoch.
        seconds: Wall time of this call.
        resumed: Whether it went on from a checkpoint.
    """

    best_epoch: int
    tuning_loss: float
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    resumed: bool = False

    def as_text(self) -> str:
        """One line an epoch, and which one was kept."""
        parts = list(self.history[0]["tuning"]) if self.history else []
        widths = {name: max(18, len(name) + 2) for name in ("tuning loss", *parts)}
        lines = ["epoch" + "".join(f"{name:>{width}}" for name, width in widths.items())]
        for entry in self.history:
            values = (entry["tuning_loss"], *entry["tuning"].values())
            cells = zip(values, widths.values(), strict=True)
            lines.append(f"{entry['epoch'] + 1:>5}" + "".join(f"{v:>{w}.4f}" for v, w in cells))
        how = "resumed and finished" if self.resumed else "finished"
        lines.append(f"{how} in {self.seconds:.0f} s; kept epoch {self.best_epoch + 1}")
        return "\n".join(lines)


def train(
    model: TimelineModel,
    training: TokenDataset,
    tuning: TokenDataset,
    loss: BatchLoss,
    config: TrainConfig,
    *,
    folder: Path,
    what: str,
    fingerprint: str,
    data: str | None = None,
    progress: bool | None = None,
) -> TrainResult:
    """Train a model in place and leave it with its best weights.

    Args:
        model: Model to train.
        training: Training subjects.
        tuning: Subjects whose loss chooses the epoch.
        loss: Loss of one batch.
        config: How to train.
        folder: Where checkpoints go; an existing one is continued.
        what: Name of the run, for the progress bar.
        fingerprint: Digest of the configuration and sizes that make this run this run.
        data: Digest of what the labels and the tokens hold, of which the fingerprint knows sizes.
        progress: Show a bar; None: on a terminal only.

    Raises:
        InputError: A split has no subjects, or the tuning split asks nothing.
        ModelMismatch: The checkpoint in the folder is of another run, or of other data.
        IntegrityError: It can't be read.
        TsfmError: `loss_not_finite`: the loss on the tuning subjects is no number.
    """
    if len(training) == 0 or len(tuning) == 0:
        raise InputError(
            "no subjects to train or tune on",
            code="empty_split",
            place="metadata/subject_splits.parquet",
            remedy="Training and tuning splits both need subjects.",
        )
    started = time.perf_counter()
    keep_freed_memory()
    torch.manual_seed(config.seed)
    optimizer = make_optimizer(model, lr=config.lr, weight_decay=config.weight_decay)
    average = WeightAverage(model, config.average_decay)
    plan_length = len(training.plan(max_tokens=config.max_tokens, seed=config.seed, epoch=0))
    n_steps = config.epochs * plan_length
    warmup = max(1, round(config.warmup * n_steps))
    checkpoint = folder / "checkpoint"
    state: dict[str, Any] = {"fingerprint": fingerprint, "epoch": 0, "step": 0, "history": []}
    state |= {} if data is None else {"data": data}
    best: dict[str, Tensor] = {}
    resumed = find_checkpoint(checkpoint)
    if resumed:
        state, best = load_checkpoint(
            checkpoint, fingerprint=fingerprint, data=data, model=model, average=average,
            optimizer=optimizer,
        )  # fmt: skip
        state |= {} if data is None else {"data": data}
    disable = None if progress is None else not progress
    for epoch in range(state["epoch"], config.epochs):
        if _is_finished(state["history"], config):
            break
        model.train()
        parts = _PartMeans()
        plan = training.plan(max_tokens=config.max_tokens, seed=config.seed, epoch=epoch)
        bar = tqdm(plan, desc=f"{what} {epoch + 1}/{config.epochs}", disable=disable, leave=False)
        for chosen in bar:
            lr = learning_rate(state["step"], n_steps=n_steps, warmup=warmup, peak=config.lr)
            for group in optimizer.param_groups:
                group["lr"] = lr
            state["step"] += 1
            batch = training.batch(chosen)
            value = loss(model, batch, model(batch))
            if value is None:
                continue
            optimizer.zero_grad(set_to_none=True)
            value[0].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            average.update(model)
            parts.add(value[2])
            bar.set_postfix({k: f"{v:.3f}" for k, v in parts.means().items()})
        current = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(average.weights)
        tuning_loss, tuning_parts = evaluate_loss(model, tuning, loss, config.max_tokens)
        _require_finite(tuning_loss, what, epoch)
        history: list[dict[str, Any]] = state["history"]
        if not history or tuning_loss < min(entry["tuning_loss"] for entry in history):
            best = {name: tensor.clone() for name, tensor in average.weights.items()}
        model.load_state_dict(current)
        history.append(
            {
                "epoch": epoch,
                "tuning_loss": tuning_loss,
                "train": parts.means(),
                "tuning": tuning_parts,
                "seconds": round(time.perf_counter() - started, 1),
            }
        )
        state["epoch"] = epoch + 1
        logger.info("%s epoch %d: %s", what, epoch + 1, history[-1])
        save_checkpoint(
            checkpoint, model=model, average=average, optimizer=optimizer, state=state, best=best
        )
    model.load_state_dict(best)
    chosen_epoch = min(state["history"], key=lambda entry: entry["tuning_loss"])
    return TrainResult(
        best_epoch=chosen_epoch["epoch"],
        tuning_loss=chosen_epoch["tuning_loss"],
        history=state["history"],
        seconds=time.perf_counter() - started,
        resumed=resumed,
    )


@torch.no_grad()
def evaluate_loss(
    model: TimelineModel, subjects: TokenDataset, loss: BatchLoss, max_tokens: int
) -> tuple[float, dict[str, float]]:
    """Weighted mean loss and unweighted mean of its parts over all of a split's subjects."""
    model.eval()
    total = weight = 0.0
    parts = _PartMeans()
    for batch in subjects.batches(max_tokens=max_tokens):
        value = loss(model, batch, model(batch))
        if value is None:
            continue
        total += value[0].item() * value[1]
        weight += value[1]
        parts.add(value[2])
    if weight == 0:
        raise InputError(
            "the tuning subjects ask nothing",
            code="empty_tuning",
            place="tuning split",
            remedy="The tuning split needs at least one labelled prediction time.",
        )
    return total / weight, parts.means()


def fingerprint(*parts: Any) -> str:
    """Digest of configurations and hashes that a checkpoint must share to be continued."""
    text = json.dumps([asdict(p) if hasattr(p, "__dataclass_fields__") else p for p in parts],
                      sort_keys=True)  # fmt: skip
    return hashlib.sha256(text.encode()).hexdigest()


class _PartMeans:
    """Means of a loss's parts, each over the batches that have it."""

    def __init__(self) -> None:
        self.total: dict[str, float] = {}
        self.n: dict[str, int] = {}

    def add(self, parts: Mapping[str, float]) -> None:
        for name, part in parts.items():
            self.total[name] = self.total.get(name, 0.0) + part
            self.n[name] = self.n.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: total / self.n[name] for name, total in self.total.items()}


def _require_finite(tuning_loss: float, what: str, epoch: int) -> None:
    if not math.isfinite(tuning_loss):
        raise TsfmError(
            "the loss on the tuning subjects is no finite number", code="loss_not_finite",
            place=f"{what}, epoch {epoch + 1}",
            remedy="Use a lower learning rate; the checkpoint of the epoch before is kept.",
        )  # fmt: skip


def _is_finished(history: list[dict[str, Any]], config: TrainConfig) -> bool:
    if not history:
        return False
    best = min(range(len(history)), key=lambda i: history[i]["tuning_loss"])
    return len(history) - 1 - best >= config.patience
