"""The truth of stays against what the road from export to cohort makes of the same stays."""

from __future__ import annotations

import polars as pl
import pytest

from tsfm import event_table, schema
from tsfm.tasks.cohorts import AdmissionRules
from tsfm.tasks.registry import TASKS, find_cohort, labels_of


@pytest.mark.parametrize("task", ["mortality_in_hospital", "length_of_stay_7d"])
def test_cohorts_and_labels_of_single_stays_are_those_of_the_truth(
    tiny_hospital, task: str
) -> None:
    rules = AdmissionRules(merge_same_day=False)
    cohort = find_cohort(tiny_hospital.events, task, rules=rules).filter("eligible")
    subjects = {s: subject for subject, s in event_table.subject_ids(tiny_hospital.events).items()}
    truth = pl.read_parquet(tiny_hospital.source / "truth_stays.parquet").with_columns(
        pl.col("patient_id").replace_strict(subjects).alias(schema.SUBJECT_ID),
        pl.col("prediction_time").cast(pl.Datetime("us")),
        pl.col("outcome").alias("really"),
        pl.col("outcome_days").alias("really_days"),
    )
    key = [schema.SUBJECT_ID, schema.PREDICTION_TIME]
    both = cohort.join(
        truth.select(*key, "really", "really_days"), on=key, how="full", coalesce=True
    )
    assert both.height == cohort.height == truth.height > 200
    labels = both.join(labels_of(cohort, TASKS[task]), on=key, how="left")
    for outcome, days, label in labels.select(
        "really", "really_days", schema.BOOLEAN_VALUE
    ).iter_rows():
        if task == "mortality_in_hospital":
            expected = {"death": True, "discharge": False, "censored": None}[outcome]
        else:
            expected = True if days > 6 else (None if outcome == "censored" else False)
        assert label == expected
