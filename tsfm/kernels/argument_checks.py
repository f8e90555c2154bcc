"""Checks that the ops share; each failure is an `InputError` that names the argument."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from tsfm.errors import InputError


def check_borders(cu_seqlens: Tensor, n_tokens: int, device: torch.device) -> Tensor:
    """The borders as int32, once they are found to rise from 0 to the number of tokens.

    Raises:
        InputError: They do not, or are of the wrong shape, type or device.
    """
    problem = None
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        problem = f"cu_seqlens has shape {tuple(cu_seqlens.shape)}, expected (S + 1,)"
    elif cu_seqlens.dtype not in (torch.int32, torch.int64):
        problem = f"cu_seqlens holds {cu_seqlens.dtype}, not int32 or int64"
    elif cu_seqlens.device != device:
        problem = f"cu_seqlens is on {cu_seqlens.device}, the tokens on {device}"
    elif not torch.compiler.is_compiling():
        values = cu_seqlens.tolist()
        rises = all(a < b for a, b in itertools.pairwise(values))
        if values[0] != 0 or values[-1] != n_tokens or not rises:
            problem = "cu_seqlens must rise from 0 to the number of tokens"
    if problem is not None:
        raise InputError(
            problem, code="bad_cu_seqlens", place="cu_seqlens",
            remedy="Drop empty sequences and check the total.",
        )  # fmt: skip
    return cu_seqlens.to(torch.int32)


def wrong_shape(name: str, tensor: Tensor, expected: str) -> InputError:
    """The error for an argument whose shape does not fit the others."""
    return InputError(
        f"{name} has shape {tuple(tensor.shape)}, expected {expected}", code="wrong_shape",
        place=name, remedy="See the shapes in the documentation of the function.",
    )  # fmt: skip


def check_type(name: str, tensor: Tensor, leader: str, device: torch.device) -> None:
    """Refuse what is not floating, or lies elsewhere than the argument called `leader`."""
    if not tensor.is_floating_point():
        raise InputError(
            f"{name} holds {tensor.dtype}, not floating numbers", code="wrong_type",
            place=name, remedy="Convert it to float32 first.",
        )  # fmt: skip
    if tensor.device != device:
        raise InputError(
            f"{name} is on {tensor.device}, {leader} on {device}", code="wrong_device",
            place=name, remedy="Move all tensors to one device.",
        )  # fmt: skip
