"""Rotary position embedding in continuous time: a key is turned by when it happened.

Pair i of a head is turned by the phase 2 pi f_i t, with t the absolute time in seconds, so that the
score of a query and a key depends on the time between them and on nothing else (RoFormer, Su et al.
2021, equation 16, with a time for the position). Frequencies are log-spaced from milliseconds to
years. No sequence is rescaled: a minute is a minute in every record, and a point that is appended
changes no phase before it.

**Exact phases.** At 1.7e9 s a period of 1 ms is in its 1.7e12th cycle, and the rounded product f t
alone is off by a thousandth of a radian. So the product is taken in four exact parts, each reduced
to less than a cycle before they are added; only the reduced phase is cast. What remains is the
clock's own step: float64 seconds since 1970 are 2.4e-7 s apart.

**Gradients.** d phase / d f = 2 pi t is huge for a time since 1970, and what matters of it, the
difference between query and key, is lost in float32. Scores do not change when all phases of a
sequence are shifted alike, so the gradients of its phases add up to zero and any one time may be
taken off t in the derivative. That is the reference time: it enters the gradient, never the value.

**Learning.** Between two points a day apart, a thousandth more of a frequency of 1 kHz is 86,400
turns: its gradient is true, says nothing, and would be all of the gradient's norm. So the
parameters are changes of the log-frequencies in units of their own, log f_i = log f_i0 + s_i p_i,
with s_i such that one unit turns no phase by more than a radian over `learning_span_s`.

Not here: a choice of positions. Time is the position, and two points at one time have one phase.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from tsfm.errors import InputError
from tsfm.kernels.argument_checks import wrong_shape

_HIGH_BITS = -(1 << 27)  # all but the lower 27 bits of a float64's significand


@dataclass(frozen=True)
class RotaryConfig:
    """The bank of frequencies.

    Attributes:
        shortest_s: Period of the fastest pair at the start, in seconds. A regular series whose step
            is a multiple of a period stands still in that pair, so the default divides no usual
            sampling step.
        longest_s: Period of the slowest pair at the start, in seconds.
        learnable: Let training move the frequencies; if not, they are no parameters.
        learning_span_s: Gap over which a unit step of a parameter turns a phase by a radian at
            most. About as long as the gaps that are learnt from: much less, and the fast pairs
            outshout all other gradients; much more, and they stay where they are.
    """

    shortest_s: float = 0.005
    longest_s: float = 631_152_000.0
    learnable: bool = True
    learning_span_s: float = 86_400.0


class ContinuousTimeRotary(nn.Module):
    """Cosines and sines of a bank of frequencies at given times.

    Args:
        head_dim: Width of a head, even: a frequency for every two channels.
        config: The bank.

    Raises:
        InputError: The width is odd, or the periods are none.
    """

    def __init__(self, head_dim: int, config: RotaryConfig) -> None:
        """Start with periods log-spaced between the configured ones, both included."""
        super().__init__()
        if head_dim < 2 or head_dim % 2:
            raise InputError(
                f"a head of {head_dim} channels has no pairs to turn", code="odd_head_dim",
                place="head_dim", remedy="Choose an even width.",
            )  # fmt: skip
        rising = 0 < config.shortest_s < config.longest_s < math.inf
        if not (rising and 0 < config.learning_span_s < math.inf):
            raise InputError(
                "periods and span must be positive and finite, and the longest above the shortest",
                code="bad_periods", place="RotaryConfig", remedy="Give them in seconds.",
            )  # fmt: skip
        self.config = config
        self.n_frequencies = head_dim // 2
        self.log_frequency_shift = (
            nn.Parameter(torch.zeros(self.n_frequencies)) if config.learnable else None
        )

    def log_frequency(self, device: torch.device | None = None) -> Float64[Tensor, " pair"]:
        """Natural logarithm of every frequency in Hz, fastest first; gradients flow through it.

        The bank of the start is made anew in float64, so casting the model does not move it.

        Args:
            device: Where to make it; None is where the parameters are, or the CPU.
        """
        shift = self.log_frequency_shift
        if device is None and shift is not None:
            device = shift.device
        start = torch.linspace(
            -math.log(self.config.shortest_s), -math.log(self.config.longest_s),
            self.n_frequencies, dtype=torch.float64, device=device,
        )  # fmt: skip
        if shift is None:
            return start
        turned = 2 * math.pi * torch.exp(start) * self.config.learning_span_s
        return start + shift.double() / turned.clamp(min=1.0)

    def phase(
        self, seconds: Float[Tensor, " token"], reference_s: Float[Tensor, " token"] | None
    ) -> Float64[Tensor, "token pair"]:
        """Phase of every pair at every time, in radians from -pi to pi.

        Args:
            seconds: Absolute times, float64; no gradient flows to them.
            reference_s: A time of each token's sequence, the same for all that meet in a score, by
                which the gradient of the frequencies is taken; the phase does not depend on it.
                None: no gradient reaches the frequencies.

        Raises:
            InputError: The times are not float64.
        """
        if seconds.dtype != torch.float64:
            raise InputError(
                f"times are {seconds.dtype}, in which seconds since 1970 are minutes apart",
                code="wrong_dtype", place="seconds", remedy="Keep times in float64.",
            )  # fmt: skip
        log_frequency = self.log_frequency(seconds.device)
        frequency = torch.exp(log_frequency.detach())
        phase = 2 * math.pi * _cycles(seconds.detach(), frequency)
        if reference_s is None or not log_frequency.requires_grad:
            return phase
        # Zero in value: it carries the derivative of 2 pi f (t - reference) and nothing else.
        slope = 2 * math.pi * frequency * (seconds - reference_s).detach().unsqueeze(-1)
        return phase + slope * (log_frequency - log_frequency.detach())

    def forward(
        self,
        seconds: Float[Tensor, " token"],
        reference_s: Float[Tensor, " token"] | None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Float[Tensor, "token pair"], Float[Tensor, "token pair"]]:
        """Cosine and sine of `phase`, in float64 for `dtype` float64 and else in float32."""
        angle = self.phase(seconds, reference_s)
        angle = angle.to(torch.promote_types(dtype, torch.float32))
        return torch.cos(angle), torch.sin(angle)


def rotate(
    x: Float[Tensor, "token head channel"],
    cosine: Float[Tensor, "token pair"],
    sine: Float[Tensor, "token pair"],
) -> Float[Tensor, "token head channel"]:
    """Turn channel i and channel i + `channel` / 2 of every head as a pair.

    Args:
        x: Queries or keys.
        cosine: Of each pair's phase, see `ContinuousTimeRotary`.
        sine: Likewise.

    Returns:
        The same type as `x`.

    Raises:
        InputError: There are not as many times as tokens.
    """
    if len(cosine) != len(x):
        raise wrong_shape("seconds", cosine[:, 0], f"({len(x)},)")
    cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)
    first, second = x.chunk(2, dim=-1)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return torch.cat(turned, dim=-1).to(x.dtype)


@torch.no_grad()
def _cycles(seconds: Tensor, frequency: Tensor) -> Tensor:
    """f t less the nearest whole number, for every time and frequency, without f t's rounding.

    Halves of 26 and 27 bits have products that float64 holds exactly (that of two lower ones but
    for a last bit that is nothing), and taking a whole number off one of those is exact as well.
    """
    time_parts = _halves(seconds.unsqueeze(-1))
    cycles = seconds.new_zeros(len(seconds), len(frequency))
    for frequency_part in _halves(frequency):
        for time_part in time_parts:
            product = time_part * frequency_part
            cycles += product - product.round()
    return cycles - cycles.round()


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts that add up to float64 x, the first with the upper half of its digits."""
    upper = (x.contiguous().view(torch.int64) & _HIGH_BITS).view(torch.float64)
    return upper, x - upper
