"""Batches from a token store, and where in them a prediction is asked for.

Whole subjects are packed until a token budget is full; nobody is cut and nobody is padded. A
subject longer than the budget is a batch of its own. The order is a seeded shuffle that depends on
the epoch alone, so an interrupted training goes on with the batches it had not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tsfm import schema
from tsfm.batches.batch import SECONDS_PER_HOUR, Batch, make_batch
from tsfm.errors import InputError
from tsfm.tokens.asked_frame import read_asked
from tsfm.tokens.event_tokens import SubjectTokens
from tsfm.tokens.token_store import TokenStore
from tsfm.tokens.value_scale import ValueScale

NONE, EVENT, COMPETING = 0, 1, 2
_OUTCOME = {None: NONE, "none": NONE, "censored": NONE, "event": EVENT, "competing": COMPETING}


@dataclass(frozen=True)
class PredictionPoints:
    """Positions of a batch at which a prediction is made.

    Attributes:
        position: (P,) index of the last token known at the prediction time, int64.
        elapsed_hours: (P,) hours from that token to the prediction time.
        outcome: (P,) `NONE` (known event-free), `EVENT` or `COMPETING`, int64.
        days: (P,) days from the prediction time to the outcome, or to the end of knowledge.
        row: (P,) row of the cohort frame that each point answers, int64.
    """

    position: Int[Tensor, " point"]
    elapsed_hours: Float[Tensor, " point"]
    outcome: Int[Tensor, " point"]
    days: Float[Tensor, " point"]
    row: Int[Tensor, " point"]

    def __len__(self) -> int:
        """Number of points."""
        return self.position.shape[0]


@dataclass(frozen=True)
class CohortIndex:
    """Prediction times of a cohort, found by subject.

    Attributes:
        time_s: (R,) prediction times in seconds, one a cohort row.
        outcome: (R,) outcome codes.
        days: (R,) days to the outcome; NaN where it is not asked for.
        rows: Subject id to its rows.
    """

    time_s: NDArray[np.float64]
    outcome: NDArray[np.int64]
    days: NDArray[np.float32]
    rows: Mapping[int, NDArray[np.int64]]

    @classmethod
    def create(cls, cohort: pl.DataFrame, *, outcomes: bool = True) -> CohortIndex:
        """Index a frame with the columns of `schema.COHORT`; row order is kept.

        Args:
            cohort: Rows that are asked about.
            outcomes: Read outcomes and days; else every row is as one of which nothing is known.

        Raises:
            FormatError: See `read_asked`.
            InputError: `bad_outcome`: an outcome is none of `schema.COHORT`.
        """
        cohort = read_asked(cohort, *(("outcome", "outcome_days") if outcomes else ()))
        outcome = np.zeros(cohort.height, np.int64)
        days = np.full(cohort.height, np.nan, np.float32)
        if outcomes:
            outcome = _outcome_codes(cohort["outcome"])
            days = cohort["outcome_days"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        rows: dict[int, list[int]] = {}
        for row, subject in enumerate(cohort[schema.SUBJECT_ID].to_list()):
            rows.setdefault(subject, []).append(row)
        return cls(
            time_s=cohort[schema.PREDICTION_TIME].cast(pl.Int64).to_numpy() / 1e6,
            outcome=outcome,
            days=days.astype(np.float32),
            rows={subject: np.array(found, np.int64) for subject, found in rows.items()},
        )

    def points_in(self, batch: Batch) -> PredictionPoints:
        """Prediction points of a batch's subjects that have at least one token by then."""
        borders = batch.cu_seqlens.numpy()
        times = batch.time_s.numpy()
        positions: list[NDArray[np.int64]] = []
        answered: list[NDArray[np.int64]] = []
        for index, subject in enumerate(batch.subject_id.tolist()):
            rows = self.rows.get(subject)
            if rows is None:
                continue
            own = times[borders[index] : borders[index + 1]]
            # Equal microseconds are equal seconds: a tie needs no tolerance, and one of half a
            # microsecond would let in the next microsecond after 2106.
            last = np.searchsorted(own, self.time_s[rows], side="right") - 1
            seen = last >= 0
            positions.append(borders[index] + last[seen])
            answered.append(rows[seen])
        position = np.concatenate(positions) if positions else np.zeros(0, np.int64)
        row = np.concatenate(answered) if answered else np.zeros(0, np.int64)
        elapsed = np.maximum(self.time_s[row] - times[position], 0.0) / SECONDS_PER_HOUR
        return PredictionPoints(
            position=torch.from_numpy(position),
            elapsed_hours=torch.from_numpy(elapsed.astype(np.float32)),
            outcome=torch.from_numpy(self.outcome[row]),
            days=torch.from_numpy(self.days[row]),
            row=torch.from_numpy(row),
        )


def _is_text(column: pl.Series) -> bool:
    return column.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null)


def _outcome_codes(outcome: pl.Series) -> NDArray[np.int64]:
    found = outcome.cast(pl.String, strict=False).to_list() if _is_text(outcome) else [""]
    if strange := set(found) - _OUTCOME.keys():
        raise InputError(
            f"{len(strange)} outcomes are none of event, competing, none and censored",
            code="bad_outcome", place="cohort", remedy="Spell them so.",
        )  # fmt: skip
    return np.array([_OUTCOME[one] for one in found], np.int64)


class TokenDataset:
    """Subjects of one split of a token store.

    Args:
        store: Open store.
        split: One of `schema.SPLITS`, or None for all.
        subjects: Only these subjects, if given.
    """

    def __init__(
        self, store: TokenStore, split: str | None, *, subjects: set[int] | None = None
    ) -> None:
        """Select the subjects."""
        table = store.subjects.filter(pl.col("length") > 0)
        if split is not None:
            table = table.filter(pl.col("split") == split)
        if subjects is not None:
            table = table.filter(pl.col(schema.SUBJECT_ID).is_in(list(subjects)))
        self.store = store
        self.start = table["start"].to_numpy()
        self.length = table["length"].to_numpy()
        self.subject_id = table[schema.SUBJECT_ID].to_numpy()
        self.birth_s = table["birth_s"].to_numpy()

    def __len__(self) -> int:
        """Number of subjects."""
        return len(self.subject_id)

    @property
    def n_tokens(self) -> int:
        """Tokens of all subjects."""
        return int(self.length.sum())

    def batch(self, chosen: NDArray[np.int64]) -> Batch:
        """Pack some subjects, given by their index."""
        picks = [
            np.arange(start, start + length, dtype=np.int64)
            for start, length in zip(
                self.start[chosen].tolist(), self.length[chosen].tolist(), strict=True
            )
        ]
        at = np.concatenate(picks)
        fields = self.store.fields
        return make_batch(
            code=fields["code"][at],
            value=fields["value"][at],
            bin=fields["bin"][at],
            time_s=fields["time_s"][at],
            lag_hours=fields["lag_hours"][at],
            lengths=self.length[chosen],
            subject_id=self.subject_id[chosen],
            birth_s=self.birth_s[chosen],
            step=self.store.scale.step,
            signal=fields["signal"][at],
            signals=self.store.signals,
        )

    def plan(self, *, max_tokens: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
        """Subjects of each batch of an epoch; the same arguments give the same plan."""
        order = np.random.default_rng([seed, epoch]).permutation(len(self))
        return pack(order, self.length, max_tokens)

    def batches(self, *, max_tokens: int) -> Iterator[Batch]:
        """All subjects once, in stored order."""
        for chosen in pack(np.arange(len(self)), self.length, max_tokens):
            yield self.batch(chosen)


def pack(
    order: NDArray[np.int64], lengths: NDArray[np.int64], max_tokens: int
) -> list[NDArray[np.int64]]:
    """Cut an order of subjects into batches of at most `max_tokens`, never cutting a subject."""
    if max_tokens < 1:
        raise InputError("no room for a token", code="bad_max_tokens", place="max_tokens")
    packs: list[list[int]] = []
    filled = max_tokens + 1
    for index in order.tolist():
        if filled + lengths[index] > max_tokens:
            packs.append([])
            filled = 0
        packs[-1].append(index)
        filled += int(lengths[index])
    return [np.array(chosen, np.int64) for chosen in packs]


def batches_of(tokens: SubjectTokens, scale: ValueScale, *, max_tokens: int) -> Iterator[Batch]:
    """Batches straight from tokenised events, without a store: the way of nightly scoring."""
    lengths = np.diff(tokens.start)
    for chosen in pack(np.arange(len(lengths)), lengths, max_tokens):
        part = slice(tokens.start[chosen[0]], tokens.start[chosen[-1] + 1])
        yield make_batch(
            code=tokens.code[part],
            value=tokens.value[part],
            bin=tokens.bin[part],
            time_s=tokens.time_s[part],
            lag_hours=tokens.lag_hours[part],
            lengths=lengths[chosen],
            subject_id=tokens.subject_id[chosen],
            birth_s=tokens.birth_s[chosen],
            step=scale.step,
            signal=tokens.signal[part],
            signals=tokens.signals,
        )
