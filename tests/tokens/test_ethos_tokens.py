"""Events become ETHOS's words, in the order of knowing: the future changes nothing before it."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsfm import codes, schema
from tsfm.errors import InputError, ModelMismatch
from tsfm.tokens import ethos_vocabulary
from tsfm.tokens.ethos_tokens import (
    NO_TARGET,
    EthosTimelines,
    prompts,
    tokenize_ethos,
    training_windows,
)
from tsfm.tokens.ethos_vocabulary import (
    END_ID,
    INTERVALS,
    EthosVocabulary,
    Kind,
    fit_ethos_vocabulary,
    intervals,
    words,
)

START = datetime(2020, 3, 1, 8)
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
LAB = "LAB//LOINC//718-7//g/dL"


def us(moment: datetime) -> int:
    return int((moment - datetime(1970, 1, 1)) / timedelta(microseconds=1))


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Events of `s` subject, `t` hours from the start or None, `code`, `x`, `lag` hours."""
    filled = []
    for row in rows:
        t = row.get("t")
        time = None if t is None else START + timedelta(hours=t)
        known = None if time is None else time + timedelta(hours=row.get("lag", 0.0))
        filled.append((row.get("s", 1), time, row["code"], row.get("x"), None, known, None, None))
    types: Any = pl.from_arrow(schema.EVENTS.empty_table())
    events = pl.DataFrame(filled, schema=types.schema, orient="row")
    return events.sort(schema.SUBJECT_ID, schema.TIME, nulls_last=False, maintain_order=True)


def person(s: int = 1, years: float = 57.5) -> list[dict[str, Any]]:
    """Static facts of a subject who is so old at the start."""
    return [
        {"s": s, "code": codes.BIRTH, "t": -years * 365.25 * 24},
        {"s": s, "code": "GENDER//F"},
    ]


def fit(events: pl.DataFrame, **options: Any) -> EthosVocabulary:
    options = {"min_count": 1, "min_values": 5, **options}
    return fit_ethos_vocabulary([events], events[schema.SUBJECT_ID].unique(), **options)


def ward(n_subjects: int = 4, seed: int = 0) -> pl.DataFrame:
    """Made-up subjects with results that come late, codings days later, and half a year's gaps."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for s in range(1, n_subjects + 1):
        rows += person(s, years=float(rng.uniform(1, 90)))
        t = 0.0
        for _ in range(30):
            t += float(10 ** rng.uniform(-2, 4))
            rows.append({"s": s, "t": t, "code": LAB, "x": rng.normal(12, 2), "lag": 3.0})
            coded = {"code": "DIAGNOSIS//ICD//10//I5023", "lag": 120.0}
            rows.append({"s": s, "t": t, **(coded if rng.random() < 0.3 else {"code": "ED_OUT"})})
        if s % 2:
            rows.append({"s": s, "t": t + 24.0, "code": codes.DEATH, "lag": 1.0})
    return frame(rows)


def text(vocabulary: EthosVocabulary, ids: np.ndarray) -> list[str]:
    return [vocabulary.tokens.codes[i] for i in ids]


def stream(events: pl.DataFrame, **options: Any) -> list[str]:
    vocabulary = fit(events)
    return text(vocabulary, tokenize_ethos(events, vocabulary, **options).token)


def test_a_stay_reads_as_intervals_words_and_deciles() -> None:
    values = [{"s": 2, "t": 2.0 + i, "code": LAB, "x": 10.0 + i} for i in range(20)]
    rows = [
        *person(),
        {"t": 0.0, "code": "HOSPITAL_ADMISSION//EMERGENCY"},
        {"t": 0.05, "code": "ED_OUT"},
        {"t": 1.0, "code": LAB, "x": 99.0},
        {"t": 31.0, "code": "PROCEDURE//ICD//10//02HV33Z"},
        *values,
    ]
    events = frame(rows)
    vocabulary = fit(events)
    timelines = tokenize_ethos(events, vocabulary)
    said = text(vocabulary, timelines.token[: timelines.start[1]])
    assert said[:6] == [
        "HOSPITAL_ADMISSION//EMERGENCY", "ED_OUT", "45m-1h15m", LAB, "Q10", "1d-2d",
    ]  # fmt: skip
    assert said[6:] == [f"ICD//PCS//{c}" for c in "02HV33Z"]
    window = prompts(timelines, np.array([1]), np.array([us(START) / 1e6]), 64)
    assert text(vocabulary, window.token) == [
        "GENDER//F", "Q6", "Q8", "HOSPITAL_ADMISSION//EMERGENCY",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "spelt"),
    [
        ("DIAGNOSIS//ICD//10//I10", ["ICD//CM//I10"]),
        ("DIAGNOSIS//ICD//10//S72001A", ["ICD//CM//S72", "ICD//CM//3-6//001", "ICD//CM//SFX//A"]),
        ("DIAGNOSIS//ICD//9//78829", ["DIAGNOSIS//ICD//9//78829"]),
        ("MEDICATION//ATC//C03CA01", ["ATC//C03", "ATC//4//C", "ATC//SFX//A01"]),
        ("MEDICATION//RXNORM//4603", ["MEDICATION//RXNORM//4603"]),
        ("PROCEDURE//SNOMED//40617009", ["PROCEDURE//SNOMED//40617009"]),
    ],
)
def test_only_codes_of_large_hierarchies_are_spelt(code: str, spelt: list[str]) -> None:
    assert list(words(code)) == spelt


@given(st.text(alphabet="ABC0123", min_size=3, max_size=9))
def test_spelling_loses_no_character(leaf: str) -> None:
    for code in (f"DIAGNOSIS//ICD//10//{leaf}", f"MEDICATION//ATC//{leaf}"):
        assert "".join(word.split("//")[-1] for word in words(code)) == leaf


@pytest.mark.parametrize(
    ("seconds", "name", "times"),
    [
        (0.0, None, 0),
        (5 * MINUTE - 1, None, 0),
        (5 * MINUTE, "5m-15m", 1),
        (75 * MINUTE, "1h15m-2h", 1),
        (DAY - 1, "18h-1d", 1),
        (DAY, "1d-2d", 1),
        (45 * DAY, "30d-2mt", 1),
        (180 * DAY - 1, "2mt-6mt", 1),
        (180 * DAY, "=6mt", 1),
        (269 * DAY, "=6mt", 1),
        (270 * DAY, "=6mt", 2),
        (900 * DAY, "=6mt", 5),
    ],
)
def test_gaps_have_the_published_borders(seconds: float, name: str | None, times: int) -> None:
    index, count = intervals(np.array([int(seconds * 1e6)]))
    assert count[0] == times
    assert name is None or INTERVALS[index[0]] == name


def test_there_are_nineteen_intervals_and_no_gap_between_them() -> None:
    assert len(INTERVALS) == 19
    gap = np.unique((10 ** np.linspace(0, 8.5, 4000) * 1e6).astype(np.int64))
    index, count = intervals(gap)
    assert (np.diff(index) >= 0).all()
    assert ((count > 0) == (gap >= 5 * 60_000_000)).all()
    assert set(index[count > 0]) == set(range(19))


def test_deciles_are_a_codes_own() -> None:
    rows = [{"t": float(i), "code": LAB, "x": float(i)} for i in range(100)]
    rows += [{"t": float(i), "code": "WEIGHT", "x": 1000.0 + i} for i in range(100)]
    events = frame(rows)
    vocabulary = fit(events)
    token = tokenize_ethos(events, vocabulary).token
    of_lab = token[np.flatnonzero(np.array(text(vocabulary, token)) == LAB) + 1]
    counts = np.bincount(of_lab - ethos_vocabulary.FIRST_DECILE_ID, minlength=10)
    assert counts.min() >= 9
    assert counts.max() <= 11


def test_numbers_of_codes_without_deciles_are_counted() -> None:
    rows = [{"t": float(i), "code": LAB, "x": float(i)} for i in range(20)]
    events = frame([*rows, {"t": 21.0, "code": "RARE", "x": 3.0}])
    timelines = tokenize_ethos(events, fit(events))
    assert timelines.n_without_decile == 1


def test_a_word_never_seen_is_its_parent_or_unknown_and_counted() -> None:
    vocabulary = fit(frame([{"t": 0.0, "code": "DIAGNOSIS//ICD//10//I5023"}]))
    seen = [{"t": 0.0, "code": c} for c in ("DIAGNOSIS//ICD//10//I509", "GENETICS//BRCA1")]
    timelines = tokenize_ethos(frame(seen), vocabulary)
    assert text(vocabulary, timelines.token) == ["ICD//CM//I50", "ICD//CM//3-6", "UNK"]
    counts = timelines.counts
    assert (counts.exact, counts.fallback, counts.unknown) == (1, 1, 1)


def test_the_end_closes_the_dead_alone_and_is_never_known() -> None:
    events = frame([
        {"s": 1, "t": 0.0, "code": "ED_OUT"}, {"s": 1, "t": 1.0, "code": codes.DEATH},
        {"s": 2, "t": 0.0, "code": "ED_OUT"},
        {"s": 3, "t": 0.0, "code": "HOSPITAL_DISCHARGE//DIED"},
    ])  # fmt: skip
    timelines = tokenize_ethos(events, fit(events))
    ends = timelines.token == END_ID
    assert np.flatnonzero(ends).tolist() == [timelines.start[1] - 1, timelines.start[3] - 1]
    assert np.isinf(timelines.known_s[ends]).all()
    window = prompts(timelines, np.array([1]), np.array([1e12]), 64)
    assert END_ID not in window.token


def test_a_watched_silence_is_said_in_half_years() -> None:
    events = frame([{"s": 1, "t": 0.0, "code": "ED_OUT"}, {"s": 2, "t": 0.0, "code": codes.DEATH}])
    for days, n in ((179, 0), (180, 1), (271, 2), (1000, 6)):
        until = us(START + timedelta(days=days))
        assert stream(events, watched_until_us=until) == ["ED_OUT", *["=6mt"] * n, codes.DEATH,
                                                          "TIMELINE_END"]  # fmt: skip
        for watched in ({1: until}, np.int64(until)):
            assert stream(events, watched_until_us=watched).count("=6mt") == n
    assert "=6mt" not in stream(events)


def test_a_watched_silence_begins_every_longer_gap() -> None:
    """What was said while waiting stays true when the next event comes, whenever that is."""
    for days in (150, 200, 280, 500, 800):
        waiting = frame([{"t": 0.0, "code": "ED_OUT"}])
        known = tokenize_ethos(
            waiting, fit(waiting), watched_until_us=us(START + timedelta(days=days))
        )
        for later in (1, 60, 179, 400):
            rows = [{"t": t, "code": "ED_OUT"} for t in (0.0, 24.0 * (days + later))]
            whole = tokenize_ethos(frame(rows), fit(frame(rows)))
            n = len(known.token)
            assert whole.token[1:n].tolist() == known.token[1:n].tolist()
            assert whole.known_s[:n].tolist() == known.known_s[:n].tolist()


def same_windows(a: EthosTimelines, b: EthosTimelines, at: float) -> bool:
    asked = (np.array([1, 2, 3, 4]), np.full(4, at), 40)
    return prompts(a, *asked).token.tolist() == prompts(b, *asked).token.tolist()


@settings(max_examples=20, deadline=None)
@given(st.floats(0.0, 400.0), st.integers(0, 5))
def test_nothing_that_becomes_known_later_changes_a_prompt(days: float, seed: int) -> None:
    events, at = ward(seed=seed), START + timedelta(days=days)
    vocabulary = fit(events)
    later = (pl.col(schema.AVAILABLE_TIME) > at).fill_null(False)
    changed = events.with_columns(
        pl.when(later).then(pl.lit("LAB//OTHER")).otherwise(schema.CODE).alias(schema.CODE)
    )
    whole = tokenize_ethos(events, vocabulary)
    assert same_windows(whole, tokenize_ethos(changed, vocabulary), us(at) / 1e6)
    known = tokenize_ethos(events.filter(~later), vocabulary, watched_until_us=us(at))
    assert same_windows(whole, known, us(at) / 1e6)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 5))
def test_tokens_become_known_in_their_order(seed: int) -> None:
    events = ward(seed=seed)
    timelines = tokenize_ethos(events, fit(events), watched_until_us=us(START) + 10**15)
    for a, b in zip(timelines.start[:-1], timelines.start[1:], strict=True):
        assert (timelines.known_s[a:b][1:] >= timelines.known_s[a:b][:-1]).all()


def test_subjects_do_not_depend_on_each_other() -> None:
    events = ward()
    vocabulary = fit(events)
    together = tokenize_ethos(events, vocabulary)
    for row, subject in enumerate(together.subject_id):
        alone = tokenize_ethos(events.filter(pl.col("subject_id") == subject), vocabulary)
        span = slice(together.start[row], together.start[row + 1])
        assert alone.token.tolist() == together.token[span].tolist()
        assert alone.known_s.tolist() == together.known_s[span].tolist()


@pytest.mark.parametrize("context", [5, 17, 4096])
def test_windows_hold_every_token_once_behind_the_age_then(context: int) -> None:
    events = ward()
    vocabulary = fit(events)
    timelines = tokenize_ethos(events, vocabulary)
    windows = training_windows(timelines, context)
    body = [
        windows.token[a + n : b]
        for a, b, n in zip(windows.start[:-1], windows.start[1:], windows.n_static, strict=True)
    ]
    assert np.concatenate(body).tolist() == timelines.token.tolist()
    assert np.diff(windows.start).max() <= context
    # A token is the target once, and no static one is.
    asked = windows.target[windows.target != NO_TARGET]
    assert asked.tolist() == timelines.token.tolist()


def test_the_age_is_that_of_the_windows_first_event() -> None:
    rows = [*person(years=50.5), *({"t": y * 365.25 * 24, "code": "ED_OUT"} for y in range(9))]
    events = frame(rows)
    vocabulary = fit(events)
    windows = training_windows(tokenize_ethos(events, vocabulary), 3 + 3)
    said = text(vocabulary, windows.token)
    starts = windows.start[:-1]
    ages = [said[a + 1 : a + 3] for a in starts]
    assert ages[0] == ["Q6", "Q1"]
    assert ages[-1] == ["Q6", "Q9"]
    unknown = frame([{"t": 0.0, "code": "ED_OUT"}])
    windows = training_windows(tokenize_ethos(unknown, fit(unknown)), 8)
    assert text(fit(unknown), windows.token) == ["AGE//UNK", "ED_OUT"]


def test_a_subject_of_whom_nothing_is_known_yet_has_a_static_prompt() -> None:
    events = frame([*person(years=30.2), {"t": 0.0, "code": "ED_OUT"}])
    vocabulary = fit(events)
    timelines = tokenize_ethos(events, vocabulary)
    window = prompts(timelines, np.array([1]), np.array([us(START) / 1e6 - 1.0]), 8)
    assert text(vocabulary, window.token) == ["GENDER//F", "Q4", "Q1"]


def test_decoding_gives_kinds_and_the_time_by_mean_lengths() -> None:
    rows = [{"t": t, "code": "ED_OUT"} for t in (0.0, 1.0, 2.2, 2.2 + 24 * 300)]
    events = frame(rows)
    vocabulary = fit(events)
    kind, hours = vocabulary.decode(tokenize_ethos(events, vocabulary).token)
    assert kind.tolist() == [Kind.CODE, Kind.INTERVAL, Kind.CODE, Kind.INTERVAL, Kind.CODE,
                             Kind.INTERVAL, Kind.INTERVAL, Kind.CODE]  # fmt: skip
    # The two gaps of about an hour share a word; the half years share their gap.
    np.testing.assert_allclose(hours[[1, 3, 7]], [1.1, 2.2, 2.2 + 24 * 300], rtol=1e-9)


def test_the_mean_clock_keeps_the_total_time_of_training() -> None:
    """Over all training gaps the words add up to the time that passed, but for the shortest."""
    events = ward(6)
    vocabulary = fit(events)
    timelines = tokenize_ethos(events, vocabulary)
    _, hours = vocabulary.decode(timelines.token)
    finite = np.where(np.isinf(timelines.known_s), np.nan, timelines.known_s)
    spans = zip(timelines.start[:-1], timelines.start[1:], strict=True)
    passed = sum(float(np.nanmax(finite[a:b]) - finite[a]) for a, b in spans) / 3600
    assert hours[-1] == pytest.approx(passed, rel=1e-3)


def test_intervals_that_training_never_saw_have_a_length_within_their_borders() -> None:
    vocabulary = fit(frame([{"t": 0.0, "code": "ED_OUT"}]))
    index, count = intervals((np.array(vocabulary.interval_seconds) * 1e6).astype(np.int64))
    assert index.tolist() == list(range(19))
    assert (count == 1).all()


def test_fitting_reads_training_subjects_alone() -> None:
    events = ward(4)
    subjects = pl.Series([1, 2])
    both = fit_ethos_vocabulary([events], subjects)
    alone = fit_ethos_vocabulary([events.filter(pl.col("subject_id") <= 2)], subjects)
    assert both.hash == alone.hash
    with pytest.raises(InputError):
        fit_ethos_vocabulary([events], pl.Series([99]))


def test_it_is_read_back_as_written(tmp_path: Path) -> None:
    events = ward()
    vocabulary = fit(events)
    vocabulary.save(tmp_path)
    found = EthosVocabulary.load(tmp_path)
    assert found.hash == vocabulary.hash
    a, b = (tokenize_ethos(events, v) for v in (vocabulary, found))
    assert a.token.tolist() == b.token.tolist()
    assert found.hours.tolist() == vocabulary.hours.tolist()


def test_a_vocabulary_without_measures_is_read_back(tmp_path: Path) -> None:
    fit(frame([{"t": 0.0, "code": "ED_OUT"}])).save(tmp_path)
    assert len(EthosVocabulary.load(tmp_path).measures) == 1


@pytest.mark.parametrize(
    ("field", "value"), [("interval_seconds", [60.0] * 19), ("edges", None), ("tokens", ["UNK"])]
)
def test_a_changed_file_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    fit(ward()).save(tmp_path)
    path = tmp_path / ethos_vocabulary.FILE_NAME
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, field: value}))
    with pytest.raises(ModelMismatch):
        EthosVocabulary.load(tmp_path)


def test_a_context_without_room_and_a_strange_subject_are_refused() -> None:
    events = ward(1)
    timelines = tokenize_ethos(events, fit(events))
    with pytest.raises(InputError) as caught:
        training_windows(timelines, 3)
    assert caught.value.code == "context_too_short"
    with pytest.raises(InputError) as caught:
        prompts(timelines, np.array([7]), np.array([0.0]), 64)
    assert caught.value.code == "unknown_subject"
