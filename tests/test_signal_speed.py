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
