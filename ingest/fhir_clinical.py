# pyright: strict
"""Conditions, procedures, vaccinations, allergies, reports and specimens as events.

Billing codes are the great leak of hospital data: they are set after the patient has left, and
often carry the stay's whole story. An encounter's diagnosis is therefore available when it was
recorded, or else some days after the encounter's end (`tsfm.clock.CodingDelay`); while a stay
lasts, a code without a record of when it was entered is not usable at all.
"""

from __future__ import annotations

from tsfm import codes
from tsfm.clock import Stamp
from tsfm.ingest.fhir_codes import (
    CVX,
    LOINC,
    RXNORM,
    SNOMED,
    clinical_code,
    code_parts,
    has_code,
    profile_name,
)
from tsfm.ingest.fhir_events import EventBatch, undone
from tsfm.ingest.fhir_fields import (
    AllergyIntolerance,
    Concept,
    Condition,
    DiagnosticReport,
    Immunization,
    Procedure,
    Reference,
    Specimen,
)
from tsfm.ingest.fhir_references import collected_text
from tsfm.ingest.fhir_versions import known_us

IMMUNIZATION, ALLERGY, REPORT, SPECIMEN = "IMMUNIZATION", "ALLERGY", "REPORT", "SPECIMEN"


def add_condition(row: Condition, events: EventBatch) -> str:
    """Add a diagnosis at its onset or the end of its encounter, known once it was recorded.

    The end of an encounter dates no diagnosis that was recorded before it: whoever read that would
    know how long the stay is going to last. Such a diagnosis stands where it was recorded.
    """
    if reason := _withdrawn(row.verification_status):
        return reason
    subject = events.subject_of(row.subject)
    found = clinical_code(codes.DIAGNOSIS, row.code, codes.icd_diagnosis)
    if found is None:
        return "no_code"
    stay = events.stay_of(row.encounter)
    onset = row.onset_date_time or (row.onset_period.start if row.onset_period else None)
    begun = events.stamps[onset] if onset else None
    recorded = events.stamps[row.recorded_date] if row.recorded_date else None
    if has_code(row.category, "problem-list-item") or stay is None:
        moment = _problem_times(
            begun, recorded, stay.end if stay else None, row.encounter is not None
        )
    else:
        moment = _billing_times(begun, recorded, stay.end, events)
    if moment is None:
        return "no_time"
    code, text, _ = found
    events.add(subject, code, *moment, stay, description=text)
    return ""


def _billing_times(
    begun: Stamp | None, recorded: Stamp | None, end: Stamp | None, events: EventBatch
) -> tuple[int, int] | None:
    if recorded is None and end is None:
        return None  # the stay lasts: nothing says when this became known
    if recorded is not None:
        if begun:
            return begun.us, recorded.end_us
        over = end is not None and end.end_us <= recorded.end_us
        return end.end_us if end and over else recorded.us, recorded.end_us
    assert end is not None
    return begun.us if begun else end.end_us, events.delay.available_us(end.end_us)


def _problem_times(
    begun: Stamp | None, recorded: Stamp | None, end: Stamp | None, in_stay: bool
) -> tuple[int, int] | None:
    time = begun.us if begun else recorded.us if recorded else end.end_us if end else None
    if time is None:
        return None
    if recorded is not None:
        return time, recorded.end_us
    if in_stay and end is None:
        return None
    return time, max(stamp.end_us for stamp in (begun, end) if stamp is not None)


def add_procedure(row: Procedure, events: EventBatch) -> str:
    """Add a procedure; one with an ICD code is known only after its encounter was coded."""
    if reason := undone(row.status):
        return reason
    subject = events.subject_of(row.subject)
    stay = events.stay_of(row.encounter)
    moment = events.moment(row.performed_date_time, row.performed_period)
    if moment is None:
        return "no_time"
    time, available = moment
    if profile_name(row.meta).endswith("procedure-icu"):
        return _add_icu_procedure(row, subject, time, events)
    found = clinical_code(codes.PROCEDURE, row.code, codes.icd_procedure)
    if found is None:
        return "no_code"
    code, text, is_icd = found
    if is_icd:
        if stay is not None and stay.end is None and not stay.problem:
            return "no_time"  # the stay lasts: it is not coded yet
        end = stay.end.end_us if stay and stay.end else available
        available = events.delay.available_us(max(end, available))
    events.add(subject, code, time, available, stay, description=text)
    return ""


def _add_icu_procedure(row: Procedure, subject: int, time: int, events: EventBatch) -> str:
    found = code_parts(row.code) if row.code else None
    if found is None:
        return "no_code"
    parts, text = found
    stay = events.references.stay(row.encounter.reference) if row.encounter else None
    end = row.performed_period.end if row.performed_period else None
    ended = events.stamps[end] if end else None
    start_code = codes.join(codes.PROCEDURE, "START", *parts)
    events.add(subject, start_code, time, None, stay, description=text)
    if ended is not None:
        end_code = codes.join(codes.PROCEDURE, "END", *parts)
        events.add(subject, end_code, ended.us, ended.end_us, stay, description=text)
    return ""


def add_immunization(row: Immunization, events: EventBatch) -> str:
    """Add a vaccination, known once it was recorded."""
    if reason := undone(row.status):
        return reason
    subject = events.subject_of(row.patient)
    found = code_parts(row.vaccine_code, CVX) if row.vaccine_code else None
    moment = events.moment(row.occurrence_date_time)
    if moment is not None and row.recorded:
        moment = moment[0], max(moment[1], events.stamps[row.recorded].end_us)
    return _add_coded(IMMUNIZATION, subject, found, moment, row.encounter, events)


def add_allergy(row: AllergyIntolerance, events: EventBatch) -> str:
    """Add an allergy at the time it was recorded, else at its onset."""
    if reason := _withdrawn(row.verification_status):
        return reason
    subject = events.subject_of(row.patient)
    found = code_parts(row.code, RXNORM, SNOMED) if row.code else None
    moment = events.moment(row.recorded_date or row.onset_date_time)
    return _add_coded(ALLERGY, subject, found, moment, row.encounter, events)


def add_report(row: DiagnosticReport, events: EventBatch) -> str:
    """Add that a report was made, known once it was issued or changed; its text is not read."""
    if reason := undone(row.status):
        return reason
    subject = events.subject_of(row.subject)
    found = code_parts(row.code, LOINC) if row.code else None
    moment = events.moment(row.effective_date_time, row.effective_period)
    issued = events.stamps[row.issued] if row.issued else None
    if issued is not None and moment is None:
        moment = issued.us, issued.end_us
    elif issued is not None and moment is not None and issued.us >= moment[0]:
        moment = moment[0], issued.end_us
    if moment is not None:
        moment = moment[0], known_us(row, moment[1], events)
    return _add_coded(REPORT, subject, found, moment, row.encounter, events)


def add_specimen(row: Specimen, events: EventBatch) -> str:
    """Add that material was taken."""
    if row.status == "entered-in-error":
        return "entered_in_error"
    subject = events.subject_of(row.subject)
    moment = events.moment(collected_text(row))
    if moment is None:
        return "no_time"
    found = code_parts(row.type, SNOMED) if row.type else None
    parts, text = found or ([codes.UNKNOWN], "")
    events.add(subject, codes.join(SPECIMEN, *parts), *moment, description=text)
    return ""


def _add_coded(
    kind: str,
    subject: int,
    found: tuple[list[str], str] | None,
    moment: tuple[int, int] | None,
    encounter: Reference | None,
    events: EventBatch,
) -> str:
    """Add one event of a class, or say what it lacks."""
    if found is None:
        return "no_code"
    if moment is None:
        return "no_time"
    parts, text = found
    stay = events.stay_of(encounter)
    events.add(subject, codes.join(kind, *parts), *moment, stay, description=text)
    return ""


def _withdrawn(verification: Concept | None) -> str:
    """Why a diagnosis or an allergy is not taken for true; "" if it may be."""
    status = [verification] if verification else []
    if has_code(status, "entered-in-error"):
        return "entered_in_error"
    return "refuted" if has_code(status, "refuted") else ""
