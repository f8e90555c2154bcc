"""The forecaster on PhysioNet 2012: training by validation alone, and forecasts of a part.

Validation is under A the error over the common variables (two rare ones are all noise), under B the
squared error over points. The number that is reported is one forecast for both of squared and
absolute error: the mean moved towards the median by a share that validation chooses.

A seed is a few members whose forecasts are averaged. Members train side by side, one thread each,
since one small network gains nothing from a second core.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from p12_data import VAL, Protocol, read_protocol, targets_of
from p12_episodes import EpisodeConfig, Stays
from p12_scores import common_variables, scores
from safetensors.torch import load_file, save_file

from tsfm.models.forecaster import ForecasterConfig, ForecasterModel
from tsfm.training.forecast import ForecastTrainConfig, ForecastTrainResult, train_forecaster
from tsfm.training.loop import fingerprint

WEIGHTS = "model.safetensors"
TABLES = {"A": 192, "B": 0}
"""Usual width of the layer that reads all variables' latest numbers; chosen on val under A, not
tried under B."""
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
SHARES_OF_MEDIAN = np.linspace(0.0, 0.6, 13)


@dataclass(frozen=True)
class PartForecast:
    """Forecasts of all targets of a part, in the protocol's units and order.

    Attributes:
        mean: (n,) means.
        quantiles: (n, n_levels) quantiles of `quantile_head.LEVELS`.
    """

    mean: np.ndarray
    quantiles: np.ndarray

    def point(self, share_of_median: float) -> np.ndarray:
        """One number a target: the mean, moved towards the median."""
        median = self.quantiles[:, self.quantiles.shape[1] // 2]
        return (1 - share_of_median) * self.mean + share_of_median * median


def model_config(protocol: Protocol, **parts: object) -> ForecasterConfig:
    """The forecaster's form for this data set; `parts` change it."""
    given = {"n_variables": len(protocol.variables), "table": TABLES[protocol.name], **parts}
    return ForecasterConfig(**given)  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def forecast_part(model: ForecasterModel, stays: Stays, part: int) -> PartForecast:
    """Forecast all targets of a part.

    Args:
        model: A trained model.
        stays: The data.
        part: 0 train, 1 val, 2 test.
    """
    model.eval()
    n = len(stays.protocol.targets)
    mean, quantiles, asked = np.zeros(n), None, np.zeros(n, dtype=bool)
    for context, queries, rows in stays.batches(part):
        if not len(rows):
            continue
        forecast = model(context, queries)
        found = forecast.quantiles_in_units().numpy()
        quantiles = np.zeros((n, found.shape[1])) if quantiles is None else quantiles
        mean[rows], quantiles[rows] = forecast.mean_in_units().numpy(), found
        asked[rows] = True
    assert quantiles is not None
    return PartForecast(mean[asked], quantiles[asked])


def validation_score(stays: Stays, model: ForecasterModel) -> tuple[float, dict[str, float]]:
    """What training makes small, and what it logs."""
    protocol = stays.protocol
    found = forecast_part(model, stays, VAL)
    told = scores(protocol, targets_of(protocol, VAL), found.mean)
    if protocol.name == "B":
        return told["mse"], told
    # The rule of the test part's common variables is a count of points, not of their values.
    assert common_variables(protocol).any()
    return told["common_mse"], told


def train_seed(
    stays: Stays, config: ForecasterConfig, train: ForecastTrainConfig, seed: int, folder: Path
) -> tuple[ForecasterModel, ForecastTrainResult]:
    """Train one seed; a folder with a checkpoint goes on.

    Args:
        stays: The data and how episodes are drawn.
        config: The model's form.
        train: How to train.
        seed: Of initialisation, episodes and dropout.
        folder: For the checkpoint.
    """
    torch.manual_seed(seed)
    model = ForecasterModel(config)
    model.set_variable_scale(torch.tensor(stays.location), torch.tensor(stays.scale))
    protocol = stays.protocol
    run = fingerprint(
        asdict(config), asdict(train), asdict(stays.config), seed, protocol.name,
        protocol.record_ids.tolist(), float(protocol.history.value.sum()),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    result = train_forecaster(
        model, lambda step: stays.episode(step, seed), lambda m: validation_score(stays, m),
        train, folder=folder, fingerprint=run,
    )  # fmt: skip
    (folder / "history.json").write_text(json.dumps(result.history, indent=1) + "\n")
    return model, result


@dataclass(frozen=True)
class Members:
    """What the members of a seed share, and where their data lies.

    Attributes:
        data: Folders of the stays.
        test: Folders of other stays to test on.
        protocol: "A" or "B".
        episodes: How episodes are drawn.
        config: The model's form.
        train: How to train; its seed is replaced.
        threads: Processes at once.
    """

    data: Sequence[Path]
    test: Sequence[Path]
    protocol: str
    episodes: EpisodeConfig
    config: ForecasterConfig
    train: ForecastTrainConfig
    threads: int = 2

    def fit(self, seeds: Sequence[int], folder: Path) -> list[tuple[ForecasterModel, float]]:
        """Train a member for each seed; give the models and the seconds that each took."""
        folders = [folder / f"member-{seed}" for seed in seeds]
        if len(seeds) == 1 or self.threads == 1:
            seconds = [self.fit_one(*job) for job in zip(seeds, folders, strict=True)]
        else:
            # Set before the processes start: a library reads them when it is loaded.
            os.environ |= {name: "1" for name in _ONE_THREAD} | {"OMP_WAIT_POLICY": "PASSIVE"}
            start = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(min(self.threads, len(seeds)), mp_context=start) as pool:
                seconds = list(pool.map(self.fit_one, seeds, folders))
        return [(self._load(folder), s) for folder, s in zip(folders, seconds, strict=True)]

    def fit_one(self, seed: int, folder: Path) -> float:
        """Train one member and write its weights; give the seconds."""
        torch.set_num_threads(1)
        stays = Stays(read_protocol(self.data, self.protocol, self.test), self.episodes)
        train = replace(self.train, seed=seed)
        model, result = train_seed(stays, self.config, train, seed, folder)
        save_file(model.state_dict(), folder / WEIGHTS)
        return result.seconds

    def _load(self, folder: Path) -> ForecasterModel:
        model = ForecasterModel(self.config)
        model.load_state_dict(load_file(folder / WEIGHTS))
        return model.eval()


def averaged(each: Sequence[PartForecast]) -> PartForecast:
    """Members' forecasts of a part, averaged: means, and quantiles level by level."""
    return PartForecast(
        np.mean([one.mean for one in each], axis=0),
        np.mean([one.quantiles for one in each], axis=0),
    )


def share_of_median(protocol: Protocol, found: PartForecast) -> float:
    """How far the point forecast goes from mean to median, chosen on val.

    The sum of the protocol's errors, each relative to the mean's own, is made small.

    Args:
        protocol: The task.
        found: Forecasts of the val part.
    """
    truth = targets_of(protocol, VAL)
    names = tuple(scores(protocol, truth, found.mean))

    def both(share: float) -> float:
        got = scores(protocol, truth, found.point(share))
        return sum(got[name] / at_mean[name] for name in names)

    at_mean = scores(protocol, truth, found.mean)
    return float(min(SHARES_OF_MEDIAN, key=both))
