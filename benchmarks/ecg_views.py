"""One encoder, many views of the same ECG: sampling rates, subsets of leads, a week in one record.

    python benchmarks/ecg_views.py [--train DIR] [--encoder ecg-encoder]
    python benchmarks/ecg_views.py --quick            made-up records, to see that it runs

Rates: simulated records at 500 Hz and copies of them at 360, 250, 125 and 100 Hz (cosine of the
embeddings), and logistic probes of PTB-XL's superclasses, fitted at 100 Hz and asked at all rates.
Leads: the same probes fitted and asked on fewer leads, folds of patients. A week: one lead at
125 Hz is encoded window by window, and the memory that it needs is compared with that of an hour.
The encoder is frozen throughout. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from measure import machine_line
from numpy.typing import NDArray
from ptbxl_records import FS_HZ, PtbXl, made_up, read_ptbxl

from tsfm.evaluation.evaluation_ledger import EvaluationLedger
from tsfm.evaluation.label_bootstrap import macro_auroc
from tsfm.models.biosignal_encoder import BiosignalConfig, BiosignalEncoder
from tsfm.models.encoder_directory import EncoderDirectory, open_encoder
from tsfm.models.signal_checkpoint import save_encoder
from tsfm.scoring.encode_signals import encode_signals
from tsfm.signals.resampling import resample
from tsfm.signals.shards import Lead, SignalWriter
from tsfm.signals.store import STANDARD_LEADS
from tsfm.simulation.ecg_records import simulate_record
from tsfm.training.signal_probes import fit_logistic, patient_folds

DEFAULT = Path(os.environ.get("TSFM_DATA", "../shared/data")) / "wfdb" / "ptb-xl"
RATES_HZ = (100, 125, 250, 360, 500)
SUBSETS = {
    "12 leads": STANDARD_LEADS,
    "8: I, II, V1-V6": ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6"),
    "6: limb leads": STANDARD_LEADS[:6],
    "3: I, II, V2": ("I", "II", "V2"),
    "2: I, II": ("I", "II"),
    "1: II": ("II",),
    "1: I": ("I",),
    "1: V2": ("V2",),
}
N_FOLDS = 5


def at_rate(signal: NDArray, from_hz: float, to_hz: float) -> NDArray[np.float32]:
    """Records at another rate; the last sample may go."""
    if from_hz == to_hz:
        return signal.astype(np.float32)
    return np.asarray(resample(signal, fs_hz=from_hz, to_hz=to_hz), np.float32)


def cosines(encoder: EncoderDirectory, n: int) -> dict[int, tuple[float, float]]:
    """Mean and least cosine of each rate's embeddings to those at 500 Hz, simulated records."""
    top = RATES_HZ[-1]
    rng = np.random.default_rng(0)
    signal = np.stack([simulate_record(rng, fs_hz=top).signal_mv for _ in range(n)])
    whole = encoder.embed(signal, fs_hz=top, leads=STANDARD_LEADS)
    found = {}
    for rate in RATES_HZ:
        part = encoder.embed(at_rate(signal, top, rate), fs_hz=rate, leads=STANDARD_LEADS)
        norms = np.linalg.norm(whole, axis=1) * np.linalg.norm(part, axis=1)
        cosine = (whole * part).sum(1) / norms
        found[rate] = (float(cosine.mean()), float(cosine.min()))
    return found


class Folds:
    """Probes in folds of patients, one a superclass."""

    def __init__(self, data: PtbXl) -> None:
        self.data = data
        self.fold = patient_folds(data.patient, N_FOLDS, seed=0)
        for k in range(N_FOLDS):
            ledger = EvaluationLedger(
                {f"r{i}": int(p) for i, p in zip(data.ecg_id, data.patient, strict=True)}
            )
            ledger.fit("probe", [f"r{i}" for i in data.ecg_id[self.fold != k]])
            ledger.score("macro AUROC", [f"r{i}" for i in data.ecg_id[self.fold == k]])

    def scores(self, fitted: NDArray, asked: dict[int, NDArray]) -> dict[int, float]:
        """Macro AUROC of each table of embeddings, by probes fitted on one of them."""
        y = self.data.label.astype(np.float64)
        found = {name: np.zeros(y.shape) for name in asked}
        for k in range(N_FOLDS):
            own, out = self.fold != k, self.fold == k
            probe = fit_logistic(fitted[own], y[own], patients=self.data.patient[own])
            for name, x in asked.items():
                found[name][out] = probe.predict(x[out])
        return {name: macro_auroc(self.data.label, p) for name, p in found.items()}


class PeakMemory(threading.Thread):
    """Watches how much memory of our own (not of mapped files) the process holds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_mib, self.peak_mib, self.done = _anonymous_mib(), 0.0, False

    def run(self) -> None:
        while not self.done:
            self.peak_mib = max(self.peak_mib, _anonymous_mib())
            time.sleep(0.05)

    @property
    def grown_mib(self) -> float:
        return self.peak_mib - self.start_mib


def _anonymous_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return float("nan")


def long_record(encoder: str, hours: float, folder: Path) -> tuple[float, float]:
    """Memory in MiB that encoding one lead of so many hours adds at most, and seconds."""
    fs_hz = 125.0
    rng = np.random.default_rng(0)
    minute = simulate_record(rng, fs_hz=fs_hz, duration_s=60.0).signal_mv[1]
    digits = np.tile(np.rint(minute * 1000).astype(np.int16), round(hours * 60))
    with SignalWriter(folder) as writer:
        writer.add([Lead("II", "ecg", fs_hz, digits, "mV", 1000.0)], signal_id="long",
                   subject_id=1, record="long", start_time=None)  # fmt: skip
    del digits
    started, memory = time.perf_counter(), PeakMemory()
    memory.start()
    encode_signals(folder, encoder, progress=False)
    memory.done = True
    memory.join()
    return memory.grown_mib, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, default=DEFAULT)
    parser.add_argument("--encoder", default="ecg-encoder")
    parser.add_argument("--quick", action="store_true", help="made-up records, seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    print(machine_line())
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder, name = Path(scratch), arguments.encoder
        if arguments.quick:
            torch.manual_seed(0)
            small = BiosignalEncoder(BiosignalConfig(d_model=16, n_layers=1, d_embedding=16))
            name = str(folder / "encoder")
            save_encoder(name, small, facts={}, card="random weights")
        answer = run(folder, name, quick=arguments.quick, train=arguments.train)
    answer["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(answer))


def run(folder: Path, name: str, *, quick: bool, train: Path) -> dict[str, object]:
    encoder = open_encoder(name)
    data = made_up(40, seed=0) if quick else read_ptbxl(train)
    folds = Folds(data)
    near = cosines(encoder, 4 if quick else 300)
    at = {
        rate: encoder.embed(at_rate(data.signal_mv, FS_HZ, rate), fs_hz=rate, leads=STANDARD_LEADS)
        for rate in RATES_HZ
    }
    probes = folds.scores(at[100], at)
    print(f"\n{'rate':>6}{'cosine to 500 Hz, mean':>24}{'least':>8}{'probe':>9}{'drop':>9}")
    for rate in RATES_HZ:
        mean, least = near[rate]
        drop = probes[100] - probes[rate]
        print(f"{rate:4} Hz{mean:24.5f}{least:8.4f}{probes[rate]:9.4f}{drop:+9.4f}")
    print(f"\n{'leads':20}{'probe':>9}")
    by_leads = {}
    for label, leads in SUBSETS.items():
        rows = [STANDARD_LEADS.index(lead) for lead in leads]
        x = encoder.embed(data.signal_mv[:, rows], fs_hz=FS_HZ, leads=leads)
        by_leads[label] = folds.scores(x, {0: x})[0]
        print(f"{label:20}{by_leads[label]:9.4f}", flush=True)
    order = np.random.default_rng(1).permutation(12)
    turned = encoder.embed(
        data.signal_mv[:32, order], fs_hz=FS_HZ, leads=[STANDARD_LEADS[i] for i in order]
    )
    moved = float(np.abs(turned - at[100][:32]).max())
    print(f"\nleads in another order: embeddings differ by {moved:.1e} at most")
    hours = (0.1, 0.3) if quick else (1.0, 168.0)
    spans = {}
    for span in hours:
        spans[span] = long_record(name, span, folder / f"long-{span}")
        print(
            f"a record of {span:g} hours: {spans[span][0]:.0f} MiB more, {spans[span][1]:.1f} s",
            flush=True,
        )
    return {
        "least_cosine": round(min(least for _, least in near.values()), 5),
        "largest_probe_drop": round(max(probes[100] - p for p in probes.values()), 5),
        "probe_auroc": {f"{rate} Hz": round(p, 4) for rate, p in probes.items()},
        "leads_auroc": {label: round(p, 4) for label, p in by_leads.items()},
        "order_moves": moved,
        "mib_of_hours": {f"{span:g}": round(spans[span][0], 1) for span in hours},
    }


if __name__ == "__main__":
    main()
