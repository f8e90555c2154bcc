"""A linear memory of events in real time: decayed sums at many time constants.

    m_t = exp(-kappa g_t) m_{t-1} + W e_t          x_t = e_t + V asinh(m_t)

with a rate kappa of its own for every channel, log-spaced from half an hour to decades. It is the
selective scan without the selection. What clinical scores are made of, it holds after one linear
map: a decayed count of a code is a sum of its embeddings; a last value is the undecayed sum of a
code's increments, since they telescope; a recent trend is their decayed sum. The blocks that follow
select and combine; they need not learn to count.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tsfm.kernels.selective_scan import selective_scan
from tsfm.kernels.state_update import state_update


class EventMemory(nn.Module):
    """Adds decayed sums of a subject's token embeddings to each token.

    Args:
        d_model: Width of the embeddings.
        width: Channels of the memory.
        fastest_hours: Time constant of the fastest channel at the start.
        slowest_hours: Time constant of the slowest channel at the start.
    """

    decay: Tensor

    def __init__(
        self, d_model: int, *, width: int, fastest_hours: float, slowest_hours: float
    ) -> None:
        """Spread the rates evenly over the logarithm of time."""
        super().__init__()
        self.write = nn.Linear(d_model, width, bias=False)
        self.read = nn.Linear(width, d_model, bias=False)
        hours = torch.logspace(math.log10(fastest_hours), math.log10(slowest_hours), width)
        self.log_rate = nn.Parameter(-torch.log(hours[torch.randperm(width)]))
        self.register_buffer("decay", -torch.ones(width, 1), persistent=False)

    def forward(
        self,
        x: Float[Tensor, "token model"],
        gap_hours: Float[Tensor, " token"],
        cu_seqlens: Int[Tensor, " borders"],
        *,
        return_state: bool = False,
    ) -> Float[Tensor, "token model"] | tuple[Float[Tensor, "token model"], Tensor]:
        """Map packed token embeddings; see `Mamba.forward`.

        The state, if it is asked for, is what each subject's memory holds at its end,
        (subject, width, 1).
        """
        written, form = self._scan(x, gap_hours)
        scanned = selective_scan(
            *written, **form, cu_seqlens=cu_seqlens, return_final_state=return_state
        )
        held, *last_state = scanned if return_state else (scanned,)
        y = x + self.read(torch.asinh(held))
        return (y, *last_state) if return_state else y

    def step(
        self,
        x: Float[Tensor, "row model"],
        gap_hours: Float[Tensor, " row"],
        state: Float[Tensor, "slot width 1"],
        source_slots: Int[Tensor, " row"] | None = None,
        target_slots: Int[Tensor, " row"] | None = None,
    ) -> Float[Tensor, "row model"]:
        """One token for each row, the state updated in place and no gradient; see `Mamba.step`."""
        with torch.no_grad():
            written, form = self._scan(x, gap_hours)
            slots = {"source_slots": source_slots, "target_slots": target_slots}
            return x + self.read(torch.asinh(state_update(state, *written, **form, **slots)))

    def _scan(self, x: Tensor, gap_hours: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """The scan without the selection: no step of content, and everything is let in and out."""
        written = self.write(x)
        one = written.new_ones(len(written), 1)
        form = {"gap": gap_hours, "gap_rate": torch.exp(self.log_rate), "input": "impulse"}
        return (written, torch.zeros_like(written), self.decay, one, one), form
