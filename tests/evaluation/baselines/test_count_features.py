"""Count features against plain loops, and blind to what is known later."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from tsfm import event_table
from tsfm.evaluation.baselines.count_features import WINDOW_DAYS, count_features

T0 = datetime(2020, 1, 1)
LAB = "LAB//50912//mg/dL"


def record(seed: int, n_subjects: int = 12):
    """Subjects with stays of a day or more, laboratory values, diagnoses known days later."""
    generator = np.random.default_rng(seed)
    rows: list[list] = []
    asked: list[tuple[int, datetime, datetime]] = []
    for subject in range(1, n_subjects + 1):
        rows.append([subject, None, f"GENDER//{'FM'[subject % 2]}"])
        rows.append([subject, datetime(1950, 1, 1) + timedelta(days=subject), "MEDS_BIRTH"])
        day = 0.0
        for _ in range(int(generator.integers(1, 5))):
            start = T0 + timedelta(days=day + float(generator.integers(1, 90)))
            end = start + timedelta(hours=float(generator.integers(24, 200)))
            rows.append([subject, start, "HOSPITAL_ADMISSION//URGENT//UNK"])
            rows.append([subject, end, "HOSPITAL_DISCHARGE//HOME"])
            for _ in range(int(generator.integers(0, 9))):
                time = start + (end - start) * float(generator.random())
                lag = timedelta(hours=float(generator.integers(0, 30)))
                value = float(np.float32(generator.normal(100, 20)))
                rows.append([subject, time, LAB, value, time + lag])
            known = end + timedelta(days=5)
            rows.append([subject, end, "DIAGNOSIS//ICD//10//I5023", None, known])
            asked.append((subject, start, end))
            day = (end - T0) / timedelta(days=1)
    return rows, asked


@pytest.fixture(scope="module")
def write(tmp_path_factory, events_of):
    def to_disk(rows) -> object:
        root = tmp_path_factory.mktemp("events") / "set"
        with event_table.EventWriter(root, n_shards=3) as writer:
            writer.add(events_of(rows))
            writer.finish(dataset={"dataset_name": "test", "clock": "wall"})
        return root

    return to_disk


def column(features, names, name: str) -> np.ndarray:
    return features[:, names.index(name)]


def test_features_equal_plain_loops(write, cohort_of):
    rows, asked = record(0)
    cohort = cohort_of(asked[::-1])
    features, names = count_features(write(rows), cohort, range(1, 13))
    assert features.shape == (len(asked), len(names))
    assert features.dtype == np.float32
    assert len(set(names)) == len(names)
    for row, (subject, start, now) in zip(features, asked[::-1], strict=True):
        value = dict(zip(names, row.tolist(), strict=True))
        events = [[*r, None, None][:5] for r in rows if r[0] == subject]
        known = [(r[4] or r[1] or datetime(1, 1, 1), r) for r in events]
        known = sorted((k for k in known if k[0] <= now), key=lambda k: k[0])
        for code, group in (
            (LAB, LAB),
            ("DIAGNOSIS", "DIAGNOSIS"),
            ("DIAGNOSIS//ICD//10//I50",) * 2,
        ):
            moments = [k for k, r in known if r[2].startswith(code)]
            for days in WINDOW_DAYS:
                expected = sum(k > now - timedelta(days=days) for k in moments)
                assert value[f"{group}/count/{days}d"] == expected
            assert value[f"{group}/count/stay"] == sum(k >= start for k in moments)
            assert value[f"{group}/count/ever"] == len(moments)
        labs = [(k, r[1], r[3]) for k, r in known if r[2] == LAB]
        for window, since in (("stay", start), ("30d", now - timedelta(days=30))):
            inside = [v for k, _, v in labs if (k >= since if window == "stay" else k > since)]
            for name, measure in (
                ("min", np.min),
                ("max", np.max),
                ("mean", np.mean),
                ("std", np.std),
            ):
                expected = measure(inside) if inside else np.nan
                found = value[f"{LAB}/{name}/{window}"]
                assert found == pytest.approx(expected, rel=1e-4, abs=1e-3, nan_ok=True)
        if labs:
            latest = max(labs, key=lambda lab: (lab[0], lab[1]))
            assert value[f"{LAB}/last"] == pytest.approx(latest[2])
            hours = (now - latest[1]) / timedelta(hours=1)
            assert value[f"{LAB}/hours_since_last"] == pytest.approx(hours, rel=1e-4)
        earlier = [r for r in events if r[2].startswith("HOSPITAL_ADMISSION") and r[1] < start]
        assert value["n_previous_stays"] == len(earlier)
        assert value["female"] == float("FM"[subject % 2] == "F")
        assert value["hours_in_hospital"] == pytest.approx((now - start) / timedelta(hours=1))
        assert value["acute_admission"] == 1
        assert value["admission_type=URGENT"] == 1


def test_what_is_known_later_changes_no_feature(write, cohort_of):
    rows, asked = record(1)
    last = {subject: now for subject, _, now in asked}
    changed = []
    generator = np.random.default_rng(2)
    for subject, time, code, *more in rows:
        known = (more[1] if len(more) > 1 else None) or time
        if known is not None and known > last[subject]:
            # Later facts become others, more, and far off.
            changed += [[subject, time, f"LAB//{generator.integers(9)}//mg/dL", 1e6, known]] * 3
        else:
            changed.append([subject, time, code, *more])
    for subject, now in last.items():
        changed.append([subject, now, LAB, -1e6, now + timedelta(microseconds=1)])
        changed.append([subject, now + timedelta(days=1), "MEDS_DEATH"])
    assert changed != rows
    cohort = cohort_of(asked)
    before, names = count_features(write(rows), cohort, range(1, 13))
    after, names_after = count_features(write(changed), cohort, range(1, 13))
    assert names == names_after
    np.testing.assert_array_equal(before, after)


def test_a_value_without_a_time_has_no_age(write, cohort_of):
    rows, asked = record(6)
    rows += [[subject, None, "HEIGHT//cm", 150.0 + subject] for subject in range(1, 13)]
    features, names = count_features(write(rows), cohort_of(asked), range(1, 13))
    owners = np.array([subject for subject, _, _ in asked])
    np.testing.assert_array_equal(column(features, names, "HEIGHT//cm/last"), 150.0 + owners)
    assert np.isnan(column(features, names, "HEIGHT//cm/hours_since_last")).all()


def test_codes_come_from_training_subjects_alone(write, cohort_of):
    rows, asked = record(3)
    for subject, start, _ in asked:
        if subject > 6:
            rows.append([subject, start, "LAB//ONLY_IN_TEST//mg/dL", 1.0])
    _, names = count_features(write(rows), cohort_of(asked), range(1, 7))
    assert not any("ONLY_IN_TEST" in name for name in names)
    _, names = count_features(write(rows), cohort_of(asked), range(1, 13))
    assert any("ONLY_IN_TEST" in name for name in names)


def test_fewer_codes_are_the_most_common_ones(write, cohort_of):
    rows, asked = record(4)
    _, names = count_features(write(rows), cohort_of(asked), range(1, 13), max_codes=3)
    groups = {name.split("/count/")[0] for name in names if "/count/" in name}
    assert len(groups) == 3


def test_subjects_without_events_are_rows_of_missing_values(write, cohort_of):
    rows, asked = record(5)
    cohort = cohort_of([*asked, (99, T0, T0 + timedelta(days=1))])
    features, _ = count_features(write(rows), cohort, range(1, 13))
    assert np.isnan(features[-1]).all()
    assert not np.isnan(features[:-1]).all(axis=1).any()


def test_boosting_learns_what_the_counts_hold():
    from tsfm.evaluation.baselines.boosting import fit_boosting
    from tsfm.evaluation.discrimination import auroc

    generator = np.random.default_rng(0)
    X = generator.normal(size=(1500, 6)).astype(np.float32)
    X[generator.random(X.shape) < 0.1] = np.nan
    risk = 1 / (1 + np.exp(-2 * np.nan_to_num(X[:, 0])))
    y = generator.random(1500) < risk
    model = fit_boosting(X[:1000], y[:1000], X[1000:1250], y[1000:1250])
    p = model.predict_probability(X[1250:])
    assert auroc(y[1250:], p) > 0.75
    assert ((p > 0) & (p < 1)).all()
    again = fit_boosting(X[:1000], y[:1000], X[1000:1250], y[1000:1250])
    np.testing.assert_array_equal(again.predict_probability(X[1250:]), p)


def test_boosting_says_what_is_missing(monkeypatch):
    from tsfm.errors import InputError, TsfmError
    from tsfm.evaluation.baselines.boosting import fit_boosting

    X = np.zeros((4, 1), np.float32)
    with pytest.raises(InputError, match="tuning split"):
        fit_boosting(X, [0, 1, 0, 1], X, [0, 0, 0, 0])
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)
    with pytest.raises(TsfmError, match=r"tsfm\[baselines\]"):
        fit_boosting(X, [0, 1, 0, 1], X, [0, 1, 0, 1])


def test_the_mimic_demo_gives_features_for_every_discharge(data_dir, write):
    from tsfm.tasks.cohorts import Followup
    from tsfm.tasks.readmission import find_readmission_cohort

    path = data_dir("mimic-iv-demo-meds") / "data" / "0.parquet"
    events = pl.read_parquet(path).filter(pl.col("subject_id") % 4 == 0)
    frame = events.select(
        (pl.col(n).cast(k) if n in events.columns else pl.lit(None, dtype=k)).alias(n)
        for n, k in event_table.POLARS_EVENTS.items()
    ).with_columns(available_time=pl.col("time"))
    cohort = find_readmission_cohort(frame, Followup("complete")).filter("eligible")
    rows = events.select("subject_id", "time", "code", "numeric_value").rows()
    features, names = count_features(write(rows), cohort, cohort["subject_id"].to_list())
    assert features.shape[0] == cohort.height > 20
    assert column(features, names, "age_years").min() > 18
