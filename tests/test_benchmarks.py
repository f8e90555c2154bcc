"""Every benchmark has a quick form, and it runs."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

import tsfm
from tsfm import cli


def test_the_demo_runs_its_whole_road_and_ends_with_json(repository: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/demo.py", "--out", str(tmp_path), "--quick"],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    held_out = found["held_out"]
    assert held_out["True risk (ceiling)"]["auroc"] > 0.6
    assert set(held_out) > {"model", "Boosted counts", "HOSPITAL", "LACE"}
    assert (tmp_path / "run" / "report.html").stat().st_size > 20_000
    assert "AUROC" in done.stdout
    said = [line[2:] for line in done.stdout.splitlines() if line.startswith("$ ")]
    commands = [parsed(command) for command in said]
    assert [name for name, _ in commands] == [
        "simulate", "ingest fhir", "ingest wfdb", "tokenize", "label", "pretrain", "finetune",
        "score", "evaluate", "report",
    ]  # fmt: skip
    options = dict(commands)
    facts = json.loads((tmp_path / "model" / "config.json").read_text())
    assert options["pretrain"]["d_model"] == facts["model"]["backbone"]["d_model"] == 16
    assert options["pretrain"]["layers"] == facts["model"]["backbone"]["n_layers"] == 1
    assert options["pretrain"]["epochs"] == facts["facts"]["n_epochs"] == 1
    assert options["finetune"]["epochs"] == facts["facts"]["readmission_30d.n_epochs"] == 1
    for option in (options["ingest wfdb"]["subjects"], options["finetune"]["out"]):
        assert option.exists()


def parsed(command: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a command line, as the command itself would read them."""
    program, *words = shlex.split(command)
    assert program == "tsfm"
    root: Any = typer.main.get_command(cli.app)
    found, n = root.commands[words[0]], 1
    if hasattr(found, "commands"):
        found, n = found.commands[words[1]], 2
    return " ".join(words[:n]), found.make_context(words[0], words[n:]).params


@pytest.mark.parametrize("script", ["flow.py", "scan.py", "scan_gpu.py", "timeline_speed.py"])
def test_the_benchmarks_of_single_parts_print_a_table_and_end_with_json(
    repository: Path, script: str
) -> None:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", "--quick"],
        cwd=repository, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert all(name in done.stdout for name in found["rows"])
    if script == "scan.py":
        assert all(value is not None and value > 0 for value in found["rows"].values())
        errors = [v for name, v in found["rows"].items() if name.startswith("largest relative")]
        assert 0 < max(errors) < 2e-6


def test_the_benchmark_of_intensive_care_runs_on_made_up_stays(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/p12_forecast.py", "--quick"],
        cwd=repository, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert {"macro_mse", "common_mse", "crps", "gbm", "delta_ci", "peers"} <= set(found)
    assert {"macro_mse", "gbm"} <= set(found["query_pattern"])


RISK_KEYS = {
    "auroc", "auprc", "brier", "calibration_slope", "n", "min_se_ppv", "delta_auroc_ci",
}  # fmt: skip


@pytest.mark.parametrize(
    "script", ["p12_mortality.py", "diabetes_readmission.py", "eicu_mortality.py"]
)
def test_the_benchmarks_of_risk_run_on_made_up_stays(repository: Path, script: str) -> None:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", "--quick", "--threads", "1"],
        cwd=repository, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    shipped, peer = found["models"][found["model"]], found["gbm"]
    for model in (found, peer, *found["models"].values()):
        assert set(model) >= RISK_KEYS
        assert all(0 <= model[name] <= 1 for name in ("auroc", "auprc", "brier", "min_se_ppv"))
        low, high = model["delta_auroc_ci"]
        assert low <= high
        assert model["n"] == found["n"] > 0
    assert {name: found[name] for name in RISK_KEYS} == {n: shipped[n] for n in RISK_KEYS}
    assert peer["delta_auroc_ci"] == [0.0, 0.0]
    assert peer in found["models"].values()
    assert all(name in done.stdout for name in found["models"])
    if script == "eicu_mortality.py":
        assert found["apache"]["auroc"] > 0.6  # the tables say who dies by it


def test_the_benchmark_of_futures_compares_with_reading_again(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/futures_speed.py", "--quick"],
        cwd=repository, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["quick"]
    assert set(found["met"]) == set(found["rows"])
    assert all(name in done.stdout for name in found["rows"])
    assert all(value > 0 for value in found["rows"].values())
    token_s = 1.0 / found["futures_tokens_per_s_past_read"]
    read_s, rollouts_s = (found[f"{name}_s_a_patient"] for name in ("reading_the_past", "rollouts"))
    assert rollouts_s == pytest.approx(read_s + 76_700 * token_s, rel=1e-4)
    again, risk = found["again_rollouts_s_a_patient"], found["one_pass_risk_s_a_patient"]
    assert again / risk == pytest.approx(
        next(v for name, v in found["rows"].items() if "by reading again" in name), rel=1e-3
    )


def test_the_benchmark_of_designs_runs_and_goes_on_where_it_stopped(
    repository: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "benchmarks/timeline_designs.py", "--out", str(tmp_path), "--quick"]
    last: list[str] = []
    for _ in range(2):
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        last.append(done.stdout.strip().splitlines()[-1])
    assert last[0] == last[1]
    found = json.loads(last[0])
    assert all(0 < bits < 40 for bits in found["bits"]["total"].values())
    assert found["bits"]["share_of_clocked_events"] > 0.9


def test_the_benchmark_of_the_ceiling_runs_and_nobody_ranks_better_than_the_truth(
    repository: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "benchmarks/timeline_ceiling.py", "--out", str(tmp_path), "--quick"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])["found"]
    for task in ("readmission_30d", "mortality_in_hospital", "length_of_stay_7d"):
        expected = found[task]["expected_auroc"]
        assert max(expected, key=expected.__getitem__) == "truth"
    course = found["time_to_readmission"]
    assert course["truth"] < min(course["ours"], course["same for all"])


@pytest.mark.parametrize("script", ["train_forecaster_zero.py", "train_forecaster_icu.py"])
def test_the_trainings_of_shipped_forecasters_write_a_directory_that_loads(
    repository: Path, tmp_path: Path, script: str
) -> None:
    saved = tmp_path / "model"
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", "--quick", "--out", str(tmp_path / "run"),
         "--save", str(saved), "--data", str(tmp_path)],
        cwd=repository, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert script in (saved / "README.md").read_text()
    assert tsfm.load(saved).facts["command"].startswith(f"benchmarks/{script}")


def test_a_mira_trained_for_a_second_is_a_peer(repository: Path, tmp_path: Path) -> None:
    for arguments in (
        ["zero_shot_mira.py", "--out", str(tmp_path), "--data", str(tmp_path), "--quick"],
        ["zero_shot.py", "--mira", str(tmp_path), "--quick"],
    ):
        done = subprocess.run(
            [sys.executable, f"benchmarks/{arguments[0]}", *arguments[1:]],
            cwd=repository, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    assert "MIRA (ours)" in json.loads(done.stdout.strip().splitlines()[-1])["mean_rank"]


def test_the_expected_auroc_is_that_of_weighted_pairs(repository: Path) -> None:
    spec = importlib.util.spec_from_file_location("demo", repository / "benchmarks" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    rng = np.random.default_rng(0)
    risk = rng.uniform(0.01, 0.6, 60)
    score = np.round(risk + rng.normal(0, 0.2, 60), 1)  # with ties
    wins = weight = 0.0
    for i in range(60):
        for j in range(60):
            pair = risk[i] * (1 - risk[j])
            wins += pair * (float(score[i] > score[j]) + 0.5 * float(score[i] == score[j]))
            weight += pair
    assert demo.expected_auroc(score, risk) == pytest.approx(wins / weight, rel=1e-9)


BIOSIGNALS = {
    "rpeaks.py": ("se_50ms", "ppv_50ms", "se_150ms", "ppv_150ms", "cpu_s_per_24h"),
    "beats.py": ("f1_v", "f1_s", "f1_s_without_232"),
    "af.py": ("macro_f1", "macro_f1_with_noise", "gain_over_best_peer"),
    "ptbxl.py": ("macro_auroc", "gain_over_best_peer"),
    "ppg_hr.py": ("mae_bpm", "mae_bpm_without_41", "breaths_mae"),
}


@pytest.mark.parametrize("script", BIOSIGNALS)
def test_the_benchmarks_of_biosignals_run_on_made_up_records(repository: Path, script: str) -> None:
    more = ["--noise"] if script in ("af.py", "beats.py", "ptbxl.py") else []
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", "--quick", *more],
        cwd=repository, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert all(isinstance(found[key], float) for key in BIOSIGNALS[script])
    assert not more or len(found["noise"]) >= 3
    if script == "rpeaks.py":
        assert found["se_150ms"] > 95
        assert found["ppv_150ms"] > 95
    if script == "ppg_hr.py":
        assert found["mae_bpm"] < 2
