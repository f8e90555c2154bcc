"""Hazards of many codes: the likelihood is exact, censoring counts, probabilities are those."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tsfm.errors import InputError
from tsfm.models.many_hazards import ManyHazards, quantile_edges

EDGES = (0.0, 2.0, 10.0, 50.0)


def make_head(n_codes: int = 3) -> ManyHazards:
    torch.manual_seed(0)
    head = ManyHazards(8, n_codes, edges_days=EDGES, rank=4)
    with torch.no_grad():
        head.task.normal_()
        head.bias.normal_().sub_(4)
    return head


def exponential(rate: float, n: int, until: float) -> tuple[Tensor, Tensor]:
    """Times of so many at a constant hazard, seen up to a day drawn for each."""
    days = torch.empty(n, 1).exponential_(rate)
    followed = torch.rand(n, 1) * until
    return torch.minimum(days, followed), days <= followed


def test_the_likelihood_is_that_of_a_loop_by_hand() -> None:
    head = make_head()
    log2_hazard = head(torch.randn(4, 8)).detach()
    days = torch.tensor([[0.5, 2.0, 70.0], [10.0, 0.0, 3.0], [50.0, 49.0, 1e3], [1.0, 9.0, 11.0]])
    is_event = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 1, 1], [1, 1, 0]]).bool()
    found = head.negative_log_likelihood(log2_hazard, days, is_event)
    for p in range(4):
        for k in range(3):
            total, here = 0.0, 0.0
            for b, start in enumerate(EDGES):
                end = EDGES[b + 1] if b + 1 < len(EDGES) else math.inf
                hazard = 2 ** float(log2_hazard[p, b, k])
                t = float(days[p, k])
                total += hazard * max(0.0, min(t, end) - start)
                if start < t <= end:
                    here = math.log(hazard)
            expected = total - (here if is_event[p, k] else 0.0)
            assert float(found[p, k]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_censored_time_says_only_that_nothing_happened() -> None:
    head = make_head()
    log2_hazard = head(torch.randn(2, 8)).detach()
    days = torch.tensor([[5.0, 60.0, 1.0], [1.0, 2.0, 3.0]])
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    found = head.negative_log_likelihood(log2_hazard, days, nothing)
    for horizon, p, k in ((5.0, 0, 0), (60.0, 0, 1), (3.0, 1, 2)):
        happened = head.probability(log2_hazard, horizon)[p, k]
        torch.testing.assert_close(torch.exp(-found[p, k]), 1 - happened, rtol=1e-4, atol=1e-6)


def test_the_density_integrates_to_the_probability() -> None:
    head = make_head(1)
    log2_hazard = head(torch.randn(1, 8)).detach()
    steps = 40_000
    days = ((torch.arange(steps) + 0.5) * 60 / steps).unsqueeze(1)
    nll = head.negative_log_likelihood(
        log2_hazard.expand(steps, -1, -1), days, torch.ones(steps, 1, dtype=torch.bool)
    )
    found = float(head.probability(log2_hazard, 60.0))
    assert float(torch.exp(-nll).sum() * 60 / steps) == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize("rate", [0.3, 0.01])
def test_the_rate_of_a_censored_exponential_is_recovered(rate: float) -> None:
    torch.manual_seed(0)
    days, is_event = exponential(rate, 20_000, until=100.0)
    head = ManyHazards(8, 1, edges_days=EDGES)
    head.set_rates(days, is_event)
    counted = torch.exp2(head.bias.detach()).squeeze(1)
    seen = head.exposure(days).sum((0, 2)) > 2000 / rate * 0.1
    torch.testing.assert_close(
        counted[seen], torch.full_like(counted, rate)[seen], rtol=0.2, atol=0
    )
    optimizer = torch.optim.LBFGS([head.bias], line_search_fn="strong_wolfe")
    with torch.no_grad():
        head.bias.fill_(-3.0)

    def loss() -> Tensor:
        optimizer.zero_grad()
        whole = head.bias.mean(0).expand_as(head.bias).expand(len(days), -1, -1)
        nll = head.negative_log_likelihood(whole, days, is_event).mean()
        nll.backward()
        return nll

    optimizer.step(loss)
    assert float(torch.exp2(head.bias.detach().mean())) == pytest.approx(rate, rel=0.05)


def test_what_is_censored_is_not_taken_for_an_event_that_never_comes() -> None:
    torch.manual_seed(0)
    head = ManyHazards(8, 1, edges_days=(0.0,))
    rates = []
    for until in (5.0, 1000.0):
        days, is_event = exponential(0.05, 20_000, until)
        head.set_rates(days, is_event)
        rates.append(float(torch.exp2(head.bias.detach())))
    assert rates[0] == pytest.approx(rates[1], rel=0.05)


def test_probabilities_lie_between_nought_and_one_and_rise_with_the_horizon() -> None:
    head = make_head()
    log2_hazard = head(torch.randn(20, 8)).detach() / 3 - 6
    found = torch.stack([head.probability(log2_hazard, h) for h in (0.01, 1.0, 2.0, 30.0, 365.0)])
    assert bool((found > 0).all())
    assert bool((found < 1).all())
    assert bool((found.diff(dim=0) > 0).all())


def test_at_once_nothing_happens_and_a_code_with_a_hazard_does_at_last() -> None:
    head = make_head()
    log2_hazard = head(torch.randn(2, 8)).detach()
    assert torch.equal(head.probability(log2_hazard, 0.0), torch.zeros(2, 3))
    assert torch.equal(head.probability(log2_hazard, math.inf), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("horizon", "elapsed"),
    [(-1.0, 0.0), (math.nan, 0.0), (1.0, -1.0), (1.0, math.nan), (1.0, math.inf)],
)
def test_a_time_before_the_prediction_is_no_horizon(horizon: float, elapsed: float) -> None:
    head = make_head()
    log2_hazard = head(torch.randn(2, 8)).detach()
    with pytest.raises(InputError) as caught:
        head.probability(log2_hazard, horizon, torch.tensor([0.0, elapsed]))
    assert caught.value.code == "bad_horizon"


def test_time_that_went_by_without_it_counts() -> None:
    head = make_head()
    log2_hazard = head(torch.randn(2, 8)).detach()
    elapsed = torch.tensor([1.0, 4.0])
    found = head.probability(log2_hazard, 7.0, elapsed)
    for p, e in enumerate(elapsed.tolist()):
        late, early = (head.probability(log2_hazard, h)[p] for h in (7.0 + e, e))
        torch.testing.assert_close(found[p], (late - early) / (1 - early), rtol=1e-4, atol=1e-6)


def test_an_untrained_head_knows_the_rates_and_nothing_else() -> None:
    head = ManyHazards(8, 2, edges_days=EDGES)
    head.set_rates(torch.full((50, 2), 20.0), torch.tensor([[True, False]]).expand(50, 2))
    found = head(torch.randn(5, 8)).detach()
    assert torch.equal(found, head.bias.detach().expand(5, -1, -1))
    assert (
        float(head.probability(found, 30.0)[0, 0])
        > 0.5
        > float(head.probability(found, 30.0)[0, 1])
    )


def test_states_and_codes_both_learn() -> None:
    head = make_head()
    hidden = torch.randn(6, 8, requires_grad=True)
    days, is_event = torch.rand(6, 3) * 60, torch.rand(6, 3) < 0.5
    head.negative_log_likelihood(head(hidden), days, is_event).sum().backward()
    for gradient in (hidden.grad, head.bins.weight.grad, head.task.grad, head.bias.grad):
        assert gradient is not None
        assert float(gradient.abs().sum()) > 0


def test_edges_are_quantiles_of_events_with_every_code_counted_alike() -> None:
    often = torch.arange(1, 1001).float() / 100  # up to ten days
    seldom = torch.full((1000,), math.nan)
    seldom[:10] = torch.linspace(100, 200, 10)
    days = torch.stack([often, seldom.nan_to_num(999.0)], 1)
    is_event = torch.stack([torch.ones(1000).bool(), seldom.isfinite()], 1)
    edges = quantile_edges(days, is_event, 4)
    assert edges[0] == 0
    assert edges[1] == pytest.approx(5, abs=0.1)
    assert edges[2] == pytest.approx(10, abs=0.1)
    assert 130 < edges[3] < 170
    assert quantile_edges(torch.ones(9, 1), torch.ones(9, 1).bool(), 4) == (0.0, 1.0)


def test_bins_without_events_or_order_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        ManyHazards(8, 2, edges_days=(0.0, 3.0, 3.0))
    assert caught.value.code == "bad_hazard_bins"
    with pytest.raises(InputError) as caught:
        quantile_edges(torch.ones(3, 1), torch.zeros(3, 1).bool(), 4)
    assert caught.value.code == "no_hazard_events"
