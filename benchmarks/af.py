"""Atrial fibrillation and other rhythms from one hand-held lead (CinC Challenge 2017).

    python benchmarks/af.py --train DIR [--test DIR] [--noise]
    python benchmarks/af.py --quick                   made-up records, to see that it runs

Folders hold WFDB records and `REFERENCE.csv`. Without `--test` the records are scored in five
folds, three times over: patients are not told apart in this set, so folds are of records. Ours is
the mean log probability of three models on the features of the rhythm (extremely randomised trees,
a support vector machine, boosting); the peers are boosting alone and a small ResNet on the
waveform. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path

import numpy as np
from cinc2017_records import CLASSES, FS_HZ, Cinc2017, made_up, read_cinc2017
from ecg_peers import fit_predict
from measure import machine_line
from numpy.typing import NDArray

from tsfm.evaluation.evaluation_ledger import EvaluationLedger
from tsfm.signals.filters import resample
from tsfm.signals.rhythm_features import rhythm_features
from tsfm.simulation.signal_noise import KINDS, add_noise

DEFAULT = Path(os.environ.get("TSFM_DATA", "../shared/data")) / "wfdb" / "cinc2017"
N_FOLDS, N_REPEATS = 5, 3
CROP_S, PEER_HZ = 9.0, 100.0
SNR_DB = (24, 12, 6, 0, -6)
OURS = ("trees", "svm", "lightgbm")


def features(data: Cinc2017) -> NDArray[np.float64]:
    return np.array([list(rhythm_features(x, fs_hz=FS_HZ).values()) for x in data.signals])


def fitted(name: str, x: NDArray, y: NDArray, seed: int):
    """A model on features, fitted."""
    from lightgbm import LGBMClassifier
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import QuantileTransformer
    from sklearn.svm import SVC

    fill = SimpleImputer(strategy="median", keep_empty_features=True)
    if name == "trees":
        model = make_pipeline(
            fill,
            ExtraTreesClassifier(500, min_samples_leaf=2, max_features=0.3, random_state=seed),
        )
    elif name == "svm":
        scale = QuantileTransformer(
            output_distribution="normal", n_quantiles=min(100, len(x)), random_state=seed
        )
        svm = CalibratedClassifierCV(SVC(C=2.0, gamma=0.004), ensemble=False, cv=5)
        model = make_pipeline(fill, scale, svm)
    else:
        model = LGBMClassifier(
            n_estimators=120, num_leaves=6, learning_rate=0.05, min_child_samples=8,
            colsample_bytree=0.3, subsample=0.8, subsample_freq=1, reg_lambda=3.0,
            random_state=seed, num_threads=1, verbose=-1,
        )  # fmt: skip
    return model.fit(x, y)


def probabilities(models: dict, x: NDArray) -> dict[str, NDArray]:
    found = {name: model.predict_proba(x) for name, model in models.items()}
    logs = [np.log(np.clip(found[name], 1e-3, 1)) for name in OURS]
    mixed = np.exp(np.mean(logs, axis=0))
    found["ours"] = mixed / mixed.sum(1, keepdims=True)
    return found


def crops(data: Cinc2017, seed: int | None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Stretches of equal length for the ResNet and whose they are, at unit deviation."""
    n = round(CROP_S * PEER_HZ)
    rows, owners = [], []
    for i, signal in enumerate(data.signals):
        x = np.asarray(resample(signal, fs_hz=FS_HZ, to_hz=PEER_HZ), np.float32)
        x = (x - np.median(x)) / max(float(x.std()), 1e-6)
        x = np.pad(x, (0, max(0, n - len(x))))
        for start in range(0, len(x) - n + 1, n if seed is None else n // 2):
            rows.append(x[start : start + n])
            owners.append(i)
    return np.stack(rows)[:, None], np.array(owners)


def resnet(train: Cinc2017, test: Cinc2017, seed: int, epochs: int | None) -> NDArray:
    x, owner = crops(train, seed)
    x_test, owner_test = crops(test, None)
    y = np.eye(len(CLASSES), dtype=np.float32)[train.label[owner]]
    each = fit_predict("resnet", x, y, x_test, seed=seed, epochs=epochs, exclusive=True)
    found = np.zeros((len(test), len(CLASSES)))
    np.add.at(found, owner_test, each)
    return found / np.bincount(owner_test, minlength=len(test))[:, None]


def f1(label: NDArray, predicted: NDArray) -> NDArray[np.float64]:
    """F1 of every class."""
    found = []
    for k in range(len(CLASSES)):
        hit = np.sum((label == k) & (predicted == k))
        found.append(2 * hit / max(np.sum(label == k) + np.sum(predicted == k), 1))
    return np.array(found)


def folds(label: NDArray, seed: int) -> NDArray[np.int64]:
    """Fold of each record, classes spread evenly."""
    rng = np.random.default_rng(seed)
    fold = np.zeros(len(label), np.int64)
    for k in np.unique(label):
        rows = rng.permutation(np.flatnonzero(label == k))
        fold[rows] = np.arange(len(rows)) % N_FOLDS
    return fold


def gain_interval(label: NDArray, ours: NDArray, peer: NDArray, n: int = 1000) -> list[float]:
    """Interval of the difference in macro F1 of N, A and O, records resampled within classes."""
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(label == k) for k in np.unique(label)]
    gains = []
    for _ in range(n):
        rows = np.concatenate([rng.choice(g, len(g)) for g in groups])
        both = [f1(label[rows], p[rows])[:3].mean() for p in (ours, peer)]
        gains.append(both[0] - both[1])
    return [round(float(q), 4) for q in np.quantile(gains, [0.025, 0.975])]


def tell(name: str, each: NDArray) -> None:
    scores = " ".join(f"{v:7.3f}" for v in each)
    print(f"{name:12} {scores} {each[:3].mean():10.4f} {each.mean():11.4f}", flush=True)


def under_noise(models: dict, data: Cinc2017, snrs: tuple[int, ...]) -> dict:
    """Macro F1 of N, A and O of ours and boosting with noise on the test records."""
    table = {}
    for kind in KINDS:
        for snr in snrs:
            noisy = [
                add_noise(x, kind, snr, FS_HZ, i).astype(np.float32)
                for i, x in enumerate(data.signals)
            ]
            found = probabilities(models, features(Cinc2017(data.names, noisy, data.label)))
            row = {
                name: round(float(f1(data.label, found[name].argmax(1))[:3].mean()), 4)
                for name in ("ours", "lightgbm")
            }
            table[f"{kind} {snr} dB"] = row
            print(f"{kind:10} {snr:4} dB   ours {row['ours']:.3f}   boosting {row['lightgbm']:.3f}")
    return table


def check_split(train: Cinc2017, test: Cinc2017) -> None:
    """Refuse a record on both sides, by its name and by its samples."""
    parts = {f"train/{n}": (n, x) for n, x in zip(train.names, train.signals, strict=True)}
    parts |= {f"test/{n}": (n, x) for n, x in zip(test.names, test.signals, strict=True)}
    ledger = EvaluationLedger(
        {key: name for key, (name, _) in parts.items()},
        {key: hash(x.tobytes()) for key, (_, x) in parts.items()},
    )
    ledger.fit("models", [key for key in parts if key.startswith("train/")])
    ledger.score("macro F1", [key for key in parts if key.startswith("test/")])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, default=DEFAULT)
    parser.add_argument("--test", type=Path, help="folder of records kept apart")
    parser.add_argument("--noise", action="store_true", help="also under noise")
    parser.add_argument("--quick", action="store_true", help="made-up records, seconds")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(machine_line())
    started = time.perf_counter()
    epochs = 1 if arguments.quick else None
    train = made_up(40, seed=0) if arguments.quick else read_cinc2017(arguments.train)
    test = made_up(20, seed=1) if arguments.quick else None
    if arguments.test:
        test = read_cinc2017(arguments.test)
    x = features(train)
    found: list[dict[str, NDArray]] = []
    if test is not None:
        check_split(train, test)
        models = {name: fitted(name, x, train.label, 0) for name in OURS}
        found = [probabilities(models, features(test))]
        found[0]["resnet"] = resnet(train, test, 0, epochs)
        label, noisy = test.label, [(models, test)]
    else:
        label, noisy = train.label, []
        for repeat in range(N_REPEATS):
            fold = folds(label, repeat)
            whole: dict[str, NDArray] = {}
            for k in range(N_FOLDS):
                a, b = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
                check_split(train.rows(a), train.rows(b))
                models = {name: fitted(name, x[a], label[a], repeat) for name in OURS}
                part = probabilities(models, x[b])
                if repeat == 0:
                    part["resnet"] = resnet(train.rows(a), train.rows(b), k, epochs)
                    noisy.append((models, train.rows(b)))
                for name, p in part.items():
                    whole.setdefault(name, np.zeros((len(label), len(CLASSES))))[b] = p
            found.append(whole)
    print(f"{len(label)} records scored, {np.bincount(label, minlength=4).tolist()} of N, A, O, ~")
    print(f"\nF1           {' '.join(f'{c:>7}' for c in CLASSES)}  macro NAO  with noise")
    scores = {}
    for name in ("ours", *OURS, "resnet"):
        runs = [f1(label, run[name].argmax(1)) for run in found if name in run]
        scores[name] = np.mean(runs, axis=0)
        tell(name, scores[name])
    best = max(("lightgbm", "resnet"), key=lambda name: scores[name][:3].mean())
    ours, peer = found[0]["ours"].argmax(1), found[0][best].argmax(1)
    answer = {
        "macro_f1": round(float(scores["ours"][:3].mean()), 4),
        "macro_f1_with_noise": round(float(scores["ours"].mean()), 4),
        "gain_over_best_peer": round(float((scores["ours"] - scores[best])[:3].mean()), 4),
        "gain_ci": gain_interval(label, ours, peer),
        "best_peer": best,
        "n": len(label),
        "peers": {
            name: {
                "macro_f1": round(float(scores[name][:3].mean()), 4),
                "macro_f1_with_noise": round(float(scores[name].mean()), 4),
            }
            for name in ("lightgbm", "resnet")
        },
    }
    if arguments.noise:
        print("\nmacro F1 of N, A and O under noise")
        models, part = noisy[0]
        answer["noise"] = under_noise(models, part, (6,) if arguments.quick else SNR_DB)
    answer["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
