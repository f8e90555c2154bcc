"""A stay of more than seven days, asked 24 hours after admission.

The label is true for a stay that is still in progress seven days, to the microsecond, after the
admission: neither discharged alive (the event) nor ended by death (competing) by then. Seven days
from admission are six from the prediction time. Length is time, not a count of events.
"""

from __future__ import annotations

import polars as pl

from tsfm.tasks.cohorts import AdmissionRules, Followup, Task, find_at_hour


def find_length_of_stay_cohort(
    events: pl.DataFrame, followup: Followup, rules: AdmissionRules | None = None
) -> pl.DataFrame:
    """One row of `schema.COHORT` for every recorded stay; see `find_at_hour`."""
    return find_at_hour(events, followup, rules or AdmissionRules(), event="discharge")


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
