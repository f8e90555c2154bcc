"""Leak audit: nothing that became known after a prediction time has a part in its score.

The record of each audited subject is changed in everything that became available after one of its
prediction times, by every means there is: other values, other codes, other times (a late fact may
be about the past), events more, events fewer. The scorer is asked again, and each score of that
time or earlier must be what it was, bit for bit. Subjects with several prediction times are cut at
each of them in turn. A scorer is any function from events and cohort to numbers: a model, a score
of points, the features of a baseline.

The scorer is handed the cohort too, which holds the answers: what came of it after a cut is altered
in a round of its own (`tsfm.evaluation.altered_answers`).

Left alone are facts that have neither `time` nor `available_time` and births, which are known from
the start, and all other subjects, on whom a scorer may have been fitted.

The audit believes `available_time`. A source that is read as if its bills were known at the
admission passes: that is for the tests of its ingest.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import codes, event_table, schema
from tsfm.errors import InputError
from tsfm.evaluation.altered_answers import CUT, FURTHEST_HOURS, alter_answers
from tsfm.tokens.event_tokens import TOKEN_FIELDS
from tsfm.tokens.signal_vectors import SignalVectors
from tsfm.tokens.token_store import TokenStore, build_token_store

VALUES, CODES, TIMES, ADDED, REMOVED = "values", "codes", "times", "added", "removed"
KINDS: tuple[str, ...] = (VALUES, CODES, TIMES, REMOVED, ADDED)
"""Ways of altering what is later, in the order in which they are done in one round."""

ANSWERS = "answers"
"""What the cohort itself says of later, altered in a round of its own."""

ROUNDS: tuple[tuple[str, ...], ...] = (*((kind,) for kind in KINDS), KINDS)
"""Each way alone, then all of them at once."""

N_ADDED = 24
"""Events that are added to a subject."""

Scorer = Callable[[pl.DataFrame, pl.DataFrame], NDArray[Any]]
"""From events and cohort to numbers, a row of the cohort a row: (rows,) or (rows, numbers)."""

_MOMENT = pl.duration(microseconds=1)


@dataclass(frozen=True)
class LeakAudit:
    """What an audit found.

    Attributes:
        n_stays: Rows of the cohort whose scores were compared, each at least once a round.
        n_altered: Events altered, added or removed, by kind, and rows of the cohort whose `ANSWERS`
            were altered; how often a kind was done in vain can be read from a count of 0.
        leaks: One row for each stay and round in which its score moved: subject_id,
            prediction_time, kinds (of the round, or `ANSWERS`), difference (largest, NaN where a
            number came or went).
    """

    n_stays: int
    n_altered: Mapping[str, int]
    leaks: pl.DataFrame

    @property
    def is_clean(self) -> bool:
        """Whether no score moved."""
        return self.leaks.is_empty()


def audit_leaks(
    events: pl.DataFrame | str | Path,
    cohort: pl.DataFrame,
    score: Scorer,
    *,
    rounds: Sequence[Sequence[str]] = ROUNDS,
    tolerance: float = 0.0,
    seed: int = 0,
) -> LeakAudit:
    """Alter what is later, score again, and name every stay whose score moved.

    Args:
        events: Whole subjects, columns of `schema.EVENTS`, or the root of an event table.
        cohort: Rows of `schema.COHORT` to audit, usually the eligible ones.
        score: The scorer; fitted before, or on subjects who are not in the cohort.
        rounds: Kinds that are done together, round by round; `ANSWERS` have one more.
        tolerance: Relative and absolute difference that is no leak. 0, unless the scorer adds
            floating-point numbers in an order that depends on the length of a record.
        seed: Of all draws.

    Raises:
        InputError: An unknown kind, an empty cohort, a scorer that answers another number of rows
            or, asked twice, says two things.
    """
    _check(rounds, cohort)
    if not isinstance(events, pl.DataFrame):
        events = pl.concat(event_table.scan_events(events))
    before = _ask(score, events, cohort)
    if not _same(before, _ask(score, events, cohort), 0.0).all():
        raise InputError(
            "asked twice the same, the scorer gives two answers",
            code="scorer_not_deterministic", place="score", remedy="Fix its seeds.",
        )  # fmt: skip
    n_altered = dict.fromkeys((*KINDS, ANSWERS), 0)
    leaks: list[pl.DataFrame] = []

    def compare(kinds: Sequence[str], compared: NDArray[np.bool_], after: NDArray[Any]) -> None:
        moved = compared & ~_same(before, after, tolerance)
        difference = np.abs(after[moved].astype(float) - before[moved].astype(float))
        leaks.append(
            cohort.filter(pl.Series(moved)).select(
                schema.SUBJECT_ID,
                schema.PREDICTION_TIME,
                pl.lit("+".join(kinds)).alias("kinds"),
                pl.Series("difference", difference.max(-1, initial=0.0), dtype=pl.Float64),
            )
        )

    for place, (cuts, compared) in enumerate(_cuts(cohort)):
        for number, kinds in enumerate(rounds):
            rng = np.random.default_rng([seed, place, number])
            altered, counts = alter_later(events, cuts, kinds, rng)
            for kind, n in counts.items():
                n_altered[kind] += n
            compare(kinds, compared, _ask(score, altered, cohort))
        rng = np.random.default_rng([seed, place, len(rounds)])
        asked, n = alter_answers(cohort, cuts, rng)
        n_altered[ANSWERS] += n
        if n:
            compare([ANSWERS], compared, _ask(score, events, asked))
    return LeakAudit(cohort.height, n_altered, pl.concat(leaks))


def alter_later(
    events: pl.DataFrame, cuts: pl.DataFrame, kinds: Sequence[str], rng: np.random.Generator
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Change what became available after each subject's cut, and nothing else.

    Args:
        events: Whole subjects, columns of `schema.EVENTS`.
        cuts: subject_id and `CUT`, one row a subject; all other subjects are left alone.
        kinds: Some of `KINDS`.
        rng: Of all draws.

    Returns:
        Events in the order of an event table, and how many were altered by each kind.
    """
    beside = events.join(cuts, on=schema.SUBJECT_ID, how="left", maintain_order="left")
    known = pl.coalesce(schema.AVAILABLE_TIME, schema.TIME)
    is_later = (known > pl.col(CUT)).fill_null(False) & (pl.col(schema.CODE) != codes.BIRTH)
    kept = beside.filter(~is_later).select(events.columns)
    later = beside.filter(is_later)
    every = events[schema.CODE].unique().sort()
    every = every.filter(every != codes.BIRTH)
    counts: dict[str, int] = {}
    for kind in (kind for kind in KINDS if kind in kinds):
        if kind == ADDED:
            more = _made_up(events, cuts, every, rng)
            counts[kind], later = more.height, pl.concat([later, more.select(later.columns)])
        elif kind == REMOVED:
            left = _thinned(later, rng)
            counts[kind], later = later.height - left.height, left
        else:
            counts[kind] = later.height
            later = _REWRITES[kind](later, every, rng)
    return event_table.sort_events(pl.concat([kept, later.select(events.columns)])), counts


def stream_scorer(vocabulary_from: str | Path, *, signals: SignalVectors | None = None) -> Scorer:
    """A scorer whose numbers are the tokens themselves, so that `audit_leaks` audits token stores.

    The events are written as an event table and tokenised anew; for each row of the cohort the
    store's stream up to the prediction time is told by its length and a digest of every field.

    Args:
        vocabulary_from: Folder with the `vocabulary/` to use; see `build_token_store`.
        signals: Vectors of the waveforms that the events point to.
    """

    def score(events: pl.DataFrame, cohort: pl.DataFrame) -> NDArray[np.uint64]:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            with event_table.EventWriter(root / "events", n_shards=1) as writer:
                writer.add(events)
                writer.finish(dataset={})
            store = build_token_store(
                root / "events", root / "tokens", vocabulary_from=vocabulary_from,
                signals=signals,
            )  # fmt: skip
            return stream_digests(store, cohort)

    return score


def stream_digests(store: TokenStore, cohort: pl.DataFrame) -> NDArray[np.uint64]:
    """Length and digest of each row's stream up to its prediction time, shape (rows, 2).

    The digest is of all fields of these tokens, to the bit, and of the subject's birth. A subject
    whom the store does not hold has no tokens.
    """
    names = ("start", "length", "birth_s")
    places = dict(
        zip(
            store.subjects[schema.SUBJECT_ID].to_list(),
            store.subjects.select(names).rows(),
            strict=True,
        )
    )
    # Equal microseconds are equal seconds, so no tolerance decides a tie.
    asked_s = cohort[schema.PREDICTION_TIME].dt.epoch("us").to_numpy() / 1e6
    found = np.zeros((cohort.height, 2), np.uint64)
    for row, subject in enumerate(cohort[schema.SUBJECT_ID].to_list()):
        start, length, birth_s = places.get(subject, (0, 0, float("nan")))
        times = store.fields["time_s"][start : start + length]
        n = int(np.searchsorted(times, asked_s[row], side="right"))
        digest = hashlib.blake2b(np.float64(birth_s).tobytes(), digest_size=8)
        for name in TOKEN_FIELDS:
            digest.update(store.fields[name][start : start + n].tobytes())
        found[row] = n, int.from_bytes(digest.digest(), "big")
    return found


def _check(rounds: Sequence[Sequence[str]], cohort: pl.DataFrame) -> None:
    unknown = {kind for kinds in rounds for kind in kinds} - set(KINDS)
    if unknown or not rounds:
        raise InputError(
            "unknown kind of alteration, or none",
            code="bad_alteration", place="rounds", remedy=f"Use some of {', '.join(KINDS)}.",
        )  # fmt: skip
    if cohort.is_empty():
        raise InputError(
            "the cohort is empty, so nothing is audited",
            code="empty_cohort", place="cohort", remedy="Give the eligible stays of a task.",
        )  # fmt: skip


def _ask(score: Scorer, events: pl.DataFrame, cohort: pl.DataFrame) -> NDArray[Any]:
    """Numbers of shape (rows, numbers)."""
    found = np.asarray(score(events, cohort))
    if found.ndim == 0 or len(found) != cohort.height:
        raise InputError(
            "the scorer does not answer once a row of the cohort",
            code="bad_scorer", place="score", remedy="Return one row for every row, in order.",
        )  # fmt: skip
    return found.reshape(cohort.height, -1)


def _same(before: NDArray[Any], after: NDArray[Any], tolerance: float) -> NDArray[np.bool_]:
    """For each row whether all of its numbers are the same, (rows,)."""
    if before.shape != after.shape:
        raise InputError(
            "the scorer gives another number of columns for the altered events",
            code="bad_scorer", place="score",
            remedy="Fit it on subjects who are not in the cohort.",
        )  # fmt: skip
    equal = before == after
    if np.issubdtype(before.dtype, np.floating):
        equal |= np.isnan(before) & np.isnan(after)
        if tolerance:
            equal |= np.isclose(after, before, rtol=tolerance, atol=tolerance)
    return equal.all(-1)


def _cuts(cohort: pl.DataFrame) -> list[tuple[pl.DataFrame, NDArray[np.bool_]]]:
    """Cuts of all subjects, and the rows they leave alone: first each one's first time, and so on.

    A subject with fewer prediction times than others is not cut in the later ones.
    """
    now = pl.col(schema.PREDICTION_TIME)
    ranked = cohort.select(
        schema.SUBJECT_ID,
        schema.PREDICTION_TIME,
        (now.rank("dense").over(schema.SUBJECT_ID) - 1).alias("place"),
    )
    found: list[tuple[pl.DataFrame, NDArray[np.bool_]]] = []
    for place in range(int(ranked["place"].to_numpy().max()) + 1):
        cuts = (
            ranked.filter(pl.col("place") == place)
            .select(schema.SUBJECT_ID, now.alias(CUT))
            .unique(maintain_order=True)
        )
        beside = ranked.join(cuts, on=schema.SUBJECT_ID, how="left", maintain_order="left")
        found.append((cuts, beside.select((now <= pl.col(CUT)).fill_null(False)).to_series()
                      .to_numpy()))  # fmt: skip
    return found


def _new_values(later: pl.DataFrame, every: pl.Series, rng: np.random.Generator) -> pl.DataFrame:
    """Numbers of any size, also where there were none, and none in places."""
    numbers = rng.normal(size=later.height) * 10.0 ** rng.integers(0, 4, later.height)
    numbers[rng.random(later.height) < 0.1] = np.nan
    return later.with_columns(
        pl.Series(schema.NUMERIC_VALUE, numbers, dtype=pl.Float32).fill_nan(None),
        pl.lit("altered").alias(schema.TEXT_VALUE),
    )


def _new_codes(later: pl.DataFrame, every: pl.Series, rng: np.random.Generator) -> pl.DataFrame:
    """Any code of the table, all as likely: deaths and discharges among them."""
    drawn = every.gather(rng.integers(0, max(len(every), 1), later.height))
    return later.with_columns(drawn.alias(schema.CODE))


def _new_times(later: pl.DataFrame, every: pl.Series, rng: np.random.Generator) -> pl.DataFrame:
    """Before or after the cut, to the microsecond after it, but known after it still."""
    hours = np.exp(rng.uniform(np.log(1e-3), np.log(FURTHEST_HOURS), (2, later.height)))
    to_us = 3.6e9
    since = pl.Series((hours[0] * to_us).astype(np.int64) * rng.choice([-1, 1], later.height))
    known = pl.Series(np.where(rng.random(later.height) < 0.2, 0, hours[1] * to_us).astype(int))
    cut = pl.col(CUT)
    return later.with_columns(
        pl.when(pl.col(schema.TIME).is_not_null())
        .then(cut + pl.duration(microseconds=pl.lit(since)))
        .alias(schema.TIME),
        (cut + pl.duration(microseconds=pl.lit(known)) + _MOMENT).alias(schema.AVAILABLE_TIME),
    )


_REWRITES: dict[str, Callable[[pl.DataFrame, pl.Series, np.random.Generator], pl.DataFrame]] = {
    VALUES: _new_values,
    CODES: _new_codes,
    TIMES: _new_times,
}


def _thinned(later: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Half of a subject's later events, or none, as if the record ended at the cut."""
    half = pl.Series(rng.random(later.height) < 0.5)
    subjects = later[schema.SUBJECT_ID].unique().sort()
    going_on = subjects.filter(pl.Series(rng.random(len(subjects)) < 0.5))
    return later.filter(half & later[schema.SUBJECT_ID].is_in(going_on.implode()))


def _made_up(
    events: pl.DataFrame, cuts: pl.DataFrame, every: pl.Series, rng: np.random.Generator
) -> pl.DataFrame:
    """`N_ADDED` events a subject: half like events of the table, half of any code in it."""
    pool = events.filter(pl.col(schema.TIME).is_not_null() & (pl.col(schema.CODE) != codes.BIRTH))
    n = cuts.height * N_ADDED if pool.height else 0
    owners = cuts[rng.permutation(np.repeat(np.arange(cuts.height), N_ADDED))[:n]]
    rows = pool[rng.integers(0, max(pool.height, 1), n)].with_columns(
        owners[schema.SUBJECT_ID],
        owners[CUT],
        pl.lit(None, dtype=pl.Int64).alias(schema.ENCOUNTER_ID),
        pl.lit(None, dtype=pl.String).alias(schema.SIGNAL_ID),
    )
    rows = _new_times(rows, every, rng)
    rare = _new_values(_new_codes(rows.tail(n // 2), every, rng), every, rng)
    return pl.concat([rows.head(n - n // 2), rare])
