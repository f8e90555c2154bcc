"""Classes of beats (AAMI) on records of other patients, beside boosting on intervals and waveform.

    python benchmarks/beats.py --train DIR [--test DIR] [--noise]
    python benchmarks/beats.py --quick                made-up records, to see that it runs

Folders hold WFDB records with `.atr` files (MIT-BIH); paced records are left out. Beats are at the
annotated places. Without `--test` the records of `--train` are scored in folds of records. Ours is
boosting on the features of `tsfm.signals.beat_features`, several seeds; supraventricular beats are
sought only where the rhythm is regular (in fibrillation no beat is early), and the threshold that
finds them is chosen in folds of the training records. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path

import numpy as np
from tsfm.simulation.signal_noise import KINDS, add_noise
from measure import machine_line
from mitdb_records import BeatRecord, made_up, read_records
from numpy.typing import NDArray

from tsfm.evaluation.evaluation_ledger import EvaluationLedger
from tsfm.signals.beat_features import beat_features

DEFAULT = Path(os.environ.get("TSFM_DATA", "../shared/data")) / "wfdb" / "mitdb"
CLASSES = ("N", "S", "V", "F")
N_FOLDS = 6
IRREGULAR = 0.12  # median step of the intervals around, as a share of them: above it no S
S_WEIGHT = 3.0
SCALES = (0.5, 1.0, 2.0, 4.0, 8.0)
HARD = "232"  # three quarters of the supraventricular beats of DS2
PEER_FEATURES = ("before_s", "after_s", "before_local", "after_local", "before_usual", "local_s")
SNR_DB = (24, 12, 6, 0, -6)


class Beats:
    """Features and classes of the beats of some records."""

    def __init__(self, records: list[BeatRecord]) -> None:
        parts = [beat_features(r.signal[:2], r.beats, fs_hz=r.fs_hz) for r in records]
        self.names = parts[0][1]
        self.x = np.nan_to_num(np.concatenate([x for x, _ in parts]))
        number = {name: i for i, name in enumerate(CLASSES)}
        self.y = np.concatenate([[number.get(c, 0) for c in r.classes] for r in records])
        self.record = np.concatenate([[r.name] * len(r.beats) for r in records])
        self.subject = {r.name: r.subject for r in records}

    def columns(self, peer: bool) -> NDArray[np.int64]:
        """The peer's features are intervals and the waveform; ours all but the waveform."""
        keep = [
            (name in PEER_FEATURES or name.startswith("shape")) if peer
            else "shape" not in name and not name.startswith("second_")
            for name in self.names
        ]  # fmt: skip
        return np.flatnonzero(keep)

    @property
    def regular(self) -> NDArray[np.bool_]:
        return self.x[:, self.names.index("irregular")] <= IRREGULAR


def fit(data: Beats, rows: NDArray, *, peer: bool, seeds: int):
    from lightgbm import LGBMClassifier

    columns = data.columns(peer)
    x, y = data.x[rows][:, columns], data.y[rows]
    weight = np.ones(len(y)) if peer else np.where(y == 1, S_WEIGHT, 1.0)
    models = [
        LGBMClassifier(
            n_estimators=120, num_leaves=8, learning_rate=0.08, min_child_samples=40,
            colsample_bytree=0.3, subsample=0.7, subsample_freq=1, reg_lambda=10.0,
            random_state=seed, num_threads=1, verbose=-1,
        ).fit(x, y, sample_weight=weight)
        for seed in range(seeds)
    ]  # fmt: skip
    known = list(models[0].classes_)

    def predict(other: Beats, which: NDArray) -> NDArray[np.float64]:
        found = np.zeros((int(which.sum()), len(CLASSES)))
        for model in models:
            found[:, known] += model.predict_proba(other.x[which][:, columns]) / len(models)
        return found

    return predict


def decide(p: NDArray, regular: NDArray, scale: float) -> NDArray[np.int64]:
    """Class of each beat: V or F if that is likeliest, else S against N by weight."""
    found = (p * np.array([1.0, 1.0, 1.0, 0.3])).argmax(1)
    early = regular & (scale * p[:, 1] > p[:, 0])
    return np.where(found >= 2, found, early.astype(np.int64))


def f1(y: NDArray, found: NDArray, k: int) -> float:
    hit = np.sum((y == k) & (found == k))
    return float(2 * hit / max(np.sum(y == k) + np.sum(found == k), 1))


def folds_of(data: Beats) -> NDArray[np.int64]:
    """Fold of each beat: whole records, those with many supraventricular beats spread evenly."""
    names = sorted(data.subject)
    names.sort(key=lambda n: -int(np.sum((data.record == n) & (data.y == 1))))
    fold_of = {name: i % N_FOLDS for i, name in enumerate(names)}
    return np.array([fold_of[name] for name in data.record])


def out_of_fold(data: Beats, *, peer: bool, seeds: int) -> NDArray[np.float64]:
    fold = folds_of(data)
    found = np.zeros((len(data.y), len(CLASSES)))
    for k in np.unique(fold):
        ledger = EvaluationLedger(data.subject)
        ledger.fit("boosting", np.unique(data.record[fold != k]))
        ledger.score("classes", np.unique(data.record[fold == k]))
        found[fold == k] = fit(data, fold != k, peer=peer, seeds=seeds)(data, fold == k)
    return found


def choose_scale(data: Beats, p: NDArray) -> float:
    """Weight of S with the best F1 on out-of-fold predictions."""
    return max(SCALES, key=lambda s: f1(data.y, decide(p, data.regular, s), 1))


def summary(data: Beats, found: NDArray) -> dict[str, float]:
    rest = data.record != HARD
    y = data.y
    row = {
        "f1_v": f1(y, found, 2),
        "f1_s": f1(y, found, 1),
        "f1_s_without_232": f1(y[rest], found[rest], 1),
    }
    for k, name in ((2, "v"), (1, "s")):
        hit = np.sum((y == k) & (found == k))
        row[f"se_{name}"] = float(hit / max(np.sum(y == k), 1))
        row[f"ppv_{name}"] = float(hit / max(np.sum(found == k), 1))
    return {name: round(value, 4) for name, value in row.items()}


def noisy(records: list[BeatRecord], kind: str, snr_db: float) -> list[BeatRecord]:
    return [
        BeatRecord(
            r.name, r.subject, r.fs_hz, r.leads,
            add_noise(r.signal, kind, snr_db, r.fs_hz, i).astype(np.float32), r.beats, r.classes,
        )
        for i, r in enumerate(records)
    ]  # fmt: skip


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
    seeds = 1 if arguments.quick else 3
    records = made_up(8, seed=0) if arguments.quick else read_records(arguments.train)
    train = Beats(records)
    everything = np.ones(len(train.y), np.bool_)
    folded = out_of_fold(train, peer=False, seeds=1)
    scale = choose_scale(train, folded)
    if arguments.test:
        scored = read_records(arguments.test)
        test = Beats(scored)
        ledger = EvaluationLedger({f"a/{n}": s for n, s in train.subject.items()}
                                  | {f"b/{n}": s for n, s in test.subject.items()
                                     if s not in train.subject.values()})  # fmt: skip
        ledger.fit("boosting", [f"a/{n}" for n in train.subject])
        both = [n for n, s in test.subject.items() if s in train.subject.values()]
        if both:  # 201 and 202 are of one person, on both sides of the published split
            print(f"{', '.join(both)}: of a person who is in training too, scored as is usual")
        ledger.score("classes", [f"b/{n}" for n in test.subject if n not in both])
        p = fit(train, everything, peer=False, seeds=seeds)
        p_peer = fit(train, everything, peer=True, seeds=seeds)
        every = np.ones(len(test.y), np.bool_)
        ours, peer = p(test, every), p_peer(test, every)
        models, how = (p, p_peer), "records kept apart"
    else:
        test, scored = train, records
        ours = folded if arguments.quick else out_of_fold(train, peer=False, seeds=seeds)
        peer = out_of_fold(train, peer=True, seeds=1)
        fold = folds_of(train)
        part = fold == 0
        models = (fit(train, ~part, peer=False, seeds=1), fit(train, ~part, peer=True, seeds=1))
        scored = [r for r in records if r.name in set(train.record[part])]
        how = f"{N_FOLDS} folds of records"
    found = decide(ours, test.regular, scale)
    table = {
        "ours": summary(test, found),
        "ours, S anywhere": summary(test, decide(ours, np.ones(len(test.y), np.bool_), scale)),
        "lightgbm on RR and waveform": summary(test, peer.argmax(1)),
    }
    print(f"{len(test.subject)} records, {len(test.y)} beats, {how}; weight of S {scale:g}\n")
    keys = list(table["ours"])
    print(f"{'':30}" + "".join(f"{k.replace('_without_', ' w/o '):>14}" for k in keys))
    for name, row in table.items():
        print(f"{name:30}" + "".join(f"{row[k]:14.4f}" for k in keys))
    print(f"\n{'record':8}{'V':>6}{'F1 of V':>9}{'S':>6}{'F1 of S':>9}")
    for name in sorted(test.subject):
        m = test.record == name
        v, s = int(np.sum(test.y[m] == 2)), int(np.sum(test.y[m] == 1))
        print(
            f"{name:8}{v:6}{f1(test.y[m], found[m], 2):9.3f}{s:6}{f1(test.y[m], found[m], 1):9.3f}"
        )
    answer = {
        **table["ours"], "n_beats": len(test.y),
        "peers": {"lightgbm": table["lightgbm on RR and waveform"]},
    }  # fmt: skip
    if arguments.noise:
        answer["noise"] = {}
        print("\nF1 of V under noise")
        for kind in KINDS:
            for snr in (6,) if arguments.quick else SNR_DB:
                data = Beats(noisy(scored, kind, snr))
                every = np.ones(len(data.y), np.bool_)
                a, b = (m(data, every) for m in models)
                row = {
                    "ours": round(f1(data.y, decide(a, data.regular, scale), 2), 4),
                    "lightgbm": round(f1(data.y, b.argmax(1), 2), 4),
                }
                answer["noise"][f"{kind} {snr} dB"] = row
                print(f"{kind:10} {snr:4} dB  ours {row['ours']:.3f}  peer {row['lightgbm']:.3f}")
    answer["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
