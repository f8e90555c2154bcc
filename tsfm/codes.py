"""Grammar of code strings.

A code is parts joined by `//`, the widest first: `LAB//50912//mg/dL`, `DIAGNOSIS//ICD//10//I5023`.
The first part is the class. Where MIMIC-IV's official MEDS conversion has a spelling, ours is the
same, so that FHIR, CSV and MEDS roads to the same patient give the same tokens. A code's parents
are its shorter forms (ICD and ATC also lose trailing characters), which is what an unseen code
falls back to.
"""

from __future__ import annotations

from collections.abc import Iterator

SEPARATOR = "//"
UNKNOWN = "UNK"
MAX_PART_LENGTH = 120

BIRTH = "MEDS_BIRTH"
DEATH = "MEDS_DEATH"
ADMISSION = "HOSPITAL_ADMISSION"
DISCHARGE = "HOSPITAL_DISCHARGE"
ICU_ADMISSION = "ICU_ADMISSION"
ICU_DISCHARGE = "ICU_DISCHARGE"
ED_ARRIVAL = "ED_REGISTRATION"
ED_DEPARTURE = "ED_OUT"
OUTPATIENT = "OUTPATIENT_VISIT"
GENDER = "GENDER"
RACE = "RACE"
LAB = "LAB"
VITAL = "VITAL"
DIAGNOSIS = "DIAGNOSIS"
PROCEDURE = "PROCEDURE"
MEDICATION = "MEDICATION"

DIED, HOSPICE, AGAINST_ADVICE, ACUTE_HOSPITAL = (
    "DIED",
    "HOSPICE",
    "AGAINST ADVICE",
    "ACUTE HOSPITAL",
)

DISPOSITIONS = {
    "home": "HOME",
    "alt-home": "HOME",
    "other-hcf": "OTHER FACILITY",
    "hosp": HOSPICE,
    "long": "CHRONIC/LONG TERM ACUTE CARE",
    "aadvice": AGAINST_ADVICE,
    "exp": DIED,
    "psy": "PSYCH FACILITY",
    "rehab": "REHAB",
    "snf": "SKILLED NURSING FACILITY",
    "oth": "OTHER FACILITY",
}
"""HL7 `discharge-disposition` codes in MIMIC's words."""

# At one time stamp: birth before all, an admission before what happens in the stay, a discharge
# after it, death last (death dates without an hour share the day's other stamps).
_TIE_RANK = {
    BIRTH: 0,
    ED_ARRIVAL: 1,
    ADMISSION: 2,
    ICU_ADMISSION: 3,
    ICU_DISCHARGE: 7,
    ED_DEPARTURE: 7,
    DISCHARGE: 8,
    DEATH: 9,
}
DEFAULT_TIE_RANK = 5


def join(*parts: str | int | float | None) -> str:
    """Join parts to one code; empty parts become `UNK`, inner separators a single slash.

    >>> join("LAB", 50912, "mg/dL")
    'LAB//50912//mg/dL'
    >>> join("LAB", "a//b", None)
    'LAB//a/b//UNK'
    """
    return SEPARATOR.join(clean_part(part) for part in parts)


def clean_part(part: str | int | float | None) -> str:
    """One part of a code: one line, no separator, bounded length."""
    if part is None:
        return UNKNOWN
    text = " ".join(str(part).split()) if not isinstance(part, int) else str(part)
    while SEPARATOR in text:
        text = text.replace(SEPARATOR, "/")
    # A part may begin with a slash (the unit /min) but not end with one, next to the separator.
    return text[:MAX_PART_LENGTH].rstrip("/ ") or UNKNOWN


def code_class(code: str) -> str:
    """First part of a code: the class under which summaries count it.

    >>> code_class("LAB//50912//mg/dL")
    'LAB'
    """
    return code.partition(SEPARATOR)[0]


def is_class(code: str, name: str) -> bool:
    """Whether `code` is `name` itself or one of its sub-codes."""
    return code == name or code.startswith(name + SEPARATOR)


def tie_ranks() -> dict[str, int]:
    """Class to its order among events of one subject at one time stamp.

    All other classes have `DEFAULT_TIE_RANK`.
    """
    return dict(_TIE_RANK)


def icd_diagnosis(version: int | str, code: str) -> str:
    """`DIAGNOSIS//ICD//<version>//<code>` with the dot and padding removed.

    >>> icd_diagnosis(10, "I50.23 ")
    'DIAGNOSIS//ICD//10//I5023'
    """
    return join(DIAGNOSIS, "ICD", version, code.replace(".", "").strip().upper())


def icd_procedure(version: int | str, code: str) -> str:
    """`PROCEDURE//ICD//<version>//<code>` with the dot and padding removed."""
    return join(PROCEDURE, "ICD", version, code.replace(".", "").strip().upper())


def parents(code: str) -> Iterator[str]:
    """Shorter forms of a code, nearest first, ending with its class.

    >>> list(parents("DIAGNOSIS//ICD//10//I5023"))[:3]
    ['DIAGNOSIS//ICD//10//I502', 'DIAGNOSIS//ICD//10//I50', 'DIAGNOSIS//ICD//10']
    >>> list(parents("MEDICATION//ATC//C03CA01"))[:2]
    ['MEDICATION//ATC//C03CA', 'MEDICATION//ATC//C03C']
    """
    parts = code.split(SEPARATOR)
    leaf = parts[-1]
    if len(parts) >= 4 and parts[1] == "ICD":
        floor = 3 if parts[0] == DIAGNOSIS else 2
        for length in range(len(leaf) - 1, floor - 1, -1):
            yield SEPARATOR.join([*parts[:-1], leaf[:length]])
    elif len(parts) == 3 and parts[1] == "ATC":
        for length in (5, 4, 3, 1):
            if length < len(leaf):
                yield SEPARATOR.join([*parts[:-1], leaf[:length]])
    for depth in range(len(parts) - 1, 0, -1):
        yield SEPARATOR.join(parts[:depth])
