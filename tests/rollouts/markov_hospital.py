"""A hospital of a few states whose risks are known exactly.

The hidden state of a patient is the last code alone. The next code follows a table; the next token
stands at the same moment with some chance, else one hour later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsfm.batches.batch import Batch, make_batch
from tsfm.models.timeline_stepper import NextToken
from tsfm.rollouts.sample import FutureSource
from tsfm.tokens.value_scale import ValueScale

WARD, CLINIC, LAB, HOME, READMITTED, DEAD = range(6)
N_CODES = 6
# What a fixed wait is to the log-normal law.
_HARDLY_ANY_SPREAD = -20.0


@dataclass(frozen=True)
class MarkovHospital:
    """Steps like `TimelineStepper`; its table of states is there to see that slots are kept.

    Attributes:
        follows: (code, next code) chances.
        same: (code,) chance that the next token stands at the same moment.
    """

    follows: NDArray[np.float64]
    same: NDArray[np.float64]

    @property
    def n_codes(self) -> int:
        return N_CODES

    def prefill(self, batch: Batch, n_slots: int) -> tuple[Tensor, Tensor]:
        last = batch.code[batch.cu_seqlens[1:] - 1]
        state = torch.full((n_slots,), -1)
        state[: len(last)] = last
        return last[:, None].clone(), state

    def step(
        self, tokens: Batch, state: Tensor, source_slots: Tensor, target_slots: Tensor
    ) -> Tensor:
        assert bool((state[source_slots] >= 0).all())
        assert len(target_slots.unique()) == len(target_slots)
        state[target_slots] = tokens.code
        return state[target_slots][:, None]

    def next_token(self, hidden: Tensor) -> NextToken:
        code = hidden[:, 0].numpy()
        with np.errstate(divide="ignore"):
            logits = np.log(self.follows[code])
            same = np.log(self.same[code]) - np.log1p(-self.same[code])
        zero = torch.zeros(len(code))
        return NextToken(
            torch.from_numpy(logits.astype(np.float32)),
            torch.from_numpy(same.astype(np.float32)),
            zero,
            zero + _HARDLY_ANY_SPREAD,
        )

    def next_value(self, hidden: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        zero = torch.zeros(len(code))
        return zero, zero + 1.0

    def risk(self, outcome: tuple[int, ...], absorbing: tuple[int, ...], hours: int) -> NDArray:
        """Chance, from each last code, that the outcome comes within so many whole hours.

        Args:
            outcome: Codes of the outcome.
            absorbing: Codes after which it cannot come.
            hours: The last hour counts.
        """
        into = self.follows[:, list(outcome)].sum(1)
        on = self.follows.copy()
        on[:, [*outcome, *absorbing]] = 0.0
        same = self.same[:, None]
        # One hour's tokens: x = same (into + on x) + (1 - same) (into + on before), from none left.
        left = np.zeros(N_CODES)
        identity = np.eye(N_CODES)
        for hour in range(hours + 1):
            more = into + on @ left if hour else np.zeros(N_CODES)
            known = self.same * into + (1 - self.same) * more
            left = np.linalg.solve(identity - same * on, known)
        return left


def no_values() -> ValueScale:
    one = np.ones(N_CODES, np.float32)
    return ValueScale(
        np.full(N_CODES, np.nan, np.float32), one, np.zeros((N_CODES, 9), np.float32), one
    )


def make_hospital(seed: int, *, with_same: bool = True) -> MarkovHospital:
    rng = np.random.default_rng(seed)
    follows = rng.dirichlet(np.array([4.0, 3.0, 3.0, 6.0, 0.4, 0.15]) * 2, N_CODES)
    follows[DEAD] = np.eye(N_CODES)[DEAD]
    same = rng.uniform(0.05, 0.5, N_CODES) if with_same else np.zeros(N_CODES)
    return MarkovHospital(follows, same)


def source_of(hospital: MarkovHospital) -> FutureSource:
    return FutureSource(hospital, no_values(), (DEAD,))


def make_patients(last_code: NDArray[np.int64], ids: NDArray[np.int64] | None = None) -> Batch:
    """Patients of two tokens each, of whom the last code alone matters."""
    n = len(last_code)
    code = np.stack([np.full(n, WARD), last_code], 1).ravel()
    return make_batch(
        code=code.astype(np.int32),
        value=np.full(2 * n, np.nan, np.float32),
        bin=np.zeros(2 * n, np.int8),
        time_s=np.tile([1.5e9, 1.5e9 + 7200.0], n),
        lag_hours=np.zeros(2 * n, np.float32),
        lengths=np.full(n, 2),
        subject_id=np.arange(n) if ids is None else ids,
        birth_s=np.full(n, np.nan),
        step=np.ones(N_CODES, np.float32),
    )
