"""Which of several classes, read from a hidden state: the head of a `ClassTask`.

As `CompetingHazards`, it reads the state after the last known token and the hours that have gone by
since. Its answer is a softmax over the classes, whose order carries no meaning for it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tsfm.errors import InputError


class ClassHead(nn.Module):
    """Logits of a fixed number of classes.

    Args:
        d_model: Width of the hidden state.
        n_classes: Classes.
        dropout: On the features, in training.
    """

    def __init__(self, d_model: int, n_classes: int, *, dropout: float = 0.1) -> None:
        """Start at equal probabilities."""
        super().__init__()
        self.features = nn.Linear(d_model + 1, d_model)
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.Linear(d_model, n_classes)
        nn.init.zeros_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)

    def set_baseline(self, label: Int[Tensor, " point"]) -> None:
        """Put the offsets at the class shares of a training sample, one added to each.

        Raises:
            InputError: `bad_labels`: a label is the number of no class.
        """
        n_classes = self.logits.out_features
        if bool(((label < 0) | (label >= n_classes)).any()):
            raise InputError(
                "labels that are the numbers of no class", code="bad_labels", place="label",
                remedy=f"Give one whole number from 0 to {n_classes - 1} a point.",
            )  # fmt: skip
        counts = torch.bincount(label, minlength=n_classes) + 1.0
        with torch.no_grad():
            self.logits.bias.copy_(torch.log(counts / counts.sum()))

    def forward(
        self, hidden: Float[Tensor, "point model"], elapsed_hours: Float[Tensor, " point"]
    ) -> Float[Tensor, "point class"]:
        """Log odds of the classes, up to a constant.

        Args:
            hidden: Hidden state after the last known token.
            elapsed_hours: Hours from that token to the moment of prediction, none negative.
        """
        waited = torch.log1p(elapsed_hours).unsqueeze(-1) / 5.0
        waited = waited.to(self.features.weight.dtype)
        return self.logits(self.dropout(F.silu(self.features(torch.cat([hidden, waited], dim=-1)))))
