"""ETHOS-ARES's design at our size: its words and its network, trained as ours is.

Its network is sized to a given number of parameters (positions not counted), its context holds the
training records (nearly all of them whole), and it sees a given number of tokens: packed windows in
a seeded order, AdamW with a warm-up and a cosine, and the moving average of the weights at the end,
as `tsfm.training` trains ours. Few passes over small models need no dropout, and it has none: that
is faster, since attention with dropout goes a slow way. What remains is the design.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from timeline_designs_bits import batches_of_windows, token_losses

from tsfm.models.ethos import EthosConfig, EthosModel
from tsfm.tokens.ethos_tokens import (
    EthosTimelines,
    EthosWindows,
    tokenize_ethos,
    training_windows,
)
from tsfm.tokens.ethos_vocabulary import EthosVocabulary
from tsfm.training.loop import TrainConfig
from tsfm.training.optimizer import WeightAverage, learning_rate, make_optimizer

_N_HEADS = 2
_LONGEST = 2048
_MAX_TOKENS = 8192


@dataclass(frozen=True)
class EthosRun:
    """A trained model and what its training came to.

    Attributes:
        model: The network, in evaluation mode.
        facts: Plain numbers: parameters, tokens, seconds, nats a token of the tuning subjects.
    """

    model: EthosModel
    facts: dict[str, float]


def context_for(timelines: EthosTimelines) -> int:
    """Smallest power of two that holds 99 of 100 records whole, at most that of the paper."""
    static = np.diff(timelines.static_start) + 2
    longest = float(np.quantile(np.diff(timelines.start) + static, 0.99))
    return min(_LONGEST, 1 << max(6, int(np.ceil(np.log2(longest)))))


def sized(n_words: int, context: int, n_parameters: int, n_layers: int) -> EthosConfig:
    """The network of so many layers whose parameters are nearest to so many.

    Its table of positions is not counted: for records as long as these it would be most of it.
    """

    def excess(d_model: int) -> int:
        return abs((n_words + 1 + n_layers * (12 * d_model + 2)) * d_model - n_parameters)

    width = min(range(_N_HEADS, 2048, _N_HEADS), key=excess)
    return EthosConfig(n_words, context, width, n_layers, _N_HEADS, dropout=0.0)


def train_ethos(
    events: dict[str, pl.DataFrame], words: EthosVocabulary, folder: Path, *,
    n_tokens: int, n_parameters: int, n_layers: int, config: TrainConfig,
) -> EthosRun:  # fmt: skip
    """Train until so many tokens were seen, or read what was trained before.

    Args:
        events: Events of the training and of the tuning subjects, by split.
        words: Vocabulary.
        folder: Where weights and facts are kept.
        n_tokens: Tokens to see, those of static parts included.
        n_parameters: Size to come near to, the table of positions aside.
        n_layers: Blocks.
        config: Rates, batches and seed; its epochs are not read.
    """
    training, tuning = (tokenize_ethos(events[split], words) for split in ("train", "tuning"))
    context = context_for(training)
    model = EthosModel(sized(len(words), context, n_parameters, n_layers))
    if (folder / "facts.json").exists():
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return EthosRun(model.eval(), json.loads((folder / "facts.json").read_text()))
    torch.manual_seed(config.seed)
    model = EthosModel(model.config)
    windows = training_windows(training, context)
    n_windows, started = len(windows.subject_id), time.perf_counter()
    batches, seen, epoch = [], 0, 0
    while seen < n_tokens:
        order = np.random.default_rng([config.seed, epoch]).permutation(n_windows)
        for batch in batches_of_windows(windows, order, config.max_tokens):
            if seen >= n_tokens:
                break
            batches.append(batch)
            seen += len(batch[0])
        epoch += 1
    optimizer = make_optimizer(model, lr=config.lr, weight_decay=config.weight_decay)
    average = WeightAverage(model, config.average_decay)
    warmup = max(1, round(config.warmup * len(batches)))
    model.train()
    for step, (token, target, borders) in enumerate(batches):
        lr = learning_rate(step, n_steps=len(batches), warmup=warmup, peak=config.lr)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        model.loss(token, target, borders).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        average.update(model)
    model.load_state_dict(average.weights)
    n_all = sum(p.numel() for p in model.parameters())
    facts = {
        "parameters": float(n_all - model.position.weight.numel()),
        "parameters_of_positions": float(model.position.weight.numel()),
        "tokens": float(seen),
        "passes": seen / len(windows.token),
        "seconds": time.perf_counter() - started,
        "tuning_nats_a_token": float(token_losses(model, training_windows(tuning, context)).mean()),
        "share_of_records_cut": 1.0 - len(training.subject_id) / n_windows,
        **{k: float(v) for k, v in asdict(model.config).items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "facts.json").write_text(json.dumps(facts, indent=2))
    return EthosRun(model.eval(), facts)


@torch.no_grad()
def states_once(
    timelines: EthosTimelines, model: EthosModel, subject_id: NDArray[np.int64],
    prediction_s: NDArray[np.float64],
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:  # fmt: skip
    """State after the last token known at each moment, and the hours gone by since that token.

    Each record is read once. A state has seen what a prompt of the moment would hold, but in the
    few records that the context does not hold whole: there it has seen its own window.

    Returns:
        (n, d_model) states, and hours, NaN where nothing but the static facts was known.
    """
    windows = training_windows(timelines, model.config.context)
    at, hours = _places(timelines, windows, subject_id, prediction_s)
    states = np.zeros((len(at), model.config.d_model), np.float32)
    begin, order = 0, np.arange(len(windows.subject_id))
    for token, _, borders in batches_of_windows(windows, order, _MAX_TOKENS):
        inside = np.flatnonzero((at >= begin) & (at < begin + len(token)))
        if len(inside):
            states[inside] = model(token, borders)[torch.from_numpy(at[inside] - begin)].numpy()
        begin += len(token)
    return states, hours


def _places(
    timelines: EthosTimelines, windows: EthosWindows, subject_id: NDArray[np.int64],
    prediction_s: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:  # fmt: skip
    """Where in the packed windows each moment's last known token stands, and the hours since it."""
    is_static = np.zeros(len(windows.token) + 1, np.int64)
    np.add.at(is_static, windows.start[:-1], 1)
    np.add.at(is_static, windows.start[:-1] + windows.n_static, -1)
    place = np.flatnonzero(np.cumsum(is_static)[:-1] == 0)  # of every token of the streams
    first_window = np.searchsorted(windows.subject_id, subject_id)
    before_all = windows.start[first_window] + windows.n_static[first_window] - 1
    at, hours = before_all.copy(), np.full(len(prediction_s), np.nan)
    rows = np.searchsorted(timelines.subject_id, subject_id)
    for i, (row, moment) in enumerate(zip(rows, prediction_s, strict=True)):
        first, stop = timelines.start[row : row + 2]
        known = timelines.known_s[first:stop]
        n_known = int((known <= moment).sum())
        if n_known:
            at[i] = place[first + n_known - 1]
            hours[i] = (moment - known[n_known - 1]) / 3600.0
    return at, hours
