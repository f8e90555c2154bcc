"""The CUDA convolution is torch's own on every sequence alone, values and gradients.

The kernels run on the CPU through the shim of `cuda_shim/`, and on a GPU where there is one.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tsfm.errors import InputError
from tsfm.kernels import cuda_causal_conv
from tsfm.kernels.cuda_causal_conv import ConvParams, backward, forward

SHIM = Path(__file__).with_name("cuda_shim") / "shim_launcher.py"
CUDA = Path(__file__).parents[2] / "cuda"
EXACT = 1e-6  # of the largest value, float32 against float64
ROUNDED = {torch.float32: EXACT, torch.bfloat16: 2**-8, torch.float16: 2**-11}
LENGTHS = (1, 2, 40, 3, 0, 17, 70, 4)
NAMES = ("x", "weight", "bias", "initial_state")


@dataclass(frozen=True)
class Machine:
    """Where the kernels run."""

    device: str
    launcher: Any

    def forward(self, case: Case, *, final: bool = True) -> tuple[Tensor, Tensor | None]:
        y, state = forward(*self._moved(case), final=final, launcher=self.launcher, **case.form)
        return y.cpu(), None if state is None else state.cpu()

    def backward(self, case: Case) -> dict[str, Tensor]:
        given = (case.dy, case.dfinal)
        found = backward(
            *self._moved(case),
            *(None if x is None else x.to(self.device) for x in given),
            launcher=self.launcher,
            **case.form,
        )
        return {n: x.cpu() for n, x in zip(NAMES, found, strict=True) if x is not None}

    def _moved(self, case: Case) -> list[Any]:
        given = (case.x, case.weight, case.bias, case.cu_seqlens, case.initial_state)
        return [None if x is None else x.to(self.device) for x in given]


@dataclass(frozen=True)
class Case:
    """One call and the gradients that come back to its results."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    cu_seqlens: Tensor
    initial_state: Tensor | None
    dy: Tensor
    dfinal: Tensor | None
    activation: str | None = "silu"
    reverse: bool = False

    @property
    def form(self) -> dict[str, Any]:
        return {"activation": self.activation, "reverse": self.reverse}


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
    return Machine("cpu", module.ShimLauncher("causal_conv"))


def make_case(
    channels: int,
    taps: int,
    lengths: tuple[int, ...] = LENGTHS,
    dtype: torch.dtype = torch.float32,
    **form: Any,
) -> Case:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(dtype)

    states = (len(lengths), channels, taps - 1)
    borders = torch.tensor((0, *lengths)).cumsum(0).int()
    return Case(
        normal(sum(lengths), channels), normal(channels, taps), normal(channels), borders,
        normal(*states), normal(sum(lengths), channels), normal(*states), **form,
    )  # fmt: skip


def by_torch(case: Case) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """y, final states and gradients in float64 by torch's convolution, sequence by sequence."""
    given = {name: getattr(case, name) for name in NAMES}
    own = {n: x.double().requires_grad_() for n, x in given.items() if x is not None}
    channels, taps = case.weight.shape
    ys, finals = [], []
    for index, (start, end) in enumerate(
        zip(case.cu_seqlens[:-1].tolist(), case.cu_seqlens[1:].tolist(), strict=True)
    ):
        x = own["x"][start:end]
        walked = x.flip(0) if case.reverse else x
        if "initial_state" in own:
            before = own["initial_state"][index]
        else:
            before = torch.zeros(channels, taps - 1, dtype=torch.float64)
        whole = torch.cat([before, walked.T], 1)
        y = walked  # torch's convolution refuses to have no output
        if start < end:
            y = F.conv1d(whole, own["weight"].unsqueeze(1), own.get("bias"), groups=channels).T
        y = F.silu(y) if case.activation == "silu" else y
        ys.append(y.flip(0) if case.reverse else y)
        finals.append(whole[:, whole.shape[1] - (taps - 1) :])
    y, final = torch.cat(ys), torch.stack(finals)
    loss = (y * case.dy.double()).sum()
    if case.dfinal is not None:
        loss = loss + (final * case.dfinal.double()).sum()
    loss.backward()
    gradients = {n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in own.items()}
    return y.detach(), final.detach(), gradients


def assert_close(found: Tensor | None, right: Tensor, tolerance: float, name: str = "") -> None:
    assert found is not None
    assert found.shape == right.shape
    if right.numel():
        wrong = (found.double() - right).abs().max().item()
        assert wrong <= tolerance * right.abs().max().item(), name


def check(machine: Machine, case: Case) -> None:
    y_right, final_right, gradients_right = by_torch(case)
    tolerance = ROUNDED[case.x.dtype]
    y, final = machine.forward(case)
    assert y.dtype == case.x.dtype
    assert_close(y, y_right, tolerance, "y")
    assert_close(final, final_right, 0.0, "final")
    gradients = machine.backward(case)
    assert gradients.keys() == gradients_right.keys()
    for name, right in gradients_right.items():
        assert gradients[name].dtype == getattr(case, name).dtype
        assert_close(gradients[name], right, tolerance, name)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("channels", [8, 7])
def test_every_sequence_is_convolved_alone(
    machine: Machine, channels: int, taps: int, reverse: bool
) -> None:
    check(machine, make_case(channels, taps, reverse=reverse))


@pytest.mark.parametrize("absent", ["bias", "initial_state", "dfinal", "activation"])
@pytest.mark.parametrize("channels", [8, 7])
def test_what_is_absent_has_no_effect(machine: Machine, channels: int, absent: str) -> None:
    check(machine, replace(make_case(channels, 4), **{absent: None}))
    check(machine, replace(make_case(channels, 4, reverse=True), **{absent: None}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [8, 7])
def test_narrow_inputs_are_computed_in_float32(
    machine: Machine, channels: int, dtype: torch.dtype
) -> None:
    check(machine, make_case(channels, 4, dtype=dtype))
    check(machine, make_case(channels, 4, dtype=dtype, reverse=True))


def test_weights_may_be_wider_than_the_input(machine: Machine) -> None:
    case = make_case(8, 4, dtype=torch.bfloat16)
    assert case.bias is not None
    check(machine, replace(case, weight=case.weight.float(), bias=case.bias.float()))


@pytest.mark.parametrize("chunk", [1, 2, 16, 1000])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("channels", [4, 3])
def test_where_chunks_end_does_not_matter(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, chunk: int, reverse: bool, channels: int
) -> None:
    monkeypatch.setattr(cuda_causal_conv, "CHUNKS", (chunk,))
    check(machine, make_case(channels, 4, reverse=reverse))


def test_many_channels_are_many_blocks(machine: Machine) -> None:
    check(machine, make_case(1032, 4, (3, 20)))
    check(machine, make_case(301, 3, (3, 20)))


def test_a_part_continues_from_the_final_state_of_the_part_before(machine: Machine) -> None:
    whole = make_case(8, 4, (30,))
    y_whole, final_whole = machine.forward(whole)
    for cut in (1, 2, 15, 29):
        head = replace(whole, x=whole.x[:cut], cu_seqlens=torch.tensor([0, cut]))
        y_head, state = machine.forward(head)
        tail = replace(
            whole, x=whole.x[cut:], cu_seqlens=torch.tensor([0, 30 - cut]), initial_state=state
        )
        y_tail, final = machine.forward(tail)
        assert torch.equal(torch.cat([y_head, y_tail]), y_whole)
        assert final is not None
        assert final_whole is not None
        assert torch.equal(final, final_whole)


def test_slices_of_a_projection_give_the_same_bits(machine: Machine) -> None:
    case = make_case(8, 4)
    y, _ = machine.forward(case)
    gradients = machine.backward(case)
    for before in (0, 4, 1):  # the last one is not aligned
        wide = torch.zeros(len(case.x), 8 + 2 * before + 4)
        x, dy = wide.clone()[:, before : before + 8], wide.clone()[:, before : before + 8]
        sliced = replace(case, x=x.copy_(case.x), dy=dy.copy_(case.dy))
        assert torch.equal(machine.forward(sliced)[0], y)
        for name, gradient in machine.backward(sliced).items():
            assert_close(gradient, gradients[name].double(), EXACT, name)


def test_an_infinite_input_reaches_no_further_than_the_taps(machine: Machine) -> None:
    case = make_case(8, 2, (20,))
    x = case.x.clone()
    x[9] = torch.inf
    y, _ = machine.forward(replace(case, x=x, activation=None))
    assert not y[9:11].isfinite().any()
    assert y[11:].isfinite().all()
    assert y[:9].isfinite().all()


def test_the_same_input_gives_the_same_bits(machine: Machine) -> None:
    case = make_case(8, 4, (500, 300))
    first, second = machine.backward(case), machine.backward(case)
    assert all(torch.equal(first[name], second[name]) for name in NAMES)


def test_final_states_are_left_out_unless_wanted(machine: Machine) -> None:
    y, final = machine.forward(make_case(8, 4), final=False)
    assert final is None
    assert torch.equal(y, machine.forward(make_case(8, 4))[0])


def test_no_tokens_pass_the_state_on(machine: Machine) -> None:
    check(machine, make_case(8, 4, (0, 0)))


@pytest.mark.parametrize(
    ("change", "code", "place"),
    [
        ({"x": torch.zeros(5, 4, dtype=torch.float64)}, "cuda_type", "x"),
        ({"weight": torch.zeros(4, 9)}, "cuda_taps", "weight"),
    ],
)
def test_what_has_no_kernel_is_refused(change: dict[str, Any], code: str, place: str) -> None:
    case = replace(make_case(4, 4, (5,)), initial_state=None, **change)
    with pytest.raises(InputError) as caught:
        forward(case.x, case.weight, case.bias, case.cu_seqlens, None, final=False, **case.form)
    assert (caught.value.code, caught.value.place) == (code, place)


def test_only_aligned_rows_are_read_four_channels_at_once() -> None:
    four = cuda_causal_conv._four_at_once
    assert four(torch.zeros(3, 8, dtype=torch.bfloat16))
    assert four(torch.zeros(3, 12)[:, 4:])
    assert not four(torch.zeros(3, 9)[:, :8])
    assert not four(torch.zeros(3, 12)[:, 1:9])
    assert not four(torch.zeros(3, 6))


def test_chunks_are_long_where_there_is_work_enough() -> None:
    assert cuda_causal_conv._chunk(8 * 2048, 384, 132) == 64
    assert cuda_causal_conv._chunk(512, 128, 132) == 16
    assert cuda_causal_conv._chunk(1 << 20, 384, 132) == 128


def test_the_mirror_has_the_layout_of_the_struct(tmp_path: Path) -> None:
    """A C++ compiler puts the fields of the struct where ctypes puts them."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    fields = [field[0] for field in ConvParams._fields_]
    prints = "".join(f'printf("%zu ", __builtin_offsetof(ConvParams, {f}));' for f in fields)
    program = tmp_path / "layout.cpp"
    program.write_text(
        '#include "cpu_shim.h"\n#include "causal_conv.cu"\n'
        f'int main() {{ {prints} printf("%zu", sizeof(ConvParams)); }}'
    )
    command = ["g++", "-std=c++17", f"-I{SHIM.parent}", f"-I{CUDA}", str(program)]
    subprocess.run([*command, "-o", str(tmp_path / "layout")], check=True)
    printed = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True)
    offsets = [getattr(ConvParams, field).offset for field in fields]
    assert list(map(int, printed.stdout.split())) == [*offsets, ctypes.sizeof(ConvParams)]
