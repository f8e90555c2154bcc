"""The Mamba block in real time, and a stack of them: the backbone of our timeline models.

A block is Mamba-1's (Gu and Dao 2023, figure 3): projection, short causal convolution, selective
scan, gate, projection. Two things are ours. The scan feels real hours: every channel has a rate
kappa, log-spaced at the start from minutes to decades, by which the gap since the last token decays
its state. And what enters is an impulse, since a token is an event and not a sampled value. A norm
before the last projection keeps the state's size in check, because impulses add up where Euler
steps average. `MambaConfig.mamba1` leaves all of that out: then a block is Mamba-1 exactly.

Batches are packed: no padding, and a new subject resets the convolution and the state. What a
subject has left behind, a `MambaState`, continues it: by another stretch of tokens (`forward`) or
one token at a time for many subjects (`step`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tsfm.errors import InputError
from tsfm.kernels.argument_checks import wrong_shape
from tsfm.kernels.causal_conv import causal_conv1d
from tsfm.kernels.gated_norm import gated_rms_norm
from tsfm.kernels.selective_scan import selective_scan
from tsfm.kernels.state_update import state_update


@dataclass(frozen=True)
class MambaConfig:
    """Sizes and form of a Mamba backbone.

    Attributes:
        d_model: Width between blocks.
        n_layers: Blocks.
        d_state: State components a channel (N).
        expand: Channels of the scan in multiples of `d_model`.
        d_conv: Taps of the causal convolution.
        dropout: On each block's output, in training.
        input: Kind of scan input, see `tsfm.kernels.selective_scan`.
        fastest_hours: Time constant of the fastest channel at the start.
        slowest_hours: Time constant of the slowest channel at the start.
        inner_norm: Normalise what leaves the scan, before the last projection.
        real_time: Let the hours between tokens decay the state; if not, gaps are not looked at.
        conv_bias: Whether the convolution has a bias.
        proj_bias: Whether the first and the last projection have one.
        dt_rank: Width of the step before its projection; None is `d_model` / 16, rounded up.
        norm_eps: Added to the mean square in every norm.
    """

    d_model: int = 64
    n_layers: int = 2
    d_state: int = 8
    expand: int = 2
    d_conv: int = 4
    dropout: float = 0.1
    input: str = "impulse"
    fastest_hours: float = 0.5
    slowest_hours: float = 175_320.0
    inner_norm: bool = True
    real_time: bool = True
    conv_bias: bool = True
    proj_bias: bool = False
    dt_rank: int | None = None
    norm_eps: float = 1e-5

    @classmethod
    def mamba1(cls, **sizes: Any) -> MambaConfig:
        """Mamba-1 as published: Euler input, no real time, no inner norm, 16 state components."""
        published = {"d_state": 16, "dropout": 0.0, "input": "euler"}
        return cls(**{**published, "inner_norm": False, "real_time": False, **sizes})


class BlockState(NamedTuple):
    """What one block carries from token to token, a row a sequence.

    Attributes:
        conv: Last inputs of the convolution, oldest first, (row, channel, d_conv - 1).
        scan: State of the scan, (row, channel, d_state); twice as wide for foh.
    """

    conv: Tensor
    scan: Tensor


@dataclass(frozen=True)
class MambaState:
    """What a stack carries from token to token: its memory of each sequence, a row each.

    Attributes:
        blocks: One state a block, all with the same rows.
    """

    blocks: tuple[BlockState, ...]

    def __len__(self) -> int:
        """Rows."""
        return self.blocks[0].scan.shape[0]

    def with_rows(self, n_rows: int) -> MambaState:
        """A detached copy with room for more: further rows are empty.

        Args:
            n_rows: Rows of the copy, at least as many as there are.

        Raises:
            InputError: Fewer than there are.
        """
        if n_rows < len(self):
            raise InputError(
                f"{n_rows} rows for a state of {len(self)}", code="too_few_rows", place="n_rows",
                remedy="Rows are added only; choose among them by slots.",
            )  # fmt: skip
        return MambaState(
            tuple(
                BlockState(*(_with_rows(held, n_rows) for held in block)) for block in self.blocks
            )
        )


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale a channel."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        """Start with unit scales."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rows channel"]) -> Float[Tensor, "*rows channel"]:
        """Divide by the root mean square over channels."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class MambaBlock(nn.Module):
    """One block: y = out(norm(scan(silu(conv(x))) * silu(z)))."""

    def __init__(self, config: MambaConfig) -> None:
        """Initialise as Mamba-1, with kappa log-spaced between the configured time constants."""
        super().__init__()
        self.config = config
        width = config.expand * config.d_model
        rank = config.dt_rank or max(1, math.ceil(config.d_model / 16))
        self.rank, self.width = rank, width
        self.in_proj = nn.Linear(config.d_model, 2 * width, bias=config.proj_bias)
        self.conv_weight = nn.Parameter(torch.empty(width, config.d_conv))
        nn.init.uniform_(self.conv_weight, -(config.d_conv**-0.5), config.d_conv**-0.5)
        self.conv_bias = nn.Parameter(torch.zeros(width)) if config.conv_bias else None
        self.x_proj = nn.Linear(width, rank + 2 * config.d_state, bias=False)
        self.dt_proj = nn.Linear(rank, width)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        # softplus(bias) log-uniform over two decades. Where time forgets, tokens hardly do.
        shortest = 1e-4 if config.real_time else 1e-3
        step = torch.exp(torch.rand(width) * math.log(100.0) + math.log(shortest))
        with torch.no_grad():
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))
        self.A_log = nn.Parameter(
            torch.log(torch.arange(1, config.d_state + 1).float()).repeat(width, 1)
        )
        self.D = nn.Parameter(torch.ones(width))
        self.log_gap_rate = None
        if config.real_time:
            hours = torch.logspace(
                math.log10(config.fastest_hours), math.log10(config.slowest_hours), width
            )
            # Shuffled, so that a channel's rate is not tied to its place in the projections.
            self.log_gap_rate = nn.Parameter(-torch.log(hours[torch.randperm(width)]))
        self.norm = RMSNorm(width, config.norm_eps) if config.inner_norm else None
        self.out_proj = nn.Linear(width, config.d_model, bias=config.proj_bias)

    def forward(
        self,
        x: Float[Tensor, "token model"],
        gap_hours: Float[Tensor, " token"] | None = None,
        cu_seqlens: Int[Tensor, " borders"] | None = None,
        *,
        state: BlockState | None = None,
        return_state: bool = False,
    ) -> Float[Tensor, "token model"] | tuple[Float[Tensor, "token model"], BlockState]:
        """Map packed tokens; see `Mamba.forward`."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        mixed = causal_conv1d(
            u,
            self.conv_weight,
            self.conv_bias,
            cu_seqlens=cu_seqlens,
            initial_state=None if state is None else state.conv,
            return_final_state=return_state,
            activation="silu",
        )
        u, *last_inputs = mixed if return_state else (mixed,)
        scanned = selective_scan(
            u,
            *self._selection(u),
            **self._form(z, gap_hours),
            cu_seqlens=cu_seqlens,
            initial_state=None if state is None else state.scan,
            return_final_state=return_state,
        )
        y, *last_state = scanned if return_state else (scanned,)
        y = self._project_out(y, u, z)
        return (y, BlockState(*last_inputs, *last_state)) if return_state else y

    def step(
        self,
        x: Float[Tensor, "row model"],
        gap_hours: Float[Tensor, " row"] | None,
        state: BlockState,
        source_slots: Int[Tensor, " row"] | None = None,
        target_slots: Int[Tensor, " row"] | None = None,
    ) -> Float[Tensor, "row model"]:
        """One token for each row, the state updated in place; see `Mamba.step`."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        rows = len(x)
        before = state.conv[:rows] if source_slots is None else state.conv[source_slots]
        # A row is a sequence of one token.
        u, last_inputs = causal_conv1d(
            u.unsqueeze(1),
            self.conv_weight,
            self.conv_bias,
            initial_state=before,
            return_final_state=True,
            activation="silu",
        )
        u = u.squeeze(1)
        y = state_update(
            state.scan,
            u,
            *self._selection(u),
            **self._form(z, gap_hours),
            source_slots=source_slots,
            target_slots=target_slots,
        )
        state.conv[slice(rows) if target_slots is None else target_slots] = last_inputs
        return self._project_out(y, u, z)

    def _selection(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Step, rates, input gate and read-out that the content asks for."""
        sizes = [self.rank, self.config.d_state, self.config.d_state]
        step, B, C = self.x_proj(u).split(sizes, dim=-1)
        return F.linear(step, self.dt_proj.weight), -torch.exp(self.A_log), B, C

    def _form(self, z: Tensor, gap_hours: Tensor | None) -> dict[str, Any]:
        """What the scan does beyond the recurrence; a norm keeps skip and gate to itself."""
        form: dict[str, Any] = {"delta_bias": self.dt_proj.bias, "delta_softplus": True}
        form["input"] = self.config.input
        if self.norm is None:
            form |= {"D": self.D, "z": z}
        if self.log_gap_rate is not None:
            if gap_hours is None:
                raise InputError(
                    "a model in real time was given no gaps", code="missing_gap",
                    place="gap_hours", remedy="Give the hours since each subject's last token.",
                )  # fmt: skip
            form |= {"gap": gap_hours, "gap_rate": torch.exp(self.log_gap_rate)}
        return form

    def _project_out(self, y: Tensor, u: Tensor, z: Tensor) -> Tensor:
        if self.norm is not None:
            y = gated_rms_norm(y, u, z, self.D, self.norm.weight, self.norm.eps)
        return self.out_proj(y)


class Mamba(nn.Module):
    """A stack of pre-norm residual blocks over packed tokens."""

    def __init__(self, config: MambaConfig) -> None:
        """Build `config.n_layers` blocks."""
        super().__init__()
        self.config = config
        eps = config.norm_eps
        self.norms = nn.ModuleList(RMSNorm(config.d_model, eps) for _ in range(config.n_layers))
        self.blocks = nn.ModuleList(MambaBlock(config) for _ in range(config.n_layers))
        self.final_norm = RMSNorm(config.d_model, eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "token model"],
        gap_hours: Float[Tensor, " token"] | None = None,
        cu_seqlens: Int[Tensor, " borders"] | None = None,
        *,
        state: MambaState | None = None,
        return_state: bool = False,
    ) -> Float[Tensor, "token model"] | tuple[Float[Tensor, "token model"], MambaState]:
        """Encode packed tokens.

        Args:
            x: Token embeddings.
            gap_hours: Hours since the previous token of the same subject; what a subject's first
                token holds matters only after a state. Needed if the model is in real time.
            cu_seqlens: Borders of the subjects, from 0 to the number of tokens; None is one.
            state: What each subject has left behind, a row each; gradients flow into it.
            return_state: Also return what each subject leaves behind now.

        Returns:
            Hidden states, each of which depends on tokens at or before its own position only; or
            those and the state.

        Raises:
            InputError: The arguments do not fit each other or the model.
        """
        if x.dim() != 2 or x.shape[1] != self.config.d_model:
            raise wrong_shape("x", x, f"(T, {self.config.d_model})")
        states = [None] * len(self.blocks) if state is None else self._states(state)
        left: list[BlockState] = []
        for norm, block, before in zip(self.norms, self.blocks, states, strict=True):
            y = block(norm(x), gap_hours, cu_seqlens, state=before, return_state=return_state)
            if return_state:
                y, after = y
                left.append(after)
            x = x + self.dropout(y)
        x = self.final_norm(x)
        return (x, MambaState(tuple(left))) if return_state else x

    @torch.no_grad()
    def step(
        self,
        x: Float[Tensor, "row model"],
        gap_hours: Float[Tensor, " row"] | None,
        state: MambaState,
        source_slots: Int[Tensor, " row"] | None = None,
        target_slots: Int[Tensor, " row"] | None = None,
    ) -> Float[Tensor, "row model"]:
        """Take one more token of many subjects, without gradients and without dropout.

        Args:
            x: Embedding of each row's token.
            gap_hours: Hours since the token before it. Needed if the model is in real time.
            state: Rows to read and to write, changed in place. Get it from `forward`.
            source_slots: Row of the state that each token continues; None is the first ones. One
                row may be continued by many tokens: a rollout forks it.
            target_slots: Row that takes the state after each token, all different; None likewise.
                All rows are read before any is written.

        Returns:
            Hidden state of each token, as `forward` gives it.

        Raises:
            InputError: The arguments do not fit each other or the model.
        """
        if x.dim() != 2 or x.shape[1] != self.config.d_model:
            raise wrong_shape("x", x, f"(R, {self.config.d_model})")
        for name, slots in (("source_slots", source_slots), ("target_slots", target_slots)):
            _check_slots(name, slots, len(x), len(state))
        for norm, block, held in zip(self.norms, self.blocks, self._states(state), strict=True):
            assert isinstance(block, MambaBlock)
            x = x + block.step(norm(x), gap_hours, held, source_slots, target_slots)
        return self.final_norm(x)

    def _states(self, state: MambaState) -> tuple[BlockState, ...]:
        if len(state.blocks) != len(self.blocks):
            raise InputError(
                f"the state is of {len(state.blocks)} blocks, the model has {len(self.blocks)}",
                code="wrong_state", place="state", remedy="Use a state that this model returned.",
            )  # fmt: skip
        return state.blocks


def _check_slots(name: str, slots: Tensor | None, n_tokens: int, n_rows: int) -> None:
    if slots is None:
        fits = n_tokens <= n_rows
    elif slots.dtype not in (torch.int32, torch.int64):
        raise InputError(
            f"{name} holds {slots.dtype}, not int32 or int64", code="wrong_type", place=name,
            remedy="Convert it to int64 first.",
        )  # fmt: skip
    else:
        fits = slots.shape == (n_tokens,) and bool(((slots >= 0) & (slots < n_rows)).all())
    if not fits:
        raise InputError(
            f"{name} must name one of the state's {n_rows} rows for each of {n_tokens} tokens",
            code="slot_out_of_range", place=name, remedy="MambaState.with_rows makes more rows.",
        )  # fmt: skip


def _with_rows(held: Tensor, n_rows: int) -> Tensor:
    table = held.new_zeros(n_rows, *held.shape[1:])
    table[: len(held)] = held.detach()
    return table
