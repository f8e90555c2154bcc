"""The stem of the biosignal encoder: leads on a grid of time become one stream of tokens.

Every lead passes the same short filters, and a matrix of its own carries what they say into the
token: a lead is known by its name, never by its place, so any subset in any order gives the same
tokens. What a missing lead would have said is left out and the rest is scaled up, and a vector a
lead tells which ones were there. Filters have lengths in seconds, since the grid does.

Amplitudes are not normalised away: batch norms divide by constants. In training, though, a norm's
statistics are over all points of the batch, those too at which nothing was measured and which hold
zeros or an offset: pad little, or train on records of one length, or the norms come to expect the
padding. Convolutions look backwards only (`causal`), or to both sides.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class StemState(NamedTuple):
    """What each convolution has yet to use, and how many points the next chunk leaves out."""

    held: tuple[Tensor, ...]


class StridedConv(nn.Conv1d):
    """Convolution of `kernel_size` taps; output j stands at input `stride` * j.

    With `causal` it sees nothing behind that input; otherwise as much on either side.
    """

    def __init__(
        self, n_in: int, n_out: int, kernel_size: int, stride: int = 1, *, causal: bool,
        bias: bool = False,
    ) -> None:  # fmt: skip
        """Build without torch's own padding."""
        super().__init__(n_in, n_out, kernel_size, stride, bias=bias)
        self.behind = kernel_size - 1 if causal else (kernel_size - 1) // 2
        self.ahead = 0 if causal else kernel_size - 1 - self.behind

    def forward(self, input: Float[Tensor, "row channel point"]) -> Tensor:
        """Whole records: outputs are as many as strides begun."""
        n_points, stride = input.shape[-1], self.stride[0]
        last = stride * ((n_points - 1) // stride)
        ahead = max(0, self.ahead - (n_points - 1 - last))
        return super().forward(F.pad(input, (self.behind, ahead)))

    def go_on(self, input: Tensor, held: Tensor | None) -> tuple[Tensor, Tensor]:
        """A chunk of a causal stream: its outputs, and the inputs that the next ones need."""
        if held is None:
            held = input.new_zeros(*input.shape[:-1], self.behind)
        input = torch.cat([held, input], -1)
        taps, stride = self.kernel_size[0], self.stride[0]
        n = max(0, (input.shape[-1] - taps) // stride + 1)
        if n == 0:
            return input.new_zeros(input.shape[0], self.out_channels, 0), input
        y = super().forward(input[..., : (n - 1) * stride + taps])
        return y, input[..., n * stride :]


class LeadStem(nn.Module):
    """Tokens from leads; four grid points a token.

    Args:
        n_slots: Leads that have a name.
        n_filters: Filters that all leads share.
        width: Channels between the convolutions.
        d_model: Width of a token.
        taps: Length of the shared filters in grid points.
        causal: Whether tokens see nothing after their own moment.
        usual_leads: How many leads the tokens' scale is made for.
    """

    points_a_token = 4

    def __init__(
        self, n_slots: int, *, n_filters: int, width: int, d_model: int, taps: int, causal: bool,
        usual_leads: int = 12,
    ) -> None:  # fmt: skip
        """Start with matrices that keep the scale when all usual leads are there."""
        super().__init__()
        self.filters = StridedConv(1, n_filters, taps, 2, causal=causal)
        self.mix = nn.Parameter(torch.randn(n_slots, n_filters, width))
        with torch.no_grad():
            self.mix.mul_((n_filters * usual_leads) ** -0.5)
        self.presence = nn.Parameter(torch.zeros(n_slots, width))
        self.norm = nn.BatchNorm1d(width)
        self.first = StridedConv(width, width, 5, causal=causal)
        self.first_norm = nn.BatchNorm1d(width)
        self.second = StridedConv(width, width, 5, causal=causal)
        self.second_norm = nn.BatchNorm1d(width)
        self.down = StridedConv(width, d_model, 5, 2, causal=causal)
        self.down_norm = nn.BatchNorm1d(d_model)
        self.usual_leads = usual_leads

    def forward(
        self,
        values: Float[Tensor, "batch lead point"],
        known: Bool[Tensor, "batch lead point"],
        slots: Int[Tensor, " lead"],
    ) -> tuple[Float[Tensor, "batch token model"], Bool[Tensor, "batch token"]]:
        """Tokens of whole records, and which of them any lead was known for."""
        batch, leads, _ = values.shape
        heard = self.filters(values.reshape(batch * leads, 1, -1))
        there = known[..., ::2]
        x = self._mix(heard.reshape(batch, leads, -1, heard.shape[-1]), there, slots)
        mask = there.any(1)
        x = F.silu(self.norm(x)) * mask.unsqueeze(1)
        y = F.silu(self.first_norm(self.first(x))) * mask.unsqueeze(1)
        x = F.silu(x + self.second_norm(self.second(y))) * mask.unsqueeze(1)
        mask = mask[:, ::2]
        x = F.silu(self.down_norm(self.down(x))) * mask.unsqueeze(1)
        return x.transpose(1, 2), mask

    def go_on(
        self, values: Tensor, known: Tensor, slots: Tensor, state: StemState | None
    ) -> tuple[Tensor, Tensor, StemState]:
        """A chunk of a stream: its tokens, their mask and the state, see `forward`."""
        held: list[Tensor | None] = list(state.held) if state is not None else [None] * 6
        batch, leads, _ = values.shape
        heard, held[0] = self.filters.go_on(values.reshape(batch * leads, 1, -1), held[0])
        there, held[1] = _every_other(known, held[1])
        x = self._mix(heard.reshape(batch, leads, heard.shape[1], -1), there, slots)
        mask = there.any(1)
        x = F.silu(self.norm(x)) * mask.unsqueeze(1)
        y, held[2] = self.first.go_on(x, held[2])
        y = F.silu(self.first_norm(y)) * mask.unsqueeze(1)
        y, held[3] = self.second.go_on(y, held[3])
        x = F.silu(x + self.second_norm(y)) * mask.unsqueeze(1)
        x, held[4] = self.down.go_on(x, held[4])
        mask, held[5] = _every_other(mask, held[5])
        x = F.silu(self.down_norm(x)) * mask.unsqueeze(1)
        assert all(tensor is not None for tensor in held)
        return x.transpose(1, 2), mask, StemState(tuple(t for t in held if t is not None))

    def _mix(self, heard: Tensor, there: Tensor, slots: Tensor) -> Tensor:
        """(batch, lead, filter, point) to (batch, width, point)."""
        batch, leads, filters, points = heard.shape
        weight = there.to(heard.dtype)
        n_there = weight.sum(1, keepdim=True).clamp(min=1.0)  # (batch, 1, point)
        rows = (heard * weight.unsqueeze(2)).reshape(batch, leads * filters, points)
        mix = self.mix[slots].reshape(leads * filters, -1)
        x = torch.einsum("brp,rc->bcp", rows, mix) * (self.usual_leads / n_there).sqrt()
        said = torch.einsum("blp,lc->bcp", weight, self.presence[slots]) / n_there
        return x + said


def _every_other(known: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """Every second point of a stream, and whether the next chunk begins with one to leave out."""
    skip = 0 if before is None else int(before)
    left = (skip + known.shape[-1]) % 2
    kept = known[..., skip::2]
    return kept, torch.tensor(left)
