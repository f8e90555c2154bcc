"""Servers: one id on two of them is two resources, and is refused before they become one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tsfm.errors import FormatError
from tsfm.ingest.fhir_addresses import Addresses, server_of
from tsfm.ingest.fhir_ndjson import ingest_fhir

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
    "a deletion": [
        bundle((f"{A}/Patient/p", PATIENT)),
        bundle((f"{A}/Observation/o", of("Patient/p"))),
        {
            "resourceType": "Bundle",
            "entry": [{"request": {"method": "DELETE", "url": f"{B}/Observation/o"}}],
        },
    ],
    "a deletion's address": [
        bundle((f"{A}/Patient/p", PATIENT)),
        {
            "resourceType": "Bundle",
            "type": "history",
            "entry": [
                {
                    "fullUrl": f"{B}/Patient/p",
                    "request": {"method": "DELETE", "url": "Patient/p"},
                }
            ],
        },
    ],
    "two paths of one host": [
        bundle((f"{A}/north/Patient/p", PATIENT)),
        bundle((f"{A}/south/Patient/p", PATIENT)),
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


def test_the_error_names_the_file_of_the_second_address(tmp_path: Path) -> None:
    src = tmp_path / "src"
    for name, server in (("a", A), ("b", B)):
        (src / name).mkdir(parents=True)
        text = json.dumps(bundle((f"{server}/Patient/p", PATIENT)))
        (src / name / "Patient.ndjson").write_text(text + "\n")
    with pytest.raises(FormatError) as caught:
        ingest_fhir(src, tmp_path / "out", progress=False)
    assert (caught.value.code, caught.value.place) == ("mixed_servers", "b/Patient.ndjson")


def at_b(*fields: str) -> dict[str, Any]:
    """References to the patient, the stay or the medication of that id at another server."""
    kinds = {
        "subject": "Patient/p",
        "encounter": "Encounter/e",
        "medicationReference": "Medication/m",
    }
    return {name: {"reference": f"{B}/{kinds[name]}"} for name in fields}


ORDER = make(
    "MedicationRequest",
    authoredOn="2020-01-02T10:00:00Z",
    medicationReference={"reference": "Medication/m"},
    **OF_STAY,
)
W_AT_B = {"location": {"reference": f"{B}/Location/w"}, "period": {"start": "2020-01-02T10:00:00Z"}}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("row", "quarantined", "code"),
    [
        ({**of("Patient/p"), **at_b("subject")}, {"unknown_patient": 1}, "LAB"),
        ({**STAY, "id": "f", **at_b("subject")}, {"unknown_patient": 1}, "HOSPITAL"),
        ({**of("Patient/p"), **at_b("encounter")}, {}, ""),
        ({**ORDER, **at_b("medicationReference")}, {"no_code": 1}, "MEDICATION"),
        ({**STAY, "id": "f", "location": [W_AT_B]}, {}, "TRANSFER_TO//Ward 7"),
    ],
    ids=["patient", "patient of a stay", "stay", "medication", "ward"],
)
def test_a_reference_to_another_server_leads_nowhere_and_is_told(
    ingest_rows, row: dict[str, Any], quarantined: dict[str, int], code: str, swapped: bool
) -> None:
    own = bundle(
        (f"{A}/Patient/p", PATIENT),
        (f"{A}/Encounter/e", {**STAY, "class": {"code": "AMB"}}),
        (f"{A}/Medication/m", make("Medication", id="m", code=concept("x", "1"))),
        (f"{A}/Location/w", make("Location", id="w", name="Ward 7")),
    )
    summary, _, frame = ingest_rows(*([row, own] if swapped else [own, row]))
    assert summary.quarantined == quarantined
    assert not code or not frame["code"].str.starts_with(code).any()
    assert any("1 resources are referred to at another server" in note for note in summary.notes)
    in_vain = any("1 references to encounters that are not" in note for note in summary.notes)
    assert in_vain == (not code)
    assert is_balanced(summary)


def test_where_nothing_says_on_which_server_a_resource_is_a_reference_means_it(ingest_rows) -> None:
    summary, _, frame = ingest_rows(PATIENT, of(f"{A}/Patient/p"), of(f"{A}/Patient/p", "o2"))
    assert summary.quarantined == {}
    assert frame["code"].str.starts_with("LAB").sum() == 2


def test_the_error_names_the_servers_and_no_patient(ingest_rows) -> None:
    rows = (moved(STAY, subject="http://u:pw@a.example/x/Patient/1234"),
            moved(LATER, subject="http://b.example/y/Patient/1234"))  # fmt: skip
    with pytest.raises(FormatError) as caught:
        ingest_rows({**PATIENT, "id": "1234"}, *rows)
    assert "a.example and b.example" in str(caught.value)
    assert caught.value.place == "references to Patient"
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
    addresses.add("http://a.example/Patient/1", "Patient/1", "a.json")
    with pytest.raises(FormatError) as caught:
        addresses.add("http://<b> 1950/Patient/1", "Patient/1", "b.json")
    assert "1950" not in json.dumps(str(caught.value))
