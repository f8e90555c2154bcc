# pyright: strict
"""Claims and their payers' answers as events.

`CLAIM//<use>//<type>//<payer>` when a claim was submitted, with its total, and beside it one
`CLAIM_INFORMATION//<kind>` for each kind of thing enclosed, `PREAUTHORIZATION` among them.
`CLAIM_RESPONSE//<use>//<outcome>//<decision>` when an answer was made, with what was paid. The text
of all of them is the claim's key, a hash of its id, by which an answer finds its claim.

FHIR's `outcome` says how far an answer has come, not what it is: a denial is as `complete` as a
payment. R4 leaves the decision to `disposition`, a sentence. Its usual words are read into
`DENIED`, `APPROVED`, `PARTIAL` or `PENDING`; any other sentence is `UNK` and never taken for a yes.
The sentence itself is not kept: it may say more than the decision.

Codes billed on a claim are not read: the encounter's Conditions tell them.
"""

from __future__ import annotations

import re

from tsfm import codes
from tsfm.ingest.fhir_claim_fields import Claim, ClaimResponse, Money
from tsfm.ingest.fhir_codes import first_code
from tsfm.ingest.fhir_events import EventBatch, check_value, undone
from tsfm.ingest.fhir_fields import Reference, reference_key, stable_id

CLAIM, INFORMATION, RESPONSE = "CLAIM", "CLAIM_INFORMATION", "CLAIM_RESPONSE"
PREAUTHORIZATION = "PREAUTHORIZATION"
DENIED, APPROVED, PARTIAL, PENDING = "DENIED", "APPROVED", "PARTIAL", "PENDING"

_DECISIONS = {"denied": DENIED, "approved": APPROVED, "partial": PARTIAL, "pending": PENDING}
_UNDO = r"(revers|overturn|recoup|retract|set aside|taken back)"
# In this order: what undoes an answer names it too, and "not covered" holds the word "covered".
_SENTENCES = (
    (re.compile(rf"\bden(ial|ied)\b.*{_UNDO}|{_UNDO}.*\bdenial\b"), APPROVED),
    (re.compile(rf"\b(payment|approval)\b.*{_UNDO}|{_UNDO}.*\b(payment|approval)\b"), DENIED),
    (re.compile(r"\bpartial|\bin part\b"), PARTIAL),
    (re.compile(r"\bnot (denied|rejected|refused)\b"), codes.UNKNOWN),
    (
        re.compile(
            r"\b(denied|denial|rejected|refused|disallowed)\b|\b(not|non)[ -]"
            r"(approved|covered|certified|payable|paid|allowed|authori[sz]ed)\b"
        ),
        DENIED,
    ),
    (re.compile(r"\b(pending|pended|suspended|awaiting|in review|under review)\b"), PENDING),
    (
        re.compile(r"\b(paid|approved|settled|certified|authori[sz]ed|payable|allowed|covered)\b"),
        APPROVED,
    ),
)
_NOT_YET = re.compile(r"\bnot yet\b")


def add_claim(row: Claim, events: EventBatch) -> str:
    """Add a claim at its submission, and what was enclosed."""
    if reason := undone(row.status):
        return reason
    if row.status == "draft":
        return "not_done"
    subject = events.subject_of(row.patient)
    moment = events.moment(row.created)
    if moment is None:
        return "no_time"
    key = str(stable_id(row.id))
    stay = events.stay_of(next((e for item in row.item for e in item.encounter), None))
    code = codes.join(CLAIM, row.use or None, first_code(row.type), _payer(row))
    events.add(subject, code, *moment, stay, _amount(row.total), key)
    kinds = dict.fromkeys(first_code(info.category) for info in row.supporting_info)
    if any(insurance.pre_auth_ref for insurance in row.insurance):
        kinds[PREAUTHORIZATION] = None
    for kind in kinds:
        events.add(subject, codes.join(INFORMATION, kind), *moment, stay, text=key)
    return ""


def add_claim_response(row: ClaimResponse, events: EventBatch) -> str:
    """Add a payer's answer when it was made."""
    if reason := undone(row.status):
        return reason
    if row.status == "draft":
        return "not_done"
    subject = events.subject_of(row.patient)
    moment = events.moment(row.created)
    if moment is None:
        return "no_time"
    code = codes.join(RESPONSE, row.use or None, row.outcome or None, decision_of(row))
    paid = _amount(row.payment.amount if row.payment else None)
    events.add(subject, code, *moment, value=paid, text=_key(row.request))
    return ""


def decision_of(row: ClaimResponse) -> str:
    """What a payer decided.

    >>> decision_of(ClaimResponse(outcome="complete", disposition="Claim settled as per contract."))
    'APPROVED'
    >>> decision_of(ClaimResponse(outcome="complete", disposition="Not covered by the plan"))
    'DENIED'
    >>> decision_of(ClaimResponse(outcome="complete", disposition="Denial overturned on appeal"))
    'APPROVED'
    >>> decision_of(ClaimResponse(outcome="complete", disposition="See letter"))
    'UNK'
    """
    if row.outcome == "queued":
        return PENDING
    told = (first_code(row.decision) or "").lower()
    if told in _DECISIONS:
        return _DECISIONS[told]
    sentence = " ".join(row.disposition.lower().split())
    if _NOT_YET.search(sentence):
        return PENDING
    return next((word for words, word in _SENTENCES if words.search(sentence)), codes.UNKNOWN)


def _payer(row: Claim) -> str | None:
    """The insurer's name, else that of the coverage the claim is settled against."""
    if row.insurer is not None and row.insurer.display:
        return row.insurer.display
    by_focus = sorted(row.insurance, key=lambda insurance: not insurance.focal)
    names = (insurance.coverage.display for insurance in by_focus if insurance.coverage)
    return next((name for name in names if name), None)


def _amount(money: Money | None) -> float | None:
    return None if money is None or money.value is None else check_value(money.value)


def _key(request: Reference | None) -> str | None:
    key = reference_key(request.reference, "Claim") if request else ""
    return str(stable_id(key.partition("/")[2])) if key else None
