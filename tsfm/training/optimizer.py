"""AdamW with a warm-up and a cosine down to 2 % of the peak, and a moving average of the weights.

Rates, biases, norms and embeddings are not decayed: pulling a time constant or a rare code towards
zero is not regularisation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def make_optimizer(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with decay on the weight matrices of linear layers alone."""
    decayed = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.weight.dim() == 2
    }
    groups = [
        {
            "params": [p for p in model.parameters() if id(p) in decayed],
            "weight_decay": weight_decay,
        },
        {"params": [p for p in model.parameters() if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)


def learning_rate(step: int, *, n_steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up to `peak`, then a cosine down to 2 % of it.

    >>> learning_rate(0, n_steps=100, warmup=10, peak=1.0)
    0.1
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, n_steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class WeightAverage:
    """Exponential moving average of a model's weights, which is what is evaluated and shipped.

    Args:
        model: Model whose weights are followed.
        decay: Share of the old average kept at each step, after a warm-up of its own.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the model's weights as they are."""
        self.decay = decay
        self.n_updates = 0
        self.weights: dict[str, Tensor] = {
            name: tensor.detach().clone() for name, tensor in model.state_dict().items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average a step towards the model's weights."""
        self.n_updates += 1
        kept = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.weights[name].lerp_(tensor, 1 - kept)
            else:  # a count of batches has no average
                self.weights[name].copy_(tensor)
