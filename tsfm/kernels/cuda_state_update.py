"""The host side of `cuda/state_update.cu`: one token for many rows of states on a CUDA device.

Checks what would make the kernel read outside a tensor, picks the kernel and the shape of its
launch, and nothing else: defaults, gradients and rows that overwrite each other's source are the
affair of `tsfm/kernels/state_update.py`, which also says what is computed.
"""

from __future__ import annotations

import ctypes

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsfm.errors import InputError
from tsfm.kernels.cuda_driver import Launches, address, processor_count, type_name
from tsfm.kernels.scan_inputs import INPUTS

BLOCK = 128
# Enough blocks to fill a multiprocessor twice; beyond that a block takes several rows and reads the
# rates of its channels once for all of them.
BLOCKS_PER_PROCESSOR = 32
STATES_OF_A_THREAD = 4
LARGEST_GRID_Y = 65535


class StateParams(ctypes.Structure):
    """Mirror of `StateParams` in the source."""

    _fields_ = (
        *((name, ctypes.c_longlong) for name in (
            "n_rows", "n_channels", "n_state", "n_sources", "n_targets",
            "u_stride", "delta_stride", "z_stride", "B_stride", "C_stride",
        )),
        *((name, ctypes.c_int) for name in (
            "input", "softplus", "wide_slots", "lanes", "vectors",
        )),
        *((name, ctypes.c_void_p) for name in (
            "source", "source_slots", "target_slots", "u", "delta", "z", "B", "C",
            "A", "D", "gap", "gap_rate", "delta_bias", "state", "y",
        )),
    )  # fmt: skip


def update(
    source: Float[Tensor, "sources channel carried"],
    state: Float[Tensor, "slots channel carried"],
    u: Float[Tensor, "row channel"],
    delta: Float[Tensor, "row channel"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "row state"],
    C: Float[Tensor, "row state"],
    D: Float[Tensor, " channel"] | None = None,
    z: Float[Tensor, "row channel"] | None = None,
    gap: Float[Tensor, " row"] | None = None,
    gap_rate: Float[Tensor, " channel"] | None = None,
    delta_bias: Float[Tensor, " channel"] | None = None,
    softplus: bool = False,
    input: str = "euler",
    source_slots: Int[Tensor, " row"] | None = None,
    target_slots: Int[Tensor, " row"] | None = None,
    *,
    launcher: Launches | None = None,
) -> Float[Tensor, "row channel"]:
    """Advance one row a slot: read `source`, write `state`, return y in u's type.

    Args:
        source: States to read, N or for foh 2N wide, float32 or bfloat16. May be `state` itself
            where no row's target is another row's source.
        state: States to write, of the same type.
        u: Input, float32, bfloat16 or float16; the type of `delta`, `z`, `B` and `C` too.
        delta: Step before bias and softplus.
        A: Rates, negative.
        B: Input gate.
        C: Read-out.
        D: Skip weight.
        z: Gate before silu.
        gap: Hours since each row's previous token; given together with `gap_rate`.
        gap_rate: 1/hours.
        delta_bias: Added to delta.
        softplus: Pass delta with its bias through softplus.
        input: One of `INPUTS`.
        source_slots: Row of `source` to read; None for the row's own number. A slot that does not
            exist touches no state and makes that row of y NaN.
        target_slots: Row of `state` to write; None likewise. Distinct.
        launcher: What launches; None for the device's own.

    Raises:
        InputError: If the states are not contiguous or of a type without a kernel.
    """
    n_rows, n_channels = u.shape
    n_state = A.shape[1]
    _check_states(source, state, (n_channels, (2 if input == "foh" else 1) * n_state))
    kernel = f"state_update_{type_name(u.dtype, 'u')}_{type_name(state.dtype, 'state')}"
    # Every tensor that the kernel reads keeps a name until it is queued.
    rows = [_rows(x, u.dtype) for x in (u, delta, z, B, C)]
    channels = [_contiguous(x) for x in (A, D, gap, gap_rate, delta_bias)]
    slots = _same_width(source_slots, target_slots)
    wide = any(x is not None and x.dtype == torch.int64 for x in slots)
    y = torch.empty(n_rows, n_channels, dtype=u.dtype, device=u.device)
    lanes = _lanes(n_state)
    vectors = (source, state, *rows[3:], channels[0])
    params = StateParams(
        n_rows, n_channels, n_state, len(source), len(state),
        *(0 if x is None else x.stride(0) for x in rows),
        INPUTS.index(input), softplus, wide, lanes,
        n_state % STATES_OF_A_THREAD == 0 and all(map(_aligned, vectors)),
        address(source), *map(address, slots), *map(address, rows), *map(address, channels),
        address(state), address(y),
    )  # fmt: skip
    if n_rows == 0:
        return y
    if launcher is None:
        from tsfm.kernels import nvrtc

        launcher = nvrtc.launcher("state_update", u.device)
    blocks = -(-n_channels // (BLOCK // lanes))
    wanted = -(-processor_count(u.device) * BLOCKS_PER_PROCESSOR // blocks)
    launcher.launch(kernel, (blocks, min(n_rows, wanted, LARGEST_GRID_Y), 1), BLOCK, params)
    return y


def _check_states(source: Tensor, state: Tensor, row: tuple[int, int]) -> None:
    for name, states in (("source", source), ("state", state)):
        if not states.is_contiguous():
            raise InputError(
                "states are written in place and must be contiguous", code="not_contiguous",
                place=name, remedy="Allocate them with torch.zeros.",
            )  # fmt: skip
        if states.shape[1:] != row or states.dtype != state.dtype:
            raise InputError(
                f"{name} is {tuple(states.shape)} of {states.dtype}, not slots of {row} of "
                f"{state.dtype}", code="wrong_shape", place=name,
                remedy="See the shapes in the documentation of state_update.",
            )  # fmt: skip
    if state.dtype not in (torch.float32, torch.bfloat16):
        raise InputError(
            f"there is no kernel for states of {state.dtype}", code="cuda_type", place="state",
            remedy="Keep states in float32 or bfloat16.",
        )  # fmt: skip


def _lanes(n_state: int) -> int:
    """Threads of a channel: a power of two that covers its states, at most a warp."""
    needed = -(-n_state // STATES_OF_A_THREAD)
    return min(32, 1 << (needed - 1).bit_length())


def _rows(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if x is None:
        return None
    x = x.to(dtype)
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float().contiguous()


def _same_width(*slots: Tensor | None) -> list[Tensor | None]:
    """Slots as int32 if all are, else as int64."""
    given = {x.dtype for x in slots if x is not None}
    dtype = torch.int32 if given == {torch.int32} else torch.int64
    return [None if x is None else x.to(dtype).contiguous() for x in slots]


def _aligned(x: Tensor | None) -> bool:
    """Whether four neighbours from any row's start can be read at once."""
    if x is None:
        return True
    size = STATES_OF_A_THREAD * x.element_size()
    strides = (stride * x.element_size() for stride in x.stride()[:-1])
    return x.data_ptr() % size == 0 and all(stride % size == 0 for stride in strides)
