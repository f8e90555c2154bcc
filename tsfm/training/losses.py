"""What a batch teaches: the next event at every token, and the time to the next admission.

The time to the next hospital admission, with death competing, is asked at every token and not only
at discharges: each state learns to hold the risk, and a patient with one stay teaches as much a
token as one with ten. Follow-up ends at the data set's own end; where dates are shifted a patient
at a time there is no such end, and a year after the last event is taken as seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsfm import codes
from tsfm.batches.batch import Batch
from tsfm.batches.dataset import COMPETING, EVENT, NONE, PredictionPoints
from tsfm.models.timeline import TimelineModel
from tsfm.tokens.token_store import TokenStore

_SECONDS_PER_DAY = 86400.0
_FOLLOW_UP_AFTER_LAST_S = 365.0 * _SECONDS_PER_DAY


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts of the pretraining loss.

    Attributes:
        code: Next code.
        value: Next value.
        time: Time to the next event.
        admission: Time to the next admission, death competing.
    """

    code: float = 0.5
    value: float = 0.25
    time: float = 0.25
    admission: float = 1.0


@dataclass(frozen=True)
class AdmissionTargets:
    """What is needed to find each token's next admission.

    Attributes:
        admission_ids: Token ids of hospital admissions.
        death_ids: Token ids of death.
        until_s: End of the data set's follow-up in seconds, or None where dates are shifted.
    """

    admission_ids: NDArray[np.int64]
    death_ids: NDArray[np.int64]
    until_s: float | None

    @classmethod
    def create(cls, store: TokenStore) -> AdmissionTargets:
        """Read the ids from the vocabulary and the follow-up from the store's facts."""
        until = store.config.get("data_as_of")
        until_s = None
        if until and not store.config.get("dates_shifted"):
            moment = datetime.fromisoformat(until)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            until_s = moment.timestamp()
        return cls(
            np.array(store.vocabulary.ids_of_class(codes.ADMISSION), np.int64),
            np.array(store.vocabulary.ids_of_class(codes.DEATH), np.int64),
            until_s,
        )

    def points(self, batch: Batch) -> PredictionPoints:
        """One point a token at which the subject is alive and still followed."""
        code, times = batch.code.numpy(), batch.time_s.numpy()
        borders = batch.cu_seqlens.numpy()
        is_admission = np.isin(code, self.admission_ids)
        is_death = np.isin(code, self.death_ids)
        outcome = np.zeros(len(code), np.int64)
        days = np.zeros(len(code), np.float32)
        for start, stop in pairwise(borders.tolist()):
            own = times[start:stop]
            end = own[-1] + _FOLLOW_UP_AFTER_LAST_S if self.until_s is None else self.until_s
            admission = _next_after(own, own[is_admission[start:stop]])
            death = _next_after(own, own[is_death[start:stop]])
            first = np.minimum(np.minimum(admission, death), end)
            outcome[start:stop] = np.where(
                first == end, NONE, np.where(admission <= death, EVENT, COMPETING)
            )
            alive = own < (
                own[is_death[start:stop]].min() if is_death[start:stop].any() else np.inf
            )
            days[start:stop] = np.where(alive, (first - own) / _SECONDS_PER_DAY, 0.0)
        position = np.flatnonzero(days > 0)
        return PredictionPoints(
            position=torch.from_numpy(position),
            elapsed_hours=torch.zeros(len(position)),
            outcome=torch.from_numpy(outcome[position]),
            days=torch.from_numpy(days[position]),
            row=torch.from_numpy(position),
        )


def _next_after(own: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Time of the first of `found` after each time, infinite where there is none."""
    padded = np.append(found, np.inf)
    return padded[np.searchsorted(found, own, side="right")]


def pretraining_loss(
    model: TimelineModel,
    batch: Batch,
    hidden: Tensor,
    targets: AdmissionTargets,
    weights: LossWeights,
) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum of the pretraining losses and its parts.

    Args:
        model: Model whose heads are used.
        batch: Packed tokens.
        hidden: (T, d_model) states of them.
        targets: Where the next admissions are found.
        weights: Weights of the parts.
    """
    follows = batch.position[1:] > 0  # the next token belongs to the same subject
    now = torch.nonzero(follows).squeeze(-1)
    after = now + 1
    following = model.next_event.loss(
        hidden[now],
        batch.code[after],
        batch.value[after],
        (batch.bin[after] > 0).to(hidden),
        batch.gap_hours[after],
    )
    points = targets.points(batch)
    log_hazard = model.admission(hidden[points.position], points.elapsed_hours)
    admission = model.admission.negative_log_likelihood(
        log_hazard, points.outcome, points.days
    ).mean()
    total = (
        weights.code * following.code
        + weights.value * following.value
        + weights.time * following.time
        + weights.admission * admission
    )
    parts = {
        "code": following.code.item(),
        "value": following.value.item(),
        "time": following.time.item(),
        "admission": admission.item(),
    }
    return total, parts
