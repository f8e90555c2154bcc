"""Linear probes of the states of all designs for readmission, beside the true risk."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from demo import expected_auroc
from numpy.typing import NDArray
from timeline_designs_ethos import EthosRun, states_once
from timeline_designs_forms import FORMS, load_form, states_at
from timeline_designs_hospital import Hospital
from timeline_designs_truth import true_courses

from tsfm import schema
from tsfm.evaluation.bootstrap import paired_difference
from tsfm.evaluation.discrimination import auroc
from tsfm.tasks.registry import TASKS, find_cohort, labels_of
from tsfm.tokens.ethos_tokens import tokenize_ethos
from tsfm.training.probe import PENALTIES

READMISSION = "readmission_30d"
KEY = [schema.SUBJECT_ID, schema.PREDICTION_TIME]
DAYS = np.array([30.0])
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
