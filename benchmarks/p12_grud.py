"""GRU-D as a forecaster of PhysioNet 2012, written from the paper's equations.

Che et al., "Recurrent neural networks for multivariate time series with missing values", Scientific
Reports 8:6085 (2018). History is put on hourly rows (means within an hour). What is not measured at
an hour is its last value, decayed towards the train mean at a learned rate with the hours since;
the hidden state decays before each step at learned rates with the same hours; the mask goes in
beside the values.

The paper classifies; to forecast, an MLP answers each query from the last hidden state, an
embedding of the variable, the lead, and the variable's last value and its age. It is trained on the
metric of the protocol: for A points weigh by the reciprocal of how often their variable is asked in
the train part, at most 20 times as much as if all were asked equally often, for B all alike. The
weights of the best val epoch forecast. It sees only its own query.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from p12_data import TEST, TRAIN, VAL, Points, Protocol, part_of, targets_of
from p12_scores import scores
from torch import Tensor, nn

CLIP_SD = 5.0
LARGEST_WEIGHT = 20.0
DECAY_UNIT_HOURS = 10.0


@dataclass(frozen=True)
class GrudConfig:
    """Size and training of one GRU-D."""

    d_hidden: int = 64
    d_variable: int = 16
    d_decoder: int = 128
    batch_stays: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    dropout: float = 0.2


class GruD(nn.Module):
    """Encoder of hourly rows with a decoder of (variable, lead) queries; all in train sds."""

    def __init__(self, n_variables: int, config: GrudConfig) -> None:
        super().__init__()
        d = config.d_hidden
        self.input_decay = nn.Parameter(torch.full((n_variables,), 0.1))
        self.input_decay_bias = nn.Parameter(torch.zeros(n_variables))
        self.hidden_decay = nn.Linear(n_variables, d)
        self.inputs = nn.Linear(2 * n_variables, 3 * d)
        self.gates = nn.Linear(d, 2 * d, bias=False)
        self.candidate = nn.Linear(d, d, bias=False)
        self.variable = nn.Embedding(n_variables, config.d_variable)
        self.decoder = nn.Sequential(
            nn.Linear(d + config.d_variable + 3, config.d_decoder),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.d_decoder, config.d_decoder),
            nn.ReLU(),
            nn.Linear(config.d_decoder, 1),
        )

    def encode(self, last: Tensor, mask: Tensor, since: Tensor) -> Tensor:
        """Final hidden state, (batch, d_hidden).

        Args:
            last: (batch, hour, variable) last value so far, 0 (the mean) before the first.
            mask: (batch, hour, variable) 1 where measured in that hour.
            since: (batch, hour, variable) tens of hours since the variable was measured.
        """
        kept = torch.exp(-torch.relu(self.input_decay * since + self.input_decay_bias))
        x = last * torch.where(mask > 0, 1.0, kept)
        reset_x, update_x, new_x = self.inputs(torch.cat([x, mask], -1)).chunk(3, -1)
        decay = torch.exp(-torch.relu(self.hidden_decay(since)))
        h = torch.zeros_like(decay[:, 0])
        for hour in range(decay.shape[1]):
            h = h * decay[:, hour]
            reset, update = self.gates(h).chunk(2, -1)
            reset = torch.sigmoid(reset + reset_x[:, hour])
            update = torch.sigmoid(update + update_x[:, hour])
            new = torch.tanh(new_x[:, hour] + self.candidate(reset * h))
            h = (1 - update) * h + update * new
        return h

    def forward(self, rows: _Rows, queries: _Queries) -> Tensor:
        """(n_queries,) forecasts."""
        h = self.encode(rows.last, rows.mask, rows.since)
        asked = torch.column_stack([queries.lead, queries.last, queries.age])
        return self.decoder(
            torch.cat([h[queries.row], self.variable(queries.variable), asked], -1)
        ).squeeze(-1)


def grud(
    protocol: Protocol,
    seed: int = 0,
    epochs: int = 10,
    threads: int = 1,
    config: GrudConfig | None = None,
    log: list[dict[str, float]] | None = None,
) -> np.ndarray:
    """Train a GRU-D on the train stays and forecast the rest.

    Args:
        protocol: The task.
        seed: Of weights, order and dropout.
        epochs: Passes over the train stays; the rate falls to nothing over them (cosine).
        threads: Of torch, while this runs.
        config: Its size and training.
        log: If given, gets the val scores of each epoch.

    Returns:
        (n,) forecasts for `targets_of(protocol, VAL, TEST)`, in the protocol's units.
    """
    config = config or GrudConfig()
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _train_and_forecast(protocol, seed, epochs, config, log)
    finally:
        torch.set_num_threads(threads_before)


@dataclass(frozen=True)
class _Rows:
    last: Tensor
    mask: Tensor
    since: Tensor


@dataclass(frozen=True)
class _Queries:
    row: Tensor  # of the batch
    variable: Tensor
    lead: Tensor
    last: Tensor
    age: Tensor


class _Task:
    """A protocol as hourly tensors and queries, in sds of the train part."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        n_stays, n_variables = len(protocol.record_ids), len(protocol.variables)
        history = protocol.history
        known = history.where(part_of(protocol, history, TRAIN))
        n = np.maximum(np.bincount(known.variable, minlength=n_variables), 1)
        self.mean = np.bincount(known.variable, known.value, n_variables) / n
        off = (known.value - self.mean[known.variable]) ** 2
        self.sd = np.maximum(np.sqrt(np.bincount(known.variable, off, n_variables) / n), 1e-6)

        n_hours = round(protocol.cut_hours)
        shape = (n_stays, n_hours, n_variables)
        hour = np.minimum(history.hours.astype(np.int64), n_hours - 1)
        cell = np.ravel_multi_index((history.stay, hour, history.variable), shape)
        count = np.bincount(cell, minlength=np.prod(shape)).reshape(shape)
        z = self._standardised(history)
        total = np.bincount(cell, z, int(np.prod(shape))).reshape(shape)
        mean = (total / np.maximum(count, 1)).astype(np.float32)
        mask = (count > 0).astype(np.float32)
        last, since = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for at in range(n_hours):
            before = last[:, at - 1] if at else np.zeros_like(last[:, 0])
            last[:, at] = np.where(mask[:, at] > 0, mean[:, at], before)
            if at:
                # Hours since the variable was measured before this row, as the paper counts them.
                since[:, at] = 1 + np.where(mask[:, at - 1] > 0, 0, since[:, at - 1])
        self._rows = [torch.from_numpy(part) for part in (last, mask, since / DECAY_UNIT_HOURS)]

        # Without a history: the mean, as old as the stay.
        ends = np.zeros((n_stays, n_variables, 2), dtype=np.float32)
        ends[..., 1] = protocol.cut_hours
        ends[history.stay, history.variable, 0] = z
        ends[history.stay, history.variable, 1] = protocol.cut_hours - history.hours
        self._last_and_age = ends
        self._bounds = np.searchsorted(protocol.targets.stay, np.arange(n_stays + 1))

    def batch(self, stays: np.ndarray) -> tuple[_Rows, _Queries, np.ndarray]:
        """Rows and queries of some stays, and where the queries stand in the targets."""
        start, stop = self._bounds[stays], self._bounds[stays + 1]
        n = stop - start
        row = np.repeat(np.arange(len(stays)), n)
        at = np.arange(n.sum()) + np.repeat(start - np.concatenate([[0], np.cumsum(n)[:-1]]), n)
        targets = self.protocol.targets.where(at)
        lead = (targets.hours - self.protocol.cut_hours) / 24
        last, age = self._last_and_age[targets.stay, targets.variable].T
        queries = _Queries(
            torch.from_numpy(row),
            torch.from_numpy(targets.variable),
            torch.from_numpy(lead.astype(np.float32)),
            torch.from_numpy(last),
            torch.from_numpy(np.log1p(age) / float(np.log1p(self.protocol.cut_hours))),
        )
        picked = torch.from_numpy(stays)
        return _Rows(*(part[picked] for part in self._rows)), queries, at

    def weights(self) -> np.ndarray:
        """(n_targets,) what the squared error, in sds, of each target weighs."""
        targets = self.protocol.targets
        own = targets.variable[part_of(self.protocol, targets, TRAIN)]
        scale = self.sd**2
        if self.protocol.name == "A":
            n = np.bincount(own, minlength=len(self.sd))
            scale *= np.minimum(own.size / (np.count_nonzero(n) * np.maximum(n, 1)), LARGEST_WEIGHT)
        each = scale[targets.variable]
        return (each / scale[own].mean()).astype(np.float32)

    def _standardised(self, points: Points) -> np.ndarray:
        z = (points.value - self.mean[points.variable]) / self.sd[points.variable]
        return np.clip(z, -CLIP_SD, CLIP_SD).astype(np.float32)

    def forecast(self, model: GruD, stays: np.ndarray) -> np.ndarray:
        """Forecasts of all targets of sorted stays, in the protocol's units."""
        model.eval()
        parts: list[np.ndarray] = []
        with torch.no_grad():
            for some in np.array_split(stays, max(1, len(stays) // 256)):
                rows, queries, _ = self.batch(some)
                variable = queries.variable.numpy()
                z = model(rows, queries).double().numpy()
                parts.append(self.mean[variable] + self.sd[variable] * z)
        return np.concatenate(parts)


def _train_and_forecast(
    protocol: Protocol,
    seed: int,
    epochs: int,
    config: GrudConfig,
    log: list[dict[str, float]] | None,
) -> np.ndarray:
    task = _Task(protocol)
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GruD(len(protocol.variables), config)
        optimizer = torch.optim.AdamW(
            model.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        train, val = (np.flatnonzero(protocol.part == k) for k in (TRAIN, VAL))
        n_steps = epochs * -(-len(train) // config.batch_stays)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        z = (protocol.targets.value - task.mean[protocol.targets.variable]) / task.sd[
            protocol.targets.variable
        ]
        truth, weight = torch.from_numpy(z.astype(np.float32)), torch.from_numpy(task.weights())
        best, kept = np.inf, copy.deepcopy(model.state_dict())
        for _ in range(epochs):
            model.train()
            order = rng.permutation(train)
            for at in range(0, len(order), config.batch_stays):
                rows, queries, asked = task.batch(order[at : at + config.batch_stays])
                if not len(asked):
                    continue
                error = model(rows, queries) - truth[asked]
                loss = (weight[asked] * error**2).mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
            found = scores(protocol, targets_of(protocol, VAL), task.forecast(model, val))
            if log is not None:
                log.append(found)
            score = found["macro_mse" if protocol.name == "A" else "mse"]
            if score < best:
                best, kept = score, copy.deepcopy(model.state_dict())
        model.load_state_dict(kept)
    return task.forecast(model, np.flatnonzero(np.isin(protocol.part, (VAL, TEST))))
