# pyright: strict
"""What rows of eICU say that was known, decided or done: drugs, diagnoses, histories, APACHE.

Only what could be known at its time is read. Left out, because the source wrote it in hindsight:
`activeupondischarge` of diagnoses and treatments, the `actual...` columns and unabridged lengths of
stay of `apachepatientresult`, `diedinhospital` and `dischargelocation` of `apachepredvar`.

* **APACHE** is computed from the worst values of the first day in the unit: it stands at the end of
  that day (or of the hospital stay, if that is sooner) and is known 24 hours after the admission to
  the unit, never before. -1 means missing.
* **Diagnoses** are the staff's own, entered at their time, not bills. A row holds ICD-9 and ICD-10
  codes of one fact side by side: the ICD-10 codes are taken, else the ICD-9 codes, else the path.
* **Orders** are known when ordered; a start or stop no sooner than it comes or is written.
  A cancelled order never starts; a stop of 0 minutes or before the start is none; a start or stop
  planned beyond the hospital stay never came. A drug without a name goes by its HICL number.
* An infusion's rate has the unit that its drug's name says; where only the flow of the pump is
  told, in mL/h, it is an event of its own.
* Histories, allergies and drugs taken before admission are known when they were entered.

Columns: https://eicu-crd.mit.edu/eicutables/.
"""

from __future__ import annotations

import polars as pl

from tsfm import codes
from tsfm.ingest.eicu_stays import DAY, DAY_1_END, UNIT
from tsfm.ingest.eicu_tables import unit_table
from tsfm.ingest.source_table import (
    EACH,
    STAY_END,
    STAY_START,
    EventRule,
    SourceTable,
    code_of,
    has,
    not_a_number,
    number,
    path_of,
    plain_number,
)

APACHE = "APACHE"
_APS = (
    "intubated",
    "vent",
    "dialysis",
    "eyes",
    "motor",
    "verbal",
    "meds",
    "urine",
    "wbc",
    "temperature",
    "respiratoryrate",
    "sodium",
    "heartrate",
    "meanbp",
    "ph",
    "hematocrit",
    "creatinine",
    "albumin",
    "pao2",
    "pco2",
    "bun",
    "glucose",
    "bilirubin",
    "fio2",
)
_PREDICTORS = (
    "thrombolytics",
    "aids",
    "hepaticfailure",
    "lymphoma",
    "metastaticcancer",
    "leukemia",
    "immunosuppression",
    "cirrhosis",
    "electivesurgery",
    "activetx",
    "readmit",
    "ima",
    "midur",
    "ventday1",
    "oobventday1",
    "oobintubday1",
    "diabetes",
)
_RESULTS = (
    "acutephysiologyscore",
    "apachescore",
    "predictedicumortality",
    "predictediculos",
    "predictedhospitalmortality",
    "predictedhospitallos",
    "predventdays",
)
_BEFORE = ("preopmi", "preopcardiaccath", "ptcawithin24h")
_ICD9 = r"^(\d{3}|V\d{2}|E\d{3})(\.\d+)?$"
_ICD10 = r"^[A-Z]\d[0-9A-Z](\.[0-9A-Z]+)?$"
_DOSE = r"^(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.?\d+)\s*([A-Za-z%].*)?$"


def care_tables() -> tuple[SourceTable, ...]:
    """Tables of care, in their order."""
    return (
        _admission_diagnoses(),
        _histories(),
        _allergies(),
        _home_drugs(),
        _diagnoses(),
        _treatments(),
        _orders(),
        _infusions(),
        *_apache_tables(),
    )


def _admission_diagnoses() -> SourceTable:
    # All paths begin with the words "admission diagnosis".
    path = path_of(pl.col("admitdxpath"), "|", skip=1)
    return unit_table(
        "admissiondx",
        minutes=("admitdxenteredoffset",),
        texts=("admitdxpath",),
        needs=("admitdxpath",),
        rules=(EventRule(_below("ADMISSION_DIAGNOSIS", path), "admitdxenteredoffset"),),
    )


def _histories() -> SourceTable:
    # All paths begin with notes/Progress Notes/Past History.
    path = path_of(pl.col("pasthistorypath"), "/", skip=3)
    return unit_table(
        "pasthistory",
        minutes=("pasthistoryoffset", "pasthistoryenteredoffset"),
        texts=("pasthistorypath",),
        needs=("pasthistorypath",),
        entered="pasthistoryenteredoffset",
        rules=(
            EventRule(
                _below("PAST_HISTORY", path),
                "pasthistoryoffset",
                pl.max_horizontal("pasthistoryoffset", "pasthistoryenteredoffset"),
            ),
        ),
    )


def _allergies() -> SourceTable:
    return unit_table(
        "allergy",
        minutes=("allergyoffset", "allergyenteredoffset"),
        texts=("allergytype", "allergyname"),
        needs=("allergyname",),
        entered="allergyenteredoffset",
        rules=(
            EventRule(
                code_of("ALLERGY", pl.col("allergytype"), pl.col("allergyname")),
                "allergyoffset",
                pl.max_horizontal("allergyoffset", "allergyenteredoffset"),
            ),
        ),
    )


def _home_drugs() -> SourceTable:
    dose = number("drugdosage")
    is_told = (dose != 0).fill_null(False)  # 0: the dose was not asked for
    return unit_table(
        "admissiondrug",
        minutes=("drugoffset", "drugenteredoffset"),
        texts=("drugname", "drugdosage", "drugunit"),
        needs=("drugname",),
        entered="drugenteredoffset",
        rules=(
            EventRule(
                code_of(codes.MEDICATION, pl.col("drugname"), "STATED"),
                "drugoffset",
                pl.max_horizontal("drugoffset", "drugenteredoffset"),
                pl.when(is_told).then(dose),
                pl.when(is_told).then(pl.col("drugunit")).otherwise(not_a_number("drugdosage")),
            ),
        ),
    )


def _diagnoses() -> SourceTable:
    found = pl.col("icd9code").str.split(",").list.eval(pl.element().str.strip_chars())
    tens = found.list.eval(pl.element().filter(pl.element().str.contains(_ICD10)))
    # An E with three digits is an external cause of ICD-9; the pattern of ICD-10 takes it too.
    tens = tens.list.eval(pl.element().filter(~pl.element().str.contains(_ICD9)))
    nines = found.list.eval(pl.element().filter(pl.element().str.contains(_ICD9)))
    best = pl.when(tens.list.len() > 0).then(tens).otherwise(nines).list.unique(maintain_order=True)
    version = pl.when(pl.col(EACH).str.contains(_ICD9)).then(pl.lit("9")).otherwise(pl.lit("10"))
    leaf = pl.col(EACH).str.replace_all(".", "", literal=True)
    path = path_of(pl.col("diagnosisstring"), "|")
    return unit_table(
        "diagnosis",
        minutes=("diagnosisoffset",),
        texts=("diagnosisstring", "icd9code"),
        needs=("diagnosisstring",),
        rules=(
            EventRule(code_of(codes.DIAGNOSIS, "ICD", version, leaf), "diagnosisoffset", each=best),
            EventRule(
                _below(codes.join(codes.DIAGNOSIS, "eICU"), path),
                "diagnosisoffset",
                where=(best.list.len() == 0).fill_null(True),
            ),
        ),
    )


def _treatments() -> SourceTable:
    path = path_of(pl.col("treatmentstring"), "|")
    return unit_table(
        "treatment",
        minutes=("treatmentoffset",),
        texts=("treatmentstring",),
        needs=("treatmentstring",),
        rules=(EventRule(_below("TREATMENT", path), "treatmentoffset"),),
    )


def _orders() -> SourceTable:
    order, start, stop = "drugorderoffset", "drugstartoffset", "drugstopoffset"
    number_name = pl.concat_str(pl.lit("HICL "), pl.col("drughiclseqno"))
    name = pl.coalesce("drugname", number_name)
    stands = (pl.col("drugordercancelled") != "Yes").fill_null(True)
    began = stands & (pl.col(start) <= pl.col(STAY_END))
    ended = stands & (pl.col(stop) != pl.col(STAY_START)) & (pl.col(stop) <= pl.col(STAY_END))
    ended = ended & (pl.col(stop) >= pl.col(start)).fill_null(True)
    dose, unit = (pl.col("dosage").str.extract(_DOSE, group) for group in (1, 2))
    amount = dose.str.replace_all(",", "", literal=True).cast(pl.Float64, strict=False)
    return unit_table(
        "medication",
        minutes=(order, start, stop),
        texts=("drugname", "drughiclseqno", "dosage", "drugordercancelled"),
        dated_by=(order, start, stop),
        rules=(
            EventRule(
                code_of(codes.MEDICATION, name, "ORDERED"),
                order,
                numeric=amount,
                text=pl.when(amount.is_null()).then(pl.col("dosage")).otherwise(unit),
            ),
            EventRule(
                code_of(codes.MEDICATION, "START", name),
                start,
                pl.max_horizontal(order, start),
                where=began,
            ),
            EventRule(
                code_of(codes.MEDICATION, "STOP", name),
                stop,
                pl.max_horizontal(order, stop),
                where=ended,
            ),
        ),
    )


def _infusions() -> SourceTable:
    # The name says the unit of the rate, Heparin (units/hr), and not that of the flow.
    drug = pl.col("drugname").str.replace(r"\s*\([^()]*\)\s*$", "")
    is_flow = has("infusionrate") & ~has("drugrate")
    return unit_table(
        "infusiondrug",
        minutes=("infusionoffset",),
        texts=("drugname", "drugrate", "infusionrate", "patientweight"),
        needs=("drugname",),
        rules=(
            EventRule(
                code_of("INFUSION_RATE", pl.col("drugname")),
                "infusionoffset",
                numeric=number("drugrate"),
                text=not_a_number("drugrate"),
                where=~is_flow,
            ),
            EventRule(
                code_of("INFUSION_FLOW", drug, "mL/h"),
                "infusionoffset",
                numeric=number("infusionrate"),
                text=not_a_number("infusionrate"),
                where=is_flow,
            ),
            EventRule(
                pl.lit("SUBJECT_WEIGHT_AT_INFUSION//KG"),
                "infusionoffset",
                numeric=number("patientweight"),
                where=has("patientweight"),
                once_per=(UNIT, "infusionoffset", "patientweight"),
            ),
        ),
    )


def _apache_tables() -> tuple[SourceTable, ...]:
    known = pl.col(STAY_START) + DAY

    def value(code: pl.Expr, column: str) -> EventRule:
        given = (plain_number(column) != -1).fill_null(False)
        return EventRule(code, DAY_1_END, known, plain_number(column), where=given)

    def sign(column: str) -> EventRule:
        given = (pl.col(column) == "1").fill_null(False)
        code = code_of(APACHE, column)  # said once, though there is a row for each version
        return EventRule(code, DAY_1_END, known, where=given, once_per=(UNIT,))

    def table(name: str, texts: tuple[str, ...], *rules: EventRule) -> SourceTable:
        dated_by = (DAY_1_END,)
        return unit_table(name, minutes=(), texts=texts, dated_by=dated_by, rules=rules)

    version, reason = pl.col("apacheversion"), pl.col("admitdiagnosis")
    return (
        table("apacheapsvar", _APS, *(value(code_of(APACHE, "APS", c), c) for c in _APS)),
        table(
            "apachepredvar",
            ("admitdiagnosis", "ejectfx", *_PREDICTORS),
            EventRule(
                code_of(APACHE, "admitdiagnosis", reason),
                DAY_1_END,
                known,
                where=has("admitdiagnosis"),
            ),
            value(code_of(APACHE, "ejectfx"), "ejectfx"),
            *(sign(column) for column in _PREDICTORS),
        ),
        table(
            "apachepatientresult",
            ("apacheversion", *_RESULTS, *_BEFORE),
            *(value(code_of(APACHE, version, column), column) for column in _RESULTS),
            *(sign(column) for column in _BEFORE),
        ),
    )


def _below(name: str, path: pl.Expr) -> pl.Expr:
    return pl.concat_str(pl.lit(name), path, separator=codes.SEPARATOR)
