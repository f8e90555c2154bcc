"""Faults of leads planted in published records: how many are found, and what sound records say.

    python benchmarks/ecg_faults.py --train DIR       PTB-XL's layout; every fault in every record
    python benchmarks/ecg_faults.py --quick           made-up records, to see that it runs

Limb leads are interchanged or inverted, one lead's gain is wrong, a lead is dead, missing or a copy
of another, the unit is wrong by a factor of a thousand. A fault counts as found if it is named as
what it is, with its leads, and nothing else is said; `told` counts records of which anything at all
is said. Which leads is drawn for each record. Nothing is fitted. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from measure import machine_line
from numpy.typing import NDArray
from ptbxl_records import FS_HZ, made_up, read_ptbxl

from tsfm.signals.limb_leads import LIMB_LEADS, find_lead_faults
from tsfm.signals.store import STANDARD_LEADS

DEFAULT = Path(os.environ.get("TSFM_DATA", "../shared/data")) / "wfdb" / "ptb-xl"
Signal = NDArray[np.float64]
Planted = tuple[Signal, str, set[str]]


def swapped(x: Signal, rng: np.random.Generator) -> Planted:
    pairs = list(combinations(range(6), 2))
    i, j = pairs[rng.integers(len(pairs))]
    order = np.arange(len(x))
    order[[i, j]] = j, i
    return x[order], "swapped", {STANDARD_LEADS[i], STANDARD_LEADS[j]}


def inverted(x: Signal, rng: np.random.Generator) -> Planted:
    i = rng.integers(6)
    y = x.copy()
    y[i] *= -1
    return y, "inverted", {STANDARD_LEADS[i]}


def wrong_gain(x: Signal, rng: np.random.Generator) -> Planted:
    i = rng.integers(6)
    y = x.copy()
    y[i] *= rng.choice([0.1, 0.5, 2.0, 10.0])
    return y, "wrong_scale", {STANDARD_LEADS[i]}


def flat(x: Signal, rng: np.random.Generator) -> Planted:
    i = rng.integers(12)
    y = x.copy()
    y[i] = y[i, 0]
    return y, "flat", {STANDARD_LEADS[i]}


def missing(x: Signal, rng: np.random.Generator) -> Planted:
    i = rng.integers(12)
    y = x.copy()
    y[i] = np.nan
    return y, "missing", {STANDARD_LEADS[i]}


def saturated(x: Signal, rng: np.random.Generator) -> Planted:
    i = rng.integers(6, 12)
    y = x.copy()
    y[i] = np.clip(y[i], *np.quantile(y[i], [0.3, 0.6]))
    return y, "saturated", {STANDARD_LEADS[i]}


def copied(x: Signal, rng: np.random.Generator) -> Planted:
    i, j = rng.choice(np.arange(6, 12), 2, replace=False)
    y = x.copy()
    y[j] = y[i]
    return y, "duplicated", {STANDARD_LEADS[i], STANDARD_LEADS[j]}


def microvolts(x: Signal, rng: np.random.Generator) -> Planted:
    return x * 1000.0, "wrong_unit", set(STANDARD_LEADS)


def volts(x: Signal, rng: np.random.Generator) -> Planted:
    return x / 1000.0, "wrong_unit", set(STANDARD_LEADS)


FAULTS: dict[str, Callable[[Signal, np.random.Generator], Planted]] = {
    "two limb leads interchanged": swapped,
    "a limb lead inverted": inverted,
    "a limb lead's gain wrong": wrong_gain,
    "a lead flat": flat,
    "a lead missing": missing,
    "a chest lead saturated": saturated,
    "a chest lead copied": copied,
    "microvolts taken for millivolts": microvolts,
    "volts taken for millivolts": volts,
}


def try_fault(name: str, signals: Signal) -> dict[str, float]:
    """Share of records in which a fault of the kind is found, and in which anything is told."""
    found, told = 0, 0
    for i, x in enumerate(signals):
        planted, kind, leads = FAULTS[name](x, np.random.default_rng(i))
        faults = find_lead_faults(planted, STANDARD_LEADS, fs_hz=FS_HZ)
        named = {lead for fault in faults for lead in fault.leads}
        found += named == leads and all(fault.kind == kind for fault in faults)
        told += bool(faults)
    return {"found": found / len(signals), "told": told / len(signals)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, default=DEFAULT, help="folder of records")
    parser.add_argument("--quick", action="store_true", help="made-up records, seconds")
    arguments = parser.parse_args()
    print(machine_line())
    started = time.perf_counter()
    data = made_up(12, seed=0) if arguments.quick else read_ptbxl(arguments.train)
    signals = data.signal_mv.astype(np.float64)
    sound = [find_lead_faults(x, STANDARD_LEADS, fs_hz=FS_HZ) for x in signals]
    alarms = sum(map(bool, sound)) / len(sound)
    print(f"\n{len(signals)} records; limb leads are {', '.join(LIMB_LEADS)}")
    print(f"{'planted':34}{'found':>8}{'told':>8}")
    print(f"{'nothing':34}{'':8}{alarms:8.4f}")
    answer: dict[str, object] = {"n": len(signals), "false_alarms": alarms}
    for name in FAULTS:
        row = try_fault(name, signals)
        answer[name] = row
        print(f"{name:34}{row['found']:8.4f}{row['told']:8.4f}", flush=True)
    answer["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
