"""MIRA in real time: each promise that the released code does not keep, and the training of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tsfm.errors import InputError
from tsfm.models.ct_rope import RotaryConfig
from tsfm.models.mira import MiraConfig, MiraModel

START_S = 1.7e9
HOUR_S, DAY_S = 3600.0, 86_400.0
LENGTHS = (9, 1, 30, 17)


def make_model(**changes: object) -> MiraModel:
    torch.manual_seed(0)
    sizes = {"n_layers": 2, "d_model": 32, "d_ff": 64, "ode_hidden": (32,), "rest_hours": 6.0}
    model = MiraModel(MiraConfig.tiny(**{**sizes, **changes})).eval()
    with torch.no_grad():  # every part away from its start, so that all of them tell
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["token_only", "sees_rate"])
def model(request: pytest.FixtureRequest) -> MiraModel:
    return make_model(sees_rate=request.param)


def make_series(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Values, times with gaps from seconds to hours, and borders of packed series."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    values = torch.randn(n, generator=generator)
    gaps = torch.exp(torch.randn(n, generator=generator, dtype=torch.float64) * 2) * 300
    seconds = torch.cat([START_S + part.cumsum(0) for part in gaps.split(lengths)])
    return values, seconds, borders(lengths)


def borders(lengths: tuple[int, ...]) -> Tensor:
    return F.pad(torch.tensor(lengths).cumsum(0), (1, 0))


def make_queries(seconds: Tensor, cu: Tensor, counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    asked = [
        end + (torch.rand(n, generator=generator, dtype=torch.float64) * 5 * HOUR_S).cumsum(0)
        for end, n in zip(seconds[cu[1:] - 1], counts, strict=True)
    ]
    return torch.cat(asked), borders(counts)


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def differ(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


@pytest.mark.parametrize(
    ("preset", "millions", "active_millions"),
    [("small", 42.6, 18.7), ("base", 113.4, 49.7), ("large", 453.3, 198.5)],
)
def test_the_presets_have_the_sizes_of_the_published_models(
    preset: str, millions: float, active_millions: float
) -> None:
    config = getattr(MiraConfig, preset)()
    model = MiraModel(replace(config, n_layers=1))  # all layers are alike
    layer = sum(p.numel() for p in model.layers.parameters())
    total = sum(p.numel() for p in model.parameters()) + (config.n_layers - 1) * layer
    expert = 3 * config.d_model * (config.d_ff // config.top_k)
    idle = config.n_layers * (config.n_experts - config.top_k) * expert
    assert total / 1e6 == pytest.approx(millions, abs=0.06)
    assert (total - idle) / 1e6 == pytest.approx(active_millions, abs=0.06)


def test_the_tiny_one_is_below_a_million() -> None:
    model = MiraModel(MiraConfig.tiny())
    assert 0.5e6 < sum(p.numel() for p in model.parameters()) <= 1e6


def test_only_queries_keys_and_values_and_the_ode_have_biases() -> None:
    named = {name for name, _ in make_model().named_parameters() if name.endswith("bias")}
    inside = [n for n in named if "attention." in n]
    assert {n.split(".")[-2] for n in inside} == {"query", "key", "value"}
    assert all(n.startswith("flow.") for n in named - set(inside))


# What is asked for tells (the released evaluation runs no ODE).


def test_a_prediction_depends_on_the_time_it_is_for(model: MiraModel) -> None:
    values, seconds, cu = make_series()
    soon, late = (model(values, seconds, cu, seconds + h * HOUR_S) for h in (0.1, 12.0))
    assert float((soon - late).detach().abs().min()) > 1e-5


def test_a_prediction_for_now_reads_the_state_as_it_is(model: MiraModel) -> None:
    values, seconds, cu = make_series()
    states, _ = model._encode(values, seconds, cu)
    assert torch.equal(model(values, seconds, cu, seconds), model.head(states).squeeze(-1))


# Every row has an interval of its own (there, the first row's serves all).


def test_points_with_different_intervals_are_as_alone(model: MiraModel) -> None:
    values, seconds, cu = make_series()
    hours = torch.rand(len(values), dtype=torch.float64) * 40
    hours[::5] = 0.0
    targets = seconds + hours * HOUR_S
    together = model(values, seconds, cu, targets)
    for start, end in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        part = slice(start, end)
        one = torch.tensor([0, end - start])
        alone = model(values[part], seconds[part], one, targets[part])
        assert_near(together[part], alone)


# The field of the ODE is bounded, whatever its weights (there, nothing bounds it).


def test_a_century_ahead_is_finite_and_bounded_whatever_the_weights() -> None:
    model = make_model()
    with torch.no_grad():
        for parameter in model.flow.parameters():
            parameter.mul_(1000)
    values, seconds, cu = make_series()
    states, _ = model._encode(values, seconds, cu)
    reach = max(float(states.detach().abs().max()), model.flow.config.reach)
    bound = reach * float(model.head.weight.detach().abs().sum())
    far = model(values, seconds, cu, seconds + 36_525 * DAY_S)
    assert float(far.detach().abs().max()) <= bound


def test_the_flow_needs_no_more_steps_than_it_is_given() -> None:
    model = make_model()
    h, hours = torch.randn(60, 32), torch.logspace(-4, 4, 60, dtype=torch.float64)
    coarse = model.flow(h, hours)
    model.flow.config = replace(
        model.flow.config, solver=replace(model.flow.config.solver, n_steps=128)
    )
    assert differ(coarse, model.flow(h, hours)) < 1e-3


# The cache (there, it counts the past twice and its keys would be stale).
@pytest.mark.parametrize("feed_back", [True, False])
def test_a_forecast_with_the_cache_is_one_without(model: MiraModel, feed_back: bool) -> None:
    values, seconds, cu = make_series()
    asked, cu_asked = make_queries(seconds, cu, (3, 0, 7, 1))
    found = model.forecast(values, seconds, cu, asked, cu_asked, feed_back=feed_back)
    for row, (start, end) in enumerate(zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True)):
        v, s = values[start:end], seconds[start:end]
        for place in range(int(cu_asked[row]), int(cu_asked[row + 1])):
            target = torch.cat([s[1:], asked[place : place + 1]])
            with torch.no_grad():
                told = model(v, s, torch.tensor([0, len(v)]), target)[-1:]
            assert_near(found[place : place + 1], told)
            if feed_back:
                v, s = torch.cat([v, told]), torch.cat([s, asked[place : place + 1]])


def test_each_point_is_read_once(model: MiraModel) -> None:
    """Contexts in one call, then a forecast a call of those that go on; the last is not read."""
    read: list[int] = []
    hook = model.embedding.register_forward_hook(lambda _, given, __: read.append(len(given[0])))
    values, seconds, cu = make_series()
    model.forecast(values, seconds, cu, *make_queries(seconds, cu, (3, 0, 4, 1)))
    hook.remove()
    assert read == [len(values), 2, 2, 1]


def test_a_series_without_queries_gets_none(model: MiraModel) -> None:
    values, seconds, cu = make_series()
    nothing = torch.zeros(len(LENGTHS) + 1, dtype=torch.int64)
    assert len(model.forecast(values, seconds, cu, seconds[:0], nothing)) == 0


# Nothing is normalised anew: what comes later changes nothing before it.


def test_appended_points_change_no_earlier_prediction(model: MiraModel) -> None:
    n, more = 48, 32
    values = torch.randn(n + more)
    hourly = START_S + torch.arange(n, dtype=torch.float64) * HOUR_S
    daily = hourly[-1] + torch.arange(1, more + 1, dtype=torch.float64) * DAY_S
    seconds = torch.cat([hourly, daily])
    targets = seconds + HOUR_S
    before = model(values[:n], seconds[:n], torch.tensor([0, n]), targets[:n])
    after = model(values, seconds, torch.tensor([0, n + more]), targets)
    assert_near(after[:n], before)
    values[n:] = 100.0
    assert_near(model(values, seconds, torch.tensor([0, n + more]), targets)[:n], before)


# The sampling rate is seen, and only differences of time count.


def test_the_same_values_at_250_hz_and_weekly_are_told_apart() -> None:
    for sees_rate in (False, True):
        model = make_model(sees_rate=sees_rate)
        values, cu = torch.randn(40), torch.tensor([0, 40])
        told, chosen = [], []
        for step_s in (0.004, 7 * DAY_S):
            seconds = START_S + torch.arange(40, dtype=torch.float64) * step_s
            told.append(model(values, seconds, cu, seconds))  # no flow: the decoder alone
            routings = model._encode(values, seconds, cu)[1]
            chosen.append(torch.cat([r.probabilities for r in routings]))
        assert differ(*told) > 1e-3
        assert differ(*chosen) > 1e-3


def test_a_router_that_sees_rates_knows_them_before_any_other_point() -> None:
    """By the token alone, a first layer's router tells a second point's gap by attention only."""
    seconds = START_S + torch.tensor([0.0, 60.0], dtype=torch.float64)
    values, cu = torch.tensor([0.0, 1.0]), torch.tensor([0, 2])
    later = seconds + torch.tensor([0.0, 3 * DAY_S], dtype=torch.float64)
    seen = make_model(sees_rate=True)
    with torch.no_grad():
        for layer in seen._decoder():
            layer.attention.out.weight.zero_()
    first, second = (seen._encode(values, s, cu)[1][0].probabilities for s in (seconds, later))
    assert differ(first[1], second[1]) > 1e-3
    assert torch.equal(first[0], second[0])


def test_another_origin_of_time_changes_nothing(model: MiraModel) -> None:
    values, seconds, cu = make_series()
    targets = seconds + HOUR_S
    moved = 2.0**22  # a power of two keeps the gaps exact
    found = model(values, seconds - moved, cu, targets - moved)
    assert_near(found, model(values, seconds, cu, targets), 1e-4)


# Bursts stay bursts (there, minutes beside days become ties).


def test_moving_a_reading_by_half_a_minute_within_a_burst_tells() -> None:
    model = make_model(rotary=RotaryConfig(30.0, 1e7, learnable=False))
    minutes = START_S + torch.arange(60, dtype=torch.float64) * 60
    days = minutes[-1] + torch.arange(1, 60, dtype=torch.float64) * DAY_S
    seconds, values = torch.cat([minutes, days]), torch.randn(119)
    moved = seconds.clone()
    moved[30] += 30
    cu = torch.tensor([0, 119])
    a, b = model(values, seconds, cu, seconds), model(values, moved, cu, moved)  # no flow
    assert torch.equal(a[:30], b[:30])
    assert differ(a[31:60], b[31:60]) > 1e-4


# No call sees the times of an earlier one (there, phases are kept under the sum of the times).


def test_times_of_one_sum_have_phases_of_their_own(model: MiraModel) -> None:
    values, cu = torch.randn(4), torch.tensor([0, 4])
    one = START_S + torch.tensor([0.0, 100.0, 200.0, 300.0], dtype=torch.float64)
    other = START_S + torch.tensor([0.0, 50.0, 250.0, 300.0], dtype=torch.float64)
    first = model(values, one, cu, one + 60)
    assert differ(model(values, other, cu, other + 60), first) > 1e-5
    assert torch.equal(model(values, one, cu, one + 60), first)


# Dense supervision (there, one target a window).


@pytest.mark.parametrize("sees_rate", [False, True])
def test_the_loss_is_that_of_every_point_but_the_first_of_each_series(sees_rate: bool) -> None:
    model = make_model(sees_rate=sees_rate, huber_delta=0.5)
    values, seconds, cu = make_series()
    pairs = torch.tensor([i for i in range(len(values) - 1) if i + 1 not in cu.tolist()])
    assert len(pairs) == len(values) - len(LENGTHS)
    targets = seconds.clone()
    targets[pairs] = seconds[pairs + 1]
    error = (model(values, seconds, cu, targets)[pairs] - values[pairs + 1]).abs()
    assert 0 < int((error > 0.5).sum()) < len(pairs)
    huber = torch.where(error <= 0.5, error.square() / 2, error / 2 - 0.125).mean()
    routings = model._encode(values, seconds, cu)[1]
    chosen = F.one_hot(torch.cat([r.experts for r in routings]), 8).float().mean((0, 1))
    balance = 8 * (chosen * torch.cat([r.probabilities for r in routings]).mean(0)).sum()
    assert_near(model.loss(values, seconds, cu), huber + 0.02 * balance)


def test_delta_and_weight_of_the_loss_are_the_papers() -> None:
    assert (MiraConfig.base().huber_delta, MiraConfig.base().balance_weight) == (2.0, 0.02)


def test_every_series_of_a_batch_counts_by_its_points(model: MiraModel) -> None:
    values, seconds, cu = make_series((12, 30))
    plain = make_model(sees_rate=model.config.sees_rate, balance_weight=0.0)
    parts = [
        plain.loss(values[a:b], seconds[a:b], torch.tensor([0, b - a]))
        for a, b in ((0, 12), (12, 42))
    ]
    mean = (11 * parts[0] + 29 * parts[1]) / 40
    assert_near(plain.loss(values, seconds, cu), mean)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_loss_reaches_every_parameter(top_k: int) -> None:
    model = make_model(sees_rate=True, top_k=top_k, d_ff=48, n_experts=3).train()
    model.loss(*make_series()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_gradients_of_frequencies_that_learn_are_finite() -> None:
    rotary = replace(MiraConfig.tiny().rotary, learnable=True)
    model = make_model(rotary=rotary).train()
    model.loss(*make_series()).backward()
    shifts = [p.grad for n, p in model.named_parameters() if n.endswith("log_frequency_shift")]
    assert len(shifts) == 2
    assert all(g is not None and bool(g.isfinite().all()) and bool(g.any()) for g in shifts)


def test_training_learns_a_sine_at_odd_times() -> None:
    torch.manual_seed(1)
    config = MiraConfig.tiny(n_layers=2, d_model=32, d_ff=64, ode_hidden=(32,), rest_hours=1.0)
    model = MiraModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    cu = torch.arange(5) * 40
    losses: list[float] = []
    for _ in range(40):
        gaps = torch.rand(4, 40, dtype=torch.float64) * HOUR_S
        hours = gaps.cumsum(1) / HOUR_S + torch.rand(4, 1) * 6
        values = 1.4 * torch.sin(2 * torch.pi * hours / 6).float().flatten()
        loss = model.loss(values, START_S + hours.flatten() * HOUR_S, cu)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


# Series of any lengths share a batch (there, only equal ones).


def test_the_order_of_the_series_is_of_no_account(model: MiraModel) -> None:
    values, seconds, cu = make_series()
    parts = torch.arange(len(values)).split(LENGTHS)
    order = torch.cat([parts[i] for i in (2, 0, 3, 1)])
    turned = model(values[order], seconds[order], borders((30, 9, 17, 1)), seconds[order] + 60)
    assert_near(turned, model(values, seconds, cu, seconds + 60)[order])


def test_inputs_stay_as_they_are(model: MiraModel) -> None:
    given = make_series()
    kept = [x.clone() for x in given]
    asked, cu_asked = make_queries(given[1], given[2], (2, 2, 2, 2))
    model.forecast(*given, asked, cu_asked)
    model.loss(*given)
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))


# What can't be used is refused.


def test_missing_values_are_refused(model: MiraModel) -> None:
    values, seconds, cu = make_series()
    values[3] = torch.nan
    with pytest.raises(InputError, match="not_finite"):
        model.loss(values, seconds, cu)


def test_targets_before_their_point_and_times_that_go_back_are_refused(model: MiraModel) -> None:
    values, seconds, cu = make_series()
    with pytest.raises(InputError, match="negative_interval"):
        model(values, seconds, cu, seconds - 1)
    with pytest.raises(InputError, match="bad_gap" if model.config.sees_rate else "negative_int"):
        model.loss(values, seconds.flip(0), torch.tensor([0, len(values)]))


def test_queries_out_of_order_or_of_another_batch_are_refused(model: MiraModel) -> None:
    values, seconds, cu = make_series()
    asked, cu_asked = make_queries(seconds, cu, (3, 1, 2, 4))
    with pytest.raises(InputError, match="unsorted_queries"):
        model.forecast(values, seconds, cu, asked[[1, 0, *range(2, 10)]], cu_asked)
    with pytest.raises(InputError, match="bad_cu_seqlens"):
        model.forecast(values, seconds, cu, asked, torch.tensor([0, 3, 4, 6, 9]))
    with pytest.raises(InputError, match="negative_interval"):
        model.forecast(values, seconds, cu, asked - 30 * DAY_S, cu_asked)


def test_single_points_teach_nothing_and_say_so(model: MiraModel) -> None:
    values, seconds, _ = make_series()
    with pytest.raises(InputError, match="no_targets"):
        model.loss(values, seconds, torch.arange(len(values) + 1))


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match="heads_do_not_divide"):
        MiraModel(MiraConfig.tiny(n_heads=3))
