"""Recordings of the BIDMC set: PPG, ECG and respiration beside the monitor and marked breaths."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

FS_HZ = 125.0
WINDOW_S = 32.0


@dataclass(frozen=True, eq=False)
class Recording:
    """Eight minutes of one patient.

    Attributes:
        name: As the files.
        subject: Whose it is.
        ppg: (sample,) at 125 Hz.
        ecg: (sample,) lead II, or the first ECG lead there is; None without any.
        resp: (sample,) impedance; None without it.
        monitor_hr: (second,) beats a minute; NaN where blank.
        breaths_s: Times of the breaths that each annotator marked.
    """

    name: str
    subject: str
    ppg: NDArray[np.float64]
    ecg: NDArray[np.float64] | None
    resp: NDArray[np.float64] | None
    monitor_hr: NDArray[np.float64]
    breaths_s: tuple[NDArray[np.float64], ...]

    def windows(self) -> list[tuple[float, float]]:
        """Whole windows in order, seconds."""
        n = int(len(self.ppg) / FS_HZ // WINDOW_S)
        return [(i * WINDOW_S, (i + 1) * WINDOW_S) for i in range(n)]

    def hr(self, start_s: float, stop_s: float) -> float:
        """The monitor's mean rate in a window; NaN where it says nothing."""
        part = self.monitor_hr[int(start_s) : int(stop_s)]
        part = part[np.isfinite(part)]
        return float(part.mean()) if len(part) else float("nan")

    def breathing(self, start_s: float, stop_s: float) -> tuple[float, ...]:
        """Breaths a minute in a window by each annotator, from the intervals between marks."""
        found = []
        for marks in self.breaths_s:
            inside = marks[(marks >= start_s) & (marks < stop_s)]
            rate = 60 * (len(inside) - 1) / (inside[-1] - inside[0]) if len(inside) > 1 else np.nan
            found.append(float(rate))
        return tuple(found)


def read_bidmc(folder: Path) -> list[Recording]:
    """All recordings that `records.csv` names and the folder holds."""
    with open(folder / "records.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if (folder / "signals" / f"{row['record']}.parquet").exists()]
    return [_read(folder, row["record"], row["subject"]) for row in rows]


def _read(folder: Path, name: str, subject: str) -> Recording:
    signals = pl.read_parquet(folder / "signals" / f"{name}.parquet")
    by_name = {column.strip(" ,").upper(): column for column in signals.columns}

    def signal(*names: str) -> NDArray[np.float64] | None:
        for wanted in names:
            if wanted in by_name:
                return signals[by_name[wanted]].to_numpy().astype(np.float64)
        return None

    ppg = signal("PLETH")
    if ppg is None:
        raise SystemExit(f"{name} has no PLETH")
    numerics = pl.read_csv(folder / "numerics" / f"{name}.csv", infer_schema_length=None)
    column = next(c for c in numerics.columns if c.strip().upper() == "HR")
    rate = numerics[column].cast(pl.String).str.strip_chars().cast(pl.Float64, strict=False)
    marks = pl.read_csv(folder / "breaths" / f"{name}.csv", infer_schema_length=None)
    breaths = tuple(
        marks[c].cast(pl.String).str.strip_chars().cast(pl.Float64, strict=False).drop_nulls()
        .to_numpy() / FS_HZ
        for c in marks.columns
    )  # fmt: skip
    return Recording(
        name, subject, ppg, signal("II", "V", "AVR", "I", "III"), signal("RESP"),
        rate.to_numpy().astype(np.float64), breaths,
    )  # fmt: skip


def made_up(n: int, *, seed: int) -> list[Recording]:
    """Simulated pulses of known rate, to see that a script runs."""
    from tsfm.simulation.waveforms import simulate_beats, simulate_ecg, simulate_ppg

    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        rate = rng.uniform(60, 100)
        beats = simulate_beats(rng, duration_s=100.0, heart_rate_bpm=rate)
        ppg = simulate_ppg(rng, fs_hz=FS_HZ, duration_s=100.0, beat_times_s=beats.times_s)
        ecg = simulate_ecg(rng, fs_hz=FS_HZ, duration_s=100.0, beats=beats, leads=("II",))["II"]
        breaths = np.arange(1.0, 100.0, 4.0)
        resp = np.sin(2 * np.pi * np.arange(len(ppg)) / FS_HZ / 4.0)
        found.append(
            Recording(f"m{i}", f"s{seed}-{i}", ppg, ecg, resp, np.full(100, rate), (breaths,) * 2)
        )
    return found
