"""Heart rate and breathing from a photoplethysmogram, against monitor and marked breaths (BIDMC).

    python benchmarks/ppg_hr.py --train DIR [--test DIR] [--noise]
    python benchmarks/ppg_hr.py --quick               made-up pulses, to see that it runs

Folders have the layout of BIDMC (`records.csv`, `signals/`, `numerics/`, `breaths/`). Windows of 32
seconds that do not overlap. The heart rate has no weights. The breathing model is fitted on
`--train`; without `--test` it is fitted and scored in folds of subjects. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from bidmc_records import FS_HZ, Recording, made_up, read_bidmc
from measure import machine_line
from numpy.typing import NDArray
from scipy.signal import welch

from tsfm.evaluation.evaluation_ledger import EvaluationLedger
from tsfm.signals.breaths import (
    RATES_BPM,
    BreathModel,
    breath_spectra,
    fit_breath_model,
    rate_from_spectra,
)
from tsfm.signals.heart_rate import heart_rate_bpm
from tsfm.signals.pulses import find_pulses
from tsfm.simulation.signal_noise import add_noise

DEFAULT = Path(os.environ.get("TSFM_DATA", "../shared/data")) / "bidmc"
CONTRADICTS_ITSELF = "bidmc41"
USUAL_BREATHS = 18.0
N_FOLDS = 8
SNR_DB = (24, 12, 6, 0, -6)
NOISES = ("wander", "electrode")  # slow drift, and the 1-10 Hz bursts of a sensor that moves
Rates = Callable[[Recording], list[float]]


def ours(recording: Recording) -> list[float]:
    beats = find_pulses(recording.ppg, fs_hz=FS_HZ).upstrokes / FS_HZ
    return [heart_rate_bpm(beats, a, b) for a, b in recording.windows()]


def spectral_peak(recording: Recording) -> list[float]:
    found = []
    for a, b in recording.windows():
        part = recording.ppg[int(a * FS_HZ) : int(b * FS_HZ)]
        hz, power = welch(part - part.mean(), FS_HZ, nperseg=len(part), nfft=1 << 15)
        inside = (hz > 0.6) & (hz < 3.5)
        found.append(60.0 * float(hz[inside][power[inside].argmax()]))
    return found


def heart_rates() -> dict[str, Rates]:
    found: dict[str, Rates] = {"ours": ours, "spectral peak": spectral_peak}
    try:
        import neurokit2

        def kit(recording: Recording) -> list[float]:
            clean = neurokit2.ppg_clean(recording.ppg, sampling_rate=FS_HZ)
            beats = neurokit2.ppg_findpeaks(clean, sampling_rate=FS_HZ)["PPG_Peaks"] / FS_HZ
            return [_median_rate(beats, a, b) for a, b in recording.windows()]

        found["neurokit"] = kit
    except ImportError:
        print("neurokit2 is not installed: left out")
    try:
        import sleepecg

        def on_ecg(recording: Recording) -> list[float]:
            if recording.ecg is None:
                return [float("nan")] * len(recording.windows())
            beats = sleepecg.detect_heartbeats(recording.ecg, FS_HZ) / FS_HZ
            return [_median_rate(beats, a, b) for a, b in recording.windows()]

        found["sleepecg on ECG"] = on_ecg
    except ImportError:
        print("sleepecg is not installed: left out")
    return found


def _median_rate(beats: NDArray, start_s: float, stop_s: float) -> float:
    rr = np.diff(beats[(beats >= start_s) & (beats < stop_s)])
    return 60.0 / float(np.median(rr)) if len(rr) > 2 else float("nan")


def heart_errors(rates: Rates, recordings: list[Recording]) -> dict[str, NDArray]:
    """Absolute errors of each recording; a window without an answer is wrong by 60."""
    found = {}
    for recording in recordings:
        truth = np.array([recording.hr(a, b) for a, b in recording.windows()])
        errors = np.abs(np.nan_to_num(np.array(rates(recording)) - truth, nan=60.0))
        found[recording.name] = errors[np.isfinite(truth)]
    return found


def mean_error(errors: dict[str, NDArray], without: str | None = None) -> float:
    return float(np.concatenate([e for name, e in errors.items() if name != without]).mean())


def breath_windows(recordings: list[Recording]) -> dict[str, list]:
    """Spectra, marked rates and other answers, of every window with marks."""
    rows: dict[str, list] = {k: [] for k in ("spectra", "truth", "both", "subject", "resp")}
    for recording in recordings:
        pulses = find_pulses(recording.ppg, fs_hz=FS_HZ)
        for a, b in recording.windows():
            marked = np.array(recording.breathing(a, b))
            if np.isnan(marked).all():
                continue
            rows["spectra"].append(
                breath_spectra(recording.ppg, pulses, fs_hz=FS_HZ, start_s=a, stop_s=b)
            )
            rows["truth"].append(np.nanmean(marked))
            rows["both"].append(marked)
            rows["subject"].append(recording.subject)
            rows["resp"].append(_line(recording.resp, a, b))
    return rows


def _line(resp: NDArray | None, start_s: float, stop_s: float) -> float:
    """Largest spectral line of the impedance signal, between 6 and 40 a minute."""
    if resp is None:
        return float("nan")
    part = resp[int(start_s * FS_HZ) : int(stop_s * FS_HZ)]
    hz, power = welch(part - part.mean(), FS_HZ, nperseg=len(part), nfft=1 << 15)
    inside = (hz > RATES_BPM[0] / 60) & (hz < RATES_BPM[-1] / 60)
    return 60.0 * float(hz[inside][power[inside].argmax()])


def answers(model: BreathModel, spectra: list[NDArray]) -> NDArray[np.float64]:
    return np.array([rate_from_spectra(one, model).bpm for one in spectra])


def cross_fitted(rows: dict[str, list], n_folds: int) -> NDArray[np.float64]:
    """Answers of models that have not seen the subject."""
    subjects = sorted(set(rows["subject"]))
    fold_of = dict(
        zip(subjects, np.random.default_rng(0).permutation(len(subjects)) % n_folds, strict=True)
    )
    fold = np.array([fold_of[s] for s in rows["subject"]])
    spectra, truth = np.array(rows["spectra"]), np.array(rows["truth"])
    found = np.zeros(len(truth))
    for k in range(n_folds):
        ledger = EvaluationLedger({str(i): s for i, s in enumerate(rows["subject"])})
        ledger.fit("breath model", map(str, np.flatnonzero(fold != k)))
        ledger.score("breaths", map(str, np.flatnonzero(fold == k)))
        model = fit_breath_model(spectra[fold != k], truth[fold != k])
        found[fold == k] = answers(model, list(spectra[fold == k]))
    return found


def under_noise(chosen: dict[str, Rates], recordings: list[Recording], snrs: tuple[int, ...]):
    table: dict[str, dict[str, float]] = {"none": {}}
    named = {n: r for n, r in chosen.items() if n != "sleepecg on ECG"}
    table["none"] = {n: round(mean_error(heart_errors(r, recordings)), 3) for n, r in named.items()}
    for kind in NOISES:
        for snr in snrs:
            noisy = [
                replace(r, ppg=add_noise(r.ppg, kind, snr, FS_HZ, i))
                for i, r in enumerate(recordings)
            ]
            table[f"{kind} {snr} dB"] = {
                n: round(mean_error(heart_errors(r, noisy)), 3) for n, r in named.items()
            }
    print(
        f"\nheart rate under noise, mean absolute error\n{'':18}"
        + "".join(f"{n:>16}" for n in named)
    )
    for label, row in table.items():
        print(f"{label:18}" + "".join(f"{row[n]:16.2f}" for n in named))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, default=DEFAULT)
    parser.add_argument("--test", type=Path, help="folder of recordings kept apart")
    parser.add_argument("--noise", action="store_true", help="also under noise")
    parser.add_argument("--quick", action="store_true", help="made-up pulses, seconds")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(machine_line())
    started = time.perf_counter()
    train = made_up(4, seed=0) if arguments.quick else read_bidmc(arguments.train)
    test = read_bidmc(arguments.test) if arguments.test else train
    chosen = heart_rates()
    print(f"{len(test)} recordings of {len({r.subject for r in test})} subjects\n")
    print(f"{'heart rate':18} {'error':>7} {'without 41':>11}")
    table = {name: heart_errors(rates, test) for name, rates in chosen.items()}
    errors = {name: (mean_error(e), mean_error(e, CONTRADICTS_ITSELF)) for name, e in table.items()}
    for name, (every, without) in errors.items():
        print(f"{name:18} {every:7.3f} {without:11.3f}")

    rows = breath_windows(train)
    model = fit_breath_model(rows["spectra"], rows["truth"])
    if arguments.test:
        ledger = EvaluationLedger({f"{p}/{r.name}": r.subject for p, part in
                                   (("a", train), ("b", test)) for r in part})  # fmt: skip
        ledger.fit("breath model", [f"a/{r.name}" for r in train])
        ledger.score("breaths", [f"b/{r.name}" for r in test])
        rows = breath_windows(test)
        found, how = answers(model, rows["spectra"]), "fitted on --train"
    else:
        found = cross_fitted(rows, 2 if arguments.quick else N_FOLDS)
        how = "fitted on other subjects"
    truth, both = np.array(rows["truth"]), np.array(rows["both"])
    breaths = {
        f"ours, {how}": np.abs(found - truth).mean(),
        "ours as packaged": np.abs(answers(BreathModel(), rows["spectra"]) - truth).mean(),
        "always 18": np.abs(USUAL_BREATHS - truth).mean(),
        "RESP spectral line": np.nanmean(np.abs(np.array(rows["resp"]) - truth)),
        "one annotator against the other": np.nanmean(np.abs(both[:, 0] - both[:, 1])),
    }
    print(f"\n{'breaths a minute, ' + str(len(truth)) + ' windows':34} {'error':>7}")
    for name, value in breaths.items():
        print(f"{name:34} {value:7.3f}")
    print(f"\nfitted to all of --train: {model}")
    answer = {
        "mae_bpm": round(errors["ours"][0], 4),
        "mae_bpm_without_41": round(errors["ours"][1], 4),
        "breaths_mae": round(float(breaths[f"ours, {how}"]), 4),
        "n_windows": int(sum(len(e) for e in table["ours"].values())),
        "peers": {n: {"mae_bpm": round(e[0], 4), "mae_bpm_without_41": round(e[1], 4)}
                  for n, e in errors.items() if n != "ours"},
        "breaths_peers": {n: round(float(v), 4) for n, v in breaths.items()},
    }  # fmt: skip
    if arguments.noise:
        answer["noise"] = under_noise(chosen, test, (6,) if arguments.quick else SNR_DB)
    answer["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
