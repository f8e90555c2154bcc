"""One record without each of its events in turn: only what follows an event is read again.

A score without an event is that of a record in which it was never written. What came before is the
same, so its state is kept; what comes after is read again from there, many records in one packed
pass. Features that look back at the missing token (the gap, and the trend of its code) are those
that `make_batch` gives without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsfm.batches.batch import Batch
from tsfm.errors import ModelMismatch
from tsfm.evaluation.known_past import KnownPast, pack_tokens
from tsfm.kernels.selective_scan import selective_scan
from tsfm.models.event_memory import EventMemory
from tsfm.models.mamba import BlockState, Mamba, MambaState
from tsfm.tokens.event_tokens import SubjectTokens

TREND_FIELDS = ("since_hours", "repeated", "change", "increment", "rate")
"""Fields of a batch that look back at the token of the same code."""
_OF_RECORDS = ("cu_seqlens", "subject_id", "signal_vectors")


def hidden_without_each(past: KnownPast, max_tokens: int) -> Iterator[Tensor]:
    """Hidden states at the record's end without its first token, its second ... but the last.

    The record is walked in short stretches. From the state at a stretch's start the rest is read
    once for each token of the stretch, without it.

    Raises:
        ModelMismatch: The model has attention layers or no event memory.
    """
    model, batch, n = past.directory.model, past.batch, past.n
    if not (isinstance(model.backbone, Mamba) and isinstance(model.memory, EventMemory)):
        raise ModelMismatch(
            "occlusion goes on from states of Mamba, and this model has attention or no memory",
            code="no_occlusion", place="config.json", remedy="Use integrated gradients.",
        )  # fmt: skip
    x = model.embedding(batch)
    gaps, after, again, at_again = _changed_tokens(past)
    stretch = max(8, math.isqrt(n))
    memory, backbone = None, None
    for first in range(0, n - 1, stretch):
        chosen = np.arange(first, min(first + stretch, n - 1))
        for some in np.array_split(chosen, math.ceil(len(chosen) * (n - first) / max_tokens)):
            if not len(some):
                continue
            # Rows of `take`: the tokens from the stretch's start on, but for the one left out.
            rest = np.arange(first, n - 1)
            take = torch.from_numpy(rest + (rest >= some[:, None]))
            own, row = torch.arange(len(some)), torch.from_numpy(some)
            read, gap = x[take], batch.gap_hours[take]
            read[own, row - first] = after[row]
            gap[own, row - first] = gaps[row]
            has = at_again[row] > 0
            read[own[has], at_again[row][has] - 1 - first] = again[row][has]
            hidden, _, _ = _continue(past, read, gap, memory, backbone)
            yield hidden
        part = slice(first, first + stretch)
        _, memory, backbone = _continue(
            past, x[None, part], batch.gap_hours[None, part], memory, backbone
        )


def _changed_tokens(past: KnownPast) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How tokens read once another is left out.

    Returns:
        For each token but the last: the next token's gap and its embedding; the embedding of the
        next token of the same code, and that token's place, 0 where there is none or it is the
        next token itself.
    """
    batch, n, step = past.batch, past.n, past.directory.scale.step
    code = past.tokens.code[:n]
    order = np.lexsort((np.arange(n), code))
    same = code[order][1:] == code[order][:-1]
    before, later = np.full(n, -1), np.full(n, -1)
    before[order[1:][same]] = order[:-1][same]
    later[order[:-1][same]] = order[1:][same]
    left_out = np.arange(n - 1)
    gap = _after(past.tokens, step, left_out - 1, left_out + 1).gap_hours
    repeated = np.flatnonzero(later >= 0)
    trend = _after(past.tokens, step, before[repeated], later[repeated])
    changed = {name: getattr(trend, name) for name in TREND_FIELDS}

    at_next = torch.from_numpy(left_out + 1)
    fields = {name: getattr(batch, name)[at_next] for name in Batch.__dataclass_fields__
              if name not in _OF_RECORDS}  # fmt: skip
    fields["gap_hours"] = gap
    at_once = torch.from_numpy(later[repeated] == repeated + 1)
    for name in TREND_FIELDS:
        fields[name][torch.from_numpy(repeated)[at_once]] = changed[name][at_once]
    embed = past.directory.model.embedding
    after = embed(_loose(fields, batch))

    place = torch.from_numpy(later[repeated])
    fields = {name: getattr(batch, name)[place] for name in fields} | changed
    again = torch.zeros(n, after.shape[1])
    at_again = torch.zeros(n, dtype=torch.int64)
    apart = torch.from_numpy(repeated)[~at_once]
    if len(apart):
        again[apart] = embed(_loose(fields, batch))[~at_once]
        at_again[apart] = place[~at_once]
    return gap, after, again, at_again


def _after(tokens: SubjectTokens, step: NDArray[np.float32], before: NDArray, at: NDArray) -> Batch:
    """Tokens as they stand right behind others; -1 stands for none.

    Each pair is made a record of its own, of which the last token is kept.
    """
    has = before >= 0
    pairs = np.stack([before, at], 1)[np.stack([has, np.ones_like(has)], 1)]
    lengths = 1 + has.astype(np.int64)
    packed = pack_tokens(tokens, step, pairs, lengths)
    return _loose(
        {name: getattr(packed, name)[packed.cu_seqlens[1:] - 1]
         for name in Batch.__dataclass_fields__ if name not in _OF_RECORDS},
        packed,
    )  # fmt: skip


def _loose(fields: dict[str, Tensor], like: Batch) -> Batch:
    """Tokens of one subject that are no record; only the embedding may read them."""
    borders = torch.tensor([0, len(fields["code"])])
    return Batch(
        **fields, cu_seqlens=borders, subject_id=like.subject_id[:1],
        signal_vectors=like.signal_vectors,
    )  # fmt: skip


def _continue(
    past: KnownPast, x: Tensor, gap: Tensor, memory: Tensor | None, backbone: MambaState | None
) -> tuple[Tensor, Tensor, MambaState]:
    """Read equally long ends of one record from the state that its beginning left.

    Args:
        past: The record.
        x: (row, token, model) embeddings.
        gap: (row, token) hours.
        memory: State of the event memory, one row; None at the start.
        backbone: State of the backbone, one row; None at the start.

    Returns:
        Hidden state at each row's end, and the states there.
    """
    model, n_rows, n_tokens = past.directory.model, *x.shape[:2]
    borders = torch.arange(n_rows + 1) * n_tokens
    x, gap = x.flatten(0, 1), gap.flatten()
    if memory is not None and backbone is not None:
        memory = memory.expand(n_rows, -1, -1).contiguous()
        backbone = MambaState(tuple(
            BlockState(*(held.expand(n_rows, -1, -1).contiguous() for held in block))
            for block in backbone.blocks
        ))  # fmt: skip
    assert isinstance(model.memory, EventMemory)
    x, memory = _remember(model.memory, x, gap, borders, memory)
    hidden, left = model.backbone(x, gap, borders, state=backbone, return_state=True)
    return hidden[borders[1:] - 1], memory, left


def _remember(
    memory: EventMemory, x: Tensor, gap: Tensor, borders: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The event memory gone on from a state: decayed sums, as its `forward` has them from none."""
    written = memory.write(x)
    one = written.new_ones(len(written), 1)
    held, last = selective_scan(
        written, torch.zeros_like(written), memory.decay, one, one,
        gap=gap, gap_rate=torch.exp(memory.log_rate), input="impulse",
        cu_seqlens=borders, initial_state=state, return_final_state=True,
    )  # fmt: skip
    return x + memory.read(torch.asinh(held)), last
