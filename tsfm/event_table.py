"""The event table on disk: sharded MEDS parquet, written once, read one subject at a time.

Writing is bounded in memory: events are spilled to one bucket a shard as they come, and each bucket
is sorted on its own at the end. A subject's shard is a hash of its id, so one subject is in one
shard whatever the order of the source. Every page carries a checksum and is verified on reading,
because a flipped bit in parquet is otherwise read without a word. A table is shown when all of it
is written (`tsfm.output_folder`).

Order within a subject: time (nulls first), then the rank of the code class (an admission before
what happens in the stay, a death last), then the order of the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import polars as pl

from tsfm import codes, schema, splits
from tsfm.checked_parquet import read_table as read_table
from tsfm.checked_parquet import write_spill
from tsfm.checked_parquet import write_table as write_table
from tsfm.dataset_metadata import dataset_facts as dataset_facts
from tsfm.dataset_metadata import subject_ids as subject_ids
from tsfm.dataset_metadata import subject_splits as subject_splits
from tsfm.dataset_metadata import write_metadata as write_metadata
from tsfm.errors import FormatError, InputError
from tsfm.output_folder import OutputFolder

POLARS_EVENTS: dict[str, Any] = {
    schema.SUBJECT_ID: pl.Int64,
    schema.TIME: pl.Datetime("us"),
    schema.CODE: pl.String,
    schema.NUMERIC_VALUE: pl.Float32,
    schema.TEXT_VALUE: pl.String,
    schema.AVAILABLE_TIME: pl.Datetime("us"),
    schema.ENCOUNTER_ID: pl.Int64,
    schema.SIGNAL_ID: pl.String,
}
"""Column types of an event frame handed to `EventWriter.add`."""


@dataclass(frozen=True)
class EventTableInfo:
    """What a finished event table holds.

    Attributes:
        n_subjects: Subjects with at least one event.
        n_events: Rows.
        events_by_class: Rows by the first part of the code, descending.
    """

    n_subjects: int
    n_events: int
    events_by_class: dict[str, int]


class EventWriter:
    """Writes one data set; use as a context manager, then call `finish`.

    Args:
        root: Root of the data set: a folder that is missing, empty, or holds only what a run that
            failed left.
        n_shards: Files to spread the subjects over.
        with_signals: Whether the folder may hold signals that were written first.

    Attributes:
        unfinished: Hidden folder whose `signals/`, if it is made, `finish` shows with the table.
    """

    def __init__(self, root: str | Path, *, n_shards: int = 4, with_signals: bool = True) -> None:
        """Claim the folder.

        Raises:
            InputError: `bad_n_shards`, `output_exists` or `output_in_use`.
        """
        self.root = Path(root)
        if n_shards < 1:
            raise InputError("fewer than one shard", code="bad_n_shards", place="n_shards")
        self._folder = OutputFolder(self.root, with_signals=with_signals)
        self.unfinished, self._spill = self._folder.unfinished, self._folder.spill
        self.n_shards = n_shards
        self._n_chunks = 0

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove what is not shown, also after a failure, and give the folder free."""
        self._folder.close()

    def add(self, events: pl.DataFrame) -> None:
        """Spill a chunk of events.

        Args:
            events: Any of the columns of `POLARS_EVENTS`; missing ones become null. Where
                `available_time` is null and `time` is not, it is set to `time`; an
                `available_time` before `time` is kept (an order for tomorrow is known today).

        Raises:
            InputError: See `read_columns`.
            FormatError: `null_in_required_column`: an event has no subject or no code.
        """
        if events.height == 0:
            return
        frame = read_columns(events, place="EventWriter.add")
        _check_required(frame, place="EventWriter.add")
        bucket = (pl.col(schema.SUBJECT_ID).hash(seed=7) % self.n_shards).alias("_bucket")
        for (shard,), part in frame.with_columns(bucket).group_by(["_bucket"]):
            path = self._spill / f"{shard}-{self._n_chunks:06d}.parquet"
            write_spill(part.drop("_bucket"), path)
        self._n_chunks += 1

    def finish(
        self,
        *,
        dataset: Mapping[str, Any],
        descriptions: Mapping[str, str] | None = None,
        subject_ids: Mapping[int, str] | None = None,
        subject_splits: Mapping[int, str] | None = None,
    ) -> EventTableInfo:
        """Sort and write all shards and the metadata folder, then show them.

        Args:
            dataset: Fields of `metadata/dataset.json` (name, version, clock ...).
            descriptions: Code to human-readable text.
            subject_ids: Subject id to the id in the source system.
            subject_splits: Subject id to split; by default a hash of the id.
        """
        data = schema.data_dir(self.unfinished)
        data.mkdir()
        subjects: list[int] = []
        counts: dict[str, int] = {}
        n_shards_written = 0
        for shard in range(self.n_shards):
            chunks = sorted(self._spill.glob(f"{shard}-*.parquet"))
            if not chunks:
                continue
            frame = sort_events(pl.concat([pl.read_parquet(chunk) for chunk in chunks]))
            write_events(frame, data / f"{n_shards_written}.parquet")
            n_shards_written += 1
            subjects.extend(frame[schema.SUBJECT_ID].unique().to_list())
            for code, n in frame[schema.CODE].value_counts().iter_rows():
                counts[code] = counts.get(code, 0) + n
        known = subject_splits or {}
        split = {s: known.get(s) or splits.split_of(s) for s in sorted(subjects)}
        write_metadata(
            self.unfinished,
            code_counts=counts,
            descriptions=descriptions or {},
            subject_splits=split,
            subject_ids=subject_ids or {},
            dataset=dataset,
        )
        self._folder.show()
        return EventTableInfo(len(subjects), sum(counts.values()), _count_classes(counts))


def read_columns(events: pl.DataFrame, *, place: str) -> pl.DataFrame:
    """Any columns of `POLARS_EVENTS` as all of them, in their types and order.

    Missing columns are null. A fact with a time of which nobody says when it was known is known at
    its time.

    Args:
        events: A frame from outside.
        place: For the message.

    Raises:
        InputError: `bad_time_type`: times are no date-times, or have a zone. `bad_column_type`: a
            column can't be cast, or an id is no whole number; 1.5 cut to 1 would be another
            patient.
    """
    found: list[pl.Series] = []
    for name, kind in POLARS_EVENTS.items():
        if name not in events.columns:
            found.append(pl.Series(name, [None], kind).new_from_index(0, events.height))
            continue
        given = events[name]
        if isinstance(kind, pl.Datetime):
            check_time(name, given.dtype, place=place)
        if kind == pl.Int64 and not _may_hold_ids(given.dtype):
            raise _bad_column(name, f"is {given.dtype}", place)
        try:
            read = given.cast(kind)
        except pl.exceptions.PolarsError:  # whose message quotes values
            raise _bad_column(name, f"is {given.dtype}, or holds what is none", place) from None
        # Of floating-point and decimal numbers, a cast takes off what is behind the point.
        if kind == pl.Int64 and given.dtype.is_numeric() and not (read == given).all():
            raise _bad_column(name, "holds numbers that are not whole", place)
        found.append(read)
    return pl.DataFrame(found).with_columns(
        pl.col(schema.AVAILABLE_TIME).fill_null(pl.col(schema.TIME))
    )


def check_time(name: str, kind: object, *, place: str) -> None:
    """Refuse what a cast would put at another moment.

    Times with a zone would be shifted to UTC, whatever the data set's clock; numbers would count
    from 1970, and dates be known at midnight, before the day was over.

    Args:
        name: Of the column.
        kind: Its type, or a word where there is no such column.
        place: For the message.

    Raises:
        InputError: `bad_time_type`.
    """
    if kind != pl.Null and not (isinstance(kind, pl.Datetime) and kind.time_zone is None):
        raise InputError(
            f"column '{name}' is {kind}", code="bad_time_type", place=place,
            remedy="Bring it to the data set's clock as date-times without a zone.",
        )  # fmt: skip


def _check_required(events: pl.DataFrame, *, place: str) -> None:
    """Refuse events of nobody, and events of nothing.

    Raises:
        FormatError: `null_in_required_column`.
    """
    if events[schema.SUBJECT_ID].null_count() or events[schema.CODE].null_count():
        raise FormatError(
            "an event has no subject or no code", code="null_in_required_column", place=place,
            remedy="Quarantine such rows before they are written.",
        )  # fmt: skip


def _bad_column(name: str, what: str, place: str) -> InputError:
    return InputError(
        f"column '{name}' {what}", code="bad_column_type", place=place,
        remedy=f"Cast it to {POLARS_EVENTS[name]}.",
    )  # fmt: skip


def _may_hold_ids(kind: pl.DataType) -> bool:
    """Whether numbers of a type, or texts that are numbers, can be ids."""
    return kind.is_numeric() or kind in (pl.String, pl.Null)


def sort_events(events: pl.DataFrame) -> pl.DataFrame:
    """Order events as the table promises; rows that tie keep the order of the source."""
    rank = (
        pl.col(schema.CODE)
        .str.split(codes.SEPARATOR)
        .list.first()
        .replace_strict(codes.tie_ranks(), default=codes.DEFAULT_TIE_RANK, return_dtype=pl.Int8)
        .alias("_rank")
    )
    return (
        events.with_columns(rank)
        .sort(
            [schema.SUBJECT_ID, schema.TIME, "_rank"],
            nulls_last=[False, False, False],
            maintain_order=True,
        )
        .drop("_rank")
    )


def write_events(events: pl.DataFrame, path: Path) -> None:
    """Write one sorted shard, checking types and order first."""
    table = schema.align(events.to_arrow(), schema.EVENTS, place=path.name)
    schema.check_order(table, place=path.name)
    write_table(table, path)


def shard_paths(root: str | Path) -> list[Path]:
    """All event shards of a data set, sorted by name.

    Raises:
        InputError: There are none.
    """
    paths = sorted(schema.data_dir(root).rglob("*.parquet"))
    if not paths:
        raise InputError(
            "no event shards found",
            code="no_events",
            place=str(schema.data_dir(root)),
            remedy="Make an event table first, for example with `tsfm ingest fhir`.",
        )
    return paths


def read_events(path: str | Path) -> pl.DataFrame:
    """One shard as a data frame with the columns of `schema.EVENTS`, types and order checked."""
    place = Path(path).name
    table = schema.align(read_table(path), schema.EVENTS, place=place)
    schema.check_order(table, place=place)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def scan_events(root: str | Path) -> Iterator[pl.DataFrame]:
    """Every shard in turn; see `read_events`."""
    for path in shard_paths(root):
        yield read_events(path)


def append_events(
    root: str | Path, events: pl.DataFrame, *, descriptions: Mapping[str, str] | None = None
) -> EventTableInfo:
    """Merge more events into an existing table, keeping shards, order and splits.

    Subjects that the table does not know yet go to its last shard. Shards are written one by one.
    Records of a signal that is merged again take the place of those that are there, so that a
    merge of signals which was stopped half-way can be made anew; other events would be there twice.

    Raises:
        InputError: See `read_columns`; or there is no table.
        FormatError: `null_in_required_column`: an event has no subject or no code. Nothing is
            written then.
    """
    facts, known, ids = dataset_facts(root), subject_splits(root), subject_ids(root)
    paths = shard_paths(root)
    left = read_columns(events, place="append_events")
    _check_required(left, place="append_events")
    counts: dict[str, int] = {}
    subjects: set[int] = set()
    again = left[schema.SIGNAL_ID].drop_nulls().unique().implode()
    for path in paths:
        stored = read_events(path)
        shard = stored.filter(~pl.col(schema.SIGNAL_ID).is_in(again).fill_null(False))
        here = left.filter(pl.col(schema.SUBJECT_ID).is_in(shard[schema.SUBJECT_ID].implode()))
        left = left.join(here, on=schema.SUBJECT_ID, how="anti")
        if path == paths[-1]:
            here = pl.concat([here, left])
        merged = sort_events(pl.concat([shard, here])) if here.height else shard
        if here.height or shard.height < stored.height:
            write_events(merged, path)
        subjects.update(merged[schema.SUBJECT_ID].unique().to_list())
        for code, n in merged[schema.CODE].value_counts().iter_rows():
            counts[code] = counts.get(code, 0) + n
    old = read_table(schema.metadata_dir(root) / "codes.parquet").to_pylist()
    texts = {row[schema.CODE]: row["description"] for row in old if row["description"]}
    write_metadata(
        root,
        code_counts=counts,
        descriptions={**texts, **(descriptions or {})},
        subject_splits={s: known.get(s) or splits.split_of(s) for s in sorted(subjects)},
        subject_ids=ids,
        dataset=facts,
    )
    return EventTableInfo(len(subjects), sum(counts.values()), _count_classes(counts))


def _count_classes(counts: Mapping[str, int]) -> dict[str, int]:
    classes: dict[str, int] = {}
    for code, n in counts.items():
        name = codes.code_class(code)
        classes[name] = classes.get(name, 0) + n
    return dict(sorted(classes.items(), key=lambda item: -item[1]))
