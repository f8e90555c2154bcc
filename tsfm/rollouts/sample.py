"""Many futures from one past: read each subject once, then decode all futures together.

A subject's past is read in one packed pass. Its futures fork from the state it leaves, by index,
and run side by side with everybody else's in one table of at most `max_rows` rows; a row whose
future is over is taken by the next one that waits, so the memory needed does not grow with the
number of futures, nor with the length of the pasts.

A token has a wait, a code and, where the code carries one, a value. The wait comes first: if the
next token would stand beyond the horizon, the future is over. A future also ends at death, and at a
number of tokens. What that limit cuts off is unfinished: it stays in every count, named as what it
is. Of a subject whose death is in the past nothing is sampled: all its futures have ended as deaths
that are no outcome any more, so that one of them in a batch stops nobody else's.

ETHOS-ARES (arXiv 2502.06124), whose way of asking questions this is, reads the whole timeline again
for every token, one patient at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsfm import codes
from tsfm.batches.batch import SECONDS_PER_HOUR, Batch
from tsfm.errors import InputError, ModelMismatch
from tsfm.models.checkpoint import ModelDirectory
from tsfm.models.timeline_stepper import NextToken, TimelineStepper
from tsfm.rollouts.draws import draw_tokens, draw_values
from tsfm.rollouts.event_steps import EventSteps
from tsfm.rollouts.futures import DECIDED, DIED, HORIZON, UNFINISHED, Futures, FutureTokens
from tsfm.rollouts.outcomes import HOURS_PER_DAY, Outcome, OutcomeTally
from tsfm.rollouts.random_streams import PER_STEP, uniforms
from tsfm.rollouts.waits import Waits
from tsfm.tokens.value_scale import ValueScale

_CODE, _WAIT, _VALUE = range(3)  # which of a step's uniform numbers decides what
_STEPS_AT_ONCE = 32  # random numbers of so many steps are drawn together
_LEAST_REFILL = 8  # an eighth of the rows is free before they are refilled


class Stepper(Protocol):
    """A model of timelines that is continued token by token; see `TimelineStepper`."""

    @property
    def n_codes(self) -> int:
        """Size of the vocabulary."""
        ...

    def prefill(self, batch: Batch, n_slots: int) -> tuple[Tensor, Any]:
        """Hidden state at each subject's last token, and a table of states with so many slots."""
        ...

    def step(self, tokens: Batch, state: Any, source_slots: Tensor, target_slots: Tensor) -> Tensor:
        """Hidden state after one more token a row; the table of states is changed in place."""
        ...

    def next_token(self, hidden: Tensor) -> NextToken:
        """Distributions of the next token's code and wait."""
        ...

    def next_value(self, hidden: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the value of a code."""
        ...


@dataclass(frozen=True)
class FutureSource:
    """What futures are sampled from.

    Attributes:
        stepper: Model of timelines.
        scale: Scales of its vocabulary's values.
        death: Token ids after which nothing comes, known or sampled.
    """

    stepper: Stepper
    scale: ValueScale
    death: tuple[int, ...]

    @classmethod
    def of(cls, directory: ModelDirectory) -> FutureSource:
        """A loaded model directory."""
        death = tuple(directory.vocabulary.ids_of_class(codes.DEATH))
        return cls(TimelineStepper(directory.model), directory.scale, death)


@dataclass(frozen=True)
class _Rows:
    """Futures that run. A row has its hidden state after its last token, known or sampled."""

    future: NDArray[np.int64]
    subject: NDArray[np.int64]
    slot: NDArray[np.int64]
    source: NDArray[np.int64]
    n_sampled: NDArray[np.int64]
    time_s: NDArray[np.float64]
    hidden: Tensor

    def __len__(self) -> int:
        return len(self.future)

    def of(self, chosen: NDArray[Any]) -> _Rows:
        at = torch.from_numpy(np.arange(len(self))[chosen]).to(self.hidden.device)
        arrays = {k: v[chosen] for k, v in vars(self).items() if k != "hidden"}
        return _Rows(**arrays, hidden=self.hidden[at])

    def and_also(self, other: _Rows) -> _Rows:
        arrays = {
            k: np.concatenate([v, getattr(other, k)])
            for k, v in vars(self).items()
            if k != "hidden"
        }
        return _Rows(**arrays, hidden=torch.cat([self.hidden, other.hidden]))


@torch.no_grad()
def sample_futures(
    source: ModelDirectory | FutureSource,
    batch: Batch,
    *,
    n_futures: int,
    horizon_days: float,
    seed: int,
    outcomes: Sequence[Outcome] = (),
    elapsed_hours: NDArray[np.float64] | None = None,
    kept_from: Outcome | None = None,
    stop_when_decided: bool = False,
    keep_tokens: bool = True,
    max_tokens: int = 4096,
    max_rows: int = 1024,
) -> Futures:
    """Sample futures of every subject of a batch.

    A subject's futures depend on the model, its own past, the seed, its id and their numbers; not
    on who else is in the batch, nor on `max_rows`. One who is dead already has futures of no token
    that end as `DIED`, and no outcome comes in them.

    Args:
        source: Loaded model directory, or what else futures can be sampled from.
        batch: Packed histories, each up to the moment of prediction.
        n_futures: Futures a subject.
        horizon_days: Where they end at the latest, from the moment of prediction.
        seed: Of the random streams, an integer of 64 bits with a sign.
        outcomes: What to tally on the way.
        elapsed_hours: (S,) hours from each subject's last token to the moment of prediction, in
            which nothing came; None: the last token is that moment.
        kept_from: An outcome that no future meets: each token is drawn given that it is not one of
            its codes within its horizon. It is what is tallied, in place of `outcomes`, until it
            can no longer come.
        stop_when_decided: End a future once no outcome can change.
        keep_tokens: Keep the tokens, not only the tally.
        max_tokens: Most tokens of a future.
        max_rows: Most futures that run at one time.

    Raises:
        InputError: A number or an outcome is out of range, or a subject has no tokens.
        ModelMismatch: The scales are not of the model's vocabulary.
    """
    if isinstance(source, ModelDirectory):
        source = FutureSource.of(source)
    outcomes = tuple(outcomes)
    if kept_from is not None:
        outcomes, horizon_days, stop_when_decided = (kept_from,), kept_from.horizon_days, True
    stepper = source.stepper
    nothing_to_decide = stop_when_decided and not outcomes
    _check(source, batch, horizon_days, nothing_to_decide, n_futures, max_tokens, max_rows)
    _check_seed(seed)
    for outcome in outcomes:
        outcome.check(stepper.n_codes, horizon_days)
    n_subjects, n_total = batch.n_subjects, batch.n_subjects * n_futures
    dead = np.repeat(_is_dead(batch, source.death), n_futures)
    waiting = np.flatnonzero(~dead)
    n_rows = min(max_rows, len(waiting))
    hidden, state = stepper.prefill(batch, n_subjects + n_rows)
    steps = EventSteps.create(batch, source.scale, n_rows)
    past = steps.histories
    elapsed = _elapsed(elapsed_hours, n_subjects)
    predicted_s = past.time_s + elapsed * SECONDS_PER_HOUR
    tally = OutcomeTally.create(outcomes, n_total, stepper.n_codes)
    member = torch.from_numpy(tally.member.astype(np.float32)).to(hidden.device)
    is_death = np.isin(np.arange(stepper.n_codes), source.death)
    tally.undecided[dead] = False
    ending, n_tokens = np.where(dead, DIED, 0).astype(np.int8), np.zeros(n_total, np.int64)
    streams = np.zeros((n_rows, _STEPS_AT_ONCE, PER_STEP))
    kept: list[FutureTokens] = []
    rows = _begin(waiting[:n_rows], np.arange(n_rows), n_futures, steps, hidden)
    n_begun = n_rows
    while len(rows):
        u = _uniforms(streams, rows, past.subject_id, n_futures, seed)
        law = stepper.next_token(rows.hidden)
        waited = np.where(rows.n_sampled == 0, elapsed[rows.subject], 0.0)
        waits = Waits.create(law, torch.from_numpy(waited))
        since = (rows.time_s - predicted_s[rows.subject]) / SECONDS_PER_HOUR
        left = horizon_days * HOURS_PER_DAY - since
        drawn = draw_tokens(
            law, waits, member, u[:, _CODE], u[:, _WAIT], torch.from_numpy(left),
            keep_out=kept_from is not None,
        )  # fmt: skip
        code, wait = drawn.code, drawn.wait_hours
        decided = tally.decide(rows.future, drawn.in_set, waits, since, code, wait)
        goes_on = wait <= left
        full = rows.n_sampled + 1 >= max_tokens
        over = np.select(
            [~goes_on, is_death[code], decided & stop_when_decided, full],
            [HORIZON, DIED, DECIDED, UNFINISHED],
            default=0,
        )
        ending[rows.future] = over
        n_tokens[rows.future] = rows.n_sampled + goes_on
        tally.undecided[rows.future[over == DIED]] = False

        rows, over, code = rows.of(goes_on), over[goes_on], code[goes_on]
        if len(rows):
            before_s, time_s = rows.time_s, rows.time_s + wait[goes_on] * SECONDS_PER_HOUR
            mean, std = stepper.next_value(rows.hidden, torch.from_numpy(code))
            value = draw_values(mean, std, u[torch.from_numpy(goes_on), _VALUE])
            value = np.where(steps.carries_value(code), value, np.float32(np.nan))
            tokens = steps.tokens(
                rows.slot, rows.subject, rows.n_sampled, before_s, code, value, time_s
            )
            if keep_tokens:
                kept.append(FutureTokens.of_step(rows.future, value, tokens))
            rows = _step(stepper, state, rows, tokens, n_subjects)
            if over.any():
                rows = rows.of(over == 0)
        n_next = min(n_rows - len(rows), len(waiting) - n_begun)
        if n_next and (n_next * _LEAST_REFILL >= n_rows or n_next == len(waiting) - n_begun):
            free = np.setdiff1d(np.arange(n_rows), rows.slot)[:n_next]
            begins = waiting[n_begun : n_begun + n_next]
            rows = rows.and_also(_begin(begins, free, n_futures, steps, hidden))
            n_begun += n_next
    return Futures(
        subject_id=np.repeat(past.subject_id, n_futures),
        number=np.tile(np.arange(n_futures), n_subjects),
        ending=ending,
        n_tokens=n_tokens,
        tokens=FutureTokens.gather(kept),
        tally=tally,
        kept_from_outcome=kept_from is not None,
    )


def _is_dead(batch: Batch, death: tuple[int, ...]) -> NDArray[np.bool_]:
    """(S,) whether the death of each subject is in its past."""
    known = np.concatenate([[0], np.cumsum(np.isin(batch.code.numpy(), death))])
    return np.diff(known[batch.cu_seqlens.numpy()]) > 0


def _begin(
    future: NDArray[np.int64],
    slots: NDArray[np.int64],
    n_futures: int,
    steps: EventSteps,
    hidden: Tensor,
) -> _Rows:
    """Rows of some futures, each at its subject's last token."""
    subject = future // n_futures
    for slot, own in zip(slots.tolist(), subject.tolist(), strict=True):
        steps.start(slot, own)
    return _Rows(
        future=future,
        subject=subject,
        slot=slots,
        source=subject,
        n_sampled=np.zeros(len(slots), np.int64),
        time_s=steps.histories.time_s[subject],
        hidden=hidden[torch.from_numpy(subject).to(hidden.device)],
    )


def _step(stepper: Stepper, state: Any, rows: _Rows, tokens: Batch, n_subjects: int) -> _Rows:
    """The rows after one more token each; a future's own state stands behind the subjects'."""
    own = n_subjects + rows.slot
    after = stepper.step(tokens, state, torch.from_numpy(rows.source), torch.from_numpy(own))
    return replace(
        rows, source=own, n_sampled=rows.n_sampled + 1, time_s=tokens.time_s.numpy(), hidden=after
    )


def _uniforms(
    streams: NDArray[np.float64],
    rows: _Rows,
    subject_id: NDArray[np.int64],
    n_futures: int,
    seed: int,
) -> Tensor:
    """(R, PER_STEP) numbers of each row's step, from those drawn ahead into its slot."""
    at = rows.n_sampled % _STEPS_AT_ONCE
    for row in np.flatnonzero(at == 0).tolist():
        streams[rows.slot[row]] = uniforms(
            seed, int(subject_id[rows.subject[row]]), int(rows.future[row]) % n_futures,
            first_step=int(rows.n_sampled[row]), n_steps=_STEPS_AT_ONCE,
        )  # fmt: skip
    return torch.from_numpy(streams[rows.slot, at])


def _elapsed(hours: NDArray[np.float64] | None, n_subjects: int) -> NDArray[np.float64]:
    if hours is None:
        return np.zeros(n_subjects)
    given = np.asarray(hours)
    fits = given.shape == (n_subjects,) and given.dtype.kind in "iuf"
    if not fits or not bool((np.isfinite(given) & (given >= 0)).all()):
        raise InputError(
            f"elapsed hours are not {n_subjects} finite numbers from 0", code="bad_elapsed_hours",
            place="elapsed_hours", remedy="Give the hours since each subject's last token.",
        )  # fmt: skip
    return given.astype(np.float64)


def _check(
    source: FutureSource, batch: Batch, horizon_days: float, nothing_to_decide: bool, *counts: int
) -> None:
    n_codes = source.stepper.n_codes
    if len(source.scale.median) != n_codes:
        raise ModelMismatch(
            f"value scales of {len(source.scale.median)} codes, a model of {n_codes}",
            code="value_scale_size", place="scale", remedy="Use the model's own scales.",
        )  # fmt: skip
    if not batch.n_subjects or not bool((batch.cu_seqlens.diff() > 0).all()):
        raise InputError(
            "a subject has no tokens", code="empty_history", place="batch",
            remedy="Leave out subjects of whom nothing is known.",
        )  # fmt: skip
    lasts = isinstance(horizon_days, Real) and 0 < horizon_days < float("inf")
    counted = all(isinstance(count, Integral) and count >= 1 for count in counts)
    if not lasts or not counted or nothing_to_decide:
        raise InputError(
            "horizon and counts must be above 0, and there must be an outcome to stop for",
            code="bad_futures", place="sample_futures",
            remedy="Give n_futures, max_tokens and max_rows from 1, and a horizon in days.",
        )  # fmt: skip


def _check_seed(seed: int) -> None:
    if not (isinstance(seed, Integral) and -(2**63) <= seed < 2**63):
        raise InputError(
            "the seed is no whole number of 64 bits", code="bad_seed", place="seed",
            remedy="Use a number from -2**63 to 2**63 - 1.",
        )  # fmt: skip
