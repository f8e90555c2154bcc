"""Experts are routed by frequency, give what a loop over tokens gives, and all stay in use."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tsfm.errors import InputError
from tsfm.models.experts import (
    BAND_LOOKBACK,
    LAGS,
    N_BAND_FEATURES,
    N_RATE_FEATURES,
    WINDOW,
    ExpertsConfig,
    FrequencyAwareExperts,
    Routing,
    band_energy,
    rate_features,
    switch_loss,
)

D_MODEL, N_TOKENS = 6, 40
BORDERS = torch.tensor([0, 1, 3, 60, 120])
FORMS = {
    "ours": {},
    "blind": {"sees_rate": False},
    "three": {"top_k": 3, "balance": "none"},
    "one": {"top_k": 1, "renormalise": False, "balance": "loss"},
    "all": {"n_experts": 3, "top_k": 3},
}
# Hours between points: 250 Hz, minutes, hours, weeks.
GAPS = torch.tensor([1 / 900_000, 1 / 60, 1.0, 168.0])


def make_layer(**changes: object) -> FrequencyAwareExperts:
    torch.manual_seed(0)
    sizes = {"d_model": D_MODEL, "d_expert": 5, "d_shared": 7, **changes}
    layer = FrequencyAwareExperts(ExpertsConfig(**sizes)).double()  # pyright: ignore[reportArgumentType]
    layer.balance_bias.copy_(torch.randn_like(layer.balance_bias) * 0.3)
    return layer


def make_series(seed: int = 0, n: int = 120) -> tuple[Tensor, Tensor]:
    """A walk with gaps from milliseconds to weeks, some of them nought."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, generator=generator, dtype=torch.float64).cumsum(0) / 4
    gaps = 10 ** (torch.rand(n, generator=generator, dtype=torch.float64) * 8 - 6)
    return values, torch.where(torch.rand(n, generator=generator) < 0.1, 0.0, gaps)


def swiglu(x: Tensor, gate_up: Tensor, out: Tensor) -> Tensor:
    gate, up = (x @ gate_up).chunk(2, -1)
    return (F.silu(gate) * up) @ out


def by_loop(layer: FrequencyAwareExperts, x: Tensor, rate: Tensor | None) -> Tensor:
    """The layer's formula, a token and an expert at a time."""
    config, outputs = layer.config, []
    for t in range(len(x)):
        logits = layer.router.weight @ x[t]
        if layer.rate_router is not None and rate is not None:
            logits = logits + layer.rate_router.weight @ rate[t] + layer.rate_router.bias
        score = logits.exp() / logits.exp().sum()
        wanted = logits + (layer.balance_bias if config.balance == "bias" else 0)
        best = sorted(range(config.n_experts), key=lambda i: -wanted[i].item())[: config.top_k]
        norm = sum(score[i] for i in best) if config.renormalise else 1.0
        y = sum(score[i] / norm * swiglu(x[t], layer.gate_up[i], layer.out[i]) for i in best)
        shared = swiglu(x[t], layer.shared.gate_up.weight.T, layer.shared.out.weight.T)
        outputs.append(y + torch.sigmoid(layer.shared_gate.weight[0] @ x[t]) * shared)
    return torch.stack(outputs)


@pytest.mark.parametrize("form", FORMS)
def test_grouped_experts_are_a_loop_over_tokens_in_values_and_gradients(form: str) -> None:
    layer = make_layer(**FORMS[form])
    x = torch.randn(N_TOKENS, D_MODEL, dtype=torch.float64, requires_grad=True)
    rate = torch.randn(N_TOKENS, N_RATE_FEATURES, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(N_TOKENS, D_MODEL, dtype=torch.float64)
    inputs = {"x": x, "rate": rate, **dict(layer.named_parameters())}
    grads = []
    for y in (layer(x, rate)[0], by_loop(layer, x, rate)):
        found = torch.autograd.grad((y * weights).sum(), list(inputs.values()), allow_unused=True)
        grads.append((y, *found))
    for name, found, expected in zip(["y", *inputs], *grads, strict=True):
        if found is None or expected is None:
            assert found is expected is None
            assert name == "rate"
            assert not layer.config.sees_rate
        else:
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12, msg=name)


def test_the_form_of_mira_is_miras_formula() -> None:
    torch.manual_seed(1)
    config = ExpertsConfig.mira(D_MODEL, 8)
    assert (config.n_experts, config.top_k, config.d_expert) == (8, 2, 4)
    layer = FrequencyAwareExperts(config).double()
    layer.balance_bias.fill_(1.0).neg_()[3] = 5.0  # not looked at
    x = torch.randn(N_TOKENS, D_MODEL, dtype=torch.float64)
    y, routing = layer(x)
    s = torch.softmax(x @ layer.router.weight.T, -1)
    kept = torch.where(s >= s.topk(2).values[:, 1:], s, 0.0)
    every = torch.stack([swiglu(x, layer.gate_up[i], layer.out[i]) for i in range(8)], 1)
    shared = swiglu(x, layer.shared.gate_up.weight.T, layer.shared.out.weight.T)
    expected = (kept.unsqueeze(-1) * every).sum(1)
    expected = expected + torch.sigmoid(x @ layer.shared_gate.weight.T) * shared
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    chosen_share = (kept > 0).double().sum(0) / (2 * N_TOKENS)
    torch.testing.assert_close(switch_loss([routing]), 8 * (chosen_share * s.mean(0)).sum())


def test_few_tokens_leave_experts_without_any() -> None:
    layer = make_layer()
    y, _ = layer(torch.randn(1, D_MODEL).double(), torch.randn(1, N_RATE_FEATURES).double())
    y.sum().backward()
    assert layer.gate_up.grad is not None
    assert int((layer.gate_up.grad.abs().sum((1, 2)) > 0).sum()) == 2
    empty, _ = layer(torch.zeros(0, D_MODEL).double(), torch.zeros(0, N_RATE_FEATURES).double())
    assert empty.shape == (0, D_MODEL)


def test_the_switch_loss_is_one_when_even_and_n_when_one_expert_takes_all() -> None:
    even = torch.eye(4).repeat(3, 1)
    one = torch.zeros(12, 4).index_fill(1, torch.tensor([2]), 1.0)
    losses = [switch_loss([Routing(p, p.argmax(-1, keepdim=True), p)]) for p in (even, one)]
    assert [float(loss) for loss in losses] == [1.0, 4.0]
    parts = [Routing(p, p.argmax(-1, keepdim=True), p) for p in even.split([5, 7])]
    assert float(switch_loss(parts)) == 1.0


def test_the_bias_moves_the_choice_and_not_the_weights() -> None:
    layer = make_layer(renormalise=False)
    x, rate = torch.randn(N_TOKENS, D_MODEL), torch.randn(N_TOKENS, N_RATE_FEATURES)
    with torch.no_grad():
        layer.balance_bias.fill_(0.0)[2] = 100.0
        routing = layer.route(x.double(), rate.double())
    assert bool((routing.experts[:, 0] == 2).all())
    torch.testing.assert_close(routing.weights, routing.probabilities.gather(-1, routing.experts))
    assert not bool((routing.weights[:, 0] >= routing.weights[:, 1]).all())


def test_the_balance_step_helps_the_seldom_chosen_and_counts_each_choice_once() -> None:
    layer = make_layer(n_experts=4)
    layer.balance_bias.zero_()
    x, rate = torch.randn(N_TOKENS, D_MODEL), torch.randn(N_TOKENS, N_RATE_FEATURES)
    _, routing = layer(x.double(), rate.double())
    used = torch.bincount(routing.experts.flatten(), minlength=4)
    assert torch.equal(layer.usage, used)
    layer.update_balance()
    step = layer.config.balance_rate * torch.sign(used.double().mean() - used)
    torch.testing.assert_close(layer.balance_bias, step - step.mean())
    before = layer.balance_bias.clone()
    layer.update_balance()  # nothing new was counted
    torch.testing.assert_close(layer.balance_bias, before)
    layer.eval()(x.double(), rate.double())
    assert torch.equal(layer.usage, used)
    assert not layer.balance_bias.requires_grad
    assert set(layer.state_dict()) - dict(layer.named_parameters()).keys() == {"balance_bias"}


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"top_k": 9}, "top_k"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 1}, "renormalise"),
        ({"balance": "luck"}, "balance"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes: dict[str, object], place: str) -> None:
    with pytest.raises(InputError) as caught:
        make_layer(**changes)
    assert caught.value.place == place


def test_a_router_that_sees_rates_asks_for_them() -> None:
    with pytest.raises(InputError) as caught:
        make_layer()(torch.zeros(2, D_MODEL).double())
    assert caught.value.code == "missing_rate"


def energy_by_loop(values: Tensor, gaps: Tensor) -> Tensor:
    """Features of one series from their definition; all values finite."""
    times = torch.cat([gaps.new_zeros(1), gaps[1:]]).cumsum(0).tolist()
    x, rows = values.tolist(), []
    for t in range(len(x)):
        energies, known = [], []
        for lag in LAGS:
            slopes, bends = [], []
            for s in range(max(t - WINDOW + 1, lag), t + 1):
                a, b, c = s, s - lag, s - 2 * lag
                slope = (x[a] - x[b]) / (times[a] - times[b])
                slopes.append((slope, times[a] - times[b]))
                if c >= 0:
                    earlier = (x[b] - x[c]) / (times[b] - times[c])
                    half = (times[a] - times[c]) / 2
                    bends.append(((slope - earlier) / half, half))
            for order, differences in ((1, slopes), (2, bends)):
                known.append(float(len(differences) > 0))
                if differences:
                    power = [(d**2 + (1e-4 / h**order) ** 2) * h for d, h in differences]
                    mean = sum(power) / sum(h for _, h in differences)
                    energies.append(math.log(mean) / 2 / order / 5)
                else:
                    energies.append(0.0)
        rows.append(energies + known)
    return torch.tensor(rows, dtype=values.dtype)


def test_band_energy_is_its_definition() -> None:
    values, gaps = make_series(n=60)
    gaps = gaps.clamp(min=0.01)
    found = band_energy(values, gaps)
    assert found.shape == (60, N_BAND_FEATURES)
    torch.testing.assert_close(found, energy_by_loop(values, gaps), rtol=1e-9, atol=1e-9)


def test_later_points_change_nothing_before_them() -> None:
    values, gaps = make_series()
    other_values, other_gaps = make_series(seed=1)
    whole = rate_features(values, gaps, BORDERS)
    for cut in (1, 2, 17, 61, 119):
        changed = rate_features(
            torch.cat([values[:cut], other_values[cut:] * 1e6]),
            torch.cat([gaps[:cut], other_gaps[cut:]]),
            BORDERS,
        )
        assert torch.equal(changed[:cut], whole[:cut])
        assert not torch.equal(changed[cut:], whole[cut:])


def test_features_of_a_packed_series_are_those_of_the_series_alone() -> None:
    values, gaps = make_series()
    packed = rate_features(values, gaps, BORDERS)
    assert packed.shape == (len(values), N_RATE_FEATURES)
    for a, b in zip(BORDERS[:-1].tolist(), BORDERS[1:].tolist(), strict=True):
        assert torch.equal(packed[a:b], rate_features(values[a:b], gaps[a:b]))


def test_a_stream_need_keep_no_more_than_the_lookback() -> None:
    values, gaps = make_series()
    last = rate_features(values, gaps)[-1]
    kept = slice(-BAND_LOOKBACK - 1, None)
    assert torch.equal(rate_features(values[kept], gaps[kept])[-1], last)
    fewer = slice(-BAND_LOOKBACK, None)
    assert not torch.equal(rate_features(values[fewer], gaps[fewer])[-1], last)


def test_the_same_values_at_250_hz_and_weekly_are_far_apart() -> None:
    values, _ = make_series()
    fast, slow = (
        band_energy(values, torch.full_like(values, float(gap))) for gap in (GAPS[0], GAPS[3])
    )
    known = fast[:, N_BAND_FEATURES // 2 :] == 1
    moved = (fast - slow)[:, : N_BAND_FEATURES // 2]
    expected = torch.where(known, math.log(float(GAPS[3] / GAPS[0])) / 5, 0.0).double()
    torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-9)
    assert float(moved.max()) > 3.7


@pytest.mark.parametrize("amplitude", [0.1, 30.0])
@pytest.mark.parametrize("hertz", [0.001, 10.0])
def test_bend_over_slope_is_the_frequency_of_a_sine(amplitude: float, hertz: float) -> None:
    per_hour = 2 * math.pi * hertz * 3600
    gap = 2 * math.pi / per_hour / WINDOW  # the window sees one period
    values = amplitude * torch.sin(torch.arange(100).double() * 2 * math.pi / WINDOW)
    slope, bend = band_energy(values, torch.full_like(values, gap))[-1, :2].tolist()
    attenuation = math.sin(math.pi / WINDOW) / (math.pi / WINDOW)  # of a difference of this span
    assert math.exp(10 * bend - 5 * slope) == pytest.approx(per_hour * attenuation, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_are_finite_whatever_the_series(dtype: torch.dtype) -> None:
    n = 50
    walk, gaps = (x.to(dtype) for x in make_series(n=n))
    broken = walk.clone()
    broken[::5], broken[1::7], broken[2::11] = math.nan, math.inf, -math.inf
    huge = walk * torch.finfo(torch.float32).max / walk.abs().max()
    for values in (torch.full_like(walk, 3.0), torch.zeros_like(walk), broken, huge, walk[:1]):
        for gap in (gaps, gaps * 0, torch.full_like(gaps, 1e-30), torch.full_like(gaps, 1e30)):
            found = rate_features(values, gap[: len(values)])
            assert found.dtype == dtype
            assert bool(found.isfinite().all())
    first = gaps.clone()
    first[0] = math.nan
    assert torch.equal(rate_features(walk, first), rate_features(walk, gaps))


def test_missing_values_and_one_moment_leave_no_trace_in_the_energy() -> None:
    values, gaps = make_series(n=4)
    gaps = torch.tensor([0.0, 1.0, 0.0, 2.0]).double()
    found = rate_features(values, gaps)
    assert found[:, 1].tolist() == [0, 1, 0, 1]  # a gap
    assert found[:, 2].tolist() == [0, 0, 1, 0]  # the same moment
    torch.testing.assert_close(found[3, 0], torch.tensor(math.log(2) / 5).double())
    energy = band_energy(values, gaps)
    values[1] = math.nan
    assert band_energy(values, gaps)[1].eq(0).all()
    assert torch.equal(energy[2], energy[1])


@pytest.mark.parametrize("gap", [-1.0, math.nan])
def test_a_gap_that_is_none_is_refused(gap: float) -> None:
    with pytest.raises(InputError) as caught:
        band_energy(torch.zeros(3), torch.tensor([0.0, gap, 1.0]))
    assert caught.value.place == "gap_hours"


class Trained(NamedTuple):
    informed: float
    shuffled: float
    share: Tensor
    loss: float


def mutual_information(a: Tensor, b: Tensor) -> float:
    """In nats, of two lists of small integers."""
    joint = F.one_hot(a, 8).double().T @ F.one_hot(b, 4).double() / len(a)
    alone = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    there = joint > 0
    return float((joint[there] * (joint[there] / alone[there]).log()).sum())


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices this small are slower on many, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def train(balance: str, *, sees_rate: bool = True) -> Trained:
    """A layer trained on four sampling rates whose values have one law and whose answers differ."""
    torch.manual_seed(0)
    d_model, n_series, length = 8, 16, 24
    embed, answer = torch.randn(2, d_model), torch.randn(4, d_model, d_model) / d_model**0.5
    layer = FrequencyAwareExperts(
        ExpertsConfig(d_model, 8, 8, sees_rate=sees_rate, balance=balance)
    )
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    kind = (torch.arange(n_series) % 4).repeat_interleave(length)
    borders = torch.arange(0, len(kind) + 1, length)
    informed, shuffled, losses = [], [], []
    before = layer.usage
    for step in range(200):
        values = torch.randn(n_series, length).cumsum(1).flatten() / length**0.5
        gaps = GAPS[kind] * (0.7 + 0.6 * torch.rand(len(kind)))
        x = torch.stack([values, torch.ones_like(values)], -1) @ embed
        rate = rate_features(values, gaps, borders) if sees_rate else None
        y, routing = layer(x, rate)
        loss = F.mse_loss(y, torch.einsum("td,tde->te", x, answer[kind]))
        penalty = 0.1 * switch_loss([routing]) if balance == "loss" else 0.0
        optimizer.zero_grad()
        (loss + penalty).backward()
        optimizer.step()
        layer.update_balance()
        if step == 149:
            before = layer.usage.clone()
        if step >= 190:
            first = routing.experts[:, 0]
            informed.append(mutual_information(first, kind))
            shuffled.append(mutual_information(first[torch.randperm(len(first))], kind))
            losses.append(loss.item())
    share = (layer.usage - before) / (layer.usage - before).sum()
    return Trained(sum(informed) / 10, sum(shuffled) / 10, share, sum(losses) / 10)


@pytest.mark.parametrize("balance", ["bias", "loss"])
def test_the_chosen_expert_tells_the_sampling_rate(balance: str) -> None:
    trained = train(balance)
    assert trained.informed > 10 * trained.shuffled
    assert trained.informed > 0.4 * math.log(4)


def test_without_the_rate_the_same_training_tells_nothing_and_fits_worse() -> None:
    seeing, blind = train("bias"), train("bias", sees_rate=False)
    assert blind.informed < 0.2 * seeing.informed
    assert seeing.loss < 0.5 * blind.loss


@pytest.mark.parametrize("balance", ["bias", "loss"])
def test_no_expert_starves_under_balance_though_some_do_without(balance: str) -> None:
    assert float(train(balance).share.min()) > 0.25 / 8
    assert float(train("none").share.min()) < 0.1 / 8
