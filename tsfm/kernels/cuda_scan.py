"""The selective scan by the CUDA kernels of `cuda/`: plans chunks and buffers, launches kernels.

The token axis is cut into chunks where channels and sequences alone would not fill the card. A
chunk's summary is found first, the carries pass from chunk to chunk, and the chunks then run side
by side; chunks need not respect the borders of sequences. The backward pass goes over slices of
chunks, so that the shares of dB and dC that blocks of channels write never take much memory at
once. Every sum has one order: the same input gives the same bits on the same kind of card. See
`scan_inputs.py` for the equations and `cuda/README.md` for the kernels.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from tsfm.errors import InputError
from tsfm.kernels.scan_inputs import INPUTS, WIDE_ROWS, ScanForm, ScanGradients, ScanInputs

# Of cuda/scan_params.cuh and the structs of shared memory in scan_forward.cuh, scan_backward.cuh.
CHANNELS, THREADS, TILE, SEGMENT = 32, 128, 16, 64
_FORWARD_BYTES = 4 * ((3 * SEGMENT + 1) * CHANNELS + (2 * SEGMENT + 1) * TILE + SEGMENT)
_BACKWARD_BYTES = _FORWARD_BYTES + 4 * (SEGMENT // 8 * THREADS * 4 + 8 * THREADS)
_PLANE_BYTES = 4 * SEGMENT * CHANNELS
_CARRIED_BYTES = 4 * THREADS * 4

# Blocks (of 4 warps) that keep a multiprocessor busy; and those worth a second pass over a chunk.
ENOUGH_BLOCKS, CUT_BLOCKS = 2, 4
LEAST_CHUNK = 2 * SEGMENT

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# The source of each input: nobody waits for the compilation of what they do not use.
SOURCES = {
    "euler": "selective_scan",
    "impulse": "selective_scan",
    "zoh": "selective_scan_zoh",
    "foh": "selective_scan_foh",
}
_SIZES = ("n_tokens", "n_channels", "n_state", "n_sequences")
_ROWS = ("u", "delta", "z", "B", "C", "dy")
_EXTENTS = ("initial_width", "chunk_tokens", "n_chunks", "first_chunk", "slice_tokens")
_FLAGS = ("type", "input", "softplus", "reverse", "n_tiles", "backwards")
_READ = ("u", "delta", "B", "C", "z", "dy", "A", "D", "gap", "gap_rate", "delta_bias")
_STATES = ("initial_state", "dfinal", "borders", "labels", "carry", "elapsed", "checkpoints")
_WRITTEN = ("y", "final_state", "du", "ddelta", "dz", "dB", "dC", "dgap", "dinitial", "dA", "dD")
_SUMS = ("dgap_rate", "ddelta_bias", "state_shares", "gap_shares", "rate_shares", "channel_shares")


@runtime_checkable
class Launcher(Protocol):
    """What runs a kernel: `tsfm.kernels.nvrtc.Launcher`, or the tests' stand-in on the CPU."""

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: int,
        params: ctypes.Structure,
        shared_bytes: int = 0,
    ) -> None:
        """Launch one kernel of the scan."""
        ...


class ScanParams(ctypes.Structure):
    """`ScanParams` of cuda/scan_params.cuh, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        *((f"{name}_stride", ctypes.c_int64) for name in _ROWS),
        *((name, ctypes.c_int64) for name in _EXTENTS),
        *((name, ctypes.c_int32) for name in _FLAGS),
        *((name, ctypes.c_void_p) for name in (*_READ, *_STATES, *_WRITTEN, *_SUMS)),
    ]


@dataclass(frozen=True)
class Plan:
    """How the token axis is cut.

    Attributes:
        chunk_tokens: Tokens of a chunk, a multiple of `SEGMENT`.
        n_chunks: Chunks; 1 means a single pass.
        slice_chunks: Chunks that the backward pass takes at once.
    """

    chunk_tokens: int
    n_chunks: int
    slice_chunks: int


def plan(n_tokens: int, n_channels: int, n_state: int, n_sequences: int, n_processors: int) -> Plan:
    """Cut the tokens so that the card is full, and no finer.

    A block walks one chunk of 32 channels with 4 warps. One chunk a sequence is free, since a
    border kills every carry; a finer cut costs a second pass over the exponentials. So where whole
    sequences of mean length give each multiprocessor `ENOUGH_BLOCKS`, chunks are whole sequences;
    where they do not, each is cut until there are `CUT_BLOCKS`, but not below `LEAST_CHUNK`
    tokens. The backward pass takes as few chunks at once as still fill the card, down to shares of
    dB and dC of a quarter of a float32 activation.

    Args:
        n_tokens: Packed tokens.
        n_channels: Channels.
        n_state: State components.
        n_sequences: Sequences.
        n_processors: Multiprocessors of the card.
    """
    blocks = -(-n_channels // CHANNELS)
    wanted = -(-CUT_BLOCKS * n_processors // blocks)
    mean = n_tokens / n_sequences
    if blocks * n_sequences >= ENOUGH_BLOCKS * n_processors:
        length = mean * max(1, n_sequences // (4 * wanted))
    else:
        length = mean / -(-wanted // n_sequences)
    length = max(LEAST_CHUNK, math.ceil(length / SEGMENT) * SEGMENT)
    n_chunks = -(-n_tokens // length)
    quarter = n_chunks * n_channels // (8 * blocks * _padded(n_state))
    return Plan(length, n_chunks, min(n_chunks, max(1, quarter, wanted)))


def checkpoint_numel(n_tokens: int, n_channels: int, n_state: int) -> int:
    """Floats that the forward pass keeps for the backward pass: a state each 64th token."""
    return -(-n_tokens // SEGMENT) * n_channels * _padded(n_state)


def forward(
    inputs: ScanInputs,
    form: ScanForm,
    *,
    final: bool,
    checkpoints: bool,
    launcher: Launcher | None = None,
    n_processors: int | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `tsfm.kernels.scan_inputs.ScanBackend.forward`.

    Args:
        inputs: Packed tensors on one device; rows of u, delta, B, C, z may be strided.
        form: What is computed.
        final: Whether the final states are wanted.
        checkpoints: Whether a backward pass will follow.
        launcher: What runs the kernels of `SOURCES[form.input]`; None takes those of the device.
        n_processors: Multiprocessors to fill; None asks the device.
    """
    run = _Run(inputs, form, launcher, n_processors)
    params, u = run.params, inputs.u
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    width = run.n_state * form.carried
    state = run.floats(params.n_sequences, run.n_channels, width) if final else None
    saved = None
    if checkpoints:
        saved = run.floats(checkpoint_numel(run.n_tokens, run.n_channels, run.n_state))
    carried = params.n_tiles * _CARRIED_BYTES
    run.point(y=y, final_state=state)
    run.carry("scan_summary", _FORWARD_BYTES, backwards=False)
    run.point(checkpoints=saved)
    run.launch_chunks("scan_forward", params.n_chunks, _FORWARD_BYTES + carried)
    return y, state, saved


def backward(
    inputs: ScanInputs,
    form: ScanForm,
    checkpoints: Tensor,
    dy: Tensor | None,
    dfinal: Tensor | None,
    needs: tuple[bool, ...],
    *,
    launcher: Launcher | None = None,
    n_processors: int | None = None,
) -> ScanGradients:
    """See `tsfm.kernels.scan_inputs.ScanBackend.backward`, and `forward` for the last arguments."""
    run = _Run(inputs, form, launcher, n_processors)
    params = run.params
    always = {"u", "delta", "A", "B", "C"}
    gradients = ScanGradients(
        *(
            torch.empty(t.shape, dtype=t.dtype, device=t.device)
            if t is not None and (name in always or need)
            else None
            for name, t, need in zip(ScanGradients._fields, run.inputs, needs, strict=False)
        )
    )
    named = gradients._asdict()
    named["initial"] = named.pop("initial_state")
    run.point(
        dfinal=None if dfinal is None else run.keep(dfinal.contiguous()),
        checkpoints=checkpoints,
        **{f"d{name}": gradient for name, gradient in named.items()},
    )
    if dy is not None:
        dy = run.keep(_rows(dy))
        run.point(dy=dy)
        params.dy_stride = dy.stride(0)
    run.carry("scan_summary_back", _BACKWARD_BYTES, backwards=True)
    run.shares(gap=gradients.gap is not None)

    planes = (gradients.z is not None) + 2 * (params.n_tiles > 1)
    carried = params.n_tiles * (3 if form.input == "foh" else 2)
    shared = _BACKWARD_BYTES + planes * _PLANE_BYTES + carried * _CARRIED_BYTES
    for first in range(0, run.plan.n_chunks, run.plan.slice_chunks):
        params.first_chunk = first
        n_chunks = min(run.plan.slice_chunks, run.plan.n_chunks - first)
        run.launch_chunks("scan_backward", n_chunks, shared)
        n_tokens = min(params.slice_tokens, run.n_tokens - first * params.chunk_tokens)
        run.launch_flat("scan_sum_states", n_tokens * 2 * _padded(run.n_state))
        if gradients.gap is not None:
            run.launch_flat("scan_sum_gaps", n_tokens)
    run.launch_flat("scan_sum_chunks", run.n_channels * _padded(run.n_state))
    return ScanGradients(
        *(
            None if gradient is None or given is None else gradient.to(given.dtype)
            for gradient, given in zip(gradients, inputs, strict=False)
        )
    )


class _Run:
    """One call: its params struct, the tensors that it points at, and the launches."""

    def __init__(
        self,
        inputs: ScanInputs,
        form: ScanForm,
        launcher: Launcher | None,
        n_processors: int | None,
    ) -> None:
        device = inputs.u.device
        self.inputs = given = _checked(inputs)
        (self.n_tokens, self.n_channels), self.n_state = given.u.shape, given.A.shape[1]
        if launcher is None:
            from tsfm.kernels import nvrtc

            launcher = nvrtc.launcher(SOURCES[form.input], device)
        processors = n_processors or torch.cuda.get_device_properties(device).multi_processor_count
        self._launcher, self._device = launcher, device
        n_sequences = len(given.cu_seqlens) - 1
        self.plan = plan(self.n_tokens, self.n_channels, self.n_state, n_sequences, processors)
        initial = given.initial_state
        self.params = ScanParams(
            n_tokens=self.n_tokens,
            n_channels=self.n_channels,
            n_state=self.n_state,
            n_sequences=n_sequences,
            initial_width=0 if initial is None else initial.shape[2],
            chunk_tokens=self.plan.chunk_tokens,
            n_chunks=self.plan.n_chunks,
            slice_tokens=self.plan.chunk_tokens * self.plan.slice_chunks,
            type=_TYPES[given.u.dtype],
            input=INPUTS.index(form.input),
            softplus=form.softplus,
            reverse=form.reverse,
            n_tiles=_padded(self.n_state) // TILE,
        )
        self._kept: list[Tensor] = []
        for name in WIDE_ROWS:
            tensor = getattr(given, name)
            setattr(self.params, f"{name}_stride", 0 if tensor is None else tensor.stride(0))
        names = set(_READ) - {"dy"} | {"initial_state"}
        labels = self.keep(torch.empty(self.n_tokens, dtype=torch.int32, device=device))
        self.point(**{name: getattr(given, name) for name in names})
        self.point(borders=given.cu_seqlens, labels=labels)
        self.launch_flat("scan_label", self.n_tokens)

    def keep(self, tensor: Tensor) -> Tensor:
        """Hold a tensor that only a pointer names until the call is over."""
        self._kept.append(tensor)
        return tensor

    def floats(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self._device)

    def point(self, **tensors: Tensor | None) -> None:
        for name, tensor in tensors.items():
            setattr(self.params, name, None if tensor is None else tensor.data_ptr())

    def carry(self, summary: str, shared_bytes: int, *, backwards: bool) -> None:
        """Find what reaches each chunk from its neighbours, if there are any."""
        if self.plan.n_chunks == 1:
            return
        states = self.floats(self.plan.n_chunks, self.n_channels, _padded(self.n_state))
        elapsed = self.floats(self.plan.n_chunks, self.n_channels)
        self.point(carry=self.keep(states), elapsed=self.keep(elapsed))
        self.params.backwards = backwards
        self.launch_chunks(summary, self.plan.n_chunks, shared_bytes)
        self.launch_flat("scan_carry", states[0].numel())

    def shares(self, *, gap: bool) -> None:
        """Room for what blocks of channels and chunks add to sums that are not theirs alone."""
        blocks, n_chunks = -(-self.n_channels // CHANNELS), self.plan.n_chunks
        tokens = min(self.params.slice_tokens, n_chunks * self.plan.chunk_tokens)
        width = _padded(self.n_state)
        self.point(
            state_shares=self.keep(self.floats(blocks, tokens, 2 * width)),
            gap_shares=self.keep(self.floats(blocks, tokens)) if gap else None,
            rate_shares=self.keep(self.floats(n_chunks, self.n_channels, width)),
            channel_shares=self.keep(self.floats(n_chunks, 3, self.n_channels)),
        )

    def launch_chunks(self, kernel: str, n_chunks: int, shared_bytes: int) -> None:
        grid = (n_chunks, -(-self.n_channels // CHANNELS), 1)
        self._launcher.launch(kernel, grid, THREADS, self.params, shared_bytes)

    def launch_flat(self, kernel: str, n_threads: int) -> None:
        self._launcher.launch(kernel, (-(-n_threads // THREADS), 1, 1), THREADS, self.params)


def _checked(inputs: ScanInputs) -> ScanInputs:
    if inputs.u.dtype not in _TYPES:
        raise InputError(
            f"the CUDA scan has no {inputs.u.dtype}", code="backend_without_type",
            place="u", remedy="Use float32, bfloat16 or float16, or backend='torch'.",
        )  # fmt: skip
    narrow = {"A", "D", "gap", "gap_rate", "delta_bias", "initial_state"}

    def prepare(name: str, tensor: Tensor) -> Tensor:
        if name in WIDE_ROWS:
            return _rows(tensor.to(inputs.u.dtype))
        wanted = torch.float32 if name in narrow else torch.int32
        return tensor.to(wanted).contiguous()

    return inputs.each(prepare)


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _padded(n_state: int) -> int:
    return -(-n_state // TILE) * TILE
