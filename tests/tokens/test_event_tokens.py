"""Tokens stand in the order of knowing: what comes to be known later only ever appends."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsfm.errors import InputError
from tsfm.event_table import POLARS_EVENTS, sort_events
from tsfm.tokens.event_tokens import TOKEN_FIELDS, tokenize_events
from tsfm.tokens.value_scale import fit_value_scale
from tsfm.tokens.vocabulary import fit_vocabulary

BIRTH = datetime(1950, 3, 1)
START = datetime(2024, 1, 1, 8)


def make_events(rows: list[tuple[int, datetime | None, str, float | None, float]]) -> pl.DataFrame:
    """Rows of subject, time, code, value and hours until it is available."""
    columns: dict[str, list[object]] = {name: [] for name in POLARS_EVENTS}
    for subject, time, code, value, lag in rows:
        columns["subject_id"].append(subject)
        columns["time"].append(time)
        columns["code"].append(code)
        columns["numeric_value"].append(value)
        columns["available_time"].append(None if time is None else time + timedelta(hours=lag))
        for name in ("text_value", "encounter_id", "signal_id"):
            columns[name].append(None)
    return sort_events(pl.DataFrame(columns, schema=POLARS_EVENTS))


VOCABULARY = fit_vocabulary({"A": 20, "B": 20, "GENDER//F": 20, "MEDS_BIRTH": 20}, min_count=1)
SCALE = fit_value_scale(
    np.full(10, VOCABULARY.ids["A"], np.int32),
    np.arange(10, dtype=np.float32),
    n_codes=len(VOCABULARY),
)


def codes_of(events: pl.DataFrame) -> list[str]:
    return [VOCABULARY.codes[i] for i in tokenize_events(events, VOCABULARY, SCALE).code]


def test_a_late_result_stands_where_it_became_known() -> None:
    events = make_events([(1, START, "A", 3.0, 5.0), (1, START + timedelta(hours=1), "B", None, 0)])
    tokens = tokenize_events(events, VOCABULARY, SCALE)
    assert codes_of(events) == ["B", "A"]
    assert tokens.lag_hours.tolist() == [0.0, 5.0]
    assert np.diff(tokens.time_s).tolist() == [4 * 3600.0]


def test_a_time_still_to_come_when_a_fact_is_read_tells_nothing() -> None:
    tokens = [
        tokenize_events(
            make_events([(1, START + timedelta(days=days), "A", 3.0, -24.0 * days)]),
            VOCABULARY, SCALE,
        )
        for days in (2, 20)
    ]  # fmt: skip
    assert [t.lag_hours.tolist() for t in tokens] == [[0.0], [0.0]]
    assert tokens[0].time_s.tolist() == tokens[1].time_s.tolist()


def test_birth_and_static_facts_stand_at_the_first_contact() -> None:
    events = make_events(
        [
            (1, None, "GENDER//F", None, 0),
            (1, BIRTH, "MEDS_BIRTH", None, 0),
            (1, START, "A", 1.0, 0),
        ]
    )
    tokens = tokenize_events(events, VOCABULARY, SCALE)
    assert codes_of(events) == ["GENDER//F", "MEDS_BIRTH", "A"]
    assert len(set(tokens.time_s.tolist())) == 1
    assert tokens.birth_s[0] == (BIRTH - datetime(1970, 1, 1)).total_seconds()
    assert tokens.lag_hours.tolist() == [0.0, 0.0, 0.0]


def test_a_subject_with_static_facts_alone_is_not_lost() -> None:
    tokens = tokenize_events(
        make_events([(1, None, "GENDER//F", None, 0), (2, START, "A", 1.0, 0)]), VOCABULARY, SCALE
    )
    assert tokens.subject_id.tolist() == [1, 2]
    assert np.diff(tokens.start).tolist() == [1, 1]


def test_a_value_of_an_unknown_unit_keeps_its_code_alone() -> None:
    tokens = tokenize_events(make_events([(1, START, "A//other", 3.0, 0)]), VOCABULARY, SCALE)
    assert VOCABULARY.codes[tokens.code[0]] == "A"
    assert np.isnan(tokens.value[0])
    assert tokens.counts.fallback == 1


@pytest.mark.parametrize("unit", ["ms", "ns"])
def test_times_in_any_unit_are_the_same_stream(unit: str) -> None:
    events = make_events(
        [(1, BIRTH, "MEDS_BIRTH", None, 0), (1, START, "A", 3.0, 5.0), (1, START, "B", None, 0)]
    )
    kind = pl.Datetime("ms" if unit == "ms" else "ns")
    other = events.with_columns(pl.col("time", "available_time").cast(kind))
    expected, found = (tokenize_events(e, VOCABULARY, SCALE) for e in (events, other))
    for name in (*TOKEN_FIELDS, "birth_s"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_times_of_another_clock_are_refused() -> None:
    events = make_events([(1, START, "A", 3.0, 5.0)])
    zoned = pl.col("available_time").dt.replace_time_zone("Europe/Berlin")
    for bad in (
        events.with_columns(zoned),
        events.with_columns(pl.col("time").dt.date()),
        events.with_columns(pl.col("time").cast(pl.Int64)),
        events.drop("available_time"),
    ):
        with pytest.raises(InputError, match="bad_time_type"):
            tokenize_events(bad, VOCABULARY, SCALE)


def test_a_fact_of_which_nobody_says_when_it_was_known_is_known_at_its_time() -> None:
    later = START + timedelta(hours=1)
    told = make_events([(1, START, "B", None, 0), (1, later, "A", 3.0, 0)])
    untold = told.with_columns(
        available_time=pl.when(pl.col("code") == "B").then(pl.col("available_time"))
    )
    expected, found = (tokenize_events(e, VOCABULARY, SCALE) for e in (told, untold))
    assert [VOCABULARY.codes[i] for i in found.code] == ["B", "A"]
    assert found.time_s.tolist() == expected.time_s.tolist()
    assert found.lag_hours.tolist() == [0.0, 0.0]


EVENT = st.tuples(
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(0, 2000).map(lambda h: START + timedelta(hours=h))),
    st.sampled_from(["A", "B", "C//x"]),
    st.one_of(st.none(), st.floats(-5, 20, width=32)),
    st.floats(0, 200),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(EVENT, min_size=1, max_size=30), st.integers(0, 2200))
def test_what_is_known_by_any_moment_is_a_prefix_of_the_stream(
    rows: list[tuple[int, datetime | None, str, float | None, float]], hour: int
) -> None:
    events = make_events(rows)
    moment = START + timedelta(hours=hour)
    known = events.filter(pl.col("available_time").is_null() | (pl.col("available_time") <= moment))
    whole = tokenize_events(events, VOCABULARY, SCALE)
    part = tokenize_events(known, VOCABULARY, SCALE)
    cut = (moment - datetime(1970, 1, 1)).total_seconds()
    assert len(whole.code) == events.height
    for index, subject in enumerate(part.subject_id.tolist()):
        at = whole.subject_id.tolist().index(subject)
        own = slice(whole.start[at], whole.start[at + 1])
        then = slice(part.start[index], part.start[index + 1])
        n = then.stop - then.start
        assert whole.code[own][:n].tolist() == part.code[then].tolist()
        np.testing.assert_array_equal(whole.value[own][:n], part.value[then])
        assert bool((np.diff(whole.time_s[own]) >= 0).all())
        timed = known.filter((pl.col("subject_id") == subject) & pl.col("time").is_not_null())
        if timed.height:
            assert int((whole.time_s[own] <= cut + 1e-6).sum()) == n
