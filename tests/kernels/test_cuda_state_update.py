"""The CUDA state update is the scan's equation for one token, fork by slot or not.

The kernels run on the CPU through the shim of `cuda_shim/`, and on a GPU where there is one.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tsfm.errors import InputError
from tsfm.kernels import cuda_state_update, selective_scan
from tsfm.kernels.cuda_state_update import StateParams, update
from tsfm.kernels.scan_inputs import INPUTS

SHIM = Path(__file__).with_name("cuda_shim") / "shim_launcher.py"
CUDA = Path(__file__).parents[2] / "cuda"
EXACT = 5e-7  # of the largest value, float32 against float64
ROUNDED = {torch.bfloat16: 2**-8, torch.float16: 2**-11}  # half a step of one rounding


@dataclass(frozen=True)
class Machine:
    """Where the kernels run."""

    device: str
    launcher: Any

    def update(self, source: Tensor, state: Tensor, **given: Any) -> Tensor:
        """`update` with everything moved to the device; `state` is written as seen from here."""
        there = state.to(self.device)
        from_there = there if source is state else source.to(self.device)
        moved: dict[str, Any] = {
            k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in given.items()
        }
        y = update(from_there, there, launcher=self.launcher, **moved)
        state.copy_(there)
        return y.cpu()


@pytest.fixture(params=["shim", pytest.param("cuda", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest) -> Machine:
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        return Machine("cuda", None)
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    spec = importlib.util.spec_from_file_location("shim_launcher", SHIM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Machine("cpu", module.ShimLauncher("state_update"))


def make_inputs(
    rows: int, channels: int, states: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    return {
        "u": normal(rows, channels).to(dtype),
        "delta": normal(rows, channels).to(dtype),
        "A": -torch.exp(normal(channels, states)),
        "B": normal(rows, states).to(dtype),
        "C": normal(rows, states).to(dtype),
        "D": normal(channels),
        "z": normal(rows, channels).to(dtype),
        "gap": 10 ** (4 * torch.rand(rows, generator=draw) - 2),
        "gap_rate": torch.exp(normal(channels) - 1),
        "delta_bias": normal(channels),
    }


def make_states(slots: int, channels: int, states: int, kind: str) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    width = 2 * states if kind == "foh" else states
    return torch.randn(slots, channels, width, generator=draw)


def expected(
    source: Tensor, inputs: dict[str, Tensor], kind: str, softplus: bool = True
) -> tuple[Tensor, Tensor]:
    """y and the rows' new states by the scan's reference in float64, each row a sequence."""
    wide: dict[str, Any] = {name: tensor.double() for name, tensor in inputs.items()}
    return selective_scan(
        **wide,
        delta_softplus=softplus,
        input=kind,
        cu_seqlens=torch.arange(len(source) + 1),
        initial_state=source.double(),
        return_final_state=True,
        backend="reference",
    )


def assert_close(found: Tensor, right: Tensor, tolerance: float) -> None:
    largest = right.abs().max().item()
    assert torch.isfinite(found).all()
    assert (found.double() - right).abs().max().item() <= tolerance * largest


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize(("channels", "states"), [(33, 16), (5, 4), (9, 7), (3, 64), (2, 300)])
def test_a_step_is_the_scan_of_one_token(
    machine: Machine, kind: str, channels: int, states: int
) -> None:
    inputs = make_inputs(6, channels, states)
    state = make_states(6, channels, states, kind)
    y_right, state_right = expected(state, inputs, kind)
    y = machine.update(state, state, **inputs, softplus=True, input=kind)
    assert_close(y, y_right, EXACT)
    assert_close(state, state_right, EXACT)


@pytest.mark.parametrize("kind", INPUTS)
def test_what_is_absent_has_no_effect(machine: Machine, kind: str) -> None:
    inputs = make_inputs(4, 10, 8)
    inputs["delta"] = inputs["delta"].abs()
    for absent in (["D"], ["z"], ["gap", "gap_rate"], ["delta_bias", "D", "z", "gap", "gap_rate"]):
        given = {name: x for name, x in inputs.items() if name not in absent}
        state = make_states(4, 10, 8, kind)
        y_right, state_right = expected(state, given, kind, softplus=False)
        y = machine.update(state, state, **given, input=kind)
        assert_close(y, y_right, EXACT)
        assert_close(state, state_right, EXACT)


@pytest.mark.parametrize("kind", INPUTS)
def test_steps_follow_a_sequence(machine: Machine, kind: str) -> None:
    inputs = make_inputs(12, 6, 16)
    wide: dict[str, Any] = {name: tensor.double() for name, tensor in inputs.items()}
    state = make_states(1, 6, 16, kind)
    right = selective_scan(
        **wide, delta_softplus=True, input=kind, initial_state=state.double(), backend="reference"
    )
    assert isinstance(right, Tensor)
    rows = ("u", "delta", "B", "C", "z", "gap")
    for t in range(12):
        token = {name: x[t : t + 1] if name in rows else x for name, x in inputs.items()}
        y = machine.update(state, state, **token, softplus=True, input=kind)
        assert_close(y, right[t : t + 1], 2 * EXACT)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("kind", ["impulse", "foh"])
def test_rows_fork_by_slot(machine: Machine, kind: str, index: torch.dtype) -> None:
    inputs = make_inputs(4, 7, 5)
    before = make_states(6, 7, 5, kind)
    source_slots = torch.tensor([2, 2, 0, 2], dtype=index)
    target_slots = torch.tensor([5, 1, 3, 0], dtype=index)
    y_right, new = expected(before[source_slots], inputs, kind)
    state = torch.zeros_like(before)
    y = machine.update(
        before, state, **inputs, softplus=True, input=kind,
        source_slots=source_slots, target_slots=target_slots,
    )  # fmt: skip
    assert_close(y, y_right, EXACT)
    assert_close(state[target_slots], new, EXACT)
    assert (state[[2, 4]] == 0).all()


def test_one_kind_of_slot_may_be_left_out_or_be_wider(machine: Machine) -> None:
    inputs, before = make_inputs(3, 4, 4), make_states(3, 4, 4, "zoh")
    slots = torch.tensor([2, 0, 1])
    _, new = expected(before[slots], inputs, "zoh")
    for options in (
        {"source_slots": slots},
        {"source_slots": slots.int(), "target_slots": torch.arange(3)},
    ):
        state = torch.zeros_like(before)
        machine.update(before, state, **inputs, softplus=True, input="zoh", **options)
        assert_close(state, new, EXACT)


def test_a_slot_that_does_not_exist_touches_no_state(machine: Machine) -> None:
    inputs, state = make_inputs(4, 7, 5), make_states(3, 7, 5, "impulse")
    before = state.clone()
    y = machine.update(
        state, state, **inputs, input="impulse", softplus=True,
        source_slots=torch.tensor([0, 3, -1, 1]), target_slots=torch.tensor([0, 1, 2, 3]),
    )  # fmt: skip
    assert y[1:].isnan().all()
    assert torch.equal(state[1:], before[1:])
    _, new = expected(before[:1], {k: x[:1] if len(x) == 4 else x for k, x in inputs.items()},
                      "impulse")  # fmt: skip
    assert_close(state[:1], new, EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("states", [16, 7])
def test_narrow_inputs_are_computed_in_float32(
    machine: Machine, dtype: torch.dtype, states: int
) -> None:
    inputs = make_inputs(5, 12, states, dtype)
    state = make_states(5, 12, states, "zoh")
    y_right, state_right = expected(state, inputs, "zoh")
    y = machine.update(state, state, **inputs, softplus=True, input="zoh")
    assert y.dtype == dtype
    assert_close(y, y_right, ROUNDED[dtype])
    assert_close(state, state_right, EXACT)


@pytest.mark.parametrize("kind", ["impulse", "foh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_states_in_bfloat16_are_rounded_once(
    machine: Machine, kind: str, dtype: torch.dtype
) -> None:
    inputs = make_inputs(5, 12, 16, dtype)
    state = make_states(5, 12, 16, kind).bfloat16()
    y_right, state_right = expected(state, inputs, kind)
    y = machine.update(state, state, **inputs, softplus=True, input=kind)
    assert_close(y, y_right, ROUNDED.get(dtype, EXACT))
    wrong = (state.double() - state_right).abs()
    assert (wrong <= 2**-8 * state_right.abs() + 1e-6).all()


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("gap", [0.0, 1e-6, 1e7, math.inf])
def test_any_gap_gives_a_finite_state(machine: Machine, kind: str, gap: float) -> None:
    inputs = make_inputs(2, 6, 16)
    inputs["gap"].fill_(gap)
    state = make_states(2, 6, 16, kind)
    right = dict(inputs, gap=torch.full_like(inputs["gap"], min(gap, 1e18)))
    y_right, state_right = expected(state, right, kind)
    y = machine.update(state, state, **inputs, softplus=True, input=kind)
    assert_close(y, y_right, EXACT)
    assert_close(state, state_right, EXACT)


@pytest.mark.parametrize("kind", ["zoh", "foh"])
@pytest.mark.parametrize("gap", [1e-7, 1e-4, 0.3, 1.0, 3.0, 1e3, 1e6])
def test_weights_of_the_input_lose_no_digits(machine: Machine, kind: str, gap: float) -> None:
    inputs = make_inputs(2, 6, 16)
    inputs = {name: inputs[name] for name in ("u", "A", "B", "C", "gap", "gap_rate")}
    inputs["delta"] = torch.zeros(2, 6)
    inputs["gap"].fill_(gap)
    inputs["gap_rate"].fill_(1.0)
    state = torch.zeros(2, 6, 32 if kind == "foh" else 16)
    for u in (inputs["u"], torch.zeros(2, 6)):  # for foh, zero brings out what arrived before
        inputs["u"] = u
        _, right = expected(state, inputs, kind, softplus=False)
        machine.update(state, state, **inputs, input=kind)
        new = right[..., :16].abs()
        if kind == "foh" or u.any():
            assert ((state.double() - right)[..., :16].abs() <= 2e-6 * new + 1e-37).all()
        state[..., :16] = 0.0


def test_a_block_goes_from_row_to_row(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_state_update, "LARGEST_GRID_Y", 3)
    for states in (16, 150):
        inputs, state = make_inputs(11, 6, states), make_states(11, 6, states, "zoh")
        y_right, state_right = expected(state, inputs, "zoh")
        y = machine.update(state, state, **inputs, softplus=True, input="zoh")
        assert_close(y, y_right, EXACT)
        assert_close(state, state_right, EXACT)


def test_slices_of_a_projection_need_no_copy_and_give_the_same_bits(machine: Machine) -> None:
    inputs, before = make_inputs(3, 8, 4), make_states(3, 8, 4, "zoh")
    plain = before.clone()
    y = machine.update(plain, plain, **inputs, softplus=True, input="zoh")
    sliced = dict(inputs)
    for name in ("u", "delta", "z", "B", "C"):
        x = inputs[name].to(machine.device)
        sliced[name] = torch.cat([x.new_zeros(len(x), 1), x, x], 1)[:, 1 : 1 + x.shape[1]]
    state = before.clone()
    assert torch.equal(machine.update(state, state, **sliced, softplus=True, input="zoh"), y)
    assert torch.equal(state, plain)


def test_only_aligned_rows_are_read_in_vectors() -> None:
    aligned = cuda_state_update._aligned
    assert aligned(torch.zeros(3, 8))
    assert aligned(torch.zeros(3, 12)[:, 4:])
    assert not aligned(torch.zeros(3, 9)[:, :8])
    assert not aligned(torch.zeros(3, 12)[:, 1:9])


def test_no_rows_are_no_work(machine: Machine) -> None:
    inputs, state = make_inputs(0, 8, 4), make_states(3, 8, 4, "zoh")
    before = state.clone()
    assert machine.update(state, state, **inputs, input="zoh").shape == (0, 8)
    assert torch.equal(state, before)


@pytest.mark.parametrize(
    ("change", "code", "place"),
    [
        ({"u": torch.zeros(2, 4, dtype=torch.float64)}, "cuda_type", "u"),
        ({"state": torch.zeros(2, 4, 3, dtype=torch.float16)}, "wrong_shape", "source"),
        ({"state": torch.zeros(2, 3, 4).transpose(1, 2)}, "not_contiguous", "state"),
        ({"state": torch.zeros(2, 5, 3)}, "wrong_shape", "state"),
        ({"input": "foh"}, "wrong_shape", "source"),
        ({k: torch.zeros(2, 4, 3, dtype=torch.float16) for k in ("source", "state")},
         "cuda_type", "state"),
    ],
)  # fmt: skip
def test_what_has_no_kernel_is_refused(change: dict[str, Any], code: str, place: str) -> None:
    class Refuses:
        def launch(
            self, kernel: str, grid: tuple[int, int, int], block: int,
            params: ctypes.Structure, shared_bytes: int = 0,
        ) -> None:  # fmt: skip
            raise AssertionError("launched")

    states = torch.zeros(2, 4, 3)
    given = {"source": states, "state": states.clone(), **make_inputs(2, 4, 3), **change}
    # Shapes that the annotations already refuse are let through to the checks of the function.
    plain = getattr(update, "__wrapped__", update)
    with pytest.raises(InputError) as caught:
        plain(**given, launcher=Refuses())
    assert (caught.value.code, caught.value.place) == (code, place)


def test_the_mirror_has_the_layout_of_the_struct(tmp_path: Path) -> None:
    """A C++ compiler puts the fields of the struct where ctypes puts them."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    fields = [field[0] for field in StateParams._fields_]
    prints = "".join(f'printf("%zu ", __builtin_offsetof(StateParams, {f}));' for f in fields)
    program = tmp_path / "layout.cpp"
    program.write_text(
        '#include "cpu_shim.h"\n#include "state_update.cu"\n'
        f'int main() {{ {prints} printf("%zu", sizeof(StateParams)); }}'
    )
    command = ["g++", "-std=c++17", f"-I{SHIM.parent}", f"-I{CUDA}", str(program)]
    subprocess.run([*command, "-o", str(tmp_path / "layout")], check=True)
    printed = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True)
    offsets = [getattr(StateParams, field).offset for field in fields]
    assert list(map(int, printed.stdout.split())) == [*offsets, ctypes.sizeof(StateParams)]
