# pyright: strict
"""eICU's patients: whose timeline a stay is, on which clock, and what its rows say.

The database has no dates. Each row of `patient` is one stay in a unit; it tells the year in which
its hospital stay ended, the hour of the day, and minutes from the unit's admission to everything
else. So within one hospital stay all distances are exact, also between its units, and between two
hospital stays of one patient nothing is known: "There is no systematic method for chronologically
ordering patientHealthSystemStayID for the same patient within the same year"
(https://eicu-crd.mit.edu/eicutables/patient/), and across years the gap may be days or two years.
What was decided from this:

* **A subject is one hospital stay** (`patienthealthsystemstayid`). Stays of one patient on one
  timeline would need an order or a gap that nobody knows, and every model reads gaps as real.
* **The patient (`uniquepid`) is kept** as the subject's id in the source, and decides the split:
  the stays of one patient are never on both sides.
* **The clock**: a hospital stay ends on 1 July of its true year, at its true hour. Day and month
  are a convention; hours, distances and the year are the source's.
* **Nobody is watched after the discharge.** The data set's `data_as_of` is the earliest of these
  days, so that a readmission is censored for every stay, never answered with no.
* A stay of which neither status nor location says how it ended has no discharge: unknown is not
  alive. Where a unit says that the patient died there and the hospital says alive, the hospital is
  followed.
* Ages above 89 are given as `> 89`; such a patient is born as if 90.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta

import polars as pl

from tsfm import clock, codes, splits
from tsfm.ingest.source_table import (
    ENCOUNTER,
    REASON,
    STAY_END,
    STAY_START,
    EventRule,
    SourceTable,
    code_of,
    has,
    is_first,
    not_a_number,
    number,
)
from tsfm.ingest.table_events import MAX_MINUTES, stay_frame

PATIENT = "patient"
UNIT = "patientunitstayid"
SUBJECT_COLUMN = "patienthealthsystemstayid"
"""Column of the source that is our `subject_id`."""
NOMINAL_DAY = "07-01"
"""Month and day on which every hospital stay ends."""
OLDEST_AGE, ABOVE_OLDEST = 90, "> 89"
DAY = timedelta(days=1)
HEIGHT, WEIGHT = ("VITAL", "LOINC", "8302-2", "cm"), ("VITAL", "LOINC", "29463-7", "kg")

UNIT_START, UNIT_END, DAY_1_END = "_unit_start", "_unit_end", "_day_1_end"
HOSPITAL_START, HOSPITAL_END = "_hospital_start", "_hospital_end"
BIRTH_TIME, DEATH_TIME, DISCHARGED = "_birth", "_death", "_discharged"
"""Columns that cleaned rows of `patient` are given by `place_stays`."""

_GENDERS = {"Male": "M", "Female": "F"}
_RACES = {
    "Caucasian": "WHITE",
    "African American": "BLACK/AFRICAN AMERICAN",
    "Hispanic": "HISPANIC OR LATINO",
    "Asian": "ASIAN",
    "Native American": "AMERICAN INDIAN/ALASKA NATIVE",
}
_PLACES = {
    "Home": codes.DISPOSITIONS["home"],
    "Skilled Nursing Facility": codes.DISPOSITIONS["snf"],
    "Rehabilitation": codes.DISPOSITIONS["rehab"],
    "Other External": codes.DISPOSITIONS["other-hcf"],
    "Other Hospital": codes.ACUTE_HOSPITAL,
    "Death": codes.UNKNOWN,  # of a stay whose status is not Expired: it contradicts itself
}
"""Words that MIMIC has too, in its spelling; all others stay as they are."""

_STATUS, _LOCATION = pl.col("hospitaldischargestatus"), pl.col("hospitaldischargelocation")
_DIED = pl.coalesce(_STATUS, _LOCATION).is_in(["Expired", "Death"]).fill_null(False)
_IS_STEPDOWN = (pl.col("unitstaytype") == "stepdown/other").fill_null(False)


def unit_stays() -> SourceTable:
    """`patient`: a row a unit stay, with what is known of its hospital stay and of the person."""
    end, admitted = _hospital_end(), _minutes("hospitaladmitoffset")
    discharged, left = _minutes("hospitaldischargeoffset"), _minutes("unitdischargeoffset")
    no_time = pl.any_horizontal(part.is_null() for part in (end, admitted, discharged, left))
    person = pl.col("uniquepid")
    return SourceTable(
        PATIENT,
        texts=(
            "uniquepid",
            "gender",
            "age",
            "ethnicity",
            "hospitalid",
            "hospitaladmitoffset",
            "hospitaladmitsource",
            "hospitaldischargeyear",
            "hospitaldischargetime24",
            "hospitaldischargeoffset",
            "hospitaldischargelocation",
            "hospitaldischargestatus",
            "unittype",
            "unitstaytype",
            "unitadmitsource",
            "unitdischargeoffset",
            "unitdischargelocation",
            "unitdischargestatus",
            "admissionheight",
            "admissionweight",
            "dischargeweight",
        ),
        ids=("subject_id", UNIT),
        checks=(
            ("no_encounter", pl.col(UNIT).is_null()),
            ("no_subject", person.is_null()),
            ("bad_time", no_time),
            ("time_out_of_range", ~end.dt.year().is_between(clock.FIRST_YEAR, clock.LAST_YEAR)),
            ("bad_birth", has("age") & _age().is_null()),
            ("discharge_before_admission", (discharged < admitted) | (left < 0)),
            ("duplicate_stay", ~is_first(UNIT)),
            ("contradicts_its_stay", _is_minority(end) | _is_minority(person)),
        ),
        rules=(*_person_rules(), *_hospital_rules(), *_unit_rules()),
    )


def place_stays(rows: pl.DataFrame) -> pl.DataFrame:
    """Give cleaned rows of `patient` their times on the data set's clock, and their encounter."""
    start = pl.col(HOSPITAL_END) - _duration("hospitaldischargeoffset")
    in_unit = _DIED & (pl.col("unitdischargestatus") == "Expired")
    died = pl.when(in_unit).then(pl.min_horizontal(UNIT_END, HOSPITAL_END))
    left = pl.when(pl.coalesce(_STATUS, _LOCATION).is_not_null()).then(pl.col(HOSPITAL_END))
    return (
        rows.with_columns(_hospital_end().alias(HOSPITAL_END))
        .with_columns(start.alias(UNIT_START))
        .with_columns(
            (pl.col(UNIT_START) + _duration("unitdischargeoffset")).alias(UNIT_END),
            (pl.col(UNIT_START) + _duration("hospitaladmitoffset")).alias(HOSPITAL_START),
        )
        .with_columns(
            pl.datetime(pl.col(HOSPITAL_START).dt.year() - _age(), 1, 1).alias(BIRTH_TIME),
            pl.coalesce(
                died.min().over("subject_id"), pl.when(_DIED).then(pl.col(HOSPITAL_END))
            ).alias(DEATH_TIME),
            left.alias(DISCHARGED),
            pl.col("subject_id").alias(ENCOUNTER),
        )
    )


def unit_frame(placed: pl.DataFrame) -> pl.DataFrame:
    """Unit stays as `TableEvents.stays` wants them: start of the unit, end of the hospital stay.

    `DAY_1_END` is when the first day in the unit was over, or the hospital stay if that is sooner.
    """
    day = pl.max_horizontal(STAY_START, pl.min_horizontal(pl.col(STAY_START) + DAY, STAY_END))
    frame = stay_frame(placed, key=UNIT, start=UNIT_START, end=HOSPITAL_END, encounter="subject_id")
    return frame.with_columns(day.alias(DAY_1_END))


def splits_by_patient(placed: pl.DataFrame) -> dict[int, str]:
    """Split of each hospital stay: that of its patient, so that no patient is on two sides."""
    pairs = placed.select("subject_id", "uniquepid").unique(maintain_order=True)
    return {subject: splits.split_of(_number_of(person)) for subject, person in pairs.iter_rows()}


def notes_of(placed: pl.DataFrame) -> list[str]:
    """What a reader must know of these stays, with counts."""
    first = placed.unique("subject_id", keep="first", maintain_order=True)
    n_old = first.filter(pl.col("age") == ABOVE_OLDEST).height
    n_unknown = first.filter(pl.col(DISCHARGED).is_null()).height
    n_torn = placed.filter(~_DIED & (pl.col("unitdischargestatus") == "Expired")).height
    notes = [
        f"{first.height:,} hospital stays of {first['uniquepid'].n_unique():,} patients: a subject "
        "is one hospital stay, because neither order nor gaps of a patient's stays are known",
        f"a hospital stay ends on {NOMINAL_DAY} of its year: hours, distances and years are true, "
        "days and months are not; nobody is watched after the discharge",
    ]
    if n_old:
        notes.append(f"{n_old:,} stays at an age above 89: born as if {OLDEST_AGE}")
    if n_unknown:
        notes.append(f"{n_unknown:,} hospital stays end in an unknown way: they have no discharge")
    if n_torn:
        notes.append(
            f"{n_torn:,} unit stays end in death but their hospital stay does not: the hospital "
            "is followed"
        )
    return notes


def _person_rules() -> tuple[EventRule, ...]:
    once, known = ("subject_id",), pl.col(HOSPITAL_START)
    gender, race = pl.col("gender").replace(_GENDERS), pl.col("ethnicity").replace(_RACES)
    site = code_of("HOSPITAL_SITE", pl.col("hospitalid"))
    return (
        EventRule(code_of(codes.GENDER, gender), None, where=has("gender"), once_per=once),
        EventRule(code_of(codes.RACE, race), None, known, where=has("ethnicity"), once_per=once),
        EventRule(site, None, known, where=has("hospitalid"), once_per=once),
        EventRule(pl.lit(codes.BIRTH), BIRTH_TIME, once_per=once),
        EventRule(pl.lit(codes.DEATH), DEATH_TIME, once_per=once),
    )


def _hospital_rules() -> tuple[EventRule, ...]:
    died = pl.when(_DIED).then(pl.lit(codes.DIED))
    to = pl.coalesce(died, _LOCATION.replace(_PLACES))
    came = code_of(codes.ADMISSION, codes.UNKNOWN, pl.col("hospitaladmitsource"))
    return (
        EventRule(came, HOSPITAL_START, once_per=("subject_id",)),
        EventRule(code_of(codes.DISCHARGE, to), DISCHARGED, once_per=("subject_id",)),
    )


def _unit_rules() -> tuple[EventRule, ...]:
    unit, stay = pl.col("unittype"), pl.col("unitstaytype")
    came, left = pl.col("unitadmitsource"), pl.col("unitdischargelocation")
    weight, height = code_of(*WEIGHT), code_of(*HEIGHT)
    is_icu = ~_IS_STEPDOWN

    def measured(code: pl.Expr, time: str, column: str) -> EventRule:
        return EventRule(
            code, time, numeric=number(column), text=not_a_number(column), where=has(column)
        )

    return (
        EventRule(code_of(codes.ICU_ADMISSION, unit, came), UNIT_START, where=is_icu),
        EventRule(code_of("TRANSFER_TO", stay, unit), UNIT_START, where=_IS_STEPDOWN),
        measured(height, UNIT_START, "admissionheight"),
        measured(weight, UNIT_START, "admissionweight"),
        measured(weight, UNIT_END, "dischargeweight"),
        EventRule(code_of(codes.ICU_DISCHARGE, unit, left), UNIT_END, where=is_icu),
        EventRule(code_of("TRANSFER_FROM", stay, left), UNIT_END, where=_IS_STEPDOWN),
    )


def _hospital_end() -> pl.Expr:
    """End of the hospital stay on the data set's clock, to the minute, as all offsets are."""
    text = pl.concat_str(
        pl.col("hospitaldischargeyear"),
        pl.lit(f"-{NOMINAL_DAY} "),
        pl.col("hospitaldischargetime24"),
    )
    end = text.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us")
    return end.dt.truncate("1m")


def _is_minority(value: pl.Expr) -> pl.Expr:
    """Whether a usable row says otherwise than most of its stay's; of a tie, than the first."""
    usable = pl.when(~has(REASON)).then(value)
    most = usable.drop_nulls().mode(maintain_order=True).first().over("subject_id")
    return (value != most).fill_null(False)


def _minutes(column: str) -> pl.Expr:
    minutes = pl.col(column).cast(pl.Int64, strict=False)
    return pl.when(minutes.is_between(-MAX_MINUTES, MAX_MINUTES)).then(minutes)


def _duration(column: str) -> pl.Expr:
    return pl.duration(minutes=_minutes(column), time_unit="us")


def _age() -> pl.Expr:
    """Age in years; null where there is none or none that can be read."""
    years = pl.col("age").cast(pl.Int32, strict=False)
    told = pl.when(years.is_between(0, 130)).then(years)
    return pl.when(pl.col("age") == ABOVE_OLDEST).then(OLDEST_AGE).otherwise(told)


def _number_of(person: str) -> int:
    return int.from_bytes(hashlib.blake2b(person.encode(), digest_size=8).digest(), "big")
