"""`README.md` of a model directory: what the model predicts, from what, how well and for whom.

The card is written from facts that training and evaluation hand over, and from nothing else: a fact
that is not given has no line, and a fact that the card does not know is an error rather than lost.
The front matter is the YAML that model hubs read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tsfm.errors import InputError

FACTS = {
    "name": "name of the model (required)",
    "description": "one paragraph",
    "version": "version of the model",
    "license": "SPDX identifier",
    "tags": "list of words",
    "datasets": "list of the data sets' names",
    "model_hash": "sha256 of the model directory",
    "created": "date, ISO 8601",
    "architecture": "mapping of facts: layers, width, parameters ...",
    "tasks": "mapping of task to what a true label means",
    "intended_use": "text or list",
    "out_of_scope": "text or list",
    "training": "mapping of facts: subjects, events, splits, dates, seed ...",
    "metrics": "mapping of set or model to mapping of measure to value",
    "calibration": "mapping of facts: method, split, slope, intercept, ECE ...",
    "subgroups": "list of mappings with the same keys, one a group",
    "limits": "text or list",
    "usage": "shell commands",
}
"""Facts that a card can hold; all but the name may be absent."""

_SECTIONS = (
    ("tasks", "What it predicts"),
    ("intended_use", "Intended use"),
    ("out_of_scope", "Out of scope"),
    ("usage", "How to use it"),
    ("architecture", "Model"),
    ("training", "Training data"),
    ("metrics", "Performance"),
    ("calibration", "Calibration"),
    ("subgroups", "Subgroups"),
    ("limits", "Limits"),
)


def write_model_card(path: str | Path, facts: Mapping[str, Any]) -> Path:
    """Write the card.

    A measure may be a number or a mapping with `value`, `low` and `high`. Facts that are None or
    empty count as not given.

    Args:
        path: Markdown file, or the model directory to put `README.md` into.
        facts: Plain values under the names of `FACTS`.

    Raises:
        InputError: The name is missing, or a fact is not one of `FACTS`.
    """
    target = Path(path)
    target = target / "README.md" if target.is_dir() else target
    text = render_model_card(facts)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, target)
    return target


def render_model_card(facts: Mapping[str, Any]) -> str:
    """The card as Markdown; see `write_model_card`."""
    import yaml

    unknown = sorted(set(facts) - set(FACTS))
    if unknown:
        raise InputError(
            f"the model card has no place for {', '.join(unknown)}",
            code="unknown_fact",
            place="facts",
            remedy=f"Use {', '.join(FACTS)}.",
        )
    given = {name: value for name, value in facts.items() if not _is_absent(value)}
    if "name" not in given:
        raise InputError(
            "the model has no name",
            code="missing_fact",
            place="facts",
            remedy="Give facts['name'].",
        )
    front: dict[str, Any] = {"library_name": "tsfm", "model_name": _one_line(given["name"])}
    front |= {name: given[name] for name in ("license", "tags", "datasets") if name in given}
    blocks = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {_inline(given['name'])}",
    ]
    if "description" in given:
        blocks.append(str(given["description"]).strip())
    titles = {"version": "Version", "created": "Created", "model_hash": "Model hash (sha256)"}
    identity = {title: given[name] for name, title in titles.items() if name in given}
    if identity:
        blocks.append(_bullets(identity))
    for name, title in _SECTIONS:
        if name in given:
            blocks.append(f"## {title}")
            blocks.append(_section(name, given[name]))
    return "\n\n".join(blocks) + "\n"


def _section(name: str, value: Any) -> str:
    if name == "usage":
        # A longer fence than any inside keeps the text in its block.
        return f"````sh\n{str(value).strip()}\n````"
    if name == "subgroups":
        return _table(value)
    if name == "metrics":
        measures = list(dict.fromkeys(key for row in value.values() for key in row))
        return _table(
            [{"": title, **{m: row.get(m) for m in measures}} for title, row in value.items()]
        )
    if isinstance(value, Mapping):
        return _bullets(value)
    if isinstance(value, str):
        return value.strip()
    return "\n".join(f"- {_inline(item)}" for item in value)


def _bullets(facts: Mapping[str, Any]) -> str:
    return "\n".join(
        f"- {_inline(name)}: {_inline(_value(value))}"
        for name, value in facts.items()
        if not _is_absent(value)
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns = [c for c in columns if any(not _is_absent(row.get(c)) for row in rows)]
    lines = [
        [_inline(column) for column in columns],
        ["---"] * len(columns),
        *([_inline(_value(row.get(column))) for column in columns] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _value(value: Any) -> str:
    if _is_absent(value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        if {"value", "low", "high"} <= set(value):
            low, high = _value(value["low"]), _value(value["high"])
            return f"{_value(value['value'])} [{low}, {high}]"
        return ", ".join(f"{name} {_value(part)}" for name, part in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_value(part) for part in value)
    return str(value)


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())


def _inline(value: Any) -> str:
    """One line that can't break out of a list item or a cell."""
    return _one_line(value).replace("|", "\\|")


def _is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, str | Mapping | list | tuple) and not value)
