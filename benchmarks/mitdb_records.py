"""Records of the MIT-BIH Arrhythmia Database, or of any folder of WFDB records with .atr files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PACED = ("102", "104", "107", "217")
AAMI = {
    **dict.fromkeys("NLRBejnr", "N"),
    **dict.fromkeys("AaJS", "S"),
    **dict.fromkeys("VE", "V"),
    "F": "F",
    **dict.fromkeys("/fQ?", "Q"),
}
"""Class of each annotated beat, as ANSI/AAMI EC57 groups them."""

ONE_PERSON = {"202": "201"}
"""Records of a person who has another one."""


@dataclass(frozen=True, eq=False)
class BeatRecord:
    """One record with its annotated beats.

    Attributes:
        name: As the files.
        subject: Whose it is.
        fs_hz: Sampling rate.
        leads: Names of the leads.
        signal: (lead, sample) in the header's units, NaN where it says that nothing was measured.
        beats: (beat,) samples, in order.
        classes: (beat,) N, S, V, F or Q.
    """

    name: str
    subject: str
    fs_hz: float
    leads: tuple[str, ...]
    signal: NDArray[np.float32]
    beats: NDArray[np.int64]
    classes: NDArray[np.str_]


def read_records(folder: Path, *, paced: bool = False) -> list[BeatRecord]:
    """All records of a folder that have beat annotations, without the paced ones unless asked."""
    names = sorted(path.stem for path in folder.glob("*.atr"))
    names = [name for name in names if paced or name not in PACED]
    if not names:
        raise SystemExit(f"{folder} holds no records with .atr files")
    return [_read(folder, name) for name in names]


def _read(folder: Path, name: str) -> BeatRecord:
    import wfdb

    record = wfdb.rdrecord(str(folder / name))
    marks = wfdb.rdann(str(folder / name), "atr")
    keep = np.array([symbol in AAMI for symbol in marks.symbol], np.bool_)
    return BeatRecord(
        name=name,
        subject=ONE_PERSON.get(name, name),
        fs_hz=float(record.fs),
        leads=tuple(record.sig_name),
        signal=record.p_signal.T.astype(np.float32),
        beats=np.asarray(marks.sample)[keep].astype(np.int64),
        classes=np.array([AAMI[s] for s in marks.symbol if s in AAMI]),
    )


def made_up(n: int, *, seed: int, duration_s: float = 40.0) -> list[BeatRecord]:
    """Simulated records with ventricular ectopic beats, to see that a script runs."""
    from tsfm.simulation.waveforms import simulate_beats, simulate_ecg

    rng = np.random.default_rng(seed)
    records = []
    for i in range(n):
        beats = simulate_beats(
            rng, duration_s=duration_s, heart_rate_bpm=rng.uniform(60, 90), ectopic_fraction=0.15
        )
        leads = simulate_ecg(rng, fs_hz=360.0, duration_s=duration_s, beats=beats)
        at = np.rint(beats.times_s * 360.0).astype(np.int64)
        inside = (at >= 0) & (at < round(duration_s * 360.0))
        classes = np.where(beats.ectopic, "V", "N")
        early = rng.random(len(at)) < 0.05  # labels of the third class, by chance
        classes = np.where(early & ~beats.ectopic, "S", classes)
        name = f"made-up-{seed}-{i}"
        signal = np.stack(list(leads.values())).astype(np.float32)
        records.append(
            BeatRecord(name, name, 360.0, ("MLII", "V5"), signal, at[inside], classes[inside])
        )
    return records
