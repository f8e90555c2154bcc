"""What the README shows is what happens: its examples run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tsfm.simulation.ecg_rhythm import VENTRICULAR

TASK = "readmission_30d"


def example(repository: Path, language: str) -> str:
    """The README's one block of a language."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (repository / "README.md").read_text(), re.S)
    assert len(blocks) == 1
    return str(blocks[0])


def test_the_library_example_runs(
    repository: Path,
    tiny_hospital: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tsfm.scoring.risk_assessment import RiskBands
    from tsfm.scoring.score_run import run_scoring

    demo = tmp_path / "demo"
    demo.mkdir()
    (demo / "model").symlink_to(tiny_hospital.model)
    (demo / "events").symlink_to(tiny_hospital.events)
    run_scoring(
        demo / "model", demo / "events", TASK, demo / "run", bands=RiskBands(0.05, 0.15, 0.3)
    )
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(example(repository, "python"), "README.md", "exec"), found)
    assert isinstance(found["scores"], pl.DataFrame)
    assert found["scores"].height > 10
    printed = capsys.readouterr().out
    assert "scored" in printed
    assert TASK in printed


@pytest.mark.slow
def test_the_batch_example_runs(repository: Path, tmp_path: Path) -> None:
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", example(repository, "bash")],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    for name in ("scores.parquet", "predictions.parquet", "risk_assessments.ndjson", "run.json"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert "AUROC" in ended.stdout
    report = tmp_path / "run" / "report.html"
    assert "20%" in report.read_text()
    assert report.stat().st_mode & 0o077 == 0  # patients' files are their owner's alone


def test_examples_are_short(repository: Path) -> None:
    for language in ("python", "bash"):
        lines = [line for line in example(repository, language).splitlines() if line.strip()]
        assert len(lines) <= 10, language


def test_the_examples_of_the_kernels_run_as_they_stand(repository: Path) -> None:
    page = (repository / "docs" / "how-to" / "use-the-kernels.md").read_text()
    found: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(compile(block, "use-the-kernels.md", "exec"), found)
    assert found["y"].shape == (70, 32)
    assert found["out"].shape == (4, 32)
    assert found["table"].any(dim=(1, 2)).all()


def test_the_examples_of_forecasting_run_as_they_stand(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (repository / "docs" / "how-to" / "forecast.md").read_text()
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(compile(block, "forecast.md", "exec"), found)
    assert len(found["forecast"]) == 24
    assert found["forecast"]["predictions"].notna().all()
    assert len(found["vectors"]) >= 3
    assert found["again"].calibration is not None


def test_the_examples_of_acting_on_risk_run_as_they_stand(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_hospital: Any
) -> None:
    page = (repository / "docs" / "how-to" / "act-on-risk.md").read_text()
    (tmp_path / "demo").mkdir()
    for name in ("events", "tokens", "pretrained"):
        (tmp_path / "demo" / name).symlink_to(getattr(tiny_hospital, name))
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(compile(block, "act-on-risk.md", "exec"), found)
    assert set(found["answers"]) == set(found["tasks"])
    assert found["course"]["probability"].is_between(0, 1).all()
    assert found["why"].events.height > 0
    chosen_on, reported_on = (set(found[name]["subject_id"]) for name in ("tuning", "held_out"))
    assert chosen_on
    assert reported_on
    splits = found["splits"]
    assert {splits[subject] for subject in chosen_on} == {"tuning"}
    assert {splits[subject] for subject in reported_on} == {"held_out"}


def test_the_examples_of_reading_signals_run_as_they_stand(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (repository / "docs" / "how-to" / "read-signals.md").read_text()
    found: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(compile(block, "read-signals.md", "exec"), found)
    printed = capsys.readouterr().out
    assert printed.startswith("()\nswapped\n")
    assert found["one"].shape == found["few"].shape == (1, 256)
    assert (found["quality"].index[6:] > 0.5).mean() > 0.7
    assert 65 < float(printed.splitlines()[4]) < 80
    kinds = found["record"].beat_kinds
    truth = (kinds == VENTRICULAR).sum()
    assert truth > 1
    assert (found["beats"].classes == "V").sum() == truth
