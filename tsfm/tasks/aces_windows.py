"""Windows of the ACES grammar: stretches of a record around a trigger, and what they must hold.

A window has two bounds. One hangs on the trigger or on a bound of another window, the other on the
window's own first one; a bound is a reference, a reference with an offset (`trigger + 24h`), or the
nearest moment after or before a reference at which a predicate holds (`start -> discharge`,
`end <- admission`). `NULL` is the beginning or the end of the record. All windows are found at once
for all triggers by searches in sorted times; counts within a window are differences of running
sums.

Two points that are easily taken otherwise are decided as the reference implementation (es-aces
0.7.3) computes them. Whether the moment of the reference itself may be the nearest one depends on
whether the sought bound is inclusive, not on the reference's side. And where a sought moment does
not exist there is no window: the trigger gives no row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from tsfm import schema
from tsfm.tasks.aces_durations import LONGEST_DAYS, parse_duration
from tsfm.tasks.aces_predicates import NAME, RECORD_END, RECORD_START, bad_aces

TRIGGER = "trigger"
START, END = "start", "end"
_COUNT = re.compile(r"[0-9]{1,18}")

_FIELDS = ("start", "end", "start_inclusive", "end_inclusive", "has", "label", "index_timestamp")


@dataclass(frozen=True)
class Bound:
    """Where a window begins or ends.

    Attributes:
        reference: `trigger`, or `<window>.start` or `<window>.end`.
        offset_us: Microseconds from the reference.
        predicate: What must hold at the nearest moment sought; "" for none.
        before: Whether that moment is sought backwards.
        may_be_reference: Whether the reference's own moment may be the one.
    """

    reference: str
    offset_us: int = 0
    predicate: str = ""
    before: bool = False
    may_be_reference: bool = False


@dataclass(frozen=True)
class Window:
    """A stretch of the record; the name of a bound is `<window>.start` or `<window>.end`.

    Attributes:
        start: First bound.
        end: Second bound.
        start_inclusive: Whether events at the first bound are in the window.
        end_inclusive: Whether events at the second bound are.
        has: Predicate to the least and largest count allowed, inclusive; None for no bound.
        label: Predicate that is the answer, if it holds in the window; "" for none.
        index_at: `start` or `end` where that bound is the prediction time; "" for none.
    """

    start: Bound
    end: Bound
    start_inclusive: bool
    end_inclusive: bool
    has: tuple[tuple[str, int | None, int | None], ...] = ()
    label: str = ""
    index_at: str = ""


def parse_window(name: str, raw: Any, *, place: str) -> Window:
    """A window of a task's file.

    Args:
        name: Of the window.
        raw: What the file says of it.
        place: File, for errors.

    Raises:
        FormatError: It is not in the grammar.
    """
    if not (isinstance(name, str) and NAME.fullmatch(name)) or name == TRIGGER:
        raise bad_aces(f"'{name}' can't name a window", place)
    if not isinstance(raw, Mapping) or not {"start", "end"} <= set(raw) <= set(_FIELDS):
        raise bad_aces(f"window '{name}' needs start and end, and may have {_FIELDS[2:]}", place)
    inclusive: dict[str, bool] = {}
    for side in (START, END):
        told = raw.get(f"{side}_inclusive")
        if not isinstance(told, bool):
            raise bad_aces(f"window '{name}' does not say whether its {side} is inclusive", place)
        inclusive[side] = told
    has, label, index_at = raw.get("has") or {}, raw.get("label"), raw.get("index_timestamp")
    if not isinstance(has, Mapping) or not isinstance(label, str | None):
        raise bad_aces(f"has of window '{name}' is no mapping, or label no name", place)
    if index_at not in (None, START, END):
        raise bad_aces(f"index_timestamp of window '{name}' is neither start nor end", place)
    start, end = _parse_bounds(name, raw["start"], raw["end"], inclusive, place)
    return Window(
        start=start,
        end=end,
        start_inclusive=inclusive[START],
        end_inclusive=inclusive[END],
        has=tuple(_parse_count(name, predicate, told, place) for predicate, told in has.items()),
        label=label or "",
        index_at=index_at or "",
    )


def _parse_bounds(
    name: str, start: Any, end: Any, inclusive: Mapping[str, bool], place: str
) -> tuple[Bound, Bound]:
    """Both bounds; exactly one hangs on the other, and the start comes first."""
    if start is None and end is None:
        raise bad_aces(f"window '{name}' hangs on nothing", place)
    first = _parse_bound(name, f"{END} <- {RECORD_START}" if start is None else start, place)
    last = _parse_bound(name, f"{START} -> {RECORD_END}" if end is None else end, place)
    start_hangs, end_hangs = first.reference == f"{name}.{END}", last.reference == f"{name}.{START}"
    if start_hangs == end_hangs:
        raise bad_aces(f"exactly one bound of window '{name}' must refer to its other one", place)
    hanging = first if start_hangs else last
    goes_back = hanging.before or hanging.offset_us < 0
    moves = bool(hanging.predicate) or hanging.offset_us != 0
    if moves and goes_back != start_hangs:
        raise bad_aces(f"window '{name}' would end before it starts", place)
    side = START if start_hangs else END
    hanging = Bound(**{**vars(hanging), "may_be_reference": inclusive[side]})
    return (hanging, last) if start_hangs else (first, hanging)


def _parse_bound(name: str, told: Any, place: str) -> Bound:
    text = str(told).strip()
    for arrow, before in (("->", False), ("<-", True)):
        if arrow in text:
            reference, _, predicate = (part.strip() for part in text.partition(arrow))
            if not NAME.fullmatch(predicate):
                break
            return Bound(_reference(name, reference, place), predicate=predicate, before=before)
    else:
        for sign, factor in (("+", 1), ("-", -1)):
            if sign in text:
                reference, _, duration = text.partition(sign)
                try:
                    offset = factor * parse_duration(duration)
                except ValueError:
                    break
                return Bound(_reference(name, reference.strip(), place), offset_us=offset)
        else:
            return Bound(_reference(name, text, place))
    raise bad_aces(
        f"a bound of window '{name}' can't be read, or is over {LONGEST_DAYS:,} days away", place
    )


def _reference(name: str, text: str, place: str) -> str:
    """Name of the moment referred to: the window's own bounds get its name."""
    if text in (START, END):
        return f"{name}.{text}"
    window, _, side = text.partition(".")
    if text == TRIGGER or (NAME.fullmatch(window) and side in (START, END)):
        return text
    raise bad_aces(f"a bound of window '{name}' refers to no trigger, start or end", place)


def _parse_count(
    name: str, predicate: str, told: Any, place: str
) -> tuple[str, int | None, int | None]:
    parts = told if isinstance(told, list | tuple) else str(told).strip().strip("()").split(",")
    words = [str(part).strip() for part in parts]
    if len(words) != 2 or not all(w in ("None", "") or _COUNT.fullmatch(w) for w in words):
        raise bad_aces(f"window '{name}' asks for '{predicate}' in no form of (least, most)", place)
    least, most = (None if word in ("None", "") else int(word) for word in words)
    if (least is None and most is None) or (most is not None and (least or 0) > most):
        raise bad_aces(f"window '{name}' asks for '{predicate}' in bounds that bound none", place)
    return predicate, least, most


def order_bounds(windows: Mapping[str, Window], *, place: str) -> list[tuple[str, Bound]]:
    """All bounds by name, each after the one it hangs on.

    Raises:
        FormatError: Windows hang on each other, or on one that is not there.
    """
    left = {
        f"{name}.{side}": bound
        for name, window in windows.items()
        for side, bound in ((START, window.start), (END, window.end))
    }
    ordered: list[tuple[str, Bound]] = []
    placed = {TRIGGER}
    while left:
        ready = [name for name, bound in left.items() if bound.reference in placed]
        if not ready:
            raise bad_aces("windows hang on each other, or on a window that is not there", place)
        ordered += [(name, left.pop(name)) for name in ready]
        placed.update(ready)
    return ordered


def place_windows(
    counts: pl.DataFrame, trigger: str, windows: Mapping[str, Window], *, place: str = ""
) -> pl.DataFrame:
    """Every trigger whose windows all exist and hold what they must.

    Args:
        counts: From `aces_predicates.count_predicates`.
        trigger: Predicate.
        windows: By name.
        place: File, for errors.

    Returns:
        subject_id, trigger (its time), the time of every bound, and for each window with a label
        `<window>.label`, its count; in order of subject and trigger.

    Raises:
        FormatError: Windows hang on each other, or on one that is not there.
    """
    subject, time = schema.SUBJECT_ID, schema.TIME
    rows = counts.filter(pl.col(trigger) > 0).select(subject, pl.col(time).alias(TRIGGER))
    for name, bound in order_bounds(windows, place=place):
        moment = pl.col(bound.reference) + pl.duration(microseconds=bound.offset_us)
        rows = rows.with_columns(moment.alias(name))
        if bound.predicate:
            holds = counts.filter(pl.col(bound.predicate) > 0).select(subject, time, _found=time)
            strategy = "backward" if bound.before else "forward"
            rows = _search(rows, name, holds, strategy, bound.may_be_reference)
            rows = rows.drop(name).rename({"_found": name}).drop_nulls(name)
    for name, window in windows.items():
        asked = dict.fromkeys(
            [item[0] for item in window.has] + [window.label] * bool(window.label)
        )
        sums = counts.select(
            subject, time, *(pl.col(p).cum_sum().over(subject).alias(p) for p in asked)
        )
        rows = _count(rows, name, window, sums, list(asked))
        for predicate, least, most in window.has:
            count = pl.col(f":{predicate}")
            rows = rows.filter(count >= (least or 0))
            rows = rows if most is None else rows.filter(count <= most)
        if window.label:
            rows = rows.rename({f":{window.label}": f"{name}.label"})
        rows = rows.drop([f":{p}" for p in asked if p != window.label])
    return rows.sort(subject, TRIGGER)


def _count(
    rows: pl.DataFrame, name: str, window: Window, sums: pl.DataFrame, asked: list[str]
) -> pl.DataFrame:
    """Add how often each predicate holds in a window, as `:<predicate>`: a colon is in no name."""
    for side, exact in ((START, not window.start_inclusive), (END, window.end_inclusive)):
        until = sums.rename({p: f"{side}:{p}" for p in asked})
        rows = _search(rows, f"{name}.{side}", until, "backward", exact)
    # An open window of no length would count its one moment negatively.
    return rows.with_columns(
        (pl.col(f"{END}:{p}").fill_null(0) - pl.col(f"{START}:{p}").fill_null(0))
        .clip(0)
        .alias(f":{p}")
        for p in asked
    ).drop([f"{side}:{p}" for side in (START, END) for p in asked])


def _search(
    rows: pl.DataFrame,
    column: str,
    table: pl.DataFrame,
    strategy: Literal["backward", "forward"],
    exact: bool,
) -> pl.DataFrame:
    """Each row with the nearest row of a table of the same subject; nulls where there is none."""
    return (
        rows.sort(column)
        .join_asof(
            table.sort(schema.TIME),
            left_on=column,
            right_on=schema.TIME,
            by=schema.SUBJECT_ID,
            strategy=strategy,
            allow_exact_matches=exact,
            coalesce=False,
            check_sortedness=False,
        )
        .drop(schema.TIME)
    )


def referred_predicates(windows: Mapping[str, Window]) -> Iterator[tuple[str, str]]:
    """Window and predicate of everything that windows refer to."""
    for name, window in windows.items():
        for bound in (window.start, window.end):
            if bound.predicate:
                yield name, bound.predicate
        for predicate, _, _ in window.has:
            yield name, predicate
        if window.label:
            yield name, window.label
