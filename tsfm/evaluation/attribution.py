"""What a score rests on: every known event's effect on one patient's log odds.

Two answers to one question, both in log odds of the calibrated risk.

**Occlusion** is what the model itself would have said had an event never been written down:

    effect_i = logit p(all events) - logit p(all events but i)

It is exact, not sampled: features that look back at the missing token (the gap, and the trend of
its code) are those of a record without it, and only what follows it is read again, from a state
kept of what came before. Two events that say the same thing cover for each other, so the effects
need not add up.

**Integrated gradients** (Sundararajan, Taly and Yan 2017, equation 1) share out the distance from
a baseline in which as many events happened at the same times and nothing is known of them: the
unknown code, which training puts in at random, without a value or a trend. These effects add up.

An event is its token here. A missing one leaves the age at the others and the place of static facts
as they are, even where it was the birth or the first contact. The effects say what the model reads,
not what harms the patient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsfm import schema
from tsfm.batches.batch import Batch
from tsfm.evaluation.given_records import check_max_tokens
from tsfm.evaluation.known_past import KnownPast
from tsfm.evaluation.occlusion import TREND_FIELDS, hidden_without_each
from tsfm.models.checkpoint import ModelDirectory
from tsfm.tokens.signal_vectors import NO_SIGNAL, SignalVectors

_FIRST_NODES = 16


@dataclass(frozen=True)
class Attribution:
    """Effects of the events behind one score.

    Attributes:
        task: The question.
        method: `occlusion` or `integrated_gradients`.
        prediction_time: When it was asked.
        log_odds: Calibrated log odds of the score.
        baseline_log_odds: Those of the baseline; None for occlusion, where every event has its own.
        residual: What the effects leave of the distance to the baseline; None likewise.
        events: One row a known event in the order of knowing: subject_id, time, available_time,
            code, numeric_value, effect (log odds; null where nothing is left without the event).
    """

    task: str
    method: str
    prediction_time: datetime
    log_odds: float
    baseline_log_odds: float | None
    residual: float | None
    events: pl.DataFrame

    def top(self, n: int = 10) -> pl.DataFrame:
        """The `n` events of the largest effect, up or down."""
        effect = pl.col("effect")
        return self.events.drop_nulls("effect").sort(effect.abs(), descending=True).head(n)

    def _repr_html_(self) -> str:
        probability = 1 / (1 + math.exp(-self.log_odds))
        return (
            f"<b>{self.task}</b> {probability:.1%}, effects by {self.method.replace('_', ' ')}"
            + self.top()._repr_html_()
        )


def occlude(
    directory: ModelDirectory,
    events: Any,
    task_name: str,
    prediction_time: datetime,
    *,
    signals: SignalVectors | None = None,
    max_tokens: int = 65_536,
) -> Attribution:
    """Effect of every event, by leaving it out.

    n known events cost about n squared half tokens, read many records at a time.

    Args:
        directory: Loaded model, fine-tuned for the task.
        events: All events of one subject, a data frame of polars, pandas or pyarrow with columns of
            `schema.EVENTS`; those that are missing are taken as `EventWriter.add` takes them.
        task_name: The question.
        prediction_time: Last moment of knowledge, inclusive; without a zone.
        signals: Vectors of the waveforms that the events point to.
        max_tokens: Tokens read at once, but for a single record that is longer.

    Raises:
        InputError: Not one subject, nothing known of it by then, or no code that the model knows; a
            frame, a moment or a limit that can't be read.
        ModelMismatch: The model was not fine-tuned for the task.
    """
    check_max_tokens(max_tokens)
    past = KnownPast.create(directory, events, task_name, prediction_time, signals)
    with torch.no_grad():
        hidden = directory.model(past.batch)[-2:]
        ends = past.log_odds(hidden, past.elapsed_hours[-2:])
        without = [past.log_odds(h, None) for h in hidden_without_each(past, max_tokens)]
        # Without the last token the one before it is asked, a while longer ago.
        without.append(ends[:-1])
    effect = ends[-1] - torch.cat(without)
    found: list[float | None] = [None] if past.n == 1 else effect.tolist()
    return _attribution(past, "occlusion", float(ends[-1]), found)


def integrate_gradients(
    directory: ModelDirectory,
    events: Any,
    task_name: str,
    prediction_time: datetime,
    *,
    signals: SignalVectors | None = None,
    tolerance: float = 0.005,
    most_nodes: int = 256,
    max_tokens: int = 65_536,
) -> Attribution:
    """Effect of every event, as its share of the distance from knowing nothing of the events.

    The integral is taken by Gauss and Legendre with twice the nodes until the effects add up.

    Args:
        directory: Loaded model, fine-tuned for the task.
        events: All events of one subject, a data frame of polars, pandas or pyarrow with columns of
            `schema.EVENTS`; those that are missing are taken as `EventWriter.add` takes them.
        task_name: The question.
        prediction_time: Last moment of knowledge, inclusive; without a zone.
        signals: Vectors of the waveforms that the events point to.
        tolerance: Share of the distance that the effects may leave.
        most_nodes: Nodes at which to stop all the same; `residual` says what is left then.
        max_tokens: Tokens read at once, but for a single record that is longer.

    Raises:
        InputError: Not one subject, nothing known of it by then, or no code that the model knows; a
            frame, a moment or a limit that can't be read.
        ModelMismatch: The model was not fine-tuned for the task.
    """
    check_max_tokens(max_tokens)
    past = KnownPast.create(directory, events, task_name, prediction_time, signals)
    with torch.no_grad():
        there = directory.model.embedding(past.batch)
        start = directory.model.embedding(_unknown(past.batch))
        both = past.log_odds(past.read(torch.cat([start, there]), 2), None)
    distance = float(both[1] - both[0])
    n_nodes = _FIRST_NODES
    while True:
        effect = _integrate(past, start, there, n_nodes, max_tokens)
        residual = distance - float(effect.sum())
        if abs(residual) <= tolerance * max(abs(distance), 0.01) or 2 * n_nodes > most_nodes:
            break
        n_nodes *= 2
    return _attribution(
        past, "integrated_gradients", float(both[1]), effect.tolist(), float(both[0]), residual
    )


def _unknown(batch: Batch) -> Batch:
    """Events at the same times of which nothing is known."""
    nothing = {name: torch.zeros_like(getattr(batch, name)) for name in ("code", "value", "bin")}
    nothing["signal"] = torch.full_like(batch.signal, NO_SIGNAL)
    return replace(
        batch, **nothing, **{name: torch.zeros_like(getattr(batch, name)) for name in TREND_FIELDS}
    )


def _integrate(
    past: KnownPast, start: Tensor, there: Tensor, n_nodes: int, max_tokens: int
) -> NDArray[np.float64]:
    """Integrated gradients of the log odds, summed over channels, (T,)."""
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
    total = torch.zeros_like(there, dtype=torch.float64)
    at_once = max(1, max_tokens // past.n)
    for first in range(0, n_nodes, at_once):
        part = slice(first, first + at_once)
        along = torch.from_numpy((nodes[part] + 1) / 2).to(there).view(-1, 1, 1)
        x = (start + along * (there - start)).flatten(0, 1).requires_grad_()
        y = past.log_odds(past.read(x, len(along)), None)
        (slope,) = torch.autograd.grad(y.sum(), x)
        weight = torch.from_numpy(weights[part] / 2).view(-1, 1, 1)
        total += (slope.view(len(along), *there.shape).double() * weight).sum(0)
    return (total * (there - start).double()).sum(-1).numpy()


def _attribution(
    past: KnownPast,
    method: str,
    log_odds: float,
    effects: list[float | None],
    baseline: float | None = None,
    residual: float | None = None,
) -> Attribution:
    known = past.stream.select(
        schema.SUBJECT_ID,
        schema.TIME,
        schema.AVAILABLE_TIME,
        schema.CODE,
        schema.NUMERIC_VALUE,
        pl.Series("effect", effects, dtype=pl.Float64),
    )
    return Attribution(
        past.task.name, method, past.prediction_time, log_odds, baseline, residual, known
    )
