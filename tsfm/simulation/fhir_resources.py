"""Charts as FHIR R4 resources.

Stamps are the facility's local time with the offset of that moment, so both passes through the hour
that repeats in autumn are told apart. Nothing later than the export is told: a result not yet
released, a stay not yet over, codes not yet assigned. Billing diagnoses carry no date of their own,
as in real exports; problem-list entries do.

The parts of a resource that never change are encoded once, as raw JSON. Writing files is
`tsfm.simulation.fhir_export`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from tsfm.simulation.catalogue import (
    CONDITIONS,
    DIASTOLIC,
    DRUGS,
    ICD10CM,
    LOINC,
    MEASURES,
    PROCEDURES,
    RACES,
    RXNORM,
    SNOMED,
    SYSTOLIC,
    UCUM,
    Measure,
)
from tsfm.simulation.chart import DAY, ED_VISIT, STAY, Chart, Encounter

Resource = dict[str, Any]

CODING_DAYS = 5
"""Billing codes of an encounter stand in the export from this many days after its end."""

LOCATIONS = {
    "ed": ("Emergency department", "ER", "Emergency room"),
    "clinic": ("Outpatient clinic", "OF", "Outpatient facility"),
    "ward-medicine-1": ("Medical ward 1", "HU", "Hospital unit"),
    "ward-medicine-2": ("Medical ward 2", "HU", "Hospital unit"),
    "ward-surgery": ("Surgical ward", "HU", "Hospital unit"),
    "icu": ("Intensive care unit", "ICU", "Intensive care unit"),
}

_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem/"
_US_CORE = "http://hl7.org/fhir/us/core/StructureDefinition/"
_LOCAL = "https://hospital.example.org/fhir/CodeSystem/discharge-disposition"
_CDC_RACE = "urn:oid:2.16.840.1.113883.6.238"
_ORGANIZATION = "sim-hospital"
_DISPOSITIONS = {
    "home": "Home",
    "snf": "Skilled nursing facility",
    "rehab": "Rehabilitation",
    "hosp": "Hospice",
    "aadvice": "Left against advice",
    "exp": "Expired",
    "other-hcf": "Other healthcare facility",
}
_ADMIT_SOURCES = {
    "emd": "From accident/emergency department",
    "outp": "From outpatient department",
    "gp": "General Practitioner referral",
}
_CLASSES = {"IMP": "inpatient encounter", "EMER": "emergency", "AMB": "ambulatory"}
_PRIORITIES = {"EM": "emergency", "UR": "urgent", "EL": "elective"}


class ChartResources:
    """Turns charts into resources, as far as they are known at the export.

    Args:
        export: Seconds since 1970 UTC.
        zone: The facility's time zone.
    """

    def __init__(self, *, export: int, zone: ZoneInfo) -> None:
        """Remember the moment and the zone."""
        self._export = export
        self._zone = zone

    def stamp(self, time: int) -> str:
        """FHIR dateTime of a moment: local time with its offset."""
        return datetime.fromtimestamp(time, self._zone).isoformat()

    def of_chart(self, chart: Chart) -> dict[str, list[Resource]]:
        """One patient's resources by type."""
        subject = {"reference": f"Patient/{chart.patient}"}
        visits = [
            {"reference": f"Encounter/{chart.encounter_id(e.number)}"} for e in chart.encounters
        ]
        return {
            "Patient": [self._patient(chart)],
            "Encounter": [self._encounter(chart, subject, e) for e in chart.encounters],
            "Condition": self._conditions(chart, subject, visits),
            "Observation": self._observations(chart, subject, visits),
            "MedicationRequest": [
                {
                    "resourceType": "MedicationRequest",
                    "id": f"{chart.patient}-r{i}",
                    "status": "completed",
                    "intent": "order",
                    "medicationCodeableConcept": _DRUG_CODES[order.name],
                    "subject": subject,
                    "encounter": visits[order.encounter],
                    "authoredOn": self.stamp(order.time),
                }
                for i, order in enumerate(chart.orders)
                if order.time <= self._export
            ],
            "MedicationAdministration": [
                {
                    "resourceType": "MedicationAdministration",
                    "id": f"{chart.patient}-a{i}",
                    "status": "completed",
                    "medicationCodeableConcept": _DRUG_CODES[given.name],
                    "subject": subject,
                    "context": visits[given.encounter],
                    "effectiveDateTime": self.stamp(given.time),
                    "dosage": _DOSAGES[given.name],
                }
                for i, given in enumerate(chart.administrations)
                if given.time <= self._export
            ],
            "Procedure": [
                {
                    "resourceType": "Procedure",
                    "id": f"{chart.patient}-q{i}",
                    "status": "completed",
                    "code": _PROCEDURE_CODES[done.name],
                    "subject": subject,
                    "encounter": visits[done.encounter],
                    "performedDateTime": self.stamp(done.time),
                }
                for i, done in enumerate(chart.procedures)
                if done.time <= self._export
            ],
        }

    def _period(self, start: int, end: int | None) -> dict[str, str]:
        period = {"start": self.stamp(start)}
        if end is not None and end <= self._export:
            period["end"] = self.stamp(end)
        return period

    def _patient(self, chart: Chart) -> Resource:
        code, race, _ = RACES[chart.race]
        category = (
            _coding(_TERMINOLOGY + "v3-NullFlavor", code, race)
            if code == "UNK"
            else _coding(_CDC_RACE, code, race)
        )
        ethnicity = "Hispanic or Latino" if chart.hispanic else "Not Hispanic or Latino"
        omb = _coding(_CDC_RACE, "2135-2" if chart.hispanic else "2186-5", ethnicity)
        patient: Resource = {
            "resourceType": "Patient",
            "id": chart.patient,
            "extension": [
                _us_core("us-core-race", category, race),
                _us_core("us-core-ethnicity", omb, ethnicity),
            ],
            "identifier": [
                {"system": "https://hospital.example.org/fhir/mrn", "value": chart.patient[4:]}
            ],
            "gender": "female" if chart.female else "male",
            "birthDate": datetime.fromtimestamp(chart.birth, UTC).date().isoformat(),
            "managingOrganization": {"reference": f"Organization/{_ORGANIZATION}"},
        }
        if chart.death is not None:
            patient["deceasedDateTime"] = self.stamp(chart.death)
        return patient

    def _encounter(self, chart: Chart, subject: dict[str, str], visit: Encounter) -> Resource:
        resource: Resource = {
            "resourceType": "Encounter",
            "id": chart.encounter_id(visit.number),
            "status": "finished" if visit.end is not None else "in-progress",
            "class": _coding(_TERMINOLOGY + "v3-ActCode", visit.kind, _CLASSES[visit.kind]),
            "subject": subject,
            "period": self._period(visit.start, visit.end),
            "serviceProvider": {"reference": f"Organization/{_ORGANIZATION}"},
        }
        if visit.kind == STAY:
            code = "EL" if visit.elective else ("EM" if visit.admit_source == "emd" else "UR")
            resource["priority"] = _concept(
                _TERMINOLOGY + "v3-ActPriority", code, _PRIORITIES[code]
            )
        hospitalization: Resource = {}
        if visit.admit_source:
            hospitalization["admitSource"] = _concept(
                _TERMINOLOGY + "admit-source",
                visit.admit_source,
                _ADMIT_SOURCES[visit.admit_source],
            )
        if visit.disposition in _DISPOSITIONS:
            hospitalization["dischargeDisposition"] = _concept(
                _TERMINOLOGY + "discharge-disposition",
                visit.disposition,
                _DISPOSITIONS[visit.disposition],
            )
        elif visit.disposition:
            # HL7's list has no word for another acute hospital; facilities use their own.
            hospitalization["dischargeDisposition"] = _concept(
                _LOCAL, visit.disposition, visit.disposition.capitalize()
            )
        if hospitalization:
            resource["hospitalization"] = hospitalization
        if visit.places:
            resource["location"] = [
                {
                    "location": {"reference": f"Location/{place.location}"},
                    "period": self._period(place.start, place.end),
                }
                for place in visit.places
                if place.start <= self._export
            ]
        else:
            place = "ed" if visit.kind == ED_VISIT else "clinic"
            resource["location"] = [{"location": {"reference": f"Location/{place}"}}]
        return resource

    def _conditions(
        self, chart: Chart, subject: dict[str, str], visits: list[dict[str, str]]
    ) -> list[Resource]:
        resources: list[Resource] = []
        for name, recorded in chart.problems.items():
            if recorded <= self._export:
                resources.append(
                    {
                        "resourceType": "Condition",
                        "id": f"{chart.patient}-c{len(resources)}",
                        "clinicalStatus": _ACTIVE,
                        "verificationStatus": _CONFIRMED,
                        "category": _PROBLEM_LIST,
                        "code": _CONDITION_CODES[name],
                        "subject": subject,
                        "recordedDate": self.stamp(recorded),
                    }
                )
        for visit in chart.encounters:
            if visit.end is None or visit.end + CODING_DAYS * DAY > self._export:
                continue
            for name in visit.diagnoses:
                resources.append(
                    {
                        "resourceType": "Condition",
                        "id": f"{chart.patient}-c{len(resources)}",
                        "clinicalStatus": _ACTIVE,
                        "category": _BILLING,
                        "code": _CONDITION_CODES[name],
                        "subject": subject,
                        "encounter": visits[visit.number],
                    }
                )
        return resources

    def _observations(
        self, chart: Chart, subject: dict[str, str], visits: list[dict[str, str]]
    ) -> list[Resource]:
        resources: list[Resource] = []
        for name, results in chart.measurements.items():
            measure = MEASURES[name]
            category = _LABORATORY if measure.is_lab else _VITAL_SIGNS
            code = _MEASURE_CODES[name]
            for result in results:
                if result.issued > self._export:
                    continue
                resource: Resource = {
                    "resourceType": "Observation",
                    "id": f"{chart.patient}-o{name}-{len(resources)}".replace("_", "-"),
                    "status": "final",
                    "category": category,
                    "code": code,
                    "subject": subject,
                    "encounter": visits[result.encounter],
                    "effectiveDateTime": self.stamp(result.time),
                }
                if measure.is_lab:
                    resource["issued"] = self.stamp(result.issued)
                if measure.unit:
                    resource["valueQuantity"] = _quantity(result.value, measure)
                else:
                    resource["component"] = [
                        {
                            "code": _SYSTOLIC_CODE,
                            "valueQuantity": _quantity(result.value, SYSTOLIC),
                        },
                        {
                            "code": _DIASTOLIC_CODE,
                            "valueQuantity": _quantity(result.second, DIASTOLIC),
                        },
                    ]
                resources.append(resource)
        return resources


def facility() -> dict[str, list[Resource]]:
    """The hospital itself: its organisation and locations."""
    return {"Organization": [_organization()], "Location": [_location(name) for name in LOCATIONS]}


def _coding(system: str, code: str, display: str) -> dict[str, str]:
    return {"system": system, "code": code, "display": display}


def _concept(system: str, code: str, display: str) -> Resource:
    return {"coding": [_coding(system, code, display)]}


def _fixed(value: Any) -> msgspec.Raw:
    """Encoded once, copied into every resource."""
    return msgspec.Raw(msgspec.json.encode(value))


def _quantity(value: float, measure: Measure) -> Resource:
    number = value if measure.digits else int(value)
    return {"value": number, "unit": measure.unit, "system": UCUM, "code": measure.unit}


def _us_core(name: str, category: dict[str, str], text: str) -> Resource:
    return {
        "url": _US_CORE + name,
        "extension": [
            {"url": "ombCategory", "valueCoding": category},
            {"url": "text", "valueString": text},
        ],
    }


def _organization() -> Resource:
    return {
        "resourceType": "Organization",
        "id": _ORGANIZATION,
        "active": True,
        "name": "Simulated hospital",
        "type": [_concept(_TERMINOLOGY + "organization-type", "prov", "Healthcare Provider")],
    }


def _location(name: str) -> Resource:
    text, code, display = LOCATIONS[name]
    return {
        "resourceType": "Location",
        "id": name,
        "status": "active",
        "name": text,
        "type": [_concept(_TERMINOLOGY + "v3-RoleCode", code, display)],
        "managingOrganization": {"reference": f"Organization/{_ORGANIZATION}"},
    }


_OBSERVATION_CATEGORY = _TERMINOLOGY + "observation-category"
_CONDITION_CATEGORY = _TERMINOLOGY + "condition-category"
_LABORATORY = _fixed([_concept(_OBSERVATION_CATEGORY, "laboratory", "Laboratory")])
_VITAL_SIGNS = _fixed([_concept(_OBSERVATION_CATEGORY, "vital-signs", "Vital Signs")])
_PROBLEM_LIST = _fixed([_concept(_CONDITION_CATEGORY, "problem-list-item", "Problem List Item")])
_BILLING = _fixed([_concept(_CONDITION_CATEGORY, "encounter-diagnosis", "Encounter Diagnosis")])
_ACTIVE = _fixed(_concept(_TERMINOLOGY + "condition-clinical", "active", "Active"))
_CONFIRMED = _fixed(_concept(_TERMINOLOGY + "condition-ver-status", "confirmed", "Confirmed"))
_MEASURE_CODES = {n: _fixed(_concept(LOINC, m.loinc, m.display)) for n, m in MEASURES.items()}
_SYSTOLIC_CODE = _fixed(_concept(LOINC, SYSTOLIC.loinc, SYSTOLIC.display))
_DIASTOLIC_CODE = _fixed(_concept(LOINC, DIASTOLIC.loinc, DIASTOLIC.display))
_DRUG_CODES = {n: _fixed(_concept(RXNORM, d[0], d[1])) for n, d in DRUGS.items()}
_DOSAGES = {
    n: _fixed({"dose": {"value": d[2], "unit": d[3], "system": UCUM, "code": d[3]}})
    for n, d in DRUGS.items()
}
_CONDITION_CODES = {n: _fixed(_concept(ICD10CM, c[0], c[1])) for n, c in CONDITIONS.items()}
_PROCEDURE_CODES = {n: _fixed(_concept(SNOMED, c[0], c[1])) for n, c in PROCEDURES.items()}
