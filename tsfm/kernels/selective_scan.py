"""The selective scan in real time: one function for training, packed batches and streaming.

State of channel d, component n, at token t after a gap g_t (hours since the previous token of the
same subject):

    Delta = softplus(delta + bias)                  what the content asks to forget
    s     = Delta + kappa_d g_t                     the time the channel feels
    h_t   = exp(A s) h_{t-1} + w B_t u_t            y_t = C_t h_t + D u_t,   gated by silu(z)

`input` names the weight w of what arrives: `impulse` (1: an event), `zoh` ((exp(A s) - 1) / A: a
value held over the interval), `foh` (a value that rises to its new level), `euler` (Delta, with the
gap left out of the weight: Mamba-1's form, whose checkpoints load exactly). Mamba's own Euler term
with real gaps would grow with the gap, so there it is never used.

Between events the state flows in closed form, h(t + tau) = exp(A kappa tau) h(t), and a new subject
is an infinite gap. Sources: Gu and Dao 2023 (Mamba), equation 2; the gap term is ours.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tsfm.errors import InputError
from tsfm.kernels import chunked_scan, reference

INPUTS = ("euler", "impulse", "zoh", "foh")
BACKENDS = ("reference", "torch", "numba")


def choose_backend(
    *, device: torch.device, dtype: torch.dtype, input: str, needs_double_backward: bool = False
) -> str:
    """Name of the fastest backend that serves these tensors.

    numba serves float32 on the CPU for every input but `foh`; the chunked torch form serves the
    rest.
    """
    fast = device.type == "cpu" and dtype == torch.float32 and input != "foh"
    return "numba" if fast and not needs_double_backward else "torch"


def selective_scan(
    u: Float[Tensor, "*rows channel"],
    delta: Float[Tensor, "*rows channel"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "*rows state"],
    C: Float[Tensor, "*rows state"],
    D: Float[Tensor, " channel"] | None = None,
    z: Float[Tensor, "*rows channel"] | None = None,
    *,
    gap: Float[Tensor, "*rows"] | None = None,
    gap_rate: Float[Tensor, " channel"] | None = None,
    delta_bias: Float[Tensor, " channel"] | None = None,
    delta_softplus: bool = False,
    input: str = "euler",
    cu_seqlens: Int[Tensor, " borders"] | None = None,
    initial_state: Float[Tensor, "sequence channel state"] | None = None,
    return_final_state: bool = False,
    reverse: bool = False,
    backend: str | None = None,
) -> Any:
    """Scan packed `(T, D)` or batched `(B, L, D)` sequences.

    Args:
        u: Input, `(T, D)` with `cu_seqlens`, or `(B, L, D)`.
        delta: Content-dependent step before bias and softplus, shape of `u`.
        A: Rates, negative.
        B: Input gate, `(T, N)` or `(B, L, N)`.
        C: Read-out, shape of `B`.
        D: Skip weight a channel.
        z: Gate: the output is multiplied by silu(z).
        gap: Hours since the previous token of the same sequence, not negative. What the first
            token of a sequence holds matters only with an initial state.
        gap_rate: kappa, 1/hours, not negative.
        delta_bias: Added to delta.
        delta_softplus: Pass delta (with bias) through softplus.
        input: One of `INPUTS`.
        cu_seqlens: Borders of the packed sequences, `(S + 1,)`, from 0 to T. None with `(T, D)`
            means one sequence.
        initial_state: State before each sequence, `(S, D, N)`.
        return_final_state: Also return the state after each sequence, `(S, D, N)`.
        reverse: Scan from the last token to the first.
        backend: One of `BACKENDS`; None chooses.

    Returns:
        y with the shape of `u`, or `(y, final_state)`.

    Raises:
        InputError: Unknown input kind or backend, or borders that do not fit.
    """
    if input not in INPUTS:
        raise InputError(
            f"unknown input kind '{input}'",
            code="unknown_scan_input",
            place="input",
            remedy=f"Use one of {', '.join(INPUTS)}.",
        )
    shape = u.shape
    starts, ends = _borders(u, cu_seqlens)
    if u.dim() == 3:
        u, delta, B, C = (t.flatten(0, 1) for t in (u, delta, B, C))
        z = None if z is None else z.flatten(0, 1)
        gap = None if gap is None else gap.flatten(0, 1)
    order = _reversed_order(starts, ends) if reverse else None
    if order is not None:
        u, delta, B, C = u[order], delta[order], B[order], C[order]
        gap = None if gap is None else gap[order]

    step = delta if delta_bias is None else delta + delta_bias
    if delta_softplus:
        step = F.softplus(step)
    if gap is None:
        gap, gap_rate = u.new_zeros(u.shape[0]), u.new_zeros(u.shape[1])
    elif gap_rate is None:
        raise InputError(
            "gap without gap_rate",
            code="missing_gap_rate",
            place="gap_rate",
            remedy="Give the channels' rates in 1/hours.",
        )
    assert gap_rate is not None

    name = backend or choose_backend(device=u.device, dtype=u.dtype, input=input)
    y, final = _run(name, u, step, gap, gap_rate, A, B, C, starts, ends, initial_state, input)
    if D is not None:
        y = y + u * D
    if order is not None:
        y = torch.empty_like(y).index_copy(0, order, y)
    if z is not None:
        y = y * F.silu(z)
    y = y.view(shape)
    return (y, final) if return_final_state else y


def _run(
    name: str,
    u: Tensor,
    step: Tensor,
    gap: Tensor,
    gap_rate: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    starts: Tensor,
    ends: Tensor,
    initial_state: Tensor | None,
    input: str,
) -> tuple[Tensor, Tensor]:
    weighted = u * step if input == "euler" else u
    if name == "numba":
        if input == "foh":
            raise InputError(
                "the numba backend has no foh input", code="backend_without_input",
                place="backend", remedy="Use backend='torch'.",
            )  # fmt: skip
        from tsfm.kernels import numba_scan

        return numba_scan.scan(
            weighted, step, gap, gap_rate, A, B, C, starts, ends, initial_state, zoh=input == "zoh"
        )
    if name not in BACKENDS:
        raise InputError(
            f"unknown backend '{name}'", code="unknown_backend", place="backend",
            remedy=f"Use one of {', '.join(BACKENDS)}.",
        )  # fmt: skip
    elapsed = step + gap.unsqueeze(-1) * gap_rate
    decay = torch.exp(A * elapsed.unsqueeze(-1))
    x = weighted.unsqueeze(-1) * B.unsqueeze(1)
    if input == "zoh":
        x = x * reference.input_weight(A, elapsed, "zoh")
    elif input == "foh":
        # The input before a sequence's first token is taken to be that of the first token.
        previous = torch.cat([x[:1], x[:-1]]).index_copy(0, starts, x[starts])
        x = reference.input_weight(A, elapsed, "zoh") * previous + (
            x - previous
        ) * reference.input_weight(A, elapsed, "foh")
    scan = reference.scan if name == "reference" else chunked_scan.scan
    return scan(decay, x, C, starts, ends, initial_state)


def _borders(u: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    if u.dim() == 3:
        if cu_seqlens is not None:
            raise InputError(
                "cu_seqlens with a batched input", code="bad_cu_seqlens", place="cu_seqlens",
                remedy="Pass packed (T, D) tensors.",
            )  # fmt: skip
        rows, length = u.shape[:2]
        starts = torch.arange(rows, device=u.device) * length
        return starts, starts + length
    n_tokens = u.shape[0]
    if cu_seqlens is None:
        borders = torch.tensor([0, n_tokens], device=u.device)
    else:
        borders = cu_seqlens.long()
        if (
            int(borders[0]) != 0
            or int(borders[-1]) != n_tokens
            or not bool((borders[1:] > borders[:-1]).all())
        ):
            raise InputError(
                "cu_seqlens must rise from 0 to the number of tokens",
                code="bad_cu_seqlens",
                place="cu_seqlens",
                remedy="Drop empty sequences and check the total.",
            )
    return borders[:-1], borders[1:]


def _reversed_order(starts: Tensor, ends: Tensor) -> Tensor:
    parts = [
        torch.arange(end - 1, start - 1, -1, device=starts.device)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    return torch.cat(parts)
