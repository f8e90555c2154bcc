"""Superclasses of PTB-XL from few records, beside the usual networks and boosting.

    python benchmarks/ptbxl.py --train DIR [--test DIR] [--out DIR] [--seeds 1] [--noise]
    python benchmarks/ptbxl.py --quick                made-up records, to see that it runs

Folders have the layout of PTB-XL (`ptbxl_database.csv`, `scp_statements.csv`, `records100/`).
Without `--test` the records of `--train` are scored in five folds of patients. Ours is our encoder,
which has learned from simulated hearts and then from the same records as all, together with trees
on what a cardiograph measures; all peers see the same records in the same run. `--out` keeps the
predictions of each model and fold, so that a run that was stopped goes on. `--noise` also scores
the same records with wander, muscle and electrode noise. Our encoder and our trees have met noise
of these kinds on the records that they learn from; the peers have met none. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ecg_peers import fit_predict
from measure import machine_line
from numpy.typing import NDArray
from ptbxl_records import (
    FS_HZ,
    SUPERCLASSES,
    PtbXl,
    made_up,
    noisy,
    noisy_copies,
    read_ptbxl,
    stack,
)

from tsfm.evaluation.evaluation_ledger import EvaluationLedger
from tsfm.evaluation.label_bootstrap import (
    macro_auroc,
    macro_auroc_interval,
    paired_macro_difference,
)
from tsfm.models.biosignal_encoder import BiosignalConfig, BiosignalEncoder
from tsfm.models.encoder_directory import level, open_encoder
from tsfm.signals.store import STANDARD_LEADS
from tsfm.simulation.signal_noise import KINDS
from tsfm.training.signal_classifier import SignalTraining, fit_signal_classifier

DEFAULT = Path(os.environ.get("TSFM_DATA", "../shared/data")) / "wfdb" / "ptb-xl"
N_FOLDS = 5
SNR_DB = (24, 12, 6, 0, -6)
TRAINING = SignalTraining(epochs=30)
TUNING = SignalTraining(  # of an encoder that has learned from simulated hearts
    epochs=20, lr=5e-4, muscle_mv=0.1, motion_mv=0.2
)
QUICK = SignalTraining(epochs=1)
PEERS = ("lightgbm", "resnet", "xresnet1d101", "net1d", "s4")
TAUGHT = "encoder, simulated first"
OURS = "ours: encoder and trees"

Predict = Callable[[PtbXl, PtbXl], NDArray[np.float64]]


def logit(p: NDArray) -> NDArray:
    p = np.clip(p, 1e-4, 1 - 1e-4)
    return np.log(p / (1 - p))


def signals(data: PtbXl) -> torch.Tensor:
    return torch.from_numpy(data.signal_mv)


def boosting(train: PtbXl, test: PtbXl) -> NDArray[np.float64]:
    """One LightGBM a superclass on the measurements, three seeds."""
    import lightgbm

    x, x_test = train.measured, test.measured
    found = np.zeros((len(test), len(SUPERCLASSES)))
    for j in range(len(SUPERCLASSES)):
        for seed in range(3):
            model = lightgbm.LGBMClassifier(
                n_estimators=150, num_leaves=6, learning_rate=0.05, min_child_samples=10,
                colsample_bytree=0.2, subsample=0.8, subsample_freq=1, reg_lambda=5.0,
                random_state=seed, num_threads=1, verbose=-1,
            )  # fmt: skip
            found[:, j] += model.fit(x, train.label[:, j]).predict_proba(x_test)[:, 1] / 3
    return found


def trees(train: PtbXl, test: PtbXl) -> NDArray[np.float64]:
    """Extremely randomised trees, one half on the measurements, one with the muscle filter on.

    Both learn from the records and from noisy copies of them; their log odds are averaged.
    """
    every = stack([train, *noisy_copies(train)])
    halves = (
        forest(every.measured, every.label, test.measured),
        forest(every.filtered, every.label, test.filtered),
    )
    return 1 / (1 + np.exp(-(logit(halves[0]) + logit(halves[1])) / 2))


def forest(x: NDArray, label: NDArray, x_test: NDArray) -> NDArray[np.float64]:
    """One forest a superclass."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.impute import SimpleImputer

    fill = SimpleImputer(strategy="median", keep_empty_features=True)
    x, x_test = fill.fit_transform(x), fill.transform(x_test)
    found = np.zeros((len(x_test), len(SUPERCLASSES)))
    for j in range(len(SUPERCLASSES)):
        model = ExtraTreesClassifier(
            300, min_samples_leaf=3, max_features=0.2, random_state=0, n_jobs=1
        )
        found[:, j] = model.fit(x, label[:, j]).predict_proba(x_test)[:, 1]
    return found


def encoder(
    training: SignalTraining, n_seeds: int, scan: str = "selective", start: str | None = None
) -> Predict:
    """Our encoder, from no weights or from a model directory's; the mean of some seeds."""

    def predict(train: PtbXl, test: PtbXl) -> NDArray[np.float64]:
        found = np.zeros((len(test), len(SUPERCLASSES)))
        for seed in range(n_seeds):
            torch.manual_seed(seed)
            own = BiosignalEncoder(BiosignalConfig(scan=scan))
            model = fit_signal_classifier(
                own if start is None else open_encoder(start).encoder, level(signals(train)),
                torch.from_numpy(train.label), fs_hz=FS_HZ, leads=STANDARD_LEADS,
                training=replace(training, seed=seed),
            )  # fmt: skip
            found += model.predict(level(signals(test)), fs_hz=FS_HZ, leads=STANDARD_LEADS).numpy()
        return found / n_seeds

    return predict


def peer(kind: str, epochs: int | None, n_seeds: int) -> Predict:
    """A network of `ecg_peers` from scratch; the mean of some seeds."""

    def predict(train: PtbXl, test: PtbXl) -> NDArray[np.float64]:
        x, x_test = level(signals(train)).numpy(), level(signals(test)).numpy()
        parts = [
            fit_predict(kind, x, train.label.astype(np.float32), x_test, seed=seed, epochs=epochs)
            for seed in range(n_seeds)
        ]
        return np.mean(parts, axis=0)

    return predict


def models(arguments: argparse.Namespace) -> dict[str, Predict]:
    training = QUICK if arguments.quick else TRAINING
    epochs = 1 if arguments.quick else None
    chosen: dict[str, Predict] = {"lightgbm": boosting, "trees": trees}
    chosen["encoder"] = encoder(training, arguments.seeds)
    chosen["encoder, time-invariant"] = encoder(training, arguments.seeds, "lti")
    tuning = QUICK if arguments.quick else TUNING
    chosen[TAUGHT] = encoder(tuning, arguments.seeds, start=arguments.encoder)
    for kind in PEERS[1:]:
        if not arguments.quick or kind == "resnet":
            chosen[kind] = peer(kind, epochs, 1)
    needed = ("lightgbm", "trees", TAUGHT)
    if strange := set(arguments.models or ()) - chosen.keys():
        raise SystemExit(f"no model {', '.join(sorted(strange))}; there are {', '.join(chosen)}")
    return {
        name: predict
        for name, predict in chosen.items()
        if not arguments.models or name in (*needed, *arguments.models)
    }


def predictions(
    chosen: dict[str, Predict], parts: list[tuple[PtbXl, PtbXl]], out: Path | None
) -> dict[str, NDArray[np.float64]]:
    """Of every model, for the test records of all parts in order."""
    found = {}
    for name, predict in chosen.items():
        rows = []
        for i, (train, test) in enumerate(parts):
            kept = out / f"{name.replace(' ', '_')}-{i}-{len(test)}.npy" if out else None
            if kept and kept.exists():
                rows.append(np.load(kept))
                continue
            started = time.perf_counter()
            rows.append(predict(train, test))
            if kept:
                np.save(kept, rows[-1])
            print(f"  {name:22} part {i}: {time.perf_counter() - started:7.1f} s", flush=True)
        found[name] = np.concatenate(rows)
    return found


def split(train: PtbXl, test: PtbXl | None) -> list[tuple[PtbXl, PtbXl]]:
    """The given split, or folds of patients; the ledger refuses a patient on both sides."""
    if test is not None:
        parts = [(train, test)]
    else:
        patients = np.unique(train.patient)
        fold = np.random.default_rng(0).permutation(len(patients)) % N_FOLDS
        of = fold[np.searchsorted(patients, train.patient)]
        parts = [(train.rows(of != k), train.rows(of == k)) for k in range(N_FOLDS)]
    for one, other in parts:
        owner = {
            f"r{i}": int(p)
            for part in (one, other)
            for i, p in zip(part.ecg_id, part.patient, strict=True)
        }
        ledger = EvaluationLedger(owner)
        ledger.fit("weights", [f"r{i}" for i in one.ecg_id])
        ledger.score("macro AUROC", [f"r{i}" for i in other.ecg_id])
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, default=DEFAULT)
    parser.add_argument("--test", type=Path, help="folder of records kept apart")
    parser.add_argument("--out", type=Path, help="folder that keeps predictions")
    parser.add_argument("--encoder", default="ecg-encoder", help="that was taught before")
    parser.add_argument("--seeds", type=int, default=1, help="of our encoder")
    parser.add_argument("--noise", action="store_true", help="also under noise")
    parser.add_argument("--models", nargs="+", help="ours, LightGBM and these, not all")
    parser.add_argument("--quick", action="store_true", help="made-up records, seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    print(machine_line())
    if arguments.quick:
        arguments.seeds = 1
        train, test = made_up(30, seed=0), made_up(20, seed=1)
    else:
        train = read_ptbxl(arguments.train)
        test = read_ptbxl(arguments.test) if arguments.test else None
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    parts = split(train, test)
    scored = np.concatenate([test.label for _, test in parts])
    snrs = (6,) if arguments.quick else SNR_DB
    levels = [(kind, snr) for kind in KINDS for snr in snrs] if arguments.noise else []
    copies = [
        (train, stack([test, *(noisy(test, kind, snr) for kind, snr in levels)]))
        for train, test in parts
    ]
    each = predictions(models(arguments), copies, arguments.out)
    each[OURS] = 1 / (1 + np.exp(-(logit(each[TAUGHT]) + logit(each["trees"])) / 2))
    sizes = [len(test) for _, test in parts]
    found = {name: by_level(p, sizes, 1 + len(levels)) for name, p in each.items()}
    answer = report({name: p[0] for name, p in found.items()}, scored)
    if levels:
        answer["noise"] = under_noise(found, scored, levels)
    answer["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(answer))


def by_level(p: NDArray, sizes: list[int], n_levels: int) -> NDArray[np.float64]:
    """(level, record, superclass) of predictions that lie part by part, level by level in each."""
    parts = np.split(p, np.cumsum(np.array(sizes) * n_levels)[:-1])
    rows = [part.reshape(n_levels, size, -1) for part, size in zip(parts, sizes, strict=True)]
    return np.concatenate(rows, axis=1)


def under_noise(
    found: dict[str, NDArray], label: NDArray, levels: list[tuple[str, int]]
) -> dict[str, dict[str, float]]:
    """Macro AUROC by kind and ratio of noise, and what each model loses in the mean of them."""
    print(f"\n{'macro AUROC under noise':24} " + " ".join(f"{name[:12]:>12}" for name in found))
    clean = {name: macro_auroc(label, p[0]) for name, p in found.items()}
    table = {}
    for i, (kind, snr) in enumerate(levels):
        row = {name: macro_auroc(label, p[i + 1]) for name, p in found.items()}
        table[f"{kind} {snr} dB"] = {name: round(value, 4) for name, value in row.items()}
        print(f"{kind:14} {snr:6} dB " + " ".join(f"{value:12.4f}" for value in row.values()))
    for kind in KINDS:
        rows = [row for name, row in table.items() if name.startswith(kind)]
        lost = {name: clean[name] - np.mean([row[name] for row in rows]) for name in found}
        table[f"{kind}, mean loss"] = {name: round(value, 4) for name, value in lost.items()}
        print(f"{kind:14} mean loss " + " ".join(f"{value:12.4f}" for value in lost.values()))
    return table


def report(found: dict[str, NDArray], label: NDArray) -> dict[str, object]:
    """Print the scores of all on the records as they are, and give them."""
    how = "macro AUROC of five superclasses"
    print(f"\n{len(label)} records scored, {label.sum(0).tolist()} of {', '.join(SUPERCLASSES)}")
    print(f"{how:34} " + " ".join(f"{name:>6}" for name in SUPERCLASSES))
    scores = {}
    for name, p in found.items():
        scores[name] = macro_auroc(label, p)
        interval = macro_auroc_interval(label, p)
        each = " ".join(
            f"{macro_auroc(label[:, [j]], p[:, [j]]):6.3f}" for j in range(label.shape[1])
        )
        bounds = f"[{interval.low:.3f}, {interval.high:.3f}]"
        print(f"{name:24} {scores[name]:.4f}  {each}  {bounds}")
    peers = [name for name in PEERS if name in scores]
    best = max(peers, key=lambda name: scores[name])
    gain = paired_macro_difference(label, found[OURS], found[best])
    print(
        f"\nours less the best peer, {best}: {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
    )
    return {
        "macro_auroc": round(scores[OURS], 5),
        "gain_over_best_peer": round(gain.value, 5),
        "gain_ci": [round(gain.low, 5), round(gain.high, 5)],
        "best_peer": best,
        "n": len(label),
        "models": {name: round(value, 5) for name, value in scores.items()},
    }


if __name__ == "__main__":
    main()
