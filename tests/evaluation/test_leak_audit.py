"""A scorer that reads what was known passes the audit; one that reads anything else is named."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tsfm import event_table, schema
from tsfm.errors import InputError
from tsfm.evaluation.leak_audit import (
    ADDED,
    ANSWERS,
    CODES,
    KINDS,
    N_ADDED,
    REMOVED,
    TIMES,
    VALUES,
    Scorer,
    alter_later,
    audit_leaks,
    stream_digests,
    stream_scorer,
)
from tsfm.tokens.token_store import TokenStore, build_token_store

from .model_patients import make_events

KEY = [schema.SUBJECT_ID, schema.PREDICTION_TIME]
KNOWN = pl.coalesce(schema.AVAILABLE_TIME, schema.TIME)
IS_KNOWN = (KNOWN.is_null() | (pl.col(schema.PREDICTION_TIME) >= KNOWN)).fill_null(True)


@pytest.fixture(scope="module")
def events() -> pl.DataFrame:
    """Eight subjects with a stay or two, in years whose seconds are coarse as floats."""
    parts = [make_events(subject, 40, stays=1 + subject % 2) for subject in range(1, 9)]
    return event_table.sort_events(pl.concat(parts))


@pytest.fixture(scope="module")
def cohort(events: pl.DataFrame) -> pl.DataFrame:
    """Each discharge and the middle of each stay, in an order of their own."""
    ends = events.filter(pl.col("code").str.starts_with("HOSPITAL_DISCHARGE"))
    asked = pl.concat([ends.select("subject_id", prediction_time=pl.col("time") + shift)
                       for shift in (timedelta(), -timedelta(hours=30))])  # fmt: skip
    return asked.with_columns(
        start_time=pl.col("prediction_time") - timedelta(days=4),
        eligible=pl.lit(True),
    ).sample(fraction=1.0, shuffle=True, seed=1)


def summed(keep: pl.Expr, what: pl.Expr) -> Scorer:
    """A scorer that adds up something of the events that it keeps."""

    def score(events: pl.DataFrame, cohort: pl.DataFrame) -> np.ndarray:
        rows = cohort.select(KEY).with_row_index("row")
        found = (
            rows.join(events, on=schema.SUBJECT_ID)
            .filter(keep)
            .group_by("row")
            .agg(what.cast(pl.Float64).alias("score"))
        )
        return rows.join(found, on="row", how="left").sort("row")["score"].to_numpy()

    return score


LAST_VALUE = pl.col("numeric_value").sort_by("time", "code", "numeric_value").last()
HASH = (pl.col("code").hash(3) % 1000).sum()


def test_a_scorer_of_what_was_known_is_clean(events: pl.DataFrame, cohort: pl.DataFrame) -> None:
    for what in (pl.len(), LAST_VALUE, HASH):
        found = audit_leaks(events, cohort, summed(IS_KNOWN, what))
        assert found.is_clean
        assert found.n_stays == cohort.height
        assert all(found.n_altered[kind] > 50 for kind in KINDS), found.n_altered
        assert found.n_altered[ANSWERS] == 0  # of a cohort that holds none


def one_later_event(events: pl.DataFrame, cohort: pl.DataFrame) -> np.ndarray:
    """The first value after the prediction time: the smallest leak there is."""
    rows = cohort.select(KEY).with_row_index("row")
    later = rows.join(events, on=schema.SUBJECT_ID).filter(~IS_KNOWN).sort(KNOWN, "code")
    found = later.group_by("row", maintain_order=True).agg(pl.col("numeric_value").first())
    joined = rows.join(found, on="row", how="left", maintain_order="left")
    return joined["numeric_value"].to_numpy()


AT = pl.col(schema.TIME) <= pl.col(schema.PREDICTION_TIME)
PLANTED: dict[str, tuple[Scorer, set[str]]] = {
    "one later value": (one_later_event, {VALUES, TIMES, ADDED, REMOVED}),
    "what was true by then but not known": (summed(AT, pl.len()), {TIMES, ADDED, REMOVED}),
    "its last value": (summed(AT, LAST_VALUE), {VALUES, TIMES, ADDED, REMOVED}),
    "codes of the whole record": (summed(pl.lit(True), HASH), {CODES, ADDED, REMOVED}),
    "length of the whole record": (summed(pl.lit(True), pl.len()), {ADDED, REMOVED}),
    "when the record ends": (
        summed(pl.lit(True), pl.col("time").max().dt.epoch("us")), {TIMES, ADDED, REMOVED},
    ),
    "a death to come": (
        summed(pl.lit(True), pl.col("code").str.starts_with("HOSPITAL_DISCHARGE").sum()),
        {CODES, ADDED, REMOVED},
    ),
    "a microsecond of the future": (
        summed(pl.col(schema.PREDICTION_TIME) + timedelta(microseconds=1) >= KNOWN, pl.len()),
        {TIMES, ADDED},
    ),
}  # fmt: skip


@pytest.mark.parametrize("leak", PLANTED)
def test_a_planted_leak_is_caught_by_the_kinds_that_touch_it(
    events: pl.DataFrame, cohort: pl.DataFrame, leak: str
) -> None:
    score, expected = PLANTED[leak]
    found = audit_leaks(events, cohort, score)
    assert not found.is_clean
    by = set(found.leaks["kinds"].unique())
    assert by == expected | {"+".join(KINDS)}
    assert found.leaks.select(KEY).unique().height >= 0.5 * cohort.height


@pytest.fixture(scope="module")
def answered(cohort: pl.DataFrame) -> pl.DataFrame:
    """The cohort with answers, known at the discharge: some are known when the next are asked."""
    number = pl.int_range(pl.len())
    return cohort.with_columns(
        end_time=pl.col("prediction_time") + pl.duration(hours=number % 50),
        reason=pl.lit(None, pl.String),
        outcome=pl.when(number % 3 == 0).then(pl.lit("event")).otherwise(pl.lit("censored")),
        outcome_days=(number % 50) / 24,
    )


@pytest.mark.parametrize(
    "answer",
    [
        (pl.col("outcome") == "event").cast(pl.Float64),
        pl.col("outcome_days"),
        (pl.col("end_time") - pl.col("start_time")).dt.total_hours(),
        pl.col("reason").is_null().cast(pl.Int8),
    ],
    ids=["outcome", "days", "length of stay", "reason"],
)
@pytest.mark.parametrize("rounds", [[KINDS], [[VALUES]]], ids=["all", "one"])
def test_a_scorer_that_reads_the_answer_from_the_cohort_is_caught(
    events: pl.DataFrame, answered: pl.DataFrame, answer: pl.Expr, rounds: Any
) -> None:
    def score(_: pl.DataFrame, cohort: pl.DataFrame) -> np.ndarray:
        return cohort.select(answer).to_series().to_numpy()

    found = audit_leaks(events, answered, score, rounds=rounds)
    assert found.leaks["kinds"].unique().to_list() == [ANSWERS]
    assert found.leaks.select(KEY).unique().height > 0.2 * answered.height


@pytest.mark.parametrize("days", [float("inf"), 1e12])
def test_an_outcome_without_an_end_is_one_that_is_not_known_yet(
    events: pl.DataFrame, answered: pl.DataFrame, days: float
) -> None:
    endless = answered.with_columns(outcome_days=pl.lit(days))

    def score(_: pl.DataFrame, cohort: pl.DataFrame) -> np.ndarray:
        return (cohort["outcome"] == "event").fill_null(False).to_numpy().astype(float)

    assert not audit_leaks(events, endless, score).is_clean


def test_a_scorer_may_read_of_the_cohort_what_was_known(
    events: pl.DataFrame, answered: pl.DataFrame
) -> None:
    """Ends of earlier stays, outcomes whose days have passed, and who is asked about at all."""

    def score(_: pl.DataFrame, cohort: pl.DataFrame) -> np.ndarray:
        others = cohort.select(
            "subject_id", "outcome", "end_time",
            over=pl.col("prediction_time") + pl.duration(hours=pl.col("outcome_days") * 24),
        )  # fmt: skip
        now = pl.col("prediction_time")
        rows = cohort.select(KEY).with_row_index("row").join(others, on="subject_id")
        sums = rows.group_by("row").agg(
            ((pl.col("outcome") == "event") & (pl.col("over") <= now)).sum().alias("events"),
            (pl.col("end_time") <= now).sum().alias("ends"),
        )
        return sums.sort("row").select("events", "ends").to_numpy()

    found = audit_leaks(events, answered, score)
    assert score(events, answered).sum(0).min() > 0
    assert found.is_clean
    assert found.n_altered[ANSWERS] > 20


def test_a_leak_into_one_stay_names_that_stay_alone(
    events: pl.DataFrame, cohort: pl.DataFrame
) -> None:
    honest = summed(IS_KNOWN, pl.len())
    guilty = 5

    def score(events: pl.DataFrame, cohort: pl.DataFrame) -> np.ndarray:
        found = honest(events, cohort).copy()
        found[guilty] += summed(pl.lit(True), pl.len())(events, cohort)[guilty]
        return found

    leaks = audit_leaks(events, cohort, score).leaks
    assert leaks.select(KEY).unique().rows() == [cohort.select(KEY).row(guilty)]
    assert (leaks["difference"] >= 1).all()


def test_the_same_seed_finds_the_same(events: pl.DataFrame, cohort: pl.DataFrame) -> None:
    first, again, other = (
        audit_leaks(events, cohort, one_later_event, seed=seed) for seed in (0, 0, 1)
    )
    assert first.leaks.equals(again.leaks)
    assert first.n_altered == again.n_altered
    assert not first.leaks.equals(other.leaks)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_an_alteration_leaves_what_was_known_and_everyone_else(
    events: pl.DataFrame, cohort: pl.DataFrame, kind: str, seed: int
) -> None:
    cuts = cohort.group_by("subject_id", maintain_order=True).agg(
        pl.col("prediction_time").min().alias("_cut")
    )
    cuts = cuts.filter(pl.col("subject_id") <= 5)
    altered, counts = alter_later(events, cuts, [kind], np.random.default_rng(seed))

    def known(frame: pl.DataFrame) -> pl.DataFrame:
        beside = frame.join(cuts, on="subject_id", how="left", maintain_order="left")
        late = (pl.col("_cut") < KNOWN).fill_null(False) & (pl.col("code") != "MEDS_BIRTH")
        return beside.filter(~late).select(events.columns)

    assert known(altered).equals(known(events))
    others = pl.col("subject_id") > 5
    assert altered.filter(others).equals(events.filter(others))
    assert altered.schema == events.schema
    schema.check_order(altered.to_arrow())
    assert counts.keys() == {kind}
    difference = altered.height - events.height
    expected = {ADDED: 5 * N_ADDED, REMOVED: -counts[kind]}.get(kind, 0)
    assert difference == expected
    assert not altered.equals(events)


def test_late_facts_about_the_past_are_among_what_is_altered(
    events: pl.DataFrame, cohort: pl.DataFrame
) -> None:
    cuts = cohort.group_by("subject_id").agg(pl.col("prediction_time").min().alias("_cut"))
    for kind in (TIMES, ADDED):
        altered, _ = alter_later(events, cuts, [kind], np.random.default_rng(0))
        beside = altered.join(cuts, on="subject_id").filter(pl.col("_cut") < KNOWN)
        past = beside.filter(pl.col("time") < pl.col("_cut"))
        assert 50 < past.height < 0.8 * beside.height
        soonest = (beside["available_time"] - beside["_cut"]).min()
        assert soonest == timedelta(microseconds=1)


def test_a_tolerance_lets_rounding_pass_and_nothing_more(
    events: pl.DataFrame, cohort: pl.DataFrame
) -> None:
    honest, leak = summed(IS_KNOWN, pl.len()), summed(pl.lit(True), pl.len())

    def blend(share: float) -> Scorer:
        return lambda events, cohort: honest(events, cohort) + share * leak(events, cohort)

    assert not audit_leaks(events, cohort, blend(1e-9)).is_clean
    assert audit_leaks(events, cohort, blend(1e-9), tolerance=1e-5).is_clean
    assert not audit_leaks(events, cohort, blend(1e-3), tolerance=1e-5).is_clean


def test_a_missing_number_is_itself_and_no_other(
    events: pl.DataFrame, cohort: pl.DataFrame
) -> None:
    nothing = audit_leaks(events, cohort, lambda e, c: np.full((c.height, 2), np.nan))
    assert nothing.is_clean
    moved = audit_leaks(
        events, cohort, lambda e, c: np.full(c.height, np.nan if e.height == events.height else 1.0)
    )
    assert moved.leaks["difference"].is_nan().all()


@pytest.fixture(scope="module")
def tokens(events: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(events, tmp_path_factory.mktemp("store"))


def write(events: pl.DataFrame, folder: Path) -> Path:
    with event_table.EventWriter(folder / "events", n_shards=2) as writer:
        writer.add(events)
        writer.finish(dataset={}, subject_splits=dict.fromkeys(range(100), "train"))
    build_token_store(folder / "events", folder / "tokens", min_count=3)
    return folder / "tokens"


def test_the_streams_of_a_token_store_are_bit_identical_up_to_each_prediction_time(
    events: pl.DataFrame, cohort: pl.DataFrame, tokens: Path
) -> None:
    assert audit_leaks(events, cohort, stream_scorer(tokens)).is_clean
    assert audit_leaks(tokens.parent / "events", cohort, stream_scorer(tokens)).is_clean


def test_streams_in_the_order_of_time_are_caught(
    events: pl.DataFrame, cohort: pl.DataFrame, tokens: Path
) -> None:
    honest = stream_scorer(tokens)

    def by_time(events: pl.DataFrame, cohort: pl.DataFrame) -> np.ndarray:
        return honest(events.with_columns(available_time="time"), cohort)

    caught = audit_leaks(events, cohort, by_time).leaks["kinds"].unique()
    assert {TIMES, ADDED} <= set(caught)


@pytest.mark.parametrize("column", ["numeric_value", "code", "time", "available_time", "signal_id"])
def test_a_digest_tells_any_change_of_a_known_token(
    events: pl.DataFrame, cohort: pl.DataFrame, tokens: Path, column: str
) -> None:
    score: Callable[..., Any] = stream_scorer(tokens)
    rows = cohort.filter(pl.col("subject_id") == 1)
    lab = pl.col("code").str.starts_with("LAB") & (pl.col("subject_id") == 1)
    first = events.filter(lab)["time"].min()
    new: dict[str, pl.Expr] = {
        "numeric_value": pl.col("numeric_value") + 1,
        "code": pl.lit("PROCEDURE//SNOMED//1"),
        "time": pl.col("time") - timedelta(minutes=1),
        "available_time": pl.col("available_time") + timedelta(microseconds=2),
        "signal_id": pl.lit("s1"),
    }
    changed = events.with_columns(
        pl.when(lab & (pl.col("time") == first)).then(new[column]).otherwise(column).alias(column)
    )
    before, after = score(events, rows), score(changed, rows)
    assert (before[:, 0] == after[:, 0]).all()
    assert (before[:, 1] != after[:, 1]).all()


def test_a_digest_counts_the_tokens_known_by_then(
    events: pl.DataFrame, cohort: pl.DataFrame, tokens: Path
) -> None:
    found = stream_digests(TokenStore.open(tokens), cohort)
    expected = summed(IS_KNOWN, pl.len())(events, cohort)
    assert found[:, 0].tolist() == expected.astype(int).tolist()


def test_questions_that_can_not_be_asked_are_refused(
    events: pl.DataFrame, cohort: pl.DataFrame
) -> None:
    score = summed(IS_KNOWN, pl.len())
    counter = iter(range(99))

    def unsteady(events: pl.DataFrame, cohort: pl.DataFrame) -> np.ndarray:
        return np.full(cohort.height, float(next(counter)))

    def wider(events_: pl.DataFrame, cohort: pl.DataFrame) -> np.ndarray:
        return np.zeros((cohort.height, 1 + int(events_.height > events.height)))

    refused: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("bad_alteration", (events, cohort, score), {"rounds": [["value"]]}),
        ("bad_alteration", (events, cohort, score), {"rounds": []}),
        ("empty_cohort", (events, cohort.clear(), score), {}),
        ("bad_scorer", (events, cohort, lambda e, c: np.zeros(3)), {}),
        ("bad_scorer", (events, cohort, wider), {}),
        ("scorer_not_deterministic", (events, cohort, unsteady), {}),
    ]
    for code, arguments, more in refused:
        with pytest.raises(InputError) as caught:
            audit_leaks(*arguments, **more)
        assert caught.value.code == code


def test_a_record_without_a_future_is_audited_by_what_is_added() -> None:
    events = make_events(1, 10)
    now = datetime(2200, 1, 1)
    cohort = pl.DataFrame({"subject_id": [1], "prediction_time": [now]}).cast(
        {"prediction_time": pl.Datetime("us")}
    )
    found = audit_leaks(events, cohort, summed(pl.lit(True), pl.len()))
    assert found.n_altered[VALUES] == 0
    assert found.n_altered[ADDED] == 2 * N_ADDED
    assert found.leaks["kinds"].to_list() == [ADDED, "+".join(KINDS)]
