"""Two segments of one participant are alike, those of others are not: a contrast across people.

A student reads the first segment of each participant of a batch, a slowly moving teacher the
second. The loss asks the student's vector to find its own participant among all others, in the
other view and in its own, and KoLeo keeps the vectors apart from their nearest neighbours. Recipe:
Abbaspourazad et al., "Large-scale training of foundation models for wearable biosignals" (ICLR
2024), and the settings published with it. The equations are followed; four things are mended:

- another segment of the same participant is never a negative, in either view (the released code
  leaves it in the sum across the views);
- sums of exponentials are taken in logarithms: exp(1 / 0.04) does not fit in float16;
- the average that makes the teacher covers buffers as well as parameters;
- the teacher drops nothing out, and its batch norms read the batch but write nothing.

The vector for later use is the backbone's, not the projection's.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tsfm.errors import InputError

_KOLEO_FLOOR = 1e-8


@dataclass(frozen=True)
class ContrastConfig:
    """The objective.

    Attributes:
        temperature: What similarities are divided by.
        koleo_weight: Weight of the spreading term.
        momentum: Share of the teacher that is kept at each step.
        hidden_width: Of the projection.
        projection_width: What similarities are computed on.
        dropout: In the projection, of the student.

    Raises:
        InputError: `bad_contrast_config`: a temperature, weight, share or width that is none.
    """

    temperature: float = 0.04
    koleo_weight: float = 0.1
    momentum: float = 0.99
    hidden_width: int = 1024
    projection_width: int = 128
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what is no objective."""
        if not (
            0 < self.temperature < math.inf
            and 0 <= self.koleo_weight < math.inf
            and 0 <= self.momentum <= 1
            and 0 <= self.dropout <= 1
            and min(self.hidden_width, self.projection_width) >= 1
        ):
            raise InputError(
                "a temperature, weight, share or width that is none", code="bad_contrast_config",
                place="ContrastConfig",
                remedy="Use a positive temperature, widths of 1 or more and shares of 0 to 1.",
            )  # fmt: skip


class ContrastLoss(NamedTuple):
    """What training descends, and its two parts."""

    total: Tensor
    contrast: Tensor
    koleo: Tensor


class ProjectionHead(nn.Module):
    """From the embedding to the space in which participants are compared.

    Args:
        width: Of the embedding.
        config: Its sizes.
    """

    def __init__(self, width: int, config: ContrastConfig) -> None:
        """Start at random."""
        super().__init__()
        self.hidden = nn.Linear(width, config.hidden_width)
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Linear(config.hidden_width, config.projection_width)

    def forward(
        self, embedding: Float[Tensor, "segment embedding"]
    ) -> Float[Tensor, "segment projection"]:
        """Projection, not normalised."""
        return self.project(self.dropout(F.relu(self.hidden(embedding))))


class ParticipantContrast(nn.Module):
    """Student and teacher over one kind of backbone.

    Args:
        backbone: (segment, channel, time) to (segment, embedding); trained in place.
        width: Of the embedding.
        config: The objective.
    """

    def __init__(self, backbone: nn.Module, width: int, config: ContrastConfig) -> None:
        """Let the teacher start as the student does."""
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head = ProjectionHead(width, config)
        self.teacher = nn.Sequential(copy.deepcopy(backbone), copy.deepcopy(self.head))
        self.teacher.requires_grad_(False)
        self.train()

    def forward(
        self,
        first: Float[Tensor, "participant channel time"],
        second: Float[Tensor, "participant channel time"],
        participants: Int[Tensor, " participant"],
    ) -> ContrastLoss:
        """Loss of a batch of pairs.

        Args:
            first: Segments for the student.
            second: Other segments of the same participants, for the teacher.
            participants: Who they belong to; a number may occur twice.

        Raises:
            InputError: Fewer than two pairs.
        """
        seen = self.head(self.backbone(first))
        with torch.no_grad():
            taught = self.teacher(second)
        return contrast_loss(seen, taught, participants, self.config)

    @torch.no_grad()
    def update_teacher(self) -> None:
        """Move the teacher towards the student; called before each step of the optimiser."""
        student = nn.Sequential(self.backbone, self.head).state_dict()
        for name, kept in self.teacher.state_dict().items():
            if kept.is_floating_point():
                kept.lerp_(student[name], 1 - self.config.momentum)
            else:  # a count of batches has no average
                kept.copy_(student[name])

    def train(self, mode: bool = True) -> ParticipantContrast:
        """Put the student in training mode or out of it; the teacher stays in its own."""
        super().train(mode)
        self.teacher.eval()
        for module in self.teacher.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # Both views are normalised the same way, by their batch; but the running
                # statistics follow the student's alone.
                module.train(mode)
                module.track_running_stats = not mode
        return self

    @property
    def teacher_backbone(self) -> nn.Module:
        """The teacher's backbone, whose weights and statistics are averages of the student's."""
        return self.teacher[0]


def contrast_loss(
    first: Float[Tensor, "pair projection"],
    second: Float[Tensor, "pair projection"],
    participants: Int[Tensor, " pair"],
    config: ContrastConfig,
) -> ContrastLoss:
    """0.5 (l12 + l21) + w 0.5 (KoLeo(first) + KoLeo(second)).

    Args:
        first: Projections of the first view, of any floating type; they need no unit length.
        second: Projections of the second view.
        participants: Who each pair belongs to.
        config: Temperature and weight.

    Returns:
        Scalars in float32, or in float64 for projections in float64.

    Raises:
        InputError: Fewer than two pairs.
    """
    if len(participants) < 2:
        raise InputError(
            "a contrast needs two pairs or more", code="batch_too_small", place="contrast_loss",
            remedy="Use more participants a batch.",
        )  # fmt: skip
    with torch.autocast(first.device.type, enabled=False):
        one, two = (F.normalize(_at_least_single(z), dim=-1) for z in (first, second))
        across, t = one @ two.mT, config.temperature
        one_finds_two = participant_contrast(across, one @ one.mT, participants, t)
        two_finds_one = participant_contrast(across.mT, two @ two.mT, participants, t)
        contrast = 0.5 * (one_finds_two + two_finds_one)
        spread = 0.5 * (koleo(one) + koleo(two))
    return ContrastLoss(contrast + config.koleo_weight * spread, contrast, spread)


def participant_contrast(
    across: Float[Tensor, "pair pair"],
    within: Float[Tensor, "pair pair"],
    participants: Int[Tensor, " pair"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Mean of -log of the positive's share among itself and all of other participants.

    Args:
        across: Cosines of this view's vectors (rows) with the other view's; the diagonal holds the
            positives.
        within: Cosines of this view's vectors with each other.
        participants: Who each pair belongs to; what is one's own beside the positive is left out.
        temperature: What similarities are divided by.
    """
    stranger = participants[:, None] != participants[None, :]
    positive = torch.eye(len(participants), dtype=torch.bool, device=across.device)
    across = (across / temperature).masked_fill(~(stranger | positive), -torch.inf)
    within = (within / temperature).masked_fill(~stranger, -torch.inf)
    everything = torch.logsumexp(torch.cat([across, within], dim=1), dim=1)
    return (everything - across.diagonal()).mean()


def koleo(vectors: Float[Tensor, "pair projection"]) -> Float[Tensor, ""]:
    """-mean log of the distance to the nearest other: small when vectors spread evenly.

    Args:
        vectors: Of unit length, at least two. After Sablayrolles et al., "Spreading vectors for
            similarity search" (ICLR 2019).
    """
    with torch.no_grad():
        nearest = (vectors @ vectors.mT).fill_diagonal_(-torch.inf).argmax(1)
    return -torch.log((vectors - vectors[nearest]).norm(dim=-1) + _KOLEO_FLOOR).mean()


def _at_least_single(x: Tensor) -> Tensor:
    """Half precision has neither the range of exp(25) nor a place for 1e-8."""
    return x if x.dtype == torch.float64 else x.float()
