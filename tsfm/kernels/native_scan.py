"""The selective scan by the compiled CPU kernels: float32, packed, all inputs and gradients.

The kernels (`native/scan_*.inc`) hold a vector of channels in each register and its states close
by, read every token once, and keep the state of each 32nd token for the backward pass, which
replays from there. Rows may be strided: what a projection splits is not copied. See
`scan_inputs.py` for the equations.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from tsfm.kernels.native_library import lanes, library
from tsfm.kernels.scan_inputs import INPUTS, WIDE_ROWS, ScanForm, ScanGradients, ScanInputs

STRETCH = 32
# State updates that take about as long as waking a thread.
_WORTH_A_THREAD = 1 << 16

_ROWS = ("u", "delta", "z", "B", "C", "dy")
_SIZES = ("n_tokens", "n_channels", "n_state", "n_sequences")
_FLAGS = ("input", "softplus", "reverse", "n_threads")
_READ = ("u", "delta", "A", "B", "C", "D", "z", "gap", "gap_rate", "delta_bias", "initial_state")
_WRITTEN = ("y", "final_state", "checkpoints", "dy", "dfinal")
_GRADIENTS = ("u", "delta", "A", "B", "C", "D", "z", "gap", "gap_rate", "delta_bias", "initial")


class _Params(ctypes.Structure):
    """`ScanParams` of native/params.h, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        *((f"{name}_stride", ctypes.c_int64) for name in _ROWS),
        *((name, ctypes.c_int32) for name in _FLAGS),
        *((name, ctypes.c_void_p) for name in _READ),
        ("initial_width", ctypes.c_int64),
        ("borders", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in _WRITTEN),
        *((f"d{name}", ctypes.c_void_p) for name in _GRADIENTS),
    ]


def forward(
    inputs: ScanInputs, form: ScanForm, *, final: bool, checkpoints: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `tsfm.kernels.scan_inputs.ScanBackend.forward`."""
    given, params = _describe(inputs, form)
    (n_tokens, n_channels), n_state = given.u.shape, given.A.shape[1]
    n_sequences = len(given.cu_seqlens) - 1
    y = torch.empty(n_tokens, n_channels)
    state = torch.empty(n_sequences, n_channels, n_state * form.carried) if final else None
    saved = torch.empty(checkpoint_numel(n_tokens, n_channels, n_state)) if checkpoints else None
    _point(params, y=y, final_state=state, checkpoints=saved)
    _run("tsfm_scan_forward", params)
    return y, state, saved


def backward(
    inputs: ScanInputs,
    form: ScanForm,
    checkpoints: Tensor,
    dy: Tensor | None,
    dfinal: Tensor | None,
    needs: tuple[bool, ...],
) -> ScanGradients:
    """See `tsfm.kernels.scan_inputs.ScanBackend.backward`."""
    given, params = _describe(inputs, form)
    dy = None if dy is None else _rows(dy)
    dfinal = None if dfinal is None else dfinal.contiguous()
    always = {"u", "delta", "A", "B", "C"}
    gradients = ScanGradients._make(
        torch.empty(tensor.shape) if tensor is not None and (name in always or need) else None
        for name, tensor, need in zip(ScanGradients._fields, given, needs, strict=False)
    )
    named = gradients._asdict()
    named["initial"] = named.pop("initial_state")
    _point(
        params, checkpoints=checkpoints, dy=dy, dfinal=dfinal,
        **{f"d{name}": gradient for name, gradient in named.items()},
    )  # fmt: skip
    params.dy_stride = 0 if dy is None else dy.stride(0)
    _run("tsfm_scan_backward", params)
    return gradients


def checkpoint_numel(n_tokens: int, n_channels: int, n_state: int) -> int:
    """Floats that the forward pass keeps for the backward pass."""
    width = lanes()
    padded = -(-n_state // (width // 2)) * (width // 2)
    return -(-n_tokens // STRETCH) * -(-n_channels // width) * padded * width


def _describe(inputs: ScanInputs, form: ScanForm) -> tuple[ScanInputs, _Params]:
    """Contiguous inputs and the struct that points at them; keep both until the call returns."""
    given = inputs.each(lambda name, t: _rows(t) if name in WIDE_ROWS else t.contiguous())
    params = _Params(
        n_tokens=given.u.shape[0],
        n_channels=given.u.shape[1],
        n_state=given.A.shape[1],
        n_sequences=len(given.cu_seqlens) - 1,
        input=INPUTS.index(form.input),
        softplus=form.softplus,
        reverse=form.reverse,
        n_threads=_threads(given),
        initial_width=0 if given.initial_state is None else given.initial_state.shape[2],
    )
    for name in WIDE_ROWS:
        tensor = getattr(given, name)
        setattr(params, f"{name}_stride", 0 if tensor is None else tensor.stride(0))
    _point(params, **{name: getattr(given, name) for name in _READ}, borders=given.cu_seqlens)
    return given, params


def _threads(inputs: ScanInputs) -> int:
    work = inputs.u.numel() * inputs.A.shape[1]
    return max(1, min(torch.get_num_threads(), work // _WORTH_A_THREAD))


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _point(params: _Params, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        setattr(params, name, None if tensor is None else tensor.data_ptr())


def _run(function: str, params: Any) -> None:
    if getattr(library(), function)(ctypes.byref(params)):
        raise MemoryError("no memory for the scan's scratch")
