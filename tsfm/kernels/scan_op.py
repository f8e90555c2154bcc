"""`tsfm::selective_scan` as one operator of torch: what `torch.compile` and `torch.export` see.

Forward and backward are both operators, with shapes for tracing and a registered derivative. A
Python operator costs some 60 microseconds a call, a tenth of a whole scan, so code that is not
being traced takes the short way: the same two functions behind a plain `autograd.Function`.

The backends that are made of differentiable torch (`torch_scan.py`) save nothing but the inputs
here and run again for the gradient; called directly they are left to autograd, second derivatives
included.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tsfm.kernels import torch_scan
from tsfm.kernels.argument_checks import check_borders, first_derivative_only
from tsfm.kernels.scan_inputs import ScanBackend, ScanForm, ScanGradients, ScanInputs

_N_TENSORS = len(ScanInputs._fields)
_TENSORS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? gap, "
    "Tensor? gap_rate, Tensor? delta_bias, Tensor? initial_state, Tensor cu_seqlens"
)
_FORM = "bool delta_softplus, str input, bool reverse"


def run(
    inputs: ScanInputs, form: ScanForm, backend: str, *, final: bool
) -> tuple[Tensor, Tensor | None]:
    """Scan with gradients, by the operator if torch is tracing and past it if not.

    Args:
        inputs: Packed tensors on one device.
        form: What is computed.
        backend: A name that `choose_backend` knows.
        final: Whether the final states are wanted.

    Returns:
        y, and the final states if wanted.
    """
    tracing = torch.compiler.is_compiling() or type(inputs.u) not in (Tensor, torch.nn.Parameter)
    if not tracing and backend in torch_scan.RECURRENCES:
        y, state = torch_scan.scan(inputs, form, backend)
        return y, state if final else None
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    arguments = (form.softplus, form.input, form.reverse, final, learns, backend)
    if tracing:
        y, state, _ = selective_scan_op(*inputs, *arguments)
    elif learns:
        y, state = _Scan.apply(*inputs, *arguments)
    else:
        y, state, _ = _forward(*inputs, *arguments)
    return y, state if final else None


def _backend(name: str) -> ScanBackend:
    if name == "native":
        from tsfm.kernels import native_scan

        return native_scan
    if name == "cuda":
        from tsfm.kernels import cuda_scan

        return cuda_scan
    from tsfm.kernels import mamba_ssm_scan

    return mamba_ssm_scan


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs = ScanInputs(*arguments[:_N_TENSORS])
    softplus, kind, reverse, final, learns, name = arguments[_N_TENSORS:]
    form = ScanForm(softplus, kind, reverse)
    saved = None
    if name in torch_scan.RECURRENCES:
        y, state = torch_scan.scan(inputs, form, name)
    else:
        y, state, saved = _backend(name).forward(inputs, form, final=final, checkpoints=learns)
    # An operator may not return one tensor twice: each absent one is an empty tensor of its own.
    absent = inputs.A.new_empty
    return (
        y,
        state if final and state is not None else absent(0),
        absent(0) if saved is None else saved,
    )


def _backward(
    inputs: ScanInputs,
    form: ScanForm,
    name: str,
    saved: Tensor,
    dy: Tensor | None,
    dfinal: Tensor | None,
    needs: tuple[bool, ...],
) -> ScanGradients:
    if name not in torch_scan.RECURRENCES:
        return _backend(name).backward(inputs, form, saved, dy, dfinal, needs)
    return _in_own_thread(lambda: _run_again(inputs, form, name, dy, dfinal, needs))


def _run_again(
    inputs: ScanInputs,
    form: ScanForm,
    name: str,
    dy: Tensor | None,
    dfinal: Tensor | None,
    needs: tuple[bool, ...],
) -> ScanGradients:
    leaves = inputs.each(lambda _, t: t.detach().requires_grad_(t.is_floating_point()))
    y, state = torch_scan.scan(leaves, form, name)
    reached = [(out, g) for out, g in ((y, dy), (state, dfinal)) if g is not None]
    wanted = [t for t, need in zip(leaves, needs, strict=False) if t is not None and need]
    outputs, given = zip(*reached, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, given, materialize_grads=True))
    return ScanGradients._make(
        next(found) if t is not None and need else None
        for t, need in zip(leaves, needs, strict=False)
    )


def _in_own_thread(work: Callable[[], ScanGradients]) -> ScanGradients:
    """Run where autograd is on: inside an operator it is off for the thread, whatever is asked."""
    done: list[ScanGradients] = []
    failed: list[BaseException] = []

    def run_work() -> None:
        try:
            done.append(work())
        except BaseException as error:  # raised again by the thread that waits
            failed.append(error)

    thread = threading.Thread(target=run_work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        y, state, saved = _forward(*arguments)
        ctx.save_for_backward(*arguments[:_N_TENSORS], saved)
        ctx.options = arguments[_N_TENSORS:]
        ctx.set_materialize_grads(False)
        return y, state

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        *inputs, saved = ctx.saved_tensors
        softplus, kind, reverse, final, _, name = ctx.options
        form = ScanForm(softplus, kind, reverse)
        dy, dstate = gradients
        needs = ctx.needs_input_grad[: len(ScanGradients._fields)]
        found = _backward(
            ScanInputs(*inputs), form, name, saved, dy, dstate if final else None, needs
        )
        kept = (g if need else None for g, need in zip(found, needs, strict=True))
        return *kept, None, *(None for _ in ctx.options)


@torch.library.custom_op(
    "tsfm::selective_scan",
    mutates_args=(),
    schema=f"({_TENSORS}, {_FORM}, bool keep_final, bool keep_checkpoints, str backend) "
    "-> (Tensor, Tensor, Tensor)",
)
def selective_scan_op(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The scan of packed tensors; empty tensors stand for a final state or checkpoints not kept."""
    # While torch traces, the borders have no values to check; a kernel must not meet bad ones.
    inputs = ScanInputs(*arguments[:_N_TENSORS])
    check_borders(inputs.cu_seqlens, inputs.u.shape[0], inputs.u.device)
    return _forward(*arguments)


@selective_scan_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs = ScanInputs(*arguments[:_N_TENSORS])
    softplus, kind, reverse, final, learns, name = arguments[_N_TENSORS:]
    (n_tokens, n_channels), n_state = inputs.u.shape, inputs.A.shape[1]
    carried = n_state * ScanForm(softplus, kind, reverse).carried
    states = (inputs.cu_seqlens.shape[0] - 1, n_channels, carried) if final else (0,)
    kept = 0
    if learns and name not in torch_scan.RECURRENCES:
        kept = _backend(name).checkpoint_numel(n_tokens, n_channels, n_state)
    like = inputs.A
    return inputs.u.new_empty(inputs.u.shape), like.new_empty(states), like.new_empty(kept)


@torch.library.custom_op(
    "tsfm::selective_scan_backward",
    mutates_args=(),
    schema=f"({_TENSORS}, Tensor saved, Tensor dy, Tensor? dfinal, {_FORM}, str backend) "
    "-> Tensor[]",
)
def selective_scan_backward_op(*arguments: Any) -> list[Tensor]:
    """Gradients of all floating inputs that are there, in their order."""
    inputs = ScanInputs(*arguments[:_N_TENSORS])
    saved, dy, dfinal, softplus, kind, reverse, name = arguments[_N_TENSORS:]
    needs = tuple(t is not None for t in inputs[:-1])
    form = ScanForm(softplus, kind, reverse)
    found = _backward(inputs, form, name, saved, dy, dfinal, needs)
    return [g for g in found if g is not None]


@selective_scan_backward_op.register_fake
def _(*arguments: Any) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in arguments[: _N_TENSORS - 1] if t is not None]


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs[:_N_TENSORS], output[2])
    ctx.options = inputs[_N_TENSORS:]


def _op_backward(ctx: Any, dy: Tensor, dstate: Tensor, _: Tensor) -> Any:
    *inputs, saved = ctx.saved_tensors
    softplus, kind, reverse, final, _, name = ctx.options
    found = iter(
        selective_scan_backward_op(
            *inputs, saved, dy, dstate if final else None, softplus, kind, reverse, name
        )
    )
    gradients = [None if t is None else next(found) for t in inputs[:-1]]
    return *gradients, None, *(None for _ in ctx.options)


selective_scan_op.register_autograd(_op_backward, setup_context=_setup_context)
