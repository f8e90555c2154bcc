"""The short convolution is torch's own, stays within a subject, and goes on from its state."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from tsfm.errors import InputError
from tsfm.kernels import native_library
from tsfm.kernels.causal_conv import causal_conv1d, causal_conv1d_op

NATIVE = pytest.param(
    "native",
    marks=pytest.mark.skipif(not native_library.available(), reason="no C++ kernels were built"),
)
COMPILED = (NATIVE, "numba")
ALL = (NATIVE, "numba", "torch")
# Sequences of one and two tokens, some across and some just before the borders of tiles (8),
# stretches (64) and reaches (128).
BORDERS = torch.tensor([0, 1, 3, 110, 127, 130, 300, 301])


@pytest.fixture(params=[16, 8, 4])
def lanes(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run the kernels for narrower registers too."""
    if not native_library.available():
        pytest.skip("no C++ kernels were built")
    widest = native_library.lanes()
    if native_library.library().tsfm_use_lanes(request.param) != request.param:
        pytest.skip(f"this processor has no {request.param} lanes")
    yield request.param
    native_library.library().tsfm_use_lanes(widest)


def make_inputs(
    n_taps: int = 4, n_channels: int = 21, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(n_taps)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "x": normal(301, n_channels),
        "weight": normal(n_channels, n_taps),
        "bias": normal(n_channels),
        "initial_state": normal(7, n_channels, n_taps - 1),
    }


def run(inputs: dict[str, Any], **options: Any) -> list[torch.Tensor]:
    """Output, final state and all gradients of one weighted sum of both."""
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    options = {"cu_seqlens": BORDERS, **options}
    y, final = causal_conv1d(**leaves, return_final_state=True, **options)
    weights = (torch.arange(y.numel(), dtype=torch.float64).sin() + 0.5).to(y.dtype)
    (
        (y * weights.view_as(y)).sum() + (final * weights[: final.numel()].view_as(final)).sum()
    ).backward()
    return [y.detach(), final.detach(), *(v.grad for v in leaves.values() if v.grad is not None)]


def doubled(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() for k, v in inputs.items()}


def worst(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(
        float((f.double() - e).abs().max() / e.abs().max().clamp(min=1e-12))
        for f, e in zip(found, expected, strict=True)
        if e.numel()
    )


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("n_taps", [1, 2, 4, 9])
def test_one_sequence_is_torchs_conv1d(backend: str, n_taps: int) -> None:
    inputs = make_inputs(n_taps)
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    padded = F.pad(x.T.unsqueeze(0), (n_taps - 1, 0))
    expected = F.conv1d(padded, weight.unsqueeze(1), bias, groups=len(weight)).squeeze(0).T
    found = causal_conv1d(x, weight, bias, backend=backend)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gated = causal_conv1d(x, weight, bias, activation="silu", backend=backend)
    torch.testing.assert_close(gated, F.silu(expected), rtol=1e-5, atol=1e-5)
    without = causal_conv1d(x, weight, backend=backend)
    torch.testing.assert_close(without, expected - bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("n_taps", [1, 2, 3, 4, 7, 12])
@pytest.mark.parametrize("backend", COMPILED)
def test_compiled_equals_float64_torch_with_all_gradients(
    backend: str, n_taps: int, activation: str | None, reverse: bool
) -> None:
    inputs = make_inputs(n_taps)
    options = {"activation": activation, "reverse": reverse}
    expected = run(doubled(inputs), **options)
    assert worst(run(inputs, backend=backend, **options), expected) < 2e-6


@pytest.mark.parametrize("n_taps", [3, 4])
def test_every_width_of_register_has_the_same_values_and_gradients(lanes: int, n_taps: int) -> None:
    for n_channels in (1, 48, 530):
        inputs = make_inputs(n_taps, n_channels)
        expected = run(doubled(inputs), activation="silu")
        assert worst(run(inputs, activation="silu", backend="native"), expected) < 2e-6, lanes


@pytest.mark.parametrize("absent", [("bias",), ("initial_state",), ("bias", "initial_state")])
@pytest.mark.parametrize("backend", COMPILED)
def test_bias_and_state_may_be_absent(backend: str, absent: tuple[str, ...]) -> None:
    inputs = {k: v for k, v in make_inputs().items() if k not in absent}
    expected = run(doubled(inputs), activation="silu")
    assert worst(run(inputs, activation="silu", backend=backend), expected) < 2e-6


@pytest.mark.parametrize("reverse", [False, True])
def test_plain_torch_has_the_gradients_of_finite_differences(reverse: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 2), (2, 4), (2,), (3, 2, 3)]
    leaves = [
        torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes
    ]

    def conv(x: Any, weight: Any, bias: Any, initial: Any) -> Any:
        return causal_conv1d(
            x, weight, bias, cu_seqlens=torch.tensor([0, 1, 3, 7]), initial_state=initial,
            return_final_state=True, activation="silu", reverse=reverse,
        )  # fmt: skip

    assert torch.autograd.gradcheck(conv, leaves)
    assert torch.autograd.gradgradcheck(conv, leaves)


@pytest.mark.parametrize("backend", ALL)
def test_a_packed_subject_is_the_subject_alone(backend: str) -> None:
    inputs = make_inputs()
    initial = inputs.pop("initial_state")
    options = {"return_final_state": True, "activation": "silu", "backend": backend}
    y, final = causal_conv1d(**inputs, cu_seqlens=BORDERS, initial_state=initial, **options)
    for s, (start, end) in enumerate(itertools.pairwise(BORDERS.tolist())):
        alone = {**inputs, "x": inputs["x"][start:end], "initial_state": initial[s : s + 1]}
        found, state = causal_conv1d(**alone, **options)
        torch.testing.assert_close(found, y[start:end])
        assert torch.equal(state[0], final[s])


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("cut", [1, 2, 3, 8, 63, 64, 65, 128, 299, 300])
def test_a_sequence_cut_in_two_goes_on_from_its_state(backend: str, cut: int) -> None:
    inputs = make_inputs()
    x, initial = inputs.pop("x"), inputs.pop("initial_state")[:1]
    options = {**inputs, "return_final_state": True, "activation": "silu", "backend": backend}
    y, final = causal_conv1d(x, initial_state=initial, **options)
    first, middle = causal_conv1d(x[:cut], initial_state=initial, **options)
    second, last = causal_conv1d(x[cut:], initial_state=middle, **options)
    torch.testing.assert_close(torch.cat([first, second]), y)
    assert torch.equal(last, final)


@pytest.mark.parametrize("backend", ALL)
def test_a_final_state_is_the_last_inputs_whatever_the_length(backend: str) -> None:
    x = torch.arange(1.0, 6.0).unsqueeze(-1)
    weight, borders = torch.ones(1, 4), torch.tensor([0, 1, 5])
    initial = torch.tensor([[[-3.0, -2.0, -1.0]], [[-6.0, -5.0, -4.0]]])
    options = {"cu_seqlens": borders, "return_final_state": True, "backend": backend}
    _, final = causal_conv1d(x, weight, initial_state=initial, **options)
    assert final[:, 0].tolist() == [[-2.0, -1.0, 1.0], [3.0, 4.0, 5.0]]
    _, final = causal_conv1d(x, weight, **options)
    assert final[:, 0].tolist() == [[0.0, 0.0, 1.0], [3.0, 4.0, 5.0]]
    _, final = causal_conv1d(x, weight, initial_state=initial, reverse=True, **options)
    assert final[:, 0].tolist() == [[-2.0, -1.0, 1.0], [4.0, 3.0, 2.0]]


@pytest.mark.parametrize("backend", ALL)
def test_reverse_is_flipping_each_sequence(backend: str) -> None:
    inputs = make_inputs()
    x = inputs.pop("x")
    bounds = itertools.pairwise(BORDERS.tolist())
    flip = torch.cat([torch.arange(end - 1, start - 1, -1) for start, end in bounds])
    options = {**inputs, "cu_seqlens": BORDERS, "return_final_state": True, "backend": backend}
    y, final = causal_conv1d(x, reverse=True, **options)
    flipped, last = causal_conv1d(x[flip], **options)
    assert torch.equal(y, flipped[flip])
    assert torch.equal(final, last)


@pytest.mark.parametrize("backend", ALL)
def test_a_batch_is_its_packed_form(backend: str) -> None:
    inputs = make_inputs()
    x = inputs.pop("x")[:280].view(7, 40, -1)
    options = {**inputs, "return_final_state": True, "activation": "silu", "backend": backend}
    y, final = causal_conv1d(x, **options)
    packed, last = causal_conv1d(x.flatten(0, 1), cu_seqlens=torch.arange(0, 281, 40), **options)
    assert torch.equal(y.flatten(0, 1), packed)
    assert torch.equal(final, last)


@pytest.mark.parametrize("backend", COMPILED)
def test_the_number_of_threads_changes_no_bit(backend: str) -> None:
    inputs = make_inputs(n_channels=530)
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(run(inputs, activation="silu", backend=backend))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("backend", COMPILED)
def test_one_of_the_two_outputs_may_go_unused(backend: str) -> None:
    for used in (0, 1):
        found = []
        for dtype, name in ((torch.float32, backend), (torch.float64, "torch")):
            leaves = {k: v.to(dtype).requires_grad_() for k, v in make_inputs().items()}
            outputs = causal_conv1d(
                **leaves, cu_seqlens=BORDERS, return_final_state=True, activation="silu",
                backend=name,
            )  # fmt: skip
            outputs[used].sum().backward()
            found.append(
                [torch.zeros(1) if v.grad is None else v.grad.double() for v in leaves.values()]
            )
        assert worst(*found) < 2e-6


@pytest.mark.parametrize("backend", ALL)
def test_columns_of_a_projection_need_no_copy_to_be_right(backend: str) -> None:
    inputs = make_inputs()
    wide = torch.cat([inputs["x"], inputs["x"] + 1], -1)
    strided = {**inputs, "x": wide[:, :21], "weight": inputs["weight"].T.contiguous().T}
    options = {"cu_seqlens": BORDERS, "backend": backend}
    assert torch.equal(causal_conv1d(**strided, **options), causal_conv1d(**inputs, **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_width_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    narrow = {k: v.to(dtype) for k, v in make_inputs().items()}
    options = {"cu_seqlens": BORDERS, "activation": "silu", "return_final_state": True}
    y, final = causal_conv1d(**narrow, **options)
    wide, last = causal_conv1d(**{k: v.float() for k, v in narrow.items()}, **options)
    assert y.dtype == final.dtype == dtype
    assert torch.equal(y, wide.to(dtype))
    assert torch.equal(final, last.to(dtype))
    assert all(g.dtype == dtype for g in run(narrow, activation="silu"))


@pytest.mark.parametrize("backend", COMPILED)
def test_the_gate_is_finite_far_out(backend: str) -> None:
    x = torch.tensor([[-1e4], [-90.0], [0.0], [90.0], [1e4]]).requires_grad_()
    y = causal_conv1d(x, torch.ones(1, 1), activation="silu", backend=backend)
    y.sum().backward()
    torch.testing.assert_close(y.squeeze(1), torch.tensor([0.0, 0.0, 0.0, 90.0, 1e4]))
    assert x.grad is not None
    torch.testing.assert_close(x.grad.squeeze(1), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("absent", [(), ("bias", "initial_state")])
def test_the_operator_keeps_torchs_contract(backend: str, absent: tuple[str, ...]) -> None:
    inputs = make_inputs()
    given = {k: None if k in absent else v.requires_grad_() for k, v in inputs.items()}
    borders = BORDERS.to(torch.int32)
    arguments = (given["x"], given["weight"], given["bias"], borders, given["initial_state"])
    for final in (False, True):
        opcheck(causal_conv1d_op, (*arguments, "silu", True, final, backend))


def test_a_compiled_model_sees_one_operator_and_gives_the_same() -> None:
    # Alone, because the shape checks that tests wrap around every function can't be traced.
    script = """
import torch
from tsfm.kernels.causal_conv import causal_conv1d

borders, graphs = torch.tensor([0, 1, 20, 60]), []

def model(*leaves):
    x, weight, bias, initial = leaves
    return causal_conv1d(x, weight, bias, cu_seqlens=borders, initial_state=initial,
                         activation="silu", return_final_state=True)

def keep(graph, _):
    graphs.append(graph)
    return graph.forward

def run(form):
    torch.manual_seed(0)
    leaves = [torch.randn(s, requires_grad=True) for s in ((60, 8), (8, 4), (8,), (3, 8, 3))]
    y, final = form(*leaves)
    (y.sum() + (final * final).sum()).backward()
    return [y, final, *(leaf.grad for leaf in leaves)]

torch.compile(model, fullgraph=True, backend=keep)(*run(lambda *leaves: model(*leaves))[2:])
operators = [node for node in graphs[0].graph.nodes if "tsfm" in str(node.target)]
assert len(operators) == 1, operators
traced = run(torch.compile(model, fullgraph=True, backend="aot_eager"))
assert all(torch.equal(a, b) for a, b in zip(run(model), traced, strict=True))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("change", "code", "place"),
    [
        ({"x": torch.zeros(301)}, "wrong_shape", "x"),
        ({"x": torch.zeros(0, 21)}, "wrong_shape", "x"),
        ({"weight": torch.zeros(4, 21)}, "wrong_shape", "weight"),
        ({"weight": torch.zeros(21, 0)}, "wrong_shape", "weight"),
        ({"bias": torch.zeros(4)}, "wrong_shape", "bias"),
        ({"initial_state": torch.zeros(7, 21, 4)}, "wrong_shape", "initial_state"),
        ({"initial_state": torch.zeros(6, 21, 3)}, "wrong_shape", "initial_state"),
        ({"x": torch.zeros(301, 21, dtype=torch.int64)}, "wrong_type", "x"),
        ({"bias": torch.zeros(21, device="meta")}, "wrong_device", "bias"),
        ({"activation": "relu"}, "unknown_activation", "activation"),
        ({"backend": "fast"}, "unknown_backend", "backend"),
        ({"backend": "cuda"}, "backend_without_type", "backend"),
        ({"cu_seqlens": torch.tensor([0, 5, 3, 301])}, "bad_cu_seqlens", "cu_seqlens"),
        ({"cu_seqlens": torch.tensor([0, 5, 300])}, "bad_cu_seqlens", "cu_seqlens"),
        ({"cu_seqlens": torch.tensor([0.0, 301.0])}, "bad_cu_seqlens", "cu_seqlens"),
        ({"x": torch.zeros(7, 43, 21)}, "bad_cu_seqlens", "cu_seqlens"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], code: str, place: str) -> None:
    given: dict[str, Any] = {**make_inputs(), "cu_seqlens": BORDERS, **change}
    with pytest.raises(InputError) as caught:
        causal_conv1d(**given)
    assert (caught.value.code, caught.value.place) == (code, place)


def test_float64_has_no_compiled_backend() -> None:
    with pytest.raises(InputError, match="float64"):
        causal_conv1d(torch.zeros(3, 1).double(), torch.ones(1, 2).double(), backend="numba")
