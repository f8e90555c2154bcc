"""How long a stay lasts, asked 24 hours after admission: past seven days, or in which of four bins.

`LENGTH_OF_STAY_7D`: the label is true for a stay that is still in progress seven days, to the
microsecond, after the admission: neither discharged alive (the event) nor ended by death
(competing) by then. Seven days from admission are six from the prediction time.

`LENGTH_OF_STAY_BINS`: ReMedE's four classes (Jiang et al., arXiv 2511.13703), 0-2, 3, 4-5 and more
than 5 days. A day is 24 exact hours from the admission, and days are counted when complete: a stay
of 71 hours is of 2 days, one of 72 hours of 3. Death ends a stay like a discharge. ReMedE reads the
admission note and asks at admission; `AdmissionRules(hours=0)` asks then, and of every stay, where
24 hours leave out those that are over by then.

Length is time, not a count of events.
"""

from __future__ import annotations

import polars as pl

from tsfm import clock, schema
from tsfm.tasks.class_tasks import CENSORED, ClassTask, class_of
from tsfm.tasks.cohorts import (
    AdmissionRules,
    Followup,
    Task,
    check_asked_after_a_day,
    find_at_hour,
)

BIN_DAYS = (3.0, 4.0, 6.0)
"""Days from admission at which the second, third and fourth class begin."""

BINS = ("0-2 days", "3 days", "4-5 days", "more than 5 days")


def find_length_of_stay_cohort(
    events: pl.DataFrame, followup: Followup, rules: AdmissionRules | None = None
) -> pl.DataFrame:
    """One row of `schema.COHORT` for every recorded stay; see `find_at_hour`.

    Raises:
        InputError: `bad_hours`: not asked after 24 hours.
    """
    rules = rules or AdmissionRules()
    check_asked_after_a_day(rules, LENGTH_OF_STAY_7D.name)
    return find_at_hour(events, followup, rules, event="discharge")


def find_length_bin_cohort(
    events: pl.DataFrame, followup: Followup, rules: AdmissionRules | None = None
) -> pl.DataFrame:
    """One row of `schema.COHORT` for every recorded stay, its length's class as outcome.

    A stay that is still watched has a class once it has come into the last one, else none yet.
    """
    cohort = find_at_hour(events, followup, rules or AdmissionRules(), event="discharge")
    # Added as whole microseconds, so that 72 hours are 3 days whatever the hour of the question.
    asked_after = (pl.col(schema.PREDICTION_TIME) - pl.col("start_time")).dt.total_microseconds()
    length = (asked_after + (pl.col("outcome_days") * clock.DAY_US).round()) / clock.DAY_US
    lasts = pl.col("outcome") == CENSORED
    name = (
        pl.when(lasts & (length < BIN_DAYS[-1]))
        .then(pl.lit(CENSORED))
        .otherwise(class_of(length, BIN_DAYS, BINS))
    )
    return cohort.with_columns(pl.when("eligible").then(name).alias("outcome"))


LENGTH_OF_STAY_7D = Task(
    name="length_of_stay_7d",
    description="Still in hospital 7 days after admission, asked 24 hours after admission",
    horizon_days=6.0,
    positive="none",
    event_name="discharge alive",
    competing_name="death in hospital",
    find_cohort=find_length_of_stay_cohort,
    rules=AdmissionRules(),
)

LENGTH_OF_STAY_BINS = ClassTask(
    name="length_of_stay_bins",
    description="Length of the stay as 0-2, 3, 4-5 or more than 5 days, asked 24 hours after "
    "admission",
    classes=BINS,
    find_cohort=find_length_bin_cohort,
    rules=AdmissionRules(),
)
