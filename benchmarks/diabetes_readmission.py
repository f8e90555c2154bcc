"""Readmission within 30 days of discharge (Diabetes 130-US hospitals, 1999-2008).

    python benchmarks/diabetes_readmission.py --train FILE.csv.gz [--test FILE.csv.gz]
    python benchmarks/diabetes_readmission.py --quick     made-up encounters, to see that it runs

Files are in the publisher's layout; `IDs_mapping.csv` lies beside the training file. Without
`--test` a fifth of the patients is the test. Index stays are all encounters that did not end in
death or a hospice, asked at the discharge with the codes of the stay. Models: boosting on hand-made
features, without and with the encounter's number as a calendar; the timeline model on the patient's
encounters as events; and the stack, which is what is shipped. The last line is one JSON object.
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
from diabetes_features import CLOCK, Columns, columns_of, is_index, read_encounters
from diabetes_rows import write_encounters
from measure import machine_line
from numpy.typing import NDArray
from risk_stack import (
    N_FOLDS,
    Boosting,
    Pair,
    a_fifth,
    folds_of,
    in_folds,
    report,
    stacked,
    tell_out_of_fold,
)
from risk_timeline import TimelineData, TimelineSetup, cross_fitted

from tsfm import codes, event_table, schema
from tsfm.ingest.diabetes130 import ingest_diabetes130

DEFAULT = Path(os.environ.get("TSFM_DATA", "../shared/data")) / "diabetes130"
TASK = "readmission_30d"
NUMBER = "ENCOUNTER_NUMBER"
SETUP = TimelineSetup(epochs=4, slowest_hours=50_000.0, fastest_hours=1.0)
BOOSTING = Boosting(
    600,
    {
        "num_leaves": 12, "learning_rate": 0.03, "min_data_in_leaf": 80, "feature_fraction": 0.3,
        "bagging_fraction": 0.8, "bagging_freq": 1, "lambda_l2": 20.0, "cat_smooth": 50.0,
        "cat_l2": 50.0, "max_bin": 127,
    },
)  # fmt: skip
WITHOUT, WITH, EVENTS, STACK = (
    "boosting, no encounter number", "boosting with it", "timeline model, events alone",
    "stack of boosting and timeline",
)  # fmt: skip


def read_events(encounters: pl.DataFrame, mapping: Path, work: Path) -> pl.DataFrame:
    """Events of all encounters, codes known at the discharge; the number is one at the door."""
    source = work / "encounters.csv"
    encounters.with_columns(pl.all().cast(pl.String).fill_null("?")).write_csv(source)
    if not (work / "events" / "metadata" / "dataset.json").exists():
        ingest_diabetes130(
            source, work / "events", mapping=mapping, coding_delay_hours=0.0, progress=False
        )
    events = pl.concat(event_table.scan_events(work / "events"))
    arrival = events.filter(
        pl.col(schema.CODE).str.starts_with(codes.ADMISSION)
        & pl.col(schema.ENCOUNTER_ID).is_not_null()
    )
    number = arrival.with_columns(
        pl.lit(NUMBER).alias(schema.CODE),
        (pl.col(schema.ENCOUNTER_ID) / 1e6).cast(pl.Float32).alias(schema.NUMERIC_VALUE),
    )
    return event_table.sort_events(pl.concat([events, number.select(events.columns)]))


def cohort_of(encounters: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """Rows of `schema.COHORT`, in the order of the index encounters.

    The day of a readmission is not in the source: it is put in the middle of the 30 days.
    """

    def times(kind: str, name: str) -> pl.DataFrame:
        rows = events.filter(pl.col(schema.CODE).str.starts_with(kind + codes.SEPARATOR))
        own = rows.select(schema.ENCOUNTER_ID, pl.col(schema.TIME).alias(name))
        return own.drop_nulls().unique(schema.ENCOUNTER_ID)

    back = pl.col("readmitted") == "<30"
    rows = encounters.filter(is_index()).select(
        pl.col("patient_nbr").alias(schema.SUBJECT_ID),
        pl.col("encounter_id").alias(schema.ENCOUNTER_ID),
        pl.when(back).then(pl.lit("event")).otherwise(pl.lit("none")).alias("outcome"),
        pl.when(back).then(15.0).otherwise(30.0).alias("outcome_days"),
    )
    one = {"on": schema.ENCOUNTER_ID, "how": "left", "maintain_order": "left"}
    return (
        rows.join(times(codes.ADMISSION, "start_time"), **one)
        .join(times(codes.DISCHARGE, "end_time"), **one)
        .select(
            schema.SUBJECT_ID, pl.col("end_time").alias(schema.PREDICTION_TIME),
            schema.ENCOUNTER_ID, "start_time", "end_time", pl.lit(True).alias("eligible"),
            pl.lit(None, dtype=pl.String).alias("reason"), "outcome", "outcome_days",
        )
    )  # fmt: skip


def run(chosen: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train, test and print."""
    started = time.perf_counter()
    print(machine_line())
    encounters = read_encounters([chosen.train, *chosen.test])
    mapping = chosen.train.with_name("IDs_mapping.csv")
    events = read_events(encounters, mapping, work)
    cohort = cohort_of(encounters, events)
    patient = cohort[schema.SUBJECT_ID].to_numpy()
    everyone = sorted(set(patient.tolist()))
    if chosen.test:
        kept = set(read_encounters(chosen.test)["patient_nbr"].to_list())
    else:
        kept = a_fifth(everyone)
    fold_of = folds_of([s for s in everyone if s not in kept], chosen.folds)
    fold = np.array([fold_of.get(s, -1) for s in patient.tolist()])
    y = (cohort["outcome"] == "event").to_numpy().astype(np.float64)
    print(f"{len(y):,} index stays, {int((fold == -1).sum()):,} of them test", flush=True)
    columns = columns_of(encounters)
    members = {
        WITHOUT: boosted(columns.without(CLOCK), y, patient, fold, chosen),
        WITH: boosted(columns, y, patient, fold, chosen),
    }
    print(f"boosting: {time.perf_counter() - started:.0f} s", flush=True)
    there = cohort.filter(pl.col(schema.PREDICTION_TIME).is_not_null())
    found = cross_fitted(
        TimelineData(events, {TASK: there}, dataset={"dataset_name": "diabetes130"}), fold_of,
        chosen.folds, chosen.setup, work / "timeline", chosen.threads,
    )[TASK]  # fmt: skip
    members[EVENTS] = placed(found, cohort[schema.PREDICTION_TIME].is_not_null().to_numpy(), y)
    print(f"timeline model: {time.perf_counter() - started:.0f} s", flush=True)
    models = {name: stacked(y, fold, {name: pair})[0] for name, pair in members.items()}
    models[STACK], stack = stacked(y, fold, {n: members[n] for n in (WITH, EVENTS)})
    test = fold == -1
    told = report(y[test], patient[test], models, shipped=STACK, peer=WITH, n_boot=chosen.boot)
    told["out_of_fold"] = tell_out_of_fold(y, fold, {n: members[n] for n in (WITH, EVENTS)}, stack)
    return {**told, "seconds": round(time.perf_counter() - started, 1)}


def boosted(
    columns: Columns, y: NDArray[np.float64], patient: NDArray[np.int64],
    fold: NDArray[np.int64], chosen: argparse.Namespace,
) -> Pair:  # fmt: skip
    """Boosting in folds."""

    def fit_predict(taught: NDArray[np.int64], asked: NDArray[np.int64]) -> NDArray[np.float64]:
        X, X_asked = columns.for_fit(taught, asked, y, patient)
        return BOOSTING.fit_predict(
            X, y[taught], X_asked, columns.categorical, threads=chosen.threads
        )

    return in_folds(fit_predict, fold, chosen.folds)


def placed(found: Pair, there: NDArray[np.bool_], y: NDArray[np.float64]) -> Pair:
    """Probabilities of the rows that were asked; a row set aside at ingest gets the mean rate."""
    apart, tested = np.full(len(there), y.mean()), np.full(len(there), y.mean())
    apart[there], tested[there] = found
    return apart, tested


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--train", type=Path, default=DEFAULT / "diabetic_data_train.csv.gz")
    add("--test", type=Path, nargs="+", default=[], help="files of other patients to test on")
    add("--folds", type=int, default=N_FOLDS)
    add("--threads", type=int, default=2)
    add("--out", type=Path, help="folder for what is made on the way; a run goes on there")
    add("--quick", action="store_true", help="made-up encounters and short trainings")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run and print."""
    chosen = parse(sys.argv[1:] if arguments is None else arguments)
    chosen.setup, chosen.boot = SETUP, 1000
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.out or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if chosen.quick:
            chosen.train = write_encounters(Path(temporary) / "made", n_patients=300, seed=0)
            chosen.test, chosen.folds, chosen.boot = [], 2, 20
            chosen.setup = TimelineSetup(d_model=16, n_layers=1, epochs=1)
        print(json.dumps(run(chosen, work)))


if __name__ == "__main__":
    main()
