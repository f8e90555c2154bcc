"""Simulated patients whose risk depends on their electrocardiogram and on what they are given.

A patient has a record of visits, labs and drugs, a stay in hospital, and, with a given chance, one
twelve-lead ECG in that stay. The daily rate of coming back is constant after the discharge:

    log rate = base + 0.5 * illness + (0.3 or, on the drug, 1.5) * width of the QRS complex

with illness from labs and diagnoses and the width in steps of 25 ms from 100 ms. So a wide complex
matters much for those who take the drug and little for the others: a model of the record and a
model of the ECG can't say that together after the fact. Patients without an ECG have the same
hidden hearts. The truth of every discharge is kept.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from tsfm import codes, event_table, schema
from tsfm.signals.shards import Lead, SignalWriter
from tsfm.signals.store import STANDARD_LEADS
from tsfm.simulation.ecg_findings import draw_findings
from tsfm.simulation.ecg_records import simulate_record

FS_HZ, DURATION_S = 100.0, 10.0
DRUG, OTHER_DRUG = "MEDICATION//flecainide//Administered", "MEDICATION//paracetamol//Administered"
_BASE_PER_DAY, _DAYS = 0.0045, 90.0
_START = datetime(2150, 1, 1)
_LABS = {"LAB//CREATININE//mg/dL": (1.1, 0.35), "LAB//BNP//pg/mL": (180.0, 0.8)}
_SITES = ("DIAGNOSIS//ICD//10//I10", "DIAGNOSIS//ICD//10//E119", "DIAGNOSIS//ICD//10//J449")


@dataclass(frozen=True)
class Ward:
    """The patients on disk, with what is true of them.

    Attributes:
        root: Event table and signal store.
        truth: A row an index discharge: subject_id, prediction_time, risk (true probability of
            coming back within 30 days), has_ecg.
    """

    root: Path
    truth: pl.DataFrame


def make_ward(folder: Path, n_patients: int, *, ecg_share: float, seed: int) -> Ward:
    """Simulate the patients, or open those that were made before."""
    root = folder / "ward"
    if not (root / "truth.parquet").exists():
        shutil.rmtree(root, ignore_errors=True)
        rows: list[dict] = []
        truth: list[dict] = []
        with SignalWriter(root) as signals:
            for subject in range(n_patients):
                rng = np.random.default_rng([seed, subject])
                _patient(rng, subject, ecg_share, rows, truth, signals)
        frame = pl.DataFrame(rows, schema=dict(event_table.POLARS_EVENTS))
        with event_table.EventWriter(root, n_shards=4) as writer:
            writer.add(frame)
            writer.finish(dataset={"clock": "wall", "dates_shifted": True, "complete": True})
        pl.DataFrame(truth).write_parquet(root / "truth.parquet")
    return Ward(root, pl.read_parquet(root / "truth.parquet"))


def _patient(
    rng: np.random.Generator, subject: int, ecg_share: float, rows: list[dict], truth: list[dict],
    signals: SignalWriter,
) -> None:  # fmt: skip
    findings = draw_findings(rng)
    width = float(np.clip((findings.qrs_ms - 100) / 25, -1, 3))
    illness, on_drug = rng.standard_normal(), rng.random() < 0.4
    admitted = _START + timedelta(days=rng.uniform(0, 3000))

    def add(time: datetime | None, code: str, value: float | None = None, **more: object) -> None:
        rows.append(
            {schema.SUBJECT_ID: subject, schema.TIME: time, schema.AVAILABLE_TIME: time,
             schema.CODE: code, schema.NUMERIC_VALUE: value, **more}
        )  # fmt: skip

    add(None, f"{codes.GENDER}//{'F' if rng.random() < 0.5 else 'M'}")
    add(admitted - timedelta(days=365.25 * rng.uniform(45, 85)), codes.BIRTH)
    for _ in range(rng.poisson(2)):
        visit = admitted - timedelta(days=rng.exponential(200))
        add(visit, codes.OUTPATIENT)
        _labs(rng, add, visit, illness)
    for encounter in range(2):
        stay_days = rng.uniform(2, 8)
        left = admitted + timedelta(days=stay_days)
        own = {schema.ENCOUNTER_ID: 2 * subject + encounter}
        add(admitted, f"{codes.ADMISSION}//EMERGENCY", **own)
        for day in range(int(stay_days)):
            at = admitted + timedelta(days=day + rng.uniform(0.1, 0.9))
            _labs(rng, add, at, illness)
            add(at, DRUG if on_drug else OTHER_DRUG, **own)
        for code in _SITES:
            if rng.random() < 1 / (1 + np.exp(-illness)):
                add(left, code, **own)
        if encounter == 0 and rng.random() < ecg_share:
            at = admitted + timedelta(days=rng.uniform(0.05, 0.9) * stay_days)
            _record(rng, findings, subject, at, signals)
            add(at, "ECG//12", **own, **{schema.SIGNAL_ID: f"ecg-{subject}"})
            rows[-1][schema.AVAILABLE_TIME] = at + timedelta(seconds=DURATION_S)
        add(left, f"{codes.DISCHARGE}//HOME", **own)
        effect = (1.5 if on_drug else 0.3) * width
        rate = _BASE_PER_DAY * np.exp(0.5 * illness + effect)
        if encounter == 0:
            has_ecg = any(r.get(schema.SIGNAL_ID) == f"ecg-{subject}" for r in rows[-40:])
            truth.append(
                {schema.SUBJECT_ID: subject, schema.PREDICTION_TIME: left,
                 "risk": float(1 - np.exp(-30 * rate)), "has_ecg": has_ecg}
            )  # fmt: skip
        waits = rng.exponential(1 / rate)
        if waits > _DAYS:
            break
        admitted = left + timedelta(days=max(waits, 0.02))
        if encounter == 1:
            add(admitted, f"{codes.ADMISSION}//EMERGENCY")


def _labs(rng: np.random.Generator, add, at: datetime, illness: float) -> None:
    for code, (usual, spread) in _LABS.items():
        noisy = 0.8 * illness + 0.6 * rng.standard_normal()
        add(at, code, float(usual * np.exp(spread * noisy)))


def _record(
    rng: np.random.Generator, findings, subject: int, at: datetime, signals: SignalWriter
) -> None:
    ecg = simulate_record(rng, findings, fs_hz=FS_HZ, duration_s=DURATION_S)
    leads = [
        Lead(name, "ecg", FS_HZ, np.rint(x * 1000).astype(np.int16), "mV", 1000.0)
        for name, x in zip(STANDARD_LEADS, np.clip(ecg.signal_mv, -30, 30), strict=True)
    ]
    signals.add(
        leads, signal_id=f"ecg-{subject}", subject_id=subject, record=f"r{subject}", start_time=at
    )
