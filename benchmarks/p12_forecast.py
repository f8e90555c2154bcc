"""Forecasts on PhysioNet 2012: our forecaster against gradient boosting, on the same stays.

    python benchmarks/p12_forecast.py --data DIR [DIR ...] --protocol A --seeds 1 2 3 4 5
    python benchmarks/p12_forecast.py --quick               made-up stays, to see that it runs

`--data` folders hold `observations-*.parquet`; all their stays are split as the protocol says.
`--test DIR` takes other stays as the test part. `--tables` adds the parts left out one by one.

Two settings that are never mixed. In the first every query is answered by itself. In the second,
`query_pattern`, a model sees the whole list of what will be asked: published graph models do, and
when a nurse will measure tells how ill a patient is. The last line is one JSON object; its plain
keys are of the first setting, means over seeds.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine_line
from p12_data import TEST, VAL, Protocol, read_protocol, targets_of
from p12_episodes import EpisodeConfig, Stays
from p12_grud import grud
from p12_mira import mira
from p12_peers import (
    boosting,
    conformal_quantiles,
    half_last_half_mean,
    last_value,
    patient_mean,
    train_mean,
)
from p12_scores import (
    distribution_scores,
    paired_bootstrap,
    per_variable,
    scores,
    variables_within,
)
from p12_stays import write_stays
from p12_training import (
    Members,
    PartForecast,
    averaged,
    forecast_part,
    model_config,
    share_of_median,
)

from tsfm.forecasting.conformal import SplitConformal, fit_split_conformal
from tsfm.models.quantile_head import LEVELS
from tsfm.training.forecast import ForecastTrainConfig

DEFAULT = Path(os.environ.get("TSFM_DATA", "../shared/data")) / "physionet2012"
STEPS = {"A": 2000, "B": 1500}
LEAD_EDGES_HOURS = {"A": (6.0, 12.0, 18.0), "B": (1.5,)}
WITHOUT: dict[str, dict[str, Any]] = {
    "without CT-RoPE": {"rotary": False},
    "without experts": {"experts": 0},
    "without flow": {"flow": "none"},
    "ODE for the closed flow": {"flow": "ode"},
    "without the table": {"table": 0},
    "without other variables": {"n_variable_layers": 0, "table": 0},
    "attention for Mamba": {"reader": "attention"},
}


@dataclass(frozen=True)
class SeedResult:
    """What one seed came to.

    Attributes:
        point: (n,) point forecasts of the test targets.
        quantiles: (n, n_levels) of them, after conformal calibration on val.
        told: Scores.
        seconds: Of training, with its processes side by side.
    """

    point: np.ndarray
    quantiles: np.ndarray
    told: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Run:
    """What all trainings of a call share.

    Attributes:
        protocol: The data.
        stays: The same as episodes.
        members: How members train.
        n_members: Members a seed.
        folder: For checkpoints.
    """

    protocol: Protocol
    stays: Stays
    members: Members
    n_members: int
    folder: Path

    def seed(self, seed: int, name: str = "forecaster", **parts: Any) -> SeedResult:
        """Train one seed and score it on test."""
        members = replace(self.members, config=replace(self.members.config, **parts))
        folder = self.folder / f"{name.replace(' ', '-')}-{self.protocol.name}-{seed}"
        seeds = [100 * seed + member for member in range(self.n_members)]
        fitted = members.fit(seeds, folder)
        models, seconds = [model for model, _ in fitted], [took for _, took in fitted]
        each_val = [forecast_part(model, self.stays, VAL) for model in models]
        on_val = averaged(each_val)
        each = [forecast_part(model, self.stays, TEST) for model in models]
        told = score_part(
            self.protocol, averaged(each), share_of_median(self.protocol, on_val),
            fit_calibration(self.protocol, on_val),
            sum(seconds) / min(members.threads, len(seconds)),
        )  # fmt: skip
        told.told["val_by_members"] = [
            scores(self.protocol, targets_of(self.protocol, VAL), averaged(each_val[:n]).mean)
            for n in range(1, len(models) + 1)
        ]
        truth = targets_of(self.protocol, TEST)
        share = told.told["share_of_median"]
        alone = [scores(self.protocol, truth, found.point(share)) for found in each]
        told.told["members_alone"] = alone
        return told


def fit_calibration(protocol: Protocol, found: PartForecast) -> SplitConformal:
    """Conformal shifts by variable and lead time from the val stays."""
    truth = targets_of(protocol, VAL)
    return fit_split_conformal(
        np.array(protocol.variables)[truth.variable], truth.hours - protocol.cut_hours,
        LEVELS, found.quantiles, truth.value, groups=truth.stay,
        lead_edges_hours=LEAD_EDGES_HOURS[protocol.name],
    )  # fmt: skip


def score_part(
    protocol: Protocol, found: PartForecast, share: float, calibration: SplitConformal,
    seconds: float,
) -> SeedResult:  # fmt: skip
    """Scores of a forecast of the test part."""
    truth = targets_of(protocol, TEST)
    quantiles = calibration.apply(
        np.array(protocol.variables)[truth.variable], truth.hours - protocol.cut_hours,
        LEVELS, found.quantiles,
    )  # fmt: skip
    point = found.point(share)
    told: dict[str, Any] = scores(protocol, truth, point)
    told |= distribution_scores(protocol, truth, np.array(LEVELS), quantiles)
    told["share_of_median"] = share
    told["mean_only"] = scores(protocol, truth, found.mean)
    raw = distribution_scores(protocol, truth, np.array(LEVELS), found.quantiles)
    told["raw"] = {name: raw[name] for name in ("crps", "coverage_80", "coverage_95")}
    return SeedResult(point, quantiles, told, seconds)


def steps_of(n_steps: int) -> ForecastTrainConfig:
    """How to train for so many steps."""
    return ForecastTrainConfig(n_steps=n_steps, validate_every=max(1, min(250, n_steps // 4)))


def of_test(protocol: Protocol, both: np.ndarray) -> np.ndarray:
    """The test rows of a peer's forecast of val and test."""
    return both[np.isin(protocol.part[targets_of(protocol, VAL, TEST).stay], (TEST,))]


def peer_scores(protocol: Protocol, both: np.ndarray) -> dict[str, float]:
    """Scores of a peer, with quantiles from its own val residuals."""
    truth = targets_of(protocol, TEST)
    levels = np.array(LEVELS)
    spread = of_test(protocol, conformal_quantiles(protocol, both, levels))
    told = distribution_scores(protocol, truth, levels, spread)
    kept = {name: told[name] for name in ("crps", "coverage_80", "coverage_95")}
    return {**scores(protocol, truth, of_test(protocol, both)), **kept}


def plain(told: dict[str, Any]) -> dict[str, float]:
    """The scalar scores."""
    return {name: value for name, value in told.items() if isinstance(value, float)}


def summary(results: list[SeedResult]) -> dict[str, Any]:
    """Mean and spread over seeds of every scalar."""
    found: dict[str, Any] = {}
    for name in plain(results[0].told):
        values = [result.told[name] for result in results]
        found[name] = float(np.mean(values))
        if len(values) > 1:
            found[f"{name}_sd"] = float(np.std(values, ddof=1))
    return found


def row(name: str, told: dict[str, Any], protocol: Protocol) -> str:
    """One line of the table."""
    names = ("macro_mse", "macro_mae", "common_mse") if protocol.name == "A" else ("mse", "mae")
    units = {"macro_mse": 1e3, "common_mse": 1e3, "macro_mae": 1e2}
    cells = [f"{told[n] * units.get(n, 1):9.4f}" for n in names]
    cells += [f"{told[n]:9.4f}" if n in told else " " * 9
              for n in ("crps", "coverage_80", "coverage_95")]  # fmt: skip
    return f"{name:<34}" + "".join(cells)


def show_variables(
    protocol: Protocol, ours: np.ndarray, trees: np.ndarray, told: dict[str, Any]
) -> None:
    """Errors by variable beside boosting's, largest first, and coverage."""
    truth = targets_of(protocol, TEST)
    theirs = {r["variable"]: r for r in per_variable(protocol, truth, trees)}
    print(f"\n{'variable':<14}{'points':>8}{'ours mse':>12}{'boosting':>12}{'ratio':>8}"
          f"{'80 %':>8}{'95 %':>8}")  # fmt: skip
    inside = told["coverage_80_by_variable"], told["coverage_95_by_variable"]
    for r in per_variable(protocol, truth, ours):
        other = theirs[r["variable"]]["mse"]
        ratio = r["mse"] / other if other > 1e-12 else 1.0
        shares = "".join(f"{share[r['variable']]:>8.3f}" for share in inside)
        print(f"{r['variable']:<14}{r['n']:>8}{r['mse']:>12.6f}{other:>12.6f}{ratio:>8.3f}{shares}")


def run(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train, forecast, compare."""
    protocol = read_protocol(chosen.data, chosen.protocol, chosen.test)
    truth = targets_of(protocol, TEST)
    stays = Stays(protocol, EpisodeConfig())
    steps = chosen.steps or STEPS[protocol.name]
    table = {} if chosen.table is None else {"table": chosen.table}
    members = Members(
        chosen.data, chosen.test, protocol.name, stays.config, model_config(protocol, **table),
        steps_of(steps), chosen.threads,
    )  # fmt: skip
    work = Run(protocol, stays, members, chosen.members, folder)
    names = "macro mse  macro mae common mse" if protocol.name == "A" else "mse      mae"
    print(f"{machine_line()}\nprotocol {protocol.name}: {len(protocol.record_ids)} stays, "
          f"{len(truth)} test targets\n{'':<38}{names}     crps      80 %      95 %")  # fmt: skip
    for name, peer in (("train mean", train_mean), ("last value", last_value),
                       ("patient mean", patient_mean),
                       ("half last, half patient mean", half_last_half_mean)):  # fmt: skip
        print(row(name, peer_scores(protocol, peer(protocol)), protocol), flush=True)
    trees = boosting(protocol, threads=chosen.threads)
    gbm = peer_scores(protocol, trees)
    print(row("LightGBM a variable", gbm, protocol), flush=True)
    results = []
    for seed in chosen.seeds:
        results.append(work.seed(seed))
        print(row(f"forecaster, seed {seed}", results[-1].told, protocol), flush=True)
        alone = results[-1].told["members_alone"]
        for how, of in (("mean", np.mean), ("sd", partial(np.std, ddof=1))):
            if len(alone) > 1:
                spread = {name: float(of([one[name] for one in alone])) for name in alone[0]}
                print(row(f"  its members alone, {how}", spread, protocol), flush=True)
    show_members(results)
    told = summary(results)
    mean_point = np.mean([result.point for result in results], axis=0)
    if len(results) > 1:
        print(row("forecaster, mean over seeds", told, protocol))
        print(row("all seeds averaged", scores(protocol, truth, mean_point), protocol))
    ratios = {name: told[name] / gbm[name] for name in scores(protocol, truth, mean_point)}
    print("over boosting's: " + ", ".join(f"{name} {r:.4f}" for name, r in ratios.items()))
    delta = paired_bootstrap(protocol, truth, results[0].point, of_test(protocol, trees))
    told |= {
        "protocol": protocol.name, "n_test": len(truth), "gbm": gbm,
        "ratio_to_gbm": ratios,
        "delta_ci": {name: list(found) for name, found in delta.items()},
        "seconds_per_seed": float(np.mean([result.seconds for result in results])),
        "seeds": list(chosen.seeds), "n_stays": len(protocol.record_ids),
        "seeds_averaged": scores(protocol, truth, mean_point),
    }  # fmt: skip
    show_variables(protocol, results[0].point, of_test(protocol, trees), results[0].told)
    print("\ncoverage by hours ahead (standard error), seed", chosen.seeds[0])
    first = results[0].told
    for hours, (n, n_of) in first["by_horizon"].items():
        shares = "".join(
            f"{first[f'coverage_{p}_by_horizon'][hours]:9.3f} "
            f"({first[f'coverage_{p}_by_horizon_errors'][hours]:.3f})"
            for p in (80, 95)
        )
        print(f"  {hours:<10}{shares}   {n:,} targets of {n_of:,} stays")
    told["variables_within"] = variables_within(first)
    for by in ("horizon", "variable"):
        told[f"coverage_by_{by}"] = [first[f"coverage_{p}_by_{by}"] for p in (80, 95)]
    if chosen.query_pattern:
        told["query_pattern"] = query_pattern(work, chosen)
    if chosen.peers:
        told["peers"] = learnt_peers(protocol, stays, chosen)
    if chosen.tables:
        print(f"\nparts left out, {chosen.ablation_steps} steps each, seed {chosen.seeds[0]}")
        short = replace(
            work, members=replace(members, train=steps_of(chosen.ablation_steps)), n_members=1
        )
        told["parts"] = {}
        left_out = dict(list(WITHOUT.items())[:: 3 if chosen.quick else 1])
        for name, parts in {"all parts": {}, **left_out}.items():
            found = plain(short.seed(chosen.seeds[0], f"short {name}", **parts).told)
            told["parts"][name] = found
            print(row(name, found, protocol), flush=True)
    return told


def show_members(results: list[SeedResult]) -> None:
    """What one member more is worth on val, mean over seeds: how many to train is chosen there."""
    by_seed = [result.told["val_by_members"] for result in results]
    for name in by_seed[0][0]:
        means = [np.mean([of[name] for of in at]) for at in zip(*by_seed, strict=True)]
        told = ", ".join(f"{n} {value:.6f}" for n, value in enumerate(means, 1))
        print(f"on val, {name} of members' mean, by their number: {told}")


def learnt_peers(
    protocol: Protocol, stays: Stays, chosen: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Other networks, by themselves on the same split."""
    epochs = 1 if chosen.quick else chosen.grud_epochs
    minutes = 0.02 if chosen.quick else chosen.mira_minutes
    found = {}
    print()
    for name, peer in (
        (f"GRU-D, {epochs} epochs", lambda: grud(protocol, chosen.seeds[0], epochs)),
        (f"our MIRA, {minutes:g} minutes", lambda: mira(protocol, stays, minutes)),
    ):
        found[name] = peer_scores(protocol, peer())
        print(row(name, found[name], protocol), flush=True)
    return found


def query_pattern(work: Run, chosen: argparse.Namespace) -> dict[str, Any]:
    """The setting in which the list of queries is seen, for both."""
    protocol = work.protocol
    truth = targets_of(protocol, TEST)
    trees = boosting(protocol, "query_pattern", threads=chosen.threads)
    gbm = peer_scores(protocol, trees)
    print("\nthe whole list of queries is seen")
    print(row("LightGBM a variable", gbm, protocol), flush=True)
    results = []
    for seed in chosen.query_pattern:
        results.append(work.seed(seed, "query pattern", sees_queries=True, table=0))
        print(row(f"forecaster, seed {seed}", results[-1].told, protocol), flush=True)
    delta = paired_bootstrap(protocol, truth, results[0].point, of_test(protocol, trees))
    return {
        **summary(results), "gbm": gbm, "seeds": list(chosen.query_pattern),
        "delta_ci": {name: list(found) for name, found in delta.items()},
    }  # fmt: skip


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, nargs="+", default=[DEFAULT], help="folders of observations")
    add("--test", type=Path, nargs="+", default=[], help="folders of other stays to test on")
    add("--protocol", choices=("A", "B"), default="A")
    add("--seeds", type=int, nargs="+", default=[1])
    add("--query-pattern", type=int, nargs="*", default=[], metavar="SEED",
        help="seeds of the second setting")  # fmt: skip
    add("--members", type=int, default=4, help="networks a seed (default: %(default)s)")
    add("--table", type=int, help="width of the table of all variables (default: 192 for A)")
    add("--steps", type=int, help="training steps (default: 2,000 for A, 1,500 for B)")
    add("--ablation-steps", type=int, default=1500)
    add("--tables", action="store_true", help="also train with each part left out")
    add("--peers", action="store_true", help="also train GRU-D and our MIRA")
    add("--grud-epochs", type=int, default=20, help="default: %(default)s")
    add("--mira-minutes", type=float, default=6.0, help="default: %(default)s")
    add("--threads", type=int, default=2)
    add("--out", type=Path, help="folder for checkpoints (default: a temporary one)")
    add("--quick", action="store_true", help="made-up stays and a few steps")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run and print."""
    chosen = parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.out or Path(temporary)
        if chosen.quick:
            write_stays(Path(temporary) / "stays", n_stays=120, seed=0)
            chosen.data, chosen.steps, chosen.ablation_steps = [Path(temporary) / "stays"], 3, 1
            chosen.members, chosen.threads = min(chosen.members, 2), 1
            chosen.query_pattern, chosen.tables = chosen.query_pattern or [1], True
            chosen.peers = True
        print(json.dumps(run(chosen, folder)))


if __name__ == "__main__":
    main()
