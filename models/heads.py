"""What is read from a hidden state: risk over time, and what comes next.

**Competing hazards.** Two causes (the event and what makes it impossible) have hazards that are
constant within bins of days. One pass gives, for any horizon, P(event first), P(competing first)
and P(neither), which add up to one, and its likelihood uses stays whose end is not known:

    S(t) = exp(-sum over bins of (h1 + h2) * time spent)
    CIF_c = sum over bins of S(bin start) * h_c / (h1 + h2) * (1 - exp(-(h1 + h2) * width))

**Next event.** The next token's code, the value it carries given that code, and the time to it: the
chance that it stands at the same moment, and else a log-normal wait.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

DAY_BINS = (0.0, 1.0, 3.0, 7.0, 14.0, 21.0, 30.0, 60.0, 90.0, 180.0, 365.0)
N_CAUSES = 2
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class CompetingHazards(nn.Module):
    """Cause-specific hazards of two causes, a day, constant within bins.

    Each cause has a baseline a bin, one score that scales all of it, and a low-rank departure from
    proportional hazards: most of what a small data set can teach is the score.

    Args:
        d_model: Width of the hidden state.
        edges_days: Ascending bin edges from 0; the last bin goes on for ever.
        rank: Rank of the departure.
        dropout: On the features, in training.
    """

    edges_days: Tensor

    def __init__(
        self,
        d_model: int,
        *,
        edges_days: tuple[float, ...] = DAY_BINS,
        rank: int = 4,
        dropout: float = 0.1,
    ) -> None:
        """Start at one event of each cause a thousand days."""
        super().__init__()
        n_bins = len(edges_days)
        self.register_buffer("edges_days", torch.tensor(edges_days), persistent=False)
        self.features = nn.Linear(d_model + 1, d_model)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(d_model, N_CAUSES)
        self.departure = nn.Linear(d_model, rank)
        self.baseline = nn.Parameter(torch.full((N_CAUSES, n_bins), math.log(1e-3)))
        self.shape = nn.Parameter(torch.zeros(rank, N_CAUSES, n_bins))
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def set_baseline(self, outcome: Int[Tensor, " point"], days: Float[Tensor, " point"]) -> None:
        """Put the baseline at the occurrence/exposure rates of a training sample."""
        exposure = self.exposure(days).sum(0) + 1.0
        bins = self._bin_of(days)
        with torch.no_grad():
            for cause in range(N_CAUSES):
                events = torch.zeros_like(exposure).index_add(
                    0, bins, (outcome == cause + 1).to(exposure)
                )
                self.baseline[cause] = torch.log((events + 0.5) / exposure)

    def forward(
        self, hidden: Float[Tensor, "point model"], elapsed_hours: Float[Tensor, " point"]
    ) -> Float[Tensor, "point cause bin"]:
        """Log hazards a day.

        Args:
            hidden: Hidden state after the last known token.
            elapsed_hours: Hours from that token to the moment of prediction.
        """
        waited = torch.log1p(elapsed_hours).unsqueeze(-1) / 5.0
        f = self.dropout(F.silu(self.features(torch.cat([hidden, waited], dim=-1))))
        departure = torch.einsum("pr,rcb->pcb", torch.tanh(self.departure(f)), self.shape)
        return self.baseline + self.score(f).unsqueeze(-1) + departure

    def exposure(self, days: Float[Tensor, " point"]) -> Float[Tensor, "point bin"]:
        """Days spent in each bin by somebody observed for `days`."""
        start = self.edges_days
        width = torch.cat([start[1:] - start[:-1], start.new_full((1,), math.inf)])
        return torch.minimum((days.unsqueeze(-1) - start).clamp(min=0.0), width)

    def negative_log_likelihood(
        self,
        log_hazard: Float[Tensor, "point cause bin"],
        outcome: Int[Tensor, " point"],
        days: Float[Tensor, " point"],
    ) -> Float[Tensor, " point"]:
        """Likelihood of outcome and time, censored where the outcome is 0."""
        total = (log_hazard.exp() * self.exposure(days).unsqueeze(1)).sum((1, 2))
        cause = (outcome - 1).clamp(min=0)
        here = log_hazard[torch.arange(len(outcome)), cause, self._bin_of(days)]
        return total - torch.where(outcome > 0, here, torch.zeros_like(here))

    def cumulative_incidence(
        self, log_hazard: Float[Tensor, "point cause bin"], horizon_days: float
    ) -> Float[Tensor, "point cause"]:
        """P(cause first, within the horizon) of both causes; the rest to one is neither."""
        hazard = log_hazard.exp().double()
        both = hazard.sum(1)
        spent = self.exposure(torch.tensor([horizon_days]).to(log_hazard)).double()
        integral = both * spent
        before = torch.cumsum(integral, -1) - integral
        weight = torch.exp(-before) * -torch.expm1(-integral) / both
        return (hazard * weight.unsqueeze(1)).sum(-1).float()

    def _bin_of(self, days: Float[Tensor, " point"]) -> Int[Tensor, " point"]:
        # An outcome at exactly an edge closes the bin that ends there, as exposure counts it.
        index = torch.searchsorted(self.edges_days, days.contiguous(), right=False) - 1
        return index.clamp(min=0)


@dataclass(frozen=True)
class NextEventLoss:
    """Mean negative log-likelihoods of the next token, in nats; 0 where no token follows another.

    Attributes:
        code: Of its code.
        value: Of its standardised value, over tokens that carry one.
        time: Of the wait for it, in log hours.
    """

    code: Float[Tensor, ""]
    value: Float[Tensor, ""]
    time: Float[Tensor, ""]


class NextEvent(nn.Module):
    """Distributions of the next token's code, value and time.

    Args:
        d_model: Width of the hidden state.
        n_codes: Size of the vocabulary.
    """

    def __init__(self, d_model: int, n_codes: int) -> None:
        """Start close to uniform."""
        super().__init__()
        self.code = nn.Linear(d_model, n_codes)
        self.query = nn.Embedding(n_codes, d_model)
        self.value = nn.Linear(d_model, 2)
        self.time = nn.Linear(d_model, 3)

    def loss(
        self,
        hidden: Float[Tensor, "token model"],
        next_code: Int[Tensor, " token"],
        next_value: Float[Tensor, " token"],
        next_has_value: Float[Tensor, " token"],
        next_gap_hours: Float[Tensor, " token"],
    ) -> NextEventLoss:
        """Losses of the tokens that follow; see `NextEventLoss`."""
        if len(next_code) == 0:
            nothing = hidden.sum()  # still of the graph, so that it can be added and traced back
            return NextEventLoss(nothing, nothing, nothing)
        code = F.cross_entropy(self.code(hidden), next_code)
        mean, log_std = self.value(F.silu(hidden * self.query(next_code))).unbind(-1)
        log_std = log_std.clamp(-4.0, 3.0)
        error = (next_value.clamp(-6.0, 6.0) - mean) * torch.exp(-log_std)
        density = 0.5 * error**2 + log_std + _LOG_SQRT_2PI
        value = (density * next_has_value).sum() / next_has_value.sum().clamp(min=1.0)
        same, mean, log_std = self.time(hidden).unbind(-1)
        log_std = log_std.clamp(-4.0, 3.0)
        at_once = (next_gap_hours <= 0).to(hidden)
        wait = torch.log(next_gap_hours.clamp(min=1e-4))
        error = (wait - mean) * torch.exp(-log_std)
        later = 0.5 * error**2 + log_std + _LOG_SQRT_2PI
        time = F.binary_cross_entropy_with_logits(same, at_once) + (later * (1 - at_once)).mean()
        return NextEventLoss(code, value, time)
