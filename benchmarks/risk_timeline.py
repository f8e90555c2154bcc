"""The timeline model as one of several models of a risk: trained fold by fold, asked of the rest.

Each fold is the whole road of a user: an event table, a token store, pretraining, fine-tuning of
all tasks from one forward pass, calibrated scores. A fold that is done is not done again.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import event_table, schema

_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_TUNING_SHARE = 0.1
KEY = [schema.SUBJECT_ID, schema.PREDICTION_TIME]


@dataclass(frozen=True)
class TimelineSetup:
    """How the timeline model is trained.

    Attributes:
        d_model: Width.
        n_layers: Blocks.
        pretrain_epochs: Passes without labels.
        epochs: Passes with labels, at most.
        lr: Peak learning rate of both.
        max_tokens: Tokens a batch.
        fastest_hours: Shortest time constant at the start.
        slowest_hours: Longest.
        task_weights: Weight of each task; 1 where it is not named.
        seed: Of everything drawn.
    """

    d_model: int = 64
    n_layers: int = 2
    pretrain_epochs: int = 1
    epochs: int = 6
    lr: float = 2e-3
    max_tokens: int = 8192
    fastest_hours: float = 0.25
    slowest_hours: float = 2000.0
    task_weights: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class TimelineData:
    """What every fold reads.

    Attributes:
        events: Events that may be seen, whole subjects.
        asked: Task to the rows of `schema.COHORT` that are scored and taught.
        also_taught: Task to further rows, such as the same stays asked earlier.
        dataset: Facts of the event table.
    """

    events: pl.DataFrame
    asked: Mapping[str, pl.DataFrame]
    also_taught: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    dataset: Mapping[str, str] = field(default_factory=dict)


def cross_fitted(
    data: TimelineData, fold_of: Mapping[int, int], n_folds: int, setup: TimelineSetup,
    folder: Path, threads: int,
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:  # fmt: skip
    """Train a model without each fold and ask it of that fold and of the test subjects.

    Args:
        data: Events and questions.
        fold_of: Training subject to fold; subjects that are not in it are the test.
        n_folds: Folds.
        setup: How to train.
        folder: For what is made on the way.
        threads: Processes at once.

    Returns:
        Task to (out of fold, test): a probability for each row of `data.asked`, where it applies
        and else NaN; on test the mean of all folds' log odds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data.events.write_parquet(folder / "events.parquet")
    for name, frames in (("asked", data.asked), ("also", data.also_taught)):
        for task, frame in frames.items():
            frame.write_parquet(folder / f"{name}-{task}.parquet")
    jobs = [
        (folder, k, {s: f for s, f in fold_of.items() if f != k}, setup, dict(data.dataset))
        for k in range(n_folds)
    ]
    os.environ |= {name: "1" for name in _ONE_THREAD} | {"OMP_WAIT_POLICY": "PASSIVE"}
    start = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(threads, n_folds), mp_context=start) as pool:
        list(pool.map(_train_fold, jobs))
    return {task: _gathered(folder, task, rows, fold_of, n_folds)
            for task, rows in data.asked.items()}  # fmt: skip


def _train_fold(job: tuple[Path, int, Mapping[int, int], TimelineSetup, Mapping[str, str]]) -> None:
    """Train one fold and write what it says of everyone it was not taught on."""
    folder, k, taught, setup, dataset = job
    here = folder / f"fold-{k}"
    if (here / "done").exists():
        return
    import torch

    from tsfm.models.mamba import MambaConfig
    from tsfm.tokens.token_store import build_token_store
    from tsfm.training.finetune import FINETUNE_DEFAULTS
    from tsfm.training.loop import TrainConfig
    from tsfm.training.multitask import MultitaskConfig, multitask_finetune
    from tsfm.training.pretrain import pretrain
    from tsfm.training.task_answers import score_tasks

    torch.set_num_threads(1)
    events = pl.read_parquet(folder / "events.parquet")
    if not (here / "tokens" / "config.json").exists():
        shutil.rmtree(here, ignore_errors=True)
        rng = np.random.default_rng([setup.seed, k])
        subjects = np.array(sorted(taught))
        tuning = set(subjects[rng.random(len(subjects)) < _TUNING_SHARE].tolist())
        splits = {
            subject: schema.HELD_OUT if subject not in taught
            else schema.TUNING if subject in tuning else schema.TRAIN
            for subject in events[schema.SUBJECT_ID].unique().to_list()
        }  # fmt: skip
        with event_table.EventWriter(here / "events", n_shards=4) as writer:
            writer.add(events)
            writer.finish(dataset={"clock": "wall", **dataset}, subject_splits=splits)
        build_token_store(here / "events", here / "tokens")
    if not (here / "pretrained" / "config.json").exists():
        pretrain(
            here / "tokens", here / "pretrained",
            backbone=MambaConfig(
                d_model=setup.d_model, n_layers=setup.n_layers,
                fastest_hours=setup.fastest_hours, slowest_hours=setup.slowest_hours,
            ),
            config=TrainConfig(
                epochs=setup.pretrain_epochs, max_tokens=setup.max_tokens, lr=setup.lr,
                seed=setup.seed + k,
            ),
            progress=False,
        )  # fmt: skip
    asked = {p.stem.removeprefix("asked-"): pl.read_parquet(p) for p in folder.glob("asked-*")}
    also = {p.stem.removeprefix("also-"): pl.read_parquet(p) for p in folder.glob("also-*")}
    teach = {
        task: pl.concat([rows, *([also[task]] if task in also else [])])
        for task, rows in asked.items()
    }
    if not (here / "model" / "config.json").exists():
        multitask_finetune(
            here / "pretrained", here / "tokens", teach, here / "model",
            config=MultitaskConfig(
                train=TrainConfig(
                    **{**vars(FINETUNE_DEFAULTS), "epochs": setup.epochs, "lr": setup.lr,
                       "max_tokens": setup.max_tokens, "seed": setup.seed + k}
                ),
                task_weights=setup.task_weights,
            ),
            progress=False,
        )  # fmt: skip
    found = score_tasks(here / "model", here / "tokens", asked, split=schema.HELD_OUT)
    for task, scores in found.items():
        scores.write_parquet(here / f"scores-{task}.parquet")
    (here / "done").touch()


def _gathered(
    folder: Path, task: str, rows: pl.DataFrame, fold_of: Mapping[int, int], n_folds: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    fold = rows[schema.SUBJECT_ID].replace_strict(
        list(fold_of), list(fold_of.values()), default=-1, return_dtype=pl.Int64
    )
    fold = fold.to_numpy()
    apart, on_test = np.full(len(fold), np.nan), np.zeros(len(fold))
    for k in range(n_folds):
        scores = pl.read_parquet(folder / f"fold-{k}" / f"scores-{task}.parquet")
        p = rows.select(KEY).join(scores, on=KEY, how="left", maintain_order="left")
        p = p["probability"].cast(pl.Float64).to_numpy()
        apart[fold == k] = p[fold == k]
        on_test += np.log(p) - np.log1p(-p)
    test = 1 / (1 + np.exp(-on_test / n_folds))
    return apart, np.where(fold == -1, test, np.nan)
