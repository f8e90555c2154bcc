"""Charts written as a FHIR R4 bulk export: NDJSON files by resource type and their manifest.

Stamps are the facility's local time with the offset of that moment, so both passes through the hour
that repeats in autumn are told apart. Nothing later than the export (`transactionTime`) is written:
a result not yet released, a stay not yet over, codes not yet assigned. Billing diagnoses carry no
date of their own, as in real exports; problem-list entries do.

`FhirWriter` knows resources and files, not how a course comes about. The parts of a resource that
never change are encoded once.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
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

RESOURCE_TYPES = (
    "Organization",
    "Location",
    "Patient",
    "Encounter",
    "Condition",
    "Observation",
    "MedicationRequest",
    "MedicationAdministration",
    "Procedure",
)
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

_encode = msgspec.json.Encoder().encode


class FhirWriter:
    """Writes charts as NDJSON; use as a context manager, then call `finish`.

    Args:
        folder: Created; files are `<Type>.<part>.ndjson`.
        export: `transactionTime`, seconds since 1970 UTC.
        zone: The facility's time zone.
        patients_per_part: Patients after which every type starts a new file.
    """

    def __init__(
        self, folder: Path, *, export: int, zone: ZoneInfo, patients_per_part: int = 2000
    ) -> None:
        """Create the folder and write the facility itself."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.counts: Counter[str] = Counter()
        self._export = export
        self._zone = zone
        self._patients_per_part = patients_per_part
        self._n_patients = 0
        self._part = 0
        self._files: dict[str, BinaryIO] = {}
        self._output: dict[str, int] = {}
        self._write("Organization", [_organization()])
        self._write("Location", [_location(name) for name in LOCATIONS])

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files, also after a failure."""
        self._close()

    def add(self, chart: Chart) -> None:
        """Write one patient's resources, as far as they are known at the export."""
        if self._n_patients and self._n_patients % self._patients_per_part == 0:
            self._close()
            self._part += 1
        self._n_patients += 1
        subject = {"reference": f"Patient/{chart.patient}"}
        visits = [
            {"reference": f"Encounter/{chart.encounter_id(e.number)}"} for e in chart.encounters
        ]
        self._write("Patient", [self._patient(chart)])
        self._write("Encounter", [self._encounter(chart, subject, e) for e in chart.encounters])
        self._write("Condition", self._conditions(chart, subject, visits))
        self._write("Observation", self._observations(chart, subject, visits))
        self._write(
            "MedicationRequest",
            [
                {
                    "resourceType": "MedicationRequest",
                    "id": f"{chart.patient}-r{i}",
                    "status": "completed",
                    "intent": "order",
                    "medicationCodeableConcept": _DRUG_CODES[order.name],
                    "subject": subject,
                    "encounter": visits[order.encounter],
                    "authoredOn": self._stamp(order.time),
                }
                for i, order in enumerate(chart.orders)
                if order.time <= self._export
            ],
        )
        self._write(
            "MedicationAdministration",
            [
                {
                    "resourceType": "MedicationAdministration",
                    "id": f"{chart.patient}-a{i}",
                    "status": "completed",
                    "medicationCodeableConcept": _DRUG_CODES[given.name],
                    "subject": subject,
                    "context": visits[given.encounter],
                    "effectiveDateTime": self._stamp(given.time),
                    "dosage": _DOSAGES[given.name],
                }
                for i, given in enumerate(chart.administrations)
                if given.time <= self._export
            ],
        )
        self._write(
            "Procedure",
            [
                {
                    "resourceType": "Procedure",
                    "id": f"{chart.patient}-q{i}",
                    "status": "completed",
                    "code": _PROCEDURE_CODES[done.name],
                    "subject": subject,
                    "encounter": visits[done.encounter],
                    "performedDateTime": self._stamp(done.time),
                }
                for i, done in enumerate(chart.procedures)
                if done.time <= self._export
            ],
        )

    def finish(self) -> Path:
        """Close the files and write `manifest.json` as a bulk-data server answers.

        Returns:
            Path of the manifest.
        """
        self._close()
        base = "https://hospital.example.org/fhir"
        manifest = {
            "transactionTime": self._stamp(self._export),
            "request": f"{base}/$export?_outputFormat=application/fhir+ndjson",
            "requiresAccessToken": False,
            "output": [
                {
                    "type": name.partition(".")[0],
                    "url": f"{base}/bulk/{name}",
                    "count": count,
                }
                for name, count in self._output.items()
            ],
            "error": [],
        }
        path = self.folder / "manifest.json"
        path.write_text(json.dumps(manifest, indent=2) + "\n")
        return path

    def _write(self, kind: str, resources: list[dict[str, Any]]) -> None:
        if not resources:
            return
        file = self._files.get(kind)
        name = f"{kind}.{self._part:03d}.ndjson"
        if file is None:
            file = self._files[kind] = (self.folder / name).open("wb", buffering=1 << 20)
            self._output[name] = 0
        file.write(b"\n".join(map(_encode, resources)) + b"\n")
        self._output[name] += len(resources)
        self.counts[kind] += len(resources)

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _stamp(self, time: int) -> str:
        return datetime.fromtimestamp(time, self._zone).isoformat()

    def _period(self, start: int, end: int | None) -> dict[str, str]:
        period = {"start": self._stamp(start)}
        if end is not None and end <= self._export:
            period["end"] = self._stamp(end)
        return period

    def _patient(self, chart: Chart) -> dict[str, Any]:
        code, race, _ = RACES[chart.race]
        category = (
            _coding(_TERMINOLOGY + "v3-NullFlavor", code, race)
            if code == "UNK"
            else _coding(_CDC_RACE, code, race)
        )
        ethnicity = "Hispanic or Latino" if chart.hispanic else "Not Hispanic or Latino"
        omb = _coding(_CDC_RACE, "2135-2" if chart.hispanic else "2186-5", ethnicity)
        patient: dict[str, Any] = {
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
            patient["deceasedDateTime"] = self._stamp(chart.death)
        return patient

    def _encounter(self, chart: Chart, subject: dict[str, str], visit: Encounter) -> dict[str, Any]:
        resource: dict[str, Any] = {
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
        hospitalization: dict[str, Any] = {}
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
    ) -> list[dict[str, Any]]:
        resources: list[dict[str, Any]] = []
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
                        "recordedDate": self._stamp(recorded),
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
    ) -> list[dict[str, Any]]:
        resources: list[dict[str, Any]] = []
        for name, results in chart.measurements.items():
            measure = MEASURES[name]
            category = _LABORATORY if measure.is_lab else _VITAL_SIGNS
            code = _MEASURE_CODES[name]
            for result in results:
                if result.issued > self._export:
                    continue
                resource: dict[str, Any] = {
                    "resourceType": "Observation",
                    "id": f"{chart.patient}-o{name}-{len(resources)}".replace("_", "-"),
                    "status": "final",
                    "category": category,
                    "code": code,
                    "subject": subject,
                    "encounter": visits[result.encounter],
                    "effectiveDateTime": self._stamp(result.time),
                }
                if measure.is_lab:
                    resource["issued"] = self._stamp(result.issued)
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


def _coding(system: str, code: str, display: str) -> dict[str, str]:
    return {"system": system, "code": code, "display": display}


def _concept(system: str, code: str, display: str) -> dict[str, Any]:
    return {"coding": [_coding(system, code, display)]}


def _fixed(value: Any) -> msgspec.Raw:
    """Encoded once, copied into every resource."""
    return msgspec.Raw(_encode(value))


def _quantity(value: float, measure: Measure) -> dict[str, Any]:
    number = value if measure.digits else int(value)
    return {"value": number, "unit": measure.unit, "system": UCUM, "code": measure.unit}


def _us_core(name: str, category: dict[str, str], text: str) -> dict[str, Any]:
    return {
        "url": _US_CORE + name,
        "extension": [
            {"url": "ombCategory", "valueCoding": category},
            {"url": "text", "valueString": text},
        ],
    }


def _organization() -> dict[str, Any]:
    return {
        "resourceType": "Organization",
        "id": _ORGANIZATION,
        "active": True,
        "name": "Simulated hospital",
        "type": [_concept(_TERMINOLOGY + "organization-type", "prov", "Healthcare Provider")],
    }


def _location(name: str) -> dict[str, Any]:
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
