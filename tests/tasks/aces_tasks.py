"""Small event frames, tasks drawn at random, and plain loops that answer them."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from tsfm import event_table

T0 = datetime(2020, 1, 1)
PREDICATES: dict[str, Any] = {
    "a": {"code": "A"},
    "b": {"code": {"any": ["B//1", "B//2"]}},
    "c": {"code": {"regex": "^C"}},
    "high": {"code": "D", "value_min": 1, "value_min_inclusive": True},
    "mid": {"code": {"regex": "D"}, "value_min": 0, "value_max": 2, "value_max_inclusive": True},
    "a_or_b": {"expr": "or(a, b)"},
    "both": {"expr": "and(a_or_b, c)"},
}
CODES = ("A", "B//1", "B//2", "B//3", "C", "C//x", "D", "D")
INPUT = {"start": None, "end": "trigger", "start_inclusive": True, "end_inclusive": True}


def at(hours: float) -> datetime:
    return T0 + timedelta(hours=hours)


def frame(rows: list[tuple[int, datetime | None, str, float | None]]) -> pl.DataFrame:
    columns = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String,
               "numeric_value": pl.Float32}  # fmt: skip
    found = pl.DataFrame(rows, schema=columns, orient="row")
    return event_table.sort_events(
        found.select(
            (pl.col(n).cast(k) if n in columns else pl.lit(None, dtype=k)).alias(n)
            for n, k in event_table.POLARS_EVENTS.items()
        ).with_columns(available_time="time")
    )


def draw_events(rng: random.Random) -> pl.DataFrame:
    """Few subjects on a coarse grid of hours, so that moments, bounds and ends coincide often."""
    rows: list[tuple[int, datetime | None, str, float | None]] = []
    for subject in range(1, 7):
        for _ in range(rng.choice([1, 2, 8, 14])):
            code = rng.choice(CODES)
            value = rng.choice([None, 0.0, 1.0, 2.0]) if code == "D" else None
            rows.append((subject, at(rng.randrange(24)), code, value))
    return frame(rows)


def draw_window(rng: random.Random, references: list[str]) -> dict[str, Any]:
    names = [*PREDICATES, "_ANY_EVENT"]
    near, other = rng.choice(references), rng.choice(names)
    root = rng.choice([near, near, f"{near} + {rng.randrange(1, 9)}h", f"{near} - 3h",
                       f"{near} -> {other}", f"{near} <- {other}"])  # fmt: skip
    hours, sought = rng.randrange(1, 12), rng.choice(names)
    if rng.random() < 0.5:
        start, end = root, rng.choice([f"start + {hours}h", f"start -> {sought}", None])
    else:
        start, end = rng.choice([f"end - {hours} hours", f"end <- {sought}", None]), root
    return {
        "start": start,
        "end": end,
        "start_inclusive": rng.random() < 0.5,
        "end_inclusive": rng.random() < 0.5,
        "has": {
            rng.choice(names): rng.choice(["(None, 2)", "(1, None)", "(0, 3)"])
            for _ in range(rng.randrange(2))
        },
    }


def draw_task(rng: random.Random) -> dict[str, Any]:
    windows: dict[str, dict[str, Any]] = {}
    references = ["trigger"]
    for name in ("w1", "w2", "w3")[: rng.randrange(1, 4)]:
        windows[name] = draw_window(rng, references)
        references += [f"{name}.start", f"{name}.end"]
    labelled, indexed = rng.choice(list(windows)), rng.choice(list(windows))
    windows[labelled]["label"] = rng.choice(list(PREDICATES))
    windows[indexed]["index_timestamp"] = rng.choice(["start", "end"])
    trigger = rng.choice(["a", "c", "a_or_b", "_ANY_EVENT"])
    return {"predicates": PREDICATES, "trigger": trigger, "windows": windows}


def holds_at(name: str, moment: datetime, record: list[dict[str, Any]]) -> int:
    """How often a predicate of `PREDICATES` holds at a moment, by loops over its events."""
    here = [row for row in record if row["time"] == moment]
    if name == "_ANY_EVENT":
        return int(bool(here))
    if name == "_RECORD_START":
        return int(bool(here) and moment == min(row["time"] for row in record))
    if name == "_RECORD_END":
        return int(bool(here) and moment == max(row["time"] for row in record))
    if name == "a_or_b":
        return int(bool(holds_at("a", moment, record) or holds_at("b", moment, record)))
    if name == "both":
        return int(bool(holds_at("a_or_b", moment, record) and holds_at("c", moment, record)))
    test = {
        "a": lambda code, value: code == "A",
        "b": lambda code, value: code in ("B//1", "B//2"),
        "c": lambda code, value: code.startswith("C"),
        "high": lambda code, value: code == "D" and value is not None and value >= 1,
        "mid": lambda code, value: "D" in code and value is not None and 0 < value <= 2,
    }[name]
    return sum(test(row["code"], row["numeric_value"]) for row in here)


def bound_at(
    text: str, moments: dict[str, datetime], own: str, inclusive: bool, record: list[dict[str, Any]]
) -> datetime | None:
    """Where a bound lies; None if nowhere. The reference must already have its moment."""
    words = text.split()
    near = moments[f"{own}.{words[0]}" if words[0] in ("start", "end") else words[0]]
    if len(words) == 1:
        return near
    if words[1] in "+-":
        hours = int(words[2].removesuffix("h"))
        return near + timedelta(hours=hours if words[1] == "+" else -hours)
    times = sorted({row["time"] for row in record})
    fits = [t for t in times if holds_at(words[2], t, record)]
    if words[1] == "->":
        return min((t for t in fits if t > near or (inclusive and t == near)), default=None)
    return max((t for t in fits if t < near or (inclusive and t == near)), default=None)


def loops(task: dict[str, Any], events: pl.DataFrame) -> list[tuple[Any, ...]]:
    """Subject, trigger, prediction time and count of the label, without any search or sum."""
    found: list[tuple[Any, ...]] = []
    for subject in sorted(set(events["subject_id"])):
        record = events.filter(pl.col("subject_id") == subject).to_dicts()
        for moment in sorted({row["time"] for row in record}):
            if holds_at(task["trigger"], moment, record):
                answer = answer_at(task, moment, record)
                if answer is not None:
                    found.append((subject, moment, *answer))
    return found


def answer_at(
    task: dict[str, Any], trigger: datetime, record: list[dict[str, Any]]
) -> tuple[datetime | None, int | None] | None:
    moments, index, label = {"trigger": trigger}, None, None
    for name, window in task["windows"].items():
        sides = {"start": window["start"] or "end <- _RECORD_START",
                 "end": window["end"] or "start -> _RECORD_END"}  # fmt: skip
        first = "end" if sides["start"].startswith("end") else "start"
        for side in (first, "start" if first == "end" else "end"):
            inclusive = side != first and window[f"{side}_inclusive"]
            where = bound_at(sides[side], moments, name, inclusive, record)
            if where is None:
                return None
            moments[f"{name}.{side}"] = where
        start, end = moments[f"{name}.start"], moments[f"{name}.end"]
        inside = [
            t
            for t in {row["time"] for row in record}
            if (start < t or (window["start_inclusive"] and start == t))
            and (t < end or (window["end_inclusive"] and t == end))
        ]
        for predicate, limits in window.get("has", {}).items():
            least, most = (None if w == "None" else int(w) for w in limits.strip("()").split(", "))
            n = sum(holds_at(predicate, t, record) for t in inside)
            if n < (least or 0) or (most is not None and n > most):
                return None
        if "label" in window:
            label = sum(holds_at(window["label"], t, record) for t in inside)
        if "index_timestamp" in window:
            index = moments[f"{name}.{window['index_timestamp']}"]
    return index, label
