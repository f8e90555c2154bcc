"""Our MIRA as a peer on PhysioNet 2012: each variable of each stay is a series of its own.

MIRA knows one series at a time. It learns each point of the train stays from those before it, as
its paper has it, in values standardised by variable; each query is then answered from its series'
first 24 hours alone, not from forecasts of earlier queries. A series without a point before the cut
gets the variable's mean. The learning rate follows the clock; there is nothing to choose on val.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from p12_data import TEST, VAL, Protocol, targets_of
from p12_episodes import Stays

from tsfm.kernels.heap import keep_freed_memory
from tsfm.models.forecast_data import ForecastContext, ForecastQueries
from tsfm.models.mira import MiraConfig, MiraModel
from tsfm.training.optimizer import WeightAverage, learning_rate, make_optimizer

PEAK, PARTS, N_STAYS = 2e-3, 10_000, 24
FURTHEST = 20.0


def mira(protocol: Protocol, stays: Stays, minutes: float, seed: int = 0) -> np.ndarray:
    """Train a MIRA on the train stays and forecast the others.

    Args:
        protocol: The task.
        stays: The same as episodes.
        minutes: Of training.
        seed: Of weights and order.

    Returns:
        (n,) forecasts for `targets_of(protocol, VAL, TEST)`, in the protocol's units.
    """
    keep_freed_memory()
    model = train_mira(stays, minutes, seed)
    rows, found = [], []
    for part in (VAL, TEST):
        for context, queries, asked in stays.batches(part, 128):
            variable = context.variable[queries.series()].numpy()
            z = answers(model, stays, context, queries)
            rows.append(asked)
            found.append(stays.location[variable] + stays.scale[variable] * z)
    order = np.argsort(np.concatenate(rows), kind="stable")
    assert len(order) == len(targets_of(protocol, VAL, TEST))
    return np.concatenate(found)[order]


def train_mira(stays: Stays, minutes: float, seed: int) -> MiraModel:
    """Train for so many minutes; gives the averaged weights."""
    torch.manual_seed(seed)
    model = MiraModel(MiraConfig.tiny())
    optimizer = make_optimizer(model, lr=PEAK, weight_decay=0.02)
    average = WeightAverage(model, 0.998)
    rng = np.random.default_rng(seed)
    started = time.perf_counter()
    while (spent := (time.perf_counter() - started) / (60 * minutes)) < 1:
        rate = learning_rate(round(spent * PARTS), n_steps=PARTS, warmup=PARTS // 20, peak=PEAK)
        for group in optimizer.param_groups:
            group["lr"] = rate
        some = rng.choice(stays.train, min(N_STAYS, len(stays.train)), replace=False)
        everything = np.full(len(some), 1e4)
        context, *_ = stays.cut(some, everything, np.zeros(len(some)))
        loss = model.loss(
            standardised(stays, context), context.seconds, context.cu_points.unique_consecutive()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
    model.load_state_dict(average.weights)
    return model.eval()


def standardised(stays: Stays, context: ForecastContext) -> torch.Tensor:
    """Values of a context in units of their variables."""
    variable = context.variable[context.series_of_point()].numpy()
    z = (context.values.numpy() - stays.location[variable]) / stays.scale[variable]
    return torch.from_numpy(z).float().clamp(-FURTHEST, FURTHEST)


def answers(
    model: MiraModel, stays: Stays, context: ForecastContext, queries: ForecastQueries
) -> np.ndarray:
    """Standardised forecasts of all queries, each from its series alone."""
    z = np.zeros(len(queries.seconds))
    there = context.cu_points.diff() > 0
    asked = there[queries.series()]
    counts = queries.cu_queries.diff()[there]
    borders = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    found = model.forecast(
        standardised(stays, context), context.seconds, context.cu_points.unique_consecutive(),
        queries.seconds[asked], borders, feed_back=False,
    )  # fmt: skip
    z[asked.numpy()] = found.double().numpy()
    return z
