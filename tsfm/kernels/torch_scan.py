"""The selective scan from differentiable torch pieces: what is around the recurrence, in any type.

Bias, softplus, elapsed time, input weights, skip, gate and the order of the walk are plain torch;
the recurrence in the middle is one of three: the loop (`reference.py`, the oracle), the chunked
form (`chunked_scan.py`, any device) or the numba kernel (`numba_scan.py`, float32 on the CPU).
Gradients are autograd's, second derivatives included except through numba. The price is memory:
several (T, D, N) tensors for the first two.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from tsfm.errors import InputError
from tsfm.kernels import chunked_scan, reference
from tsfm.kernels.input_weights import weigh
from tsfm.kernels.own_types import own_types
from tsfm.kernels.scan_inputs import ScanForm, ScanInputs

RECURRENCES = ("reference", "torch", "numba")


def scan(inputs: ScanInputs, form: ScanForm, recurrence: str) -> tuple[Tensor, Tensor]:
    """Run the scan with autograd's gradients.

    Args:
        inputs: Tensors of one floating type; float32 for numba.
        form: What is computed; numba has no foh.
        recurrence: One of `RECURRENCES`.

    Returns:
        y (T, D) and the final states (S, D, N * form.carried).
    """
    if recurrence == "numba" and form.input == "foh":
        raise InputError(
            "the numba backend has no foh input", code="backend_without_input",
            place="backend", remedy="Use backend='torch'.",
        )  # fmt: skip
    u, delta, A, B, C, D, z, gap, gap_rate, delta_bias, initial, borders = inputs
    starts, ends = borders[:-1].long(), borders[1:].long()
    order = reversed_order(starts, ends) if form.reverse else None
    if order is not None:
        u, delta, B, C = u[order], delta[order], B[order], C[order]
        gap = None if gap is None else gap[order]
    step = delta if delta_bias is None else delta + delta_bias
    if form.softplus:
        step = F.softplus(step)
    value = u * step if form.input == "euler" else u

    if recurrence == "numba":
        from tsfm.kernels import numba_scan

        if gap is None or gap_rate is None:
            gap, gap_rate = u.new_zeros(u.shape[0]), u.new_zeros(u.shape[1])
        y, final = numba_scan.scan(
            value, step, gap, gap_rate, A, B, C, starts, ends, initial, zoh=form.input == "zoh"
        )
    else:
        elapsed = step
        if gap is not None and gap_rate is not None:
            elapsed = step + gap.unsqueeze(-1) * gap_rate
        arrived = value.unsqueeze(-1) * B.unsqueeze(1)
        n_state = A.shape[1]
        state = None if initial is None else initial[..., :n_state]
        earlier = initial[..., n_state:] if initial is not None else None
        x = _weigh(arrived, A, elapsed, starts, earlier, form.input)
        recur = reference.scan if recurrence == "reference" else chunked_scan.scan
        with own_types(u.device):
            y, final = recur(torch.exp(A * elapsed.unsqueeze(-1)), x, C, starts, ends, state)
        if form.input == "foh":
            final = torch.cat([final, arrived[ends - 1]], -1)
    if D is not None:
        y = y + u * D
    if order is not None:
        y = torch.empty_like(y).index_copy(0, order, y)
    if z is not None:
        y = y * F.silu(z)
    return y, final


def _weigh(
    arrived: Tensor, A: Tensor, elapsed: Tensor, starts: Tensor, earlier: Tensor | None, kind: str
) -> Tensor:
    if kind in ("euler", "impulse"):
        return arrived
    if kind == "zoh":
        return weigh(A, elapsed, "held") * arrived
    # What precedes a sequence's first token is what its state carries, else the token itself.
    first = arrived[starts] if earlier is None or earlier.shape[-1] == 0 else earlier
    before = torch.cat([arrived[:1], arrived[:-1]]).index_copy(0, starts, first)
    falling, rising = (weigh(A, elapsed, side) for side in ("falling", "rising"))
    return falling * before + rising * arrived


def reversed_order(
    starts: Int[Tensor, " sequence"], ends: Int[Tensor, " sequence"]
) -> Int[Tensor, " token"]:
    """Rows of packed sequences, each from its last to its first."""
    parts = [
        torch.arange(end - 1, start - 1, -1, device=starts.device)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    return torch.cat(parts)
