"""The timeline model one token at a time: what sampled futures go on from.

A subject's past is read once, packed, and leaves a state of fixed size: event memory and Mamba
backbone. A future continues that state by naming its slot, so that many futures fork from one
subject without a copy of their past; only of what attention layers keep, if a model has them, each
has a copy. After each token the hidden state says how the next one is distributed; its code and its
time are independent given that state, its value hangs on its code.

The states are float32 tables of which a step changes the rows that it names; nothing here keeps
them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tsfm.batches.batch import Batch
from tsfm.errors import InputError
from tsfm.models.attention import KeyValueCache
from tsfm.models.mamba import Mamba, MambaState
from tsfm.models.timeline import TimelineModel
from tsfm.models.timeline_backbone import HybridBackbone, HybridState

# The bounds within which the heads are trained, see `NextEvent.loss`.
_LOG_STD = (-4.0, 3.0)
# What `EventEmbedding` and the backbone read of a token.
_READ = (
    "code", "value", "bin", "gap_hours", "since_hours", "repeated", "change", "increment", "rate",
    "lag_hours", "age_years", "age_known", "hour", "cu_seqlens", "time_s", "signal",
    "signal_vectors",
)  # fmt: skip


@dataclass(frozen=True)
class NextToken:
    """Distributions of the next token's code and time, a row each; given the state, independent.

    Attributes:
        code_logits: (R, V) scores of the codes before softmax.
        same_logit: (R,) logit of the chance that it stands at the same moment.
        log_wait_mean: (R,) mean of the logarithm of the wait in hours, if there is one.
        log_wait_log_std: (R,) logarithm of its standard deviation.
    """

    code_logits: Float[Tensor, "row code"]
    same_logit: Float[Tensor, " row"]
    log_wait_mean: Float[Tensor, " row"]
    log_wait_log_std: Float[Tensor, " row"]


@dataclass(frozen=True)
class TimelineState:
    """What a timeline model carries from token to token, a row (slot) each.

    Attributes:
        memory: (slot, width, 1) sums of the event memory.
        backbone: State of the backbone, with the same rows.
    """

    memory: Float[Tensor, "slot width 1"]
    backbone: MambaState | HybridState


@dataclass(frozen=True)
class TimelineStepper:
    """A timeline model that is continued.

    Attributes:
        model: Model in evaluation mode.
    """

    model: TimelineModel

    def __post_init__(self) -> None:
        """Refuse a model whose dropout is on: its futures would not repeat themselves."""
        if self.model.training:
            raise InputError(
                "the model is in training mode", code="model_in_training", place="model",
                remedy="Call model.eval() first.",
            )  # fmt: skip

    @property
    def n_codes(self) -> int:
        """Size of the vocabulary."""
        return self.model.config.n_codes

    @torch.no_grad()
    def prefill(
        self, batch: Batch, n_slots: int
    ) -> tuple[Float[Tensor, "subject model"], TimelineState]:
        """Read the past of some subjects.

        Args:
            batch: Packed tokens, at least one of each subject.
            n_slots: Rows of the state, at least one a subject.

        Returns:
            Hidden state at each subject's last token, and the state, whose first rows are the
            subjects' and whose others are empty.

        Raises:
            InputError: There are fewer slots than subjects.
        """
        if n_slots < batch.n_subjects:
            raise InputError(
                f"{n_slots} slots for {batch.n_subjects} subjects", code="too_few_slots",
                place="n_slots", remedy="Give a slot a subject, and one for each future.",
            )  # fmt: skip
        batch = self._here(batch)
        x = self.model.embedding(batch)
        x, memory = self.model.memory(x, batch.gap_hours, batch.cu_seqlens, return_state=True)
        times = {"seconds": batch.time_s} if isinstance(self.model.backbone, HybridBackbone) else {}
        hidden, backbone = self.model.backbone(
            x, batch.gap_hours, batch.cu_seqlens, return_state=True, **times
        )
        table = memory.new_zeros(n_slots, *memory.shape[1:])
        table[: len(memory)] = memory
        return hidden[batch.cu_seqlens[1:] - 1], TimelineState(table, backbone.with_rows(n_slots))

    @torch.no_grad()
    def step(
        self,
        tokens: Batch,
        state: TimelineState,
        source_slots: Int[Tensor, " row"],
        target_slots: Int[Tensor, " row"],
    ) -> Float[Tensor, "row model"]:
        """Take one more token of many futures.

        Args:
            tokens: One token a row.
            state: Changed in place.
            source_slots: Slot that each token continues; may repeat.
            target_slots: Slot that takes the state after each token, all different.

        Returns:
            Hidden state after each token, as one pass over its whole timeline gives it.

        Raises:
            InputError: The state is of another model, or the slots are not its rows; nothing of it
                has changed then.
        """
        if _form(state) != self._own_form:
            raise InputError(
                "the state is of another model", code="wrong_state", place="state",
                remedy="Use the state that `prefill` of this model returned.",
            )  # fmt: skip
        tokens = self._here(tokens)
        source, target = (slots.to(tokens.code.device) for slots in (source_slots, target_slots))
        x = self.model.embedding(tokens)
        x = self.model.memory.step(x, tokens.gap_hours, state.memory, source, target)
        backbone, held = self.model.backbone, state.backbone
        if isinstance(backbone, Mamba):
            assert isinstance(held, MambaState)
            return backbone.step(x, tokens.gap_hours, held, source, target)
        assert isinstance(held, HybridState)
        seconds = tokens.time_s
        return backbone.step(x, tokens.gap_hours, held, source, target, seconds=seconds)

    @torch.no_grad()
    def next_token(self, hidden: Float[Tensor, "row model"]) -> NextToken:
        """How the token after each hidden state is distributed."""
        head = self.model.next_event
        same, mean, log_std = head.time(hidden).unbind(-1)
        return NextToken(head.code(hidden), same, mean, log_std.clamp(*_LOG_STD))

    @torch.no_grad()
    def next_value(
        self, hidden: Float[Tensor, "row model"], code: Int[Tensor, " row"]
    ) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
        """Mean and standard deviation of the standardised value that a code carries."""
        head = self.model.next_event
        read = F.silu(hidden * head.query(code.to(hidden.device)))
        mean, log_std = head.value(read).unbind(-1)
        return mean, torch.exp(log_std.clamp(*_LOG_STD))

    @cached_property
    def _own_form(self) -> list[Any]:
        """Form of a state of this model, from the state that one token leaves."""
        model = self.model
        weight = model.next_event.code.weight
        gap, borders = weight.new_zeros(1), torch.tensor([0, 1], device=weight.device)
        with torch.no_grad():
            x = weight.new_zeros(1, model.config.backbone.d_model)
            x, memory = model.memory(x, gap, borders, return_state=True)
            _, backbone = model.backbone(x, gap, borders, return_state=True)
        return _form(TimelineState(memory, backbone))

    def _here(self, batch: Batch) -> Batch:
        """The batch on the model's own device."""
        device = self.model.next_event.code.weight.device
        if batch.code.device == device:
            return batch
        return replace(batch, **{name: getattr(batch, name).to(device) for name in _READ})


def _form(state: Any) -> list[Any]:
    """What states of one model have in common: parts, their kinds, and the sizes of a row."""
    held = state.backbone if isinstance(state, TimelineState) else None
    if not isinstance(held, MambaState | HybridState):
        return []
    parts = held.blocks if isinstance(held, MambaState) else held.layers
    form: list[Any] = [type(held), state.memory.shape[1:]]
    for part in parts:
        if isinstance(part, KeyValueCache):
            form.append((part.keys.shape[2:], part.values.shape[2:]))  # rows, then tokens
        else:
            form.append((part.conv.shape[1:], part.scan.shape[1:]))
    return form
