# pyright: strict
"""From FHIR codings to code strings.

A concept comes in several systems at once; one is chosen by what it is for: ICD for diagnoses and
procedures (it is what claims and cohorts are made of), LOINC for measurements, RxNorm for drugs.
MIMIC-IV's own systems give the strings of MIMIC-IV's official MEDS conversion, so that the FHIR
road and the CSV road end in the same vocabulary. The strings' grammar is `tsfm.codes`.

No terminology server is asked and no code is translated into another system.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from tsfm import codes
from tsfm.ingest.fhir_fields import Coding, Concept, Meta

MIMIC = "mimic.mit.edu"
LOINC, SNOMED, RXNORM, ATC, CVX = "LOINC", "SNOMED", "RXNORM", "ATC", "CVX"
MAX_DESCRIPTION_LENGTH = 300

_SYSTEMS = {
    "http://loinc.org": LOINC,
    "http://snomed.info/sct": SNOMED,
    "http://www.nlm.nih.gov/research/umls/rxnorm": RXNORM,
    "http://www.whocc.no/atc": ATC,
    "http://fhir.de/CodeSystem/bfarm/atc": ATC,
    "http://hl7.org/fhir/sid/cvx": CVX,
    "http://hl7.org/fhir/sid/ndc": "NDC",
    "http://www.ama-assn.org/go/cpt": "CPT",
    "urn:oid:2.16.840.1.113883.6.1": LOINC,
    "urn:oid:2.16.840.1.113883.6.96": SNOMED,
    "urn:oid:2.16.840.1.113883.6.88": RXNORM,
    "urn:oid:2.16.840.1.113883.6.12": "CPT",
    "urn:oid:2.16.840.1.113883.6.285": "HCPCS",
    "urn:oid:2.16.840.1.113883.6.90": "ICD-10-CM",
    "urn:oid:2.16.840.1.113883.6.4": "ICD-10-PCS",
    "urn:oid:2.16.840.1.113883.6.103": "ICD-9-CM",
    "urn:oid:2.16.840.1.113883.6.104": "ICD-9-CM",
}
_ICD = re.compile(r"icd-?(9|10|11)", re.IGNORECASE)
_HCPCS = re.compile(r"hcpcs", re.IGNORECASE)


@lru_cache(maxsize=4096)
def system_name(system: str) -> str:
    """Short name of a code system: a usual abbreviation, else the last part of its address.

    >>> system_name("http://loinc.org"), system_name("https://ehr.example/codes/local-labs")
    ('LOINC', 'local-labs')
    """
    name = _SYSTEMS.get(system)
    if name is None:
        last = system.rstrip("/").rpartition("/")[2]
        name = "HCPCS" if _HCPCS.search(last) else last or codes.UNKNOWN
    return name


@lru_cache(maxsize=4096)
def icd_version(system: str) -> str:
    """Revision of ICD that a system stands for, "" if it is not ICD.

    >>> icd_version("http://hl7.org/fhir/sid/icd-10-cm"), icd_version("http://loinc.org")
    ('10', '')
    """
    match = _ICD.search(system_name(system))
    return match.group(1) if match else ""


@lru_cache(maxsize=4096)
def is_mimic(system: str) -> bool:
    """Whether a code system or profile is MIMIC-IV's own."""
    return MIMIC in system


def profile_name(meta: Meta | None) -> str:
    """Last part of a resource's MIMIC profile, "" where it has none.

    >>> profile_name(Meta(profile=["http://mimic.mit.edu/fhir/mimic/StructureDefinition/mimic-x"]))
    'mimic-x'
    """
    if meta is None:
        return ""
    return next((p.rpartition("/")[2] for p in meta.profile if is_mimic(p)), "")


def has_code(concepts: Iterable[Concept], wanted: str) -> bool:
    """Whether one of the concepts carries the code `wanted` in any system."""
    return any(coding.code == wanted for concept in concepts for coding in concept.coding)


def first_code(concept: Concept | None) -> str | None:
    """First code of a concept, else its display or text; None if it says nothing."""
    if concept is None:
        return None
    for coding in concept.coding:
        if coding.code or coding.display:
            return coding.code or coding.display
    return concept.text or None


def describe(concept: Concept, coding: Coding | None = None) -> str:
    """Human-readable text of a concept, of bounded length and on one line."""
    text = (coding.display if coding else "") or concept.text
    return " ".join(text[:MAX_DESCRIPTION_LENGTH].split())


def choose(concept: Concept, *preferred: str) -> Coding | None:
    """Coding of the first preferred system that is present, else the first that has a code."""
    with_code = [coding for coding in concept.coding if coding.code.strip()]
    for name in preferred:
        for coding in with_code:
            if system_name(coding.system) == name:
                return coding
    return with_code[0] if with_code else None


def choose_icd(concept: Concept) -> Coding | None:
    """Coding of the newest ICD revision that is present."""
    with_icd = [c for c in concept.coding if c.code.strip() and icd_version(c.system)]
    return max(with_icd, key=lambda coding: int(icd_version(coding.system)), default=None)


def code_parts(concept: Concept, *preferred: str) -> tuple[list[str], str] | None:
    """System and code of a concept, and its description; None if it says nothing.

    MIMIC's own systems give the bare code, words without a code come under `TEXT`.
    """
    coding = choose(concept, *preferred)
    if coding is not None:
        parts = [coding.code]
        if not is_mimic(coding.system):
            parts.insert(0, system_name(coding.system))
        return parts, describe(concept, coding)
    text = concept.text.strip() or next((c.display for c in concept.coding if c.display), "")
    return (["TEXT", text], describe(concept)) if text else None


def clinical_code(
    prefix: str, concept: Concept | None, icd: Callable[[str, str], str]
) -> tuple[str, str, bool] | None:
    """Code of a diagnosis or procedure, its description, and whether it is ICD.

    Args:
        prefix: Class of the code, where it is not ICD.
        concept: What was diagnosed or done.
        icd: Builds the string of an ICD code from revision and code.
    """
    if concept is None:
        return None
    coding = choose_icd(concept)
    if coding is not None:
        code = icd(icd_version(coding.system), coding.code)
        return code, describe(concept, coding), True
    found = code_parts(concept, SNOMED, "CPT", "HCPCS")
    if found is None:
        return None
    parts, text = found
    return codes.join(prefix, *parts), text, False
