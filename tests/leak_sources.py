"""Small event tables of every source, and the stays of every task, for the tests of leaks.

Made-up sources need no data; the real ones are demos of a hundred patients, or a few dozen subjects
of a larger release.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tsfm import event_table, schema
from tsfm.ingest.diabetes130 import ingest_diabetes130
from tsfm.ingest.eicu import ingest_eicu
from tsfm.ingest.fhir_ndjson import ingest_fhir
from tsfm.ingest.meds_dataset import ingest_meds
from tsfm.ingest.mimic4 import ingest_mimic4
from tsfm.ingest.physionet2012 import ingest_physionet2012
from tsfm.simulation.hospital import simulate_hospital
from tsfm.tasks.registry import CLAIM_TASKS, CLASS_TASKS, TASKS, find_cohort
from tsfm.tokens.token_store import TokenStore, build_token_store

ROOT = Path(__file__).resolve().parents[1]
KEY = [schema.SUBJECT_ID, schema.PREDICTION_TIME]
ALL_TASKS = (*TASKS, *CLAIM_TASKS, *CLASS_TASKS)
STAYS_A_TASK, N_TAUGHT = 3, 20
MOST_EVENTS = 2500  # a subject: a record of a year in intensive care adds time, not insight


@dataclass(frozen=True)
class LeakSource:
    """A few dozen subjects of a source.

    Attributes:
        events: Whole subjects, those that are audited and those on whom baselines are fitted.
        taught: Stays of other subjects than those of `audited`.
        audited: Stays of every task that has any, each prediction time once.
        tasks: Tasks with a stay among them.
        folder: For what is made on the way.
    """

    events: pl.DataFrame
    taught: pl.DataFrame
    audited: pl.DataFrame
    tasks: tuple[str, ...]
    folder: Path

    @cached_property
    def tokens(self) -> TokenStore:
        """Token store with a vocabulary of all these subjects."""
        subjects = self.events[schema.SUBJECT_ID].unique().to_list()
        with event_table.EventWriter(self.folder / "small", n_shards=1) as writer:
            writer.add(self.events)
            writer.finish(dataset={}, subject_splits=dict.fromkeys(subjects, schema.TRAIN))
        return build_token_store(self.folder / "small", self.folder / "tokens", min_count=2)


def small(root: Path, folder: Path) -> LeakSource:
    """Choose stays of every task, half of the subjects to be audited and half to learn from."""
    lengths = pl.concat(event_table.scan_events(root)).group_by(schema.SUBJECT_ID).len()
    short = lengths.filter(pl.col("len") <= MOST_EVENTS)[schema.SUBJECT_ID].sort()
    own = np.random.default_rng(0).permutation(short.to_numpy())
    is_own = pl.col(schema.SUBJECT_ID).is_in(own[: len(own) // 2].tolist())
    is_other = pl.col(schema.SUBJECT_ID).is_in(own[len(own) // 2 :][:N_TAUGHT].tolist())
    audited: list[pl.DataFrame] = []
    taught: list[pl.DataFrame] = []
    tasks: list[str] = []
    for number, name in enumerate(ALL_TASKS):
        stays = find_cohort(root, name).filter("eligible")
        mine = stays.filter(is_own)
        if mine.height:
            tasks.append(name)
        audited.append(mine.sample(min(STAYS_A_TASK, mine.height), seed=number))
        taught.append(stays.filter(is_other))
    each = {"subset": KEY, "keep": "first", "maintain_order": True}
    chosen, others = (pl.concat(parts).unique(**each) for parts in (audited, taught))
    people = pl.concat([chosen[schema.SUBJECT_ID], others[schema.SUBJECT_ID]]).unique()
    events = pl.concat(event_table.scan_events(root)).filter(
        pl.col(schema.SUBJECT_ID).is_in(people.implode())
    )
    return LeakSource(events, others, chosen, tuple(tasks), folder)


def _benchmark(name: str) -> Any:
    if str(ROOT / "benchmarks") not in sys.path:
        sys.path.insert(0, str(ROOT / "benchmarks"))
    return importlib.import_module(name)


def _made_hospital(work: Path) -> Path:
    simulate_hospital(
        work / "hospital", n_patients=60, seed=5, waveform_fraction=0.0, claims=True, progress=False
    )
    ingest_fhir(work / "hospital" / "fhir", work / "events", progress=False)
    return work / "events"


def _made_meds(work: Path) -> Path:
    """The simulated hospital's event table, read as anybody's MEDS data set."""
    ingest_meds(_made_hospital(work / "first"), work / "events", progress=False)
    return work / "events"


def _made_mimic4(work: Path) -> Path:
    """The two patients of the fixtures, twenty times, with ids of their own."""
    fixtures = ROOT / "tests" / "fixtures" / "mimic4"
    for path in fixtures.rglob("*.csv"):
        rows = pl.read_csv(path, infer_schema_length=0)
        ids = [name for name in ("subject_id", "hadm_id", "stay_id") if name in rows.columns]
        copies = [
            rows.with_columns((pl.col(n).cast(pl.Int64) + 1000 * k).cast(pl.String) for n in ids)
            for k in range(20 if ids else 1)
        ]
        out = work / "tables" / path.relative_to(fixtures)
        out.parent.mkdir(parents=True, exist_ok=True)
        pl.concat(copies).write_csv(out)
    ingest_mimic4(work / "tables", work / "events", progress=False)
    return work / "events"


def _made_eicu(work: Path) -> Path:
    _benchmark("eicu_tables").write_tables(work / "tables", n_stays=60, seed=0)
    ingest_eicu(work / "tables", work / "events", progress=False)
    return work / "events"


def _made_p12(work: Path) -> Path:
    _benchmark("p12_stays").write_stays(work / "stays", n_stays=40, seed=0)
    ingest_physionet2012(work / "stays", work / "events", progress=False)
    return work / "events"


def _made_diabetes(work: Path) -> Path:
    path = _benchmark("diabetes_rows").write_encounters(work / "rows", n_patients=60, seed=0)
    ingest_diabetes130(path, work / "events", progress=False)
    return work / "events"


def _real_p12(src: Path, work: Path) -> Path:
    """The first forty stays of set a."""
    (work / "stays").mkdir()
    first = pl.read_parquet(src / "outcomes-a.parquet")["record_id"].sort().head(40)
    for name in ("observations-a.parquet", "outcomes-a.parquet"):
        rows = pl.read_parquet(src / name).filter(pl.col("record_id").is_in(first.implode()))
        rows.write_parquet(work / "stays" / name)
    ingest_physionet2012(work / "stays", work / "events", progress=False)
    return work / "events"


def _real_diabetes(src: Path, work: Path) -> Path:
    """All encounters of sixty patients who have several."""
    rows = pl.read_csv(src / "diabetic_data_train.csv.gz", infer_schema_length=0)
    often = rows["patient_nbr"].value_counts(sort=False).filter(pl.col("count") > 1)
    first = often["patient_nbr"].sort().head(60)
    (work / "rows").mkdir()
    rows.filter(pl.col("patient_nbr").is_in(first.implode())).write_csv(work / "rows" / "rows.csv")
    shutil.copy(src / "IDs_mapping.csv", work / "rows")
    ingest_diabetes130(work / "rows" / "rows.csv", work / "events", progress=False)
    return work / "events"


def _real_eicu(src: Path, work: Path) -> Path:
    """The first sixty stays."""
    patients = pl.read_csv(src / "patient.csv.gz", infer_schema_length=0)
    first = patients["patientunitstayid"].sort().head(60)
    (work / "tables").mkdir()
    for path in src.glob("*.csv.gz"):
        rows = pl.read_csv(path, infer_schema_length=0)
        if "patientunitstayid" in rows.columns:
            rows = rows.filter(pl.col("patientunitstayid").is_in(first.implode()))
            rows.write_csv(work / "tables" / path.stem)
    ingest_eicu(work / "tables", work / "events", progress=False)
    return work / "events"


def _read_by(ingest: Callable[..., Any]) -> Callable[[Path, Path], Path]:
    def read(src: Path, work: Path) -> Path:
        ingest(src, work / "events", progress=False)
        return work / "events"

    return read


MADE: dict[str, Callable[[Path], Path]] = {
    "simulated hospital": _made_hospital,
    "simulated hospital as MEDS": _made_meds,
    "made-up MIMIC-IV": _made_mimic4,
    "made-up eICU": _made_eicu,
    "made-up PhysioNet 2012": _made_p12,
    "made-up diabetes130": _made_diabetes,
}
"""From a folder to work in to the root of an event table."""

REAL: dict[str, tuple[str, Callable[[Path, Path], Path]]] = {
    "MIMIC-IV on FHIR": ("mimic-iv-fhir-demo/fhir", _read_by(ingest_fhir)),
    "MIMIC-IV": ("mimic-iv-demo", _read_by(ingest_mimic4)),
    "MIMIC-IV as MEDS": ("mimic-iv-demo-meds", _read_by(ingest_meds)),
    "eICU": ("eicu-demo", _real_eicu),
    "PhysioNet 2012": ("physionet2012", _real_p12),
    "diabetes130": ("diabetes130", _real_diabetes),
}
"""Folder below the data, and the same from there."""
