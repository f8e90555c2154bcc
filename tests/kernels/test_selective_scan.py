"""The scan is right: against a float64 loop, an exact solution, and itself cut in pieces."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tsfm.errors import InputError
from tsfm.kernels import native_library
from tsfm.kernels.selective_scan import selective_scan

BORDERS = torch.tensor([0, 1, 37, 70, 131])
N_CHANNELS, N_STATE = 40, 8


def make_inputs(dtype: torch.dtype, n_tokens: int = 131, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "u": normal(n_tokens, N_CHANNELS),
        "delta": normal(n_tokens, N_CHANNELS),
        "A": -normal(N_CHANNELS, N_STATE).abs() - 0.05,
        "B": normal(n_tokens, N_STATE),
        "C": normal(n_tokens, N_STATE),
        "D": normal(N_CHANNELS),
        "z": normal(n_tokens, N_CHANNELS),
        "gap": normal(n_tokens).abs() * 5,
        "gap_rate": normal(N_CHANNELS).abs() * 0.3,
        "delta_bias": normal(N_CHANNELS),
    }


def run(backend: str, dtype: torch.dtype, **options: Any) -> list[torch.Tensor]:
    """Output, final state and all gradients of one weighted sum of both."""
    leaves = {k: v.requires_grad_() for k, v in make_inputs(dtype).items()}
    carried = N_STATE * (2 if options["input"] == "foh" else 1)
    state = torch.linspace(-1, 1, 4 * N_CHANNELS * carried, dtype=torch.float64)
    initial = state.view(4, N_CHANNELS, carried).to(dtype).requires_grad_()
    y, final = selective_scan(
        **leaves,
        delta_softplus=True,
        cu_seqlens=BORDERS,
        initial_state=initial,
        return_final_state=True,
        backend=backend,
        **options,
    )
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).to(dtype)
    ((y * weights.view_as(y)).sum() + (final * initial.detach().flip(0)).sum()).backward()
    gradients = [leaf.grad for leaf in (*leaves.values(), initial)]
    assert all(g is not None for g in gradients)
    return [y.detach(), final.detach(), *(g for g in gradients if g is not None)]


def worst(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(
        float((f.double() - e).abs().max() / e.abs().max().clamp(min=1e-12))
        for f, e in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("kind", ["euler", "impulse", "zoh", "foh"])
@pytest.mark.parametrize("reverse", [False, True])
def test_chunked_form_equals_the_loop_with_all_gradients(kind: str, reverse: bool) -> None:
    expected = run("reference", torch.float64, input=kind, reverse=reverse)
    assert worst(run("torch", torch.float64, input=kind, reverse=reverse), expected) < 1e-12


@pytest.mark.skipif(not native_library.available(), reason="the C++ kernels are not built")
@pytest.mark.parametrize("kind", ["euler", "impulse", "zoh", "foh"])
@pytest.mark.parametrize("reverse", [False, True])
def test_cpp_equals_the_float64_loop_with_all_gradients(kind: str, reverse: bool) -> None:
    expected = run("reference", torch.float64, input=kind, reverse=reverse)
    assert worst(run("native", torch.float32, input=kind, reverse=reverse), expected) < 2e-6


@pytest.mark.parametrize("kind", ["euler", "impulse", "zoh"])
def test_numba_equals_the_float64_loop_with_all_gradients(kind: str) -> None:
    expected = run("reference", torch.float64, input=kind)
    assert worst(run("numba", torch.float32, input=kind), expected) < 2e-6


def test_the_same_input_gives_the_same_bits() -> None:
    first, second = (run("numba", torch.float32, input="impulse") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_packed_subject_is_the_subject_alone(backend: str) -> None:
    inputs = make_inputs(torch.float32)
    packed = selective_scan(**inputs, cu_seqlens=BORDERS, delta_softplus=True, backend=backend)
    whole = {"A", "D", "gap_rate", "delta_bias"}
    for start, end in zip(BORDERS[:-1].tolist(), BORDERS[1:].tolist(), strict=True):
        alone = {k: v if k in whole else v[start:end] for k, v in inputs.items()}
        y = selective_scan(**alone, delta_softplus=True, backend=backend)
        torch.testing.assert_close(packed[start:end], y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("cut", [1, 31, 32, 33, 100])
def test_a_scan_cut_in_two_goes_on_from_its_state(backend: str, cut: int) -> None:
    inputs = make_inputs(torch.float32)
    whole = {"A", "D", "gap_rate", "delta_bias"}
    options = {"delta_softplus": True, "input": "impulse", "return_final_state": True}
    y, final = selective_scan(**inputs, **options, backend=backend)
    head = {k: v if k in whole else v[:cut] for k, v in inputs.items()}
    tail = {k: v if k in whole else v[cut:] for k, v in inputs.items()}
    first, middle = selective_scan(**head, **options, backend=backend)
    second, last = selective_scan(**tail, **options, backend=backend, initial_state=middle)
    torch.testing.assert_close(torch.cat([first, second]), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, final, rtol=1e-5, atol=1e-5)


def test_a_batch_equals_its_packed_form() -> None:
    inputs = make_inputs(torch.float64, n_tokens=60)
    packed = selective_scan(**inputs, cu_seqlens=torch.tensor([0, 20, 40, 60]))
    whole = {"A", "D", "gap_rate", "delta_bias"}
    batched = {k: v if k in whole else v.view(3, 20, *v.shape[1:]) for k, v in inputs.items()}
    torch.testing.assert_close(selective_scan(**batched).flatten(0, 1), packed)


@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
def test_an_impulse_decays_in_real_time_as_the_exact_solution(backend: str) -> None:
    gaps = torch.tensor([0.0, 0.5, 3.0, 24.0, 8760.0])
    rate, decay = 0.01, -2.0
    u = torch.zeros(5, 1)
    u[0] = 1.0
    ones = torch.ones(5, 1)
    y = selective_scan(
        u, torch.zeros(5, 1), torch.tensor([[decay]]), ones, ones,
        gap=gaps, gap_rate=torch.tensor([rate]), input="impulse", backend=backend,
    )  # fmt: skip
    exact = torch.exp(decay * rate * torch.cumsum(gaps, 0)).unsqueeze(-1)
    torch.testing.assert_close(y, exact, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
def test_a_held_input_reaches_the_exact_solution_whatever_the_gaps(backend: str) -> None:
    # h' = A h + 1 from h(0) = 0: h(t) = (exp(A t) - 1) / A.
    gaps = torch.tensor([1e-6, 1e-3, 0.1, 2.0, 40.0, 1e5])
    A = torch.tensor([[-0.7]])
    ones = torch.ones(6, 1)
    y = selective_scan(
        ones, torch.zeros(6, 1), A, ones, ones,
        gap=gaps, gap_rate=torch.ones(1), input="zoh", backend=backend,
    )  # fmt: skip
    exact = torch.expm1(A * torch.cumsum(gaps.double(), 0).unsqueeze(-1).float()) / A
    torch.testing.assert_close(y, exact, rtol=2e-6, atol=0.0)


def test_a_rising_input_is_integrated_exactly() -> None:
    # h' = A h + t: h(t) = (exp(A t) - 1 - A t) / A^2.
    times = torch.tensor([0.0, 0.3, 0.31, 2.0, 9.0], dtype=torch.float64)
    gaps = torch.diff(times, prepend=times[:1])
    A = torch.tensor([[-0.4]], dtype=torch.float64)
    ones = torch.ones(5, 1, dtype=torch.float64)
    y = selective_scan(
        times.unsqueeze(-1), torch.zeros(5, 1, dtype=torch.float64), A, ones, ones,
        gap=gaps, gap_rate=torch.ones(1, dtype=torch.float64), input="foh",
    )  # fmt: skip
    x = A * times.unsqueeze(-1)
    torch.testing.assert_close(y, (torch.expm1(x) - x) / A**2, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_extreme_gaps_stay_finite_with_gradients(backend: str) -> None:
    inputs = {k: v.requires_grad_() for k, v in make_inputs(torch.float32).items()}
    with torch.no_grad():
        inputs["gap"].copy_(torch.logspace(-6, 7, 131))
    y = selective_scan(**inputs, delta_softplus=True, input="impulse", backend=backend)
    y.sum().backward()
    assert bool(torch.isfinite(y).all())
    assert all(bool(torch.isfinite(v.grad).all()) for v in inputs.values() if v.grad is not None)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"input": "trapezoid"}, "unknown_scan_input"),
        ({"backend": "fortran"}, "unknown_backend"),
        ({"cu_seqlens": torch.tensor([0, 5, 5, 131])}, "bad_cu_seqlens"),
        ({"cu_seqlens": torch.tensor([0, 130])}, "bad_cu_seqlens"),
        ({"gap_rate": None}, "missing_gap_rate"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], code: str) -> None:
    arguments: dict[str, object] = {**make_inputs(torch.float32), **change}
    with pytest.raises(InputError) as caught:
        selective_scan(**arguments)  # type: ignore[arg-type]
    assert caught.value.code == code
