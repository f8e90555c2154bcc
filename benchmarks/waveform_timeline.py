"""A waveform on the timeline, beside models of the record, of the ECG, and both fused late.

    python benchmarks/waveform_timeline.py --out DIR [--patients 12000] [--encoder ecg-encoder]
    python benchmarks/waveform_timeline.py --quick    few patients, to see that it runs

Patients are simulated (`waveform_patients`): half have an ECG whose QRS width changes their risk of
readmission, most for those on a drug. All models are trained on the same patients and scored on
those held out: the joint timeline, in training of which half of the patients' ECGs are hidden; the
timeline that reads no waveform; a logistic probe of the ECG's vectors; and late fusion of the two
scores, fitted on the tuning patients. AUROCs are those to be expected where the true risk is known,
which is the ceiling. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from demo import expected_auroc
from measure import machine_line
from numpy.typing import NDArray
from waveform_patients import Ward, make_ward

from tsfm import event_table, schema
from tsfm.evaluation.discrimination import auroc
from tsfm.evaluation.evaluation_ledger import EvaluationLedger
from tsfm.models.biosignal_encoder import BiosignalConfig, BiosignalEncoder
from tsfm.models.checkpoint import load_model
from tsfm.models.mamba import MambaConfig
from tsfm.models.signal_checkpoint import save_encoder
from tsfm.scoring.batch_score import score_events
from tsfm.scoring.encode_signals import encode_signals
from tsfm.tasks.cohorts import Followup
from tsfm.tasks.registry import find_cohort
from tsfm.tokens.signal_vectors import FOLDER, SignalVectors
from tsfm.tokens.token_store import build_token_store
from tsfm.training.finetune import FINETUNE_DEFAULTS, FinetuneConfig, finetune
from tsfm.training.loop import TrainConfig
from tsfm.training.pretrain import ModelParts, pretrain
from tsfm.training.signal_probes import fit_logistic

TASK = "readmission_30d"
FORMS = ("joint", "record only")


def small_encoder(folder: Path) -> str:
    """An encoder at random weights, for the quick form."""
    torch.manual_seed(0)
    encoder = BiosignalEncoder(BiosignalConfig(d_model=16, n_layers=1, d_embedding=16))
    save_encoder(folder / "encoder", encoder, facts={}, card="random weights")
    return str(folder / "encoder")


def train(ward: Ward, out: Path, cohort: pl.DataFrame, quick: bool) -> None:
    """Both timelines, from the same token store, with the same seeds."""
    if not (out / "tokens" / "config.json").exists():
        build_token_store(ward.root, out / "tokens")
    backbone = MambaConfig(d_model=16 if quick else 64, n_layers=1 if quick else 2)
    epochs = 1 if quick else 6
    for form in FORMS:
        folder = out / form.replace(" ", "_")
        if (folder / "model" / "config.json").exists():
            continue
        parts = ModelParts(memory_width=32, waveforms=form == "joint", waveform_dropout=0.5)
        config = TrainConfig(epochs=epochs, lr=3e-3, max_tokens=4096)
        if not (folder / "pretrained" / "config.json").exists():
            pretrain(out / "tokens", folder / "pretrained", backbone=backbone, parts=parts,
                     config=config)  # fmt: skip
        tuned = replace(FINETUNE_DEFAULTS, epochs=1 if quick else 10, max_tokens=4096)
        finetune(folder / "pretrained", out / "tokens", cohort, TASK, folder / "model",
                 config=FinetuneConfig(train=tuned))  # fmt: skip


def scores_of(
    ward: Ward, out: Path, form: str, vectors: SignalVectors | None = None
) -> pl.DataFrame:
    model = load_model(out / form.replace(" ", "_") / "model")
    found = score_events(model, ward.root, TASK, signals=vectors, progress=False).scores
    return found.select(
        schema.SUBJECT_ID, schema.PREDICTION_TIME, pl.col("probability").alias(form)
    )


def ecg_scores(table: pl.DataFrame, vectors: SignalVectors) -> NDArray[np.float64]:
    """A logistic probe of every record's vectors, fitted on the training patients that have one."""
    subjects = table[schema.SUBJECT_ID].to_list()
    row = vectors.rows([f"ecg-{s}" for s in subjects])
    x = np.zeros((len(row), vectors.n_vectors * vectors.width))
    x[row >= 0] = vectors.vectors[row[row >= 0]].reshape(int((row >= 0).sum()), -1)
    fitted = (row >= 0) & (table["split"] == schema.TRAIN).to_numpy()
    label = table["label"].to_numpy()
    probe = fit_logistic(x[fitted], label[fitted], patients=np.array(subjects)[fitted])
    found = np.full(len(row), np.nan)
    found[row >= 0] = probe.predict(x[row >= 0]).ravel()
    return found


def late_fusion(table: pl.DataFrame) -> NDArray[np.float64]:
    """The best that the two scores say together: logistic regression with their product, or
    boosting, whichever is better on folds of the tuning patients, on whom both are fitted."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    one, two = (_logit(table[name].to_numpy()) for name in ("record only", "ECG only"))
    x = np.stack([one, two, one * two], 1)
    has = table["has_ecg"].to_numpy()
    rows = has & (table["split"] == schema.TUNING).to_numpy()
    y = table["label"].to_numpy()
    ways = (
        LogisticRegression(),
        HistGradientBoostingClassifier(max_iter=40, max_leaf_nodes=6, learning_rate=0.1),
    )
    told = [
        auroc(y[rows], cross_val_predict(w, x[rows], y[rows], cv=5, method="predict_proba")[:, 1])
        for w in ways
    ]
    best = ways[int(np.argmax(told))].fit(x[rows], y[rows])
    found = np.full(len(y), np.nan)
    found[has] = best.predict_proba(x[has])[:, 1]
    return found


def _logit(p: NDArray) -> NDArray[np.float64]:
    p = np.clip(np.asarray(p, np.float64), 1e-5, 1 - 1e-5)
    return np.log(p / (1 - p))


def moved_by_later(ward: Ward, out: Path, table: pl.DataFrame, vectors: SignalVectors) -> int:
    """Scores that move when ECGs that became known after the discharge are other ones."""
    model = load_model(out / "joint" / "model")
    events = pl.concat(list(event_table.scan_events(ward.root)))
    asked = table.select(schema.SUBJECT_ID, schema.PREDICTION_TIME)
    with_ecg = events.join(asked, on=schema.SUBJECT_ID).filter(
        pl.col(schema.SIGNAL_ID).is_not_null()
    )  # fmt: skip
    # Every ECG becomes known an hour after the discharge: then what it holds may not count.
    moved = events.join(asked, on=schema.SUBJECT_ID, how="left").with_columns(
        pl.when(pl.col(schema.SIGNAL_ID).is_not_null())
        .then(pl.col(schema.PREDICTION_TIME) + pl.duration(hours=1))
        .otherwise(pl.col(schema.AVAILABLE_TIME))
        .alias(schema.AVAILABLE_TIME)
    )
    moved = moved.select(events.columns)
    rng = np.random.default_rng(0)
    other = SignalVectors(
        vectors.signal_id, np.array(vectors.vectors)[rng.permutation(len(vectors.vectors))] + 1.0,
        vectors.encoder_hash,
    )  # fmt: skip
    first, second = (_scored(model, moved, v) for v in (vectors, other))
    both = first.join(second, on=[schema.SUBJECT_ID, schema.PREDICTION_TIME])
    both = both.join(asked, on=[schema.SUBJECT_ID, schema.PREDICTION_TIME], how="semi")
    assert with_ecg.height
    assert both.height
    return int((both["probability"] != both["probability_right"]).sum())


def _scored(model, events: pl.DataFrame, vectors: SignalVectors) -> pl.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        with event_table.EventWriter(folder, n_shards=1) as writer:
            writer.add(events)
            writer.finish(dataset={"clock": "wall", "dates_shifted": True})
        found = score_events(
            model, folder, TASK, followup=Followup("complete"), signals=vectors, progress=False
        )  # fmt: skip
    return found.scores.select(schema.SUBJECT_ID, schema.PREDICTION_TIME, "probability")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder that keeps data and models")
    parser.add_argument("--patients", type=int, default=12_000)
    parser.add_argument("--encoder", default="ecg-encoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few patients, a minute")
    arguments = parser.parse_args()
    print(machine_line())
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.out or Path(scratch)
        encoder, n_patients = arguments.encoder, arguments.patients
        if arguments.quick:
            encoder, n_patients = small_encoder(Path(scratch)), 240
        report(run(out, encoder, n_patients, arguments), started)


def run(out: Path, encoder: str, n_patients: int, arguments: argparse.Namespace) -> dict:
    ward = make_ward(out, n_patients, ecg_share=0.5, seed=arguments.seed)
    if not (ward.root / FOLDER).exists():
        print(encode_signals(ward.root, encoder).as_text(), flush=True)
    vectors = SignalVectors.open(ward.root / FOLDER)
    cohort = find_cohort(ward.root, TASK)
    train(ward, out, cohort, arguments.quick)
    splits = event_table.subject_splits(ward.root)
    known = cohort.filter(pl.col("eligible")).with_columns(
        label=((pl.col("outcome") == "event") & (pl.col("outcome_days") <= 30)).cast(pl.Int8)
    )
    key = [schema.SUBJECT_ID, schema.PREDICTION_TIME]
    table = ward.truth.join(known.select(*key, "label"), on=key)
    for form in FORMS:
        table = table.join(scores_of(ward, out, form), on=key)
    table = table.with_columns(
        split=pl.Series([splits[s] for s in table[schema.SUBJECT_ID].to_list()])
    )
    table = table.with_columns(pl.Series("ECG only", ecg_scores(table, vectors)))
    table = table.with_columns(pl.Series("late fusion", late_fusion(table)))
    ledger = EvaluationLedger({str(s): s for s in table[schema.SUBJECT_ID].to_list()})
    for split, does in ((schema.TRAIN, ledger.fit), (schema.TUNING, ledger.fit)):
        own = table.filter(pl.col("split") == split)[schema.SUBJECT_ID].to_list()
        does(f"models on {split}", [str(s) for s in own])
    test = table.filter(pl.col("split") == schema.HELD_OUT)
    ledger.score("AUROC", [str(s) for s in test[schema.SUBJECT_ID].to_list()])
    return {"table": test, "moved": moved_by_later(ward, out, table, vectors)}


def difference(rows: pl.DataFrame, one: str, other: str, n: int = 1000) -> tuple[float, ...]:
    """Of two scores' expected AUROC, with its interval over resampled patients."""
    risk, a, b = (rows[name].to_numpy() for name in ("risk", one, other))
    rng = np.random.default_rng(0)
    values = []
    for _ in range(n):
        chosen = rng.integers(0, len(risk), len(risk))
        r = risk[chosen]
        values.append(expected_auroc(a[chosen], r) - expected_auroc(b[chosen], r))
    value = expected_auroc(a, risk) - expected_auroc(b, risk)
    return value, *(float(q) for q in np.quantile(values, [0.025, 0.975]))


def report(found: dict, started: float) -> None:
    test: pl.DataFrame = found["table"]
    answer: dict[str, object] = {}
    parts = {"with ECG": test.filter("has_ecg"), "without ECG": test.filter(~pl.col("has_ecg"))}
    names = ["risk", "joint", "late fusion", "record only", "ECG only"]
    shown = {"risk": "the true risk", "joint": "joint timeline", "record only": "timeline, no ECG"}
    print(f"\n{'patients held out':24}" + "".join(f"{p.height:>20,}" for p in parts.values()))
    print(f"{'AUROC, expected':24}" + "".join(f"{name:>20}" for name in parts))
    print(f"{'  (and of who came back)':24}")
    for name in names:
        row = []
        for part in parts.values():
            p = part[name].to_numpy()
            told = np.isfinite(p).all()
            row.append((expected_auroc(p, part["risk"].to_numpy()), auroc(part["label"], p))
                       if told else None)  # fmt: skip
        print(f"{shown.get(name, name):24}" + "".join(
            f"{'-':>20}" if x is None else f"{x[0]:12.4f} ({x[1]:.3f})" for x in row
        ))  # fmt: skip
        answer[name.replace(" ", "_")] = [None if x is None else round(x[0], 4) for x in row]
    print()
    for label, part, other in (
        ("joint less timeline without ECG", "with ECG", "record only"),
        ("joint less late fusion", "with ECG", "late fusion"),
        ("the same, patients without an ECG", "without ECG", "record only"),
    ):
        value, low, high = difference(parts[part], "joint", other)
        print(f"{label:36}{value:+8.4f} [{low:+.4f}, {high:+.4f}]")
        answer[label.replace(" ", "_").replace(",", "")] = round(value, 4)
    print(f"scores that move with ECGs known only later: {found['moved']}")
    answer["moved_by_later_ecgs"] = found["moved"]
    answer["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
