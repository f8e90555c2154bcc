"""Forecasts of series never seen: `forecaster-zero` against classical methods and our MIRA.

    python benchmarks/zero_shot.py                       the shipped weights on the open sets
    python benchmarks/zero_shot.py --mira DIR            beside a MIRA of `zero_shot_mira.py`
    python benchmarks/zero_shot.py --test DIR            other rows of the same files
    python benchmarks/zero_shot.py --sweep               also 10 to 90 % of the points missing
    python benchmarks/zero_shot.py --quick               made-up series, random weights

Contexts lose 30 % of their points at random; horizons are 24, 32, 48 and 64 steps
(`zero_shot_data`). The classical peers need a grid and get the gaps filled by straight lines; the
forecaster and MIRA get the points there are. Models are compared by weighted quantile loss (mean of
the four horizons) and by mean rank over the sets; MIRA has no quantiles and is ranked by the
absolute error of its point forecast, which is what the loss of a point comes to. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine_line
from numpy.typing import NDArray
from train_forecaster_zero import ZERO
from zero_shot_data import (
    HORIZON,
    HORIZONS,
    WEEK_SECONDS,
    Series,
    Window,
    available_sets,
    cut_windows,
    read_series,
)
from zero_shot_peers import LEVELS, forecast_windows, score_forecasts

from tsfm.models.forecast_data import ForecastContext, ForecastQueries
from tsfm.models.forecaster import ForecasterModel
from tsfm.models.quantile_head import LEVELS as MODEL_LEVELS

DEFAULT = Path(os.environ.get("TSFM_DATA", "../shared/data"))
RATES = (0.1, 0.3, 0.5, 0.7, 0.9)
OURS = "forecaster-zero"
CLASSICAL = ("seasonal naive", "ets", "stl + ets", "theta", "linear", "last value")
Answer = tuple[
    NDArray[np.float64], NDArray[np.float64]
]  # (window, target, level), (window, target)
Model = Callable[[list[Window]], Answer]


def packed(windows: list[Window]) -> tuple[ForecastContext, ForecastQueries]:
    """Windows as entities of one series each."""

    def borders(sizes: list[int]) -> torch.Tensor:
        return torch.tensor([0, *sizes]).cumsum(0)

    def joined(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([getattr(window, name) for window in windows]))

    n = len(windows)
    context = ForecastContext(
        joined("seconds"), joined("values"), borders([len(w.values) for w in windows]),
        torch.zeros(n, dtype=torch.int64), torch.arange(n + 1),
        torch.tensor([float(w.seconds[-1]) for w in windows], dtype=torch.float64),
    )  # fmt: skip
    asked = ForecastQueries(
        joined("target_seconds"), borders([len(w.target_seconds) for w in windows])
    )
    return context, asked


@torch.no_grad()
def by_forecaster(model: ForecasterModel, windows: list[Window], n_batch: int = 64) -> Answer:
    """Quantiles and means of a forecaster."""
    columns = [MODEL_LEVELS.index(round(float(level), 3)) for level in LEVELS]
    quantiles, means = [], []
    for at in range(0, len(windows), n_batch):
        some = windows[at : at + n_batch]
        forecast = model(*packed(some))
        found = forecast.quantiles_in_units().numpy()[:, columns]
        quantiles.append(found.reshape(len(some), HORIZON, -1))
        means.append(forecast.mean_in_units().numpy().reshape(len(some), HORIZON))
    return np.concatenate(quantiles), np.concatenate(means)


def scores_of(windows: list[Window], answer: Answer) -> dict[str, float]:
    """Means over the horizons."""
    each = [score_forecasts(windows, LEVELS, *answer, horizon) for horizon in HORIZONS]
    return {
        name: float(np.mean([one[name] for one in each])) for name in ("wql", "mase", "coverage")
    }


def ranks(table: dict[str, dict[str, dict[str, float]]], score: str = "wql") -> dict[str, float]:
    """Mean rank of each model over the sets, by a score; 1 is best."""
    models = list(table)
    losses = np.array([[told[score] for told in table[model].values()] for model in models])
    order = losses.argsort(0).argsort(0) + 1
    return {model: float(order[i].mean()) for i, model in enumerate(models)}


def made_up_sets() -> dict[str, list[Series]]:
    """Two weekly series with a season, in place of real ones: shows that everything runs."""
    rng = np.random.default_rng(0)
    weeks = np.arange(400)
    return {"ili": [
        Series(f"made up {i}", weeks * WEEK_SECONDS,
               5 + 3 * np.sin(2 * np.pi * (weeks + 9 * i) / 52) + rng.normal(0, 0.3, 400),
               WEEK_SECONDS, 52)
        for i in range(2)
    ]}  # fmt: skip


def compare(
    sets: dict[str, list[Series]],
    models: dict[str, Model],
    missing: float,
    most_windows: int | None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of every model on every set: model, set, score."""
    table: dict[str, dict[str, dict[str, float]]] = {name: {} for name in (*models, *CLASSICAL)}
    for name, series in sets.items():
        windows = cut_windows(series, name, missing)
        if most_windows is not None and len(windows) > most_windows:
            spaced = np.linspace(0, len(windows) - 1, most_windows).round().astype(int)
            windows = [windows[i] for i in spaced]
        for model, forecast in models.items():
            table[model][name] = scores_of(windows, forecast(windows))
        for peer in CLASSICAL:
            found = forecast_windows(windows, peer)
            table[peer][name] = scores_of(windows, (found.quantiles, found.mean))
    return table


def show(table: dict[str, dict[str, dict[str, float]]], score: str) -> None:
    """Print one score."""
    sets = list(next(iter(table.values())))
    mean_rank = ranks(table, score)
    print(f"\n{score:<18}" + "".join(f"{name:>10}" for name in sets) + f"{'mean rank':>12}")
    for model in sorted(table, key=lambda m: mean_rank[m]):
        cells = "".join(f"{table[model][name][score]:>10.4f}" for name in sets)
        print(f"{model:<18}{cells}{mean_rank[model]:>12.2f}")


def summary(table: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """What the benchmark is asked for."""
    sets = list(next(iter(table.values())))
    best = {name: min(table[peer][name]["wql"] for peer in CLASSICAL) for name in sets}
    wins = [name for name in sets if table[OURS][name]["wql"] < best[name]]
    return {
        "mean_rank": ranks(table),
        "wins_over_best_classical": wins, "n_sets": len(sets),
        "wql": {model: {n: told["wql"] for n, told in of.items()} for model, of in table.items()},
        "coverage_80": {name: told["coverage"] for name, told in table[OURS].items()},
    }  # fmt: skip


def load_models(chosen: argparse.Namespace) -> dict[str, Model]:
    """The networks that are compared."""
    if chosen.quick:
        torch.manual_seed(0)
        network = ForecasterModel(ZERO).eval()
    else:
        from tsfm.forecasting.forecaster import Forecaster

        network = Forecaster.from_pretrained(chosen.weights).model
    models: dict[str, Model] = {OURS: lambda windows: by_forecaster(network, windows)}
    if chosen.mira:
        from zero_shot_mira import load_mira

        models["MIRA (ours)"] = load_mira(chosen.mira)
    return models


def main(arguments: list[str] | None = None) -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT, help="folder of the sets")
    parser.add_argument("--test", type=Path, help="another folder to evaluate instead")
    parser.add_argument("--weights", default=OURS, help="name or folder of a forecaster")
    parser.add_argument("--mira", type=Path, help="folder of a trained MIRA")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    folder = chosen.test or chosen.data
    sets = made_up_sets() if chosen.quick else {
        name: read_series(folder, name) for name in available_sets(folder)
    }  # fmt: skip
    models = load_models(chosen)
    most = 3 if chosen.quick else None
    print(machine_line())
    table = compare(sets, models, 0.3, most)
    show(table, "wql")
    show(table, "mase")
    told = summary(table)
    print(f"\nbelow the best classical loss on {len(told['wins_over_best_classical'])} "
          f"of {told['n_sets']} sets")  # fmt: skip
    if chosen.sweep:
        told["sweep"] = {}
        print(f"\n{'missing':<10}" + "".join(f"{name:>18}" for name in table))
        for rate in RATES:
            swept = compare(sets, models, rate, most or 60)
            told["sweep"][str(rate)] = ranks(swept)
            cells = "".join(f"{ranks(swept)[name]:>18.2f}" for name in table)
            print(f"{rate:<10.0%}{cells}", flush=True)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
