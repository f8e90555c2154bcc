"""Predicates of the ACES grammar: which events count as what.

ACES (Xu et al., "ACES: Automatic Cohort Extraction System for Event-Stream Datasets", arXiv
2406.19653) describes a cohort by named predicates and windows between them. A plain predicate
matches events by code, value and other columns; it counts events. A derived one (`and(a, b)`,
`or(a, b)`) looks at all events of one moment together and counts the moment once. `_ANY_EVENT`,
`_RECORD_START` and `_RECORD_END` are always there, and count moments too. Static facts
(`patient_demographics`) say which subjects are looked at.

Windows are `tsfm.tasks.aces_windows`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from tsfm import event_table, schema
from tsfm.errors import FormatError

ANY_EVENT, RECORD_START, RECORD_END = "_ANY_EVENT", "_RECORD_START", "_RECORD_END"
SPECIAL = (ANY_EVENT, RECORD_START, RECORD_END)

NAME = re.compile(r"\w+")
_EXPRESSION = re.compile(r"(and|or)\((.*)\)", re.DOTALL)
_BOUNDS = ("value_min", "value_max", "value_min_inclusive", "value_max_inclusive")


@dataclass(frozen=True)
class PlainPredicate:
    """Events of some codes, with a value in some range.

    Attributes:
        codes: Whole codes, any of which matches; empty where `pattern` is given.
        pattern: Regular expression found anywhere in the code; "" where `codes` are given.
        value_min: Least numeric value; None for no bound. An event without a value fails a bound.
        value_max: Largest numeric value.
        min_inclusive: Whether the bound itself matches.
        max_inclusive: As `min_inclusive`.
        other_columns: Columns of the event table and what they must hold.
    """

    codes: tuple[str, ...] = ()
    pattern: str = ""
    value_min: float | None = None
    value_max: float | None = None
    min_inclusive: bool = False
    max_inclusive: bool = False
    other_columns: tuple[tuple[str, Any], ...] = ()

    def matches(self) -> pl.Expr:
        """Whether an event of an event frame matches."""
        code, value = pl.col(schema.CODE), pl.col(schema.NUMERIC_VALUE).cast(pl.Float64)
        found = code.str.contains(self.pattern) if self.pattern else code.is_in(list(self.codes))
        if self.value_min is not None:
            low = self.value_min
            found = found & ((value >= low) if self.min_inclusive else (value > low))
        if self.value_max is not None:
            high = self.value_max
            found = found & ((value <= high) if self.max_inclusive else (value < high))
        for column, wanted in self.other_columns:
            found = found & (pl.col(column) == wanted)
        return found.fill_null(False)


@dataclass(frozen=True)
class DerivedPredicate:
    """Moments at which all (`and`) or some (`or`) of other predicates hold."""

    kind: str
    inputs: tuple[str, ...]

    def holds(self) -> pl.Expr:
        """Whether it holds at a moment, from the columns of its inputs."""
        each = [pl.col(name) > 0 for name in self.inputs]
        return pl.all_horizontal(each) if self.kind == "and" else pl.any_horizontal(each)


Predicate = PlainPredicate | DerivedPredicate


def parse_predicates(raw: Mapping[str, Any], *, place: str) -> dict[str, Predicate]:
    """Predicates of a task's file, each after those it is made of.

    Args:
        raw: The file's `predicates`.
        place: File, for errors.

    Raises:
        FormatError: A predicate is not in the grammar, or refers to itself or to nothing.
    """
    parsed = {name: _parse(name, told, place) for name, told in raw.items()}
    ordered: dict[str, Predicate] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in ordered or name in SPECIAL:
            return
        if name in path:
            raise bad_aces(f"predicate '{name}' refers to itself", place)
        if name not in parsed:
            raise bad_aces(f"predicate '{path[-1]}' refers to '{name}', which is not there", place)
        predicate = parsed[name]
        if isinstance(predicate, DerivedPredicate):
            for part in predicate.inputs:
                visit(part, (*path, name))
        ordered[name] = predicate

    for name in parsed:
        visit(name, ())
    return ordered


def parse_static(raw: Mapping[str, Any], *, place: str) -> tuple[PlainPredicate, ...]:
    """Facts that a subject must have, from a file's `patient_demographics`.

    Raises:
        FormatError: One of them is not a plain predicate.
    """
    parsed = [_parse(name, told, place) for name, told in raw.items()]
    if not all(isinstance(fact, PlainPredicate) for fact in parsed):
        raise bad_aces("patient_demographics holds a derived predicate", place)
    return tuple(fact for fact in parsed if isinstance(fact, PlainPredicate))


def _parse(name: str, told: Any, place: str) -> Predicate:
    if not (isinstance(name, str) and NAME.fullmatch(name)) or name in SPECIAL:
        raise bad_aces(f"'{name}' can't name a predicate", place)
    if not isinstance(told, Mapping):
        raise bad_aces(f"predicate '{name}' is no mapping", place)
    if "expr" in told:
        return _parse_expression(name, told, place)
    if "code" not in told:
        raise bad_aces(f"predicate '{name}' has neither code nor expr", place)
    names, pattern = _parse_code(name, told["code"], place)
    known = {"code", "static", "other_cols", *_BOUNDS}
    others = {**(told.get("other_cols") or {}), **{k: v for k, v in told.items() if k not in known}}
    for column in others:
        if column not in event_table.POLARS_EVENTS:
            raise bad_aces(
                f"predicate '{name}' asks for column '{column}', which events do not have", place
            )
    low, high = told.get("value_min"), told.get("value_max")
    for bound in (low, high):
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int | float)):
            raise bad_aces(f"predicate '{name}' has a bound that is no number", place)
    return PlainPredicate(
        codes=names,
        pattern=pattern,
        value_min=low,
        value_max=high,
        min_inclusive=bool(told.get("value_min_inclusive")),
        max_inclusive=bool(told.get("value_max_inclusive")),
        other_columns=tuple(others.items()),
    )


def _parse_code(name: str, code: Any, place: str) -> tuple[tuple[str, ...], str]:
    """Codes and pattern of `code`."""
    if isinstance(code, str) and code:
        return (code,), ""
    if isinstance(code, Mapping) and set(code) == {"any"}:
        names = code["any"]
        if isinstance(names, list) and names and all(isinstance(n, str) and n for n in names):
            return tuple(names), ""
    if isinstance(code, Mapping) and set(code) == {"regex"}:
        pattern = code["regex"]
        if isinstance(pattern, str) and pattern:
            try:
                pl.Series([""]).str.contains(pattern)
            except pl.exceptions.PolarsError as error:
                raise bad_aces(f"the regex of predicate '{name}' can't be read", place) from error
            return (), pattern
    raise bad_aces(
        f"the code of predicate '{name}' is no text, {{any: [...]}} or {{regex: '...'}}", place
    )


def _parse_expression(name: str, told: Mapping[str, Any], place: str) -> DerivedPredicate:
    match = _EXPRESSION.fullmatch(str(told["expr"]).strip())
    inputs = [part.strip() for part in match.group(2).split(",")] if match else []
    if not match or len(inputs) < 2 or not all(NAME.fullmatch(part) for part in inputs):
        raise bad_aces(
            f"the expr of predicate '{name}' is not and(a, b, ...) or or(a, b, ...)", place
        )
    return DerivedPredicate(match.group(1), tuple(inputs))


def count_predicates(
    events: pl.DataFrame,
    predicates: Mapping[str, Predicate],
    static: tuple[PlainPredicate, ...] = (),
) -> pl.DataFrame:
    """How often each predicate holds at each moment of each subject.

    Args:
        events: Whole records, columns of `schema.EVENTS`.
        predicates: As `parse_predicates` orders them.
        static: Facts, at no time, that subjects must have; others are left out.

    Returns:
        subject_id, time and an int64 column a predicate, the special ones included; one row a
        moment at which anything happened, in order.
    """
    subject, time = schema.SUBJECT_ID, schema.TIME
    for fact in static:
        having = events.filter(pl.col(time).is_null() & fact.matches())
        events = events.join(having.select(subject).unique(), on=subject, how="semi")
    plain = {k: p for k, p in predicates.items() if isinstance(p, PlainPredicate)}
    counts = (
        events.filter(pl.col(time).is_not_null())
        .select(subject, time, *(p.matches().alias(name) for name, p in plain.items()))
        .group_by(subject, time)
        .agg(pl.col(name).sum().cast(pl.Int64) for name in plain)
        .sort(subject, time)
        .with_columns(
            pl.lit(1, pl.Int64).alias(ANY_EVENT),
            (pl.col(time) == pl.col(time).min().over(subject)).cast(pl.Int64).alias(RECORD_START),
            (pl.col(time) == pl.col(time).max().over(subject)).cast(pl.Int64).alias(RECORD_END),
        )
    )
    for name, predicate in predicates.items():
        if isinstance(predicate, DerivedPredicate):
            counts = counts.with_columns(predicate.holds().cast(pl.Int64).alias(name))
    return counts


def bad_aces(message: str, place: str) -> FormatError:
    """The error of a file that is not in the grammar."""
    return FormatError(
        message,
        code="bad_aces",
        place=place,
        remedy="Correct the task's file; the grammar is that of ACES' configuration files.",
    )
