"""Classes of beats (AAMI) on records of other patients, beside boosting on intervals and waveform.

    python benchmarks/beats.py --train DIR [--test DIR] [--noise]
    python benchmarks/beats.py --quick                made-up records, to see that it runs

Folders hold WFDB records with `.atr` files (MIT-BIH); paced records are left out. Beats are at the
annotated places. Without `--test` the records of `--train` are scored in folds of records. Ours is
the recipe of `tsfm.training.beat_classifier`, which `ecg-beats` is made by: boosting on features of
beats, several seeds; supraventricular beats are sought only where the rhythm is regular (in
fibrillation no beat is early), and their weight is chosen in folds of the training records. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path

import numpy as np
from measure import machine_line
from mitdb_records import BeatRecord, made_up, read_records
from numpy.typing import NDArray

from tsfm.evaluation.evaluation_ledger import EvaluationLedger
from tsfm.models.beat_classifier import decide
from tsfm.simulation.signal_noise import KINDS, add_noise
from tsfm.training.beat_classifier import (
    F_SCALE,
    N_FOLDS,
    N_SEEDS,
    BeatTable,
    Predict,
    choose_s_scale,
    class_f1,
    class_rates,
    fit_boosters,
    fit_scores,
    folds_of,
    out_of_fold,
)

DEFAULT = Path(os.environ.get("TSFM_DATA", "../shared/data")) / "wfdb" / "mitdb"
HARD = "232"  # three quarters of the supraventricular beats of DS2
PEER_FEATURES = ("before_s", "after_s", "before_local", "after_local", "before_usual", "local_s")
SNR_DB = (24, 12, 6, 0, -6)


def fit_peer(table: BeatTable, rows: NDArray[np.bool_], n_seeds: int) -> Predict:
    """Boosting on intervals and the waveform, as it is."""
    columns = [
        i for i, name in enumerate(table.names)
        if name in PEER_FEATURES or name.startswith("shape")
    ]  # fmt: skip
    x, y = table.x[rows][:, columns], table.y[rows]
    boosters = fit_boosters(x, y, np.ones(len(y)), n_seeds=n_seeds)
    return lambda other: np.mean([b.predict(other.x[:, columns]) for b in boosters], axis=0)


def classes_of(p: NDArray, regular: NDArray, s_scale: float) -> NDArray[np.int64]:
    return decide(p, regular, s_scale=s_scale, f_scale=F_SCALE)


def summary(data: BeatTable, found: NDArray) -> dict[str, float]:
    rest = data.record != HARD
    y = data.y
    row = {
        "f1_v": class_f1(y, found, 2),
        "f1_s": class_f1(y, found, 1),
        "f1_s_without_232": class_f1(y[rest], found[rest], 1),
    }
    for k, name in ((2, "v"), (1, "s")):
        row[f"se_{name}"], row[f"ppv_{name}"] = class_rates(y, found, k)
    return {name: round(value, 4) for name, value in row.items()}


def noisy(records: list[BeatRecord], kind: str, snr_db: float) -> list[BeatRecord]:
    return [
        BeatRecord(
            r.name, r.subject, r.fs_hz, r.leads,
            add_noise(r.signal, kind, snr_db, r.fs_hz, i).astype(np.float32), r.beats, r.classes,
        )
        for i, r in enumerate(records)
    ]  # fmt: skip


def by_fold(
    train: BeatTable, records: list[BeatRecord]
) -> list[tuple[Predict, Predict, list[BeatRecord]]]:
    """Ours and the peer of every fold, one seed each, with the records that neither has seen."""
    fold = folds_of(train)
    found = []
    for k in np.unique(fold):
        rows = fold != k
        asked = set(train.record[~rows])
        found.append((
            fit_scores(train, rows, 1), fit_peer(train, rows, 1),
            [r for r in records if r.name in asked],
        ))  # fmt: skip
    return found


def under_noise(
    judged: list[tuple[Predict, Predict, list[BeatRecord]]], scale: float, snrs: tuple[int, ...]
) -> dict[str, dict[str, float]]:
    """F1 of V of ours and the peer with noise on the records that are scored, and what it costs."""
    print(f"\nF1 of V under noise\n{'':18}{'ours':>8}{'peer':>8}")
    table = {}
    for kind, snr in [("none", 99), *((kind, snr) for kind in KINDS for snr in snrs)]:
        y, each = [], {"ours": [], "lightgbm": []}
        for ours, peer, records in judged:
            data = BeatTable(records if kind == "none" else noisy(records, kind, snr))
            y.append(data.y)
            each["ours"].append(classes_of(ours(data), data.regular, scale))
            each["lightgbm"].append(peer(data).argmax(1))
        true = np.concatenate(y)
        row = {name: round(class_f1(true, np.concatenate(p), 2), 4) for name, p in each.items()}
        name = kind if kind == "none" else f"{kind} {snr} dB"
        table[name] = row
        print(f"{name:18}{row['ours']:8.3f}{row['lightgbm']:8.3f}", flush=True)
    for kind in KINDS:
        rows = [row for name, row in table.items() if name.startswith(kind)]
        lost = {n: table["none"][n] - float(np.mean([row[n] for row in rows])) for n in rows[0]}
        table[f"{kind}, mean loss"] = {n: round(value, 4) for n, value in lost.items()}
        print(f"{f'{kind}, mean loss':18}{lost['ours']:8.3f}{lost['lightgbm']:8.3f}")
    return table


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
    seeds = 1 if arguments.quick else N_SEEDS
    records = made_up(8, seed=0) if arguments.quick else read_records(arguments.train)
    train = BeatTable(records)
    everything = np.ones(len(train.y), np.bool_)
    folded = out_of_fold(train, n_seeds=1)
    scale = choose_s_scale(train, folded)
    if arguments.test:
        scored = read_records(arguments.test)
        test = BeatTable(scored)
        ledger = EvaluationLedger({f"a/{n}": s for n, s in train.subject.items()}
                                  | {f"b/{n}": s for n, s in test.subject.items()
                                     if s not in train.subject.values()})  # fmt: skip
        ledger.fit("boosting", [f"a/{n}" for n in train.subject])
        both = [n for n, s in test.subject.items() if s in train.subject.values()]
        if both:  # 201 and 202 are of one person, on both sides of the published split
            print(f"{', '.join(both)}: of a person who is in training too, scored as is usual")
        ledger.score("classes", [f"b/{n}" for n in test.subject if n not in both])
        p = fit_scores(train, everything, seeds)
        p_peer = fit_peer(train, everything, seeds)
        ours, peer = p(test), p_peer(test)
        judged, how = [(p, p_peer, scored)], "records kept apart"
    else:
        test = train
        ours = folded if arguments.quick else out_of_fold(train, n_seeds=seeds)
        peer = out_of_fold(train, n_seeds=1, fit=fit_peer)
        judged = by_fold(train, records) if arguments.noise else []
        how = f"{N_FOLDS} folds of records"
    found = classes_of(ours, test.regular, scale)
    table = {
        "ours": summary(test, found),
        "ours, S anywhere": summary(test, classes_of(ours, np.ones(len(test.y), np.bool_), scale)),
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
        of_v, of_s = (class_f1(test.y[m], found[m], k) for k in (2, 1))
        print(f"{name:8}{v:6}{of_v:9.3f}{s:6}{of_s:9.3f}")
    answer = {
        **table["ours"], "n_beats": len(test.y),
        "peers": {"lightgbm": table["lightgbm on RR and waveform"]},
    }  # fmt: skip
    if arguments.noise:
        snrs = (6,) if arguments.quick else SNR_DB
        answer["noise"] = under_noise(judged, scale, snrs)
    answer["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
