"""What a batch teaches: the next event and the time to the next admission at every token.

The time to the next hospital admission, with death competing, is asked at every token and not only
at discharges: each state learns to hold the risk, and a patient with one stay teaches as much a
token as one with ten. Follow-up ends at the data set's own end, as the labels' does; where dates
are shifted a patient at a time there is no such end, and a year after the last event is taken as
seen.

A model with hazards of codes is also asked, at a sample of tokens, for the time to the next
occurrence of each code. There nothing is taken as seen beyond a record's last event: not every code
would have left a trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsfm import codes
from tsfm.batches.batch import Batch
from tsfm.batches.dataset import COMPETING, EVENT, NONE, PredictionPoints
from tsfm.models.many_hazards import ManyHazards
from tsfm.models.timeline import TimelineModel
from tsfm.tokens.token_store import TokenStore

_SECONDS_PER_DAY = 86400.0
_FOLLOW_UP_AFTER_LAST_S = 365.0 * _SECONDS_PER_DAY
HAZARD_POSITIONS = 256  # tokens of a batch that are asked for the hazards of codes


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts of the pretraining loss.

    Attributes:
        code: Next code.
        value: Next value.
        time: Time to the next event.
        admission: Time to the next admission, death competing.
        hazards: Time to the next occurrence of each of the model's hazard codes, in nats an event;
            of no account in a model that has none.
    """

    code: float = 0.5
    value: float = 0.25
    time: float = 0.25
    admission: float = 1.0
    hazards: float = 0.25

    def share_of(self, parts: Iterable[str], *, hazards: bool) -> float:
        """Share of some parts in the weight of all.

        Args:
            parts: Names of those that a batch has.
            hazards: Whether the model has hazards of codes.
        """
        named = vars(self) if hazards else {k: w for k, w in vars(self).items() if k != "hazards"}
        told = set(parts)
        own = sum(weight for name, weight in named.items() if name in told)
        return own / sum(named.values()) if own else 0.0


@dataclass(frozen=True)
class AdmissionTargets:
    """What is needed to find each token's next admission.

    Attributes:
        admission_ids: Token ids of hospital admissions.
        death_ids: Token ids of death.
        until_s: End of the data set's follow-up in seconds, or None where dates are shifted.
        codes: Codes of the vocabulary, by which occurrences of codes and their classes are found.
    """

    admission_ids: NDArray[np.int64]
    death_ids: NDArray[np.int64]
    until_s: float | None
    codes: tuple[str, ...] = ()

    @classmethod
    def create(cls, store: TokenStore) -> AdmissionTargets:
        """Read the ids from the vocabulary and the follow-up from the store's facts."""
        return cls(
            np.array(store.vocabulary.ids_of_class(codes.ADMISSION), np.int64),
            np.array(store.vocabulary.ids_of_class(codes.DEATH), np.int64),
            _watched_until_s(store.config),
            store.vocabulary.codes,
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


@dataclass(frozen=True)
class Occurrences:
    """Time to the next occurrence of each of some codes, from some tokens.

    Attributes:
        position: (P,) index of the tokens, int64.
        days: (P, K) days to the first later moment of each code, or to the end of what is known.
        is_event: (P, K) whether it is the former.
    """

    position: Tensor
    days: Tensor
    is_event: Tensor


def next_occurrences(
    batch: Batch, targets: AdmissionTargets, names: tuple[str, ...], position: NDArray[np.int64]
) -> Occurrences:
    """When each code, or one below it, happens next.

    A record ends at death, else at the data set's end, else at its last event.

    Args:
        batch: Packed tokens.
        targets: Deaths, follow-up and codes.
        names: Codes or parents of codes.
        position: Tokens to ask from; those after which nothing is followed are left out.
    """
    borders, times = batch.cu_seqlens.numpy(), batch.time_s.numpy()
    subject = np.repeat(np.arange(batch.n_subjects), np.diff(borders))
    end = times[borders[1:] - 1] if targets.until_s is None else targets.until_s
    end = np.broadcast_to(end, batch.n_subjects).copy()
    died = np.isin(batch.code.numpy(), targets.death_ids)
    np.minimum.at(end, subject[died], times[died])
    position = position[times[position] < end[subject[position]]]
    # Sorted by subject, code and moment, what comes next is found for all pairs in one search.
    moments, moment = np.unique(times, return_inverse=True)
    n_moments, n_names = len(moments) + 1, len(names)
    token, name = _occurring(batch.code.numpy(), *code_members(targets.codes, names))
    found = np.sort((subject[token] * n_names + name) * n_moments + moment[token])
    asked = (subject[position] * n_names)[:, None] + np.arange(n_names)
    after = np.searchsorted(found, asked * n_moments + moment[position, None], side="right")
    there = np.append(found, -1)[after]
    happens = there // n_moments == asked
    at = np.where(happens, moments[np.minimum(there % n_moments, len(moments) - 1)], np.inf)
    last = end[subject[position], None]
    days = (np.minimum(at, last) - times[position, None]) / _SECONDS_PER_DAY
    return Occurrences(
        torch.from_numpy(position),
        torch.from_numpy(days.astype(np.float32)),
        torch.from_numpy(at <= last),
    )


@lru_cache(maxsize=4)
def code_members(
    vocabulary: tuple[str, ...], names: tuple[str, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which names an event of each token id is an occurrence of: its code, and that code's parents.

    Returns:
        (V + 1,) borders, and the indices of the names between each id's two.
    """
    index = {name: k for k, name in enumerate(names)}
    found = [
        [index[name] for name in (code, *codes.parents(code)) if name in index]
        for code in vocabulary
    ]
    borders = np.cumsum([0, *map(len, found)])
    return borders, np.array([k for own in found for k in own], np.int64)


def _occurring(
    code: NDArray[np.int64], borders: NDArray[np.int64], names: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each pair of a token and a name that it is an occurrence of."""
    n = (borders[1:] - borders[:-1])[code]
    token = np.repeat(np.arange(len(code)), n)
    place = np.arange(len(token)) - np.repeat(np.cumsum(n) - n, n)
    return token, names[borders[code[token]] + place]


def _watched_until_s(config: Mapping[str, Any]) -> float | None:
    if "watched_until_us" in config:
        until_us = config["watched_until_us"]
        return None if until_us is None else until_us / 1e6
    # A store of an older version knows no more than the data set's own word.
    until = config.get("data_as_of")
    if not until or config.get("dates_shifted"):
        return None
    moment = datetime.fromisoformat(until)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


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

    What a batch has nothing to teach of adds 0 and is no part: the next event where every subject
    has one token, the next admission where nobody is followed any more.

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
    each = model.admission.negative_log_likelihood(log_hazard, points.outcome, points.days)
    admission = each.mean() if len(points) else each.sum()
    parts: dict[str, float] = {}
    if len(now):
        parts |= {
            "code": following.code.item(),
            "value": following.value.item(),
            "time": following.time.item(),
        }
    if len(points):
        parts["admission"] = admission.item()
    total = (
        weights.code * following.code
        + weights.value * following.value
        + weights.time * following.time
        + weights.admission * admission
    )
    if model.many_hazards is not None and weights.hazards:
        hazards, n_asked = _hazard_loss(model, model.many_hazards, batch, hidden, targets)
        total = total + weights.hazards * hazards
        if n_asked:
            parts["hazards"] = hazards.item()
    return total, parts


def _hazard_loss(
    model: TimelineModel,
    head: ManyHazards,
    batch: Batch,
    hidden: Tensor,
    targets: AdmissionTargets,
) -> tuple[Tensor, int]:
    """Nats an event at tokens drawn anew each time in training, and spread evenly else.

    Returns:
        The loss, and how many of the tokens are followed.
    """
    n = min(HAZARD_POSITIONS, batch.n_tokens)
    if model.training:
        chosen = torch.randperm(batch.n_tokens)[:n].numpy()
    else:
        chosen = np.linspace(0, batch.n_tokens - 1, n).astype(np.int64)
    found = next_occurrences(batch, targets, model.config.hazard_codes, chosen)
    each = head.negative_log_likelihood(head(hidden[found.position]), found.days, found.is_event)
    return each.sum() / found.is_event.sum().clamp(min=1), len(found.position)
