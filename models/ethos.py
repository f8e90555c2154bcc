"""The network of ETHOS-ARES: a small GPT-2 without biases over packed token streams.

As nanoGPT writes GPT-2 (Radford et al. 2019): LayerNorm in front of attention and of a GELU network
four times as wide, learnt positions, the output tied to the embedding, no bias anywhere. ETHOS-ARES
(GigaScience 2025, giaf107) has 6 layers of 768 channels and 12 heads and a context of 2,048 tokens.
What differs: its training windows run from one patient into the next, ours never meet; and its code
leaves dropout on when it samples, ours has none outside training.

The words are those of `tsfm.tokens.ethos_vocabulary`; positions are counted within a window and say
nothing of time. Decoding from an `EthosCache` is in `tsfm.models.ethos_cache`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tsfm.errors import InputError, ModelMismatch
from tsfm.kernels.argument_checks import check_borders
from tsfm.models.attention import attend_packed

_INITIAL_STD = 0.02
_MASK_BUFFERS = (".attn.bias", ".attn.masked_bias")

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values of (token, head, channel) to what the queries read."""


@dataclass(frozen=True)
class EthosConfig:
    """Sizes of the network.

    Attributes:
        n_tokens: Words of the vocabulary, or more.
        context: Most tokens of a window.
        d_model: Width.
        n_layers: Blocks.
        n_heads: Heads of each attention.
        dropout: On embeddings, attention weights and what each layer adds, in training.
    """

    n_tokens: int
    context: int = 2048
    d_model: int = 768
    n_layers: int = 6
    n_heads: int = 12
    dropout: float = 0.3


class EthosBlock(nn.Module):
    """Attention and a wide layer, each added to what enters.

    Args:
        config: Sizes.
    """

    def __init__(self, config: EthosConfig) -> None:
        """Build norms and projections."""
        super().__init__()
        d_model = config.d_model
        self.n_heads = config.n_heads
        self.norm_1 = nn.LayerNorm(d_model, bias=False)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.norm_2 = nn.LayerNorm(d_model, bias=False)
        self.up = nn.Linear(d_model, 4 * d_model, bias=False)
        self.down = nn.Linear(4 * d_model, d_model, bias=False)

    def forward(
        self,
        x: Float[Tensor, "token model"],
        attend: Attend,
        dropout: float = 0.0,
    ) -> Float[Tensor, "token model"]:
        """One block.

        Args:
            x: Tokens.
            attend: How the heads read the past.
            dropout: Share of what is added that is left out.
        """
        heads = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.n_heads, -1))
        read = attend(*heads.unbind(1)).flatten(1)
        x = x + F.dropout(self.out(read), dropout)
        wide = F.gelu(self.up(self.norm_2(x)))
        return x + F.dropout(self.down(wide), dropout)


class EthosModel(nn.Module):
    """Decoder of token streams.

    Args:
        config: Sizes.

    Raises:
        InputError: The heads do not divide the width.
    """

    def __init__(self, config: EthosConfig) -> None:
        """Start as GPT-2 does: normal weights, smaller where many layers add up."""
        super().__init__()
        if config.d_model % config.n_heads:
            raise InputError(
                f"{config.d_model} channels and {config.n_heads} heads do not divide",
                code="heads_do_not_divide", place="EthosConfig",
                remedy="The width must be a multiple of the heads.",
            )  # fmt: skip
        self.config = config
        self.token = nn.Embedding(config.n_tokens, config.d_model)
        self.position = nn.Embedding(config.context, config.d_model)
        self.blocks = nn.ModuleList(EthosBlock(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                last = name.endswith(("out.weight", "down.weight"))
                shrink = (2 * config.n_layers) ** -0.5 if last else 1.0
                nn.init.normal_(weight, std=_INITIAL_STD * shrink)

    def forward(
        self, tokens: Int[Tensor, " token"], cu_seqlens: Int[Tensor, " borders"]
    ) -> Float[Tensor, "token model"]:
        """State at every token, which has seen its own window up to there and nothing else.

        Args:
            tokens: Packed word ids.
            cu_seqlens: Borders of the windows, from 0 to the number of tokens.

        Raises:
            InputError: The borders are not as said, or a window is longer than the context.
        """
        borders = self.borders(tokens, cu_seqlens)
        dropout = self.config.dropout if self.training else 0.0
        packed = partial(
            attend_packed, q_borders=borders, k_borders=borders, causal=True, dropout=dropout
        )
        attend = [packed] * len(self.blocks)
        return self.states(tokens, positions_of(borders), attend, dropout)

    def borders(
        self, tokens: Int[Tensor, " token"], cu_seqlens: Int[Tensor, " borders"]
    ) -> Int[Tensor, " borders"]:
        """Checked borders of packed windows, int64.

        Raises:
            InputError: They are not as said, or a window is longer than the context.
        """
        borders = check_borders(cu_seqlens, len(tokens), tokens.device).long()
        longest = int(borders.diff().max())
        if longest > self.config.context:
            raise InputError(
                f"a window of {longest} tokens, a context of {self.config.context}",
                code="context_too_short", place="cu_seqlens", remedy="Cut shorter windows.",
            )  # fmt: skip
        return borders

    def states(
        self,
        tokens: Int[Tensor, " token"],
        positions: Int[Tensor, " token"],
        attend: Sequence[Attend],
        dropout: float = 0.0,
    ) -> Float[Tensor, "token model"]:
        """States where an attention of the caller's reads the past.

        Args:
            tokens: Word ids.
            positions: Places in their windows, less than the context.
            attend: One for each layer, called in order.
            dropout: Share left out; none by default.
        """
        x = F.dropout(self.token(tokens) + self.position(positions), dropout)
        for block, read in zip(self.blocks, attend, strict=True):
            x = block(x, read, dropout)
        return self.norm(x)

    def logits(self, states: Float[Tensor, "token model"]) -> Float[Tensor, "token word"]:
        """Log odds of the next word."""
        return F.linear(states, self.token.weight)

    def loss(
        self,
        tokens: Int[Tensor, " token"],
        target: Int[Tensor, " token"],
        cu_seqlens: Int[Tensor, " borders"],
    ) -> Float[Tensor, ""]:
        """Mean cross entropy of the next word in nats; `EthosWindows.target` says which are asked.

        Args:
            tokens: Packed word ids.
            target: The word after each, negative where none is asked for.
            cu_seqlens: Borders of the windows.

        Raises:
            InputError: As in `forward`, or there is no target.
        """
        asked = target >= 0
        if not bool(asked.any()):
            raise InputError(
                "no token has a target", code="no_targets", place="target",
                remedy="Leave batches of static tokens alone out.",
            )  # fmt: skip
        # The output is the widest layer: only the states that are asked reach it.
        states = self(tokens, cu_seqlens)[asked]
        return F.cross_entropy(self.logits(states), target[asked])


@dataclass
class EthosCache:
    """Keys and values of shared pasts, and of what each row added; only `step` changes it in place.

    Attributes:
        past_keys: Of the pasts; zero beyond a past's length.
        past_values: Likewise.
        past_lengths: Tokens of each past.
        past: Which past a row goes on from; every past has a row.
        keys: What the rows added; beyond a row's length it is never read.
        values: Likewise.
        lengths: Tokens that each row added.
    """

    past_keys: Float[Tensor, "layer past head place channel"]
    past_values: Float[Tensor, "layer past head place channel"]
    past_lengths: Int[Tensor, " past"]
    past: Int[Tensor, " row"]
    keys: Float[Tensor, "layer row head slot channel"]
    values: Float[Tensor, "layer row head slot channel"]
    lengths: Int[Tensor, " row"]

    def __len__(self) -> int:
        """Rows."""
        return len(self.past)

    @property
    def positions(self) -> Int[Tensor, " row"]:
        """Place of each row's next token in its window."""
        return self.past_lengths[self.past] + self.lengths

    def rows(self, rows: Int[Tensor, " chosen"]) -> EthosCache:
        """Some rows in the order given, their pasts not copied; one asked for twice is forked."""
        chosen = replace(
            self,
            past=self.past[rows],
            keys=self.keys[:, rows],
            values=self.values[:, rows],
            lengths=self.lengths[rows],
        )
        used, past = torch.unique(chosen.past, return_inverse=True)
        if len(used) == len(self.past_lengths):
            return chosen
        return replace(
            chosen,
            past_keys=self.past_keys[:, used],
            past_values=self.past_values[:, used],
            past_lengths=self.past_lengths[used],
            past=past,
        )

    def rows_of_pasts(self) -> tuple[Int[Tensor, "past width"], Int[Tensor, " row"]]:
        """Rows of each past, padded with row 0, and where in this table each row stands."""
        counts = torch.bincount(self.past)
        order = torch.argsort(self.past, stable=True)
        first = counts.cumsum(0) - counts
        width = int(counts.max())
        row = torch.arange(len(self), device=order.device)
        place = torch.empty_like(order)
        place[order] = self.past[order] * width + row - first[self.past[order]]
        table = torch.zeros(len(counts) * width, dtype=order.dtype, device=order.device)
        table[place] = row
        return table.view(len(counts), width), place

    def with_pasts(self, rows: Int[Tensor, " chosen"], fresh: EthosCache) -> EthosCache:
        """The same rows, of which some forget what they held and go on from other pasts.

        Args:
            rows: Which.
            fresh: As many rows, just read.
        """
        n_places = max(self.past_keys.shape[3], fresh.past_keys.shape[3])
        past, lengths = self.past.clone(), self.lengths.clone()
        past[rows] = len(self.past_lengths) + fresh.past
        lengths[rows] = 0
        joined = EthosCache(
            torch.cat([widened(c.past_keys, n_places) for c in (self, fresh)], 1),
            torch.cat([widened(c.past_values, n_places) for c in (self, fresh)], 1),
            torch.cat([self.past_lengths, fresh.past_lengths]),
            past, self.keys, self.values, lengths,
        )  # fmt: skip
        return joined.rows(torch.arange(len(self), device=past.device))


def positions_of(borders: Int[Tensor, " borders"]) -> Int[Tensor, " token"]:
    """Place of every token in its window."""
    n_tokens = int(borders[-1])
    starts = torch.repeat_interleave(borders[:-1], borders.diff(), output_size=n_tokens)
    return torch.arange(n_tokens, device=borders.device) - starts


def widened(x: Tensor, n_places: int) -> Tensor:
    """Keys or values of (layer, row, head, place, channel) with room for so many places."""
    return F.pad(x, (0, 0, 0, n_places - x.shape[3]))


def load_gpt2_weights(model: EthosModel, state: Mapping[str, Tensor]) -> None:
    """Fill a model with weights under GPT-2's names, as nanoGPT and ETHOS-ARES save them.

    Projections are (out, in). Names may have the `_orig_mod.` of a compiled model; buffers of
    causal masks are passed over.

    Args:
        model: Of the same sizes.
        state: Names and tensors.

    Raises:
        ModelMismatch: A weight is missing, too many, of another shape, or the output is not tied.
    """
    found = {name.removeprefix("_orig_mod."): weight for name, weight in state.items()}
    found = {name: weight for name, weight in found.items() if not name.endswith(_MASK_BUFFERS)}
    head = found.pop("lm_head.weight", None)
    renamed = {_our_name(name): weight for name, weight in found.items()}
    own = model.state_dict()
    wrong = sorted(renamed.keys() ^ own.keys())
    wrong += [name for name in own if name not in wrong and renamed[name].shape != own[name].shape]
    if head is not None and not torch.equal(head, renamed.get("token.weight", head)):
        wrong.append("lm_head.weight")
    if wrong:
        raise ModelMismatch(
            f"weights that do not fit: {', '.join(wrong[:5])}"
            + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""),
            code="weights_do_not_fit", place="state",
            remedy="Build the model with the sizes of these weights; biases have no place in it.",
        )  # fmt: skip
    model.load_state_dict(renamed)


def _our_name(name: str) -> str:
    name = name.removeprefix("transformer.")
    if name.startswith("h."):
        name = "blocks." + name.removeprefix("h.")
    for theirs, ours in {
        "wte.": "token.",
        "wpe.": "position.",
        "ln_f.": "norm.",
        "ln_": "norm_",
        "attn.c_attn.": "qkv.",
        "attn.c_proj.": "out.",
        "mlp.c_fc.": "up.",
        "mlp.c_proj.": "down.",
    }.items():
        name = name.replace(theirs, ours)
    return name
