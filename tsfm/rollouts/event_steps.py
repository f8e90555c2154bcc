"""What a sampled token tells the model: gaps, trends, age and hour as time goes on.

A batch works its features out from a whole history (`tsfm.batches.batch`). A future that grows by
one token at a time needs of its past only the last time and value of every code; these stand in two
tables, a row a running future, filled from the subject's history when a future starts in that row.
The features that come out are those that `make_batch` would give.

Two things no head of the model says. A code carries a value if training saw values of it. And a
token becomes known as long after its fact as the subject's last token of that code did, at once if
there was none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tsfm.batches.batch import SECONDS_PER_HOUR, SECONDS_PER_YEAR, Batch
from tsfm.tokens.signal_vectors import NO_SIGNAL
from tsfm.tokens.value_scale import ValueScale

_SECONDS_PER_DAY = 86400.0
_HOURS_PER_DAY = 24.0


@dataclass(frozen=True)
class Histories:
    """What futures need of the subjects' histories.

    Attributes:
        subject_id: (S,) subjects.
        length: (S,) tokens.
        time_s: (S,) time of the last token.
        age_years: (S,) age then, 0 where the birth is unknown.
        age_known: (S,) 1 where it is known.
        start: (S + 1,) borders of the subjects' codes in what follows.
        code: (C,) each code that a subject has, ascending.
        code_time_s: (C,) time of its last token.
        code_value: (C,) that token's value, NaN if it has none.
        code_lag_hours: (C,) that token's lag.
        key: (C,) subject and code as one number, ascending: subject times `n_codes` plus code.
        n_codes: Size of the vocabulary.
    """

    subject_id: NDArray[np.int64]
    length: NDArray[np.int64]
    time_s: NDArray[np.float64]
    age_years: NDArray[np.float64]
    age_known: NDArray[np.float32]
    start: NDArray[np.int64]
    code: NDArray[np.int64]
    code_time_s: NDArray[np.float64]
    code_value: NDArray[np.float32]
    code_lag_hours: NDArray[np.float32]
    key: NDArray[np.int64]
    n_codes: int

    @classmethod
    def create(cls, batch: Batch, n_codes: int) -> Histories:
        """Look through packed histories, none of them empty."""
        borders = batch.cu_seqlens.numpy()
        lengths = np.diff(borders)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        code = batch.code.numpy()
        order = np.lexsort((np.arange(len(code)), code, owner))
        is_last = np.ones(len(code), bool)
        is_last[:-1] = (np.diff(code[order]) != 0) | (np.diff(owner[order]) != 0)
        last = order[is_last]
        ends = borders[1:] - 1
        return cls(
            subject_id=batch.subject_id.numpy(),
            length=lengths,
            time_s=batch.time_s.numpy()[ends],
            age_years=batch.age_years.numpy()[ends].astype(np.float64),
            age_known=batch.age_known.numpy()[ends],
            start=np.searchsorted(owner[last], np.arange(len(lengths) + 1)),
            code=code[last],
            code_time_s=batch.time_s.numpy()[last],
            code_value=np.where(batch.bin[last] > 0, batch.value[last], np.nan).astype(np.float32),
            code_lag_hours=batch.lag_hours.numpy()[last],
            key=owner[last] * n_codes + code[last],
            n_codes=n_codes,
        )

    def lag_hours(self, subject: NDArray[np.int64], code: NDArray[np.int64]) -> NDArray[np.float32]:
        """Lag of each subject's last token of a code, 0 if there is none."""
        wanted = subject * self.n_codes + code
        at = np.searchsorted(self.key, wanted).clip(max=len(self.key) - 1)
        return np.where(self.key[at] == wanted, self.code_lag_hours[at], 0.0).astype(np.float32)


@dataclass(frozen=True)
class EventSteps:
    """Last time and value of every code in the futures that run; changed in place.

    Attributes:
        histories: What the futures go on from.
        scale: Scales of the codes' values.
        edges: (V, N_BINS - 1) deciles on the scale of standardised values.
        time_s: (row, V) float64, NaN where there was no token of the code.
        value: (row, V) float32, NaN where the last one had no value.
    """

    histories: Histories
    scale: ValueScale
    edges: NDArray[np.float32]
    time_s: NDArray[np.float64]
    value: NDArray[np.float32]

    @classmethod
    def create(cls, batch: Batch, scale: ValueScale, n_rows: int) -> EventSteps:
        """Room for some futures of the subjects of a batch."""
        shape = (n_rows, len(scale.median))
        edges = np.arcsinh((scale.edges - scale.median[:, None]) / scale.scale[:, None])
        return cls(
            histories=Histories.create(batch, len(scale.median)),
            scale=scale,
            edges=edges.astype(np.float32),
            time_s=np.full(shape, np.nan),
            value=np.full(shape, np.nan, np.float32),
        )

    def start(self, row: int, subject: int) -> None:
        """Let a future of a subject begin in a row."""
        past = self.histories
        own = slice(past.start[subject], past.start[subject + 1])
        for table, last in ((self.time_s, past.code_time_s), (self.value, past.code_value)):
            table[row] = np.nan
            table[row, past.code[own]] = last[own]

    def carries_value(self, code: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether training saw values of each code."""
        return np.isfinite(self.scale.median[code])

    def tokens(
        self,
        row: NDArray[np.int64],
        subject: NDArray[np.int64],
        n_sampled: NDArray[np.int64],
        before_s: NDArray[np.float64],
        code: NDArray[np.int64],
        value: NDArray[np.float32],
        time_s: NDArray[np.float64],
    ) -> Batch:
        """One token of each row with its features, and the tables brought up to it.

        Args:
            row: (R,) rows, all different.
            subject: (R,) whose future each is, an index into the histories.
            n_sampled: (R,) tokens sampled before.
            before_s: (R,) time of the token before.
            code: (R,) token ids.
            value: (R,) standardised values, NaN where there is none.
            time_s: (R,) times, not before `before_s`.

        Returns:
            A batch of R subjects of one token each.
        """
        past = self.histories
        seen_s, seen_value = self.time_s[row, code], self.value[row, code]
        repeated = np.isfinite(seen_s)
        since = np.where(repeated, (time_s - seen_s) / SECONDS_PER_HOUR, 0.0)
        known = np.nan_to_num(value, nan=0.0)
        change = np.nan_to_num(value - seen_value, nan=0.0)
        increment = np.where(np.isnan(seen_value), known, change)
        change = change / self.scale.step[code]
        rate = np.arcsinh(change * _HOURS_PER_DAY / np.maximum(since, 1.0))
        age = past.age_years[subject] + (time_s - past.time_s[subject]) / SECONDS_PER_YEAR
        self.time_s[row, code] = time_s
        self.value[row, code] = value
        return Batch(
            code=torch.from_numpy(code),
            value=_float32(known),
            bin=torch.from_numpy(self._bins(code, value)),
            time_s=torch.from_numpy(time_s),
            gap_hours=_float32((time_s - before_s) / SECONDS_PER_HOUR),
            since_hours=_float32(since),
            repeated=_float32(repeated),
            change=_float32(change),
            increment=_float32(increment),
            rate=_float32(rate),
            lag_hours=_float32(past.lag_hours(subject, code)),
            age_years=_float32(age * past.age_known[subject]),
            age_known=_float32(past.age_known[subject]),
            hour=_float32((time_s % _SECONDS_PER_DAY) / SECONDS_PER_HOUR),
            position=torch.from_numpy(past.length[subject] + n_sampled),
            signal=torch.full((len(code),), NO_SIGNAL),
            cu_seqlens=torch.arange(len(code) + 1),
            subject_id=torch.from_numpy(past.subject_id[subject]),
            signal_vectors=torch.zeros(0, 0, 0),
        )

    def _bins(self, code: NDArray[np.int64], value: NDArray[np.float32]) -> NDArray[np.int64]:
        above = value[:, None] > self.edges[code]
        return np.where(np.isnan(value), 0, 1 + above.sum(1))


def _float32(x: NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.float32))
