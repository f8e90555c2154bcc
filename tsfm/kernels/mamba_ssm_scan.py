"""The selective scan by mamba-ssm's CUDA kernels, for the plain form they know.

mamba-ssm (Gu and Dao; `pip install mamba-ssm` with its CUDA build) brings a compiled module,
`selective_scan_cuda`, with a forward and a backward function over (batch, channel, length) tensors.
This backend puts our packed rows into that layout and back. It serves what Mamba-1 is: Euler input,
no gap, no initial state, sequences of one length. `serves` says what stands in the way of the rest.
It is a peer to compare with, never chosen by itself: its gradients of B and C are summed by
atomics, so their last bits change from run to run.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tsfm.errors import InputError
from tsfm.kernels.scan_inputs import ScanForm, ScanGradients, ScanInputs

_MODULE = "selective_scan_cuda"
_CHUNK = 2048  # tokens after which the kernels store a state for their backward pass
_LARGEST_STATE = 256
_CONTENT_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def serves(inputs: ScanInputs, form: ScanForm) -> str | None:
    """What keeps mamba-ssm from running this scan, or None if nothing does.

    With more than one sequence their lengths are read from the device.

    Args:
        inputs: Packed tensors.
        form: What is computed.
    """
    if inputs.u.device.type != "cuda":
        return "it runs on CUDA devices only"
    if _module() is None:
        return f"its compiled module {_MODULE} is not installed"
    return _departs(inputs, form)


def forward(
    inputs: ScanInputs, form: ScanForm, *, final: bool, checkpoints: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `tsfm.kernels.scan_inputs.ScanBackend.forward`.

    Raises:
        InputError: mamba-ssm is not installed, does not know this form, or is asked for a final
            state with a gradient, which its backward pass would leave out without a word.
    """
    reason = _departs(inputs, form)
    if reason is None and final and checkpoints:
        reason = "it gives a final state no gradient"
    if reason is not None:
        raise InputError(
            f"mamba-ssm cannot run this scan: {reason}", code="backend_without_form",
            place="backend", remedy="Leave backend out.",
        )  # fmt: skip
    x = _batched(inputs)
    out, states, *gated = _required_module().fwd(*x, form.softplus)
    state = states[:, :, -1, 1::2].contiguous() if final else None
    saved = None
    if checkpoints:
        n_tokens, n_channels = inputs.u.shape
        numel = checkpoint_numel(n_tokens, n_channels, inputs.A.shape[1])
        saved = torch.empty(numel, device=out.device)
        if x.z is not None:
            saved[: out.numel()] = out.flatten()
        if states.shape[2] > 1:
            saved[out.numel() : out.numel() + states.numel()] = states.flatten()
    return _packed(gated[0] if gated else out), state, saved


def backward(
    inputs: ScanInputs,
    form: ScanForm,
    checkpoints: Tensor,
    dy: Tensor | None,
    dfinal: Tensor | None,
    needs: tuple[bool, ...],
) -> ScanGradients:
    """See `tsfm.kernels.scan_inputs.ScanBackend.backward`."""
    x = _batched(inputs)
    batch, n_channels, length = x.u.shape
    dout = torch.zeros_like(x.u) if dy is None else _channels_first(dy, batch)
    n_chunks, width = -(-length // _CHUNK), 2 * x.A.shape[1]
    # A single chunk starts from zero: there is no state to be found again.
    states = None
    if n_chunks > 1:
        end = x.u.numel() + batch * n_channels * n_chunks * width
        states = checkpoints[x.u.numel() : end].view(batch, n_channels, n_chunks, width)
    out = None if x.z is None else checkpoints[: x.u.numel()].view(x.u.shape).to(x.u.dtype)
    du, ddelta, dA, dB, dC, dD, dbias, *dz = _required_module().bwd(
        *x, dout, states, out, None, form.softplus, False
    )
    return ScanGradients(
        u=_packed(du),
        delta=_packed(ddelta),
        A=dA,
        B=_packed(dB.squeeze(1)),
        C=_packed(dC.squeeze(1)),
        D=None if x.D is None else dD,
        z=_packed(dz[0]) if dz else None,
        gap=None,
        gap_rate=None,
        delta_bias=None if x.delta_bias is None else dbias,
        initial_state=None,
    )


def checkpoint_numel(n_tokens: int, n_channels: int, n_state: int) -> int:
    """Floats that `forward` keeps: the output before the gate, and a state at each chunk's end."""
    # A sequence of more than one chunk has fewer than two for each that it fills.
    return n_tokens * n_channels + -(-2 * n_tokens // _CHUNK) * n_channels * 2 * n_state


class _Batched(NamedTuple):
    """Arguments of mamba-ssm in its order; B and C have an axis of groups, here one group."""

    u: Float[Tensor, "batch channel length"]
    delta: Float[Tensor, "batch channel length"]
    A: Float[Tensor, "channel state"]
    B: Float[Tensor, "batch 1 state length"]
    C: Float[Tensor, "batch 1 state length"]
    D: Float[Tensor, " channel"] | None
    z: Float[Tensor, "batch channel length"] | None
    delta_bias: Float[Tensor, " channel"] | None


def _departs(inputs: ScanInputs, form: ScanForm) -> str | None:
    """How a scan departs from the plain form, wherever its tensors are."""
    content = [t for t in (inputs.u, inputs.delta, inputs.B, inputs.C, inputs.z) if t is not None]
    weights = [t for t in (inputs.A, inputs.D, inputs.delta_bias) if t is not None]
    if form.input != "euler":
        return f"its input is euler, not {form.input}"
    if form.reverse:
        return "it does not walk backwards"
    if inputs.gap is not None:
        return "it knows no gap"
    if inputs.initial_state is not None:
        return "it starts from zero"
    if inputs.A.shape[1] > _LARGEST_STATE:
        return f"it holds {_LARGEST_STATE} state components at most"
    one_type = all(t.dtype == inputs.u.dtype for t in content)
    if not one_type or inputs.u.dtype not in _CONTENT_TYPES:
        return "u, delta, B, C and z must be of one type: float32, bfloat16 or float16"
    if any(t.dtype != torch.float32 for t in weights):
        return "A, D and delta_bias must be float32"
    if len(inputs.cu_seqlens) == 2:
        return None
    if torch.compiler.is_compiling():
        return "the lengths of several sequences cannot be read while torch is tracing"
    lengths = torch.diff(inputs.cu_seqlens)
    return None if bool((lengths == lengths[0]).all()) else "its sequences are all of one length"


def _module() -> ModuleType | None:
    try:
        return importlib.import_module(_MODULE)
    except ImportError:  # not there, or built for another torch
        return None


def _required_module() -> ModuleType:
    module = _module()
    if module is None:
        raise InputError(
            f"mamba-ssm's compiled module {_MODULE} does not load", code="no_mamba_ssm",
            place="backend", remedy="Install mamba-ssm with its CUDA build, or leave backend out.",
        )  # fmt: skip
    return module


def _batched(inputs: ScanInputs) -> _Batched:
    batch = len(inputs.cu_seqlens) - 1
    return _Batched(
        u=_channels_first(inputs.u, batch),
        delta=_channels_first(inputs.delta, batch),
        A=inputs.A.contiguous(),
        B=_channels_first(inputs.B, batch).unsqueeze(1),
        C=_channels_first(inputs.C, batch).unsqueeze(1),
        D=None if inputs.D is None else inputs.D.contiguous(),
        z=None if inputs.z is None else _channels_first(inputs.z, batch),
        delta_bias=None if inputs.delta_bias is None else inputs.delta_bias.contiguous(),
    )


def _channels_first(
    packed: Float[Tensor, "token channel"], batch: int
) -> Float[Tensor, "batch channel length"]:
    return packed.unflatten(0, (batch, -1)).transpose(1, 2).contiguous()


def _packed(batched: Float[Tensor, "batch channel length"]) -> Float[Tensor, "token channel"]:
    return batched.transpose(1, 2).flatten(0, 1).contiguous()
