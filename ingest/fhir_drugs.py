# pyright: strict
"""Orders, doses, dispenses and statements of medication as events.

`MEDICATION//<name>//<kind>`, with RxNorm's code as the name where there is one:
`MEDICATION//RXNORM//197361//ORDERED`. The numeric value is the dose and the text its unit. Doses
given in MIMIC's intensive care units are infusions with a start and an end.
"""

from __future__ import annotations

from tsfm import codes
from tsfm.ingest.fhir_codes import code_parts, first_code, is_mimic, profile_name
from tsfm.ingest.fhir_encounters import Stay
from tsfm.ingest.fhir_events import NOT_DONE, EventBatch, check_value, undone
from tsfm.ingest.fhir_fields import (
    Dosage,
    MedicationAdministration,
    MedicationDispense,
    MedicationEvent,
    MedicationRequest,
    MedicationStatement,
    Quantity,
)
from tsfm.ingest.fhir_medications import Name

ORDERED, ADMINISTERED, DISPENSED, STATED = "ORDERED", "Administered", "DISPENSED", "STATED"
INFUSION_START, INFUSION_END = "INFUSION_START", "INFUSION_END"


def add_request(row: MedicationRequest, events: EventBatch) -> str:
    """Add an order at the time it was written."""
    if row.do_not_perform:
        return "not_done"
    moment = events.moment(row.authored_on)
    dose = _planned_dose(row.dosage_instruction)
    return _add(row, ORDERED, moment, dose, events, ("entered-in-error", "draft"))


def add_administration(row: MedicationAdministration, events: EventBatch) -> str:
    """Add a dose given; a dose over a period is known when the period is over."""
    if profile_name(row.meta).endswith("administration-icu"):
        return _add_infusion(row, events)
    kind = ADMINISTERED
    method = row.dosage.method if row.dosage else None
    if method and any(is_mimic(coding.system) for coding in method.coding):
        kind = first_code(method) or ADMINISTERED
    moment = events.moment(row.effective_date_time, row.effective_period)
    dose = row.dosage.dose if row.dosage else None
    order = events.references.order(row.request.reference) if row.request else None
    return _add(row, kind, moment, dose, events, fallback=order[1] if order else ())


def add_dispense(row: MedicationDispense, events: EventBatch) -> str:
    """Add a supply: when handed over, else when ordered, else within its encounter."""
    moment = events.moment(row.when_handed_over or row.when_prepared)
    name: Name = ()
    for prescription in row.authorizing_prescription:
        order = events.references.order(prescription.reference)
        if order is not None:
            name = name or order[1]
            moment = moment or events.moment(order[0])
    if moment is None:
        stay = _stay(row, events)
        if stay and stay.start and stay.end:
            moment = stay.start.us, stay.end.end_us
    return _add(row, DISPENSED, moment, row.quantity, events, fallback=name)


def add_statement(row: MedicationStatement, events: EventBatch) -> str:
    """Add what the patient is said to take, known once it was said."""
    moment = events.moment(row.effective_date_time)
    if moment is None and row.effective_period and row.effective_period.start:
        moment = events.moment(row.effective_period.start)
    if row.date_asserted:
        said = events.stamps[row.date_asserted]
        time = moment[0] if moment else said.us
        moment = (time, max(said.end_us, moment[1] if moment else said.end_us))
    return _add(row, STATED, moment, _planned_dose(row.dosage), events)


def _add(
    row: MedicationEvent,
    kind: str,
    moment: tuple[int, int] | None,
    dose: Quantity | None,
    events: EventBatch,
    void: tuple[str, ...] = ("entered-in-error",),
    fallback: Name = (),
) -> str:
    if row.status in void:
        return "entered_in_error" if row.status == "entered-in-error" else "not_done"
    if row.status in NOT_DONE and kind != ORDERED:
        return "not_done"
    subject = events.subject_of(row.subject)
    name = events.references.medications.name(row) or fallback
    if not name:
        return "no_code"
    if moment is None:
        return "no_time"
    value, unit = _measure(dose)
    concept = row.medication_codeable_concept
    found = code_parts(concept, name[0]) if concept and len(name) > 1 else None
    code = codes.join(codes.MEDICATION, *name, kind)
    description = found[1] if found else ""
    events.add(subject, code, *moment, _stay(row, events), value, unit, description)
    return ""


def _add_infusion(row: MedicationAdministration, events: EventBatch) -> str:
    """Add start and end of an infusion: the rate is known at the start, the amount at the end."""
    if reason := undone(row.status):
        return reason
    subject = events.subject_of(row.subject)
    concept = row.medication_codeable_concept
    found = code_parts(concept) if concept else None
    if found is None:
        return "no_code"
    parts, text = found
    period = row.effective_period
    end = events.stamps[period.end] if period and period.end else None
    start = events.moment(row.effective_date_time or (period.start if period else None))
    if start is None:
        return "no_time"
    stay = _stay(row, events)
    amount, unit = _measure(row.dosage.dose if row.dosage else None)
    rate, rate_unit = _measure(row.dosage.rate_quantity if row.dosage else None)
    # A bolus starts and ends at once: its amount must not share a code with others' rates.
    ended = (end.us, end.end_us) if end else start
    start_code, end_code = codes.join(INFUSION_START, *parts), codes.join(INFUSION_END, *parts)
    events.add(subject, start_code, *start, stay, rate, rate_unit, text)
    if end or not period:
        events.add(subject, end_code, *ended, stay, amount, unit, text)
    return ""


def _stay(row: MedicationEvent, events: EventBatch) -> Stay | None:
    return events.stay_of(row.encounter or row.context)


def _planned_dose(dosages: list[Dosage]) -> Quantity | None:
    for dosage in dosages:
        for dose in dosage.dose_and_rate:
            if dose.dose_quantity is not None:
                return dose.dose_quantity
    return None


def _measure(quantity: Quantity | None) -> tuple[float | None, str | None]:
    if quantity is None or quantity.value is None:
        return None, None
    return check_value(quantity.value), quantity.code or quantity.unit or None
