# pyright: strict
"""What rows of eICU say that was measured: laboratory, vital signs, charts, fluids, cultures.

Every time is minutes from the admission to the unit. An event stands at the time of the measurement
and is known when it was entered, where the source tells both (`labresultrevisedoffset`, the
`...entryoffset` columns), else at its time. What has a LOINC code in MIMIC-IV-ED and in FHIR's
vital signs has the same code here, from the monitor and from the nurse.

Traps of the source:

* a culture has no time of its result: all of it is known a culture delay after it was taken;
* a cardiac output of 0 comes with an index of 0 and no resistance: nothing was measured;
* body weight is charted twice, in kg and in lb: one event;
* the totals of `intakeoutput` repeat on every row of a moment what its rows sum up to: not read.

Columns: https://eicu-crd.mit.edu/eicutables/. Treatments and histories are `eicu_care_tables`.
"""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from tsfm import codes
from tsfm.ingest.eicu_stays import UNIT, WEIGHT
from tsfm.ingest.source_table import (
    EACH,
    STAY_START,
    EventRule,
    SourceTable,
    code_of,
    has,
    measured,
    not_a_number,
    number,
    path_of,
    plain_number,
)

IGNORED = {
    "careplancareprovider": "who cared, not what happened",
    "careplaneol": "care plans are not read yet",
    "careplangeneral": "care plans are not read yet",
    "careplangoal": "care plans are not read yet",
    "careplaninfectiousdisease": "care plans are not read yet",
    "customlab": "tests without a standard name, unit or time of release",
    "hospital": "facts of hospitals, not of patients",
    "note": "fragments of free text",
    "nurseassessment": "assessments in words",
    "nursecare": "care in words",
    "physicalexam": "findings in words",
}
"""Tables that are counted and not read, and why."""

POUNDS = 0.45359237
_LOINC = (codes.VITAL, "LOINC")
_EICU = (codes.VITAL, "eICU")
_PERIODIC = (
    ("temperature", (*_LOINC, "8310-5", "Cel")),
    ("sao2", (*_LOINC, "2708-6", "%")),
    ("heartrate", (*_LOINC, "8867-4", "/min")),
    ("respiration", (*_LOINC, "9279-1", "/min")),
    ("cvp", (*_EICU, "cvp", "mm[Hg]")),
    ("etco2", (*_EICU, "etco2", "mm[Hg]")),
    ("systemicsystolic", (*_EICU, "systemicsystolic", "mm[Hg]")),
    ("systemicdiastolic", (*_EICU, "systemicdiastolic", "mm[Hg]")),
    ("systemicmean", (*_EICU, "systemicmean", "mm[Hg]")),
    ("pasystolic", (*_EICU, "pasystolic", "mm[Hg]")),
    ("padiastolic", (*_EICU, "padiastolic", "mm[Hg]")),
    ("pamean", (*_EICU, "pamean", "mm[Hg]")),
    ("st1", (*_EICU, "st1", codes.UNKNOWN)),
    ("st2", (*_EICU, "st2", codes.UNKNOWN)),
    ("st3", (*_EICU, "st3", codes.UNKNOWN)),
    ("icp", (*_EICU, "icp", "mm[Hg]")),
)
_APERIODIC = (
    ("noninvasivesystolic", (*_LOINC, "8480-6", "mm[Hg]")),
    ("noninvasivediastolic", (*_LOINC, "8462-4", "mm[Hg]")),
    ("noninvasivemean", (*_LOINC, "8478-0", "mm[Hg]")),
    ("paop", (*_EICU, "paop", "mm[Hg]")),
    ("cardiacoutput", (*_EICU, "cardiacoutput", "L/min")),
    ("cardiacinput", (*_EICU, "cardiacinput", "L/min/m2")),
    ("svr", (*_EICU, "svr", "dyn.s/cm5")),
    ("svri", (*_EICU, "svri", "dyn.s.m2/cm5")),
    ("pvr", (*_EICU, "pvr", "dyn.s/cm5")),
    ("pvri", (*_EICU, "pvri", "dyn.s.m2/cm5")),
)
_ZERO_IS_NONE = ("cardiacoutput", "cardiacinput")
_CHARTED = {
    "Heart Rate": codes.join(*_LOINC, "8867-4", "/min"),
    "Respiratory Rate": codes.join(*_LOINC, "9279-1", "/min"),
    "O2 Saturation": codes.join(*_LOINC, "2708-6", "%"),
    "Temperature (C)": codes.join(*_LOINC, "8310-5", "Cel"),
    "Non-Invasive BP Systolic": codes.join(*_LOINC, "8480-6", "mm[Hg]"),
    "Non-Invasive BP Diastolic": codes.join(*_LOINC, "8462-4", "mm[Hg]"),
    "Non-Invasive BP Mean": codes.join(*_LOINC, "8478-0", "mm[Hg]"),
}
"""Names of `nursecharting` that say what a monitor says too."""
_FLUIDS = {
    "Output (ml)": "SUBJECT_FLUID_OUTPUT",
    "Intake (ml)": "SUBJECT_FLUID_INTAKE",
    "Dialysis (ml)": "DIALYSIS_FLUID",
}
_SENSITIVITY = {"Sensitive": "S", "Intermediate": "I", "Resistant": "R"}


def measurement_tables(culture_delay: timedelta) -> tuple[SourceTable, ...]:
    """Tables of measurements, in their order.

    Args:
        culture_delay: From the moment a culture was taken to the moment its result is known.
    """
    return (
        _lab(),
        _vitals("vitalperiodic", _PERIODIC),
        _vitals("vitalaperiodic", _APERIODIC),
        _nurse_charting(),
        _respiratory_charting(),
        _respiratory_care(),
        _intake_output(),
        _cultures(culture_delay),
    )


def unit_table(
    name: str,
    *,
    minutes: tuple[str, ...],
    texts: tuple[str, ...],
    rules: tuple[EventRule, ...],
    needs: tuple[str, ...] = (),
    dated_by: tuple[str, ...] = (),
    entered: str | None = None,
) -> SourceTable:
    """A table whose rows belong to a unit stay and count minutes from its start.

    Args:
        name: Of the table.
        minutes: Its columns of minutes; the first dates the row if `dated_by` is not given.
        texts: Its other columns.
        rules: Events of a row.
        needs: Columns without which a row has no code.
        dated_by: Columns of which one must hold a time.
        entered: Column of minutes at which the row was entered, if it has one.
    """
    fallbacks = {} if entered is None else {entered: f"available at {minutes[0]}"}
    return SourceTable(
        name,
        texts=texts,
        rules=rules,
        needs=needs,
        dated_by=dated_by or minutes[:1],
        ids=(UNIT,),
        stay="unit",
        minutes=minutes,
        fallbacks=fallbacks,
    )


def _lab() -> SourceTable:
    return unit_table(
        "lab",
        minutes=("labresultoffset", "labresultrevisedoffset"),
        texts=("labname", "labresult", "labresulttext", "labmeasurenamesystem"),
        needs=("labname",),
        entered="labresultrevisedoffset",
        rules=(
            EventRule(
                code_of(codes.LAB, pl.col("labname"), pl.col("labmeasurenamesystem")),
                "labresultoffset",
                pl.max_horizontal("labresultoffset", "labresultrevisedoffset"),
                measured("labresulttext", "labresult"),
                not_a_number("labresulttext"),
            ),
        ),
    )


def _vitals(name: str, columns: tuple[tuple[str, tuple[str, ...]], ...]) -> SourceTable:
    rules: list[EventRule] = []
    for column, code in columns:
        given = has(column)
        if column in _ZERO_IS_NONE:
            given = given & (plain_number(column) != 0).fill_null(True)
        rules.append(
            EventRule(
                code_of(*code),
                "observationoffset",
                numeric=number(column),
                text=not_a_number(column),
                where=given,
            )
        )
    return unit_table(
        name,
        minutes=("observationoffset",),
        texts=tuple(column for column, _ in columns),
        rules=tuple(rules),
    )


def _nurse_charting() -> SourceTable:
    label, name = pl.col("nursingchartcelltypevallabel"), pl.col("nursingchartcelltypevalname")
    vital = name.replace_strict(_CHARTED, default=None, return_dtype=pl.String)
    return unit_table(
        "nursecharting",
        minutes=("nursingchartoffset", "nursingchartentryoffset"),
        texts=("nursingchartcelltypevallabel", "nursingchartcelltypevalname", "nursingchartvalue"),
        needs=("nursingchartcelltypevallabel",),
        entered="nursingchartentryoffset",
        rules=(
            EventRule(
                pl.coalesce(vital, code_of("NURSE_CHARTING", label, name)),
                "nursingchartoffset",
                pl.max_horizontal("nursingchartoffset", "nursingchartentryoffset"),
                number("nursingchartvalue"),
                not_a_number("nursingchartvalue"),
                where=has("nursingchartvalue"),
            ),
        ),
    )


def _respiratory_charting() -> SourceTable:
    return unit_table(
        "respiratorycharting",
        minutes=("respchartoffset", "respchartentryoffset"),
        texts=("respchartvaluelabel", "respchartvalue"),
        needs=("respchartvaluelabel",),
        entered="respchartentryoffset",
        rules=(
            EventRule(
                code_of("RESPIRATORY_CHARTING", pl.col("respchartvaluelabel")),
                "respchartoffset",
                pl.max_horizontal("respchartoffset", "respchartentryoffset"),
                number("respchartvalue"),
                not_a_number("respchartvalue"),
                where=has("respchartvalue"),
            ),
        ),
    )


def _respiratory_care() -> SourceTable:
    """Airways, and when ventilation began and ended; 0 minutes is how the source says never."""

    def ventilation(what: str, *columns: str) -> EventRule:
        told = [pl.when(pl.col(name) != pl.col(STAY_START)).then(pl.col(name)) for name in columns]
        return EventRule(
            code_of("VENTILATION", what),
            EACH,
            pl.max_horizontal(EACH, "respcarestatusoffset"),
            each=pl.concat_list(told),
            once_per=(UNIT, EACH),  # each row repeats the last ventilation
        )

    return unit_table(
        "respiratorycare",
        minutes=(
            "respcarestatusoffset",
            "ventstartoffset",
            "ventendoffset",
            "priorventstartoffset",
            "priorventendoffset",
        ),
        texts=("airwaytype", "airwaysize"),
        rules=(
            EventRule(
                code_of("AIRWAY", pl.col("airwaytype")),
                "respcarestatusoffset",
                numeric=number("airwaysize"),
                text=not_a_number("airwaysize"),
                where=has("airwaytype"),
            ),
            ventilation("START", "ventstartoffset", "priorventstartoffset"),
            ventilation("END", "ventendoffset", "priorventendoffset"),
        ),
    )


def _intake_output() -> SourceTable:
    path, entered = pl.col("cellpath"), "intakeoutputentryoffset"
    known = pl.max_horizontal("intakeoutputoffset", entered)
    kind = path.str.split("|").list.get(3, null_on_oob=True)
    fluid = kind.replace_strict(_FLUIDS, default=None, return_dtype=pl.String)
    name = [fluid, path_of(path, "|", skip=4), pl.lit("ml")]
    other = [pl.lit("INTAKE_OUTPUT"), path_of(path, "|", skip=3)]
    # The numeric column is the text, rounded.
    value = pl.coalesce(plain_number("cellvaluetext"), number("cellvaluenumeric"))
    is_pounds = path.str.ends_with("Bodyweight (lb)")
    is_weight = is_pounds | path.str.ends_with("Bodyweight (kg)")
    return unit_table(
        "intakeoutput",
        minutes=("intakeoutputoffset", entered),
        texts=("cellpath", "cellvaluenumeric", "cellvaluetext"),
        needs=("cellpath",),
        entered=entered,
        rules=(
            EventRule(
                pl.coalesce(
                    pl.concat_str(name, separator=codes.SEPARATOR),
                    pl.concat_str(other, separator=codes.SEPARATOR),
                ),
                "intakeoutputoffset",
                known,
                value,
                not_a_number("cellvaluetext"),
                where=~is_weight,
            ),
            EventRule(
                code_of(*WEIGHT),
                "intakeoutputoffset",
                known,
                pl.when(is_pounds).then(value * POUNDS).otherwise(value),
                not_a_number("cellvaluetext"),
                where=is_weight,
                once_per=(UNIT, "intakeoutputoffset", pl.coalesce(entered, "intakeoutputoffset")),
            ),
        ),
    )


def _cultures(delay: timedelta) -> SourceTable:
    at, organism = "culturetakenoffset", pl.col("organism")
    known = pl.col(at) + delay
    grew = organism != "no growth"
    level = pl.col("sensitivitylevel").replace(_SENSITIVITY)
    culture = (UNIT, at, "culturesite")
    return unit_table(
        "microlab",
        minutes=(at,),
        texts=("culturesite", "organism", "antibiotic", "sensitivitylevel"),
        needs=("culturesite",),
        rules=(
            EventRule(
                code_of("MICROBIOLOGY_TEST", pl.col("culturesite")),
                at,
                known,
                text=pl.when(~grew).then(organism),
                once_per=culture,
            ),
            EventRule(
                code_of("MICROBIOLOGY_ORGANISM", organism),
                at,
                known,
                where=grew,
                once_per=(*culture, "organism"),
            ),
            EventRule(
                code_of("MICROBIOLOGY_SUSCEPTIBILITY", pl.col("antibiotic"), level),
                at,
                known,
                where=has("antibiotic"),
            ),
        ),
    )
