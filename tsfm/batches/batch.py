"""The one form in which tokens reach a model: packed, never padded.

Tokens of all subjects of a batch lie end to end; `cu_seqlens` holds their borders. Times are
float64 seconds until the gap between neighbours has been taken, because float32 seconds since 1970
would round to two minutes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tsfm.tokens.signal_vectors import NO_SIGNAL, SignalVectors

SECONDS_PER_HOUR = 3600.0
_HOURS_PER_DAY = 24.0
SECONDS_PER_YEAR = 365.25 * 86400.0


@dataclass(frozen=True)
class Batch:
    """Packed tokens of some subjects.

    Attributes:
        code: (T,) token ids, int64.
        value: (T,) standardised values, 0 where there is none.
        bin: (T,) decile 1 to 10 of the value, 0 where there is none, int64.
        time_s: (T,) when each fact became available, float64 seconds.
        gap_hours: (T,) hours since the subject's previous token, 0 at its first.
        since_hours: (T,) hours since the subject's previous token of the same code, 0 if there is
            none.
        repeated: (T,) 1 where there is one.
        increment: (T,) value less the previous value of the same code, or the value itself where
            there is none: a subject's increments of a code add up to its last value.
        change: (T,) the same in the code's typical steps, 0 at the first value.
        rate: (T,) that change a day, bounded by asinh; results an hour apart count as an hour.
        lag_hours: (T,) hours from when the fact was true to when it was available.
        age_years: (T,) age at the token, 0 where the birth is unknown.
        age_known: (T,) 1 where the birth is known.
        hour: (T,) hour of the day, 0 to 24.
        position: (T,) position within the subject, int64.
        signal: (T,) row of the token's waveform in `signal_vectors`, -1 where there is none, int64.
        cu_seqlens: (S + 1,) borders of the subjects, int64.
        subject_id: (S,) subjects, int64.
        signal_vectors: (W, K, width) what an encoder says of each waveform, K vectors each.
    """

    code: Int[Tensor, " token"]
    value: Float[Tensor, " token"]
    bin: Int[Tensor, " token"]
    time_s: Float[Tensor, " token"]
    gap_hours: Float[Tensor, " token"]
    since_hours: Float[Tensor, " token"]
    repeated: Float[Tensor, " token"]
    change: Float[Tensor, " token"]
    increment: Float[Tensor, " token"]
    rate: Float[Tensor, " token"]
    lag_hours: Float[Tensor, " token"]
    age_years: Float[Tensor, " token"]
    age_known: Float[Tensor, " token"]
    hour: Float[Tensor, " token"]
    position: Int[Tensor, " token"]
    signal: Int[Tensor, " token"]
    cu_seqlens: Int[Tensor, " borders"]
    subject_id: Int[Tensor, " subject"]
    signal_vectors: Float[Tensor, "waveform vector width"]

    @property
    def n_tokens(self) -> int:
        """Tokens in the batch."""
        return self.code.shape[0]

    @property
    def n_subjects(self) -> int:
        """Subjects in the batch."""
        return self.subject_id.shape[0]


def make_batch(
    *,
    code: NDArray[np.int32],
    value: NDArray[np.float32],
    bin: NDArray[np.int8],
    time_s: NDArray[np.float64],
    lag_hours: NDArray[np.float32],
    lengths: NDArray[np.int64],
    subject_id: NDArray[np.int64],
    birth_s: NDArray[np.float64],
    step: NDArray[np.float32],
    signal: NDArray[np.int32] | None = None,
    signals: SignalVectors | None = None,
) -> Batch:
    """Build a batch from the arrays of a token store or of `SubjectTokens`.

    Args:
        code: (T,) token ids.
        value: (T,) standardised values, NaN where there is none.
        bin: (T,) deciles.
        time_s: (T,) seconds.
        lag_hours: (T,) lags.
        lengths: (S,) tokens of each subject, in order.
        subject_id: (S,) subjects.
        birth_s: (S,) births in seconds, NaN where unknown.
        step: (V,) typical step of each code, see `ValueScale`.
        signal: (T,) rows of `signals`, -1 for no waveform; None for none at all.
        signals: Vectors of the waveforms; without them no waveform is read.
    """
    borders = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    gap = np.diff(time_s, prepend=time_s[:1]) / SECONDS_PER_HOUR
    gap[borders[:-1]] = 0.0
    age = (time_s - birth_s[owner]) / SECONDS_PER_YEAR
    known = np.isfinite(age)
    since, repeated, change, increment, rate = _trends(code, value, time_s, owner, step)
    row, vectors = _waveforms(len(code), signal, signals)
    return Batch(
        code=torch.from_numpy(code.astype(np.int64)),
        value=torch.from_numpy(np.nan_to_num(value, nan=0.0).astype(np.float32)),
        bin=torch.from_numpy(bin.astype(np.int64)),
        time_s=torch.from_numpy(np.array(time_s, np.float64)),
        gap_hours=torch.from_numpy(np.maximum(gap, 0.0).astype(np.float32)),
        since_hours=torch.from_numpy(since),
        repeated=torch.from_numpy(repeated),
        change=torch.from_numpy(change),
        increment=torch.from_numpy(increment),
        rate=torch.from_numpy(rate),
        lag_hours=torch.from_numpy(np.array(lag_hours, np.float32)),
        age_years=torch.from_numpy(np.where(known, age, 0.0).astype(np.float32)),
        age_known=torch.from_numpy(known.astype(np.float32)),
        hour=torch.from_numpy(((time_s % 86400.0) / SECONDS_PER_HOUR).astype(np.float32)),
        position=torch.from_numpy(np.arange(len(code)) - borders[:-1][owner]),
        signal=torch.from_numpy(row),
        cu_seqlens=torch.from_numpy(borders),
        subject_id=torch.from_numpy(np.array(subject_id, np.int64)),
        signal_vectors=torch.from_numpy(vectors),
    )


def _waveforms(
    n_tokens: int, signal: NDArray[np.int32] | None, signals: SignalVectors | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows within the batch, and the vectors of its waveforms alone."""
    row = np.full(n_tokens, NO_SIGNAL, np.int64)
    if signal is None or signals is None:
        return row, np.zeros((0, 0, 0), np.float32)
    at = np.flatnonzero(signal != NO_SIGNAL)
    row[at] = np.arange(len(at))
    return row, np.array(signals.vectors[signal[at]], np.float32)


def _trends(
    code: NDArray[np.int32],
    value: NDArray[np.float32],
    time_s: NDArray[np.float64],
    owner: NDArray[np.int64],
    step: NDArray[np.float32],
) -> tuple[NDArray[np.float32], ...]:
    """Each token against the one of the same subject and code before it.

    The trend of a measurement is what two numbers far apart in the stream say together; handed to
    the token, it need not be learnt from scratch. It looks backwards only.

    Returns:
        since_hours, repeated, change, increment and rate, (T,) each.
    """
    order = np.lexsort((np.arange(len(code)), code, owner))
    again = np.zeros(len(code), bool)
    again[1:] = (code[order][1:] == code[order][:-1]) & (owner[order][1:] == owner[order][:-1])
    previous = np.zeros(len(code), np.int64)
    previous[order[1:]] = order[:-1]
    repeated = np.zeros(len(code), bool)
    repeated[order] = again
    since = np.where(repeated, (time_s - time_s[previous]) / SECONDS_PER_HOUR, 0.0)
    change = np.nan_to_num(np.where(repeated, value - value[previous], 0.0), nan=0.0)
    first = ~repeated | np.isnan(value[previous])
    increment = np.where(first, np.nan_to_num(value, nan=0.0), change)
    change = change / step[code]
    rate = np.arcsinh(change * _HOURS_PER_DAY / np.maximum(since, 1.0))
    return tuple(x.astype(np.float32) for x in (since, repeated, change, increment, rate))
