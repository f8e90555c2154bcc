"""How far our model is from the truth: readmission, death in the stay, and its length.

A hospital is simulated whose hazards are known, and with them the risk of every discharge and of
every stay a day after its admission: nobody can rank better than those. One timeline model is
pretrained, fine-tuned to the three tasks at once, and asked about held-out patients, beside
gradient boosting on count features. With the true risks known, the AUROC to be expected is told
without the luck of what happened; what happened is told beside it. The integrated Brier score
judges the whole course of the time to readmission.

    python benchmarks/timeline_ceiling.py --out ceiling            10,000 patients
    python benchmarks/timeline_ceiling.py --out ceiling --quick    a small one, to see that it runs

What is done in the folder is not done again. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# Threads that wait without spinning: on a shared machine all work, ours too, runs faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import polars as pl
from demo import expected_auroc
from measure import Row, machine, show
from numpy.typing import NDArray
from timeline_designs import once
from timeline_designs_forms import incidence_at, pretrain_form
from timeline_designs_hospital import Hospital, make_hospital
from timeline_designs_truth import true_courses, true_stays

from tsfm import schema
from tsfm.evaluation.baselines.boosting import fit_boosting
from tsfm.evaluation.baselines.count_features import count_features
from tsfm.evaluation.bootstrap import bootstrap_interval, paired_difference
from tsfm.evaluation.competing_risks import cumulative_incidence
from tsfm.evaluation.discrimination import auroc
from tsfm.evaluation.integrated_brier import integrated_brier
from tsfm.models.checkpoint import load_model
from tsfm.models.mamba import MambaConfig
from tsfm.tasks.registry import TASKS, find_cohort, labels_of
from tsfm.training.finetune import FINETUNE_DEFAULTS
from tsfm.training.loop import TrainConfig
from tsfm.training.multitask import MultitaskConfig, multitask_finetune
from tsfm.training.task_answers import score_tasks

READMISSION, DEATH, LONG = "readmission_30d", "mortality_in_hospital", "length_of_stay_7d"
TUNED = (READMISSION, DEATH, LONG)
KEY = [schema.SUBJECT_ID, schema.PREDICTION_TIME]
DAYS = np.array([1, 2, 3, 5, 7, 10, 14, 21, 30, 45, 60, 90, 120, 180], float)
N_RESAMPLES = 1000
BAR, BAR_BRIER = 0.01, 1.05


@dataclass(frozen=True)
class Setup:
    """What is simulated and how the model is trained."""

    patients: int = 10_000
    d_model: int = 64
    n_layers: int = 2
    epochs: int = 8
    tuning_epochs: int = 4
    lr: float = 3e-3
    max_tokens: int = 2048
    seed: int = 0


QUICK = Setup(patients=300, d_model=16, n_layers=1, epochs=1, tuning_epochs=1)


def train(hospital: Hospital, setup: Setup) -> dict[str, Any]:
    """Pretrain on all training patients."""
    return pretrain_form(
        "mamba", hospital.store, hospital.form_folder("mamba"),
        MambaConfig(d_model=setup.d_model, n_layers=setup.n_layers),
        TrainConfig(epochs=setup.epochs, lr=setup.lr, max_tokens=setup.max_tokens, seed=setup.seed),
    )  # fmt: skip


def tune(hospital: Hospital, cohorts: dict[str, pl.DataFrame], setup: Setup) -> dict[str, Any]:
    """Fine-tune to all tasks at once."""
    result = multitask_finetune(
        hospital.form_folder("mamba"), hospital.folder / "tokens", cohorts,
        hospital.folder / "model", progress=False,
        config=MultitaskConfig(
            train=replace(FINETUNE_DEFAULTS, epochs=setup.tuning_epochs, seed=setup.seed)
        ),
    )  # fmt: skip
    return {"tuning_loss": result.tuning_loss}


def boost(hospital: Hospital, cohorts: dict[str, pl.DataFrame]) -> dict[str, Any]:
    """Boosting on count features of each task: probabilities of held-out rows, in their order."""
    split_of = hospital.store.subjects.select(schema.SUBJECT_ID, "split")
    training = split_of.filter(pl.col("split") == schema.TRAIN)[schema.SUBJECT_ID].to_list()
    found: dict[str, Any] = {}
    for name, cohort in cohorts.items():
        rows = labelled(cohort, name).join(
            split_of, on=schema.SUBJECT_ID, how="left", maintain_order="left"
        )
        features, _ = count_features(hospital.folder / "events", rows, training)
        of, label = rows["split"].to_numpy(), rows[schema.BOOLEAN_VALUE].to_numpy().astype(float)
        fitted = fit_boosting(
            features[of == schema.TRAIN], label[of == schema.TRAIN],
            features[of == schema.TUNING], label[of == schema.TUNING],
        )  # fmt: skip
        held = of == schema.HELD_OUT
        found[name] = fitted.predict_probability(features[held]).tolist()
    return found


def labelled(cohort: pl.DataFrame, task: str) -> pl.DataFrame:
    """Eligible rows whose label is known, with it."""
    labels = labels_of(cohort, TASKS[task])
    return cohort.filter("eligible").join(labels, on=KEY, how="inner", maintain_order="left")


def compare(
    hospital: Hospital, cohorts: dict[str, pl.DataFrame], boosted: dict[str, Any]
) -> dict[str, Any]:
    """Ours, boosting and the truth on the same held-out rows of each task."""
    model = load_model(hospital.folder / "model")
    events = hospital.folder / "events"
    scores = score_tasks(model, hospital.folder / "tokens", cohorts, split=schema.HELD_OUT)
    courses = true_courses(hospital.folder / "hospital", events, DAYS)
    stays = true_stays(hospital.folder / "hospital", events)
    truth = {
        READMISSION: courses.select(*KEY, "risk"),
        DEATH: stays.select(*KEY, risk="p_death_in_stay"),
        LONG: stays.select(*KEY, risk="p_stay_7d"),
    }
    held = hospital.store.subjects.filter(pl.col("split") == schema.HELD_OUT)[schema.SUBJECT_ID]
    found: dict[str, Any] = {}
    for name, frame in scores.items():
        rows = labelled(cohorts[name], name).filter(pl.col(schema.SUBJECT_ID).is_in(held.implode()))
        both = (
            rows.with_columns(boosted=pl.Series(boosted[name]))
            .join(frame.drop_nulls(), on=KEY, how="inner", maintain_order="left")
            .join(truth[name], on=KEY, how="inner", maintain_order="left")
        )
        if both.height != rows.height:
            raise SystemExit(f"{name}: {rows.height - both.height} rows have no score or no truth")
        found[name] = one_task(both)
    due = (
        cohorts[READMISSION]
        .filter(pl.col("eligible") & pl.col(schema.SUBJECT_ID).is_in(held.implode()))
        .join(courses, on=KEY, maintain_order="left")
    )
    return found | {"time_to_readmission": brier_of_courses(hospital, due)}


def one_task(both: pl.DataFrame) -> dict[str, Any]:
    """AUROC and expected AUROC of all, and ours less the others, paired over patients."""
    subject = both[schema.SUBJECT_ID].to_numpy()
    label = both[schema.BOOLEAN_VALUE].to_numpy().astype(float)
    risk = both["risk"].to_numpy()
    given = {
        "ours": both["probability"].to_numpy().astype(float),
        "boosting": both["boosted"].to_numpy(),
        "truth": risk,
    }
    own = bootstrap_interval(auroc, subject, label, given["ours"], N_RESAMPLES)
    found: dict[str, Any] = {
        "n": both.height, "n_true": int(label.sum()), "interval": [own.low, own.high],
        "auroc": {name: auroc(label, p) for name, p in given.items()},
        "expected_auroc": {name: expected_auroc(p, risk) for name, p in given.items()},
    }  # fmt: skip
    for other in ("boosting", "truth"):
        apart = paired_difference(auroc, subject, label, given["ours"], given[other], N_RESAMPLES)
        found[f"ours minus {other}"] = [apart.value, apart.low, apart.high]
    return found


def brier_of_courses(hospital: Hospital, due: pl.DataFrame) -> dict[str, float]:
    """Integrated Brier scores of the time to readmission: ours, the truth's, the same for all."""
    ours = incidence_at(
        load_model(hospital.folder / "model").model, hospital.store, due, READMISSION, DAYS
    )
    if not np.isfinite(ours).all():
        raise SystemExit("a held-out discharge has no course")
    outcome, when = due["outcome"], due["outcome_days"].to_numpy()
    true = np.array(due["course"].to_list())
    curve = cumulative_incidence(outcome, when)
    steps: NDArray[np.float64] = np.concatenate([[0.0], curve.event])
    marginal = steps[np.searchsorted(curve.days, DAYS, side="right")]
    predictions = {"ours": ours, "truth": true, "same for all": np.tile(marginal, (len(when), 1))}
    distance = np.trapezoid(np.pad(((ours - true) ** 2).mean(0), (1, 0)), np.append(0.0, DAYS))
    return {
        "n": float(len(when)),
        **{name: integrated_brier(outcome, when, p, DAYS) for name, p in predictions.items()},
        "ours, mean squared distance from the true course": float(distance / DAYS[-1]),
    }


def tell(found: dict[str, Any]) -> list[Row]:
    print(f"\n{'AUROC, held-out patients':24} {'true':>6} {'of':>6}" + "".join(
        f"{name:>19}" for name in ("ours", "boosting", "truth")
    ))  # fmt: skip
    for name in TUNED:
        task = found[name]
        cells = "".join(
            f"{task['expected_auroc'][who]:>10.4f} ({task['auroc'][who]:.4f})"
            for who in ("ours", "boosting", "truth")
        )
        print(f"{name:24} {task['n_true']:6,} {task['n']:6,}{cells}")
    print("expected where the true risks are known; in brackets, of what happened")
    for name in TUNED:
        for other in ("boosting", "truth"):
            value, low, high = found[name][f"ours minus {other}"]
            print(f"  {name}, ours minus {other:9} {value:+.4f} [{low:+.4f}, {high:+.4f}]")
    course = found["time_to_readmission"]
    print("\ntime to readmission within 180 days, integrated Brier score")
    for name, value in course.items():
        print(f"  {name:50} {value:10.5g}")
    rows = [
        Row(f"expected AUROC of {name}, behind the truth",
            found[name]["expected_auroc"]["truth"] - found[name]["expected_auroc"]["ours"],
            BAR, BAR / 2, False, "")
        for name in TUNED
    ]  # fmt: skip
    ratio = course["ours"] / course["truth"]
    return [
        *rows,
        Row("integrated Brier score, ours over the truth's", ratio, BAR_BRIER, 1.02, False, ""),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to work in")
    parser.add_argument("--patients", type=int, help="patients to simulate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    arguments = parser.parse_args()
    setup = replace(QUICK if arguments.quick else Setup(), seed=arguments.seed)
    setup = replace(setup, patients=arguments.patients or setup.patients)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    stored = out / "setup.json"
    if stored.exists() and json.loads(stored.read_text()) != asdict(setup):
        parser.error(f"{out} holds a run of another setup: name another folder, or remove it")
    stored.write_text(json.dumps(asdict(setup)))

    hospital = make_hospital(out, setup.patients, setup.seed)
    cohorts = {name: find_cohort(out / "events", name) for name in TUNED}
    pretrained = once(out, "pretrain", lambda: train(hospital, setup))
    tuned = once(out, "fine-tune", lambda: tune(hospital, cohorts, setup))
    boosted = once(out, "boost", lambda: boost(hospital, cohorts))
    found = once(out, "compare", lambda: compare(hospital, cohorts, boosted))
    rows = tell(found)
    show(rows)
    print()
    print(
        json.dumps(
            {
                "benchmark": "timeline_ceiling",
                "machine": machine(),
                "quick": arguments.quick,
                "setup": asdict(setup),
                "pretrained": pretrained,
                "tuned": tuned,
                "found": found,
                "rows": {row.name: row.value for row in rows},
                "met": {row.name: row.met for row in rows},
            }
        )
    )


if __name__ == "__main__":
    main()
