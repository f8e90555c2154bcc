"""The wait for the next token: at the same moment with some chance, else log-normal.

    P(wait <= w) = p + (1 - p) Phi((ln w - mean) / std)

If some time has already passed without a token, the wait is what it is given that: the same moment
is then ruled out. Both the chance and its inverse go through the survival function, which keeps its
digits where hardly anything survives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tsfm.models.timeline_stepper import NextToken

_LEAST_SURVIVAL = 1e-300


@dataclass(frozen=True)
class Waits:
    """Laws of the waits of some rows, all float64 on the CPU.

    Attributes:
        same: (R,) chance of the same moment.
        mean: (R,) mean of log hours.
        std: (R,) their standard deviation.
        passed_hours: (R,) hours known to have passed without a token.
        surviving: (R,) chance that a wait is longer than those.
    """

    same: Tensor
    mean: Tensor
    std: Tensor
    passed_hours: Tensor
    surviving: Tensor

    @classmethod
    def create(cls, law: NextToken, passed_hours: Tensor) -> Waits:
        """Waits after some hidden states, given the hours that have passed since."""
        mean = law.log_wait_mean.double().cpu()
        std = torch.exp(law.log_wait_log_std.double().cpu())
        waited = passed_hours > 0
        same = torch.sigmoid(law.same_logit.double().cpu())
        return cls(
            same=torch.where(waited, 0.0, same),
            mean=mean,
            std=std,
            passed_hours=passed_hours,
            surviving=_survival(passed_hours, mean, std).clamp(min=_LEAST_SURVIVAL),
        )

    def within(self, limit_hours: Tensor) -> Tensor:
        """Chance that the token comes at most so many hours after the last one.

        Args:
            limit_hours: (R,) or (R, K); nothing comes within a negative one.
        """
        columns = (slice(None), *([None] * (limit_hours.dim() - 1)))
        same, mean, std, surviving = (
            x[columns] for x in (self.same, self.mean, self.std, self.surviving)
        )
        later = _survival(limit_hours.clamp(min=0.0), mean, std) / surviving
        chance = same + (1.0 - same) * (1.0 - later.clamp(max=1.0))
        return torch.where(limit_hours < 0, 0.0, chance)

    def quantile(self, u: Tensor) -> Tensor:
        """Hours from the last token that are exceeded with a chance of 1 - u; u from 0 to 1."""
        left = ((1.0 - u) / (1.0 - self.same)).clamp(0.0, 1.0)
        z = -torch.special.ndtri(left * self.surviving)
        hours = torch.maximum(torch.exp(self.mean + self.std * z), self.passed_hours)
        return torch.where(u < self.same, 0.0, hours)


def _survival(hours: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return torch.special.ndtr((mean - torch.log(hours)) / std)
