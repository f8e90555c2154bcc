# pyright: strict
"""What other resources refer to: patients, stays, wards, medications, orders, specimens.

Files come in any order, so all referenced resources are read in a first pass and kept here in
compact form; the second pass then resolves every reference at once. Times are kept as written until
the first pass is over, because only then is it known which clock the source is on.

A reference that leads nowhere stays nowhere: no patient is ever made up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tsfm import codes
from tsfm.clock import HOUR_US, Clock
from tsfm.ingest import fhir_fields as fields
from tsfm.ingest.fhir_addresses import Addresses
from tsfm.ingest.fhir_codes import first_code, has_code, is_mimic, profile_name
from tsfm.ingest.fhir_encounters import (
    EMERGENCY,
    HOSPITAL,
    INTENSIVE,
    OTHER,
    OUTPATIENT,
    WARD,
    ExportTime,
    Stay,
    read_bounds,
)
from tsfm.ingest.fhir_fields import Reference, stable_id
from tsfm.ingest.fhir_medications import MedicationIndex, Name, is_local
from tsfm.ingest.fhir_patients import PatientIndex

_CLASSES = {
    **dict.fromkeys(("IMP", "ACUTE", "NONACUTE", "OBSENC", "SS", "INPATIENT"), HOSPITAL),
    **dict.fromkeys(("EMER", "EMERGENCY"), EMERGENCY),
    **dict.fromkeys(("AMB", "VR", "HH", "FLD", "AMBULATORY", "OUTPATIENT"), OUTPATIENT),
}
_MIMIC_KINDS = {
    "encounter-hosp": HOSPITAL,
    "encounter-ed": EMERGENCY,
    "encounter-icu": INTENSIVE,
}
_ICU_NAME = re.compile(r"\b[A-Z]?[A-Z]?ICU\b|\bCCU\b|intensive|critical care|coronary care", re.I)
_WEST = re.compile(r"-(0\d|1[0-2]):[0-5]\d")
_ICU_TYPES = ("ICU", "PEDICU", "PEDNICU", "CCU")


@dataclass(slots=True)
class _Waiting:
    """Facts of an Encounter until all others and the clock are known."""

    period: tuple[str | None, str | None]
    void: bool
    part_of: str
    wards: list[Reference]


@dataclass(slots=True)
class ReferenceIndex:
    """Referenced resources by `Type/id`.

    Attributes:
        patients: Patients, their subjects and deaths.
        subjects: Subject id by `Patient/id`, and by every spelling of a reference met so far.
        died_at: Subject id to the ends of hospital stays that ended in death.
        stays: Encounters.
        wards: Locations' names.
        orders: MedicationRequests' time as written and medication's name.
        collected: Specimens' time of collection as written.
        medications: Medications and their names.
        is_mimic: Whether the source is MIMIC-IV on FHIR.
        parts_of_nothing: Encounters that say they are part of one that can't hold them.
        parts_of_vague: Wards of stays that are contacts, being known by month or year only.
        export: When the export was taken, to be said before `settle`; None if dates are shifted.
        are_dates_shifted: Whether `settle` found that they are.
        addresses: What references mean.
    """

    addresses: Addresses = field(default_factory=Addresses)
    patients: PatientIndex = field(init=False)
    subjects: dict[str, int] = field(init=False)
    died_at: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    stays: dict[str, Stay] = field(default_factory=dict[str, Stay])
    wards: dict[str, str] = field(default_factory=dict[str, str])
    orders: dict[str, tuple[str | None, Name]] = field(
        default_factory=dict[str, tuple[str | None, Name]]
    )
    collected: dict[str, str] = field(default_factory=dict[str, str])
    is_mimic: bool = False
    parts_of_nothing: int = 0
    parts_of_vague: int = 0
    export: ExportTime | None = None
    are_dates_shifted: bool = False
    medications: MedicationIndex = field(init=False)
    _waiting: dict[str, _Waiting] = field(default_factory=dict[str, _Waiting])
    _icu_wards: set[str] = field(default_factory=set[str])
    _requests: dict[str, tuple[str | None, fields.MedicationRequest]] = field(
        default_factory=dict[str, tuple[str | None, fields.MedicationRequest]]
    )

    def __post_init__(self) -> None:
        """Share the addresses with patients and medications."""
        self.patients = PatientIndex(self.addresses)
        self.subjects = self.patients.subjects
        self.medications = MedicationIndex(self.addresses)

    def add_patient(self, row: fields.Patient) -> None:
        """Keep a patient."""
        mimic_key = next(
            (i.value for i in row.identifier if is_mimic(i.system) and _is_key(i.value)), ""
        )
        if mimic_key or profile_name(row.meta):
            self.is_mimic = True
        self.patients.add(row, mimic_key)

    def add_encounter(self, row: fields.Encounter) -> None:
        """Keep a stay."""
        key, kind = 0, ""
        for identifier in row.identifier:
            if is_mimic(identifier.system) and _is_key(identifier.value):
                self.is_mimic = True
                kind = _MIMIC_KINDS.get(identifier.system.rpartition("/")[2], "")
                key = int(identifier.value)
        class_code = (row.class_.code if row.class_ else "").upper()
        stay = row.hospitalization
        self.stays[f"Encounter/{row.id}"] = Stay(
            encounter_id=key or stable_id(row.id),
            subject=row.subject.reference if row.subject else "",
            kind=kind or _CLASSES.get(class_code, OTHER),
            disposition=_disposition(stay.discharge_disposition if stay else None),
        )
        lasting = row.status in ("in-progress", "arrived", "triaged", "onleave")
        void = row.status in ("planned", "cancelled", "entered-in-error")
        period = row.period or fields.Period()
        self._waiting[f"Encounter/{row.id}"] = _Waiting(
            (None if void else period.start, None if void or lasting else period.end),
            void,
            "" if kind else (row.part_of.reference if row.part_of else ""),
            [place.location for place in row.location if place.location],
        )

    def add_location(self, row: fields.Location) -> None:
        """Keep a ward's name and whether it is an intensive care unit."""
        self.wards[f"Location/{row.id}"] = row.name
        if _ICU_NAME.search(row.name) or any(has_code(row.type, code) for code in _ICU_TYPES):
            self._icu_wards.add(f"Location/{row.id}")

    def add_medication(self, row: fields.Medication) -> None:
        """Keep a medication."""
        self.medications.add(row)

    def add_request(self, row: fields.MedicationRequest) -> None:
        """Keep an order's time and medication, for the dispenses that name it."""
        slim = fields.MedicationRequest(
            medication_codeable_concept=row.medication_codeable_concept,
            medication_reference=row.medication_reference,
            contained=row.contained if is_local(row.medication_reference) else [],
        )
        self._requests[f"MedicationRequest/{row.id}"] = (row.authored_on, slim)

    def add_specimen(self, row: fields.Specimen) -> None:
        """Keep when a specimen was taken."""
        at = collected_text(row)
        if at:
            self.collected[f"Specimen/{row.id}"] = at

    def forget(self, kind: str, id: str) -> None:
        """Drop a resource that the source has deleted: what refers to it leads nowhere."""
        key = f"{kind}/{id}"
        for table in (self.stays, self._waiting, self.wards, self._requests, self.collected):
            table.pop(key, None)
        self._icu_wards.discard(key)
        if kind == "Patient":
            self.patients.forget(key)
        self.medications.forget(key)

    def settle(self, clock: Clock) -> None:
        """Bring everything onto one clock, once all resources are in."""
        self.patients.settle(clock)
        hospital = {key for key, stay in self.stays.items() if stay.kind == HOSPITAL}
        self._settle_bounds(clock)
        for key, whole in self._wholes(hospital).items():
            if whole is not None and self.stays[key].kind == HOSPITAL:
                self._settle_kind(key, self._waiting[key], whole)
        self._settle_deaths()
        for key, (authored, request) in self._requests.items():
            self.orders[key] = (authored, self.medications.name(request))
        self._waiting.clear()
        self._requests.clear()

    def westernmost_us(self) -> int:
        """How far behind UTC the stamps of stays and deaths are at most; 0 where none is.

        A bare date is over when it is over there.
        """
        found = 0
        texts = [text for waiting in self._waiting.values() for text in waiting.period]
        texts += self.patients.deaths_as_written()
        for offset in {text[-6:] for text in texts if text and _WEST.fullmatch(text[-6:])}:
            found = max(found, int(offset[1:3]) * HOUR_US + int(offset[4:]) * HOUR_US // 60)
        return found

    def _settle_bounds(self, clock: Clock) -> None:
        """Read all periods: as those of shifted dates where most begin after the export."""
        for key, waiting in self._waiting.items():
            self.stays[key].settle(read_bounds(*waiting.period, clock, self.export))
        ahead = [stay.bounds.is_ahead for stay in self.stays.values() if stay.start]
        if 2 * sum(ahead) > len(ahead):
            self.export, self.are_dates_shifted = None, True
            self._settle_bounds(clock)

    def _wholes(self, hospital: set[str]) -> dict[str, str | None]:
        """Of every hospital stay, the stay that it is a part of, or ""; None if that can't be.

        A contact that is none for its vague bounds alone holds its parts as a stay does: they are
        no admissions, and between two of them nobody was at home.

        What can't hold a part is no whole: a stay of another patient, one that did not happen or
        whose period can't be used, or one that is in the end a part of this one. Else an admission
        would be lost with it.
        """
        wholes: dict[str, str | None] = {}
        for key in hospital:
            whole = self.addresses.find(self._waiting[key].part_of, "Encounter", hospital)
            wholes[key] = whole if not whole or self._can_hold(whole, key) else None
        for key in sorted(hospital):
            seen = {key}
            above = wholes[key]
            while above and above not in seen:
                seen.add(above)
                above = wholes[above]
            if above == key:
                wholes[key] = None
        self.parts_of_nothing = sum(
            whole is None and self.stays[key].kind == HOSPITAL for key, whole in wholes.items()
        )
        return wholes

    def _can_hold(self, whole: str, part: str) -> bool:
        stay = self.stays[whole]
        owner = self.subject(stay.subject)
        return (
            whole != part
            and not self._waiting[whole].void
            and not stay.problem
            and stay.start is not None
            and owner is not None
            and owner == self.subject(self.stays[part].subject)
        )

    def _settle_kind(self, key: str, waiting: _Waiting, whole: str) -> None:
        """Tell a stay of its own from a part of another, which is no second admission."""
        if waiting.part_of and any(self._says_icu(ward) for ward in waiting.wards):
            self.stays[key].kind = INTENSIVE
        elif whole:
            self.stays[key].kind = WARD
            self.parts_of_vague += self.stays[whole].is_contact

    def _settle_deaths(self) -> None:
        """Find the stays that ended in death: those that say so, else the one the day falls into.

        A stamp that is wider than a day says of no stay that it was the last one.
        """
        last: dict[int, Stay] = {}  # of the stays that the day of death falls into, by subject
        said: set[int] = set()  # subjects of whom one of these says that it ended in death
        for stay in self.stays.values():
            subject = self.subject(stay.subject)
            if stay.kind != HOSPITAL or subject is None or stay.start is None or stay.end is None:
                continue
            if _says_died(stay):
                self.died_at.setdefault(subject, []).append(stay.end.end_us)
            death = self.patients.deaths.get(subject)
            if death is None or subject in self.patients.vague_deaths:
                continue
            if death.us > stay.end.end_us or death.end_us < stay.start.us:
                continue
            if _says_died(stay):
                said.add(subject)
            other = last.get(subject)
            if other is None or _order(stay) > _order(other):
                last[subject] = stay
        for subject, stay in last.items():
            if stay.disposition is None and subject not in said:
                assert stay.end is not None
                stay.disposition = codes.DIED
                self.died_at.setdefault(subject, []).append(stay.end.end_us)

    def _says_icu(self, ward: Reference) -> bool:
        key = self.addresses.find(ward.reference, "Location", self.wards)
        return key in self._icu_wards or bool(_ICU_NAME.search(ward.display))

    def subject(self, reference: str) -> int | None:
        """Subject id behind a reference; a spelling once resolved is found at once."""
        found = self.subjects.get(reference)
        if found is None:
            key = self.addresses.find(reference, "Patient", self.subjects)
            if key:
                found = self.subjects[reference] = self.subjects[key]
        return found

    def stay(self, reference: str) -> Stay | None:
        """Encounter behind a reference."""
        found = self.stays.get(reference)
        if found is None and reference:
            key = self.addresses.find(reference, "Encounter", self.stays)
            if key:
                found = self.stays[reference] = self.stays[key]
        return found

    def ward_name(self, ward: Reference | None) -> str | None:
        """Name of a Location: its own, else the one in the reference."""
        if ward is None:
            return None
        return self.wards.get(self.addresses.find(ward.reference, "Location", self.wards)) or (
            ward.display or None
        )

    def order(self, reference: str) -> tuple[str | None, Name] | None:
        """Time as written and medication of an order."""
        return self.orders.get(self.addresses.find(reference, "MedicationRequest", self.orders))

    def collection_time(self, reference: str) -> str | None:
        """When a specimen was taken, as written."""
        return self.collected.get(self.addresses.find(reference, "Specimen", self.collected))


def collected_text(row: fields.Specimen) -> str | None:
    """When a specimen was taken, else when it was received, as written."""
    at = row.collection
    if at is None:
        return row.received_time
    start = at.collected_period.start if at.collected_period else None
    return at.collected_date_time or start or row.received_time


def _says_died(stay: Stay) -> bool:
    return bool(stay.disposition) and stay.disposition.upper() in (codes.DIED, "EXPIRED")


def _order(stay: Stay) -> tuple[int, int, int]:
    assert stay.start is not None
    assert stay.end is not None
    return stay.end.end_us, stay.start.us, stay.encounter_id


def _is_key(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 19 and 0 < int(text) < 2**63


def _disposition(concept: fields.Concept | None) -> str | None:
    code = first_code(concept)
    return None if code is None else codes.DISPOSITIONS.get(code, code)
