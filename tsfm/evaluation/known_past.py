"""What a model knows of one patient at one moment, and the risk it makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tsfm.batches.batch import SECONDS_PER_HOUR, Batch, make_batch
from tsfm.errors import InputError
from tsfm.evaluation.given_records import moment_us, read_records
from tsfm.evaluation.recalibration import Recalibration
from tsfm.models.checkpoint import ModelDirectory
from tsfm.models.timeline_backbone import HybridBackbone
from tsfm.tasks.cohorts import Task
from tsfm.tasks.registry import task_named
from tsfm.tokens.event_tokens import SubjectTokens, order_of_knowing
from tsfm.tokens.signal_vectors import SignalVectors
from tsfm.tokens.vocabulary import UNKNOWN_ID

_EDGE = 1e-9  # as in `calibration.logit`


def calibrated_log_odds(
    directory: ModelDirectory,
    task: Task,
    hidden: Float[Tensor, "point model"],
    elapsed_hours: Float[Tensor, " point"],
) -> Float[Tensor, " point"]:
    """Log odds of a task's calibrated risk, float64 and differentiable.

    Args:
        directory: Model with its calibration.
        task: The question.
        hidden: Hidden state after the last known token.
        elapsed_hours: Hours from that token to the moment of prediction.

    Raises:
        ModelMismatch: The model was not fine-tuned for the task.
    """
    head = directory.model.task_head(task.name)
    incidence = head.cumulative_incidence(head(hidden, elapsed_hours), task.horizon_days).double()
    raw = incidence[:, 0] if task.positive == "event" else 1 - incidence.sum(-1)
    raw = raw.clamp(_EDGE, 1 - _EDGE)
    found = Recalibration.from_dict(directory.calibration.get(task.name, {}))
    if found.knots:
        raw = _interpolated(raw, found).clamp(_EDGE, 1 - _EDGE)
    return found.slope * (torch.log(raw) - torch.log1p(-raw)) + found.offset


def _interpolated(p: Float[Tensor, " point"], found: Recalibration) -> Float[Tensor, " point"]:
    """`Recalibration.apply` of an isotonic map, with the gradients of its straight pieces."""
    knots, levels = (torch.tensor(x, dtype=p.dtype) for x in (found.knots, found.levels))
    if len(knots) == 1:
        return levels.expand(p.shape) + 0 * p
    right = torch.searchsorted(knots, p.detach(), right=True).clamp(1, len(knots) - 1)
    low, high = knots[right - 1], knots[right]
    along = ((p - low) / (high - low)).clamp(0, 1)
    return levels[right - 1] + along * (levels[right] - levels[right - 1])


@dataclass(frozen=True)
class KnownPast:
    """What is known of one subject at the prediction time.

    Attributes:
        directory: The model.
        task: The question.
        prediction_time: When it is asked.
        stream: The known events in the order of knowing.
        tokens: Their tokens.
        batch: The same with its features.
        elapsed_hours: (T,) hours from each token to the prediction time.
    """

    directory: ModelDirectory
    task: Task
    prediction_time: datetime
    stream: pl.DataFrame
    tokens: SubjectTokens
    batch: Batch
    elapsed_hours: Tensor

    @classmethod
    def create(
        cls,
        directory: ModelDirectory,
        events: Any,
        task_name: str,
        moment: datetime,
        signals: SignalVectors | None = None,
    ) -> KnownPast:
        """Read whole events of one subject up to a moment; see `attribution.occlude`.

        Raises:
            InputError: See `attribution.occlude`.
            ModelMismatch: The model was not fine-tuned for the task.
        """
        task = task_named(task_name)
        directory.model.task_head(task.name)
        at_s = moment_us(moment) / 1e6
        events = read_records(events)
        stream = order_of_knowing(events)
        tokens = directory.tokenize(events, signals=signals)
        if len(tokens.subject_id) != 1:
            raise InputError(
                f"events of {len(tokens.subject_id)} subjects, not of one",
                code="not_one_subject", place="events", remedy="Filter the events by subject_id.",
            )  # fmt: skip
        n = int(np.searchsorted(tokens.time_s, at_s, side="right"))
        if n == 0:
            raise InputError(
                "nothing is known of the subject by then", code="no_events",
                place="prediction_time", remedy="Ask at a moment after the first event.",
            )  # fmt: skip
        if not (tokens.code[:n] != UNKNOWN_ID).any():
            raise InputError(
                "of all that is known by then the model knows no code", code="no_known_code",
                place="events", remedy="Ask about subjects whose codes the model was trained on.",
            )  # fmt: skip
        elapsed = np.maximum(at_s - tokens.time_s[:n], 0.0) / SECONDS_PER_HOUR
        return cls(
            directory=directory,
            task=task,
            prediction_time=moment,
            stream=stream.head(n),
            tokens=tokens,
            batch=pack_tokens(tokens, directory.scale.step, np.arange(n), np.array([n])),
            elapsed_hours=torch.from_numpy(elapsed.astype(np.float32)),
        )

    @property
    def n(self) -> int:
        """Known tokens."""
        return self.batch.n_tokens

    def log_odds(self, hidden: Tensor, elapsed_hours: Tensor | None) -> Tensor:
        """Log odds after hidden states, by default of the last known token."""
        if elapsed_hours is None:
            elapsed_hours = self.elapsed_hours[-1:].expand(len(hidden))
        return calibrated_log_odds(self.directory, self.task, hidden, elapsed_hours)

    def read(self, x: Tensor, n_copies: int) -> Tensor:
        """Hidden state at the end of several versions of the record's embeddings."""
        model, gap = self.directory.model, self.batch.gap_hours.repeat(n_copies)
        borders = torch.arange(n_copies + 1) * self.n
        times = {}
        if isinstance(model.backbone, HybridBackbone):
            times["seconds"] = self.batch.time_s.repeat(n_copies)
        x = model.memory(x, gap, borders)
        return model.backbone(x, gap, borders, **times)[borders[1:] - 1]


def pack_tokens(
    tokens: SubjectTokens, step: NDArray[np.float32], at: NDArray, lengths: NDArray
) -> Batch:
    """Some of a subject's tokens as records of their own, with the features they have there."""
    return make_batch(
        code=tokens.code[at],
        value=tokens.value[at],
        bin=tokens.bin[at],
        time_s=tokens.time_s[at],
        lag_hours=tokens.lag_hours[at],
        lengths=lengths,
        subject_id=np.repeat(tokens.subject_id, len(lengths)),
        birth_s=np.repeat(tokens.birth_s, len(lengths)),
        step=step,
        signal=tokens.signal[at],
        signals=tokens.signals,
    )
