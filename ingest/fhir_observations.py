# pyright: strict
"""Observations as events: the hot path of every hospital's export.

A measurement's code carries its system and its unit, `LAB//LOINC//2345-7//mg/dL`; a coded answer
carries the answer, `LAB//LOINC//600-7//POS`. The time is when the sample was taken or the patient
measured; the result is available when it was issued, never before, and a changed one when it was
changed (`fhir_versions`).

MIMIC's units stay as its tables write them; all others are brought to one unit a quantity.
"""

from __future__ import annotations

import re
from functools import lru_cache

from tsfm import codes, units
from tsfm.ingest.fhir_codes import (
    LOINC,
    choose,
    code_parts,
    describe,
    is_mimic,
    system_name,
)
from tsfm.ingest.fhir_encounters import Stay
from tsfm.ingest.fhir_events import EventBatch, UnusableError, check_value, undone
from tsfm.ingest.fhir_fields import NO_RAW, Coding, Component, Concept, Meta, Observation
from tsfm.ingest.fhir_versions import known_us

OBSERVATION, OUTPUT, CHART_DATE = "OBSERVATION", "SUBJECT_FLUID_OUTPUT", "CHART_DATE"
MICRO_TEST = "MICROBIOLOGY_TEST"
MICRO_ORGANISM = "MICROBIOLOGY_ORGANISM"
MICRO_SUSCEPTIBILITY = "MICROBIOLOGY_SUSCEPTIBILITY"

_MIMIC_PROFILES = {
    "mimic-observation-outputevents": OUTPUT,
    "mimic-observation-datetimeevents": CHART_DATE,
    "mimic-observation-micro-test": MICRO_TEST,
    "mimic-observation-micro-org": MICRO_ORGANISM,
    "mimic-observation-micro-susc": MICRO_SUSCEPTIBILITY,
}
_MIMIC_SYSTEMS = {
    "mimic-microbiology-test": MICRO_TEST,
    "mimic-microbiology-organism": MICRO_ORGANISM,
    "mimic-microbiology-antibiotic": MICRO_SUSCEPTIBILITY,
}
_WITHOUT_UNIT = (CHART_DATE, MICRO_TEST, MICRO_ORGANISM, MICRO_SUSCEPTIBILITY)
_VALUE_OPTIONAL = (MICRO_TEST, MICRO_ORGANISM)  # that it was tested, or grew, is the finding
_CATEGORIES = {"laboratory": codes.LAB, "vital-signs": codes.VITAL}
_NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d{1,30})?")
_MAX_CODES = 200_000


def add_observation(row: Observation, events: EventBatch) -> str:
    """Add one event for the value and for each component's value."""
    if reason := undone(row.status):
        return reason
    subject = events.subject_of(row.subject)
    time, available = _times(row, events)
    available = known_us(row, available, events)
    stay = events.stay_of(row.encounter) if row.encounter is not None else None
    prefix = _category(row.category)
    if not row.component:
        return _add_part(row, row, prefix, subject, time, available, stay, events)
    outcomes: list[str] = []
    for part in (row, *row.component):
        try:
            outcome = _add_part(part, row, prefix, subject, time, available, stay, events)
        except UnusableError as error:  # of this part alone
            outcome = str(error)
        outcomes.append(outcome)
    problems = [outcome for outcome in outcomes if outcome]
    if len(problems) == len(outcomes):
        return next((problem for problem in problems if problem != "no_value"), "no_value")
    # A panel without a value of its own, or a part that was not measured, is no loss.
    return next((problem for problem in problems if problem != "no_value"), "")


def _is_microbiology(row: Observation) -> bool:
    return row.code is not None and any(
        coding.system.rpartition("/")[2] in _MIMIC_SYSTEMS for coding in row.code.coding
    )


def _times(row: Observation, events: EventBatch) -> tuple[int, int]:
    """Microseconds at which it was so and at which it could be known."""
    stamps = events.stamps
    if row.effective_date_time:
        moment = stamps.interval(row.effective_date_time)
    else:
        moment = events.moment(row.effective_instant, row.effective_period)
        if moment is None and row.specimen is not None:
            moment = events.moment(events.references.collection_time(row.specimen.reference))
    if not row.issued:
        if moment is None:
            raise UnusableError("no_time")
        if _is_microbiology(row):
            # A culture is read days after the specimen; the export does not say when.
            events.counts["delayed_microbiology"] += 1
            return moment[0], events.delay.available_us(moment[1])
        events.counts["no_release_time"] += 1
        return moment
    issued = stamps.interval(row.issued)
    if moment is None:
        return issued
    if issued[0] < moment[0]:  # released before it was so: the clock of one of them is wrong
        events.counts["released_before_time"] += 1
        return moment
    return moment[0], issued[1]


def _category(categories: list[Concept]) -> str:
    for concept in categories:
        for coding in concept.coding:
            prefix = _CATEGORIES.get(coding.code)
            if prefix is not None:
                return prefix
    return OBSERVATION


def _add_part(
    part: Component,
    row: Observation,
    prefix: str,
    subject: int,
    time: int,
    available: int,
    stay: Stay | None,
    events: EventBatch,
) -> str:
    concept = part.code
    if concept is None:
        return "no_code"
    # One coding with a code is the rule; the choice among several costs more.
    coding = concept.coding[0] if len(concept.coding) == 1 else choose(concept, LOINC)
    if coding is not None and not coding.code:
        coding = None
    if coding is not None and is_mimic(coding.system):
        prefix = _mimic_prefix(_profile(row.meta), coding.system)
    value: float | None = None
    text: str | None = None
    unit, answer = "", None
    quantity = part.value_quantity
    if quantity is not None and quantity.value is not None:
        value = check_value(quantity.value)
        unit = quantity.code or quantity.unit or codes.UNKNOWN
    elif part.value_codeable_concept is not None:
        answer = part.value_codeable_concept
    elif part.value_string is not None and part.value_string.strip():
        text = part.value_string.strip()
        if _NUMBER.fullmatch(text):
            value, unit = check_value(float(text)), codes.UNKNOWN
    elif part.value_integer is not None:
        value, unit = check_value(float(part.value_integer)), codes.UNKNOWN
    elif part.value_boolean is not None:
        word = "true" if part.value_boolean else "false"
        answer = Concept(coding=[Coding(code=word)], text=word)
    elif part.value_date_time:
        text = part.value_date_time
    elif prefix not in _VALUE_OPTIONAL:
        return "unsupported_value" if _has_other_value(part) else "no_value"
    if answer is not None:
        return _add_answer(concept, answer, prefix, subject, time, available, stay, events)
    system = coding.system if coding else ""
    code = coding.code if coding else concept.text
    key = (prefix, system, code, unit)
    known = events.measurement_codes.get(key)
    if known is None:
        known = _measurement_code(prefix, concept, coding, unit, events)
        if known is None:
            return "no_code"
        events.measurement_codes[key] = known
    if value is not None:
        if known[1]:
            value = check_value(units.canonical(value, unit)[0] or 0.0)
        if quantity is not None and quantity.comparator:
            text = quantity.comparator + _plain(value)
    events.add(subject, known[0], time, available, stay, value, text)
    return ""


def _measurement_code(
    prefix: str, concept: Concept, coding: Coding | None, unit: str, events: EventBatch
) -> tuple[str, bool] | None:
    """Code string of a measurement, and whether its value must be converted."""
    if len(events.measurement_codes) >= _MAX_CODES:
        events.measurement_codes.clear()
    found = code_parts(Concept(coding=[coding], text=concept.text) if coding else concept)
    if found is None:
        return None
    parts, description = found
    convert = False
    if coding is not None and is_mimic(coding.system):
        if prefix not in _WITHOUT_UNIT:
            parts.append(unit or codes.UNKNOWN)
    elif unit:
        target = units.canonical(None, unit)[1] or codes.UNKNOWN
        convert = target != units.spelling(unit)
        parts.append(target)
    code = codes.join(prefix, *parts)
    if description:
        events.descriptions.setdefault(code, description)
    return code, convert


def _add_answer(
    concept: Concept,
    answer: Concept,
    prefix: str,
    subject: int,
    time: int,
    available: int,
    stay: Stay | None,
    events: EventBatch,
) -> str:
    """Add a coded answer: its code is part of the event's code, its words are the text."""
    found = code_parts(concept, LOINC)
    if found is None:
        return "no_code"
    parts, description = found
    coding = choose(answer)
    text = describe(answer, coding)
    if coding is not None:
        parts.append(coding.code)
        description = f"{description}: {text}" if text else description
    elif not text:
        return "no_value"
    code = codes.join(prefix, *parts)
    events.add(subject, code, time, available, stay, None, text or None, description)
    return ""


def _has_other_value(part: Component) -> bool:
    return not (
        part.value_range is NO_RAW
        and part.value_ratio is NO_RAW
        and part.value_sampled_data is NO_RAW
        and part.value_time is NO_RAW
        and part.value_period is NO_RAW
    )


def _profile(meta: Meta | None) -> str:
    return meta.profile[0] if meta is not None and meta.profile else ""


@lru_cache(maxsize=1024)
def _mimic_prefix(profile: str, system: str) -> str:
    """Class of a code of MIMIC's own: by the resource's profile, else by the code system."""
    by_profile = _MIMIC_PROFILES.get(profile.rpartition("/")[2])
    return by_profile or _MIMIC_SYSTEMS.get(system_name(system), codes.LAB)


def _plain(value: float) -> str:
    """A number as a person writes it: no trailing `.0`."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
