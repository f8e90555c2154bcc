"""Sequences of visits in the order of knowing, and prompts behind what is known."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from tsfm import event_table
from tsfm.errors import FormatError, InputError
from tsfm.tokens.ehr_mamba_tokens import (
    EhrMambaStreams,
    ehr_mamba_prompts,
    ehr_mamba_streams,
)
from tsfm.tokens.ehr_mamba_words import (
    FIRST_INTERVAL_ID,
    FIRST_TASK_ID,
    INTERVALS,
    EhrMambaWords,
    Kind,
    interval_of,
)
from tsfm.tokens.event_tokens import tokenize_events
from tsfm.tokens.value_scale import ValueScale
from tsfm.tokens.vocabulary import Vocabulary

T0 = datetime(2150, 1, 1)
CODES = (
    "UNK", "DIAGNOSIS", "GENDER", "HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE", "LAB", "LAB//1//mg",
    "MEDICATION//A", "MEDS_BIRTH", "PROCEDURE//B",
)  # fmt: skip
LAB = CODES.index("LAB//1//mg")
MARKS = ("[CLS]", "[VS]", "[VE]", "[REG]")
Row = tuple[int, float | None, str, float | None, float]
"""Subject, hour, code, value, hours until it was known."""


def make_words(tasks: tuple[str, ...] = ("mortality", "stay")) -> EhrMambaWords:
    return EhrMambaWords.create(Vocabulary(CODES), make_scale(), tasks)


def make_scale() -> ValueScale:
    median = np.full(len(CODES), np.nan, np.float32)
    median[LAB] = 5.0
    edges = np.tile(np.arange(1, 10, dtype=np.float32), (len(CODES), 1))
    ones = np.ones(len(CODES), np.float32)
    return ValueScale(median, ones, edges, ones)


def streams_of(rows: list[Row], words: EhrMambaWords | None = None) -> EhrMambaStreams:
    def at(hour: float | None) -> datetime | None:
        return None if hour is None else T0 + timedelta(hours=hour)

    frame = pl.DataFrame(
        {
            "subject_id": [r[0] for r in rows],
            "time": [at(r[1]) for r in rows],
            "code": [r[2] for r in rows],
            "numeric_value": [r[3] for r in rows],
            "available_time": [at(None if r[1] is None else r[1] + r[4]) for r in rows],
        },
        schema_overrides={
            n: event_table.POLARS_EVENTS[n]
            for n in ("subject_id", "time", "code", "numeric_value", "available_time")
        },
    )
    full = frame.select(
        (pl.col(n) if n in frame.columns else pl.lit(None, dtype=k)).alias(n)
        for n, k in event_table.POLARS_EVENTS.items()
    )
    tokens = tokenize_events(event_table.sort_events(full), Vocabulary(CODES), make_scale())
    return ehr_mamba_streams(tokens, words or make_words())


def told(streams: EhrMambaStreams, words: EhrMambaWords | None = None) -> list[str]:
    """Words as text."""
    words = words or make_words()
    text = {k: mark for k, mark in enumerate((*MARKS, *INTERVALS))}
    for code in range(len(CODES)):
        for decile in range(0, 11, 2) if words.has_value[code] else (0,):
            word, _ = words.of_tokens(np.array([code], np.int32), np.array([decile], np.int8))
            text[int(word[0])] = CODES[code] + (f"//B{decile // 2}" if decile else "")
    return [text[w] for w in streams.word.tolist()]


TWO_VISITS: list[Row] = [
    (1, None, "GENDER", None, 0),
    (1, -9e5 / 2, "MEDS_BIRTH", None, 0),
    (1, 0, "HOSPITAL_ADMISSION", None, 0),
    (1, 2, "LAB//1//mg", 9.5, 1),
    (1, 5, "MEDICATION//A", None, 0),
    (1, 30, "LAB//1//mg", 1.5, 48),  # known after the discharge
    (1, 48, "HOSPITAL_DISCHARGE", None, 0),
    (1, 48 + 24 * 29, "HOSPITAL_ADMISSION", None, 0),
    (1, 50 + 24 * 29, "PROCEDURE//B", None, 0),
]


def test_a_sequence_is_visits_between_marks_in_the_order_of_knowing() -> None:
    streams = streams_of(TWO_VISITS)
    assert told(streams) == [
        "[CLS]", "GENDER", "[VS]", "HOSPITAL_ADMISSION", "LAB//1//mg//B5", "MEDICATION//A",
        "HOSPITAL_DISCHARGE", "[VE]", "[REG]", "LAB//1//mg//B1", "[M_0]", "[VS]",
        "HOSPITAL_ADMISSION", "PROCEDURE//B",
    ]  # fmt: skip
    assert streams.visit.tolist() == [0, 0, *[1] * 8, 1, 2, 2, 2]
    assert streams.side.tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 2, 2]
    kinds = [Kind.CLS, Kind.OTHER, Kind.VISIT_START, Kind.OTHER, Kind.LAB, Kind.MEDICATION]
    assert streams.kind[:6].tolist() == kinds
    assert streams.kind[-4:].tolist() == [Kind.INTERVAL, Kind.VISIT_START, 9, Kind.PROCEDURE]


def test_hours_within_a_visit_and_the_age_between_birthdays_are_kept() -> None:
    streams = streams_of(TWO_VISITS)
    hours = (streams.time_s - streams.time_s[0]) / 3600
    assert hours[:7].tolist() == [0, 0, 0, 0, 3, 5, 48]
    assert hours[9] == 78  # when the result was known, not when it was drawn
    years = streams.age_years() - 4.5e5 / 24 / 365.25
    np.testing.assert_allclose(years, hours / 24 / 365.25, atol=1e-9)


def test_what_is_known_by_a_moment_is_the_start_of_the_sequence_whatever_comes_later() -> None:
    whole = streams_of(TWO_VISITS)
    for n in range(3, len(TWO_VISITS) + 1):
        rows = sorted(TWO_VISITS, key=lambda r: -1e9 if r[1] is None else r[1] + r[4])[:n]
        part = streams_of(rows)
        for name in ("word", "kind", "time_s", "visit", "side"):
            assert np.array_equal(getattr(part, name), getattr(whole, name)[: len(part.word)])


def test_an_admission_ends_a_visit_that_is_open_and_a_lone_discharge_ends_none() -> None:
    rows: list[Row] = [
        (1, 0, "HOSPITAL_DISCHARGE", None, 0),
        (1, 1, "HOSPITAL_ADMISSION", None, 0),
        (1, 90, "HOSPITAL_ADMISSION", None, 0),
        (1, 95, "HOSPITAL_DISCHARGE", None, 0),
        (2, 3, "HOSPITAL_ADMISSION", None, 0),
    ]
    streams = streams_of(rows)
    assert told(streams) == [
        "[CLS]", "HOSPITAL_DISCHARGE", "[VS]", "HOSPITAL_ADMISSION", "[VE]", "[REG]", "[W_0]",
        "[VS]", "HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE", "[VE]", "[REG]",
        "[CLS]", "[VS]", "HOSPITAL_ADMISSION",
    ]  # fmt: skip
    assert streams.visit.tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 1, 1]
    assert streams.side.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]
    assert streams.start.tolist() == [0, 12, 15]


@pytest.mark.parametrize(
    ("days", "word"),
    [(0, "[W_0]"), (6.99, "[W_0]"), (7, "[W_1]"), (27.9, "[W_3]"), (28, "[M_0]"), (30, "[M_1]"),
     (59.9, "[M_1]"), (364, "[M_12]"), (365, "[LT]"), (9999, "[LT]")],
)  # fmt: skip
def test_intervals_are_the_published_weeks_and_months(days: float, word: str) -> None:
    assert INTERVALS[interval_of(days)] == word


def test_words_are_dense_and_quintiles_are_pairs_of_deciles() -> None:
    words = make_words()
    deciles = np.arange(11, dtype=np.int8)
    found, kinds = words.of_tokens(np.full(11, LAB, np.int32), deciles)
    assert (found - found[0]).tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert set(kinds.tolist()) == {Kind.LAB}
    code = np.arange(len(CODES), dtype=np.int32)
    plain, _ = words.of_tokens(code, np.zeros(len(CODES), np.int8))
    every = {*range(FIRST_TASK_ID), words.prompt("mortality"), words.prompt("stay")}
    every |= set(plain.tolist()) | set(found.tolist())
    assert every == set(range(len(words)))
    assert FIRST_TASK_ID == FIRST_INTERVAL_ID + 18
    with pytest.raises(InputError, match="no_prompt"):
        words.prompt("x")
    with pytest.raises(InputError, match="duplicate_task"):
        make_words(("a", "a"))


def asked(rows: list[tuple[int, float]], label: list[bool | None] | None = None) -> pl.DataFrame:
    frame = pl.DataFrame(
        {"subject_id": [r[0] for r in rows],
         "prediction_time": [T0 + timedelta(hours=r[1]) for r in rows]},
        schema_overrides={"prediction_time": pl.Datetime("us")},
    )  # fmt: skip
    return frame if label is None else frame.with_columns(boolean_value=pl.Series(label))


def test_a_prompt_stands_behind_all_that_is_known_and_no_cutoff_can_take_it() -> None:
    words = make_words()
    streams = streams_of(TWO_VISITS)
    prompts = ehr_mamba_prompts(
        streams, words,
        {"mortality": asked([(1, 24), (1, -1), (5, 24)], [True, False, True]),
         "stay": asked([(1, 48), (1, 24)])},
    )  # fmt: skip
    assert prompts.task.tolist() == ["mortality", "stay", "stay"]
    assert prompts.row.tolist() == [0, 0, 1]  # nothing is known of the others
    assert prompts.word.tolist() == [words.prompt(t) for t in prompts.task]
    # At the discharge, its own marks are known too; a result that is drawn but not known is not.
    assert [told(streams)[p] for p in prompts.position] == [
        "MEDICATION//A",
        "[REG]",
        "MEDICATION//A",
    ]
    np.testing.assert_allclose(prompts.gap_hours, [19, 0, 19])
    assert prompts.label.tolist() == [1, -1, -1]
    assert len(prompts) == 3


def test_the_longest_sequence_is_asked_at_its_end_as_the_others_are() -> None:
    rows: list[Row] = [
        (s, float(h), "LAB", None, 0) for s, n in ((1, 3), (2, 90)) for h in range(n)
    ]
    streams = streams_of(rows)
    prompts = ehr_mamba_prompts(streams, make_words(), {"stay": asked([(1, 1e4), (2, 1e4)])})
    assert prompts.position.tolist() == (streams.start[1:] - 1).tolist()


def test_subjects_can_be_picked_in_any_order() -> None:
    rows: list[Row] = [(s, float(h), "LAB", None, 0) for s in (1, 2, 3) for h in range(s)]
    streams = streams_of(rows)
    picked = streams.pick(np.array([2, 0]))
    assert picked.subject_id.tolist() == [3, 1]
    assert picked.start.tolist() == [0, 4, 6]
    lone = streams_of([r for r in rows if r[0] == 3])
    assert np.array_equal(picked.time_s[:4], lone.time_s)
    assert np.array_equal(picked.word[:4], lone.word)


def test_no_subjects_make_no_words() -> None:
    streams = streams_of([])
    assert (len(streams.word), streams.start.tolist()) == (0, [0])


def test_the_arrays_of_the_streams_are_not_changed_by_asking(tiny_hospital: Any) -> None:
    from tsfm.tokens.token_store import load_vocabulary

    vocabulary, scale = load_vocabulary(tiny_hospital.tokens / "vocabulary")
    words = EhrMambaWords.create(vocabulary, scale, ("readmission_30d",))
    events = pl.concat(event_table.scan_events(tiny_hospital.events))
    tokens = tokenize_events(events, vocabulary, scale)
    kept = tokens.code.copy(), tokens.bin.copy()
    streams = ehr_mamba_streams(tokens, words)
    word = streams.word.copy()
    cohort = pl.read_parquet(tiny_hospital.labels / "readmission_30d" / "labels.parquet")
    prompts = ehr_mamba_prompts(streams, words, {"readmission_30d": cohort})
    assert len(prompts) == cohort.height
    assert np.array_equal(streams.word, word)
    assert np.array_equal(tokens.code, kept[0])
    assert np.array_equal(tokens.bin, kept[1])
    starts, ends = ((streams.kind == k).sum() for k in (Kind.VISIT_START, Kind.VISIT_END))
    n_subjects = len(streams.subject_id)
    assert starts > n_subjects
    assert 0 <= starts - ends <= n_subjects
    assert (streams.kind == Kind.CLS).sum() == n_subjects


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_a_question_in_any_unit_stands_behind_what_is_known_by_then(unit: Any) -> None:
    streams, words = streams_of(TWO_VISITS), make_words()
    asked = pl.DataFrame({"subject_id": [1], "prediction_time": [T0 + timedelta(hours=10)]})
    given = asked.with_columns(pl.col("prediction_time").cast(pl.Datetime(unit)))
    task = "mortality"
    found = ehr_mamba_prompts(streams, words, {task: given})
    assert told(streams)[int(found.position[0])] == "MEDICATION//A"
    zoned = asked.with_columns(pl.col("prediction_time").dt.replace_time_zone("UTC"))
    with pytest.raises(FormatError, match="wrong_column_type"):
        ehr_mamba_prompts(streams, words, {task: zoned})
