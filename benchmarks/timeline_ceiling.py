"""How far our model is from the truth: readmission, death in the stay, and its length.

A hospital is simulated whose hazards are known, and with them the risk of every discharge and of
every stay a day after its admission: nobody can rank better than those. Six timeline models are
pretrained from different seeds, each is fine-tuned to the three tasks at once, and held-out
patients are asked about: `ours` is the mean of the six, `boosting` the mean of five fits on count
features and slopes, and `stack` is both, weighed on the tuning patients, who have also stopped all
trainings. With the true risks known, the AUROC to be expected is told without the luck of what
happened; what happened is told beside it. The integrated Brier score judges the whole course of the
time to readmission.

    python benchmarks/timeline_ceiling.py --out ceiling            10,000 patients
    python benchmarks/timeline_ceiling.py --out ceiling --quick    a small one, to see that it runs

What is done in the folder is not done again. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import shutil
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
from scipy.special import expit
from timeline_designs import once, open_run
from timeline_designs_forms import incidence_at, pretrain_form
from timeline_designs_hospital import Hospital, make_hospital
from timeline_designs_truth import true_courses, true_stays

from tsfm import schema
from tsfm.evaluation.baselines.boosting import fit_boosting
from tsfm.evaluation.baselines.count_features import count_features
from tsfm.evaluation.baselines.trend_features import trend_features
from tsfm.evaluation.bootstrap import paired_difference
from tsfm.evaluation.calibration import logit
from tsfm.evaluation.competing_risks import cumulative_incidence
from tsfm.evaluation.discrimination import auroc
from tsfm.evaluation.integrated_brier import integrated_brier
from tsfm.evaluation.stacking import fit_stack
from tsfm.models.checkpoint import load_model
from tsfm.models.mamba import MambaConfig
from tsfm.tasks.cohorts import AdmissionRules
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
    members: int = 6
    boosters: int = 5
    lr: float = 3e-3
    max_tokens: int = 2048
    seed: int = 0


QUICK = Setup(
    patients=300, d_model=16, n_layers=1, epochs=1, tuning_epochs=1, members=1, boosters=1
)


def train(hospital: Hospital, setup: Setup, member: int) -> dict[str, Any]:
    """Pretrain on all training patients."""
    return pretrain_form(
        "mamba", hospital.store, pretrained_folder(hospital, member),
        MambaConfig(d_model=setup.d_model, n_layers=setup.n_layers),
        TrainConfig(
            epochs=setup.epochs, lr=setup.lr, max_tokens=setup.max_tokens, seed=setup.seed + member
        ),
    )  # fmt: skip


def tune(
    hospital: Hospital, cohorts: dict[str, pl.DataFrame], setup: Setup, member: int
) -> dict[str, Any]:
    """Fine-tune to all tasks at once."""
    # Left by a run that was stopped before it wrote down what it found.
    shutil.rmtree(member_folder(hospital, member), ignore_errors=True)
    result = multitask_finetune(
        pretrained_folder(hospital, member), hospital.folder / "tokens", cohorts,
        member_folder(hospital, member), progress=False,
        config=MultitaskConfig(
            train=replace(FINETUNE_DEFAULTS, epochs=setup.tuning_epochs, seed=setup.seed + member)
        ),
    )  # fmt: skip
    return {"tuning_loss": result.tuning_loss}


def pretrained_folder(hospital: Hospital, member: int) -> Path:
    return hospital.form_folder(f"mamba-{member}")


def member_folder(hospital: Hospital, member: int) -> Path:
    return hospital.folder / f"model-{member}"


def ask(hospital: Hospital, cohorts: dict[str, pl.DataFrame], member: int) -> dict[str, Any]:
    """Probabilities of a member on tuning and held-out rows of each task, in the rows' order."""
    model = load_model(member_folder(hospital, member))
    found: dict[str, Any] = {name: {} for name in cohorts}
    for split in (schema.TUNING, schema.HELD_OUT):
        scores = score_tasks(model, hospital.folder / "tokens", cohorts, split=split)
        for name, frame in scores.items():
            rows = labelled(hospital, cohorts[name], name, split)
            both = rows.join(frame.drop_nulls(), on=KEY, how="left", maintain_order="left")
            if both["probability"].null_count():
                raise SystemExit(f"{name}: a row has no score")
            found[name][split] = both["probability"].to_list()
    return found


def boost(hospital: Hospital, cohorts: dict[str, pl.DataFrame], setup: Setup) -> dict[str, Any]:
    """The same of boosting on count features and slopes, the mean of some fits."""
    split_of = hospital.store.subjects
    training = split_of.filter(pl.col("split") == schema.TRAIN)[schema.SUBJECT_ID].to_list()
    found: dict[str, Any] = {}
    for name, cohort in cohorts.items():
        parts = [labelled(hospital, cohort, name, split) for split in schema.SPLITS]
        rows = pl.concat(parts)
        features = np.concatenate(
            [
                describe(hospital.folder / "events", rows, training)[0]
                for describe in (count_features, trend_features)
            ],
            axis=1,
        )
        x = dict(zip(schema.SPLITS, np.split(features, heights(parts)), strict=True))
        y = {split: label_of(part) for split, part in zip(schema.SPLITS, parts, strict=True)}
        fitted = [
            fit_boosting(x[schema.TRAIN], y[schema.TRAIN], x[schema.TUNING], y[schema.TUNING], seed)
            for seed in range(setup.seed, setup.seed + setup.boosters)
        ]
        found[name] = {
            split: np.mean([each.predict_probability(x[split]) for each in fitted], 0).tolist()
            for split in (schema.TUNING, schema.HELD_OUT)
        }
    return found


def heights(parts: list[pl.DataFrame]) -> list[int]:
    """Where each part but the first begins."""
    return np.cumsum([part.height for part in parts])[:-1].tolist()


def label_of(rows: pl.DataFrame) -> NDArray[np.float64]:
    return rows[schema.BOOLEAN_VALUE].to_numpy().astype(float)


def labelled(hospital: Hospital, cohort: pl.DataFrame, task: str, split: str) -> pl.DataFrame:
    """Eligible rows of a split whose label is known, with it."""
    subjects = hospital.store.subjects.filter(pl.col("split") == split)[schema.SUBJECT_ID]
    labels = labels_of(cohort, TASKS[task])
    return cohort.filter(
        pl.col("eligible") & pl.col(schema.SUBJECT_ID).is_in(subjects.implode())
    ).join(labels, on=KEY, how="inner", maintain_order="left")


def compare(
    hospital: Hospital, cohorts: dict[str, pl.DataFrame], members: list[dict[str, Any]],
    boosted: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Ours, boosting, their stack and the truth on the same held-out rows of each task."""
    events = hospital.folder / "events"
    courses = true_courses(hospital.folder / "hospital", events, DAYS)
    stays = true_stays(hospital.folder / "hospital", events)
    truth = {
        READMISSION: courses.select(*KEY, "risk"),
        DEATH: stays.select(*KEY, risk="p_death_in_stay"),
        LONG: stays.select(*KEY, risk="p_stay_7d"),
    }
    found: dict[str, Any] = {}
    for name, cohort in cohorts.items():
        given = {
            split: {
                "ours": together(members, name, split), "boosting": np.array(boosted[name][split]),
            }
            for split in (schema.TUNING, schema.HELD_OUT)
        }  # fmt: skip
        taught = labelled(hospital, cohort, name, schema.TUNING)
        stack = fit_stack(label_of(taught), given[schema.TUNING])
        asked = given[schema.HELD_OUT]
        rows = labelled(hospital, cohort, name, schema.HELD_OUT)
        both = rows.join(truth[name], on=KEY, how="left", maintain_order="left")
        if both["risk"].null_count():
            raise SystemExit(f"{name}: a row has no truth")
        found[name] = one_task(
            both, {"stack": stack.probability(asked), **asked, "truth": both["risk"].to_numpy()}
        )
        found[name]["weights"] = dict(stack.weights)
        found[name]["tuning loss by members"] = [
            log_loss(label_of(taught), together(members[: n + 1], name, schema.TUNING))
            for n in range(len(members))
        ]
        found[name]["members"] = [
            expected_auroc(np.array(m[name][schema.HELD_OUT]), both["risk"].to_numpy())
            for m in members
        ]
    held = hospital.store.subjects.filter(pl.col("split") == schema.HELD_OUT)[schema.SUBJECT_ID]
    due = (
        cohorts[READMISSION]
        .filter(pl.col("eligible") & pl.col(schema.SUBJECT_ID).is_in(held.implode()))
        .join(courses, on=KEY, maintain_order="left")
    )
    return found | {"time_to_readmission": brier_of_courses(hospital, due, len(members))}


def together(members: list[dict[str, Any]], task: str, split: str) -> NDArray[np.float64]:
    """Probabilities of members taken together."""
    return expit(np.mean([logit(np.array(m[task][split])) for m in members], axis=0))


def log_loss(y: NDArray[np.float64], p: NDArray[np.float64]) -> float:
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log1p(-p)))


def one_task(both: pl.DataFrame, given: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """AUROC and expected AUROC of all, and the stack's less the others', paired over patients."""
    subject, label = both[schema.SUBJECT_ID].to_numpy(), label_of(both)
    found: dict[str, Any] = {
        "n": both.height, "n_true": int(label.sum()),
        "auroc": {name: auroc(label, p) for name, p in given.items()},
        "expected_auroc": {name: expected_auroc(p, given["truth"]) for name, p in given.items()},
    }  # fmt: skip
    for other in given.keys() - {"stack"}:
        apart = paired_difference(auroc, subject, label, given["stack"], given[other], N_RESAMPLES)
        found[f"stack minus {other}"] = [apart.value, apart.low, apart.high]
    return found


def brier_of_courses(hospital: Hospital, due: pl.DataFrame, n_members: int) -> dict[str, float]:
    """Integrated Brier scores of the time to readmission: ours, the truth's, the same for all."""
    each = [
        incidence_at(
            load_model(member_folder(hospital, i)).model, hospital.store, due, READMISSION, DAYS
        )
        for i in range(n_members)
    ]
    ours = np.mean(each, axis=0)
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
    names = ("stack", "ours", "boosting", "truth")
    head = "".join(f"{name:>17}" for name in names)
    print(f"\n{'AUROC, held-out patients':24}{'true':>6}{'of':>7}{head}")
    for task in TUNED:
        row = found[task]
        cells = "".join(f"{row['expected_auroc'][n]:9.4f} ({row['auroc'][n]:.3f})" for n in names)
        print(f"{task:24}{row['n_true']:6,}{row['n']:7,}{cells}")
    print("expected where the true risks are known; in brackets, of what happened")
    for task in TUNED:
        members = ", ".join(f"{value:.4f}" for value in found[task]["members"])
        weights = ", ".join(f"{n} {w:.2f}" for n, w in found[task]["weights"].items())
        print(f"{task}: members alone {members}; weights of the stack: {weights}")
        losses = ", ".join(f"{value:.5f}" for value in found[task]["tuning loss by members"])
        print(f"  log loss of tuning rows by number of members: {losses}")
        for other in names[1:]:
            value, low, high = found[task][f"stack minus {other}"]
            print(f"  what happened, stack minus {other:9} {value:+.4f} [{low:+.4f}, {high:+.4f}]")
    course = found["time_to_readmission"]
    print("\ntime to readmission within 180 days, integrated Brier score")
    for name, value in course.items():
        print(f"  {name:50} {value:10.5g}")
    rows = [
        Row(f"expected AUROC of {name}, behind the truth",
            found[name]["expected_auroc"]["truth"] - found[name]["expected_auroc"]["stack"],
            BAR, BAR / 2, False, "")
        for name in TUNED
    ]  # fmt: skip
    ratio = course["ours"] / course["truth"]
    return [
        *rows,
        Row("integrated Brier score, ours over the truth's", ratio, BAR_BRIER, 1.02, False, ""),
    ]


def main() -> None:
    out, setup, quick = open_run(__doc__ or "", Setup(), QUICK)
    hospital = make_hospital(out, setup.patients, setup.seed)
    # The truth is of single stays: one that begins on the day the last one ended is its own here.
    apart = AdmissionRules(merge_same_day=False)
    cohorts = {
        name: find_cohort(out / "events", name, rules=None if name == READMISSION else apart)
        for name in TUNED
    }
    pretrained, tuned, members = [], [], []
    for i in range(setup.members):
        pretrained.append(once(out, f"pretrain {i}", lambda i=i: train(hospital, setup, i)))
        tuned.append(once(out, f"fine-tune {i}", lambda i=i: tune(hospital, cohorts, setup, i)))
        members.append(once(out, f"ask {i}", lambda i=i: ask(hospital, cohorts, i)))
    boosted = once(out, "boost", lambda: boost(hospital, cohorts, setup))
    found = once(out, "compare", lambda: compare(hospital, cohorts, members, boosted))
    patients = dict(hospital.store.subjects["split"].value_counts().iter_rows())
    print("\npatients: " + ", ".join(f"{n:,} {split}" for split, n in patients.items()))
    rows = tell(found)
    show(rows)
    print()
    print(
        json.dumps(
            {
                "benchmark": "timeline_ceiling",
                "machine": machine(),
                "quick": quick,
                "setup": asdict(setup),
                "patients": patients,
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
