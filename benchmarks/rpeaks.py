"""R peaks against annotated beats, beside xqrs, sleepecg and neurokit.

    python benchmarks/rpeaks.py --train DIR [--test DIR] [--noise] [--agree DIR]
    python benchmarks/rpeaks.py --quick               made-up records, to see that it runs

Folders hold WFDB records with `.atr` files (MIT-BIH); paced records are left out. The detector has
no weights: the records of `--train` chose its constants, so scores on them are scores on known
records, and those of `--test` are the ones that count. Channel 0, whole records, one-to-one
matching; differences of F1 with intervals over resampled persons. `--noise` adds noise to five
minutes of each record. `--agree` asks how far the detectors agree on CinC 2017, which has no
annotated beats. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import machine_line
from mitdb_records import ONE_PERSON, BeatRecord, made_up, read_records
from numpy.typing import NDArray

from tsfm.evaluation.beat_matching import match_beats
from tsfm.evaluation.evaluation_ledger import EvaluationLedger
from tsfm.signals.beats import find_r_peaks
from tsfm.simulation.signal_noise import KINDS, SNR_DB, add_noise

DEFAULT = Path(os.environ.get("TSFM_DATA", "../shared/data")) / "wfdb" / "mitdb"
TOLERANCES_MS = (50, 150)
NOISE_S = 300.0
DAY_S = 86_400.0
DRAWS = 2000
Detector = Callable[[NDArray, float], NDArray]


def detectors() -> dict[str, Detector]:
    """Ours and those peers that are installed."""
    found: dict[str, Detector] = {"ours": lambda x, fs: find_r_peaks(x, fs_hz=fs)}

    def xqrs(x: NDArray, fs: float) -> NDArray:
        from wfdb.processing import xqrs_detect

        return np.asarray(xqrs_detect(x.astype(np.float64), fs, verbose=False), np.int64)

    found["xqrs"] = xqrs
    try:
        import sleepecg

        found["sleepecg"] = lambda x, fs: np.asarray(
            sleepecg.detect_heartbeats(x.astype(np.float64), fs), np.int64
        )
    except ImportError:
        print("sleepecg is not installed: left out")
    try:
        import neurokit2

        def kit(method: str) -> Detector:
            def detect(x: NDArray, fs: float) -> NDArray:
                clean = neurokit2.ecg_clean(x.astype(np.float64), sampling_rate=int(fs),
                                            method=method)  # fmt: skip
                info = neurokit2.ecg_peaks(clean, sampling_rate=int(fs), method=method)[1]
                return np.asarray(info["ECG_R_Peaks"], np.int64)

            return detect

        found["neurokit"], found["pantompkins"] = kit("neurokit"), kit("pantompkins1985")
    except ImportError:
        print("neurokit2 is not installed: left out")
    return found


def counts(record: BeatRecord, peaks: NDArray) -> NDArray[np.int64]:
    """Matched, missed and extra at each tolerance."""
    peaks = np.unique(peaks[(peaks >= 0) & (peaks < record.signal.shape[1])])
    found = []
    for ms in TOLERANCES_MS:
        match = match_beats(record.beats, peaks, tolerance=ms / 1000 * record.fs_hz)
        found.append((match.n_matched, match.n_missed, match.n_extra))
    return np.array(found)


def scores(total: NDArray) -> dict[str, float]:
    found = {}
    for ms, (hit, missed, extra) in zip(TOLERANCES_MS, total, strict=True):
        found[f"se_{ms}ms"] = round(100 * hit / max(hit + missed, 1), 3)
        found[f"ppv_{ms}ms"] = round(100 * hit / max(hit + extra, 1), 3)
    return found


def run(detect: Detector, records: list[BeatRecord]) -> tuple[list[NDArray], float]:
    """Counts of every record, and CPU seconds for a day of one lead."""
    first = records[0]
    detect(first.signal[0][: round(30 * first.fs_hz)], first.fs_hz)  # compiles, imports
    found, used, read = [], 0.0, 0.0
    for record in records:
        started = time.process_time()
        peaks = detect(record.signal[0], record.fs_hz)
        used += time.process_time() - started
        read += record.signal.shape[1] / record.fs_hz
        found.append(counts(record, peaks))
    return found, used / read * DAY_S


def known_persons(train: Path, records: list[BeatRecord]) -> list[str]:
    """Records of persons whose other records chose the constants; a ledger holds the rest apart."""
    chose = [path.stem for path in train.glob("*.atr")]
    subject_of = {name: ONE_PERSON.get(name, name) for name in chose}
    persons = set(subject_of.values())
    ledger = EvaluationLedger(subject_of | {r.name: r.subject for r in records})
    ledger.choose("constants of the detector", chose)
    ledger.score("R peaks", [r.name for r in records if r.subject not in persons])
    return [r.name for r in records if r.subject in persons]


def differences(ours: list[NDArray], peer: list[NDArray], subjects: list[str]) -> dict[str, list]:
    """F1 of ours less a peer's, in per cent, with 95 % intervals over resampled persons."""
    persons, own = np.unique(subjects, return_inverse=True)
    both = np.zeros((2, len(persons), len(TOLERANCES_MS), 3))
    for side, found in enumerate((ours, peer)):
        np.add.at(both[side], own, np.array(found))
    draws = np.random.default_rng(0).integers(0, len(persons), (DRAWS, len(persons)))
    found = {}
    for i, ms in enumerate(TOLERANCES_MS):
        hit, missed, extra = np.moveaxis(both[:, :, i], -1, 0)
        value = _f1_of(hit.sum(1), missed.sum(1), extra.sum(1))
        drawn = _f1_of(*(part[:, draws].sum(-1) for part in (hit, missed, extra)))
        low, high = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])
        found[f"f1_{ms}ms"] = [round(float(x), 3) for x in (value[0] - value[1], low, high)]
    return found


def _f1_of(hit: NDArray, missed: NDArray, extra: NDArray) -> NDArray:
    return 100 * 2 * hit / np.maximum(2 * hit + missed + extra, 1)


def agreement(chosen: dict[str, Detector], folder: Path) -> dict[str, dict[str, float]]:
    """F1 at 150 ms of every two detectors on CinC 2017, its noise left out."""
    from cinc2017_records import CLASSES, FS_HZ, read_cinc2017

    data = read_cinc2017(folder)
    total = {name: dict.fromkeys(chosen, np.zeros(3)) for name in chosen}
    for signal, label in zip(data.signals, data.label, strict=True):
        if CLASSES[label] == "~":
            continue
        found = {name: np.unique(detect(signal, FS_HZ)) for name, detect in chosen.items()}
        for a, mine in found.items():
            for b, other in found.items():
                match = match_beats(other, mine, tolerance=0.15 * FS_HZ)
                both = np.array([match.n_matched, match.n_missed, match.n_extra])
                total[a][b] = total[a][b] + both
    return {a: {b: round(float(_f1_of(*c)), 2) for b, c in row.items()}
            for a, row in total.items()}  # fmt: skip


def stretch(record: BeatRecord, kind: str, snr_db: float, seed: int) -> BeatRecord:
    """Some minutes from the middle of a record, with noise on them."""
    n = round(NOISE_S * record.fs_hz)
    start = max(0, (record.signal.shape[1] - n) // 2)
    part = record.signal[:1, start : start + n]
    inside = (record.beats >= start) & (record.beats < start + part.shape[1])
    noisy = add_noise(part, kind, snr_db, record.fs_hz, seed).astype(np.float32)
    return BeatRecord(
        record.name, record.subject, record.fs_hz, record.leads[:1], noisy,
        record.beats[inside] - start, record.classes[inside],
    )  # fmt: skip


def under_noise(chosen: dict[str, Detector], records: list[BeatRecord], snrs: tuple[int, ...]):
    """F1 at 150 ms of every detector, by kind of noise and ratio, and without noise."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    clean = [stretch(r, "muscle", 120, i) for i, r in enumerate(records)]
    table["none"] = {"clean": {name: _f1(run(d, clean)[0]) for name, d in chosen.items()}}
    for kind in KINDS:
        table[kind] = {}
        for snr in snrs:
            noisy = [stretch(r, kind, snr, i) for i, r in enumerate(records)]
            table[kind][str(snr)] = {n: _f1(run(d, noisy)[0]) for n, d in chosen.items()}
    return table


def _f1(found: list[NDArray]) -> float:
    hit, missed, extra = np.sum(found, axis=0)[-1]
    return round(float(_f1_of(hit, missed, extra)), 3)


def tell_noise(table: dict) -> None:
    names = list(table["none"]["clean"])
    print(
        f"\nF1 at 150 ms, five minutes of each record\n{'':18}" + "".join(f"{n:>13}" for n in names)
    )
    for kind, rows in table.items():
        for snr, row in rows.items():
            label = kind if kind == "none" else f"{kind} {snr:>3} dB"
            print(f"{label:18}" + "".join(f"{row[n]:13.2f}" for n in names))


def mean_drop(table: dict) -> dict[str, float]:
    """Loss of F1 against no noise, mean over kinds and ratios."""
    clean = table["none"]["clean"]
    noisy = [row for kind, rows in table.items() if kind != "none" for row in rows.values()]
    return {n: round(clean[n] - float(np.mean([row[n] for row in noisy])), 3) for n in clean}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, default=DEFAULT)
    parser.add_argument("--test", type=Path, help="folder of records kept apart")
    parser.add_argument("--noise", action="store_true", help="also under noise")
    parser.add_argument("--agree", type=Path, help="folder of CinC 2017")
    parser.add_argument("--quick", action="store_true", help="made-up records, seconds")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(machine_line())
    if arguments.quick:
        records, where = made_up(2, seed=0), "made-up records"
    else:
        records = read_records(arguments.test or arguments.train)
        where = "records kept apart" if arguments.test else "records that chose the constants"
    chosen = detectors()
    answer: dict = {}
    if arguments.test and (known := known_persons(arguments.train, records)):
        print(f"of persons who have other records in --train: {', '.join(known)}")
        answer["known_persons"] = known
    print(f"{len(records)} {where}, {sum(len(r.beats) for r in records)} beats\n")
    print(f"{'':12} {'Se/PPV 50 ms':>17} {'Se/PPV 150 ms':>17} {'CPU s a day':>12}")
    for name, detect in chosen.items():
        found, seconds = run(detect, records)
        row = {**scores(np.sum(found, axis=0)), "cpu_s_per_24h": round(seconds, 3)}
        print(
            f"{name:12} {row['se_50ms']:8.2f} {row['ppv_50ms']:8.2f} {row['se_150ms']:8.2f} "
            f"{row['ppv_150ms']:8.2f} {seconds:12.2f}",
            flush=True,
        )
        if name == "ours":
            answer |= row
            each = found
        else:
            row["ours_less"] = differences(each, found, [r.subject for r in records])
            answer.setdefault("peers", {})[name] = row
    for name, row in answer.get("peers", {}).items():
        told = ", ".join(
            f"{key[3:]} {x:+.2f} [{low:+.2f}, {high:+.2f}]"
            for key, (x, low, high) in row["ours_less"].items()
        )
        print(f"F1 of ours less {name}: {told}")
    print(f"\nours, by record\n{'':8}{'beats':>7}{'missed 50':>11}{'extra 50':>10}"
          f"{'missed 150':>12}{'extra 150':>11}")  # fmt: skip
    for record, found in zip(records, each, strict=True):
        (_, m50, x50), (_, m150, x150) = found
        print(f"{record.name:8}{len(record.beats):7}{m50:11}{x50:10}{m150:12}{x150:11}")
    if arguments.noise:
        table = under_noise(chosen, records, (12,) if arguments.quick else SNR_DB)
        tell_noise(table)
        answer["noise"], answer["mean_drop"] = table, mean_drop(table)
        print("\nmean loss: " + ", ".join(f"{n} {v:.2f}" for n, v in answer["mean_drop"].items()))
    if arguments.agree:
        answer["agreement"] = agreement(chosen, arguments.agree)
        print("\nF1 at 150 ms of every two detectors, CinC 2017")
        print(" " * 12 + "".join(f"{name:>13}" for name in chosen))
        for name, row in answer["agreement"].items():
            print(f"{name:12}" + "".join(f"{row[other]:13.2f}" for other in chosen))
    answer |= {"n_records": len(records), "n_beats": sum(len(r.beats) for r in records)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
