"""What a backend of the selective scan is given and gives back.

The op (`scan_op.py`) checks and packs what the user passed; a backend sees one form only: all
sequences end to end, contiguous tensors of one floating type on one device.

    x     = delta + delta_bias
    Delta = softplus(x) if form.softplus else x          what the content asks to forget
    s     = Delta + gap_rate * gap                       the time the channel feels
    h_t   = exp(A s) h_{t-1} + input term                (see `ScanForm.input`)
    y_t   = (sum_n C_{t,n} h_{t,n} + D u_t) * silu(z_t)

With v_t = B_t u_t the input term is Delta v_t (euler), v_t (impulse), e v_t (zoh) and
(e - b) v_{t-1} + b v_t (foh), where e = (exp(A s) - 1) / A and b = (exp(A s) - 1 - A s) / (A^2 s).
Before a sequence's first token, v_{t-1} is that of its state, and v_t itself where there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

INPUTS = ("euler", "impulse", "zoh", "foh")
# Inputs with a row a token; the others are a channel, a sequence or a border.
WIDE_ROWS = ("u", "delta", "B", "C", "z")


class ScanInputs(NamedTuple):
    """Tensors of one packed scan; T tokens, D channels, N state components, S sequences.

    Attributes:
        u: Input, (T, D).
        delta: Step before bias and softplus, (T, D).
        A: Rates, (D, N), negative.
        B: Input gate, (T, N).
        C: Read-out, (T, N).
        D: Skip weight a channel, (D,).
        z: Gate before silu, (T, D).
        gap: Hours since the previous token, (T,); given together with `gap_rate`.
        gap_rate: (D,), 1/hours.
        delta_bias: (D,).
        initial_state: State before each sequence, (S, D, N); for foh also (S, D, 2N), whose second
            half is the input v of the token before.
        cu_seqlens: Borders of the sequences, (S + 1,) int32, from 0 to T, rising.
    """

    u: Float[Tensor, "token channel"]
    delta: Float[Tensor, "token channel"]
    A: Float[Tensor, "channel state"]
    B: Float[Tensor, "token state"]
    C: Float[Tensor, "token state"]
    D: Float[Tensor, " channel"] | None
    z: Float[Tensor, "token channel"] | None
    gap: Float[Tensor, " token"] | None
    gap_rate: Float[Tensor, " channel"] | None
    delta_bias: Float[Tensor, " channel"] | None
    initial_state: Float[Tensor, "sequence channel carried"] | None
    cu_seqlens: Int[Tensor, " borders"]

    def each(self, change: Callable[[str, Tensor], Tensor]) -> ScanInputs:
        """The same with every tensor that is there changed, given its name."""
        changed = [
            None if tensor is None else change(name, tensor)
            for name, tensor in zip(self._fields, self, strict=True)
        ]
        return self._make(changed)


class ScanGradients(NamedTuple):
    """Gradients of the floating fields of `ScanInputs`, in their order; None where not needed."""

    u: Tensor | None
    delta: Tensor | None
    A: Tensor | None
    B: Tensor | None
    C: Tensor | None
    D: Tensor | None
    z: Tensor | None
    gap: Tensor | None
    gap_rate: Tensor | None
    delta_bias: Tensor | None
    initial_state: Tensor | None


@dataclass(frozen=True)
class ScanForm:
    """What is computed, apart from the numbers.

    Attributes:
        softplus: Pass delta with its bias through softplus.
        input: One of `INPUTS`.
        reverse: Each sequence is walked from its last token to its first. Equal to flipping all
            inputs of a sequence (`gap` too) and flipping the output back; the final state is that
            after the token walked last.
    """

    softplus: bool
    input: str
    reverse: bool

    @property
    def carried(self) -> int:
        """Width of a final state in multiples of N: foh carries its last input as well."""
        return 2 if self.input == "foh" else 1


@runtime_checkable
class ScanBackend(Protocol):
    """A module with these two functions is a backend."""

    def forward(
        self, inputs: ScanInputs, form: ScanForm, *, final: bool, checkpoints: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Run the scan.

        Returns:
            y (T, D); the final states (S, D, N * form.carried) if `final`; whatever `backward`
            wants to find again, as one tensor, if `checkpoints`.
        """
        ...

    def backward(
        self,
        inputs: ScanInputs,
        form: ScanForm,
        checkpoints: Tensor,
        dy: Tensor | None,
        dfinal: Tensor | None,
        needs: tuple[bool, ...],
    ) -> ScanGradients:
        """Gradients of sum(dy * y) + sum(dfinal * final), at least those that `needs` asks for."""
        ...

    def checkpoint_numel(self, n_tokens: int, n_channels: int, n_state: int) -> int:
        """Elements of the float32 tensor that `forward` keeps for `backward`."""
        ...
