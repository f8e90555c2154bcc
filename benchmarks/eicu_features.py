"""Index stays of the eICU demo and their hand-made features at the end of APACHE's day.

APACHE IVa judges a stay in a unit by its first 24 hours, or by all of it where it was shorter; so
do these features. Beside the windows of every measurement: whether drugs, treatments and diagnoses
of some kinds were given by then, and how far vital signs were from where they should be.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import codes, event_table, schema
from tsfm.evaluation.baselines.window_features import STAY, window_features
from tsfm.ingest.eicu import ingest_eicu

SCORE = "APACHE//IV"
PREDICTED = "APACHE//IVa//predictedhospitalmortality"
_ENDS = f"^({codes.DEATH}|{codes.DISCHARGE}|ICU_DISCHARGE|TRANSFER_TO)"
_DAY_MINUTES = 1440
_SHORTEST_DAYS = 0.02

GROUPS = {
    "norepinephrine": r"norepi|levophed",
    "vasopressin": r"vasopressin",
    "epinephrine": r"(^|[^r])epineph|adrenalin",
    "dopamine": r"dopamine",
    "phenylephrine": r"phenyleph|neo-?syn",
    "inotrope": r"dobutam|milrinone",
    "sedation": r"propofol|midaz|versed|loraz|ativan|sedative",
    "opioid": r"fentan|morph|hydromorph",
    "antiarrhythmic": r"amiodar|digox",
    "insulin": r"insulin",
    "vasodilator": r"nicard|cardene|nitrogly|nitropr",
    "ventilation": r"mechanical vent|intubat|ventilation",
    "non-invasive ventilation": r"non-invasive|bipap|cpap",
    "vasopressors": r"vasopressor",
    "dialysis": r"dialysis|crrt|cvvh",
    "transfusion": r"transfus|prbc|plasma|platelet",
    "antibiotics": r"vancomyc|piperac|zosyn|meropen|cefep|antibacterial",
    "steroids": r"methylpred|hydrocort|predni|glucocort",
    "bicarbonate": r"bicarb",
    "albumin": r"albumin 5|albumin 25|albumin.*%",
    "lactulose": r"lactulose",
    "cardiac arrest": r"cardiac arrest|cardard|cardarrest|cpr",
    "hypothermia": r"hypotherm",
    "comfort": r"comfort|palliat|do not resus|withdraw",
    "shock": r"shock",
    "sepsis": r"sepsis",
    "respiratory failure": r"respiratory failure",
    "renal failure": r"renal failure|acute kidney",
    "coma": r"coma|altered mental|encephalop",
    "stroke": r"stroke|intracranial|subarach|hemorrhage",
    "gastrointestinal bleeding": r"gi bleed|gibleed|gi hem",
    "coronary": r"acute coronary|myocard|infarct",
    "heart failure": r"heart failure|chf",
    "pneumonia": r"pneum",
    "liver": r"cirrho|hepatic",
    "cancer": r"cancer|malig|tumou?r|leuk|lymphoma|metast",
    "diabetic ketoacidosis": r"dka|diabetic keto",
    "overdose": r"overdose|toxic|//od",
    "trauma": r"trauma",
    "acidosis": r"acidosis",
    "surgery": r"//s-|operative organ|bypass|cabg|postop",
    "not operative": r"non-operative",
    "dementia": r"dementia",
    "lung disease": r"copd|home oxygen|asthma",
}
"""Words in codes, small letters, by what they say of a patient."""
_NORMAL = {
    "APACHE//APS//temperature": 37.0, "APACHE//APS//sodium": 140.0, "APACHE//APS//ph": 7.4,
    "APACHE//APS//heartrate": 80.0, "APACHE//APS//meanbp": 85.0, "APACHE//APS//glucose": 130.0,
    "APACHE//APS//respiratoryrate": 17.0, "APACHE//APS//hematocrit": 41.0,
}  # fmt: skip


def read_stays(folders: Collection[Path], work: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events, ends taken out, and one row a stay with a valid prediction of APACHE IVa.

    Returns:
        Events of whole subjects; columns of `schema.COHORT` with `died`, `predicted`, `hospital`
        and `patient`, ordered by unit stay.
    """
    parts: list[pl.DataFrame] = []
    stays: list[pl.DataFrame] = []
    for number, folder in enumerate(folders):
        root = work / f"events-{number}"
        if not (root / "metadata" / "dataset.json").exists():
            ingest_eicu(folder, root, progress=False)
        events = pl.concat(event_table.scan_events(root))
        parts.append(events.filter(~pl.col(schema.CODE).str.contains(_ENDS)))
        stays.append(_stays(folder, events))
    return pl.concat(parts), pl.concat(stays).sort("unit_stay")


def _stays(folder: Path, events: pl.DataFrame) -> pl.DataFrame:
    def table(name: str) -> pl.DataFrame:
        return pl.read_csv(folder / f"{name}.csv.gz", infer_schema_length=0)

    results = table("apachepatientresult").filter(
        (pl.col("apacheversion") == "IVa")
        & (pl.col("predictedhospitalmortality").cast(pl.Float64) >= 0)
    )
    opened = events.filter(
        pl.col(schema.CODE).str.starts_with(codes.ADMISSION + codes.SEPARATOR)
    ).select(schema.SUBJECT_ID, _open=schema.TIME)
    minutes = {
        name: pl.col(name).cast(pl.Int64)
        for name in ("hospitaladmitoffset", "unitdischargeoffset", "hospitaldischargeoffset")
    }
    asked = pl.min_horizontal(pl.lit(_DAY_MINUTES), minutes["unitdischargeoffset"])
    died = pl.col("actualhospitalmortality") == "EXPIRED"
    start = pl.col("_open") - pl.duration(minutes=minutes["hospitaladmitoffset"])
    rows = (
        results.join(table("patient"), on="patientunitstayid")
        .with_columns(pl.col("patienthealthsystemstayid").cast(pl.Int64).alias(schema.SUBJECT_ID))
        .join(opened, on=schema.SUBJECT_ID, how="left")
        .select(
            schema.SUBJECT_ID,
            (start + pl.duration(minutes=asked)).alias(schema.PREDICTION_TIME),
            pl.col(schema.SUBJECT_ID).alias(schema.ENCOUNTER_ID),
            start.alias("start_time"),
            pl.lit(None, dtype=pl.Datetime("us")).alias("end_time"),
            pl.lit(True).alias("eligible"),
            pl.lit(None, dtype=pl.String).alias("reason"),
            pl.when(died).then(pl.lit("event")).otherwise(pl.lit("competing")).alias("outcome"),
            ((minutes["hospitaldischargeoffset"] - asked) / _DAY_MINUTES)
            .clip(lower_bound=_SHORTEST_DAYS).alias("outcome_days"),
            died.cast(pl.Float64).alias("died"),
            pl.col("predictedhospitalmortality").cast(pl.Float64).alias("predicted"),
            pl.col("hospitalid").alias("hospital"),
            pl.col("uniquepid").alias("patient"),
            pl.col("patientunitstayid").cast(pl.Int64).alias("unit_stay"),
        )
    )  # fmt: skip
    missing = rows["start_time"].null_count()
    if missing:
        raise ValueError(f"{missing} stays have no admission on their timeline")
    return rows


def features_of(
    events: pl.DataFrame, stays: pl.DataFrame, train_subjects: Collection[int], min_subjects: int
) -> tuple[NDArray[np.float32], list[str]]:
    """Features of every stay, in their order, and their names."""
    events = _with_scores_at_the_end(events, stays)
    X, names = window_features(events, stays, train_subjects, windows=(), min_subjects=min_subjects)
    kinds = _kinds(events, stays)
    extra, extra_names = [kinds.to_numpy()], list(kinds.columns)
    for code, normal in _NORMAL.items():
        name = f"{code}/{STAY}/last"
        if name in names:
            extra.append(np.abs(X[:, [names.index(name)]] - normal))
            extra_names.append(f"{code}/distance")
    return np.concatenate([X, *extra], 1).astype(np.float32), [*names, *extra_names]


def _with_scores_at_the_end(events: pl.DataFrame, stays: pl.DataFrame) -> pl.DataFrame:
    """What APACHE made of a stay that ended within its first day is known when the stay ends.

    The event table dates it to the end of the day, since the source does not say when in the day
    it was written; APACHE's prediction, beside which a stay is judged, rests on it all the same.
    """
    known = schema.AVAILABLE_TIME
    apache = pl.col(schema.CODE).str.starts_with("APACHE//")
    asked = stays.select(schema.SUBJECT_ID, "start_time", schema.PREDICTION_TIME).sort("start_time")
    moved = (
        events.filter(apache)
        .sort(known)
        .join_asof(
            asked, left_on=known, right_on="start_time", by=schema.SUBJECT_ID,
            strategy="backward", check_sortedness=False,
        )
        .with_columns(
            pl.min_horizontal(name, schema.PREDICTION_TIME).alias(name)
            for name in (schema.TIME, known)
        )
    )  # fmt: skip
    return pl.concat([events.filter(~apache), moved.select(events.columns)])


def _kinds(events: pl.DataFrame, stays: pl.DataFrame) -> pl.DataFrame:
    """For each kind of `GROUPS` whether an event of it was known, a row a stay."""
    every = events[schema.CODE].unique().to_frame()
    lower = pl.col(schema.CODE).str.to_lowercase()
    held = every.with_columns(lower.str.contains(words).alias(n) for n, words in GROUPS.items())
    asked = stays.select(schema.SUBJECT_ID, schema.PREDICTION_TIME).with_row_index("_row")
    known = pl.coalesce(schema.AVAILABLE_TIME, schema.TIME)
    found = (
        events.lazy()
        .select(schema.SUBJECT_ID, schema.CODE, known.alias("_known"))
        .join(asked.lazy(), on=schema.SUBJECT_ID)
        .filter(pl.col("_known") <= pl.col(schema.PREDICTION_TIME))
        .join(held.lazy(), on=schema.CODE)
        .group_by("_row")
        .agg(pl.col(name).any() for name in GROUPS)
        .collect()
    )
    wide = asked.select("_row").join(found, on="_row", how="left", maintain_order="left")
    return wide.select(pl.col(name).fill_null(False).cast(pl.Float32) for name in GROUPS)
