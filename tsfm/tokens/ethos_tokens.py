# pyright: strict
"""Events to the token streams of ETHOS-ARES, without their leaks.

A stream is: interval, words of an event, its decile, interval, words of the next event ... The
words are those of `tsfm.tokens.ethos_vocabulary`. In front of what a model reads stand the static
facts and the age in whole years, 0 to 99, as two of the shared decile words: tens, then ones; the
age is that at the first event behind it.

What differs from the original, which ordered events by when they were charted:

- Events stand in the order of knowing, and each token keeps when it became known. An interval is
  known with the event that ends it. A gap of half a year or more has a word for each half year
  (rounded), and each of these is known as soon as it is certain. So what is known at a moment is
  the start of the stream, whatever comes later.
- TIMELINE_END closes a stream only where the subject is known to have died, and nobody knows when:
  it is learnt but never read (its time is infinite), because that nothing more follows would tell
  of the future. A record that merely stops has no end. The original ends these too, and so learns
  when watching stopped as if it were something that happens to patients. Where it is known until
  when subjects were watched, the half years since the last event are said, because they are known
  to be empty; a shorter silence has no word in this design, and such a subject's last wait is lost
  to training. This makes events soon after the last one look a little likelier than they are.

No subject's stream runs into another's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import codes, schema
from tsfm.errors import InputError
from tsfm.tokens.ethos_vocabulary import (
    AGE_UNKNOWN_ID,
    END_ID,
    FIRST_DECILE_ID,
    FIRST_INTERVAL_ID,
    HALF_YEAR_US,
    INTERVALS,
    EthosVocabulary,
    intervals,
)
from tsfm.tokens.event_tokens import order_of_knowing
from tsfm.tokens.vocabulary import EncodingCounts

NO_TARGET = -100
_US_PER_SECOND = 1e6
_SECONDS_PER_YEAR = 365.25 * 86400.0
_OLDEST = 99
_DEATHS = (codes.DEATH, codes.join(codes.DISCHARGE, codes.DIED))


@dataclass(frozen=True)
class EthosTimelines:
    """Token streams of some subjects, end to end.

    Attributes:
        token: (T,) word ids of what happened.
        known_s: (T,) when each became known, seconds on the data set's clock; infinite for the end.
        start: (S + 1,) borders of the subjects' tokens.
        static: (F,) word ids of the subjects' static facts.
        static_start: (S + 1,) borders of these.
        subject_id: (S,) subjects, ascending.
        birth_s: (S,) births in seconds, NaN where unknown.
        counts: How faithfully the words were encoded.
        n_without_decile: Events whose number could not be said.
    """

    token: NDArray[np.int32]
    known_s: NDArray[np.float64]
    start: NDArray[np.int64]
    static: NDArray[np.int32]
    static_start: NDArray[np.int64]
    subject_id: NDArray[np.int64]
    birth_s: NDArray[np.float64]
    counts: EncodingCounts
    n_without_decile: int


@dataclass(frozen=True)
class EthosWindows:
    """Pieces of streams as a model reads them, packed.

    Attributes:
        token: (N,) word ids, each window's static part first.
        start: (W + 1,) borders of the windows.
        n_static: (W,) tokens of the static part, at least one.
        subject_id: (W,) whose they are.
    """

    token: NDArray[np.int32]
    start: NDArray[np.int64]
    n_static: NDArray[np.int64]
    subject_id: NDArray[np.int64]

    @property
    def target(self) -> NDArray[np.int64]:
        """(N,) the next token of the window; `NO_TARGET` where there is none or a static one."""
        target = np.append(self.token[1:], 0).astype(np.int64)
        target[self.start[1:] - 1] = NO_TARGET
        target[_spread(self.start[:-1], self.n_static - 1)] = NO_TARGET
        return target


def tokenize_ethos(
    events: pl.DataFrame,
    vocabulary: EthosVocabulary,
    *,
    watched_until_us: int | Mapping[int, int] | None = None,
) -> EthosTimelines:
    """Tokenise whole subjects.

    Args:
        events: Event frame, every subject complete.
        vocabulary: Fitted vocabulary.
        watched_until_us: Until when all subjects, or each, were watched, in microseconds on the
            data set's clock; None, or a subject left out: unknown.
    """
    stream = order_of_knowing(events)
    subject_id = stream[schema.SUBJECT_ID].unique().sort().to_numpy().astype(np.int64)
    birth = stream.unique(schema.SUBJECT_ID, keep="first").sort(schema.SUBJECT_ID)["_birth_us"]
    timeless = pl.col(schema.AVAILABLE_TIME).is_null()
    stream = stream.filter(pl.col(schema.CODE) != codes.BIRTH)
    static, clock = stream.filter(timeless), stream.filter(~timeless)
    static_token, static_length, counts, lost = _encode(static, vocabulary)
    said, said_length, more, lost_more = _encode(clock, vocabulary)
    counts.add(more)

    owner = np.searchsorted(subject_id, clock[schema.SUBJECT_ID].to_numpy())
    known_us = clock["_stream_us"].to_numpy().astype(np.int64)
    gap_us = np.diff(known_us, prepend=known_us[:1])
    first = np.diff(owner, prepend=-1) > 0
    index, waited = intervals(np.where(first, 0, gap_us))
    silence, ended = _after_last(clock, owner, known_us, subject_id, watched_until_us)

    # Each event's tokens: the wait before it, its words, and behind a last one silence or the end.
    length = waited + said_length + silence + ended
    event_start = np.cumsum(length) - length
    token = np.full(int(length.sum()), END_ID, np.int32)
    known = np.repeat(known_us / _US_PER_SECOND, length)
    wait_at = _spread(event_start, waited)
    token[wait_at] = np.repeat(FIRST_INTERVAL_ID + index, waited)
    previous_us = known_us - gap_us
    long = index == len(INTERVALS) - 1
    known[_spread(event_start, waited * long)] = _certain_s(previous_us, waited * long)
    token[_spread(event_start + waited, said_length)] = said
    after = event_start + waited + said_length
    silent_at = _spread(after, silence)
    token[silent_at] = FIRST_INTERVAL_ID + len(INTERVALS) - 1
    known[silent_at] = _certain_s(known_us, silence)
    known[_spread(after + silence, ended)] = np.inf

    static_owner = np.searchsorted(subject_id, static[schema.SUBJECT_ID].to_numpy())
    return EthosTimelines(
        token=token,
        known_s=known,
        start=_borders(owner, length, len(subject_id)),
        static=static_token,
        static_start=_borders(static_owner, static_length, len(subject_id)),
        subject_id=subject_id,
        birth_s=birth.to_numpy().astype(np.float64) / _US_PER_SECOND,
        counts=counts,
        n_without_decile=lost + lost_more,
    )


def training_windows(timelines: EthosTimelines, context: int) -> EthosWindows:
    """Cut all streams into windows; every token stands in one of them.

    Args:
        timelines: Streams of training subjects.
        context: Most tokens of a window, the static part included.

    Raises:
        InputError: A subject's static part leaves no room.
    """
    spans: list[tuple[int, int, int]] = []
    for row in range(len(timelines.subject_id)):
        room = _room(timelines, row, context)
        a, b = int(timelines.start[row]), int(timelines.start[row + 1])
        spans += [(row, at, min(at + room, b)) for at in range(a, b, room)]
    return _windows(timelines, spans, [None] * len(spans))


def prompts(
    timelines: EthosTimelines,
    subject_id: NDArray[np.int64],
    prediction_s: NDArray[np.float64],
    context: int,
) -> EthosWindows:
    """What is known of subjects at some moments: the latest tokens that fit.

    The time gone by since the last token is not said: the design has no word for a wait that is
    not over, except for whole half years.

    Args:
        timelines: Streams that hold the subjects.
        subject_id: (W,) whom to ask about.
        prediction_s: (W,) when, seconds; what became known by then is read.
        context: Most tokens of a window, the static part included.

    Raises:
        InputError: A subject is not there, or its static part leaves no room.
    """
    missing = int((~np.isin(subject_id, timelines.subject_id)).sum())
    if missing:
        raise InputError(
            f"{missing} of the subjects have no stream",
            code="unknown_subject",
            place="subject_id",
            remedy="Tokenise the events of these subjects too.",
        )
    rows = np.searchsorted(timelines.subject_id, subject_id)
    asked_s: list[float | None] = [float(at) for at in prediction_s]
    spans: list[tuple[int, int, int]] = []
    for row, at in zip(map(int, rows), prediction_s, strict=True):
        a, b = int(timelines.start[row]), int(timelines.start[row + 1])
        stop = a + int((timelines.known_s[a:b] <= at).sum())
        spans.append((row, max(a, stop - _room(timelines, row, context)), stop))
    return _windows(timelines, spans, asked_s)


def _windows(
    timelines: EthosTimelines, spans: list[tuple[int, int, int]], asked_s: list[float | None]
) -> EthosWindows:
    """Windows of (row, first token, stop); an empty one takes its age when it is asked for."""
    pieces: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
    lengths, n_static = np.zeros(len(spans), np.int64), np.zeros(len(spans), np.int64)
    for window, ((row, first, stop), asked) in enumerate(zip(spans, asked_s, strict=True)):
        facts = slice(timelines.static_start[row], timelines.static_start[row + 1])
        if first < stop:
            # A window may hold the end alone, which has no time: its age is that just before.
            at = float(timelines.known_s[first])
            if at == float("inf"):
                at = float(timelines.known_s[first - 1])
        else:
            at = float("nan") if asked is None else asked
        age = np.array(_age(at - float(timelines.birth_s[row])), np.int32)
        pieces += [timelines.static[facts], age, timelines.token[first:stop]]
        n_static[window] = len(timelines.static[facts]) + len(age)
        lengths[window] = n_static[window] + stop - first
    rows = np.array([row for row, _, _ in spans], np.int64)
    start = np.append(0, np.cumsum(lengths))
    return EthosWindows(np.concatenate(pieces), start, n_static, timelines.subject_id[rows])


def _age(seconds: float) -> list[int]:
    """Words of an age: tens and ones of whole years."""
    if not np.isfinite(seconds):
        return [AGE_UNKNOWN_ID]
    years = int(np.clip(seconds // _SECONDS_PER_YEAR, 0, _OLDEST))
    return [FIRST_DECILE_ID + years // 10, FIRST_DECILE_ID + years % 10]


def _room(timelines: EthosTimelines, row: int, context: int) -> int:
    """Tokens that fit behind a subject's static part."""
    aged = 2 if np.isfinite(timelines.birth_s[row]) else 1
    room = context - aged - int(timelines.static_start[row + 1] - timelines.static_start[row])
    if room < 1:
        raise InputError(
            f"a context of {context} tokens has no room behind the static part",
            code="context_too_short",
            place="context",
            remedy="Give a longer context.",
        )
    return room


def _encode(
    frame: pl.DataFrame, vocabulary: EthosVocabulary
) -> tuple[NDArray[np.int32], NDArray[np.int64], EncodingCounts, int]:
    """Words and deciles of events, packed; tokens of each event; counts; numbers not said."""
    unique = frame[schema.CODE].unique().sort()
    column = frame[schema.CODE].replace_strict(
        unique, pl.Series(range(len(unique)), dtype=pl.Int64), return_dtype=pl.Int64
    )
    row = column.to_numpy().astype(np.int64)
    repeated = np.bincount(row, minlength=len(unique))
    counts = EncodingCounts()
    table: list[int] = []
    n_words, measure = np.zeros(len(unique), np.int64), np.zeros(len(unique), np.int32)
    for i, code in enumerate(unique.to_list()):
        ids, found = vocabulary.word_ids(code)
        n = int(repeated[i])
        counts.add(EncodingCounts(found.exact * n, found.fallback * n, found.unknown * n))
        table += ids
        n_words[i] = len(ids)
        measure[i] = vocabulary.measures.ids.get(code, 0)
    value = frame[schema.NUMERIC_VALUE].cast(pl.Float32).fill_null(float("nan")).to_numpy()
    value = np.where(np.isfinite(value), value, np.float32(np.nan)).astype(np.float32)
    _, decile = vocabulary.scale.apply(measure[row], value)
    length = n_words[row] + (decile > 0)
    start = np.cumsum(length) - length
    token = np.zeros(int(length.sum()), np.int32)
    word_start = np.cumsum(n_words) - n_words
    spelt = np.array(table, np.int32)[_spread(word_start[row], n_words[row])]
    token[_spread(start, n_words[row])] = spelt
    token[(start + n_words[row])[decile > 0]] = FIRST_DECILE_ID - 1 + decile[decile > 0]
    return token, length, counts, int((np.isfinite(value) & (decile == 0)).sum())


def _after_last(
    clock: pl.DataFrame,
    owner: NDArray[np.int64],
    known_us: NDArray[np.int64],
    subject_id: NDArray[np.int64],
    watched_until_us: int | Mapping[int, int] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Words of half a year and ends behind each event: none but behind a subject's last one."""
    is_death = pl.any_horizontal(
        (pl.col(schema.CODE) == name) | pl.col(schema.CODE).str.starts_with(name + codes.SEPARATOR)
        for name in _DEATHS
    )
    dead = np.zeros(len(subject_id), bool)
    dead[owner[clock.select(is_death).to_series().to_numpy()]] = True
    last = np.diff(owner, append=-1) != 0
    if watched_until_us is not None and not isinstance(watched_until_us, Mapping):
        watched = np.full(len(owner), watched_until_us, np.int64)
    else:
        by_subject = watched_until_us or {}
        until = [by_subject.get(int(s)) for s in subject_id]
        # Not known: watched no longer than to the last event.
        watched = np.array([-(2**62) if u is None else u for u in until], np.int64)[owner]
    _, half_years = intervals(np.maximum(watched - known_us, 0))
    empty = np.where(last & ~dead[owner] & (watched - known_us >= HALF_YEAR_US), half_years, 0)
    return empty, (last & dead[owner]).astype(np.int64)


def _certain_s(from_us: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.float64]:
    """When each of so many words of half a year after a moment is certain, in seconds, packed.

    The first is after half a year; the k-th once the gap rounds to k half years.
    """
    k = _spread(np.ones_like(count), count)
    later = np.maximum(HALF_YEAR_US, k * HALF_YEAR_US - HALF_YEAR_US // 2)
    return (np.repeat(from_us, count) + later) / _US_PER_SECOND


def _spread(start: NDArray[np.int64], length: NDArray[Any]) -> NDArray[np.int64]:
    """start, start + 1, ... of each length, packed."""
    offset = np.cumsum(length) - length
    return np.repeat(start - offset, length) + np.arange(int(length.sum()))


def _borders(owner: NDArray[np.int64], length: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Borders of subjects from the lengths of their events."""
    total = np.bincount(owner, weights=length, minlength=n).astype(np.int64)
    return np.append(0, np.cumsum(total))
