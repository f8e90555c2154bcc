"""Phases in continuous time: exact at any epoch, unmoved by what follows, learnable."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from tsfm.errors import InputError
from tsfm.models.ct_rope import ContinuousTimeRotary, RotaryConfig, rotate

DAY = 86_400.0
NOW = 1.7e9
HEAD_DIM = 16


def make_rotary(head_dim: int = HEAD_DIM, **config: Any) -> ContinuousTimeRotary:
    return ContinuousTimeRotary(head_dim, RotaryConfig(**{"shortest_s": 0.001, **config}))


def frozen(head_dim: int = HEAD_DIM) -> ContinuousTimeRotary:
    return ContinuousTimeRotary(head_dim, RotaryConfig(learnable=False))


def make_heads(n: int, n_heads: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, n, n_heads, HEAD_DIM, generator=generator, dtype=torch.float64)
    return q.to(dtype), k.to(dtype)


def bursts() -> Tensor:
    """60 readings a minute apart, then 59 a day apart."""
    gaps = torch.tensor([60.0] * 59 + [DAY] * 59, dtype=torch.float64)
    return NOW + torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])


def scores(rotary: ContinuousTimeRotary, q: Tensor, k: Tensor, seconds: Tensor) -> Tensor:
    """Every query with every key, (head, query, key)."""
    turn = rotary(seconds, seconds[:1].expand_as(seconds), q.dtype)
    turned = [rotate(x, *turn) for x in (q, k)]
    return torch.einsum("qhc,khc->hqk", *turned) / HEAD_DIM**0.5


def circular(phase: Tensor) -> Tensor:
    """Distance from a whole number of turns, in radians."""
    return torch.atan2(phase.sin(), phase.cos()).abs()


def test_phases_are_those_of_exact_arithmetic_at_any_epoch() -> None:
    rotary = make_rotary()
    seconds = torch.tensor(
        [0.0, 0.004, -3.3, 123.456, NOW, NOW + 1e-3 / 7, -NOW + 0.1, 4e9 + 0.3],
        dtype=torch.float64,
    )
    frequency = torch.exp(rotary.log_frequency().detach())
    phase = rotary.phase(seconds, None)
    for t, row in zip(seconds.tolist(), phase, strict=True):
        for f, found in zip(frequency.tolist(), row.tolist(), strict=True):
            cycles = Fraction(f) * Fraction(t)
            exact = 2 * math.pi * float(cycles - round(cycles))
            assert abs(math.remainder(found - exact, 2 * math.pi)) < 1e-14


def test_what_is_cast_to_float32_is_the_reduced_phase() -> None:
    rotary = make_rotary()
    seconds = NOW + torch.arange(20, dtype=torch.float64) / 256
    phase = rotary.phase(seconds, None)
    assert float(phase.abs().max()) <= math.pi
    cosine, sine = rotary(seconds, None)
    assert cosine.dtype == sine.dtype == torch.float32
    torch.testing.assert_close(cosine, phase.cos().float(), rtol=0, atol=5e-7)
    torch.testing.assert_close(sine, phase.sin().float(), rtol=0, atol=5e-7)


@pytest.mark.parametrize("c", [1e9, -1e9, 1.0, 0.5**10])
def test_scores_do_not_change_when_the_clock_is_shifted(c: float) -> None:
    rotary, (q, k) = make_rotary(), make_heads(40)
    steps = torch.randint(1, 5000, (40,), generator=torch.Generator().manual_seed(1))
    seconds = (steps.double() / 1024).cumsum(0) ** 2  # a float64 holds every shifted one exactly
    seconds = (seconds * 1024).round() / 1024
    assert torch.equal((seconds + c) - c, seconds)
    before, after = scores(rotary, q, k, seconds), scores(rotary, q, k, seconds + c)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


def test_what_a_shift_costs_is_the_step_of_the_clock_and_no_more() -> None:
    rotary = make_rotary()
    seconds = torch.arange(500, dtype=torch.float64) * 0.004
    moved = rotary.phase(seconds + 1e9, None) - rotary.phase(torch.tensor([1e9]).double(), None)
    error = circular(moved - rotary.phase(seconds, None))
    clock_step_s = 2.0**-23  # of float64 near 1e9
    frequency = torch.exp(rotary.log_frequency().detach())
    assert bool((error <= 2 * math.pi * frequency * clock_step_s / 2 + 1e-12).all())


def test_later_points_leave_every_earlier_phase_as_it_is() -> None:
    rotary, seconds = make_rotary(), bursts()
    later = torch.cat([seconds, seconds[-1:] + 30 * 365 * DAY])
    assert torch.equal(rotary.phase(later, None)[:-1], rotary.phase(seconds, None))
    assert torch.equal(rotary.phase(later, later * 0)[:-1], rotary.phase(seconds, seconds * 0))


def test_the_reference_time_changes_no_phase() -> None:
    rotary, seconds = make_rotary(), bursts()
    phases = [rotary.phase(seconds, None)]
    phases += [rotary.phase(seconds, torch.full_like(seconds, t)) for t in (0.0, NOW, -3e9)]
    assert all(torch.equal(phase, phases[0]) for phase in phases)


def test_a_burst_and_what_follows_keep_phases_of_their_own() -> None:
    phase = frozen().phase(bursts(), None)
    apart = circular(phase.unsqueeze(0) - phase.unsqueeze(1)).amax(-1)
    assert float(apart.fill_diagonal_(math.pi).min()) > 0.5
    assert len(phase.float().unique(dim=0)) == 119


def test_times_with_equal_sums_have_different_phases() -> None:
    rotary = frozen()
    first = NOW + torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64)
    second = NOW + torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    assert float(first.sum()) == float(second.sum())
    one, other = rotary(first, None), rotary(second, None)
    assert torch.equal(one[0][0], other[0][0])
    assert float((one[0] - other[0])[1:].abs().max()) > 0.1


@pytest.mark.parametrize("head_dim", [4, 16, 64])
def test_the_periods_are_log_spaced_between_those_stated(head_dim: int) -> None:
    rotary = make_rotary(head_dim, shortest_s=0.002, longest_s=3e8)
    log_periods = -rotary.log_frequency().detach()
    assert torch.allclose(log_periods.exp()[[0, -1]], torch.tensor([0.002, 3e8]).double())
    torch.testing.assert_close(log_periods.diff(), log_periods.diff()[:1].expand(head_dim // 2 - 1))
    default = -ContinuousTimeRotary(head_dim, RotaryConfig()).log_frequency().detach()
    assert float(default[0].exp()) < 0.01
    assert float(default[-1].exp()) > 10 * 365 * DAY


def test_a_model_in_half_precision_has_the_same_frequencies() -> None:
    rotary = make_rotary()
    before = rotary.log_frequency().detach()
    assert torch.equal(rotary.to(torch.bfloat16).log_frequency(), before)
    q, _ = make_heads(3)
    turned = rotate(q.bfloat16(), *rotary(torch.arange(3).double(), None, torch.bfloat16))
    assert turned.dtype == torch.bfloat16


def test_turning_keeps_lengths_and_one_time_turns_nothing() -> None:
    rotary, (q, k) = make_rotary(), make_heads(30)
    turn = rotary(NOW + torch.arange(30).double() * 17.3, None)
    torch.testing.assert_close(rotate(q, *turn).norm(dim=-1), q.norm(dim=-1))
    at_once = scores(rotary, q, k, torch.full((30,), NOW, dtype=torch.float64))
    plain = torch.einsum("qhc,khc->hqk", q, k) / HEAD_DIM**0.5
    torch.testing.assert_close(at_once, plain, rtol=1e-5, atol=1e-5)


def loss_of_scores(rotary: ContinuousTimeRotary, seconds: Tensor, dtype: torch.dtype) -> Tensor:
    q, k = make_heads(len(seconds), dtype=dtype)
    n = len(seconds)
    hidden = scores(rotary, q, k, seconds).masked_fill(~torch.ones(n, n).tril().bool(), -math.inf)
    weights = torch.linspace(-1, 1, n, dtype=dtype).sin()
    return (hidden.softmax(-1) @ weights).square().sum()


def irregular(span_s: float) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return NOW + torch.rand(25, generator=generator, dtype=torch.float64).sort().values * span_s


@pytest.mark.parametrize(("shortest_s", "span_s"), [(0.001, 0.05), (0.001, 5.0), (1.0, 2e4)])
def test_gradients_of_the_log_frequencies_are_finite_differences(
    shortest_s: float, span_s: float
) -> None:
    rotary = make_rotary(shortest_s=shortest_s, learning_span_s=span_s).double()
    shift, seconds = rotary.log_frequency_shift, irregular(span_s)
    assert shift is not None
    with torch.no_grad():
        shift.add_(torch.linspace(-0.4, 0.3, len(shift), dtype=torch.float64))
    loss_of_scores(rotary, seconds, torch.float64).backward()
    step = 1e-5
    differences = torch.zeros_like(shift)
    with torch.no_grad():
        for pair in range(len(shift)):
            for sign in (1, -1):
                shift[pair] += sign * step
                loss = loss_of_scores(rotary, seconds, torch.float64)
                differences[pair] += sign * loss / (2 * step)
                shift[pair] -= sign * step
    assert shift.grad is not None
    assert int((shift.grad.abs() > 1e-4).sum()) >= 3
    torch.testing.assert_close(shift.grad, differences, rtol=1e-5, atol=1e-8)


def test_the_parameters_are_the_log_frequencies_in_units_of_their_own() -> None:
    rotary = make_rotary(learning_span_s=60.0).double()
    shift = rotary.log_frequency_shift
    assert shift is not None
    before = rotary.log_frequency().detach()
    with torch.no_grad():
        shift.fill_(1.0)
    turned = 2 * math.pi * before.exp() * (rotary.log_frequency().detach() - before) * 60.0
    fast = before.exp() > 1 / (2 * math.pi * 60.0)
    torch.testing.assert_close(turned[fast], torch.ones_like(turned[fast]), rtol=1e-3, atol=0)
    assert bool((turned[~fast] < 1.0).all())
    torch.testing.assert_close((rotary.log_frequency().detach() - before)[~fast], shift[~fast].data)


def test_gradients_in_float32_are_those_in_float64_after_fifty_years() -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        rotary = make_rotary(learning_span_s=5.0).double()
        loss_of_scores(rotary, irregular(5.0), dtype).backward()
        assert rotary.log_frequency_shift is not None
        found.append(rotary.log_frequency_shift.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-6)


def test_gradients_do_not_depend_on_the_reference_time() -> None:
    found = []
    for reference in (0.0, NOW, NOW + 2.0):
        rotary, seconds = make_rotary(learning_span_s=5.0).double(), irregular(5.0)
        q, k = make_heads(len(seconds), dtype=torch.float64)
        turn = rotary(seconds, torch.full_like(seconds, reference), torch.float64)
        score = torch.einsum("qhc,khc->hqk", *(rotate(x, *turn) for x in (q, k)))
        score.softmax(-1).square().sum().backward()
        assert rotary.log_frequency_shift is not None
        found.append(rotary.log_frequency_shift.grad)
    torch.testing.assert_close(found[1], found[2], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_frequencies_stay_positive_whatever_is_learnt() -> None:
    rotary = make_rotary(learning_span_s=1e6)
    optimizer = torch.optim.SGD(rotary.parameters(), lr=50.0)
    for _ in range(20):
        optimizer.zero_grad()
        loss_of_scores(rotary, irregular(5.0), torch.float32).backward()
        optimizer.step()
    shift = rotary.log_frequency_shift
    assert shift is not None
    assert bool(shift.any())
    with torch.no_grad():
        shift.add_(torch.tensor([-100.0, 100.0] * (HEAD_DIM // 4)))
    frequency = rotary.log_frequency().exp()
    assert bool((frequency > 0).all())
    assert bool(frequency.isfinite().all())


def test_a_frozen_bank_has_nothing_to_learn_and_is_the_bank_of_the_start() -> None:
    rotary = frozen()
    assert list(rotary.parameters()) == []
    assert rotary.state_dict() == {}
    learnable = ContinuousTimeRotary(HEAD_DIM, RotaryConfig())
    assert torch.equal(rotary.phase(bursts(), None), learnable.phase(bursts(), None))
    assert not rotary.phase(bursts(), bursts()).requires_grad
    assert learnable.phase(bursts(), bursts()).requires_grad


def test_times_in_float32_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        make_rotary().phase(torch.tensor([NOW]), None)
    assert (caught.value.code, caught.value.place) == ("wrong_dtype", "seconds")


@pytest.mark.parametrize(
    ("head_dim", "config", "code"),
    [
        (7, {}, "odd_head_dim"),
        (8, {"shortest_s": 0.0}, "bad_periods"),
        (8, {"shortest_s": 10.0, "longest_s": 1.0}, "bad_periods"),
        (8, {"longest_s": math.inf}, "bad_periods"),
        (8, {"learning_span_s": math.nan}, "bad_periods"),
    ],
)
def test_a_bank_that_cannot_be_is_refused(
    head_dim: int, config: dict[str, float], code: str
) -> None:
    with pytest.raises(InputError) as caught:
        make_rotary(head_dim, **config)
    assert caught.value.code == code
