"""Death in hospital and long stays from the first 48 hours in intensive care (PhysioNet 2012).

    python benchmarks/p12_mortality.py --train DIR [--test DIR] [--task death|los7]
    python benchmarks/p12_mortality.py --quick            made-up stays, to see that it runs

Folders hold `observations-*.parquet` and `outcomes-*.parquet`. Without `--test` a fifth of the
stays is the test. Five models: boosting on hand-made features of windows (`gbm`), extremely
randomised trees and a network on the same features, the timeline model on the events alone, and a
probe of what `forecaster-icu` knows (`p12_states`); their stack is what is shipped. The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from measure import machine_line
from numpy.typing import NDArray
from p12_states import forecaster_states, probe
from p12_stays import write_stays
from risk_stack import (
    N_FOLDS,
    Boosting,
    a_fifth,
    folds_of,
    in_folds,
    report,
    stacked,
    tell_out_of_fold,
)
from risk_timeline import TimelineData, TimelineSetup, cross_fitted

from tsfm import event_table, schema
from tsfm.evaluation.baselines.window_features import Ratio, window_features
from tsfm.ingest.physionet2012 import ingest_physionet2012
from tsfm.ingest.physionet2012_tables import ADMITTED, PARAMETERS
from tsfm.training.feature_net import FeatureNetTraining, fit_feature_net

DEFAULT = Path(os.environ.get("TSFM_DATA", "../shared/data")) / "physionet2012"
ASKED_HOURS = 48
EARLIER_HOURS = (24, 32, 40)  # the timeline model is also taught there
TASKS = {"death": "mortality_in_hospital", "los7": "length_of_stay_7d"}
BOOSTING = Boosting(
    900,
    {
        "num_leaves": 6, "learning_rate": 0.03, "extra_trees": True, "feature_fraction": 0.2,
        "min_data_in_leaf": 30, "bagging_fraction": 0.7, "bagging_freq": 1, "lambda_l2": 10.0,
    },
)  # fmt: skip


SHIPPED = "stack of all five"
ANSWER_WEIGHTS = (1.0, 0.5, 0.2, 0.2, 0.3, 0.3)


def code(name: str) -> str:
    """Code string of a parameter of the source."""
    return PARAMETERS[name].code(name)


RATIOS = (
    Ratio("PaO2/FiO2", (code("PaO2"),), (code("FiO2"),), 100.0),
    Ratio("shock index", (code("HR"),), (code("SysABP"), code("NISysABP"))),
    Ratio("BUN/creatinine", (code("BUN"),), (code("Creatinine"),)),
    Ratio("pulse share", (code("DiasABP"),), (code("SysABP"),)),
    Ratio("saturation/rate", (code("SaO2"),), (code("RespRate"),)),
)


def read_outcomes(folders: list[Path]) -> pl.DataFrame:
    """Record id, death in hospital, length of stay and survival, in days."""
    parts = [pl.read_parquet(p) for folder in folders for p in sorted(folder.glob("outcomes-*"))]
    return pl.concat(
        part.select(
            pl.col("record_id").cast(pl.Int64).alias(schema.SUBJECT_ID),
            pl.col("In-hospital_death").cast(pl.Int64).alias("died"),
            pl.col("Length_of_stay").cast(pl.Float64).alias("days"),
            pl.col("Survival").cast(pl.Float64).alias("survived_days"),
        )
        for part in parts
    ).sort(schema.SUBJECT_ID)


def read_events(folders: list[Path], work: Path) -> pl.DataFrame:
    """Events that were known after 48 hours; what tells how a stay ended is taken out."""
    if not (work / "events" / "metadata" / "dataset.json").exists():
        ingest_physionet2012(folders, work / "events", progress=False)
    events = pl.concat(event_table.scan_events(work / "events"))
    ends = pl.col(schema.CODE).str.contains("^(MEDS_DEATH|HOSPITAL_DISCHARGE)")
    by_then = pl.col(schema.AVAILABLE_TIME).dt.epoch("us").fill_null(0) <= _us(ASKED_HOURS)
    return events.filter(~ends & by_then)


def cohort_of(outcomes: pl.DataFrame, task: str, hours: int = ASKED_HOURS) -> pl.DataFrame:
    """Rows of `schema.COHORT`: every stay, asked so many hours after its admission.

    Days are whole, from the admission to the ICU. Ends on a day are put at that day's end, but
    within the horizon of the task where the day is.
    """
    asked_days = hours / 24
    died, days = pl.col("died") == 1, pl.col("days")
    left = (days - asked_days).clip(lower_bound=0.25)
    known = days >= 0
    if task == "los7":
        # Longer than seven days: neither left nor dead by the horizon, which ends with day seven.
        outcome = pl.when(died).then(pl.lit("competing")).otherwise(pl.lit("event"))
        left = pl.when(days <= 7).then(left.clip(upper_bound=6.0)).otherwise(left.clip(6.5))
    else:
        outcome = pl.when(died).then(pl.lit("event")).otherwise(pl.lit("competing"))
        known, left = pl.lit(True), pl.when(days >= 0).then(left).otherwise(7.0)
    start = pl.lit(ADMITTED, dtype=pl.Datetime("us"))
    return outcomes.filter(known).select(
        schema.SUBJECT_ID,
        (start + pl.duration(hours=hours)).alias(schema.PREDICTION_TIME),
        pl.col(schema.SUBJECT_ID).alias(schema.ENCOUNTER_ID),
        start.alias("start_time"),
        pl.lit(None, dtype=pl.Datetime("us")).alias("end_time"),
        pl.lit(True).alias("eligible"),
        pl.lit(None, dtype=pl.String).alias("reason"),
        outcome.alias("outcome"),
        left.alias("outcome_days"),
    )


def run(chosen: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train, test and print."""
    started = time.perf_counter()
    print(machine_line())
    folders = [*chosen.train, *chosen.test]
    events, outcomes = read_events(folders, work), read_outcomes(folders)
    cohort = cohort_of(outcomes, chosen.task)
    subjects = cohort[schema.SUBJECT_ID].to_numpy()
    if chosen.test:
        kept = set(read_outcomes(chosen.test)[schema.SUBJECT_ID].to_list())
    else:
        kept = a_fifth(subjects.tolist())
    fold_of = folds_of([s for s in subjects.tolist() if s not in kept], chosen.folds)
    fold = np.array([fold_of.get(s, -1) for s in subjects.tolist()])
    y = labels_of(cohort, chosen.task)
    print(
        f"task {chosen.task}: {len(y):,} stays, {int((fold == -1).sum()):,} of them test",
        flush=True,
    )
    X, names = window_features(
        events, cohort, list(fold_of), ratios=RATIOS, min_subjects=chosen.min_subjects
    )
    boosting = in_folds(
        lambda taught, asked: BOOSTING.fit_predict(
            X[taught], y[taught], X[asked], threads=chosen.threads
        ),
        fold, chosen.folds,
    )  # fmt: skip
    print(f"boosting on {len(names):,} features: {time.perf_counter() - started:.0f} s", flush=True)
    random = in_folds(
        lambda taught, asked: random_trees(
            X[taught], y[taught], X[asked], chosen.trees, chosen.threads
        ),
        fold, chosen.folds,
    )  # fmt: skip
    print(f"randomised trees: {time.perf_counter() - started:.0f} s", flush=True)
    answers = answers_of(outcomes, cohort, chosen.task)
    network = in_folds(
        lambda taught, asked: fit_feature_net(
            X[taught], answers[taught], weights=ANSWER_WEIGHTS, training=chosen.network
        ).probability(X[asked])[:, 0],
        fold, chosen.folds,
    )  # fmt: skip
    print(f"feature network: {time.perf_counter() - started:.0f} s", flush=True)
    states = forecaster_states(chosen.train, chosen.test, subjects)
    probed = in_folds(
        lambda taught, asked: probe(states[taught], y[taught], states[asked]), fold, chosen.folds
    )
    print(f"probe of the forecaster's states: {time.perf_counter() - started:.0f} s", flush=True)
    asked, also = {}, {}
    for task, name in TASKS.items():
        asked[name] = cohort_of(outcomes, task)
        also[name] = pl.concat(cohort_of(outcomes, task, hours) for hours in EARLIER_HOURS)
    found = cross_fitted(
        TimelineData(events, asked, also, {"dataset_name": "physionet2012"}), fold_of,
        chosen.folds, chosen.setup, work / "timeline", chosen.threads,
    )[TASKS[chosen.task]]  # fmt: skip
    print(f"timeline model: {time.perf_counter() - started:.0f} s", flush=True)
    members = {
        "boosting": boosting, "trees": random, "network": network, "timeline": found,
        "forecaster": probed,
    }  # fmt: skip
    everything, stack = stacked(y, fold, members)
    ours = {name: members[name] for name in ("network", "timeline", "forecaster")}
    alone = {name: stacked(y, fold, {name: pair})[0] for name, pair in members.items()}
    test = fold == -1
    models = {
        "boosting on window features": alone["boosting"],
        "randomised trees on the same": alone["trees"],
        "feature network on the same": alone["network"],
        "timeline model, events alone": alone["timeline"],
        "probe of the forecaster's states": alone["forecaster"],
        "the three networks": stacked(y, fold, ours)[0],
        SHIPPED: everything,
    }
    told = report(
        y[test], subjects[test], models, shipped=SHIPPED,
        peer="boosting on window features", n_boot=chosen.boot,
    )  # fmt: skip
    told["out_of_fold"] = tell_out_of_fold(y, fold, members, stack)
    return {"task": chosen.task, **told, "seconds": round(time.perf_counter() - started, 1)}


def answers_of(outcomes: pl.DataFrame, cohort: pl.DataFrame, task: str) -> NDArray[np.float64]:
    """What the feature network is asked, a column a question, the task's own first.

    Death in hospital, more than 7, 3 and 14 days in it, death within 30 days and within a year.
    """
    rows = cohort.select(schema.SUBJECT_ID).join(
        outcomes, on=schema.SUBJECT_ID, how="left", maintain_order="left"
    )
    days, survived = rows["days"].to_numpy(), rows["survived_days"].to_numpy()
    died = rows["died"].to_numpy().astype(np.float64)
    longer = {n: np.where(days >= 0, days > n, np.nan) for n in (3, 7, 14)}
    within = {n: ((survived >= 0) & (survived <= n)).astype(np.float64) for n in (30, 365)}
    first, second = (longer[7], died) if task == "los7" else (died, longer[7])
    return np.column_stack([first, second, longer[3], longer[14], within[30], within[365]])


def labels_of(cohort: pl.DataFrame, task: str) -> NDArray[np.float64]:
    """1 for a death in hospital, or for more than seven days."""
    if task == "los7":
        return (cohort["outcome_days"] > 6.0).to_numpy().astype(np.float64)
    return (cohort["outcome"] == "event").to_numpy().astype(np.float64)


def random_trees(
    X: NDArray[np.float32], y: NDArray[np.float64], asked: NDArray[np.float32],
    n_trees: int, threads: int,
) -> NDArray[np.float64]:  # fmt: skip
    """Probabilities of the asked rows by trees whose splits are drawn, not sought."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    share: Any = 0.1  # the stubs know only names
    model = make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True),
        ExtraTreesClassifier(
            n_trees, min_samples_leaf=3, max_features=share, random_state=0, n_jobs=threads
        ),
    )
    return model.fit(X, y).predict_proba(asked)[:, 1]


def _us(hours: float) -> int:
    return int((ADMITTED - ADMITTED.min.replace(year=1970)).total_seconds() + hours * 3600) * 10**6


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--train", type=Path, nargs="+", default=[DEFAULT], help="folders to learn from")
    add("--test", type=Path, nargs="+", default=[], help="folders of other stays to test on")
    add("--task", choices=tuple(TASKS), default="death")
    add("--folds", type=int, default=N_FOLDS)
    add("--threads", type=int, default=2)
    add("--out", type=Path, help="folder for what is made on the way; a run goes on there")
    add("--quick", action="store_true", help="made-up stays and short trainings")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run and print."""
    chosen = parse(sys.argv[1:] if arguments is None else arguments)
    chosen.setup, chosen.boot, chosen.min_subjects = TimelineSetup(), 1000, 20
    chosen.network, chosen.trees = FeatureNetTraining(), 500
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.out or Path(temporary)
        if chosen.quick:
            made = Path(temporary) / "stays"
            write_stays(made, n_stays=120, seed=0)
            chosen.train, chosen.test, chosen.folds, chosen.boot = [made], [], 2, 20
            chosen.setup = TimelineSetup(d_model=16, n_layers=1, epochs=1)
            chosen.min_subjects = 5
            chosen.network, chosen.trees = FeatureNetTraining(epochs=1, n_seeds=1), 20
        print(json.dumps(run(chosen, work)))


if __name__ == "__main__":
    main()
