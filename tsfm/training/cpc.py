"""Contrastive predictive coding: tell the token k steps ahead from others of the same recording.

The context at token t, which has seen nothing behind t, is mapped to a guess of the latent at
t + k. The guess is compared, by dot product, with the true latent and with latents drawn from the
rest of the same sequence, and the loss is the cross entropy of the true one (van den Oord et al.
2018). From the same sequence, because what tells recordings apart is easy; never the true one
itself. k = 14 tokens of 1/120 s and 128 negatives are what ECG-CPC uses.

There is no loop over positions: one matrix product gives all scores of a sequence, and negatives
are picked from it. Padded batches and packed sequences take the same road, so no score reaches
across sequences. That the context is causal is for the encoder to hold; a bidirectional one sees
the answer and learns nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tsfm.errors import InputError

_ROWS_AT_ONCE = 2048  # scores of a long sequence are made in stripes of so many anchors


@dataclass(frozen=True)
class CpcConfig:
    """The objective.

    Attributes:
        steps_ahead: Tokens between context and target.
        n_negatives: Other tokens that each guess is compared with.
        temperature: Divides the scores.
        hidden_width: Of the head's hidden layer; 0 for a linear head.
    """

    steps_ahead: int = 14
    n_negatives: int = 128
    temperature: float = 1.0
    hidden_width: int = 512

    def __post_init__(self) -> None:
        """Refuse what is no objective."""
        if self.steps_ahead < 1 or self.n_negatives < 1 or not self.temperature > 0:
            raise InputError(
                "steps, negatives and temperature must be positive", code="bad_cpc_config",
                place="CpcConfig", remedy="Predict one token ahead, against one other, at least.",
            )  # fmt: skip


class CpcPairs(NamedTuple):
    """What is compared with what: rows of the tokens of all sequences, end to end.

    Attributes:
        anchor: Token whose context guesses.
        positive: The token that it guesses.
        negative: The others, all of the same sequence.
        borders: First row of each sequence, and the end.
        n_anchors: Anchors of each sequence; anchors are in the order of sequences.
    """

    anchor: Int[Tensor, " anchor"]
    positive: Int[Tensor, " anchor"]
    negative: Int[Tensor, "anchor negative"]
    borders: tuple[int, ...]
    n_anchors: tuple[int, ...]


class CpcLoss(NamedTuple):
    """Mean over the anchors.

    Attributes:
        loss: Cross entropy in nats.
        accuracy: Share of guesses closest to the true token.
    """

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]


def draw_pairs(
    cu_seqlens: Int[Tensor, " border"],
    config: CpcConfig,
    *,
    mask: Bool[Tensor, " token"] | None = None,
    generator: torch.Generator | None = None,
) -> CpcPairs:
    """Draw negatives, with replacement, from a sequence's tokens other than the positive.

    Args:
        cu_seqlens: First row of each sequence, and the end.
        config: The objective.
        mask: Tokens that something was measured for; the others are neither side of a pair.
        generator: Source of chance, on the tokens' device.

    Raises:
        InputError: `no_cpc_pairs`: no sequence is long enough; `bad_token_shape`: the mask is of
            other tokens.
    """
    device = cu_seqlens.device
    borders = cu_seqlens.long()
    n_tokens = int(borders[-1])
    good = torch.ones(n_tokens, dtype=torch.bool, device=device) if mask is None else mask
    if good.shape != (n_tokens,):
        raise InputError(
            f"a mask of shape {tuple(good.shape)} for {n_tokens} tokens", code="bad_token_shape",
            place="mask", remedy="Give one value a token.",
        )  # fmt: skip
    sequence = torch.repeat_interleave(
        torch.arange(len(borders) - 1, device=device), borders.diff(), output_size=n_tokens
    )
    tokens = good.nonzero().squeeze(-1)  # measured tokens, in order
    rank = good.long().cumsum(0) - 1  # place of a token among them
    n_good = torch.zeros(len(borders) - 1, dtype=torch.long, device=device)
    n_good.index_add_(0, sequence, good.long())
    first_rank = n_good.cumsum(0) - n_good
    early = torch.arange(max(0, n_tokens - config.steps_ahead), device=device)
    ahead = early + config.steps_ahead
    whole = (sequence[early] == sequence[ahead]) & good[early] & good[ahead]
    whole &= n_good[sequence[early]] > 1
    anchor, positive = early[whole], ahead[whole]
    if len(anchor) == 0:
        raise InputError(
            f"no sequence has two tokens {config.steps_ahead} apart", code="no_cpc_pairs",
            place="cu_seqlens", remedy="Give longer recordings, or predict fewer steps ahead.",
        )  # fmt: skip
    owner = sequence[anchor]
    shape = (len(anchor), config.n_negatives)
    uniform = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
    others = (n_good[owner] - 1).unsqueeze(-1)
    place = (uniform * others).long().clamp_max_(others - 1)
    # Places count the tokens without the positive, so those from it on move up by one.
    place += place >= (rank[positive] - first_rank[owner]).unsqueeze(-1)
    negative = tokens[place + first_rank[owner].unsqueeze(-1)]
    n_anchors = torch.bincount(owner, minlength=len(borders) - 1)
    return CpcPairs(
        anchor, positive, negative, tuple(borders.tolist()), tuple(n_anchors.tolist())
    )  # fmt: skip


def cpc_loss(
    guesses: Float[Tensor, "token width"],
    latents: Float[Tensor, "token width"],
    pairs: CpcPairs,
    *,
    temperature: float = 1.0,
) -> CpcLoss:
    """Cross entropy of the true token among the negatives.

    Args:
        guesses: What each token's context says of the token some steps ahead.
        latents: What is guessed.
        pairs: What is compared with what.
        temperature: Divides the scores.

    Returns:
        Scalars in float32, or in float64 for guesses in float64. Half precision is left before the
        scores are made, also under autocast: a product of wide tokens does not fit in float16, and
        a count of many anchors fits in neither half type.
    """
    single = torch.float64 if guesses.dtype == torch.float64 else torch.float32
    with torch.autocast(guesses.device.type, enabled=False):
        return _cpc_loss(guesses.to(single), latents.to(single), pairs, temperature)


def _cpc_loss(guesses: Tensor, latents: Tensor, pairs: CpcPairs, temperature: float) -> CpcLoss:
    total, start = guesses.new_zeros(()), 0
    right = torch.zeros((), dtype=torch.int64, device=guesses.device)
    for i, n in enumerate(pairs.n_anchors):
        first, end = pairs.borders[i], pairs.borders[i + 1]
        for rows in torch.arange(start, start + n).split(_ROWS_AT_ONCE) if n else ():
            own = slice(int(rows[0]), int(rows[-1]) + 1)
            scores = guesses[pairs.anchor[own]] @ latents[first:end].T
            asked = torch.cat([pairs.positive[own].unsqueeze(-1), pairs.negative[own]], -1) - first
            logits = scores.gather(-1, asked) / temperature
            total = total + (logits.logsumexp(-1) - logits[:, 0]).sum()
            right = right + (logits[:, 0] > logits[:, 1:].amax(-1)).sum()
        start += n
    return CpcLoss(total / start, (right / start).to(total.dtype))


class CpcObjective(nn.Module):
    """CPC as a plug-in of training.

    Args:
        encode: Maps a signal to causal token states, (batch, token, d_model).
        d_model: Width of the states.
        config: The objective.
        latents: Maps the signal to what is guessed, (batch, token, d_latent), such as the stem of
            the encoder; None guesses the states themselves.
        d_latent: Width of the latents; that of the states by default.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        d_model: int,
        config: CpcConfig | None = None,
        *,
        latents: Callable[[Tensor], Tensor] | None = None,
        d_latent: int | None = None,
    ) -> None:
        """Build the head."""
        super().__init__()
        self.config = config or CpcConfig()
        self.encode, self.latents = encode, latents
        width, d_out = self.config.hidden_width, d_latent or d_model
        self.head = (
            nn.Sequential(nn.Linear(d_model, width), nn.ReLU(), nn.Linear(width, d_out))
            if width
            else nn.Linear(d_model, d_out, bias=False)
        )

    def forward(
        self,
        signal: Tensor,
        *,
        mask: Bool[Tensor, "batch token"] | None = None,
        generator: torch.Generator | None = None,
    ) -> CpcLoss:
        """Loss of a batch of records.

        Args:
            signal: What `encode` reads.
            mask: Tokens that something was measured for.
            generator: Source of the negatives, on the tokens' device.

        Raises:
            InputError: The records are too short, or states and latents differ in length.
        """
        states = self.encode(signal)
        targets = states if self.latents is None else self.latents(signal)
        return self.of_states(states, targets, mask=mask, generator=generator)

    def of_states(
        self,
        states: Float[Tensor, "batch token model"],
        targets: Float[Tensor, "batch token latent"],
        *,
        mask: Bool[Tensor, "batch token"] | None = None,
        generator: torch.Generator | None = None,
    ) -> CpcLoss:
        """Loss of states that are there already; see `forward`."""
        if states.shape[:2] != targets.shape[:2]:
            raise InputError(
                "states and latents are of different tokens", code="bad_token_shape",
                place="latents", remedy="Let both have one row a token.",
            )  # fmt: skip
        n_records, n_tokens = states.shape[:2]
        borders = torch.arange(n_records + 1, device=states.device) * n_tokens
        flat = None if mask is None else mask.flatten()
        return self.of_packed(
            states.flatten(0, 1), targets.flatten(0, 1), borders, mask=flat, generator=generator
        )

    def of_packed(
        self,
        states: Float[Tensor, "token model"],
        targets: Float[Tensor, "token latent"],
        cu_seqlens: Int[Tensor, " border"],
        *,
        mask: Bool[Tensor, " token"] | None = None,
        generator: torch.Generator | None = None,
    ) -> CpcLoss:
        """Loss of sequences of any length, packed end to end; see `draw_pairs`."""
        pairs = draw_pairs(cu_seqlens, self.config, mask=mask, generator=generator)
        return cpc_loss(self.head(states), targets, pairs, temperature=self.config.temperature)
