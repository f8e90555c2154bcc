"""Train `ecg-encoder` on simulated electrocardiograms: `python benchmarks/train_ecg_encoder.py`.

    python benchmarks/train_ecg_encoder.py --out DIR --save tsfm/pretrained/ecg-encoder
    python benchmarks/train_ecg_encoder.py --out DIR --save DIR/model --quick

Every simulated record is known to the last wave, so the encoder is taught everything at once: the
findings, PTB-XL's superclasses, and where each numeric truth (rate, PR, QRS, QT, axis, amplitudes,
ST, T) lies among its quantiles, as yes or no for each. No real record teaches it, so it may be
fine-tuned and tested on any. `--out` keeps the records and the state after each epoch: a run that
was stopped goes on. Scores are of other simulated records, and, where they are at hand, of the real
ones of PTB-XL, which the simulator's constants were set by. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from measure import machine_line
from numpy.typing import NDArray
from ptbxl_records import read_ptbxl
from tqdm import tqdm

from tsfm import __version__
from tsfm.evaluation.label_bootstrap import macro_auroc
from tsfm.models.biosignal_encoder import BiosignalConfig, BiosignalEncoder
from tsfm.models.encoder_directory import level
from tsfm.models.signal_checkpoint import save_encoder
from tsfm.signals.store import STANDARD_LEADS
from tsfm.simulation.ecg_findings import LABELS, SUPERCLASSES
from tsfm.simulation.ecg_records import TARGETS, simulate_records
from tsfm.training.signal_classifier import SignalTraining, fit_signal_classifier

DEFAULT = Path(os.environ.get("TSFM_DATA", "../shared/data")) / "wfdb" / "ptb-xl"
FS_HZ = 100.0
QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
TRAINING = SignalTraining(epochs=5, batch_size=64, mixup=0.1)


def simulated(folder: Path, n: int, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    """Signals in microvolts, labels and targets; kept in the folder."""
    names = [folder / f"{kind}-{seed}-{n}.npy" for kind in ("signal", "label", "target")]
    if not all(name.exists() for name in names):
        signal = np.zeros((n, 12, 1000), np.int16)
        label = np.zeros((n, len(SUPERCLASSES) + len(LABELS)), np.float32)
        target = np.zeros((n, len(TARGETS)), np.float32)
        records = simulate_records(seed, n, fs_hz=FS_HZ, duration_s=10.0)
        for i, record in enumerate(tqdm(records, total=n, desc="simulate", disable=None)):
            signal[i] = np.clip(np.rint(record.signal_mv * 1000), -32_000, 32_000)
            label[i] = np.concatenate([record.superclasses, record.labels])
            target[i] = record.targets
        for name, values in zip(names, (signal, label, target), strict=True):
            np.save(name, values)
    signal, label, target = (np.load(name) for name in names)
    return signal, label, target


def taught(label: NDArray, target: NDArray, edges: NDArray) -> torch.Tensor:
    """(record, answer): findings, then whether each target lies above each of its edges."""
    above = (target[:, :, None] > edges).astype(np.float32)
    above[np.isnan(target)] = np.nan
    return torch.from_numpy(np.concatenate([label, above.reshape(len(label), -1)], 1))


def as_records(signal: NDArray) -> torch.Tensor:
    return level(torch.from_numpy(signal.astype(np.float32) / 1000))


def card(encoder: BiosignalEncoder, facts: dict) -> str:
    n = sum(p.numel() for p in encoder.parameters())
    lines = [
        "---", "library_name: tsfm", "license: apache-2.0", "pipeline_tag: feature-extraction",
        "tags:", "- ecg", "- electrocardiogram", "---", "", "# ECG encoder", "",
        "## What it gives", "",
        "Of an electrocardiogram of any of the twelve leads, at 50 to 4,000 Hz: the state of every"
        " 40 ms, an embedding of 256 numbers, and four summary vectors. To be probed, fine-tuned,"
        " or read by a timeline; it answers nothing by itself.", "", "## How to use it", "",
        "```python", "import tsfm", "", 'encoder = tsfm.load("ecg-encoder")',
        'vectors = encoder.embed(signal_mv, fs_hz=500, leads=("I", "II", "V2"))'
        "  # (record, lead, sample)", "```", "", "`tsfm encode events/` does it for all records of"
        " a data set, so that a timeline model can read them.", "", "## Model", "",
        f"- parameters: {n:,}", f"- scan: {encoder.config.scan}, both directions",
        f"- written by: tsfm {__version__}", "", "## Training", "",
        *(f"- {name}: {value}" for name, value in facts.items()), "", "## Limits", "",
        "- It has seen simulated hearts only. What a real heart has that the simulator does not"
        " know (pre-excitation, higher AV blocks, congenital disease, children) it has never seen.",
        "- The simulator's constants were set by looking at the PTB-XL records of folds 1 to 9"
        " that the project has: its score on those is not one of unseen data.",
        "- No claim about health is made for it: whoever uses it for patients must test it.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--save", type=Path, required=True, help="model directory to write")
    parser.add_argument("--records", type=int, default=12_000)
    parser.add_argument("--epochs", type=int, default=TRAINING.epochs)
    parser.add_argument("--scan", default="selective", choices=("selective", "lti"))
    parser.add_argument("--real", type=Path, default=DEFAULT, help="PTB-XL, to be scored on")
    parser.add_argument("--quick", action="store_true", help="few records and a small encoder")
    chosen = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    print(machine_line(), flush=True)
    started = time.perf_counter()
    chosen.out.mkdir(parents=True, exist_ok=True)
    n_test = 24 if chosen.quick else 1000
    if chosen.quick:
        chosen.records, chosen.epochs = 48, 1
    config = BiosignalConfig(scan=chosen.scan)
    if chosen.quick:
        config = BiosignalConfig(d_model=16, n_layers=1, d_embedding=16, scan=chosen.scan)
    signal, label, target = simulated(chosen.out, chosen.records, seed=0)
    edges = np.nanquantile(target, QUANTILES, axis=0).T
    torch.manual_seed(0)
    training = SignalTraining(
        **{**vars(TRAINING), "epochs": chosen.epochs, "batch_size": 16 if chosen.quick else 64}
    )
    model = fit_signal_classifier(
        BiosignalEncoder(config), as_records(signal), taught(label, target, edges), fs_hz=FS_HZ,
        leads=STANDARD_LEADS, training=training, checkpoint=chosen.out / "checkpoint",
        progress=True,
    )  # fmt: skip
    test_signal, test_label, test_target = simulated(chosen.out, n_test, seed=1)
    known = taught(test_label, test_target, edges).numpy()
    p = model.predict(as_records(test_signal), fs_hz=FS_HZ, leads=STANDARD_LEADS).numpy()
    n_super, n_found = len(SUPERCLASSES), len(SUPERCLASSES) + len(LABELS)
    scores = {
        "superclasses": macro_auroc(known[:, :n_super], p[:, :n_super]),
        "findings": mean_auroc(known[:, n_super:n_found], p[:, n_super:n_found]),
        "numbers above their quantiles": mean_auroc(known[:, n_found:], p[:, n_found:]),
    }
    for name, score in scores.items():
        print(f"simulated, {name:34}{score:8.4f}")
    facts = {
        "data": f"{chosen.records:,} simulated records of ten seconds; no real one",
        "command": "benchmarks/train_ecg_encoder.py", "epochs": chosen.epochs,
        "licence": "Apache-2.0",
        **{f"AUROC, simulated, {name}": round(score, 4) for name, score in scores.items()},
    }  # fmt: skip
    if not chosen.quick and chosen.real.is_dir():
        real = read_ptbxl(chosen.real)
        x = level(torch.from_numpy(real.signal_mv))
        q = model.predict(x, fs_hz=FS_HZ, leads=STANDARD_LEADS).numpy()[:, :n_super]
        scores["real"] = macro_auroc(real.label, q)
        name = f"macro AUROC, superclasses of {len(real)} PTB-XL records"
        facts[name] = round(scores["real"], 4)
        print(f"real, superclasses of PTB-XL{scores['real']:24.4f}")
    save_encoder(chosen.save, model.encoder, facts=facts, card=card(model.encoder, facts))
    told = {name.replace(" ", "_"): round(value, 4) for name, value in scores.items()}
    print(json.dumps(told | {"seconds": round(time.perf_counter() - started, 1)}))


def mean_auroc(label: NDArray, p: NDArray) -> float:
    """Mean over the answers of which both are there."""
    each = []
    for j in range(label.shape[1]):
        told = np.isfinite(label[:, j])
        if 0 < label[told, j].sum() < told.sum():
            each.append(macro_auroc(label[told][:, [j]], p[told][:, [j]]))
    return float(np.mean(each))


if __name__ == "__main__":
    main()
