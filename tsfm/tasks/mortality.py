"""Death in hospital, asked 24 hours after admission.

Index stays are adult stays still in progress then; the event is a death in the stay, and a
discharge alive competes. A stay has no natural horizon, but a model's time bins end somewhere: it
is a year, which next to no stay reaches. Stays that ended earlier keep a row with the reason.
"""

from __future__ import annotations

import polars as pl

from tsfm.tasks.cohorts import AdmissionRules, Followup, Task, find_at_hour


def find_mortality_cohort(
    events: pl.DataFrame, followup: Followup, rules: AdmissionRules | None = None
) -> pl.DataFrame:
    """One row of `schema.COHORT` for every recorded stay; see `find_at_hour`."""
    return find_at_hour(events, followup, rules or AdmissionRules(), event="death")


MORTALITY_IN_HOSPITAL = Task(
    name="mortality_in_hospital",
    description="Dies in this hospital stay, asked 24 hours after admission",
    horizon_days=365.0,
    positive="event",
    event_name="death in hospital",
    competing_name="discharge alive",
    find_cohort=find_mortality_cohort,
    rules=AdmissionRules(),
)
