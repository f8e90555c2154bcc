"""Every benchmark has a quick form, and it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


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
