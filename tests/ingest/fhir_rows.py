"""Small FHIR resources for tests: a patient, a stay, builders for the rest, and a balance."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tsfm.ingest.provenance import IngestSummary

MIMIC = "http://mimic.mit.edu/fhir/mimic"
PATIENT = {"resourceType": "Patient", "id": "p", "gender": "female", "birthDate": "1950-03-04"}
OF_PATIENT = {"subject": {"reference": "Patient/p"}}
STAY = {
    "resourceType": "Encounter",
    "id": "e",
    "status": "finished",
    "class": {"code": "IMP"},
    **OF_PATIENT,
    "period": {"start": "2020-01-01T10:00:00Z", "end": "2020-01-05T12:00:00Z"},
}
OF_STAY = {**OF_PATIENT, "encounter": {"reference": "Encounter/e"}}


def concept(system: str, code: str, display: str = "") -> dict[str, Any]:
    """A CodeableConcept of one coding."""
    return {"coding": [{"system": system, "code": code, "display": display}]}


def category(code: str) -> list[dict[str, Any]]:
    """The list that `category` fields hold."""
    return [concept("http://terminology.hl7.org/CodeSystem/x", code)]


def make(kind: str, **fields: Any) -> dict[str, Any]:
    """A resource of a type; its id is the type's name if none is given."""
    return {"resourceType": kind, "id": fields.pop("id", kind.lower()), **fields}


def observation(**fields: Any) -> dict[str, Any]:
    """A glucose measurement in the stay, changed and completed by `fields`."""
    defaults = {
        "status": "final",
        "category": category("laboratory"),
        "code": concept("http://loinc.org", "2345-7", "Glucose"),
        "effectiveDateTime": "2020-01-02T08:00:00+01:00",
        **OF_STAY,
    }
    return make("Observation", **{**defaults, **fields})


def day(text: str) -> datetime:
    """A moment from its ISO text."""
    return datetime.fromisoformat(text)


def is_balanced(summary: IngestSummary) -> bool:
    """Whether every row that was read is used, ignored or set aside."""
    parts = (summary.rows_used, summary.rows_ignored, summary.quarantined)
    return summary.n_rows == sum(sum(part.values()) for part in parts)
