"""From a hospital's FHIR export to readmission risk, and how close to the truth it comes.

A hospital is simulated whose hazards of readmission and death are known. It is written as a FHIR
bulk export with WFDB records, and from there on nothing is special: the files are ingested and
tokenised in the order of knowing, a model is pretrained and fine-tuned on the training subjects,
every eligible discharge is scored, and the held-out subjects' discharges judge it, beside gradient
boosting on count features, HOSPITAL, LACE and the true risk, which nobody can beat.

    python benchmarks/demo.py --out demo            the whole, some twelve minutes on two cores
    python benchmarks/demo.py --out demo --quick    a small one, to see that it runs
    python benchmarks/demo.py --out demo --test D   also judge the model on another hospital: the
                                                    folder D with fhir/ and truth.parquet

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

# Threads that wait without spinning: on a shared machine all work, ours too, runs faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import polars as pl
import torch

import tsfm
from tsfm import event_table, schema
from tsfm.errors import TsfmError
from tsfm.models.mamba import MambaConfig
from tsfm.reports.evaluation_summary import Evaluation
from tsfm.reports.html_report import write_run_report
from tsfm.reports.run_evaluation import BASELINES_DIR
from tsfm.scoring.risk_assessment import RiskBands
from tsfm.training.finetune import FINETUNE_DEFAULTS, FinetuneConfig
from tsfm.training.loop import TrainConfig

TASK = "readmission_30d"
KEY = [schema.SUBJECT_ID, schema.PREDICTION_TIME]
TRUTH = "True risk (ceiling)"
BOOSTING = "Boosted counts"
BANDS = RiskBands(0.05, 0.15, 0.30)
STAGES = ("hospital", "events", "tokens", "labels", "pretrained", "model", "run", "test")
T = TypeVar("T")


class Stopwatch:
    """Runs the stages one by one; says which commands do the same, and how long each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, name: str, commands: str | list[str], work: Callable[[], T]) -> T:
        print()
        for command in [commands] if isinstance(commands, str) else commands:
            print(f"$ {command}", flush=True)
        started = time.perf_counter()
        result = work()
        self.seconds[name] = round(time.perf_counter() - started, 1)
        print(f"  {name}: {self.seconds[name]:.1f} s", flush=True)
        return result


def add_truth(hospital: Path, events: Path, run: Path) -> None:
    """Put the true risk of every discharge beside the baselines of a run."""
    subjects = {source: subject for subject, source in event_table.subject_ids(events).items()}
    truth = pl.read_parquet(hospital / "truth.parquet").select(
        pl.col("patient_id")
        .replace_strict(subjects, return_dtype=pl.Int64)
        .alias(schema.SUBJECT_ID),
        pl.col("discharge_time").cast(pl.Datetime("us")).alias(schema.PREDICTION_TIME),
        pl.col("p_readmission_30d").alias("probability"),
    )
    event_table.write_table(truth.to_arrow(), run / BASELINES_DIR / f"{TRUTH}.parquet")


def ingest(hospital: Path, events: Path) -> None:
    """Both kinds of source onto one timeline."""
    print(tsfm.ingest_fhir(hospital / "fhir", events).as_text())
    if records_of(hospital).exists():
        waves = tsfm.ingest_wfdb(hospital / "wfdb", events, subjects=records_of(hospital))
        print(waves.as_text())


def ingest_commands(hospital: Path, events: Path) -> list[str]:
    """What does the same as `ingest`."""
    commands = [f"tsfm ingest fhir {hospital}/fhir --out {events}"]
    records = records_of(hospital)
    if records.exists():
        commands.append(f"tsfm ingest wfdb {records.parent} --out {events} --subjects {records}")
    return commands


def records_of(hospital: Path) -> Path:
    """Whose each waveform record is."""
    return hospital / "wfdb" / "records.csv"


def expected_auroc(score: np.ndarray, risk: np.ndarray) -> float:
    """AUROC to be expected of a score where the true risk is known: no luck of who came back.

    Every stay counts as an event with weight `risk` and as none with the rest.
    """
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    below = np.concatenate([[0.0], np.cumsum(1 - risk[order])])
    first = np.searchsorted(ranked, ranked, side="left")
    last = np.searchsorted(ranked, ranked, side="right")
    wins = (below[first] + below[last]) / 2  # ties count half
    return float((risk[order] * wins).sum() / (risk.sum() * (1 - risk).sum()))


def judge(run: Path, events: Path, split: str | None) -> tuple[Evaluation, dict[str, Any]]:
    """Figures of the held-out subjects, and the differences that decide."""
    result = tsfm.evaluate_run(run, events=events, baselines=split is not None, split=split)
    figures: dict[str, Any] = {"n": result.n_labelled}
    truth = result.baseline_scores[TRUTH].select(*KEY, pl.col("_other").alias("risk"))
    scores = {result.models[0].name: result.labelled.rename({"probability": "_other"})}
    expected = {
        name: expected_auroc(both["_other"].to_numpy(), both["risk"].to_numpy())
        for name, frame in (scores | result.baseline_scores).items()
        for both in [frame.select(*KEY, "_other").join(truth, on=KEY)]
    }
    for model in result.models:
        figures[model.name] = {
            "auroc": model.auroc.value if model.auroc else None,
            "expected_auroc": expected[model.name],
            "auprc": model.auprc.value if model.auprc else None,
            "brier": model.brier.value if model.brier else None,
            "slope": model.slope,
        }
    for model in result.models:
        key = {TRUTH: "ours_minus_ceiling", BOOSTING: "ours_minus_boosting"}.get(model.name)
        if key and model.auroc_behind:
            behind = model.auroc_behind
            figures[key] = [behind.value, behind.low, behind.high]
    return result, figures


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to work in")
    parser.add_argument("--patients", type=int, default=None, help="patients to simulate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small run that proves the road")
    parser.add_argument("--test", type=Path, help="another simulated hospital to judge on")
    args = parser.parse_args()
    if args.test and not (args.test / "truth.parquet").exists():
        parser.error(f"no truth.parquet in {args.test}: --test takes a simulated hospital")
    out: Path = args.out
    for stage in STAGES:
        shutil.rmtree(out / stage, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    patients = args.patients or (250 if args.quick else 14_000)
    # Defaults, but for the seed and what makes the quick run quick.
    backbone, pretraining, finetuning = MambaConfig(), TrainConfig(), FINETUNE_DEFAULTS
    pretrain_options = finetune_options = f" --seed {args.seed}" if args.seed else ""
    if args.quick:
        backbone = replace(backbone, d_model=16, n_layers=1)
        pretraining, finetuning = replace(pretraining, epochs=1), replace(finetuning, epochs=1)
        pretrain_options += " --epochs 1 --d-model 16 --layers 1"
        finetune_options += " --epochs 1"
    pretraining = replace(pretraining, seed=args.seed)
    finetuning = FinetuneConfig(train=replace(finetuning, seed=args.seed))
    watch = Stopwatch()
    hospital, events, run = out / "hospital", out / "events", out / "run"

    summary = watch.run(
        "simulate",
        f"tsfm simulate --out {hospital} --patients {patients} --seed {args.seed}",
        lambda: tsfm.simulate_hospital(hospital, n_patients=patients, seed=args.seed),
    )
    print(summary.as_text())
    watch.run(
        "ingest",
        ingest_commands(hospital, events),
        lambda: ingest(hospital, events),
    )
    store = watch.run(
        "tokenize",
        f"tsfm tokenize {events} --out {out}/tokens",
        lambda: tsfm.build_token_store(events, out / "tokens"),
    )
    print(f"{len(store):,} tokens of {len(store.vocabulary):,} codes")
    labels = watch.run(
        "label",
        f"tsfm label {events} --task {TASK} --out {out}/labels",
        lambda: tsfm.write_labels(events, TASK, out / "labels"),
    )
    print(labels.as_text())
    result = watch.run(
        "pretrain",
        f"tsfm pretrain {out}/tokens --out {out}/pretrained{pretrain_options}",
        lambda: tsfm.pretrain(
            out / "tokens", out / "pretrained", backbone=backbone, config=pretraining
        ),
    )
    print(result.as_text())
    cohort = pl.read_parquet(out / "labels" / TASK / "cohort.parquet")
    result = watch.run(
        "finetune",
        f"tsfm finetune {out}/pretrained {out}/tokens --labels {out}/labels --task {TASK} "
        f"--out {out}/model{finetune_options}",
        lambda: tsfm.finetune(
            out / "pretrained", out / "tokens", cohort, TASK, out / "model", config=finetuning
        ),
    )
    print(result.as_text())
    manifest = watch.run(
        "score",
        f"tsfm score {out}/model {events} --task {TASK} --out {run}",
        lambda: tsfm.run_scoring(out / "model", events, TASK, run, bands=BANDS),
    )
    print(f"{manifest.counts.scored:,} of {manifest.counts.eligible:,} eligible discharges scored")
    add_truth(hospital, events, run)
    evaluation, figures = watch.run(
        "evaluate",
        f"tsfm evaluate {run} --events {events} --baselines --split held_out",
        lambda: judge(run, events, schema.HELD_OUT),
    )
    report = watch.run(
        "report",
        f"tsfm report {run} --events {events} --split held_out",
        lambda: write_run_report(run, events=events, split=schema.HELD_OUT),
    )
    print(f"\nHeld-out subjects of the simulated hospital\n{evaluation.as_text()}")
    _print_difference("ours - ceiling", figures.get("ours_minus_ceiling"))
    _print_difference("ours - boosting", figures.get("ours_minus_boosting"))
    _print_expected(figures)
    found = {"held_out": figures}
    if args.test:
        events, run = out / "test" / "events", out / "test" / "run"
        found["test"] = watch.run(
            "test",
            [
                *ingest_commands(args.test, events),
                f"tsfm score {out}/model {events} --task {TASK} --out {run}",
                f"tsfm evaluate {run}",
            ],
            lambda: _test(args.test, out / "model", events, run),
        )
    print(f"\nreport: {report}")
    print(
        json.dumps(
            {
                "benchmark": "demo",
                "quick": args.quick,
                "patients": patients,
                "seed": args.seed,
                "seconds": watch.seconds,
                "total_seconds": round(sum(watch.seconds.values()), 1),
                **found,
                "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
                "torch": torch.__version__,
                "date": datetime.now(UTC).date().isoformat(),
            }
        )
    )


def _test(hospital: Path, model: Path, events: Path, run: Path) -> dict[str, Any]:
    """Score a hospital that the model has never met, and judge it by its truth."""
    ingest(hospital, events)
    tsfm.run_scoring(model, events, TASK, run, bands=BANDS)
    add_truth(hospital, events, run)
    evaluation, figures = judge(run, events, None)
    print(f"\nThe hospital kept apart\n{evaluation.as_text()}")
    _print_difference("ours - ceiling", figures.get("ours_minus_ceiling"))
    _print_expected(figures)
    return figures


def _print_expected(figures: dict[str, Any]) -> None:
    parts = [
        f"{name} {found['expected_auroc']:.4f}"
        for name, found in figures.items()
        if isinstance(found, dict)
    ]
    print("AUROC to be expected from the true risks: " + ", ".join(parts))


def _print_difference(name: str, difference: list[float] | None) -> None:
    if difference is not None:
        value, low, high = difference
        print(f"{name}: AUROC {value:+.4f} [{low:+.4f}, {high:+.4f}]")


if __name__ == "__main__":
    try:
        main()
    except TsfmError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
