"""CPC without a loop has the loss of the loop, and no positive among its negatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tsfm.errors import InputError
from tsfm.training import cpc
from tsfm.training.cpc import CpcConfig, CpcObjective, CpcPairs, cpc_loss, draw_pairs


def borders_of(*lengths: int) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loop(guesses: Tensor, latents: Tensor, pairs: CpcPairs, temperature: float) -> Tensor:
    """The loss, one anchor after the other."""
    costs = []
    for i in range(len(pairs.anchor)):
        guess = guesses[pairs.anchor[i]]
        scores = [guess @ latents[pairs.positive[i]] / temperature]
        scores += [guess @ latents[j] / temperature for j in pairs.negative[i]]
        costs.append(torch.log(torch.stack(scores).exp().sum()) - scores[0])
    return torch.stack(costs).mean()


@pytest.mark.parametrize("stripe", [3, 2048])
def test_loss_and_gradients_are_those_of_the_loop(
    stripe: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpc, "_ROWS_AT_ONCE", stripe)
    torch.manual_seed(0)
    config = CpcConfig(steps_ahead=3, n_negatives=5, temperature=0.7)
    pairs = draw_pairs(borders_of(9, 2, 14), config, generator=generator())
    guesses, latents = (torch.randn(25, 6, requires_grad=True) for _ in range(2))
    expected = loop(guesses, latents, pairs, 0.7)
    wanted = torch.autograd.grad(expected, [guesses, latents])
    found = cpc_loss(guesses, latents, pairs, temperature=0.7).loss
    assert abs(found.item() - expected.item()) < 1e-5
    for a, b in zip(torch.autograd.grad(found, [guesses, latents]), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_no_positive_is_among_the_negatives_and_all_are_of_the_same_sequence() -> None:
    lengths = (17, 2, 3, 40, 1)
    borders = borders_of(*lengths)
    mask = torch.rand(int(borders[-1]), generator=generator(1)) < 0.7
    for given in (None, mask):
        config = CpcConfig(steps_ahead=1, n_negatives=200)
        pairs = draw_pairs(borders, config, mask=given, generator=generator())
        sequence = torch.repeat_interleave(torch.arange(5), borders.diff())
        assert torch.equal(pairs.positive, pairs.anchor + 1)
        assert torch.equal(sequence[pairs.positive], sequence[pairs.anchor])
        assert (pairs.negative != pairs.positive[:, None]).all()
        assert (sequence[pairs.negative] == sequence[pairs.anchor][:, None]).all()
        if given is not None:
            assert mask[pairs.anchor].all()
            assert mask[pairs.positive].all()
            assert mask[pairs.negative].all()
        n_expected = sum(
            bool(sequence[t] == sequence[t + 1])
            and (given is None or bool(mask[t] & mask[t + 1]))
            for t in range(len(sequence) - 1)
        )  # fmt: skip
        assert len(pairs.anchor) == n_expected == sum(pairs.n_anchors)


def test_every_other_token_is_as_likely_a_negative() -> None:
    config = CpcConfig(steps_ahead=2, n_negatives=20_000)
    pairs = draw_pairs(borders_of(7), config, generator=generator())
    for positive, negative in zip(pairs.positive, pairs.negative, strict=True):
        share = torch.bincount(negative, minlength=7) / 20_000
        others = torch.arange(7) != positive
        assert share[positive] == 0
        torch.testing.assert_close(share[others], torch.full((6,), 1 / 6), atol=0.012, rtol=0)


def test_alike_tokens_cost_the_logarithm_of_their_number() -> None:
    pairs = draw_pairs(borders_of(30), CpcConfig(4, 15), generator=generator())
    found = cpc_loss(torch.zeros(30, 3), torch.randn(30, 3), pairs)
    assert found.loss.item() == pytest.approx(math.log(16), rel=1e-5)
    assert found.accuracy.item() == 0.0  # a tie is no hit


def test_guesses_that_know_the_answer_cost_nothing() -> None:
    pairs = draw_pairs(borders_of(30), CpcConfig(4, 15), generator=generator())
    latents = 20 * torch.eye(30)
    found = cpc_loss(latents.roll(-4, 0), latents, pairs)
    assert found.loss.item() < 1e-6
    assert found.accuracy.item() == 1.0


def test_a_batch_is_the_same_as_its_records_packed() -> None:
    torch.manual_seed(0)
    objective = CpcObjective(nn.Identity(), 8, CpcConfig(2, 9, hidden_width=16))
    states = torch.randn(3, 12, 8)
    whole = objective(states, generator=generator())
    packed = objective.of_packed(
        states.flatten(0, 1), states.flatten(0, 1), borders_of(12, 12, 12), generator=generator()
    )
    torch.testing.assert_close(whole.loss, packed.loss)


def test_what_stands_in_one_sequence_is_nothing_to_another() -> None:
    torch.manual_seed(0)
    objective = CpcObjective(nn.Identity(), 4, CpcConfig(2, 6))
    states = torch.randn(2, 10, 4, requires_grad=True)
    objective(states, mask=torch.tensor([[True], [False]]).expand(2, 10)).loss.backward()
    assert states.grad is not None
    assert states.grad[0].any()
    assert not states.grad[1].any()


def test_training_learns_to_tell_what_comes_next() -> None:
    torch.manual_seed(0)
    step = torch.linalg.qr(torch.randn(6, 6)).Q  # a rotation carries each token to the next
    tokens = [torch.randn(16, 6)]
    for _ in range(39):
        tokens.append(tokens[-1] @ step)
    signal = torch.stack(tokens, 1)
    objective = CpcObjective(nn.Identity(), 6, CpcConfig(3, 20, hidden_width=0))
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.03)
    before = objective(signal, generator=generator())
    for i in range(60):
        optimizer.zero_grad()
        objective(signal, generator=generator(i)).loss.backward()
        optimizer.step()
    after = objective(signal, generator=generator())
    assert before.accuracy < 0.4
    assert after.accuracy > 0.8
    assert after.loss < before.loss / 2


def test_latents_are_a_plug_of_their_own() -> None:
    torch.manual_seed(0)
    encode, stem = nn.Linear(3, 8), nn.Linear(3, 5)
    objective = CpcObjective(encode, 8, CpcConfig(2, 4), latents=stem, d_latent=5)
    objective(torch.randn(2, 9, 3)).loss.backward()
    assert stem.weight.grad is not None
    assert encode.weight.grad is not None
    names = {name for name, _ in objective.named_parameters()}
    assert {"encode.weight", "latents.weight"} <= names


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_loses_neither_the_count_nor_the_scores(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    latents = torch.randn(80 * 1000, 8)
    guesses = latents.roll(-1, 0) + 2 * torch.randn(80 * 1000, 8)
    pairs = draw_pairs(borders_of(*[1000] * 80), CpcConfig(1, 3), generator=generator())
    whole = cpc_loss(guesses.to(kind).float(), latents.to(kind).float(), pairs)
    half = cpc_loss(guesses.to(kind), latents.to(kind), pairs)
    torch.testing.assert_close(half, whole)
    assert 0.4 < half.accuracy < 0.9
    few = draw_pairs(borders_of(2000), CpcConfig(1, 3), generator=generator())
    large = cpc_loss((20 * latents[:2000]).to(kind), (400 * latents[:2000]).to(kind), few)
    assert torch.isfinite(large.loss)


def test_autocast_does_not_round_the_scores() -> None:
    torch.manual_seed(0)
    guesses, latents = torch.randn(2, 200, 8)
    pairs = draw_pairs(borders_of(200), CpcConfig(1, 3), generator=generator())
    whole = cpc_loss(guesses, latents, pairs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cpc_loss(guesses, latents, pairs).loss, whole.loss)


def test_recordings_that_are_too_short_are_refused() -> None:
    with pytest.raises(InputError, match="no_cpc_pairs"):
        draw_pairs(borders_of(14, 3), CpcConfig(steps_ahead=14))
    with pytest.raises(InputError, match="bad_token_shape"):
        draw_pairs(borders_of(20), CpcConfig(1), mask=torch.ones(19, dtype=torch.bool))
    with pytest.raises(InputError, match="bad_cpc_config"):
        CpcConfig(steps_ahead=0)
    objective = CpcObjective(nn.Identity(), 4, CpcConfig(1, 1))
    with pytest.raises(InputError, match="bad_token_shape"):
        objective.of_states(torch.zeros(1, 5, 4), torch.zeros(1, 6, 4))
