"""Short depthwise causal convolution over packed or batched tokens.

    pre_t = bias + sum_k weight_k x_{t - (K-1) + k},   k = 0 .. K-1,   y_t = pre_t or silu(pre_t)

in the layout (T, D) that projections produce, so that nothing is transposed. Taps that would reach
before a sequence read its initial state, or zero: a patient never sees the end of the one before.
The state is plain: the last K - 1 inputs. The backward pass computes pre again, so the input is all
that is kept. Source: the convolution in front of the scan in Gu and Dao 2023 (Mamba), figure 3.

This file checks and packs the arguments and picks a backend; each backend is a module with a
`forward` and a `backward` of one signature (`native_conv.py`, `numba_conv.py`, a CUDA one), or the
plain torch form below, which serves every other type and is the oracle. To a tracer the compiled
ones are one operator of torch, `tsfm::causal_conv1d`; other code goes past the operator, whose call
costs as much as the convolution of a short sequence.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tsfm.errors import InputError
from tsfm.kernels import native_conv, native_library
from tsfm.kernels.argument_checks import (
    check_borders,
    check_type,
    checked_borders,
    first_derivative_only,
    wrong_shape,
)
from tsfm.kernels.backends import choose_backend

ACTIVATIONS = (None, "silu")
BACKENDS = ("native", "numba", "cuda", "torch")


class ConvInputs(NamedTuple):
    """Tensors of one packed convolution, of one floating type (cu_seqlens: int32) on one device."""

    x: Float[Tensor, "token channel"]
    weight: Float[Tensor, "channel tap"]
    bias: Float[Tensor, " channel"] | None
    cu_seqlens: Int[Tensor, " borders"]
    initial_state: Float[Tensor, "sequence channel before"] | None


_N_TENSORS = len(ConvInputs._fields)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    activation: str | None = None,
    reverse: bool = False,
    backend: str | None = None,
) -> Any:
    """Convolve each sequence on its own, every channel with taps of its own.

    Every floating argument gets its gradient, the initial state included, and gradients flow
    through the final state. The same input gives the same bits, whatever the number of threads.
    Types narrower than float32 are computed in float32.

    Args:
        x: Input, `(B, L, D)`, or packed `(T, D)`.
        weight: Taps, `(D, K)`, the last one for the token itself (the order of torch's conv1d).
        bias: Added to every token, `(D,)`.
        cu_seqlens: Borders of the packed sequences, `(S + 1,)`, from 0 to T. None with `(T, D)`
            means one sequence.
        initial_state: The K - 1 inputs before each sequence, oldest first, `(S, D, K - 1)`.
        return_final_state: Also return the last K - 1 inputs of each sequence, `(S, D, K - 1)`.
            They reach into the initial state (or zeros) where a sequence is shorter than that.
        activation: None, or "silu".
        reverse: Each token sees those after it instead: the same as flipping each sequence and
            flipping the output back.
        backend: One of `BACKENDS`; None chooses. `torch` has second derivatives.

    Returns:
        y with the shape and type of x, or `(y, final_state)`, the state in x's type too.

    Raises:
        InputError: An argument has the wrong shape, type, device or value; its place names it.
    """
    borders = _check(x, weight, bias, initial_state, cu_seqlens, activation)
    if backend is None:
        name = _choose_backend(x.device, x.dtype, weight.shape[1])
    else:
        name = _check_backend(backend, x)
    inputs = _cast(x.flatten(0, -2), weight, bias, borders, initial_state, name)
    arguments = (activation or "", reverse, return_final_state, name)
    if name == "torch":
        inputs = inputs._replace(cu_seqlens=checked_borders(borders, inputs.x.shape[0]))
        y, final = causal_conv1d_torch(inputs, activation, reverse=reverse)
    elif torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter):
        y, final = causal_conv1d_op(*inputs, *arguments)
    elif torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        y, final = _Conv.apply(*inputs, *arguments)
    else:
        y, final = _forward(*inputs, *arguments)
    if y.dtype != x.dtype:
        y, final = y.to(x.dtype), final.to(x.dtype)
    y = y.view(x.shape)
    return (y, final) if return_final_state else y


def causal_conv1d_torch(
    inputs: ConvInputs, activation: str | None, *, reverse: bool
) -> tuple[Float[Tensor, "token channel"], Float[Tensor, "sequence channel before"]]:
    """The convolution and the final states in plain torch, with autograd's own gradients.

    Args:
        inputs: Packed tensors.
        activation: None, or "silu".
        reverse: See `causal_conv1d`.

    Returns:
        y (T, D) and the final states (S, D, K - 1).
    """
    x, weight, bias, borders, initial = inputs
    (n_tokens, n_channels), n_taps = x.shape, weight.shape[1]
    n_before, n_sequences = n_taps - 1, borders.shape[0] - 1
    if initial is None:
        initial = x.new_zeros(n_sequences, n_channels, n_before)
    borders = borders.long()
    if reverse:
        x, initial, borders = x.flip(0), initial.flip(0), n_tokens - borders.flip(0)
    starts, ends = borders[:-1], borders[1:]
    tokens = torch.arange(n_tokens, device=x.device)
    sequence = torch.searchsorted(ends, tokens, right=True)
    # What lies before a sequence comes after all tokens in the table of rows.
    table = torch.cat([x, initial.transpose(1, 2).reshape(-1, n_channels)])

    def row(place: Tensor, sequence: Tensor) -> Tensor:
        before = n_tokens + (sequence + 1) * n_before + place
        return torch.where(place >= 0, starts[sequence] + place, before)

    y = x * weight[:, -1]
    if bias is not None:
        y = y + bias
    for back in range(1, n_taps):
        y = y + table[row(tokens - starts[sequence] - back, sequence)] * weight[:, n_before - back]
    if activation == "silu":
        y = F.silu(y)
    places = (ends - starts).unsqueeze(1) + torch.arange(-n_before, 0, device=x.device)
    final = table[row(places, torch.arange(n_sequences, device=x.device).unsqueeze(1))]
    final = final.transpose(1, 2)
    return (y.flip(0), final.flip(0)) if reverse else (y, final)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str | None,
) -> Tensor:
    """Borders of the sequences, once every argument is found to fit the others."""
    if activation not in ACTIVATIONS:
        raise InputError(
            f"unknown activation '{activation}'", code="unknown_activation", place="activation",
            remedy="Use None or 'silu'.",
        )  # fmt: skip
    if x.dim() not in (2, 3) or x.numel() == 0:
        raise wrong_shape("x", x, "(T, D) or (B, L, D), not empty")
    n_channels = x.shape[-1]
    if weight.dim() != 2 or weight.shape[0] != n_channels or weight.shape[1] == 0:
        raise wrong_shape("weight", weight, f"({n_channels}, K)")
    borders = _borders(x, cu_seqlens)
    states = (borders.shape[0] - 1, n_channels, weight.shape[1] - 1)
    if bias is not None and bias.shape != (n_channels,):
        raise wrong_shape("bias", bias, f"({n_channels},)")
    if initial_state is not None and initial_state.shape != states:
        raise wrong_shape("initial_state", initial_state, str(states))
    for name, tensor in (
        ("x", x), ("weight", weight), ("bias", bias), ("initial_state", initial_state),
    ):  # fmt: skip
        if tensor is None:
            continue
        check_type(name, tensor, "x", x.device)
    return borders


def _borders(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    if cu_seqlens is None:
        rows, length = (1, x.shape[0]) if x.dim() == 2 else x.shape[:2]
        return torch.arange(0, rows * length + 1, length, device=x.device, dtype=torch.int32)
    if x.dim() == 3:
        raise InputError(
            "cu_seqlens with a batched input", code="bad_cu_seqlens", place="cu_seqlens",
            remedy="Pass packed (T, D) tensors.",
        )  # fmt: skip
    return check_borders(cu_seqlens, x.shape[0], x.device)


@torch.compiler.assume_constant_result
def _choose_backend(device: torch.device, dtype: torch.dtype, n_taps: int) -> str:
    choice = choose_backend("causal_conv1d", device=device, dtype=dtype)
    if choice.backend == "cuda":
        from tsfm.kernels.cuda_causal_conv import MOST_TAPS

        return "cuda" if n_taps <= MOST_TAPS else "torch"
    return choice.backend


def _check_backend(name: str, x: Tensor) -> str:
    if name not in BACKENDS:
        raise InputError(
            f"unknown backend '{name}'", code="unknown_backend", place="backend",
            remedy=f"Use one of {', '.join(BACKENDS)}.",
        )  # fmt: skip
    device = {"native": "cpu", "numba": "cpu", "cuda": "cuda"}.get(name)
    if device is not None and (x.device.type != device or x.dtype == torch.float64):
        raise InputError(
            f"the {name} backend serves float32 and narrower types on {device} devices, x is "
            f"{x.dtype} on {x.device}", code="backend_without_type", place="backend",
            remedy="Leave backend out.",
        )  # fmt: skip
    if name == "native":
        native_library.library()
    return name


def _cast(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    borders: Tensor,
    initial_state: Tensor | None,
    backend: str,
) -> ConvInputs:
    """One floating type for all; the GPU kernels read half-width rows as they are."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = x if backend == "cuda" or x.dtype == wide else x.to(wide)
    weight = weight if weight.dtype == wide else weight.to(wide)
    bias, initial_state = (
        t if t is None or t.dtype == wide else t.to(wide) for t in (bias, initial_state)
    )
    return ConvInputs(rows, weight, bias, borders, initial_state)


def _module(name: str) -> Any:
    if name == "native":
        return native_conv
    if name == "numba":
        from tsfm.kernels import numba_conv

        return numba_conv
    from tsfm.kernels import cuda_causal_conv

    return cuda_causal_conv


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    inputs = ConvInputs(*arguments[:_N_TENSORS])
    activation, reverse, final, name = arguments[_N_TENSORS:]
    y, state = _module(name).forward(
        *inputs, activation=activation or None, reverse=reverse, final=final
    )
    return y, inputs.x.new_empty(0) if state is None else state


def _backward(
    inputs: ConvInputs,
    dy: Tensor | None,
    dfinal: Tensor | None,
    activation: str,
    reverse: bool,
    name: str,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, weight, bias and initial state, those that are there."""
    dy = torch.zeros_like(inputs.x) if dy is None else dy
    return _module(name).backward(
        *inputs, dy, dfinal, activation=activation or None, reverse=reverse
    )


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*arguments[:_N_TENSORS])
        ctx.options = arguments[_N_TENSORS:]
        ctx.set_materialize_grads(False)
        return _forward(*arguments)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        inputs = ConvInputs(*ctx.saved_tensors)
        activation, reverse, final, name = ctx.options
        dy, dfinal = gradients
        dx, dweight, dbias, dinitial = _backward(
            inputs, dy, dfinal if final else None, activation, reverse, name
        )
        return dx, dweight, dbias, None, dinitial, *(None for _ in ctx.options)


_TENSORS = "Tensor x, Tensor weight, Tensor? bias, Tensor cu_seqlens, Tensor? initial_state"


@torch.library.custom_op(
    "tsfm::causal_conv1d",
    mutates_args=(),
    schema=f"({_TENSORS}, str activation, bool reverse, bool keep_final, str backend) "
    "-> (Tensor, Tensor)",
)
def causal_conv1d_op(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The convolution of packed tensors; an empty tensor stands for a final state not kept."""
    # While torch traces, the borders have no values to check; a kernel must not meet bad ones.
    inputs = ConvInputs(*arguments[:_N_TENSORS])
    check_borders(inputs.cu_seqlens, inputs.x.shape[0], inputs.x.device)
    return _forward(*arguments)


@causal_conv1d_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    x, weight, _, borders, _, _, _, final, _ = arguments
    states = (borders.shape[0] - 1, x.shape[1], weight.shape[1] - 1) if final else (0,)
    return x.new_empty(x.shape), x.new_empty(states)


@torch.library.custom_op(
    "tsfm::causal_conv1d_backward",
    mutates_args=(),
    schema=f"({_TENSORS}, Tensor dy, Tensor? dfinal, str activation, bool reverse, str backend) "
    "-> Tensor[]",
)
def causal_conv1d_backward_op(*arguments: Any) -> list[Tensor]:
    """Gradients of all floating inputs that are there, in their order."""
    found = _backward(ConvInputs(*arguments[:_N_TENSORS]), *arguments[_N_TENSORS:])
    return [g for g in found if g is not None]


@causal_conv1d_backward_op.register_fake
def _(*arguments: Any) -> list[Tensor]:
    x, weight, bias, _, initial = arguments[:_N_TENSORS]
    return [t.new_empty(t.shape) for t in (x, weight, bias, initial) if t is not None]


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs[:_N_TENSORS])
    ctx.options = inputs[_N_TENSORS:]


def _op_backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> Any:
    inputs = ConvInputs(*ctx.saved_tensors)
    activation, reverse, final, name = ctx.options
    found = iter(
        causal_conv1d_backward_op(*inputs, dy, dfinal if final else None, activation, reverse, name)
    )
    gradients = [None if t is None or not t.is_floating_point() else next(found) for t in inputs]
    return *gradients, *(None for _ in ctx.options)


causal_conv1d_op.register_autograd(_op_backward, setup_context=_setup_context)
