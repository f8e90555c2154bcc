"""EHRMamba's fused embedding: word, time and age mixed, then what kind, which visit, which side.

    fused = tanh(W [word; sin(w_t dt + p_t); sin(w_a age + p_a)])
    x = LayerNorm(Dropout(fused + kind + visit + side))

after Fallahpour et al. (2024, arXiv 2405.14567), where dt is the time since the word before, in
weeks, and age is in years. There is no embedding of the place in the sequence: the backbone reads
in order. Two things are ours. Times and ages are those of each word, where the released code gives
all words of a visit those of its start. And since that makes hours visible, the learnt rates of the
time waves start log-spaced from one radian in ten years to one in half an hour, so that some waves
tell hours apart and others years.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tsfm.tokens.ehr_mamba_tokens import EhrMambaPrompts, EhrMambaStreams
from tsfm.tokens.ehr_mamba_words import Kind

_SECONDS_PER_WEEK = 7 * 86400.0
_HOURS_PER_WEEK = 168.0
_N_SIDES = 3
_TIME_RATES = (1 / 522.0, 336.0)  # radians a week: ten years and half an hour
_AGE_RATES = (1 / 50.0, 1.0)  # radians a year


@dataclass(frozen=True)
class EhrMambaTokens:
    """Packed words of some subjects, or questions to them, as tensors.

    Attributes:
        word: Word ids.
        kind: See `tsfm.tokens.ehr_mamba_words.Kind`.
        gap_weeks: Time since the subject's word before, 0 at its first.
        age_years: Age, 0 where the birth is unknown.
        visit: Number of the last visit begun.
        side: 1 and 2 in turn inside visits, else 0.
        cu_seqlens: Borders of the sequences.
    """

    word: Int[Tensor, " token"]
    kind: Int[Tensor, " token"]
    gap_weeks: Float[Tensor, " token"]
    age_years: Float[Tensor, " token"]
    visit: Int[Tensor, " token"]
    side: Int[Tensor, " token"]
    cu_seqlens: Int[Tensor, " borders"]

    @classmethod
    def of_streams(cls, streams: EhrMambaStreams) -> EhrMambaTokens:
        """All words of some streams; times are subtracted in float64."""
        gap = np.diff(streams.time_s, prepend=streams.time_s[:1]) / _SECONDS_PER_WEEK
        gap[streams.start[:-1][np.diff(streams.start) > 0]] = 0.0
        return cls(
            word=torch.from_numpy(streams.word),
            kind=torch.from_numpy(streams.kind),
            gap_weeks=torch.from_numpy(gap.astype(np.float32)),
            age_years=torch.from_numpy(np.nan_to_num(streams.age_years()).astype(np.float32)),
            visit=torch.from_numpy(streams.visit),
            side=torch.from_numpy(streams.side),
            cu_seqlens=torch.from_numpy(streams.start),
        )

    @classmethod
    def of_prompts(cls, prompts: EhrMambaPrompts) -> EhrMambaTokens:
        """Each question as a sequence of one word, of no visit."""
        n = len(prompts)
        return cls(
            word=torch.from_numpy(prompts.word),
            kind=torch.full((n,), Kind.TASK, dtype=torch.int64),
            gap_weeks=torch.from_numpy((prompts.gap_hours / _HOURS_PER_WEEK).astype(np.float32)),
            age_years=torch.from_numpy(np.nan_to_num(prompts.age_years).astype(np.float32)),
            visit=torch.zeros(n, dtype=torch.int64),
            side=torch.zeros(n, dtype=torch.int64),
            cu_seqlens=torch.arange(n + 1),
        )

    def __len__(self) -> int:
        """Words."""
        return len(self.word)

    def at(
        self, places: Int[Tensor, " chosen"], cu_seqlens: Int[Tensor, " borders"]
    ) -> EhrMambaTokens:
        """Some words with what they hold, under other borders."""
        return EhrMambaTokens(
            self.word[places],
            self.kind[places],
            self.gap_weeks[places],
            self.age_years[places],
            self.visit[places],
            self.side[places],
            cu_seqlens,
        )

    def to(self, device: torch.device) -> EhrMambaTokens:
        """The same on a device."""
        return EhrMambaTokens(*(tensor.to(device) for tensor in vars(self).values()))


class SineWaves(nn.Module):
    """sin(w x + p) with learnt rates and phases.

    Args:
        width: Waves.
        slowest: Radians a unit of x of the slowest one at the start.
        fastest: Likewise of the fastest; the others lie between, log-spaced.
    """

    def __init__(self, width: int, *, slowest: float, fastest: float) -> None:
        """Spread the rates and draw the phases."""
        super().__init__()
        self.rate = nn.Parameter(torch.logspace(math.log10(slowest), math.log10(fastest), width))
        self.phase = nn.Parameter(2 * math.pi * torch.rand(width))

    def forward(self, x: Float[Tensor, " token"]) -> Float[Tensor, "token wave"]:
        """Waves of every number."""
        return torch.sin(x.unsqueeze(-1) * self.rate + self.phase)


class EhrMambaEmbedding(nn.Module):
    """Embeds packed words.

    Args:
        n_words: Words.
        d_model: Width of the result.
        time_width: Waves of the time, and of the age.
        n_visits: Numbers of visits told apart; later ones count as the last.
        dropout: Before the norm, in training.
    """

    def __init__(
        self, n_words: int, d_model: int, *, time_width: int, n_visits: int, dropout: float
    ) -> None:
        """Build the tables."""
        super().__init__()
        self.word = nn.Embedding(n_words, d_model)
        self.time = SineWaves(time_width, slowest=_TIME_RATES[0], fastest=_TIME_RATES[1])
        self.age = SineWaves(time_width, slowest=_AGE_RATES[0], fastest=_AGE_RATES[1])
        self.fuse = nn.Linear(d_model + 2 * time_width, d_model)
        self.kind = nn.Embedding(len(Kind), d_model)
        self.visit = nn.Embedding(n_visits, d_model)
        self.side = nn.Embedding(_N_SIDES, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: EhrMambaTokens) -> Float[Tensor, "token model"]:
        """Vector of every word."""
        waves = [self.time(tokens.gap_weeks), self.age(tokens.age_years)]
        x = torch.tanh(self.fuse(torch.cat([self.word(tokens.word), *waves], dim=-1)))
        visit = tokens.visit.clamp(max=self.visit.num_embeddings - 1)
        x = x + self.kind(tokens.kind) + self.visit(visit) + self.side(tokens.side)
        return self.norm(self.dropout(x))
