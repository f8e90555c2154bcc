"""The Mamba block in real time, and a stack of them: the backbone of our timeline models.

A block is Mamba-1's (Gu and Dao 2023, figure 3): projection, short causal convolution, selective
scan, gate, projection. Two things are ours. The scan feels real hours: every channel has a rate
kappa, log-spaced at the start from minutes to decades, by which the gap since the last token decays
its state. And what enters is an impulse, since a token is an event and not a sampled value. A norm
before the last projection keeps the state's size in check, because impulses add up where Euler
steps average.

Batches are packed: no padding, and a new subject resets the convolution and the state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tsfm.kernels.causal_conv import causal_conv1d
from tsfm.kernels.gated_norm import gated_rms_norm
from tsfm.kernels.selective_scan import selective_scan


@dataclass(frozen=True)
class MambaConfig:
    """Sizes of a Mamba backbone.

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
    """One block: y = out(norm(scan(conv(x))) * silu(z)))."""

    def __init__(self, config: MambaConfig) -> None:
        """Initialise as Mamba-1, with kappa log-spaced between the configured time constants."""
        super().__init__()
        self.config = config
        width = config.expand * config.d_model
        rank = max(1, math.ceil(config.d_model / 16))
        self.rank, self.width = rank, width
        self.in_proj = nn.Linear(config.d_model, 2 * width, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(width, config.d_conv))
        nn.init.uniform_(self.conv_weight, -(config.d_conv**-0.5), config.d_conv**-0.5)
        self.conv_bias = nn.Parameter(torch.zeros(width))
        self.x_proj = nn.Linear(width, rank + 2 * config.d_state, bias=False)
        self.dt_proj = nn.Linear(rank, width)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        # softplus(bias) log-uniform in 0.0001 .. 0.01: time forgets, tokens hardly do.
        step = torch.exp(torch.rand(width) * math.log(100.0) + math.log(1e-4))
        with torch.no_grad():
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))
        self.A_log = nn.Parameter(
            torch.log(torch.arange(1, config.d_state + 1).float()).repeat(width, 1)
        )
        self.D = nn.Parameter(torch.ones(width))
        hours = torch.logspace(
            math.log10(config.fastest_hours), math.log10(config.slowest_hours), width
        )
        # Shuffled, so that a channel's rate is not tied to its place in the projections.
        self.log_gap_rate = nn.Parameter(-torch.log(hours[torch.randperm(width)]))
        self.norm = RMSNorm(width)
        self.out_proj = nn.Linear(width, config.d_model, bias=False)

    def forward(
        self,
        x: Float[Tensor, "token model"],
        gap_hours: Float[Tensor, " token"],
        position: Int[Tensor, " token"],
        cu_seqlens: Int[Tensor, " borders"],
    ) -> Float[Tensor, "token model"]:
        """Map packed tokens; see `Mamba.forward`."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(causal_conv1d(u.contiguous(), self.conv_weight, self.conv_bias, position))
        parts = self.x_proj(u).split([self.rank, self.config.d_state, self.config.d_state], dim=-1)
        y = selective_scan(
            u,
            F.linear(parts[0], self.dt_proj.weight),
            -torch.exp(self.A_log),
            parts[1].contiguous(),
            parts[2].contiguous(),
            gap=gap_hours,
            gap_rate=torch.exp(self.log_gap_rate),
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
            input=self.config.input,
            cu_seqlens=cu_seqlens,
        )
        return self.out_proj(gated_rms_norm(y, u, z, self.D, self.norm.weight, self.norm.eps))


class Mamba(nn.Module):
    """A stack of pre-norm residual blocks over packed tokens."""

    def __init__(self, config: MambaConfig) -> None:
        """Build `config.n_layers` blocks."""
        super().__init__()
        self.config = config
        self.norms = nn.ModuleList(RMSNorm(config.d_model) for _ in range(config.n_layers))
        self.blocks = nn.ModuleList(MambaBlock(config) for _ in range(config.n_layers))
        self.final_norm = RMSNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "token model"],
        gap_hours: Float[Tensor, " token"],
        position: Int[Tensor, " token"],
        cu_seqlens: Int[Tensor, " borders"],
    ) -> Float[Tensor, "token model"]:
        """Encode packed tokens.

        Args:
            x: Token embeddings.
            gap_hours: Hours since the previous token of the same subject; 0 for its first.
            position: Position within the subject, from 0.
            cu_seqlens: Borders of the subjects, from 0 to the number of tokens.

        Returns:
            Hidden states; each depends on tokens at or before its own position only.
        """
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + self.dropout(block(norm(x), gap_hours, position, cu_seqlens))
        return self.final_norm(x)
