"""A mixture of experts whose router sees how fast things move: token, gap and band energy.

    s = softmax(W x + V r)      y = sum over the k best of s_i FFN_i(x) + sigmoid(w x) FFN_shared(x)

Every FFN is a SwiGLU. x is the token; r, from `rate_features`, is the log of the hours since the
previous point and the local band energy. Without r, with weights that are not renormalised, the
layer is Time-MoE's, which MIRA took over (Shi et al. 2024; arXiv 2506.07584): there the experts are
called specialists of frequency, but their router cannot tell 250 Hz from weekly values.

Load is balanced by the loss of the Switch transformer (Fedus et al. 2021, equation 4) or, without a
loss, by a bias that moves the choice and not the weights (Wang et al. 2024). Tokens are sorted by
expert and each expert runs once on its stretch of them: the host waits for the device once a layer,
no token is dropped and no expert has a capacity. All experts are on one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tsfm.errors import InputError
from tsfm.kernels.argument_checks import check_borders

LAGS = (1, 4, 16)
WINDOW = 8  # differences in one mean; a power of two
BAND_LOOKBACK = 2 * LAGS[-1] + WINDOW - 1
N_BAND_FEATURES = 4 * len(LAGS)
N_RATE_FEATURES = 3 + N_BAND_FEATURES
BALANCES = ("bias", "loss", "none")
RESOLUTION = 1e-4  # in the values' units: smaller moves are not told from rest
ONE_MOMENT_HOURS = 1e-12
MANY_EXPERTS = 16
LOG_UNIT = 5.0  # brings log hours, -14 at 250 Hz and 9 at a year, to the size of one


@dataclass(frozen=True)
class ExpertsConfig:
    """Sizes and form of a mixture of experts.

    Attributes:
        d_model: Width of the tokens.
        d_expert: Inner width of an expert. MIRA's is `d_shared // top_k`.
        d_shared: Inner width of the shared expert.
        n_experts: Experts to choose from.
        top_k: Experts a token.
        renormalise: Let the chosen weights add up to one. MIRA's do not.
        sees_rate: Give the router `rate_features`. MIRA's sees the token only.
        balance: One of `BALANCES`: `bias` is moved by `update_balance`; `loss` leaves it to the
            trainer to add `switch_loss`.
        balance_rate: Step of the bias, in logits.
    """

    d_model: int
    d_expert: int
    d_shared: int
    n_experts: int = 8
    top_k: int = 2
    renormalise: bool = True
    sees_rate: bool = True
    balance: str = "bias"
    balance_rate: float = 0.02

    @classmethod
    def mira(
        cls, d_model: int, d_shared: int, *, n_experts: int = 8, top_k: int = 2
    ) -> ExpertsConfig:
        """The layer as MIRA's code builds it."""
        return cls(
            d_model, d_shared // top_k, d_shared, n_experts, top_k,
            renormalise=False, sees_rate=False, balance="loss",
        )  # fmt: skip


class Routing(NamedTuple):
    """Where a layer sent its tokens.

    Attributes:
        probabilities: Softmax over all experts, (token, expert).
        experts: The chosen ones, best first, (token, choice).
        weights: What their outputs are multiplied by, (token, choice).
    """

    probabilities: Tensor
    experts: Tensor
    weights: Tensor


class SwiGLU(nn.Module):
    """out(silu(gate(x)) * up(x)), with gate and up in one product."""

    def __init__(self, d_model: int, d_inner: int) -> None:
        """Initialise as linear layers are, without biases."""
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.out = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, x: Float[Tensor, "token model"]) -> Float[Tensor, "token model"]:
        """Map each token."""
        return self.out(_gated(self.gate_up(x)))


class FrequencyAwareExperts(nn.Module):
    """Routed SwiGLU experts beside a shared one.

    `usage` counts how often each expert was chosen in training since the layer was made.
    """

    balance_bias: Tensor
    usage: Tensor
    _usage_before: Tensor

    def __init__(self, config: ExpertsConfig) -> None:
        """Initialise every expert as linear layers are.

        Raises:
            InputError: The configuration contradicts itself.
        """
        super().__init__()
        _check_config(config)
        self.config = config
        n, d, inner = config.n_experts, config.d_model, config.d_expert
        self.router = nn.Linear(d, n, bias=False)
        self.rate_router = nn.Linear(N_RATE_FEATURES, n) if config.sees_rate else None
        self.gate_up = nn.Parameter(torch.empty(n, d, 2 * inner).uniform_(-(d**-0.5), d**-0.5))
        self.out = nn.Parameter(torch.empty(n, inner, d).uniform_(-(inner**-0.5), inner**-0.5))
        self.shared = SwiGLU(d, config.d_shared)
        self.shared_gate = nn.Linear(d, 1, bias=False)
        self.register_buffer("balance_bias", torch.zeros(n))
        self.register_buffer("usage", torch.zeros(n, dtype=torch.int64), persistent=False)
        self.register_buffer("_usage_before", torch.zeros_like(self.usage), persistent=False)

    def forward(
        self,
        x: Float[Tensor, "token model"],
        rate: Float[Tensor, "token feature"] | None = None,
    ) -> tuple[Float[Tensor, "token model"], Routing]:
        """Map each token by its experts.

        Args:
            x: Tokens, normalised.
            rate: From `rate_features`, once for all layers. Needed if the router sees it.

        Returns:
            What the experts make of each token, and where it was sent.

        Raises:
            InputError: The router sees rates and was given none.
        """
        routing = self.route(x, rate)
        if self.training:
            self._count(routing.experts)
        routed = grouped_experts(x, routing.experts, routing.weights, self.gate_up, self.out)
        return routed + torch.sigmoid(self.shared_gate(x)) * self.shared(x), routing

    def route(
        self,
        x: Float[Tensor, "token model"],
        rate: Float[Tensor, "token feature"] | None = None,
    ) -> Routing:
        """Choose experts; see `forward`."""
        logits = self.router(x)
        if self.rate_router is not None:
            if rate is None:
                raise InputError(
                    "a router that sees rates was given none", code="missing_rate", place="rate",
                    remedy="Give it what rate_features returns.",
                )  # fmt: skip
            logits = logits + self.rate_router(rate.to(x))
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        probabilities = logits.softmax(-1)
        preferred = logits.detach()
        if self.config.balance == "bias":
            preferred = preferred + self.balance_bias
        experts = preferred.topk(self.config.top_k, dim=-1).indices
        weights = probabilities.gather(-1, experts)
        if self.config.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return Routing(probabilities, experts, weights)

    @torch.no_grad()
    def update_balance(self) -> None:
        """Move the bias a step towards experts chosen too seldom since the last call.

        Call it after each optimizer step. It is not part of `forward`, so that accumulated or
        recomputed forward passes are routed alike. Without `balance="bias"` it does nothing.
        """
        if self.config.balance != "bias":
            return
        used = (self.usage - self._usage_before).to(self.balance_bias)
        self.balance_bias += self.config.balance_rate * torch.sign(used.mean() - used)
        self.balance_bias -= self.balance_bias.mean()
        self._usage_before.copy_(self.usage)

    @torch.no_grad()
    def _count(self, experts: Tensor) -> None:
        self.usage += _counts(experts, self.config.n_experts)


def grouped_experts(
    x: Float[Tensor, "token model"],
    experts: Int[Tensor, "token choice"],
    weights: Float[Tensor, "token choice"],
    gate_up: Float[Tensor, "expert model twice"],
    out: Float[Tensor, "expert inner model"],
) -> Float[Tensor, "token model"]:
    """Weighted sum of each token's SwiGLU experts, one product an expert.

    Args:
        x: Tokens.
        experts: Experts of each token, all different.
        weights: Weights of their outputs.
        gate_up: First matrices, the gate's columns before the others.
        out: Last matrices.
    """
    if _one_by_one(x, gate_up):
        from tsfm.kernels import numba_experts

        return numba_experts.many_experts(x, experts, weights, gate_up, out)
    chosen = experts.flatten()
    by_expert = chosen.argsort(stable=True)
    sizes = _counts(chosen, len(gate_up)).tolist()
    rows = x[by_expert // experts.shape[1]]
    # unbind, not indexing: the gradient of all experts is then put together once.
    matrices = zip(rows.split(sizes), gate_up.unbind(), out.unbind(), strict=True)
    mapped = torch.cat([_gated(part @ first) @ last for part, first, last in matrices])
    # Back in order, a plain sum over choices: no atomic additions, the same bits every time.
    place = torch.empty_like(by_expert)
    place[by_expert] = torch.arange(len(place), device=place.device)
    mapped = mapped[place].unflatten(0, experts.shape)
    return torch.einsum("tkm,tk->tm", mapped, weights.to(mapped))


def _one_by_one(x: Tensor, gate_up: Tensor) -> bool:
    """Whether experts are so many that calls of torch take longer than their arithmetic."""
    plain = x.device.type == "cpu" and x.dtype == gate_up.dtype == torch.float32
    traced = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return plain and not traced and len(gate_up) > MANY_EXPERTS


def switch_loss(routings: Sequence[Routing]) -> Float[Tensor, ""]:
    """N sum f_i r_i over the tokens of all layers together; 1 if they are spread evenly.

    f_i is the share of choices that fell on expert i and r_i its mean probability, through which
    the gradient goes. MIRA weighs it by 0.02.
    """
    probabilities = torch.cat([r.probabilities for r in routings])
    chosen = torch.cat([r.experts.flatten() for r in routings])
    n_experts = probabilities.shape[1]
    share = _counts(chosen, n_experts) / len(chosen)
    return n_experts * (share.to(probabilities) * probabilities.mean(0)).sum()


@torch.no_grad()
def rate_features(
    values: Float[Tensor, " token"],
    gap_hours: Float[Tensor, " token"],
    cu_seqlens: Int[Tensor, " borders"] | None = None,
) -> Float[Tensor, "token feature"]:
    """What the router is told of time: `N_RATE_FEATURES` numbers of the size of one.

    The log of the gap, whether there is one, whether the previous point is of the same moment, and
    `band_energy`, whose arguments and errors these are.
    """
    bands = band_energy(values, gap_hours, cu_seqlens)
    follows = _place_in_sequence(cu_seqlens, len(values), values.device) > 0
    later = follows & (gap_hours > 0)
    log_gap = gap_hours.clamp(min=ONE_MOMENT_HOURS, max=1 / ONE_MOMENT_HOURS).log() / LOG_UNIT
    told = torch.stack([torch.where(later, log_gap, 0.0), later, follows & (gap_hours == 0)], -1)
    return torch.cat([told.to(bands), bands], -1)


@torch.no_grad()
def band_energy(
    values: Float[Tensor, " token"],
    gap_hours: Float[Tensor, " token"],
    cu_seqlens: Int[Tensor, " borders"] | None = None,
) -> Float[Tensor, "token feature"]:
    """How fast the values have moved of late, at a few scales, in logs of units an hour.

    At each lag of `LAGS` points, first and second divided differences (slope and bend) are squared
    and averaged over time among the last `WINDOW` of them. Of a sine the root mean squares are a
    ratio of its angular frequency apart, whatever its amplitude. A token's features are of its own
    sequence, at or before itself: of the last `BAND_LOOKBACK` points and it, so a stream need keep
    no more. Differences in no time, or with a value that is not finite, are left out.

    Args:
        values: Values, about one in size (see `tsfm.models.series_scale`); moves below 1e-4 are
            taken for rest, which keeps constant series finite.
        gap_hours: Hours since the previous point of the same sequence; of a first point it is not
            looked at.
        cu_seqlens: Borders of the sequences, from 0 to the number of tokens; None is one.

    Returns:
        For each lag the slope's and the bend's log root mean square (the bend's halved, so that
        both are log speeds), divided by 5, 0 where unknown; then whether each is known.

    Raises:
        InputError: A gap is negative or no number, or the borders do not fit.
    """
    position = _place_in_sequence(cu_seqlens, len(values), values.device)
    _check_gaps(gap_hours, position > 0)
    finite = values.isfinite()
    x = torch.where(finite, values, 0.0).double()
    # Doubling, not differences of running sums: milliseconds after years keep their digits.
    elapsed = {1: gap_hours.double()}
    for lag in (2**i for i in range(LAGS[-1].bit_length())):
        elapsed[2 * lag] = elapsed[lag] + _before(elapsed[lag], lag)
    energies, known = [], []
    for lag in LAGS:
        hours, both = elapsed[lag], elapsed[2 * lag]
        sloped = (position >= lag) & finite & _before(finite, lag)
        sloped = sloped & (hours > ONE_MOMENT_HOURS) & hours.isfinite()
        safe = torch.where(sloped, hours, 1.0)
        slope = (x - _before(x, lag)) / safe
        bent = sloped & _before(sloped, lag)
        half = torch.where(bent, both / 2, 1.0)
        bend = (slope - _before(slope, lag)) / half
        for order, there, d, span in ((1, sloped, slope, safe), (2, bent, bend, half)):
            power = d.square() + (RESOLUTION / span**order).square()
            mean, time = _windowed(torch.stack([power * span, span], -1), there, position)
            rms = (mean / time.clamp(min=ONE_MOMENT_HOURS)).clamp(1e-300, 1e300).log() / 2
            energies.append(torch.where(time > 0, rms / (order * LOG_UNIT), 0.0))
            known.append(time > 0)
    return torch.cat([torch.stack(energies, -1), torch.stack(known, -1)], -1).to(values.dtype)


def _windowed(x: Tensor, there: Tensor, position: Tensor) -> tuple[Tensor, ...]:
    """Sums of the columns over the last `WINDOW` tokens of the sequence, where there are any."""
    total = torch.where(there.unsqueeze(-1), x, 0.0)
    step = 1
    while step < WINDOW:
        inside = (position >= step).unsqueeze(-1)
        total = total + torch.where(inside, _before(total, step), 0.0)
        step *= 2
    return total.unbind(-1)


def _before(x: Tensor, n: int) -> Tensor:
    """What stands n tokens earlier in the batch, whatever its sequence; nought at the start."""
    return torch.cat([x.new_zeros(min(n, len(x)), *x.shape[1:]), x[:-n]])


def _place_in_sequence(cu_seqlens: Tensor | None, n_tokens: int, device: torch.device) -> Tensor:
    place = torch.arange(n_tokens, device=device)
    if cu_seqlens is None:
        return place
    starts = check_borders(cu_seqlens, n_tokens, device).long()
    return place - starts[:-1].repeat_interleave(starts.diff(), output_size=n_tokens)


def _check_gaps(gap_hours: Tensor, follows: Tensor) -> None:
    if not torch.compiler.is_compiling() and not bool(((gap_hours >= 0) | ~follows).all()):
        raise InputError(
            "a gap is negative or no number", code="bad_gap", place="gap_hours",
            remedy="Sort the points of each sequence by time.",
        )  # fmt: skip


def _check_config(config: ExpertsConfig) -> None:
    problem = None
    if not 1 <= config.top_k <= config.n_experts:
        problem = ("top_k", f"{config.top_k} of {config.n_experts} experts can't be chosen")
    elif config.top_k == 1 and config.renormalise:
        problem = ("renormalise", "a single weight, renormalised, is 1 and teaches no router")
    elif config.balance not in BALANCES:
        problem = ("balance", f"unknown balance '{config.balance}'")
    if problem is not None:
        raise InputError(
            problem[1], code="bad_experts_config", place=problem[0],
            remedy=f"Choose 1 to n_experts experts, balanced by one of {', '.join(BALANCES)}.",
        )  # fmt: skip


def _counts(experts: Tensor, n_experts: int) -> Tensor:
    # Not bincount, for which a GPU has to report the largest number first.
    chosen = experts.flatten()
    return chosen.new_zeros(n_experts).index_add(0, chosen, torch.ones_like(chosen))


def _gated(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate) * up
