"""Records of the CinC Challenge 2017: one hand-held lead, four classes."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CLASSES = ("N", "A", "O", "~")
FS_HZ = 300.0


@dataclass(frozen=True, eq=False)
class Cinc2017:
    """Records of one folder.

    Attributes:
        names: As the files.
        signals: One array of millivolts a record, at 300 Hz.
        label: (record,) number in `CLASSES`.
    """

    names: list[str]
    signals: list[NDArray[np.float32]]
    label: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, keep: NDArray[np.int64]) -> Cinc2017:
        return Cinc2017(
            [self.names[i] for i in keep], [self.signals[i] for i in keep], self.label[keep]
        )


def read_cinc2017(folder: Path) -> Cinc2017:
    """All records that `REFERENCE.csv` names and the folder holds."""
    import wfdb

    with open(folder / "REFERENCE.csv", newline="") as file:
        rows = [row for row in csv.reader(file) if row and row[0]]
    found = {path.stem: path for path in folder.rglob("*.hea")}
    rows = [row for row in rows if row[0] in found and row[1] in CLASSES]
    signals = []
    for name, _ in rows:
        record = wfdb.rdrecord(str(found[name].with_suffix("")))
        if record.fs != FS_HZ:
            raise SystemExit(f"{name} is not at {FS_HZ:g} Hz")
        signals.append(record.p_signal[:, 0].astype(np.float32))
    label = np.array([CLASSES.index(row[1]) for row in rows])
    return Cinc2017([row[0] for row in rows], signals, label)


def made_up(n: int, *, seed: int) -> Cinc2017:
    """Simulated sinus rhythm, fibrillation, ectopic beats and noise."""
    from tsfm.simulation.waveforms import simulate_ecg

    rng = np.random.default_rng(seed)
    signals, label = [], np.arange(n) % len(CLASSES)
    for kind in label:
        lead = simulate_ecg(
            rng, fs_hz=FS_HZ, duration_s=12.0, heart_rate_bpm=rng.uniform(60, 95), leads=("I",),
            atrial_fibrillation=kind == 1, ectopic_fraction=0.2 if kind == 2 else 0.0,
        )["I"]  # fmt: skip
        signals.append((lead + (kind == 3) * rng.standard_normal(len(lead))).astype(np.float32))
    return Cinc2017([f"m{seed}-{i}" for i in range(n)], signals, label)
