"""The short causal convolution by the compiled CPU kernels: float32, packed, with all gradients.

The kernel (`native/causal_conv.inc`) reads each row once a tile of tokens, several channels a
vector, and applies the activation while the sum is in a register. Rows may be strided: what a
projection splits is not copied. See `causal_conv.py` for the equation.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tsfm.kernels.native_library import library

_SIZES = ("n_tokens", "n_channels", "n_taps", "n_sequences", "x_stride", "dy_stride")
_FLAGS = ("silu", "reverse", "n_threads", "unused")
_READ = ("x", "weight", "bias", "initial_state", "borders")
_WRITTEN = ("y", "final_state")
_BACKWARD = ("dy", "dfinal", "dx", "dweight", "dbias", "dinitial")


class _Params(ctypes.Structure):
    """`ConvParams` of native/params.h, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_int32) for name in _FLAGS),
        *((name, ctypes.c_void_p) for name in (*_READ, *_WRITTEN, *_BACKWARD)),
    ]


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    initial_state: Tensor | None,
    *,
    activation: str | None,
    reverse: bool,
    final: bool,
) -> tuple[Tensor, Tensor | None]:
    """Convolve packed float32 tensors on the CPU; shapes as in `causal_conv.ConvInputs`.

    Returns:
        y (T, D), and the final states (S, D, K - 1) if `final`.
    """
    y = torch.empty(x.shape)
    states = None
    if final:
        states = torch.empty(cu_seqlens.shape[0] - 1, x.shape[1], weight.shape[1] - 1)
    inputs = (x, weight, bias, initial_state, cu_seqlens)
    _run("tsfm_conv_forward", inputs, (y, states), activation, reverse)
    return y, states


def backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    initial_state: Tensor | None,
    dy: Tensor,
    dfinal: Tensor | None,
    *,
    activation: str | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, weight, bias and initial state, given those of y and of the final states."""
    dx, dweight = torch.empty(x.shape), torch.empty(weight.shape)
    dbias = None if bias is None else torch.empty(bias.shape)
    dinitial = None if initial_state is None else torch.empty(initial_state.shape)
    dy = _rows(dy)
    dfinal = None if dfinal is None else dfinal.contiguous()
    inputs = (x, weight, bias, initial_state, cu_seqlens)
    others = (None, None, dy, dfinal, dx, dweight, dbias, dinitial)
    _run("tsfm_conv_backward", inputs, others, activation, reverse, dy.stride(0))
    return dx, dweight, dbias, dinitial


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _run(
    function: str,
    inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor],
    others: tuple[Tensor | None, ...],
    activation: str | None,
    reverse: bool,
    dy_stride: int = 0,
) -> None:
    x, *whole = inputs
    # Held here until the call returns: the struct has the addresses only.
    read = [_rows(x), *(None if t is None else t.contiguous() for t in whole)]
    n_taps, n_sequences = inputs[1].shape[1], inputs[4].shape[0] - 1
    params = _Params(
        *x.shape, n_taps, n_sequences, read[0].stride(0), dy_stride,
        activation == "silu", reverse, torch.get_num_threads(), 0,
        *(None if t is None else t.data_ptr() for t in (*read, *others)),
    )  # fmt: skip
    if getattr(library(), function)(ctypes.byref(params)):
        raise MemoryError("no memory for the convolution's scratch")
