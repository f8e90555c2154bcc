# pyright: strict
"""From a FHIR R4 export to the event table: `ingest_fhir`.

SRC is a folder of NDJSON, gzip NDJSON or single JSON files (resources or Bundles) under any names.
They are streamed twice: the first pass (`fhir_survey`) learns what other resources refer to, the
last makes events, so the order of files decides no more than the order of facts of one moment.
Copies cost one pass in between, and deletions that meet a resource another. Every resource ends in
exactly one of three counts: used, ignored (a type that holds no patient events) or quarantined with
a reason.

The maps from resource to events are in `fhir_stays`, `fhir_observations`, `fhir_clinical`,
`fhir_drugs` and `fhir_claims`. FHIR XML, resource validation and terminology look-ups are left to
others.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from tsfm.clock import Clock, CodingDelay, StampError, from_us, to_us
from tsfm.errors import FormatError, InputError
from tsfm.event_table import EventWriter
from tsfm.ingest import fhir_claims, fhir_clinical, fhir_drugs, fhir_observations, fhir_stays
from tsfm.ingest.fhir_addresses import id_of_address
from tsfm.ingest.fhir_encounters import ExportTime
from tsfm.ingest.fhir_events import IGNORED, EventBatch, UnusableError
from tsfm.ingest.fhir_files import ByteCount, Found, find_files
from tsfm.ingest.fhir_survey import (
    DELETED,
    EVENT_TYPES,
    FIRST_TYPE,
    Survey,
    kind_of,
    quarantine_row,
    reason_of,
)
from tsfm.ingest.provenance import IngestSummary, dataset_facts, source_name
from tsfm.ingest.quarantine import Quarantine, check_largest_share

_MAPPINGS: dict[str, Callable[[Any, EventBatch], str]] = {
    "Patient": fhir_stays.add_patient,
    "Encounter": fhir_stays.add_encounter,
    "Location": fhir_stays.skip_location,
    "Medication": fhir_stays.keep_medication,
    "Specimen": fhir_clinical.add_specimen,
    "MedicationRequest": fhir_drugs.add_request,
    "MedicationAdministration": fhir_drugs.add_administration,
    "MedicationDispense": fhir_drugs.add_dispense,
    "MedicationStatement": fhir_drugs.add_statement,
    "Condition": fhir_clinical.add_condition,
    "Observation": fhir_observations.add_observation,
    "Procedure": fhir_clinical.add_procedure,
    "Immunization": fhir_clinical.add_immunization,
    "AllergyIntolerance": fhir_clinical.add_allergy,
    "DiagnosticReport": fhir_clinical.add_report,
    "Claim": fhir_claims.add_claim,
    "ClaimResponse": fhir_claims.add_claim_response,
}
_HARMLESS = frozenset({"duplicate_resource", "deleted_in_source", "deleted_patient"})
"""Reasons of rows that are set aside without a loss: no part of the share that can't be used."""

_BATCH_EVENTS = 200_000
_NOTES = {
    "no_release_time": "{:,} Observations say no time of release: available when measured",
    "delayed_microbiology": "{:,} microbiology Observations say no time of release: available "
    "after the coding delay",
    "released_before_time": "{:,} Observations were issued before their time: available when "
    "measured",
    "unresolved_encounters": "{:,} references to encounters that are not in the source",
    "encounters_not_happened": "{:,} encounters planned, cancelled or pre-admission: ignored",
    "no_death_date": "{:,} deaths without a date: no event",
    "no_birth_date": "{:,} patients without a birth date",
    "vague_stays": "{:,} stays are known by month or year only: contacts, without admission and "
    "discharge",
    "ends_after_export": "{:,} encounters are said to end after the export was taken: not over",
    "begins_after_export": "{:,} encounters begin after the export was taken: left as they are",
    "parts_of_vague": "{:,} parts of stays known by month or year only: transfers, and no "
    "admissions",
    "changed_results": "{:,} results were changed after they were issued: available since then, "
    "and the first value before, where the export holds it",
    "changed_sometime": "{:,} changed results do not say when they were changed: available when "
    "issued",
    "vague_deaths": "{:,} deaths are known by month or year only: they stand at its end, and no "
    "stay is said to have ended in them",
    "parts_of_nothing": "{:,} encounters are said to be part of one that can't hold them (another "
    "patient's, void, or part of it itself): stays of their own",
    "shared_keys": "{:,} patients share a MIMIC key: told apart by their ids",
    "merged": "{:,} patients were replaced by another: what refers to them is the other's",
    "unused_links": "{:,} patients have links that can't be read, or links of replacement that "
    "lead nowhere, to another server, in a circle or to several patients: merged with nobody",
    "elsewhere": "{:,} resources are referred to at another server than their own: somebody "
    "else's, so these references lead nowhere",
    "unused_deaths": "{:,} replaced patients have a date of death that the other has not: no event",
    "outlived_deletions": "{:,} resources are newer than their deletion: kept",
    "unclear_deletions": "{:,} deletions name no resource by its id: not applied",
}


def ingest_fhir(
    src: str | Path,
    out: str | Path,
    *,
    clock: str = "auto",
    time_zone: str | None = None,
    coding_delay_hours: float = 120.0,
    n_shards: int = 4,
    progress: bool | None = None,
    max_quarantined: float = 0.5,
) -> IngestSummary:
    """Read a FHIR export into an event table.

    Args:
        src: Folder of the export, or a single file.
        out: Root of the data set to make.
        clock: `utc`, `wall`, or `auto`: the wall clock for MIMIC-IV on FHIR, whose offsets are an
            artefact, UTC for everybody else.
        time_zone: IANA zone of stamps without an offset and of bare dates on the UTC clock.
        coding_delay_hours: From the end of an encounter to its billing codes being known, where no
            time of recording is given.
        n_shards: Files to spread the subjects over.
        progress: Show a progress bar; None shows it on a terminal.
        max_quarantined: Largest share of resources that may be set aside; copies of a resource
            that is used, and what the source deleted, with a patient all facts of the patient, are
            no part of it.

    Raises:
        InputError: Bad argument, `output_exists`, or `empty_source`: nothing about patients.
        FormatError: `truncated_gzip`, `file_changed`, `mixed_servers` or `too_many_quarantined`.
        LimitExceeded: `gzip_bomb` or `document_too_large`.
    """
    summary = IngestSummary("fhir")
    _check_arguments(src, out, clock, time_zone, coding_delay_hours, max_quarantined)
    found = find_files(src)
    if not found.files:
        raise _empty(src, found)
    with EventWriter(out, n_shards=n_shards) as writer:
        for stale in (Path(out) / "quarantine").glob("*.ndjson"):
            stale.unlink()  # of a run that failed
        quarantine = Quarantine(out)
        try:
            survey = Survey(found.files, quarantine)
            with _Bar(found, "reading references", progress) as bar:
                survey.run(bar.read, bar.advance)
            is_mimic = survey.references.is_mimic
            mode = ("wall" if is_mimic else "utc") if clock == "auto" else clock
            reader = Clock.create(mode, time_zone)
            if mode == "utc" and time_zone is None:
                reader = replace(reader, west_us=survey.references.westernmost_us())
            survey.references.export = None if is_mimic else _export_time(survey, reader)
            survey.references.settle(reader)
            events = EventBatch(survey.references, reader, CodingDelay(coding_delay_hours))
            with _Bar(found, "writing events", progress) as bar:
                used, ignored = _write_events(survey, events, writer, bar)
        finally:
            quarantine.close()
        summary.rows_read = dict(survey.read)
        summary.rows_used = dict(used)
        summary.rows_ignored = dict(ignored)
        summary.quarantined = dict(quarantine.counts)
        _check_share(summary, src, max_quarantined)
        if not events.n_taken:
            raise _empty(src, found)
        facts = dataset_facts(
            source_name(src),
            clock=mode,
            module="fhir_ndjson",
            coding_delay_hours=coding_delay_hours,
            data_as_of=_data_as_of(survey, reader, events.stamps.latest_us, is_mimic),
            dates_shifted=is_mimic,
        )
        info = writer.finish(
            dataset=facts,
            descriptions=events.descriptions,
            subject_ids=survey.references.patients.source_ids,
        )
    summary.n_subjects, summary.n_events = info.n_subjects, info.n_events
    summary.events_by_class = info.events_by_class
    summary.notes = _notes(found, survey, events, mode, facts["data_as_of"])
    summary.stop()
    return summary


def _check_arguments(
    src: str | Path,
    out: str | Path,
    clock: str,
    time_zone: str | None,
    coding_delay_hours: float,
    max_quarantined: float,
) -> None:
    Clock.create("utc" if clock == "auto" else clock, time_zone)
    if not (math.isfinite(coding_delay_hours) and 0 <= coding_delay_hours <= 24 * 366):
        raise InputError(
            "the coding delay is not between 0 and 8784 hours",
            code="bad_coding_delay",
            place="--coding-delay-hours",
            remedy="Give the hours from discharge to coding, such as 120.",
        )
    check_largest_share(max_quarantined)
    source = Path(src).resolve()
    if source.is_dir() and Path(out).resolve().is_relative_to(source):
        raise InputError(
            "the output folder is inside the source folder",
            code="output_inside_source",
            place=str(out),
            remedy="Choose a folder elsewhere: the next run would read what this one wrote.",
        )


def _write_events(
    survey: Survey, events: EventBatch, writer: EventWriter, bar: _Bar
) -> tuple[Counter[str], Counter[str]]:
    """Second pass: rows used and ignored by type."""
    table = [
        (name, msgspec.json.Decoder(struct).decode, _MAPPINGS[name])
        for name, struct in EVENT_TYPES.items()
    ]
    used = [0] * len(table)
    ignored = survey.ignored.copy()
    for position, mark, raw, full_url, block, index in survey.rows(bar.read, bar.advance):
        if mark < FIRST_TYPE:
            reason = "deleted_in_source" if mark == DELETED else "duplicate_resource"
            quarantine_row(survey.quarantine, reason, raw, block, index, kind_of(raw))
            continue
        kind, decode, mapping = table[mark - FIRST_TYPE]
        events.is_changed_again = position in survey.changed_again
        try:
            row: Any = decode(raw)
            if full_url and kind in ("Patient", "Encounter", "Claim"):
                row.id = row.id or id_of_address(full_url)
            outcome = mapping(row, events)
        except (UnusableError, StampError) as error:
            outcome = str(error)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            outcome = reason_of(error)
        if not outcome:
            used[mark - FIRST_TYPE] += 1
        elif outcome == IGNORED:
            ignored[kind] += 1
        else:
            quarantine_row(survey.quarantine, outcome, raw, block, index, kind)
        if len(events.codes) >= _BATCH_EVENTS:
            writer.add(events.take())
    writer.add(events.take())
    counts = Counter({name: n for (name, _, _), n in zip(table, used, strict=True) if n})
    if survey.n_bundles:
        counts["Bundle"] = survey.n_bundles
    return counts, ignored


def _check_share(summary: IngestSummary, src: str | Path, max_quarantined: float) -> None:
    lost = {reason: n for reason, n in summary.quarantined.items() if reason not in _HARMLESS}
    n_lost, n_copies = sum(lost.values()), sum(summary.quarantined.values()) - sum(lost.values())
    n_rows = summary.n_rows - n_copies
    if n_lost > max_quarantined * n_rows:
        worst = max(lost, key=lambda reason: lost[reason])
        raise FormatError(
            f"{n_lost:,} of {n_rows:,} resources can't be used, most for '{worst}'",
            code="too_many_quarantined",
            place=source_name(src),
            remedy="See the quarantine folder, mend the export, or raise --max-quarantined.",
        )


def _empty(src: str | Path, found: Found) -> InputError:
    hint = "Give the folder that holds the NDJSON or JSON files of the export."
    if any(suffix == ".xml" for suffix in found.others):
        hint = "FHIR XML is not read: export as NDJSON or JSON."
    return InputError(
        "no FHIR resources about patients found",
        code="empty_source",
        place=source_name(src),
        remedy=hint,
    )


def _transaction_us(survey: Survey, clock: Clock) -> int | None:
    """Up to when the server knew, by the manifests."""
    stamps: list[int] = []
    for text in survey.transaction_times:
        try:
            stamps.append(clock.read(text).end_us)
        except StampError:
            continue
    return max(stamps, default=None)


def _export_time(survey: Survey, clock: Clock) -> ExportTime:
    """When the export was taken: as its manifests say, else by now."""
    told = _transaction_us(survey, clock)
    return ExportTime(to_us(datetime.now(UTC).replace(tzinfo=None)) if told is None else told)


def _data_as_of(survey: Survey, clock: Clock, latest_us: int | None, is_mimic: bool) -> str | None:
    """Until when the export tells the patients' story, on the data set's clock.

    Where dates are shifted neither a manifest nor the present is on their clock.
    """
    if survey.references.are_dates_shifted:
        return None
    told = _transaction_us(survey, clock)
    if told is None and not is_mimic:
        told = latest_us
    return None if told is None else from_us(told).isoformat()


def _notes(
    found: Found, survey: Survey, events: EventBatch, mode: str, as_of: str | None
) -> list[str]:
    words = "the wall clock as written" if mode == "wall" else "UTC"
    notes = [f"times are on {words}; data as of {as_of or 'an unknown date'}"]
    if survey.references.are_dates_shifted:
        notes.append(
            "most encounters begin after the export was taken: dates are shifted, so that nothing "
            "but the last event says until when patients were watched"
        )
    patients = survey.references.patients
    counts = {
        **events.counts,
        "vague_deaths": len(patients.vague_deaths),
        "parts_of_nothing": survey.references.parts_of_nothing,
        "parts_of_vague": survey.references.parts_of_vague,
        "shared_keys": patients.shared_keys,
        "merged": len(patients.merged),
        "unused_links": len(patients.unused_links),
        "elsewhere": len(patients.addresses.elsewhere),
        "unused_deaths": patients.unused_deaths,
        "outlived_deletions": survey.deletions.n_outlived,
        "unclear_deletions": survey.deletions.n_unclear,
    }
    notes += [text.format(counts[name]) for name, text in _NOTES.items() if counts.get(name)]
    if found.others:
        kinds = ", ".join(f"{suffix} {n:,}" for suffix, n in sorted(found.others.items()))
        notes.append(f"files of other kinds not read: {kinds}")
    if found.n_unsafe:
        notes.append(f"{found.n_unsafe:,} links out of the folder, pipes or devices not opened")
    return notes


class _Bar:
    """Progress over the compressed bytes of all files."""

    def __init__(self, found: Found, text: str, progress: bool | None) -> None:
        from tqdm import tqdm

        self.read = ByteCount()
        self._bar: Any = tqdm(
            total=sum(file.size for file in found.files),
            unit="B",
            unit_scale=True,
            desc=text,
            disable=None if progress is None else not progress,
        )

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self) -> None:
        self._bar.update(self.read.total - self._bar.n)
