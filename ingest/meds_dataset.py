# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Other people's MEDS data sets (0.3 and 0.4) to our event table.

The shards are read twice in batches: once for what must be known beforehand (hospital stays, which
subjects are where), once to write. The writer sorts and re-shards, so subjects spread over files,
rows out of order and mixed spellings of types do no harm; each is noted in the summary.

What the source says is kept: `available_time` and `encounter_id` where it has them, and what
`meds_metadata` reads. What MEDS does not say is filled in by `meds_stays`. A data set of our own
comes out as it went in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
from tqdm import tqdm

from tsfm import event_table, schema
from tsfm.errors import FormatError, InputError
from tsfm.event_table import EventWriter
from tsfm.ingest import meds_metadata, meds_stays
from tsfm.ingest.meds_shards import ROW, Shard, ShardReader, find_shards
from tsfm.ingest.provenance import IngestSummary
from tsfm.ingest.quarantine import Quarantine, check_largest_share
from tsfm.output_folder import check_apart

BATCH_ROWS = 1_000_000
_SOURCE = "events"
_MAX_LISTED = 1000
_TIMES = (schema.TIME, schema.AVAILABLE_TIME)
_COUNTED = {
    "aware_times": "{:,} columns of times with a zone were brought to UTC",
    "float64_values": "{:,} shards hold 64-bit values: kept with 32 bits, as MEDS asks",
    "old_names": "{:,} shards have other column names (patient_id, hadm_id): read as ours",
    "not_finite": "{:,} values were infinite or beyond 32-bit floats: left empty",
    "nan": "{:,} values were NaN: left empty",
    "split_conflicts": "{:,} subjects were in folders of two splits or listed with two: the one "
    "kept furthest from training has them",
    "split_unlike": "{:,} subjects are in a folder of another split than the table of splits says: "
    "the table is followed",
    "split_unsaid": "{:,} subjects are in no split of the source: split by a hash of their id",
}


def ingest_meds(
    src: str | Path,
    out: str | Path,
    *,
    n_shards: int = 4,
    coding_delay_hours: float = 120.0,
    dates_shifted: bool | None = None,
    progress: bool | None = None,
    max_quarantined: float = 0.5,
    batch_rows: int = BATCH_ROWS,
) -> IngestSummary:
    """Read a MEDS data set into a new event table.

    Args:
        src: Folder with `data/` and perhaps `metadata/`, or with the folders `train/`, `tuning/`
            and `held_out/`.
        out: Root of the data set to write.
        n_shards: Event files to spread the subjects over.
        coding_delay_hours: From a stay's end to its billing codes being known, where the source
            does not say.
        dates_shifted: Whether dates are shifted per subject, so that there is no common last day.
            None: as `metadata/dataset.json` says, else if the data set's name has `mimic` in it.
        progress: Show a progress bar; None: on a terminal only.
        max_quarantined: Share of events set aside above which the run fails.
        batch_rows: Events held in memory at a time; what is written does not depend on it.

    Raises:
        InputError: `missing_source`, `empty_source`, `output_exists`, `output_in_use`,
            `output_inside_source` or `bad_coding_delay`.
        FormatError: `bad_parquet`, `missing_column`, `ambiguous_column`, `wrong_column_type`,
            `ambiguous_times`, `bad_metadata` or `too_many_quarantined`.
        IntegrityError: `checksum_mismatch`.
    """
    if not 0 <= coding_delay_hours < 24 * 3660:
        raise InputError(
            "the coding delay is negative or beyond ten years",
            code="bad_coding_delay",
            place="--coding-delay-hours",
            remedy="Give the hours from discharge to billing codes, such as 120.",
        )
    check_largest_share(max_quarantined)
    root = Path(src)
    shards = find_shards(root)
    check_apart(root, out)
    facts = meds_metadata.read_facts(root)
    descriptions, notes = meds_metadata.read_descriptions(root)
    source_ids = event_table.subject_ids(root)
    summary = IngestSummary("meds")
    with EventWriter(out, n_shards=n_shards, with_signals=False) as writer:
        for stale in (Path(out) / "quarantine").glob("*.ndjson"):
            stale.unlink()  # of a run that failed
        quarantine = Quarantine(out)
        try:
            run = _Run(shards, writer, quarantine, summary, batch_rows, progress)
            run.survey()
            splits = meds_metadata.read_splits(root, run.folder_splits(), run.counts)
            run.write(timedelta(hours=coding_delay_hours))
        finally:
            quarantine.close()
        _check_counts(summary, quarantine, root, max_quarantined)
        if dates_shifted is None:
            dates_shifted = meds_metadata.are_dates_shifted(facts, root)
        as_of = facts.get("data_as_of")
        if as_of is None and not dates_shifted and run.latest is not None:
            as_of = run.latest.isoformat()
        copied = meds_metadata.copy_signals(root, writer.unfinished, run.signals)
        summary.notes += run.notes(coding_delay_hours) + notes + copied
        info = writer.finish(
            dataset=meds_metadata.kept_facts(
                facts,
                root,
                is_utc=run.is_utc,
                is_filled=run.counts["billed"] > 0,
                coding_delay_hours=coding_delay_hours,
                data_as_of=as_of,
                dates_shifted=dates_shifted,
            ),
            descriptions=descriptions,
            subject_ids=source_ids,
            subject_splits=splits,
        )
    summary.n_subjects, summary.n_events = info.n_subjects, info.n_events
    summary.events_by_class = info.events_by_class
    summary.stop()
    return summary


@dataclass
class _Run:
    shards: list[Shard]
    writer: EventWriter
    quarantine: Quarantine
    summary: IngestSummary
    batch_rows: int
    progress: bool | None
    counts: Counter[str] = field(default_factory=Counter[str])
    latest: datetime | None = None
    signals: set[str] = field(default_factory=set[str])
    is_utc: bool = False
    _readers: list[ShardReader] = field(default_factory=list[ShardReader])
    _stays: pl.DataFrame = field(default_factory=pl.DataFrame)
    _shards_of: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    _dropped: set[str] = field(default_factory=set[str])

    def survey(self) -> None:
        """Learn the stays, where each subject is, and whether rows are in order."""
        bounds: list[pl.DataFrame] = []
        names = [schema.SUBJECT_ID, *_TIMES, schema.CODE, schema.ENCOUNTER_ID]
        zones = _ZoneCheck()
        for number, shard in enumerate(self.shards):
            reader = ShardReader(shard, self.counts)
            self._dropped.update(reader.dropped)
            scouted = ShardReader(shard, Counter())  # conversions are counted when writing
            order = _OrderCheck()
            for batch in scouted.batches(names, self.batch_rows):
                zones.add(batch, scouted)
                rows = batch.filter(_reason(batch.columns).is_null())
                order.add(rows)
                for subject in rows[schema.SUBJECT_ID].unique().to_list():
                    seen = self._shards_of.setdefault(subject, [])
                    if not seen or seen[-1] != number:
                        seen.append(number)
                found = rows.filter(meds_stays.is_bound() & pl.col(schema.TIME).is_not_null())
                bounds.append(found.drop(ROW))
            self.counts["not_contiguous"] += order.not_contiguous
            self.counts["not_ordered"] += order.not_ordered
            self._readers.append(reader)
        self.is_utc = zones.are_aware()
        self.counts["split_subjects"] = sum(len(where) > 1 for where in self._shards_of.values())
        if bounds:
            self._stays = meds_stays.pair_stays(pl.concat(bounds, how="diagonal"))

    def write(self, delay: timedelta) -> None:
        """Write all events."""
        total = sum(reader.n_rows for reader in self._readers)
        hidden = None if self.progress is None else not self.progress
        names = schema.EVENTS.names
        with tqdm(total=total, unit=" events", unit_scale=True, desc="meds", disable=hidden) as bar:
            for shard, reader in zip(self.shards, self._readers, strict=True):
                for batch in reader.batches(names, self.batch_rows):
                    self._write_batch(batch, shard, reader, delay)
                    bar.update(batch.height)

    def _write_batch(
        self, batch: pl.DataFrame, shard: Shard, reader: ShardReader, delay: timedelta
    ) -> None:
        batch = batch.with_columns(_reason(batch.columns).alias("_reason"))
        failed = batch.filter(pl.col("_reason").is_not_null())
        for (reason,), rows in failed.group_by(["_reason"], maintain_order=True):
            lines = rows[ROW].to_list()
            for line in lines[:_MAX_LISTED]:
                self.quarantine.add(str(reason), file=shard.name, line=line, kind=_SOURCE)
            if len(lines) > _MAX_LISTED:
                rest = len(lines) - _MAX_LISTED
                self.quarantine.add(
                    str(reason), file=shard.name, line=lines[_MAX_LISTED], kind=_SOURCE, rows=rest
                )
        rows = batch.filter(pl.col("_reason").is_null()).drop("_reason", ROW)
        read, used = self.summary.rows_read, self.summary.rows_used
        read[_SOURCE] = read.get(_SOURCE, 0) + batch.height
        used[_SOURCE] = used.get(_SOURCE, 0) + rows.height
        last = rows[schema.TIME].max()
        if isinstance(last, datetime):
            self.latest = last if self.latest is None else max(last, self.latest)
        if schema.SIGNAL_ID in rows.columns:
            self.signals.update(rows[schema.SIGNAL_ID].drop_nulls().unique())
        if schema.ENCOUNTER_ID not in rows.columns and self._stays.height:
            rows = meds_stays.add_encounters(rows, self._stays)
            self.counts["encounters"] += rows.height - rows[schema.ENCOUNTER_ID].null_count()
        rows, n_billed, n_alone = meds_stays.add_available_times(rows, self._stays, delay)
        self.counts["billed"] += n_billed
        self.counts["billed_alone"] += n_alone
        if schema.AVAILABLE_TIME not in reader.columns:
            self.counts["available_at_time"] += rows.height - n_billed
        self.writer.add(rows)

    def folder_splits(self) -> Iterator[tuple[int, set[str]]]:
        """Every subject with the splits whose folders it is in."""
        for subject, where in self._shards_of.items():
            yield subject, {split for n in where if (split := self.shards[n].split) is not None}

    def notes(self, delay_hours: float) -> list[str]:
        """What the reader must know of what was converted or filled in."""
        n = self.counts
        notes = [text.format(n[name]) for name, text in _COUNTED.items() if n[name]]
        if n["not_contiguous"] or n["not_ordered"]:
            notes.append(
                f"{n['not_contiguous']:,} shards had scattered subjects and {n['not_ordered']:,} "
                "rows out of order: sorted"
            )
        if n["split_subjects"]:
            notes.append(f"{n['split_subjects']:,} subjects were in more than one shard: merged")
        if n["billed"]:
            notes.append(
                f"{n['billed']:,} billing codes did not say when they were known: available "
                f"{delay_hours:g} h after the end of their stay ({n['billed_alone']:,} of them "
                "without a finished stay: after their own time)"
            )
        if n["available_at_time"]:
            notes.append(f"{n['available_at_time']:,} other events: available at their time")
        if n["encounters"]:
            notes.append(
                f"{n['encounters']:,} events within {self._stays.height:,} hospital stays were "
                "given an encounter id"
            )
        if self._dropped:
            notes.append(f"columns not read: {', '.join(sorted(self._dropped))}")
        return notes


class _OrderCheck:
    """Whether rows that come in batches keep subjects together and times ascending."""

    def __init__(self) -> None:
        self.not_contiguous, self.not_ordered = False, 0
        self._seen: set[int] = set()
        self._last = pl.DataFrame()

    def add(self, rows: pl.DataFrame) -> None:
        columns = [schema.SUBJECT_ID, schema.TIME]
        runs = rows.select(columns)
        frame = pl.concat([self._last, runs]) if self._last.height else runs
        if not frame.height:
            return
        subject, time = pl.col(columns[0]), pl.col(columns[1])
        same = subject == subject.shift()
        back = (time < time.shift()) | (time.is_null() & time.shift().is_not_null())
        self.not_ordered += int(frame.select((same & back).fill_null(False).sum()).item())
        starts = frame.filter(~same.fill_null(False))[columns[0]].to_list()
        if self._last.height:
            starts = starts[1:]
        for start in starts:
            self.not_contiguous |= start in self._seen
            self._seen.add(start)
        self._last = frame.tail(1)


class _ZoneCheck:
    """Whether times have a zone everywhere or nowhere."""

    def __init__(self) -> None:
        self._naive: str | None = None
        self._aware = False

    def add(self, batch: pl.DataFrame, reader: ShardReader) -> None:
        for name in (name for name in _TIMES if name in batch.columns):
            if batch[name].null_count() == batch.height:
                continue  # no time is on no clock
            if name in reader.aware:
                self._aware = True
            else:
                self._naive = self._naive or reader.shard.name

    def are_aware(self) -> bool:
        if self._aware and self._naive is not None:
            raise FormatError(
                "times without a zone, where others have one",
                code="ambiguous_times",
                place=self._naive,
                remedy="Give all times a zone, or none.",
            )
        return self._aware


def _reason(columns: list[str]) -> pl.Expr:
    """Why an event can't be used; null where it can."""
    code = pl.col(schema.CODE)
    return (
        pl.when(pl.col(schema.SUBJECT_ID).is_null())
        .then(pl.lit("no_subject"))
        .when(code.is_null() | (code.str.len_bytes() == 0))
        .then(pl.lit("no_code"))
        .when(~meds_stays.in_clock_range(*(name for name in _TIMES if name in columns)))
        .then(pl.lit("time_out_of_range"))
    )


def _check_counts(
    summary: IngestSummary, quarantine: Quarantine, root: Path, max_quarantined: float
) -> None:
    summary.quarantined = dict(quarantine.counts)
    if not summary.n_rows:
        raise InputError(
            "the shards hold no events",
            code="empty_source",
            place=str(root),
            remedy="Check the export that made them.",
        )
    if quarantine.total > max_quarantined * summary.n_rows:
        raise FormatError(
            f"{quarantine.total:,} of {summary.n_rows:,} events can't be used",
            code="too_many_quarantined",
            place=str(quarantine.folder),
            remedy="See the reasons there, or raise --max-quarantined.",
        )
