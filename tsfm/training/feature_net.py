"""Training of a feature network: questions side by side, unknown answers left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tsfm.errors import InputError
from tsfm.models.feature_net import FeatureNet, FeatureNetConfig, RankScale


@dataclass(frozen=True)
class FeatureNetTraining:
    """How to train.

    Attributes:
        epochs: Passes over the rows; their number is fixed, nothing is looked at on the way.
        batch_rows: Rows a step.
        lr: Peak learning rate, warmed up over 20 steps and let down by a cosine.
        weight_decay: On all weights.
        n_seeds: Networks whose probabilities are averaged.
    """

    epochs: int = 12
    batch_rows: int = 128
    lr: float = 1.5e-3
    weight_decay: float = 0.3
    n_seeds: int = 3


@dataclass(frozen=True)
class FittedFeatureNet:
    """Networks and what their features are measured by.

    Attributes:
        scale: From features to inputs.
        networks: One a seed.
    """

    scale: RankScale
    networks: tuple[FeatureNet, ...]

    def probability(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean probability of every question, shape (n, n_questions)."""
        x = self.scale.apply(X)
        each = [network.probability(x).double().numpy() for network in self.networks]
        return np.mean(each, axis=0)


def fit_feature_net(
    X: NDArray[np.float32],
    answers: NDArray[np.float64],
    *,
    weights: Sequence[float] | None = None,
    training: FeatureNetTraining | None = None,
    seed: int = 0,
) -> FittedFeatureNet:
    """Fit on rows of features.

    Args:
        X: Features, shape (n, n_features), NaN where missing.
        answers: 0 or 1, NaN where unknown, shape (n, n_questions); the first question is the one
            that matters, the others help it.
        weights: Of the questions; one each by default.
        training: How to train.
        seed: Of the first network; the others count on.

    Raises:
        InputError: Shapes that do not fit, answers other than 0, 1 and NaN, or a question without
            an answer.
    """
    training = training or FeatureNetTraining()
    known = ~np.isnan(answers)
    given = np.ones(answers.shape[-1]) if weights is None else np.asarray(weights, np.float64)
    fits = answers.ndim == 2 and len(answers) == len(X) and given.shape == answers.shape[1:]
    if not fits or not np.isin(answers[known], (0.0, 1.0)).all() or not known.any(0).all():
        raise InputError(
            "answers must be 0, 1 or unknown, one row a row of features", code="bad_answers",
            place="answers", remedy="Give shape (rows, questions), and a weight a question.",
        )  # fmt: skip
    scale = RankScale.fit(X)
    x = scale.apply(X)
    label = torch.from_numpy(np.nan_to_num(answers)).float()
    weight = torch.from_numpy(known * given).float()
    config = FeatureNetConfig(scale.n_inputs, answers.shape[1])
    share = torch.from_numpy(np.nanmean(answers, 0)).float()
    networks = [
        _fit_one(config, x, label, weight, share, training, seed + i)
        for i in range(training.n_seeds)
    ]
    return FittedFeatureNet(scale, tuple(networks))


def _fit_one(
    config: FeatureNetConfig,
    x: torch.Tensor,
    label: torch.Tensor,
    weight: torch.Tensor,
    share: torch.Tensor,
    training: FeatureNetTraining,
    seed: int,
) -> FeatureNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FeatureNet(config)
        network.set_shares(share)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=training.lr, weight_decay=training.weight_decay
        )
        n_batches = max(1, len(x) // training.batch_rows)
        n_steps, step = training.epochs * n_batches, 0
        for _ in range(training.epochs):
            for rows in torch.randperm(len(x)).tensor_split(n_batches):
                rate = min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / n_steps))
                for group in optimizer.param_groups:
                    group["lr"] = training.lr * rate
                said = network(x[rows])
                asked = label[rows].unsqueeze(1).expand_as(said)
                each = F.binary_cross_entropy_with_logits(said, asked, reduction="none")
                loss = (each * weight[rows].unsqueeze(1)).mean((0, 1)).sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                step += 1
    return network.eval()
