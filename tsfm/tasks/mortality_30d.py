"""Death within 30 days of admission, in hospital or out of it, asked 24 hours after admission.

Thirty days are counted from the admission, not from the discharge, as the publicly reported 30-day
mortality measures of hospitals do (Centers for Medicare & Medicaid Services): a hospital can't
better its figure by discharging earlier, and a death counts wherever it happens. Those 30 days are
29 from the prediction time. A discharge does not compete, and a death before the question is not
asked about.

Deaths out of hospital are only known where the source tells them (MIMIC-IV does, for a year after
the last discharge). A death known by its date counts at the end of its day. Every stay is asked
about, where the public measures draw one a patient and year.
"""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from tsfm import clock, schema
from tsfm.tasks.cohorts import (
    COMPLETE_DAYS,
    AdmissionRules,
    Followup,
    Task,
    check_asked_after_a_day,
    days_between,
    find_at_hour,
)
from tsfm.tasks.stays import hospital_stays

HORIZON_DAYS = 30.0
"""Days from the admission, inclusive."""


def find_mortality_30d_cohort(
    events: pl.DataFrame, followup: Followup, rules: AdmissionRules | None = None
) -> pl.DataFrame:
    """One row of `schema.COHORT` for every recorded stay.

    Index stays are those of `find_at_hour`: adult, in progress at the prediction time.

    Raises:
        InputError: `bad_hours`: not asked after 24 hours.
    """
    rules = rules or AdmissionRules()
    check_asked_after_a_day(rules, MORTALITY_30D.name)
    cohort = find_at_hour(events, followup, rules, event="death")
    deaths = hospital_stays(events).group_by(schema.SUBJECT_ID).agg(pl.col("death_time").min())
    at, died_at = pl.col(schema.PREDICTION_TIME), pl.col("death_time")
    in_hospital = pl.col("outcome") == "event"
    lasts = pl.col("outcome") == "censored"
    died = in_hospital | died_at.is_not_null()
    if followup.until_us is None:
        # Nobody watches a stay without an end after its last event, not even a complete release.
        watched = pl.when(lasts).then("outcome_days").otherwise(pl.lit(COMPLETE_DAYS))
    else:
        until = pl.lit(clock.from_us(followup.until_us), dtype=pl.Datetime("us"))
        watched = days_between(at, until)
    found = (
        cohort.join(deaths, on=schema.SUBJECT_ID, how="left", maintain_order="left")
        .with_columns(
            outcome=pl.when("eligible").then(
                pl.when(died).then(pl.lit("event")).otherwise(pl.lit("censored"))
            ),
            outcome_days=pl.when("eligible").then(
                pl.when(in_hospital)
                .then("outcome_days")
                .when(died)
                .then(days_between(at, died_at))
                .otherwise(watched)
            ),
        )
        .select(cohort.columns)
    )
    if followup.until_us is None:
        return found
    # Nobody was watched after the end of follow-up: deaths that happen to be known would be the
    # only answers there are.
    late = (pl.col("outcome") == "event") & (pl.col("outcome_days") > watched)
    return found.with_columns(
        outcome=pl.when(late).then(pl.lit("censored")).otherwise("outcome"),
        outcome_days=pl.when(late).then(watched.clip(0.0)).otherwise("outcome_days"),
    )


MORTALITY_30D = Task(
    name="mortality_30d",
    description="Dies within 30 days of admission, in hospital or out, asked 24 hours after "
    "admission",
    horizon_days=HORIZON_DAYS - timedelta(hours=AdmissionRules().hours) / timedelta(days=1),
    positive="event",
    event_name="death",
    competing_name="nothing competes with death",
    find_cohort=find_mortality_30d_cohort,
    rules=AdmissionRules(),
)
