"""What a model knows of one patient at one moment, and the risk it makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tsfm import clock
from tsfm.batches.batch import SECONDS_PER_HOUR, Batch, make_batch
from tsfm.errors import InputError
from tsfm.models.checkpoint import ModelDirectory
from tsfm.tasks.cohorts import Task
from tsfm.tasks.registry import task_named
from tsfm.tokens.event_tokens import SubjectTokens, order_of_knowing
from tsfm.tokens.signal_vectors import SignalVectors

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
    stored = directory.calibration.get(task.name, {"slope": 1.0, "offset": 0.0})
    return stored["slope"] * (torch.log(raw) - torch.log1p(-raw)) + stored["offset"]


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
        events: pl.DataFrame,
        task_name: str,
        moment: datetime,
        signals: SignalVectors | None = None,
    ) -> KnownPast:
        """Read whole events of one subject up to a moment; see `attribution.occlude`."""
        task = task_named(task_name)
        directory.model.task_head(task.name)
        stream = order_of_knowing(events)
        tokens = directory.tokenize(events, signals=signals)
        if len(tokens.subject_id) != 1:
            raise InputError(
                f"events of {len(tokens.subject_id)} subjects, not of one",
                code="not_one_subject", place="events", remedy="Filter the events by subject_id.",
            )  # fmt: skip
        at_s = clock.to_us(moment) / 1e6
        n = int(np.searchsorted(tokens.time_s, at_s, side="right"))
        if n == 0:
            raise InputError(
                "nothing is known of the subject by then", code="no_events",
                place="prediction_time", remedy="Ask at a moment after the first event.",
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
        return model.backbone(model.memory(x, gap, borders), gap, borders)[borders[1:] - 1]


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
