"""Waveforms among the tokens of a timeline: what an encoder saw becomes part of its event's token.

An ECG is one event, so it is one token: its code says what was recorded and its times when, as for
every event, and this room adds what the encoder saw. The few vectors of a record
are read together by one linear map behind a norm. It starts at nothing, so a model begins as if it
had no waveforms.

In training some patients' waveforms are hidden, all of a patient's at once (modality dropout): so
the model stays as good for patients who have none. A waveform that is hidden, or that could not be
encoded, leaves its event's token as it is; one that is read adds its map's offset too, so the two
are told apart.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tsfm.batches.batch import Batch
from tsfm.errors import ModelMismatch


class SignalEmbedding(nn.Module):
    """Adds what an encoder saw to the tokens of waveforms.

    Args:
        n_vectors: Vectors of a record.
        width: Numbers in each.
        d_model: Width of a token.
        dropout: Share of the subjects of a batch whose waveforms are hidden in training.
    """

    def __init__(self, n_vectors: int, width: int, d_model: int, *, dropout: float) -> None:
        """Start with a map that gives nothing."""
        super().__init__()
        self.n_vectors, self.width, self.dropout = n_vectors, width, dropout
        self.norm = nn.LayerNorm(width)
        self.read = nn.Linear(n_vectors * width, 2 * d_model)
        self.write = nn.Linear(2 * d_model, d_model)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(
        self, tokens: Float[Tensor, "token model"], batch: Batch
    ) -> Float[Tensor, "token model"]:
        """Tokens with their waveforms.

        Raises:
            ModelMismatch: The batch's vectors have another shape than the model's.
        """
        at = torch.nonzero(self._read(batch)).squeeze(1)
        if len(at) == 0:
            return tokens
        vectors = batch.signal_vectors
        if vectors.shape[1:] != (self.n_vectors, self.width):
            raise ModelMismatch(
                f"vectors of waveforms of shape {tuple(vectors.shape[1:])}, the model reads "
                f"{(self.n_vectors, self.width)}", code="signal_vectors_mismatch",
                place="signal_vectors", remedy="Encode them with the model's encoder.",
            )  # fmt: skip
        x = self.norm(vectors[batch.signal[at]].to(tokens.dtype)).flatten(1)
        return tokens.index_add(0, at, self.write(F.silu(self.read(x))))

    def _read(self, batch: Batch) -> Tensor:
        """Tokens whose waveform is read."""
        there = batch.signal >= 0
        if not (self.training and self.dropout):
            return there
        shown = torch.rand(batch.n_subjects, device=there.device) >= self.dropout
        lengths = batch.cu_seqlens.diff()
        return there & torch.repeat_interleave(shown, lengths, output_size=batch.n_tokens)
