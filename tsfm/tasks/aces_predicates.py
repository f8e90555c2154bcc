"""Predicates of the ACES grammar: which events count as what.

ACES (Xu et al., "ACES: Automatic Cohort Extraction System for Event-Stream Datasets", arXiv
2406.19653) describes a cohort by named predicates and windows between them. A plain predicate
matches events by code, value and other columns; it counts events. A derived one (`and(a, b)`,
`or(a, b)`) looks at all events of one moment together and counts the moment once. `_ANY_EVENT`,
`_RECORD_START` and `_RECORD_END` are always there, and count moments too. A static fact (one of
`patient_demographics`, or a plain predicate with `static: true`) is looked for among the events
without a time. A task that uses it is about the subjects that have it; a derived predicate may be
made of it, and reads it at every moment.

Windows are `tsfm.tasks.aces_windows`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

import polars as pl

from tsfm import event_table, schema
from tsfm.errors import FormatError

ANY_EVENT, RECORD_START, RECORD_END = "_ANY_EVENT", "_RECORD_START", "_RECORD_END"
SPECIAL = (ANY_EVENT, RECORD_START, RECORD_END)
_TAKEN = (*SPECIAL, schema.SUBJECT_ID, schema.TIME)

NAME = re.compile(r"\w+")
_EXPRESSION = re.compile(r"(and|or)\((.*)\)", re.DOTALL)
_FLAGS = ("value_min_inclusive", "value_max_inclusive", "static")
_OWN_FIELDS = ("code", "value_min", "value_max", "other_cols", *_FLAGS)


@dataclass(frozen=True)
class PlainPredicate:
    """Events of some codes, with a value in some range.

    Attributes:
        codes: Whole codes, any of which matches; empty where `pattern` is given.
        pattern: Regular expression found anywhere in the code; "" where `codes` are given.
        value_min: Least numeric value; None for no bound. An event without a value fails a bound,
            as does one whose value is not a number.
        value_max: Largest numeric value.
        min_inclusive: Whether the bound itself matches.
        max_inclusive: As `min_inclusive`.
        other_columns: Columns of the event table and what they must hold.
        static: Whether it is a fact about the subject, an event without a time.
    """

    codes: tuple[str, ...] = ()
    pattern: str = ""
    value_min: float | None = None
    value_max: float | None = None
    min_inclusive: bool = False
    max_inclusive: bool = False
    other_columns: tuple[tuple[str, Any], ...] = ()
    static: bool = False

    def matches(self) -> pl.Expr:
        """Whether an event of an event frame matches."""
        # In the column's own precision, as in ACES: a stored 1.2 is no larger than a bound of 1.2.
        code, value = pl.col(schema.CODE), pl.col(schema.NUMERIC_VALUE).fill_nan(None)
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


def parse_predicates(
    raw: Mapping[str, Any], demographics: Mapping[str, Any], *, place: str
) -> dict[str, Predicate]:
    """Predicates of a task's file, each after those it is made of.

    Args:
        raw: The file's `predicates`.
        demographics: Its `patient_demographics`, which are static; where a name is in both, it is
            theirs.
        place: File, for errors.

    Raises:
        FormatError: A predicate is not in the grammar, or refers to itself or to nothing.
    """
    parsed = {name: _parse(name, told, place) for name, told in raw.items()}
    for name, told in demographics.items():
        fact = _parse(name, told, place)
        if not isinstance(fact, PlainPredicate):
            raise bad_aces("patient_demographics holds a derived predicate", place)
        parsed[name] = replace(fact, static=True)
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


def used_facts(names: Iterable[str], predicates: Mapping[str, Predicate]) -> set[str]:
    """Static predicates among some predicates and those that they are made of."""
    left, seen = list(names), set[str]()
    while left:
        name = left.pop()
        predicate = predicates.get(name)
        if name not in seen and isinstance(predicate, DerivedPredicate):
            left += predicate.inputs
        seen.add(name)
    return {name for name in seen if is_static(predicates.get(name))}


def is_static(predicate: Predicate | None) -> bool:
    """Whether a predicate is a fact about the subject."""
    return isinstance(predicate, PlainPredicate) and predicate.static


def _parse(name: str, told: Any, place: str) -> Predicate:
    if not (isinstance(name, str) and NAME.fullmatch(name)) or name in _TAKEN:
        raise bad_aces(f"'{name}' can't name a predicate", place)
    if not isinstance(told, Mapping):
        raise bad_aces(f"predicate '{name}' is no mapping", place)
    if "expr" in told:
        return _parse_expression(name, told, place)
    if "code" not in told:
        raise bad_aces(f"predicate '{name}' has neither code nor expr", place)
    names, pattern = _parse_code(name, told["code"], place)
    for flag in _FLAGS:
        if not isinstance(told.get(flag), bool | None):
            raise bad_aces(f"{flag} of predicate '{name}' is neither true nor false", place)
    return PlainPredicate(
        codes=names,
        pattern=pattern,
        value_min=_parse_bound(name, told.get("value_min"), place),
        value_max=_parse_bound(name, told.get("value_max"), place),
        min_inclusive=bool(told.get("value_min_inclusive")),
        max_inclusive=bool(told.get("value_max_inclusive")),
        other_columns=_parse_others(name, told, place),
        static=bool(told.get("static")),
    )


def _parse_bound(name: str, bound: Any, place: str) -> float | None:
    if bound is None:
        return None
    if isinstance(bound, bool) or not isinstance(bound, int | float) or bound != bound:
        raise bad_aces(f"predicate '{name}' has a bound that is no number", place)
    try:
        return float(bound)
    except OverflowError:
        raise bad_aces(f"predicate '{name}' has a bound that no value reaches", place) from None


def _parse_others(name: str, told: Mapping[str, Any], place: str) -> tuple[tuple[str, Any], ...]:
    """Other columns and what they must hold, which has to be of the column's type."""
    listed = told.get("other_cols") or {}
    if not isinstance(listed, Mapping):
        raise bad_aces(f"other_cols of predicate '{name}' is no mapping", place)
    others = {**listed, **{k: v for k, v in told.items() if k not in _OWN_FIELDS}}
    for column, wanted in others.items():
        if column not in event_table.POLARS_EVENTS:
            raise bad_aces(
                f"predicate '{name}' asks for column '{column}', which events do not have", place
            )
        if not _can_hold(event_table.POLARS_EVENTS[column], wanted):
            raise bad_aces(
                f"predicate '{name}' asks column '{column}' for what is not of its type", place
            )
    return tuple(others.items())


def _can_hold(kind: Any, wanted: Any) -> bool:
    if kind == pl.String:
        return isinstance(wanted, str)
    if kind == pl.Int64:
        return type(wanted) is int and -(2**63) <= wanted < 2**63
    if kind == pl.Float32:
        return type(wanted) in (int, float)
    aware = isinstance(wanted, datetime) and wanted.tzinfo is not None
    return isinstance(wanted, date) and not aware


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
    if set(told) - {"expr", "static"} or told.get("static"):
        raise bad_aces(f"predicate '{name}' has an expr, and may have nothing else", place)
    return DerivedPredicate(match.group(1), tuple(inputs))


def count_predicates(
    events: pl.DataFrame, predicates: Mapping[str, Predicate], facts: Iterable[str] = ()
) -> pl.DataFrame:
    """How often each predicate holds at each moment of each subject.

    Args:
        events: Whole records, columns of `schema.EVENTS`.
        predicates: As `parse_predicates` orders them.
        facts: Static predicates that subjects must have; others are left out.

    Returns:
        subject_id, time and an int64 column a predicate that is not static, the special ones
        included; one row a moment at which anything happened, in order.
    """
    subject, time = schema.SUBJECT_ID, schema.TIME
    timeless = events.filter(pl.col(time).is_null())
    static = {
        name: timeless.filter(p.matches())[subject].unique()
        for name, p in predicates.items()
        if isinstance(p, PlainPredicate) and p.static
    }
    plain = {k: p for k, p in predicates.items() if isinstance(p, PlainPredicate) and not p.static}
    for fact in facts:
        events = events.filter(pl.col(subject).is_in(static[fact].implode()))
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
            *(pl.col(subject).is_in(own.implode()).alias(name) for name, own in static.items()),
        )
    )
    for name, predicate in predicates.items():
        if isinstance(predicate, DerivedPredicate):
            counts = counts.with_columns(predicate.holds().cast(pl.Int64).alias(name))
    return counts.drop(list(static))


def bad_aces(message: str, place: str) -> FormatError:
    """The error of a file that is not in the grammar."""
    return FormatError(
        message,
        code="bad_aces",
        place=place,
        remedy="Correct the task's file; the grammar is that of ACES' configuration files.",
    )
