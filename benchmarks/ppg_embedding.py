"""What the vectors of `ppg-encoder` are worth, on simulated people and on recordings of real ones.

Three ways to describe 32 seconds of one optical channel stand beside each other: the shipped
encoder, the same network with random weights whose norms know the simulated signals, and some fifty
features by hand (rate and its variability, the mean pulse, the wander of the baseline), besides the
encoder together with the features.

- Simulated people whom training did not draw: linear probes of the person's traits, whether a
  segment's nearest other is of the same person, and the smooth effective rank (exp of the entropy
  of the normalised singular values; Roy and Vetterli, EUSIPCO 2007).
- BIDMC, real recordings of intensive care: ridge regression from a window's vector to the monitor's
  heart rate, in folds of subjects; and whether the first half of a recording finds the second. A
  finder of pulses, which needs no weights, is the yardstick of the rate.

Nothing is trained or chosen on BIDMC but the ridge, within its folds. It says nothing about age,
disease or wrist-worn sensors.

    python benchmarks/ppg_embedding.py [--model DIR] [--data DIR]     some minutes
    python benchmarks/ppg_embedding.py --quick                        few people, made-up pulses

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from bidmc_records import FS_HZ, WINDOW_S, Recording, made_up, read_bidmc
from measure import machine_line
from numpy.typing import NDArray
from scipy.stats import kurtosis, skew

from tsfm.evaluation.bootstrap import paired_difference
from tsfm.evaluation.discrimination import auroc
from tsfm.evaluation.evaluation_ledger import EvaluationLedger
from tsfm.kernels.heap import keep_freed_memory
from tsfm.models.efficientnet1d import EfficientNet1d, standardise
from tsfm.models.ppg_encoder_checkpoint import load_ppg_encoder
from tsfm.signals.heart_rate import heart_rate_bpm, variability
from tsfm.signals.pulses import find_pulses
from tsfm.signals.resampling import resample
from tsfm.simulation.ppg_participants import (
    PpgParticipant,
    draw_participant,
    simulate_cohort,
    simulate_participant,
)
from tsfm.training.participant_contrast import embed_segments, participant_retrieval
from tsfm.training.signal_probes import fit_logistic, fit_ridge, patient_folds

Array = NDArray[np.float64]
Describe = Callable[[NDArray[np.float32]], Array]

DEFAULT = Path(os.environ.get("TSFM_DATA", "../shared/data")) / "bidmc"
MODEL = "ppg-encoder"
TRAITS = tuple(field.name for field in fields(PpgParticipant))
PEOPLE_SEED, NORMS_SEED = 770_001, 660_001  # neither is drawn in training
PULSE_S = np.arange(-0.2, 0.9, 0.05)  # around the upstroke
PENALTIES = tuple(float(p) for p in np.logspace(-3, 1, 5))
N_FOLDS = 8
ENCODER, RANDOM, HAND, BOTH = "ppg-encoder", "random weights", "features by hand", "encoder + hand"


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        n_fit: Simulated people to fit probes on.
        n_test: People to score them on.
        n_segments: Of each.
        n_norms: People whose segments the norms of the random network know.
        n_folds: Of BIDMC subjects.
    """

    n_fit: int = 400
    n_test: int = 200
    n_segments: int = 4
    n_norms: int = 200
    n_folds: int = N_FOLDS


QUICK = Sizes(n_fit=16, n_test=8, n_segments=2, n_norms=8, n_folds=2)


def hand_features(segment: Array, fs_hz: float) -> Array:
    """Rate, variability, mean pulse and the like of one segment; NaN where there is none.

    Args:
        segment: (n_samples,) in any unit, more light absorbed upwards.
        fs_hz: Sampling rate.
    """
    x = (segment - np.nanmean(segment)) / max(float(np.nanstd(segment)), 1e-9)
    pulses = find_pulses(x, fs_hz=fs_hz)
    beats, duration_s = pulses.upstrokes / fs_hz, len(x) / fs_hz
    about = variability(beats)
    rise_s, late_s = (pulses.peaks - pulses.onsets) / fs_hz, (pulses.peaks / fs_hz) - beats
    moments = [
        heart_rate_bpm(beats, 0.0, duration_s), about.mean_rr_ms, about.sdnn_ms, about.rmssd_ms,
        about.pnn50, about.share_left_out, _median(rise_s), _median(late_s), _median(pulses.height),
        _median(pulses.speed), _spread(pulses.height), _spread(pulses.onset_level),
        float(np.nanstd(np.diff(x, 2))), float(skew(x, nan_policy="omit")),
        float(kurtosis(x, nan_policy="omit")),
    ]  # fmt: skip
    at = beats[(beats > 0.2) & (beats < duration_s - 0.9)]
    time_s = np.arange(len(x)) / fs_hz
    each = np.interp(at[:, None] + PULSE_S, time_s, x)
    pulse = np.full(len(PULSE_S), np.nan)
    if len(at):
        pulse = np.nanmean((each - each[:, :1]) / np.maximum(np.ptp(each, axis=1), 1e-9)[:, None],
                           axis=0)  # fmt: skip
    power = np.abs(np.fft.rfft(np.nan_to_num(x))) ** 2
    hz = np.fft.rfftfreq(len(x), 1 / fs_hz)
    edges = (0.02, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.8, 1.5, 3, 6, 12, 0.5 * fs_hz)
    bands = [np.log(power[(hz >= a) & (hz < b)].sum() / power.sum() + 1e-9)
             for a, b in pairwise(edges)]  # fmt: skip
    return np.concatenate([moments, pulse, bands])


def describers(model: str, n_norms: int, seed: int = 0) -> tuple[dict[str, Describe], float]:
    """Ways to describe (segment, 1, time) samples, and the sampling rate that all of them read."""
    shipped = load_ppg_encoder(model)
    fs_hz = shipped.segments.fs_hz
    torch.manual_seed(seed)
    untrained = EfficientNet1d(shipped.encoder.config).train()
    drawn, _ = simulate_cohort(
        np.random.default_rng(NORMS_SEED), n_participants=n_norms, n_segments=2, fs_hz=fs_hz,
        duration_s=WINDOW_S,
    )  # fmt: skip
    with torch.no_grad():
        for part in standardise(torch.from_numpy(drawn)).split(16):
            untrained(part)

    def by_hand(segments: NDArray[np.float32]) -> Array:
        return np.array([hand_features(one[0].astype(np.float64), fs_hz) for one in segments])

    return {
        ENCODER: lambda segments: shipped.embed(segments, fs_hz=fs_hz).astype(np.float64),
        RANDOM: lambda segments: embed_segments(untrained, segments).astype(np.float64),
        HAND: by_hand,
    }, fs_hz


def effective_rank(vectors: Array) -> float:
    """Number of directions that the vectors fill, their mean taken off."""
    s = np.linalg.svd(vectors - vectors.mean(0), compute_uv=False)
    share = s[s > 0] / s.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def on_simulated(ways: dict[str, Describe], fs_hz: float, sizes: Sizes) -> dict[str, dict]:
    """Probes, retrieval and rank among simulated people."""
    rng = np.random.default_rng(PEOPLE_SEED)
    people = [draw_participant(rng) for _ in range(sizes.n_fit + sizes.n_test)]
    segments = np.array(
        [simulate_participant(rng, one, fs_hz=fs_hz, duration_s=WINDOW_S)
         for one in people for _ in range(sizes.n_segments)], np.float32,
    )[:, None]  # fmt: skip
    owners = np.repeat(np.arange(len(people)), sizes.n_segments)
    traits = np.array([astuple(one) for one in people])
    fit = np.arange(len(people)) < sizes.n_fit
    ledger = EvaluationLedger({str(i): i for i in range(len(people))})
    ledger.fit("probes and fillings", map(str, np.flatnonzero(fit)))
    ledger.score("traits, retrieval and rank", map(str, np.flatnonzero(~fit)))
    vectors = {name: describe(segments) for name, describe in ways.items()}
    vectors[HAND] = _filled(vectors[HAND], fit[owners])
    vectors[BOTH] = np.hstack([_scaled(vectors[n], fit[owners]) for n in (ENCODER, HAND)])
    middle = np.median(traits[fit], axis=0)
    high = (traits > middle).astype(np.float64)
    found: dict[str, dict] = {}
    for name, x in vectors.items():
        person = x.reshape(len(people), sizes.n_segments, -1).mean(1)
        ridge = fit_ridge(person[fit], traits[fit], patients=None)
        error = ((ridge.predict(person[~fit]) - traits[~fit]) ** 2).mean(0)
        r2 = 1 - error / ((traits[~fit] - traits[fit].mean(0)) ** 2).mean(0)
        logistic = fit_logistic(person[fit], high[fit], patients=None, penalties=PENALTIES)
        p = logistic.predict(person[~fit])
        aurocs = [auroc(high[~fit, k], p[:, k]) for k in range(len(TRAITS))]
        apart = _scaled(x, fit[owners])[~fit[owners]] if name in (HAND, BOTH) else x[~fit[owners]]
        found[name] = {
            "r2": dict(zip(TRAITS, r2.round(4).tolist(), strict=True)),
            "mean_r2": round(float(r2.mean()), 4),
            "mean_auroc": round(float(np.nanmean(aurocs)), 4),
            "retrieval": round(participant_retrieval(apart, owners[~fit[owners]]), 4),
            "effective_rank": round(effective_rank(apart), 2),
        }
    return found


def on_recordings(
    ways: dict[str, Describe], fs_hz: float, recordings: list[Recording], n_folds: int
) -> dict[str, dict]:
    """Heart rate in folds of subjects, and halves of a recording that find each other."""
    windows = [(r, a, b) for r in recordings for a, b in r.windows()]
    cut = [r.ppg[int(a * FS_HZ) : int(b * FS_HZ)] for r, a, b in windows]
    segments = np.array([resample(x, fs_hz=FS_HZ, to_hz=fs_hz) for x in cut], np.float32)[:, None]
    record = np.array([r.name for r, _, _ in windows])
    subject = np.array([r.subject for r, _, _ in windows])
    half = np.array([a + b > len(r.ppg) / FS_HZ for r, a, b in windows])
    truth = np.array([r.hr(a, b) for r, a, b in windows])
    known = np.isfinite(truth)
    vectors = {name: describe(segments) for name, describe in ways.items()}
    folds = patient_folds(subject, n_folds, seed=0)
    finder = np.concatenate(
        [[heart_rate_bpm(find_pulses(r.ppg, fs_hz=FS_HZ).upstrokes / FS_HZ, a, b)
          for a, b in r.windows()] for r in recordings]
    )  # fmt: skip
    predicted = {name: np.zeros(len(truth)) for name in (*vectors, BOTH, "mean of the others")}
    for k in range(n_folds):
        inside, outside = (folds != k) & known, (folds == k) & known
        ledger = EvaluationLedger({str(i): s for i, s in enumerate(subject)})
        ledger.fit("ridge and fillings", map(str, np.flatnonzero(inside)))
        ledger.score("heart rate", map(str, np.flatnonzero(outside)))
        now = vectors | {HAND: _filled(vectors[HAND], inside)}
        now[BOTH] = np.hstack([_scaled(now[n], inside) for n in (ENCODER, HAND)])
        for name, x in now.items():
            ridge = fit_ridge(x[inside], truth[inside], patients=subject[inside])
            predicted[name][outside] = ridge.predict(x[outside])[:, 0]
        predicted["mean of the others"][outside] = truth[inside].mean()
    found: dict[str, dict] = {"finder of pulses": {}} | {name: {} for name in predicted}
    errors = {
        name: np.abs(np.nan_to_num(values - truth, nan=60.0))[known]  # no answer: wrong by 60
        for name, values in (predicted | {"finder of pulses": finder}).items()
    }
    for name, error in errors.items():
        found[name]["hr_mae_bpm"] = round(float(error.mean()), 3)
    for other in (RANDOM, HAND):
        gain = paired_difference(
            lambda _, error: float(error.mean()), subject[known], np.zeros(known.sum()),
            errors[ENCODER], errors[other],
        )  # fmt: skip
        found[ENCODER][f"hr_less_{other}"] = [
            round(v, 3) for v in (gain.value, gain.low, gain.high)
        ]
    everybody = np.ones(len(truth), np.bool_)
    now = vectors | {HAND: _scaled(_filled(vectors[HAND], everybody), everybody)}
    for name, x in now.items():
        found[name] |= halves(x, record, subject, half)
        found[name]["effective_rank"] = round(effective_rank(x), 2)
    return found


def halves(x: Array, record: NDArray, subject: NDArray, half: NDArray[np.bool_]) -> dict:
    """Share of first halves whose nearest second half is of the same subject.

    Args:
        x: (window, feature) vectors.
        record: Recording of each window.
        subject: Subject of each window.
        half: Whether the window lies in the second half of its recording.

    Returns:
        The share, the same when a recording's own second half is hidden (of those whose subject has
        another recording), and how many those are.
    """
    names = np.unique(record)
    whose = np.array([subject[record == name][0] for name in names])
    mean = [
        np.array([x[(record == n) & (half == h)].mean(0) for n in names]) for h in (False, True)
    ]
    first, second = (_unit(each - x.mean(0)) for each in mean)
    similar = first @ second.T
    same = whose[similar.argmax(1)] == whose
    np.fill_diagonal(similar, -np.inf)
    several = np.array([(whose == one).sum() > 1 for one in whose])
    other = (whose[similar.argmax(1)] == whose)[several]
    return {
        "halves": round(float(same.mean()), 4), "n_recordings": len(names),
        "other_recording": round(float(other.mean()), 4) if len(other) else None,
        "n_with_another": len(other),
    }  # fmt: skip


def _median(values: Array) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def _spread(values: Array) -> float:
    return float(np.std(values)) if len(values) else float("nan")


def _unit(x: Array) -> Array:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _filled(x: Array, fit: NDArray[np.bool_]) -> Array:
    """Gaps take the middle of the rows to fit on, and outliers stay within their range."""
    middle = np.nan_to_num(np.nanmedian(x[fit], axis=0))
    x = np.where(np.isfinite(x), x, middle)
    return np.clip(x, x[fit].min(0), x[fit].max(0))


def _scaled(x: Array, fit: NDArray[np.bool_]) -> Array:
    """Mean 0 and deviation 1 over the rows to fit on."""
    return (x - x[fit].mean(0)) / np.maximum(x[fit].std(0), 1e-9)


def _table(title: str, rows: dict[str, dict], columns: tuple[str, ...]) -> None:
    print(f"\n{title:22}" + "".join(f"{c:>17}" for c in columns))
    for name, row in rows.items():
        cells = ["-" if row.get(c) is None else f"{row[c]:.3f}" for c in columns]
        print(f"{name:22}" + "".join(f"{cell:>17}" for cell in cells))


def main() -> None:
    """Describe, probe and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=MODEL, help="name or directory (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=DEFAULT, help="folder of BIDMC")
    parser.add_argument("--quick", action="store_true", help="seconds, and no claim")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore", "All-NaN|Mean of empty", RuntimeWarning)
    torch.set_num_threads(1)
    keep_freed_memory()
    print(machine_line())
    started = time.perf_counter()
    sizes = QUICK if chosen.quick else Sizes()
    ways, fs_hz = describers(chosen.model, sizes.n_norms)
    simulated = on_simulated(ways, fs_hz, sizes)
    print(f"\nsimulated people: {sizes.n_fit} to fit probes on, {sizes.n_test} apart,"
          f" {sizes.n_segments} segments each")  # fmt: skip
    _table("", simulated, ("mean_r2", "mean_auroc", "retrieval", "effective_rank"))
    _table("r2 of a trait", {t: {n: row["r2"][t] for n, row in simulated.items()} for t in TRAITS},
           tuple(simulated))  # fmt: skip
    recordings = made_up(4, seed=0) if chosen.quick else read_bidmc(chosen.data)
    real = on_recordings(ways, fs_hz, recordings, sizes.n_folds)
    print(f"\n{'made-up pulses' if chosen.quick else 'BIDMC'}: {len(recordings)} recordings of"
          f" {len({r.subject for r in recordings})} subjects")  # fmt: skip
    _table("", real, ("hr_mae_bpm", "halves", "other_recording", "effective_rank"))
    for other in (RANDOM, HAND):
        value, low, high = real[ENCODER][f"hr_less_{other}"]
        print(f"error of {ENCODER} less that of {other}: {value:.2f} ({low:.2f} to {high:.2f})")
    seconds = round(time.perf_counter() - started, 1)
    print(json.dumps({"simulated": simulated, "recordings": real, "seconds": seconds}))


if __name__ == "__main__":
    main()
