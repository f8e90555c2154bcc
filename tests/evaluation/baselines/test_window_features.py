"""Window features against plain loops over the rows, and blind to what is known later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from tsfm.evaluation.baselines.window_features import WINDOWS, Ratio, Window, window_features

T0 = datetime(2020, 1, 1)
HOUR, MOMENT = timedelta(hours=1), timedelta(microseconds=1)
LAB, PULSE, PRESSURE, DRUG = "LAB//50912//mg/dL", "VITAL//P", "VITAL//BP", "MEDICATION//A"
SHOCK = Ratio("shock", (PULSE,), (PRESSURE, "VITAL//CUFF"), 10.0)
ALL_WINDOWS = (*WINDOWS, Window("last2", last_hours=2.0), Window("start3", first_hours=3.0))
LONG = ("first", "median", "sum", "q10", "q90", "slope", "hours_since_last", "hours_to_first")
SHORT = ("n", "mean", "min", "max", "std", "last")

Event = tuple[int, datetime, str, float | None, datetime]
Build = Callable[[Sequence[Sequence[Any]]], pl.DataFrame]


def made_up(seed: int, n_subjects: int = 8) -> tuple[list[Event], list[tuple]]:
    """Stays of two days with values that tie, lag, lack, and lie outside; asked two or three times.

    Values with a quarter as their smallest part have exact sums.
    """
    rng = np.random.default_rng(seed)
    rows: list[Event] = []
    asked: list[tuple] = []
    for subject in range(1, n_subjects + 1):
        start = T0 + timedelta(days=float(rng.integers(0, 300)), hours=float(rng.integers(0, 24)))
        for code in (LAB, PULSE, PRESSURE, "VITAL//CUFF", DRUG):
            for _ in range(int(rng.integers(0, 14))):
                # Quarters of hours: many share a moment, some lie on the border of a window.
                time = start + HOUR * (float(rng.integers(-20, 200)) / 4)
                lag = HOUR * float(rng.choice([0.0, 0.0, 0.5, 30.0]))
                value = float(rng.integers(0, 40)) / 4 if rng.random() < 0.9 else None
                rows.append((subject, time, code, None if code == DRUG else value, time + lag))
        for hours in rng.choice([6.0, 12.25, 24.0, 48.0], int(rng.integers(1, 4)), replace=False):
            asked.append((subject, start, start + HOUR * float(hours)))
    return rows, asked


def in_order(rows: list[Event]) -> list[Event]:
    return sorted(rows, key=lambda row: row[:2])


def known_by(rows: list[Event], subject: int, start: datetime, now: datetime) -> list[Event]:
    return [
        row
        for row in in_order(rows)
        if row[0] == subject and start <= row[1] <= now and row[4] <= now
    ]


def ratios_of(known: list[Event], ratio: Ratio) -> list[Event]:
    made = []
    for subject, time, code, value, available in known:
        before = [r for r in known if r[2] in ratio.under and (r[3] or 0) > 0 and r[1] <= time]
        if code in ratio.over and value is not None and before:
            divisor = before[-1][3]
            assert divisor is not None
            made.append((subject, time, ratio.name, value / divisor * ratio.factor, available))
    return made


def by_loops(
    known: list[Event], code: str, start: datetime, now: datetime
) -> dict[str, float | None]:
    """All features of one code at one row."""
    own = [(r[1], r[3]) for r in known if r[2] == code and r[3] is not None]
    found: dict[str, float | None] = {}
    windows = {"stay": own}
    for window in ALL_WINDOWS:
        first, last = window.first_hours, window.last_hours
        windows[window.name] = [
            (t, v)
            for t, v in own
            if (first is None or t - start <= first * HOUR)
            and (last is None or now - t < last * HOUR)
        ]
    for name, pairs in windows.items():
        values = np.array([v for _, v in pairs])
        found[f"{name}/n"] = len(values)
        some = len(values) > 0
        found[f"{name}/mean"] = values.mean() if some else None
        found[f"{name}/min"] = values.min() if some else None
        found[f"{name}/max"] = values.max() if some else None
        found[f"{name}/std"] = values.std(ddof=1) if len(values) > 1 else None
        found[f"{name}/last"] = values[-1] if some else None
    values = np.array([v for _, v in own])
    hours = np.array([(t - start) / HOUR for t, _ in own])
    some = len(values) > 0

    def quantile(q: float) -> float:
        return float(np.sort(values)[int(np.floor((len(values) - 1) * q + 0.5))])

    found |= {
        "stay/first": values[0] if some else None,
        "stay/median": np.median(values) if some else None,
        "stay/sum": values.sum() if some else None,
        "stay/q10": quantile(0.1) if some else None,
        "stay/q90": quantile(0.9) if some else None,
        "stay/slope": np.polyfit(hours, values, 1)[0] if len(set(hours)) > 1 else None,
        "stay/hours_since_last": (now - own[-1][0]) / HOUR if some else None,
        "stay/hours_to_first": hours[0] if some else None,
    }
    return found


@pytest.mark.parametrize("seed", range(3))
def test_features_equal_plain_loops(seed: int, events_of: Build, cohort_of: Any) -> None:
    rows, asked = made_up(seed)
    order = np.random.default_rng(seed).permutation(len(asked))
    cohort = cohort_of([asked[i] for i in order])  # in no order, subjects apart
    X, names = window_features(
        events_of(in_order(rows)), cohort, range(1, 9), windows=ALL_WINDOWS, ratios=[SHOCK],
        min_subjects=2,
    )  # fmt: skip
    assert X.shape == (len(asked), len(names))
    assert X.dtype == np.float32
    assert len(set(names)) == len(names)
    compared = 0
    for row, place in zip(X, order, strict=True):
        subject, start, now = asked[place]
        known = known_by(rows, subject, start, now)
        known = [*known, *ratios_of(known, SHOCK)]
        given = dict(zip(names, row.tolist(), strict=True))
        for code in (LAB, PULSE, PRESSURE, SHOCK.name):
            for name, expected in by_loops(known, code, start, now).items():
                value = given[f"{code}/{name}"]
                told = np.nan if expected is None else expected
                np.testing.assert_allclose(value, told, rtol=1e-5, atol=1e-5, err_msg=name)
                compared += expected is not None
        assert given[f"{DRUG}/stay/n"] == sum(r[2] == DRUG for r in known)
        if known:
            assert given["events"] == len(known)
            assert given["moments"] == len({r[1] for r in known})
            assert given["codes"] == len({r[2] for r in known})
        else:
            assert np.isnan([given[name] for name in ("events", "moments", "codes")]).all()
    assert compared > 500


def test_the_same_rows_give_the_same_bits(events_of: Build, cohort_of: Any) -> None:
    rows, asked = made_up(3, 30)
    events = events_of(in_order(rows))
    first, *others = (
        window_features(events, cohort_of(asked), range(1, 31), ratios=[SHOCK], min_subjects=2)
        for _ in range(6)
    )
    for X, names in others:
        assert names == first[1]
        np.testing.assert_array_equal(X, first[0])


def test_of_values_at_one_moment_the_last_row_counts_as_last(
    events_of: Build, cohort_of: Any
) -> None:
    rows = [(1, T0 + HOUR, LAB, float(i), T0 + HOUR) for i in range(40)]
    X, names = window_features(
        events_of(rows), cohort_of([(1, T0, T0 + 2 * HOUR)]), [1], min_subjects=1
    )
    given = dict(zip(names, X[0].tolist(), strict=True))
    assert (given[f"{LAB}/stay/first"], given[f"{LAB}/stay/last"]) == (0.0, 39.0)
    assert np.isnan(given[f"{LAB}/stay/slope"])  # one moment has no course


def test_nothing_is_used_that_was_not_available(events_of: Build, cohort_of: Any) -> None:
    now = T0 + 10 * HOUR
    late = now + MOMENT
    known = [
        (1, T0 + 2 * HOUR, LAB, 1.0, T0 + 3 * HOUR),
        (1, now, LAB, 2.0, now),
        (1, T0 + HOUR, DRUG, None, T0 + HOUR),
    ]
    other = [(2, T0 + HOUR, code, 5.0, T0 + HOUR) for code in (LAB, DRUG)]
    unknown = [
        (1, T0 + 4 * HOUR, LAB, 100.0, late),  # of the stay, released after the question
        (1, late, LAB, 100.0, late),
        (1, late, LAB, 100.0, T0),  # planned for later: nothing was measured yet
        (1, T0 - MOMENT, LAB, 100.0, T0),  # of before the stay
        (1, T0 + HOUR, DRUG, None, late),
        (2, T0 + 2 * HOUR, LAB, 100.0, T0 + 2 * HOUR),  # another's
    ]
    cohort = cohort_of([(1, T0, now)])
    both = [
        window_features(events_of([*known, *other, *more]), cohort, [1, 2], min_subjects=1)
        for more in ([], unknown)
    ]
    assert both[0][1] == both[1][1]
    np.testing.assert_array_equal(both[0][0], both[1][0])
    given = dict(zip(both[0][1], both[0][0][0].tolist(), strict=True))
    assert (given[f"{LAB}/stay/n"], given[f"{LAB}/stay/last"]) == (2, 2.0)


def test_codes_are_those_of_enough_training_subjects_by_what_they_mostly_hold(
    events_of: Build, cohort_of: Any
) -> None:
    rows: list[tuple] = []
    for subject in range(1, 11):
        at = T0 + HOUR
        rows.append((subject, at, "LAB//common", 1.0, at))
        rows.append((subject, at, "half", 1.0 if subject % 2 else None, at))
        rows.append((subject, at, "rarely valued", 1.0 if subject == 1 else None, at))
        rows.append((subject, at, "test only" if subject > 5 else f"own {subject}", 1.0, at))
        rows.append((subject, T0 + 9 * HOUR, "later", 1.0, T0 + 9 * HOUR))
    cohort = cohort_of([(subject, T0, T0 + 2 * HOUR) for subject in range(1, 11)])
    _, names = window_features(events_of(rows), cohort, range(1, 6), min_subjects=5)
    kept = {name.split("/stay/")[0] for name in names if "/stay/" in name}
    assert kept == {"LAB//common", "half", "rarely valued"}
    assert [name for name in names if name.startswith("rarely")] == ["rarely valued/stay/n"]
    assert {f"half/stay/{name}" for name in (*SHORT, *LONG)} <= set(names)
    assert {f"half/{w.name}/{name}" for w in WINDOWS for name in SHORT} <= set(names)
    nothing = window_features(events_of(rows), cohort, range(1, 6), min_subjects=6)
    assert nothing[1] == ["age_years", "female", "events", "moments", "codes"]


def test_features_do_not_depend_on_who_is_asked_beside(events_of: Build, cohort_of: Any) -> None:
    rows, asked = made_up(5)
    train = cohort_of([row for row in asked if row[0] <= 4])
    rest = cohort_of([row for row in asked if row[0] > 4])
    events = events_of(in_order(rows))
    together, names = window_features(events, pl.concat([rest, train]), range(1, 5), min_subjects=2)
    for row in range(rest.height):
        alone, same = window_features(
            events, pl.concat([rest[row], train]), range(1, 5), min_subjects=2
        )
        assert same == names
        np.testing.assert_array_equal(alone[0], together[row])


def test_age_and_sex_are_those_of_the_record(events_of: Build, cohort_of: Any) -> None:
    now = T0 + 2 * HOUR
    rows: list[tuple] = [(s, T0 + HOUR, LAB, 1.0, T0 + HOUR) for s in (1, 2, 3)]
    rows += [(1, datetime(1960, 1, 1), "MEDS_BIRTH"), (1, None, "GENDER//F")]
    rows += [(2, None, "GENDER//M")]
    X, names = window_features(
        events_of(rows), cohort_of([(s, T0, now) for s in (3, 2, 1)]), [1], min_subjects=1
    )
    female, age = (X[:, names.index(name)] for name in ("female", "age_years"))
    np.testing.assert_array_equal(female, [np.nan, 0.0, 1.0])
    assert np.isnan(age[:2]).all()
    assert age[2] == pytest.approx(60.0, abs=0.01)


def test_a_sex_that_came_to_be_known_later_is_not_told(events_of: Build, cohort_of: Any) -> None:
    now = T0 + 2 * HOUR
    rows = [(1, T0 + HOUR, LAB, 1.0, T0 + HOUR), (1, now, "GENDER//F", None, now + MOMENT)]
    cohort = cohort_of([(1, T0, now), (1, T0, now + MOMENT)])
    X, names = window_features(events_of(rows), cohort, [1], min_subjects=1)
    np.testing.assert_array_equal(X[:, names.index("female")], [np.nan, 1.0])


def test_a_subject_without_events_has_counts_of_nothing_and_no_values(
    events_of: Build, cohort_of: Any
) -> None:
    rows = [(1, T0 + HOUR, LAB, 1.0, T0 + HOUR), (1, T0 + HOUR, DRUG, None, T0 + HOUR)]
    now = T0 + 2 * HOUR
    X, names = window_features(
        events_of(rows), cohort_of([(9, T0, now), (1, T0, now)]), [1], min_subjects=1
    )
    counts = np.array([name.endswith("/n") for name in names])
    assert (X[0, counts] == 0).all()
    assert np.isnan(X[0, ~counts]).all()
    assert (X[1, counts] == 1).all()
