"""The benchmark of speed compares equal counts, fits powers rightly and runs in its quick form."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tsfm.errors import InputError
from tsfm.models.forecaster import ForecasterModel


@pytest.fixture(scope="module")
def speed() -> Iterator[Any]:
    folder = Path(__file__).parents[1] / "benchmarks"
    spec = importlib.util.spec_from_file_location("forecast_speed", folder / "forecast_speed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setitem(sys.modules, "forecast_speed", module)
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize(
    ("n_parameters", "expert_width"),
    [(300_000, None), (3_201_280, None), (75_744, 16), (3_201_280, 64)],
)
def test_ours_grows_to_within_a_tenth_of_the_peer(
    speed: Any, n_parameters: int, expert_width: int | None
) -> None:
    form = speed.matched(n_parameters, expert_width)
    with torch.device("meta"):
        model = ForecasterModel(speed.grown(**form))
    n = sum(p.numel() for p in model.parameters())
    assert n == pytest.approx(n_parameters, rel=0.1)
    assert form["width"] == expert_width or expert_width is None


def test_a_count_that_no_form_has_is_refused(speed: Any) -> None:
    with pytest.raises(InputError, match="nearly 100 parameters"):
        speed.matched(100, 64)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_that_power(speed: Any, power: float) -> None:
    lengths = [3_000, 10_000, 100_000]
    assert speed.exponent(lengths, [7 * n**power for n in lengths]) == pytest.approx(power)


def quick(repository: Path, **environment: str) -> tuple[dict[str, Any], str]:
    env = {k: v for k, v in os.environ.items() if k not in ("TSFM_MIRA_PYTHON",
                                                            "TSFM_CHRONOS_PYTHON")}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "benchmarks/forecast_speed.py", "--quick"], cwd=repository,
        env={**env, **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stdout


def test_without_peers_it_says_so_and_measures_the_rest(repository: Path) -> None:
    found, said = quick(repository)
    assert found["mira_ratio"] is found["chronos_ratio"] is None
    assert said.count("no interpreter given, not measured") == 2
    assert said.count("  not measured") == 4  # two rows a peer
    assert 0 < found["update_ms"] < 1000
    costs = list(found["growth"].values())
    assert [cost["seconds"] > 0 for cost in costs] == [True, True]
    assert costs[0]["mib"] < costs[1]["mib"]


def test_a_peer_takes_turns_with_ours_of_its_count(repository: Path, tmp_path: Path) -> None:
    package = tmp_path / "chronos" / "chronos2"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text(
        "import time, torch\n"
        "def Chronos2CoreConfig(**sizes): return sizes\n"
        "class Chronos2Model(torch.nn.Linear):\n"
        "    def __init__(self, config): super().__init__(250, 300)\n"
        "    def forward(self, context, num_output_patches):\n"
        "        print('a library that prints'); end = time.process_time() + 1.0\n"
        "        while time.process_time() < end: pass\n"
        "        assert context.shape == (4, 448) and num_output_patches == 4\n"
    )
    found, _ = quick(
        repository, TSFM_CHRONOS_PYTHON=sys.executable, PYTHONPATH=str(tmp_path)
    )  # fmt: skip
    told = found["figures"]["chronos"]
    assert told["chronos"]["parameters"] == 250 * 300 + 300
    assert told["chronos"]["milliseconds"] >= 1000
    for name in ("wide", "experts"):
        assert told[name]["parameters"] == pytest.approx(75_300, rel=0.1)
    ratio = told["chronos"]["milliseconds"] / told["wide"]["milliseconds"]
    assert found["chronos_ratio"] == pytest.approx(ratio)
    assert found["mira_ratio"] is None
