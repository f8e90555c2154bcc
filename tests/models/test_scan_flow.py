"""Between events the scan's state flows in closed form, as the scan itself would take it."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from tsfm.errors import InputError
from tsfm.kernels.selective_scan import selective_scan
from tsfm.models.ode_flow import Solver, solve_flow
from tsfm.models.scan_flow import scan_flow

ROWS, CHANNELS, N_STATE = 3, 5, 4


def make_state(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(ROWS, CHANNELS, N_STATE, generator=generator, dtype=torch.float64)
    A = -torch.exp(torch.randn(CHANNELS, N_STATE, generator=generator, dtype=torch.float64))
    gap_rate = torch.logspace(-4, 0, CHANNELS, dtype=torch.float64)
    return h.to(dtype), A.to(dtype), gap_rate.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hours", [0.0, 1e-4, 0.5, 9.0, 1000.0])
def test_the_flow_is_the_scan_of_a_token_without_input(hours: float, dtype: torch.dtype) -> None:
    h, A, gap_rate = make_state(dtype)
    nothing = torch.zeros(ROWS, CHANNELS, dtype=dtype)
    gate = torch.ones(ROWS, N_STATE, dtype=dtype)
    y, expected = selective_scan(
        nothing, nothing, A, gate, gate,
        gap=torch.full((ROWS,), hours, dtype=dtype), gap_rate=gap_rate, input="impulse",
        cu_seqlens=torch.arange(ROWS + 1), initial_state=h, return_final_state=True,
    )  # fmt: skip
    found = scan_flow(h, A, gap_rate, torch.full((ROWS, 1), hours, dtype=dtype))[:, 0]
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=200 * eps, atol=10 * eps)
    torch.testing.assert_close(found.sum(-1), y, rtol=200 * eps, atol=20 * eps)


def test_a_and_then_b_hours_are_a_plus_b_hours() -> None:
    h, A, gap_rate = make_state()
    a, b = torch.rand(2, ROWS, 1, dtype=torch.float64) * 50
    halfway = scan_flow(h, A, gap_rate, a)[:, 0]
    torch.testing.assert_close(
        scan_flow(halfway, A, gap_rate, b), scan_flow(h, A, gap_rate, a + b), rtol=1e-13, atol=1e-15
    )


def test_many_queries_in_any_order_are_as_one_by_one() -> None:
    h, A, gap_rate = make_state(torch.float32)
    hours = torch.rand(ROWS, 7) * 100
    together = scan_flow(h, A, gap_rate, hours)
    assert together.shape == (ROWS, 7, CHANNELS, N_STATE)
    for row in range(ROWS):
        for query in range(7):
            one = hours[row, query].view(1, 1)
            alone = scan_flow(h[row : row + 1], A, gap_rate, one)
            torch.testing.assert_close(together[row, query], alone[0, 0], rtol=1e-6, atol=1e-7)


def test_after_no_time_the_state_is_the_same_bit_for_bit() -> None:
    h, A, gap_rate = make_state(torch.float32)
    assert torch.equal(scan_flow(h, A, gap_rate, torch.zeros(ROWS, 2))[:, 1], h)


def test_back_in_time_and_forth_again_is_nothing() -> None:
    h, A, gap_rate = make_state()
    hours = torch.full((ROWS, 1), 3.0, dtype=torch.float64)
    before = scan_flow(h, A, gap_rate, -hours, allow_negative=True)[:, 0]
    torch.testing.assert_close(scan_flow(before, A, gap_rate, hours)[:, 0], h)


def test_first_and_second_derivatives_are_right() -> None:
    h, A, gap_rate = make_state()
    hours = torch.tensor([[0.0, 0.5], [9.0, 2.0], [1.0, 30.0]], dtype=torch.float64)
    leaves = tuple(x.requires_grad_() for x in (h, A, gap_rate, hours))

    def flow(*given: Tensor) -> Tensor:
        return scan_flow(*given, allow_negative=True)  # finite differences look around 0

    assert torch.autograd.gradcheck(flow, leaves)
    assert torch.autograd.gradgradcheck(flow, leaves, atol=1e-4)


def test_a_forgotten_state_is_zero_with_finite_gradients() -> None:
    h, A, gap_rate = make_state(torch.float32)
    leaves = [x.requires_grad_() for x in (h, A, gap_rate, torch.full((ROWS, 1), 1e9))]
    found = scan_flow(*leaves)
    assert not found.any()
    found.sum().backward()
    assert all(x.grad is not None and bool(x.grad.isfinite().all()) for x in leaves)


def test_the_solver_comes_to_the_same_state() -> None:
    h, A, gap_rate = make_state()
    hours = torch.tensor([0.5, 4.0, 12.0], dtype=torch.float64)
    rates = (A * gap_rate[:, None]).flatten()
    solver = Solver("dopri5", rtol=1e-10, atol=1e-12)
    solved = solve_flow(lambda t, x: rates * x, h.flatten(1), hours, solver=solver)
    closed = scan_flow(h, A, gap_rate, hours[:, None])[:, 0]
    torch.testing.assert_close(solved.view_as(closed), closed, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("changed", "place", "code"),
    [
        ({"hours": torch.tensor([[1.0], [-1e-9], [0.0]])}, "hours", "negative_interval"),
        ({"hours": torch.tensor([[1.0], [torch.nan], [0.0]])}, "hours", "interval_not_finite"),
        ({"hours": torch.tensor([[1.0], [torch.inf], [0.0]])}, "hours", "interval_not_finite"),
        ({"hours": torch.ones(1, 2)}, "hours", "wrong_shape"),
        ({"A": torch.ones(1, N_STATE)}, "A", "wrong_shape"),
        ({"gap_rate": torch.ones(1)}, "gap_rate", "wrong_shape"),
    ],
)
def test_what_can_not_be_flown_is_named(changed: dict[str, Tensor], place: str, code: str) -> None:
    h, A, gap_rate = make_state(torch.float32)
    given = {"h": h, "A": A, "gap_rate": gap_rate, "hours": torch.ones(ROWS, 1), **changed}
    with pytest.raises(InputError) as caught:
        # As users call it: in tests shapes are checked before.
        inspect.unwrap(scan_flow)(**given)
    assert (caught.value.place, caught.value.code) == (place, code)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_in_half_width_are_computed_with_in_float32(dtype: torch.dtype) -> None:
    h, A, gap_rate = make_state(dtype)
    hours = torch.full((ROWS, 1), 70_000.0)  # beyond float16
    wide = scan_flow(h.float(), A.float(), gap_rate.float(), hours)
    assert torch.equal(scan_flow(h, A, gap_rate, hours), wide.to(dtype))
