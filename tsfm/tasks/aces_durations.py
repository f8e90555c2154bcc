"""Durations of the ACES grammar: `24h`, `1 day 6 hours`, `2 days, 04:30:00`.

They are read as ACES reads them, which leaves that to pytimeparse (Roberts, MIT licence): amounts
from weeks down to seconds, each unit once and in this order, or a clock. A clock of two parts is
minutes and seconds: `24:00` is 24 minutes. One of three is hours, minutes and seconds, one of four
has days before them. Units have whole seconds; only an amount of seconds may have a fraction.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

LONGEST_DAYS = 1_000_000
"""Days beyond which a duration is refused: over 2,700 years, and times end in the year 9999."""

_SECONDS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60}
_WORDS = {
    "w": "w|wks?|weeks?",
    "d": "d|dys?|days?",
    "h": "h|hrs?|hours?",
    "m": "m|mins?|minutes?",
    "s": "s|secs?|seconds?",
}


def _amount(unit: str) -> str:
    return rf"(?P<{unit}>[0-9.]+)\s*(?:{_WORDS[unit]})"


def _amounts(units: str) -> str:
    """Pattern of an amount of each unit, none of which has to be there."""
    return r"\s*".join(rf"(?:{_amount(unit)}\s*(?:[,/]\s*)?)?" for unit in units)


_PART, _LAST = "[0-9]{2}", r"(?P<s>[0-9]{2}(?:\.[0-9]+)?)"
_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"{_amounts('wdhm')}\s*(?:{_amount('s')})?",
        rf"(?P<m>[0-9]{{1,2}}):{_LAST}",
        rf"{_amounts('wd')}\s*(?P<h>[0-9]+):(?P<m>{_PART}):{_LAST}",
        rf"(?P<d>[0-9]+):(?P<h>{_PART}):(?P<m>{_PART}):{_LAST}",
        f":{_LAST}",
    )
)


def parse_duration(text: str) -> int:
    """Microseconds of a duration.

    >>> parse_duration("1 day 6 hours") // 3_600_000_000
    30
    >>> parse_duration("24:00") // 60_000_000
    24

    Raises:
        ValueError: It is none, or longer than `LONGEST_DAYS`.
    """
    words = text.strip().lower()
    found = next(filter(None, (form.fullmatch(words) for form in _FORMS)), None)
    if not words or found is None:
        raise ValueError(text)
    parts = {unit: part for unit, part in found.groupdict().items() if part}
    try:
        seconds = Decimal(parts.pop("s", "0"))
        whole = int(sum(_SECONDS[unit] * Decimal(part) for unit, part in parts.items()))
    except InvalidOperation:
        raise ValueError(text) from None
    if whole + seconds > LONGEST_DAYS * _SECONDS["d"]:
        raise ValueError(text)
    return int((whole + seconds) * 1_000_000)
