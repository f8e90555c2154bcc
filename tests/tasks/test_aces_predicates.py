"""What a predicate matches: values in their own precision, facts about the subject, typed errors.

The counts of the first two tests are those of es-aces 0.7.3 on the same events and files.
"""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from tsfm.errors import FormatError
from tsfm.tasks.aces import aces_labels, find_aces, parse_aces, read_aces

from .aces_tasks import at, frame

A = {"code": "A"}
WINDOW = {"start": None, "end": "trigger", "start_inclusive": True, "end_inclusive": True}


def task_of(predicates: dict[str, Any], trigger: str = "a", **more: Any) -> dict[str, Any]:
    return {"predicates": predicates, "trigger": trigger, "windows": {}, **more}


def found(events: Any, raw: dict[str, Any]) -> list[int]:
    return find_aces(events, parse_aces(raw))["subject_id"].to_list()


@pytest.mark.parametrize(
    ("bounds", "matched"),
    [
        ({"value_min": 1.2}, [3]),
        ({"value_min": 1.2, "value_min_inclusive": True}, [2, 3]),
        ({"value_max": 1.3}, [1, 2]),
        ({"value_max": 1.3, "value_max_inclusive": True}, [1, 2, 3]),
    ],
)
def test_a_value_at_the_bound_is_at_the_bound_in_single_precision(
    bounds: dict[str, Any], matched: list[int]
) -> None:
    # As single floats 1.2 and 1.3 are larger and smaller than the doubles of these names.
    events = frame([(1, at(0), "A", 1.1), (2, at(0), "A", 1.2), (3, at(0), "A", 1.3)])
    assert found(events, task_of({"a": {**A, **bounds}})) == matched


def test_a_value_that_is_not_a_number_is_in_no_range() -> None:
    events = frame([(1, at(0), "A", float("nan")), (2, at(0), "A", float("inf"))])
    assert found(events, task_of({"a": {**A, "value_min": 160}})) == [2]
    assert found(events, task_of({"a": {**A, "value_max": 160}})) == []
    assert found(events, task_of({"a": A})) == [1, 2]


WOMEN = frame(
    [(1, None, "F", None), (1, at(0), "A", None), (1, at(1), "B", None),
     (2, None, "M", None), (2, at(0), "A", None), (2, at(1), "F", None)]
)  # fmt: skip
FACT = {"code": "F", "static": True}


def test_a_static_predicate_is_a_fact_that_the_subjects_of_its_task_have() -> None:
    both = {"expr": "and(a, fem)"}
    assert found(WOMEN, task_of({"a": A, "fem": FACT, "w": both}, "w")) == [1]
    # One that nothing uses asks for nothing, also where an unused predicate is made of it.
    assert found(WOMEN, task_of({"a": A, "fem": FACT, "w": both})) == [1, 2]
    # It is read at every moment, not only where the fact stands.
    label = {"w": {**WINDOW, "end": None, "start": "trigger", "label": "w"}}
    task = task_of({"a": A, "b": {"code": "B"}, "fem": FACT, "w": {"expr": "and(b, fem)"}},
                   windows=label)  # fmt: skip
    assert find_aces(WOMEN, parse_aces(task)).select("subject_id", "label").rows() == [(1, 1)]


def test_a_derived_predicate_may_be_made_of_demographics() -> None:
    made = {"a": A, "w": {"expr": "and(a, fem)"}}
    assert found(WOMEN, task_of(made, "w", patient_demographics={"fem": {"code": "F"}})) == [1]


def test_a_fact_has_no_moment_to_be_counted_at() -> None:
    for window in ({"has": {"fem": "(None,0)"}}, {"label": "fem"}, {"end": "trigger -> fem"}):
        for given in ({"predicates": {"a": A, "fem": FACT}},
                      {"patient_demographics": {"fem": {"code": "F"}}}):  # fmt: skip
            raw = task_of({"a": A}, windows={"w": {**WINDOW, **window}}) | given
            with pytest.raises(FormatError, match="a static fact"):
                parse_aces(raw)
    with pytest.raises(FormatError, match="static"):
        parse_aces(task_of({"a": FACT}))


@pytest.mark.parametrize("name", ["start_a", "end_a", "_found", "trigger", "label", "w", "w_end"])
def test_a_predicate_may_have_a_name_that_a_column_might_have(name: str) -> None:
    window = {**WINDOW, "label": name, "has": {name: "(0, None)", "a": "(1, None)"}}
    task = task_of({"a": A, name: {"code": "B"}}, windows={"w": window})
    events = frame([(1, at(0), "B", None), (1, at(1), "A", None)])
    assert find_aces(events, parse_aces(task))["label"].to_list() == [1]


@pytest.mark.parametrize(
    "predicate",
    [
        {**A, "encounter_id": "7"},
        {**A, "encounter_id": 2**70},
        {**A, "encounter_id": True},
        {**A, "text_value": 5},
        {**A, "text_value": ["a"]},
        {**A, "text_value": None},
        {**A, "available_time": "2020-01-01"},
        {**A, "available_time": datetime.fromisoformat("2020-01-01T00:00:00+00:00")},
        {**A, "numeric_value": "low"},
        {**A, "other_cols": "x"},
        {**A, "value_min": float("nan")},
        {**A, "value_min": 10**400},
        {**A, "value_min": date(2020, 1, 1)},
        {**A, "value_min": 1, "value_min_inclusive": "False"},
        {**A, "static": "no"},
        {"expr": "or(a, a)", "code": "A"},
        {"expr": "or(a, a)", "static": True},
    ],
)
def test_what_a_column_or_a_flag_can_not_hold_is_refused(predicate: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="bad_aces"):
        parse_aces(task_of({"a": A, "b": predicate}))


@pytest.mark.parametrize("name", ["subject_id", "time", "_ANY_EVENT", "a b"])
def test_a_name_that_is_taken_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match="can't name a predicate"):
        parse_aces(task_of({"a": A, name: A}))


@pytest.mark.parametrize(
    "window",
    [
        {"has": {"a": "(2, 1)"}},
        {"has": {"a": "(None, None)"}},
        {"has": {"a": "(\N{FULLWIDTH DIGIT ONE}, None)"}},
        {"label": 0},
        {"index_timestamp": False},
        {"end": "trigger + 99999999999 days"},
        {"end": "trigger + 30m 1h"},
    ],
)
def test_a_window_that_asks_for_nothing_that_can_be_is_refused(window: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="bad_aces"):
        parse_aces(task_of({"a": A}, windows={"w": {**WINDOW, **window}}))


def test_a_clock_of_two_parts_is_minutes_and_seconds() -> None:
    task = parse_aces(task_of({"a": A}, windows={"w": {**WINDOW, "end": "trigger + 24:00"}}))
    assert find_aces(frame([(1, at(0), "A", None)]), task)["w.end"].to_list() == [at(0.4)]


GOOD = "predicates: {a: {code: A}}\ntrigger: a\nwindows: {}\n"


@pytest.mark.parametrize(
    "text",
    [
        "predicates: {a: {code: A}, a: {code: B}}\ntrigger: a\n",
        "predicates: {a: {code: A}}\ntrigger: a\ntrigger: a\n",
        "x: 2020-02-31\n",
        "[" * 3000,
        "\N{LATIN SMALL LETTER E WITH ACUTE}".encode("latin-1"),
    ],
)
def test_a_file_that_no_careful_reader_would_take_is_refused(tmp_path: Path, text: Any) -> None:
    path = tmp_path / "task.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FormatError, match="no YAML"):
        read_aces(path)


def test_what_is_merged_may_be_said_anew(tmp_path: Path) -> None:
    own = "a: &a {code: A, value_min: 1}\n  b: {<<: *a, value_min: 2}\n"
    (tmp_path / "task.yaml").write_text(f"predicates:\n  {own}trigger: b\n")
    events = frame([(1, at(0), "A", 1.5), (2, at(0), "A", 2.5)])
    assert find_aces(events, read_aces(tmp_path / "task.yaml"))["subject_id"].to_list() == [2]


@pytest.mark.parametrize(
    "text", ["predicates: [1]\n", "predicates: 5\n", "windows: {}\n", "preds: {a: {code: B}}\n"]
)
def test_the_second_file_holds_predicates_and_nothing_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "task.yaml").write_text(GOOD)
    (tmp_path / "codes.yaml").write_text(text)
    with pytest.raises(FormatError, match=r"bad_aces.*codes\.yaml"):
        read_aces(tmp_path / "task.yaml", predicates=tmp_path / "codes.yaml")


def test_labels_of_a_static_task_are_of_those_subjects_alone() -> None:
    window = {**WINDOW, "index_timestamp": "end", "label": "a"}
    task = task_of({"a": A, "w": {"expr": "and(a, fem)"}, "fem": FACT}, "w", windows={"w": window})
    assert aces_labels(WOMEN, parse_aces(task))["subject_id"].to_list() == [1]
