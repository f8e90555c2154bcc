"""A simulated hospital: patients with a known risk, written as the files a real one exports.

`simulate_hospital` writes a FHIR bulk export (`fhir/`), a few WFDB records of ECG and PPG (`wfdb/`)
and, apart from them, the truth: at every index discharge the probability of a readmission and of
death within 30 days (`truth.parquet`), and a day after every admission the probability that the
stay ends in death and that it lasts a week (`truth_stays.parquet`), in closed form from the hazards
that the events were drawn from, and what then happened. With `claims` the export also has the
stays' claims and their payers' answers, and `truth_claims.parquet` the probability that each is
denied. So the best discrimination that any model can reach on these data is known, and a model's
distance from it can be measured.

The hazards are in `tsfm.simulation.hazards` and `tsfm.simulation.stay_hazards`, the patients'
courses in `tsfm.simulation.course`. The data are for exercising the path from export to score and
for tests against the truth; they say nothing about real patients.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from tqdm import tqdm

from tsfm.errors import InputError
from tsfm.event_table import write_table
from tsfm.simulation.chart import HOUR, STAY, Chart
from tsfm.simulation.claims import (
    claim_resources,
    claim_truth,
    claim_truth_table,
    simulate_claims,
)
from tsfm.simulation.course import simulate_course
from tsfm.simulation.fhir_export import FhirWriter
from tsfm.simulation.fhir_resources import Resource
from tsfm.simulation.truth_tables import CENSORED, TruthTables

ZONE = ZoneInfo("America/New_York")
WINDOW_START = datetime(2021, 1, 1, tzinfo=ZONE)
EXPORT_TIME = datetime(2025, 1, 1, tzinfo=ZONE)
ECG_FS_HZ = 250.0
PPG_FS_HZ = 125.0
RECORD_SECONDS = 30.0


@dataclass(frozen=True)
class HospitalSummary:
    """What was simulated.

    Attributes:
        n_patients: Patients.
        n_resources: FHIR resources by type.
        n_stays: Hospital stays, those in progress included.
        n_discharges: Index discharges, the rows of the truth table.
        n_censored: Of these, the ones with less than 30 days of follow-up and no event in them.
        n_records: WFDB records.
        readmission_rate: Share readmitted within 30 d, of the discharges not censored.
        death_rate: Share that died first within 30 d, of the same.
        ceiling_auroc: AUROC of the true risk against being readmitted within 30 d: no model can
            be expected to do better. NaN where one class is absent.
        death_in_stay_rate: Share of the stays of over a day that ended in death, of those that are
            known to have ended.
        death_in_stay_ceiling_auroc: AUROC of its true risk, a day after admission.
        fhir_dir: The bulk export.
        truth_path: Table with the columns of `truth_tables.TRUTH`.
        terms_path: Each discharge's contributions to the true log hazard of readmission.
        stay_truth_path: Table with the columns of `truth_tables.STAY_TRUTH`.
        records_path: Index of the WFDB records; None without any.
        claims_path: Table with the columns of `claims.CLAIM_TRUTH`; None without claims.
    """

    n_patients: int
    n_resources: dict[str, int]
    n_stays: int
    n_discharges: int
    n_censored: int
    n_records: int
    readmission_rate: float
    death_rate: float
    ceiling_auroc: float
    death_in_stay_rate: float
    death_in_stay_ceiling_auroc: float
    fhir_dir: Path
    truth_path: Path
    terms_path: Path
    stay_truth_path: Path
    records_path: Path | None
    claims_path: Path | None = None

    def as_text(self) -> str:
        """The table printed at the end of a run."""
        counted = sorted(self.n_resources.items(), key=lambda item: (-item[1], item[0]))
        rows = [
            ("patients", f"{self.n_patients:>12,}"),
            ("hospital stays", f"{self.n_stays:>12,}"),
            ("index discharges", f"{self.n_discharges:>12,}"),
            ("  of unknown outcome", f"{self.n_censored:>12,}"),
            ("WFDB records", f"{self.n_records:>12,}"),
            *((f"FHIR {name}", f"{n:>12,}") for name, n in counted),
            ("readmitted within 30 days", f"{self.readmission_rate:>12.1%}"),
            ("died first within 30 days", f"{self.death_rate:>12.1%}"),
            ("AUROC of the true readmission risk", f"{self.ceiling_auroc:>12.3f}"),
            ("died in a stay of over a day", f"{self.death_in_stay_rate:>12.1%}"),
            ("AUROC of the true risk of that", f"{self.death_in_stay_ceiling_auroc:>12.3f}"),
        ]
        folders = [("export", self.fhir_dir), ("truth", self.truth_path)]
        if self.records_path is not None:
            folders.append(("records", self.records_path.parent))
        if self.claims_path is not None:
            folders.append(("claims", self.claims_path))
        return "\n".join(
            [f"{name:<36}{value}" for name, value in rows]
            + [f"{name:<10}{path}" for name, path in folders]
        )


def simulate_hospital(
    out: str | Path,
    *,
    n_patients: int = 6000,
    seed: int = 0,
    waveform_fraction: float = 0.01,
    claims: bool = False,
    progress: bool | None = None,
) -> HospitalSummary:
    """Simulate a hospital and write its export, its records and the truth.

    A patient depends on the seed and the own number only: the first hundred of a thousand are the
    hundred of a hundred.

    Args:
        out: Folder to write to; must hold no part of a simulated hospital.
        n_patients: Patients to simulate.
        seed: Of the random generators.
        waveform_fraction: Share of stays with a WFDB record of 30 s.
        claims: Whether stays are billed; all other resources are the same with and without.
        progress: Whether to show a bar; by default only on a terminal.

    Raises:
        InputError: A bad argument, or the folder is in use.
    """
    if n_patients < 1 or seed < 0 or not 0.0 <= waveform_fraction <= 1.0:
        raise InputError(
            "a simulated hospital needs n_patients >= 1, seed >= 0, 0 <= waveform_fraction <= 1",
            code="bad_simulation",
            place="simulate_hospital",
            remedy="Correct the argument.",
        )
    root = Path(out)
    fhir_dir = root / "fhir"
    parts = [fhir_dir, root / "wfdb", *sorted(root.glob("truth*.parquet"))]
    old = [p for p in parts if p.is_file() or (p.is_dir() and any(p.iterdir()))]
    if old:
        raise InputError(
            "the output folder already holds a simulated hospital, or a part of one",
            code="output_exists",
            place=str(old[0]),
            remedy="Choose another folder, or remove the old one.",
        )
    start, export = int(WINDOW_START.timestamp()), int(EXPORT_TIME.timestamp())
    truth = TruthTables(export)
    records: list[dict[str, str]] = []
    billed: list[dict[str, Any]] = []
    n_stays = 0
    with (
        FhirWriter(fhir_dir, export=export, zone=ZONE) as writer,
        tqdm(
            range(n_patients),
            desc="simulate",
            unit="patient",
            disable=None if progress is None else not progress,
        ) as numbers,
    ):
        for i in numbers:
            rng = np.random.default_rng([seed, i])
            course = simulate_course(rng, f"sim-{i:06d}", start=start, end=export)
            more: dict[str, list[Resource]] = {}
            if claims:
                # An own generator here too, as for the records below.
                bills = simulate_claims(np.random.default_rng([seed, i, 2]), course.chart)
                stamp = writer.resources.stamp
                more = claim_resources(bills, course.chart, export=export, stamp=stamp)
                billed += claim_truth(bills, course.chart, export=export)
            writer.add(course.chart, more)
            n_stays += sum(e.kind == STAY for e in course.chart.encounters)
            truth.add(course)
            # An own generator: the share of recorded stays must not change the courses.
            waves = np.random.default_rng([seed, i, 1])
            records += _write_records(root / "wfdb", waves, course.chart, export, waveform_fraction)
        writer.finish()
    truth.write(root)
    if claims:
        write_table(claim_truth_table(billed), root / "truth_claims.parquet")
    rates = truth.rates()
    return HospitalSummary(
        n_patients=n_patients,
        n_resources=dict(writer.counts),
        n_stays=n_stays,
        n_discharges=len(truth.terms),
        n_censored=truth.discharges["outcome"].count(CENSORED),
        n_records=len(records),
        readmission_rate=rates["readmission"],
        death_rate=rates["death"],
        ceiling_auroc=rates["ceiling"],
        death_in_stay_rate=rates["death_in_stay"],
        death_in_stay_ceiling_auroc=rates["death_in_stay_ceiling"],
        fhir_dir=fhir_dir,
        truth_path=root / "truth.parquet",
        terms_path=root / "truth_terms.parquet",
        stay_truth_path=root / "truth_stays.parquet",
        records_path=_write_record_index(root / "wfdb", records) if records else None,
        claims_path=root / "truth_claims.parquet" if claims else None,
    )


def _write_records(
    folder: Path, rng: np.random.Generator, chart: Chart, export: int, fraction: float
) -> list[dict[str, str]]:
    """Record ECG and PPG early in a share of the stays.

    Returns:
        Rows of `records.csv`.
    """
    rows: list[dict[str, str]] = []
    for stay in chart.encounters:
        if stay.kind != STAY or rng.random() >= fraction:
            continue
        time = stay.start + int((2.0 + 10.0 * rng.random()) * HOUR)
        if time + RECORD_SECONDS > export:
            continue
        record = f"{chart.patient}-e{stay.number}"
        _write_record(folder, record, rng, chart, stay.number, time)
        rows.append(
            {
                "record": record,
                "subject": chart.patient,
                # Local with its offset, as the export has it: right on either clock.
                "start_time": datetime.fromtimestamp(time, ZONE).isoformat(),
                "encounter": chart.encounter_id(stay.number),
            }
        )
    return rows


def _write_record(
    folder: Path, record: str, rng: np.random.Generator, chart: Chart, number: int, time: int
) -> None:
    from tsfm.simulation.record_writer import write_record
    from tsfm.simulation.waveforms import simulate_beats, simulate_ecg, simulate_ppg

    # Readings to come would tell that the stay goes on.
    charted = [
        m
        for m in chart.measurements.get("heart_rate", ())
        if m.encounter == number and m.time <= time
    ]
    nearest = min(charted, key=lambda m: abs(m.time - time), default=None)
    beats = simulate_beats(
        rng,
        duration_s=RECORD_SECONDS,
        heart_rate_bpm=nearest.value if nearest else 80.0,
        ectopic_fraction=0.04 if "heart_failure" in chart.problems else 0.005,
        atrial_fibrillation="atrial_fibrillation" in chart.problems,
    )
    signals = simulate_ecg(rng, fs_hz=ECG_FS_HZ, duration_s=RECORD_SECONDS, beats=beats)
    rates = dict.fromkeys(signals, ECG_FS_HZ)
    signals["PLETH"] = simulate_ppg(
        rng, fs_hz=PPG_FS_HZ, duration_s=RECORD_SECONDS, beat_times_s=beats.times_s
    )
    rates["PLETH"] = PPG_FS_HZ
    write_record(
        folder,
        record,
        signals,
        fs_hz=rates,
        start_time=datetime.fromtimestamp(time, ZONE).replace(tzinfo=None),
    )


def _write_record_index(folder: Path, records: list[dict[str, str]]) -> Path:
    path = folder / "records.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["record", "subject", "start_time", "encounter"])
        writer.writeheader()
        writer.writerows(records)
    return path
