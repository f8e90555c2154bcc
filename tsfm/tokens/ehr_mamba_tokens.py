# pyright: strict
"""Token streams to the sequences of EHRMamba (Fallahpour et al. 2024, arXiv 2405.14567).

A sequence is `[CLS] [VS] event ... event [VE] [REG] [interval] [VS] ...`: a visit between its two
marks, a register behind it, and one of 18 words for the time to the next. A result is one word of
its code and the quintile of its value. Beside each word stand its kind, the time, the age, the
running number of the visit and its side, 1 and 2 in turn. A question is a word too: the task's
prompt, read last.

What differs from the released code, and why:

- Events stand where they became known: a result or a billing code that came after the discharge is
  read after it. There, events were clamped into their visit, so that what was not yet known at the
  discharge stood before it.
- Each word has its own time and age. There, all of a visit shared those of its start, and the time
  was rebuilt from whole years of age, so that hours and weeks were lost.
- A visit is a hospital stay. An admission while one is open ends it; a discharge while none is open
  is an event like others. Admissions and discharges stay as events inside the marks, because their
  codes say from where and whereto. No event is left out: not labs with several units (codes are a
  unit's own), not drugs without a number, not diagnoses (a task that hides them gets streams from
  which they were taken before).
- The prompt stands behind what is known at the moment of asking, with the time gone by since the
  last event, and nowhere else. There, it stood in front as well, which makes the whole history
  depend on the task, and a cutoff cut the one behind away.

Streams come from `tokenize_events`, so codes, parents and quantiles are those of our own model.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import codes, schema
from tsfm.errors import InputError
from tsfm.tokens.asked_frame import read_asked
from tsfm.tokens.ehr_mamba_words import (
    CLS_ID,
    FIRST_INTERVAL_ID,
    REGISTER_ID,
    VISIT_END_ID,
    VISIT_START_ID,
    EhrMambaWords,
    Kind,
    interval_of,
)
from tsfm.tokens.event_tokens import SubjectTokens
from tsfm.tokens.vocabulary import Vocabulary

UNKNOWN_LABEL = -1
_SECONDS_PER_DAY, _SECONDS_PER_YEAR = 86400.0, 365.25 * 86400.0


@dataclass(frozen=True)
class EhrMambaStreams:
    """Sequences of some subjects, end to end.

    Attributes:
        word: (T,) word ids.
        kind: (T,) see `Kind`.
        time_s: (T,) when each became known, seconds on the data set's clock.
        visit: (T,) number of the last visit begun, 0 before the first.
        side: (T,) 1 and 2 in turn for what is inside a visit, 0 outside and for marks.
        start: (S + 1,) borders of the subjects.
        subject_id: (S,) subjects.
        birth_s: (S,) births in seconds, NaN where unknown.
    """

    word: NDArray[np.int64]
    kind: NDArray[np.int64]
    time_s: NDArray[np.float64]
    visit: NDArray[np.int64]
    side: NDArray[np.int64]
    start: NDArray[np.int64]
    subject_id: NDArray[np.int64]
    birth_s: NDArray[np.float64]

    def age_years(self) -> NDArray[np.float64]:
        """(T,) age at each word, NaN where the birth is unknown."""
        birth = np.repeat(self.birth_s, np.diff(self.start))
        return (self.time_s - birth) / _SECONDS_PER_YEAR

    def pick(self, rows: NDArray[np.int64]) -> EhrMambaStreams:
        """Some subjects, by their place."""
        lengths = np.diff(self.start)[rows]
        start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        at = np.arange(int(start[-1])) + np.repeat(self.start[rows] - start[:-1], lengths)
        words = ("word", "kind", "time_s", "visit", "side")
        return EhrMambaStreams(
            **{name: getattr(self, name)[at] for name in words},
            start=start,
            subject_id=self.subject_id[rows],
            birth_s=self.birth_s[rows],
        )


@dataclass(frozen=True)
class EhrMambaPrompts:
    """Questions to some streams, each asked behind a word of theirs.

    Attributes:
        position: (P,) place of the last word known at the moment of asking.
        word: (P,) the task's word.
        gap_hours: (P,) hours from that word to the moment.
        age_years: (P,) age at the moment, NaN where unknown.
        label: (P,) 1 true, 0 false, `UNKNOWN_LABEL` where not given.
        task: (P,) name of the task.
        row: (P,) row of the task's frame.
    """

    position: NDArray[np.int64]
    word: NDArray[np.int64]
    gap_hours: NDArray[np.float64]
    age_years: NDArray[np.float64]
    label: NDArray[np.int64]
    task: NDArray[np.str_]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of questions."""
        return len(self.position)


def ehr_mamba_streams(tokens: SubjectTokens, words: EhrMambaWords) -> EhrMambaStreams:
    """Sequences from the token streams of whole subjects.

    Args:
        tokens: Streams in the order of knowing, with the words' vocabulary.
        words: Word ids.
    """
    birth_ids = words.vocabulary.ids_of_class(codes.BIRTH)
    kept = ~np.isin(tokens.code, birth_ids)  # the age says it
    owner = np.repeat(np.arange(len(tokens.subject_id)), np.diff(tokens.start))[kept]
    code, time_s = tokens.code[kept], tokens.time_s[kept]
    marks = _Marks.find(code, time_s, owner, words.vocabulary)

    # Each event's words: what stands in front of it, itself, what stands behind.
    first = np.diff(owner, prepend=-1) > 0
    before = np.stack(
        [first, marks.ends_open, marks.ends_open, marks.interval >= 0, marks.begins], axis=1
    )
    n_before = before.sum(1)
    length = n_before + 1 + 2 * marks.ends
    event_start = np.cumsum(length) - length
    at = event_start + n_before
    word = np.full(int(length.sum()), REGISTER_ID, np.int64)
    kind = np.full(len(word), Kind.REGISTER, np.int64)
    word[at], kind[at] = words.of_tokens(code, tokens.bin[kept])
    for column, (special, special_kind) in enumerate(
        [
            (CLS_ID, Kind.CLS),
            (VISIT_END_ID, Kind.VISIT_END),
            (REGISTER_ID, Kind.REGISTER),
            (FIRST_INTERVAL_ID + marks.interval, Kind.INTERVAL),
            (VISIT_START_ID, Kind.VISIT_START),
        ]
    ):
        has = before[:, column]
        place = event_start[has] + before[has, :column].sum(1)
        word[place] = np.broadcast_to(special, len(has))[has]
        kind[place] = special_kind
    word[at[marks.ends] + 1], kind[at[marks.ends] + 1] = VISIT_END_ID, Kind.VISIT_END

    visit = np.repeat(marks.visit, length)
    begun = np.repeat(marks.begins, length)
    old = (kind == Kind.VISIT_END) | (kind == Kind.REGISTER) | (kind == Kind.INTERVAL)
    visit[old & begun] -= 1  # the marks of the visit before, read with the admission
    visit[begun & (kind == Kind.CLS)] = 0
    side = np.zeros(len(word), np.int64)
    side[at] = np.where(marks.inside, 2 - marks.visit % 2, 0)
    per_subject = np.zeros(len(tokens.subject_id), np.int64)
    np.add.at(per_subject, owner, length)
    return EhrMambaStreams(
        word=word,
        kind=kind,
        time_s=np.repeat(time_s, length),
        visit=visit,
        side=side,
        start=np.concatenate([[0], np.cumsum(per_subject)]).astype(np.int64),
        subject_id=tokens.subject_id,
        birth_s=tokens.birth_s,
    )


def ehr_mamba_prompts(
    streams: EhrMambaStreams, words: EhrMambaWords, asked: Mapping[str, pl.DataFrame]
) -> EhrMambaPrompts:
    """All questions to the subjects of some streams, those of all tasks together.

    A question about a subject of whom nothing is known by then is left out, as is one about a
    subject who is not there: their rows are missing in the answer.

    Args:
        streams: Sequences of subjects.
        words: Words with a prompt for each task.
        asked: Task to a frame with subject_id and prediction_time, and boolean_value if known.

    Raises:
        InputError: A task has no prompt.
        FormatError: See `read_asked`.
    """
    place = {int(s): k for k, s in enumerate(streams.subject_id.tolist())}
    parts: list[EhrMambaPrompts] = []
    for task, frame in asked.items():
        word = words.prompt(task)
        frame = read_asked(frame, place=task)
        asked_us: NDArray[np.int64] = frame[schema.PREDICTION_TIME].cast(pl.Int64).to_numpy()
        moments = asked_us.astype(np.float64) / 1e6
        found: list[tuple[int, int, int]] = []
        for row, subject in enumerate(frame[schema.SUBJECT_ID].to_list()):
            owner = place.get(subject)
            if owner is None:
                continue
            first, end = int(streams.start[owner]), int(streams.start[owner + 1])
            # Equal microseconds are equal seconds: a tie needs no tolerance.
            position = bisect_right(streams.time_s, float(moments[row]), first, end) - 1
            if position >= first:
                found.append((row, owner, position))
        row, owner, position = np.array(found, np.int64).reshape(-1, 3).T
        label = np.full(frame.height, UNKNOWN_LABEL, np.int64)
        if schema.BOOLEAN_VALUE in frame.columns:
            given = frame[schema.BOOLEAN_VALUE].cast(pl.Int64).fill_null(UNKNOWN_LABEL)
            label = given.to_numpy().astype(np.int64)
        parts.append(
            EhrMambaPrompts(
                position=position,
                word=np.full(len(row), word, np.int64),
                gap_hours=np.maximum(moments[row] - streams.time_s[position], 0.0) / 3600.0,
                age_years=(moments[row] - streams.birth_s[owner]) / _SECONDS_PER_YEAR,
                label=label[row],
                task=np.full(len(row), task),
                row=row,
            )
        )
    return _join(parts)


def _join(parts: Sequence[EhrMambaPrompts]) -> EhrMambaPrompts:
    if not parts:
        raise InputError("no task is asked", code="no_tasks", place="asked")
    names = EhrMambaPrompts.__dataclass_fields__
    columns: dict[str, NDArray[Any]] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in names
    }
    return EhrMambaPrompts(**columns)


@dataclass(frozen=True)
class _Marks:
    """Where visits begin and end; one entry an event.

    `begins`, `ends`: an admission, a discharge of an open visit. `ends_open`: an admission that
    finds a visit open. `interval`: number of the interval word before an admission, -1 for none.
    `visit`: visits begun so far. `inside`: whether the event belongs to an open visit.
    """

    begins: NDArray[np.bool_]
    ends: NDArray[np.bool_]
    ends_open: NDArray[np.bool_]
    interval: NDArray[np.int64]
    visit: NDArray[np.int64]
    inside: NDArray[np.bool_]

    @classmethod
    def find(
        cls,
        code: NDArray[np.int32],
        time_s: NDArray[np.float64],
        owner: NDArray[np.int64],
        vocabulary: Vocabulary,
    ) -> _Marks:
        n = len(code)
        begins = np.isin(code, vocabulary.ids_of_class(codes.ADMISSION))
        leaves = np.isin(code, vocabulary.ids_of_class(codes.DISCHARGE))
        ends, ends_open = np.zeros(n, bool), np.zeros(n, bool)
        interval = np.full(n, -1, np.int64)
        step = np.zeros(n, np.int64)
        subject, is_open, left_at = -1, False, float("nan")
        for k in np.flatnonzero(begins | leaves).tolist():
            if owner[k] != subject:
                subject, is_open, left_at = int(owner[k]), False, float("nan")
            if begins[k]:
                ends_open[k] = is_open
                left_at = float(time_s[k]) if is_open else left_at
                if not np.isnan(left_at):
                    interval[k] = interval_of((float(time_s[k]) - left_at) / _SECONDS_PER_DAY)
                step[k], is_open = int(not is_open), True
            elif is_open:
                ends[k], is_open, left_at = True, False, float(time_s[k])
                step[k] = -1
        n_begun, n_open = np.cumsum(begins), np.cumsum(step)
        # Counted from each subject's own first event; what is left open ends with its subject.
        start = np.maximum.accumulate(np.where(np.diff(owner, prepend=-1) > 0, np.arange(n), 0))
        visit = n_begun - (n_begun - begins)[start]
        inside = (n_open - (n_open - step)[start] > 0) | ends
        return cls(begins, ends, ends_open, interval, visit, inside)
