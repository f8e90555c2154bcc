"""The fused token embedding: what, how much and when, as one vector.

Every event is one token. Its vector is a small network of the code's embedding, the standardised
value times a direction of the code's own (so that a value can mean something different for every
code), the same for its change since the code's last value and for its rate, the embedding of the
value's decile within a shared table, and the times: the gap since the last token and since the last
one of the same code, the lag to availability, the age and the hour of the day.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tsfm.batches.batch import Batch
from tsfm.models.code_embedding import CodeSharing
from tsfm.models.signal_embedding import SignalEmbedding

N_BINS = 11  # no value, and ten deciles
_N_TIMES = 10
_DAYS_OF_HOURS = 24.0


class EventEmbedding(nn.Module):
    """Embeds packed tokens.

    Args:
        n_codes: Size of the vocabulary.
        d_model: Width of the result.
        dropout: Share of tokens whose code is replaced by the unknown in training, so that the
            embedding of codes that a new hospital brings is one the model has met.
        sharing: Adds the vectors of a code's parents and words to its own; None leaves codes alone.
        signals: Adds what an encoder saw to the tokens of waveforms; None reads no waveform.
    """

    def __init__(
        self,
        n_codes: int,
        d_model: int,
        *,
        dropout: float = 0.0,
        sharing: CodeSharing | None = None,
        signals: SignalEmbedding | None = None,
    ) -> None:
        """Start with small normal embeddings."""
        super().__init__()
        self.code = nn.Embedding(n_codes, d_model)
        self.value = nn.Embedding(n_codes, d_model)
        self.trend = nn.Embedding(n_codes, d_model)
        self.change = nn.Embedding(n_codes, d_model)
        self.increment = nn.Embedding(n_codes, d_model)
        self.bin = nn.Embedding(N_BINS, d_model)
        self.time = nn.Linear(_N_TIMES, d_model)
        self.mix = nn.Linear(d_model, d_model)
        self.code_dropout = dropout
        self.sharing = sharing
        self.signals = signals
        for table in (*self.code_tables, self.bin):
            nn.init.normal_(table.weight, std=0.5)

    @property
    def code_tables(self) -> tuple[nn.Embedding, ...]:
        """Tables with a vector of every code's own."""
        return self.code, self.value, self.trend, self.change, self.increment

    def forward(self, batch: Batch) -> Float[Tensor, "token model"]:
        """Vector of every token."""
        code = batch.code
        if self.training and self.code_dropout:
            dropped = torch.rand(code.shape, device=code.device) < self.code_dropout
            code = code.masked_fill(dropped, 0)
        z = batch.value.clamp(-6.0, 6.0).unsqueeze(-1)  # asinh units: 6 is two hundred scales out
        if self.sharing is None:
            found = [table(code) for table in self.code_tables]
        else:
            found = self.sharing(code, self.code_tables)
        what, value, trend, change, increment = found
        x = what + value * z + trend * batch.rate.unsqueeze(-1)
        x = x + change * torch.asinh(batch.change).unsqueeze(-1)
        x = x + increment * batch.increment.clamp(-6.0, 6.0).unsqueeze(-1)
        x = x + self.bin(batch.bin) + self.time(_times(batch))
        x = x + self.mix(F.silu(x))
        return x if self.signals is None else self.signals(x, batch)


def _times(batch: Batch) -> Float[Tensor, "token feature"]:
    angle = batch.hour * (2 * math.pi / _DAYS_OF_HOURS)
    return torch.stack(
        [
            torch.log1p(batch.gap_hours) / 5.0,
            (batch.gap_hours == 0).float(),
            torch.log1p(batch.since_hours) / 5.0,
            batch.repeated,
            torch.asinh(batch.change),
            torch.asinh(batch.lag_hours) / 5.0,
            (batch.age_years - 60.0) / 20.0 * batch.age_known,
            batch.age_known,
            torch.sin(angle),
            torch.cos(angle),
        ],
        dim=-1,
    )
