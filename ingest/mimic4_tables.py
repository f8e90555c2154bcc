# pyright: strict
"""MIMIC-IV's tables and what each row says: code, time, when it was known, value.

Codes and times are those of the official MEDS conversion (MIMIC_IV_MEDS) wherever it has one. Ours
differs on purpose in these points:

* every event says when it could be known: results at their `storetime` (never before they were
  measured), drug orders at their `entertime` (never before they begin), billing codes a coding
  delay after the discharge, facts of a bare date at the end of that day;
* a death without an hour stands at the end of its day, not at its start;
* a blood pressure `120/80` of `omr` becomes two values, and `omr` values are numbers;
* runs of blanks within a name become one, and a part of a code is cut at 120 characters;
* a repeated row is a repeated event (a dose given twice is two doses);
* race, services, microbiology, charted dates, prescriptions and ED measurements are read too: one
  event a microbiology test, one an organism that grew, one an antibiotic tried.

Columns: https://mimic.mit.edu/docs/iv/. A table here is only a declaration; `mimic4` runs it. Drugs
are `mimic4_drug_tables`.
"""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from tsfm import codes
from tsfm.ingest.source_table import (
    DATED,
    STAY_END,
    STAY_START,
    EventRule,
    SourceTable,
    code_of,
    end_of_day,
    has,
    is_bare,
    is_first,
    measured,
    not_a_number,
    number,
    plain_number,
)

BIRTH_TIME, DEATH_TIME, RACE, RACE_TOLD = "_birth", "_death", "_race", "_race_told"
"""Columns that `hosp/patients` is given, from `hosp/admissions` and its own anchor year."""

DESCRIPTIONS = {
    "hosp/d_labitems": ("itemid", "label"),
    "icu/d_items": ("itemid", "label"),
    "hosp/d_icd_diagnoses": ("icd_code", "icd_version", "long_title"),
    "hosp/d_icd_procedures": ("icd_code", "icd_version", "long_title"),
}
"""Tables of names: key columns, then the text."""

IGNORED = (
    "hosp/d_hcpcs",
    "hosp/emar_detail",
    "hosp/poe",
    "hosp/poe_detail",
    "hosp/provider",
    "icu/caregiver",
    "icu/ingredientevents",
)
"""Tables that hold no patient events, or only parts of events that another table has whole."""

_BLOOD_PRESSURE = r"^\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*$"


def hospital_tables(delay: timedelta) -> tuple[SourceTable, ...]:
    """Tables of `hosp/` that are read chunk by chunk, in their order.

    Args:
        delay: From a stay's end to the moment its billing codes are known.
    """
    return (*_billing(delay), *_wards(), *_results(delay))


def patients() -> SourceTable:
    """`hosp/patients`: gender, race, birth, death."""
    year, age = (pl.col(n).cast(pl.Int32, strict=False) for n in ("anchor_year", "anchor_age"))
    born = year - age
    return SourceTable(
        "hosp/patients",
        times=("dod",),
        texts=("gender", "anchor_age", "anchor_year"),
        ids=("subject_id",),
        checks=(
            ("bad_birth", born.is_null() | ~born.is_between(1850, 2300)),
            ("duplicate_patient", ~is_first("subject_id")),
        ),
        rules=(
            EventRule(code_of(codes.GENDER, pl.col("gender")), None, where=has("gender")),
            EventRule(code_of(codes.RACE, pl.col(RACE)), None, pl.col(RACE_TOLD), where=has(RACE)),
            EventRule(pl.lit(codes.BIRTH), BIRTH_TIME),
            EventRule(pl.lit(codes.DEATH), DEATH_TIME),
        ),
    )


def add_life_dates(patients: pl.DataFrame, admissions: pl.DataFrame) -> pl.DataFrame:
    """Give cleaned patients their birth and death times and their race, told by an admission.

    A death has the hour of the stay it ended, else it stands at the end of its day.
    """
    stays = (
        admissions.sort("admittime", maintain_order=True)
        .group_by("subject_id", maintain_order=True)
        .agg(
            pl.col("race").drop_nulls().first().alias(RACE),
            pl.col("admittime").filter(has("race")).first().alias(RACE_TOLD),
            _death_in_hospital().min().alias("_died"),
        )
    )
    year = pl.col("anchor_year").cast(pl.Int32) - pl.col("anchor_age").cast(pl.Int32)
    return patients.join(stays, on="subject_id", how="left", maintain_order="left").with_columns(
        pl.datetime(year, 1, 1).alias(BIRTH_TIME),
        pl.coalesce("_died", end_of_day("dod")).alias(DEATH_TIME),
    )


def left_at() -> pl.Expr:
    """When a stay had ended; of a bare date, at the end of its day."""
    return pl.when(is_bare("dischtime")).then(end_of_day("dischtime")).otherwise("dischtime")


def _death_in_hospital() -> pl.Expr:
    """Time of death that an admission tells; of a bare date, the discharge of that day gives it."""
    ended = pl.when(pl.col("hospital_expire_flag") == "1").then(left_at())
    that_day = end_of_day("deathtime") == end_of_day("dischtime")
    hour = pl.when(~is_bare("deathtime")).then("deathtime")
    without_hour = pl.when(has("deathtime").not_() | that_day).then(ended)
    return pl.coalesce(hour, without_hour, end_of_day("deathtime"))


def admissions(*, with_ed_times: bool) -> SourceTable:
    """`hosp/admissions`; its ED times are left to `ed/edstays` where there is one."""
    died = (pl.col("hospital_expire_flag") == "1") & pl.col("discharge_location").is_null()
    to = pl.when(died).then(pl.lit(codes.DIED)).otherwise(pl.col("discharge_location"))
    came = code_of(codes.ADMISSION, pl.col("admission_type"), pl.col("admission_location"))
    in_ed = pl.lit(with_ed_times)
    return SourceTable(
        "hosp/admissions",
        times=("admittime", "dischtime", "deathtime", "edregtime", "edouttime"),
        texts=(
            "admission_type",
            "admission_location",
            "discharge_location",
            "race",
            "hospital_expire_flag",
        ),
        dated_by=("admittime",),
        checks=(
            ("bad_encounter", pl.col("hadm_id").is_null()),
            ("discharge_before_admission", left_at() < pl.col("admittime")),
            ("duplicate_stay", ~is_first("hadm_id")),
        ),
        rules=(
            EventRule(pl.lit(codes.ED_ARRIVAL), "edregtime", where=in_ed),
            EventRule(came, "admittime"),
            EventRule(pl.lit(codes.ED_DEPARTURE), "edouttime", where=in_ed),
            EventRule(code_of(codes.DISCHARGE, to), "dischtime"),
        ),
    )


def lab_results(name: str) -> SourceTable:
    """A table of one measurement a row: `hosp/labevents`, `icu/chartevents`."""
    return SourceTable(
        name,
        times=("charttime", "storetime"),
        stored=("storetime",),
        texts=("itemid", "value", "valuenum", "valueuom"),
        needs=("itemid",),
        dated_by=("charttime",),
        fallbacks={"storetime": "available at charttime"},
        rules=(
            EventRule(
                code_of(codes.LAB, pl.col("itemid"), pl.col("valueuom")),
                "charttime",
                pl.max_horizontal("charttime", "storetime"),
                measured("value", "valuenum"),
                not_a_number("value"),
            ),
        ),
    )


def icd(kind: str) -> pl.Expr:
    """ICD code of a row, without dot and padding."""
    leaf = pl.col("icd_code").str.replace_all(".", "", literal=True).str.to_uppercase()
    return code_of(kind, "ICD", pl.col("icd_version"), leaf)


def _billing(delay: timedelta) -> tuple[SourceTable, ...]:
    billed = pl.col(STAY_END) + delay
    # A date may lie outside the stay: coders can't know of what has not happened yet.
    billed_later = pl.max_horizontal(STAY_END, "chartdate") + delay
    drg_code = pl.col("drg_code").str.strip_chars_start("0")  # as the official conversion has it
    drg = code_of("DRG", pl.col("drg_type"), drg_code, pl.col("description"))
    hcpcs = code_of("HCPCS", pl.col("short_description"))
    billing_code = ("icd_code", "icd_version")
    # A date alone can't say when it was billed: within an open stay nothing was.
    has_ended = (
        ("unknown_encounter", pl.col(STAY_START).is_null()),
        ("no_time", pl.col(STAY_END).is_null()),
    )
    return (
        SourceTable(
            "hosp/diagnoses_icd",
            texts=billing_code,
            needs=("icd_code",),
            dated_by=(STAY_END,),
            stay="hospital",
            rules=(EventRule(icd(codes.DIAGNOSIS), STAY_END, billed),),
        ),
        SourceTable(
            "hosp/procedures_icd",
            times=("chartdate",),
            texts=billing_code,
            needs=("icd_code",),
            dated_by=("chartdate",),
            stay="hospital",
            checks=has_ended,
            rules=(EventRule(icd(codes.PROCEDURE), "chartdate", billed_later),),
        ),
        SourceTable(
            "hosp/drgcodes",
            texts=("drg_type", "drg_code", "description"),
            needs=("drg_code",),
            dated_by=(STAY_END,),
            stay="hospital",
            rules=(EventRule(drg, STAY_END, billed),),
        ),
        SourceTable(
            "hosp/hcpcsevents",
            times=("chartdate",),
            texts=("short_description",),
            dated_by=("chartdate",),
            stay="hospital",
            checks=has_ended,
            rules=(EventRule(hcpcs, "chartdate", billed_later),),
        ),
    )


def _wards() -> tuple[SourceTable, ...]:
    move = code_of("TRANSFER_TO", pl.col("eventtype"), pl.col("careunit"))
    return (
        SourceTable(
            "hosp/transfers",
            times=("intime",),
            texts=("eventtype", "careunit"),
            dated_by=("intime",),
            rules=(EventRule(move, "intime"),),
        ),
        SourceTable(
            "hosp/services",
            times=("transfertime",),
            texts=("curr_service",),
            needs=("curr_service",),
            dated_by=("transfertime",),
            rules=(EventRule(code_of("SERVICE", pl.col("curr_service")), "transfertime"),),
        ),
    )


def _results(delay: timedelta) -> tuple[SourceTable, ...]:
    test = ("micro_specimen_id", "test_itemid")
    specimen = ("subject_id", *test)
    stored = pl.coalesce(pl.col("storetime"), end_of_day("storedate"), pl.col(DATED) + delay)
    filed = pl.max_horizontal(DATED, stored)
    resistance = code_of(
        "MICROBIOLOGY_SUSCEPTIBILITY", pl.col("ab_itemid"), pl.col("interpretation")
    )
    pressure = pl.col("result_value").str.extract(_BLOOD_PRESSURE, 2).is_not_null()
    asked = pl.col("result_name")

    def half(name: str, group: int) -> EventRule:
        value = pl.col("result_value").str.extract(_BLOOD_PRESSURE, group).cast(pl.Float64)
        return EventRule(
            code_of(asked, name), "chartdate", end_of_day("chartdate"), value, where=pressure
        )

    return (
        lab_results("hosp/labevents"),
        SourceTable(
            "hosp/microbiologyevents",
            times=("charttime", "chartdate", "storedate", "storetime"),
            stored=("storetime",),
            texts=(
                *test,
                "org_itemid",
                "ab_itemid",
                "dilution_text",
                "dilution_value",
                "interpretation",
                "comments",
            ),
            needs=("test_itemid",),
            dated_by=("charttime", "chartdate"),
            fallbacks={"storetime": "available at the end of storedate, else a coding delay on"},
            rules=(
                EventRule(
                    code_of("MICROBIOLOGY_TEST", pl.col("test_itemid")),
                    DATED,
                    filed,
                    number("comments"),
                    not_a_number("comments"),
                    once_per=specimen,
                ),
                EventRule(
                    code_of("MICROBIOLOGY_ORGANISM", pl.col("org_itemid")),
                    DATED,
                    filed,
                    where=has("org_itemid"),
                    once_per=(*specimen, "org_itemid"),
                ),
                EventRule(
                    resistance,
                    DATED,
                    filed,
                    pl.coalesce(plain_number("dilution_value"), number("dilution_text")),
                    not_a_number("dilution_text"),
                    where=has("ab_itemid"),
                ),
            ),
        ),
        SourceTable(
            "hosp/omr",
            times=("chartdate",),
            texts=("result_name", "result_value"),
            needs=("result_name",),
            ids=("subject_id",),
            dated_by=("chartdate",),
            rules=(
                EventRule(
                    code_of(asked),
                    "chartdate",
                    end_of_day("chartdate"),
                    number("result_value"),
                    not_a_number("result_value"),
                    where=~pressure.fill_null(False),
                ),
                half("systolic", 1),
                half("diastolic", 2),
            ),
        ),
    )
