"""Classes of numbers and their labels."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import meds
import polars as pl
import pytest

from tsfm import clock, schema
from tsfm.errors import FormatError, InputError
from tsfm.tasks.class_tasks import CLASS_LABELS, class_labels_of, class_of
from tsfm.tasks.cohorts import AdmissionRules, Followup
from tsfm.tasks.length_of_stay import BINS, LENGTH_OF_STAY_BINS
from tsfm.tasks.registry import CLASS_TASKS, task_named, write_labels

T0 = datetime(2150, 1, 1, 12)
COMPLETE = Followup("complete")
TICK = timedelta(microseconds=1)


def rows(length: timedelta | None, to: str = "HOME") -> list[Any]:
    found = [(1, datetime(2100, 1, 1), "MEDS_BIRTH", None), (1, T0, "HOSPITAL_ADMISSION//X", 1)]
    if length is not None:
        found.append((1, T0 + length, f"HOSPITAL_DISCHARGE//{to}", 1))
    return found


@pytest.mark.parametrize("hours", [0, 6.5, 24])
@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (timedelta(hours=25), 0),
        (timedelta(hours=72) - TICK, 0),
        (timedelta(hours=72), 1),
        (timedelta(hours=96) - TICK, 1),
        (timedelta(hours=96), 2),
        (timedelta(hours=144) - TICK, 2),
        (timedelta(hours=144), 3),
        (timedelta(days=300), 3),
    ],
)
def test_length_bins_change_at_exact_hours_from_admission_whenever_asked(
    events_of: Any, length: timedelta, expected: int, hours: float
) -> None:
    for to in ("HOME", "DIED"):
        cohort = LENGTH_OF_STAY_BINS.find_cohort(
            events_of(rows(length, to)), COMPLETE, AdmissionRules(hours=hours)
        )
        assert cohort["prediction_time"].to_list() == [T0 + timedelta(hours=hours)]
        labels = class_labels_of(cohort, LENGTH_OF_STAY_BINS)
        assert labels["integer_value"].to_list() == [expected]


def test_at_admission_short_stays_are_asked_about_and_a_day_later_not(events_of: Any) -> None:
    events = events_of(rows(timedelta(hours=20)))
    late = LENGTH_OF_STAY_BINS.find_cohort(events, COMPLETE, None)
    assert late["reason"].to_list() == ["left_before_prediction_time"]
    at_once = LENGTH_OF_STAY_BINS.find_cohort(events, COMPLETE, AdmissionRules(hours=0))
    assert at_once["outcome"].to_list() == [BINS[0]]


def test_a_stay_that_lasts_has_a_class_once_it_is_in_the_last(events_of: Any) -> None:
    def seen(days: float) -> list[str]:
        followup = Followup("until", clock.to_us(T0 + timedelta(days=days)))
        cohort = LENGTH_OF_STAY_BINS.find_cohort(events_of(rows(None)), followup, None)
        return cohort["outcome"].to_list()

    assert seen(5.9) == ["censored"]
    assert seen(6) == [BINS[3]]


def test_class_names_go_by_half_open_intervals() -> None:
    values = pl.DataFrame({"x": [-1.0, 0.0, 0.9, 1.0, 2.0, None]})
    names = values.select(class_of(pl.col("x"), (0.0, 1.0), ("low", "mid", "high")))
    assert names.to_series().to_list() == ["low", "mid", "mid", "high", "high", None]
    for edges, classes in (((0.0,), ("a",)), ((1.0, 0.0), ("a", "b", "c"))):
        with pytest.raises(InputError, match="bad_classes"):
            class_of(pl.col("x"), edges, classes)


def test_an_outcome_of_another_task_is_refused(events_of: Any) -> None:
    cohort = LENGTH_OF_STAY_BINS.find_cohort(events_of(rows(timedelta(hours=80))), COMPLETE, None)
    with pytest.raises(FormatError, match="unknown_class"):
        class_labels_of(cohort, CLASS_TASKS["comorbidity_charlson"])


def test_label_files_of_class_tasks_are_what_meds_asks_for(tmp_path: Any, data_set_of: Any) -> None:
    import pyarrow.parquet as pq

    events = [
        *rows(timedelta(hours=80)),
        (1, T0 + timedelta(hours=80), "DIAGNOSIS//ICD//10//I50", 1),
    ]
    root = data_set_of(tmp_path / "events", events, dates_shifted=True)
    for name, task in CLASS_TASKS.items():
        summary = write_labels(root, name, tmp_path / "labels")
        labels = pq.read_table(summary.paths["labels"])
        meds.LabelSchema.validate(labels)
        assert labels.schema.equals(CLASS_LABELS)
        assert pq.read_table(summary.paths["cohort"]).schema.equals(schema.COHORT)
        assert list(summary.n_by_class) == list(task.classes)
        assert list(summary.n_by_class.values()) == [0, 1, *[0] * (len(task.classes) - 2)]
        assert f"class {task.classes[1]}" in summary.as_text()
        assert summary.as_dict()["n_by_class"] == summary.n_by_class
        with pytest.raises(InputError, match="task_with_classes"):
            task_named(name)
