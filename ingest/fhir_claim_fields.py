# pyright: strict
"""The fields of FHIR R4 Claim and ClaimResponse that are read; see `fhir_fields` for the others."""

from __future__ import annotations

import msgspec

from tsfm.ingest.fhir_fields import Concept, Fields, Reference


class Money(Fields):
    """Amount; the currency is not read."""

    value: float | None = None


class ClaimInsurance(Fields):
    """Whom a claim is billed to, and whether that was allowed beforehand."""

    focal: bool = False
    coverage: Reference | None = None
    pre_auth_ref: list[str] = msgspec.field(default_factory=list[str])


class SupportingInfo(Fields):
    """Something enclosed with a claim; only its kind is read."""

    category: Concept | None = None


class ClaimItem(Fields):
    """Line of a claim, of which only the encounter is read."""

    encounter: list[Reference] = msgspec.field(default_factory=list[Reference])


class Claim(Fields):
    """Bill sent to a payer, or a question to one beforehand (`use`)."""

    id: str = ""
    status: str = ""
    type: Concept | None = None
    use: str = ""
    patient: Reference | None = None
    created: str | None = None
    insurer: Reference | None = None
    insurance: list[ClaimInsurance] = msgspec.field(default_factory=list[ClaimInsurance])
    supporting_info: list[SupportingInfo] = msgspec.field(default_factory=list[SupportingInfo])
    item: list[ClaimItem] = msgspec.field(default_factory=list[ClaimItem])
    total: Money | None = None


class Payment(Fields):
    """What was paid."""

    amount: Money | None = None


class ClaimResponse(Fields):
    """A payer's answer; a claim may have several. `decision` is R5's, and sent by some servers."""

    status: str = ""
    use: str = ""
    patient: Reference | None = None
    created: str | None = None
    request: Reference | None = None
    outcome: str = ""
    decision: Concept | None = None
    disposition: str = ""
    payment: Payment | None = None
