"""Death in hospital after the first day in a unit (eICU demo), beside APACHE IVa.

    python benchmarks/eicu_mortality.py --train DIR [--test DIR]
    python benchmarks/eicu_mortality.py --quick           made-up stays, to see that it runs

The stays are those with a valid prediction of APACHE IVa. Without `--test` there are five folds by
hospital; hospitals that share a patient are in one fold, and every stay is judged by models that
saw nothing of its hospital. Models: APACHE IVa; boosting on its variables; boosting and ridge
regression on hand-made features, without and with APACHE's own scores among them; the timeline
model; stacks. A stay's stack is fitted on the other folds. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from eicu_features import PREDICTED, SCORE, features_of, read_stays
from eicu_tables import write_tables
from measure import machine_line
from numpy.typing import NDArray
from risk_stack import N_FOLDS, Boosting, Pair, hashed, in_folds, report, stacked
from risk_timeline import TimelineData, TimelineSetup, cross_fitted

from tsfm import schema
from tsfm.evaluation.bootstrap import paired_difference
from tsfm.evaluation.discrimination import auroc
from tsfm.evaluation.stacking import fit_stack

DEFAULT = Path(os.environ.get("TSFM_DATA", "../shared/data")) / "eicu-demo"
TASK = "mortality_in_hospital"
SETUP = TimelineSetup(d_model=32, epochs=8, pretrain_epochs=2, max_tokens=4096)
BOOSTING = Boosting(
    300,
    {
        "num_leaves": 5, "learning_rate": 0.03, "min_data_in_leaf": 15, "feature_fraction": 0.15,
        "bagging_fraction": 0.7, "bagging_freq": 1, "lambda_l2": 10.0,
    },
    n_seeds=3,
)  # fmt: skip
RIDGE = 0.003
PEER, SHIPPED = "boosting, all and APACHE's scores", "stack, all and APACHE's scores"
WITHOUT_SCORES = "stack, all but APACHE's scores"


def run(chosen: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train, test and print."""
    started = time.perf_counter()
    print(machine_line())
    events, stays = read_stays([*chosen.train, *chosen.test], work)
    y, n_train = stays["died"].to_numpy(), None
    fold = folds_by_hospital(stays, chosen.folds)
    if chosen.test:
        n_train = set(read_stays(chosen.test, work / "test")[1]["unit_stay"].to_list())
        fold = np.where(stays["unit_stay"].is_in(list(n_train)).to_numpy(), -1, fold)
    print(f"{len(y):,} stays, {int(y.sum())} deaths, {stays['hospital'].n_unique()} hospitals")
    taught = stays.filter(pl.Series(fold >= 0))[schema.SUBJECT_ID].to_list()
    X, names = features_of(events, stays, taught, chosen.min_subjects)
    score = np.array([name.startswith(SCORE) for name in names])
    own = np.array([n.startswith("APACHE//") or n in ("age_years", "female") for n in names])
    members: dict[str, Pair] = {
        "boosting, APACHE's variables": boosted(X[:, own & ~score], y, fold, chosen),
        "boosting, all but APACHE's scores": boosted(X[:, ~score], y, fold, chosen),
        "ridge, all but APACHE's scores": ridged(X[:, ~score], y, fold, chosen.folds),
        PEER: boosted(X, y, fold, chosen),
        "ridge, all and APACHE's scores": ridged(with_log_odds(X, names), y, fold, chosen.folds),
    }
    print(f"boosting and ridge on {len(names):,} features: {time.perf_counter() - started:.0f} s",
          flush=True)  # fmt: skip
    members["timeline model, all events"] = timeline(events, stays, fold, chosen, work)
    print(f"timeline model: {time.perf_counter() - started:.0f} s", flush=True)
    stacks = {
        WITHOUT_SCORES: (
            "boosting, all but APACHE's scores", "ridge, all but APACHE's scores",
        ),
        SHIPPED: (PEER, "ridge, all and APACHE's scores", "timeline model, all events"),
    }  # fmt: skip
    judged = fold == -1 if chosen.test else fold >= 0
    models = {"APACHE IVa": stays["predicted"].to_numpy()}
    models |= {name: combined(y, fold, {name: pair}) for name, pair in members.items()}
    models |= {n: combined(y, fold, {m: members[m] for m in of}) for n, of in stacks.items()}
    told = report(
        y[judged], stays["patient"].to_numpy()[judged],
        {name: p[judged] for name, p in models.items()},
        shipped=SHIPPED, peer=PEER, n_boot=chosen.boot,
    )  # fmt: skip
    told["apache"] = told["models"]["APACHE IVa"]
    for name in (SHIPPED, WITHOUT_SCORES):
        gain = paired_difference(
            auroc, stays["patient"].to_numpy()[judged], y[judged], models[name][judged],
            models["APACHE IVa"][judged], chosen.boot,
        )  # fmt: skip
        told.setdefault("less_apache", {})[name] = [gain.value, gain.low, gain.high]
        print(f"{name}, AUROC less APACHE IVa's: {gain.value:+.4f} [{gain.low:+.4f}, "
              f"{gain.high:+.4f}]")  # fmt: skip
    return {**told, "seconds": round(time.perf_counter() - started, 1)}


def folds_by_hospital(stays: pl.DataFrame, n_folds: int) -> NDArray[np.int64]:
    """Fold of each stay; hospitals that share a patient stay together."""
    group = {h: h for h in stays["hospital"].unique().to_list()}

    def root(hospital: str) -> str:
        while group[hospital] != hospital:
            hospital = group[hospital]
        return hospital

    for part in stays.group_by("patient").agg(pl.col("hospital").unique())["hospital"].to_list():
        for other in part[1:]:
            group[root(other)] = root(part[0])
    # The largest groups first, each to the fold that is smallest by then.
    sizes = stays.with_columns(pl.col("hospital").replace({h: root(h) for h in group}).alias("g"))
    order = sizes.group_by("g").len().sort(["len", "g"], descending=[True, False])
    filled, fold_of = np.zeros(n_folds), {}
    for name, size in order.iter_rows():
        fold_of[name] = int(np.argmin(filled + 1e-3 * hashed(name, "hospital")))
        filled[fold_of[name]] += size
    return np.array([fold_of[root(h)] for h in stays["hospital"].to_list()])


def boosted(
    X: NDArray[np.float32], y: NDArray[np.float64], fold: NDArray[np.int64],
    chosen: argparse.Namespace,
) -> Pair:  # fmt: skip
    """Boosting in folds."""
    return in_folds(
        lambda taught, asked: chosen.boosting.fit_predict(
            X[taught], y[taught], X[asked], threads=chosen.threads
        ),
        fold, chosen.folds,
    )  # fmt: skip


def ridged(
    X: NDArray[np.float32], y: NDArray[np.float64], fold: NDArray[np.int64], n_folds: int
) -> Pair:
    """Ridge logistic regression in folds; missing values are the median, and said to be missing."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    def fit_predict(taught: NDArray[np.int64], asked: NDArray[np.int64]) -> NDArray[np.float64]:
        there = np.isfinite(X[taught]).any(0)
        some = X[:, there].astype(np.float64)
        missing = np.isnan(some)
        some = np.where(missing, np.nanmedian(some[taught], 0), some)
        skewed = (some[taught].min(0) >= 0) & (some[taught].max(0) > 20)
        some[:, skewed] = np.log1p(np.maximum(some[:, skewed], 0))
        often = missing[taught].mean(0)
        told = np.concatenate([some, missing[:, (often > 0.05) & (often < 0.95)]], 1)
        scaler = StandardScaler().fit(told[taught])
        z = np.clip(scaler.transform(told), -4, 4)
        model = LogisticRegression(C=RIDGE, max_iter=2000).fit(z[taught], y[taught])
        return model.predict_proba(z[asked])[:, 1]

    return in_folds(fit_predict, fold, n_folds)


def with_log_odds(X: NDArray[np.float32], names: Sequence[str]) -> NDArray[np.float32]:
    """The features with the log odds of APACHE's prediction as one more."""
    p = np.clip(X[:, names.index(f"{PREDICTED}/stay/last")], 1e-3, 1 - 1e-3)
    return np.column_stack([X, np.log(p / (1 - p))]).astype(np.float32)


def timeline(
    events: pl.DataFrame, stays: pl.DataFrame, fold: NDArray[np.int64],
    chosen: argparse.Namespace, work: Path,
) -> Pair:  # fmt: skip
    """The timeline model in the same folds. A hospital stay is a subject."""
    fold_of = dict(zip(stays[schema.SUBJECT_ID].to_list(), fold.tolist(), strict=True))
    fold_of = {subject: k for subject, k in fold_of.items() if k >= 0}
    last = stays.group_by(schema.SUBJECT_ID).agg(_last=pl.col(schema.PREDICTION_TIME).max())
    known = pl.coalesce(schema.AVAILABLE_TIME, schema.TIME)
    judged = (
        events.join(last, on=schema.SUBJECT_ID, maintain_order="left")
        .filter(known.is_null() | (known <= pl.col("_last")))
        .drop("_last")
    )
    return cross_fitted(
        TimelineData(judged, {TASK: stays.select(schema.COHORT.names)},
                     dataset={"dataset_name": "eicu-demo"}),
        fold_of, chosen.folds, chosen.setup, work / "timeline", chosen.threads,
    )[TASK]  # fmt: skip


def combined(
    y: NDArray[np.float64], fold: NDArray[np.int64], members: dict[str, Pair]
) -> NDArray[np.float64]:
    """A stack of members for every row; a training row's is fitted without its fold."""
    told = np.full(len(y), np.nan)
    for k in np.unique(fold[fold >= 0]):
        others, own = (fold >= 0) & (fold != k), fold == k
        stack = fit_stack(y[others], {name: apart[others] for name, (apart, _) in members.items()})
        told[own] = stack.probability({name: apart[own] for name, (apart, _) in members.items()})
    if (fold == -1).any():
        told[fold == -1] = stacked(y, fold, members)[0]
    return told


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--train", type=Path, nargs="+", default=[DEFAULT], help="folders to learn from")
    add("--test", type=Path, nargs="+", default=[], help="folders of other stays to test on")
    add("--folds", type=int, default=N_FOLDS)
    add("--threads", type=int, default=2)
    add("--out", type=Path, help="folder for what is made on the way; a run goes on there")
    add("--quick", action="store_true", help="made-up stays and short trainings")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run and print."""
    chosen = parse(sys.argv[1:] if arguments is None else arguments)
    chosen.setup, chosen.boosting, chosen.boot, chosen.min_subjects = SETUP, BOOSTING, 1000, 100
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.out or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if chosen.quick:
            made = Path(temporary) / "tables"
            write_tables(made, n_stays=150, seed=0)
            chosen.train, chosen.test, chosen.folds, chosen.boot = [made], [], 2, 20
            chosen.min_subjects, chosen.boosting = 10, replace(BOOSTING, n_trees=60, n_seeds=1)
            chosen.threads = 1  # on so few rows threads would only wait for each other
            chosen.setup = TimelineSetup(d_model=8, n_layers=1, epochs=1, max_tokens=16384)
        print(json.dumps(run(chosen, work)))


if __name__ == "__main__":
    main()
