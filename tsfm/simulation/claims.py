"""Claims for the simulated hospital's stays, and whether their payers deny them.

Some days after a stay has ended and its codes are set, a claim is sent to the patient's payer, and
some weeks later the payer answers. Whether it denies depends on facts that stand on the claim or in
the record by its submission: the payer, the length of the stay, and what should have been enclosed
and is not. A part of the denials is appealed and overturned. Both probabilities are closed forms,
so the true risk of every claim is known, as that of every discharge is in
`tsfm.simulation.hazards`; the sizes of the effects are chosen, not estimated.

A patient's claims have a random generator of their own: with or without claims, the courses and all
other resources are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from tsfm.simulation.chart import DAY, HOUR, STAY, YEAR, Chart, Encounter
from tsfm.simulation.fhir_resources import CODING_DAYS, Resource

PAYERS = {"Medicare": 0.0, "Medicare Advantage": 0.75, "Medicaid": 0.3, "Commercial": 0.45}
"""Payer to its contribution to the log odds of a denial."""

DISCHARGE_SUMMARY, OPERATION_NOTE = "discharge", "attachment"
"""Kinds of enclosures, codes of FHIR's claim information categories."""

CLAIM_TRUTH = pa.schema(
    [
        pa.field("patient_id", pa.string(), nullable=False),  # FHIR id
        pa.field("claim_id", pa.string(), nullable=False),  # FHIR id
        pa.field("encounter_id", pa.string(), nullable=False),  # FHIR id
        pa.field("submitted_time", pa.timestamp("us"), nullable=False),  # UTC
        pa.field("p_denied_first", pa.float64(), nullable=False),
        pa.field("p_denied", pa.float64(), nullable=False),  # and not overturned
        pa.field("denied_first", pa.bool_(), nullable=False),
        pa.field("denied", pa.bool_(), nullable=False),  # in the end, also after the export
        pa.field("answered", pa.bool_(), nullable=False),  # for good, by the export
    ]
)
"""One row a claim in the export."""

_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem/"
_ENCLOSURES = {DISCHARGE_SUMMARY: "Discharge summary", OPERATION_NOTE: "Operation note"}
_OVERTURNED = 0.3  # of the denials
_BASE = -2.75


@dataclass(frozen=True, slots=True)
class Claim:
    """A stay's claim with its true risk and what came of it.

    Attributes:
        encounter: Number of the stay in the patient's chart.
        submitted: Seconds since 1970 UTC.
        payer: Key of `PAYERS`.
        enclosed: Kinds of documents sent with it.
        preauthorized: Whether the payer had allowed a planned stay before it began.
        amount: Total, in dollars.
        p_denied_first: P(the first answer is a denial).
        denied_first: Whether it is one.
        overturned: Whether a second answer undoes the denial.
        answers: Moments of the one or two answers.
    """

    encounter: int
    submitted: int
    payer: str
    enclosed: tuple[str, ...]
    preauthorized: bool
    amount: float
    p_denied_first: float
    denied_first: bool
    overturned: bool
    answers: tuple[int, ...]


def denial_terms(
    payer: str, stay_hours: float, *, no_summary: bool, no_note: bool, no_preauthorization: bool
) -> dict[str, float]:
    """Contributions to the log odds that a claim is denied at first, by name.

    Args:
        payer: Key of `PAYERS`.
        stay_hours: From admission to discharge.
        no_summary: The discharge summary is not enclosed.
        no_note: There was an operation, and its note is not enclosed.
        no_preauthorization: The stay was planned, and not allowed beforehand.
    """
    days = stay_hours / 24.0
    return {
        "base": _BASE,
        "payer": PAYERS[payer],
        "short_stay": 1.0 / (1.0 + math.exp((days - 2.0) / 0.3)),
        "long_stay": 0.9 * math.tanh(max(days - 6.0, 0.0) / 6.0),
        "no_summary": 1.5 * no_summary,
        "no_note": 1.0 * no_note,
        "no_preauthorization": 1.2 * no_preauthorization,
    }


def simulate_claims(rng: np.random.Generator, chart: Chart) -> list[Claim]:
    """Claims of all of a patient's stays that have ended, in order of the stays.

    Args:
        rng: The generator of this patient's claims.
        chart: The patient's whole record.
    """
    insured_privately = bool(rng.random() < 0.6)
    in_advantage_plan = bool(rng.random() < 0.45)
    claims: list[Claim] = []
    for stay in chart.encounters:
        if stay.kind != STAY or stay.end is None:
            continue
        if (stay.start - chart.birth) / YEAR >= 65.0:
            payer = "Medicare Advantage" if in_advantage_plan else "Medicare"
        else:
            payer = "Commercial" if insured_privately else "Medicaid"
        claims.append(_simulate_claim(rng, chart, stay, payer))
    return claims


def _simulate_claim(rng: np.random.Generator, chart: Chart, stay: Encounter, payer: str) -> Claim:
    assert stay.end is not None
    # All draws come first and always: no claim's luck depends on another's facts.
    summary, note, allowed, denial, appeal = rng.random(5)
    waits, size = rng.standard_exponential(3), rng.standard_normal()
    operated = any(done.encounter == stay.number for done in chart.procedures)
    enclosed = [DISCHARGE_SUMMARY] if summary < 0.85 else []
    if operated and note < 0.8:
        enclosed.append(OPERATION_NOTE)
    preauthorized = stay.elective and bool(allowed < 0.8)
    stay_hours = (stay.end - stay.start) / HOUR
    terms = denial_terms(
        payer,
        stay_hours,
        no_summary=DISCHARGE_SUMMARY not in enclosed,
        no_note=operated and OPERATION_NOTE not in enclosed,
        no_preauthorization=stay.elective and not preauthorized,
    )
    p_denied_first = 1.0 / (1.0 + math.exp(-sum(terms.values())))
    denied_first = bool(denial < p_denied_first)
    overturned = denied_first and bool(appeal < _OVERTURNED)
    submitted = stay.end + CODING_DAYS * DAY + int((0.5 + 4.0 * waits[0]) * DAY)
    first = submitted + int((7.0 + 12.0 * waits[1]) * DAY)
    second = first + int((20.0 + 15.0 * waits[2]) * DAY)
    return Claim(
        encounter=stay.number,
        submitted=submitted,
        payer=payer,
        enclosed=tuple(enclosed),
        preauthorized=preauthorized,
        amount=round(2500.0 + 90.0 * stay_hours * math.exp(0.3 * size), 2),
        p_denied_first=p_denied_first,
        denied_first=denied_first,
        overturned=overturned,
        answers=(first, second) if overturned else (first,),
    )


def claim_resources(
    claims: Iterable[Claim], chart: Chart, *, export: int, stamp: Callable[[int], str]
) -> dict[str, list[Resource]]:
    """FHIR R4 Claims and ClaimResponses, as far as they are known at the export.

    Args:
        claims: Of the patient.
        chart: The patient's record.
        export: Seconds since 1970 UTC.
        stamp: From such seconds to a FHIR dateTime.
    """
    found: dict[str, list[Resource]] = {"Claim": [], "ClaimResponse": []}
    for claim in claims:
        if claim.submitted > export:
            continue
        found["Claim"].append(_claim(claim, chart, stamp))
        found["ClaimResponse"] += [
            _response(claim, chart, number, stamp)
            for number, moment in enumerate(claim.answers)
            if moment <= export
        ]
    return found


def claim_truth(claims: Iterable[Claim], chart: Chart, *, export: int) -> list[dict[str, Any]]:
    """Rows of `CLAIM_TRUTH` for the claims that stand in the export."""
    return [
        {
            "patient_id": chart.patient,
            "claim_id": _claim_id(claim, chart),
            "encounter_id": chart.encounter_id(claim.encounter),
            "submitted_time": datetime.fromtimestamp(claim.submitted, UTC).replace(tzinfo=None),
            "p_denied_first": claim.p_denied_first,
            "p_denied": claim.p_denied_first * (1.0 - _OVERTURNED),
            "denied_first": claim.denied_first,
            "denied": claim.denied_first and not claim.overturned,
            "answered": claim.answers[-1] <= export,
        }
        for claim in claims
        if claim.submitted <= export
    ]


def claim_truth_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """The truth of all claims as a table."""
    return pa.Table.from_pylist(list(rows), schema=CLAIM_TRUTH)


def _claim_id(claim: Claim, chart: Chart) -> str:
    return f"{chart.patient}-b{claim.encounter}"


def _shared(claim: Claim, chart: Chart) -> Resource:
    return {
        "status": "active",
        "type": {"coding": [{"system": _TERMINOLOGY + "claim-type", "code": "institutional"}]},
        "use": "claim",
        "patient": {"reference": f"Patient/{chart.patient}"},
        "insurer": {"display": claim.payer},
    }


def _claim(claim: Claim, chart: Chart, stamp: Callable[[int], str]) -> Resource:
    stay = chart.encounters[claim.encounter]
    assert stay.end is not None
    insurance: Resource = {
        "sequence": 1,
        "focal": True,
        "coverage": {"display": f"{claim.payer} plan"},
    }
    if claim.preauthorized:
        insurance["preAuthRef"] = [f"PA-{chart.patient}-{claim.encounter}"]
    resource: Resource = {
        "resourceType": "Claim",
        "id": _claim_id(claim, chart),
        **_shared(claim, chart),
        "billablePeriod": {"start": stamp(stay.start), "end": stamp(stay.end)},
        "created": stamp(claim.submitted),
        "provider": {"reference": "Organization/sim-hospital"},
        "priority": {"coding": [{"system": _TERMINOLOGY + "processpriority", "code": "normal"}]},
        "insurance": [insurance],
        "item": [
            {
                "sequence": 1,
                "productOrService": {"text": "Inpatient stay"},
                "encounter": [{"reference": f"Encounter/{chart.encounter_id(claim.encounter)}"}],
            }
        ],
        "total": {"value": claim.amount, "currency": "USD"},
    }
    if claim.enclosed:
        system = _TERMINOLOGY + "claiminformationcategory"
        resource["supportingInfo"] = [
            {
                "sequence": number,
                "category": {"coding": [{"system": system, "code": kind}]},
                "valueString": _ENCLOSURES[kind],
            }
            for number, kind in enumerate(claim.enclosed, 1)
        ]
    return resource


def _response(claim: Claim, chart: Chart, number: int, stamp: Callable[[int], str]) -> Resource:
    denied = claim.denied_first and number == 0
    words = "Claim denied" if denied else "Claim paid as per contract"
    resource: Resource = {
        "resourceType": "ClaimResponse",
        "id": f"{_claim_id(claim, chart)}-{number}",
        **_shared(claim, chart),
        "created": stamp(claim.answers[number]),
        "request": {"reference": f"Claim/{_claim_id(claim, chart)}"},
        "outcome": "complete",
        "disposition": "Denial overturned on appeal" if number else words,
    }
    if not denied:
        resource["payment"] = {
            "type": {"coding": [{"system": _TERMINOLOGY + "ex-paymenttype", "code": "complete"}]},
            "amount": {"value": round(0.8 * claim.amount, 2), "currency": "USD"},
        }
    return resource
