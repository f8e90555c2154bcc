"""ETHOS's network and its futures: patients do not meet, and a cache changes nothing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsfm.errors import InputError, ModelMismatch
from tsfm.models.ethos import EthosConfig, EthosModel, load_gpt2_weights
from tsfm.models.ethos_cache import prefill, step
from tsfm.models.ethos_futures import (
    Ending,
    EthosFutures,
    FutureConfig,
    generate,
    outcome_shares,
)
from tsfm.tokens.ethos_tokens import EthosWindows
from tsfm.tokens.ethos_vocabulary import END_ID

WORDS, CONTEXT = 60, 48
BORDERS = torch.tensor([0, 1, 12, 15, 27, 40])
DEATH, ADMISSION, WAIT = 50, 51, 1
HOURS = np.zeros(WORDS)
HOURS[1:20] = np.linspace(0.5, 30.0, 19)


def make_model(context: int = CONTEXT, **changes: Any) -> EthosModel:
    """A model whose words differ much more than at the start of a training."""
    torch.manual_seed(0)
    sizes = {"d_model": 24, "n_layers": 2, "n_heads": 3, **changes}
    model = EthosModel(EthosConfig(WORDS, context, **sizes)).eval()
    for weight in model.parameters():
        weight.data.mul_(1.0 if weight.dim() == 1 else 8.0)
    return model


def make_tokens(n: int = 40, seed: int = 0) -> Tensor:
    return torch.randint(WORDS, (n,), generator=torch.Generator().manual_seed(seed))


def make_windows(lengths: tuple[int, ...] = (3, 17, 30), n_static: int = 2) -> EthosWindows:
    start = np.append(0, np.cumsum(lengths))
    token = make_tokens(int(start[-1]), seed=7).numpy().astype(np.int32)
    static = np.full(len(lengths), n_static, np.int64)
    return EthosWindows(token, start, static, np.arange(100, 100 + len(lengths)))


def spans(borders: Any) -> list[slice]:
    return [slice(a, b) for a, b in itertools.pairwise(borders.tolist())]


def one(tokens: Tensor) -> Tensor:
    return torch.tensor([0, len(tokens)])


def last_logits(model: EthosModel, tokens: Tensor) -> Tensor:
    return model.logits(model(tokens, one(tokens)))[-1:]


def draw(model: EthosModel, windows: EthosWindows, **changes: Any) -> EthosFutures:
    options: dict[str, Any] = {
        "stop": (DEATH,), "horizon_hours": 200.0, "n_futures": 6, "max_tokens": 30, "seed": 3,
        **changes,
    }  # fmt: skip
    return generate(model, windows, HOURS, FutureConfig(**options))


def futures_of(futures: EthosFutures) -> list[list[int]]:
    return [futures.token[s].tolist() for s in spans(futures.cu_seqlens)]


def oracle(model: EthosModel) -> nn.TransformerEncoder:
    """The same blocks as torch has them, with the model's weights."""
    size = model.config
    layer = nn.TransformerEncoderLayer(
        size.d_model, size.n_heads, 4 * size.d_model, 0.0, "gelu", norm_first=True, bias=False,
        batch_first=True,
    )  # fmt: skip
    norm = nn.LayerNorm(size.d_model, bias=False)
    encoder = nn.TransformerEncoder(layer, size.n_layers, norm, enable_nested_tensor=False).eval()
    state = {"norm.weight": model.norm.weight}
    names = {"norm_1": "norm1", "qkv": "self_attn.in_proj", "out": "self_attn.out_proj",
             "norm_2": "norm2", "up": "linear1", "down": "linear2"}  # fmt: skip
    for i, (ours, theirs) in itertools.product(range(size.n_layers), names.items()):
        joint = "_" if ours == "qkv" else "."
        weight = model.get_parameter(f"blocks.{i}.{ours}.weight")
        state[f"layers.{i}.{theirs}{joint}weight"] = weight
    encoder.load_state_dict(state)
    return encoder


def test_the_published_sizes_have_47_million_parameters() -> None:
    with torch.device("meta"):
        model = EthosModel(EthosConfig(4416))
    assert sum(weight.numel() for weight in model.parameters()) == 47_441_664


def test_loss_and_gradients_are_those_of_torchs_encoder() -> None:
    model, tokens = make_model(), make_tokens()
    target = torch.cat([tokens[1:], tokens[:1]])
    target[BORDERS[1:] - 1] = -100
    loss = model.loss(tokens, target, BORDERS)
    encoder, logits = oracle(model), []
    for span in spans(BORDERS):
        x = model.token.weight[tokens[span]] + model.position.weight[: span.stop - span.start]
        mask = nn.Transformer.generate_square_subsequent_mask(len(x))
        y = encoder(x.unsqueeze(0), mask=mask, is_causal=True)[0]
        logits.append(y @ model.token.weight.T)
    expected = F.cross_entropy(torch.cat(logits), target, ignore_index=-100)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    ours = model.blocks[0].get_parameter("up.weight").grad
    expected.backward()
    theirs = encoder.get_parameter("layers.0.linear1.weight").grad
    assert ours is not None
    assert theirs is not None
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_weights_of_gpt2_give_gpt2s_logits() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=CONTEXT, n_embd=24, n_layer=2, n_head=3,
        activation_function="gelu", initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(1)
    peer = transformers.GPT2LMHeadModel(config).eval()
    state = {}
    for name, weight in peer.state_dict().items():
        if name.endswith("bias"):
            assert not weight.any()  # as it starts, so that none may be left out
        elif any(part in name for part in ("c_attn", "c_proj", "c_fc")):
            state[name] = weight.T  # transformers keeps (in, out)
        else:
            state[name] = weight
    model = make_model()
    load_gpt2_weights(model, state)
    tokens = make_tokens(20)
    expected = peer(tokens.unsqueeze(0)).logits[0]
    logits = model.logits(model(tokens, one(tokens)))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def gpt2_state(model: EthosModel) -> dict[str, Tensor]:
    """A model's weights under the names of a compiled nanoGPT."""
    names = {"token.": "wte.", "position.": "wpe.", "blocks.": "h.", "norm_": "ln_",
             "norm.": "ln_f.", "qkv.": "attn.c_attn.", "out.": "attn.c_proj.",
             "up.": "mlp.c_fc.", "down.": "mlp.c_proj."}  # fmt: skip
    state = {}
    for name, weight in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[f"_orig_mod.transformer.{name}"] = weight
    state["_orig_mod.lm_head.weight"] = model.token.weight
    return state


def test_weights_of_nanogpt_are_taken_over_or_refused() -> None:
    model = make_model()
    state = gpt2_state(model)
    state["_orig_mod.transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4)  # a mask, not a weight
    fresh = EthosModel(model.config)
    load_gpt2_weights(fresh, state)
    assert all(torch.equal(w, fresh.state_dict()[n]) for n, w in model.state_dict().items())
    up = "_orig_mod.transformer.h.1.mlp.c_fc.weight"
    for wrong in (
        {k: v for k, v in state.items() if k != up},
        {**state, up: torch.zeros(24, 24)},
        {**state, "transformer.h.0.attn.c_attn.bias": torch.zeros(72)},
        {**state, "_orig_mod.lm_head.weight": torch.zeros(WORDS, 24)},
    ):
        with pytest.raises(ModelMismatch):
            load_gpt2_weights(fresh, wrong)


def test_packed_patients_are_as_if_alone() -> None:
    model, tokens = make_model(), make_tokens()
    packed = model(tokens, BORDERS)
    for span in spans(BORDERS):
        torch.testing.assert_close(packed[span], model(tokens[span], one(tokens[span])))


def test_a_later_token_changes_nothing_before_it() -> None:
    model, tokens = make_model(), make_tokens(30)
    before = model(tokens, one(tokens))
    for at in (1, 13, 29):
        changed = tokens.clone()
        changed[at] = (changed[at] + 1) % WORDS
        after = model(changed, one(tokens))
        torch.testing.assert_close(after[:at], before[:at], rtol=0, atol=0)
        assert not torch.allclose(after[at:], before[at:])


def test_going_on_from_a_cache_is_reading_it_whole() -> None:
    model, tokens, more = make_model(), make_tokens(), make_tokens(5 * 6, seed=1).view(6, 5)
    logits, cache = prefill(model, tokens, BORDERS)
    for i in range(len(more) + 1):
        for row, span in enumerate(spans(BORDERS)):
            whole = torch.cat([tokens[span], more[:i, row]])
            expected = last_logits(model, whole)
            torch.testing.assert_close(logits[row : row + 1], expected, atol=1e-5, rtol=1e-5)
        if i < len(more):
            logits = step(model, more[i], cache)


def test_forks_in_any_order_equal_separate_runs() -> None:
    model, tokens = make_model(), make_tokens()
    _, cache = prefill(model, tokens, BORDERS)
    pasts: list[list[int]] = [tokens[s].tolist() for s in spans(BORDERS)]
    generator = torch.Generator().manual_seed(5)
    for choice in ([4, 1, 1, 3, 1], [0, 4, 2, 2, 3, 1, 1], [6, 0, 0, 3], [2, 1]):
        cache = cache.rows(torch.tensor(choice))
        pasts = [list(pasts[i]) for i in choice]
        drawn = torch.randint(WORDS, (len(choice),), generator=generator)
        logits = step(model, drawn, cache)
        for row, token in enumerate(drawn.tolist()):
            pasts[row].append(token)
            expected = last_logits(model, torch.tensor(pasts[row]))
            torch.testing.assert_close(logits[row : row + 1], expected, atol=1e-5, rtol=1e-5)


def test_forks_share_their_past_and_drop_what_nobody_needs() -> None:
    model = make_model()
    _, cache = prefill(model, make_tokens(), BORDERS)
    forked = cache.rows(torch.tensor([0, 1, 2, 3, 4] * 20))
    assert forked.past_keys.data_ptr() == cache.past_keys.data_ptr()
    alone = forked.rows(torch.tensor([3, 8]))
    assert len(alone.past_lengths) == 1


def test_rows_may_go_on_from_a_fresh_past() -> None:
    model, tokens, fresh = make_model(), make_tokens(), make_tokens(14, seed=9)
    _, cache = prefill(model, tokens, BORDERS)
    step(model, make_tokens(5), cache)
    _, other = prefill(model, fresh, torch.tensor([0, 4, 14]))
    cache = cache.with_pasts(torch.tensor([2, 0]), other)
    logits = step(model, torch.tensor([5, 6, 7, 8, 9]), cache)
    for row, past, token in ((2, fresh[:4], 7), (0, fresh[4:], 5)):
        expected = last_logits(model, torch.cat([past, torch.tensor([token])]))
        torch.testing.assert_close(logits[row : row + 1], expected, atol=1e-5, rtol=1e-5)
    whole = torch.cat([tokens[1:12], make_tokens(5)[1:2], torch.tensor([6])])
    torch.testing.assert_close(logits[1:2], last_logits(model, whole), atol=1e-5, rtol=1e-5)


def test_a_full_context_is_refused_by_a_step() -> None:
    model, tokens = make_model(), make_tokens(CONTEXT)
    _, cache = prefill(model, tokens, one(tokens))
    with pytest.raises(InputError) as caught:
        step(model, tokens[:1], cache)
    assert caught.value.code == "context_full"
    longer = make_tokens(CONTEXT + 1)
    with pytest.raises(InputError) as caught:
        prefill(model, longer, one(longer))
    assert caught.value.code == "context_too_short"


@pytest.mark.parametrize("context", [CONTEXT, 32])
def test_futures_are_what_whole_passes_give_a_full_context_too(context: int) -> None:
    """At so low a temperature that each word is the likeliest of the window as documented."""
    model, windows = make_model(context), make_windows(n_static=3)
    futures = draw(
        model, windows, temperature=1e-4, n_futures=1, stop=(), horizon_hours=1e9, max_tokens=60
    )
    for w, future in enumerate(futures_of(futures)):
        window = windows.token[windows.start[w] : windows.start[w + 1]].tolist()
        for token in future:
            chance = last_logits(model, torch.tensor(window)).softmax(-1)[0].detach()
            assert float(chance[token]) == pytest.approx(float(chance.max()), abs=1e-5)
            if len(window) == context:
                window = window[:3] + window[3:][-((context - 3) // 2) :]
            window.append(token)
        assert len(future) == 60 or future[-1] == END_ID


def test_words_are_drawn_as_often_as_they_are_likely() -> None:
    model, windows = make_model(), make_windows((9,))
    futures = draw(model, windows, n_futures=4000, max_tokens=1, max_rows=4000)
    chance = last_logits(model, torch.from_numpy(windows.token.astype(np.int64))).softmax(-1)[0]
    chance = chance.detach().double().numpy()
    share = np.bincount(futures.token, minlength=WORDS) / 4000
    z = (share - chance) / np.sqrt(chance * (1 - chance) / 4000)
    assert np.abs(z[chance > 1e-3]).max() < 4.5
    cold = draw(model, windows, n_futures=50, max_tokens=1, temperature=1e-4)
    assert set(cold.token.tolist()) == {int(chance.argmax())}


@pytest.mark.parametrize(("context", "n_tokens"), [(CONTEXT, 30), (32, 70)])
def test_a_patients_futures_do_not_depend_on_the_others(context: int, n_tokens: int) -> None:
    model, windows = make_model(context), make_windows()
    limits = {"max_tokens": n_tokens, "horizon_hours": 20.0 * n_tokens}
    together = futures_of(draw(model, windows, **limits))
    for w in range(3):
        span = slice(windows.start[w], windows.start[w + 1])
        alone = EthosWindows(
            windows.token[span], windows.start[w : w + 2] - windows.start[w],
            windows.n_static[w : w + 1], windows.subject_id[w : w + 1],
        )  # fmt: skip
        assert futures_of(draw(model, alone, **limits)) == together[6 * w : 6 * w + 6]
        fewer = futures_of(draw(model, alone, n_futures=2, **limits))
        assert fewer == together[6 * w : 6 * w + 2]
    assert futures_of(draw(model, windows, max_rows=5, **limits)) == together
    assert futures_of(draw(model, windows, seed=4, **limits)) != together
    assert len({tuple(f) for f in together}) > 10


def test_patients_with_one_history_have_futures_of_their_own() -> None:
    windows = make_windows((9,))
    twins = EthosWindows(
        np.tile(windows.token, 2), np.array([0, 9, 18]), np.array([2, 2]), np.array([-5, 6])
    )
    futures = futures_of(draw(make_model(), twins))
    assert futures[:6] != futures[6:]


def test_who_has_ended_does_not_fill_a_context() -> None:
    model, windows = make_model(32), make_windows((31, *[3] * 24))
    ends = (int(draw(model, windows, n_futures=1, max_tokens=1).token[0]),)
    lengths = np.diff(draw(model, windows, n_futures=1, max_tokens=4, stop=ends).cu_seqlens)
    assert lengths[0] == 1
    assert (lengths > 2).mean() > 0.75  # so that the row which ended is kept along


def test_dropout_is_off_whatever_the_mode() -> None:
    model, windows = make_model(dropout=0.5), make_windows()
    still = futures_of(draw(model, windows))
    model.train()
    tokens = make_tokens()
    assert not torch.equal(model(tokens, BORDERS), model(tokens, BORDERS))
    assert futures_of(draw(model, windows)) == still
    assert model.training


def test_a_future_ends_at_a_stop_the_horizon_or_the_limit() -> None:
    futures = draw(make_model(), make_windows(), n_futures=200, stop=(DEATH, ADMISSION))
    stops = {DEATH, ADMISSION, END_ID}
    seen = set()
    for row, span in enumerate(spans(futures.cu_seqlens)):
        token, hours, ending = futures.token[span], futures.hours[span], futures.ending[row]
        assert hours.tolist() == np.cumsum(HOURS[token]).tolist()
        assert not stops & set(token[:-1].tolist())
        assert (hours[:-1] <= 200.0).all()
        assert (ending == Ending.HORIZON) == (hours[-1] > 200.0)
        assert (ending == Ending.STOPPED) == (token[-1] in stops)
        assert ending != Ending.UNFINISHED or len(token) == 30
        seen.add(int(ending))
    assert seen == {0, 1, 2}


def made_futures(*futures: tuple[list[int], Ending], n_futures: int) -> EthosFutures:
    token = np.concatenate([f for f, _ in futures]).astype(np.int64)
    return EthosFutures(
        token, np.concatenate([np.cumsum(HOURS[f]) for f, _ in futures]),
        np.append(0, np.cumsum([len(f) for f, _ in futures])),
        np.array([e for _, e in futures], np.int8), np.repeat([7, 8], n_futures),
        FutureConfig((DEATH,), 10.0, n_futures),
    )  # fmt: skip


def test_shares_count_every_future_the_unfinished_too() -> None:
    futures = made_futures(
        ([40, ADMISSION, 41], Ending.UNFINISHED),
        ([40, DEATH], Ending.STOPPED),
        ([WAIT] * 21, Ending.HORIZON),
        ([40, 41], Ending.UNFINISHED),
        ([*[WAIT] * 6, ADMISSION, DEATH], Ending.STOPPED),
        ([ADMISSION, *[WAIT] * 21], Ending.HORIZON),
        ([DEATH], Ending.STOPPED),
        ([END_ID], Ending.STOPPED),
        n_futures=4,
    )
    shares = outcome_shares(futures, [ADMISSION])
    assert shares.subject_id.tolist() == [7, 8]
    assert shares.outcome.tolist() == [0.25, 0.5]
    assert shares.stopped.tolist() == [0.25, 0.5]
    assert shares.horizon.tolist() == [0.25, 0.0]
    assert shares.unfinished.tolist() == [0.25, 0.0]
    assert outcome_shares(futures, [DEATH]).outcome.tolist() == [0.25, 0.5]  # a stop itself
    sooner = outcome_shares(futures, [ADMISSION], horizon_hours=2.0)
    assert sooner.outcome.tolist() == [0.25, 0.25]
    assert sooner.horizon.tolist() == [0.25, 0.25]
    with pytest.raises(InputError):
        outcome_shares(futures, [ADMISSION], horizon_hours=11.0)


def test_bad_requests_are_refused() -> None:
    for name, wrong in ("n_futures", 0), ("seed", -1), ("temperature", 0.0), ("max_rows", 0):
        with pytest.raises(InputError):
            draw(make_model(), make_windows(), **{name: wrong})
    tokens = make_tokens(20)
    with pytest.raises(InputError):
        make_model().loss(tokens, torch.full_like(tokens, -100), one(tokens))
