"""Slopes against numpy's weighted lines, and blind to what is known later."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pytest

from tsfm import event_table
from tsfm.evaluation.baselines.trend_features import TIME_CONSTANTS_DAYS, trend_features

T0 = datetime(2020, 1, 1)
LAB, WEIGHT, ONCE = "LAB//50912//mg/dL", "VITAL//WEIGHT//kg", "LAB//ONCE//1"


def record(seed: int, n_subjects: int = 12):
    """Subjects with values over some weeks, some known a day later, asked twice."""
    rng = np.random.default_rng(seed)
    rows, asked = [], []
    for subject in range(1, n_subjects + 1):
        rows.append([subject, datetime(1950, 1, 1), "MEDS_BIRTH"])
        rows.append([subject, T0, ONCE, 1.0])
        for code, level in ((LAB, 1.0), (WEIGHT, 80.0)):
            for _ in range(int(rng.integers(0, 12))):
                time = T0 + timedelta(hours=float(rng.uniform(0, 500)))
                lag = timedelta(hours=float(rng.integers(0, 30)))
                value = float(np.float32(level * (1 + 0.1 * rng.normal())))
                rows.append([subject, time, code, value, time + lag])
        asked += [(subject, T0, T0 + timedelta(hours=h)) for h in (200, 480)]
    return rows, asked


def written(root, rows, events_of):
    with event_table.EventWriter(root, n_shards=3) as writer:
        writer.add(events_of(rows))
        writer.finish(dataset={"dataset_name": "test", "clock": "wall"})
    return root


def test_slopes_are_those_of_weighted_lines(tmp_path, events_of, cohort_of):
    rows, asked = record(0)
    found, names = trend_features(
        written(tmp_path / "set", rows, events_of), cohort_of(asked[::-1]), range(1, 13)
    )
    assert found.shape == (len(asked), len(names))
    assert found.dtype == np.float32
    assert {name.split("/slope/")[0] for name in names} == {LAB, WEIGHT}
    n_lines = 0
    for row, (subject, _, now) in zip(found, asked[::-1], strict=True):
        for code in (LAB, WEIGHT):
            known = [r for r in rows if r[0] == subject and r[2] == code and r[4] <= now]
            for days in TIME_CONSTANTS_DAYS:
                ages = np.array([(now - r[1]) / timedelta(days=1) for r in known])
                heard = ages <= 6 * days
                t, v = -ages[heard], np.array([r[3] for r in known])[heard]
                slope = row[names.index(f"{code}/slope/{days:g}d")]
                if len(t) < 2:
                    assert np.isnan(slope)
                    continue
                w = np.exp(t / days)
                line = np.polyfit(t, v, 1, w=np.sqrt(w))[0]
                spread = np.average((t - np.average(t, weights=w)) ** 2, weights=w)
                expected = line * spread / (spread + (days / 8) ** 2)
                assert slope == pytest.approx(expected, rel=1e-3, abs=1e-5)
                n_lines += 1
    assert n_lines > 50


def test_a_straight_line_has_its_slope_and_a_second_sample_at_once_has_none(
    tmp_path, events_of, cohort_of
):
    now = T0 + timedelta(days=20)
    rows = []
    for subject in range(1, 7):
        for day in range(20):
            time = T0 + timedelta(days=day)
            rows.append([subject, time, LAB, 5.0 + 0.25 * day])
        for minute in (0, 5):
            time = now - timedelta(minutes=60 + minute)
            rows.append([subject, time, WEIGHT, 80.0 + minute])
    asked = [(subject, T0, now) for subject in range(1, 7)]
    root = written(tmp_path / "set", rows, events_of)
    found, names = trend_features(root, cohort_of(asked), range(1, 7))
    np.testing.assert_allclose(found[:, names.index(f"{LAB}/slope/16d")], 0.25, rtol=0.2)
    wild = 5 * 24 * 12.0  # kg a day, were the two samples of five minutes believed
    assert np.abs(found[:, names.index(f"{WEIGHT}/slope/4d")]).max() < 0.001 * wild


def test_what_is_known_later_changes_no_slope(tmp_path, events_of, cohort_of):
    rows, asked = record(1)
    asked = [a for a in asked if a[2] == T0 + timedelta(hours=200)]
    one = trend_features(written(tmp_path / "one", rows, events_of), cohort_of(asked), range(1, 13))
    limit = T0 + timedelta(hours=200)
    later = [r if len(r) < 5 or r[4] <= limit else [*r[:3], 1e6, r[4]] for r in rows]
    assert later != rows
    two = trend_features(
        written(tmp_path / "two", later, events_of), cohort_of(asked), range(1, 13)
    )
    assert one[1] == two[1]
    np.testing.assert_array_equal(one[0], two[0])


def test_codes_are_those_of_training_subjects(tmp_path, events_of, cohort_of):
    rows, asked = record(2)
    rows += [
        [subject, T0 + timedelta(hours=h), "LAB//RARE//1", 1.0, T0 + timedelta(hours=h)]
        for subject in (11, 12) for h in (1, 50)
    ]  # fmt: skip
    root = written(tmp_path / "set", rows, events_of)
    _, names = trend_features(root, cohort_of(asked), range(1, 11))
    assert not any("RARE" in name for name in names)
    some, few = trend_features(root, cohort_of(asked), range(1, 13), max_codes=1)
    assert some.shape[1] == len(few) == len(TIME_CONSTANTS_DAYS)
    nothing, none = trend_features(root, cohort_of(asked), [])
    assert (nothing.shape, none) == ((len(asked), 0), [])
