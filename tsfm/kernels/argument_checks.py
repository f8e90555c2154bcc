"""Checks that the ops share; each failure is an `InputError` that names the argument."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

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


def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse to differentiate a compiled backward pass again, instead of taking it for a constant.

    torch's own `once_differentiable` raises only where the second pass meets it; here a graph of
    the gradients (`create_graph=True`) is refused before anything could be missing from it.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():
            raise InputError(
                "the compiled backends have no second derivatives", code="no_second_derivative",
                place="backend", remedy="Use backend='torch', or leave create_graph out.",
            )  # fmt: skip
        return backward(ctx, *gradients)

    return checked


def checked_borders(cu_seqlens: Tensor, n_tokens: int) -> Tensor:
    """Borders whose values are looked at when a compiled program runs, not when it is traced."""
    return checked_borders_op(cu_seqlens, n_tokens) if torch.compiler.is_compiling() else cu_seqlens


@torch.library.custom_op(
    "tsfm::checked_borders", mutates_args=(),
    schema="(Tensor cu_seqlens, SymInt n_tokens) -> Tensor",
)  # fmt: skip
def checked_borders_op(cu_seqlens: Tensor, n_tokens: int) -> Tensor:
    """A copy of the borders, once they are found to rise from 0 to the number of tokens."""
    return check_borders(cu_seqlens, n_tokens, cu_seqlens.device).clone()


@checked_borders_op.register_fake
def _(cu_seqlens: Tensor, n_tokens: int) -> Tensor:
    return cu_seqlens.new_empty(cu_seqlens.shape, dtype=torch.int32)


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
