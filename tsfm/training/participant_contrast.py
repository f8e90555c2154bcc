"""Training an encoder by its participants: two segments of each, no labels.

The loop around `tsfm.models.ppg_contrastive`. A batch is two different segments of each of many
participants; both are standardised and augmented, each by its own coins, then student and teacher
see one each. Adam, and a rate that is halved every so many steps, after Abbaspourazad et al. (ICLR
2024). The teacher moves before the optimiser does.

It stops after the steps it is told, and chooses nothing. Whether the embedding is of use is for
probes on held-out participants to say; `participant_retrieval` is a quick look.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from tqdm import tqdm

from tsfm.errors import InputError, TsfmError
from tsfm.kernels.heap import keep_freed_memory
from tsfm.models.efficientnet1d import EMBEDDING_WIDTH, EfficientNet1d, standardise
from tsfm.models.ppg_contrastive import ContrastConfig, ContrastLoss, ParticipantContrast
from tsfm.models.signal_grid import refuse_infinite, to_tensor
from tsfm.training.signal_augmentations import PPG_AUGMENTATION, SignalAugmentation, augment

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows of the first and of the second segment of each participant of a batch."""


@dataclass(frozen=True)
class ParticipantContrastConfig:
    """How to train.

    Attributes:
        n_steps: Steps of the optimiser.
        n_participants_per_batch: Participants a batch, two segments each; fewer where there are
            fewer.
        lr: Learning rate at the start.
        weight_decay: Of Adam, added to the gradient.
        halve_every: Steps after which the rate is halved, again and again; 0 keeps it.
        augmentation: What happens to each segment.
        contrast: The objective.
        seed: Of pairs, augmentations and dropout.

    Raises:
        InputError: `bad_training`: a batch of one, or a rate or count that is none.
    """

    n_steps: int
    n_participants_per_batch: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-5
    halve_every: int = 0
    augmentation: SignalAugmentation = PPG_AUGMENTATION
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what trains nothing."""
        counts = self.n_steps >= 0 and self.halve_every >= 0 and self.n_participants_per_batch >= 2
        if not (counts and 0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf):
            raise InputError(
                "a batch of one, or a rate or count that is none", code="bad_training",
                place="ParticipantContrastConfig",
                remedy="Use two participants a batch or more, and a positive rate.",
            )  # fmt: skip


@dataclass(frozen=True)
class ParticipantContrastResult:
    """What a run came to.

    Attributes:
        objective: Student, heads and teacher.
        losses: (n_steps, 3) total, contrast and KoLeo at each step.
    """

    objective: ParticipantContrast
    losses: NDArray[np.float64]


def train_participant_contrast(
    encoder: EfficientNet1d,
    segments: NDArray[np.float32] | Tensor,
    participants: ArrayLike,
    config: ParticipantContrastConfig,
    *,
    pairs: Iterable[Pairs] | None = None,
    progress: bool | None = None,
) -> ParticipantContrastResult:
    """Train an encoder in place and leave it in evaluation mode.

    Args:
        encoder: Encoder to train, on the device to train on.
        segments: (segment, channel, time) numbers in any unit; NaN where there are none.
        participants: Integer participant of each segment; those with one segment are left out.
        config: How to train.
        pairs: Batches of pairs, an epoch each time it is gone through, such as a sampler that
            weighs segments by their quality. None: each epoch has every participant once, with two
            of its segments at random; but not one who would be alone in the last batch.
        progress: Show a bar; None: on a terminal only.

    Raises:
        InputError: Segments and participants do not fit; fewer than two participants have two
            segments; `infinite_signal`; `bad_pairs`: pairs of one's own that are not two segments
            of one participant.
        TsfmError: `loss_not_finite`; weights and running statistics are those before that step.
    """
    keep_freed_memory()
    own = next(encoder.parameters())
    device = own.device
    samples = to_tensor(segments)
    owners = np.asarray(participants)
    _check(samples, owners, encoder)
    generator = torch.Generator(device).manual_seed(config.seed)
    losses: list[list[float]] = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        objective = ParticipantContrast(encoder, EMBEDDING_WIDTH, config.contrast).to(device)
        learned = [p for p in objective.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(learned, lr=config.lr, weight_decay=config.weight_decay)
        batches = _endless(pairs if pairs is not None else _RandomPairs(owners, config))
        try:
            for step in tqdm(range(config.n_steps), "contrast", disable=_hidden(progress)):
                if config.halve_every and step and step % config.halve_every == 0:
                    for group in optimizer.param_groups:
                        group["lr"] *= 0.5
                first, second = _checked_pairs(next(batches), owners)
                views = [
                    augment(standardise(samples[rows].to(own)), config.augmentation,
                            generator=generator)
                    for rows in (first, second)
                ]  # fmt: skip
                loss = contrast_step(
                    objective, optimizer, views[0], views[1],
                    torch.as_tensor(owners[first], dtype=torch.int64, device=device),
                )  # fmt: skip
                losses.append([float(part) for part in loss])
        finally:
            objective.eval()
    return ParticipantContrastResult(objective, np.array(losses).reshape(-1, 3))


def contrast_step(
    objective: ParticipantContrast,
    optimizer: torch.optim.Optimizer,
    first: Tensor,
    second: Tensor,
    participants: Tensor,
) -> ContrastLoss:
    """One step on a batch of pairs: gradients, then the teacher, then the optimiser.

    Args:
        objective: Student and teacher, in training mode.
        optimizer: Over the student's parameters.
        first: (participant, channel, time) augmented segments for the student.
        second: Others of the same participants for the teacher.
        participants: (participant,) who they are.

    Raises:
        TsfmError: `loss_not_finite`; nothing is changed then.
    """
    optimizer.zero_grad(set_to_none=True)
    before = {name: buffer.clone() for name, buffer in objective.named_buffers()}
    loss = objective(first, second, participants)
    if not math.isfinite(loss.total.item()):
        for name, buffer in objective.named_buffers():  # batch norms took the segments in
            buffer.copy_(before[name])
        raise TsfmError(
            "the loss is no finite number", code="loss_not_finite", place="contrast_step",
            remedy="Lower the learning rate, or raise the temperature.",
        )  # fmt: skip
    loss.total.backward()
    objective.update_teacher()
    optimizer.step()
    return ContrastLoss(*(part.detach() for part in loss))


@torch.no_grad()
def embed_segments(
    encoder: nn.Module, segments: NDArray[np.float32] | Tensor, *, batch_size: int = 32
) -> NDArray[np.float32]:
    """(segment, embedding) of segments that need not be standardised.

    Args:
        encoder: Put in evaluation mode for the time of the call.
        segments: (segment, channel, time) numbers in any unit; NaN where there are none.
        batch_size: Segments at once.

    Raises:
        InputError: `bad_signal`: segments that are no numbers; `infinite_signal`.
    """
    own = next(encoder.parameters())
    samples = to_tensor(segments)
    refuse_infinite(samples, "segments")
    was_training = encoder.training
    encoder.eval()
    rows = samples.split(batch_size)
    found = [encoder(standardise(part.to(own))).float().cpu().numpy() for part in rows]
    encoder.train(was_training)
    return np.concatenate(found) if found else np.zeros((0, EMBEDDING_WIDTH), np.float32)


def participant_retrieval(embeddings: ArrayLike, participants: ArrayLike) -> float:
    """Share of segments whose most similar other segment is of the same participant.

    Similarity is the cosine after each coordinate's mean over these segments is taken off, since
    an untrained encoder points everywhere the same way.

    Args:
        embeddings: (segment, embedding).
        participants: (segment,) who each belongs to.

    Raises:
        InputError: `bad_embeddings`: fewer than two, not finite, or not one participant each.
    """
    x = np.asarray(embeddings, np.float64)
    owners = np.asarray(participants)
    if x.ndim != 2 or len(x) < 2 or owners.shape != x.shape[:1] or not np.isfinite(x).all():
        raise InputError(
            "embeddings that are not finite, or do not fit the participants",
            code="bad_embeddings", place="embeddings",
            remedy="Give (segment, embedding) of two segments or more, and whose each is.",
        )  # fmt: skip
    x = x - x.mean(0)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    similar = x @ x.T
    np.fill_diagonal(similar, -np.inf)
    return float((owners[similar.argmax(1)] == owners).mean())


def _check(samples: Tensor, owners: NDArray[np.generic], encoder: EfficientNet1d) -> None:
    if samples.dim() != 3 or samples.shape[:1] != owners.shape or len(owners) < 4:
        raise InputError(
            "segments and participants do not fit each other", code="bad_segments",
            place="train_participant_contrast",
            remedy="Give (segment, channel, time) and one participant a segment.",
        )  # fmt: skip
    if samples.shape[1] != encoder.config.n_channels or not np.issubdtype(owners.dtype, np.integer):
        raise InputError(
            "the encoder reads other channels, or participants are no integers",
            code="bad_segments", place="train_participant_contrast",
            remedy=f"Give {encoder.config.n_channels} channels and integer participants.",
        )  # fmt: skip
    refuse_infinite(samples, "segments")
    _, counts = np.unique(owners, return_counts=True)
    if (counts >= 2).sum() < 2:
        raise InputError(
            "fewer than two participants have two segments", code="no_pairs",
            place="train_participant_contrast", remedy="Give more segments of more participants.",
        )  # fmt: skip


def _checked_pairs(pairs: Pairs, owners: NDArray[np.generic]) -> Pairs:
    """Rows of a batch, refused where a pair is not two different segments of one participant."""
    first, second = (np.asarray(rows) for rows in pairs)
    whole = first.shape == second.shape and first.ndim == 1 and len(first) > 0
    rows = np.concatenate([first, second]) if whole else np.zeros(0)
    inside = np.issubdtype(rows.dtype, np.integer) and 0 <= rows.min() <= rows.max() < len(owners)
    if not inside or (first == second).any() or (owners[first] != owners[second]).any():
        raise InputError(
            "a pair is not two different segments of one participant", code="bad_pairs",
            place="pairs", remedy="Give the rows of the first segments and of the second ones.",
        )  # fmt: skip
    return first, second


class _RandomPairs:
    """Pairs of rows; who has one segment is left out, as is a batch of one participant."""

    def __init__(self, owners: NDArray[np.generic], config: ParticipantContrastConfig) -> None:
        order = np.argsort(owners, kind="stable")
        _, starts = np.unique(owners[order], return_index=True)
        rows = np.split(order, starts[1:])
        self.rows = [of_one for of_one in rows if len(of_one) >= 2]
        self.batch = config.n_participants_per_batch
        self.rng = np.random.default_rng(config.seed)

    def __iter__(self) -> Iterator[Pairs]:
        who = self.rng.permutation(len(self.rows))
        for i in range(0, len(who), self.batch):
            drawn = [
                self.rng.choice(self.rows[k], 2, replace=False) for k in who[i : i + self.batch]
            ]
            if len(drawn) >= 2:
                pairs = np.array(drawn, np.int64)
                yield pairs[:, 0], pairs[:, 1]


def _endless(epochs: Iterable[Pairs]) -> Iterator[Pairs]:
    while True:
        n = 0
        for batch in epochs:
            n += 1
            yield batch
        if n == 0:
            raise InputError(
                "the sampler gives no pairs", code="no_pairs", place="train_participant_contrast",
                remedy="Give one that can be gone through again and again.",
            )  # fmt: skip


def _hidden(progress: bool | None) -> bool | None:
    return None if progress is None else not progress
