"""How a patient's risk moves through a stay: the calibrated risk after every newly known event.

A hidden state has seen what was known by its token and nothing else, so one packed pass answers a
task at every moment of a stay. A row says what a scoring run at this moment would have said; of
several events that became known at once, only after the last of them is the moment's score
`settled`, the rows before it show what each one did.

A task's head and its calibration are fitted at the task's own prediction time (a discharge, a day
after admission). At other moments of a stay the course shows direction and news; how well its level
is calibrated there is to be measured, not assumed.

A course ends before the moment at which the patient's death is known: of the dead nothing is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from tsfm import codes, event_table, schema
from tsfm.batches.batch import SECONDS_PER_HOUR, Batch
from tsfm.batches.dataset import batches_of
from tsfm.errors import InputError
from tsfm.evaluation.given_records import check_max_tokens, read_records
from tsfm.evaluation.known_past import calibrated_log_odds
from tsfm.models.checkpoint import ModelDirectory
from tsfm.tasks.cohorts import Task
from tsfm.tasks.registry import task_named
from tsfm.tasks.stays import hospital_stays, in_class, merge_stays
from tsfm.tokens.event_tokens import order_of_knowing
from tsfm.tokens.signal_vectors import SignalVectors, vectors_of

START = "start_time"

COLUMNS = {
    schema.SUBJECT_ID: pl.Int64,
    schema.ENCOUNTER_ID: pl.Int64,
    START: pl.Datetime("us"),
    schema.TIME: pl.Datetime("us"),
    schema.CODE: pl.String,
    "n_new": pl.Int64,
    "settled": pl.Boolean,
    "probability": pl.Float64,
    "log_odds_change": pl.Float64,
}
"""Columns of a risk course and their types."""


def risk_course(
    directory: ModelDirectory,
    events: Any,
    task: str,
    *,
    subjects: Iterable[int] | None = None,
    every: timedelta | None = None,
    signals: SignalVectors | None = None,
    max_tokens: int = 16_384,
) -> pl.DataFrame:
    """Course of the calibrated risk over every hospital stay.

    Stays that touch, or meet on one day, are one. An open stay ends with what is known last, and
    every stay before the patient's death is known.

    Args:
        directory: Loaded model, fine-tuned for the task.
        events: Root of an event table, or whole records of some subjects: a data frame of polars,
            pandas or pyarrow with columns of `schema.EVENTS`; those that are missing are taken as
            `EventWriter.add` takes them.
        task: Name of the task.
        subjects: Only these; by default all.
        every: Ask at regular moments of a stay, from its start on, instead of after each event.
        signals: Vectors of the waveforms that the events point to; a root has its own.
        max_tokens: Tokens a batch.

    Returns:
        One row a newly known event of a stay (or a regular moment), in order of subject and time:
        subject_id; encounter_id and start_time of the stay; time, when the event became known; its
        code (of the last one by then); n_new, events that became known since the row before (or
        before the stay, for its first row); settled; probability (null where no code known to the
        model has been seen yet); log_odds_change since the row before, null in a stay's first row.

    Raises:
        InputError: `every` is not positive, `subjects` or `max_tokens` are no whole numbers, a
            frame that can't be read, or a task without one event in time.
        ModelMismatch: The model was not fine-tuned for the task.
    """
    asked = task_named(task)
    directory.model.task_head(asked.name)
    check_max_tokens(max_tokens)
    if every is not None and not (isinstance(every, timedelta) and every > timedelta(0)):
        raise InputError(
            "the time between two moments is not positive", code="bad_every", place="every",
            remedy="Use for example timedelta(hours=6).",
        )  # fmt: skip
    ids = None if subjects is None else _ids(subjects)
    if signals is None and isinstance(events, str | Path):
        signals = vectors_of(events)
    found = [pl.DataFrame(schema=COLUMNS)]
    for part in _parts(events):
        wanted = part
        if ids is not None:
            wanted = part.filter(pl.col(schema.SUBJECT_ID).is_in(ids))
        if wanted.height:
            found += _courses(directory, wanted, asked, every, max_tokens, signals)
    return pl.concat(found).sort(schema.SUBJECT_ID, START, schema.TIME, maintain_order=True)


@dataclass(frozen=True)
class _Moments:
    """Where in a batch a course is read, stay by stay.

    Attributes:
        stay: Row of the stays that each moment belongs to.
        position: Last token known by then, an index into the batch.
        time_us: The moment.
        n_new: Tokens since the moment before, or since the stay began.
        settled: Whether no further token becomes known at that moment.
    """

    stay: NDArray[np.int64]
    position: NDArray[np.int64]
    time_us: NDArray[np.int64]
    n_new: NDArray[np.int64]
    settled: NDArray[np.int64]


def _ids(subjects: Iterable[int]) -> list[int]:
    try:
        return [index(subject) for subject in subjects]
    except TypeError:
        raise InputError(
            "subjects are no whole numbers", code="bad_subjects", place="subjects",
            remedy="Give a list of subject_id.",
        ) from None  # fmt: skip


def _parts(events: Any) -> Iterator[pl.DataFrame]:
    if isinstance(events, str | Path):
        yield from event_table.scan_events(events)
    else:
        yield read_records(events)


def _courses(
    directory: ModelDirectory,
    events: pl.DataFrame,
    task: Task,
    every: timedelta | None,
    max_tokens: int,
    signals: SignalVectors | None,
) -> list[pl.DataFrame]:
    stays = merge_stays(hospital_stays(events)).filter("first")
    # A stay whose discharge is missing ends where the next one begins.
    begins = pl.col(START).shift(-1).over(schema.SUBJECT_ID) - timedelta(microseconds=1)
    stays = stays.with_columns(pl.coalesce("end_time", begins))
    owners = stays[schema.SUBJECT_ID].unique()
    events = events.filter(pl.col(schema.SUBJECT_ID).is_in(owners.implode()))
    stream = order_of_knowing(events)
    stays = _alive(stays, stream)
    tokens = directory.tokenize(events, signals=signals)
    stream_us, names = stream["_stream_us"].to_numpy(), stream[schema.CODE]
    step_us = None if every is None else every // timedelta(microseconds=1)
    courses: list[pl.DataFrame] = []
    offset = 0
    for batch in batches_of(tokens, directory.scale, max_tokens=max_tokens):
        own_us = stream_us[offset : offset + batch.n_tokens]
        moments = _moments(batch, own_us, stays, step_us)
        log_odds = _read(directory, task, batch, moments, own_us)
        code = names[offset : offset + batch.n_tokens]
        courses.append(_rows(moments, log_odds, code, stays))
        offset += batch.n_tokens
    return courses


def _alive(stays: pl.DataFrame, stream: pl.DataFrame) -> pl.DataFrame:
    """The stays, each ending before the first moment at which its subject is known to be dead."""
    known_us = pl.col("_stream_us").min().alias("_death_us")
    deaths = stream.filter(in_class(codes.DEATH)).group_by(schema.SUBJECT_ID).agg(known_us)
    before = (pl.col("_death_us") - 1).cast(pl.Datetime("us"))
    return (
        stays.join(deaths, on=schema.SUBJECT_ID, how="left", maintain_order="left")
        .with_columns(pl.min_horizontal("end_time", before))
        .drop("_death_us")
    )


def _moments(
    batch: Batch, time_us: NDArray[np.int64], stays: pl.DataFrame, every_us: int | None
) -> _Moments:
    """Moments of all stays of a batch's subjects, stay by stay."""
    borders = batch.cu_seqlens.numpy()
    place = {subject: i for i, subject in enumerate(batch.subject_id.tolist())}
    names = (schema.SUBJECT_ID, START, "end_time")
    starts, ends = (stays[name].cast(pl.Int64).to_list() for name in names[1:])
    found: list[tuple[NDArray[Any], ...]] = []
    for stay, subject in enumerate(stays[schema.SUBJECT_ID].to_list()):
        if subject not in place:
            continue
        first, last = borders[place[subject]], borders[place[subject] + 1]
        own = time_us[first:last]
        start, end = starts[stay], own[-1] if ends[stay] is None else ends[stay]
        before = np.searchsorted(own, start)
        if every_us is None:
            within = np.arange(before, np.searchsorted(own, end, side="right"))
            asked = own[within]
        else:
            asked = np.arange(start, end + 1, every_us)
            asked = asked[asked >= own[0]]
            within = np.searchsorted(own, asked, side="right") - 1
        latest = np.searchsorted(own, asked, side="right") - 1
        n_new = np.diff(within, prepend=before - 1)
        of_stay = np.full(len(asked), stay)
        found.append((of_stay, first + within, asked, n_new, within == latest))
    if not found:
        return _Moments(*(np.zeros(0, np.int64) for _ in range(5)))
    return _Moments(*(np.concatenate(c).astype(np.int64) for c in zip(*found, strict=True)))


def _read(
    directory: ModelDirectory,
    task: Task,
    batch: Batch,
    moments: _Moments,
    time_us: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Log odds at all moments in one pass; NaN before the first code that the model knows."""
    if not len(moments.position):
        return np.zeros(0)
    waited = (moments.time_us - time_us[moments.position]) / 1e6 / SECONDS_PER_HOUR
    with torch.inference_mode():
        hidden = directory.model(batch)[torch.from_numpy(moments.position)]
        elapsed = torch.from_numpy(waited.astype(np.float32))
        log_odds = calibrated_log_odds(directory, task, hidden, elapsed).numpy()
    known = np.concatenate([[0], np.cumsum(batch.code.numpy() > 0)])
    borders = batch.cu_seqlens.numpy()
    start = borders[np.searchsorted(borders, moments.position, side="right") - 1]
    return np.where(known[moments.position + 1] > known[start], log_odds, np.nan)


def _rows(
    moments: _Moments, log_odds: NDArray[np.float64], code: pl.Series, stays: pl.DataFrame
) -> pl.DataFrame:
    stay = moments.stay
    opens = np.diff(stay, prepend=-1) != 0
    where = stays[stay]
    return pl.DataFrame(
        {
            schema.SUBJECT_ID: where[schema.SUBJECT_ID],
            schema.ENCOUNTER_ID: where[schema.ENCOUNTER_ID],
            START: where[START],
            schema.TIME: pl.Series(moments.time_us).cast(pl.Datetime("us")),
            schema.CODE: code.gather(moments.position),
            "n_new": moments.n_new,
            "settled": moments.settled.astype(bool),
            "probability": 1 / (1 + np.exp(-log_odds)),
            "log_odds_change": np.where(opens, np.nan, np.diff(log_odds, prepend=np.nan)),
        },
        schema=COLUMNS,
    ).with_columns(pl.col("probability", "log_odds_change").fill_nan(None))
