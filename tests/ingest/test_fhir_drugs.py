"""Orders, doses, dispenses as events."""

from __future__ import annotations

from typing import Any

import pytest

from tsfm.ingest.fhir_fields import stable_id

from .fhir_rows import MIMIC, OF_PATIENT, OF_STAY, PATIENT, STAY, concept, day, make


def test_medications_are_named_by_rxnorm_reference_contained_or_mix(ingest_rows) -> None:
    rxnorm = concept("http://www.nlm.nih.gov/research/umls/rxnorm", "314076", "lisinopril")
    order = {"status": "active", "authoredOn": "2020-01-02T08:00:00Z", **OF_STAY}
    names = f"{MIMIC}/CodeSystem/mimic-medication-"
    numbered = make(
        "Medication",
        id="n",
        code=concept(f"{names}ndc", "51079030020"),
        identifier=[
            {"system": f"{names}formulary-drug-cd", "value": "CATA2"},
            {"system": f"{names}name", "value": "CloniDINE"},
        ],
    )
    mix = make(
        "Medication",
        id="m",
        ingredient=[
            {"itemReference": {"reference": "Medication/n"}},
            {"itemCodeableConcept": {"text": "Saline"}},
        ],
    )
    inside = {"resourceType": "Medication", "id": "in", "code": {"text": "Aspirin"}}
    dose = [{"doseAndRate": [{"doseQuantity": {"value": 30, "unit": "mg"}}]}]
    given = {
        "status": "completed",
        "effectiveDateTime": "2020-01-02T09:00:00Z",
        "context": {"reference": "Encounter/e"},
        **OF_PATIENT,
    }
    _, events, _ = ingest_rows(
        make("MedicationRequest", id="1", medicationCodeableConcept=rxnorm, **order),
        make(
            "MedicationRequest", id="2", medicationReference={"reference": "Medication/m"}, **order
        ),
        make(
            "MedicationRequest",
            id="3",
            contained=[{"resourceType": "ValueSet", "id": "in", "code": 3}, inside],
            medicationReference={"reference": "#in"},
            dosageInstruction=dose,
            **order,
        ),
        make(
            "MedicationAdministration",
            medicationCodeableConcept=concept(f"{names}formulary-drug-cd", "CATA2"),
            dosage={
                "dose": {"value": 2, "unit": "TAB"},
                "method": concept(f"{names}method", "Flushed"),
            },
            **given,
        ),
        PATIENT,
        STAY,
        numbered,
        mix,
    )
    assert "MEDICATION//RXNORM//314076//ORDERED" in events
    assert "MEDICATION//CloniDINE + Saline//ORDERED" in events
    aspirin = events["MEDICATION//Aspirin//ORDERED"]
    assert (aspirin["numeric_value"], aspirin["text_value"]) == (30.0, "mg")
    dosed = events["MEDICATION//CloniDINE//Flushed"]
    assert (dosed["numeric_value"], dosed["encounter_id"]) == (2.0, stable_id("e"))


def test_icu_infusions_have_rate_at_the_start_and_amount_at_the_end(ingest_rows) -> None:
    row = make(
        "MedicationAdministration",
        meta={"profile": [f"{MIMIC}/StructureDefinition/mimic-medication-administration-icu"]},
        status="completed",
        effectivePeriod={"start": "2020-01-02T08:00:00Z", "end": "2020-01-02T10:00:00Z"},
        medicationCodeableConcept=concept(f"{MIMIC}/CodeSystem/mimic-medication-icu", "225158"),
        dosage={
            "dose": {"value": 100, "unit": "ml"},
            "rateQuantity": {"value": 50, "unit": "mL/hour"},
        },
        **OF_PATIENT,
    )
    _, events, _ = ingest_rows(PATIENT, row)
    start, end = events["INFUSION_START//225158"], events["INFUSION_END//225158"]
    assert (start["numeric_value"], end["numeric_value"]) == (50.0, 100.0)
    assert end["time"] == end["available_time"] == day("2020-01-02T10:00")


@pytest.mark.parametrize(
    ("fields", "time", "available"),
    [
        ({"whenHandedOver": "2020-01-03T00:00:00Z"}, "2020-01-03", "2020-01-03"),
        (
            {"authorizingPrescription": [{"reference": "MedicationRequest/r"}]},
            "2020-01-02T08:00",
            "2020-01-02T08:00",
        ),
        ({"context": {"reference": "Encounter/e"}}, "2020-01-01T10:00", "2020-01-05T12:00"),
    ],
)
def test_a_dispense_takes_the_best_time_there_is(
    ingest_rows, fields: dict[str, Any], time: str, available: str
) -> None:
    drug = {"medicationCodeableConcept": {"text": "Aspirin"}, **OF_PATIENT}
    order = make("MedicationRequest", id="r", authoredOn="2020-01-02T08:00:00Z", **drug)
    _, events, _ = ingest_rows(make("MedicationDispense", **drug, **fields), order, PATIENT, STAY)
    row = events["MEDICATION//Aspirin//DISPENSED"]
    assert (row["time"], row["available_time"]) == (day(time), day(available))


def test_an_icu_bolus_has_its_amount_at_its_end_and_no_rate(ingest_rows) -> None:
    row = make(
        "MedicationAdministration",
        meta={"profile": [f"{MIMIC}/StructureDefinition/mimic-medication-administration-icu"]},
        status="completed",
        effectiveDateTime="2020-01-02T08:00:00Z",
        medicationCodeableConcept=concept(f"{MIMIC}/CodeSystem/mimic-medication-icu", "225158"),
        dosage={"dose": {"value": 100, "unit": "ml"}},
        **OF_PATIENT,
    )
    _, events, _ = ingest_rows(PATIENT, row)
    start, end = events["INFUSION_START//225158"], events["INFUSION_END//225158"]
    assert (start["numeric_value"], end["numeric_value"]) == (None, 100.0)
    assert start["time"] == end["time"] == day("2020-01-02T08:00")
