# pyright: strict
"""ECG, PPG and other waveforms from a folder of WFDB records.

Each record's signals go into the signal store, and an event into the event table says that it was
made: one event a kind of signal, `ECG//12`, `PPG` or `WAVEFORM//abp`, with the record's key in
`signal_id`. The event's time is the record's start, and it is available when the record ended. Into
a data set that has an event table the events are merged; otherwise one is made.

The headers of a record's segments and the layout headers are no records of their own. What can't
be used is set aside with a reason (`tsfm.ingest.wfdb_headers`, `tsfm.ingest.wfdb_signals`); the
rest of the folder is read all the same. Header comments are not read: they may name the patient.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from tsfm import codes, event_table, schema
from tsfm.errors import FormatError, InputError
from tsfm.ingest.provenance import IngestSummary, dataset_facts, source_name
from tsfm.ingest.quarantine import Quarantine, check_largest_share
from tsfm.ingest.wfdb_headers import RecordError, RecordHeader, read_header
from tsfm.ingest.wfdb_signals import read_leads
from tsfm.ingest.wfdb_subjects import Origin, Origins, add_seconds
from tsfm.output_folder import OutputFolder
from tsfm.signals.shards import Lead, SignalWriter

RECORD = "record"
_DESCRIPTIONS = {"PPG": "Photoplethysmogram recorded"}


def ingest_wfdb(
    src: str | Path,
    out: str | Path,
    *,
    subjects: str | Path | None = None,
    progress: bool | None = None,
    max_quarantined: float = 0.5,
) -> IngestSummary:
    """Read all WFDB records below a folder into a data set.

    Args:
        src: Folder of records. Links within it are followed only as far as they stay in it.
        out: Root of the data set; may hold an event table, must not hold signals.
        subjects: CSV that says whose each record is; see `tsfm.ingest.wfdb_subjects`.
        progress: Whether to show a bar; by default on a terminal.
        max_quarantined: Share of the records that may be set aside before the run fails.

    Returns:
        Counts; `rows_read["record"]` is the number of headers, each used, set aside or ignored.

    Raises:
        InputError: Source, output or subjects can't be used as given.
        FormatError: More records were set aside than allowed, none could be used, or events of the
            table would point to records that are not read (`dangling_signals`).
    """
    check_largest_share(max_quarantined)
    root = _source_folder(src)
    summary = IngestSummary("wfdb")
    merging = any(schema.data_dir(out).glob("*.parquet"))
    origins = Origins(subjects, out, merging=merging)
    names, n_links = _find_headers(root)
    if not names:
        raise InputError(
            "no WFDB headers found",
            code="no_records",
            place=str(src),
            remedy="Give the folder that holds the .hea files.",
        )
    if not merging:
        OutputFolder(out, with_signals=False).close()  # refused now, not after all is read
    rows: list[dict[str, Any]] = []
    source_ids: dict[int, str] = {}
    seen: set[str] = set()
    tally: Counter[str] = Counter()
    quarantine = Quarantine(out, append=merging)
    try:
        with SignalWriter(out) as writer:
            bar = tqdm(
                _headers(root, names, summary),
                total=len(names),
                unit="record",
                disable=None if progress is None else not progress,
            )
            for name, header in bar:
                try:
                    if isinstance(header, RecordError):
                        raise header
                    seen.add(name)
                    origin = origins.find(name, header.start_time)
                    leads = read_leads(header, root / name, root)
                    signal_id = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
                    events = _events(leads, signal_id, origin)
                except RecordError as error:
                    quarantine.add(error.reason, file=f"{name}.hea", kind=RECORD)
                    continue
                writer.add(
                    leads,
                    signal_id=signal_id,
                    subject_id=origin.subject_id,
                    record=name,
                    start_time=origin.start_time,
                )
                source_ids[origin.subject_id] = origin.source_id
                tally["used"] += 1
                tally["undated"] += origin.start_time is None
                tally["silent"] += header.n_signals - len(leads)
                tally["uncalibrated"] += sum(lead.gain is None for lead in leads)
                tally["unchecked"] += any(lead.checksum_ok is None for lead in leads)
                rows += events
            summary.rows_read[RECORD] = len(names)
            summary.rows_used[RECORD] = tally["used"]
            summary.quarantined = dict(quarantine.counts)
            _check_share(summary, max_quarantined, place=str(src))
            _check_dangling(origins.signals - {row[schema.SIGNAL_ID] for row in rows}, str(out))
    finally:
        quarantine.close()
    info = _write_events(out, rows, source_ids, source_name(src), merging=merging)
    summary.n_subjects, summary.n_events = info.n_subjects, info.n_events
    summary.events_by_class = info.events_by_class
    summary.notes += _notes(tally, origins, seen, n_links)
    summary.stop()
    return summary


def _source_folder(src: str | Path) -> Path:
    if not Path(src).is_dir():
        raise InputError(
            "no such folder", code="missing_source", place=str(src), remedy="Check the path."
        )
    return Path(os.path.realpath(src))


def _find_headers(root: Path) -> tuple[list[str], int]:
    """Paths of all headers below `root` without suffix, sorted, and the number of folder links."""
    names: list[str] = []
    n_links = 0
    for folder, folders, files in os.walk(root):
        n_links += sum(os.path.islink(os.path.join(folder, name)) for name in folders)
        names += [
            os.path.relpath(os.path.join(folder, name), root).removesuffix(".hea")
            for name in files
            if name.endswith(".hea")
        ]
    return sorted(names), n_links


def _headers(
    root: Path, names: list[str], summary: IngestSummary
) -> Iterator[tuple[str, RecordHeader | RecordError]]:
    """Every record with its header, or with what is wrong with it; the rest is counted."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(os.path.dirname(name), []).append(name)
    for folder, own in folders.items():
        headers = {name: _try_header(name, root) for name in own}
        segments = {
            os.path.join(folder, line.name)
            for header in headers.values()
            if isinstance(header, RecordHeader)
            for line in header.segments
        }
        for name, header in headers.items():
            # A header of segments is a record also where another names it: that one is wrong.
            if isinstance(header, RecordHeader) and header.segments:
                yield name, header
            elif isinstance(header, RecordHeader) and header.is_layout:
                _ignore(summary, "layout header")
            elif name in segments:
                _ignore(summary, "segment of another record")
            elif isinstance(header, RecordHeader) and not header.signals:
                _ignore(summary, "record without signals")
            else:
                yield name, header


def _ignore(summary: IngestSummary, kind: str) -> None:
    summary.rows_ignored[kind] = summary.rows_ignored.get(kind, 0) + 1


def _try_header(name: str, root: Path) -> RecordHeader | RecordError:
    try:
        name.encode()
    except UnicodeEncodeError:
        return RecordError("unsafe_file_name")
    try:
        return read_header(root / f"{name}.hea", root)
    except RecordError as error:
        return error


def _events(leads: list[Lead], signal_id: str, origin: Origin) -> list[dict[str, Any]]:
    """One event a kind of signal.

    Raises:
        RecordError: `time_out_of_range`: the record ends after the last year.
    """
    seconds = max(len(lead.samples) / lead.fs_hz for lead in leads)
    end = add_seconds(origin.latest_start, seconds) if origin.latest_start else None
    n_leads = Counter(lead.modality for lead in leads)
    return [
        {
            schema.SUBJECT_ID: origin.subject_id,
            schema.TIME: origin.start_time,
            schema.CODE: _code(modality, n),
            schema.AVAILABLE_TIME: end,
            schema.ENCOUNTER_ID: origin.encounter_id,
            schema.SIGNAL_ID: signal_id,
        }
        for modality, n in n_leads.items()
    ]


def _code(modality: str, n_leads: int) -> str:
    if modality == "ecg":
        return codes.join("ECG", n_leads)
    return "PPG" if modality == "ppg" else codes.join("WAVEFORM", modality)


def _check_share(summary: IngestSummary, max_quarantined: float, *, place: str) -> None:
    n_used, n_quarantined = summary.rows_used[RECORD], sum(summary.quarantined.values())
    n_records = n_used + n_quarantined
    reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(summary.quarantined.items()))
    if n_quarantined > max_quarantined * n_records:
        raise FormatError(
            f"{n_quarantined} of {n_records} records can't be used: {reasons}",
            code="too_many_quarantined",
            place=place,
            remedy="See quarantine/ in the output folder, or raise max_quarantined.",
        )
    if n_used == 0:
        raise FormatError(
            "no record can be used",
            code="no_usable_record",
            place=place,
            remedy=f"Set aside: {reasons or 'none'}.",
        )


def _check_dangling(signals: set[str], place: str) -> None:
    """Refuse to leave events whose records are in no store: nobody could read them."""
    if signals:
        raise FormatError(
            f"{len(signals)} records that events point to are not among those read",
            code="dangling_signals",
            place=place,
            remedy="Ingest all records of the data set at once, or make the data set anew.",
        )


def _write_events(
    out: str | Path,
    rows: list[dict[str, Any]],
    source_ids: dict[int, str],
    name: str,
    *,
    merging: bool,
) -> event_table.EventTableInfo:
    events = pl.DataFrame(
        rows,
        schema={
            column: event_table.POLARS_EVENTS[column]
            for column in (
                schema.SUBJECT_ID,
                schema.TIME,
                schema.CODE,
                schema.AVAILABLE_TIME,
                schema.ENCOUNTER_ID,
                schema.SIGNAL_ID,
            )
        },
    )
    descriptions = {
        code: _DESCRIPTIONS.get(code)
        or (
            f"{code.rpartition('//')[2]}-lead electrocardiogram recorded"
            if code.startswith("ECG")
            else f"Waveform recorded: {code.rpartition('//')[2]}"
        )
        for code in events[schema.CODE].unique()
    }
    if merging:
        return event_table.append_events(out, events, descriptions=descriptions)
    facts = dataset_facts(
        name, module="wfdb_records", clock="wall", data_as_of=None, dates_shifted=False
    )
    with event_table.EventWriter(out) as writer:
        writer.add(events)
        return writer.finish(dataset=facts, descriptions=descriptions, subject_ids=source_ids)


def _notes(tally: Counter[str], origins: Origins, seen: set[str], n_links: int) -> list[str]:
    notes: list[str] = []
    if origins.rows is None:
        notes.append("no table of subjects given: every record is a subject of its own")
    n_rows = 0 if origins.rows is None else len(origins.rows.keys() - seen)
    for n, text in (
        (tally["undated"], "records have no start time: their events are static facts"),
        (tally["uncalibrated"], "signals have no gain: their values are ADC steps, not units"),
        (tally["unchecked"], "records have no checksum to compare"),
        (tally["silent"], "signals without a single measurement were left out"),
        (n_rows, "rows of the table of subjects name no readable record"),
        (
            origins.n_unknown_encounters,
            "records name an encounter that is no stay of their subject in the event table",
        ),
        (origins.n_dropped_offsets, "start times have an offset, which the wall clock drops"),
        (origins.n_late, "records begin after the data set's end (data_as_of)"),
        (n_links, "links to folders were not followed"),
    ):
        if n:
            notes.append(f"{n:,} {text}")
    return notes
