"""How commands are asked for: help, usage, names, and what they refuse to write over."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from tsfm import cli
from tsfm.tasks.registry import CLAIM_TASKS, CLASS_TASKS, TASKS

TASK = "readmission_30d"
SECRET = "Lovelace-19151"


def commands() -> dict[str, Any]:
    """Every command by its full name."""
    root: Any = typer.main.get_command(cli.app)
    found: dict[str, Any] = {}
    for name, command in root.commands.items():
        nested = getattr(command, "commands", None)
        found |= {f"{name} {k}": v for k, v in nested.items()} if nested else {name: command}
    return found


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_has_a_help_text_with_an_example_that_it_would_accept(
    tsfm: Callable[..., Any], name: str
) -> None:
    ended = tsfm(*name.split(), "--help")
    assert ended.code == 0
    assert ended.stderr == ""
    shown = " ".join(ended.stdout.split())
    found = re.search(rf"Example: (tsfm {name} .+)$", shown)
    assert found, shown
    _, *words = shlex.split(found[1])
    arguments = words[len(name.split()) :]
    assert commands()[name].make_context(name, arguments).params  # a wrong example would raise


def test_the_defaults_of_the_commands_are_those_of_the_library() -> None:
    from tsfm.models.mamba import MambaConfig
    from tsfm.training.finetune import FINETUNE_DEFAULTS
    from tsfm.training.loop import TrainConfig

    def defaults(name: str) -> dict[str, Any]:
        return {option.name: option.default for option in commands()[name].params}

    pretrain, finetune = defaults("pretrain"), defaults("finetune")
    assert (pretrain["d_model"], pretrain["layers"]) == (
        MambaConfig().d_model,
        MambaConfig().n_layers,
    )
    for name in ("epochs", "lr", "max_tokens", "seed"):
        assert pretrain[name] == getattr(TrainConfig(), name)
    for name in ("epochs", "lr", "seed"):
        assert finetune[name] == getattr(FINETUNE_DEFAULTS, name)


def test_help_of_the_whole_names_every_command(tsfm: Callable[..., Any]) -> None:
    for arguments in (["--help"], ["ingest", "--help"]):
        ended = tsfm(*arguments)
        assert ended.code == 0
        for name in commands():
            if name.startswith("ingest ") == (arguments[0] == "ingest"):
                assert name.split()[-1] in ended.stdout


@pytest.mark.parametrize("name", sorted(commands()))
def test_a_missing_argument_or_option_is_wrong_usage(tsfm: Callable[..., Any], name: str) -> None:
    assert tsfm(*name.split(), "--json" if "ingest" in name else "--seed").code == 2


def test_wrong_values_of_options_are_wrong_usage(
    tsfm: Callable[..., Any], road: Any, tmp_path: Path
) -> None:
    asked = ("score", road / "model", road / "events", "--task", TASK, "--out", tmp_path / "x")
    assert tsfm(*asked, "--bands", "a,b").code == 2
    assert tsfm(*asked, "--capacity", 7).code == 2
    assert tsfm("nothing").code == 2
    assert not (tmp_path / "x").exists()


def test_an_unknown_task_is_answered_with_the_names_of_all(
    tsfm: Callable[..., Any], road: Any, tmp_path: Path
) -> None:
    task = ("--task", "readmision", "--out", tmp_path / "out")
    labels = ("--labels", road / "labels")
    for arguments in (
        ("label", road / "events", *task),
        ("finetune", road / "pretrained", road / "tokens", *labels, *task),
        ("score", road / "model", road / "events", *task),
    ):
        ended = tsfm(*arguments)
        assert (ended.code, ended.error_code) == (1, "unknown_task")
        assert all(name in ended.stderr for name in TASKS)


def test_help_names_the_tasks_that_a_command_takes(tsfm: Callable[..., Any]) -> None:
    for command in ("label", "finetune", "score"):
        told = "".join(tsfm(command, "--help").stdout.split())
        assert all(name in told for name in (*TASKS, *CLAIM_TASKS)), command
        assert all((name in told) == (command == "label") for name in CLASS_TASKS), command


def test_what_is_there_is_never_written_over(tsfm: Callable[..., Any], road: Any) -> None:
    before = fingerprints(road.root)
    task = ("--task", TASK)
    records = road / "hospital" / "wfdb" / "records.csv"
    for arguments in (
        ("simulate", "--out", road / "hospital", "--patients", 3),
        ("ingest", "fhir", road / "hospital" / "fhir", "--out", road / "events"),
        ("ingest", "wfdb", records.parent, "--out", road / "events", "--subjects", records),
        ("tokenize", road / "events", "--out", road / "tokens"),
        ("pretrain", road / "tokens", "--out", road / "pretrained", "--epochs", 1),
        ("finetune", road / "pretrained", road / "tokens", "--labels", road / "labels", *task,
         "--out", road / "model"),
        ("score", road / "model", road / "events", *task, "--out", road / "run"),
    ):  # fmt: skip
        ended = tsfm(*arguments)
        assert (ended.code, ended.error_code) == (1, "output_exists"), arguments
    assert fingerprints(road.root) == before


def fingerprints(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_an_error_nobody_foresaw_is_one_line_without_what_it_quotes(
    tsfm: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tsfm.tokens import token_store

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr(token_store, "build_token_store", fail)
    ended = tsfm("tokenize", tmp_path, "--out", tmp_path / "x")
    assert (ended.code, ended.error_code) == (1, "unexpected")
    assert SECRET not in ended.stderr
    assert "ValueError in test_usage.py, line" in ended.stderr
    monkeypatch.setenv(cli.TRACEBACK, "1")
    monkeypatch.setattr(sys, "argv", ["tsfm", "tokenize", str(tmp_path), "--out", "x"])
    with pytest.raises(ValueError, match=SECRET):
        cli.main()
