"""Servers: one id on two of them is two resources, and is refused before they become one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tsfm.errors import FormatError
from tsfm.ingest.fhir_addresses import Addresses, server_of

from .fhir_rows import OF_STAY, PATIENT, STAY, concept, is_balanced, make, observation

A, B = "http://a.example/fhir", "http://b.example/fhir"


def bundle(*entries: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """A Bundle of resources, each at its address."""
    return {
        "resourceType": "Bundle",
        "type": "collection",
        "entry": [{"fullUrl": url, "resource": row} for url, row in entries],
    }


def of(reference: str, id: str = "o", **fields: Any) -> dict[str, Any]:
    """A measurement of a patient as it is referred to."""
    return observation(id=id, subject={"reference": reference}, valueInteger=1, **fields)


def moved(row: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A resource with other references."""
    return {**row, **{name: {"reference": text} for name, text in fields.items()}}


E_AT_B = {"reference": f"{B}/Encounter/e"}
LATER = {**STAY, "id": "f", "period": {"start": "2020-02-01", "end": "2020-02-02"}}
MIXED = {
    "two bundles": [
        bundle((f"{A}/Patient/p", PATIENT)),
        bundle((f"{B}/Patient/p", {**PATIENT, "birthDate": "2001-01-01"})),
    ],
    "bundles of measurements": [
        PATIENT,
        bundle((f"{A}/Observation/o", of("Patient/p"))),
        bundle((f"{B}/Observation/o", of("Patient/p"))),
    ],
    "references of stays": [
        PATIENT,
        moved(STAY, subject=f"{A}/Patient/p"),
        moved(LATER, subject=f"{B}/Patient/p"),
    ],
    "references of measurements": [
        PATIENT,
        of(f"{A}/Patient/p/_history/2"),
        of(f"{B}/Patient/p", "o2"),
    ],
    "a stay's address and a reference": [
        PATIENT,
        bundle((f"{A}/Encounter/e", STAY)),
        of("Patient/p", encounter=E_AT_B),
    ],
    "a ward": [
        PATIENT,
        bundle((f"{A}/Location/w", make("Location", id="w", name="ICU"))),
        {
            **STAY,
            "location": [
                {
                    "location": {"reference": f"{B}/Location/w"},
                    "period": {"start": "2020-01-02T10:00:00Z"},
                }
            ],
        },
    ],
    "a medication": [
        PATIENT,
        bundle((f"{A}/Medication/m", make("Medication", id="m", code=concept("x", "1")))),
        make(
            "MedicationRequest",
            authoredOn="2020-01-02T10:00:00Z",
            medicationReference={"reference": f"{B}/Medication/m"},
            **OF_STAY,
        ),
    ],
    "a deletion": [
        bundle((f"{A}/Patient/p", PATIENT)),
        bundle((f"{A}/Observation/o", of("Patient/p"))),
        {
            "resourceType": "Bundle",
            "entry": [{"request": {"method": "DELETE", "url": f"{B}/Observation/o"}}],
        },
    ],
    "two paths of one host": [
        bundle((f"{A}/north/Patient/p", PATIENT)),
        moved(STAY, subject=f"{A}/south/Patient/p"),
    ],
}


@pytest.mark.parametrize("rows", MIXED.values(), ids=MIXED.keys())
@pytest.mark.parametrize("swapped", [False, True])
def test_one_id_on_two_servers_is_refused(
    ingest_rows, tmp_path: Path, rows: list[dict[str, Any]], swapped: bool
) -> None:
    with pytest.raises(FormatError) as caught:
        ingest_rows(*(reversed(rows) if swapped else rows))
    assert caught.value.code == "mixed_servers"
    assert "Ingest each server's export on its own" in str(caught.value)
    assert not (tmp_path / "out" / "data").exists()


def test_the_error_names_the_servers_and_no_patient(ingest_rows) -> None:
    rows = (moved(STAY, subject="http://u:pw@a.example/x/Patient/1234"),
            moved(LATER, subject="http://b.example/y/Patient/1234"))  # fmt: skip
    with pytest.raises(FormatError) as caught:
        ingest_rows({**PATIENT, "id": "1234"}, *rows)
    assert "a.example and b.example" in str(caught.value)
    assert caught.value.place == "Patient"
    assert not any(text in str(caught.value) for text in ("1234", "pw", "/x", "/y"))


def test_one_server_in_all_its_spellings_is_one(ingest_rows) -> None:
    spellings = [
        "Patient/p",
        "urn:uuid:p",
        f"{A}/Patient/p",
        "https://A.EXAMPLE/fhir/Patient/p/_history/3",
        f"{A}//Patient/p",
    ]
    rows = [of(text, str(n)) for n, text in enumerate(spellings)]
    summary, _, frame = ingest_rows(
        bundle((f"{A}/Patient/p", PATIENT), ("urn:uuid:e", STAY), ("urn:uuid:0c3a", LATER)),
        bundle((f"{A}/Patient/p", PATIENT)),
        *rows,
    )
    assert summary.quarantined == {"duplicate_resource": 1}
    assert frame["code"].str.starts_with("LAB").sum() == len(spellings)
    assert is_balanced(summary)


def test_servers_that_share_no_id_are_one_source(ingest_rows) -> None:
    summary, _, frame = ingest_rows(
        bundle((f"{A}/Patient/p", PATIENT), (f"{A}/Encounter/e", STAY)),
        bundle((f"{B}/Patient/q", {**PATIENT, "id": "q"})),
        of(f"{B}/Patient/q"),
    )
    assert frame["subject_id"].n_unique() == 2
    assert summary.quarantined == {}


def test_a_reference_out_of_the_source_tells_nothing_of_its_servers(ingest_rows) -> None:
    summary, _, _ = ingest_rows(PATIENT, of(f"{A}/Patient/x"), of(f"{B}/Patient/x", "o2"))
    assert summary.quarantined == {"unknown_patient": 2}


@pytest.mark.parametrize(
    ("address", "server"),
    [
        ("http://a.example/Patient/1", "a.example"),
        ("HTTPS://a.example:8443/x/Y/Patient/1", "a.example:8443/x/Y"),
        ("http://a.example", ""),
        ("http://a.example/documents/1", ""),
        ("ftp://a.example/Patient/1", ""),
        ("://a/Patient/1", ""),
        ("", ""),
    ],
)
def test_the_base_of_an_address_is_its_server(address: str, server: str) -> None:
    assert server_of(address, "Patient") == server


def test_what_is_no_name_of_a_server_is_not_shown() -> None:
    addresses = Addresses()
    addresses.add("http://a.example/Patient/1", "Patient/1")
    with pytest.raises(FormatError) as caught:
        addresses.find("http://<b> 1950/Patient/1", "Patient", {"Patient/1"})
    assert "1950" not in json.dumps(str(caught.value))
