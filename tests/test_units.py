"""One spelling and one unit a quantity; what case tells apart stays apart."""

from __future__ import annotations

import pytest

from tsfm.units import canonical, spelling


@pytest.mark.parametrize(
    "unit",
    ["G/l", "Gpt/L", "/nL", "10*9/L", "10^9/L", "x10^9/L", "x 10E9 / L", "K/uL",
     "10^3/\N{MICRO SIGN}L", "x10^3/uL"],
)  # fmt: skip
def test_counts_in_giga_a_litre_are_thousands_a_microlitre(unit: str) -> None:
    assert canonical(7.5, unit) == (7.5, "10*3/uL")


@pytest.mark.parametrize("unit", ["T/l", "T/L", "Tpt/L", "/pL", "10*12/L", "10^12/L", "M/uL"])
def test_counts_in_tera_a_litre_are_millions_a_microlitre(unit: str) -> None:
    assert canonical(4.6, unit) == (4.6, "10*6/uL")


def test_giga_a_litre_is_never_gram_a_litre() -> None:
    assert canonical(7.5, "G/L") == (7.5, "G/L")  # either, in a source of capitals
    assert canonical(75.0, "g/L") == (7.5, "g/dL")
    assert canonical(75.0, "g/l") == (7.5, "g/dL")


def test_molar_is_no_metre() -> None:
    assert spelling("M") == "M"
    assert canonical(1.8, "m") == (180.0, "cm")


def test_what_is_not_known_is_left_as_given() -> None:
    assert canonical(3.0, " furlong ") == (3.0, "furlong")
    assert canonical(None, "mg/L") == (None, "mg/dL")
    assert canonical(1.0, " ") == (1.0, None)
