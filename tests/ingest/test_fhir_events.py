"""Reading stamps fast gives what the clock gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsfm.clock import Clock, StampError
from tsfm.ingest.fhir_events import StampCache, UnusableError, check_value

CLOCKS = [Clock.create("utc"), Clock.create("wall"), Clock.create("utc", "Europe/Berlin")]


@st.composite
def stamps(draw: st.DrawFn) -> str:
    """Stamps in and out of range, with every kind of offset, on few days so that days repeat."""
    date = draw(
        st.sampled_from(["2020-03-29", "2020-10-25", "2021-02-28", "2020-02-30", "1700-1-1"])
    )
    hour, minute, second = (draw(st.integers(0, top)) for top in (25, 60, 60))
    time = draw(st.sampled_from([f"T{hour:02}:{minute:02}:{second:02}", f"T{hour}:{minute}", ""]))
    fraction = draw(st.sampled_from(["", ".5", ".123456"]))
    offset = draw(st.sampled_from(["Z", "+02:00", "-11:30", "", "x", "+1:00"]))
    return date + time + fraction + offset


@pytest.mark.parametrize("clock", CLOCKS)
@given(texts=st.lists(stamps(), max_size=40))
def test_a_stamp_means_the_same_whatever_was_read_before(clock: Clock, texts: list[str]) -> None:
    cache = StampCache(clock)
    for text in texts:
        try:
            expected = clock.read(text)
        except StampError as error:
            with pytest.raises(StampError, match=str(error)):
                cache.interval(text)
        else:
            assert cache.interval(text) == (expected.us, expected.end_us)
            assert cache[text] == expected


@pytest.mark.parametrize(
    "text", ["2022W05", "2022105", "2022-W05", "2022-W05-1", "20220105T10:00:00Z", "２０２２"]
)
def test_weeks_days_of_the_year_and_other_digits_are_no_stamps(text: str) -> None:
    with pytest.raises(StampError, match="bad_time"):
        CLOCKS[0].read(text)


@pytest.mark.parametrize("value", [3.5e38, -1e300, float("inf"), float("nan")])
def test_a_value_that_32_bits_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(UnusableError, match="value_out_of_range"):
        check_value(value)
    assert check_value(-3.4e38) == -3.4e38
