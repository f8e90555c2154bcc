"""ETHOS-ARES's network over a past that is read once: a cache, and one token more for many rows.

The original runs the whole timeline through the network again for every token of every future. Here
a patient's past is read once and held once: all its futures look at the same keys and values, and
each adds its own behind them. Asking once for the rows of a cache forks them.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsfm.errors import InputError
from tsfm.models.attention import attend_packed
from tsfm.models.ethos import EthosCache, EthosModel, positions_of, widened


@torch.no_grad()
def prefill(
    model: EthosModel, tokens: Int[Tensor, " token"], cu_seqlens: Int[Tensor, " borders"]
) -> tuple[Float[Tensor, "row word"], EthosCache]:
    """Read windows: log odds of the word after each, and a cache with a row for each.

    Args:
        model: The network; dropout is off whatever its mode.
        tokens: Packed word ids.
        cu_seqlens: Borders of the windows.

    Raises:
        InputError: As in the model's `forward`.
    """
    borders = model.borders(tokens, cu_seqlens)
    positions, n_rows = positions_of(borders), len(borders) - 1
    heads = model.config.n_heads
    shape = (n_rows, int(borders.diff().max()), heads, model.config.d_model // heads)
    owner = torch.repeat_interleave(torch.arange(n_rows, device=borders.device), borders.diff())
    held: list[tuple[Tensor, Tensor]] = []
    attend = [partial(_attend_and_keep, held, (owner, positions), shape, borders)]
    states = model.states(tokens, positions, attend * model.config.n_layers)
    keys, values = (torch.stack([pair[i] for pair in held]) for i in (0, 1))
    cache = EthosCache(
        keys, values, borders.diff(), torch.arange(n_rows, device=borders.device),
        keys[:, :, :, :0], values[:, :, :, :0], torch.zeros_like(borders[1:]),
    )  # fmt: skip
    return model.logits(states[borders[1:] - 1]), cache


@torch.no_grad()
def step(
    model: EthosModel, tokens: Int[Tensor, " row"], cache: EthosCache
) -> Float[Tensor, "row word"]:
    """Go on by one token a row: log odds of the word after it. The cache grows in place.

    The shared past is multiplied once with the queries of all its rows, which torch's fused
    attention can't do without a copy of the past for each row; so the two products are written out.

    Raises:
        InputError: A row's context is full.
    """
    positions = cache.positions
    if int(positions.max()) >= model.config.context:
        raise InputError(
            f"a context of {model.config.context} tokens is full", code="context_full",
            place="cache", remedy="Read the row's latest tokens anew and give it this past.",
        )  # fmt: skip
    n_slots = int(cache.lengths.max()) + 1
    if n_slots > cache.keys.shape[3]:
        room = max(n_slots, 2 * cache.keys.shape[3])
        cache.keys, cache.values = widened(cache.keys, room), widened(cache.values, room)
    table, place = cache.rows_of_pasts()
    places = torch.arange(cache.past_keys.shape[3], device=tokens.device)
    slots = torch.arange(n_slots, device=tokens.device)
    unseen = torch.cat([
        places >= cache.past_lengths[cache.past].unsqueeze(1), slots > cache.lengths.unsqueeze(1)
    ], 1).unsqueeze(1)  # fmt: skip
    attend = [
        partial(_attend_cache, cache, layer, table, place, unseen)
        for layer in range(model.config.n_layers)
    ]
    states = model.states(tokens, positions, attend)
    cache.lengths = cache.lengths + 1
    return model.logits(states)


def _attend_and_keep(
    held: list[tuple[Tensor, Tensor]],
    at: tuple[Tensor, Tensor],
    shape: tuple[int, ...],
    borders: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
) -> Tensor:
    """Packed attention that leaves keys and values behind, (row, head, place, channel)."""
    keys, values = (x.new_zeros(shape).index_put(at, x).transpose(1, 2) for x in (k, v))
    held.append((keys, values))
    return attend_packed(q, k, v, borders, borders, causal=True)


def _attend_cache(
    cache: EthosCache,
    layer: int,
    table: Tensor,
    place: Tensor,
    unseen: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
) -> Tensor:
    """Each row's query over its past and what the row added; key and value are added first.

    Args:
        cache: With room for one more.
        layer: Which.
        table: Rows of each past, (past, row of the past).
        place: Where in it each row stands.
        unseen: Places and slots that a row must not read, (row, 1, place or slot).
        q: Queries, (row, head, channel).
        k: Keys.
        v: Values.
    """
    row = torch.arange(len(q), device=q.device)
    cache.keys[layer, row, :, cache.lengths] = k
    cache.values[layer, row, :, cache.lengths] = v
    n_places = cache.past_keys.shape[3]
    n_slots = unseen.shape[-1] - n_places
    q = q * q.shape[-1] ** -0.5
    of_past = _times_past(q, cache.past_keys[layer].mT, table, place)
    own = (q.unsqueeze(2) @ cache.keys[layer, :, :, :n_slots].mT).squeeze(2)
    weight = torch.cat([of_past, own], -1).masked_fill(unseen, -torch.inf).softmax(-1)
    read = _times_past(weight[..., :n_places], cache.past_values[layer], table, place)
    own_weight = weight[..., n_places:].unsqueeze(2)
    return read + (own_weight @ cache.values[layer, :, :, :n_slots]).squeeze(2)


def _times_past(x: Tensor, matrix: Tensor, table: Tensor, place: Tensor) -> Tensor:
    """Product of each row's heads (row, head, n) with its past's (past, head, n, m)."""
    product = x[table].transpose(1, 2) @ matrix
    return product.transpose(1, 2).flatten(0, 1)[place]
