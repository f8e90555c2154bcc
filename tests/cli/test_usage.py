"""How commands are asked for: help, usage, names, and what they refuse to write over."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from tsfm import cli
from tsfm.errors import InputError
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
        listed = ended.stdout.split("Commands:")[1]
        assert "..." not in listed  # no first line is cut short
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
    for wrong in (("--bands", "a,b"), ("--bands", "0.3,0.2,0.1"), ("--capacity", 7)):
        assert tsfm(*asked, *wrong).code == 2, wrong
    out = ("--out", tmp_path / "x")
    source = road / "hospital" / "fhir"
    for arguments in (
        ("nothing",),
        ("simulate", *out, "--patients", 0),
        ("ingest", "fhir", source, *out, "--n-shards", 0),
        ("ingest", "mimic4", source, *out, "--n-shards", -1),
        ("ingest", "mimic4", source, *out, "--coding-delay-hours", -1),
        ("ingest", "eicu", source, *out, "--culture-delay-hours", -1),
    ):
        assert tsfm(*arguments).code == 2, arguments
    assert not (tmp_path / "x").exists()


def test_values_that_train_or_read_nothing_are_wrong_usage(
    tsfm: Callable[..., Any], road: Any, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "x")
    pretrain = ("pretrain", road / "tokens", *out, "--epochs", 1)
    finetune = (
        "finetune", road / "pretrained", road / "tokens", "--labels", road / "labels",
        "--task", TASK, *out,
    )  # fmt: skip
    for arguments in (
        *((*pretrain, "--layers", n) for n in (0, -2)),
        (*pretrain, "--d-model", 0),
        *(
            (*command, "--lr", lr)
            for command in (pretrain, finetune)
            for lr in (-1, 0, "nan", "inf")
        ),
        *(
            (*command, "--seed", seed)
            for command in (pretrain, finetune, ("simulate", *out))
            for seed in (-1, 2**63)
        ),
        *((*command, "--epochs", 0) for command in (pretrain, finetune)),
        (*pretrain, "--max-tokens", 0),
        ("tokenize", road / "events", *out, "--min-count", -3),
        *(("encode", road / "events", "--window-s", s) for s in (0, "nan", "inf")),
        ("report", road / "run", "--capacity", "nan"),
    ):
        ended = tsfm(*arguments)
        assert (ended.code, ended.stdout) == (2, ""), (arguments, ended)
    assert not list(tmp_path.iterdir())
    assert not (road / "events" / "signal_vectors").exists()


def test_an_option_that_a_command_itself_refuses_is_wrong_usage_too(
    tsfm: Callable[..., Any], road: Any, tmp_path: Path
) -> None:
    fhir = ("ingest", "fhir", road / "hospital" / "fhir", "--out", tmp_path / "x")
    run, events = road / "run", ("--events", road / "events")
    for arguments, code in (
        ((*fhir, "--clock", "moon"), "unknown_clock"),
        ((*fhir, "--time-zone", "Mars/X"), "unknown_time_zone"),
        (
            (
                "ingest",
                "eicu",
                road / "hospital",
                "--out",
                tmp_path / "x",
                "--culture-delay-hours",
                "inf",
            ),
            "bad_culture_delay",
        ),
        (
            (
                "ingest",
                "diabetes130",
                road / "labels",
                "--out",
                tmp_path / "x",
                "--mapping",
                road / "labels",
                "--coding-delay-hours",
                "inf",
            ),
            "bad_coding_delay",
        ),
        (("evaluate", run, *events, "--split", "nope"), "unknown_split"),
        (("evaluate", run, "--split", "held_out"), "missing_events"),
        (("evaluate", run, "--baselines"), "missing_events"),
        (("report", run, "--split", "held_out"), "missing_events"),
    ):
        ended = tsfm(*arguments)
        assert (ended.code, ended.error_code) == (2, code), arguments
        if code == "unknown_clock":
            assert all(name in ended.stderr for name in ("utc", "wall", "auto"))
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
        assert (ended.code, ended.error_code) == (2, "unknown_task")
        assert all(name in ended.stderr for name in TASKS)


def test_score_offers_no_task_that_it_refuses(
    tsfm: Callable[..., Any], road: Any, tmp_path: Path
) -> None:
    for name in ("nope", *CLASS_TASKS):
        ended = tsfm("score", road / "model", road / "events", "--task", name, "--out", tmp_path)
        assert (ended.code, ended.error_code) == (2, "unknown_task")
        assert all((task in ended.stderr) == (task == name) for task in CLASS_TASKS), name
        assert "write_risk_assessments" not in ended.stderr  # no name of a function of Python


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


def test_a_run_whose_report_is_missing_names_the_command_that_writes_it(
    tsfm: Callable[..., Any], road: Any, tmp_path: Path
) -> None:
    run = shutil.copytree(road / "run", tmp_path / "run")
    (run / "report.html").unlink()  # as where somebody stops `score` while it is written
    again = tsfm("score", road / "model", road / "events", "--task", TASK, "--out", run)
    assert (again.code, again.error_code) == (1, "output_exists")
    (arguments,) = re.findall(r"`tsfm (report .+?)`", again.stderr)
    assert tsfm(*shlex.split(arguments)).code == 0
    assert (run / "report.html").exists()


def fingerprints(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("becomes", [None, ImportError, OSError])
def test_who_stops_a_command_is_told_in_one_line_how_to_go_on(
    tsfm: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, becomes: Any
) -> None:
    from tsfm.tokens import token_store

    def stop(*_: Any, **__: Any) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            if becomes is None:
                raise
            raise becomes("half an import") from error  # as libraries that are being loaded do

    monkeypatch.setattr(token_store, "build_token_store", stop)
    before = signal.getsignal(signal.SIGINT)
    ended = tsfm("tokenize", tmp_path, "--out", tmp_path / "x")
    assert (ended.code, ended.stdout) == (130, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("tsfm: stopped; run the same command again")
    assert signal.getsignal(signal.SIGINT) is before


def test_who_ignores_interrupts_goes_on_ignoring_them(
    tsfm: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tsfm.tokens import token_store

    def go_on(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        raise InputError("done", code="done")

    monkeypatch.setattr(token_store, "build_token_store", go_on)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ended = tsfm("tokenize", tmp_path, "--out", tmp_path / "x")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (ended.code, ended.error_code) == (1, "done")


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
