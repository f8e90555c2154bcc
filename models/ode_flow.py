"""A neural flow between events: every row over its own hours, all rows in one solve.

    dh/dt = f(t, h) = (target(t, h) - h) / rest_hours        t in hours

A state left alone goes to a target that depends on the state and on the hour. The target is a small
network, bounded by `reach` and with Lipschitz constant `coupling` (`RelaxingField`). So f has the
constant (1 + coupling) / rest_hours and one solution through every point (Picard and Lindelof), no
component ever exceeds max(|h|, reach), and with coupling < 1 two states approach each other like
exp(-(1 - coupling) t / rest_hours) at least.

Rows have intervals of their own, so time is rescaled: all go from s = 0 to 1 and f is multiplied by
the row's hours (Chen et al. 2018, equation 1). That alone would be stiff where a decay of rate d
meets a long interval, and explicit solvers blow up. So a decay is solved exactly and the solver
sees the rest (an integrating factor, Lawson 1967), w instead of h:

    e = exp(-d dt / 4)     r(s) = e + s (1 - e)     w = r^4 h     t(s) = t0 + dt + 4 log(r) / d
    dw/ds = 4 r^3 (1 - e) / d * g(t, w / r^4)       where f(t, h) = g(t, h) - d h

w ends as h, small where the past is forgotten; d = 0 is dh/ds = dt g. rk4 is given the whole decay,
d = 1 / rest_hours. It integrates a constant g exactly, since the weight is a cubic, so the end is a
mean of the start and of targets: finite for any interval and number of steps. dopri5 is given the
part that is sure, d = (1 - coupling) / rest_hours: then no error grows on the way, its tolerance
holds at the end, and beyond some time constants a longer interval costs no more steps. Where the
adjoint retraces the state, a decay left to the solver would blow up: there dopri5 gets the whole
too, and strong coupling over tens of time constants costs digits.

The solver is torchdiffeq's. Linear states of the scan need none, see `scan_flow.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from tsfm.errors import InputError
from tsfm.kernels.argument_checks import wrong_shape

METHODS = ("rk4", "dopri5")
# The largest slope of x sigmoid(x), at x = 2.3994, rounded up.
SILU_LIPSCHITZ = 1.09984
# Where r is less than this, exp(-d dt) is below 1e-28 and the start is forgotten.
_LEAST_R = 1e-7
# Covers the rounding of the norms in float32.
_NORM_SLACK = 1.0 + 1e-5

Drift = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Solver:
    """How a flow is solved.

    Attributes:
        method: `rk4`, a fixed number of steps, or `dopri5`, steps as the tolerances ask for. With
            rk4 a row's result does not depend on the other rows. With dopri5 rows share their
            steps, and it is the worst row's error that is held to the tolerances, not the mean of
            all: every row is as exact as they ask, whatever stands beside it.
        n_steps: Steps of rk4.
        rtol: Relative tolerance of dopri5.
        atol: Absolute tolerance of dopri5.
        max_steps: Steps after which dopri5 gives up.
        adjoint: Gradients by solving backwards in time instead of through the steps: memory does
            not grow with them, and gradients are as exact as n_steps or the tolerances allow.
    """

    method: str = "rk4"
    n_steps: int = 16
    rtol: float = 1e-5
    atol: float = 1e-6
    max_steps: int = 10_000
    adjoint: bool = False

    def __post_init__(self) -> None:
        """Check what a typing slip would break."""
        if self.method not in METHODS:
            raise InputError(
                f"unknown solver '{self.method}'", code="unknown_solver", place="method",
                remedy=f"Use one of {', '.join(METHODS)}.",
            )  # fmt: skip
        for name in ("n_steps", "rtol", "atol", "max_steps"):
            if not getattr(self, name) > 0:
                raise _bad_setting(name, "must be positive")


@dataclass(frozen=True)
class FlowConfig:
    """Size and bounds of a flow.

    Attributes:
        width: Channels of the state.
        rest_hours: Time constant of the decay towards the target.
        coupling: Lipschitz constant of the target. From 1 on nothing is forgotten for sure, and
            dopri5 may give up on long intervals. The stronger, the more steps rk4 needs for them.
        reach: No component of the target is larger, in units of the state.
        hidden: Widths of the network's hidden layers.
        periods_hours: Periods of the hour that the target depends on; none: it does not.
        solver: How it is solved.
        allow_negative: Accept intervals back in time, along which errors grow as the decay undone.
    """

    width: int
    rest_hours: float
    coupling: float = 0.5
    reach: float = 8.0
    hidden: tuple[int, ...] = (128,)
    periods_hours: tuple[float, ...] = ()
    solver: Solver = field(default_factory=Solver)
    allow_negative: bool = False

    def __post_init__(self) -> None:
        """Check that bounds are bounds."""
        for name in ("rest_hours", "coupling", "reach"):
            if not 0 < getattr(self, name) < math.inf:
                raise _bad_setting(name, "must be positive and finite")
        if not all(0 < period < math.inf for period in self.periods_hours):
            raise _bad_setting("periods_hours", "must be positive and finite")

    @property
    def lipschitz_per_hour(self) -> float:
        """Lipschitz constant of f in the state, which no training can exceed."""
        return (1.0 + self.coupling) / self.rest_hours


class RelaxingField(nn.Module):
    """f(t, h) = (target(t, h) - h) / rest_hours with a bounded Lipschitz network as its target.

    target = reach tanh(coupling u / reach), where u(t, h) is an MLP with Lipschitz constant 1 in h:
    every weight matrix is divided by a bound of its spectral norm if that exceeds 1, and every SiLU
    by its steepest slope. Time enters the first layer as sines and cosines.
    """

    periods: Tensor

    def __init__(self, config: FlowConfig) -> None:
        """Start as torch starts linear layers."""
        super().__init__()
        self.config = config
        widths = (config.width, *config.hidden, config.width)
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in itertools.pairwise(widths)
        )
        n_features = 2 * len(config.periods_hours)
        self.time = nn.Linear(n_features, widths[1], bias=False) if n_features else None
        periods = torch.tensor(config.periods_hours, dtype=torch.float64)
        self.register_buffer("periods", periods, persistent=False)

    def bounded_parameters(self) -> list[Tensor]:
        """Scaled weight and bias of every layer in turn, then the weight of time if there is one.

        They change with the parameters only, so a solve needs them once.
        """
        found: list[Tensor] = []
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            bound = spectral_norm_bound(layer.weight)
            found += [layer.weight / bound.clamp_min(1.0), layer.bias]
        return found if self.time is None else [*found, self.time.weight]

    def target(
        self,
        t_hours: Float[Tensor, " row"],
        h: Float[Tensor, "row width"],
        parameters: Sequence[Tensor] | None = None,
    ) -> Float[Tensor, "row width"]:
        """Where the states go to.

        Args:
            t_hours: The hour of each row, on a clock of the caller's choice; float64 keeps the
                phase of large hours.
            h: States.
            parameters: What `bounded_parameters` returned; None asks for it.
        """
        given = self.bounded_parameters() if parameters is None else list(parameters)
        last = 2 * len(self.layers) - 2
        x = F.linear(h, given[0], given[1])
        if self.time is not None:
            phase = t_hours.double().unsqueeze(-1) / self.periods
            angle = 2 * math.pi * (phase - torch.floor(phase.detach()))
            features = torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)
            x = x + F.linear(features.to(h.dtype), given[-1])
        for i in range(2, last + 1, 2):
            x = F.linear(F.silu(x) / SILU_LIPSCHITZ, given[i], given[i + 1])
        reach = self.config.reach
        return reach * torch.tanh(self.config.coupling / reach * x)

    def forward(
        self, t_hours: Float[Tensor, " row"], h: Float[Tensor, "row width"]
    ) -> Float[Tensor, "row width"]:
        """f, in units of the state per hour."""
        return (self.target(t_hours, h) - h) / self.config.rest_hours


class OdeFlow(nn.Module):
    """States carried over time by a `RelaxingField`."""

    def __init__(self, config: FlowConfig) -> None:
        """Build the field."""
        super().__init__()
        self.config = config
        self.field = RelaxingField(config)

    def forward(
        self,
        h: Float[Tensor, "row width"],
        dt_hours: Float[Tensor, " row"],
        t0_hours: Float[Tensor, " row"] | None = None,
    ) -> Float[Tensor, "row width"]:
        """Let every row flow over its own interval; for many query times repeat the row.

        Args:
            h: States at the start, float32 or float64.
            dt_hours: Length of each row's interval. 0 gives the state back, bit for bit.
            t0_hours: Hour at which each interval starts; needed if the config names periods.

        Returns:
            States at the end, as finite as those at the start however long the interval.

        Raises:
            InputError: An interval is negative (unless allowed) or not finite, hours are missing,
                or the solver gave up.
        """
        if t0_hours is None and self.config.periods_hours:
            raise InputError(
                "a flow that depends on the hour was given none", code="missing_hours",
                place="t0_hours", remedy="Give the hour at which each interval starts.",
            )  # fmt: skip
        rest, solver = self.config.rest_hours, self.config.solver
        sure_only = solver.method == "dopri5" and not solver.adjoint
        kept = min(self.config.coupling, 1.0) if sure_only else 0.0  # of the decay, by the solver
        parameters = self.field.bounded_parameters()
        return solve_flow(
            lambda t, x: (self.field.target(t, x, parameters) - kept * x) / rest,
            h,
            dt_hours,
            t0_hours,
            decay_per_hour=(1.0 - kept) / rest,
            solver=solver,
            parameters=parameters,
            allow_negative=self.config.allow_negative,
        )


def solve_flow(
    drift: Drift,
    h: Float[Tensor, "row width"],
    dt_hours: Float[Tensor, " row"],
    t0_hours: Float[Tensor, " row"] | None = None,
    *,
    decay_per_hour: float = 0.0,
    solver: Solver | None = None,
    parameters: Sequence[Tensor] = (),
    allow_negative: bool = False,
) -> Float[Tensor, "row width"]:
    """Solve dh/dt = drift(t, h) - decay h for every row over its own interval, in one solve.

    Gradients reach h, the parameters, dt_hours and t0_hours.

    Args:
        drift: Of hours (row,) in float64 and states (row, width), in units of the state per hour.
            A row's drift must depend on that row alone. dopri5 also asks for states and hours
            that are not on the way.
        h: States at the start, float32 or float64.
        dt_hours: Length of each row's interval.
        t0_hours: Where it starts; None is 0.
        decay_per_hour: The part of the decay that is solved exactly, not negative.
        solver: How; None is `Solver()`.
        parameters: Every tensor that drift depends on and that wants a gradient, none computed from
            another. Only `adjoint` asks for them: what is left out gets no gradient there.
        allow_negative: Accept negative intervals.

    Returns:
        States at the end.

    Raises:
        InputError: The arguments can't be used, or the solver gave up.
    """
    solver = solver or Solver()
    _check(h, dt_hours, t0_hours, decay_per_hour, allow_negative)
    if h.shape[0] == 0:
        return h
    # Copies, since the adjoint takes tensors that do not depend on one another.
    dt = dt_hours.double().clone()
    t0 = torch.zeros_like(dt) if t0_hours is None else t0_hours.double().clone()
    clock = _Clock(decay_per_hour)

    def velocity(s: Tensor, w: Tensor) -> Tensor:
        lag, kept, weight = clock.at(s.double(), dt)
        kept, weight = (factor.to(w.dtype).unsqueeze(-1) for factor in (kept, weight))
        return weight * drift(t0 + dt + lag, w / kept)

    ends = torch.tensor([0.0, 1.0], dtype=h.dtype, device=h.device)
    start = clock.at(ends[0].double(), dt)[1].to(h.dtype).unsqueeze(-1) * h
    needed = [tensor for tensor in (dt, t0, *parameters) if tensor.requires_grad]
    try:
        w = _integrate(velocity, start, ends, solver, needed)
    except AssertionError as failure:  # torchdiffeq's way of giving up
        raise InputError(
            f"{solver.method} found no solution ({str(failure).split(' ')[0]})",
            code="solver_gave_up", place="solver",
            remedy="Check that states are finite; loosen rtol and atol, or raise max_steps.",
        ) from failure  # fmt: skip
    # Interpolation inside dopri5 rounds; the gradient of dt is the solver's nonetheless.
    still = (dt == 0).unsqueeze(-1)
    return torch.where(still, w + (h - w).detach(), w)


def spectral_norm_bound(weight: Float[Tensor, "out in"], squarings: int = 6) -> Float[Tensor, ""]:
    """A bound of the largest singular value from above, smooth in the weight.

    It is the Schatten norm of order p = 4 * 2^squarings, (sum of sigma_i^p)^(1/p), from the
    Frobenius norm of the squared and squared again Gram matrix: never less than the largest
    singular value, and at most rank^(1/p) times it, 2 % for 128 equal ones. Power iteration would
    approach it from below, which bounds nothing.
    """
    gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    tiny = torch.finfo(gram.dtype).tiny
    log_norm = gram.new_zeros(())
    for _ in range(squarings):  # scaled to 1 each time, or powers would leave the range
        size = torch.linalg.vector_norm(gram).clamp_min(tiny)
        gram = gram / size
        log_norm = 2 * (log_norm + torch.log(size))
        gram = gram @ gram
    log_norm = log_norm + torch.log(torch.linalg.vector_norm(gram).clamp_min(tiny))
    return _NORM_SLACK * torch.exp(log_norm / 2 ** (squarings + 1))


class _Clock:
    """From the solver's s to what has passed of each row's interval; see the module."""

    def __init__(self, decay_per_hour: float) -> None:
        self.quarter = decay_per_hour / 4

    def at(self, s: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hours to the row's end (negative), r^4, and the weight of the drift, each (row,)."""
        if self.quarter == 0:
            return (s - 1) * dt, torch.ones_like(dt), dt
        lost = torch.expm1(-self.quarter * dt)
        r_minus_1 = ((1 - s) * lost).clamp_min(_LEAST_R - 1)
        r = 1 + r_minus_1
        return torch.log1p(r_minus_1) / self.quarter, r**4, r**3 * -lost / self.quarter


def _integrate(
    velocity: Drift, start: Tensor, ends: Tensor, solver: Solver, parameters: list[Tensor]
) -> Tensor:
    def grid(_velocity: object, _start: Tensor, t: Tensor) -> Tensor:
        return torch.linspace(float(t[0]), float(t[-1]), solver.n_steps + 1).to(t)

    # dopri5 lands on the ends: what lies between steps is interpolated, less exactly.
    adaptive = {"norm": _worst_row, "step_t": ends, "max_num_steps": solver.max_steps}
    settings: dict[str, Any] = {"method": solver.method, "rtol": solver.rtol, "atol": solver.atol}
    settings["options"] = {"grid_constructor": grid} if solver.method == "rk4" else adaptive
    solve: Any = odeint
    if solver.adjoint and torch.is_grad_enabled():
        solve, settings["adjoint_params"] = odeint_adjoint, tuple(parameters)
    return solve(velocity, start, ends, **settings)[-1]


def _worst_row(x: Tensor) -> Tensor:
    """Root mean square of the row where it is largest; over all rows, easy ones hide a hard one."""
    return x.abs().pow(2).flatten(1).mean(1).max().sqrt()


def _check(h: Tensor, dt: Tensor, t0: Tensor | None, decay: float, allow_negative: bool) -> None:
    for name, hours in (("dt_hours", dt), ("t0_hours", t0)):
        if hours is not None and hours.shape != h.shape[:1]:
            raise wrong_shape(name, hours, f"({h.shape[0]},)")
        if hours is not None and not bool(torch.isfinite(hours).all()):
            raise InputError(
                "hours are not finite", code="interval_not_finite", place=name,
                remedy="Start a new state where nothing is left of the old one.",
            )  # fmt: skip
    if h.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"h holds {h.dtype}, not float32 or float64", code="wrong_type", place="h",
            remedy="Convert it first: steps add up small changes.",
        )  # fmt: skip
    if not 0 <= decay < math.inf:
        raise _bad_setting("decay_per_hour", "must not be negative")
    if not allow_negative and bool((dt < 0).any()):
        raise InputError(
            "an interval is negative", code="negative_interval", place="dt_hours",
            remedy="Sort by time, or pass allow_negative to go back.",
        )  # fmt: skip


def _bad_setting(name: str, problem: str) -> InputError:
    return InputError(
        f"{name} {problem}", code="bad_setting", place=name, remedy="See its documentation."
    )
