"""Records of PTB-XL as published: signals in millivolts, superclasses, patients and folds."""

from __future__ import annotations

import ast
import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tsfm.signals.ecg_measurements import measure_ecg
from tsfm.signals.filters import low_pass
from tsfm.signals.store import STANDARD_LEADS, canonical_lead
from tsfm.simulation.signal_noise import KINDS, add_noise

FS_HZ = 100.0
COPIES_DB = (-6.0, 24.0)
MUSCLE_FILTER_HZ = 18.0  # muscles are heard from some 20 Hz on; what is left of a QRS is blunt
SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")


@dataclass(frozen=True, eq=False)
class PtbXl:
    """Records of one folder.

    Attributes:
        ecg_id: Names of the records.
        patient: Whose each is.
        fold: The publisher's fold.
        age: Years; NaN where not told (and where 300 stands for over 89: taken as 90).
        sex: 1 or 0 as published.
        signal_mv: (record, lead, sample) at 100 Hz, leads as in `STANDARD_LEADS`.
        label: (record, superclass) 1 or 0; several may hold.
        measured: (record, feature) what a cardiograph measures, with age and sex.
        filtered: (record, feature) the same with its muscle filter on.
    """

    ecg_id: NDArray[np.int64]
    patient: NDArray[np.int64]
    fold: NDArray[np.int64]
    age: NDArray[np.float64]
    sex: NDArray[np.float64]
    signal_mv: NDArray[np.float32]
    label: NDArray[np.int64]
    measured: NDArray[np.float64]
    filtered: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ecg_id)

    def rows(self, keep: NDArray) -> PtbXl:
        return PtbXl(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))


def read_ptbxl(folder: Path) -> PtbXl:
    """Read all records at 100 Hz that `ptbxl_database.csv` names.

    A superclass holds if any diagnostic statement of that class is given, whatever its likelihood,
    as in the publisher's benchmark (Strodthoff et al. 2021).
    """
    import wfdb

    with open(folder / "scp_statements.csv", newline="") as file:
        classes = {
            row[""]: row["diagnostic_class"]
            for row in csv.DictReader(file)
            if row["diagnostic"] == "1.0"
        }
    with open(folder / "ptbxl_database.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    label = np.zeros((len(rows), len(SUPERCLASSES)), np.int64)
    signals = []
    for i, row in enumerate(rows):
        found = {classes.get(name) for name in ast.literal_eval(row["scp_codes"])}
        label[i] = [name in found for name in SUPERCLASSES]
        record = wfdb.rdrecord(str(folder / row["filename_lr"]))
        names = [canonical_lead(name) for name in record.sig_name]
        signals.append(record.p_signal.T[[names.index(lead) for lead in STANDARD_LEADS]])
    age = np.array([float(row["age"] or "nan") for row in rows])
    age, sex = np.where(age > 120, 90.0, age), np.array([float(row["sex"]) for row in rows])
    signal_mv = np.stack(signals).astype(np.float32)
    return PtbXl(
        ecg_id=np.array([int(row["ecg_id"]) for row in rows]),
        patient=np.array([int(float(row["patient_id"])) for row in rows]),
        fold=np.array([int(row["strat_fold"]) for row in rows]),
        age=age,
        sex=sex,
        signal_mv=signal_mv,
        label=label,
        measured=measurements(signal_mv, age, sex),
        filtered=measurements(muscle_filter(signal_mv), age, sex),
    )


def measurements(
    signal_mv: NDArray[np.float32], age: NDArray[np.float64], sex: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Hand-made features of every record, with age and sex."""
    rows = [list(measure_ecg(x, fs_hz=FS_HZ).values()) for x in signal_mv]
    return np.column_stack([np.array(rows), age, sex])


def muscle_filter(signal_mv: NDArray[np.float32]) -> NDArray[np.float32]:
    """The signals without what is faster than `MUSCLE_FILTER_HZ`."""
    return np.asarray(low_pass(signal_mv, fs_hz=FS_HZ, cut_hz=MUSCLE_FILTER_HZ, order=4))


def noisy(data: PtbXl, kind: str, snr_db: float | NDArray, first_seed: int = 0) -> PtbXl:
    """The records with noise of one kind added, another on every lead, and measured again."""
    each = np.broadcast_to(snr_db, len(data))
    signal_mv = np.stack(
        [
            add_noise(x, kind, float(snr), FS_HZ, first_seed + int(name))
            for x, snr, name in zip(data.signal_mv, each, data.ecg_id, strict=True)
        ]
    ).astype(np.float32)
    return replace(
        data, signal_mv=signal_mv, measured=measurements(signal_mv, data.age, data.sex),
        filtered=measurements(muscle_filter(signal_mv), data.age, data.sex),
    )  # fmt: skip


def noisy_copies(data: PtbXl) -> list[PtbXl]:
    """A copy of every record with each kind of noise, at a ratio that the record's name draws."""
    return [
        noisy(
            data, kind,
            np.array([np.random.default_rng([k, i]).uniform(*COPIES_DB) for i in data.ecg_id]),
            10_000_000 * (k + 1),
        )
        for k, kind in enumerate(KINDS)
    ]  # fmt: skip


def stack(parts: list[PtbXl]) -> PtbXl:
    """The records of all, one after another."""
    names = PtbXl.__dataclass_fields__
    return PtbXl(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def made_up(n: int, *, seed: int) -> PtbXl:
    """Records of a simulated heart with labels by chance, to see that a script runs."""
    from tsfm.simulation.waveforms import simulate_ecg

    rng = np.random.default_rng(seed)
    rows = [
        simulate_ecg(
            rng, fs_hz=100.0, duration_s=10.0, heart_rate_bpm=rng.uniform(55, 100),
            leads=STANDARD_LEADS,
        )
        for _ in range(n)
    ]  # fmt: skip
    label = (rng.random((n, len(SUPERCLASSES))) < 0.4).astype(np.int64)
    label[0], label[1] = 0, 1
    signal_mv = np.stack([np.stack([row[lead] for lead in STANDARD_LEADS]) for row in rows])
    signal_mv, age = signal_mv.astype(np.float32), rng.uniform(20, 90, n)
    sex = rng.integers(0, 2, n).astype(float)
    name = np.arange(n) + 1000 * seed
    return PtbXl(
        ecg_id=name, patient=name, fold=np.arange(n) % 9 + 1, age=age, sex=sex,
        signal_mv=signal_mv, label=label, measured=measurements(signal_mv, age, sex),
        filtered=measurements(muscle_filter(signal_mv), age, sex),
    )  # fmt: skip
