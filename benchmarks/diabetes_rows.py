"""Made-up encounters in the layout of Diabetes 130-US hospitals, to run the benchmark alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from tsfm.ingest.diabetes130_tables import DRUGS

_MAPPING = """admission_type_id,description
1,Emergency
3,Elective
,
discharge_disposition_id,description
1,Discharged to home
3,Discharged/transferred to SNF
11,Expired
,
admission_source_id,description
1,Physician Referral
7,Emergency Room
"""


def write_encounters(folder: Path, n_patients: int, seed: int) -> Path:
    """Write `encounters.csv` and `IDs_mapping.csv`; those with more visits are back sooner.

    Args:
        folder: Made if missing.
        n_patients: Patients, with one to four encounters each.
        seed: Of all chance.

    Returns:
        The file of encounters.
    """
    rng = np.random.default_rng(seed)
    patient = np.repeat(1000 + np.arange(n_patients), rng.integers(1, 5, n_patients))
    n = len(patient)
    visits = rng.poisson(1.0, n)
    back = rng.random(n) < 0.1 + 0.1 * visits
    last = np.r_[patient[1:] != patient[:-1], True]
    columns = {
        "encounter_id": 10_000 + 7 * np.arange(n), "patient_nbr": patient,
        "race": rng.choice(["Caucasian", "?"], n), "gender": rng.choice(["Female", "Male"], n),
        "age": rng.choice(["[60-70)", "[70-80)"], n), "weight": np.full(n, "?"),
        "admission_type_id": rng.choice(["1", "3"], n),
        "discharge_disposition_id": np.where(last & (rng.random(n) < 0.05), "11", "1"),
        "admission_source_id": rng.choice(["1", "7"], n),
        "time_in_hospital": rng.integers(1, 14, n), "payer_code": np.full(n, "?"),
        "medical_specialty": rng.choice(["?", "Cardiology"], n),
        "num_lab_procedures": rng.integers(1, 90, n), "num_procedures": rng.integers(0, 6, n),
        "num_medications": rng.integers(1, 40, n), "number_outpatient": rng.poisson(0.3, n),
        "number_emergency": rng.poisson(0.2, n), "number_inpatient": visits,
        "diag_1": rng.choice(["428", "250.02", "V57"], n), "diag_2": rng.choice(["414", "585"], n),
        "diag_3": rng.choice(["401", "?"], n), "number_diagnoses": rng.integers(1, 10, n),
        "max_glu_serum": np.full(n, "None"), "A1Cresult": rng.choice(["None", ">8"], n),
        **{drug: rng.choice(["No", "Steady"], n) for drug in DRUGS},
        "change": rng.choice(["No", "Ch"], n), "diabetesMed": np.full(n, "Yes"),
        "readmitted": np.where(back, "<30", np.where(last, "NO", ">30")),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_csv(folder / "encounters.csv")
    (folder / "IDs_mapping.csv").write_text(_MAPPING)
    return folder / "encounters.csv"
