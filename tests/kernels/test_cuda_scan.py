"""The CUDA scan is right: every input kind, cut and type against the float64 loop, and by its laws.

The kernels run on the CPU through the shim of `cuda_shim/`, and on a GPU where there is one.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tsfm.errors import InputError
from tsfm.kernels import cuda_scan, torch_scan
from tsfm.kernels.scan_inputs import INPUTS, ScanForm, ScanGradients, ScanInputs

SHIM = Path(__file__).with_name("cuda_shim") / "shim_launcher.py"
MIXED = (0, 1, 32, 64, 97, 397)  # lengths 1, 31, 32, 33, 300
SHORT = (0, 1, 4, 70)
MANY_PROCESSORS = 1000  # a card that nothing fills: chunks as short as they get
VALUES, GRADIENTS = 5e-7, 2e-6  # of the largest value, float32 against float64


@dataclass(frozen=True)
class Machine:
    """Where the kernels run."""

    device: str
    shim: Any

    def launcher(self, form: ScanForm) -> Any:
        """The shim's launcher, or None for the device's own."""
        return self.shim(cuda_scan.SOURCES[form.input]) if self.shim else None

    def forward(
        self, inputs: ScanInputs, form: ScanForm, *, processors: int = MANY_PROCESSORS
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Output, final states and checkpoints."""
        y, final, saved = cuda_scan.forward(
            inputs.each(lambda _, t: t.to(self.device)), form, final=True, checkpoints=True,
            launcher=self.launcher(form), n_processors=processors,
        )  # fmt: skip
        assert final is not None
        assert saved is not None
        return y.cpu(), final.cpu(), saved

    def run(
        self,
        inputs: ScanInputs,
        form: ScanForm,
        dy: Tensor | None,
        dfinal: Tensor | None,
        *,
        processors: int = MANY_PROCESSORS,
        needs: tuple[bool, ...] = (True,) * 11,
    ) -> tuple[Tensor, Tensor, ScanGradients]:
        """Output, final states and the gradients of sum(dy * y) + sum(dfinal * final)."""
        y, final, saved = self.forward(inputs, form, processors=processors)
        there = [None if t is None else t.to(self.device) for t in (dy, dfinal)]
        gradients = cuda_scan.backward(
            inputs.each(lambda _, t: t.to(self.device)), form, saved, there[0], there[1], needs,
            launcher=self.launcher(form), n_processors=processors,
        )  # fmt: skip
        return y, final, ScanGradients(*(None if g is None else g.cpu() for g in gradients))


@pytest.fixture(params=["shim", pytest.param("cuda", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    empty = torch.empty

    def poisoned(*args: Any, **options: Any) -> Tensor:
        tensor = empty(*args, **options)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else 2**31 - 1)

    monkeypatch.setattr(cuda_scan.torch, "empty", poisoned)  # what is read unwritten shows
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        return Machine("cuda", None)
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return Machine("cpu", shim_launcher)


@functools.cache
def shim_launcher(name: str) -> Any:
    spec = importlib.util.spec_from_file_location("shim_launcher", SHIM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ShimLauncher(name)


def make_inputs(
    n_channels: int = 24,
    n_state: int = 16,
    borders: tuple[int, ...] = MIXED,
    carried: int = 1,
    absent: tuple[str, ...] = (),
    seed: int = 0,
) -> ScanInputs:
    """Random float64 inputs; `carried` is the width of the initial state in multiples of N."""
    generator = torch.Generator().manual_seed(seed)
    n_tokens, n_sequences = borders[-1], len(borders) - 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = ScanInputs(
        u=normal(n_tokens, n_channels),
        delta=normal(n_tokens, n_channels),
        A=-normal(n_channels, n_state).abs() - 0.05,
        B=normal(n_tokens, n_state),
        C=normal(n_tokens, n_state),
        D=normal(n_channels),
        z=normal(n_tokens, n_channels),
        gap=normal(n_tokens).abs() * 5,
        gap_rate=normal(n_channels).abs() * 0.3,
        delta_bias=normal(n_channels),
        initial_state=normal(n_sequences, n_channels, n_state * carried),
        cu_seqlens=torch.tensor(borders, dtype=torch.int32),
    )
    return inputs._replace(**dict.fromkeys(absent))


def to_type(inputs: ScanInputs, rows: torch.dtype = torch.float32) -> ScanInputs:
    """Rows in one type, everything else that is floating in float32."""
    wide = {"u", "delta", "B", "C", "z"}
    return inputs.each(
        lambda name, t: t if name == "cu_seqlens" else t.to(rows if name in wide else torch.float32)
    )


def expect(
    inputs: ScanInputs, form: ScanForm, seed: int = 1
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...], Tensor, Tensor]:
    """Output, final states and gradients in float64, and the weights of the gradients.

    By the loop, or for long inputs by the chunked form, which is compared with the loop elsewhere.
    """
    leaves = inputs.each(lambda _, t: t.double().requires_grad_() if t.is_floating_point() else t)
    y, final = torch_scan.scan(leaves, form, "reference" if len(inputs.u) < 150 else "torch")
    generator = torch.Generator().manual_seed(seed)
    dy, dfinal = (
        torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (y, final)
    )
    given = [t for t in leaves[:11] if t is not None]
    found = iter(torch.autograd.grad([y, final], given, [dy, dfinal]))
    gradients = tuple(None if t is None else next(found) for t in leaves[:11])
    return y.detach(), final.detach(), gradients, dy, dfinal


def error(found: Tensor | None, expected: Tensor | None) -> float:
    """Largest difference, relative to the largest value."""
    assert (found is None) == (expected is None)
    if found is None or expected is None:
        return 0.0
    assert found.shape == expected.shape
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def check(machine: Machine, inputs: ScanInputs, form: ScanForm, **options: Any) -> None:
    """Values and all gradients against the float64 loop."""
    y, final, gradients, dy, dfinal = expect(inputs, form)
    found = machine.run(to_type(inputs), form, dy.float(), dfinal.float(), **options)
    assert error(found[0], y) < VALUES
    assert error(found[1], final) < VALUES
    errors = {
        name: error(f, e)
        for name, f, e in zip(ScanGradients._fields, found[2], gradients, strict=True)
    }
    assert max(errors.values()) < GRADIENTS, errors


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", INPUTS)
def test_packed_sequences_of_any_length_equal_the_loop(
    machine: Machine, kind: str, reverse: bool
) -> None:
    carried = 2 if kind == "foh" else 1
    check(machine, make_inputs(carried=carried), ScanForm(True, kind, reverse))


@pytest.mark.parametrize(("n_state", "n_channels"), [(1, 3), (4, 33), (7, 40), (20, 65), (64, 5)])
@pytest.mark.parametrize("kind", ["euler", "zoh", "foh"])
def test_any_number_of_states_and_channels(
    machine: Machine, kind: str, n_state: int, n_channels: int
) -> None:
    inputs = make_inputs(n_channels, n_state, borders=(0, 66, 69, 200))
    check(machine, inputs, ScanForm(True, kind, False))


@pytest.mark.parametrize("kind", ["impulse", "foh"])
def test_the_widest_state(machine: Machine, kind: str) -> None:
    inputs = make_inputs(4, 256, borders=(0, 10, 150), absent=("z",))
    check(machine, inputs, ScanForm(True, kind, True))


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize(
    "absent",
    [("D",), ("z",), ("gap", "gap_rate"), ("delta_bias",), ("initial_state",), ("softplus",),
     ("D", "z", "gap", "gap_rate", "delta_bias", "initial_state")],
    ids="-".join,
)  # fmt: skip
def test_what_is_not_given_is_not_used(
    machine: Machine, kind: str, absent: tuple[str, ...]
) -> None:
    softplus = "softplus" not in absent
    inputs = make_inputs(10, 4, SHORT, absent=tuple(n for n in absent if n != "softplus"))
    if not softplus:  # elapsed time is not negative
        bias = inputs.delta_bias
        assert bias is not None
        inputs = inputs._replace(delta=inputs.delta.abs(), delta_bias=bias.abs())
    check(machine, inputs, ScanForm(softplus, kind, False))


@pytest.mark.parametrize("kind", INPUTS)
def test_many_chunks_equal_a_single_pass(machine: Machine, kind: str) -> None:
    inputs, form = make_inputs(8, 4, borders=(0, 3, 600, 1000)), ScanForm(True, kind, False)
    assert cuda_scan.plan(1000, 8, 4, 3, MANY_PROCESSORS).n_chunks == 8
    check(machine, inputs, form)
    # Three sequences are enough for a single processor: no cut.
    inputs = make_inputs(8, 4, borders=(0, 40, 80, 120))
    assert cuda_scan.plan(120, 8, 4, 3, 1).n_chunks == 1
    check(machine, inputs, form, processors=1)


def test_a_backward_pass_in_slices_equals_one_without(machine: Machine) -> None:
    inputs, form = make_inputs(40, borders=(0, 3, 300, 600)), ScanForm(True, "zoh", False)
    sliced = cuda_scan.plan(600, 40, 16, 3, 1)
    assert sliced.slice_chunks < sliced.n_chunks
    check(machine, inputs, form, processors=1)


@pytest.mark.parametrize("processors", [1, MANY_PROCESSORS])
@pytest.mark.parametrize("kind", INPUTS)
def test_the_same_input_gives_the_same_bits(machine: Machine, kind: str, processors: int) -> None:
    inputs, form = to_type(make_inputs(borders=SHORT)), ScanForm(True, kind, False)
    dy, dfinal = torch.randn(70, 24), torch.randn(3, 24, 16 * form.carried)
    first, second = (machine.run(inputs, form, dy, dfinal, processors=processors) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    for a, b in zip(first[2], second[2], strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", INPUTS)
def test_narrow_types_are_the_float32_scan_rounded(
    machine: Machine, kind: str, dtype: torch.dtype
) -> None:
    narrow = to_type(make_inputs(carried=2 if kind == "foh" else 1), dtype)
    form = ScanForm(True, kind, True)
    dy, dfinal = torch.randn(397, 24).to(dtype), torch.randn(5, 24, 16 * form.carried)
    found = machine.run(narrow, form, dy, dfinal)
    wide = machine.run(to_type(narrow), form, dy.float(), dfinal)
    assert found[0].dtype == dtype
    assert torch.equal(found[0], wide[0].to(dtype))
    assert torch.equal(found[1], wide[1])
    for name, f, w in zip(ScanGradients._fields, found[2], wide[2], strict=True):
        assert f is not None
        assert w is not None
        expected = dtype if name in {"u", "delta", "B", "C", "z"} else torch.float32
        assert f.dtype == expected
        assert torch.equal(f, w.to(expected)), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_finite_number_of_a_narrow_type_is_read_and_rounded_right(
    machine: Machine, dtype: torch.dtype
) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    u = every[torch.isfinite(every) & (every.float().abs() < 1e38)]
    u = u[: len(u) // 8 * 8].view(-1, 8)
    scale = torch.tensor([1.0, -1.0, 0.3, 1.7, 1.0009765625, 3e-3, 1.0 + 2**-9, 0.5])
    nothing = torch.zeros(len(u), 1, dtype=dtype)
    inputs = ScanInputs(
        u=u, delta=torch.zeros_like(u), A=-torch.ones(8, 1), B=nothing, C=nothing, D=scale,
        z=None, gap=None, gap_rate=None, delta_bias=None, initial_state=None,
        cu_seqlens=torch.tensor([0, len(u)], dtype=torch.int32),
    )  # fmt: skip
    y, _, _ = machine.forward(inputs, ScanForm(False, "impulse", False))
    assert torch.equal(y, (u.float() * scale).to(dtype))


@pytest.mark.parametrize("kind", INPUTS)
def test_extreme_gaps_are_right_and_finite(machine: Machine, kind: str) -> None:
    inputs = make_inputs(8, 4, borders=(0, 30, 90))
    gap = torch.tensor([0.0, 1e-6, 1e7]).double().repeat(30)
    # Without content the gap alone is the elapsed time, zero included.
    delta = torch.zeros(90, 8).double()
    inputs = inputs._replace(gap=gap, delta=delta, delta_bias=None)
    check(machine, inputs, ScanForm(False, kind, False))


@pytest.mark.parametrize("kind", INPUTS)
def test_softplus_of_large_steps_is_right(machine: Machine, kind: str) -> None:
    inputs = make_inputs(8, 4, borders=SHORT)
    check(machine, inputs._replace(delta=inputs.delta * 60), ScanForm(True, kind, False))


@pytest.mark.parametrize("kind", INPUTS)
def test_short_elapsed_times_lose_nothing_to_cancellation(machine: Machine, kind: str) -> None:
    inputs = make_inputs(8, 4, borders=(0, 90), absent=("initial_state", "z", "D", "delta_bias"))
    gap = torch.logspace(-9, 1.5, 90).double()
    inputs = inputs._replace(gap=gap, delta=torch.zeros(90, 8).double())
    check(machine, inputs, ScanForm(False, kind, False))


@pytest.mark.parametrize("kind", INPUTS)
def test_a_scan_cut_anywhere_goes_on_from_its_state(machine: Machine, kind: str) -> None:
    whole = to_type(make_inputs(borders=(0, 300), carried=2 if kind == "foh" else 1))
    form = ScanForm(True, kind, False)
    y, last, _ = machine.forward(whole, form)
    rows = {"u", "delta", "B", "C", "z", "gap"}
    for cut in (1, 63, 64, 65, 299):
        head = whole.each(lambda name, t, cut=cut: t[:cut] if name in rows else t)
        tail = whole.each(lambda name, t, cut=cut: t[cut:] if name in rows else t)
        head = head._replace(cu_seqlens=torch.tensor([0, cut], dtype=torch.int32))
        tail = tail._replace(cu_seqlens=torch.tensor([0, 300 - cut], dtype=torch.int32))
        first, middle, _ = machine.forward(head, form)
        second, end, _ = machine.forward(tail._replace(initial_state=middle), form)
        torch.testing.assert_close(torch.cat([first, second]), y, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(end, last, rtol=1e-5, atol=1e-5)


def test_rows_of_a_wider_tensor_are_read_in_place(machine: Machine) -> None:
    inputs, form = to_type(make_inputs(borders=SHORT)), ScanForm(True, "foh", False)
    wide = torch.cat([inputs.delta, inputs.B, inputs.C, inputs.u], dim=1)
    delta, B, C, u = wide.split([24, 16, 16, 24], dim=1)
    views = inputs._replace(u=u, delta=delta, B=B, C=C)
    dy = torch.randn(70, 48)[:, ::2]
    packed = machine.run(inputs, form, dy.contiguous(), None)[2]
    for a, b in zip(machine.run(views, form, dy, None)[2], packed, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


@pytest.mark.parametrize("missing", ["dy", "dfinal"])
@pytest.mark.parametrize("kind", ["impulse", "foh"])
def test_one_of_the_two_outputs_may_have_no_gradient(
    machine: Machine, kind: str, missing: str
) -> None:
    inputs, form = to_type(make_inputs(borders=SHORT)), ScanForm(True, kind, False)
    given = {"dy": torch.randn(70, 24), "dfinal": torch.randn(3, 24, 16 * form.carried)}
    zeros = {**given, missing: torch.zeros_like(given[missing])}
    none = {**given, missing: None}
    expected = machine.run(inputs, form, zeros["dy"], zeros["dfinal"])[2]
    found = machine.run(inputs, form, none["dy"], none["dfinal"])[2]
    for a, b in zip(found, expected, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_what_needs_no_gradient_gets_none_and_changes_nothing(machine: Machine) -> None:
    inputs, form = to_type(make_inputs(borders=SHORT)), ScanForm(True, "zoh", False)
    dy = torch.randn(70, 24)
    every = machine.run(inputs, form, dy, None)[2]
    few = machine.run(inputs, form, dy, None, needs=(True,) * 5 + (False,) * 6)[2]
    assert few[5:] == (None,) * 6
    for a, b in zip(every[:5], few[:5], strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_float64_is_refused_with_a_remedy(machine: Machine) -> None:
    with pytest.raises(InputError) as caught:
        machine.forward(make_inputs(borders=SHORT), ScanForm(True, "zoh", False))
    assert caught.value.code == "backend_without_type"
