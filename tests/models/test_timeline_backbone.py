"""Attention among Mamba blocks: causal, packed, in real time, and continued from what it left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tsfm.errors import InputError
from tsfm.models.attention import KeyValueCache
from tsfm.models.mamba import BlockState, Mamba, MambaConfig
from tsfm.models.timeline_backbone import (
    AttentionLayer,
    HybridBackbone,
    HybridState,
    MambaLayer,
    NoMemory,
)

WIDTH = 16
LENGTHS = (5, 1, 9)
FORMS: dict[str, dict[str, Any]] = {
    "between": {"attention_after": (1,)},
    "around": {"attention_after": (0, 2, 2)},
    "alone": {"attention_only": True},
}
LONG = 16_384


def make_backbone(form: str = "between", *, real_time: bool = True) -> HybridBackbone:
    torch.manual_seed(0)
    config = MambaConfig(d_model=WIDTH, n_layers=2, d_state=4, real_time=real_time)
    return HybridBackbone(config, **FORMS[form]).eval()


def make_tokens() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings, gaps in hours, borders, and the seconds that the gaps come from."""
    torch.manual_seed(1)
    n = sum(LENGTHS)
    borders = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])
    gap = torch.rand(n, dtype=torch.float64) * 500
    hours = torch.cat([part.cumsum(0) for part in gap.split(LENGTHS)])
    return torch.randn(n, WIDTH), gap.float(), borders, 1.5e9 + 3600 * hours


def row_of(state: HybridState, rows: list[int]) -> HybridState:
    at = torch.tensor(rows)
    layers = tuple(
        held.rows(at) if isinstance(held, KeyValueCache) else BlockState(*(x[at] for x in held))
        for held in state.layers
    )
    return HybridState(layers, state.seconds[at])


@pytest.mark.parametrize("form", FORMS)
def test_a_packed_sequence_gives_what_it_gives_alone(form: str) -> None:
    backbone = make_backbone(form)
    x, gap, borders, seconds = make_tokens()
    together = backbone(x, gap, borders, seconds=seconds)
    for start, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        alone = backbone(x[start:end], gap[start:end], seconds=seconds[start:end])
        torch.testing.assert_close(alone, together[start:end], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_no_token_sees_a_later_one_or_another_sequence(form: str) -> None:
    backbone = make_backbone(form)
    x, gap, borders, seconds = make_tokens()
    x.requires_grad_()
    backbone(x, gap, borders, seconds=seconds)[9].sum().backward()
    assert x.grad is not None
    reached = torch.nonzero(x.grad.abs().sum(1) > 0).flatten()
    assert reached.tolist() == [6, 7, 8, 9]


@pytest.mark.parametrize("form", FORMS)
def test_times_added_up_from_gaps_are_as_good_as_stamps(form: str) -> None:
    backbone = make_backbone(form)
    x, gap, borders, seconds = make_tokens()
    by_stamps = backbone(x, gap, borders, seconds=seconds)
    torch.testing.assert_close(backbone(x, gap, borders), by_stamps, rtol=1e-3, atol=1e-3)
    later = backbone(x, gap, borders, seconds=seconds + 86_400 * 365)
    torch.testing.assert_close(later, by_stamps, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_pace_matters_in_real_time_and_order_alone_without(form: str) -> None:
    x, gap, borders, seconds = make_tokens()
    timed, blind = make_backbone(form), make_backbone(form, real_time=False)
    change = timed(x, gap * 30, borders) - timed(x, gap, borders)
    assert float(change.detach().abs().max()) > 1e-3
    assert torch.equal(blind(x, gap * 30, borders), blind(x, gap, borders))
    assert torch.equal(blind(x, None, borders), blind(x, gap, borders, seconds=seconds))
    swapped = x.index_select(0, torch.tensor([1, 0, *range(2, len(x))]))
    change = blind(swapped, None, borders)[4] - blind(x, None, borders)[4]
    assert float(change.detach().abs().max()) > 1e-4


@pytest.mark.parametrize("real_time", [True, False])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_token_by_token_from_a_state_is_the_whole(form: str, real_time: bool) -> None:
    backbone = make_backbone(form, real_time=real_time)
    x, gap, borders, seconds = make_tokens()
    whole = backbone(x, gap, borders, seconds=seconds)
    past = torch.tensor([0, 1, 2, 6, 7, 8])
    read, state = backbone(
        x[past], gap[past], torch.tensor([0, 3, 6]), seconds=seconds[past], return_state=True
    )
    torch.testing.assert_close(read, whole[past], rtol=1e-4, atol=1e-5)
    table, source = state.with_rows(6), torch.tensor([0, 1])
    for k, target in enumerate(([4, 2], [4, 5])):
        at = torch.tensor([3 + k, 9 + k])
        stamps = seconds[at] if k else None  # a gap goes on from the row's own time as well
        found = backbone.step(x[at], gap[at], table, source, torch.tensor(target), seconds=stamps)
        torch.testing.assert_close(found, whole[at], rtol=1e-3, atol=1e-4)
        source = torch.tensor(target)
    torch.testing.assert_close(table.seconds[0], state.seconds[0])


@torch.no_grad()
def test_futures_fork_from_one_past_and_leave_it_as_it_was() -> None:
    backbone = make_backbone()
    x, gap, _, _ = make_tokens()
    past, more = slice(6, 9), [9, 2, 14]
    _, state = backbone(x[past], gap[past], return_state=True)
    table = state.with_rows(5)
    cache = next(held for held in table.layers if isinstance(held, KeyValueCache))
    kept = cache.keys[0, :3].clone()
    forks = torch.zeros(3, dtype=torch.int64)
    found = backbone.step(x[more], gap[more], table, forks, torch.tensor([3, 1, 2]))
    for row, at in enumerate(more):
        alone = backbone(torch.cat([x[past], x[[at]]]), torch.cat([gap[past], gap[[at]]]))
        torch.testing.assert_close(found[row], alone[-1], rtol=1e-3, atol=1e-4)
    assert torch.equal(cache.keys[0, :3], kept)
    assert cache.lengths.tolist() == [3, 4, 4, 4, 0]


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_further_stretch_goes_on_from_a_state_and_leaves_it_unchanged(form: str) -> None:
    backbone = make_backbone(form)
    x, gap, borders, _ = make_tokens()
    whole = backbone(x, gap, borders)
    _, state = backbone(x[:10], gap[:10], torch.tensor([0, 5, 6, 10]), return_state=True)
    last = row_of(state, [2])
    for _ in range(2):
        found, after = backbone(x[10:], gap[10:], state=last, return_state=True)
        torch.testing.assert_close(found, whole[10:], rtol=1e-3, atol=1e-4)
        assert len(after) == 1


def test_every_parameter_learns() -> None:
    backbone = make_backbone("around").train()
    x, gap, borders, seconds = make_tokens()
    y = backbone(x, gap, borders, seconds=seconds)
    (y * torch.randn_like(y)).sum().backward()
    without = [
        name
        for name, parameter in backbone.named_parameters()
        if parameter.grad is None or not bool(parameter.grad.abs().sum() > 0)
    ]
    assert without == []


def test_layers_stand_where_they_are_asked_for() -> None:
    order = [type(layer) for layer in make_backbone("around").layers]
    attention = AttentionLayer
    assert order == [attention, MambaLayer, MambaLayer, attention, attention]
    assert [type(layer) for layer in make_backbone("alone").layers] == [attention, attention]


@pytest.mark.parametrize(
    "form", [{"attention_after": (3,)}, {"attention_only": True, "attention_after": (1,)}]
)
def test_a_layer_that_stands_nowhere_is_refused(form: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        HybridBackbone(MambaConfig(d_model=WIDTH, n_layers=2), **form)
    assert caught.value.code == "bad_attention_place"


def no_time(backbone: HybridBackbone, x: Tensor, gap: Tensor) -> None:
    backbone(x)


def gradient_through_a_state(backbone: HybridBackbone, x: Tensor, gap: Tensor) -> None:
    backbone(x.requires_grad_(), gap, return_state=True)


@torch.no_grad()
def another_models_state(backbone: HybridBackbone, x: Tensor, gap: Tensor) -> None:
    _, state = make_backbone("alone")(x, gap, return_state=True)
    backbone(x, gap, state=state)


@torch.no_grad()
def slot_beyond_the_rows(backbone: HybridBackbone, x: Tensor, gap: Tensor) -> None:
    _, state = backbone(x, gap, return_state=True)
    backbone.step(x[:1], gap[:1], state, torch.tensor([1]))


@pytest.mark.parametrize(
    ("misuse", "code"),
    [
        (no_time, "missing_gap"),
        (gradient_through_a_state, "no_gradient"),
        (another_models_state, "wrong_state"),
        (slot_beyond_the_rows, "slot_out_of_range"),
    ],
)
def test_misuse_is_refused_by_name(misuse: Callable[..., None], code: str) -> None:
    x, gap, _, _ = make_tokens()
    with pytest.raises(InputError) as caught:
        misuse(make_backbone(), x, gap)
    assert caught.value.code == code


def test_no_memory_passes_tokens_as_they_are() -> None:
    x, gap, borders, _ = make_tokens()
    memory = NoMemory()
    y, state = memory(x, gap, borders, return_state=True)
    assert torch.equal(memory(x, gap, borders), x)
    assert torch.equal(y, x)
    assert state.shape == (len(LENGTHS), 0, 1)
    assert torch.equal(memory.step(x, gap, state), x)


def training_cost(backbone: torch.nn.Module, lengths: list[int]) -> tuple[int, float]:
    """Bytes that a pass keeps for its gradient, and seconds of a core forth and back."""
    torch.manual_seed(0)
    n = sum(lengths)
    x, gap = torch.randn(n, 8, requires_grad=True), torch.rand(n)
    borders = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    started = time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = backbone(x, gap, borders)
    y.sum().backward()
    return sum(kept.values()), time.process_time() - started


def test_memory_grows_linearly_to_16k_tokens_and_time_does_for_mamba() -> None:
    config = MambaConfig(d_model=8, n_layers=1, d_state=2)
    mamba = Mamba(config)
    both = HybridBackbone(config, attention_after=(1,), n_heads=1)
    training_cost(mamba, [64])  # compiles
    short = [training_cost(mamba, [LONG // 8]) for _ in range(3)]
    long = training_cost(mamba, [LONG])
    assert long[0] < 8.1 * short[0][0]
    assert long[1] < 2.5 * 8 * min(seconds for _, seconds in short)
    assert training_cost(both, [LONG])[0] < 8.1 * training_cost(both, [LONG // 8])[0]


def test_attention_over_packed_sequences_costs_what_they_cost_and_not_their_square() -> None:
    config = MambaConfig(d_model=8, n_layers=1)
    alone = HybridBackbone(config, attention_only=True, n_heads=1)
    training_cost(alone, [64])
    whole = training_cost(alone, [LONG])
    packed = min(training_cost(alone, [LONG // 64] * 64)[1] for _ in range(2))
    assert packed < whole[1] / 3
