"""Futures of ETHOS-ARES from a past that is read once, and what they show.

A full context. Positions are learnt and counted from the window's first token, so keys can't be
kept once the oldest token falls out. The original slides by one token and pays for the whole window
at every step. Here a full row is read anew with its static tokens and the latest half of what fits
behind them, once in every half context: in between a future sees from half to all of a context.
The static tokens, the age among them, stay as they were asked with. Such rows share no past.

A future's random numbers depend on seed, subject and its own number alone, not on who else is in
the batch. The clock moves by the mean length of each interval token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsfm.errors import InputError
from tsfm.models.ethos import EthosCache, EthosModel
from tsfm.models.ethos_cache import prefill, step
from tsfm.tokens.ethos_tokens import EthosWindows
from tsfm.tokens.ethos_vocabulary import END_ID

_DRAWS = 128  # random numbers taken at once from each future's stream
_COMPACT_AT = 0.75  # copying a cache costs more than some finished rows
_UNSIGNED = 1 << 64


class Ending(IntEnum):
    """Why a future ends."""

    STOPPED = 0
    HORIZON = 1
    UNFINISHED = 2


@dataclass(frozen=True)
class FutureConfig:
    """Which futures are drawn.

    Attributes:
        stop: Words that end a future; the end of a timeline always does.
        horizon_hours: A future ends with the token that passes this time.
        n_futures: Futures of each window.
        max_tokens: Most tokens of a future; one that is cut here is `UNFINISHED`.
        seed: Of the random streams.
        temperature: Divides the log odds.
        max_rows: Futures drawn at once, which bounds memory: at the published sizes each holds up
            to 75 MB in float32, less what it shares.
    """

    stop: tuple[int, ...]
    horizon_hours: float
    n_futures: int = 20
    max_tokens: int = 2048
    seed: int = 0
    temperature: float = 1.0
    max_rows: int = 64


@dataclass(frozen=True)
class EthosFutures:
    """Sampled futures, packed; those of a window follow each other.

    Attributes:
        token: Word ids drawn.
        hours: Hours gone by at each, by mean interval lengths.
        cu_seqlens: Borders of the futures, each of at least one token.
        ending: `Ending` of each.
        subject_id: Whose each is.
        config: How they were drawn.
    """

    token: NDArray[np.int64]
    hours: NDArray[np.float64]
    cu_seqlens: NDArray[np.int64]
    ending: NDArray[np.int8]
    subject_id: NDArray[np.int64]
    config: FutureConfig


@dataclass(frozen=True)
class OutcomeShares:
    """How the futures of each window ended, as shares of all of them; they add up to one.

    The original leaves out the futures that did not finish and so reports a conditional
    probability. Here the outcome's share is of all futures: the true share of long enough futures
    lies between `outcome` and `outcome + unfinished`.

    Attributes:
        subject_id: (W,) whose.
        outcome: (W,) the outcome came first, within the horizon.
        stopped: (W,) a stop token came first.
        horizon: (W,) neither by the horizon.
        unfinished: (W,) the limit of tokens came first.
    """

    subject_id: NDArray[np.int64]
    outcome: NDArray[np.float64]
    stopped: NDArray[np.float64]
    horizon: NDArray[np.float64]
    unfinished: NDArray[np.float64]


@torch.no_grad()
def generate(
    model: EthosModel,
    windows: EthosWindows,
    token_hours: NDArray[np.float64],
    config: FutureConfig,
) -> EthosFutures:
    """Draw futures of what is known of some subjects.

    Args:
        model: The network; dropout is off whatever its mode.
        windows: What is known, from `prompts`.
        token_hours: (V,) hours by which each word moves the clock (`EthosVocabulary.hours`).
        config: Which futures.

    Raises:
        InputError: A bad number, or a window is longer than the context.
    """
    longest = int(np.diff(windows.start).max(initial=0))
    fits = 0 < longest <= model.config.context and len(token_hours) <= model.config.n_tokens
    least = min(config.n_futures, config.max_tokens, config.max_rows)
    positive = least >= 1 and config.temperature > 0 and config.horizon_hours > 0
    if not (fits and positive and config.seed >= 0):
        raise InputError(
            "futures need windows that fit the context, words that the model has, and positive "
            "numbers, horizon and temperature", code="bad_futures", place="generate",
            remedy="Correct the argument.",
        )  # fmt: skip
    subject = np.repeat(windows.subject_id, config.n_futures)
    tokens, endings = [], []
    for first in range(0, len(subject), config.max_rows):
        futures = np.arange(first, min(first + config.max_rows, len(subject)))
        wave, ending = _draw(model, windows, futures, token_hours, config)
        tokens += wave
        endings.append(ending)
    return EthosFutures(
        np.concatenate(tokens),
        np.concatenate([np.cumsum(token_hours[row]) for row in tokens]),
        np.append(0, np.cumsum([len(row) for row in tokens])),
        np.concatenate(endings), subject, config,
    )  # fmt: skip


def outcome_shares(
    futures: EthosFutures, outcome: Sequence[int], *, horizon_hours: float | None = None
) -> OutcomeShares:
    """Share of futures that meet an outcome before a stop and within a horizon.

    Args:
        futures: From `generate`; none of the outcome's competitors may be left out of its stops.
        outcome: Words of the outcome, those of the stops among them or not.
        horizon_hours: Until when, no later than the futures were drawn for; by default until then.

    Raises:
        InputError: The futures do not reach so far.
    """
    drawn = futures.config
    horizon = drawn.horizon_hours if horizon_hours is None else horizon_hours
    if not 0 < horizon <= drawn.horizon_hours:
        raise InputError(
            "the futures were not drawn until the horizon asked for", code="horizon_too_long",
            place="horizon_hours", remedy="Draw longer futures, or ask for less.",
        )  # fmt: skip
    hit = np.isin(futures.token, np.array(outcome)) & (futures.hours <= horizon)
    met = np.logical_or.reduceat(hit, futures.cu_seqlens[:-1])
    past = futures.hours[futures.cu_seqlens[1:] - 1] > horizon
    stopped = ~met & ~past & (futures.ending == Ending.STOPPED)
    kinds = (met, stopped, ~met & past, ~met & ~past & ~stopped)
    shares = (kind.reshape(-1, drawn.n_futures).mean(1) for kind in kinds)
    return OutcomeShares(futures.subject_id[:: drawn.n_futures], *shares)


def _draw(
    model: EthosModel,
    windows: EthosWindows,
    futures: NDArray[np.int64],
    token_hours: NDArray[np.float64],
    config: FutureConfig,
) -> tuple[list[NDArray[np.int64]], NDArray[np.int8]]:
    """Tokens and endings of some futures, numbered through all windows."""
    device = model.token.weight.device
    asked, window = np.unique(futures // config.n_futures, return_inverse=True)
    tokens = windows.token.astype(np.int64)
    spans = [tokens[windows.start[w] : windows.start[w + 1]] for w in asked]
    logits, cache = _read(model, spans, device)
    rows = torch.from_numpy(window).to(device)
    logits, cache = logits[rows], cache.rows(rows)
    subject, number_of = windows.subject_id[asked][window], futures % config.n_futures
    streams = [
        _stream(config.seed, int(s), int(k)) for s, k in zip(subject, number_of, strict=True)
    ]
    n = len(futures)
    hours = np.zeros(n)
    ending = np.full(n, Ending.UNFINISHED, np.int8)
    drawn, length = np.zeros((n, config.max_tokens), np.int64), np.zeros(n, np.int64)
    number = np.zeros((n, _DRAWS))
    active = held = np.arange(n)  # futures that go on, and those that the cache has rows of
    for at in range(config.max_tokens):
        if at % _DRAWS == 0:
            number[active] = np.stack([streams[i].random(_DRAWS) for i in active])
        going = torch.from_numpy(np.searchsorted(held, active)).to(device)
        token = _sample(
            logits[going, : len(token_hours)], number[active, at % _DRAWS], config.temperature
        )
        drawn[active, at] = token
        length[active] += 1
        hours[active] += token_hours[token]
        over = hours[active] > config.horizon_hours
        ended = over | np.isin(token, [*config.stop, END_ID])
        ending[active[ended]] = np.where(over[ended], Ending.HORIZON, Ending.STOPPED)
        active = active[~ended]
        if not len(active) or at + 1 == config.max_tokens:
            break
        full = bool((cache.positions >= model.config.context).any())
        if full or len(active) < _COMPACT_AT * len(held):
            cache = cache.rows(torch.from_numpy(np.searchsorted(held, active)).to(device))
            held = active
        again = torch.nonzero(cache.positions >= model.config.context).squeeze(1)
        if len(again):
            # The token just drawn is read by the step below.
            pasts = [
                _latest(
                    np.concatenate([spans[window[i]], drawn[i, :at]]),
                    int(windows.n_static[asked[window[i]]]), model.config.context,
                )
                for i in held[again.cpu().numpy()]
            ]  # fmt: skip
            cache = cache.with_pasts(again, _read(model, pasts, device)[1])
        logits = step(model, torch.from_numpy(drawn[held, at]).to(device), cache)
    return [drawn[i, : length[i]] for i in range(n)], ending


def _stream(seed: int, subject_id: int, future: int) -> np.random.Generator:
    """Random numbers of one future; a negative id is as good as another."""
    sequence = np.random.SeedSequence([seed, subject_id % _UNSIGNED, future])
    return np.random.Generator(np.random.Philox(sequence))


def _latest(token: NDArray[np.int64], n_static: int, context: int) -> NDArray[np.int64]:
    """Static tokens, and the latest half of what fits behind them."""
    kept = (context - n_static) // 2
    return np.concatenate([token[:n_static], token[max(n_static, len(token) - kept) :]])


def _read(
    model: EthosModel, spans: Sequence[NDArray[np.int64]], device: torch.device
) -> tuple[Tensor, EthosCache]:
    borders = np.append(0, np.cumsum([len(span) for span in spans]))
    tokens = torch.from_numpy(np.concatenate(spans)).to(device)
    return prefill(model, tokens, torch.from_numpy(borders).to(device))


def _sample(logits: Tensor, number: NDArray[np.float64], temperature: float) -> NDArray[np.int64]:
    """One word a row where the sum of probabilities passes the row's number."""
    total = (logits.double() / temperature).softmax(-1).cumsum(-1)
    aim = torch.from_numpy(number).to(total.device).unsqueeze(1) * total[:, -1:]
    found = torch.searchsorted(total, aim, right=True).squeeze(1)
    return found.clamp(max=total.shape[1] - 1).cpu().numpy()
