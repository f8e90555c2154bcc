"""Attention over packed sequences in continuous time, and the cache that decoding needs.

Queries and keys are turned by their absolute times (`ct_rope`), so a score depends on what two
points are and on the time between them. Sequences lie end to end and never meet: those of like
length share one call of torch's attention, padded by less than a fourth. Causal means the order of
the points, which is the order of knowing, not that of their times.

Since a key's phase depends on its own time alone, keys are kept already turned. A `KeyValueCache`
grows by each point and nothing in it changes, so that a further point costs one pass over the past.
Cached calls are for decoding and have no gradients; training sees whole sequences.

These are the attentions alone: norms, residuals and feed-forward layers are their model's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tsfm.errors import InputError
from tsfm.kernels.argument_checks import check_borders
from tsfm.models.ct_rope import ContinuousTimeRotary, RotaryConfig, rotate


@dataclass(frozen=True)
class AttentionConfig:
    """Sizes and form of an attention.

    Attributes:
        d_model: Width of what enters and leaves.
        n_heads: Query heads. A head has a frequency for every two channels: narrow ones tell time
            coarsely.
        n_kv_heads: Heads of keys and values, each shared by as many query heads; None is `n_heads`.
        causal: Self-attention sees no later point; cross-attention always sees the whole context.
        bias: Whether queries, keys and values have a bias.
        dropout: On the attention weights, in training.
        rotary: The bank of frequencies.
    """

    d_model: int = 64
    n_heads: int = 2
    n_kv_heads: int | None = None
    causal: bool = True
    bias: bool = False
    dropout: float = 0.0
    rotary: RotaryConfig = field(default_factory=RotaryConfig)


@dataclass
class KeyValueCache:
    """Turned keys and values of some sequences, a row each; `append` alone changes it.

    Attributes:
        keys: Keys in order of arrival, already turned; zero beyond a row's length.
        values: Values likewise.
        lengths: Points held of each row.
    """

    keys: Float[Tensor, "row slot kv_head channel"]
    values: Float[Tensor, "row slot kv_head channel"]
    lengths: Int[Tensor, " row"]

    def __len__(self) -> int:
        """Rows."""
        return len(self.lengths)

    def rows(self, rows: Int[Tensor, " chosen"]) -> KeyValueCache:
        """A copy of some rows, in the order given; a row asked for twice is forked."""
        return KeyValueCache(self.keys[rows], self.values[rows], self.lengths[rows])

    @torch.no_grad()
    def append(
        self,
        keys: Float[Tensor, "token kv_head channel"],
        values: Float[Tensor, "token kv_head channel"],
        cu_seqlens: Int[Tensor, " borders"],
    ) -> None:
        """Add points behind those of each row, in place; a row may get none.

        Args:
            keys: Turned keys of all rows, packed.
            values: Values likewise.
            cu_seqlens: Borders of the rows, checked by the caller.
        """
        added = cu_seqlens.diff()
        row = torch.repeat_interleave(torch.arange(len(self), device=keys.device), added)
        place = torch.arange(len(keys), device=keys.device) - cu_seqlens[row]
        slot = self.lengths[row] + place
        self._make_room(int((self.lengths + added).max()))
        self.keys[row, slot] = keys.to(self.keys.dtype)
        self.values[row, slot] = values.to(self.values.dtype)
        self.lengths = self.lengths + added

    def _make_room(self, n_slots: int) -> None:
        """Double the slots where they do not suffice, so that few points are copied again."""
        held = self.keys.shape[1]
        if n_slots <= held:
            return
        further = max(n_slots, 2 * held) - held
        self.keys = F.pad(self.keys, (0, 0, 0, 0, 0, further))
        self.values = F.pad(self.values, (0, 0, 0, 0, 0, further))


class _TimeAttention(nn.Module):
    """Projections to turned queries and keys: what both attentions share."""

    def __init__(self, config: AttentionConfig) -> None:
        """Build the projections and the bank of frequencies."""
        super().__init__()
        n_kv_heads = config.n_kv_heads or config.n_heads
        if config.d_model % config.n_heads or config.n_heads % n_kv_heads:
            raise InputError(
                f"{config.d_model} channels, {config.n_heads} query heads and {n_kv_heads} "
                "key heads do not divide", code="heads_do_not_divide", place="AttentionConfig",
                remedy="Each must be a multiple of the next.",
            )  # fmt: skip
        self.config = config
        self.head_dim = config.d_model // config.n_heads
        self.n_kv_heads = n_kv_heads
        self.query = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        self.key = nn.Linear(config.d_model, n_kv_heads * self.head_dim, bias=config.bias)
        self.value = nn.Linear(config.d_model, n_kv_heads * self.head_dim, bias=config.bias)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)
        self.rotary = ContinuousTimeRotary(self.head_dim, config.rotary)

    def _queries(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        return rotate(self.query(x).unflatten(-1, (-1, self.head_dim)), *turn)

    def _keys_values(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        key, value = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.key, self.value))
        return rotate(key, *turn), value

    def _dropout(self) -> float:
        return self.config.dropout if self.training else 0.0


class SelfAttention(_TimeAttention):
    """Multi-head self-attention within each packed sequence.

    Args:
        config: Sizes and form.

    Raises:
        InputError: The sizes do not divide.
    """

    def forward(
        self,
        x: Float[Tensor, "token model"],
        seconds: Float[Tensor, " token"],
        cu_seqlens: Int[Tensor, " borders"] | None = None,
    ) -> Float[Tensor, "token model"]:
        """Let every point look at its sequence, up to itself if causal.

        Args:
            x: Packed points.
            seconds: Their absolute times, float64.
            cu_seqlens: Borders of the sequences, from 0 to the number of points; None is one.

        Raises:
            InputError: The borders or the times are not as said.
        """
        borders = _borders(cu_seqlens, x)
        turn = self.rotary(seconds, _starts(seconds, borders, borders), x.dtype)
        y = attend_packed(
            self._queries(x, turn), *self._keys_values(x, turn), borders, borders,
            causal=self.config.causal, dropout=self._dropout(),
        )  # fmt: skip
        return self.out(y.flatten(1))

    def new_cache(self, n_rows: int) -> KeyValueCache:
        """A cache of empty sequences.

        Args:
            n_rows: Sequences.
        """
        weight = self.key.weight
        held = weight.new_zeros(n_rows, 0, self.n_kv_heads, self.head_dim)
        lengths = torch.zeros(n_rows, dtype=torch.int64, device=weight.device)
        return KeyValueCache(held, held.clone(), lengths)

    @torch.no_grad()
    def extend(
        self,
        x: Float[Tensor, "token model"],
        seconds: Float[Tensor, " token"],
        cache: KeyValueCache,
        cu_seqlens: Int[Tensor, " borders"] | None = None,
    ) -> Float[Tensor, "token model"]:
        """Go on with cached sequences: what `forward` gives at these points after those cached.

        Args:
            x: New points, packed row by row.
            seconds: Their absolute times, float64.
            cache: The past, from `new_cache` or an earlier call; the points are appended to it.
            cu_seqlens: Borders of the rows, of which some may get no point; None is one point each.

        Raises:
            InputError: The borders or the times are not as said, or the attention is not causal: a
                further point would change what was given before.
        """
        if not self.config.causal:
            raise InputError(
                "a bidirectional attention can't go on from a cache", code="not_causal",
                place="cache", remedy="Encode the whole sequence again, or train it as causal.",
            )  # fmt: skip
        if cu_seqlens is None:
            cu_seqlens = torch.arange(len(cache) + 1, device=x.device)
        borders = _row_borders(cu_seqlens, x, len(cache))
        turn = self.rotary(seconds, None, x.dtype)
        before = cache.lengths
        keys, values = self._keys_values(x, turn)
        cache.append(keys, values, borders)
        q = self._queries(x, turn)
        if not before.any() and bool((borders.diff() > 0).all()):
            y = attend_packed(q, keys, values, borders, borders, causal=True)
        else:
            y = _attend_cache(q, cache, borders, before)
        return self.out(y.flatten(1))


class CrossAttention(_TimeAttention):
    """Queries at times of their own look at the whole context of their sequence.

    A query may lie before, between or after the context's points: only differences of time count.

    Args:
        config: Sizes and form.

    Raises:
        InputError: The sizes do not divide.
    """

    def forward(
        self,
        query: Float[Tensor, "query model"],
        query_seconds: Float[Tensor, " query"],
        context: Float[Tensor, "token model"],
        context_seconds: Float[Tensor, " token"],
        cu_queries: Int[Tensor, " borders"] | None = None,
        cu_context: Int[Tensor, " borders"] | None = None,
    ) -> Float[Tensor, "query model"]:
        """Answer packed queries.

        Args:
            query: What is asked.
            query_seconds: When, absolute, float64.
            context: Points that are known.
            context_seconds: Their absolute times, float64.
            cu_queries: Borders of each sequence's queries; a sequence may have none. None: one
                sequence.
            cu_context: Borders of each sequence's context. None: one sequence.

        Raises:
            InputError: The borders or the times are not as said.
        """
        borders = _borders(cu_context, context)
        whole = torch.tensor([0, len(query)], device=query.device)
        asked = _row_borders(whole if cu_queries is None else cu_queries, query, len(borders) - 1)
        starts = _starts(context_seconds, borders, asked)
        q = self._queries(query, self.rotary(query_seconds, starts, query.dtype))
        starts = _starts(context_seconds, borders, borders)
        turn = self.rotary(context_seconds, starts, context.dtype)
        y = attend_packed(
            q, *self._keys_values(context, turn), asked, borders, causal=False,
            dropout=self._dropout(),
        )  # fmt: skip
        return self.out(y.flatten(1))


def attend_packed(
    q: Float[Tensor, "query head channel"],
    k: Float[Tensor, "token kv_head channel"],
    v: Float[Tensor, "token kv_head channel"],
    q_borders: Int[Tensor, " borders"],
    k_borders: Int[Tensor, " borders"],
    *,
    causal: bool,
    dropout: float = 0.0,
) -> Float[Tensor, "query head channel"]:
    """Softmax attention of each sequence's queries over its own keys.

    Sequences of like length are padded to blocks. A causal block needs no mask: what pads it comes
    last, where only padding sees it.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        q_borders: Borders of the sequences' queries, int64; some may have none.
        k_borders: Borders of their keys, int64; those of the queries if causal.
        causal: Let query i see keys up to i only.
        dropout: Share of the weights left out.
    """
    n_q, n_k = q_borders.diff().tolist(), k_borders.diff().tolist()
    if len(set(n_q)) == len(set(n_k)) == 1 and n_q[0]:
        blocks = (x.unflatten(0, (len(n_q), -1)) for x in (q, k, v))
        return _attend(*blocks, causal=causal, dropout=dropout).flatten(0, 1)
    groups: dict[tuple[int, int], list[int]] = {}
    for row, lengths in enumerate(zip(n_q, n_k, strict=True)):
        if lengths[0]:
            groups.setdefault((_rounded(lengths[0]), _rounded(lengths[1])), []).append(row)
    places, answers = [], []
    for group in groups.values():
        rows = torch.tensor(group, device=q.device)
        q_index, q_valid = _padded_index(q_borders, rows)
        k_index, k_valid = _padded_index(k_borders, rows)
        unmasked = causal or len({n_k[row] for row in group}) == 1
        y = _attend(
            _rows(q, q_index), _rows(k, k_index), _rows(v, k_index), causal=causal,
            dropout=dropout, mask=None if unmasked else k_valid[:, None, None],
        )  # fmt: skip
        places.append(q_index[q_valid])
        answers.append(y[q_valid])
    return torch.empty_like(q).index_copy(0, torch.cat(places), torch.cat(answers))


def _attend_cache(q: Tensor, cache: KeyValueCache, borders: Tensor, before: Tensor) -> Tensor:
    """Packed queries over their rows of a cache, each up to the point that it belongs to.

    Args:
        q: Turned queries.
        cache: Keys and values, those of the queries' points among them.
        borders: Borders of the rows' queries.
        before: Points that each row held before these.
    """
    index, valid = _padded_index(borders, torch.arange(len(cache), device=q.device))
    n_slots = int(cache.lengths.max())  # the slots behind the longest row are spare
    place = torch.arange(index.shape[1], device=q.device)
    last_seen = (before.unsqueeze(1) + place).unsqueeze(-1)
    mask = (torch.arange(n_slots, device=q.device) <= last_seen).unsqueeze(1)
    held = (x[:, :n_slots].to(q.dtype) for x in (cache.keys, cache.values))
    return _attend(_rows(q, index), *held, mask=mask)[valid]


def _attend(
    q: Float[Tensor, "row query head channel"],
    k: Float[Tensor, "row key kv_head channel"],
    v: Float[Tensor, "row key kv_head channel"],
    *,
    causal: bool = False,
    dropout: float = 0.0,
    mask: Bool[Tensor, "row 1 #query key"] | None = None,
) -> Float[Tensor, "row query head channel"]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    shared = q.shape[1] != k.shape[1]
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=shared
    )
    return y.transpose(1, 2)


def _padded_index(borders: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of some sequences as rows of one length, (row, place), and which are no padding.

    Padding repeats a row's own first token, so that nothing odd in another gets in.
    """
    starts = borders[rows].unsqueeze(1)
    lengths = borders[rows + 1].unsqueeze(1) - starts
    place = torch.arange(int(lengths.max()), device=borders.device)
    valid = place < lengths
    return torch.where(valid, starts + place, starts.clamp(max=borders[-1] - 1)), valid


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(0, index.flatten()).unflatten(0, index.shape)


def _rounded(length: int) -> int:
    """A length rounded up by less than a fourth: four steps an octave."""
    step = max(1, 1 << (length.bit_length() - 3)) if length > 4 else 1
    return -(-length // step) * step


def _borders(cu_seqlens: Tensor | None, x: Tensor) -> Tensor:
    """Checked borders, int64."""
    if cu_seqlens is None:
        cu_seqlens = torch.tensor([0, len(x)], device=x.device)
    return check_borders(cu_seqlens, len(x), x.device).long()


def _row_borders(cu_seqlens: Tensor, x: Tensor, n_rows: int) -> Tensor:
    """Checked borders of so many rows, some of which may be empty, int64."""
    if cu_seqlens.shape != (n_rows + 1,):
        raise InputError(
            f"borders of shape {tuple(cu_seqlens.shape)}, expected ({n_rows + 1},)",
            code="bad_cu_seqlens", place="cu_seqlens", remedy="Give one more than there are rows.",
        )  # fmt: skip
    check_borders(torch.unique_consecutive(cu_seqlens), len(x), x.device)
    return cu_seqlens.long()


def _starts(seconds: Tensor, borders: Tensor, owners: Tensor) -> Tensor:
    """First time of each sequence, once for each of what `owners` gives it."""
    return torch.repeat_interleave(seconds[borders[:-1]], owners.diff())
