"""What each of eICU's tables says, when it happened and since when it could be known."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from tsfm import codes, event_table
from tsfm.ingest.eicu import ingest_eicu
from tsfm.ingest.provenance import IngestSummary

from .eicu_files import read_eicu, unit_stay

Read = Callable[..., tuple[pl.DataFrame, IngestSummary]]
MIDNIGHT = datetime(2015, 6, 27)  # admission to the unit of the made-up stay
FLOWSHEET = "flowsheet|Flowsheet Cell Labels|I&O|"
HISTORY = "notes/Progress Notes/Past History/"


@pytest.fixture
def read(tmp_path: Path) -> Read:
    return partial(read_eicu, tmp_path)


def rows_of(events: pl.DataFrame) -> list[tuple[object, ...]]:
    """Events of tables other than `patient`: code, minutes of time and knowledge, value, text."""
    own = "^(GENDER|RACE|HOSPITAL_|MEDS_|ICU_|TRANSFER_)"
    minutes = [
        ((pl.col(name) - MIDNIGHT).dt.total_minutes()) for name in ("time", "available_time")
    ]
    found = events.filter(~pl.col("code").str.contains(own))
    return found.select("code", *minutes, "numeric_value", "text_value").rows()


TABLES: dict[str, tuple[list[dict[str, object]], list[tuple[object, ...]]]] = {
    "lab": (
        [
            {"labresultoffset": 60, "labresultrevisedoffset": 95, "labname": "BUN",
             "labresult": 20, "labresulttext": "20", "labmeasurenamesystem": "mg/dL"},
            {"labresultoffset": 70, "labresultrevisedoffset": 65, "labname": "troponin - I",
             "labresult": 0.01, "labresulttext": "<0.01", "labmeasurenamesystem": "ng/mL"},
        ],
        [
            ("LAB//BUN//mg/dL", 60, 95, 20.0, None),
            ("LAB//troponin - I//ng/mL", 70, 70, pytest.approx(0.01), "<0.01"),
        ],
    ),
    "vitalperiodic": (
        [{"observationoffset": 5, "heartrate": 88, "temperature": 37.5, "icp": ""}],
        [
            ("VITAL//LOINC//8310-5//Cel", 5, 5, 37.5, None),
            ("VITAL//LOINC//8867-4///min", 5, 5, 88.0, None),
        ],
    ),
    "vitalaperiodic": (
        [
            {"observationoffset": 5, "noninvasivesystolic": 120, "cardiacoutput": 0},
            {"observationoffset": 6, "cardiacoutput": 0, "cardiacinput": 0},  # ignored
            {"observationoffset": 7, "cardiacoutput": 5.5},
        ],
        [
            ("VITAL//LOINC//8480-6//mm[Hg]", 5, 5, 120.0, None),
            ("VITAL//eICU//cardiacoutput//L/min", 7, 7, 5.5, None),
        ],
    ),
    "nursecharting": (
        [
            {"nursingchartoffset": 10, "nursingchartentryoffset": 25,
             "nursingchartcelltypevallabel": "Heart Rate",
             "nursingchartcelltypevalname": "Heart Rate", "nursingchartvalue": "90"},
            {"nursingchartoffset": 10, "nursingchartentryoffset": 5,
             "nursingchartcelltypevallabel": "Glasgow coma score",
             "nursingchartcelltypevalname": "GCS Total", "nursingchartvalue": "Unable to score"},
            {"nursingchartoffset": 11, "nursingchartcelltypevallabel": "Temperature",
             "nursingchartcelltypevalname": "Temperature (F)", "nursingchartvalue": ""},
        ],
        [
            ("VITAL//LOINC//8867-4///min", 10, 25, 90.0, None),
            ("NURSE_CHARTING//Glasgow coma score//GCS Total", 10, 10, None, "Unable to score"),
        ],
    ),
    "respiratorycharting": (
        [{"respchartoffset": 10, "respchartentryoffset": 12, "respchartvaluelabel": "FiO2",
          "respchartvalue": "40"}],
        [("RESPIRATORY_CHARTING//FiO2", 10, 12, 40.0, None)],
    ),
    "respiratorycare": (
        [
            {"respcarestatusoffset": 50, "airwaytype": "Oral ETT", "airwaysize": "7.5",
             "ventstartoffset": 30, "ventendoffset": 0, "priorventstartoffset": 0},
            {"respcarestatusoffset": 90, "ventstartoffset": 80, "ventendoffset": 0,
             "priorventstartoffset": 30, "priorventendoffset": 60},
            {"respcarestatusoffset": 95, "ventstartoffset": 0},
        ],
        [
            ("VENTILATION//START", 30, 50, None, None),
            ("AIRWAY//Oral ETT", 50, 50, 7.5, None),
            ("VENTILATION//END", 60, 90, None, None),
            ("VENTILATION//START", 80, 90, None, None),
        ],
    ),
    "intakeoutput": (
        [
            {"intakeoutputoffset": 60, "intakeoutputentryoffset": 70, "outputtotal": 150,
             "cellpath": FLOWSHEET + "Output (ml)|Urine", "cellvaluenumeric": 150,
             "cellvaluetext": "150"},
            {"intakeoutputoffset": 61, "cellpath": FLOWSHEET + "Intake (ml)|Crystalloids (ml)|NS",
             "cellvaluenumeric": 1.06, "cellvaluetext": "1.056"},
            {"intakeoutputoffset": 62, "cellpath": FLOWSHEET + "Weight|Bodyweight (lb)",
             "cellvaluenumeric": 100, "cellvaluetext": "100"},
            {"intakeoutputoffset": 62, "cellpath": FLOWSHEET + "Weight|Bodyweight (kg)",
             "cellvaluenumeric": 45.4, "cellvaluetext": "45.4"},
            {"intakeoutputoffset": 63, "cellpath": FLOWSHEET + "Other|X", "cellvaluetext": "a"},
        ],
        [
            ("SUBJECT_FLUID_OUTPUT//Urine//ml", 60, 70, 150.0, None),
            ("SUBJECT_FLUID_INTAKE//Crystalloids (ml)//NS//ml", 61, 61, pytest.approx(1.056), None),
            ("VITAL//LOINC//29463-7//kg", 62, 62, pytest.approx(45.359237), None),
            ("INTAKE_OUTPUT//Other//X", 63, 63, None, "a"),
        ],
    ),
    "microlab": (
        [
            {"culturetakenoffset": 10, "culturesite": "Blood", "organism": "E. coli",
             "antibiotic": "gentamicin", "sensitivitylevel": "Sensitive"},
            {"culturetakenoffset": 10, "culturesite": "Blood", "organism": "E. coli",
             "antibiotic": "ampicillin", "sensitivitylevel": "Resistant"},
            {"culturetakenoffset": 10, "culturesite": "Urine", "organism": "no growth"},
        ],
        [
            ("MICROBIOLOGY_TEST//Blood", 10, 7210, None, None),
            ("MICROBIOLOGY_ORGANISM//E. coli", 10, 7210, None, None),
            ("MICROBIOLOGY_SUSCEPTIBILITY//gentamicin//S", 10, 7210, None, None),
            ("MICROBIOLOGY_SUSCEPTIBILITY//ampicillin//R", 10, 7210, None, None),
            ("MICROBIOLOGY_TEST//Urine", 10, 7210, None, "no growth"),
        ],
    ),
    "infusiondrug": (
        [
            {"infusionoffset": 5, "drugname": "Heparin (units/hr)", "drugrate": 900,
             "patientweight": 70},
            {"infusionoffset": 5, "drugname": "Insulin (units/hr)", "drugrate": "ERROR",
             "patientweight": 70},
            # The flow of the pump is not in the unit of the name.
            {"infusionoffset": 6, "drugname": "Norepinephrine (mcg/kg/min)", "infusionrate": 15},
            {"infusionoffset": 7, "drugname": "Norepinephrine (mcg/kg/min)", "drugrate": "OFF",
             "infusionrate": 15},
            {"infusionoffset": 8, "drugname": "Norepinephrine (mcg/kg/min)", "drugrate": 0.1,
             "infusionrate": 15},
            {"infusionoffset": 9, "drugname": "Propofol"},
        ],
        [
            ("INFUSION_RATE//Heparin (units/hr)", 5, 5, 900.0, None),
            ("SUBJECT_WEIGHT_AT_INFUSION//KG", 5, 5, 70.0, None),
            ("INFUSION_RATE//Insulin (units/hr)", 5, 5, None, "ERROR"),
            ("INFUSION_FLOW//Norepinephrine//mL/h", 6, 6, 15.0, None),
            ("INFUSION_RATE//Norepinephrine (mcg/kg/min)", 7, 7, None, "OFF"),
            ("INFUSION_RATE//Norepinephrine (mcg/kg/min)", 8, 8, pytest.approx(0.1), None),
            ("INFUSION_RATE//Propofol", 9, 9, None, None),
        ],
    ),
    "treatment": (
        [{"treatmentoffset": 5, "treatmentstring": "renal|dialysis|for chronic renal failure",
          "activeupondischarge": "True"}],
        [("TREATMENT//renal//dialysis//for chronic renal failure", 5, 5, None, None)],
    ),
    "diagnosis": (
        [
            {"diagnosisoffset": 5, "diagnosisstring": "a|b", "icd9code": "038.9, R65.20, K72.0"},
            {"diagnosisoffset": 6, "diagnosisstring": "a|b", "icd9code": "276.2, E87.2"},
            {"diagnosisoffset": 7, "diagnosisstring": "a|b", "icd9code": "E980.0, V62.84"},
            {"diagnosisoffset": 8, "diagnosisstring": "a|b / c", "icd9code": ""},
        ],
        [
            ("DIAGNOSIS//ICD//10//R6520", 5, 5, None, None),
            ("DIAGNOSIS//ICD//10//K720", 5, 5, None, None),
            ("DIAGNOSIS//ICD//10//E872", 6, 6, None, None),
            ("DIAGNOSIS//ICD//9//E9800", 7, 7, None, None),
            ("DIAGNOSIS//ICD//9//V6284", 7, 7, None, None),
            ("DIAGNOSIS//eICU//a//b / c", 8, 8, None, None),
        ],
    ),
    "pasthistory": (
        [{"pasthistoryoffset": 5, "pasthistoryenteredoffset": 9,
          "pasthistorypath": HISTORY + "Organ Systems/Pulmonary/Asthma/asthma"}],
        [("PAST_HISTORY//Organ Systems//Pulmonary//Asthma//asthma", 5, 9, None, None)],
    ),
    "admissiondx": (
        [{"admitdxenteredoffset": 30, "admitdxpath": "admission diagnosis|Elective|Yes"}],
        [("ADMISSION_DIAGNOSIS//Elective//Yes", 30, 30, None, None)],
    ),
    "allergy": (
        [{"allergyoffset": 5, "allergyenteredoffset": 8, "allergytype": "Non Drug",
          "allergyname": "latex"}],
        [("ALLERGY//Non Drug//latex", 5, 8, None, None)],
    ),
    "admissiondrug": (
        [
            {"drugoffset": 5, "drugenteredoffset": 8, "drugname": "ASPIRIN", "drugdosage": 81,
             "drugunit": "mg"},
            {"drugoffset": 5, "drugenteredoffset": 8, "drugname": "NORCO", "drugdosage": 0},
        ],
        [
            ("MEDICATION//ASPIRIN//STATED", 5, 8, 81.0, "mg"),
            ("MEDICATION//NORCO//STATED", 5, 8, None, None),
        ],
    ),
    "medication": (
        [
            {"drugorderoffset": 10, "drugstartoffset": 5, "drugstopoffset": 60, "drugname": "A",
             "drugordercancelled": "No", "dosage": "1,000 mL"},
            # Cancelled: ordered, but it never began.
            {"drugorderoffset": 20, "drugstartoffset": 25, "drugstopoffset": 30, "drugname": "B",
             "drugordercancelled": "Yes", "dosage": "5 3"},
            # No name but a HICL number; 0 is no stop.
            {"drugorderoffset": 30, "drugstartoffset": 35, "drugstopoffset": 0,
             "drughiclseqno": 8255, "drugordercancelled": "No"},
            # Planned beyond the discharge: the stop never came.
            {"drugorderoffset": 40, "drugstartoffset": 45, "drugstopoffset": 525600,
             "drugname": "D", "drugordercancelled": "No", "dosage": "40 mg"},
        ],
        [
            ("MEDICATION//START//A", 5, 10, None, None),
            ("MEDICATION//A//ORDERED", 10, 10, 1000.0, "mL"),
            ("MEDICATION//B//ORDERED", 20, 20, None, "5 3"),
            ("MEDICATION//HICL 8255//ORDERED", 30, 30, None, None),
            ("MEDICATION//START//HICL 8255", 35, 35, None, None),
            ("MEDICATION//D//ORDERED", 40, 40, 40.0, "mg"),
            ("MEDICATION//START//D", 45, 45, None, None),
            ("MEDICATION//STOP//A", 60, 60, None, None),
        ],
    ),
    "apacheapsvar": (
        [{"heartrate": 133, "wbc": -1, "vent": 0}],
        [
            ("APACHE//APS//vent", 1440, 1440, 0.0, None),
            ("APACHE//APS//heartrate", 1440, 1440, 133.0, None),
        ],
    ),
    "apachepredvar": (
        [{"admitdiagnosis": "DKA", "diabetes": 1, "aids": 0, "ejectfx": -1, "diedinhospital": 1,
          "dischargelocation": 4}],
        [
            ("APACHE//admitdiagnosis//DKA", 1440, 1440, None, None),
            ("APACHE//diabetes", 1440, 1440, None, None),
        ],
    ),
    "apachepatientresult": (
        [
            {"apacheversion": "IV", "apachescore": 47, "predictedhospitalmortality": "3.7E-2",
             "actualhospitalmortality": "EXPIRED", "actualhospitallos": 4.7, "ptcawithin24h": 1},
            {"apacheversion": "IVa", "apachescore": 47, "predictedhospitalmortality": -1,
             "unabridgedunitlos": 1.5, "actualventdays": 3, "ptcawithin24h": 1},
        ],
        [
            ("APACHE//IV//apachescore", 1440, 1440, 47.0, None),
            ("APACHE//IV//predictedhospitalmortality", 1440, 1440, pytest.approx(0.037), None),
            ("APACHE//ptcawithin24h", 1440, 1440, None, None),
            ("APACHE//IVa//apachescore", 1440, 1440, 47.0, None),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_each_table_says_what_and_when_and_since_when_known(read: Read, name: str) -> None:
    rows, expected = TABLES[name]
    events, summary = read(**{name: rows})
    assert rows_of(events) == expected
    assert summary.quarantined == {}


def test_apache_is_never_known_before_its_day_is_over_even_if_the_patient_left(
    read: Read,
) -> None:
    stay = unit_stay(hospitaldischargetime24="06:00:00", hospitaldischargeoffset=360)
    events, _ = read([stay], apacheapsvar=[{"heartrate": 133}])
    (row,) = events.filter(pl.col("code").str.starts_with("APACHE")).iter_rows(named=True)
    assert row["time"] == datetime(2015, 7, 1, 6)  # the end of the stay
    assert row["available_time"] == datetime(2015, 7, 2)


def test_nothing_written_in_hindsight_reaches_an_event(tmp_path: Path) -> None:
    hindsight: dict[str, dict[str, object]] = {
        "diagnosis": {"activeupondischarge": "True"},
        "treatment": {"activeupondischarge": "True"},
        "apachepatientresult": {
            "actualicumortality": "EXPIRED",
            "actualhospitalmortality": "EXPIRED",
            "actualiculos": 9.5,
            "actualhospitallos": 9.5,
            "unabridgedunitlos": 9.5,
            "unabridgedhosplos": 9.5,
            "actualventdays": 9.5,
            "unabridgedactualventdays": 9.5,
        },
        "apachepredvar": {"diedinhospital": 1, "dischargelocation": 9},
    }
    rows = {name: [dict(TABLES[name][0][0])] for name in hindsight}
    plain, _ = read_eicu(tmp_path / "plain", **rows)
    for name, more in hindsight.items():
        rows[name][0].update(more)
    told, _ = read_eicu(tmp_path / "told", **rows)
    assert told.equals(plain)


def test_events_do_not_depend_on_where_chunks_are_cut(read: Read, tmp_path: Path) -> None:
    rows = [dict(row) for row in TABLES["respiratorycare"][0] * 40]
    whole, _ = read(respiratorycare=rows)
    ingest_eicu(tmp_path / "src", tmp_path / "cut", n_shards=1, block_bytes=1 << 10)
    assert pl.concat(event_table.scan_events(tmp_path / "cut")).equals(whole)


def test_the_demo_is_read_whole_and_its_clock_shows_the_hours_of_the_source(
    data_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    src = data_dir("eicu-demo")
    summary = ingest_eicu(src, tmp_path / "out")
    events = pl.concat(event_table.scan_events(tmp_path / "out"))
    patient = pl.read_csv(src / "patient.csv.gz", infer_schema_length=0)
    n_unit_stays = {
        name: patient.filter(pl.col("unitstaytype").eq("stepdown/other").eq(is_stepdown)).height
        for name, is_stepdown in ((codes.ICU_ADMISSION, False), ("TRANSFER_TO", True))
    }
    stays = patient.unique("patienthealthsystemstayid")
    assert stays.height == 2174
    died = stays.filter(pl.col("hospitaldischargestatus") == "Expired").height
    for name, n in {
        **n_unit_stays,
        codes.ADMISSION: stays.height,
        codes.DISCHARGE: stays.drop_nulls("hospitaldischargestatus").height,
        codes.DEATH: died,
        "HOSPITAL_SITE": stays.height,
        "TREATMENT": 38290,
        "INFUSION_RATE": 38256,
        "PAST_HISTORY": 12109,
        "ADMISSION_DIAGNOSIS": 7578,
        "ALLERGY": 2475,
        "MICROBIOLOGY_SUSCEPTIBILITY": 139,
    }.items():
        assert summary.events_by_class[name] == n
    assert summary.n_subjects == stays.height
    accounted = (summary.rows_used, summary.rows_ignored, summary.quarantined)
    assert summary.n_rows == 597_831 == sum(sum(counts.values()) for counts in accounted)
    assert summary.quarantined == {}
    timed = events.filter(pl.col("time").is_not_null())
    assert (timed["available_time"] >= timed["time"]).all()
    # The clock's hours are those that the source writes beside its minutes.
    units = patient.filter(pl.col("unitstaytype") != "stepdown/other")
    for code, hours in (
        (codes.ADMISSION, stays["hospitaladmittime24"]),
        (codes.ICU_ADMISSION, units["unitadmittime24"]),
        (codes.ICU_DISCHARGE, units["unitdischargetime24"]),
    ):
        ours = events.filter(pl.col("code").str.starts_with(code))["time"]
        assert ours.dt.strftime("%H:%M").sort().to_list() == hours.str.head(5).sort().to_list()
