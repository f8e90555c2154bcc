"""mamba-ssm as a backend: its layout in, ours out, and a plain no to what it does not know.

Its compiled module needs a GPU. Here a module of the same name and calls takes its place, which
computes in mamba-ssm's own layout from the equations: what is transposed wrongly comes out wrong.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tsfm.errors import InputError
from tsfm.kernels import mamba_ssm_scan
from tsfm.kernels.scan_inputs import ScanForm, ScanInputs
from tsfm.kernels.selective_scan import selective_scan

N_CHANNELS, N_STATE, CHUNK = 5, 3, 2048
PLAIN = ScanForm(softplus=True, input="euler", reverse=False)


def scan_in_their_layout(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, delta_bias: Tensor | None, softplus: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Output, (B, D, chunk, 2N) pairs of decay and state at each chunk's end, gated output."""
    batch, n_channels, length = u.shape
    assert delta.shape == u.shape
    assert B.shape == C.shape == (batch, 1, A.shape[1], length)
    assert all(t is None or t.is_contiguous() for t in (u, delta, A, B, C, D, z, delta_bias))
    step = delta if delta_bias is None else delta + delta_bias[:, None]
    step = F.softplus(step) if softplus else step
    state, elapsed = u.new_zeros(batch, n_channels, A.shape[1]), u.new_zeros(batch, n_channels, 1)
    outputs, ends = [], []
    for t in range(length):
        now = step[:, :, t, None]
        state = torch.exp(A * now) * state + now * B[:, :, :, t] * u[:, :, t, None]
        elapsed = elapsed + now
        outputs.append((state * C[:, :, :, t]).sum(-1))
        if t % CHUNK == CHUNK - 1 or t == length - 1:
            ends.append(torch.stack([torch.exp(A * elapsed), state], -1).flatten(-2))
            elapsed = torch.zeros_like(elapsed)
    out = torch.stack(outputs, -1)
    out = out if D is None else out + u * D[:, None]
    return out, torch.stack(ends, 2), None if z is None else out * F.silu(z)


def fwd(*arguments: Any) -> list[Tensor]:
    found = scan_in_their_layout(*arguments)
    return [tensor for tensor in found if tensor is not None]


def bwd(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, delta_bias: Tensor | None, dout: Tensor, x: Tensor | None,
    out: Tensor | None, dz: Tensor | None, softplus: bool, recompute: bool,
) -> list[Tensor | None]:  # fmt: skip
    """Their order of gradients; demands what their kernel reads: x past a chunk, out with z."""
    given = (u, delta, A, B, C, D, z, delta_bias)
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in given]
        plain, states, gated = scan_in_their_layout(*leaves, softplus)  # type: ignore[arg-type]
        wanted = [t for t in leaves if t is not None]
        found = iter(torch.autograd.grad(plain if gated is None else gated, wanted, dout))
    if u.shape[-1] > CHUNK:
        assert x is not None
        torch.testing.assert_close(x, states)
    if z is not None:
        assert out is not None
        torch.testing.assert_close(out, plain)
    assert dout.is_contiguous()
    assert dz is None
    assert not recompute
    du, ddelta, dA, dB, dC, dD, gate, dbias = [None if t is None else next(found) for t in leaves]
    return [du, ddelta, dA, dB, dC, dD, dbias, *([] if z is None else [gate])]


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("selective_scan_cuda")
    module.fwd, module.bwd = fwd, bwd  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", module)


@pytest.fixture
def no_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)


def make_inputs(batch: int, length: int, *, without: tuple[str, ...] = ()) -> ScanInputs:
    generator = torch.Generator().manual_seed(batch * 1000 + length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rows = batch * length
    fields = {
        "u": normal(rows, N_CHANNELS),
        "delta": normal(rows, N_CHANNELS),
        "A": -normal(N_CHANNELS, N_STATE).abs() - 0.1,
        "B": normal(rows, N_STATE),
        "C": normal(rows, N_STATE),
        "D": normal(N_CHANNELS),
        "z": normal(rows, N_CHANNELS),
        "delta_bias": normal(N_CHANNELS),
    }
    absent = dict.fromkeys((*without, "gap", "gap_rate", "initial_state"))
    borders = torch.arange(batch + 1, dtype=torch.int32) * length
    return ScanInputs(**{**fields, **absent}, cu_seqlens=borders)  # type: ignore[arg-type]


def call(inputs: ScanInputs, *, final: bool = False, **changes: Any) -> Any:
    """The reference with the same arguments."""
    return selective_scan(
        **{**inputs._asdict(), **changes}, delta_softplus=True, input="euler",
        return_final_state=final, backend="reference",
    )  # fmt: skip


@pytest.mark.usefixtures("peer")
@pytest.mark.parametrize("without", [(), ("z",), ("D", "z", "delta_bias")])
@pytest.mark.parametrize(("batch", "length"), [(1, 9), (3, 7), (1, CHUNK + 1)])
def test_the_layout_is_theirs_on_the_way_in_and_ours_on_the_way_out(
    batch: int, length: int, without: tuple[str, ...]
) -> None:
    inputs = make_inputs(batch, length, without=without)
    y, _, saved = mamba_ssm_scan.forward(inputs, PLAIN, final=False, checkpoints=True)
    leaves = {
        k: v.clone().requires_grad_()
        for k, v in inputs._asdict().items()
        if v is not None and v.is_floating_point()
    }
    expected = call(inputs, **leaves)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert y.is_contiguous()

    dy = torch.linspace(-1, 1, y.numel()).view_as(y)
    (expected * dy).sum().backward()
    assert saved is not None
    assert saved.numel() == mamba_ssm_scan.checkpoint_numel(batch * length, N_CHANNELS, N_STATE)
    found = mamba_ssm_scan.backward(inputs, PLAIN, saved, dy, None, (True,) * 11)
    for name, gradient in found._asdict().items():
        if name not in leaves:
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, leaves[name].grad, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("peer")
def test_the_last_state_of_each_row_is_found_among_their_checkpoints() -> None:
    inputs = make_inputs(3, 7)
    _, state, saved = mamba_ssm_scan.forward(inputs, PLAIN, final=True, checkpoints=False)
    assert saved is None
    assert state is not None
    torch.testing.assert_close(state, call(inputs, final=True)[1])


@pytest.mark.usefixtures("peer")
def test_half_width_rows_stay_so_and_the_weights_stay_float32() -> None:
    inputs = make_inputs(2, 7)
    rows = {k: getattr(inputs, k).bfloat16() for k in ("u", "delta", "B", "C", "z")}
    narrow = inputs._replace(**rows)
    y, _, saved = mamba_ssm_scan.forward(narrow, PLAIN, final=False, checkpoints=True)
    assert saved is not None
    assert saved.dtype == torch.float32
    wide = call(inputs, **{k: v.float() for k, v in rows.items()})
    torch.testing.assert_close(y.float(), wide, rtol=0.05, atol=0.05)


@pytest.mark.usefixtures("peer")
def test_one_batch_on_a_gpu_is_served() -> None:
    with FakeTensorMode():
        assert mamba_ssm_scan.serves(on_gpu(make_inputs(1, 9)), PLAIN) is None


@pytest.mark.usefixtures("no_peer")
def test_a_machine_without_the_module_is_told_so() -> None:
    with FakeTensorMode():
        reason = mamba_ssm_scan.serves(on_gpu(make_inputs(1, 9)), PLAIN)
    assert reason is not None
    assert "selective_scan_cuda" in reason
    with pytest.raises(InputError) as caught:
        mamba_ssm_scan.forward(make_inputs(1, 9), PLAIN, final=False, checkpoints=False)
    assert caught.value.code == "no_mamba_ssm"


@pytest.mark.usefixtures("peer")
def test_the_cpu_is_not_served() -> None:
    assert mamba_ssm_scan.serves(make_inputs(1, 9), PLAIN) == "it runs on CUDA devices only"


@pytest.mark.usefixtures("peer")
@pytest.mark.parametrize(
    ("change", "form", "word"),
    [
        ({}, ScanForm(True, "zoh", False), "euler"),
        ({}, ScanForm(True, "euler", True), "backwards"),
        ({"gap": torch.ones(14), "gap_rate": torch.ones(N_CHANNELS)}, PLAIN, "gap"),
        ({"initial_state": torch.ones(2, N_CHANNELS, N_STATE)}, PLAIN, "zero"),
        ({"A": -torch.ones(N_CHANNELS, 257)}, PLAIN, "256"),
        ({"u": torch.ones(14, N_CHANNELS).double()}, PLAIN, "type"),
        ({"D": torch.ones(N_CHANNELS).bfloat16()}, PLAIN, "float32"),
        ({"cu_seqlens": torch.tensor([0, 6, 14], dtype=torch.int32)}, PLAIN, "length"),
    ],
)
def test_what_it_does_not_know_is_refused_and_never_left_out(
    change: dict[str, Tensor], form: ScanForm, word: str
) -> None:
    inputs = make_inputs(2, 7)._replace(**change)
    with pytest.raises(InputError) as caught:
        mamba_ssm_scan.forward(inputs, form, final=False, checkpoints=False)
    assert caught.value.code == "backend_without_form"
    assert word in str(caught.value)


@pytest.mark.usefixtures("peer")
def test_a_final_state_that_would_lose_its_gradient_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        mamba_ssm_scan.forward(make_inputs(2, 7), PLAIN, final=True, checkpoints=True)
    assert caught.value.code == "backend_without_form"


def on_gpu(inputs: ScanInputs) -> ScanInputs:
    """Shapes of the inputs on a CUDA device that need not exist; call under a FakeTensorMode."""
    return ScanInputs(
        *(
            None if t is None else torch.empty(tuple(t.shape), dtype=t.dtype, device="cuda")
            for t in inputs
        )  # type: ignore[arg-type]
    )
