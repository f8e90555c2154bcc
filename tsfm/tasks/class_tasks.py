"""Questions whose answer is one of several classes.

A `ClassTask` has index stays as a `cohorts.Task` has, in the same table (`schema.COHORT`), but its
`outcome` is the name of a class, and `outcome_days` is when the class came to be known. Labels are
the place of the class in `classes`, from 0, as `integer_value`: MEDS's own column for them, so the
order of the classes is the order of the numbers. An answer that the follow-up was too short for has
the outcome `censored` and no label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa

from tsfm import schema
from tsfm.errors import FormatError, InputError

INTEGER_VALUE = "integer_value"
CENSORED = "censored"

CLASS_LABELS = pa.schema(
    [
        schema.LABELS.field(schema.SUBJECT_ID),
        schema.LABELS.field(schema.PREDICTION_TIME),
        pa.field(INTEGER_VALUE, pa.int64(), nullable=False),
    ]
)
"""Labels of a class task, closed as MEDS asks; the classes' names are the task's."""


@dataclass(frozen=True)
class ClassTask:
    """A question with one of several classes as answer.

    Attributes:
        name: Key in `registry.CLASS_TASKS`.
        description: One line for people.
        classes: Names in order; a label is a place in it.
        find_cohort: From events, follow-up and rules to rows of `schema.COHORT`.
        rules: Default rules; the type that `find_cohort` accepts.
    """

    name: str
    description: str
    classes: tuple[str, ...]
    find_cohort: Callable[..., pl.DataFrame]
    rules: Any = None


def class_of(value: pl.Expr, edges: Sequence[float], classes: Sequence[str]) -> pl.Expr:
    """Name of the class that a value falls in, by half-open intervals.

    Args:
        value: A number; null gives null.
        edges: Where the second and later classes begin, ascending.
        classes: Names, one more than edges.

    Raises:
        InputError: Edges and classes do not fit.
    """
    if len(classes) != len(edges) + 1 or list(edges) != sorted(set(edges)):
        raise InputError(
            "there must be one class more than edges, and edges must ascend",
            code="bad_classes",
            place="class_of",
        )
    name = pl.when(value < edges[0]).then(pl.lit(classes[0]))
    for edge, word in zip(edges[1:], classes[1:-1], strict=True):
        name = name.when(value < edge).then(pl.lit(word))
    return name.when(value.is_not_null()).then(pl.lit(classes[-1]))


def class_labels_of(cohort: pl.DataFrame, task: ClassTask) -> pl.DataFrame:
    """Rows of `CLASS_LABELS` for the index stays whose class is known.

    Raises:
        FormatError: An outcome is none of the task's classes.
    """
    known = cohort.filter(pl.col("eligible") & (pl.col("outcome") != CENSORED))
    if not known["outcome"].is_in(list(task.classes)).all():
        raise FormatError(
            "an outcome is none of the task's classes",
            code="unknown_class",
            place=task.name,
            remedy="Find the cohort with this task.",
        )
    return known.select(
        schema.SUBJECT_ID,
        schema.PREDICTION_TIME,
        pl.col("outcome")
        .replace_strict(list(task.classes), range(len(task.classes)), return_dtype=pl.Int64)
        .alias(INTEGER_VALUE),
    ).sort(schema.SUBJECT_ID, schema.PREDICTION_TIME)
