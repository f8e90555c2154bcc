"""A loss for labels that are found, not found, or not asked.

Labels taken from reports are of three kinds. 1: the report says so. 0: it does not, which may mean
that nobody thought it worth a word. NaN: nobody looked, and nothing is to be learnt. With p the
probability given and gamma >= 0, an entry costs

    1:   -log p          0:   -p^gamma log(1 - p)          0 that is sure:   -log(1 - p)

The factor p^gamma is the asymmetric focusing of Ridnik et al. 2021: the many zeros pull hard only
where the model contradicts them, so the few ones are not drowned by positives without a label. It
is a weight and has no gradient of its own: a zero pulls its logit down by p^(gamma+1), not p. Li
et al. 2025 (ECGFounder) train with a positive-unlabelled loss and gamma = 1.5 whose formula was not
published; this one is ours, and not theirs.

Such a p is no frequency: it is too large. Where a share q of cases has a 1, the pulls are even at
the p for which q / (1 - q) = p^(gamma+1) / (1 - p). So p orders cases as q does, and
`recorded_probability` gives q back exactly. How many positives went unrecorded, no loss can say.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from tsfm.errors import InputError

GAMMA = 1.5


def partial_label_loss(
    logits: Float[Tensor, "record label"],
    labels: Float[Tensor, "record label"],
    *,
    gamma: float = GAMMA,
    sure: Bool[Tensor, "record label"] | None = None,
) -> Float[Tensor, ""]:
    """Mean cost of the entries whose label is told; nought, without a gradient, if none is.

    Args:
        logits: Before the logistic function.
        labels: 1, 0 or NaN.
        gamma: How much less a zero counts where the model agrees with it; 0 is cross entropy.
        sure: Entries whose 0 means that somebody looked and found nothing.

    Raises:
        InputError: Shapes or labels are not as said, or gamma is no number from 0 on.
    """
    told = ~torch.isnan(labels)
    if logits.shape != labels.shape or not bool(((labels == 0) | (labels == 1) | ~told).all()):
        raise InputError(
            "labels do not fit the logits", code="bad_labels", place="labels",
            remedy="Give 1, 0 or NaN for every logit.",
        )  # fmt: skip
    _check(gamma)
    logits = logits.float()
    positive = labels == 1
    focus = torch.exp(gamma * F.logsigmoid(logits.detach()))
    if sure is not None:
        focus = torch.where(sure, 1.0, focus)
    cost = torch.where(positive, F.softplus(-logits), focus * F.softplus(logits))
    return torch.where(told, cost, 0.0).sum() / told.sum().clamp(min=1)


def recorded_probability(
    logits: Float[Tensor, "*record"], *, gamma: float = GAMMA
) -> Float[Tensor, "*record"]:
    """Probability that a label is recorded, from logits trained by this loss with all zeros unsure.

    Args:
        logits: Before the logistic function.
        gamma: As in training.

    Raises:
        InputError: gamma is no number from 0 on.
    """
    _check(gamma)
    logits = logits.double()
    return torch.sigmoid((gamma + 1) * F.logsigmoid(logits) - F.logsigmoid(-logits))


def _check(gamma: float) -> None:
    if not 0 <= gamma < math.inf:
        raise InputError(
            "gamma is no number from 0 on", code="bad_gamma", place="gamma",
            remedy="0 is plain cross entropy; 1.5 is usual.",
        )  # fmt: skip
