"""Made-up stays in the layout of eICU's tables, to run the benchmark without its data."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

N_HOSPITALS, N_SHARED = 12, 2
_FIRST_UNIT, _FIRST_STAY, _FIRST_PERSON = 200_001, 100_001, 1001

# Level in health, what illness adds to it, spread between patients: columns of `apacheapsvar`.
_APS = {
    "eyes": (4.0, -0.6, 0.3), "motor": (6.0, -0.7, 0.3), "verbal": (5.0, -0.7, 0.3),
    "urine": (1900.0, -350.0, 500.0), "wbc": (10.0, 2.5, 3.0), "temperature": (36.8, -0.2, 0.5),
    "respiratoryrate": (20.0, 5.0, 6.0), "sodium": (138.0, 0.5, 4.0),
    "heartrate": (92.0, 10.0, 15.0), "meanbp": (80.0, -9.0, 14.0), "ph": (7.38, -0.04, 0.05),
    "hematocrit": (34.0, -1.0, 5.0), "creatinine": (1.2, 0.5, 0.4), "albumin": (3.0, -0.3, 0.5),
    "pao2": (110.0, -12.0, 30.0), "pco2": (40.0, 1.0, 8.0), "bun": (22.0, 9.0, 8.0),
    "glucose": (140.0, 12.0, 40.0), "bilirubin": (0.9, 0.5, 0.5), "fio2": (45.0, 10.0, 15.0),
}  # fmt: skip
_WHOLE = {
    "eyes": (1, 4), "motor": (1, 6), "verbal": (1, 5), "respiratoryrate": (4, 60),
    "sodium": (110, 170), "heartrate": (20, 200), "meanbp": (30, 180), "bun": (2, 200),
    "glucose": (30, 600), "fio2": (21, 100),
}  # fmt: skip
"""Columns that hold whole numbers, and between which."""
_SELDOM = {"ph", "pao2", "pco2", "fio2", "albumin", "bilirubin"}
_SIGNS = (
    "thrombolytics", "aids", "hepaticfailure", "lymphoma", "metastaticcancer", "leukemia",
    "immunosuppression", "cirrhosis", "electivesurgery", "activetx", "readmit", "ima", "midur",
    "ventday1", "oobventday1", "oobintubday1", "diabetes",
)  # fmt: skip
_ORGANS = {
    "Cardiovascular": ("CHF", "cardiovascular|ventricular disorders|congestive heart failure",
                       "428.0, I50.9"),
    "Respiratory": ("PNEUMBACT", "pulmonary|pulmonary infections|pneumonia", "486, J18.9"),
    "Neurologic": ("CVASTROKE", "neurologic|disorders of vasculature|stroke", "434.91, I63.50"),
    "Genitourinary": ("SEPSISUTI", "infectious diseases|systemic|sepsis", "038.9, A41.9"),
}  # fmt: skip
"""Organ system of the admission: APACHE's word, the staff's diagnosis and its codes."""
_TREATMENTS = {
    "pulmonary|ventilation and oxygenation|mechanical ventilation": 1.2,
    "cardiovascular|shock|vasopressors|norepinephrine > 0.1 micrograms/kg/min": 1.5,
    "renal|dialysis|hemodialysis": 1.0,
    "gastrointestinal|medications|stress ulcer prophylaxis|pantoprazole": 0.1,
    "endocrine|glucose metabolism|insulin|sliding scale administration": 0.0,
}
"""What is done, and how much more often to the ill."""
_INFUSIONS = {
    "Norepinephrine (mcg/min)": (1.5, 8.0), "Propofol (mcg/kg/min)": (0.8, 25.0),
    "Fentanyl (mcg/hr)": (0.4, 75.0), "Insulin (units/hr)": (0.2, 3.0),
}  # fmt: skip
"""What is infused, how much more often into the ill, and at which rate."""


def write_tables(folder: Path, n_stays: int, seed: int) -> None:
    """Write the tables that the benchmark reads, as csv.gz under the source's names.

    A hidden illness moves measurements, treatments and APACHE's prediction; a patient dies about as
    often as is predicted, and a little more often by what APACHE does not see. The last stays are
    of patients who had an earlier one in another hospital; each other stay is a patient's only one.

    Args:
        folder: Made if missing.
        n_stays: Unit stays, each a hospital stay of its own.
        seed: Of all chance.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    ill, unseen = rng.normal(size=(2, n_stays))
    log_odds = -1.6 + 1.3 * ill
    died = rng.random(n_stays) < _chance(log_odds + 0.5 * unseen)
    left = rng.integers(1500, 12_000, n_stays)  # minutes from unit admission to unit discharge
    patient = _patients(rng, n_stays, died, left)
    unit = patient["patientunitstayid"].to_numpy()
    organ = rng.choice(list(_ORGANS), n_stays)
    tables = {
        "patient": patient,
        "apachepatientresult": _results(rng, unit, ill, log_odds, died),
        "apacheapsvar": _measurements(rng, unit, ill),
        "apachepredvar": _predictors(rng, unit, organ),
        "vitalaperiodic": _vitals(rng, unit, ill + unseen, left),
        "infusiondrug": _infusions(rng, unit, ill),
        "treatment": _treatments(rng, unit, ill),
        "diagnosis": _diagnoses(rng, unit, organ),
        "admissiondx": _admission_diagnoses(rng, unit, organ),
    }
    for name, table in tables.items():
        with gzip.GzipFile(folder / f"{name}.csv.gz", "wb", mtime=0) as stream:
            stream.write(table.write_csv().encode())


def _patients(
    rng: np.random.Generator, n: int, died: NDArray[np.bool_], left: NDArray[np.int64]
) -> pl.DataFrame:
    person, hospital = (
        _FIRST_PERSON + np.arange(n),
        50 + rng.permutation(np.arange(n)) % N_HOSPITALS,
    )
    person[-N_SHARED:] = person[:N_SHARED]
    hospital[-N_SHARED:] = 50 + (hospital[:N_SHARED] - 50 + 1) % N_HOSPITALS
    weight = np.round(rng.normal(82, 18, n).clip(40, 180), 1)
    return pl.DataFrame(
        {
            "patientunitstayid": _FIRST_UNIT + np.arange(n),
            "patienthealthsystemstayid": _FIRST_STAY + np.arange(n),
            "gender": rng.choice(["Female", "Male"], n),
            "age": rng.choice([*map(str, range(30, 90)), "> 89"], n),
            "ethnicity": rng.choice(["Caucasian", "African American", "Hispanic"], n),
            "hospitalid": hospital,
            "admissionheight": np.round(rng.normal(169, 10, n), 1),
            "hospitaladmitoffset": -rng.integers(5, 900, n),
            "hospitaladmitsource": rng.choice(["Emergency Department", "Floor"], n),
            "hospitaldischargeyear": rng.choice([2014, 2015], n),
            "hospitaldischargetime24": [f"{h:02d}:{h % 6}0:00" for h in rng.integers(0, 24, n)],
            "hospitaldischargeoffset": left + rng.integers(0, 4000, n) * ~died,
            "hospitaldischargelocation": np.where(died, "Death", "Home"),
            "hospitaldischargestatus": np.where(died, "Expired", "Alive"),
            "unittype": rng.choice(["Med-Surg ICU", "MICU", "SICU"], n),
            "unitadmitsource": rng.choice(["Emergency Department", "Operating Room"], n),
            "unitstaytype": np.full(n, "admit"),
            "admissionweight": weight,
            "dischargeweight": np.where(rng.random(n) < 0.3, weight + 1.0, np.nan),
            "unitdischargeoffset": left,
            "unitdischargelocation": np.where(died, "Death", "Floor"),
            "unitdischargestatus": np.where(died, "Expired", "Alive"),
            "uniquepid": [f"002-{number}" for number in person],
        }
    ).with_columns(pl.col("dischargeweight").fill_nan(None))


def _results(
    rng: np.random.Generator, unit: NDArray[np.int64], ill: NDArray[np.float64],
    log_odds: NDArray[np.float64], died: NDArray[np.bool_],
) -> pl.DataFrame:  # fmt: skip
    """Two rows a stay; a few stays have no prediction, which the source writes as -1."""
    predicted = np.where(rng.random(len(unit)) < 0.05, -1.0, _chance(log_odds))
    versions = []
    for version, shift in (("IV", 0.02), ("IVa", 0.0)):
        risk = np.where(predicted < 0, predicted, (predicted + shift).clip(0.001, 0.999))
        versions.append(
            pl.DataFrame(
                {
                    "patientunitstayid": unit,
                    "acutephysiologyscore": np.round(40 + 20 * ill).clip(0).astype(int),
                    "apachescore": np.round(55 + 22 * ill).clip(0).astype(int),
                    "apacheversion": np.full(len(unit), version),
                    "predictedicumortality": np.where(risk < 0, risk, 0.7 * risk),
                    "predictediculos": np.round(2.5 + ill.clip(-2), 3),
                    "predictedhospitalmortality": risk,
                    "actualhospitalmortality": np.where(died, "EXPIRED", "ALIVE"),
                    "predictedhospitallos": np.round(7 + 2 * ill.clip(-3), 3),
                    "preopmi": np.zeros(len(unit), int),
                    "preopcardiaccath": (rng.random(len(unit)) < 0.05).astype(int),
                    "ptcawithin24h": np.zeros(len(unit), int),
                    "predventdays": np.where(ill > 1, np.round(2 + ill, 2), np.nan),
                }
            ).with_columns(pl.col("predventdays").fill_nan(None))
        )
    return pl.concat(versions)


def _measurements(
    rng: np.random.Generator, unit: NDArray[np.int64], ill: NDArray[np.float64]
) -> pl.DataFrame:
    n = len(unit)
    columns: dict[str, Any] = {"patientunitstayid": unit}
    for name, slope in (("intubated", 1.0), ("vent", 1.0), ("dialysis", 0.8)):
        columns[name] = (rng.random(n) < _chance(slope * ill - 1.5)).astype(int)
    columns["meds"] = np.zeros(n, int)
    for name, (level, slope, spread) in _APS.items():
        value = level + slope * ill + rng.normal(0, spread, n)
        low, high = _WHOLE.get(name, (0.05 * level, 8.0 * level))
        value = np.round(value.clip(low, high), 0 if name in _WHOLE else 2)
        columns[name] = np.where(rng.random(n) < (0.5 if name in _SELDOM else 0.05), -1, value)
    return pl.DataFrame(columns)


def _predictors(
    rng: np.random.Generator, unit: NDArray[np.int64], organ: NDArray[np.str_]
) -> pl.DataFrame:
    n = len(unit)
    return pl.DataFrame(
        {
            "patientunitstayid": unit,
            "admitdiagnosis": [_ORGANS[name][0] for name in organ],
            "ejectfx": np.where(rng.random(n) < 0.1, rng.integers(20, 70, n), -1),
            **{name: (rng.random(n) < 0.08).astype(int) for name in _SIGNS},
        }
    )


def _vitals(
    rng: np.random.Generator, unit: NDArray[np.int64], ill: NDArray[np.float64],
    left: NDArray[np.int64],
) -> pl.DataFrame:  # fmt: skip
    """Cuff pressures every hour or two, over two days at most."""
    times = [np.arange(int(rng.integers(5, 60)), min(end, 2880), 75) for end in left.tolist()]
    stay = np.repeat(np.arange(len(unit)), [len(found) for found in times])
    n = len(stay)
    mean = np.round((78 - 7 * ill[stay] + rng.normal(0, 9, n)).clip(25, 160)).astype(int)
    nothing = pl.lit(None, dtype=pl.Float64)
    seldom = ("paop", "cardiacoutput", "cardiacinput", "svr", "svri", "pvr", "pvri")
    return pl.DataFrame(
        {
            "patientunitstayid": unit[stay],
            "observationoffset": np.concatenate(times),
            "noninvasivesystolic": mean + rng.integers(25, 60, n),
            "noninvasivediastolic": mean - rng.integers(5, 20, n),
            "noninvasivemean": mean,
        }
    ).with_columns(nothing.alias(name) for name in seldom)


def _infusions(
    rng: np.random.Generator, unit: NDArray[np.int64], ill: NDArray[np.float64]
) -> pl.DataFrame:
    parts = []
    for drug, (slope, rate) in _INFUSIONS.items():
        given = np.flatnonzero(rng.random(len(unit)) < _chance(slope * ill - 1.0))
        stay = np.repeat(given, rng.integers(1, 7, len(given)))
        rates = np.round(rate * np.exp(rng.normal(0, 0.4, len(stay))), 2)
        parts.append(
            pl.DataFrame(
                {
                    "patientunitstayid": unit[stay],
                    "infusionoffset": rng.integers(10, 2400, len(stay)),
                    "drugname": np.full(len(stay), drug),
                    "drugrate": rates,
                    "infusionrate": rates,
                }
            ).with_columns(patientweight=pl.lit(None, dtype=pl.Float64))
        )
    return pl.concat(parts)


def _treatments(
    rng: np.random.Generator, unit: NDArray[np.int64], ill: NDArray[np.float64]
) -> pl.DataFrame:
    given = [rng.random(len(unit)) < _chance(slope * ill - 0.7) for slope in _TREATMENTS.values()]
    return _entered(rng, unit, "treatmentoffset", "treatmentstring", list(_TREATMENTS), given)


def _diagnoses(
    rng: np.random.Generator, unit: NDArray[np.int64], organ: NDArray[np.str_]
) -> pl.DataFrame:
    paths = {path: icd for _, path, icd in _ORGANS.values()}
    own = np.array([_ORGANS[name][1] for name in organ])
    given = [(own == path) | (rng.random(len(unit)) < 0.1) for path in paths]
    rows = _entered(rng, unit, "diagnosisoffset", "diagnosisstring", list(paths), given)
    return rows.with_columns(icd9code=pl.col("diagnosisstring").replace_strict(paths))


def _admission_diagnoses(
    rng: np.random.Generator, unit: NDArray[np.int64], organ: NDArray[np.str_]
) -> pl.DataFrame:
    paths = [f"admission diagnosis|Non-operative Organ Systems|Organ System|{n}" for n in _ORGANS]
    given = [organ == name for name in _ORGANS]
    return _entered(rng, unit, "admitdxenteredoffset", "admitdxpath", paths, given)


def _entered(
    rng: np.random.Generator, unit: NDArray[np.int64], time: str, column: str,
    words: Sequence[str], given: Sequence[NDArray[np.bool_]],
) -> pl.DataFrame:  # fmt: skip
    """A row a stay and word that it was given, entered within the first day and a half."""
    stay = np.concatenate([np.flatnonzero(there) for there in given])
    return pl.DataFrame(
        {
            "patientunitstayid": unit[stay],
            time: rng.integers(5, 2200, len(stay)),
            column: np.repeat(np.array(words), [int(there.sum()) for there in given]),
        }
    )


def _chance(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-log_odds))
