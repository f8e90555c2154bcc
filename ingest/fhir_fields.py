# pyright: strict
"""The fields of FHIR R4 resources that are read, as msgspec partial structs.

A partial struct names only the fields of interest; everything else in a resource is skipped by the
decoder without building a Python object, which is what makes reading a hospital's years feasible
(about 1 us a laboratory Observation against 140 us for a full FHIR model). Field types follow
R4 (https://hl7.org/fhir/R4/); a resource whose field has another type is set aside, not guessed.

Fields of which an odd shape must not cost their resource are kept as JSON (`msgspec.Raw`) and read
by `fhir_loose_fields`.

These structs do not validate: required fields, value sets and invariants are not checked.
"""

from __future__ import annotations

import hashlib
import re

import msgspec

from tsfm.ingest.fhir_loose_fields import read_loosely, text_in

NO_RAW = msgspec.Raw()
_VERSION = re.compile(r"/_history/[^/]+$")


class Fields(msgspec.Struct, rename="camel", gc=False):
    """Base: FHIR's camelCase names, this package's snake_case attributes."""


class Coding(Fields):
    """One code of one system."""

    system: str = ""
    code: str = ""
    display: str = ""


class Concept(Fields):
    """FHIR `CodeableConcept`: the same thing in several systems, or in words."""

    coding: list[Coding] = []
    text: str = ""


class Reference(Fields):
    """Reference to another resource."""

    reference: str = ""
    display: str = ""


class Period(Fields):
    """Time interval; `end` is inclusive."""

    start: str | None = None
    end: str | None = None


class Quantity(Fields):
    """Value with a unit; `code` is the unit in UCUM, `unit` in words."""

    value: float | None = None
    comparator: str = ""
    unit: str = ""
    code: str = ""


class Identifier(Fields):
    """Key of a resource in another system."""

    system: str = ""
    value: str = ""


class Meta(Fields):
    """Profiles and version of a resource."""

    profile: list[str] = []
    last_updated: str = ""
    version_id: str = ""


class Head(Fields):
    """The least that identifies a resource."""

    resource_type: str = ""
    id: str = ""


class Version(Head):
    """What decides between two copies of one resource."""

    meta: Meta | None = None
    status: str = ""


class LooseVersion(Head):
    """The same, whatever `meta` looks like."""

    meta_json: msgspec.Raw = msgspec.field(default=NO_RAW, name="meta")
    status: str = ""

    @property
    def meta(self) -> Meta:
        """Its time and number, as far as they can be read."""
        return _read_meta(self.meta_json)


class Extension(Fields):
    """Extension, of which only text and coding values are read."""

    url: str = ""
    value_string: str = ""
    value_coding: Coding | None = None
    extension: list[Extension] = []


class Patient(Fields):
    """Person."""

    id: str = ""
    meta: Meta | None = None
    identifier: list[Identifier] = []
    gender: str = ""
    birth_date: str | None = None
    deceased_boolean: bool | None = None
    deceased_date_time: str | None = None
    link: msgspec.Raw = NO_RAW
    extension: list[Extension] = []


class Hospitalization(Fields):
    """How a stay began and ended."""

    admit_source: Concept | None = None
    discharge_disposition: Concept | None = None


class EncounterLocation(Fields):
    """Ward of a stay and when."""

    location: Reference | None = None
    period: Period | None = None


class Encounter(Fields):
    """Stay or visit."""

    id: str = ""
    meta: Meta | None = None
    identifier: list[Identifier] = []
    status: str = ""
    class_: Coding | None = msgspec.field(default=None, name="class")
    priority: Concept | None = None
    service_type: Concept | None = None
    subject: Reference | None = None
    period: Period | None = None
    hospitalization: Hospitalization | None = None
    location: list[EncounterLocation] = []
    part_of: Reference | None = None


class Location(Fields):
    """Ward."""

    id: str = ""
    name: str = ""
    type: list[Concept] = []


class Condition(Fields):
    """Diagnosis or problem."""

    verification_status: Concept | None = None
    category: list[Concept] = []
    code: Concept | None = None
    subject: Reference | None = None
    encounter: Reference | None = None
    onset_date_time: str | None = None
    onset_period: Period | None = None
    recorded_date: str | None = None


class Component(Fields):
    """Part of an Observation that has a value of its own."""

    code: Concept | None = None
    value_quantity: Quantity | None = None
    value_codeable_concept: Concept | None = None
    value_string: str | None = None
    value_integer: int | None = None
    value_boolean: bool | None = None
    value_date_time: str | None = None
    value_range: msgspec.Raw = NO_RAW
    value_ratio: msgspec.Raw = NO_RAW
    value_sampled_data: msgspec.Raw = NO_RAW
    value_time: msgspec.Raw = NO_RAW
    value_period: msgspec.Raw = NO_RAW


class Observation(Component):
    """Laboratory result, vital sign, score or answer."""

    meta: Meta | None = None
    status: str = ""
    category: list[Concept] = []
    subject: Reference | None = None
    encounter: Reference | None = None
    effective_date_time: str | None = None
    effective_period: Period | None = None
    effective_instant: str | None = None
    issued: str | None = None
    specimen: Reference | None = None
    component: list[Component] = []


class Procedure(Fields):
    """Something done to the patient."""

    meta: Meta | None = None
    status: str = ""
    code: Concept | None = None
    subject: Reference | None = None
    encounter: Reference | None = None
    performed_date_time: str | None = None
    performed_period: Period | None = None


class Ingredient(Fields):
    """Part of a mixed medication."""

    item_reference: Reference | None = None
    item_codeable_concept: Concept | None = None


class Medication(Fields):
    """Medication that others refer to."""

    resource_type: str = ""
    id: str = ""
    code: Concept | None = None
    identifier: list[Identifier] = []
    ingredient: list[Ingredient] = []


class DoseAndRate(Fields):
    """Dose of an instruction."""

    dose_quantity: Quantity | None = None


class Dosage(Fields):
    """Instruction of an order or statement, or what was given in an administration."""

    dose_and_rate: list[DoseAndRate] = []
    dose: Quantity | None = None
    rate_quantity: Quantity | None = None
    method: Concept | None = None


class MedicationEvent(Fields):
    """What order, administration, dispense and statement have in common."""

    id: str = ""
    meta: Meta | None = None
    status: str = ""
    subject: Reference | None = None
    encounter: Reference | None = None
    context: Reference | None = None
    medication_codeable_concept: Concept | None = None
    medication_reference: Reference | None = None
    contained: list[msgspec.Raw] = []


class MedicationRequest(MedicationEvent):
    """Order."""

    authored_on: str | None = None
    do_not_perform: bool = False
    dosage_instruction: list[Dosage] = []


class MedicationAdministration(MedicationEvent):
    """Dose given."""

    effective_date_time: str | None = None
    effective_period: Period | None = None
    dosage: Dosage | None = None
    request: Reference | None = None


class MedicationDispense(MedicationEvent):
    """Supply handed out."""

    when_prepared: str | None = None
    when_handed_over: str | None = None
    quantity: Quantity | None = None
    authorizing_prescription: list[Reference] = []


class MedicationStatement(MedicationEvent):
    """What the patient is said to take."""

    effective_date_time: str | None = None
    effective_period: Period | None = None
    date_asserted: str | None = None
    dosage: list[Dosage] = []


class Collection(Fields):
    """How a specimen was taken."""

    collected_date_time: str | None = None
    collected_period: Period | None = None


class Specimen(Fields):
    """Material taken from the patient."""

    id: str = ""
    meta: Meta | None = None
    status: str = ""
    type: Concept | None = None
    subject: Reference | None = None
    collection: Collection | None = None
    received_time: str | None = None


class Immunization(Fields):
    """Vaccination."""

    status: str = ""
    vaccine_code: Concept | None = None
    patient: Reference | None = None
    encounter: Reference | None = None
    occurrence_date_time: str | None = None
    recorded: str | None = None


class AllergyIntolerance(Fields):
    """Allergy."""

    verification_status: Concept | None = None
    code: Concept | None = None
    patient: Reference | None = None
    encounter: Reference | None = None
    recorded_date: str | None = None
    onset_date_time: str | None = None


class DiagnosticReport(Fields):
    """Report; its text and attachments are not read."""

    meta_json: msgspec.Raw = msgspec.field(default=NO_RAW, name="meta")
    status: str = ""
    code: Concept | None = None
    subject: Reference | None = None
    encounter: Reference | None = None
    effective_date_time: str | None = None
    effective_period: Period | None = None
    issued: str | None = None

    @property
    def meta(self) -> Meta:
        """Its time and number, as far as they can be read."""
        return _read_meta(self.meta_json)


def stable_id(text: str) -> int:
    """Positive 63-bit integer that stands for `text` on every machine and in every run.

    >>> stable_id("Patient-1") == stable_id("Patient-1") < 2**63
    True
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def reference_key(reference: str, kind: str) -> str:
    """`kind/id` of a relative, absolute, versioned or `urn:uuid:` reference; "" if of another kind.

    >>> reference_key("https://ehr.example/fhir/Patient/7/_history/2", "Patient")
    'Patient/7'
    >>> reference_key("urn:uuid:0c3a", "Patient")
    'Patient/0c3a'
    >>> reference_key("Patient/../../x", "Patient"), reference_key("Group/7", "Patient")
    ('', '')
    """
    if reference.startswith(("urn:uuid:", "urn:oid:")):
        return f"{kind}/{reference.rpartition(':')[2]}"
    parts = _VERSION.sub("", reference).rsplit("/", 2)
    if len(parts) >= 2 and parts[-2] == kind and "?" not in parts[-1]:
        return f"{kind}/{parts[-1]}"
    return ""


def _read_meta(raw: msgspec.Raw) -> Meta:
    value = read_loosely(raw)
    return Meta([], text_in(value, "lastUpdated"), text_in(value, "versionId"))
