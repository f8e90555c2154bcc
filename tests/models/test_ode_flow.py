"""The neural flow: rows do not touch, solvers agree with the exact flow, bounds are bounds."""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor

from tsfm.errors import InputError
from tsfm.models.ode_flow import (
    SILU_LIPSCHITZ,
    FlowConfig,
    OdeFlow,
    Solver,
    solve_flow,
    spectral_norm_bound,
)

WIDTH = 6
HOURS = torch.tensor([0.0, 1e-6, 0.5, 9.0, 1000.0], dtype=torch.float64)
STARTS = torch.tensor([4e5, 4.1e5, 0.25, 17.0, -3.0], dtype=torch.float64)
RK4, DOPRI5 = Solver("rk4"), Solver("dopri5")
TIGHT = Solver("dopri5", rtol=1e-10, atol=1e-12)


def make_flow(dtype: torch.dtype = torch.float64, **settings: Any) -> OdeFlow:
    """A flow whose weights want to be larger than they may."""
    torch.manual_seed(0)
    given = {"rest_hours": 12.0, "hidden": (8, 8), "periods_hours": (24.0, 168.0), **settings}
    flow = OdeFlow(FlowConfig(WIDTH, **given)).to(dtype)
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if "time" in name else 1.0))
    return flow


def make_state(n_rows: int = len(HOURS), dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n_rows, WIDTH, generator=generator, dtype=torch.float64).to(dtype)


@functools.cache
@torch.no_grad()
def exact_flow(periods: tuple[float, ...]) -> Tensor:
    """f as it is written, each row alone and over its own hours, by another method to 1e-9."""
    flow, rows = make_flow(periods_hours=periods), []
    given = flow.field.bounded_parameters()
    for row, dt, t0 in zip(make_state().split(1), HOURS, STARTS.split(1), strict=True):
        if dt == 0:
            rows.append(row)
            continue
        ends = torch.stack([dt * 0, dt])
        rows += torchdiffeq.odeint(
            lambda t, x, t0=t0: (flow.field.target(t0 + t, x, given) - x) / 12.0,
            row, ends, method="dopri8", rtol=1e-9, atol=1e-9, options={"step_t": ends},
        )[-1:]  # fmt: skip
    return torch.cat(rows)


@pytest.mark.parametrize("periods", [(), (24.0, 168.0)], ids=["autonomous", "by the hour"])
@pytest.mark.parametrize(
    ("solver", "atol"),
    [(RK4, 1e-5), (Solver(n_steps=64), 1e-7), (DOPRI5, 2e-5), (TIGHT, 1e-8)],
    ids=["rk4", "rk4 in more steps", "dopri5", "tight dopri5"],
)
@torch.no_grad()
def test_both_solvers_find_the_exact_flow(
    solver: Solver, atol: float, periods: tuple[float, ...]
) -> None:
    flow, h = make_flow(solver=solver, periods_hours=periods), make_state()
    exact = exact_flow(periods)
    torch.testing.assert_close(flow(h, HOURS, STARTS), exact, rtol=0, atol=atol)
    assert (exact[3] - h[3]).abs().max() > 0.1  # there is something to find


@pytest.mark.parametrize(("solver", "atol"), [(RK4, 1e-6), (DOPRI5, 2e-5)])
@torch.no_grad()
def test_a_row_among_others_is_the_row_alone(solver: Solver, atol: float) -> None:
    flow, h = make_flow(torch.float32, solver=solver), make_state(dtype=torch.float32)
    together = flow(h, HOURS, STARTS)
    for i in range(len(h)):
        one = slice(i, i + 1)
        alone = flow(h[one], HOURS[one], STARTS[one])
        torch.testing.assert_close(together[one], alone, rtol=0, atol=atol)


def test_a_hard_row_is_exact_among_a_thousand_easy_ones() -> None:
    rates = torch.full((1000, 1), 1e-3, dtype=torch.float64)
    rates[500] = 20.0
    found = solve_flow(
        lambda t, x: x.flip(1) * torch.tensor([[-1.0, 1.0]]) * rates,
        torch.ones(1000, 2, dtype=torch.float64), torch.ones(1000, dtype=torch.float64),
        solver=Solver("dopri5", rtol=1e-5, atol=1e-5),
    )  # fmt: skip
    angle = rates[500]
    exact = torch.cat([angle.cos() - angle.sin(), angle.cos() + angle.sin()])
    assert (found[500] - exact).abs().max() < 3e-4  # 20 time units of local errors of 1e-5


def test_dopri5_lands_on_the_end_instead_of_looking_back_from_beyond() -> None:
    asked: list[float] = []

    def turn(t: Tensor, x: Tensor) -> Tensor:
        asked.append(float(t.max()))
        return x.flip(1) * torch.tensor([[-1.0, 1.0]])

    solve_flow(turn, torch.ones(1, 2).double(), torch.tensor([7.0]), solver=DOPRI5)
    assert max(asked) <= 7.0
    assert asked[-1] == pytest.approx(7.0, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", [RK4, DOPRI5])
def test_no_time_is_the_identity_bit_for_bit(solver: Solver, dtype: torch.dtype) -> None:
    flow, h = make_flow(dtype, solver=solver), make_state(200, dtype)
    h[3] = 0.0
    dt = torch.zeros(200)
    dt[7] = 5.0
    found = flow(h, dt, torch.full((200,), 11.0))
    still = torch.arange(200) != 7
    assert torch.equal(found[still], h[still])
    assert not torch.equal(found[7], h[7])


def test_the_flow_starts_at_the_speed_of_the_field_even_from_no_time() -> None:
    for solver in (RK4, TIGHT):
        flow, h = make_flow(solver=solver), make_state(2)
        dt = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        flow(h, dt, STARTS[2:4])[:, 0].sum().backward()
        torch.testing.assert_close(dt.grad, flow.field(STARTS[2:4], h)[:, 0])


@pytest.mark.parametrize("solver", [Solver(n_steps=64), TIGHT], ids=["rk4", "dopri5"])
@torch.no_grad()
def test_a_and_then_b_hours_are_a_plus_b_hours(solver: Solver) -> None:
    flow, h = make_flow(solver=solver), make_state(4)
    a, b = torch.tensor([[0.3, 5.0, 0.0, 30.0], [2.0, 11.0, 4.0, 1.0]], dtype=torch.float64)
    t0 = STARTS[:4]
    halfway = flow(h, a, t0)
    torch.testing.assert_close(flow(halfway, b, t0 + a), flow(h, a + b, t0), rtol=0, atol=1e-6)
    # The clock counts: from the same hour again is another flow.
    assert (flow(halfway, b, t0) - flow(h, a + b, t0)).abs().max() > 1e-3


@pytest.mark.parametrize("decay", [0.0, 0.3], ids=["plain", "decay apart"])
@pytest.mark.parametrize("solver", [Solver(n_steps=200), TIGHT], ids=["rk4", "dopri5"])
def test_a_rotation_that_decays_is_solved_exactly(solver: Solver, decay: float) -> None:
    speed, rate = 1.5, 0.3
    dt = torch.tensor([0.0, 0.01, 1.0, 7.0], dtype=torch.float64)
    h = make_state(4)[:, :2]
    turn = torch.tensor([[0.0, -speed], [speed, 0.0]], dtype=torch.float64)
    found = solve_flow(
        lambda t, x: x @ turn.T - (rate - decay) * x, h, dt, decay_per_hour=decay, solver=solver
    )
    angle, size = speed * dt, torch.exp(-rate * dt)
    x, y = h.T
    exact = torch.stack(
        [size * (angle.cos() * x - angle.sin() * y), size * (angle.sin() * x + angle.cos() * y)], -1
    )
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_steps", [1, 5])
def test_rk4_is_exact_for_a_constant_target_after_any_time(n_steps: int) -> None:
    dt = torch.tensor([0.0, 1e-3, 1.0, 50.0, 1e3, 1e9], dtype=torch.float64)
    h, target = make_state(6), make_state(6).flip(0)
    found = solve_flow(
        lambda t, x: target / 6.0, h, dt, decay_per_hour=1 / 6.0, solver=Solver(n_steps=n_steps)
    )
    left = torch.exp(-dt / 6.0)[:, None]
    torch.testing.assert_close(found, left * h + (1 - left) * target, rtol=0, atol=1e-13)


def test_rk4_in_16_steps_is_close_for_the_slowest_state_of_the_default_coupling() -> None:
    coupling = FlowConfig(1, rest_hours=1.0).coupling
    dt = torch.logspace(-1, 4, 60, dtype=torch.float64)  # in time constants
    found = solve_flow(
        lambda t, x: coupling * x, torch.ones(60, 1).double(), dt, decay_per_hour=1.0, solver=RK4
    )
    assert (found[:, 0] - torch.exp(-(1 - coupling) * dt)).abs().max() < 1e-4


@pytest.mark.parametrize("coupling", [0.5, 0.9, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rk4_stays_within_reach_however_long_the_interval(
    coupling: float, dtype: torch.dtype
) -> None:
    flow = make_flow(dtype, coupling=coupling, reach=2.0, solver=Solver(n_steps=4))
    h = make_state(6, dtype).requires_grad_()
    dt = torch.tensor([1.0, 1e2, 1e4, 1e6, 1e12, 1e30])
    found = flow(h, dt, torch.zeros(6))
    assert found.abs().max() <= max(2.0, float(h.detach().abs().max())) * (1 + 1e-5)
    found.sum().backward()
    gradients = [h.grad, *(p.grad for p in flow.parameters())]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)


@torch.no_grad()
def test_dopri5_takes_no_more_steps_for_what_is_long_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flow, h = make_flow(solver=DOPRI5, periods_hours=()), make_state(1)
    calls: list[float] = []
    target = flow.field.target
    monkeypatch.setattr(flow.field, "target", lambda *a: calls.append(0.0) or target(*a))
    found, counted = [], []
    for hours in (1e3, 1e6, 1e12):
        calls.clear()
        found.append(flow(h, torch.tensor([hours])))
        counted.append(len(calls))
    assert max(counted) < 150
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=2e-5)


def gradients(solver: Solver) -> list[Tensor]:
    """Of h, both times and all parameters."""
    flow = make_flow(solver=solver)
    leaves = [make_state(4), HOURS[1:].clone(), STARTS[1:].clone()]
    leaves[1][3] = 30.0
    h, dt, t0 = (leaf.requires_grad_() for leaf in leaves)
    found = flow(h, dt, t0)
    found.mul(make_state(4).flip(0)).sum().backward()
    return [g for leaf in (h, dt, t0, *flow.parameters()) if (g := leaf.grad) is not None]


@pytest.mark.parametrize(
    "solver",
    [
        Solver(n_steps=64),
        Solver(n_steps=64, adjoint=True),
        Solver("dopri5", rtol=1e-6, atol=1e-8, adjoint=True),
    ],
    ids=["rk4", "rk4 adjoint", "dopri5 adjoint"],
)
def test_adjoint_and_direct_gradients_are_those_of_the_exact_flow(solver: Solver) -> None:
    expected, found = gradients(TIGHT), gradients(solver)
    assert len(expected) == len(found) == 3 + 7
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < 1e-4 * other.abs().max()


@pytest.mark.parametrize("coupling", [0.5, 0.9])
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_the_adjoint_retraces_what_is_long_forgotten(method: str, coupling: float) -> None:
    found = []
    for adjoint in (False, True):
        flow = make_flow(torch.float32, coupling=coupling, solver=Solver(method, adjoint=adjoint))
        h = make_state(dtype=torch.float32).requires_grad_()
        flow(h, torch.cat([HOURS[:-1], torch.tensor([1e6])]), STARTS).square().sum().backward()
        found.append([h.grad, *(p.grad for p in flow.parameters())])
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() < 5e-3 * other.abs().max()


@pytest.mark.parametrize("adjoint", [False, True])
def test_gradients_are_finite_differences(adjoint: bool) -> None:
    solver = Solver("dopri5", rtol=1e-9, atol=1e-11, adjoint=adjoint)
    flow = make_flow(solver=solver, hidden=(4,), periods_hours=(24.0,))
    names, weights = zip(*flow.named_parameters(), strict=True)
    h = make_state(2).requires_grad_()
    dt, t0 = torch.tensor([[0.5, 9.0], [3.0, 8.0]], dtype=torch.float64).requires_grad_()

    def run(h: Tensor, dt: Tensor, t0: Tensor, *given: Tensor) -> Tensor:
        named = dict(zip(names, given, strict=True))
        return torch.func.functional_call(flow, named, (h, dt, t0))

    assert torch.autograd.gradcheck(
        run, (h, dt, t0, *weights), eps=1e-5, atol=1e-6, rtol=1e-5, fast_mode=True
    )


@pytest.mark.parametrize("trained", [False, True])
def test_no_pair_of_states_drifts_faster_than_the_stated_constant(trained: bool) -> None:
    flow = make_flow(coupling=2.0, reach=50.0)
    if trained:  # towards the steepest field there is
        optimizer = torch.optim.SGD(flow.parameters(), lr=3.0)
        for _ in range(20):
            x = make_state(64)
            near = x + 1e-3 * make_state(64).flip(0)
            optimizer.zero_grad()
            (-(flow.field.target(STARTS[:1].expand(64), x) -
               flow.field.target(STARTS[:1].expand(64), near)).norm() * 1e3).backward()  # fmt: skip
            optimizer.step()
    before, after = make_state(4000), make_state(8000)[4000:]
    size = torch.logspace(-4, 2, 4000, dtype=torch.float64)[:, None]
    t = torch.linspace(0, 168, 4000, dtype=torch.float64)
    with torch.no_grad():
        apart = (size * after).norm(dim=1)
        field = (flow.field(t, before) - flow.field(t, before + size * after)).norm(dim=1) / apart
        there = flow.field.target(t, before) - flow.field.target(t, before + size * after)
        assert field.max() <= flow.config.lipschitz_per_hour
        assert (there.norm(dim=1) / apart).max() <= flow.config.coupling
        for matrix in flow.field.bounded_parameters()[:-1:2]:
            assert torch.linalg.matrix_norm(matrix, 2) <= 1.0
    slopes = torch.autograd.functional.jacobian(
        lambda x: flow.field.target(t[:1], x[None])[0], before[0]
    )
    assert torch.linalg.matrix_norm(slopes, 2) > (0.5 if trained else 0.05)  # not bounded idly


def test_the_constant_is_that_of_its_parts() -> None:
    config = FlowConfig(4, rest_hours=12.0, coupling=0.8)
    assert config.lipschitz_per_hour == pytest.approx(1.8 / 12)
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.silu(x).sum().backward()
    assert x.grad is not None
    assert 0 <= SILU_LIPSCHITZ - float(x.grad.max()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bound_of_a_norm_is_never_below_it_and_hardly_above(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(a, b, generator=generator) for a, b in ((1, 1), (3, 50), (64, 64))]
    matrices += [torch.eye(64), torch.linalg.qr(matrices[-1])[0], torch.ones(20, 7)]
    for matrix in matrices:
        for scale in (1e-8, 1.0, 1e8):
            scaled = matrix.to(dtype) * scale
            norm = torch.linalg.matrix_norm(scaled.double(), 2)
            assert norm <= spectral_norm_bound(scaled) <= norm * 64 ** (1 / 256) * 1.0001
    zero = torch.zeros(3, 4, dtype=dtype, requires_grad=True)
    spectral_norm_bound(zero).backward()
    assert zero.grad is not None
    assert not zero.grad.any()


def test_back_in_time_and_forth_again_is_nothing_where_it_is_allowed() -> None:
    h, dt = make_state(2), torch.tensor([3.0, 1.0], dtype=torch.float64)
    flow = make_flow(solver=TIGHT, allow_negative=True)
    before = flow(h, -dt, STARTS[:2])
    assert (before - h).abs().max() > 0.1
    torch.testing.assert_close(flow(before, dt, STARTS[:2] - dt), h, rtol=0, atol=1e-7)


def test_no_rows_flow_to_no_rows() -> None:
    none = torch.zeros(0, dtype=torch.float64)
    assert make_flow()(make_state(0), none, none).shape == (0, WIDTH)


@pytest.mark.parametrize(
    ("changed", "place", "code"),
    [
        ({"dt_hours": torch.tensor([1.0, -1e-9])}, "dt_hours", "negative_interval"),
        ({"dt_hours": torch.tensor([1.0, math.nan])}, "dt_hours", "interval_not_finite"),
        ({"dt_hours": torch.tensor([1.0, math.inf])}, "dt_hours", "interval_not_finite"),
        ({"dt_hours": torch.ones(1)}, "dt_hours", "wrong_shape"),
        ({"t0_hours": torch.ones(1)}, "t0_hours", "wrong_shape"),
        ({"t0_hours": torch.tensor([0.0, math.nan])}, "t0_hours", "interval_not_finite"),
        ({"h": torch.zeros(2, WIDTH, dtype=torch.bfloat16)}, "h", "wrong_type"),
        ({"decay_per_hour": -1.0}, "decay_per_hour", "bad_setting"),
        ({"h": torch.full((2, WIDTH), math.nan), "solver": DOPRI5}, "solver", "solver_gave_up"),
        ({"solver": Solver("dopri5", max_steps=2, rtol=1e-6)}, "solver", "solver_gave_up"),
    ],
)
def test_what_can_not_be_flown_is_named(changed: dict[str, Any], place: str, code: str) -> None:
    given = {"h": torch.ones(2, WIDTH), "dt_hours": torch.tensor([1.0, 40.0]), **changed}
    with pytest.raises(InputError) as caught:
        # As users call it: in tests shapes are checked before.
        inspect.unwrap(solve_flow)(lambda t, x: -x, **given)
    assert (caught.value.place, caught.value.code) == (place, code)


def test_a_flow_by_the_hour_wants_the_hour() -> None:
    with pytest.raises(InputError, match="missing_hours"):
        make_flow()(make_state(), HOURS)


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"rest_hours": 0.0}, "rest_hours"),
        ({"rest_hours": 1.0, "coupling": -0.1}, "coupling"),
        ({"rest_hours": 1.0, "reach": math.inf}, "reach"),
        ({"rest_hours": 1.0, "periods_hours": (24.0, 0.0)}, "periods_hours"),
    ],
)
def test_a_bound_that_is_none_is_named(settings: dict[str, Any], place: str) -> None:
    with pytest.raises(InputError) as caught:
        FlowConfig(4, **settings)
    assert caught.value.place == place


@pytest.mark.parametrize(
    ("settings", "place"),
    [({"method": "euler"}, "method"), ({"n_steps": 0}, "n_steps"), ({"atol": 0.0}, "atol")],
)
def test_a_solver_that_can_not_be_is_named(settings: dict[str, Any], place: str) -> None:
    with pytest.raises(InputError) as caught:
        Solver(**settings)
    assert caught.value.place == place
