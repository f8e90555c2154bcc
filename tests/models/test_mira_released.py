"""Checkpoints of MIRA's released layout give the numbers that the published code gives.

Two judges. The fixture holds what that code answered to `QUESTIONS["recorded"]`, and any checkout
compares with it. Where the environment variable TSFM_MIRA_PYTHON names an interpreter that has the
code, `released_mira_peer.py` asks it anew: the same, other forms, and longer series. Two lines make
such an interpreter:

    python3.11 -m venv mira-venv
    mira-venv/bin/pip install "sktime==1.2.0" "transformers==4.40.1" torchdiffeq "torch<2.14"
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tsfm.errors import InputError
from tsfm.models.mira_released import ReleasedMira, normalised_times, released_forecast
from tsfm.models.mira_weights import load_released_mira, released_config, released_shapes

HERE = Path(__file__).parent
FIXTURE = HERE / "fixtures" / "mira_released.safetensors"
TOLERANCE = 1e-4
SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_experts": 4, "num_experts_per_tok": 2, "ode_func_hidden_dims": [16, 16],
}  # fmt: skip
CASES = ("burst", "goes_back", "irregular", "late_rows", "regular", "two_rows")
WIDER = {**SIZES, "hidden_size": 32, "num_attention_heads": 4, "num_experts": 8}
QUESTIONS: dict[str, dict[str, Any]] = {
    "recorded": SIZES,
    "wider": WIDER,
    "shared_keys": {
        **WIDER, "num_key_value_heads": 2, "num_experts_per_tok": 3, "intermediate_size": 48,
    },
    "no_ode": {**WIDER, "use_terminal_ode": False, "rope_theta": 100, "rms_norm_eps": 1e-3},
    "no_clock": {
        **WIDER, "ode_func_use_time": False, "ode_func_hidden_dims": [8],
        "ode_solver_method": "rk4",
    },
}  # fmt: skip
Tensors = dict[str, Tensor]


def random_weights(config: dict[str, Any], seed: int) -> Tensors:
    """A checkpoint large enough in its numbers that every part tells in the output."""
    generator = torch.Generator().manual_seed(seed)
    weights: Tensors = {}
    for name, shape in released_shapes(released_config(config)).items():
        noise = torch.randn(shape, generator=generator)
        size = 0.3 if len(shape) == 1 else shape[-1] ** -0.5
        weights[name] = noise * size + (1.0 if "norm" in name else 0.0)
    return weights


def random_cases(n_points: int, n_targets: int, seed: int) -> Tensors:
    """Values, times and targets: even steps, odd ones, ties in a burst, and rows that differ."""
    generator = torch.Generator().manual_seed(seed)
    n = n_points + n_targets

    def odd_times(rows: int) -> Tensor:
        return (torch.rand(rows, n, generator=generator) * 3 + 0.1).cumsum(1)

    minutes = torch.arange(n_points // 2).float() / 1440
    days = torch.arange(1, n - len(minutes) + 1).float()
    times = {
        "regular": torch.arange(n).float()[None],
        "irregular": odd_times(1),
        "burst": torch.cat([minutes, days])[None],
        "two_rows": odd_times(2),
        "late_rows": torch.cat([odd_times(1), torch.arange(n).float()[None]]),
        "goes_back": odd_times(2),
    }
    # Here the second row's target is its last time, from which nothing flows.
    times["late_rows"][1, n_points:] -= 1.0
    # And here the first row's lies before its last time: the other row is carried backwards.
    first = times["goes_back"][0]
    first[n_points:] += first[n_points - 1] - 0.7 - first[n_points]
    cases: Tensors = {}
    for case, every in times.items():
        values = torch.randn(len(every), n_points, generator=generator)
        cases[f"{case}/values"] = values
        cases[f"{case}/times"] = every[:, :n_points].clone()
        cases[f"{case}/targets"] = every[:, n_points:].clone()
    return cases


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what the published code answers, if there is an interpreter that has it."""
    python = os.environ.get("TSFM_MIRA_PYTHON")
    if not python:
        pytest.skip("needs TSFM_MIRA_PYTHON, an interpreter with sktime 1.2 (see the module)")
    folder = tmp_path_factory.mktemp("released")
    for name, config in QUESTIONS.items():
        weights = {f"weights/{n}": x for n, x in random_weights(config, 2).items()}
        cases = random_cases(24, 6, 1) if name == "recorded" else random_cases(60, 5, 3)
        asked = folder / f"{name}.asked.safetensors"
        save_file({**weights, **cases}, asked, {"config": json.dumps(config)})
    command = [python, str(HERE / "released_mira_peer.py"), str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    return folder


def read_metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return {key: json.loads(text) for key, text in file.metadata().items()}


def read_judge(path: Path) -> tuple[ReleasedMira, Tensors]:
    tensors = load_file(path)
    config = released_config(read_metadata(path)["config"])
    prefix = "weights/"
    weights = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
    return load_released_mira(weights, config), tensors


@torch.no_grad()
def answers(model: ReleasedMira, values: Tensor, times: Tensor, targets: Tensor) -> Tensors:
    return {
        "positions": normalised_times(times),
        "next": model(values, times),
        "next_by_ode": model(values, times, targets[:, 0]),
        "forecast": released_forecast(model, values, times, targets),
    }


def worst_errors(path: Path) -> dict[str, float]:
    """Largest absolute error of each answer of each case."""
    model, tensors = read_judge(path)
    found: dict[str, float] = {}
    for case in CASES:
        given = (tensors[f"{case}/{kind}"] for kind in ("values", "times", "targets"))
        for kind, answer in answers(model, *given).items():
            expected = tensors[f"{case}/{kind}"]
            assert answer.shape == expected.shape
            found[f"{case}/{kind}"] = float((answer - expected).abs().max())
    return found


@pytest.fixture(scope="module")
def model() -> ReleasedMira:
    return load_released_mira(random_weights(SIZES, 5), released_config(SIZES))


def test_answers_are_those_that_the_published_code_gave() -> None:
    errors = worst_errors(FIXTURE)
    assert {k: e for k, e in errors.items() if not e <= TOLERANCE} == {}
    assert all(e == 0.0 for k, e in errors.items() if k.endswith("positions"))


def test_the_ode_and_the_batch_show_in_the_recorded_answers() -> None:
    """Or the comparison above would prove little."""
    tensors = load_file(FIXTURE)
    for case in CASES:
        moved = tensors[f"{case}/next_by_ode"] - tensors[f"{case}/next"]
        assert float(moved.abs().max()) > 0.02
    model, _ = read_judge(FIXTURE)
    for case in ("two_rows", "goes_back"):
        values, times, targets = (tensors[f"{case}/{k}"] for k in ("values", "times", "targets"))
        own = model(values, times, targets[:, 0], own_intervals=True).detach()
        assert abs(float(own[1] - tensors[f"{case}/next_by_ode"][1])) > 0.02


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers_are_those_that_the_published_code_gives(answered: Path, name: str) -> None:
    errors = worst_errors(answered / f"{name}.answered.safetensors")
    assert {k: e for k, e in errors.items() if not e <= TOLERANCE} == {}
    assert all(e == 0.0 for k, e in errors.items() if k.endswith("positions"))


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_folder_that_the_published_code_saved_is_loaded(answered: Path, name: str) -> None:
    expected, tensors = read_judge(answered / f"{name}.answered.safetensors")
    loaded = load_released_mira(answered / name)
    given = [tensors[f"two_rows/{kind}"] for kind in ("values", "times")]
    assert torch.equal(loaded(*given), expected(*given))


def test_the_recorded_answers_are_what_the_published_code_still_gives(answered: Path) -> None:
    """Where they are not, and should be, copy the file over the fixture."""
    file = answered / "recorded.answered.safetensors"
    now, recorded = load_file(file), load_file(FIXTURE)
    assert now.keys() == recorded.keys()
    assert max(float((now[n] - x).abs().max()) for n, x in recorded.items()) <= 1e-5, file
    assert read_metadata(file) == read_metadata(FIXTURE)


def test_every_setting_that_the_published_code_writes_is_known() -> None:
    metadata = read_metadata(FIXTURE)
    assert len(metadata["config.json"]) > 30
    written = {**metadata["config"], "num_key_value_heads": SIZES["num_attention_heads"]}
    assert released_config(metadata["config.json"]) == released_config(written)


def some(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7))


def one_after_the_other(times: Tensor) -> Tensor:
    """Positions as their definition reads, a point at a time, in float32."""
    t = times.float()
    first, last = t.amin(1, keepdim=True), t.amax(1, keepdim=True)
    moved = (t - first) / (last - first).clamp(min=1e-8) * float(t.shape[1] - 1)
    moved = torch.round(moved / 0.1) * 0.1
    for row in moved:
        for i in range(1, len(row)):
            if row[i] <= row[i - 1]:
                row[i] = row[i - 1] + 1e-4
    return moved


@pytest.mark.parametrize(
    "times",
    [
        some(3, 40).cumsum(1),
        some(2, 50),  # going back and forth
        torch.full((1, 1100), 7.0),  # one chain, longer than a tenth has steps
        torch.cat([torch.arange(60) / 1440, torch.arange(1, 60)])[None],
        1.7e9 + some(1, 30).double().cumsum(1) * 600,
        torch.zeros(2, 1),
        torch.cat([torch.arange(2500.0), torch.full((40,), 2500.0)])[None],  # 1e-4 is lost at 2500
    ],
)
def test_positions_moved_all_at_once_are_those_moved_one_by_one(times: Tensor) -> None:
    assert torch.equal(normalised_times(times), one_after_the_other(times))


def test_positions_know_neither_unit_nor_burst() -> None:
    """The defects that are kept: 250 Hz is weekly, and minutes beside days are ties."""
    steps = torch.arange(100.0)[None]
    assert torch.equal(normalised_times(steps * 0.004), normalised_times(steps * 604_800))
    burst = torch.cat([torch.arange(30) / 1440, torch.arange(1, 60)])[None]
    assert float(normalised_times(burst)[:, :30].diff().max()) < 1.01e-4


def test_a_forecast_is_the_network_asked_again_and_again(model: ReleasedMira) -> None:
    """With keys and values kept for regular rows, some for bursts, and hardly any for others."""
    tensors = random_cases(20, 5, 8)
    for case in CASES:
        values, times, targets = (tensors[f"{case}/{k}"] for k in ("values", "times", "targets"))
        found = released_forecast(model, values, times, targets)
        for i in range(targets.shape[1]):
            following = model(values, times).detach()
            torch.testing.assert_close(found[:, i], following, rtol=1e-4, atol=1e-5)
            values = torch.cat([values, following[:, None]], 1)
            times = torch.cat([times, targets[:, i : i + 1]], 1)


def test_a_regular_series_is_read_once(
    model: ReleasedMira, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    plain = ReleasedMira._last_state

    def counted(self: ReleasedMira, values: Tensor, positions: Tensor, past: Any) -> Any:
        read.append(values.shape[1])
        return plain(self, values, positions, past)

    monkeypatch.setattr(ReleasedMira, "_last_state", counted)
    every = torch.arange(57.0)[None] * 3600
    released_forecast(model, some(1, 50), every[:, :50], every[:, 50:])
    assert read == [50, 1, 1, 1, 1, 1, 1]


def test_rows_with_intervals_of_their_own_are_as_alone(model: ReleasedMira) -> None:
    values, times = some(4, 12), some(4, 12).cumsum(1)
    targets = times[:, -1] + torch.tensor([0.0, 2.0, 3.0, -1.0])
    together = model(values, times, targets, own_intervals=True)
    alone = [model(values[i, None], times[i, None], targets[i, None])[0] for i in range(4)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="empty_interval"):
        model(values, times, targets)


def test_earlier_calls_and_inputs_leave_no_trace(model: ReleasedMira) -> None:
    """Two rows of times with one sum get phases of their own, and inputs stay as they are."""
    values = some(1, 5) - 0.5
    one, other = torch.tensor([[0.0, 1, 2, 3, 4]]), torch.tensor([[0.0, 0.5, 2.5, 3, 4]])
    assert normalised_times(one).sum() == normalised_times(other).sum()
    kept = values.clone(), one.clone()
    first = model(values, one)
    assert not torch.equal(model(values, other), first)
    assert torch.equal(model(values, one), first)
    assert torch.equal(values, kept[0])
    assert torch.equal(one, kept[1])


def test_times_and_shapes_that_can_not_be_are_refused(model: ReleasedMira) -> None:
    values, times = some(2, 5), some(2, 5).cumsum(1)
    with pytest.raises(InputError, match="not_finite"):
        model(values, times.masked_fill(times > 1, torch.nan))
    with pytest.raises(InputError, match="not_finite"):
        model(values, times, torch.tensor([9.0, torch.nan]))
    with pytest.raises(InputError, match="empty_context"):
        model(values[:, :0], times[:, :0])
    with pytest.raises((InputError, TypeError), match="times"):
        model(values, times[:, 1:])
    with pytest.raises((InputError, TypeError), match="target_times"):
        released_forecast(model, values, times, times[:1])


def test_no_targets_get_no_forecast(model: ReleasedMira) -> None:
    assert released_forecast(model, some(2, 5), some(2, 5), some(2, 0)).shape == (2, 0)
