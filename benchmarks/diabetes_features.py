"""Columns for boosted trees from the rows of Diabetes 130-US hospitals.

A row is an encounter. Beside its own fields: chapters and categories of its ICD-9 codes, counts of
drugs, rates a day, and what the patient's earlier encounters in the file tell, the answer to the
last one among them, which is known when the patient is back. Codes with many values are turned
into the training rows' share of readmissions, out of fold. The number of an encounter grows with
the years of the study: it is the only calendar that the file has, and a column of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

ENDED = ("11", "13", "14", "19", "20", "21")  # dead, or in a hospice
NUMBERS = (
    "time_in_hospital", "num_lab_procedures", "num_procedures", "num_medications",
    "number_outpatient", "number_emergency", "number_inpatient", "number_diagnoses",
)  # fmt: skip
DIAGNOSES = ("diag_1", "diag_2", "diag_3")
WORDS = (
    "race", "gender", "weight", "admission_type_id", "discharge_disposition_id",
    "admission_source_id", "payer_code", "medical_specialty", "max_glu_serum", "A1Cresult",
    "change", "diabetesMed", "insulin", "metformin", "glipizide", "glyburide", "pioglitazone",
    "rosiglitazone", "glimepiride", "last_answer", "last_disposition",
    *(f"{name}_chapter" for name in DIAGNOSES),
)  # fmt: skip
MANY = (*(f"{name}_category" for name in DIAGNOSES), "last_category")
CLOCK = ("encounter_number", "log_numbers_since_last", "patient_number")
_CHAPTERS = (
    (1, 139, "infectious"), (140, 239, "neoplasm"), (240, 249, "endocrine"), (250, 250, "diabetes"),
    (251, 279, "endocrine"), (280, 289, "blood"), (290, 319, "mental"), (320, 389, "nervous"),
    (390, 402, "circulation"), (403, 404, "heart and kidney"), (405, 409, "circulation"),
    (410, 414, "ischaemic"), (415, 427, "circulation"), (428, 428, "heart failure"),
    (429, 459, "circulation"), (460, 489, "respiratory"), (490, 496, "obstructive"),
    (497, 519, "respiratory"), (520, 579, "digestive"), (580, 584, "urinary"),
    (585, 586, "chronic kidney"), (587, 629, "urinary"), (630, 679, "pregnancy"),
    (680, 709, "skin"), (710, 739, "musculoskeletal"), (780, 799, "symptoms"),
    (800, 999, "injury"),
)  # fmt: skip
_SHRINK = 20.0  # rows of the mean that a share of readmissions is shrunk by


@dataclass(frozen=True)
class Columns:
    """Features of encounters.

    Attributes:
        values: (n, n_columns); words are numbers of their own.
        names: Of the columns.
        many: (n, n_many) numbers of words with many values.
    """

    values: NDArray[np.float32]
    names: tuple[str, ...]
    many: NDArray[np.int64]

    @property
    def categorical(self) -> list[int]:
        """Places of columns that hold numbers of words."""
        return [i for i, name in enumerate(self.names) if name in WORDS]

    def without(self, left_out: Sequence[str]) -> Columns:
        """The same without some columns."""
        kept = [i for i, name in enumerate(self.names) if name not in left_out]
        return Columns(self.values[:, kept], tuple(self.names[i] for i in kept), self.many)

    def for_fit(
        self, taught: NDArray[np.int64], asked: NDArray[np.int64], y: NDArray[np.float64],
        patient: NDArray[np.int64],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # fmt: skip
        """Columns of taught and asked rows, shares of readmission added.

        Args:
            taught: Rows whose labels may be used; their own shares come from other patients.
            asked: Rows to predict.
            y: Labels of all rows.
            patient: Whose the rows are.
        """
        parts = (patient % 5)[taught]
        told, wanted = [], []
        for words in self.many.T:
            inner = np.zeros(len(taught))
            for part in range(5):
                own = parts == part
                inner[own] = _shares(words, taught[~own], y)[words[taught[own]]]
            told.append(inner)
            wanted.append(_shares(words, taught, y)[words[asked]])
        return (
            np.column_stack([self.values[taught], *told]).astype(np.float32),
            np.column_stack([self.values[asked], *wanted]).astype(np.float32),
        )


def read_encounters(paths: Sequence[Path]) -> pl.DataFrame:
    """All rows in the order of patients and their encounters; `?` is null.

    Args:
        paths: CSV files in the publisher's layout.
    """
    parts = [pl.read_csv(p, infer_schema_length=0, null_values=["?"]) for p in paths]
    numbers = [pl.col(name).cast(pl.Int64) for name in (*NUMBERS, "encounter_id", "patient_nbr")]
    return pl.concat(parts).with_columns(numbers).sort("patient_nbr", "encounter_id")


def columns_of(encounters: pl.DataFrame) -> Columns:
    """Features of every encounter that could be followed by another.

    Args:
        encounters: From `read_encounters`.
    """
    of_patient = "patient_nbr"
    drugs = encounters.columns[24:47]
    answered = (pl.col("readmitted") == "<30").cast(pl.Int32)
    days, medications = pl.col("time_in_hospital"), pl.col("num_medications")
    failing = pl.any_horizontal(_category(name) == "428" for name in DIAGNOSES)
    kidney = pl.any_horizontal(_category(name).is_in(["585", "403", "404"]) for name in DIAGNOSES)
    frame = encounters.with_columns(
        *(_category(name).alias(f"{name}_category") for name in DIAGNOSES),
        *(_chapter(name).alias(f"{name}_chapter") for name in DIAGNOSES),
        pl.sum_horizontal((pl.col(d) != "No").cast(pl.Int32) for d in drugs).alias("n_drugs"),
        pl.sum_horizontal(pl.col(d).is_in(["Up", "Down"]).cast(pl.Int32) for d in drugs).alias(
            "n_changed"
        ),
        pl.col("age").str.extract(r"\[(\d+)").cast(pl.Int32).alias("age_from"),
        pl.int_range(pl.len()).over(of_patient).alias("n_before"),
        (answered.cum_sum().over(of_patient) - answered).alias("n_readmitted_before"),
        (days.cum_sum().over(of_patient) - days).alias("days_before"),
        days.shift(1).over(of_patient).alias("last_days"),
        pl.col("number_inpatient").shift(1).over(of_patient).alias("last_inpatient"),
        pl.col("readmitted").shift(1).over(of_patient).alias("last_answer"),
        pl.col("discharge_disposition_id").shift(1).over(of_patient).alias("last_disposition"),
        _category("diag_1").shift(1).over(of_patient).alias("last_category"),
        pl.sum_horizontal("number_inpatient", "number_emergency", "number_outpatient").alias(
            "visits"
        ),
        (medications / days).alias("medications_a_day"),
        (pl.col("num_lab_procedures") / days).alias("tests_a_day"),
        failing.cast(pl.Int32).alias("heart_failure"),
        kidney.cast(pl.Int32).alias("chronic_kidney"),
        pl.col("encounter_id").alias("encounter_number"),
        pl.col("encounter_id").diff().over(of_patient).log1p().alias("log_numbers_since_last"),
        pl.col(of_patient).alias("patient_number"),
    ).filter(is_index())
    made = (
        "n_drugs", "n_changed", "age_from", "n_before", "n_readmitted_before", "days_before",
        "last_days", "last_inpatient", "visits", "medications_a_day", "tests_a_day",
        "heart_failure", "chronic_kidney", *CLOCK,
    )  # fmt: skip
    numbers = frame.select(pl.col(name).cast(pl.Float64) for name in (*NUMBERS, *made))
    words = frame.select(_numbered(name).cast(pl.Float64) for name in WORDS)
    return Columns(
        np.column_stack([numbers.to_numpy(), words.to_numpy()]).astype(np.float32),
        (*NUMBERS, *made, *WORDS),
        frame.select(_numbered(name).cast(pl.Int64) for name in MANY).to_numpy(),
    )


def is_index() -> pl.Expr:
    """Whether an encounter ended alive and not in a hospice."""
    return ~pl.col("discharge_disposition_id").is_in(ENDED)


def _category(name: str) -> pl.Expr:
    return pl.col(name).str.extract(r"^([^.]*)")


def _chapter(name: str) -> pl.Expr:
    category = pl.col(name).str.extract(r"^(\d+)").cast(pl.Int32, strict=False)
    found = pl.col(name).str.slice(0, 1)  # E and V codes
    for low, high, chapter in _CHAPTERS:
        found = pl.when(category.is_between(low, high)).then(pl.lit(chapter)).otherwise(found)
    return found


def _numbered(name: str) -> pl.Expr:
    """A word's place among all words of the column, in their own order; null is a word."""
    return pl.col(name).fill_null("").rank("dense").cast(pl.Int64) - 1


def _shares(
    words: NDArray[np.int64], rows: NDArray[np.int64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    n = np.bincount(words[rows], minlength=words.max() + 1)
    hits = np.bincount(words[rows], weights=y[rows], minlength=words.max() + 1)
    return (hits + _SHRINK * y[rows].mean()) / (n + _SHRINK)
