"""From an event table to label files, and what their summary admits."""

from __future__ import annotations

from datetime import datetime, timedelta

import meds
import polars as pl
import pyarrow.parquet as pq
import pytest

from tsfm import clock, event_table, schema
from tsfm.errors import FormatError, InputError
from tsfm.tasks.cohorts import AdmissionRules, Followup, follow_up_of, label_of
from tsfm.tasks.registry import TASKS, find_cohort, write_labels

T0 = datetime(2150, 1, 1, 12)


def rows(n_subjects: int, gap_days: float = 20):
    found = []
    for subject in range(1, n_subjects + 1):
        found.append((subject, datetime(2100, 1, 1), "MEDS_BIRTH", None))
        for number in range(2):
            start = T0 + timedelta(days=number * (3 + gap_days))
            found.append((subject, start, "HOSPITAL_ADMISSION//URGENT//UNK", number))
            found.append((subject, start + timedelta(days=3), "HOSPITAL_DISCHARGE//HOME", number))
    return found


def test_label_files_are_what_meds_asks_for(tmp_path, data_set_of):
    root = data_set_of(tmp_path / "events", rows(6), dates_shifted=True)
    for name in TASKS:
        summary = write_labels(root, name, tmp_path / "labels")
        labels = pq.read_table(summary.paths["labels"])
        meds.LabelSchema.validate(labels)
        assert labels.schema.equals(schema.LABELS)
        cohort = pq.read_table(summary.paths["cohort"])
        assert cohort.schema.equals(schema.COHORT)
        assert cohort.num_rows == summary.n_stays == 12
        assert summary.n_eligible == 12
        assert summary.n_positive + summary.n_negative + summary.n_unknown == 12


def test_the_summary_counts_every_stay_once(tmp_path, data_set_of):
    events = rows(3)
    events.append((3, T0 + timedelta(days=30), "MEDS_DEATH", None))
    as_of = (T0 + timedelta(days=35)).isoformat()
    root = data_set_of(tmp_path / "events", events, data_as_of=as_of)
    summary = write_labels(root, "readmission_30d", tmp_path / "labels")
    assert summary.n_stays == 6
    assert (summary.n_positive, summary.n_negative, summary.n_competing) == (3, 1, 1)
    assert summary.n_unknown == 2
    text = summary.as_text()
    assert "readmission_30d" in text
    assert "unknown" in text


def test_nothing_to_label_is_said_not_raised(tmp_path, data_set_of):
    lab = [(1, T0, "LAB//50912//mg/dL", None)]
    summary = write_labels(data_set_of(tmp_path / "a", lab), "readmission_30d", tmp_path / "labels")
    assert summary.n_stays == 0
    assert "no hospital stays" in summary.as_text()
    ageless = [row for row in rows(2) if row[2] != "MEDS_BIRTH"]
    summary = write_labels(data_set_of(tmp_path / "b", ageless), "readmission_30d", tmp_path / "l")
    assert summary.not_eligible == {"unknown_age": 4}
    assert "no stay is eligible" in summary.as_text()


def test_an_unknown_task_is_answered_with_the_names(tmp_path):
    with pytest.raises(InputError, match="readmission_30d"):
        write_labels(tmp_path, "readmision", tmp_path)


def test_rules_of_another_task_are_refused(tmp_path, data_set_of):
    root = data_set_of(tmp_path / "events", rows(1))
    with pytest.raises(InputError, match="rules_of_another_task"):
        find_cohort(root, "readmission_30d", rules=AdmissionRules())


def test_follow_up_comes_from_the_data_set(tmp_path, data_set_of):
    last = T0 + timedelta(days=26)
    shifted = data_set_of(tmp_path / "a", rows(1), dates_shifted=True)
    dated = data_set_of(tmp_path / "b", rows(1), data_as_of="2150-06-01T00:00:00+02:00")
    silent = data_set_of(tmp_path / "c", rows(1))
    assert follow_up_of(shifted) == Followup("complete")
    assert follow_up_of(dated) == Followup("until", clock.to_us(datetime(2150, 6, 1)))
    assert follow_up_of(silent) == Followup("until", clock.to_us(last))
    with pytest.raises(FormatError, match="data_as_of"):
        follow_up_of(data_set_of(tmp_path / "d", rows(1), data_as_of="yesterday"))
    with pytest.raises(InputError):
        Followup("until")


def test_a_coding_delay_does_not_lengthen_follow_up(tmp_path):
    with event_table.EventWriter(tmp_path / "events") as writer:
        writer.add(
            pl.DataFrame(
                {
                    "subject_id": [1, 1],
                    "time": [T0, T0 + timedelta(days=2)],
                    "code": ["HOSPITAL_ADMISSION//URGENT", "DIAGNOSIS//ICD//10//I5023"],
                    "available_time": [T0, T0 + timedelta(days=7)],
                }
            )
        )
        writer.finish(dataset={"dataset_name": "test", "clock": "wall"})
    until_us = clock.to_us(T0 + timedelta(days=2))
    assert follow_up_of(tmp_path / "events") == Followup("until", until_us)


def test_the_truth_table_of_labels():
    outcome = pl.Series(["event", "event", "competing", "competing", "censored", "censored", None])
    days = pl.Series([30.0, 30.01, 30.0, 31.0, 30.0, 29.9, None])
    assert label_of(outcome, days, 30.0, "event").to_list() == [
        True, False, False, False, False, None, None]  # fmt: skip
    assert label_of(outcome, days, 30.0, "none").to_list() == [
        False, True, False, True, True, None, None]  # fmt: skip
    with pytest.raises(InputError):
        label_of(outcome, days, 30.0, "censored")


def test_the_mimic_demo_keeps_all_its_stays(data_dir):
    path = data_dir("mimic-iv-demo-meds") / "data" / "0.parquet"
    events = pl.read_parquet(path).with_columns(
        available_time=pl.col("time"), encounter_id=pl.lit(None, dtype=pl.Int64)
    )
    expected = {"readmission_30d": 0, "mortality_in_hospital": 0, "length_of_stay_7d": 0}
    for name in expected:
        cohort = TASKS[name].find_cohort(events, Followup("complete"), None)
        assert cohort.height == 275
        assert cohort["subject_id"].n_unique() == 100
    readmission = TASKS["readmission_30d"].find_cohort(events, Followup("complete"), None)
    reasons = dict(readmission["reason"].drop_nulls().value_counts().iter_rows())
    assert reasons["died_in_hospital"] == 15
    assert reasons["hospice"] == 5
