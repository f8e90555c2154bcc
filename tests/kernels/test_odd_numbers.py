"""NaN, growth, rates of nought, autocast and changed inputs: every backend says what the loop says.

The lanes of narrower processors are tried as well; see `test_state_update.py`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from tsfm.errors import InputError
from tsfm.kernels import native_library
from tsfm.kernels.causal_conv import causal_conv1d
from tsfm.kernels.gated_norm import gated_rms_norm, gated_rms_norm_torch
from tsfm.kernels.lti_scan import lti_scan
from tsfm.kernels.selective_scan import selective_scan
from tsfm.kernels.ssd import ssd
from tsfm.kernels.state_update import state_update

KINDS = ("euler", "impulse", "zoh", "foh")
# numba's scan has no foh; its step has.
scans = pytest.mark.parametrize(
    ("backend", "kind"),
    [(b, k) for b in (16, 8, 4, "numba") for k in KINDS if (b, k) != ("numba", "foh")],
    indirect=["backend"],
)


@pytest.fixture(params=[16, 8, 4, "numba"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The C++ kernels for registers of every width, and numba's."""
    if request.param == "numba":
        yield "numba"
        return
    if not native_library.available():
        pytest.skip("no C++ kernels were built")
    widest = native_library.lanes()
    if native_library.library().tsfm_use_lanes(request.param) != request.param:
        pytest.skip(f"this processor has no {request.param} lanes")
    yield "native"
    native_library.library().tsfm_use_lanes(widest)


@pytest.fixture
def untyped() -> Iterator[None]:
    """Shapes go unchecked at calls, as for a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def steady(n_tokens: int = 5, n_channels: int = 3, n_state: int = 2) -> dict[str, Any]:
    ones = torch.ones
    return {
        "u": ones(n_tokens, n_channels), "delta": torch.full((n_tokens, n_channels), 0.1),
        "A": -ones(n_channels, n_state), "B": ones(n_tokens, n_state), "C": ones(n_tokens, n_state),
        "gap": ones(n_tokens), "gap_rate": ones(n_channels),
    }  # fmt: skip


@scans
@pytest.mark.parametrize("where", ["gap", "delta", "u", "B"])
def test_what_is_not_known_is_not_known_afterwards(backend: str, kind: str, where: str) -> None:
    inputs = steady()
    inputs[where][2] = torch.nan
    found = selective_scan(**inputs, input=kind, backend=backend)
    expected = selective_scan(**inputs, input=kind, backend="reference")
    assert torch.equal(found.isnan(), expected.isnan())
    assert expected.isnan()[2:].all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_after_an_unknown_gap_is_not_known(backend: str, kind: str) -> None:
    inputs = steady(n_tokens=4)
    inputs["gap"][1] = torch.nan
    table = torch.ones(4, 3, 4 if kind == "foh" else 2)
    y = state_update(table, **inputs, input=kind, backend=backend)
    assert y.isnan().any(1).tolist() == [False, True, False, False]
    assert table[..., :2].isnan().any(2).any(1).tolist() == [False, True, False, False]


def test_states_that_grow_beyond_all_numbers_are_no_small_ones(backend: str) -> None:
    inputs = steady(n_tokens=4)
    for step in (-100.0, -200.0):
        inputs["delta"] = torch.full((4, 3), step)
        y = selective_scan(
            **{k: v for k, v in inputs.items() if "gap" not in k}, input="impulse", backend=backend
        )
        assert not y[1:].isfinite().logical_and(y[1:].abs() < 1e30).any()


@scans
@pytest.mark.parametrize("step", [-0.3, -2.0, -5.0, -10.0, -60.0])
def test_states_that_grow_are_those_of_the_loop(backend: str, kind: str, step: float) -> None:
    inputs = {k: v for k, v in steady(n_tokens=2).items() if "gap" not in k}
    inputs["delta"] = torch.full((2, 3), step)
    inputs["A"].requires_grad_()
    found, expected = (
        selective_scan(**inputs, input=kind, backend=name) for name in (backend, "reference")
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if abs(step) < 30:
        slopes = [torch.autograd.grad(y.sum(), inputs["A"])[0] for y in (found, expected)]
        torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5)


@scans
def test_a_rate_of_nought_forgets_nothing(backend: str, kind: str) -> None:
    inputs = steady()
    inputs["A"] = torch.zeros(3, 2)
    found = selective_scan(**inputs, input=kind, backend=backend)
    expected = selective_scan(**inputs, input=kind, backend="reference")
    torch.testing.assert_close(found, expected)


def test_a_state_without_components_is_refused() -> None:
    with pytest.raises(InputError, match="wrong_shape"):
        state_update(
            torch.zeros(4, 2, 0), torch.ones(4, 2), torch.ones(4, 2), torch.zeros(2, 0),
            torch.zeros(4, 0), torch.zeros(4, 0),
        )  # fmt: skip


def test_autocast_does_not_round_what_a_recurrence_adds_up() -> None:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    def all_forms() -> list[Tensor]:
        x, step, A = rows.unflatten(1, (4, 2)), delta[:, :4], rates[:4, 0]
        y, last = ssd(
            x, step, A, B, C, initial_state=torch.ones(1, 4, 2, 6), return_final_state=True
        )
        found = [y, last]
        for form in ("torch", "reference"):
            found.append(selective_scan(rows, delta, rates, B, C, backend=form))
        table = torch.ones(100, 8, 6)
        found.append(state_update(table, rows, delta, rates, B, C, backend="torch"))
        return [*found, table]

    rows, delta, rates = normal(100, 8), normal(100, 8).abs(), -normal(8, 6).abs()
    B, C = normal(100, 6), normal(100, 6)
    plain = all_forms()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = all_forms()
    for a, b in zip(plain, rounded, strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("form", ["scan", "norm"])
def test_an_input_that_was_changed_before_the_backward_pass_is_noticed(form: str) -> None:
    x = torch.randn(40, 8)
    leaf, changed = x.clone().requires_grad_(), x.clone()
    if form == "scan":
        y = selective_scan(
            leaf, x.abs(), -torch.ones(8, 3), changed[:, :3], x[:, :3], backend="numba"
        )
    else:
        y = gated_rms_norm(leaf, x, changed, torch.ones(8), torch.ones(8), 1e-5)
    changed.zero_()
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


@pytest.mark.parametrize("own", ["apart", "of one another", "one twice"])
@pytest.mark.parametrize("loss", ["sum", "square"])
def test_the_norm_can_be_differentiated_again(loss: str, own: str) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(20, 6), torch.randn(20, 6), torch.randn(20, 6), torch.ones(6)]
    found: list[Tensor] = []
    for form in (gated_rms_norm, gated_rms_norm_torch):
        y, u, z, weight = (leaf.clone().requires_grad_() for leaf in leaves)
        if own != "apart":  # as a scan's output hangs on its input
            y, u = (2 * z, z) if own == "of one another" else (z, z)
        out = form(y, u, z, torch.ones(6), weight, 1e-5)
        out = out.square() if loss == "square" else out
        (g,) = torch.autograd.grad(out.sum(), z, create_graph=True)
        (out.sum() + g.square().sum()).backward()
        assert z.grad is not None
        assert weight.grad is not None
        found += [z.grad, weight.grad]
    torch.testing.assert_close(found[:2], found[2:], rtol=2e-4, atol=2e-4)


def test_a_convolution_and_a_filter_are_not_differentiated_again() -> None:
    x = torch.randn(10, 3, requires_grad=True)
    rate = torch.complex(-torch.ones(3, 2), torch.ones(3, 2))
    filtered: Any = lti_scan(x.unsqueeze(0), rate, rate)
    for y in (causal_conv1d(x, torch.randn(3, 4)), filtered):
        with pytest.raises(InputError, match="no_second_derivative"):
            torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.usefixtures("untyped")
def test_shapes_that_do_not_fit_are_refused_before_memory_is_read() -> None:
    u = torch.randn(2, 50, 5)
    rate = torch.complex(-torch.rand(5, 3), torch.randn(5, 3))
    state = torch.zeros(2, 5, 3, dtype=torch.complex64)
    rows, channel = torch.randn(40, 8), torch.ones(8)
    for wrong in (
        lambda: lti_scan(u, rate, rate, initial_state=state[:1]),
        lambda: lti_scan(u, rate[:4], rate[:4]),
        lambda: lti_scan(u, rate, rate[:, :2]),
        lambda: lti_scan(u[0], rate, rate),
        lambda: lti_scan(u, rate.real, rate),
        lambda: lti_scan(u.double(), rate, rate),
        lambda: gated_rms_norm(rows, rows, rows, channel[:3], channel, 1e-5),
        lambda: gated_rms_norm(rows, rows, rows[:10], channel, channel, 1e-5),
        lambda: gated_rms_norm(rows, rows, rows, channel, channel[:1], 1e-5),
    ):
        with pytest.raises(InputError, match=r"wrong_(shape|type)"):
            wrong()


# In a process of its own: a tracer can not see through the checks of shapes that wrap functions.
_COMPILED = """
import torch
from tsfm.errors import InputError
from tsfm.kernels.causal_conv import causal_conv1d
from tsfm.kernels.ssd import ssd

x, w, step = torch.randn(10, 3), torch.randn(3, 4), torch.rand(10, 3)
forms = {
    "conv": lambda cu: causal_conv1d(x, w, cu_seqlens=cu),
    "conv in float64": lambda cu: causal_conv1d(x.double(), w.double(), cu_seqlens=cu),
    "ssd": lambda cu: ssd(x.unsqueeze(-1), step, -torch.ones(3), x, x, cu_seqlens=cu),
}
for name, plain in forms.items():
    compiled = torch.compile(plain, backend="aot_eager", fullgraph=True)
    good = torch.tensor([0, 4, 7, 10])
    torch.testing.assert_close(compiled(good), plain(good))
    for bad in ([0, 8, 4, 10], [0, -5, 7, 10], [0, 4, 7, 9]):
        try:
            compiled(torch.tensor(bad))
        except InputError as error:
            print(name, error.code)
"""


def test_a_compiled_program_looks_at_the_borders_when_it_runs() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _COMPILED], capture_output=True, text=True, timeout=300, check=True
    )
    forms = ("conv", "conv in float64", "ssd")
    assert ended.stdout.splitlines() == [f"{form} bad_cu_seqlens" for form in forms for _ in "123"]
