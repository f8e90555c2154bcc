"""Small made-up eICU tables in the source's true layout."""

from __future__ import annotations

import csv
from pathlib import Path

import polars as pl

from tsfm import event_table
from tsfm.ingest.eicu import ingest_eicu
from tsfm.ingest.provenance import IngestSummary

_COLUMNS = {
    "patient": """patientunitstayid patienthealthsystemstayid gender age ethnicity hospitalid wardid
        apacheadmissiondx admissionheight hospitaladmittime24 hospitaladmitoffset
        hospitaladmitsource hospitaldischargeyear hospitaldischargetime24 hospitaldischargeoffset
        hospitaldischargelocation hospitaldischargestatus unittype unitadmittime24 unitadmitsource
        unitvisitnumber unitstaytype admissionweight dischargeweight unitdischargetime24
        unitdischargeoffset unitdischargelocation unitdischargestatus uniquepid""",
    "admissiondrug": """admissiondrugid patientunitstayid drugoffset drugenteredoffset drugnotetype
        specialtytype usertype rxincluded writtenineicu drugname drugdosage drugunit
        drugadmitfrequency drughiclseqno""",
    "admissiondx": """admissiondxid patientunitstayid admitdxenteredoffset admitdxpath admitdxname
        admitdxtext""",
    "allergy": """allergyid patientunitstayid allergyoffset allergyenteredoffset allergynotetype
        specialtytype usertype rxincluded writtenineicu drugname allergytype allergyname
        drughiclseqno""",
    "apacheapsvar": """apacheapsvarid patientunitstayid intubated vent dialysis eyes motor verbal
        meds urine wbc temperature respiratoryrate sodium heartrate meanbp ph hematocrit creatinine
        albumin pao2 pco2 bun glucose bilirubin fio2""",
    "apachepatientresult": """apachepatientresultsid patientunitstayid physicianspeciality
        physicianinterventioncategory acutephysiologyscore apachescore apacheversion
        predictedicumortality actualicumortality predictediculos actualiculos
        predictedhospitalmortality actualhospitalmortality predictedhospitallos actualhospitallos
        preopmi preopcardiaccath ptcawithin24h unabridgedunitlos unabridgedhosplos actualventdays
        predventdays unabridgedactualventdays""",
    "apachepredvar": """
        apachepredvarid patientunitstayid sicuday saps3day1 saps3today saps3yesterday gender
        teachtype region bedcount admitsource graftcount meds verbal motor eyes age
        admitdiagnosis thrombolytics diedinhospital aids hepaticfailure lymphoma
        metastaticcancer leukemia immunosuppression cirrhosis electivesurgery activetx readmit
        ima midur ventday1 oobventday1 oobintubday1 diabetes managementsystem var03hspxlos pao2
        fio2 ejectfx creatinine dischargelocation visitnumber amilocation day1meds day1verbal
        day1motor day1eyes day1pao2 day1fio2""",
    "careplangeneral": """cplgeneralid patientunitstayid activeupondischarge cplitemoffset cplgroup
        cplitemvalue""",
    "diagnosis": """diagnosisid patientunitstayid activeupondischarge diagnosisoffset
        diagnosisstring icd9code diagnosispriority""",
    "hospital": "hospitalid numbedscategory teachingstatus region",
    "infusiondrug": """infusiondrugid patientunitstayid infusionoffset drugname drugrate
        infusionrate drugamount volumeoffluid patientweight""",
    "intakeoutput": """intakeoutputid patientunitstayid intakeoutputoffset intaketotal outputtotal
        dialysistotal nettotal intakeoutputentryoffset cellpath celllabel cellvaluenumeric
        cellvaluetext""",
    "lab": """labid patientunitstayid labresultoffset labtypeid labname labresult labresulttext
        labmeasurenamesystem labmeasurenameinterface labresultrevisedoffset""",
    "medication": """medicationid patientunitstayid drugorderoffset drugstartoffset drugivadmixture
        drugordercancelled drugname drughiclseqno dosage routeadmin frequency loadingdose prn
        drugstopoffset gtc""",
    "microlab": """microlabid patientunitstayid culturetakenoffset culturesite organism antibiotic
        sensitivitylevel""",
    "nursecharting": """nursingchartid patientunitstayid nursingchartoffset nursingchartentryoffset
        nursingchartcelltypecat nursingchartcelltypevallabel nursingchartcelltypevalname
        nursingchartvalue""",
    "pasthistory": """pasthistoryid patientunitstayid pasthistoryoffset pasthistoryenteredoffset
        pasthistorynotetype pasthistorypath pasthistoryvalue pasthistoryvaluetext""",
    "respiratorycare": """respcareid patientunitstayid respcarestatusoffset currenthistoryseqnum
        airwaytype airwaysize airwayposition cuffpressure ventstartoffset ventendoffset
        priorventstartoffset priorventendoffset apneaparams""",
    "respiratorycharting": """respchartid patientunitstayid respchartoffset respchartentryoffset
        respcharttypecat respchartvaluelabel respchartvalue""",
    "treatment": """treatmentid patientunitstayid treatmentoffset treatmentstring
        activeupondischarge""",
    "vitalaperiodic": """vitalaperiodicid patientunitstayid observationoffset noninvasivesystolic
        noninvasivediastolic noninvasivemean paop cardiacoutput cardiacinput svr svri pvr pvri""",
    "vitalperiodic": """vitalperiodicid patientunitstayid observationoffset temperature sao2
        heartrate respiration cvp etco2 systemicsystolic systemicdiastolic systemicmean pasystolic
        padiastolic pamean st1 st2 st3 icp""",
}
COLUMNS = {name: columns.split() for name, columns in _COLUMNS.items()}
"""Header of each table."""

UNIT_STAY: dict[str, object] = {
    "patientunitstayid": 11,
    "patienthealthsystemstayid": 7,
    "gender": "Female",
    "age": "64",
    "ethnicity": "Caucasian",
    "hospitalid": 59,
    "hospitaladmittime24": "23:36:00",
    "hospitaladmitoffset": -24,
    "hospitaladmitsource": "Emergency Department",
    "hospitaldischargeyear": 2015,
    "hospitaldischargetime24": "18:00:00",
    "hospitaldischargeoffset": 6840,  # 4 days and 18 hours: the unit admits at midnight
    "hospitaldischargelocation": "Home",
    "hospitaldischargestatus": "Alive",
    "unittype": "MICU",
    "unitadmittime24": "00:00:00",
    "unitadmitsource": "Floor",
    "unitstaytype": "admit",
    "unitdischargetime24": "12:00:00",
    "unitdischargeoffset": 2160,
    "unitdischargelocation": "Floor",
    "unitdischargestatus": "Alive",
    "uniquepid": "002-1039",
}
"""A stay in intensive care from 27 June, 00:00, on the data set's clock, discharged home."""

Rows = list[dict[str, object]]


def unit_stay(**changes: object) -> dict[str, object]:
    """A row of `patient`: `UNIT_STAY` with changes."""
    return {**UNIT_STAY, **changes}


def write_eicu(folder: Path, **tables: Rows) -> Path:
    """Write tables, each with its whole header; rows belong to unit stay 11 if they do not say."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in {"patient": [unit_stay()], **tables}.items():
        with (folder / f"{name}.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS[name], lineterminator="\n")
            writer.writeheader()
            for row in rows:
                own = {} if name == "hospital" else {"patientunitstayid": 11}
                writer.writerow({**own, **row})
    return folder


def read_eicu(
    folder: Path, patient: Rows | None = None, **tables: Rows
) -> tuple[pl.DataFrame, IngestSummary]:
    """Events and summary of tables written to `folder/src`; every row must be accounted for."""
    src = write_eicu(folder / "src", patient=patient or [unit_stay()], **tables)
    summary = ingest_eicu(src, folder / "out", n_shards=1, max_quarantined=1.0)
    for name, rows in tables.items():
        assert summary.rows_read[name] == len(rows)
    accounted = (summary.rows_used, summary.rows_ignored, summary.quarantined)
    assert summary.n_rows == sum(sum(counts.values()) for counts in accounted)
    return pl.concat(event_table.scan_events(folder / "out")), summary
