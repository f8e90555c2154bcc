"""Train `forecaster-zero`: `python benchmarks/train_forecaster_zero.py --out DIR [--data DIR]`.

Validation is on series of the prior that training does not draw (another seed), never on the sets
of `zero_shot.py`. A run that was stopped goes on when it is started again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

import torch

from tsfm.forecasting.zero_episodes import ZeroEpisodes
from tsfm.models.forecaster import ForecasterConfig, ForecasterModel
from tsfm.models.forecaster_checkpoint import save_forecaster
from tsfm.models.quantile_head import pinball
from tsfm.training.forecast import (
    Episode,
    ForecastTrainConfig,
    ForecastTrainResult,
    train_forecaster,
)
from tsfm.training.loop import fingerprint

ZERO = ForecasterConfig(
    n_variables=1, d_model=64, n_heads=4, n_reader_layers=2, n_variable_layers=0,
    n_query_layers=3, query_reads_points=True, query_experts=4, experts=0, clock="context",
    scale="context", calendar=True, rotary_periods_s=(2.05, 2000.0), fastest=0.5, slowest=500.0,
    dropout=0.0,
)  # fmt: skip
VALIDATION_SEED, VALIDATION_STEPS = 990_001, 24
# A few series that leave their past by a hundred spreads must not choose the weights alone.
BOUND = 3.0


def train(
    config: ForecasterConfig,
    train: ForecastTrainConfig,
    episodes: ZeroEpisodes,
    folder: Path,
    n_validation: int = VALIDATION_STEPS,
) -> tuple[ForecasterModel, ForecastTrainResult]:
    """Train one model on the prior.

    Args:
        config: Its form.
        train: How.
        episodes: What on.
        folder: For the checkpoint.
        n_validation: Episodes of another seed on which weights are chosen.
    """
    torch.manual_seed(train.seed)
    model = ForecasterModel(config)
    held_out = ZeroEpisodes(VALIDATION_SEED, episodes.n_series, reuse=1)
    kept = [held_out.episode(step) for step in range(n_validation)]

    def validate(model: ForecasterModel) -> tuple[float, dict[str, float]]:
        each = [query_crps(model, episode) for episode in kept]
        raw = torch.cat(each)
        told = {"crps": float(raw.mean()), "bounded": float(raw.clamp(max=BOUND).mean())}
        return told["bounded"], told

    told = {**asdict(episodes), "real": [len(values) for _, values in episodes.real]}
    folder.mkdir(parents=True, exist_ok=True)
    result = train_forecaster(
        model, episodes.episode, validate, train, folder=folder,
        fingerprint=fingerprint(asdict(config), asdict(train), told),
    )  # fmt: skip
    (folder / "history.json").write_text(json.dumps(result.history, indent=1) + "\n")
    return model, result


def query_crps(model: ForecasterModel, episode: Episode) -> torch.Tensor:
    """CRPS of each query of an episode, in units of its series' spread."""
    forecast = model(episode.context, episode.queries)
    return pinball(forecast.quantiles, forecast.standardise(episode.truth))


def main() -> None:
    """Train and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--steps", type=int, default=5_000, help="episodes (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("TSFM_DATA", "../shared/data")),
        help="open series to mix in; a folder without them: the prior alone",
    )  # fmt: skip
    parser.add_argument("--save", type=Path, help="model directory to write")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(chosen.threads)
    real = open_series(chosen.data)
    steps, n_series = (3, 4) if chosen.quick else (chosen.steps, ZeroEpisodes(1).n_series)
    how = ForecastTrainConfig(
        n_steps=steps, lr=2e-3, average_decay=0.999, validate_every=500, square=0.2,
        bound=3.0, weight_decay=0.02,
    )  # fmt: skip
    episodes = ZeroEpisodes(1, n_series, real=real, real_share=0.06 if real else 0.0)
    model, result = train(
        ZERO, how, episodes, chosen.out, 1 if chosen.quick else VALIDATION_STEPS
    )  # fmt: skip
    if chosen.save is not None:
        save_forecaster(chosen.save, model, variables=(), facts={
            "data": "synthetic irregular series (tsfm.forecasting.series_prior)" + (
                "; 6 % of the series from US influenza-like illness (CDC, public domain) and"
                " COVID-19 counts (Johns Hopkins CSSE, CC BY 4.0), all before the windows that"
                " docs/benchmarks/zero_shot.md evaluates" if real else ""),
            "command": f"benchmarks/train_forecaster_zero.py --steps {steps}",
            "licence": "Apache-2.0", "page": "docs/benchmarks/zero_shot.md",
            "steps": result.best_step,
            "series a step": episodes.n_series,
            "bounded CRPS of held-out synthetic series": round(result.best_score, 4),
        })  # fmt: skip
    print(json.dumps({"bounded_crps": result.best_score, "step": result.best_step,
                      "seconds": round(result.seconds), "real_series": len(real)}))  # fmt: skip


def open_series(folder: Path) -> list[tuple]:
    """The parts of the open series that lie before every window that is evaluated."""
    from zero_shot_data import training_series

    try:
        series = training_series(folder)
    except OSError:
        return []
    found = []
    for group in series.values():
        for one in group:
            there = torch.from_numpy(one.values).isfinite().numpy()
            if there.sum() >= 100:
                found.append((one.seconds[there], one.values[there]))
    return found


if __name__ == "__main__":
    main()
