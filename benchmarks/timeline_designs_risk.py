"""What is known of risk: probes of states, fine-tuned tasks, and the distance from the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from demo import expected_auroc
from numpy.typing import NDArray
from timeline_designs_ethos import EthosRun, states_once
from timeline_designs_forms import FORMS, incidence_at, load_form, states_at
from timeline_designs_hospital import Hospital
from timeline_designs_truth import true_courses

from tsfm import schema
from tsfm.evaluation.bootstrap import bootstrap_interval, paired_difference
from tsfm.evaluation.competing_risks import cumulative_incidence
from tsfm.evaluation.discrimination import auroc
from tsfm.evaluation.integrated_brier import integrated_brier
from tsfm.models.checkpoint import load_model
from tsfm.tasks.registry import TASKS, find_cohort, labels_of
from tsfm.tokens.ethos_tokens import tokenize_ethos
from tsfm.training.loop import TrainConfig
from tsfm.training.multitask import MultitaskConfig, multitask_finetune
from tsfm.training.probe import PENALTIES
from tsfm.training.task_answers import score_tasks

READMISSION = "readmission_30d"
TUNED = (READMISSION, "mortality_in_hospital", "length_of_stay_7d")
KEY = [schema.SUBJECT_ID, schema.PREDICTION_TIME]
DAYS = np.array([1, 2, 3, 5, 7, 10, 14, 21, 30, 45, 60, 90, 120, 180], float)
N_RESAMPLES = 1000


def compare_probes(hospital: Hospital, peers: dict[str, EthosRun]) -> dict[str, Any]:
    """AUROC of a linear probe of each model's states for readmission, on the same discharges."""
    cohort = find_cohort(hospital.folder / "events", READMISSION).filter("eligible")
    stays = cohort.join(labels_of(cohort, TASKS[READMISSION]), on=KEY, maintain_order="left")
    label = stays[schema.BOOLEAN_VALUE].to_numpy().astype(float)
    split = hospital.store.subjects.select(schema.SUBJECT_ID, "split")
    of = stays.join(split, on=schema.SUBJECT_ID, how="left", maintain_order="left")["split"]
    rows = {name: (of == name).to_numpy() for name in schema.SPLITS}
    held = rows[schema.HELD_OUT]
    subject = stays[schema.SUBJECT_ID].to_numpy()
    chances = {
        name: probe(*states_at(load_form(name, hospital.form_folder(name)), hospital.store, stays),
                    label, rows)
        for name in FORMS
    }  # fmt: skip
    moments = stays[schema.PREDICTION_TIME].cast(pl.Int64).to_numpy() / 1e6
    timelines = tokenize_ethos(hospital.everyone, hospital.words)
    for name, run in peers.items():
        states = states_once(timelines, run.model, subject, moments)
        chances[name] = probe(*states, label, rows)
    truth = true_courses(hospital.folder / "hospital", hospital.folder / "events", DAYS)
    both = stays.with_columns(_held=held).join(truth, on=KEY, how="left", maintain_order="left")
    risk = both["risk"].to_numpy()
    known = held & np.isfinite(risk)
    found: dict[str, Any] = {
        "n": int(held.sum()),
        "n_training": int(rows[schema.TRAIN].sum()),
        "auroc": {k: auroc(label[held], v[held]) for k, v in chances.items()},
        "expected_auroc": {k: expected_auroc(v[known], risk[known]) for k, v in chances.items()},
        "ceiling": auroc(label[known], risk[known]),
        "expected_ceiling": expected_auroc(risk[known], risk[known]),
    }
    for name in chances.keys() - {"mamba"}:
        apart = paired_difference(
            auroc, subject[held], label[held], chances["mamba"][held], chances[name][held],
            N_RESAMPLES,
        )  # fmt: skip
        found[f"mamba minus {name}"] = [apart.value, apart.low, apart.high]
    return found


def probe(
    states: NDArray[np.float32], hours: NDArray[np.float64], label: NDArray[np.float64],
    rows: dict[str, NDArray[np.bool_]],
) -> NDArray[np.float64]:  # fmt: skip
    """Chances of every stay, by a regression whose penalty the tuning subjects chose."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    waited = np.log1p(np.nan_to_num(hours, nan=0.0))[:, None] / 5.0
    read = np.concatenate([states, waited], axis=1)
    train, tuning = rows[schema.TRAIN], rows[schema.TUNING]
    best, chosen = np.inf, np.zeros(len(label))
    for penalty in PENALTIES:
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=500))
        p = fitted.fit(read[train], label[train]).predict_proba(read)[:, 1]
        own = np.where(label > 0, p, 1.0 - p)[tuning]
        loss = float(-np.log(np.maximum(own, 1e-12)).mean())
        if loss < best:
            best, chosen = loss, p
    return chosen


def tune(hospital: Hospital, config: TrainConfig) -> dict[str, Any]:
    """Fine-tune three tasks at once and hold them against the truth where there is one."""
    folder, events = hospital.folder / "model", hospital.folder / "events"
    cohorts = {name: find_cohort(events, name) for name in TUNED}
    if not (folder / "config.json").exists():
        multitask_finetune(
            hospital.form_folder("mamba"), hospital.folder / "tokens", cohorts, folder,
            config=MultitaskConfig(train=config), progress=False,
        )  # fmt: skip
    model = load_model(folder)
    scores = score_tasks(model, hospital.folder / "tokens", cohorts, split=schema.HELD_OUT)
    truth = true_courses(hospital.folder / "hospital", events, DAYS)
    found: dict[str, Any] = {}
    for name, frame in scores.items():
        both = frame.drop_nulls().join(
            labels_of(cohorts[name], TASKS[name]), on=KEY, maintain_order="left"
        )
        subject = both[schema.SUBJECT_ID].to_numpy()
        label = both[schema.BOOLEAN_VALUE].to_numpy().astype(float)
        p = both["probability"].to_numpy().astype(float)
        own = bootstrap_interval(auroc, subject, label, p, N_RESAMPLES)
        found[name] = {
            "n": both.height, "n_true": int(label.sum()), "auroc": own.value,
            "interval": [own.low, own.high], "ceiling": None,
        }  # fmt: skip
        if name == READMISSION:
            risk = both.join(truth, on=KEY, how="left", maintain_order="left")["risk"].to_numpy()
            known = np.isfinite(risk)
            gap = paired_difference(
                auroc, subject[known], label[known], p[known], risk[known], N_RESAMPLES
            )
            found[name] |= {
                "ceiling": auroc(label[known], risk[known]),
                "minus_ceiling": [gap.value, gap.low, gap.high],
                "expected_auroc": expected_auroc(p[known], risk[known]),
                "expected_ceiling": expected_auroc(risk[known], risk[known]),
            }
    held = hospital.store.subjects.filter(pl.col("split") == schema.HELD_OUT)[schema.SUBJECT_ID]
    stays = (
        cohorts[READMISSION]
        .filter(pl.col("eligible") & pl.col(schema.SUBJECT_ID).is_in(held.implode()))
        .join(truth, on=KEY, maintain_order="left")
    )
    return found | {"time_to_readmission": courses(hospital, stays)}


def courses(hospital: Hospital, stays: pl.DataFrame) -> dict[str, float]:
    """Integrated Brier scores of the time to readmission, ours and the truth's."""
    ours = incidence_at(
        load_model(hospital.folder / "model").model, hospital.store, stays, READMISSION, DAYS
    )
    seen = np.isfinite(ours).all(1)
    stays, ours = stays.filter(seen), ours[seen]
    outcome, when = stays["outcome"], stays["outcome_days"].to_numpy()
    true = np.array(stays["course"].to_list())
    curve = cumulative_incidence(outcome, when)
    steps = np.concatenate([[0.0], curve.event])
    marginal = steps[np.searchsorted(curve.days, DAYS, side="right")]
    predictions = {"ours": ours, "truth": true, "same for all": np.tile(marginal, (len(when), 1))}
    found = {k: integrated_brier(outcome, when, v, DAYS) for k, v in predictions.items()}
    distance = np.trapezoid(np.pad(((ours - true) ** 2).mean(0), (1, 0)), np.append(0.0, DAYS))
    return {
        "n": float(len(when)),
        "days": float(DAYS[-1]),
        **found,
        "ours, mean squared distance from the true course": float(distance / DAYS[-1]),
    }
