"""Cohorts and labels described in the ACES grammar, on our event table.

A task is a YAML file: named predicates, a trigger, and windows around it, one of which says when
the question is asked (`index_timestamp`) and one what the answer is (`label`). Files written for
the ACES tool work as they are, if their codes are those of the event table; `EXAMPLES` are some.

    >>> task = read_aces(EXAMPLES / "readmission_30d.yaml")
    >>> task.trigger
    'discharge'

Windows lie on `time`, when things were so, as in ACES. What a model may read at the prediction time
is decided elsewhere, by `available_time`. The grammar knows neither competing events nor the end of
follow-up: an answer that came too late to be seen is false. A window that must hold an event after
the horizon (`censoring_protection` in the examples) is its only guard; for readmission, mortality
and length of stay the tasks of `tsfm.tasks.registry` are the better question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tsfm import event_table, schema
from tsfm.errors import InputError
from tsfm.tasks.aces_predicates import (
    SPECIAL,
    Predicate,
    bad_aces,
    count_predicates,
    is_static,
    parse_predicates,
    used_facts,
)
from tsfm.tasks.aces_windows import (
    TRIGGER,
    Window,
    order_bounds,
    parse_window,
    place_windows,
    referred_predicates,
)

EXAMPLES = Path(__file__).parent / "aces_examples"
"""Folder of example tasks."""

_PARTS = ("predicates", "patient_demographics")
_TEXTS = ("description", "metadata")
_FIELDS = (*_PARTS, "trigger", "windows", *_TEXTS)


@dataclass(frozen=True)
class AcesTask:
    """A task as its file describes it.

    Attributes:
        predicates: By name, each after those it is made of.
        facts: Static predicates that a subject must have: the demographics, and what else the
            trigger, the windows or their predicates use.
        trigger: Predicate at whose moments the windows are laid.
        windows: By name.
        place: File that it is from, for errors.
    """

    predicates: Mapping[str, Predicate]
    facts: tuple[str, ...]
    trigger: str
    windows: Mapping[str, Window]
    place: str = ""


def read_aces(path: str | Path, *, predicates: str | Path | None = None) -> AcesTask:
    """Read a task's YAML file.

    Args:
        path: The file.
        predicates: A second file whose `predicates` and `patient_demographics` take the place of
            those of the same name, so that one task serves data sets with other codes.

    Raises:
        InputError: A file can't be read, or PyYAML is not installed.
        FormatError: It is not in the grammar.
    """
    raw = _load(Path(path))
    if predicates is not None:
        own, place = _load(Path(predicates)), Path(predicates).name
        if unknown := set(own) - {*_PARTS, *_TEXTS}:
            raise bad_aces(f"unknown fields {sorted(map(str, unknown))}", place)
        for part in _PARTS:
            raw[part] = {**_mapping(raw, part, Path(path).name), **_mapping(own, part, place)}
    return parse_aces(raw, place=Path(path).name)


def parse_aces(raw: Mapping[str, Any], *, place: str = "ACES task") -> AcesTask:
    """A task from the content of its file.

    Args:
        raw: The file's mapping.
        place: File, for errors.

    Raises:
        FormatError: It is not in the grammar.
    """
    if unknown := set(raw) - set(_FIELDS):
        raise bad_aces(f"unknown fields {sorted(map(str, unknown))}", place)
    demographics = _mapping(raw, "patient_demographics", place)
    predicates = parse_predicates(_mapping(raw, "predicates", place), demographics, place=place)
    windows = {
        name: parse_window(name, told, place=place)
        for name, told in _mapping(raw, "windows", place).items()
    }
    # A fact has no moment: no trigger, no bound, nothing to count in a window.
    known = {*SPECIAL, *(name for name, p in predicates.items() if not is_static(p))}
    if not isinstance(raw.get("trigger"), str) or raw["trigger"] not in known:
        raise bad_aces("the trigger is none of the predicates, or a static one", place)
    referred = list(referred_predicates(windows))
    for name, predicate in referred:
        if predicate not in known:
            what = "a static fact" if predicate in predicates else "not there"
            raise bad_aces(f"window '{name}' refers to '{predicate}', which is {what}", place)
    order_bounds(windows, place=place)
    for what, n in (
        ("label", sum(bool(window.label) for window in windows.values())),
        ("index_timestamp", sum(bool(window.index_at) for window in windows.values())),
    ):
        if n > 1:
            raise bad_aces(f"{n} windows have a {what}, which only one may", place)
    used = used_facts([raw["trigger"], *(predicate for _, predicate in referred)], predicates)
    facts = tuple(sorted({*demographics, *used}))
    return AcesTask(predicates, facts, raw["trigger"], windows, place)


def find_aces(events: pl.DataFrame, task: AcesTask) -> pl.DataFrame:
    """Every trigger whose windows all exist and hold what the task asks of them.

    Args:
        events: Whole records, columns of `schema.EVENTS`; times in milliseconds or nanoseconds are
            read as what they are.
        task: From `read_aces`.

    Raises:
        InputError: `bad_time_type`: times are no date-times, or have a zone.

    Returns:
        subject_id, trigger, prediction_time (if the task has an index), label (int64: how often it
        holds, if the task has one) and the time of every bound, `<window>.start` and
        `<window>.end`; in order of subject and trigger.
    """
    event_table.check_time(schema.TIME, events.schema[schema.TIME], place="find_aces")
    events = events.with_columns(pl.col(schema.TIME).cast(pl.Datetime("us")))
    counts = count_predicates(events, task.predicates, task.facts)
    rows = place_windows(counts, task.trigger, task.windows, place=task.place)
    bounds = [c for c in rows.columns if c.endswith((".start", ".end"))]
    extra: list[pl.Expr] = []
    for name, window in task.windows.items():
        if window.index_at:
            index = pl.col(f"{name}.{window.index_at}")
            extra.append(index.alias(schema.PREDICTION_TIME))
        if window.label:
            extra.append(pl.col(f"{name}.label").alias("label"))
    return rows.select(schema.SUBJECT_ID, TRIGGER, *extra, *bounds)


def aces_labels(events: pl.DataFrame, task: AcesTask) -> pl.DataFrame:
    """Rows of `schema.LABELS`: true where the label's predicate holds at least once.

    Two triggers of a subject that ask at the same moment give two rows.

    Raises:
        InputError: The task has no label or no index_timestamp.
    """
    rows = find_aces(events, task)
    if not {schema.PREDICTION_TIME, "label"} <= set(rows.columns):
        raise InputError(
            "the task has no label or no index_timestamp",
            code="aces_without_label",
            place=task.place,
            remedy="Name a predicate as label of one window, and start or end of one as index.",
        )
    return rows.select(
        schema.SUBJECT_ID,
        schema.PREDICTION_TIME,
        (pl.col("label") > 0).alias(schema.BOOLEAN_VALUE),
    ).sort(schema.SUBJECT_ID, schema.PREDICTION_TIME, maintain_order=True)


def aces_labels_of(root: str | Path, task: AcesTask) -> pl.DataFrame:
    """`aces_labels` over all shards of an event table.

    Args:
        root: Root of the data set.
        task: From `read_aces`.

    Raises:
        InputError: No event table, or a task without label or index_timestamp.
    """
    parts = [aces_labels(shard, task) for shard in event_table.scan_events(root)]
    return pl.concat(parts).sort(schema.SUBJECT_ID, schema.PREDICTION_TIME, maintain_order=True)


def _mapping(raw: Mapping[str, Any], part: str, place: str) -> Mapping[str, Any]:
    found = raw.get(part) or {}
    if not isinstance(found, Mapping):
        raise bad_aces(f"'{part}' is no mapping", place)
    return found


def _load(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise InputError(
            "PyYAML is not installed",
            code="missing_package",
            place=path.name,
            remedy="Run `pip install PyYAML`.",
        ) from error
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_strict_loader())
    except OSError as error:
        raise InputError(
            "the task's file can't be read", code="unreadable_file", place=str(path)
        ) from error
    # A date that is none is a ValueError, as is text that is not UTF-8.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise bad_aces("the file is no YAML, or names a thing twice", path.name) from error
    if not isinstance(raw, dict):
        raise bad_aces("the file is no mapping", path.name)
    return raw


def _strict_loader() -> Any:
    """PyYAML's safe loader, which would take the last of two entries of one name."""
    import yaml

    class StrictLoader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = [(k.tag, k.value) for k, _ in node.value if isinstance(k, yaml.ScalarNode)]
            if len(names) != len(set(names)):
                raise yaml.constructor.ConstructorError(None, None, "a name is there twice")
            return super().construct_mapping(node, deep=deep)

    return StrictLoader
