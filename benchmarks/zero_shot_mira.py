"""Our MIRA as a peer of `zero_shot.py`, trained on the same series for the same time.

    python benchmarks/zero_shot_mira.py --out DIR --minutes 30

It gets the episodes that `forecaster-zero` is trained on (`ZeroEpisodes`, same seed), context and
future joined, and learns each point from those before it, as the paper has it. Values are
standardised by the context, whose median and spread are all that a forecast may know. The learning
rate follows the clock, so that the time is used whatever the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from train_forecaster_zero import open_series
from zero_shot_data import HORIZON, Window
from zero_shot_peers import LEVELS

from tsfm.forecasting.zero_episodes import ZeroEpisodes
from tsfm.kernels.heap import keep_freed_memory
from tsfm.models.mira import MiraConfig, MiraModel
from tsfm.training.forecast import Episode
from tsfm.training.optimizer import WeightAverage, learning_rate, make_optimizer

PEAK, PARTS = 1e-3, 10_000


def joined(episode: Episode) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Context and future of each series end to end: standardised values, times, borders."""
    context = episode.context.scaled_by_itself()
    past, ahead = context.cu_points, episode.queries.cu_queries
    asked = episode.queries.series()
    assert context.location is not None
    assert context.spread is not None
    future = ((episode.truth.double() - context.location[asked]) / context.spread[asked]).float()
    series = torch.cat([context.series_of_point(), asked])
    order = series.argsort(stable=True)
    values = torch.cat([context.values, future])[order].clamp(-20, 20)
    return values, torch.cat([context.seconds, episode.queries.seconds])[order], past + ahead


def train(out: Path, minutes: float, data: Path, threads: int, n_series: int) -> dict[str, float]:
    """Train for so many minutes and write the averaged weights."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    torch.manual_seed(0)
    real = open_series(data)
    episodes = ZeroEpisodes(1, n_series, real=real, real_share=0.06 if real else 0.0)
    model = MiraModel(MiraConfig.tiny())
    optimizer = make_optimizer(model, lr=PEAK, weight_decay=0.02)
    average = WeightAverage(model, 0.998)
    started, step, losses = time.perf_counter(), 0, []
    while (spent := (time.perf_counter() - started) / (60 * minutes)) < 1:
        rate = learning_rate(round(spent * PARTS), n_steps=PARTS, warmup=PARTS // 20, peak=PEAK)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model.loss(*joined(episodes.episode(step)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
        losses.append(float(loss.detach()))
        step += 1
        if step % 100 == 0:
            print(f"step {step}, loss {np.mean(losses[-100:]):.4f}, {spent:.0%}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    save_file(average.weights, out / "mira.safetensors")
    n = sum(p.numel() for p in model.parameters())
    return {"steps": step, "loss": float(np.mean(losses[-200:])), "parameters": n}


def load_mira(folder: Path) -> Callable[[list[Window]], tuple[np.ndarray, np.ndarray]]:
    """A trained MIRA as a model of `zero_shot.py`: its point forecast stands for every quantile."""
    model = MiraModel(MiraConfig.tiny())
    model.load_state_dict(load_file(folder / "mira.safetensors"))
    model.eval()

    def forecast(windows: list[Window]) -> tuple[np.ndarray, np.ndarray]:
        from zero_shot import packed

        points = []
        for at in range(0, len(windows), 64):
            context, queries = packed(windows[at : at + 64])
            context = context.scaled_by_itself()
            assert context.location is not None
            assert context.spread is not None
            z = model.forecast(
                context.values, context.seconds, context.cu_points, queries.seconds,
                queries.cu_queries,
            )  # fmt: skip
            asked = queries.series()
            found = z.double() * context.spread[asked] + context.location[asked]
            points.append(found.reshape(-1, HORIZON).numpy())
        mean = np.concatenate(points)
        return np.repeat(mean[..., None], len(LEVELS), -1), mean

    return forecast


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=1)
    default = Path(os.environ.get("TSFM_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="open series to mix in")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    chosen = parser.parse_args()
    minutes = 0.02 if chosen.quick else chosen.minutes
    n_series = 4 if chosen.quick else ZeroEpisodes(1).n_series
    print(json.dumps(train(chosen.out, minutes, chosen.data, chosen.threads, n_series)))


if __name__ == "__main__":
    main()
