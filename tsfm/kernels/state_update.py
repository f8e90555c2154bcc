"""One step of the selective scan for many rows at once: how a model goes on token by token.

A table holds the states, one slot a running sequence. Row r reads the state of its source slot,
advances it by one token and writes it to its target slot, so that a rollout forks a patient by
index: several rows may read one slot. All reads happen before any write, whatever the overlap.

The equations are those of the scan with one token (`scan_inputs.py`). There is no gradient:
`selective_scan` with one token has it. float32 on the CPU is served by C++ (`native_state.py`) or
numba (`numba_state.py`), everything else by the plain torch form below, which is also the oracle.
As an operator of torch it is `tsfm::state_update`; code that is not being traced goes past the
operator, whose call costs several times what one row does.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import increment_version

from tsfm.errors import InputError
from tsfm.kernels import native_library, native_state
from tsfm.kernels.argument_checks import check_type, wrong_shape
from tsfm.kernels.backends import choose_backend
from tsfm.kernels.input_weights import weigh
from tsfm.kernels.own_types import own_types
from tsfm.kernels.scan_inputs import INPUTS

BACKENDS = ("native", "numba", "cuda", "torch")
_FLOAT = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
_GAP = "Tensor? gap, Tensor? gap_rate, Tensor? delta_bias"
# Rows up to which Python looks at their slots one by one.
_FEW_ROWS = 1024
_NAMES = ("u", "delta", "A", "B", "C", "D", "z", "gap", "gap_rate", "delta_bias")
# What the GPU kernels read in half width as well.
_ROWS = ("u", "delta", "B", "C", "z")


def state_update(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    gap: Tensor | None = None,
    gap_rate: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    input: str = "euler",
    source_slots: Tensor | None = None,
    target_slots: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Advance the states of some rows by one token, in place, and read them out.

    Types narrower than float32 are computed in float32.

    Args:
        state: Table of states, `(slots, D, N)`; for foh `(slots, D, 2N)`, whose second half is the
            input B u of the token before. Updated in place.
        u: Input, `(R, D)`.
        delta: Content-dependent step before bias and softplus, `(R, D)`.
        A: Rates, `(D, N)`, negative.
        B: Input gate, `(R, N)`.
        C: Read-out, `(R, N)`.
        D: Skip weight a channel, `(D,)`.
        z: Gate, `(R, D)`: the output is multiplied by silu(z).
        gap: Hours since the previous token of the row, `(R,)`, not negative.
        gap_rate: `(D,)`, 1/hours, not negative; given together with `gap`.
        delta_bias: Added to delta, `(D,)`.
        delta_softplus: Pass delta (with bias) through softplus.
        input: One of `tsfm.kernels.scan_inputs.INPUTS`.
        source_slots: Slot that each row reads, `(R,)` int32 or int64; may repeat. None: slot r.
        target_slots: Slot that each row writes, `(R,)`, all different. None: slot r.
        backend: One of `BACKENDS`; None chooses.

    Returns:
        y, `(R, D)`, in the type of u.

    Raises:
        InputError: An argument has the wrong shape, type, device or value, or wants a gradient; its
            place names it.
    """
    values = (u, delta, A, B, C, D, z, gap, gap_rate, delta_bias)
    plain = _check(state, values, input)
    for name, slots in (("source_slots", source_slots), ("target_slots", target_slots)):
        if slots is not None:
            _check_slots(name, slots, u)
        elif u.shape[0] > state.shape[0]:
            raise _out_of_range(name, state.shape[0])
    if backend is not None:
        _check_backend(backend, state, u)
    form = (delta_softplus, input, source_slots, target_slots, backend)
    if torch.compiler.is_compiling() or type(state) is not Tensor:
        return state_update_op(state, *values, *form)
    return _update(state, *values, *form, plain=plain)


def state_update_torch(
    state: Float[Tensor, "row channel carried"],
    u: Float[Tensor, "row channel"],
    delta: Float[Tensor, "row channel"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "row state"],
    C: Float[Tensor, "row state"],
    D: Float[Tensor, " channel"] | None,
    z: Float[Tensor, "row channel"] | None,
    gap: Float[Tensor, " row"] | None,
    gap_rate: Float[Tensor, " channel"] | None,
    delta_bias: Float[Tensor, " channel"] | None,
    delta_softplus: bool,
    input: str,
) -> tuple[Float[Tensor, "row channel carried"], Float[Tensor, "row channel"]]:
    """The step of rows with a state each in plain torch; returns the new states and y."""
    n_state = A.shape[1]
    step = delta if delta_bias is None else delta + delta_bias
    if delta_softplus:
        step = F.softplus(step)
    elapsed = step
    if gap is not None and gap_rate is not None:
        elapsed = step + gap.unsqueeze(-1) * gap_rate
    arrived = (u * step if input == "euler" else u).unsqueeze(-1) * B.unsqueeze(1)
    entered = arrived
    if input == "zoh":
        entered = weigh(A, elapsed, "held") * arrived
    elif input == "foh":
        falling, rising = (weigh(A, elapsed, side) for side in ("falling", "rising"))
        entered = falling * state[..., n_state:] + rising * arrived
    h = torch.exp(A * elapsed.unsqueeze(-1)) * state[..., :n_state] + entered
    y = (h @ C.unsqueeze(-1)).squeeze(-1)
    if D is not None:
        y = y + D * u
    if z is not None:
        y = y * F.silu(z)
    return (torch.cat([h, arrived], -1) if input == "foh" else h), y


@torch.library.custom_op(
    "tsfm::state_update",
    mutates_args=("state",),
    schema=f"(Tensor(a!) state, {_FLOAT}{_GAP}, bool delta_softplus, str input, "
    "Tensor? source_slots, Tensor? target_slots, str? backend) -> Tensor",
)
def state_update_op(state: Tensor, *arguments: Any) -> Tensor:
    """The step of arguments whose shapes fit; the values of the slots are checked here."""
    return _update(state, *arguments, plain=_check(state, arguments[: len(_NAMES)], arguments[11]))


@state_update_op.register_fake
def _(state: Tensor, *arguments: Any) -> Tensor:
    return arguments[0].new_empty(arguments[0].shape)


def _update(state: Tensor, *arguments: Any, plain: bool) -> Tensor:
    *values, softplus, kind, source_slots, target_slots, backend = arguments
    u = values[0]
    overlap = False
    if source_slots is not None or target_slots is not None:
        source_slots, target_slots, overlap = _check_values(
            source_slots, target_slots, u.shape[0], state.shape[0]
        )
    name = backend or _choose_backend(state, u, plain)
    if name == "torch":
        source = state[: u.shape[0]] if source_slots is None else state[source_slots]
        wide = _wide(torch.promote_types(state.dtype, u.dtype))
        given: list[Any] = [None if t is None else t.to(wide) for t in values]
        given += [softplus, kind]
        with own_types(u.device):
            after, y = state_update_torch(source.to(wide), *given)
        if target_slots is None:
            state[: u.shape[0]] = after
        else:
            state[target_slots] = after.to(state.dtype)
        return y.to(u.dtype)
    source = state
    if overlap:
        assert source_slots is not None
        source, source_slots = state[source_slots], None
    if name == "cuda":
        from tsfm.kernels import cuda_state_update as module
    elif name == "numba":
        from tsfm.kernels import numba_state as module
    else:
        module = native_state
    if not plain:
        values = [
            t if t is None or (name == "cuda" and key in _ROWS) else t.float()
            for key, t in zip(_NAMES, values, strict=True)
        ]
    given = [*values, softplus, kind, source_slots, target_slots]
    y = module.update(source, state, *given)
    if not state.is_inference():
        increment_version(state)
    return y if plain else y.to(u.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check(state: Tensor, values: tuple[Tensor | None, ...], kind: str) -> bool:
    """Whether all tensors are float32 on the CPU, once they are found to fit one another."""
    u, _, A, _, _, _, _, gap, gap_rate, _ = values
    assert u is not None
    assert A is not None
    if kind not in INPUTS:
        raise InputError(
            f"unknown input kind '{kind}'", code="unknown_scan_input", place="input",
            remedy=f"Use one of {', '.join(INPUTS)}.",
        )  # fmt: skip
    if u.dim() != 2:
        raise wrong_shape("u", u, "(R, D)")
    if A.dim() != 2 or not A.shape[1]:
        raise wrong_shape("A", A, "(D, N), with a state component or more")
    n_rows, n_channels = wide = u.shape
    n_state = A.shape[1]
    narrow, channels, learns = (n_rows, n_state), (n_channels,), torch.is_grad_enabled()
    carried = 2 * n_state if kind == "foh" else n_state
    if state.dim() != 3 or state.shape[1:] != (n_channels, carried):
        raise wrong_shape("state", state, f"(slots, {n_channels}, {carried})")
    shapes = (
        wide, wide, (n_channels, n_state), narrow, narrow, channels, wide, (n_rows,), channels,
        channels,
    )  # fmt: skip
    plain = state.dtype is torch.float32 and state.is_cpu
    for index, tensor in enumerate(values):
        if tensor is None:
            continue
        if tensor.shape != shapes[index]:
            raise wrong_shape(_NAMES[index], tensor, str(tuple(shapes[index])))
        if tensor.dtype is not torch.float32 or not tensor.is_cpu:
            plain = False
        if learns and tensor.requires_grad:
            raise _no_gradient(_NAMES[index])
    if learns and state.requires_grad:
        raise _no_gradient("state")
    if (gap is None) != (gap_rate is None):
        absent = "gap_rate" if gap_rate is None else "gap"
        raise InputError(
            f"{'gap' if gap_rate is None else 'gap_rate'} without {absent}",
            code=f"missing_{absent}", place=absent,
            remedy="Give the hours before each row and the channels' rates in 1/hours together.",
        )  # fmt: skip
    if not plain:
        for name, tensor in zip(("state", *_NAMES), (state, *values), strict=True):
            if tensor is not None:
                check_type(name, tensor, "u", u.device)
    return plain


def _no_gradient(name: str) -> InputError:
    return InputError(
        f"{name} wants a gradient and a state update has none", code="no_gradient", place=name,
        remedy="Use selective_scan with one token, or torch.no_grad().",
    )  # fmt: skip


def _check_slots(name: str, slots: Tensor, u: Tensor) -> None:
    if slots.shape != u.shape[:1]:
        raise wrong_shape(name, slots, f"({u.shape[0]},)")
    if slots.dtype not in (torch.int32, torch.int64):
        raise InputError(
            f"{name} holds {slots.dtype}, not int32 or int64", code="wrong_type", place=name,
            remedy="Convert it to int64 first.",
        )  # fmt: skip
    if slots.device != u.device:
        raise InputError(
            f"{name} is on {slots.device}, u on {u.device}", code="wrong_device", place=name,
            remedy="Move all tensors to one device.",
        )  # fmt: skip


def _check_values(
    source_slots: Tensor | None, target_slots: Tensor | None, n_rows: int, n_slots: int
) -> tuple[Tensor, Tensor, bool]:
    """Both slots of every row as int64, and whether one row writes what another one reads."""
    given = target_slots if source_slots is None else source_slots
    assert given is not None
    rows = torch.arange(n_rows, device=given.device)
    source = rows if source_slots is None else source_slots.long().contiguous()
    target = rows if target_slots is None else target_slots.long().contiguous()
    judge = _judge_few if given.is_cpu and n_rows <= _FEW_ROWS else _judge_many
    bad_source, bad_target, repeated, overlap = judge(source, target, n_slots)
    if bad_source or bad_target:
        raise _out_of_range("source_slots" if bad_source else "target_slots", n_slots)
    if repeated:
        raise InputError(
            "two rows write the same slot", code="duplicate_slots", place="target_slots",
            remedy="Give each row a target slot of its own.",
        )  # fmt: skip
    return source, target, overlap


def _judge_few(source: Tensor, target: Tensor, n_slots: int) -> tuple[bool, bool, bool, bool]:
    """Sources out of range, targets out of range, targets repeated, a target another's source.

    The same as `_judge_many`, whose dozen operations cost more than a step of some hundred rows.
    """
    sources, targets = source.tolist(), target.tolist()
    writer = {slot: row for row, slot in enumerate(targets)}
    return (
        not all(0 <= slot < n_slots for slot in sources),
        not all(0 <= slot < n_slots for slot in targets),
        len(writer) < len(targets),
        any(writer.get(slot, row) != row for row, slot in enumerate(sources)),
    )


def _judge_many(source: Tensor, target: Tensor, n_slots: int) -> tuple[bool, ...]:
    """See `_judge_few`."""
    last = max(n_slots - 1, 0)
    rows = torch.arange(len(target), device=target.device)
    writer = torch.full((last + 1,), -1, device=target.device)
    bounded = target.clamp(0, last)
    writer[bounded] = rows
    reads_of = writer[source.clamp(0, last)]
    # One transfer for all answers: on a GPU each would wait for the queue.
    flags = torch.stack(
        [
            ((source < 0) | (source > last)).any(),
            ((target < 0) | (target > last)).any(),
            (writer[bounded] != rows).any(),
            ((reads_of >= 0) & (reads_of != rows)).any(),
        ]
    )
    return tuple(flags.tolist())


def _out_of_range(name: str, n_slots: int) -> InputError:
    return InputError(
        f"{name} reaches outside the {n_slots} slots of state", code="slot_out_of_range",
        place=name, remedy="Slots count from 0.",
    )  # fmt: skip


def _choose_backend(state: Tensor, u: Tensor, plain: bool) -> str:
    if plain and state.is_contiguous():  # the same choice, without the time to explain it
        return "native" if native_library.available() else "numba"
    name = choose_backend("state_update", device=u.device, dtype=u.dtype).backend
    return name if _refusal(name, state, u) is None else "torch"


def _check_backend(name: str, state: Tensor, u: Tensor) -> None:
    if name not in BACKENDS:
        raise InputError(
            f"unknown backend '{name}'", code="unknown_backend", place="backend",
            remedy=f"Use one of {', '.join(BACKENDS)}.",
        )  # fmt: skip
    reason = _refusal(name, state, u)
    if reason is not None:
        raise InputError(
            f"the {name} backend {reason}; state is {state.dtype} on {state.device}, u {u.dtype}",
            code="backend_without_type", place="backend", remedy="Leave backend out.",
        )  # fmt: skip
    if name == "native":
        native_library.library()


def _refusal(name: str, state: Tensor, u: Tensor) -> str | None:
    """Why a backend does not serve these tensors, or None."""
    if name == "torch":
        return None
    device = "cuda" if name == "cuda" else "cpu"
    if state.device.type != device:
        return f"serves {device} devices"
    if u.dtype is torch.float64:
        return "has no float64"
    if state.dtype is not torch.float32 and (device == "cpu" or state.dtype is not torch.bfloat16):
        return "keeps states in float32" + (" or bfloat16" if device == "cuda" else "")
    return None if state.is_contiguous() else "wants contiguous states"
