# pyright: strict
"""What a row of the Diabetes 130-US hospitals data says, and when it could be known.

A row is one stay in hospital, summed up when it was over. So only what a ward knows at the door is
an event of the admission: how and whence the patient came, age band, payer, the physician's
specialty, visits of the year before. Drugs, tests and the counts of the stay are known at its end;
diagnoses and their number a coding delay later.

**The label.** `readmitted` says `<30` (days), `>30` or `NO`. Whether the patient was back within 30
days is known when these are over, one microsecond after 30 days: then it is an event. What lies
between `>30` and `NO` (whether the patient came back in all the years after) is never an event,
since no moment is known at which it could have been.

**Traps.** `?` is missing, but `None` in a test is "not done". ICD-9 codes lost their leading zeros
(`38` is 038, septicaemia). `NULL`, `Not Mapped`, `Not Available` are ids with a meaning of nothing.
`weight` is said to be in pounds, and its bands fit kilograms: it is kept as a word without unit.
A patient who expired (also under hospice care: 19, 20, 21) has a death at the discharge.

Source: https://archive.ics.uci.edu/dataset/296; Strack et al., BioMed Research International 2014,
781670, table 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

import polars as pl

from tsfm import codes
from tsfm.ingest.source_table import EventRule, SourceTable, code_of, has, is_first, number

FIRST_ADMITTED = datetime(2000, 1, 1, 12)
"""Where every patient's first stay begins on the synthetic clock: the source has no dates."""
LABEL_DAYS = 30
OTHER_GAP_DAYS = 90
"""Days from a discharge to the next stay of the file where the label says that it was not <30."""
MOST_DAYS = 366

ADMIT, LEFT, DIED, BORN, ANSWERED, IS_LAST = (
    "_admit", "_left", "_died", "_born", "_answered", "_is_last",
)  # fmt: skip
"""Columns that cleaned rows are given by `add_times`."""

READMITTED = "READMISSION_30D"
DRUGS = (
    "metformin", "repaglinide", "nateglinide", "chlorpropamide", "glimepiride", "acetohexamide",
    "glipizide", "glyburide", "tolbutamide", "pioglitazone", "rosiglitazone", "acarbose",
    "miglitol", "troglitazone", "tolazamide", "examide", "citoglipton", "insulin",
    "glyburide-metformin", "glipizide-metformin", "glimepiride-pioglitazone",
    "metformin-rosiglitazone", "metformin-pioglitazone",
)  # fmt: skip
IDS = ("admission_type_id", "discharge_disposition_id", "admission_source_id")
MISSING = "?"
_MEANS_NOTHING = ("NULL", "NOT AVAILABLE", "NOT MAPPED", "UNKNOWN/INVALID", "OTHER")
_DIAGNOSES = ("diag_1", "diag_2", "diag_3")
_TESTS = {"a1cresult": ("4548-4", "%"), "max_glu_serum": ("2345-7", "mg/dL")}
_PRIOR = {
    "number_outpatient": "OUTPATIENT_VISITS",
    "number_emergency": "EMERGENCY_VISITS",
    "number_inpatient": "INPATIENT_VISITS",
}
_COUNTS = {
    "num_lab_procedures": "LAB_PROCEDURES",
    "num_procedures": "PROCEDURES",
    "num_medications": "MEDICATIONS",
    "number_diagnoses": "DIAGNOSES",
}
_EXPIRED = ("11", "19", "20", "21")
_DISPOSITIONS = {
    **dict.fromkeys(_EXPIRED, codes.DIED),
    **dict.fromkeys(("13", "14"), codes.HOSPICE),
    **dict.fromkeys(("2", "10", "29"), codes.ACUTE_HOSPITAL),
    **dict.fromkeys(("6", "8"), "HOME HEALTH CARE"),
    **dict.fromkeys(("3", "24"), "SKILLED NURSING FACILITY"),
    "1": "HOME",
    "7": codes.AGAINST_ADVICE,
    "22": "REHAB",
    "23": "CHRONIC/LONG TERM ACUTE CARE",
    "28": "PSYCH FACILITY",
}
"""Discharges in MIMIC's words, which the tasks know; others keep the words of the mapping."""
_WORDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(DRUGS, ("No", "Steady", "Up", "Down")),
    "change": ("No", "Ch"),
    "diabetesmed": ("No", "Yes"),
    "a1cresult": ("None", "Norm", ">7", ">8"),
    "max_glu_serum": ("None", "Norm", ">200", ">300"),
}
_BAND = r"^\[(\d+)-(\d+)\)$"


def encounters(delay: timedelta, meanings: Mapping[str, Mapping[str, str]]) -> SourceTable:
    """The one table.

    Args:
        delay: From a discharge to the moment its diagnoses are known.
        meanings: For each of `IDS`, id to its words in the mapping file.
    """
    label, days = pl.col("readmitted"), whole("time_in_hospital")
    numbers = [*_COUNTS, *_PRIOR]
    bad_number = [has(n) & (whole(n).is_null() | (whole(n) < 0)) for n in numbers]
    bad_word = [has(n) & ~pl.col(n).is_in(words) for n, words in _WORDS.items()]
    unknown_id = [has(n) & ~pl.col(n).is_in(list(meanings[n])) for n in IDS]
    dead = has_died().cast(pl.Int32)
    died_before = dead.cum_sum().over("subject_id", order_by="encounter_id") - dead
    return SourceTable(
        "encounters",
        ids=("subject_id", "encounter_id"),
        texts=(
            "race", "gender", "age", "weight", *IDS, "time_in_hospital", "payer_code",
            "medical_specialty", *numbers, *_DIAGNOSES, *_WORDS, "readmitted",
        ),
        checks=(
            ("bad_encounter", pl.col("encounter_id").is_null()),
            ("duplicate_stay", ~is_first("encounter_id")),
            ("bad_length_of_stay", days.is_null() | ~days.is_between(0, MOST_DAYS)),
            ("unknown_outcome", label.is_null() | ~label.is_in(["<30", ">30", "NO"])),
            ("unknown_id", pl.any_horizontal(unknown_id)),
            ("unknown_word", pl.any_horizontal(bad_word)),
            ("bad_number", pl.any_horizontal(bad_number)),
            ("bad_birth", has("age") & ~pl.col("age").str.contains(_BAND)),
            # One of the two rows is wrong, and the order of ids can't say which.
            ("admitted_after_death", died_before > 0),
        ),
        rules=(*_at_the_door(meanings), *_at_the_end(delay, meanings), _answer()),
    )  # fmt: skip


def add_times(rows: pl.DataFrame) -> pl.DataFrame:
    """Order cleaned rows by patient and encounter id and put them on the synthetic clock.

    Stays last as long as they did. Between them lie 30 days where the label says `<30`, the last
    moment of which that is true, and 90 where it does not: the true gap is not in the source.
    """
    gap = pl.when(pl.col("readmitted") == "<30").then(LABEL_DAYS).otherwise(OTHER_GAP_DAYS)
    days = whole("time_in_hospital")
    before = ((days + gap).cum_sum() - days - gap).over("subject_id")
    start = pl.lit(FIRST_ADMITTED, dtype=pl.Datetime("us"))
    band = pl.col("age").str.extract_groups(_BAND)
    ages = band.struct["1"].cast(pl.Int32) + band.struct["2"].cast(pl.Int32)
    return (
        rows.sort("subject_id", "encounter_id")
        .with_columns((start + _days(before)).alias(ADMIT))
        .with_columns((pl.col(ADMIT) + _days(days)).alias(LEFT))
        .with_columns(
            pl.when(has_died()).then(LEFT).alias(DIED),
            pl.datetime(pl.col(ADMIT).dt.year() - ages // 2, 1, 1).alias(BORN),
            (pl.col(LEFT) + timedelta(days=LABEL_DAYS, microseconds=1)).alias(ANSWERED),
            (pl.col("encounter_id") == pl.col("encounter_id").last().over("subject_id")).alias(
                IS_LAST
            ),
        )
    )


def returns_elsewhere(rows: pl.DataFrame) -> pl.DataFrame:
    """Admissions of patients who were back within 30 days, in a stay that the file does not hold.

    Without them `readmission_30d` would take such patients for ones who stayed away. Of the stay
    nothing is known but that it began by the end of the 30 days, which is where it stands.
    """
    back = rows.filter(pl.col(IS_LAST) & (pl.col("readmitted") == "<30") & ~has_died())
    return back.select(
        "subject_id",
        (pl.col(LEFT) + timedelta(days=LABEL_DAYS)).alias("time"),
        pl.lit(codes.join(codes.ADMISSION, None, None)).alias("code"),
    )


def has_died() -> pl.Expr:
    """Whether a row's discharge was a death."""
    return pl.col("discharge_disposition_id").is_in(_EXPIRED).fill_null(False)


def whole(column: str) -> pl.Expr:
    """A text column's whole number; null where it holds none."""
    return pl.col(column).cast(pl.Int64, strict=False)


def _at_the_door(meanings: Mapping[str, Mapping[str, str]]) -> tuple[EventRule, ...]:
    came = code_of(
        codes.ADMISSION,
        _words(meanings, "admission_type_id"),
        _words(meanings, "admission_source_id"),
    )
    sex = pl.col("gender").replace_strict({"Female": "F", "Male": "M"}, default=None)
    first = ("subject_id",)

    def fact(name: str, column: str) -> EventRule:
        return EventRule(code_of(name, pl.col(column)), ADMIT, where=has(column))

    return (
        EventRule(pl.lit(codes.BIRTH), BORN, once_per=first),
        EventRule(
            code_of(codes.GENDER, sex), None, pl.col(ADMIT), where=sex.is_not_null(), once_per=first
        ),
        EventRule(
            code_of(codes.RACE, pl.col("race")), None, pl.col(ADMIT), where=has("race"),
            once_per=first,
        ),
        EventRule(came, ADMIT),
        fact("AGE_BAND", "age"),
        fact("INSURANCE", "payer_code"),
        fact("SERVICE", "medical_specialty"),
        *(
            EventRule(code_of("PRIOR_YEAR", name), ADMIT, numeric=whole(column), where=has(column))
            for column, name in _PRIOR.items()
        ),
    )  # fmt: skip


def _at_the_end(
    delay: timedelta, meanings: Mapping[str, Mapping[str, str]]
) -> tuple[EventRule, ...]:
    id_ = pl.col("discharge_disposition_id")
    to = pl.coalesce(
        id_.replace_strict(_DISPOSITIONS, default=None, return_dtype=pl.String),
        _words(meanings, "discharge_disposition_id"),
    )
    coded = pl.col(LEFT) + delay

    def diagnosis(column: str) -> EventRule:
        digits = pl.col(column).str.to_uppercase()
        category = digits.str.extract(r"^([^.]*)")
        padded = pl.when(category.str.contains(r"^\d+$")).then(category.str.zfill(3))
        leaf = pl.coalesce(padded, category) + digits.str.extract(r"\.(.*)$").fill_null("")
        code = code_of(codes.DIAGNOSIS, "ICD", "9", leaf)
        return EventRule(code, LEFT, coded, where=has(column))

    def test(column: str, loinc: str, unit: str) -> EventRule:
        result = pl.col(column)
        return EventRule(
            code_of(codes.LAB, "LOINC", loinc, unit),
            LEFT,
            numeric=number(column),
            text=result,
            where=result != "None",
        )

    def drug(name: str) -> EventRule:
        change = pl.col(name)
        return EventRule(
            code_of(codes.MEDICATION, name, change.str.to_uppercase()), LEFT, where=change != "No"
        )

    def count(column: str, name: str) -> EventRule:
        available = coded if name == "DIAGNOSES" else None
        return EventRule(code_of("COUNT", name), LEFT, available, whole(column), where=has(column))

    treated, changed = pl.col("diabetesmed") == "Yes", pl.col("change") == "Ch"
    return (
        EventRule(code_of("WEIGHT_BAND", pl.col("weight")), LEFT, where=has("weight")),
        *(test(column, *coding) for column, coding in _TESTS.items()),
        *(drug(name) for name in DRUGS),
        EventRule(code_of("DIABETES_MEDICATION", "PRESCRIBED"), LEFT, where=treated),
        EventRule(code_of("DIABETES_MEDICATION", "CHANGED"), LEFT, where=changed),
        *(count(column, name) for column, name in _COUNTS.items()),
        *(diagnosis(column) for column in _DIAGNOSES),
        EventRule(code_of(codes.DISCHARGE, to), LEFT),
        EventRule(pl.lit(codes.DEATH), DIED),
    )


def _answer() -> EventRule:
    back = pl.when(pl.col("readmitted") == "<30").then(pl.lit("YES")).otherwise(pl.lit("NO"))
    return EventRule(code_of(READMITTED, back), ANSWERED, where=~has_died())


def _words(meanings: Mapping[str, Mapping[str, str]], column: str) -> pl.Expr:
    words = {key: text.upper() for key, text in meanings[column].items()}
    known = {key: text for key, text in words.items() if text not in _MEANS_NOTHING}
    return pl.col(column).replace_strict(known, default=None, return_dtype=pl.String)


def _days(days: pl.Expr) -> pl.Expr:
    return pl.duration(days=days, time_unit="us")
