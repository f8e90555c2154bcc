"""The selective scan among torch's parts: layouts, number types, threads, compilers, autograd.

Float64 on the `torch` backend, held to the equations by `test_scan_properties.py`, is the measure.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tsfm.errors import InputError
from tsfm.kernels import native_library, selective_scan
from tsfm.kernels.scan_inputs import INPUTS

BACKENDS = ("native", "numba", "torch", "reference")
NO_NATIVE = pytest.mark.skipif(
    not native_library.available(), reason="the C++ kernels are not built here"
)
MARKS = {"native": NO_NATIVE}
NAMED = [pytest.param(b, marks=MARKS.get(b, ())) for b in BACKENDS]
SERVED = [
    pytest.param(backend, kind, marks=MARKS.get(backend, ()))
    for backend in BACKENDS
    for kind in INPUTS
    if (backend, kind) != ("numba", "foh")
]
served = pytest.mark.parametrize(("backend", "kind"), SERVED)
WIDE = ("u", "delta", "B", "C", "z", "gap")
FORM: dict[str, Any] = {"delta_softplus": True, "return_final_state": True}

Inputs = dict[str, Tensor]
Results = dict[str, Tensor]


def make_inputs(
    n_tokens: int = 70,
    n_channels: int = 19,
    n_state: int = 5,
    kind: str = "euler",
    dtype: torch.dtype = torch.float32,
    n_sequences: int = 2,
) -> Inputs:
    """Every floating input, for `n_sequences` sequences."""
    generator = torch.Generator().manual_seed(11)
    T, D, N = n_tokens, n_channels, n_state
    shapes = {"u": (T, D), "delta": (T, D), "A": (D, N), "B": (T, N), "C": (T, N), "D": (D,)}
    shapes |= {"z": (T, D), "gap": (T,), "gap_rate": (D,), "delta_bias": (D,)}
    shapes["initial_state"] = (n_sequences, D, N * (2 if kind == "foh" else 1))
    inputs = {name: torch.randn(*size, generator=generator) for name, size in shapes.items()}
    inputs["A"] = -inputs["A"].exp()
    inputs["gap"], inputs["gap_rate"] = inputs["gap"].exp(), inputs["gap_rate"].exp()
    return {name: tensor.to(dtype) for name, tensor in inputs.items()}


def differentiated(inputs: Inputs, lengths: tuple[int, ...] | None = None, **how: Any) -> Results:
    """Output, final state and gradients of a weighted sum of both."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    if lengths is not None:
        how["cu_seqlens"] = torch.tensor((0, *lengths)).cumsum(0)
    y, final = selective_scan(**leaves, **FORM, **how)
    weights = torch.linspace(-1, 2, y.numel()).reshape(y.shape).to(y.dtype)
    gradients = torch.autograd.grad((y * weights).sum() + final.sin().sum(), list(leaves.values()))
    return {"y": y.detach(), "final": final.detach(), **dict(zip(leaves, gradients, strict=True))}


def assert_close(got: Results, wanted: Results, tolerance: float = 2e-6) -> None:
    """Every error is below `tolerance` of the largest value."""
    assert got.keys() == wanted.keys()
    for name in wanted:
        error = (got[name].double() - wanted[name].double()).abs().max().item()
        size = wanted[name].double().abs().max().item()
        assert error <= tolerance * size, (name, error, size)


def assert_same_bits(got: Results, wanted: Results) -> None:
    for name in wanted:
        assert torch.equal(got[name], wanted[name]), name


@pytest.fixture
def threads() -> Iterator[None]:
    """The number of threads is as before after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@served
def test_the_same_input_gives_the_same_bits_whatever_the_threads(backend: str, kind: str) -> None:
    inputs = make_inputs(130, 40, kind=kind, n_sequences=3)
    how: dict[str, Any] = {"lengths": (1, 100, 29), "input": kind, "backend": backend}
    first = differentiated(inputs, **how)
    for n_threads in (1, 2, 2):
        torch.set_num_threads(n_threads)
        assert_same_bits(differentiated(inputs, **how), first)


@NO_NATIVE
@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("n_channels", [1, 3, 16, 37])
def test_vectors_of_every_width_are_right(lanes: int, kind: str, n_channels: int) -> None:
    inputs = make_inputs(n_channels=n_channels, kind=kind)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    wanted = differentiated(exact, (31, 39), input=kind, backend="torch")
    use_lanes = native_library.library().tsfm_use_lanes
    try:
        if use_lanes(lanes) != lanes:
            pytest.skip(f"this machine has no vectors of {lanes} floats")
        assert_close(differentiated(inputs, (31, 39), input=kind, backend="native"), wanted)
    finally:
        for width in (4, 8, 16):  # The widest that the machine has stays.
            use_lanes(width)


@served
@pytest.mark.parametrize("layout", ["slices", "transposed", "strided", "expanded"])
def test_inputs_in_any_layout_give_what_contiguous_ones_give(
    backend: str, kind: str, layout: str
) -> None:
    inputs = make_inputs(kind=kind)
    plain = differentiated(inputs, (32, 38), input=kind, backend=backend)
    if layout == "slices":
        wide = torch.cat([inputs[name] for name in ("u", "delta", "z", "B", "C")], 1)
        u, delta, z, B, C = wide.split([19, 19, 19, 5, 5], 1)
        laid = {**inputs, "u": u, "delta": delta, "z": z, "B": B, "C": C}
    elif layout == "transposed":
        laid = {name: x.mT.contiguous().mT if x.dim() > 1 else x for name, x in inputs.items()}
    elif layout == "strided":
        laid = {name: x.repeat_interleave(2, -1)[..., ::2] for name, x in inputs.items()}
    else:
        inputs |= {"gap": torch.tensor(0.3).expand(70), "D": torch.tensor(0.7).expand(19)}
        inputs["u"] = inputs["u"][:, :1].expand(70, 19)
        laid = inputs
        copies = {name: x.contiguous() for name, x in inputs.items()}
        plain = differentiated(copies, (32, 38), input=kind, backend=backend)
    assert not all(x.is_contiguous() for x in laid.values())
    found = differentiated(laid, (32, 38), input=kind, backend=backend)
    # Torch's own functions may round otherwise on strided rows; the C++ kernels see one layout.
    (assert_same_bits if backend == "native" else assert_close)(found, plain)


@served
def test_gradients_that_come_back_expanded_or_strided_are_read_right(
    backend: str, kind: str
) -> None:
    inputs, found = make_inputs(kind=kind), []
    ones = (torch.sum, lambda x: x.mT.contiguous().sum(), lambda x: (x * x.new_ones(x.shape)).sum())
    for total in ones:
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        borders = torch.tensor([0, 30, 70])
        y, final = selective_scan(**leaves, **FORM, cu_seqlens=borders, input=kind, backend=backend)
        gradients = torch.autograd.grad(total(y) + total(final), list(leaves.values()))
        found.append(dict(zip(leaves, gradients, strict=True)))
    assert_same_bits(found[0], found[2])
    assert_same_bits(found[1], found[2])


@served
def test_a_batch_that_lies_length_first_is_read_right(backend: str, kind: str) -> None:
    inputs = make_inputs(kind=kind)
    batch = {n: x.unflatten(0, (2, 35)) if n in WIDE else x for n, x in inputs.items()}
    laid = batch | {n: batch[n].transpose(0, 1).contiguous().transpose(0, 1) for n in WIDE}
    how: Any = {"input": kind, "backend": backend}
    assert_same_bits(differentiated(laid, **how), differentiated(batch, **how))


@served
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_scanned_in_float32_and_rounded_once(
    backend: str, kind: str, dtype: torch.dtype
) -> None:
    narrow = make_inputs(kind=kind, dtype=dtype)
    got = differentiated(narrow, (1, 69), input=kind, backend=backend)
    assert got["final"].dtype == torch.float32
    # The gradient that comes back to y is narrow as well: the wide scan gets the same one.
    leaves = {name: tensor.float().requires_grad_() for name, tensor in narrow.items()}
    borders = torch.tensor([0, 1, 70])
    y, final = selective_scan(**leaves, **FORM, cu_seqlens=borders, input=kind, backend=backend)
    dy = torch.linspace(-1, 2, y.numel()).reshape(y.shape).to(dtype).float()
    gradients = torch.autograd.grad((y * dy).sum() + final.sin().sum(), list(leaves.values()))
    wide = {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}
    for name, wanted in wide.items():
        assert got[name].dtype == dtype, name
        error, half_step = (got[name].float() - wanted).abs(), torch.finfo(dtype).eps / 2
        allowed = 1.01 * half_step * wanted.abs() + 2e-6 * wanted.abs().max()
        assert (error <= allowed).all(), (name, (error / wanted.abs()).max())
    assert_close({"final": got["final"]}, {"final": final.detach()})


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_wider_parameters_beside_narrow_tokens_keep_their_type(
    backend: str, wide: torch.dtype
) -> None:
    inputs = make_inputs()
    mixed = {
        n: x.bfloat16() if n in ("u", "B", "C", "z") else x.to(wide) for n, x in inputs.items()
    }
    got = differentiated(mixed, (31, 39), backend=backend)
    assert got["y"].dtype == torch.bfloat16
    assert all(got[name].dtype == tensor.dtype for name, tensor in mixed.items())
    exact = {name: x.double() for name, x in mixed.items()}
    wanted = differentiated(exact, (31, 39), backend="torch")
    assert_close({"final": got["final"]}, {"final": wanted["final"]})


@pytest.mark.parametrize("backend", ["torch", "reference", None])
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_of_all_inputs_pass_gradcheck(
    backend: str | None, kind: str, reverse: bool
) -> None:
    assert torch.autograd.gradcheck(*_for_gradcheck(kind, backend, reverse))


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("kind", INPUTS)
def test_second_derivatives_pass_gradgradcheck(backend: str, kind: str) -> None:
    assert torch.autograd.gradgradcheck(*_for_gradcheck(kind, backend, False))


@pytest.fixture
def untyped() -> Iterator[None]:
    """No checks of types at calls: they know no symbolic sizes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def _for_gradcheck(
    kind: str, backend: str | None, reverse: bool
) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    inputs = make_inputs(4, 2, 2, kind, torch.float64)
    borders = torch.tensor([0, 1, 4])

    def scan(*values: Tensor) -> Any:
        named = dict(zip(inputs, values, strict=True))
        how: dict[str, Any] = {"input": kind, "backend": backend, "reverse": reverse}
        return selective_scan(**named, **FORM, **how, cu_seqlens=borders)

    return scan, tuple(tensor.requires_grad_() for tensor in inputs.values())


@pytest.mark.parametrize("backend", [None, pytest.param("native", marks=NO_NATIVE), "numba"])
def test_a_second_derivative_of_a_fast_backend_is_refused(backend: str | None) -> None:
    inputs = {name: x.requires_grad_() for name, x in make_inputs(6, n_sequences=1).items()}
    y, _ = selective_scan(**inputs, **FORM, backend=backend)
    for loss in (y.sum(), y.square().sum()):
        with pytest.raises(InputError, match="no_second_derivative"):
            torch.autograd.grad(loss, inputs["u"], create_graph=True)


@pytest.mark.usefixtures("untyped")
@served
@pytest.mark.parametrize("full", [True, False])
def test_the_operator_passes_opcheck(backend: str, kind: str, full: bool) -> None:
    inputs = make_inputs(9, 3, 2, kind)
    needed = ("u", "delta", "A", "B", "C")
    values = [x.requires_grad_() if full or name in needed else None for name, x in inputs.items()]
    borders = torch.tensor([0, 4, 9], dtype=torch.int32)
    arguments = (*values, borders, True, kind, full, True, True, backend)
    torch.library.opcheck(torch.ops.tsfm.selective_scan.default, arguments)


class ScanBlock(nn.Module):
    """The smallest module with a scan in it: one projection of the input for each of its parts."""

    def __init__(self, n_channels: int = 6, n_state: int = 3) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.sizes = [n_channels] * 3 + [n_state] * 2
        self.project = nn.Linear(n_channels, sum(self.sizes))
        self.A_log = nn.Parameter(torch.randn(n_channels, n_state))
        self.gap_rate_log = nn.Parameter(torch.randn(n_channels))

    def forward(self, x: Tensor, gap: Tensor) -> Tensor:
        u, delta, z, B, C = self.project(x).split(self.sizes, -1)
        rate = self.gap_rate_log.exp()
        timed: Any = {"gap": gap, "gap_rate": rate, "input": "zoh"}
        return selective_scan(u, delta, -self.A_log.exp(), B, C, z=z, delta_softplus=True, **timed)


def block_inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(2, 12, 6, generator=generator), torch.rand(2, 12, generator=generator)


def gradients_of(module: nn.Module, run: Callable[..., Tensor]) -> Results:
    x, gap = block_inputs()
    y = run(x.requires_grad_(), gap)
    y.square().sum().backward()
    assert x.grad is not None
    found = {"y": y.detach(), "x": x.grad}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        found[name] = parameter.grad.clone()
    module.zero_grad()
    return found


def block_compiled_by(compiler: str) -> None:
    block = ScanBlock()
    compiled = torch.compile(block, backend=compiler, fullgraph=True)
    assert_close(gradients_of(block, compiled), gradients_of(block, block))


def packed_scan_compiled(backend: str | None) -> None:
    inputs = {name: tensor.requires_grad_() for name, tensor in make_inputs().items()}
    borders = torch.tensor([0, 31, 70], dtype=torch.int32)

    def scan(inputs: Inputs, borders: Tensor) -> tuple[Tensor, Tensor]:
        return selective_scan(**inputs, **FORM, cu_seqlens=borders, backend=backend)

    compiled = torch.compile(scan, backend="aot_eager", fullgraph=True)
    found: list[Results] = []
    for run in (compiled, scan):
        y, final = run(inputs, borders)
        gradients = torch.autograd.grad(y.sum() + final.sum(), list(inputs.values()))
        found.append({"y": y, "final": final, **dict(zip(inputs, gradients, strict=True))})
    assert_close(found[0], found[1])


@pytest.mark.parametrize(
    "compiled",
    [
        "block_compiled_by('aot_eager')",
        *(f"packed_scan_compiled({backend!r})" for backend in (None, "numba", "torch")),
        pytest.param("block_compiled_by('inductor')", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_scan_is_the_scan_in_one_graph(compiled: str) -> None:
    # A process of its own: the shape checks of the other tests are nothing a compiler can trace.
    name, _, argument = compiled.partition("(")
    script = f"import runpy; runpy.run_path({__file__!r})[{name!r}]({argument}"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_an_exported_block_has_one_scan_and_its_output() -> None:
    block = ScanBlock()
    exported = torch.export.export(block, block_inputs())
    scans = [n for n in exported.graph.nodes if "tsfm.selective_scan" in str(n.target)]
    assert [node.target for node in scans] == [torch.ops.tsfm.selective_scan.default]
    with torch.no_grad():
        assert torch.equal(exported.module()(*block_inputs()), block(*block_inputs()))


@pytest.mark.parametrize("backend", [None, *NAMED])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_values_are_the_same(backend: str | None, mode: Any) -> None:
    inputs = {name: tensor.requires_grad_() for name, tensor in make_inputs().items()}
    how: dict[str, Any] = {"cu_seqlens": torch.tensor([0, 31, 70]), "backend": backend}
    loud = selective_scan(**inputs, **FORM, **how)
    with mode():
        quiet = selective_scan(**inputs, **FORM, **how)
    for got, wanted in zip(quiet, loud, strict=True):
        assert not got.requires_grad
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_block_run_again_for_its_gradients_has_the_same_ones(reentrant: bool) -> None:
    block = ScanBlock()

    def run_again(x: Tensor, gap: Tensor) -> Any:
        return checkpoint(block, x, gap, use_reentrant=reentrant)

    assert_same_bits(gradients_of(block, run_again), gradients_of(block, block))


def test_a_copied_block_is_the_block() -> None:
    block = ScanBlock()
    gradients_of(block, block)
    twin = copy.deepcopy(block)
    assert_same_bits(gradients_of(twin, twin), gradients_of(block, block))


def test_a_frozen_input_gets_no_gradient_and_the_others_keep_theirs() -> None:
    inputs = make_inputs()
    borders = torch.tensor([0, 31, 70])
    wanted = differentiated(inputs, (31, 39))
    for frozen in inputs:
        leaves = {n: x.clone().requires_grad_(n != frozen) for n, x in inputs.items()}
        y, final = selective_scan(**leaves, **FORM, cu_seqlens=borders)
        weights = torch.linspace(-1, 2, y.numel()).reshape(y.shape)
        ((y * weights).sum() + final.sin().sum()).backward()
        gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        assert gradients.keys() == leaves.keys() - {frozen}
        assert_same_bits(gradients, {name: wanted[name] for name in gradients})
