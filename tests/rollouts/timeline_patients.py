"""Small timeline models with random weights, and patients with values, lags and ages."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tsfm.batches.batch import Batch, make_batch
from tsfm.models.mamba import MambaConfig
from tsfm.models.timeline import TimelineConfig, TimelineModel
from tsfm.models.timeline_stepper import TimelineStepper
from tsfm.rollouts.futures import Futures
from tsfm.rollouts.sample import FutureSource
from tsfm.tokens.value_scale import N_BINS, ValueScale

N_CODES = 30
DEATH = 29
LENGTHS = (5, 1, 40, 17)


def make_model(seed: int = 0) -> TimelineModel:
    torch.manual_seed(seed)
    model = TimelineModel(TimelineConfig(N_CODES, MambaConfig(d_model=16, n_layers=2))).eval()
    with torch.no_grad():  # so that states tell, and a future has some tens of tokens
        model.next_event.code.weight.mul_(4.0)
        model.next_event.time.bias.copy_(torch.tensor([0.5, 2.0, 0.0]))
        model.next_event.code.bias[DEATH] = -3.0
    return model


def make_scale() -> ValueScale:
    rng = np.random.default_rng(7)
    median = np.where(np.arange(N_CODES) % 3 > 0, rng.normal(50, 20, N_CODES), np.nan)
    edges = np.sort(rng.normal(50, 30, (N_CODES, N_BINS - 1)), axis=1)
    step = rng.uniform(0.3, 2.0, N_CODES)
    spread = rng.uniform(1, 9, N_CODES)
    return ValueScale(*(x.astype(np.float32) for x in (median, spread, edges, step)))


def make_source(seed: int = 0) -> FutureSource:
    return FutureSource(TimelineStepper(make_model(seed)), make_scale(), (DEATH,))


def make_tokens(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> dict[str, Any]:
    """Arguments of `make_batch`."""
    rng = np.random.default_rng(seed)
    n, scale = sum(lengths), make_scale()
    code = rng.integers(1, N_CODES - 1, n).astype(np.int32)
    raw = np.where(rng.random(n) < 0.6, rng.normal(50, 30, n), np.nan).astype(np.float32)
    value, bins = scale.apply(code, raw)
    births = np.array([0.0, np.nan, -1e9, 1e8])
    return {
        "code": code,
        "value": value,
        "bin": bins,
        "time_s": np.concatenate([1.5e9 + np.cumsum(rng.exponential(3e4, k)) for k in lengths]),
        "lag_hours": rng.exponential(1.0, n).astype(np.float32),
        "lengths": np.array(lengths, np.int64),
        "subject_id": 1000 + np.arange(len(lengths)),
        "birth_s": births[np.arange(len(lengths)) % 4],
        "step": scale.step,
    }


def subjects_of(tokens: dict[str, Any], chosen: list[int]) -> dict[str, Any]:
    """Some subjects, in another order."""
    borders = np.concatenate([[0], np.cumsum(tokens["lengths"])])
    at = np.concatenate([np.arange(borders[i], borders[i + 1]) for i in chosen])
    return {
        name: column if name == "step" else column[at if len(column) == borders[-1] else chosen]
        for name, column in tokens.items()
    }


def with_futures(tokens: dict[str, Any], futures: Futures) -> tuple[Batch, NDArray[np.int64]]:
    """Each future behind its subject's history, as one subject of a batch; borders of the pasts."""
    n_futures = int(futures.number[-1]) + 1
    borders = np.concatenate([[0], np.cumsum(tokens["lengths"])])
    columns: dict[str, list[NDArray[Any]]] = {
        k: [] for k in ("code", "value", "bin", "time_s", "lag_hours")
    }
    for index in range(len(futures)):
        subject = index // n_futures
        past = slice(borders[subject], borders[subject + 1])
        own = futures.tokens.future == index
        for name, parts in columns.items():
            parts += [tokens[name][past], getattr(futures.tokens, name)[own]]
    pasts = np.repeat(tokens["lengths"], n_futures)
    batch = make_batch(
        code=np.concatenate(columns["code"]).astype(np.int32),
        value=np.concatenate(columns["value"]).astype(np.float32),
        bin=np.concatenate(columns["bin"]).astype(np.int8),
        time_s=np.concatenate(columns["time_s"]),
        lag_hours=np.concatenate(columns["lag_hours"]).astype(np.float32),
        lengths=pasts + futures.n_tokens,
        subject_id=np.arange(len(futures)),
        birth_s=np.repeat(tokens["birth_s"], n_futures),
        step=tokens["step"],
    )
    return batch, pasts
