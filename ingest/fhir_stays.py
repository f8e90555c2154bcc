# pyright: strict
"""Patients and encounters as events: birth, death, stays, wards, visits.

A stay's end is read as FHIR's Period says: inclusive, so that a bare date means the end of its day.
A stay of which no day is known is a contact, without admission and discharge (`fhir_encounters`).
A death known by its date only is set to the end of that day, or to the discharge when the patient
died in hospital on it, so that nothing of the day comes after.
"""

from __future__ import annotations

from tsfm import codes
from tsfm.clock import StampError
from tsfm.ingest.fhir_codes import first_code
from tsfm.ingest.fhir_encounters import (
    EMERGENCY,
    HOSPITAL,
    INTENSIVE,
    OUTPATIENT,
    WARD,
    Stay,
)
from tsfm.ingest.fhir_events import IGNORED, EventBatch
from tsfm.ingest.fhir_fields import Encounter, Extension, Location, Medication, Patient

_SEXES = {"male": "M", "female": "F"}
_PRIORITIES = {"EM": "EMERGENCY", "UR": "URGENT", "EL": "ELECTIVE"}
_RACE = "us-core-race"
TRANSFER, SERVICE, ENCOUNTER = "TRANSFER_TO", "SERVICE", "ENCOUNTER"


def add_patient(row: Patient, events: EventBatch) -> str:
    """Add who the patient is, birth and death; of one who was replaced the survivor tells them."""
    patients = events.references.patients
    if f"Patient/{row.id}" in patients.merged:
        return ""
    subject = patients.subjects[f"Patient/{row.id}"]
    sex = _SEXES.get(row.gender, row.gender.upper())
    events.add(subject, codes.join(codes.GENDER, sex), None)
    race = _race(row.extension)
    if race:
        events.add(subject, codes.join(codes.RACE, race), None)
    problem = ""
    if row.birth_date:
        try:
            birth = events.stamps[row.birth_date]
            events.add(subject, codes.BIRTH, birth.us, birth.end_us)
        except StampError as error:
            problem = str(error)
    else:
        events.counts["no_birth_date"] += 1
    if row.deceased_date_time:
        death = patients.deaths.get(subject)
        if death is None:
            return "bad_time"
        events.stamps.note(death)
        # A died-in-hospital discharge within the stamp's interval is more exact than the stamp.
        discharges = events.references.died_at.get(subject, ())
        within = [end for end in discharges if death.us <= end <= death.end_us]
        events.add(subject, codes.DEATH, max(within, default=death.end_us))
    elif row.deceased_boolean:
        events.counts["no_death_date"] += 1
    return problem


def _race(extensions: list[Extension]) -> str:
    for extension in extensions:
        if extension.url.endswith(_RACE):
            for part in extension.extension:
                if part.url == "text" and part.value_string:
                    return part.value_string
            for part in extension.extension:
                if part.url == "ombCategory" and part.value_coding:
                    return part.value_coding.display or part.value_coding.code
    return ""


def add_encounter(row: Encounter, events: EventBatch) -> str:
    """Add admission and discharge, arrival and departure, or a visit."""
    if row.status == "entered-in-error":
        return "entered_in_error"
    class_code = (row.class_.code if row.class_ else "").upper()
    if row.status in ("planned", "cancelled") or class_code == "PRENC":
        events.counts["encounters_not_happened"] += 1
        return IGNORED
    stay = events.references.stays[f"Encounter/{row.id}"]
    subject = events.subject_of(row.subject)
    if stay.problem:
        return stay.problem
    if stay.start is None:
        return "no_time"
    events.counts["vague_stays"] += stay.is_contact
    events.counts["ends_after_export"] += stay.bounds.lasts
    events.counts["begins_after_export"] += stay.bounds.is_ahead
    events.stamps.note(stay.start)
    events.stamps.note(stay.end)
    _add_bounds(row, class_code, subject, stay, events)
    service = first_code(row.service_type)
    if service:
        code = codes.join(SERVICE, service)
        events.add(subject, code, stay.start.us, stay.start.end_us, stay)
    moves = stay.kind == HOSPITAL or stay.is_contact
    return _add_transfers(row, subject, stay, events) if moves else ""


def _add_bounds(
    row: Encounter, class_code: str, subject: int, stay: Stay, events: EventBatch
) -> None:
    assert stay.start is not None
    end_code = ""
    if stay.kind == HOSPITAL:
        priority = first_code(row.priority) or ""
        admit = row.hospitalization.admit_source if row.hospitalization else None
        urgency = _PRIORITIES.get(priority.upper(), class_code)
        start_code = codes.join(codes.ADMISSION, urgency, first_code(admit))
        end_code = codes.join(codes.DISCHARGE, stay.disposition)
    elif stay.kind == EMERGENCY:
        start_code, end_code = codes.ED_ARRIVAL, codes.ED_DEPARTURE
    elif stay.kind == INTENSIVE:
        start_code = codes.join(codes.ICU_ADMISSION, _ward(row, 0, events))
        end_code = codes.join(codes.ICU_DISCHARGE, _ward(row, -1, events))
    elif stay.kind == WARD:
        start_code = codes.join(TRANSFER, _ward(row, 0, events))
    else:
        name = codes.OUTPATIENT if stay.kind == OUTPATIENT else ENCOUNTER
        start_code = codes.join(name, class_code)
    events.add(subject, start_code, stay.start.us, stay.start.end_us, stay)
    if end_code and stay.end:
        events.add(subject, end_code, stay.end.end_us, None, stay)


def _ward(row: Encounter, index: int, events: EventBatch) -> str | None:
    return events.references.ward_name(row.location[index].location) if row.location else None


def _add_transfers(row: Encounter, subject: int, stay: Stay, events: EventBatch) -> str:
    problem = ""
    for place in row.location:
        if place.period is None or not place.period.start:
            continue
        try:
            arrival = events.stamps[place.period.start]
        except StampError as error:
            problem = str(error)
            continue
        code = codes.join(TRANSFER, events.references.ward_name(place.location))
        events.add(subject, code, arrival.us, arrival.end_us, stay)
    return problem


def skip_location(row: Location, events: EventBatch) -> str:
    """A ward is no event of a patient; its name is already in the references."""
    return IGNORED


def keep_medication(row: Medication, events: EventBatch) -> str:
    """A medication is used through the orders and doses that refer to it."""
    return ""
