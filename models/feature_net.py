"""A network of hand-made features: many small networks that share all but their gains.

Trees are hard to beat on a table of a few thousand patients; a network that errs in other ways is
worth having beside them. This one is TabM (Gorishniy, Kotelnikov and Babenko, arXiv 2410.24210) in
its small form: k members pass the same weights, each with its own gains on the inputs and on the
hidden channels and with its own output (BatchEnsemble, Wen et al., arXiv 2002.06715). They are
trained side by side, each on its own loss, and their probabilities are averaged. Several questions
are answered at once.

Features are turned into normal scores by their ranks among the training rows, a missing one into
nought; where a feature is often missing, that is told beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from tsfm.errors import InputError

_EDGE = 0.002  # ranks are held off 0 and 1 by this much
_LEAST_VALUES = 20
_GAIN_SPREAD = 0.3


@dataclass(frozen=True)
class FeatureNetConfig:
    """Sizes of a feature network.

    Attributes:
        n_inputs: Columns of `RankScale.apply`.
        n_questions: Yes-or-no questions.
        width: Hidden channels.
        n_members: Networks that share their weights.
        input_dropout: Share of inputs left out in training.
        dropout: Share of hidden channels left out.
    """

    n_inputs: int
    n_questions: int = 1
    width: int = 96
    n_members: int = 8
    input_dropout: float = 0.3
    dropout: float = 0.4


class FeatureNet(nn.Module):
    """See the module's text."""

    def __init__(self, config: FeatureNetConfig) -> None:
        """Gains start around one, outputs near nought."""
        super().__init__()
        self.config = config
        k, d = config.n_members, config.width
        self.input_gain = nn.Parameter(1 + _GAIN_SPREAD * torch.randn(k, config.n_inputs))
        self.gain = nn.Parameter(1 + _GAIN_SPREAD * torch.randn(k, d))
        self.first = nn.Linear(config.n_inputs, d)
        self.second = nn.Linear(d, d)
        self.out = nn.Parameter(_GAIN_SPREAD * torch.randn(k, d, config.n_questions) / math.sqrt(d))
        self.bias = nn.Parameter(torch.zeros(k, config.n_questions))
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.dropout = nn.Dropout(config.dropout)

    def set_shares(self, share: Float[Tensor, " question"]) -> None:
        """Start every member at the share of yes of each question."""
        held = share.clamp(1e-4, 1 - 1e-4)
        with torch.no_grad():
            self.bias[:] = torch.log(held) - torch.log1p(-held)

    def forward(self, x: Float[Tensor, "row input"]) -> Float[Tensor, "row member question"]:
        """Log odds that each member gives."""
        each = self.input_dropout(x).unsqueeze(1) * self.input_gain
        h = self.dropout(F.silu(self.first(each)))
        h = h + self.dropout(F.silu(self.second(h * self.gain)))
        return torch.einsum("rkd,kdq->rkq", h, self.out) + self.bias

    @torch.no_grad()
    def probability(self, x: Float[Tensor, "row input"]) -> Float[Tensor, "row question"]:
        """The members' mean probability, without dropout."""
        training = self.training
        self.eval()
        found = torch.sigmoid(self(x)).mean(1)
        self.train(training)
        return found


@dataclass(frozen=True)
class RankScale:
    """How features become inputs.

    Attributes:
        values: Of each feature, its training values in order; None where it has too few or one.
        told_missing: Features of which it is told whether they are missing.
    """

    values: tuple[NDArray[np.float32] | None, ...]
    told_missing: NDArray[np.int64]

    @classmethod
    def fit(cls, X: NDArray[np.float32]) -> RankScale:
        """Learn the training rows' values.

        Args:
            X: Features, shape (n, n_features), NaN where missing.

        Raises:
            InputError: No rows or no features.
        """
        if X.ndim != 2 or 0 in X.shape:
            raise InputError(
                f"features of shape {X.shape}", code="no_features", place="X",
                remedy="Give a row a stay and a column a feature.",
            )  # fmt: skip
        missing = np.isnan(X)
        values: list[NDArray[np.float32] | None] = []
        for column, absent in zip(X.T, missing.T, strict=True):
            known = np.sort(column[~absent])
            several = len(known) >= _LEAST_VALUES and known[0] < known[-1]
            values.append(known if several else None)
        share = missing.mean(0)
        often = np.flatnonzero((share > 0.03) & (share < 0.97))
        # Features that are missing together say it once.
        _, once = np.unique(missing[:, often], axis=1, return_index=True)
        return cls(tuple(values), often[np.sort(once)].astype(np.int64))

    @property
    def n_inputs(self) -> int:
        """Columns of what `apply` gives."""
        return len(self.values) + len(self.told_missing)

    def apply(self, X: NDArray[np.float32]) -> Float[Tensor, "row input"]:
        """Inputs of some rows; each depends on its own row alone.

        Raises:
            InputError: Another number of features.
        """
        if X.ndim != 2 or X.shape[1] != len(self.values):
            raise InputError(
                f"features of shape {X.shape}, fitted on {len(self.values)} columns",
                code="wrong_features", place="X", remedy="Give the columns of the training rows.",
            )  # fmt: skip
        told = np.zeros((len(X), self.n_inputs), np.float32)
        for place, known in enumerate(self.values):
            if known is not None:
                # Ties stand in their middle.
                low = np.searchsorted(known, X[:, place], "left")
                high = np.searchsorted(known, X[:, place], "right")
                told[:, place] = (low + high) / (2 * len(known))
        score = torch.special.ndtri(torch.from_numpy(told).clamp(_EDGE, 1 - _EDGE))
        missing = torch.from_numpy(np.isnan(X))
        n = len(self.values)
        used = torch.tensor([known is not None for known in self.values])
        score[:, :n] = torch.where(used & ~missing, score[:, :n], 0.0)
        score[:, n:] = missing[:, self.told_missing].float()
        return score
