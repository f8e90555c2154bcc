"""The benchmarks of speed on biosignals run in their quick form, and time what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def run(repository: Path, script: str) -> tuple[str, dict]:
    """What a script prints, and its last line."""
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", "--quick"],
        cwd=repository, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
def test_cpc_without_a_loop_is_faster_and_the_same(repository: Path) -> None:
    printed, found = run(repository, "cpc_speed.py")
    assert found["loss_difference"] < 1e-5
    assert found["gradient_difference"] < 1e-4
    assert found["ratio"] > 3.0
    assert "faster than the loop" in printed


@pytest.mark.slow
def test_the_encoder_is_timed_beside_its_peers(repository: Path) -> None:
    printed, found = run(repository, "biosignal_speed.py")
    assert all(name in printed for name in found["ms"])
    assert found["ratio"] == pytest.approx(found["ms_net1d"] / found["ms_ours"], rel=0.01)
    assert found["ratio"] > 1.0
    assert found["parameters_ours"] < 4e6


def test_views_of_one_ecg_are_compared(repository: Path) -> None:
    printed, found = run(repository, "ecg_views.py")
    assert found["order_moves"] < 1e-4
    assert found["least_cosine"] > 0.9
    assert len(found["leads_auroc"]) == 8
    assert "hours" in printed


def test_planted_faults_of_leads_are_found(repository: Path) -> None:
    printed, found = run(repository, "ecg_faults.py")
    assert found["false_alarms"] == 0
    rows = [row for row in found.values() if isinstance(row, dict)]
    assert len(rows) == 9
    assert all(row["found"] == 1 for row in rows)
    assert "two limb leads interchanged" in printed


@pytest.mark.slow
def test_an_ecg_on_the_timeline_is_compared_with_late_fusion(repository: Path) -> None:
    printed, found = run(repository, "waveform_timeline.py")
    assert found["moved_by_later_ecgs"] == 0
    assert "late fusion" in printed


@pytest.mark.parametrize("script", ["train_ecg_encoder.py", "train_ecg_beats.py"])
def test_the_shipped_weights_can_be_trained(repository: Path, tmp_path: Path, script: str) -> None:
    folders = {"train_ecg_encoder.py": ["--out", str(tmp_path), "--save", str(tmp_path / "model")],
               "train_ecg_beats.py": ["--out", str(tmp_path / "model")]}  # fmt: skip
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", "--quick", *folders[script]],
        cwd=repository, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "model" / "manifest.json").is_file()
