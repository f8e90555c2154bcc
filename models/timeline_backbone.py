"""Backbones of the timeline model with attention: between Mamba blocks, or in their place.

A recurrent state holds what it was taught to keep; attention looks up any event again, at a cost
that grows with the past. A few attention layers among many Mamba blocks have the better of both
(Jamba, Lieber et al. 2024); attention layers alone are what such a model is compared with.

Time is the position: phases are of the absolute seconds at which facts became known (`ct_rope`),
with periods from the backbone's fastest to its slowest time constant. Where a caller has gaps and
no stamps, times are added up from the gaps, which is the same to a score, since only differences
count. A backbone that is not in real time looks at no gap: its phases count points.

What a sequence leaves behind is the state of its Mamba blocks and, for each attention layer, the
keys and values of all its points: that part grows, and a fork copies it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from tsfm.errors import InputError
from tsfm.kernels.argument_checks import check_borders
from tsfm.models.attention import AttentionConfig, KeyValueCache, SelfAttention
from tsfm.models.ct_rope import RotaryConfig
from tsfm.models.experts import SwiGLU
from tsfm.models.mamba import BlockState, MambaBlock, MambaConfig, MambaState, RMSNorm

_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class HybridState:
    """What a backbone carries from token to token, a row a sequence.

    Attributes:
        layers: State of a Mamba block or cache of an attention layer, each with the same rows.
        seconds: Time of each row's last token, or its number where gaps are not looked at.
    """

    layers: tuple[BlockState | KeyValueCache, ...]
    seconds: Float64[Tensor, " row"]

    def __len__(self) -> int:
        """Rows."""
        return len(self.seconds)

    def with_rows(self, n_rows: int) -> HybridState:
        """A detached copy with room for more: further rows are empty.

        Args:
            n_rows: Rows of the copy, at least as many as there are.
        """
        more = n_rows - len(self)
        layers: list[BlockState | KeyValueCache] = []
        for held in self.layers:
            if isinstance(held, KeyValueCache):
                keys, values = (F.pad(x, (0, 0) * 3 + (0, more)) for x in (held.keys, held.values))
                layers.append(KeyValueCache(keys, values, F.pad(held.lengths, (0, more))))
            else:
                layers.extend(MambaState((held,)).with_rows(n_rows).blocks)
        return HybridState(tuple(layers), F.pad(self.seconds, (0, more)))


class AttentionLayer(nn.Module):
    """Causal attention in continuous time and a SwiGLU, each behind a norm and on a residual.

    Args:
        config: Sizes of the backbone.
        n_heads: Heads.
    """

    def __init__(self, config: MambaConfig, n_heads: int) -> None:
        """Turn keys by hours as the blocks' channels forget in hours, or by place in the order."""
        super().__init__()
        if config.real_time:
            fastest, slowest = config.fastest_hours, config.slowest_hours
            rotary = RotaryConfig(fastest * _SECONDS_PER_HOUR, slowest * _SECONDS_PER_HOUR)
        else:
            rotary = RotaryConfig(2 * math.pi, 2e4 * math.pi, learnable=False)
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = SelfAttention(AttentionConfig(config.d_model, n_heads, rotary=rotary))
        self.feed_norm = RMSNorm(config.d_model, config.norm_eps)
        self.feed = SwiGLU(config.d_model, config.expand * config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "token model"],
        seconds: Float64[Tensor, " token"],
        cu_seqlens: Int[Tensor, " borders"],
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "token model"]:
        """Map packed tokens; those of a cache come before them, and they are appended to it."""
        if cache is None:
            looked_up = self.attention(self.norm(x), seconds, cu_seqlens)
        else:
            looked_up = self.attention.extend(self.norm(x), seconds, cache, cu_seqlens)
        x = x + self.dropout(looked_up)
        return x + self.dropout(self.feed(self.feed_norm(x)))

    def step(
        self,
        x: Float[Tensor, "row model"],
        seconds: Float64[Tensor, " row"],
        cache: KeyValueCache,
        source: Int[Tensor, " row"],
        target: Int[Tensor, " row"],
    ) -> Float[Tensor, "row model"]:
        """One token for each row; the pasts of the rows named are copied to those that go on."""
        longest = int(cache.lengths[source].max()) + 1
        keys, values = (held[:, :longest][source] for held in (cache.keys, cache.values))
        rows = KeyValueCache(keys, values, cache.lengths[source])
        x = self(x, seconds, torch.arange(len(x) + 1, device=x.device), rows)
        room = max(0, rows.keys.shape[1] - cache.keys.shape[1])
        if room:  # doubled, so that few steps copy the table
            room = max(room, cache.keys.shape[1])
            cache.keys, cache.values = (
                F.pad(held, (0, 0, 0, 0, 0, room)) for held in (cache.keys, cache.values)
            )
        cache.keys[target, : rows.keys.shape[1]] = rows.keys
        cache.values[target, : rows.keys.shape[1]] = rows.values
        cache.lengths[target] = rows.lengths
        return x


class MambaLayer(nn.Module):
    """A Mamba block behind a norm and on a residual, as `Mamba` has it."""

    def __init__(self, config: MambaConfig) -> None:
        """Build the block."""
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.block = MambaBlock(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "token model"],
        gap_hours: Float[Tensor, " token"] | None,
        cu_seqlens: Int[Tensor, " borders"],
        state: BlockState | None = None,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "token model"], list[BlockState]]:
        """Map packed tokens; then what each sequence leaves behind, if asked, in a list."""
        y = self.block(self.norm(x), gap_hours, cu_seqlens, state=state, return_state=return_state)
        y, *left = y if return_state else (y,)
        return x + self.dropout(y), left


class HybridBackbone(nn.Module):
    """Mamba blocks with attention layers between them, or attention layers alone.

    Args:
        config: Sizes. With `attention_only`, `n_layers` is the number of attention layers.
        attention_after: Numbers of Mamba blocks after which an attention layer stands, 0 for in
            front of all; a number named twice has two.
        n_heads: Heads of an attention layer.
        attention_only: No Mamba block at all.

    Raises:
        InputError: A layer stands nowhere, or the heads do not divide the width.
    """

    def __init__(
        self,
        config: MambaConfig,
        *,
        attention_after: tuple[int, ...] = (),
        n_heads: int = 2,
        attention_only: bool = False,
    ) -> None:
        """Build the layers in their order."""
        super().__init__()
        places = (0,) * config.n_layers if attention_only else attention_after
        n_blocks = 0 if attention_only else config.n_layers
        if (attention_only and attention_after) or not all(0 <= at <= n_blocks for at in places):
            raise InputError(
                f"attention layers after blocks {attention_after} of {n_blocks}",
                code="bad_attention_place", place="attention_after",
                remedy="Name numbers from 0 to n_layers, or none where attention is alone.",
            )  # fmt: skip
        self.config = config
        layers: list[nn.Module] = []
        for block in range(n_blocks + 1):
            layers += [MambaLayer(config)] if block else []
            layers += [AttentionLayer(config, n_heads) for at in places if at == block]
        self.layers = nn.ModuleList(layers)
        self.final_norm = RMSNorm(config.d_model, config.norm_eps)

    def forward(
        self,
        x: Float[Tensor, "token model"],
        gap_hours: Float[Tensor, " token"] | None = None,
        cu_seqlens: Int[Tensor, " borders"] | None = None,
        *,
        seconds: Float64[Tensor, " token"] | None = None,
        state: HybridState | None = None,
        return_state: bool = False,
    ) -> Float[Tensor, "token model"] | tuple[Float[Tensor, "token model"], HybridState]:
        """Encode packed tokens; see `Mamba.forward`.

        Args:
            x: Token embeddings.
            gap_hours: Hours since the previous token of the same subject.
            cu_seqlens: Borders of the subjects; None is one.
            seconds: Absolute times; None adds the gaps up.
            state: What each subject has left behind, a row each; it is not changed.
            return_state: Also return what each subject leaves behind now.

        Raises:
            InputError: The arguments do not fit each other or the model, or gradients are asked to
                flow through a state: cached keys have none.
        """
        if cu_seqlens is None:
            cu_seqlens = torch.tensor([0, len(x)], device=x.device)
        borders = check_borders(cu_seqlens, len(x), x.device).long()
        keeps = state is not None or return_state
        if keeps and torch.is_grad_enabled() and x.requires_grad:
            raise InputError(
                "no gradient flows through cached keys and values", code="no_gradient",
                place="state", remedy="Call it under torch.no_grad(), or without a state.",
            )  # fmt: skip
        seconds = self._seconds(gap_hours, borders, seconds, state)
        left: list[BlockState | KeyValueCache] = []
        for layer, held in zip(self.layers, self._held(state), strict=True):
            if isinstance(layer, MambaLayer):
                assert held is None or isinstance(held, BlockState)
                x, after = layer(x, gap_hours, borders, held, return_state)
                left += after
                continue
            assert isinstance(layer, AttentionLayer)
            cache = None
            if isinstance(held, KeyValueCache):
                cache = replace(held, keys=held.keys.clone(), values=held.values.clone())
            elif keeps:
                cache = layer.attention.new_cache(len(borders) - 1)
            x = layer(x, seconds, borders, cache)
            left += [cache] if cache is not None else []
        x = self.final_norm(x)
        return (x, HybridState(tuple(left), seconds[borders[1:] - 1])) if return_state else x

    @torch.no_grad()
    def step(
        self,
        x: Float[Tensor, "row model"],
        gap_hours: Float[Tensor, " row"] | None,
        state: HybridState,
        source_slots: Int[Tensor, " row"] | None = None,
        target_slots: Int[Tensor, " row"] | None = None,
        *,
        seconds: Float64[Tensor, " row"] | None = None,
    ) -> Float[Tensor, "row model"]:
        """Take one more token of many subjects in evaluation mode; see `Mamba.step`.

        Args:
            x: Embedding of each row's token.
            gap_hours: Hours since the token before it.
            state: Rows to read and to write, changed in place.
            source_slots: Row of the state that each token continues; None is the first ones.
            target_slots: Row that takes the state after each token, all different; None likewise.
            seconds: Absolute times; None adds the gaps to the rows' last times.

        Raises:
            InputError: The arguments do not fit each other or the model.
        """
        source = _slots("source_slots", source_slots, x, len(state))
        target = _slots("target_slots", target_slots, x, len(state))
        each = torch.arange(len(x) + 1, device=x.device)
        before = HybridState((), state.seconds[source])
        seconds = self._seconds(gap_hours, each, seconds, before)
        for layer, held in zip(self.layers, self._held(state), strict=True):
            if isinstance(layer, AttentionLayer):
                assert isinstance(held, KeyValueCache)
                x = layer.step(x, seconds, held, source, target)
            else:
                assert isinstance(layer, MambaLayer)
                assert isinstance(held, BlockState)
                x = x + layer.block.step(layer.norm(x), gap_hours, held, source, target)
        state.seconds[target] = seconds
        return self.final_norm(x)

    def _seconds(
        self, gap_hours: Tensor | None, borders: Tensor, seconds: Tensor | None,
        state: HybridState | None,
    ) -> Float64[Tensor, " token"]:  # fmt: skip
        """Times that attention turns keys by: given, added up from gaps, or places in the order."""
        if not self.config.real_time:
            step = torch.ones(int(borders[-1]), dtype=torch.float64, device=borders.device)
        elif seconds is not None:
            return seconds
        elif gap_hours is None:
            raise InputError(
                "a model in real time was given neither gaps nor times", code="missing_gap",
                place="gap_hours", remedy="Give the hours since each subject's last token.",
            )  # fmt: skip
        else:
            step = gap_hours.double() * _SECONDS_PER_HOUR
        run, first = step.cumsum(0), borders[:-1]
        # The gap of a subject's first token counts from its state, if it has left one.
        offset = -run[first] if state is None else state.seconds + step[first] - run[first]
        return run + torch.repeat_interleave(offset, borders.diff())

    def _held(self, state: HybridState | None) -> tuple[BlockState | KeyValueCache | None, ...]:
        if state is None:
            return (None,) * len(self.layers)
        if len(state.layers) != len(self.layers):
            raise InputError(
                f"the state is of {len(state.layers)} layers, the model has {len(self.layers)}",
                code="wrong_state", place="state", remedy="Use a state that this model returned.",
            )  # fmt: skip
        return state.layers


class NoMemory(nn.Module):
    """In the place of an `EventMemory` of no channels: tokens pass as they are."""

    def forward(
        self, x: Tensor, gap_hours: Tensor, cu_seqlens: Tensor, *, return_state: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The tokens, and a state that holds nothing."""
        return (x, x.new_zeros(len(cu_seqlens) - 1, 0, 1)) if return_state else x

    def step(
        self, x: Tensor, gap_hours: Tensor, state: Tensor, source_slots: Tensor | None = None,
        target_slots: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The tokens."""
        return x


def _slots(name: str, slots: Tensor | None, x: Tensor, n_rows: int) -> Int[Tensor, " row"]:
    if slots is None:
        slots = torch.arange(len(x), device=x.device)
    if slots.shape != (len(x),) or not bool(((slots >= 0) & (slots < n_rows)).all()):
        raise InputError(
            f"{name} must name one of the state's {n_rows} rows for each of {len(x)} tokens",
            code="slot_out_of_range", place=name, remedy="HybridState.with_rows makes more rows.",
        )  # fmt: skip
    return slots
