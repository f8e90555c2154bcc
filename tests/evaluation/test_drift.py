"""Drift: found where it was put, not where chance plays, and never told of a few."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from scipy.stats import ks_2samp

from tsfm.errors import InputError
from tsfm.evaluation.drift import COLUMNS, drift_table, events_between, population_stability

T0 = datetime(2150, 1, 1)


def make_events(
    n: int = 400,
    *,
    seed: int = 0,
    n_codes: int = 40,
    shares: dict[str, float] | None = None,
    shift: dict[str, float] | None = None,
) -> pl.DataFrame:
    """Subjects who each have each code with a share of 0.4, some with values, some of them often.

    Half of the codes carry values, of a level of each subject's own.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for subject in range(n):
        for number in range(n_codes):
            code = f"LAB//{number}//mg"
            if rng.random() > (shares or {}).get(code, 0.4):
                continue
            own = rng.normal(10 + (shift or {}).get(code, 0.0), 2)
            for _ in range(rng.integers(1, 6)):
                value = own + rng.normal(0, 0.2) if number % 2 else None
                rows.append((subject, T0 + timedelta(days=float(rng.uniform(0, 30))), code, value))
    return pl.DataFrame(
        rows,
        schema={
            "subject_id": pl.Int64,
            "time": pl.Datetime("us"),
            "code": pl.String,
            "numeric_value": pl.Float32,
        },
        orient="row",
    )


def make_scores(n: int = 2000, *, seed: int = 0, too_low: float = 0.0) -> pl.DataFrame:
    """Two stays a subject, calibrated but for a shift of the log odds."""
    rng = np.random.default_rng(seed)
    p = rng.beta(1.5, 6, n)
    truth = 1 / (1 + np.exp(-(np.log(p / (1 - p)) + too_low)))
    return pl.DataFrame(
        {"subject_id": np.arange(n) // 2, "probability": p, "boolean_value": rng.random(n) < truth}
    )


def test_drift_is_found_where_it_was_put() -> None:
    before = make_events()
    now = make_events(
        seed=1,
        shares={"LAB//2//mg": 0.7, "LAB//4//mg": 0.0},
        shift={"LAB//7//mg": 2.0},
    )
    found = drift_table(before, now)
    assert dict(found.schema) == COLUMNS
    drifted = set(found.filter("drifted").select("kind", "name").iter_rows())
    expected = {("code", "LAB//2//mg"), ("code", "LAB//4//mg"), ("value", "LAB//7//mg")}
    assert drifted == expected
    gone = found.filter((pl.col("name") == "LAB//4//mg") & (pl.col("kind") == "code"))
    assert gone["current"].to_list() == [0.0]
    assert gone["distance"][0] == pytest.approx(-gone["reference"][0])


def test_two_like_periods_seldom_drift_though_many_things_are_compared() -> None:
    tables = [drift_table(make_events(seed=s), make_events(seed=s + 100)) for s in range(8)]
    assert all(table.height == 60 for table in tables)
    alarmed = sum(bool(table["drifted"].any()) for table in tables)
    assert alarmed <= 2  # 5 % of tables are expected to have any
    unadjusted = sum(int((table["p_value"] < 0.05).sum()) for table in tables)
    assert 5 < unadjusted < 45  # 24 of 480 by chance


def test_a_subject_counts_once_however_often_it_was_measured() -> None:
    before, now = make_events(seed=3), make_events(seed=4)
    often = pl.concat([now, *[now.filter(pl.col("subject_id") < 30)] * 20])
    assert drift_table(before, often).equals(drift_table(before, now))


def test_adjusted_values_are_benjamini_and_hochbergs() -> None:
    found = drift_table(make_events(seed=5), make_events(seed=6, shift={"LAB//1//mg": 1.0}))
    p = found["p_value"].to_numpy()
    assert (np.diff(p) >= 0).all()
    by_hand = np.minimum.accumulate((p * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1]
    np.testing.assert_allclose(found["q_value"].to_numpy(), np.minimum(by_hand, 1))


def test_the_distance_of_values_is_kolmogorovs_of_subjects_medians() -> None:
    before, now = make_events(seed=7), make_events(seed=8)
    code = "LAB//3//mg"
    medians = [
        f.filter(pl.col("code") == code)
        .group_by("subject_id")
        .agg(pl.col("numeric_value").cast(pl.Float64).median())["numeric_value"]
        for f in (before, now)
    ]
    statistic, p_value = ks_2samp(medians[0], medians[1])
    row = drift_table(before, now).filter((pl.col("name") == code) & (pl.col("kind") == "value"))
    assert row["distance"][0] == pytest.approx(statistic)
    assert row["p_value"][0] == pytest.approx(p_value)
    assert row["reference"][0] is None  # a median is somebody's value


def test_small_cells_are_named_and_not_told() -> None:
    before = make_events(100, shares={"LAB//0//mg": 0.04, "LAB//1//mg": 0.02})
    now = make_events(100, seed=1, shares={"LAB//0//mg": 0.5, "LAB//1//mg": 0.02})
    found = drift_table(before, now)
    rare = found.filter(pl.col("name") == "LAB//1//mg")
    assert rare["status"].unique().to_list() == ["not enough data"]
    for name in ("distance", "psi", "p_value", "q_value", "drifted", "reference", "current"):
        assert rare[name].null_count() == rare.height
    assert rare.filter(pl.col("kind") == "value")["n_current"].to_list() == [None]
    # A code that grew from a few subjects to many is a finding, from which they can't be counted.
    grew = found.filter((pl.col("name") == "LAB//0//mg") & (pl.col("kind") == "code"))
    assert grew["drifted"].to_list() == [True]
    for name in ("reference", "current", "distance", "psi", "p_value", "q_value"):
        assert grew[name].to_list() == [None]
    tiny = drift_table(before.filter(pl.col("subject_id") < 20), now)
    assert tiny["status"].unique().to_list() == ["not enough data"]
    assert tiny["drifted"].null_count() == tiny.height


def test_calibration_drift_is_the_shift_that_was_made() -> None:
    events = make_events(50, n_codes=2)
    same = drift_table(
        events, events, reference_scores=make_scores(), current_scores=make_scores(seed=1)
    )
    moved = drift_table(
        events,
        events,
        reference_scores=make_scores(),
        current_scores=make_scores(seed=1, too_low=0.6),
    )
    for table, drifted in ((same, False), (moved, True)):
        kinds = {row["kind"]: row for row in table.iter_rows(named=True)}
        assert kinds["calibration"]["drifted"] is drifted
        assert kinds["score"]["drifted"] is False  # scores know nothing of the outcomes
    row = moved.filter(pl.col("kind") == "calibration").row(0, named=True)
    assert row["distance"] == pytest.approx(0.6, abs=0.2)
    assert row["distance"] == pytest.approx(row["current"] - row["reference"])


def test_the_calibration_test_has_its_level() -> None:
    events = make_events(50, n_codes=2)
    p_values = []
    for seed in range(60):
        scores = (make_scores(600, seed=seed), make_scores(600, seed=seed + 1000))
        table = drift_table(events, events, reference_scores=scores[0], current_scores=scores[1])
        p_values += table.filter(pl.col("kind") == "calibration")["p_value"].to_list()
    assert sum(p < 0.1 for p in p_values) < 15  # 6 of 60 are expected


def test_a_drift_of_the_scores_is_seen_without_outcomes() -> None:
    events = make_events(50, n_codes=2)
    before, now = (make_scores(seed=s).drop("boolean_value") for s in (0, 1))
    moved = now.with_columns(pl.col("probability") ** 0.8)
    table = drift_table(events, events, reference_scores=before, current_scores=moved)
    assert "calibration" not in table["kind"].to_list()
    assert table.filter(pl.col("kind") == "score")["drifted"].to_list() == [True]


def test_stability_by_hand_and_by_chance() -> None:
    first = np.repeat([0.0, 1.0], [30, 70])
    second = np.repeat([0.0, 1.0], [60, 40])
    p, q = np.array([30.5, 70.5]) / 101, np.array([60.5, 40.5]) / 101
    found, by_chance = population_stability(first, second)
    assert found == pytest.approx(float(np.sum((q - p) * np.log(q / p))))
    assert by_chance == pytest.approx(1 / 100 + 1 / 100)
    assert population_stability(first, first)[0] == 0
    rng = np.random.default_rng(0)
    psis = [population_stability(rng.normal(size=400), rng.normal(size=300)) for _ in range(200)]
    assert np.mean([x for x, _ in psis]) == pytest.approx(psis[0][1], rel=0.15)
    with pytest.raises(InputError, match="bad_sample"):
        population_stability([], [1.0])
    with pytest.raises(InputError, match="bad_sample"):
        population_stability([np.nan], [1.0])


def test_a_period_holds_its_start_and_not_its_end() -> None:
    times = [T0, T0 + timedelta(days=1), None]
    events = pl.DataFrame({"time": times}, schema={"time": pl.Datetime("us")})
    found = events_between(events, T0, T0 + timedelta(days=1))
    assert found["time"].to_list() == [T0]


def test_questions_that_can_not_be_answered_are_refused() -> None:
    events = make_events(20)
    with pytest.raises(InputError, match="missing_scores"):
        drift_table(events, events, reference_scores=make_scores(40))
    with pytest.raises(InputError, match="bad_limit"):
        drift_table(events, events, fewest=5)
    bad = make_scores(40).drop("probability")
    with pytest.raises(InputError, match="missing_column"):
        drift_table(events, events, reference_scores=bad, current_scores=bad)


def test_sizes_do_not_leave_a_few_subjects_over() -> None:
    def period(n_measured: int) -> pl.DataFrame:
        events = make_events(100, n_codes=2, shares={"LAB//0//mg": 1.0, "LAB//1//mg": 1.0})
        keep = (pl.col("code") != "LAB//1//mg") | (pl.col("subject_id") < n_measured)
        return events.filter(keep)

    found = drift_table(period(95), period(60))
    row = found.filter((pl.col("kind") == "value") & (pl.col("name") == "LAB//1//mg"))
    assert row.select("n_reference", "n_current").row(0) == (None, 60)


def test_labels_may_be_numbers_and_no_others_than_nought_and_one() -> None:
    events = make_events(50, n_codes=2)
    scores = [make_scores(seed=seed) for seed in (0, 1)]
    told = drift_table(events, events, reference_scores=scores[0], current_scores=scores[1])
    for kind in (pl.Int64, pl.Float64):
        same = [s.with_columns(pl.col("boolean_value").cast(kind)) for s in scores]
        other = drift_table(events, events, reference_scores=same[0], current_scores=same[1])
        assert other.equals(told)
    odd = scores[0].with_columns(pl.lit(2).alias("boolean_value"))
    with pytest.raises(InputError, match="bad_label"):
        drift_table(events, events, reference_scores=odd, current_scores=scores[1])


def test_sizes_do_not_tell_how_many_have_a_code_without_a_value() -> None:
    def period(n_with_value: int) -> pl.DataFrame:
        events = make_events(200, n_codes=2, shares={"LAB//0//mg": 1.0, "LAB//1//mg": 1.0})
        events = events.filter((pl.col("code") != "LAB//1//mg") | (pl.col("subject_id") < 100))
        keep = pl.col("subject_id") < n_with_value
        return events.with_columns(pl.when(keep).then("numeric_value"))

    found = drift_table(period(97), period(60))
    kinds = {r["kind"]: r for r in found.filter(name="LAB//1//mg").iter_rows(named=True)}
    assert kinds["code"]["reference"] == 0.5
    assert (kinds["value"]["n_reference"], kinds["value"]["n_current"]) == (None, 60)
    # By chance is a formula of both sizes; the others' digits are of their product.
    assert kinds["value"]["psi_by_chance"] is None
    for figure in ("distance", "psi", "p_value"):
        told = kinds["value"][figure]
        assert told == float(f"{told:.2g}")


def test_sizes_do_not_tell_how_many_have_a_score_without_an_outcome() -> None:
    events = make_events(50, n_codes=2)
    few, many = (
        make_scores(800, seed=seed).with_columns(
            pl.when(pl.col("subject_id") >= n).then("boolean_value").alias("boolean_value")
        )
        for seed, n in ((0, 4), (1, 50))
    )
    found = drift_table(events, events, reference_scores=few, current_scores=many)
    kinds = {r["kind"]: r for r in found.iter_rows(named=True)}
    assert (kinds["score"]["n_reference"], kinds["score"]["n_current"]) == (400, 400)
    assert (kinds["calibration"]["n_reference"], kinds["calibration"]["n_current"]) == (None, 350)
    assert kinds["calibration"]["status"] == "tested"
