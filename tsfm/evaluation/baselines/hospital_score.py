"""The HOSPITAL score for readmission (0 to 13).

Donze et al., JAMA Internal Medicine 173 (2013) and 176 (2016). Points: haemoglobin below 12 g/dL at
discharge 1, discharge from oncology 2, sodium below 135 mmol/L at discharge 1, a procedure in the
stay 1, urgent admission 1, admissions in the year before 0 or 1: 0, 2 to 5: 2, more: 5, five nights
or more 2.

Approximations, since an event table need not name services: oncology is a cancer diagnosis known at
the prediction time (Charlson's malignancy or metastasis, whether or not it is why the patient came)
or a unit or service of the stay whose name says oncology. Any PROCEDURE event of the stay counts,
bedside ones too, if it is known by the prediction time; those billed days later don't. Admissions
of one encounter and transfers within a day are one admission. A value that was not measured in the
stay scores 0, and `n_missing_labs` says so.
"""

from __future__ import annotations

import polars as pl

from tsfm import codes, schema, units
from tsfm.evaluation.baselines.lace import (
    acute_admissions,
    asked_of,
    count_before,
    count_stays_before,
    nights_in_hospital,
)
from tsfm.tasks.charlson import charlson_index
from tsfm.tasks.stays import in_class

HEMOGLOBIN = ("718-7", "51222", "220228")
"""LOINC, and MIMIC's laboratory and chart items."""
SODIUM = ("2951-2", "2947-0", "50983", "220645")

# Factors to g/dL and mmol/L; a haemoglobin in mmol/L is that of its monomer, 16.114 g/mmol. A value
# in any other unit can't be read, and counts as missing.
_FACTORS = {
    "hemoglobin": {"g/dL": 1.0, "g/L": 0.1, "mmol/L": 1.6114},
    "sodium": {"mmol/L": 1.0, "meq/L": 1.0},
}
_KEYS = [schema.SUBJECT_ID, schema.PREDICTION_TIME]


def hospital_scores(events: pl.DataFrame, cohort: pl.DataFrame) -> pl.DataFrame:
    """HOSPITAL at each prediction time.

    Args:
        events: Records of the cohort's subjects, columns of `schema.EVENTS`.
        cohort: Rows of `schema.COHORT`; repeated (subject, prediction time) pairs give one row.

    Returns:
        subject_id, prediction_time, hospital, n_missing_labs (0 to 2), and the points
        hospital_hemoglobin, hospital_oncology, hospital_sodium, hospital_procedure,
        hospital_urgent, hospital_admissions, hospital_stay.
    """
    asked = asked_of(cohort)
    start, now = pl.col("start_time"), pl.col(schema.PREDICTION_TIME)
    in_stay = {"since": start, "until": now + pl.duration(microseconds=1)}
    cancer = charlson_index(events, asked).select(
        *_KEYS, (pl.col("malignancy") | pl.col("metastatic")).alias("cancer")
    )
    names = pl.col(schema.CODE).str.to_lowercase().str.contains("oncolog", literal=True)
    is_unit = ~in_class(codes.DIAGNOSIS, codes.PROCEDURE, codes.MEDICATION, codes.LAB, codes.VITAL)
    oncology = count_before(events.filter(names & is_unit), asked, **in_stay)
    procedures = count_before(events.filter(in_class(codes.PROCEDURE)), asked, **in_stay)
    earlier = count_stays_before(events, asked, since=start.dt.offset_by("-1y"))
    scored = acute_admissions(events, asked)
    for name, table in (
        ("cancer", cancer),
        ("n_oncology", oncology.rename({"n": "n_oncology"})),
        ("n_procedures", procedures.rename({"n": "n_procedures"})),
        ("n_admissions", earlier.rename({"n": "n_admissions"})),
        ("hemoglobin", _last_value(events, asked, HEMOGLOBIN, "hemoglobin")),
        ("sodium", _last_value(events, asked, SODIUM, "sodium")),
    ):
        scored = scored.join(table.select(*_KEYS, name), on=_KEYS, how="left")
    admissions = pl.col("n_admissions")
    points = {
        "hospital_hemoglobin": (pl.col("hemoglobin") < 12).fill_null(False).cast(pl.Int64),
        "hospital_oncology": (pl.col("cancer") | (pl.col("n_oncology") > 0)).cast(pl.Int64) * 2,
        "hospital_sodium": (pl.col("sodium") < 135).fill_null(False).cast(pl.Int64),
        "hospital_procedure": (pl.col("n_procedures") > 0).cast(pl.Int64),
        "hospital_urgent": pl.col("acute").cast(pl.Int64),
        "hospital_admissions": pl.when(admissions > 5)
        .then(5)
        .when(admissions > 1)
        .then(2)
        .otherwise(0)
        .cast(pl.Int64),
        "hospital_stay": (nights_in_hospital() >= 5).cast(pl.Int64) * 2,
    }
    return scored.with_columns(**points).select(
        *_KEYS,
        pl.sum_horizontal(list(points)).alias("hospital"),
        (pl.col("hemoglobin").is_null().cast(pl.Int64) + pl.col("sodium").is_null()).alias(
            "n_missing_labs"
        ),
        *points,
    )


def _factor(code: str, items: tuple[str, ...], name: str) -> float | None:
    """From the unit of a code to the score's; 1 where no unit is told, None where it is unknown."""
    unit = code.split(codes.SEPARATOR)[-1]
    if unit in items or unit == codes.UNKNOWN:
        return 1.0
    spelled = units.spelling(unit) or ""
    return _FACTORS[name].get(spelled)


def _last_value(
    events: pl.DataFrame, asked: pl.DataFrame, items: tuple[str, ...], name: str
) -> pl.DataFrame:
    """Latest value in the stay among those available, with its prediction time."""
    parts = pl.col(schema.CODE).str.split(codes.SEPARATOR)
    own = events.filter(
        in_class(codes.LAB)
        & pl.col(schema.NUMERIC_VALUE).is_finite()
        & (parts.list.set_intersection(list(items)).list.len() > 0)
    )
    factors = {code: _factor(code, items, name) for code in own[schema.CODE].unique()}
    factor = pl.col(schema.CODE).replace_strict(factors, default=None, return_dtype=pl.Float64)
    values = own.filter(factor.is_not_null()).select(
        schema.SUBJECT_ID,
        schema.TIME,
        pl.coalesce(schema.AVAILABLE_TIME, schema.TIME).alias("_known"),
        (pl.col(schema.NUMERIC_VALUE).cast(pl.Float64) * factor).alias(name),
    )
    return (
        asked.join(values, on=schema.SUBJECT_ID)
        .filter(
            (pl.col(schema.TIME) >= pl.col("start_time"))
            & (pl.col(schema.TIME) <= pl.col(schema.PREDICTION_TIME))
            & (pl.col("_known") <= pl.col(schema.PREDICTION_TIME))
        )
        .sort(schema.TIME, "_known", maintain_order=True)
        .group_by(_KEYS, maintain_order=True)
        .agg(pl.col(name).last())
    )
