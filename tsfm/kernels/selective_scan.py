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

This file checks and packs the arguments and picks a backend. `scan_op.py` is the operator and its
derivative, `scan_inputs.py` the contract of the backends.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tsfm.errors import InputError
from tsfm.kernels import native_library, scan_op
from tsfm.kernels.argument_checks import check_borders, check_type, wrong_shape
from tsfm.kernels.backends import choose_backend
from tsfm.kernels.scan_inputs import INPUTS, WIDE_ROWS, ScanForm, ScanInputs

BACKENDS = ("native", "numba", "cuda", "mamba_ssm", "torch", "reference")


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    gap: Tensor | None = None,
    gap_rate: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    input: str = "euler",
    cu_seqlens: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    reverse: bool = False,
    backend: str | None = None,
) -> Any:
    """Scan packed `(T, D)` or batched `(B, L, D)` sequences.

    Every floating argument gets its gradient, the initial state included, and gradients flow
    through the final state. The same input gives the same bits. float32 and narrower types are
    computed in float32; float64 stays float64.

    Args:
        u: Input, `(T, D)` with `cu_seqlens`, or `(B, L, D)`.
        delta: Content-dependent step before bias and softplus, shape of `u`.
        A: Rates, `(D, N)`, negative.
        B: Input gate, `(T, N)` or `(B, L, N)`.
        C: Read-out, shape of `B`.
        D: Skip weight a channel, `(D,)`.
        z: Gate, shape of `u`: the output is multiplied by silu(z).
        gap: Hours since the previous token of the same sequence, `(T,)` or `(B, L)`, not negative.
            What the first token of a sequence holds matters only with an initial state, or where
            the input is weighted by time (zoh, foh).
        gap_rate: kappa, `(D,)`, 1/hours, not negative.
        delta_bias: Added to delta, `(D,)`.
        delta_softplus: Pass delta (with bias) through softplus.
        input: One of `INPUTS`.
        cu_seqlens: Borders of the packed sequences, `(S + 1,)`, from 0 to T. None with `(T, D)`
            means one sequence.
        initial_state: State before each sequence, `(S, D, N)`. For foh also `(S, D, 2N)`, as the
            final state is: its second half is the input B u of the token before.
        return_final_state: Also return the state after each sequence, `(S, D, N)`; `(S, D, 2N)` for
            foh, which cannot be continued without its last input.
        reverse: Scan each sequence from its last token to its first: the same as flipping every
            input and flipping the output back.
        backend: One of `BACKENDS`; None chooses. `reference` and `torch` have second derivatives.

    Returns:
        y with the shape and type of `u`, or `(y, final_state)`, the state in float32 (or float64).

    Raises:
        InputError: An argument has the wrong shape, type, device or value; its place names it.
    """
    form = ScanForm(delta_softplus, input, reverse)
    packed = _pack(
        ScanInputs(
            u, delta, A, B, C, D, z, gap, gap_rate, delta_bias, initial_state,
            _check(u, delta, A, B, C, D, z, gap, gap_rate, delta_bias, initial_state, cu_seqlens,
                   input),
        )
    )  # fmt: skip
    if backend is None:
        choice = choose_backend("selective_scan", device=u.device, dtype=u.dtype, input=input)
        name = choice.backend
    else:
        name = _check_backend(backend, u, form)
    y, final = scan_op.run(_cast(packed, name), form, name, final=return_final_state)
    y = y.to(u.dtype).view(u.shape)
    return (y, final) if return_final_state else y


def _check(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    gap: Tensor | None, gap_rate: Tensor | None, delta_bias: Tensor | None,
    initial_state: Tensor | None, cu_seqlens: Tensor | None, input: str,
) -> Tensor:  # fmt: skip
    """Borders of the sequences, once every argument is found to fit the others."""
    if input not in INPUTS:
        raise InputError(
            f"unknown input kind '{input}'", code="unknown_scan_input", place="input",
            remedy=f"Use one of {', '.join(INPUTS)}.",
        )  # fmt: skip
    if u.dim() not in (2, 3):
        raise wrong_shape("u", u, "(T, D) or (B, L, D)")
    if u.numel() == 0:
        raise InputError(
            f"u has shape {tuple(u.shape)}, no tokens", code="empty_input", place="u",
            remedy="Leave out sequences without tokens.",
        )  # fmt: skip
    if A.dim() != 2:
        raise wrong_shape("A", A, "(D, N)")
    rows, n_channels, n_state = u.shape[:-1], u.shape[-1], A.shape[1]
    borders = _borders(u, cu_seqlens)
    n_sequences = borders.shape[0] - 1
    carried = n_state
    if input == "foh" and initial_state is not None and initial_state.shape[-1] == 2 * n_state:
        carried = 2 * n_state
    shapes = {
        "u": (u, (*rows, n_channels)),
        "delta": (delta, (*rows, n_channels)),
        "A": (A, (n_channels, n_state)),
        "B": (B, (*rows, n_state)),
        "C": (C, (*rows, n_state)),
        "D": (D, (n_channels,)),
        "z": (z, (*rows, n_channels)),
        "gap": (gap, tuple(rows)),
        "gap_rate": (gap_rate, (n_channels,)),
        "delta_bias": (delta_bias, (n_channels,)),
        "initial_state": (initial_state, (n_sequences, n_channels, carried)),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise wrong_shape(name, tensor, str(tuple(shape)))
        check_type(name, tensor, "u", u.device)
    if (gap is None) != (gap_rate is None):
        absent = "gap_rate" if gap_rate is None else "gap"
        raise InputError(
            f"{'gap' if gap_rate is None else 'gap_rate'} without {absent}",
            code=f"missing_{absent}", place=absent,
            remedy="Give the hours before each token and the channels' rates in 1/hours together.",
        )  # fmt: skip
    return borders


def _borders(u: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    if u.dim() == 3:
        if cu_seqlens is not None:
            raise InputError(
                "cu_seqlens with a batched input", code="bad_cu_seqlens", place="cu_seqlens",
                remedy="Pass packed (T, D) tensors.",
            )  # fmt: skip
        rows, length = u.shape[:2]
        return torch.arange(rows + 1, device=u.device, dtype=torch.int32) * length
    n_tokens = u.shape[0]
    if cu_seqlens is None:
        return torch.arange(2, device=u.device, dtype=torch.int32) * n_tokens
    return check_borders(cu_seqlens, n_tokens, u.device)


def _check_backend(name: str, u: Tensor, form: ScanForm) -> str:
    reason = None
    if name not in BACKENDS:
        raise InputError(
            f"unknown backend '{name}'", code="unknown_backend", place="backend",
            remedy=f"Use one of {', '.join(BACKENDS)}.",
        )  # fmt: skip
    if name in ("native", "numba") and (u.device.type != "cpu" or u.dtype == torch.float64):
        reason = "serves float32 on the CPU"
    elif name in ("cuda", "mamba_ssm") and (u.device.type != "cuda" or u.dtype == torch.float64):
        reason = "serves float32 and narrower types on a GPU"
    elif name == "native":
        native_library.library()
    if reason is not None:
        raise InputError(
            f"the {name} backend {reason}, u is {u.dtype} on {u.device}",
            code="backend_without_type", place="backend", remedy="Leave backend out.",
        )  # fmt: skip
    return name


def _pack(inputs: ScanInputs) -> ScanInputs:
    """All sequences end to end; rows stay where they are."""
    if inputs.u.dim() == 2:
        return inputs
    rows = (*WIDE_ROWS, "gap")
    return inputs.each(lambda name, tensor: tensor.flatten(0, 1) if name in rows else tensor)


def _cast(inputs: ScanInputs, backend: str) -> ScanInputs:
    """One floating type for all; the GPU kernels read half-width rows as they are."""
    wide = torch.float64 if inputs.u.dtype == torch.float64 else torch.float32
    narrow = inputs.u.dtype if backend in ("cuda", "mamba_ssm") else wide
    if narrow == wide and all(t is None or t.dtype == wide for t in inputs[:-1]):
        return inputs

    def cast(name: str, tensor: Tensor) -> Tensor:
        if name == "cu_seqlens":
            return tensor
        return tensor.to(narrow if name in WIDE_ROWS else wide)

    return inputs.each(cast)
