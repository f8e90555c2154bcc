"""Batches: packed whole subjects, exact gaps, and trends that look backwards only."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsfm.batches.batch import Batch, make_batch
from tsfm.batches.dataset import COMPETING, EVENT, NONE, CohortIndex, pack
from tsfm.errors import InputError

N_CODES = 6
STEP = np.linspace(0.5, 2.0, N_CODES).astype(np.float32)


def make_tokens(seed: int, lengths: list[int]) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    return {
        "code": rng.integers(0, N_CODES, n).astype(np.int32),
        "value": np.where(rng.random(n) < 0.7, rng.normal(size=n), np.nan).astype(np.float32),
        "bin": np.zeros(n, np.int8),
        "time_s": np.concatenate([1.7e9 + np.cumsum(rng.exponential(9e3, k)) for k in lengths]),
        "lag_hours": np.zeros(n, np.float32),
        "lengths": np.array(lengths, np.int64),
        "subject_id": np.arange(len(lengths)),
        "birth_s": np.zeros(len(lengths)),
        "step": STEP,
    }


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 999), LENGTHS)
def test_trends_are_those_of_a_plain_walk_through_each_record(
    seed: int, lengths: list[int]
) -> None:
    tokens = make_tokens(seed, lengths)
    batch = make_batch(**tokens)
    at = 0
    for length in lengths:
        last: dict[int, tuple[float, float]] = {}
        for i in range(at, at + length):
            code, value = int(tokens["code"][i]), float(tokens["value"][i])
            time = float(tokens["time_s"][i])
            seen = code in last
            assert bool(batch.repeated[i]) == seen
            since, before = (time - last[code][0], last[code][1]) if seen else (0.0, np.nan)
            assert float(batch.since_hours[i]) == pytest.approx(since / 3600, rel=1e-5)
            change = value - before
            known = 0.0 if np.isnan(change) else change
            assert float(batch.change[i]) == pytest.approx(known / STEP[code], abs=1e-5)
            first = np.isnan(before)
            expected = (0.0 if np.isnan(value) else value) if first else known
            assert float(batch.increment[i]) == pytest.approx(expected, abs=1e-5)
            last[code] = (time, value)
        at += length


def test_increments_add_up_to_the_last_value() -> None:
    tokens = make_tokens(3, [200])
    tokens["value"] = np.nan_to_num(tokens["value"], nan=0.3).astype(np.float32)
    batch = make_batch(**tokens)
    for code in range(N_CODES):
        own = tokens["code"] == code
        total = float(batch.increment.numpy()[own].sum())
        assert total == pytest.approx(float(tokens["value"][own][-1]), abs=1e-4)


def test_a_later_token_changes_nothing_before_it() -> None:
    tokens = make_tokens(5, [40])
    whole = make_batch(**tokens)
    cut = {k: v[:25] if k not in ("lengths", "subject_id", "birth_s", "step") else v
           for k, v in tokens.items()}  # fmt: skip
    part = make_batch(**{**cut, "lengths": np.array([25])})
    for name in ("gap_hours", "since_hours", "change", "increment", "rate", "age_years"):
        assert bool((getattr(whole, name)[:25] == getattr(part, name)).all())


def test_gaps_of_milliseconds_and_of_decades_are_exact() -> None:
    tokens = make_tokens(0, [3])
    tokens["time_s"] = np.array([1.7e9, 1.7e9 + 0.001, 1.7e9 + 30 * 31_557_600.0])
    gaps = make_batch(**tokens).gap_hours
    assert float(gaps[1]) == pytest.approx(0.001 / 3600, rel=1e-3)
    assert float(gaps[2]) == pytest.approx(30 * 8766.0, rel=1e-6)


@given(LENGTHS, st.integers(1, 60))
def test_packing_cuts_nobody_and_loses_nobody(lengths: list[int], budget: int) -> None:
    sizes = np.array(lengths, np.int64)
    packs = pack(np.arange(len(sizes)), sizes, budget)
    assert np.concatenate(packs).tolist() == list(range(len(sizes)))
    assert all(len(p) == 1 or int(sizes[p].sum()) <= budget for p in packs)


def test_no_room_for_a_token_is_a_clear_error() -> None:
    with pytest.raises(InputError):
        pack(np.arange(1), np.array([3]), 0)


def cohort_of(batch: Batch, times: list[datetime], outcome: str = "event") -> pl.DataFrame:
    return pl.DataFrame(
        {
            "subject_id": [int(batch.subject_id[0])] * len(times),
            "prediction_time": times,
            "outcome": [outcome] * len(times),
            "outcome_days": [3.0] * len(times),
        },
        schema_overrides={"prediction_time": pl.Datetime("us")},
    )


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_a_prediction_stands_there_whatever_its_unit(unit: Any) -> None:
    batch = make_batch(**make_tokens(1, [6]))
    times = [datetime(1970, 1, 1) + timedelta(seconds=int(s) + 1) for s in batch.time_s.tolist()]
    cohort = cohort_of(batch, times[:-1])
    points = CohortIndex.create(
        cohort.with_columns(pl.col("prediction_time").cast(pl.Datetime(unit)))
    ).points_in(batch)
    assert points.position.tolist() == [0, 1, 2, 3, 4]


def test_outcomes_are_read_as_they_are_spelt_or_refused() -> None:
    batch = make_batch(**make_tokens(1, [6]))
    cohort = pl.concat([cohort_of(batch, [datetime(2024, 1, 1)])] * 5).with_columns(
        outcome=pl.Series(["event", "competing", "censored", "none", None])
    )
    assert CohortIndex.create(cohort).outcome.tolist() == [EVENT, COMPETING, NONE, NONE, NONE]
    loud = cohort.with_columns(pl.col("outcome").str.to_uppercase())
    with pytest.raises(InputError, match="bad_outcome"):
        CohortIndex.create(loud)
    unread = CohortIndex.create(loud.drop("outcome_days"), outcomes=False)
    assert unread.outcome.tolist() == [NONE] * 5
    assert np.isnan(unread.days).all()


def test_a_prediction_stands_on_the_last_token_known_by_then() -> None:
    tokens = make_tokens(1, [6])
    tokens["time_s"] = 1.7e9 + 3600.0 * np.array([0, 1, 1, 5, 9, 9])
    batch = make_batch(**tokens)
    start = datetime(1970, 1, 1) + timedelta(seconds=1.7e9)
    times = [start + timedelta(hours=h) for h in (-1, 0, 1, 4, 9)]
    points = CohortIndex.create(cohort_of(batch, times)).points_in(batch)
    assert points.row.tolist() == [1, 2, 3, 4]  # before the first token there is nothing to read
    assert points.position.tolist() == [0, 2, 2, 5]
    assert points.elapsed_hours.tolist() == [0.0, 0.0, 3.0, 0.0]
