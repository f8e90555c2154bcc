"""The ACES grammar by example: what its words mean, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tsfm import event_table, schema
from tsfm.errors import FormatError, InputError
from tsfm.tasks.aces import EXAMPLES, aces_labels, aces_labels_of, find_aces, parse_aces, read_aces

from .aces_tasks import INPUT, PREDICATES, at, frame


def task_of(**changes: Any) -> dict[str, Any]:
    return {"predicates": {"a": {"code": "A"}}, "trigger": "a", "windows": {}, **changes}


def windows_of(text: str | None, start: str | None = None, **more: Any) -> dict[str, Any]:
    window = {"start": start, "end": text, "start_inclusive": True, "end_inclusive": True, **more}
    return task_of(windows={"w": window})


def test_counts_are_of_events_but_a_derived_predicate_counts_moments() -> None:
    events = frame([(1, at(0), "A", None), (1, at(1), "B//1", None), (1, at(1), "B//1", None)])
    for predicate, expected in (("b", 2), ("a_or_b", 2), ("_ANY_EVENT", 2)):
        window = {"start": "trigger", "end": None, "start_inclusive": True, "end_inclusive": True,
                  "label": predicate}  # fmt: skip
        task = {"predicates": PREDICATES, "trigger": "a", "windows": {"w": window}}
        assert find_aces(events, parse_aces(task))["label"].to_list() == [expected], predicate


def test_times_of_any_unit_are_read_as_what_they_are_and_those_with_a_zone_refused() -> None:
    events = frame([(1, at(0), "A", None), (1, at(1), "B//1", None), (1, at(3), "B//1", None)])
    task = parse_aces(windows_of("start + 2d", "trigger", label="a"))
    expected = find_aces(events, task)
    for unit in ("ms", "ns"):
        recorded = events.with_columns(pl.col("time").cast(pl.Datetime(unit)))
        assert find_aces(recorded, task).equals(expected)
    with pytest.raises(InputError, match="bad_time_type"):
        find_aces(events.with_columns(pl.col("time").dt.replace_time_zone("UTC")), task)
    with pytest.raises(InputError, match="bad_time_type"):
        find_aces(events.with_columns(pl.col("time").cast(pl.Int64)), task)


def test_a_value_bound_is_open_unless_said_and_no_value_is_no_match() -> None:
    def n_matches(value: float | None, **bounds: Any) -> int:
        events = frame([(1, at(0), "D", value)])
        task = task_of(predicates={"d": {"code": "D", **bounds}}, trigger="d")
        return find_aces(events, parse_aces(task)).height

    assert n_matches(135.0, value_max=135) == 0
    assert n_matches(135.0, value_max=135, value_max_inclusive=True) == 1
    assert n_matches(135.0, value_min=135) == 0
    assert n_matches(135.1, value_min=135) == 1
    assert n_matches(None, value_min=-1e9) == 0


def test_other_columns_narrow_a_predicate() -> None:
    events = frame([(1, at(0), "A", None), (1, at(1), "A", None)]).with_columns(
        encounter_id=pl.Series([7, 8], dtype=pl.Int64)
    )
    for told in ({"encounter_id": 7}, {"other_cols": {"encounter_id": 7}}):
        task = parse_aces(task_of(predicates={"a": {"code": "A", **told}}))
        assert find_aces(events, task)["trigger"].to_list() == [at(0)]


def test_a_static_fact_keeps_subjects_and_facts_without_a_time_are_no_moments() -> None:
    events = frame([(1, None, "GENDER//F", None), (1, at(0), "A", None), (2, at(0), "A", None)])
    task = task_of(patient_demographics={"female": {"code": "GENDER//F"}})
    assert find_aces(events, parse_aces(task))["subject_id"].to_list() == [1]
    assert find_aces(events, parse_aces(task_of()))["subject_id"].to_list() == [1, 2]
    first = windows_of("trigger", index_timestamp="start")
    assert find_aces(events, parse_aces(first))["prediction_time"].to_list() == [at(0), at(0)]


def test_a_window_that_does_not_exist_gives_no_row_and_an_empty_record_none() -> None:
    events = frame([(1, at(0), "A", None), (1, at(5), "B//1", None), (2, at(0), "A", None)])
    task = {"predicates": PREDICATES, "trigger": "a",
            "windows": {"w": {"start": "trigger", "end": "start -> b", "start_inclusive": True,
                              "end_inclusive": True}}}  # fmt: skip
    assert find_aces(events, parse_aces(task)).select("subject_id", "w.end").rows() == [(1, at(5))]
    assert find_aces(events.clear(), parse_aces(task)).height == 0


@pytest.mark.parametrize(
    ("text", "hours"),
    [("24h", 24), ("1 day", 24), ("2 days 3 hours", 51), ("90 min", 1.5), ("1 day, 01:30:00", 25.5),
     ("1w", 168), ("3600s", 1), ("30d", 720)],
)  # fmt: skip
def test_durations_are_read_as_people_write_them(text: str, hours: float) -> None:
    events = frame([(1, at(0), "A", None)])
    found = find_aces(events, parse_aces(windows_of(f"trigger + {text}")))
    assert found["w.end"].to_list() == [at(hours)]


@pytest.mark.parametrize(
    "raw",
    [
        task_of(trigger="b"),
        task_of(more=1),
        task_of(predicates={"a": {"code": "A"}, "b": {"expr": "or(a, c)"}}),
        task_of(predicates={"a": {"code": "A"}, "b": {"expr": "or(a, b)"}}),
        task_of(predicates={"a": {"code": "A"}, "b": {"expr": "or(a)"}}),
        task_of(predicates={"a": {"code": "A"}, "b": {"expr": "not(a, a)"}}),
        task_of(predicates={"a": {"code": {"any": []}}}),
        task_of(predicates={"a": {"code": {"regex": "("}}}),
        task_of(predicates={"a": {"code": "A", "ward": "x"}}),
        task_of(predicates={"a": {"code": "A", "value_min": "low"}}),
        task_of(predicates={"a": "A"}),
        windows_of(None),
        windows_of("trigger + 3"),
        windows_of("trigger + 3 moons"),
        windows_of("trigger -> b"),
        windows_of("trigger <-> a"),
        windows_of("other.end"),
        windows_of("w.end"),
        windows_of("start - 3h", "trigger"),
        windows_of("start <- a", "trigger"),
        windows_of("trigger", "trigger"),
        windows_of("start + 3h", "end - 3h"),
        task_of(trigger={"predicate": "a"}),
        windows_of("trigger", has=["a"]),
        windows_of("trigger", label=["a"]),
        windows_of("trigger", has={"a": "(1)"}),
        windows_of("trigger", has={"b": "(1, None)"}),
        windows_of("trigger", label="b"),
        windows_of("trigger", index_timestamp="middle"),
        task_of(windows={"w": {"start": None, "end": "trigger"}}),
    ],
)
def test_what_is_not_in_the_grammar_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="bad_aces"):
        parse_aces(raw, place="task.yaml")


def test_a_task_has_one_label_and_one_index() -> None:
    one = {**INPUT, "label": "a"}
    with pytest.raises(FormatError, match="only one"):
        parse_aces(task_of(windows={"v": one, "w": one}))
    with pytest.raises(InputError, match="aces_without_label"):
        aces_labels(frame([(1, at(0), "A", None)]), parse_aces(task_of(windows={"v": one})))


def test_labels_are_meds_labels(tmp_path: Path) -> None:
    import meds

    with event_table.EventWriter(tmp_path, n_shards=2) as writer:
        writer.add(frame([(s, at(h), "A", None) for s in (1, 2, 3) for h in (0, 5)]))
        writer.finish(dataset={"dataset_name": "test", "clock": "wall"})
    window = {**INPUT, "start": "input.end", "end": None, "start_inclusive": False, "label": "a"}
    task = task_of(windows={"input": {**INPUT, "index_timestamp": "end"}, "target": window})
    labels = aces_labels_of(tmp_path, parse_aces(task))
    assert labels["boolean_value"].to_list() == [True, False] * 3
    assert labels["subject_id"].to_list() == [1, 1, 2, 2, 3, 3]
    meds.LabelSchema.validate(schema.align(labels.to_arrow(), schema.LABELS))


def test_files_are_read_and_a_second_one_gives_the_codes(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("predicates: {a: {code: A}}\ntrigger: a\nwindows: {}\n")
    (tmp_path / "codes.yaml").write_text("predicates: {a: {code: C}}\n")
    events = frame([(1, at(0), "A", None), (1, at(3), "C", None)])
    plain = read_aces(tmp_path / "task.yaml")
    other = read_aces(tmp_path / "task.yaml", predicates=tmp_path / "codes.yaml")
    assert find_aces(events, plain)["trigger"].to_list() == [at(0)]
    assert find_aces(events, other)["trigger"].to_list() == [at(3)]
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(FormatError, match="no YAML"):
        read_aces(tmp_path / "bad.yaml")
    with pytest.raises(InputError, match="unreadable_file"):
        read_aces(tmp_path / "absent.yaml")


def test_the_example_of_readmission_agrees_with_the_task_where_both_ask() -> None:
    def stay(subject: int, start: float, end: float, to: str = "HOME") -> list[Any]:
        return [(subject, at(24 * start), "HOSPITAL_ADMISSION//URGENT//UNK", None),
                (subject, at(24 * end), f"HOSPITAL_DISCHARGE//{to}", None)]  # fmt: skip

    rows = stay(1, 0, 2) + stay(1, 31.9, 33) + stay(1, 100, 101)
    rows += stay(2, 0, 2, "DIED") + stay(3, 0, 2) + [(3, at(24 * 40), "A", None)]
    rows += stay(4, 0, 2)
    labels = aces_labels(frame(rows), read_aces(EXAMPLES / "readmission_30d.yaml"))
    answers = labels.select("subject_id", "prediction_time", "boolean_value").rows()
    assert answers == [(1, at(48), True), (1, at(24 * 33), False), (3, at(48), False)]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_asks_and_answers(path: Path) -> None:
    labels = aces_labels(frame([(1, at(0), "A", None)]), read_aces(path))
    assert labels.columns == schema.LABELS.names
    assert labels.height == 0


def test_an_open_window_of_no_length_holds_nothing() -> None:
    window = {"start": "trigger", "end": "start + 0h", "start_inclusive": False,
              "end_inclusive": False, "label": "a"}  # fmt: skip
    task = parse_aces(task_of(windows={"w": window}))
    assert find_aces(frame([(1, at(0), "A", None)]), task)["label"].to_list() == [0]
