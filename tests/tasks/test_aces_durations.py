"""Durations are those that ACES reads: the table is what es-aces 0.7.3 gave for each text."""

from __future__ import annotations

import pytest

from tsfm.tasks.aces_durations import LONGEST_DAYS, parse_duration

SECONDS = {
    "24h": 86_400, "1 day": 86_400, "1d12h": 129_600, "1.5h": 5_400, ".5 day": 43_200,
    "2 dys": 172_800, "4:13": 253, "24:00": 1_440, "0:90": 90, "4:13:02": 15_182,
    "2:04:13:02": 187_982, ":22": 22, "1 day, 04:30:00": 102_600, "1d 36:00:00": 216_000,
    "100:00:00": 360_000, "1 week, 3 days": 864_000, "1.2 days": 103_680, "1h 30m": 5_400,
    "1 d, 2 h": 93_600, "1d/2h": 93_600, "1D": 86_400, "90s": 90,
    "1.33333h": 4_799, "1.5 m 3.25s": 93.25, "1:00.5": 60.5, "1d\n2h": 93_600,
}  # fmt: skip
NONE = (
    "", "90", "1 day, 4:13", "1 day 04:30", "30m 1h", "24h 24h", "1 month", "1y", "1,000h",
    "1d-2h", "1 h and 2 min", "1e3h", "1:5", "12:345", "1..2h", ". h", "-1h", "10 sec,",
)  # fmt: skip


@pytest.mark.parametrize(("text", "seconds"), SECONDS.items())
def test_a_duration_is_as_long_as_in_aces(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds * 1_000_000


@pytest.mark.parametrize("text", NONE)
def test_what_aces_does_not_read_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"^" if text else "^$"):
        parse_duration(text)


def test_a_duration_beyond_all_times_is_refused() -> None:
    assert parse_duration(f"{LONGEST_DAYS} days") == LONGEST_DAYS * 86_400_000_000
    for text in (f"{LONGEST_DAYS + 1} days", "99999999999 days", "9" * 60 + "w"):
        with pytest.raises(ValueError, match=r"9|0"):
            parse_duration(text)
