"""A scan whose rates and gates do not depend on the content: the diagonal state-space layer (S4D).

    h_t = exp(A_dn dt_d) h_{t-1} + u_t,d        y_t,d = Re sum_n C_dn h_t,dn

with complex rates A, so that a channel can ring as well as decay. It is the time-invariant twin of
`selective_scan`: what it does to a signal is one fixed filter a channel. On a CPU in float32 the
recurrence itself is run, compiled (`numba_lti`), which is also how a stream goes on from its state;
elsewhere, and where a gradient has to pass a state, the filter is laid out and applied by FFT.
Source: Gu et al. 2022 (S4D), section 3; the input gate B is folded into C.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from tsfm.errors import InputError
from tsfm.kernels import numba_lti
from tsfm.kernels.argument_checks import check_type, first_derivative_only, wrong_shape


def lti_scan(
    u: Float[Tensor, "batch token channel"],
    rate: Complex[Tensor, "channel state"],
    C: Complex[Tensor, "channel state"],
    *,
    initial_state: Complex[Tensor, "batch channel state"] | None = None,
    return_final_state: bool = False,
    reverse: bool = False,
) -> (
    Float[Tensor, "batch token channel"]
    | tuple[Float[Tensor, "batch token channel"], Complex[Tensor, "batch channel state"]]
):
    """Filter each channel of each sequence.

    Args:
        u: Input.
        rate: A dt: log of what a state keeps over one token; its real part is negative.
        C: Read-out.
        initial_state: State before the first token; zero by default. Not with `reverse`.
        return_final_state: Also return the state after the last token.
        reverse: Filter from the last token to the first.

    Returns:
        The filtered signal, or it and the final state.

    Raises:
        InputError: `stateful_reverse`: a reversed scan has no state to continue from; or shapes
            and types that do not fit.
    """
    _check(u, rate, C, initial_state)
    stateful = initial_state is not None or return_final_state
    if reverse and stateful:
        raise InputError(
            "a reversed scan starts at a sequence's end, so no chunk can continue another",
            code="stateful_reverse", place="lti_scan", remedy="Leave the states out.",
        )  # fmt: skip
    compiled = u.device.type == "cpu" and u.dtype == torch.float32
    traced = (u, rate, C) if initial_state is None else (u, rate, C, initial_state)
    learning = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in traced)
    if compiled and not learning:
        y, final = _recur(u, _planes(rate, C), initial_state, reverse)
    elif compiled and not stateful:
        return _Recurrence.apply(u, *_planes(rate, C), reverse)
    else:
        y, final = _by_fft(u.flip(1) if reverse else u, rate, C, initial_state, return_final_state)
        y = y.flip(1) if reverse else y
    return (y, final) if return_final_state else y


def _check(u: Tensor, rate: Tensor, C: Tensor, initial_state: Tensor | None) -> None:
    if u.dim() != 3 or u.numel() == 0:
        raise wrong_shape("u", u, "(B, L, D), not empty")
    check_type("u", u, "u", u.device)
    if rate.dim() != 2 or rate.shape[0] != u.shape[2] or not rate.shape[1]:
        raise wrong_shape("rate", rate, f"({u.shape[2]}, N)")
    states = (u.shape[0], *rate.shape)
    wanted = torch.complex128 if u.dtype == torch.float64 else torch.complex64
    for name, tensor, shape in (
        ("rate", rate, rate.shape), ("C", C, rate.shape), ("initial_state", initial_state, states),
    ):  # fmt: skip
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise wrong_shape(name, tensor, str(tuple(shape)))
        if tensor.dtype != wanted or tensor.device != u.device:
            raise InputError(
                f"{name} is {tensor.dtype} on {tensor.device}, expected {wanted} on {u.device}",
                code="wrong_type", place=name, remedy="Convert it first.",
            )  # fmt: skip


def _planes(rate: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Real and imaginary parts of what is kept and read, (state, channel)."""
    kept = torch.exp(rate)
    parts = (kept.real, kept.imag, C.real, C.imag)
    a, b, c, d = (part.to(torch.float32).T.contiguous() for part in parts)
    return a, b, c, d


class _Recurrence(torch.autograd.Function):
    """The recurrence from empty states, with its own derivative."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, reverse: bool):
        ctx.save_for_backward(u, a, b, c, d)
        ctx.reverse = reverse
        return _recur(u, (a, b, c, d), None, reverse)[0]

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor):
        u, *planes = ctx.saved_tensors
        du = np.empty(u.shape, np.float32)
        found = np.zeros((4, *planes[0].shape), np.float32)
        dy = grads[0].contiguous().numpy()
        a, b, c, d = (plane.detach().numpy() for plane in planes)
        numba_lti.recur_back(
            u.detach().contiguous().numpy(), dy, a, b, c, d, du, found, ctx.reverse
        )
        return torch.from_numpy(du), *torch.from_numpy(found).unbind(0), None


def _recur(
    u: Tensor, planes: tuple[Tensor, ...], initial: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    n_batch, _, n_channels = u.shape
    a, b, c, d = (plane.detach().numpy() for plane in planes)
    shape = (n_batch, planes[0].shape[0], n_channels)
    if initial is None:
        real, imaginary = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    else:
        held = initial.detach().transpose(1, 2)
        real, imaginary = (x.to(torch.float32).numpy().copy("C") for x in (held.real, held.imag))
    y = np.empty(u.shape, np.float32)
    numba_lti.recur(u.detach().contiguous().numpy(), a, b, c, d, real, imaginary, y, reverse)
    final = torch.complex(torch.from_numpy(real), torch.from_numpy(imaginary)).transpose(1, 2)
    return torch.from_numpy(y), final.contiguous()


def _by_fft(
    u: Tensor, rate: Tensor, C: Tensor, initial: Tensor | None, want_final: bool
) -> tuple[Tensor, Tensor]:
    n_tokens = u.shape[1]
    steps = torch.arange(n_tokens, device=u.device, dtype=u.dtype)
    powers = torch.exp(rate.unsqueeze(-1) * steps)  # (channel, state, token)
    kernel = torch.einsum("dn,dnt->dt", C, powers).real
    size = 2 * n_tokens
    spectrum = torch.fft.rfft(u.transpose(1, 2), n=size) * torch.fft.rfft(kernel, n=size)
    y = torch.fft.irfft(spectrum, n=size)[..., :n_tokens].transpose(1, 2)
    kept = None
    if initial is not None:
        y = y + torch.einsum("dn,dnt,bdn->btd", C * torch.exp(rate), powers, initial).real
        kept = initial * torch.exp(rate * n_tokens)
    final = u.new_zeros(0, 0, 0, dtype=rate.dtype)
    if want_final:
        final = torch.einsum("btd,dnt->bdn", u.to(rate.dtype), powers.flip(-1))
        final = final if kept is None else final + kept
    return y, final
