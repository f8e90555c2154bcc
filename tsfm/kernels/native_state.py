"""The state update by the compiled CPU kernels: float32, in place.

The kernel (`native/state_update.inc`) takes the states as they lie, all components of some channels
a vector. A call for one row lasts some microseconds, so that most of the time is Python's: the
struct is filled by position. See `scan_inputs.py` for the equations.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tsfm.kernels.native_library import library
from tsfm.kernels.scan_inputs import INPUTS

_SIZES = ("n_rows", "n_channels", "n_state")
_STRIDES = ("u_stride", "delta_stride", "z_stride", "B_stride", "C_stride")
_FLAGS = ("input", "softplus", "n_threads", "unused")
_POINTERS = (
    "u", "delta", "A", "B", "C", "D", "z", "gap", "gap_rate", "delta_bias", "source", "state",
    "source_slots", "target_slots", "y",
)  # fmt: skip


class _Params(ctypes.Structure):
    """`StateParams` of native/params.h, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in (*_SIZES, *_STRIDES)),
        *((name, ctypes.c_int32) for name in _FLAGS),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    ]


def update(
    source: Tensor,
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    gap: Tensor | None,
    gap_rate: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    kind: str,
    source_slots: Tensor | None,
    target_slots: Tensor | None,
) -> Tensor:
    """Advance the rows of `source` into `state`, both contiguous; no row writes another's source.

    Args:
        source: Table that is read, by `source_slots` (int64) or row by row.
        state: Table that is written, by `target_slots` (int64) or row by row.
        u: This and the rest as in `state_update.state_update`.

    Returns:
        y, (R, D).
    """
    n_rows, n_channels = u.shape
    n_state = A.shape[1]
    strides = [n_channels, n_channels, n_channels, n_state, n_state]
    rows = [u, delta, u if z is None else z, B, C]
    for index, tensor in enumerate(rows):
        if not tensor.is_contiguous():
            rows[index] = whole = tensor if tensor.stride(1) == 1 else tensor.contiguous()
            strides[index] = whole.stride(0)
    A = A.contiguous()
    others = [None if t is None else t.contiguous() for t in (D, gap, gap_rate, delta_bias)]
    skip, *rest = [None if t is None else t.data_ptr() for t in others]
    y = torch.empty(n_rows, n_channels)
    params = _Params(
        n_rows, n_channels, n_state, *strides,
        INPUTS.index(kind), softplus, torch.get_num_threads(), 0,
        rows[0].data_ptr(), rows[1].data_ptr(), A.data_ptr(), rows[3].data_ptr(),
        rows[4].data_ptr(), skip, None if z is None else rows[2].data_ptr(), *rest,
        source.data_ptr(), state.data_ptr(),
        None if source_slots is None else source_slots.data_ptr(),
        None if target_slots is None else target_slots.data_ptr(),
        y.data_ptr(),
    )  # fmt: skip
    if library().tsfm_state_update(ctypes.byref(params)):
        raise MemoryError("no memory for the state update's scratch")
    return y
