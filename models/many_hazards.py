"""Time to the next occurrence of each of many codes: low-rank piecewise-exponential hazards.

    log2 h_k(b) = < rms(W h)_b, task_k > + bias_k,b       S_k(t) = exp(-sum over b of h_k(b) x_b)

with x_b the days spent in bin b by day t. It is MOTOR's head (Steinberg et al. 2023; arXiv
2301.03150): one pass gives the whole distribution of the time to hundreds of codes, and
a record that ends says that until then nothing happened, no more. Bins end where events are; the
biases start at the rates of the training subjects and the tasks at nought, so an untrained head
knows the rates and nothing else.

A code's hazard is that of one who is alive and still followed: death and the end of the record
censor. How likely something is in spite of death is asked of `tsfm.models.heads`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tsfm.errors import InputError

_LN2 = math.log(2.0)


class ManyHazards(nn.Module):
    """Hazards a day of many codes, constant within bins.

    Args:
        d_model: Width of the hidden state.
        n_codes: Codes that are asked for.
        edges_days: Ascending bin edges from 0; the last bin goes on for ever.
        rank: Width of the product that a state's bins and a code meet in.

    Raises:
        InputError: The edges do not ascend from 0, or nothing is asked.
    """

    edges_days: Tensor

    def __init__(
        self, d_model: int, n_codes: int, *, edges_days: tuple[float, ...], rank: int = 16
    ) -> None:
        """Start at one event of each code a thousand days."""
        super().__init__()
        edges = torch.tensor(edges_days, dtype=torch.float32)
        ascends = len(edges) > 0 and edges[0] == 0 and bool((edges.diff() > 0).all())
        if not ascends or not bool(edges.isfinite().all()) or n_codes < 1 or rank < 1:
            raise InputError(
                "bin edges must ascend from 0, and at least one code must be asked for",
                code="bad_hazard_bins", place="edges_days",
                remedy="Take them from `quantile_edges`.",
            )  # fmt: skip
        self.rank = rank
        self.register_buffer("edges_days", edges, persistent=False)
        self.bins = nn.Linear(d_model, len(edges) * rank)
        self.task = nn.Parameter(torch.zeros(n_codes, rank))
        self.bias = nn.Parameter(torch.full((len(edges), n_codes), math.log2(1e-3)))

    @torch.no_grad()
    def set_rates(
        self, days: Float[Tensor, "point code"], is_event: Bool[Tensor, "point code"]
    ) -> None:
        """Put the biases at the occurrence/exposure rates of a training sample.

        A code's bins are drawn to its rate over all of them by the weight of one event.

        Args:
            days: Days to the next occurrence, or to the end of what is known.
            is_event: Whether it is the former.
        """
        days, happened = days.double(), is_event.double()
        exposure = self.exposure(days).sum(0)
        events = torch.zeros_like(exposure).scatter_add(0, self._bin_of(days).squeeze(1), happened)
        rate = (events.sum(0) + 0.5) / (exposure.sum(0) + 1.0)
        self.bias.copy_(torch.log2((events + 1.0) / (exposure + 1.0 / rate)))

    def forward(self, hidden: Float[Tensor, "point model"]) -> Float[Tensor, "point bin code"]:
        """Logarithms to base 2 of the hazards a day, from the time of each state's token."""
        bins = self.bins(hidden).unflatten(-1, (-1, self.rank))
        return F.rms_norm(bins, (self.rank,)) @ self.task.T + self.bias

    def exposure(self, days: Float[Tensor, "point code"]) -> Float[Tensor, "point bin code"]:
        """Days spent in each bin by somebody observed for `days`."""
        start = self.edges_days.to(days)
        width = torch.cat([start.diff(), start.new_full((1,), math.inf)])
        spent = (days.unsqueeze(1) - start.unsqueeze(1)).clamp(min=0.0)
        return torch.minimum(spent, width.unsqueeze(1))

    def negative_log_likelihood(
        self,
        log2_hazard: Float[Tensor, "point bin code"],
        days: Float[Tensor, "point code"],
        is_event: Bool[Tensor, "point code"],
    ) -> Float[Tensor, "point code"]:
        """Of a code's time, in nats: the whole hazard until then, less log h there if it happened.

        Args:
            log2_hazard: From `forward`.
            days: Days to the next occurrence, or to the end of what is known.
            is_event: Whether it is the former.
        """
        total = (torch.exp2(log2_hazard) * self.exposure(days)).sum(1)
        here = log2_hazard.gather(1, self._bin_of(days)).squeeze(1)
        return total - _LN2 * torch.where(is_event, here, torch.zeros_like(here))

    def probability(
        self,
        log2_hazard: Float[Tensor, "point bin code"],
        horizon_days: float,
        elapsed_days: Float[Tensor, " point"] | None = None,
    ) -> Float[Tensor, "point code"]:
        """P(next occurrence within the horizon), for one who lives that long.

        Args:
            log2_hazard: From `forward`.
            horizon_days: Days from the moment of prediction, from 0; infinity is ever.
            elapsed_days: Days from each state's token to that moment, in which nothing happened,
                from 0; None is none.

        Returns:
            Probabilities in [0, 1], which rise with the horizon.

        Raises:
            InputError: The horizon is below 0 or no number, or an elapsed time is not finite.
        """
        known = elapsed_days is None or bool((elapsed_days.isfinite() & (elapsed_days >= 0)).all())
        if not horizon_days >= 0 or not known:
            raise InputError(
                "the horizon or an elapsed time is below 0 or no number", code="bad_horizon",
                place="horizon_days", remedy="Give days from 0.",
            )  # fmt: skip
        hazard = torch.exp2(log2_hazard.double())
        since = hazard.new_zeros(len(hazard)) if elapsed_days is None else elapsed_days.double()
        until = self.exposure((since + horizon_days).unsqueeze(1))
        spent = until - self.exposure(since.unsqueeze(1))
        return -torch.expm1(-(hazard * spent).sum(1)).float()

    def _bin_of(self, days: Float[Tensor, "point code"]) -> Int[Tensor, "point 1 code"]:
        # An event at exactly an edge closes the bin that ends there, as exposure counts it.
        index = torch.searchsorted(self.edges_days.to(days), days.contiguous()) - 1
        return index.clamp(min=0).unsqueeze(1)


def quantile_edges(
    days: Float[Tensor, "point code"], is_event: Bool[Tensor, "point code"], n_bins: int
) -> tuple[float, ...]:
    """Bin edges between which about as many events lie, every code counted alike.

    Without that, daily laboratory tests would set the bins of yearly admissions.

    Args:
        days: Days to the next occurrence, or to the end of what is known.
        is_event: Whether it is the former.
        n_bins: Bins at most: equal quantiles are one edge.

    Raises:
        InputError: There is no event, or no bin.
    """
    if n_bins < 1 or not bool(is_event.any()):
        raise InputError(
            "no events to place bin edges by", code="no_hazard_events", place="hazard_codes",
            remedy="Ask for codes that happen after a subject's first events.",
        )  # fmt: skip
    weight = (is_event.double() / is_event.sum(0).clamp(min=1))[is_event]
    times, order = days.double()[is_event].sort()
    reached = weight[order].cumsum(0)
    wanted = torch.arange(1, n_bins, dtype=torch.float64) / n_bins * reached[-1]
    found = times[torch.searchsorted(reached, wanted).clamp(max=len(times) - 1)]
    return (0.0, *torch.unique(found[found > 0].float()).tolist())
