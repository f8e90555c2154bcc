"""Atrial fibrillation and other rhythms from one hand-held lead (CinC Challenge 2017).

    python benchmarks/af.py --train DIR [--test DIR] [--noise]
    python benchmarks/af.py --quick                   made-up records, to see that it runs

Folders hold WFDB records and `REFERENCE.csv`. Without `--test` the records are scored in five
folds, three times over: patients are not told apart in this set, so folds are of records. Ours
learns from each training record and three noisy copies of it: extremely randomised trees and
boosting on the features of the rhythm, and a logistic probe of what `ecg-encoder` sees in windows
of ten seconds. The peers are boosting on the same features and a small ResNet on the waveform, of
clean records as is usual. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from cinc2017_records import CLASSES, FS_HZ, Cinc2017, made_up, read_cinc2017
from ecg_peers import fit_predict
from measure import machine_line
from numpy.typing import NDArray

from tsfm.evaluation.evaluation_ledger import EvaluationLedger
from tsfm.models.encoder_directory import EncoderDirectory, open_encoder
from tsfm.signals.filters import resample
from tsfm.signals.rhythm_features import rhythm_features
from tsfm.simulation.signal_noise import KINDS, add_noise

DEFAULT = Path(os.environ.get("TSFM_DATA", "../shared/data")) / "wfdb" / "cinc2017"
N_FOLDS, N_REPEATS = 5, 3
CROP_S, PEER_HZ = 9.0, 100.0
SNR_DB = (24, 12, 6, 0, -6)
OURS = ("trees", "boosting", "probe")  # of clean and noisy records
SHARES = (0.375, 0.375, 0.25)  # of their log probabilities in the mean
ALONE = ("trees, clean only", "lightgbm")
COPIES_DB = (-3.0, 18.0)
WINDOW_S = 10.0


class Described:
    """Features of the rhythm and the encoder's vectors of some records."""

    def __init__(self, data: Cinc2017, encoder: EncoderDirectory) -> None:
        self.rhythm = np.array(
            [list(rhythm_features(x, fs_hz=FS_HZ).values()) for x in data.signals]
        )
        self.seen = np.array([seen(x, encoder) for x in data.signals])

    def rows(self, chosen: NDArray) -> dict[str, NDArray]:
        return {"rhythm": self.rhythm[chosen], "seen": self.seen[chosen]}


def seen(signal_mv: NDArray, encoder: EncoderDirectory) -> NDArray[np.float32]:
    """Mean and deviation of the encoder's embeddings over windows of ten seconds."""
    n = round(WINDOW_S * FS_HZ)
    starts = range(0, max(1, len(signal_mv) - n // 2), n)
    windows = np.full((len(starts), 1, n), np.nan, np.float32)
    for window, start in zip(windows, starts, strict=True):
        part = signal_mv[start : start + n]
        window[0, : len(part)] = part
    vectors = encoder.embed(windows, fs_hz=FS_HZ, leads=("I",))
    return np.concatenate([vectors.mean(0), vectors.std(0)])


def noisy(data: Cinc2017, kind: str, snr_db: float | NDArray, first_seed: int = 0) -> Cinc2017:
    """The records with noise of one kind added."""
    each = np.broadcast_to(snr_db, len(data))
    signals = [
        add_noise(x, kind, float(snr), FS_HZ, first_seed + i).astype(np.float32)
        for i, (x, snr) in enumerate(zip(data.signals, each, strict=True))
    ]
    return Cinc2017(data.names, signals, data.label)


def copies(data: Cinc2017) -> list[Cinc2017]:
    """A copy of every record with each kind of noise, at a ratio of its own."""
    rng = np.random.default_rng(7)
    return [
        noisy(data, kind, rng.uniform(*COPIES_DB, len(data)), 10_000 * (k + 1))
        for k, kind in enumerate(KINDS)
    ]


def fitted(name: str, x: dict[str, NDArray], y: NDArray, seed: int):
    """A model, fitted."""
    from lightgbm import LGBMClassifier
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if name == "probe":
        probe = LogisticRegression(C=0.003, max_iter=2000)
        return make_pipeline(StandardScaler(), probe).fit(x["seen"], y)
    if name.startswith("trees"):
        share: Any = 0.3  # the stubs know only names
        trees = ExtraTreesClassifier(500, min_samples_leaf=2, max_features=share, random_state=seed)
        fill = SimpleImputer(strategy="median", keep_empty_features=True)
        return make_pipeline(fill, trees).fit(x["rhythm"], y)
    return LGBMClassifier(
        n_estimators=120, num_leaves=6, learning_rate=0.05, min_child_samples=8,
        colsample_bytree=0.3, subsample=0.8, subsample_freq=1, reg_lambda=3.0,
        random_state=seed, num_threads=1, verbose=-1,
    ).fit(x["rhythm"], y)  # fmt: skip


def fit_all(clean: Described, noisy_ones: list[Described], y: NDArray, rows: NDArray, seed: int):
    """Ours on clean and noisy records, the others on clean ones."""
    x = clean.rows(rows)
    every = [x, *(part.rows(rows) for part in noisy_ones)]
    both = {name: np.concatenate([part[name] for part in every]) for name in x}
    models = {name: fitted(name, both, np.tile(y[rows], len(every)), seed) for name in OURS}
    return models | {name: fitted(name, x, y[rows], seed) for name in ALONE}


def probabilities(models: dict, x: dict[str, NDArray]) -> dict[str, NDArray]:
    found = {
        name: model.predict_proba(x["seen" if name == "probe" else "rhythm"])
        for name, model in models.items()
    }
    logs = [
        share * np.log(np.clip(found[n], 1e-3, 1)) for n, share in zip(OURS, SHARES, strict=True)
    ]
    mixed = np.exp(np.sum(logs, axis=0))
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
    print(f"{name:19} {scores} {each[:3].mean():10.4f} {each.mean():11.4f}", flush=True)


def under_noise(
    runs: list[list[tuple[dict, NDArray]]], data: Cinc2017, clean: Described,
    encoder: EncoderDirectory, snrs: tuple[int, ...],
) -> dict:  # fmt: skip
    """Macro F1 of N, A and O of ours and boosting with noise on the records that are scored.

    Args:
        runs: Of each run, models and the rows that they are asked.
        data: The records scored.
        clean: Their features.
        encoder: For those of noisy ones.
        snrs: Ratios of power in decibels.

    Returns:
        Mean over the runs by kind and ratio, of the same models without noise, and their mean loss.
    """
    names = ("ours", "lightgbm")

    def scored(described: Described) -> dict[str, float]:
        each = {name: [] for name in names}
        for parts in runs:
            found = {name: np.zeros((len(data), len(CLASSES))) for name in names}
            for models, rows in parts:
                told = probabilities(models, described.rows(rows))
                for name, p in found.items():
                    p[rows] = told[name]
            for name, p in found.items():
                each[name].append(f1(data.label, p.argmax(1))[:3].mean())
        return {name: round(float(np.mean(values)), 4) for name, values in each.items()}

    def show(name: str, row: dict[str, float]) -> None:
        print(f"{name:18}{row['ours']:8.4f}{row['lightgbm']:10.4f}", flush=True)

    print(f"{'':18}{'ours':>8}{'boosting':>10}")
    table = {"none": scored(clean)}
    show("none", table["none"])
    for kind in KINDS:
        rows = []
        for snr in snrs:
            rows.append(scored(Described(noisy(data, kind, snr), encoder)))
            table[f"{kind} {snr} dB"] = rows[-1]
            show(f"{kind} {snr} dB", rows[-1])
        lost = {n: float(table["none"][n] - np.mean([row[n] for row in rows])) for n in names}
        table[f"{kind}, mean loss"] = {name: round(value, 4) for name, value in lost.items()}
        show(f"{kind}, mean loss", lost)
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
    parser.add_argument("--encoder", default="ecg-encoder")
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
    encoder = open_encoder(arguments.encoder)
    clean = Described(train, encoder)
    dirty = [Described(part, encoder) for part in copies(train)]
    found: list[dict[str, NDArray]] = []
    if test is not None:
        check_split(train, test)
        everyone = np.arange(len(train))
        models = fit_all(clean, dirty, train.label, everyone, 0)
        asked = np.arange(len(test))
        described = Described(test, encoder)
        found = [probabilities(models, described.rows(asked))]
        found[0]["resnet"] = resnet(train, test, 0, epochs)
        scored, runs_of_models = test, [[(models, asked)]]
    else:
        scored, described, runs_of_models = train, clean, []
        for repeat in range(N_REPEATS):
            fold = folds(train.label, repeat)
            whole: dict[str, NDArray] = {}
            runs_of_models.append([])
            for k in range(N_FOLDS):
                a, b = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
                check_split(train.rows(a), train.rows(b))
                models = fit_all(clean, dirty, train.label, a, repeat)
                part = probabilities(models, clean.rows(b))
                if repeat == 0:
                    part["resnet"] = resnet(train.rows(a), train.rows(b), k, epochs)
                runs_of_models[-1].append((models, b))
                for name, p in part.items():
                    whole.setdefault(name, np.zeros((len(train), len(CLASSES))))[b] = p
            found.append(whole)
    label = scored.label
    print(f"{len(label)} records scored, {np.bincount(label, minlength=4).tolist()} of N, A, O, ~")
    print(f"\nF1                  {' '.join(f'{c:>7}' for c in CLASSES)}  macro NAO  with noise")
    scores = {}
    for name in ("ours", *OURS, *ALONE, "resnet"):
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
        snrs = (6,) if arguments.quick else SNR_DB
        answer["noise"] = under_noise(runs_of_models, scored, described, encoder, snrs)
    answer["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
