"""MIRA as released: checkpoints of its layout give here the outputs that they give there.

The layout is that of the code published with arXiv 2506.07584 and carried by sktime 1.2
(`sktime.libs.mira`). The network is `mira`'s but for time: positions are made anew for each call,
min-max scaled to 0 .. n - 1 points and rounded to tenths (`normalised_times`), and the ODE is free
of bounds and runs behind the last position only, in the unit of the times given.

Kept, because outputs must be equal:

* Positions know no unit: any regular series has the same ones, an appended point moves all earlier
  ones of an irregular series, and bursts collapse to ties a ten-thousandth apart. Times are rounded
  to float32 first, in which seconds since 1970 are minutes apart.
* The router sees the token only and the weights of the chosen experts do not add up to one.
* One interval, the first row's, carries a whole batch; `own_intervals` gives each row its own.
* Their autoregressive loop never runs the ODE, so no forecast depends on the time it is for.

Not kept: the cache of cosines under the sum of the times, by which a call can get those of an
earlier one; a discarded solve and the failure at a first interval of nought (an `InputError` here);
the key-value cache that counts the past twice; inputs changed in place; loops over rows, points and
experts. Their training loss is not here either: to train, use `mira`.

`released_forecast` keeps keys and values of as many leading points as the next call's positions
leave where they are: all of them in a regular series, few in an irregular one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torchdiffeq import odeint

from tsfm.errors import InputError
from tsfm.kernels.argument_checks import wrong_shape
from tsfm.models.ct_rope import rotate
from tsfm.models.experts import ExpertsConfig, FrequencyAwareExperts
from tsfm.models.mira import GatedEmbedding

_TENTH, _TIE_STEP = 0.1, 1e-4
PastKeyValues = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ReleasedMiraConfig:
    """What `config.json` says of the network, by its names.

    Attributes:
        hidden_size: Width of a token.
        intermediate_size: Inner width of the shared expert; that of the others is divided by
            `num_experts_per_tok`.
        num_hidden_layers: Decoder layers.
        num_attention_heads: Query heads.
        num_experts: Experts to choose from.
        num_experts_per_tok: Experts a token.
        num_key_value_heads: Heads of keys and values; None is as many as query heads.
        rms_norm_eps: Of all norms.
        rope_theta: Base of the rotary frequencies.
        time_scale: Normalised times of n points go up to n - 1 times this.
        use_terminal_ode: Whether there is an ODE.
        ode_func_hidden_dims: Widths of its hidden layers.
        ode_func_use_time: Whether its field sees the time since the last point.
        ode_solver_method: A method of torchdiffeq.
        ode_solver_atol: Absolute tolerance.
        ode_solver_rtol: Relative tolerance.

    Raises:
        InputError: Channels and heads do not divide, or a head has no pairs to turn.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_experts: int
    num_experts_per_tok: int = 2
    num_key_value_heads: int | None = None
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    time_scale: float = 1.0
    use_terminal_ode: bool = True
    ode_func_hidden_dims: tuple[int, ...] = (128, 128)
    ode_func_use_time: bool = True
    ode_solver_method: str = "dopri5"
    ode_solver_atol: float = 1e-6
    ode_solver_rtol: float = 1e-6

    def __post_init__(self) -> None:
        """Check what would fail only at the first call."""
        d, heads = self.hidden_size, self.num_attention_heads
        if d % (2 * heads) or heads % (self.num_key_value_heads or heads):
            raise InputError(
                f"{d} channels, {heads} query heads and {self.num_key_value_heads or heads} key "
                "heads do not divide into pairs", code="heads_do_not_divide",
                place="ReleasedMiraConfig", remedy="Check config.json against its source.",
            )  # fmt: skip


class ReleasedMira(nn.Module):
    """The released network over batches of series of one length."""

    def __init__(self, config: ReleasedMiraConfig) -> None:
        """Build it; `mira_weights` fills it."""
        super().__init__()
        self.config = config
        d = config.hidden_size
        self.embedding = GatedEmbedding(d)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(d, eps=config.rms_norm_eps)
        self.ode = _OdeField(config) if config.use_terminal_ode else None
        self.head = nn.Linear(d, 1, bias=False)

    def forward(
        self,
        values: Float[Tensor, "row point"],
        times: Float[Tensor, "row point"],
        target_times: Float[Tensor, " row"] | None = None,
        *,
        own_intervals: bool = False,
    ) -> Float[Tensor, " row"]:
        """The value that follows each row.

        Args:
            values: Normalised values.
            times: Their times, in a unit of the caller's.
            target_times: Times to which the ODE carries the last state; None: it does not run. A
                row whose target is not after its last point keeps its state.
            own_intervals: Carry each row to its own target, as a batch of it alone would be, not by
                the first row's interval.

        Raises:
            InputError: Shapes or times are not as said, or the first row's interval is nought while
                another row has one.
        """
        state, _ = self._last_state(values, normalised_times(times, self.config.time_scale), None)
        if target_times is not None and self.ode is not None:
            if target_times.shape != times.shape[:1]:
                raise wrong_shape("target_times", target_times, f"({len(times)},)")
            _check_finite("target_times", target_times)
            state = self._carry(self.ode, state, target_times - times[:, -1], own_intervals)
        return self.head(state).squeeze(-1)

    def _last_state(
        self, values: Tensor, positions: Tensor, past: PastKeyValues | None
    ) -> tuple[Tensor, PastKeyValues]:
        """State of the last point behind the last norm, and keys and values of all.

        Args:
            values: Values of the points that are not in the past.
            positions: Their normalised times.
            past: Keys and values of the points before them; None: there are none.
        """
        if values.shape != positions.shape:
            raise wrong_shape("times", positions, str(tuple(values.shape)))
        turn = _turn(positions, self.config)
        x = self.embedding(values)
        held: PastKeyValues = []
        for i, layer in enumerate(self.layers):
            at_end = i == len(self.layers) - 1
            x, kept = layer(x, turn, past[i] if past else None, last_only=at_end)
            held.append(kept)
        return self.norm(x[:, -1]), held

    def _carry(self, ode: _OdeField, state: Tensor, interval: Tensor, own: bool) -> Tensor:
        later = interval > 0
        if not bool(later.any()):
            return state
        if own:
            rows = [
                ode.solve(state[i : i + 1], float(interval[i])) if later[i] else state[i : i + 1]
                for i in range(len(state))
            ]
            return torch.cat(rows)
        if interval[0] == 0:
            raise InputError(
                "the first row's interval, which all rows take, is nought",
                code="empty_interval", place="target_times", remedy="Pass own_intervals.",
            )  # fmt: skip
        return torch.where(later.unsqueeze(-1), ode.solve(state, float(interval[0])), state)


class _Layer(nn.Module):
    """Attention and experts, each behind a norm and beside a residual."""

    def __init__(self, config: ReleasedMiraConfig) -> None:
        super().__init__()
        d, heads = config.hidden_size, config.num_attention_heads
        self.head_dim = d // heads
        shared_rows = (config.num_key_value_heads or heads) * self.head_dim
        self.attention_norm = nn.RMSNorm(d, eps=config.rms_norm_eps)
        self.query = nn.Linear(d, d)
        self.key = nn.Linear(d, shared_rows)
        self.value = nn.Linear(d, shared_rows)
        self.out = nn.Linear(d, d, bias=False)
        self.experts_norm = nn.RMSNorm(d, eps=config.rms_norm_eps)
        experts = ExpertsConfig.mira(
            d, config.intermediate_size, n_experts=config.num_experts,
            top_k=config.num_experts_per_tok,
        )  # fmt: skip
        self.experts = FrequencyAwareExperts(experts)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None, *,
        last_only: bool,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
        """Map points; `last_only` leaves out what the other points would become."""
        normed = self.attention_norm(x)
        k, v = self._heads(self.key(normed), turn), self._heads(self.value(normed), None)
        if past is not None:
            k, v = (torch.cat(both, dim=2) for both in zip(past, (k, v), strict=True))
        if last_only:
            x, normed, turn = x[:, -1:], normed[:, -1:], (turn[0][:, -1:], turn[1][:, -1:])
        q = self._heads(self.query(normed), turn)
        n_new, n_seen = q.shape[2], k.shape[2]
        masked = 1 < n_new < n_seen
        mask = torch.ones(n_new, n_seen, dtype=torch.bool, device=x.device) if masked else None
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask if mask is None else mask.tril(n_seen - n_new),
            is_causal=1 < n_new == n_seen, enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        x = x + self.out(y.transpose(1, 2).flatten(2))
        mapped, _ = self.experts(self.experts_norm(x).flatten(0, 1))
        return x + mapped.view_as(x), (k, v)

    def _heads(self, x: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        x = x.unflatten(-1, (-1, self.head_dim))
        if turn is not None:
            turned = rotate(x.flatten(0, 1), turn[0].flatten(0, 1), turn[1].flatten(0, 1))
            x = turned.view_as(x)
        return x.transpose(1, 2)


class _OdeField(nn.Module):
    """dh/ds of a state, an unbounded MLP of it and of the time since the last point."""

    def __init__(self, config: ReleasedMiraConfig) -> None:
        super().__init__()
        self.config = config
        d = config.hidden_size
        widths = (d + config.ode_func_use_time, *config.ode_func_hidden_dims, d)
        self.layers = nn.ModuleList(
            nn.Linear(widths[i], widths[i + 1]) for i in range(len(widths) - 1)
        )

    def forward(self, s: Tensor, h: Tensor) -> Tensor:
        """The slope at the relative time `s`."""
        x = torch.cat([s.to(h).expand(len(h), 1), h], -1) if self.config.ode_func_use_time else h
        for layer in self.layers[:-1]:
            x = F.silu(layer(x))
        return self.layers[-1](x)

    def solve(self, h: Tensor, interval: float) -> Tensor:
        """The states after the interval, in steps that all rows share."""
        ends = torch.tensor([0.0, interval], device=h.device)
        method, c = self.config.ode_solver_method, self.config
        solved: Any = odeint(
            self, h, ends, method=method, rtol=c.ode_solver_rtol, atol=c.ode_solver_atol
        )
        return solved[-1]


@torch.no_grad()
def normalised_times(
    times: Float[Tensor, "row point"], time_scale: float = 1.0
) -> Float32[Tensor, "row point"]:
    """The released code's positions: min-max scaled, rounded to tenths, ties moved apart.

    A time that is not above the one before is put 1e-4 above it, in turn along the row. All rows
    move at once here, as often as the longest chain of ties has points, to the same bits.

    Args:
        times: Times, rounded to float32 first.
        time_scale: The last of n points is at n - 1 times this.

    Raises:
        InputError: A time is not finite, or there is none.
    """
    if not times.shape[1]:
        raise InputError(
            "a series has no point", code="empty_context", place="times",
            remedy="Leave out what has no past.",
        )  # fmt: skip
    t = times.to(torch.float32)
    _check_finite("times", t)
    first, last = t.amin(1, keepdim=True), t.amax(1, keepdim=True)
    scaled = (t - first) / (last - first).clamp(min=1e-8) * (time_scale * float(t.shape[1] - 1))
    snapped = torch.round(scaled / _TENTH) * _TENTH
    moved = snapped
    while True:
        before = moved[:, :-1]
        rest = torch.where(snapped[:, 1:] > before, snapped[:, 1:], before + _TIE_STEP)
        further = torch.cat([snapped[:, :1], rest], dim=1)
        if torch.equal(further, moved):
            return moved
        moved = further


@torch.no_grad()
def released_forecast(
    model: ReleasedMira,
    values: Float[Tensor, "row point"],
    times: Float[Tensor, "row point"],
    target_times: Float[Tensor, "row target"],
) -> Float[Tensor, "row target"]:
    """What the released autoregressive loop gives: each forecast is appended as if seen.

    Args:
        model: The network.
        values: Normalised values of the contexts.
        times: Their times.
        target_times: Times of what is forecast, at which it is appended.

    Returns:
        Normalised values. The loop runs no ODE, and a forecast's own time has no influence on it.

    Raises:
        InputError: Shapes or times are not as said.
    """
    if values.shape != times.shape:
        raise wrong_shape("times", times, str(tuple(values.shape)))
    n_known, n_targets = values.shape[1], target_times.shape[1]
    if len(target_times) != len(values):
        raise wrong_shape("target_times", target_times, f"({len(values)}, {n_targets})")
    if not n_targets:
        return values[:, :0]
    every = torch.cat([times.to(torch.float32), target_times.to(torch.float32)], dim=1)
    scale = model.config.time_scale
    positions = [normalised_times(every[:, : n_known + i], scale) for i in range(n_targets)]
    moved = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    for before, after in itertools.pairwise(positions):
        moved |= (after[:, :-1] != before).any(1)
    answers = values.new_empty(len(values), n_targets)
    for group in (moved.nonzero().flatten(), (~moved).nonzero().flatten()):
        if len(group):
            answers[group] = _decode(model, values[group], [p[group] for p in positions])
    return answers


def _decode(model: ReleasedMira, values: Tensor, positions: list[Tensor]) -> Tensor:
    past: PastKeyValues | None = None
    n_context, shown = values.shape[1], positions[0][:, :0]
    for now in positions:
        n_before = shown.shape[1]
        # Leading points, but for the newest one, that are where they were in all rows.
        n_kept = int((shown == now[:, :n_before]).all(0).long().cumprod(0).sum())
        kept = [(k[:, :, :n_kept], v[:, :, :n_kept]) for k, v in past] if past and n_kept else None
        state, past = model._last_state(values[:, n_kept:], now[:, n_kept:], kept)
        values = torch.cat([values, model.head(state)], dim=1)
        shown = now
    return values[:, n_context:]


def _check_finite(place: str, times: Tensor) -> None:
    if not bool(times.isfinite().all()):
        raise InputError(
            "a time is not finite", code="not_finite", place=place,
            remedy="Leave points and targets without a time out.",
        )  # fmt: skip


def _turn(positions: Tensor, config: ReleasedMiraConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position and pair, from phases in float32 as there."""
    head_dim = config.hidden_size // config.num_attention_heads
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    frequency = 1.0 / (config.rope_theta ** (pairs / head_dim))
    phase = positions.unsqueeze(-1) * frequency
    return torch.cos(phase), torch.sin(phase)
