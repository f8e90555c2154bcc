# pyright: strict
"""What the rows of PhysioNet/CinC Challenge 2012 say: parameters, units, bounds, outcomes.

The 37 series and the descriptors are coded in LOINC with UCUM units, so that they share codes with
a hospital's FHIR export. Units are the published ones but for two:

* magnesium is published as mmol/L; a median of 2.0 in serum is mg/dL, the unit of its origin
  (MIMIC-II), and would be lethal in mmol/L;
* the inspired oxygen is a fraction and becomes a percentage, as other sources have it.

A value of -1 means unknown. A value outside the bounds below can't be of a living adult in that
unit (an arterial line that reads 0, a Celsius temperature converted as if it were Fahrenheit, a
height in inches): it is set aside, since which of several mistakes it was is a guess.

**Outcomes** are whole days since the admission to the ICU. They are events at the last moment that
a number of days can mean, so that nothing is known before it could be:

* `Length_of_stay` L ends at most L + 1 days after the admission (L days and a part of one);
* `Survival` S counts to the midnight that begins the day of death: stays with S = 1 have been
  observed for the full 48 hours. So the death was at most S + 2 days after the admission;
* a death in hospital ends the stay, so both are at the earlier of the two moments. In a third of
  these stays L exceeds S by more than a day: there L seems to count days before the ICU.

SAPS-I and SOFA are computed from the first day and stamped with no time: they are not read.

Source: https://physionet.org/content/challenge-2012/1.0.0/ and its data description.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

from tsfm import codes, units
from tsfm.ingest.source_table import EventRule, SourceTable, code_of, is_first, plain_number

ADMITTED = datetime(2000, 1, 1)
"""Where every stay begins on the synthetic clock: the source has no dates."""
OBSERVED_MINUTES = 48 * 60
UNKNOWN_VALUE = -1
MOST_DAYS = 36_600

ADMIT, TIME, LEFT, DIED, BORN = "_admit", "_time", "_left", "_died", "_born"
"""Columns that cleaned rows are given by `add_times` and `add_outcome_times`."""

_OBSERVATION, _OUTPUT = "OBSERVATION", "SUBJECT_FLUID_OUTPUT"
_ICU_TYPES = {
    1: "Coronary Care Unit",
    2: "Cardiac Surgery Recovery Unit",
    3: "Medical ICU",
    4: "Surgical ICU",
}
_SEXES = {0: "F", 1: "M"}
_MOMENT = timedelta(microseconds=1)


@dataclass(frozen=True)
class Parameter:
    """A measured parameter.

    Attributes:
        kind: Class of its code.
        loinc: LOINC code; None: the source's own name stands in the code.
        unit: As published, but for magnesium.
        low: Least plausible value, inclusive, as written in the source.
        high: Largest plausible value, inclusive.
        text: Description.
        factor: From the source's value to the event's.
    """

    kind: str
    loinc: str | None
    unit: str
    low: float
    high: float
    text: str
    factor: float = 1.0

    def code(self, name: str) -> str:
        """Code string of the parameter of this name."""
        if self.loinc is None:
            return codes.join(self.kind, name, self.unit)
        return codes.join(self.kind, "LOINC", self.loinc, units.spelling(self.unit))


_LAB, _VITAL = codes.LAB, codes.VITAL
PARAMETERS: dict[str, Parameter] = {
    "ALP": Parameter(_LAB, "6768-6", "IU/L", 0, 50_000, "Alkaline phosphatase"),
    "ALT": Parameter(_LAB, "1742-6", "IU/L", 0, 50_000, "Alanine transaminase"),
    "AST": Parameter(_LAB, "1920-8", "IU/L", 0, 50_000, "Aspartate transaminase"),
    "Albumin": Parameter(_LAB, "1751-7", "g/dL", 0.1, 10, "Albumin"),
    "BUN": Parameter(_LAB, "3094-0", "mg/dL", 0, 500, "Blood urea nitrogen"),
    "Bilirubin": Parameter(_LAB, "1975-2", "mg/dL", 0, 100, "Bilirubin"),
    "Cholesterol": Parameter(_LAB, "2093-3", "mg/dL", 5, 2000, "Cholesterol"),
    "Creatinine": Parameter(_LAB, "2160-0", "mg/dL", 0, 50, "Serum creatinine"),
    "DiasABP": Parameter(_VITAL, "76213-8", "mmHg", 1, 300, "Invasive diastolic pressure"),
    "FiO2": Parameter(_VITAL, "3150-6", "%", 0.21, 1, "Inspired oxygen", factor=100),
    "GCS": Parameter(_OBSERVATION, "9269-2", "{score}", 3, 15, "Glasgow Coma Score"),
    "Glucose": Parameter(_LAB, "2345-7", "mg/dL", 1, 3000, "Serum glucose"),
    "HCO3": Parameter(_LAB, "1963-8", "mmol/L", 1, 80, "Serum bicarbonate"),
    "HCT": Parameter(_LAB, "4544-3", "%", 3, 80, "Hematocrit"),
    "HR": Parameter(_VITAL, "8867-4", "bpm", 0, 350, "Heart rate"),
    "Height": Parameter(_VITAL, "8302-2", "cm", 100, 250, "Height"),
    "K": Parameter(_LAB, "2823-3", "mEq/L", 0.5, 15, "Serum potassium"),
    "Lactate": Parameter(_LAB, "2524-7", "mmol/L", 0, 50, "Lactate"),
    "MAP": Parameter(_VITAL, "76214-6", "mmHg", 1, 300, "Invasive mean pressure"),
    "MechVent": Parameter(_OBSERVATION, None, codes.UNKNOWN, 0, 1, "Mechanically ventilated"),
    "Mg": Parameter(_LAB, "19123-9", "mg/dL", 0.1, 20, "Serum magnesium"),
    "NIDiasABP": Parameter(_VITAL, "76535-4", "mmHg", 1, 300, "Non-invasive diastolic pressure"),
    "NIMAP": Parameter(_VITAL, "76536-2", "mmHg", 1, 300, "Non-invasive mean pressure"),
    "NISysABP": Parameter(_VITAL, "76534-7", "mmHg", 1, 350, "Non-invasive systolic pressure"),
    "Na": Parameter(_LAB, "2951-2", "mEq/L", 80, 220, "Serum sodium"),
    "PaCO2": Parameter(_LAB, "2019-8", "mmHg", 5, 250, "Arterial CO2 pressure"),
    "PaO2": Parameter(_LAB, "2703-7", "mmHg", 10, 800, "Arterial O2 pressure"),
    "Platelets": Parameter(_LAB, "777-3", "K/uL", 0, 5000, "Platelets"),
    "RespRate": Parameter(_VITAL, "9279-1", "breaths/min", 0, 120, "Respiration rate"),
    "SaO2": Parameter(_VITAL, "2708-6", "%", 10, 100, "Arterial oxygen saturation"),
    "SysABP": Parameter(_VITAL, "76215-3", "mmHg", 1, 350, "Invasive systolic pressure"),
    "Temp": Parameter(_VITAL, "8310-5", "degC", 20, 45, "Temperature"),
    "TroponinI": Parameter(_LAB, "10839-9", "ug/L", 0, 1000, "Troponin I"),
    "TroponinT": Parameter(_LAB, "6598-7", "ug/L", 0, 1000, "Troponin T"),
    "Urine": Parameter(_OUTPUT, "9187-6", "mL", 0, 10_000, "Urine output"),
    "WBC": Parameter(_LAB, "6690-2", "K/uL", 0, 1000, "White blood cells"),
    "Weight": Parameter(_VITAL, "29463-7", "kg", 20, 500, "Weight"),
    "pH": Parameter(_LAB, "2744-1", "[pH]", 6.3, 8, "Arterial pH"),
}
"""Series, and the two descriptors that are measurements, by the source's name."""

_DESCRIPTORS: dict[str, tuple[float, float]] = {
    "Age": (0, 120),
    "Gender": (min(_SEXES), max(_SEXES)),
    "ICUType": (min(_ICU_TYPES), max(_ICU_TYPES)),
}
_IGNORED = ("RecordID",)

DESCRIPTIONS = {p.code(name): f"{p.text} ({name})" for name, p in PARAMETERS.items()}
"""Texts of the codes."""


def observations() -> SourceTable:
    """Observations: one value a row; a stay's first usable row is its admission."""
    name, minute = pl.col("parameter"), pl.col("minute").cast(pl.Int64, strict=False)
    value, known = plain_number("value"), plain_number("value") != UNKNOWN_VALUE
    bounds = {n: (p.low, p.high) for n, p in PARAMETERS.items()} | _DESCRIPTORS
    low, high = (_by_name({n: pair[side] for n, pair in bounds.items()}) for side in (0, 1))
    factor = _by_name({n: p.factor for n, p in PARAMETERS.items()})
    code = name.replace_strict({n: p.code(n) for n, p in PARAMETERS.items()}, default=None)
    whole = value.cast(pl.Int64, strict=False)
    is_measured = name.is_in(list(PARAMETERS))
    read = [*bounds, *_IGNORED]
    is_category = name.is_in(["Gender", "ICUType"])

    def category(names: dict[int, str]) -> pl.Expr:
        return whole.replace_strict(names, default=None, return_dtype=pl.String)

    def descriptor(wanted: str) -> pl.Expr:
        return (name == wanted) & known

    return SourceTable(
        "observations",
        texts=("minute", "parameter", "value"),
        ids=("subject_id", "record_id"),
        needs=("parameter",),
        checks=(
            ("bad_time", minute.is_null()),
            ("time_out_of_range", ~minute.is_between(0, OBSERVED_MINUTES)),
            ("unknown_parameter", ~name.is_in(read)),
            ("bad_value", value.is_null()),
            ("implausible_value", known & ~value.is_between(low, high)),
            ("wrong_record", (name == "RecordID") & (value != pl.col("record_id"))),
            ("bad_value", known & is_category & (value != whole)),
        ),
        rules=(
            EventRule(code_of(codes.ADMISSION, "", ""), ADMIT, once_per=("subject_id",)),
            EventRule(pl.lit(codes.BIRTH), BORN, once_per=("subject_id",)),
            EventRule(
                code_of(codes.GENDER, category(_SEXES)),
                None,
                where=descriptor("Gender"),
                once_per=("subject_id",),
            ),
            EventRule(
                code_of(codes.ICU_ADMISSION, category(_ICU_TYPES)),
                ADMIT,
                where=descriptor("ICUType"),
                once_per=("subject_id",),
            ),
            EventRule(code, TIME, numeric=value * factor, where=is_measured & known),
        ),
    )


def add_times(rows: pl.DataFrame) -> pl.DataFrame:
    """Give cleaned observations their times, and the row of the age a time of birth."""
    minute = pl.duration(minutes=pl.col("minute").cast(pl.Int64), time_unit="us")
    age = plain_number("value").floor().cast(pl.Int32, strict=False)
    is_age = (pl.col("parameter") == "Age") & (age != UNKNOWN_VALUE)
    start = pl.lit(ADMITTED, dtype=pl.Datetime("us"))
    return rows.with_columns(
        start.alias(ADMIT),
        (start + minute).alias(TIME),
        pl.when(is_age).then(pl.datetime(ADMITTED.year - age, 1, 1)).alias(BORN),
    )


def outcomes() -> SourceTable:
    """Outcomes: how a stay ended, one row a stay."""
    died, stay, survival = (_whole(n) for n in ("in-hospital_death", "length_of_stay", "survival"))
    has_stay, has_death = stay != UNKNOWN_VALUE, survival != UNKNOWN_VALUE
    both = has_stay & has_death
    unreadable = [died.is_null(), ~died.is_in([0, 1])]
    for days in (stay, survival):
        unreadable += [days.is_null(), ~days.is_between(UNKNOWN_VALUE, MOST_DAYS)]
    dead = ~(has_stay | has_death) | (both & (survival > stay))
    alive = both & (survival <= stay)
    return SourceTable(
        "outcomes",
        texts=("length_of_stay", "survival", "in-hospital_death"),
        ids=("subject_id", "record_id"),
        checks=(
            ("duplicate_stay", ~is_first("subject_id")),
            ("bad_outcome", pl.any_horizontal(unreadable)),
            ("contradictory_outcome", pl.when(died == 1).then(dead).otherwise(alive)),
            # Whether the patient had left by then can't be told, so a death would count as one in
            # hospital, which the row denies.
            ("no_discharge_time", (died == 0) & ~has_stay & has_death),
        ),
        rules=(
            EventRule(code_of(codes.DISCHARGE, pl.when(died == 1).then(pl.lit(codes.DIED))), LEFT),
            EventRule(pl.lit(codes.DEATH), DIED),
        ),
    )


def add_outcome_times(rows: pl.DataFrame) -> pl.DataFrame:
    """Give cleaned outcomes the last moments that their days can mean."""
    left, died = _days_after("length_of_stay", 1), _days_after("survival", 2)
    in_hospital = _whole("in-hospital_death") == 1
    first = pl.min_horizontal(left, died)
    return rows.with_columns(
        pl.when(in_hospital).then(first).otherwise(left).alias(LEFT),
        pl.when(in_hospital).then(first).otherwise(died).alias(DIED),
    )


def _days_after(column: str, more: int) -> pl.Expr:
    days = pl.when(_whole(column) != UNKNOWN_VALUE).then(_whole(column) + more)
    return pl.lit(ADMITTED - _MOMENT, dtype=pl.Datetime("us")) + pl.duration(
        days=days, time_unit="us"
    )


def _whole(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.Int64, strict=False)


def _by_name(values: dict[str, float]) -> pl.Expr:
    new = [float(value) for value in values.values()]
    return pl.col("parameter").replace_strict(
        list(values), new, default=None, return_dtype=pl.Float64
    )
