"""Keys and values of points that came before, kept so that none is made twice.

A key is turned by the time of its own point alone (`attention`), so that neither it nor its value
changes with what comes later: a stream makes them once and a forecast looks at all that are held.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor, nn

from tsfm.models.attention import CrossAttention
from tsfm.models.ct_rope import rotate
from tsfm.models.mamba import RMSNorm

_LEAST_ROOM = 64


class GrowingRows:
    """Rows in order of arrival; room is doubled where it does not suffice.

    Attributes:
        n: Rows so far.
    """

    def __init__(self, none: Tensor) -> None:
        """Begin with no rows of this kind."""
        self.n, self._room = 0, none

    @property
    def held(self) -> Tensor:
        """All rows, a view."""
        return self._room[: self.n]

    def append(self, rows: Tensor) -> None:
        """Add rows behind the others."""
        end = self.n + len(rows)
        if end > len(self._room):
            n_room = max(end, 2 * len(self._room), _LEAST_ROOM)
            room = self._room.new_empty(n_room, *self._room.shape[1:])
            room[: self.n] = self.held
            self._room = room
        self._room[self.n : end] = rows
        self.n = end


class KeptPoints(nn.Module):
    """A cross-attention whose points are kept as turned keys and values.

    Attributes:
        groups: Series of each group of queries, where a group sees its own series only.
    """

    groups: Tensor | None

    def __init__(self, attention: CrossAttention, norm: RMSNorm, *, own_series: bool) -> None:
        """Keep nothing yet; the parameters are those of `attention` and of its points' norm."""
        super().__init__()
        self.attention, self.norm, self.own_series = attention, norm, own_series
        none = attention.key.weight.new_zeros(0, attention.n_kv_heads, attention.head_dim)
        self._keys, self._values = GrowingRows(none), GrowingRows(none)
        self._series = GrowingRows(torch.zeros(0, dtype=torch.int64, device=none.device))
        self.groups = None

    @property
    def n_points(self) -> int:
        """Points kept."""
        return self._keys.n

    @property
    def held(self) -> tuple[Tensor, Tensor]:
        """Turned keys and values, (point, head, channel) each."""
        return self._keys.held, self._values.held

    def take(
        self, points: Float[Tensor, "point model"], seconds: Float64[Tensor, " point"],
        series: Tensor,
    ) -> None:  # fmt: skip
        """Keep further points: their hidden states, times for the bank and series."""
        x, attention = self.norm(points), self.attention
        turn = attention.rotary(seconds, None, x.dtype)
        shape = (-1, attention.n_kv_heads, attention.head_dim)
        keys = rotate(attention.key(x).view(shape), *turn)
        self._append(keys, attention.value(x).view(shape), series)

    def _append(self, keys: Tensor, values: Tensor, series: Tensor) -> None:
        self._keys.append(keys)
        self._values.append(values)
        if self.own_series:
            self._series.append(series)

    def forward(
        self, query: Float[Tensor, "query model"], query_seconds: Float64[Tensor, " query"],
        context: Tensor, context_seconds: Tensor, cu_queries: Tensor, cu_context: Tensor,
    ) -> Float[Tensor, "query model"]:  # fmt: skip
        """What `CrossAttention.forward` gives for all points kept, whatever `context` holds."""
        if not len(query):
            return query
        attention, mask = self.attention, None
        if self.own_series and len(cu_queries) > 2:
            # Where every series has points, groups are all series, else those with points: the same
            assert self.groups is not None
            group = torch.repeat_interleave(self.groups, cu_queries.diff())
            mask = group.unsqueeze(1) == self._series.held
        turn = attention.rotary(query_seconds, None, query.dtype)
        q = rotate(attention.query(query).unflatten(-1, (-1, attention.head_dim)), *turn)
        return attention.out(attend_rows(q, *self.held, mask))


def attend_rows(
    q: Float[Tensor, "query head channel"], keys: Float[Tensor, "point kv_head channel"],
    values: Float[Tensor, "point kv_head channel"], mask: Tensor | None = None,
) -> Float[Tensor, "query model"]:  # fmt: skip
    """Attention of one sequence, heads put side by side.

    Args:
        q: Turned queries.
        keys: Turned keys.
        values: Their values.
        mask: Which keys a query sees, (query, point); None is all.
    """
    shared = q.shape[1] != keys.shape[1]
    q, keys, values = (x.transpose(0, 1)[None] for x in (q, keys, values))
    y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=shared)
    return y[0].transpose(0, 1).flatten(1)
