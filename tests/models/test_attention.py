"""Attention in continuous time: sequences do not meet, pace is seen, a cache changes nothing."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tsfm.errors import InputError
from tsfm.models.attention import AttentionConfig, CrossAttention, SelfAttention, attend_packed
from tsfm.models.ct_rope import RotaryConfig, rotate

DAY, NOW, D_MODEL = 86_400.0, 1.7e9, 64
BORDERS = torch.tensor([0, 1, 12, 15, 27, 39])  # 11 and 12 points share a block
N_TOKENS = 39
FORMS: dict[str, dict[str, Any]] = {
    "ours": {},
    "grouped": {"n_kv_heads": 2, "bias": True},
    "one_kv_head": {"n_kv_heads": 1},
    "frozen": {"rotary": RotaryConfig(learnable=False)},
}


def make_config(form: str = "ours", **changes: Any) -> AttentionConfig:
    return AttentionConfig(d_model=D_MODEL, n_heads=4, **FORMS[form], **changes)


def make_model(
    form: str = "ours", dtype: torch.dtype = torch.float32, **changes: Any
) -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(make_config(form, **changes)).eval().to(dtype)


def make_cross(form: str = "ours", dtype: torch.dtype = torch.float32) -> CrossAttention:
    torch.manual_seed(0)
    return CrossAttention(make_config(form)).eval().to(dtype)


def make_points(
    n: int = N_TOKENS, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Points with gaps from milliseconds to months, in 1/1024 s, some at the same time."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D_MODEL, generator=generator, dtype=dtype) * 2
    gaps = 10.0 ** (torch.rand(n, generator=generator, dtype=torch.float64) * 10 - 3)
    gaps[::7] = 0.0
    return x, NOW + ((gaps * 1024).round() / 1024).cumsum(0)


def plain_attention(
    model: SelfAttention | CrossAttention,
    query: tuple[Tensor, Tensor],
    past: tuple[Tensor, Tensor],
    causal: bool,
) -> Tensor:
    """One sequence, written out."""
    (x, t), (context, s) = query, past
    q = rotate(model.query(x).unflatten(-1, (4, -1)), *model.rotary(t, s[:1].expand_as(t), x.dtype))
    k = model.key(context).unflatten(-1, (model.n_kv_heads, -1))
    k = rotate(k, *model.rotary(s, s[:1].expand_as(s), x.dtype))
    v = model.value(context).unflatten(-1, (model.n_kv_heads, -1))
    k, v = (y.repeat_interleave(4 // model.n_kv_heads, 1) for y in (k, v))
    score = torch.einsum("qhc,khc->hqk", q, k) / model.head_dim**0.5
    if causal:
        later = torch.ones(len(x), len(x)).triu(1).bool()
        score = score.masked_fill(later, -torch.inf)
    return model.out(torch.einsum("hqk,khc->qhc", score.softmax(-1), v).flatten(1))


def relative(y: Tensor, to: Tensor) -> float:
    return float(((y - to).norm() / to.norm()).detach())


def spans(borders: Tensor) -> list[slice]:
    return [slice(a, b) for a, b in itertools.pairwise(borders.tolist())]


def gradients(model: torch.nn.Module, y: Tensor, *inputs: Tensor) -> list[Tensor]:
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype)
    return list(torch.autograd.grad((y * weights).sum(), [*inputs, *model.parameters()]))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_packed_sequences_are_each_alone_in_values_and_gradients(form: str, causal: bool) -> None:
    model = make_model(form, torch.float64, causal=causal)
    x, seconds = make_points(dtype=torch.float64)
    x.requires_grad_()
    packed = model(x, seconds, BORDERS)
    alone = [model(x[s], seconds[s]) for s in spans(BORDERS)]
    plain = [
        plain_attention(model, (x[s], seconds[s]), (x[s], seconds[s]), causal)
        for s in spans(BORDERS)
    ]
    expected = gradients(model, packed, x)
    for other in (torch.cat(alone), torch.cat(plain)):
        torch.testing.assert_close(other, packed, rtol=1e-9, atol=1e-10)
        for one, two in zip(gradients(model, other, x), expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("causal", [True, False])
def test_many_sequences_of_all_lengths_are_each_alone(causal: bool) -> None:
    model = make_model(causal=causal)
    lengths = torch.randint(1, 45, (60,), generator=torch.Generator().manual_seed(3))
    borders = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    x, seconds = make_points(int(borders[-1]))
    with torch.no_grad():
        alone = torch.cat([model(x[s], seconds[s]) for s in spans(borders)])
        torch.testing.assert_close(model(x, seconds, borders), alone, rtol=0, atol=1e-6)


def test_a_fourth_of_a_batch_at_most_is_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    model, padded = make_model(), []
    attend = torch.nn.functional.scaled_dot_product_attention

    def counting(q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        padded.append(q.shape[0] * q.shape[2])
        return attend(q, *args, **kwargs)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", counting)
    lengths = torch.arange(1, 70)
    borders = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    x, seconds = make_points(int(borders[-1]))
    model(x, seconds, borders)
    assert len(x) < sum(padded) < 1.25 * len(x)
    assert len(padded) < 25


def test_sequences_of_one_length_are_each_alone() -> None:
    model, (x, seconds) = make_model(), make_points()
    borders = torch.tensor([0, 13, 26, 39])
    alone = torch.cat([model(x[s], seconds[s]) for s in spans(borders)])
    torch.testing.assert_close(model(x, seconds, borders), alone, rtol=0, atol=1e-6)


def test_nothing_odd_in_a_sequence_gets_into_another() -> None:
    model, (x, seconds) = make_model(causal=False), make_points()
    before = model(x, seconds, BORDERS)
    x[0], x[12:15] = torch.nan, torch.inf
    after = model(x, seconds, BORDERS)
    untouched = torch.ones(N_TOKENS, dtype=torch.bool)
    untouched[[0, 12, 13, 14]] = False
    torch.testing.assert_close(after[untouched], before[untouched], rtol=0, atol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_a_shift_of_the_clock_changes_nothing(causal: bool) -> None:
    model, (x, seconds) = make_model(causal=causal), make_points()
    assert torch.equal((seconds - NOW + 1e9) - 1e9, seconds - NOW)
    before = model(x, seconds - NOW, BORDERS)
    torch.testing.assert_close(model(x, seconds - NOW + 1e9, BORDERS), before, rtol=0, atol=1e-5)


def test_points_that_are_appended_change_no_earlier_output() -> None:
    model, (x, seconds) = make_model(), make_points()
    whole = model(x, seconds)
    for n in (1, 2, 7, 20, 38):
        torch.testing.assert_close(model(x[:n], seconds[:n]), whole[:n], rtol=0, atol=1e-6)


def test_no_point_sees_a_later_one_even_if_it_is_dated_before() -> None:
    model, (x, seconds) = make_model(), make_points()
    before = model(x, seconds, BORDERS)
    x[20:], seconds[20:] = -x[20:], seconds[20:] - 5 * DAY
    after = model(x, seconds, BORDERS)
    torch.testing.assert_close(after[:20], before[:20], rtol=0, atol=1e-6)
    assert float((after[20:] - before[20:]).detach().abs().max()) > 0.1


def test_the_same_values_at_250_hz_and_by_the_week_are_not_the_same() -> None:
    model, (x, _) = make_model(), make_points()
    steps = torch.arange(N_TOKENS, dtype=torch.float64)
    fast, weekly = model(x, NOW + steps * 0.004), model(x, NOW + steps * 7 * DAY)
    assert relative(weekly, fast) > 0.2
    # No unit of time is taken off a regular series: twice the rate is another series as well.
    assert relative(model(x, NOW + steps * 0.008), fast) > 0.05


def bursts(n: int) -> Tensor:
    """A stay of minute readings, then daily ones, then a second burst at 250 Hz."""
    gaps = torch.tensor([60.0, DAY, 0.004], dtype=torch.float64).repeat_interleave(n // 3)
    return NOW + gaps.cumsum(0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("times", ["irregular", "bursts"])
def test_decoding_from_a_cache_is_encoding_the_whole(form: str, times: str) -> None:
    model, (x, seconds) = make_model(form), make_points()
    seconds = bursts(N_TOKENS) if times == "bursts" else seconds
    cache = model.new_cache(1)
    decoded = torch.cat(
        [model.extend(x[i : i + 1], seconds[i : i + 1], cache) for i in range(N_TOKENS)]
    )
    torch.testing.assert_close(decoded, model(x, seconds), rtol=0, atol=1e-5)
    assert cache.lengths.tolist() == [N_TOKENS]


def test_sequences_of_many_lengths_go_on_together_by_stretches_and_by_points() -> None:
    model = make_model("grouped")
    rows = [make_points(n, seed=n) for n in (9, 30, 4, 14)]
    whole = [model(*row) for row in rows]
    cache, held = model.new_cache(4), [0, 0, 0, 0]
    plan = [(3, 12, 1, 1), (1, 1, 1, 1), (2, 0, 0, 9), (1, 1, 1, 1), (0, 0, 1, 0), (2, 16, 0, 2)]
    for added in plan:
        parts = [slice(h, h + n) for h, n in zip(held, added, strict=True)]
        x, seconds = (
            torch.cat([row[i][part] for row, part in zip(rows, parts, strict=True)]) for i in (0, 1)
        )
        borders = None if set(added) == {1} else torch.tensor([0, *itertools.accumulate(added)])
        found = model.extend(x, seconds, cache, borders)
        expected = torch.cat([y[part] for y, part in zip(whole, parts, strict=True)])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        held = [h + n for h, n in zip(held, added, strict=True)]
    assert cache.lengths.tolist() == held == [9, 30, 4, 14]


def test_a_cache_that_starts_with_empty_rows_is_the_whole() -> None:
    model, (x, seconds) = make_model(), make_points(8)
    cache = model.new_cache(3)
    found = model.extend(x, seconds, cache, torch.tensor([0, 0, 8, 8]))
    torch.testing.assert_close(found, model(x, seconds), rtol=0, atol=1e-5)
    assert bool(found.isfinite().all())
    assert cache.lengths.tolist() == [0, 8, 0]


def test_what_is_cached_stays_as_it_is_bit_for_bit() -> None:
    model, (x, seconds) = make_model(), make_points()
    cache = model.new_cache(1)
    model.extend(x[:20], seconds[:20], cache, torch.tensor([0, 20]))
    keys, values = cache.keys[:, :20].clone(), cache.values[:, :20].clone()
    for i in range(20, N_TOKENS):
        model.extend(x[i : i + 1], seconds[i : i + 1] + 1e8, cache)
    assert torch.equal(cache.keys[:, :20], keys)
    assert torch.equal(cache.values[:, :20], values)


def test_decoding_in_half_precision_is_encoding_in_it() -> None:
    model, (x, seconds) = make_model(), make_points()
    cache = model.new_cache(1)
    with torch.autocast("cpu", torch.bfloat16):
        decoded = torch.cat(
            [model.extend(x[i : i + 1], seconds[i : i + 1], cache) for i in range(N_TOKENS)]
        )
        whole = model(x, seconds)
    assert decoded.dtype == whole.dtype == torch.bfloat16
    torch.testing.assert_close(decoded, whole, rtol=0, atol=0.03)
    assert relative(whole.float(), model(x, seconds)) < 0.02


def test_forked_rows_go_their_own_ways() -> None:
    model, (x, seconds) = make_model(), make_points()
    cache = model.new_cache(2)
    model.extend(x[:12], seconds[:12], cache, torch.tensor([0, 5, 12]))
    forks = cache.rows(torch.tensor([1, 1, 0]))
    found = model.extend(x[20:23], seconds[20:23], forks)
    for row, (past, i) in enumerate([(slice(5, 12), 20), (slice(5, 12), 21), (slice(0, 5), 22)]):
        history = torch.cat([x[past], x[i : i + 1]]), torch.cat([seconds[past], seconds[i : i + 1]])
        torch.testing.assert_close(found[row], model(*history)[-1], rtol=0, atol=1e-5)
    assert cache.lengths.tolist() == [5, 7]
    later = model.extend(x[30:32], seconds[30:32], cache)
    history = torch.cat([x[:5], x[30:31]]), torch.cat([seconds[:5], seconds[30:31]])
    torch.testing.assert_close(later[0], model(*history)[-1], rtol=0, atol=1e-5)


def test_a_point_more_costs_one_pass_over_the_past() -> None:
    model = make_model()
    work = []
    for n in (200, 400):
        x, seconds = make_points(n + 2)
        cache = model.new_cache(1)
        model.extend(x[:n], seconds[:n], cache, torch.tensor([0, n]))
        model.extend(x[n : n + 1], seconds[n : n + 1], cache)  # makes room for the next
        room = cache.keys.data_ptr()
        with torch.profiler.profile(with_flops=True, record_shapes=True) as profile:
            model.extend(x[n + 1 :], seconds[n + 1 :], cache)
        assert cache.keys.data_ptr() == room
        sizes = [
            torch.Size(shape).numel()
            for event in profile.events() or ()
            for shape in event.input_shapes
            if shape and all(isinstance(side, int) for side in shape)
        ]
        work.append(max(sizes))
    assert work[1] <= 2.1 * work[0] <= 2.1 * 2 * 202 * D_MODEL


@pytest.mark.parametrize("form", FORMS)
def test_queries_at_times_of_their_own_see_their_context(form: str) -> None:
    model = make_cross(form, torch.float64)
    context, seconds = make_points(dtype=torch.float64)
    query, _ = make_points(22, torch.float64, seed=1)
    asked = torch.tensor([0, 1, 10, 10, 19, 22])  # the third sequence asks nothing
    last = seconds[BORDERS[1:] - 1].repeat_interleave(asked.diff())
    # Before the context, within it, and up to years after it.
    when = last + torch.linspace(-10 * DAY, 900 * DAY, 22, dtype=torch.float64)
    query.requires_grad_()
    context.requires_grad_()
    found = model(query, when, context, seconds, asked, BORDERS)
    plain = torch.cat(
        [
            plain_attention(model, (query[q], when[q]), (context[c], seconds[c]), causal=False)
            for q, c in zip(spans(asked), spans(BORDERS), strict=True)
            if q.stop > q.start
        ]
    )
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-10)
    for one, two in zip(
        gradients(model, found, query, context), gradients(model, plain, query, context),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-8)


def test_an_answer_depends_on_when_it_is_asked_for_and_on_no_other_question() -> None:
    model, (context, seconds) = make_cross(), make_points()
    query = make_points(1, seed=1)[0].expand(5, -1)
    when = seconds[-1] + torch.tensor([0.0, 1.0, 60.0, DAY, 365 * DAY], dtype=torch.float64)
    together = model(query, when, context, seconds)
    assert float(torch.pdist(together.detach()).min()) > 1e-3
    for i in range(5):
        alone = model(query[i : i + 1], when[i : i + 1], context, seconds)
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-6)
    moved = model(query, when - NOW + 1e9, context, seconds - NOW + 1e9)
    torch.testing.assert_close(moved, together, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_learns(form: str) -> None:
    x, seconds = make_points()
    hours = NOW + (seconds - NOW) / 1e3
    model, cross = make_model(form), make_cross(form)
    found = [model(x, hours, BORDERS), cross(x, hours + 60.0, x, hours, BORDERS, BORDERS)]
    for module, y in zip((model, cross), found, strict=True):
        for (name, _), gradient in zip(
            module.named_parameters(), gradients(module, y), strict=True
        ):
            assert gradient.abs().sum() > (0 if name != "key.bias" else -1), name
            assert gradient.isfinite().all(), name


@pytest.mark.parametrize("span_s", [0.1, 10 * DAY])
def test_fast_frequencies_do_not_drown_the_other_gradients(span_s: float) -> None:
    model = make_model(rotary=RotaryConfig(learning_span_s=span_s))
    x, _ = make_points()
    seconds = NOW + torch.linspace(0, span_s, N_TOKENS, dtype=torch.float64)
    of = dict(zip(dict(model.named_parameters()), gradients(model, model(x, seconds)), strict=True))
    assert float(of["rotary.log_frequency_shift"].norm()) < 10 * float(of["key.weight"].norm())


def test_dropout_acts_in_training_alone() -> None:
    model, (x, seconds) = make_model(dropout=0.5), make_points()
    assert torch.equal(model(x, seconds, BORDERS), model(x, seconds, BORDERS))
    model.train()
    assert not torch.equal(model(x, seconds, BORDERS), model(x, seconds, BORDERS))


def test_attention_without_times_is_softmax_of_products() -> None:
    q, k, v = torch.randn(3, 6, 2, 4, generator=torch.Generator().manual_seed(0)).unbind()
    borders = torch.tensor([0, 2, 6])
    found = attend_packed(q, k, v, borders, borders, causal=False)
    for s in spans(borders):
        weights = (torch.einsum("qhc,khc->hqk", q[s], k[s]) / 2.0).softmax(-1)
        expected = torch.einsum("hqk,khc->qhc", weights, v[s])
        torch.testing.assert_close(found[s], expected)


def test_what_does_not_fit_is_refused_and_leaves_the_cache_as_it_was() -> None:
    model, (x, seconds) = make_model(), make_points(4)
    cache = model.new_cache(2)
    refusals = {
        "bad_cu_seqlens": lambda: model(x, seconds, torch.tensor([0, 3])),
        "wrong_dtype": lambda: model.extend(x[:2], seconds[:2].float(), cache),
        "not_causal": lambda: make_model(causal=False).extend(x[:2], seconds[:2], cache),
    }
    for code, call in refusals.items():
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.code == code
    for borders in ([0, 4], [0, 3, 2], [0, 1, 3]):
        with pytest.raises(InputError) as caught:
            model.extend(x, seconds, cache, torch.tensor(borders))
        assert caught.value.code == "bad_cu_seqlens"
    assert cache.lengths.tolist() == [0, 0]


@pytest.mark.parametrize("sizes", [{"d_model": 18}, {"n_kv_heads": 3}, {"d_model": 12}])
def test_heads_that_do_not_divide_are_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        SelfAttention(AttentionConfig(**{"d_model": D_MODEL, "n_heads": 4, **sizes}))
    assert caught.value.code in {"heads_do_not_divide", "odd_head_dim"}
