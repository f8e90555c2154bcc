"""Sampled futures as they come out: tokens end to end, and how each of them ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import schema
from tsfm.batches.batch import Batch
from tsfm.clock import HOUR_US
from tsfm.rollouts.outcomes import OutcomeTally
from tsfm.tokens.value_scale import ValueScale
from tsfm.tokens.vocabulary import Vocabulary

HORIZON, DIED, DECIDED, UNFINISHED = 1, 2, 3, 4
"""How a future ends: nothing more within the horizon; death, sampled or in the past; nothing left
to ask; cut off."""
ENDINGS = {HORIZON: "horizon", DIED: "died", DECIDED: "decided", UNFINISHED: "unfinished"}
_US_PER_SECOND = 1e6


@dataclass(frozen=True)
class FutureTokens:
    """Tokens of some futures, in order of time within each.

    Attributes:
        future: (T,) which future each belongs to, ascending.
        code: (T,) token ids.
        value: (T,) standardised values, NaN where there is none.
        bin: (T,) deciles of the values, 0 where there is none.
        time_s: (T,) seconds on the subjects' clock.
        lag_hours: (T,) lags that the model was shown.
    """

    future: NDArray[np.int64]
    code: NDArray[np.int64]
    value: NDArray[np.float32]
    bin: NDArray[np.int64]
    time_s: NDArray[np.float64]
    lag_hours: NDArray[np.float32]

    @classmethod
    def of_step(
        cls, future: NDArray[np.int64], value: NDArray[np.float32], tokens: Batch
    ) -> FutureTokens:
        """One token of each of some futures."""
        return cls(
            future, tokens.code.numpy(), value, tokens.bin.numpy(), tokens.time_s.numpy(),
            tokens.lag_hours.numpy(),
        )  # fmt: skip

    @classmethod
    def gather(cls, steps: Sequence[FutureTokens]) -> FutureTokens:
        """Tokens of successive steps, one future's together."""
        if not steps:
            whole, real = np.zeros(0, np.int64), np.zeros(0, np.float32)
            return cls(whole, whole, real, whole, np.zeros(0), real)
        names = tuple(cls.__dataclass_fields__)
        columns = {name: np.concatenate([getattr(step, name) for step in steps]) for name in names}
        order = np.argsort(columns["future"], kind="stable")
        return cls(**{name: column[order] for name, column in columns.items()})

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.future)


@dataclass(frozen=True)
class Futures:
    """Futures of some subjects: all of one subject's together, in the order of the batch.

    Attributes:
        subject_id: (F,) whose future each is.
        number: (F,) its number among the subject's, from 0.
        ending: (F,) `HORIZON`, `DIED`, `DECIDED` or `UNFINISHED`.
        n_tokens: (F,) tokens sampled.
        tokens: The tokens; none if they were not kept.
        tally: What the futures say of the outcomes asked for.
        kept_from_outcome: Whether they were kept from the one outcome of the tally.
    """

    subject_id: NDArray[np.int64]
    number: NDArray[np.int64]
    ending: NDArray[np.int8]
    n_tokens: NDArray[np.int64]
    tokens: FutureTokens
    tally: OutcomeTally
    kept_from_outcome: bool = False

    def __len__(self) -> int:
        """Number of futures."""
        return len(self.subject_id)

    @property
    def endings(self) -> dict[str, int]:
        """How many futures ended in each way."""
        return {name: int((self.ending == key).sum()) for key, name in ENDINGS.items()}

    def events(self, vocabulary: Vocabulary, scale: ValueScale) -> pl.DataFrame:
        """The kept tokens as events, values in the codes' own units.

        Returns:
            Columns subject_id, future, time, available_time, code, numeric_value; in the order of
            `available_time`, when each becomes known. It is true at its `time`, which is the lag
            that the model was shown earlier, and so may lie before the prediction.
        """
        tokens = self.tokens
        names = np.array(vocabulary.codes, object)
        value = scale.invert(tokens.code.astype(np.int32), tokens.value)
        known = np.round(tokens.time_s * _US_PER_SECOND).astype(np.int64)
        lag = np.round(tokens.lag_hours.astype(np.float64) * HOUR_US).astype(np.int64)
        return pl.DataFrame(
            {
                schema.SUBJECT_ID: self.subject_id[tokens.future],
                "future": self.number[tokens.future],
                schema.TIME: pl.Series(known - lag).cast(pl.Datetime("us")),
                schema.AVAILABLE_TIME: pl.Series(known).cast(pl.Datetime("us")),
                schema.CODE: pl.Series(names[tokens.code].tolist(), dtype=pl.String),
                schema.NUMERIC_VALUE: pl.Series(value, dtype=pl.Float32).fill_nan(None),
            }
        )
