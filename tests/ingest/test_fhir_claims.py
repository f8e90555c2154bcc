"""Claims and answers as events: what they say, when they were known, and which belong together."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from tsfm.ingest.fhir_claim_fields import ClaimResponse
from tsfm.ingest.fhir_claims import decision_of

from .fhir_rows import PATIENT, STAY, concept, day, is_balanced, make

OF_PATIENT = {"patient": {"reference": "Patient/p"}}
CLAIM: dict[str, Any] = {
    "status": "active",
    "type": concept("http://terminology.hl7.org/CodeSystem/claim-type", "institutional"),
    "use": "claim",
    **OF_PATIENT,
    "created": "2020-01-12T09:00:00+01:00",
    "insurer": {"display": "Medicare"},
    "insurance": [{"sequence": 1, "focal": True, "coverage": {"display": "Plan A"}}],
    "item": [{"sequence": 1, "encounter": [{"reference": "Encounter/e"}]}],
    "total": {"value": 1234.5, "currency": "USD"},
}
RESPONSE: dict[str, Any] = {
    "status": "active",
    "use": "claim",
    **OF_PATIENT,
    "created": "2020-02-01T10:00:00Z",
    "request": {"reference": "Claim/claim"},
    "outcome": "complete",
    "disposition": "Claim denied",
}


def claim(**fields: Any) -> dict[str, Any]:
    return make("Claim", **{**CLAIM, **fields})


def response(**fields: Any) -> dict[str, Any]:
    return make("ClaimResponse", **{**RESPONSE, **fields})


def test_a_claim_is_an_event_of_its_stay_at_its_submission(ingest_rows) -> None:
    summary, events, _ = ingest_rows(PATIENT, STAY, claim())
    row = events["CLAIM//claim//institutional//Medicare"]
    assert row["time"] == row["available_time"] == day("2020-01-12T08:00")
    assert row["encounter_id"] == events["HOSPITAL_ADMISSION//IMP//UNK"]["encounter_id"]
    assert row["numeric_value"] == 1234.5
    assert summary.quarantined == {}
    assert is_balanced(summary)


def test_a_date_of_submission_is_known_at_the_end_of_its_day(ingest_rows) -> None:
    _, events, _ = ingest_rows(PATIENT, STAY, claim(created="2020-01-12"), time_zone="UTC")
    row = events["CLAIM//claim//institutional//Medicare"]
    assert row["time"] == day("2020-01-12")
    assert row["available_time"] == day("2020-01-12T23:59:59.999999")


def test_what_is_enclosed_is_told_once_a_kind(ingest_rows) -> None:
    kind = concept("http://terminology.hl7.org/CodeSystem/claiminformationcategory", "discharge")
    enclosed = [{"sequence": n, "category": kind} for n in (1, 2)]
    paid_for = [{"sequence": 1, "focal": True, "coverage": {}, "preAuthRef": ["X-1"]}]
    _, events, frame = ingest_rows(
        PATIENT, STAY, claim(supportingInfo=enclosed, insurance=paid_for)
    )
    told = frame.filter(pl.col("code").str.starts_with("CLAIM_INFORMATION"))
    assert sorted(told["code"]) == ["CLAIM_INFORMATION//PREAUTHORIZATION",
                                    "CLAIM_INFORMATION//discharge"]  # fmt: skip
    assert set(told["text_value"]) == {
        events["CLAIM//claim//institutional//Medicare"]["text_value"]
    }
    assert not frame.select(pl.any_horizontal(pl.col(pl.String) == "X-1").any()).item()


def test_an_answer_is_known_when_it_was_made_and_names_its_claim(ingest_rows) -> None:
    paid = {"amount": {"value": 900.0, "currency": "USD"}}
    _, events, _ = ingest_rows(
        response(id="2", created="2020-03-01T10:00:00Z", disposition="Denial overturned",
                 payment=paid, request={"reference": "https://payer.example/fhir/Claim/claim"}),
        response(id="1"),
        PATIENT, STAY, claim(), claim(id="other", use="preauthorization"),
    )  # fmt: skip
    first = events["CLAIM_RESPONSE//claim//complete//DENIED"]
    second = events["CLAIM_RESPONSE//claim//complete//APPROVED"]
    assert first["time"] == first["available_time"] == day("2020-02-01T10:00")
    assert second["available_time"] == day("2020-03-01T10:00")
    assert (first["numeric_value"], second["numeric_value"]) == (None, 900.0)
    key = events["CLAIM//claim//institutional//Medicare"]["text_value"]
    assert first["text_value"] == second["text_value"] == key
    assert events["CLAIM//preauthorization//institutional//Medicare"]["text_value"] != key
    assert "claim" not in key


@pytest.mark.parametrize(
    ("payer", "expected"),
    [
        ({"insurer": {"reference": "Organization/1"}}, "Plan A"),
        ({"insurer": {"reference": "Organization/1"},
          "insurance": [{"coverage": {"display": "B"}},
                        {"focal": True, "coverage": {"display": "A"}}]}, "A"),
        ({"insurer": {}, "insurance": []}, "UNK"),
    ],
)  # fmt: skip
def test_the_payer_is_the_insurer_else_the_plan(
    ingest_rows, payer: dict[str, Any], expected: str
) -> None:
    _, events, _ = ingest_rows(PATIENT, STAY, claim(**payer))
    assert f"CLAIM//claim//institutional//{expected}" in events


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (claim(status="cancelled"), "not_done"),
        (claim(status="draft"), "not_done"),
        (claim(status="entered-in-error"), "entered_in_error"),
        (claim(created=None), "no_time"),
        (claim(created="soon"), "bad_time"),
        (claim(patient={"reference": "Patient/x"}), "unknown_patient"),
        (claim(total={"value": 1e300}), "value_out_of_range"),
        (claim(total={"value": "much"}), "bad_field"),
        (response(status="cancelled"), "not_done"),
        (response(created=None), "no_time"),
        (response(patient=None), "no_subject"),
    ],
)
def test_what_can_not_be_used_is_set_aside_whole(
    ingest_rows, row: dict[str, Any], reason: str
) -> None:
    summary, _, frame = ingest_rows(PATIENT, STAY, row)
    assert summary.quarantined == {reason: 1}
    assert not frame["code"].str.starts_with("CLAIM").any()


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Claim settled as per contract.", "APPROVED"),
        ("PAID", "APPROVED"),
        ("Approved as submitted", "APPROVED"),
        ("Denied: not medically necessary", "DENIED"),
        ("Service not covered by plan", "DENIED"),
        ("Non-covered service", "DENIED"),
        ("Claim rejected", "DENIED"),
        ("Denial reversed on appeal", "APPROVED"),
        ("Overturned: denial of May", "APPROVED"),
        ("Payment recouped", "DENIED"),
        ("Reversal of payment", "DENIED"),
        ("Paid in part", "PARTIAL"),
        ("Partially approved", "PARTIAL"),
        ("Pending medical review", "PENDING"),
        ("Not yet paid", "PENDING"),
        ("Claim not denied", "UNK"),
        ("See letter", "UNK"),
        ("", "UNK"),
        ("Discovered late", "UNK"),
    ],
)
def test_dispositions_are_read_and_what_is_not_understood_is_no_yes(
    sentence: str, expected: str
) -> None:
    assert decision_of(ClaimResponse(outcome="complete", disposition=sentence)) == expected


def test_a_queued_answer_is_pending_and_a_coded_decision_goes_before_words(ingest_rows) -> None:
    queued = ClaimResponse(outcome="queued", disposition="Claim approved for processing")
    assert decision_of(queued) == "PENDING"
    coded = concept("http://terminology.hl7.org/CodeSystem/claim-decision", "denied")
    _, events, _ = ingest_rows(
        PATIENT, STAY, claim(), response(disposition="Paid per contract", decision=coded)
    )
    assert "CLAIM_RESPONSE//claim//complete//DENIED" in events


def test_an_answer_without_a_request_is_kept_without_a_key(ingest_rows) -> None:
    _, events, _ = ingest_rows(PATIENT, response(request=None, outcome="error", disposition=""))
    assert events["CLAIM_RESPONSE//claim//error//UNK"]["text_value"] is None
