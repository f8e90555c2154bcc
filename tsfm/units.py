"""Units: one spelling and one unit a quantity, in UCUM.

A code carries its unit (`LAB//LOINC//2345-7//mg/dL`): two units of one analyte would be two codes
that share nothing. `canonical` therefore rewrites spellings (`mg/dl`, `ug` with either micro sign)
and converts units of the same dimension whose factor does not depend on the substance (mass
concentrations, temperatures, lengths, weights, pressures). Molar units are left alone: their factor
depends on the analyte.

Case tells giga from gram: blood counts in `G/l` are 10*9 a litre. `G/L` may be either, where a
source writes all in capitals, and is left as given.
"""

from __future__ import annotations

import re

_SPELLINGS = {
    "mg/dl": "mg/dL",
    "g/dl": "g/dL",
    "g/l": "g/L",
    "mg/l": "mg/L",
    "ug/dl": "ug/dL",
    "ug/l": "ug/L",
    "ng/ml": "ng/mL",
    "pg/ml": "pg/mL",
    "mmol/l": "mmol/L",
    "umol/l": "umol/L",
    "nmol/l": "nmol/L",
    "meq/l": "meq/L",
    "u/l": "U/L",
    "iu/l": "[IU]/L",
    "mmhg": "mm[Hg]",
    "mm hg": "mm[Hg]",
    "mm[hg]": "mm[Hg]",
    "bpm": "/min",
    "beats/min": "/min",
    "beats/minute": "/min",
    "{beats}/min": "/min",
    "breaths/min": "/min",
    "{breaths}/min": "/min",
    "insp/min": "/min",
    "cel": "Cel",
    "degc": "Cel",
    "°c": "Cel",
    "c": "Cel",
    "degf": "[degF]",
    "[degf]": "[degF]",
    "°f": "[degF]",
    "f": "[degF]",
    "kg": "kg",
    "g": "g",
    "mg": "mg",
    "ug": "ug",
    "mcg": "ug",
    "lb": "[lb_av]",
    "lbs": "[lb_av]",
    "[lb_av]": "[lb_av]",
    "cm": "cm",
    "m": "m",
    "in": "[in_i]",
    "inch": "[in_i]",
    "[in_i]": "[in_i]",
    "percent": "%",
    "k/ul": "10*3/uL",
    "10*3/ul": "10*3/uL",
    "10*9/l": "10*3/uL",
    "gpt/l": "10*3/uL",
    "/nl": "10*3/uL",
    "m/ul": "10*6/uL",
    "10*6/ul": "10*6/uL",
    "10*12/l": "10*6/uL",
    "tpt/l": "10*6/uL",
    "/pl": "10*6/uL",
    "ml": "mL",
    "l": "L",
}

# Where lower case would be another unit: molar and metre, giga or tera a litre and gram a litre.
_BY_CASE = {"M": "M", "G/L": "G/L", "G/l": "10*3/uL", "T/L": "10*6/uL", "T/l": "10*6/uL"}

_POWER_OF_TEN = re.compile(r"^x?\s*10\s*[*^e](\d{1,2})\s*/\s*")  # as x10^9/L or 10E9/L

# unit -> (canonical unit, factor, offset): canonical = value * factor + offset
_CONVERSIONS: dict[str, tuple[str, float, float]] = {
    "[degF]": ("Cel", 5.0 / 9.0, -160.0 / 9.0),
    "[lb_av]": ("kg", 0.45359237, 0.0),
    "[in_i]": ("cm", 2.54, 0.0),
    "m": ("cm", 100.0, 0.0),
    "kPa": ("mm[Hg]", 7.500616827, 0.0),
    "g/L": ("g/dL", 0.1, 0.0),
    "mg/L": ("mg/dL", 0.1, 0.0),
}


def spelling(unit: str | None) -> str | None:
    """UCUM spelling of a unit as found in the wild; an unknown unit is returned as given.

    >>> spelling("MG/DL"), spelling("µg"), spelling("mmHg"), spelling("M")
    ('mg/dL', 'ug', 'mm[Hg]', 'M')
    """
    if unit is None:
        return None
    text = unit.strip().replace("µ", "u").replace("μ", "u")
    if not text:
        return None
    if text in _BY_CASE:
        return _BY_CASE[text]
    lower = _POWER_OF_TEN.sub(r"10*\1/", text.lower())
    return _SPELLINGS.get(lower, text)


def canonical(value: float | None, unit: str | None) -> tuple[float | None, str | None]:
    """Value and unit in the one unit that is kept for this dimension.

    >>> canonical(98.6, "degF")
    (37.0, 'Cel')
    >>> canonical(5.0, "mmol/L")
    (5.0, 'mmol/L')
    """
    spelled = spelling(unit)
    if spelled is None or spelled not in _CONVERSIONS:
        return value, spelled
    target, factor, offset = _CONVERSIONS[spelled]
    return (None if value is None else round(value * factor + offset, 9)), target
