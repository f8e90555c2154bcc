"""The state of the scan between events, in closed form: h(t + tau) = exp(A kappa tau) h(t).

Without a token the scan's state only decays, each component at its own rate, so any number of
moments can be asked for without a solver, without a matrix exponential and without a token. It is
what the scan itself does with a gap: scanning a token of no input after tau hours gives the same
state. Flowing over a and then b is flowing over a + b, up to rounding.

This is the fast alternative to `ode_flow.py`, for states that are linear in time. Content does not
enter: what a token asks to forget (Delta) happens at the token.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tsfm.errors import InputError
from tsfm.kernels.argument_checks import wrong_shape

_LEAST = torch.float32


def scan_flow(
    h: Float[Tensor, "row channel state"],
    A: Float[Tensor, "channel state"],
    gap_rate: Float[Tensor, " channel"],
    hours: Float[Tensor, "row query"],
    *,
    allow_negative: bool = False,
) -> Float[Tensor, "row query channel state"]:
    """States after each of some hours without an event.

    All arguments get their gradients, second ones too. 0 hours give the state back, bit for bit.

    Args:
        h: States, as `selective_scan` and `state_update` leave them. Of a foh state the first half:
            its second half is an input, which does not flow.
        A: Rates of the scan, negative.
        gap_rate: kappa, 1/hours, not negative.
        hours: Since the last event, in any order, each row's own.
        allow_negative: Accept negative hours, and with them states that grow.

    Returns:
        The state at each query, in the type of h.

    Raises:
        InputError: Shapes do not fit, or hours are negative (unless allowed) or not finite.
    """
    rows, channels, n_state = h.shape
    expected = {"A": (A, (channels, n_state)), "gap_rate": (gap_rate, (channels,))}
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise wrong_shape(name, tensor, str(shape))
    if hours.dim() != 2 or hours.shape[0] != rows:
        raise wrong_shape("hours", hours, f"({rows}, queries)")
    if not bool(torch.isfinite(hours).all()):
        raise InputError(
            "hours are not finite", code="interval_not_finite", place="hours",
            remedy="Start a new state where nothing is left of the old one.",
        )  # fmt: skip
    if not allow_negative and bool((hours < 0).any()):
        raise InputError(
            "hours are negative", code="negative_interval", place="hours",
            remedy="Ask for times after the state's, or pass allow_negative to go back.",
        )  # fmt: skip
    # As the scan computes: hours of a year are beyond float16, and bfloat16 knows two digits.
    wide = torch.promote_types(torch.result_type(A, gap_rate), torch.promote_types(h.dtype, _LEAST))
    rate = A.to(wide) * gap_rate.to(wide).unsqueeze(-1)
    kept = torch.exp(rate * hours.to(wide)[:, :, None, None])
    return (kept * h.to(wide).unsqueeze(1)).to(h.dtype)
