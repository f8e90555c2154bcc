"""State-space duality: the selective scan with one decay a head, as matrix products.

    s_t = Delta_t + gap_rate gap_t             the time the head feels
    H_t = exp(A s_t) H_{t-1} + w_t x_t B_t'    a state (P, N) a head; w_t by `input`, as in the scan
    y_t = (H_t C_t + D x_t) silu(z_t)

Where a head's channels share their decay, what token i sees of token j is one number a head,
exp(sum of A s over j < k <= i), and a chunk of tokens becomes a masked product of matrices, with a
state carried from chunk to chunk. Source: Dao and Gu 2024 (Mamba-2), sections 6 and 7; real time
and packed sequences are ours.

Those sums are added up from j on, each for itself, and only then exponentiated. A difference of two
running sums would lose gaps of seconds next to one of years, a ratio of two exponentials would be
0 / 0 after it. A new sequence is a mask, so chunks need not respect the borders of patients.

Everything is plain torch: any floating type, any device, autograd's gradients. Memory is some
(T, H, chunk_size) tensors. It is not Mamba-1's scan, whose channels and states all have decays of
their own; repeated over them, the two agree.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsfm.errors import InputError
from tsfm.kernels.argument_checks import check_borders, check_type, checked_borders, wrong_shape
from tsfm.kernels.input_weights import weigh
from tsfm.kernels.own_types import own_types

INPUTS = ("euler", "impulse", "zoh")


def ssd(
    x: Tensor,
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
    cu_seqlens: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    chunk_size: int = 64,
) -> Any:
    """Run packed `(T, H, P)` or batched `(B, L, H, P)` sequences of H heads with P channels each.

    Every floating argument gets its gradient, the initial state included, and gradients flow
    through the final state. Types narrower than float32 are computed in float32.

    Args:
        x: Input, `(T, H, P)` with `cu_seqlens`, or `(B, L, H, P)`.
        delta: Content-dependent step before bias and softplus, `(T, H)` or `(B, L, H)`.
        A: Rates, `(H,)`, negative.
        B: Input gate, `(T, N)` or `(B, L, N)` for all heads; or `(T, G, N)` or `(B, L, G, N)` for G
            groups of neighbouring heads.
        C: Read-out, shape of `B`.
        D: Skip weight a head, `(H,)`.
        z: Gate, shape of `x`: the output is multiplied by silu(z).
        gap: Hours since the previous token of the same sequence, `(T,)` or `(B, L)`, not negative.
        gap_rate: kappa, `(H,)`, 1/hours, not negative; given together with `gap`.
        delta_bias: Added to delta, `(H,)`.
        delta_softplus: Pass delta (with bias) through softplus.
        input: One of `INPUTS`, see `tsfm.kernels.selective_scan`.
        cu_seqlens: Borders of the packed sequences, `(S + 1,)`, from 0 to T. None with `(T, H, P)`
            means one sequence.
        initial_state: State before each sequence, `(S, H, P, N)`.
        return_final_state: Also return the state after each sequence, `(S, H, P, N)`.
        chunk_size: Tokens a chunk. Work within chunks grows with it, steps between them shrink.

    Returns:
        y with the shape and type of `x`, or `(y, final_state)`, the state in float32 (or float64).

    Raises:
        InputError: An argument has the wrong shape, type, device or value; its place names it.
    """
    borders = _check(
        x, delta, A, B, C, D, z, gap, gap_rate, delta_bias, initial_state, cu_seqlens, input,
        chunk_size,
    )  # fmt: skip
    batch = x.dim() - 3
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32

    def packed(tensor: Tensor) -> Tensor:
        return tensor.to(wide).flatten(0, batch)

    rates = A.to(wide)
    step = packed(delta)
    if delta_bias is not None:
        step = step + delta_bias.to(wide)
    if delta_softplus:
        step = F.softplus(step)
    elapsed = step
    if gap is not None and gap_rate is not None:
        elapsed = step + packed(gap).unsqueeze(-1) * gap_rate.to(wide)
    log_decay = rates * elapsed
    rows = packed(x)
    if input == "euler":
        values = rows * step.unsqueeze(-1)
    elif input == "zoh":
        values = rows * weigh(rates.unsqueeze(-1), elapsed, "held")
    else:
        values = rows
    if B.dim() < x.dim():
        B, C = B.unsqueeze(-2), C.unsqueeze(-2)
    state = None if initial_state is None else initial_state.to(wide)
    with own_types(x.device):
        y, final = _scan(
            values, log_decay, packed(B), packed(C), borders, state, return_final_state,
            min(chunk_size, len(rows)),
        )  # fmt: skip
    if D is not None:
        y = y + rows * D.to(wide).unsqueeze(-1)
    if z is not None:
        y = y * F.silu(packed(z))
    y = y.to(x.dtype).view(x.shape)
    return (y, final) if return_final_state else y


def segment_sums(a: Float[Tensor, "*rows token"]) -> Float[Tensor, "*rows token token"]:
    """Sum of a_k over j < k <= i at [..., i, j]; zero where j >= i.

    Each column is summed from its own start, so that nothing large is ever taken away again.
    """
    n_tokens = a.shape[-1]
    later = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=a.device).tril(-1)
    return a.unsqueeze(-1).masked_fill(~later, 0.0).cumsum(-2)


class _Chunks(NamedTuple):
    """Where tokens and the ends of sequences lie: chunk, and place within the chunk."""

    sequence: Int[Tensor, "chunk token"]  # S for the padding behind the last token
    carried: Int[Tensor, " chunk"]  # sequence whose state enters the chunk, -1 for none
    first: tuple[Tensor, Tensor]  # of each sequence's first token, both (S,)
    last: tuple[Tensor, Tensor]


def _cut(borders: Tensor, n_tokens: int, size: int) -> _Chunks:
    n_chunks = -(-n_tokens // size)
    starts, ends = borders[:-1].long(), borders[1:].long()
    tokens = torch.arange(n_chunks * size, device=borders.device)
    sequence = torch.searchsorted(ends, tokens, right=True).view(n_chunks, size)
    carried = F.pad(sequence[:-1, -1], (1, 0), value=-1)
    return _Chunks(
        sequence, carried, (starts // size, starts % size), ((ends - 1) // size, (ends - 1) % size)
    )


def _scan(
    values: Float[Tensor, "token head channel"],
    log_decay: Float[Tensor, "token head"],
    B: Float[Tensor, "token group state"],
    C: Float[Tensor, "token group state"],
    borders: Int[Tensor, " borders"],
    initial: Float[Tensor, "sequence head channel state"] | None,
    keep_final: bool,
    size: int,
) -> tuple[
    Float[Tensor, "token head channel"], Float[Tensor, "sequence head channel state"] | None
]:
    n_tokens, n_heads = log_decay.shape
    n_groups = B.shape[1]
    at = _cut(borders, n_tokens, size)
    n_chunks = len(at.sequence)
    padding = n_chunks * size - n_tokens

    def chunked(tensor: Tensor) -> Tensor:
        """(chunk, head or group, token, ...)"""
        if padding:
            tensor = torch.cat([tensor, tensor.new_zeros(padding, *tensor.shape[1:])])
        return tensor.view(n_chunks, size, *tensor.shape[1:]).transpose(1, 2)

    def grouped(tensor: Tensor) -> Tensor:
        return tensor.unflatten(1, (n_groups, n_heads // n_groups))

    values, a, B, C = chunked(values), chunked(log_decay), chunked(B), chunked(C)
    sums = segment_sums(a)
    order = torch.ones(size, size, dtype=torch.bool, device=a.device).tril()
    same = at.sequence.unsqueeze(-1) == at.sequence.unsqueeze(-2)
    seen = _decay(sums, (same & order).unsqueeze(1))
    # What a state from before the chunk is worth at each token, if it is of the same sequence.
    entered = _decay(
        sums[..., 0] + a[..., :1], (at.sequence == at.carried.unsqueeze(-1)).unsqueeze(1)
    )

    scores = C @ B.transpose(-1, -2)
    y = (grouped(seen) * scores.unsqueeze(2)).flatten(1, 2) @ values
    ends = torch.einsum("cghtp,cgtn->cghpn", grouped(values * seen[..., -1, :].unsqueeze(-1)), B)
    ends = ends.flatten(1, 2)
    given = None
    if initial is not None:
        chunk, place = at.first
        here = torch.arange(len(chunk), device=chunk.device).unsqueeze(-1) == at.sequence[chunk]
        given = _decay(
            sums[chunk, :, :, place] + a[chunk, :, place].unsqueeze(-1), here.unsqueeze(1)
        )
        read = torch.einsum("sgtn,sghpn->sghtp", C[chunk], grouped(initial)).flatten(1, 2)
        y = y.index_add(0, chunk, read * given.unsqueeze(-1))
        ends = ends.index_add(0, chunk, initial * given[..., -1, None, None])
    carry = _carry(ends, entered[..., -1])
    if n_chunks > 1:
        read = torch.einsum("cgtn,cghpn->cghtp", C, grouped(carry)).flatten(1, 2)
        y = y + read * entered.unsqueeze(-1)
    y = y.transpose(1, 2).flatten(0, 1)[:n_tokens]
    if not keep_final:
        return y, None

    chunk, place = at.last
    weighted = grouped(values[chunk] * seen[chunk, :, place].unsqueeze(-1))
    final = torch.einsum("sghtp,sgtn->sghpn", weighted, B[chunk]).flatten(1, 2)
    final = final + carry[chunk] * entered[chunk, :, place, None, None]
    if given is not None and initial is not None:
        rows = torch.arange(len(chunk), device=chunk.device)
        left = given[rows, :, place] * (at.first[0] == chunk).unsqueeze(-1)
        final = final + initial * left[..., None, None]
    return y, final


def _decay(log_decay: Tensor, visible: Bool[Tensor, "*shape"]) -> Tensor:
    """exp where a token is seen, zero where it is not, without a gradient from there."""
    return log_decay.masked_fill(~visible, -torch.inf).exp()


def _carry(
    ends: Float[Tensor, "chunk head channel state"], through: Float[Tensor, "chunk head"]
) -> Float[Tensor, "chunk head channel state"]:
    """State that enters each chunk, from what each adds at its end and lets through."""
    state = torch.zeros_like(ends[0])
    states = [state]
    for added, share in zip(ends[:-1].unbind(), through[:-1, :, None, None].unbind(), strict=True):
        state = share * state + added
        states.append(state)
    return torch.stack(states)


def _check(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    gap: Tensor | None, gap_rate: Tensor | None, delta_bias: Tensor | None,
    initial_state: Tensor | None, cu_seqlens: Tensor | None, input: str, chunk_size: int,
) -> Tensor:  # fmt: skip
    """Borders of the sequences, once every argument is found to fit the others."""
    if input not in INPUTS:
        raise InputError(
            f"unknown input kind '{input}'", code="unknown_scan_input", place="input",
            remedy=f"Use one of {', '.join(INPUTS)}.",
        )  # fmt: skip
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise InputError(
            f"chunks of {chunk_size!r} tokens", code="bad_chunk_size", place="chunk_size",
            remedy="Use a whole number of tokens, at least one.",
        )  # fmt: skip
    if x.dim() not in (3, 4) or x.numel() == 0:
        raise wrong_shape("x", x, "(T, H, P) or (B, L, H, P), not empty")
    *rows, n_heads, n_channels = x.shape
    if B.dim() not in (x.dim() - 1, x.dim()):
        raise wrong_shape("B", B, "(.., N) or (.., G, N)")
    groups, n_state = tuple(B.shape[len(rows) : -1]), B.shape[-1]
    if groups and (groups[0] == 0 or n_heads % groups[0]):
        raise wrong_shape("B", B, f"a number of groups that divides {n_heads} heads")
    borders = _borders(x, cu_seqlens)
    shapes = {
        "x": (x, tuple(x.shape)),
        "delta": (delta, (*rows, n_heads)),
        "A": (A, (n_heads,)),
        "B": (B, (*rows, *groups, n_state)),
        "C": (C, (*rows, *groups, n_state)),
        "D": (D, (n_heads,)),
        "z": (z, tuple(x.shape)),
        "gap": (gap, tuple(rows)),
        "gap_rate": (gap_rate, (n_heads,)),
        "delta_bias": (delta_bias, (n_heads,)),
        "initial_state": (initial_state, (len(borders) - 1, n_heads, n_channels, n_state)),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise wrong_shape(name, tensor, str(shape))
        check_type(name, tensor, "x", x.device)
    if (gap is None) != (gap_rate is None):
        absent = "gap_rate" if gap_rate is None else "gap"
        raise InputError(
            f"{'gap' if gap_rate is None else 'gap_rate'} without {absent}",
            code=f"missing_{absent}", place=absent,
            remedy="Give the hours before each token and the heads' rates in 1/hours together.",
        )  # fmt: skip
    return borders


def _borders(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    if cu_seqlens is None:
        rows, length = (1, x.shape[0]) if x.dim() == 3 else x.shape[:2]
        return torch.arange(0, rows * length + 1, length, device=x.device, dtype=torch.int32)
    if x.dim() == 4:
        raise InputError(
            "cu_seqlens with a batched input", code="bad_cu_seqlens", place="cu_seqlens",
            remedy="Pass packed (T, H, P) tensors.",
        )  # fmt: skip
    return checked_borders(check_borders(cu_seqlens, x.shape[0], x.device), x.shape[0])
