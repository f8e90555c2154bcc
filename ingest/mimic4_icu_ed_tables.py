# pyright: strict
"""MIMIC-IV's tables of the intensive care unit (`icu/`) and the emergency department (`ed/`).

Codes follow the official MEDS conversion for `icu/`. It does not read `ed/`: what is measured there
is coded in LOINC as in MIMIC-IV on FHIR, so that both roads give the same tokens, and an ED visit
is an encounter of its own (its `stay_id`), as it is there.

The row of an infusion or a procedure is stored again when it ends, so its `storetime` may be late.
Its start is taken to be known when the row was stored but at the latest when it ended; its end no
earlier than it came. A row that does not say when it was stored is known at these times.
"""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from tsfm import codes, units
from tsfm.ingest.mimic4_tables import icd, lab_results
from tsfm.ingest.source_table import (
    STAY_END,
    STAY_START,
    EventRule,
    SourceTable,
    code_of,
    dose_text,
    has,
    is_first,
    not_a_number,
    number,
    plain_number,
)

_ED_IDS = ("subject_id", "stay_id")
_ED_VITALS = (
    ("temperature", "8310-5", "degF"),
    ("heartrate", "8867-4", "bpm"),
    ("resprate", "9279-1", "breaths/min"),
    ("o2sat", "2708-6", "%"),
    ("sbp", "8480-6", "mmHg"),
    ("dbp", "8462-4", "mmHg"),
)
_ED_ANSWERS = (
    ("pain", "98137-3"),
    ("rhythm", "8884-9"),
    ("acuity", "56839-4"),
    ("chiefcomplaint", "8661-1"),
)
_AT_TRIAGE = (*(column for column, _, _ in _ED_VITALS), "pain", "acuity", "chiefcomplaint")
_IN_ED = (*(column for column, _, _ in _ED_VITALS), "pain", "rhythm")


def ed_stays() -> SourceTable:
    """`ed/edstays`."""
    return SourceTable(
        "ed/edstays",
        times=("intime", "outtime"),
        ids=_ED_IDS,
        dated_by=("intime",),
        checks=(
            ("bad_encounter", pl.col("stay_id").is_null()),
            ("discharge_before_admission", pl.col("outtime") < pl.col("intime")),
            ("duplicate_stay", ~is_first("stay_id")),
        ),
        rules=(
            EventRule(pl.lit(codes.ED_ARRIVAL), "intime"),
            EventRule(pl.lit(codes.ED_DEPARTURE), "outtime"),
        ),
    )


def icu_tables() -> tuple[SourceTable, ...]:
    """Tables of `icu/` that are read chunk by chunk, in their order."""
    item = pl.col("itemid")
    stored = pl.max_horizontal("charttime", "storetime")
    stored_by_end = pl.when(has("storetime")).then(pl.min_horizontal("endtime", "storetime"))
    start_known = pl.max_horizontal("starttime", stored_by_end)
    end_known = pl.max_horizontal("endtime", "storetime")
    at_charting = {"storetime": "available at charttime"}
    return (
        SourceTable(
            "icu/icustays",
            times=("intime", "outtime"),
            texts=("first_careunit", "last_careunit"),
            dated_by=("intime",),
            checks=(("discharge_before_admission", pl.col("outtime") < pl.col("intime")),),
            rules=(
                EventRule(code_of(codes.ICU_ADMISSION, pl.col("first_careunit")), "intime"),
                EventRule(code_of(codes.ICU_DISCHARGE, pl.col("last_careunit")), "outtime"),
            ),
        ),
        lab_results("icu/chartevents"),
        SourceTable(
            "icu/outputevents",
            times=("charttime", "storetime"),
            stored=("storetime",),
            texts=("itemid", "value", "valueuom"),
            needs=("itemid",),
            dated_by=("charttime",),
            fallbacks=at_charting,
            rules=(
                EventRule(
                    code_of("SUBJECT_FLUID_OUTPUT", item, pl.col("valueuom")),
                    "charttime",
                    stored,
                    number("value"),
                    not_a_number("value"),
                ),
            ),
        ),
        SourceTable(
            "icu/inputevents",
            times=("starttime", "endtime", "storetime"),
            stored=("storetime",),
            texts=("itemid", "amount", "amountuom", "rate", "rateuom", "patientweight"),
            needs=("itemid",),
            dated_by=("starttime",),
            fallbacks={"storetime": "available at starttime and endtime"},
            rules=(
                EventRule(
                    code_of("INFUSION_START", item),
                    "starttime",
                    start_known,
                    number("rate"),
                    dose_text("rate", "rateuom"),
                ),
                EventRule(
                    pl.lit("SUBJECT_WEIGHT_AT_INFUSION//KG"),
                    "starttime",
                    start_known,
                    number("patientweight"),
                    where=has("patientweight"),
                    once_per=("subject_id", "starttime", "patientweight"),
                ),
                EventRule(
                    code_of("INFUSION_END", item),
                    "endtime",
                    end_known,
                    number("amount"),
                    dose_text("amount", "amountuom"),
                ),
            ),
        ),
        SourceTable(
            "icu/procedureevents",
            times=("starttime", "endtime", "storetime"),
            stored=("storetime",),
            texts=("itemid",),
            needs=("itemid",),
            dated_by=("starttime",),
            fallbacks={"storetime": "available at starttime and endtime"},
            rules=(
                EventRule(code_of(codes.PROCEDURE, "START", item), "starttime", start_known),
                EventRule(code_of(codes.PROCEDURE, "END", item), "endtime", end_known),
            ),
        ),
        SourceTable(
            "icu/datetimeevents",
            times=("charttime", "storetime"),
            stored=("storetime",),
            texts=("itemid", "value"),
            needs=("itemid",),
            dated_by=("charttime",),
            fallbacks=at_charting,
            rules=(
                EventRule(code_of("CHART_DATE", item), "charttime", stored, text=pl.col("value")),
            ),
        ),
    )


def ed_tables(delay: timedelta) -> tuple[SourceTable, ...]:
    """Tables of `ed/` that are read chunk by chunk, in their order.

    Args:
        delay: From a stay's end to the moment its billing codes are known.
    """
    name = pl.col("name")
    return (
        SourceTable(
            "ed/diagnosis",
            texts=("icd_code", "icd_version"),
            ids=_ED_IDS,
            needs=("icd_code",),
            dated_by=(STAY_END,),
            stay="ed",
            rules=(EventRule(icd(codes.DIAGNOSIS), STAY_END, pl.col(STAY_END) + delay),),
        ),
        SourceTable(
            "ed/triage",  # has no time of its own: it is what happens on arrival
            texts=_AT_TRIAGE,
            ids=_ED_IDS,
            dated_by=(STAY_START,),
            stay="ed",
            rules=_observations(STAY_START, _AT_TRIAGE),
        ),
        SourceTable(
            "ed/vitalsign",
            times=("charttime",),
            texts=_IN_ED,
            ids=_ED_IDS,
            dated_by=("charttime",),
            stay="ed",
            rules=_observations("charttime", _IN_ED),
        ),
        SourceTable(
            "ed/medrecon",
            times=("charttime",),
            texts=("name",),
            ids=_ED_IDS,
            needs=("name",),
            dated_by=("charttime",),
            stay="ed",
            rules=(EventRule(code_of(codes.MEDICATION, name, "STATED"), "charttime"),),
        ),
        SourceTable(
            "ed/pyxis",
            times=("charttime",),
            texts=("name",),
            ids=_ED_IDS,
            needs=("name",),
            dated_by=("charttime",),
            stay="ed",
            rules=(EventRule(code_of(codes.MEDICATION, name, "DISPENSED"), "charttime"),),
        ),
    )


def _observations(time: str, columns: tuple[str, ...]) -> tuple[EventRule, ...]:
    rules: list[EventRule] = []
    for column, loinc, source_unit in _ED_VITALS:
        zero, unit = units.canonical(0.0, source_unit)
        many, _ = units.canonical(1e6, source_unit)
        assert zero is not None
        assert many is not None
        value = number(column) * ((many - zero) / 1e6) + zero
        rules.append(
            EventRule(
                code_of(codes.VITAL, "LOINC", loinc, unit or codes.UNKNOWN),
                time,
                numeric=value,
                text=not_a_number(column),
                where=has(column),
            )
        )
    for column, loinc in _ED_ANSWERS:
        if column in columns:
            is_number = plain_number(column).is_not_null()
            code = ("OBSERVATION", "LOINC", loinc)
            with_unit = (*code, codes.UNKNOWN)  # a number whose unit nobody says
            rules += [
                EventRule(code_of(*with_unit), time, numeric=plain_number(column), where=is_number),
                EventRule(
                    code_of(*code), time, text=pl.col(column), where=has(column) & ~is_number
                ),
            ]
    return tuple(rules)
