"""Training of a forecaster on episodes: a cut through some series, what lies before, what is asked.

Whoever has data gives a function from a step to an `Episode`; random cuts, thinning of frequent
variables and weights are its business. The loss is squared error of the mean, weighted as the score
to be reached weighs it, plus CRPS of the quantiles. Steps are numbered and an episode is a function
of its number, so a training that was stopped goes on where it was, with the same episodes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from tsfm.kernels.heap import keep_freed_memory
from tsfm.models.forecast_data import ForecastContext, ForecastQueries
from tsfm.models.forecaster import ForecasterModel
from tsfm.models.quantile_head import bounded_square, pinball
from tsfm.training.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from tsfm.training.optimizer import WeightAverage, learning_rate, make_optimizer

logger = logging.getLogger("tsfm")


@dataclass(frozen=True)
class Episode:
    """One batch.

    Attributes:
        context: What is known.
        queries: What is asked.
        truth: What came, in the series' own units.
        square_weight: Weight of each squared error.
        crps_weight: Weight of each CRPS.
    """

    context: ForecastContext
    queries: ForecastQueries
    truth: Float[Tensor, " query"]
    square_weight: Float[Tensor, " query"]
    crps_weight: Float[Tensor, " query"]


@dataclass(frozen=True)
class ForecastTrainConfig:
    """How to train.

    Attributes:
        n_steps: Episodes.
        lr: Peak learning rate.
        weight_decay: On linear weights.
        warmup: Share of all steps spent warming up.
        clip: Largest norm of the gradient.
        average_decay: Decay of the weights' moving average, which is what is validated and kept.
        validate_every: Steps between validations.
        square: Weight of the squared error beside the CRPS.
        bound: Standardised error beyond which loss grows linearly.
        patience: Validations without a better score before stopping.
        seed: Of dropout; initialisation is the caller's.
    """

    n_steps: int = 3000
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0
    average_decay: float = 0.998
    validate_every: int = 300
    square: float = 1.0
    bound: float = 5.0
    patience: int = 100
    seed: int = 0


@dataclass
class ForecastTrainResult:
    """What a run came to.

    Attributes:
        best_step: Step whose averaged weights the model now holds.
        best_score: Their score.
        history: One entry a validation.
        seconds: Wall time of all calls.
        resumed: Whether this call went on from a checkpoint.
    """

    best_step: int
    best_score: float
    history: list[dict[str, Any]]
    seconds: float
    resumed: bool


def forecast_loss(
    model: ForecasterModel, episode: Episode, config: ForecastTrainConfig
) -> tuple[Tensor, dict[str, float]]:
    """Weighted squared error and CRPS of an episode, means over its queries, standardised.

    Args:
        model: Network.
        episode: What to forecast.
        config: Weights of the two.
    """
    forecast = model(episode.context, episode.queries)
    truth = forecast.standardise(episode.truth)
    square = bounded_square(forecast.mean - truth, config.bound)
    square = (square * episode.square_weight).mean()
    crps = (pinball(forecast.quantiles, truth.clamp(-30, 30)) * episode.crps_weight).mean()
    parts = {"square": float(square.detach()), "crps": float(crps.detach())}
    return config.square * square + crps, parts


def train_forecaster(
    model: ForecasterModel,
    draw: Callable[[int], Episode],
    validate: Callable[[ForecasterModel], tuple[float, dict[str, float]]],
    config: ForecastTrainConfig,
    *,
    folder: Path,
    fingerprint: str,
    progress: bool | None = None,
) -> ForecastTrainResult:
    """Train in place and leave the model with the averaged weights of the best validation.

    Args:
        model: Model to train.
        draw: Episode of each step.
        validate: Score to make small, and what else to log, of the model it is given.
        config: How to train.
        folder: Where the checkpoint goes; an existing one is continued.
        fingerprint: Digest of everything that makes this run this run.
        progress: Show a bar; None: on a terminal only.

    Raises:
        ModelMismatch: The checkpoint in the folder is of another run.
    """
    keep_freed_memory()
    torch.manual_seed(config.seed)
    optimizer = make_optimizer(model, lr=config.lr, weight_decay=config.weight_decay)
    average = WeightAverage(model, config.average_decay)
    state: dict[str, Any] = {"fingerprint": fingerprint, "step": 0, "history": [], "seconds": 0.0}
    best: dict[str, Tensor] = {}
    checkpoint = folder / "checkpoint"
    resumed = find_checkpoint(checkpoint)
    if resumed:
        state, best = load_checkpoint(
            checkpoint, fingerprint=fingerprint, model=model, average=average, optimizer=optimizer
        )
    history: list[dict[str, Any]] = state["history"]
    before, started = state["seconds"], time.perf_counter()
    sums: dict[str, float] = {}
    n_summed = 0
    disable = None if progress is None else not progress
    bar = tqdm(
        range(state["step"], config.n_steps), initial=state["step"], total=config.n_steps,
        desc="forecaster", disable=disable, leave=False,
    )  # fmt: skip
    for step in bar:
        if _is_finished(history, config.patience):
            break
        model.train()
        rate = learning_rate(
            step, n_steps=config.n_steps, warmup=max(1, round(config.warmup * config.n_steps)),
            peak=config.lr,
        )  # fmt: skip
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, parts = forecast_loss(model, draw(step), config)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        model.update_balance()
        average.update(model)
        n_summed += 1
        for name, part in parts.items():
            sums[name] = sums.get(name, 0.0) + part
        if (step + 1) % config.validate_every and step + 1 < config.n_steps:
            continue
        current = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(average.weights)
        model.eval()
        with torch.no_grad():
            score, told = validate(model)
        score = math.inf if math.isnan(score) else score
        if not history or score < min(entry["score"] for entry in history):
            best = {name: tensor.clone() for name, tensor in average.weights.items()}
        model.load_state_dict(current)
        state["seconds"] = before + time.perf_counter() - started
        history.append(
            {"step": step + 1, "score": score, **told, "seconds": round(state["seconds"], 1)}
            | {f"train_{name}": part / n_summed for name, part in sums.items()}
        )
        sums, n_summed = {}, 0
        logger.info("forecaster %s", history[-1])
        bar.set_postfix(score=f"{score:.5g}")
        state["step"] = step + 1
        save_checkpoint(
            checkpoint, model=model, average=average, optimizer=optimizer, state=state, best=best
        )
    model.load_state_dict(best)
    model.eval()
    chosen = min(history, key=lambda entry: entry["score"])
    return ForecastTrainResult(chosen["step"], chosen["score"], history, state["seconds"], resumed)


def _is_finished(history: list[dict[str, Any]], patience: int) -> bool:
    scores = [entry["score"] for entry in history]
    return len(scores) - 1 - scores.index(min(scores)) >= patience if scores else False
