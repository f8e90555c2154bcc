"""Which backend an op uses on which tensors, and why: one rule for all ops, for code and people.

On the CPU the C++ kernels come first, the numba kernels take their place where they were not built.
On a GPU the CUDA kernels come first. Plain torch serves whatever is left: float64, other devices.
mamba-ssm's kernels are never chosen by themselves: they serve Mamba-1's plain case only, and their
gradients differ from run to run.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from tsfm.kernels import native_library
from tsfm.kernels.nvrtc import Availability, available

OPS = ("selective_scan", "state_update", "causal_conv1d", "ssd")


@dataclass(frozen=True)
class Choice:
    """A backend and the reason for it."""

    op: str
    backend: str
    reason: str


def choose_backend(
    op: str, *, device: torch.device, dtype: torch.dtype, input: str = "impulse"
) -> Choice:
    """The fastest backend that serves these tensors.

    Args:
        op: One of `OPS`.
        device: Where the tensors are.
        dtype: Type of the tokens' tensors.
        input: Kind of scan input, see `tsfm.kernels.selective_scan`.
    """
    if op == "ssd":
        return Choice(op, "torch", "matrix products in plain torch on every device")
    if dtype == torch.float64:
        return Choice(op, "torch", "float64 is served by plain torch")
    if device.type == "cpu":
        if native_library.available():
            return Choice(op, "native", native_library.describe())
        if op == "selective_scan" and input == "foh":
            return Choice(op, "torch", f"foh has no numba form; {native_library.describe()}")
        return Choice(op, "numba", native_library.describe())
    if device.type == "cuda":
        kernels = _cuda_kernels()
        return Choice(op, "cuda" if kernels else "torch", kernels.explanation)
    return Choice(op, "torch", f"devices of type {device.type} are served by plain torch")


@functools.cache
def _cuda_kernels() -> Availability:
    return available()


def diagnose() -> list[tuple[str, Choice]]:
    """What each op would use for float32 tensors on each device of this machine."""
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [
        (str(device), choose_backend(op, device=device, dtype=torch.float32))
        for device in devices
        for op in OPS
    ]
