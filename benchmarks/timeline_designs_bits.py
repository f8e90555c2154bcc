"""Bits per event: what a model that predicts the next event pays for events that it has not met.

An event's outcome is the same for every design: which word of ETHOS-ARES's intervals the wait for
it falls into (none under five minutes, half years counted), which code it has, whether a number is
said with it, and in which decile of the training subjects' numbers of that code it lies. Its bits
are minus the logarithm to base 2 of the probability of all that, given everything known before it.

- For tokens of pieces (ETHOS) this is the sum of the losses of the tokens that the event has: the
  words of the wait before it, of its code, its decile. That no wait or no decile stands somewhere
  is said by what stands there instead, so nothing is left out of the sum over a record.
- For fused tokens it is the code's loss; the probability that the density of the value gives to the
  decile, from edge to edge; the probability that the law of the wait (at once, or log-normal) gives
  to the interval; and, since the model is not asked whether a number comes with a code, the share
  of training events of that code that had one.

Counted are the events on the clock of care that both vocabularies say exactly, in the same decile,
but for each subject's first one. Sums are kept a subject, so that intervals resample subjects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tsfm import codes, schema
from tsfm.batches.dataset import batches_of, pack
from tsfm.models.ethos import EthosModel
from tsfm.models.timeline import TimelineModel
from tsfm.tokens.ethos_tokens import EthosWindows, tokenize_ethos, training_windows
from tsfm.tokens.ethos_vocabulary import (
    END_ID,
    HALF_YEAR_US,
    INTERVALS,
    EthosVocabulary,
    Kind,
    intervals,
)
from tsfm.tokens.event_tokens import order_of_knowing, tokenize_events
from tsfm.tokens.token_store import TokenStore
from tsfm.tokens.value_scale import N_BINS, ValueScale
from tsfm.tokens.vocabulary import UNKNOWN_ID

PARTS = ("time", "code", "value")
_US_PER_HOUR = 3.6e9
_LEAST = 1e-30  # a probability below this costs no more: a hundred bits
_LOG_STD = (-4.0, 3.0)  # the bounds within which the heads are trained
_MAX_TOKENS = 8192


@dataclass(frozen=True)
class Asked:
    """Held-out events in the order of knowing, and which of them count.

    Attributes:
        events: The events of these subjects.
        subject: (E,) place of each event's subject among `subject_id`.
        subject_id: (S,) subjects, ascending.
        clocked: (E,) whether it has a place on the clock of care.
        counts: (E,) whether it counts.
        interval: (E,) place of its wait in `INTERVALS`.
        n_waits: (E,) how many such words; 0 under five minutes.
        n_words: (E,) words that spell its code.
        decile: (E,) 1 to 10, 0 where no number is said.
    """

    events: pl.DataFrame
    subject: NDArray[np.int64]
    subject_id: NDArray[np.int64]
    clocked: NDArray[np.bool_]
    counts: NDArray[np.bool_]
    interval: NDArray[np.int64]
    n_waits: NDArray[np.int64]
    n_words: NDArray[np.int64]
    decile: NDArray[np.int64]

    def summed(self, bits: NDArray[np.float64]) -> NDArray[np.float64]:
        """(S, parts) sums a subject of the (E, parts) bits of events that count."""
        kept = np.where(self.counts[:, None], bits, 0.0)
        return np.stack(
            [np.bincount(self.subject, x, len(self.subject_id)) for x in kept.T], axis=1
        )

    @property
    def n_counted(self) -> NDArray[np.int64]:
        """(S,) events of each subject that count."""
        return np.bincount(self.subject, self.counts, len(self.subject_id)).astype(np.int64)


def asked_events(events: pl.DataFrame, store: TokenStore, words: EthosVocabulary) -> Asked:
    """Find out what is asked of whole subjects.

    Args:
        events: Their events.
        store: Its vocabulary and scales are those of the fused tokens.
        words: Vocabulary of the pieces.
    """
    stream = order_of_knowing(events)
    subject_id, subject = np.unique(stream[schema.SUBJECT_ID].to_numpy(), return_inverse=True)
    is_birth = (stream[schema.CODE] == codes.BIRTH).to_numpy()
    clocked = stream[schema.AVAILABLE_TIME].is_not_null().to_numpy() & ~is_birth
    on_clock = np.flatnonzero(clocked)
    first = np.zeros(len(subject), bool)
    first[on_clock[np.diff(subject[on_clock], prepend=-1) > 0]] = True
    known_us = stream["_stream_us"].to_numpy()
    gap_us = np.zeros(len(subject), np.int64)
    gap_us[on_clock] = np.diff(known_us[on_clock], prepend=0)
    interval, n_waits = intervals(np.where(clocked & ~first, gap_us, 0))

    unique = stream[schema.CODE].unique().sort().to_list()
    spelt = {code: words.word_ids(code) for code in unique}
    column = stream[schema.CODE]
    n_words = column.replace_strict(
        unique, [len(spelt[code][0]) for code in unique], return_dtype=pl.Int64
    ).to_numpy()
    said = column.replace_strict(
        unique, [not (spelt[code][1].fallback or spelt[code][1].unknown) for code in unique],
        return_dtype=pl.Boolean,
    ).to_numpy()  # fmt: skip
    measure = column.replace_strict(words.measures.ids, default=0, return_dtype=pl.Int32).to_numpy()
    value = stream[schema.NUMERIC_VALUE].cast(pl.Float32).fill_null(float("nan")).to_numpy()
    value = np.where(np.isfinite(value), value, np.float32(np.nan)).astype(np.float32)
    decile = words.scale.apply(measure, value)[1].astype(np.int64)
    ids, exact, _ = store.vocabulary.encode(column)
    ours = np.where(exact, store.scale.apply(ids, value)[1], 0)
    counts = clocked & ~first & said & exact & (ids != UNKNOWN_ID) & (ours == decile)
    return Asked(
        events, subject, subject_id, clocked, counts, interval, n_waits, n_words, decile
    )  # fmt: skip


def ethos_bits(asked: Asked, words: EthosVocabulary, model: EthosModel) -> NDArray[np.float64]:
    """(E, `PARTS`) bits of each event by a model of word pieces; 0 off the clock."""
    timelines = tokenize_ethos(asked.events, words)
    windows = training_windows(timelines, model.config.context)
    bits = token_losses(model, windows) / math.log(2.0)
    token = timelines.token
    if len(bits) != len(token):
        raise AssertionError("every token that is no static one is asked once")
    on_clock = np.flatnonzero(asked.clocked)
    length = (asked.n_waits + asked.n_words + (asked.decile > 0))[on_clock]
    owner = np.repeat(on_clock, length)
    spoken = token != END_ID
    if len(owner) != int(spoken.sum()):
        raise AssertionError("tokens of events and tokens of the stream are not as many")
    part = np.full(len(words), PARTS.index("code"))
    part[words.kind == Kind.INTERVAL] = PARTS.index("time")
    part[words.kind == Kind.DECILE] = PARTS.index("value")
    found = np.zeros((len(asked.subject), len(PARTS)))
    np.add.at(found, (owner, part[token[spoken]]), bits[spoken])
    return found


@torch.no_grad()
def token_losses(model: EthosModel, windows: EthosWindows) -> NDArray[np.float64]:
    """Nats of every token that is asked, in order."""
    model.eval()
    losses: list[NDArray[np.float64]] = []
    for part in batches_of_windows(windows, np.arange(len(windows.subject_id)), _MAX_TOKENS):
        token, target, borders = part
        asked = target >= 0
        logits = model.logits(model(token, borders)[asked])
        each = F.cross_entropy(logits.double(), target[asked], reduction="none")
        losses.append(each.numpy())
    return np.concatenate(losses) if losses else np.zeros(0)


def batches_of_windows(
    windows: EthosWindows, order: NDArray[np.int64], max_tokens: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Tokens, targets and borders of windows, packed in an order."""
    lengths, target = np.diff(windows.start), windows.target
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for chosen in pack(order, lengths, max_tokens):
        at = np.concatenate([np.arange(*windows.start[w : w + 2]) for w in chosen])
        borders = np.append(0, np.cumsum(lengths[chosen]))
        token = torch.from_numpy(windows.token[at].astype(np.int64))
        found.append((token, torch.from_numpy(target[at]), torch.from_numpy(borders)))
    return found


@torch.no_grad()
def fused_bits(asked: Asked, store: TokenStore, model: TimelineModel) -> NDArray[np.float64]:
    """(E, `PARTS`) bits of each event by a model of fused tokens; 0 where it does not count."""
    model.eval()
    tokens = tokenize_events(asked.events, store.vocabulary, store.scale)
    with_value = value_shares(store)
    low, high = wait_bounds_hours(asked.interval, asked.n_waits)
    found = np.zeros((len(asked.subject), len(PARTS)))
    first = 0
    for batch in batches_of(tokens, store.scale, max_tokens=_MAX_TOKENS):
        at = np.flatnonzero(asked.counts[first : first + batch.n_tokens])
        before, code = model(batch)[at - 1], batch.code[at]
        event = at + first
        first += batch.n_tokens
        head = model.next_event
        same, mean, log_std = (x.double().numpy() for x in head.time(before).unbind(-1))
        at_once = 1.0 / (1.0 + np.exp(-same))
        with np.errstate(divide="ignore"):
            ends = [np.log(bound[event]) for bound in (low, high)]
        waited = between(*ends, mean, log_std)
        p_time = np.where(low[event] == 0.0, at_once, 0.0) + (1.0 - at_once) * waited
        log_code = torch.log_softmax(head.code(before).double(), -1)
        log_p_code = log_code.gather(1, code[:, None])[:, 0].numpy()
        mean, log_std = (
            x.double().numpy() for x in head.value(F.silu(before * head.query(code))).unbind(-1)
        )
        decile, ids = asked.decile[event], code.numpy()
        p_decile = between(*decile_edges(store.scale, ids, decile), mean, log_std)
        has = decile > 0
        p_value = np.where(has, with_value[ids] * p_decile, 1.0 - with_value[ids])
        for place, log_p in enumerate((_log(p_time), log_p_code, _log(p_value))):
            found[event, place] = -log_p / math.log(2.0)
    return found


def value_shares(store: TokenStore) -> NDArray[np.float64]:
    """(V,) share of the training events of each code that carry a number, one of each added."""
    chosen = store.subjects.filter(pl.col("split") == schema.TRAIN)
    mask = np.zeros(len(store) + 1, np.int64)
    np.add.at(mask, chosen["start"].to_numpy(), 1)
    np.add.at(mask, (chosen["start"] + chosen["length"]).to_numpy(), -1)
    trained = np.cumsum(mask)[:-1] > 0
    code, has = store.fields["code"][trained], store.fields["bin"][trained] > 0
    n = np.bincount(code, minlength=len(store.vocabulary))
    return (np.bincount(code, has, len(store.vocabulary)) + 1.0) / (n + 2.0)


def wait_bounds_hours(
    interval: NDArray[np.int64], count: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From and until which wait an event has just these words of an interval."""
    borders = np.append(interval_borders_us(), 0) / _US_PER_HOUR
    half_year = HALF_YEAR_US / _US_PER_HOUR
    low, high = borders[interval], borders[interval + 1]
    long = interval == len(INTERVALS) - 1
    low = np.where(long & (count > 1), (count - 0.5) * half_year, low)
    high = np.where(long, (count + 0.5) * half_year, high)
    none = count == 0
    return np.where(none, 0.0, low), np.where(none, borders[0], high)


def interval_borders_us() -> NDArray[np.int64]:
    """Shortest wait of each interval in microseconds, found by asking for their words."""
    found: list[int] = []
    for place in range(len(INTERVALS)):
        low, high = 0, 2 * HALF_YEAR_US
        while high - low > 1:
            middle = (low + high) // 2
            index, count = intervals(np.array([middle]))
            reached = bool(count[0] > 0 and index[0] >= place)
            low, high = (low, middle) if reached else (middle, high)
        found.append(high)
    return np.array(found)


def decile_edges(
    scale: ValueScale, ids: NDArray[np.int64], decile: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Standardised values between which each decile lies, infinite at the ends."""
    z = np.arcsinh((scale.edges[ids] - scale.median[ids, None]) / scale.scale[ids, None])
    n = len(ids)
    ends = np.concatenate([np.full((n, 1), -np.inf), z.astype(float), np.full((n, 1), np.inf)], 1)
    row = np.arange(n)
    above = np.clip(decile, 1, N_BINS)
    return ends[row, above - 1], ends[row, above]


def between(
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    mean: NDArray[np.float64],
    log_std: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Probability that a normal variable lies between two bounds, exact in both tails."""
    scale = np.exp(-np.clip(log_std, *_LOG_STD))
    a, b = (low - mean) * scale, (high - mean) * scale
    # Above the mean the two tails are subtracted, not the two that are nearly one.
    upper = a > 0
    a, b = np.where(upper, -b, a), np.where(upper, -a, b)
    cdf = [torch.special.ndtr(torch.from_numpy(x)).numpy() for x in (a, b)]
    return cdf[1] - cdf[0]


def _log(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(np.maximum(p, _LEAST))
