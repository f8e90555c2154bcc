"""The Charlson class of a stay's coded diagnoses, for a patient whose history is hidden.

ReMedE's comorbidity task (Jiang et al., arXiv 2511.13703): which burden of chronic disease would
the coders find, when the patient comes without a past? The answer is the Charlson index of the ICD
codes set for the stay, whenever they came to be known, in five classes: 0, 1-2, 3-4, 5-7 and above
7. It is asked 24 hours into the stay.

**What is hidden** is every event that states a diagnosis, of earlier stays and of this one:
problem lists, encounter and billing diagnoses in any vocabulary, and the DRG that is computed from
them (`HIDDEN`). All else stays: measurements, drugs, procedures, earlier stays. `hide_history` is
the filter, and a model is only asked this question on what it leaves. Without it, a patient's
earlier codes are most of the answer.

A stay without an ICD diagnosis is not asked about: no codes is not an index of 0.
"""

from __future__ import annotations

import polars as pl

from tsfm import codes, schema
from tsfm.tasks.charlson import charlson_index
from tsfm.tasks.class_tasks import CENSORED, ClassTask, class_of
from tsfm.tasks.cohorts import AdmissionRules, Followup, find_at_hour
from tsfm.tasks.stays import hospital_stays, in_class, merge_stays

HIDDEN = (codes.DIAGNOSIS, "DRG")
"""Classes of events that `hide_history` takes away."""

CLASS_EDGES = (1.0, 3.0, 5.0, 8.0)
"""Index at which the second and later classes begin."""

CLASSES = ("0", "1-2", "3-4", "5-7", "above 7")

_ICD = codes.join(codes.DIAGNOSIS, "ICD")


def hide_history(events: pl.DataFrame) -> pl.DataFrame:
    """The events that a model may read for this task: all but those of the classes `HIDDEN`."""
    return events.filter(~in_class(*HIDDEN))


def find_comorbidity_cohort(
    events: pl.DataFrame, followup: Followup, rules: AdmissionRules | None = None
) -> pl.DataFrame:
    """One row of `schema.COHORT` for every recorded stay, its Charlson class as outcome.

    A code belongs to the stay that its `encounter_id` names, and where it names none, to the stay
    that its time falls in; all stays of one episode count together. A stay that lasts is not coded
    to the end: it is `censored`.

    Args:
        events: Whole records, columns of `schema.EVENTS`.
        followup: How long subjects were watched.
        rules: Which stays; the defaults if None.
    """
    rules = rules or AdmissionRules()
    cohort = find_at_hour(events, followup, rules, event="discharge").with_row_index("_row")
    index = _index_of_stays(events, cohort.filter("eligible"), rules)
    lasts = pl.col("end_time").is_null() & (pl.col("outcome") == CENSORED)
    uncoded = pl.col("eligible") & ~lasts & pl.col("_points").is_null()
    name = (
        pl.when(lasts)
        .then(pl.lit(CENSORED))
        .otherwise(class_of(pl.col("_points"), CLASS_EDGES, CLASSES))
    )
    found = cohort.join(index, on="_row", how="left", maintain_order="left").with_columns(
        uncoded.alias("_uncoded"), (pl.col("eligible") & ~uncoded).alias("eligible")
    )
    return found.with_columns(
        pl.when("_uncoded").then(pl.lit("no_coded_diagnoses")).otherwise("reason").alias("reason"),
        pl.when("eligible").then(name).alias("outcome"),
        pl.when("eligible").then("outcome_days").alias("outcome_days"),
    ).select(cohort.drop("_row").columns)


def _index_of_stays(
    events: pl.DataFrame, stays: pl.DataFrame, rules: AdmissionRules
) -> pl.DataFrame:
    """Rows of `stays` (`_row`) that have ICD diagnoses, with their Charlson points."""
    subject = schema.SUBJECT_ID
    diagnoses = events.filter(in_class(_ICD))
    keys = stays.select("_row", subject, "start_time", "end_time")
    recorded = merge_stays(hospital_stays(events), merge_same_day=rules.merge_same_day)
    named = (
        diagnoses.filter(pl.col(schema.ENCOUNTER_ID).is_not_null())
        .join(
            recorded.select(subject, schema.ENCOUNTER_ID, "start_time").drop_nulls().unique(),
            on=[subject, schema.ENCOUNTER_ID],
        )
        .join(keys, on=[subject, "start_time"])
        .select("_row", schema.CODE)
    )
    unnamed = (
        diagnoses.filter(pl.col(schema.ENCOUNTER_ID).is_null() & pl.col(schema.TIME).is_not_null())
        .join(keys, on=subject)
        .filter(
            (pl.col(schema.TIME) >= pl.col("start_time"))
            & (pl.col(schema.TIME) <= pl.coalesce("end_time", schema.TIME))
        )
        .select("_row", schema.CODE)
    )
    # A stay stands in for a subject, and a code without a time counts from the start: so the index
    # of all codes of a stay is the one function that also serves the baselines.
    moment = pl.Datetime("us")
    coded = pl.concat([named, unnamed]).select(
        pl.col("_row").cast(pl.Int64).alias(subject),
        schema.CODE,
        pl.lit(None, dtype=moment).alias(schema.TIME),
        pl.lit(None, dtype=moment).alias(schema.AVAILABLE_TIME),
    )
    asked = coded.select(subject, pl.lit(0).cast(moment).alias(schema.PREDICTION_TIME)).unique()
    points = charlson_index(coded, asked)
    return points.select(
        pl.col(subject).cast(pl.UInt32).alias("_row"),
        pl.col("charlson").cast(pl.Float64).alias("_points"),
    )


COMORBIDITY = ClassTask(
    name="comorbidity_charlson",
    description="Charlson index of the stay's coded diagnoses as 0, 1-2, 3-4, 5-7 or above 7, "
    "asked 24 hours after admission with all diagnoses hidden",
    classes=CLASSES,
    find_cohort=find_comorbidity_cohort,
    rules=AdmissionRules(),
)
