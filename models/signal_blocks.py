"""Scan blocks over the tokens of a signal: selective, or time-invariant by a switch.

A block is Mamba's (Gu and Dao 2023, figure 3) on a residual: projection, short convolution, scan,
gate, projection. Forwards alone it can stream; with a second scan from the end, which shares the
projections, every token has seen the whole record. The scan is `selective_scan`, or `lti_scan`,
whose filters are the same whatever the signal; which of them serves a signal better is to be tried
(`benchmarks/ptbxl.py` prints both).

Where nothing was measured nothing enters, and a state only goes on in time.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tsfm.kernels.causal_conv import causal_conv1d
from tsfm.kernels.lti_scan import lti_scan
from tsfm.kernels.selective_scan import selective_scan
from tsfm.models.mamba import RMSNorm

_TAPS = 4
_FASTEST, _SLOWEST = 0.5, 0.005  # steps of the scan, of a token


class SignalState(NamedTuple):
    """What one block carries from chunk to chunk.

    Attributes:
        conv: Last inputs of the convolution, (batch, channel, taps - 1).
        scan: State of the scan, (batch, channel, state).
    """

    conv: Tensor
    scan: Tensor


class _Direction(nn.Module):
    """Convolution and scan in one direction."""

    def __init__(self, width: int, d_state: int, *, selective: bool, reverse: bool) -> None:
        super().__init__()
        self.selective, self.reverse, self.d_state = selective, reverse, d_state
        self.conv_weight = nn.Parameter(torch.empty(width, _TAPS))
        nn.init.uniform_(self.conv_weight, -(_TAPS**-0.5), _TAPS**-0.5)
        self.conv_bias = nn.Parameter(torch.zeros(width))
        low, high = math.log(_SLOWEST), math.log(_FASTEST)
        step = torch.exp(torch.rand(width) * (high - low) + low)
        if selective:
            self.rank = max(1, width // 16)
            self.x_proj = nn.Linear(width, self.rank + 2 * d_state, bias=False)
            self.dt_weight = nn.Parameter(torch.empty(width, self.rank))
            nn.init.uniform_(self.dt_weight, -(self.rank**-0.5), self.rank**-0.5)
            self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
            self.A_log = nn.Parameter(
                torch.log(torch.arange(1, d_state + 1).float()).repeat(width, 1)
            )
        else:
            self.log_step = nn.Parameter(step.log())
            self.log_decay = nn.Parameter(torch.full((width, d_state), math.log(0.5)))
            self.pitch = nn.Parameter(math.pi * torch.arange(d_state).float().repeat(width, 1))
            self.C = nn.Parameter(torch.randn(width, d_state, 2) * math.sqrt(2.0))

    def forward(
        self, u: Tensor, mask: Tensor, state: SignalState | None, return_state: bool
    ) -> tuple[Tensor, SignalState | None]:
        mixed = causal_conv1d(
            u, self.conv_weight, self.conv_bias, activation="silu", reverse=self.reverse,
            initial_state=None if state is None else state.conv, return_final_state=return_state,
        )  # fmt: skip
        u, *tail = mixed if return_state else (mixed,)
        u = u * mask
        held = None if state is None else state.scan
        if self.selective:
            scanned = self._select(u, held, return_state)
        else:
            step = self.log_step.exp().unsqueeze(1)
            rate = torch.complex(-self.log_decay.exp() * step, self.pitch * step)
            C = torch.view_as_complex(self.C) * step
            scanned = lti_scan(
                u, rate, C, initial_state=held, return_final_state=return_state,
                reverse=self.reverse,
            )  # fmt: skip
        y, *last = scanned if return_state else (scanned,)
        return y, SignalState(*tail, *last) if return_state else None

    def _select(self, u: Tensor, held: Tensor | None, return_state: bool) -> Any:
        sizes = [self.rank, self.d_state, self.d_state]
        step, B, C = self.x_proj(u).split(sizes, dim=-1)
        return selective_scan(
            u, F.linear(step, self.dt_weight), -torch.exp(self.A_log), B.contiguous(),
            C.contiguous(), delta_bias=self.dt_bias, delta_softplus=True, input="euler",
            initial_state=held, return_final_state=return_state, reverse=self.reverse,
        )  # fmt: skip


class SignalBlock(nn.Module):
    """One pre-norm residual block over the tokens of a signal.

    Args:
        d_model: Width of a token.
        expand: Channels of the scan in multiples of `d_model`.
        d_state: Components a channel; complex ones if time-invariant.
        selective: `selective_scan`, or `lti_scan`.
        causal: One scan forwards, or one in each direction.
        dropout: On what is added to the token, in training.
    """

    def __init__(
        self, d_model: int, *, expand: int, d_state: int, selective: bool, causal: bool,
        dropout: float,
    ) -> None:  # fmt: skip
        """Build projections that both directions share."""
        super().__init__()
        width = expand * d_model
        self.norm = RMSNorm(d_model)
        self.in_proj = nn.Linear(d_model, 2 * width, bias=False)
        self.forwards = _Direction(width, d_state, selective=selective, reverse=False)
        self.backwards = None
        if not causal:
            self.backwards = _Direction(width, d_state, selective=selective, reverse=True)
        self.skip = nn.Parameter(torch.ones(width))
        self.out_proj = nn.Linear(width, d_model, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch token model"],
        mask: Bool[Tensor, "batch token"],
        state: SignalState | None = None,
        *,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "batch token model"], SignalState | None]:
        """Map tokens; a causal block can go on from a state.

        Args:
            x: Tokens.
            mask: Which of them were measured.
            state: What the tokens before have left behind.
            return_state: Also return what these leave behind.
        """
        there = mask.unsqueeze(-1).to(x.dtype)
        u, z = self.in_proj(self.norm(x)).chunk(2, dim=-1)
        u = u * there
        y, left = self.forwards(u, there, state, return_state)
        if self.backwards is not None:
            y = y + self.backwards(u, there, None, False)[0]
        y = (y + self.skip * u) * F.silu(z)
        return x + self.dropout(self.out_proj(y)), left
