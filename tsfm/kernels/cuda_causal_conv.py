"""The host side of `cuda/causal_conv.cu`: the causal convolution and its derivative by CUDA.

Picks kernels, cuts the tokens into chunks that fill the card and allocates what is written.
Defaults, checks of what a user passed and autograd are the affair of `tsfm/kernels/causal_conv.py`,
which also says what is computed.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tsfm.errors import InputError
from tsfm.kernels.cuda_driver import Launches, address, processor_count, type_name

MOST_TAPS = 8
BLOCK = 128
# Chunks as long as they may be while every multiprocessor gets this many threads: a longer chunk
# reads fewer tokens twice and writes fewer shares of the weights' gradient.
THREADS_PER_PROCESSOR = 512
CHUNKS = (128, 64, 32, 16)
_COLUMNS = 32  # of a block that sums shares
_PARTS = 8


class ConvParams(ctypes.Structure):
    """Mirror of `ConvParams` in the source."""

    _fields_ = (
        *((name, ctypes.c_longlong) for name in (
            "n_tokens", "n_channels", "n_sequences", "x_stride", "dy_stride",
            "chunk_tokens", "n_chunks",
        )),
        *((name, ctypes.c_int) for name in ("n_taps", "silu", "reverse")),
        *((name, ctypes.c_void_p) for name in (
            "x", "initial_state", "dy", "dfinal", "weight", "bias", "borders",
            "y", "final_state", "dx", "dinitial", "shares", "dweight", "dbias",
        )),
    )  # fmt: skip


class Forward(NamedTuple):
    """Output (T, D) and, if asked for, final states (S, D, K - 1), both in x's type."""

    y: Float[Tensor, "token channel"]
    final: Float[Tensor, "sequence channel before"] | None


class Backward(NamedTuple):
    """Gradients in the types of what they belong to; None where that was absent."""

    dx: Float[Tensor, "token channel"]
    dweight: Float[Tensor, "channel tap"]
    dbias: Float[Tensor, " channel"] | None
    dinitial: Float[Tensor, "sequence channel before"] | None


def forward(
    x: Float[Tensor, "token channel"],
    weight: Float[Tensor, "channel tap"],
    bias: Float[Tensor, " channel"] | None,
    cu_seqlens: Int[Tensor, " borders"],
    initial_state: Float[Tensor, "sequence channel before"] | None,
    *,
    activation: str | None,
    reverse: bool,
    final: bool,
    launcher: Launches | None = None,
) -> Forward:
    """Convolve every sequence.

    Args:
        x: Packed input, float32, bfloat16 or float16; rows may be strided.
        weight: Taps, the last one for the token itself.
        bias: Added to every token.
        cu_seqlens: Borders of the sequences, from 0 to the number of tokens.
        initial_state: The K - 1 inputs before each sequence, oldest first.
        activation: `silu` or None.
        reverse: Walk each sequence from its last token.
        final: Also return the last K - 1 inputs of each sequence.
        launcher: What launches; None for the device's own.

    Raises:
        InputError: If there is no kernel for x's type or so many taps.
    """
    call = _Call(x, weight, bias, cu_seqlens, initial_state, activation, reverse, launcher)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    call.params.y = address(y)
    call.walk("forward", y)
    if not final:
        return Forward(y, None)
    states = x.new_empty(len(cu_seqlens) - 1, x.shape[1], weight.shape[1] - 1)
    call.params.final_state = address(states)
    blocks = -(-len(states) * x.shape[1] // BLOCK)
    if states.numel():
        call.launcher.launch(f"conv_final_{call.type}", (blocks, 1, 1), BLOCK, call.params)
    return Forward(y, states)


def backward(
    x: Float[Tensor, "token channel"],
    weight: Float[Tensor, "channel tap"],
    bias: Float[Tensor, " channel"] | None,
    cu_seqlens: Int[Tensor, " borders"],
    initial_state: Float[Tensor, "sequence channel before"] | None,
    dy: Float[Tensor, "token channel"],
    dfinal: Float[Tensor, "sequence channel before"] | None,
    *,
    activation: str | None,
    reverse: bool,
    launcher: Launches | None = None,
) -> Backward:
    """Gradients of sum(dy * y) + sum(dfinal * final).

    Args:
        x: As given to `forward`, like all that follows.
        weight: Taps.
        bias: Added to every token.
        cu_seqlens: Borders.
        initial_state: Inputs before each sequence.
        dy: Gradient of the output.
        dfinal: Gradient of the final states.
        activation: `silu` or None.
        reverse: Walk each sequence from its last token.
        launcher: What launches; None for the device's own.

    Raises:
        InputError: If there is no kernel for x's type or so many taps.
    """
    call = _Call(x, weight, bias, cu_seqlens, initial_state, activation, reverse, launcher)
    n_channels, n_taps = weight.shape
    dy = _rows(dy.to(x.dtype))
    dfinal = None if dfinal is None else dfinal.to(x.dtype).contiguous()
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dinitial = None
    if call.initial is not None:
        # A sequence without tokens passes its state on; no chunk comes by to write its gradient.
        dinitial = torch.zeros_like(call.initial) if dfinal is None else dfinal.clone()
    shares = torch.empty(
        call.params.n_chunks, n_taps + 1, n_channels, dtype=torch.float32, device=x.device
    )
    dweight = torch.empty(n_channels, n_taps, dtype=torch.float32, device=x.device)
    dbias = None if bias is None else torch.empty(n_channels, device=x.device)
    params = call.params
    params.dy, params.dy_stride, params.dfinal = address(dy), dy.stride(0), address(dfinal)
    params.dx, params.dinitial, params.shares = address(dx), address(dinitial), address(shares)
    params.dweight, params.dbias = address(dweight), address(dbias)
    call.walk("backward", dy)
    blocks = -(-(n_taps + 1) * n_channels // _COLUMNS)
    call.launcher.launch("conv_sum_shares", (blocks, 1, 1), _COLUMNS * _PARTS, params)
    return Backward(
        dx,
        dweight.to(weight.dtype),
        None if dbias is None or bias is None else dbias.to(bias.dtype),
        None if dinitial is None or initial_state is None else dinitial.to(initial_state.dtype),
    )


class _Call:
    """What forward and backward share; keeps every tensor that the kernels read."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        cu_seqlens: Tensor,
        initial_state: Tensor | None,
        activation: str | None,
        reverse: bool,
        launcher: Launches | None,
    ) -> None:
        self.type = type_name(x.dtype, "x")
        n_taps = weight.shape[1]
        if n_taps > MOST_TAPS:
            raise InputError(
                f"the kernel has up to {MOST_TAPS} taps, not {n_taps}", code="cuda_taps",
                place="weight", remedy="Choose another backend.",
            )  # fmt: skip
        self.x = _rows(x)
        self.weight = weight.float().contiguous()
        self.bias = None if bias is None else bias.float().contiguous()
        self.borders = cu_seqlens.to(torch.int32).contiguous()
        self.initial = None if initial_state is None else initial_state.to(x.dtype).contiguous()
        self.four = n_taps <= 4 and _four_at_once(self.x)
        chunk = _chunk(len(x), x.shape[1] // (4 if self.four else 1), processor_count(x.device))
        self.params = ConvParams(
            n_tokens=len(x),
            n_channels=x.shape[1],
            n_sequences=len(cu_seqlens) - 1,
            x_stride=self.x.stride(0),
            chunk_tokens=chunk,
            n_chunks=-(-len(x) // chunk),
            n_taps=n_taps,
            silu=activation == "silu",
            reverse=reverse,
            x=address(self.x),
            weight=address(self.weight),
            bias=address(self.bias),
            initial_state=address(self.initial),
            borders=address(self.borders),
        )
        if launcher is None:
            from tsfm.kernels import nvrtc

            launcher = nvrtc.launcher("causal_conv", x.device)
        self.launcher = launcher

    def walk(self, direction: str, other: Tensor) -> None:
        """Launch a kernel over channels and chunks, which reads or writes `other` like x."""
        four = self.four and _four_at_once(other)
        threads = -(-self.params.n_channels // (4 if four else 1))
        block = min(BLOCK, -(-threads // 32) * 32)
        grid = (self.params.n_chunks, -(-threads // block) if threads else 0, 1)
        if 0 not in grid:
            kernel = f"conv_{direction}_{self.type}_{'four' if four else 'one'}"
            self.launcher.launch(kernel, grid, block, self.params)


def _chunk(n_tokens: int, threads: int, processors: int) -> int:
    """Tokens of a chunk, the longest that leaves threads enough."""
    wanted = processors * THREADS_PER_PROCESSOR
    return next((c for c in CHUNKS if -(-n_tokens // c) * threads >= wanted), CHUNKS[-1])


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _four_at_once(x: Tensor) -> bool:
    """Whether four neighbouring channels of any row can be read in one access."""
    size = 4 * x.element_size()
    row = x.stride(0) * x.element_size()
    return x.shape[1] % 4 == 0 and x.data_ptr() % size == 0 and row % size == 0
