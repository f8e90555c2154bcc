"""Three roads to the same patients: FHIR, the hospital's tables and MEDS tell one story.

The 100 patients of the MIMIC-IV demo exist in three forms made by three parties. What they share
must come out of `ingest_fhir`, `ingest_mimic4` and `ingest_meds` as the same events. They do not
share everything, and each difference is named by a test here:

* FHIR lacks omr, DRG, HCPCS and all services but the first, and says no admission type but a
  priority or class; its transfers have no event type; only transfers within a stay are in it.
* FHIR adds the emergency department: 222 visits, 545 diagnoses, 1260 procedures. They are
  encounters of their own. The demo's tables have no `ed/`, only the arrivals of those admitted.
* FHIR's ICU events belong to the ICU stay, the tables' to the hospital stay.
* FHIR's birth is the day of the first transfer less the age; the others' is a first of January.
* Deaths: FHIR has a date, which becomes the discharge of that day if the patient died in hospital;
  MIMIC's tables have the hour of deaths in hospital and end of the day else; MEDS has midnight.
* MEDS does not say when facts were known, nor which stay they belong to: a procedure dated outside
  its stay (5 of 722) can't be matched with it.
* MEDS drops repeated rows. FHIR has no release times of microbiology.
* FHIR's stamps went through a time zone with summer time: an hour that does not exist there moved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tsfm import event_table

Roads = dict[str, pl.DataFrame]
Rows = Counter[tuple[Any, ...]]


@pytest.fixture(scope="module")
def roads(data_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Roads:
    from tsfm.ingest.fhir_ndjson import ingest_fhir
    from tsfm.ingest.meds_dataset import ingest_meds
    from tsfm.ingest.mimic4 import ingest_mimic4

    sources = {
        "fhir": data_dir("mimic-iv-fhir-demo") / "fhir",
        "csv": data_dir("mimic-iv-demo"),
        "meds": data_dir("mimic-iv-demo-meds"),
    }
    out = tmp_path_factory.mktemp("roads")
    ingest_fhir(sources["fhir"], out / "fhir")
    ingest_mimic4(sources["csv"], out / "csv")
    ingest_meds(sources["meds"], out / "meds")
    return {name: pl.concat(event_table.scan_events(out / name)) for name in sources}


def rows(events: pl.DataFrame, pattern: str, *columns: str) -> Rows:
    """Rows of all codes that match, with how often each is there."""
    found = events.filter(pl.col("code").str.contains(pattern))
    return Counter(found.select("subject_id", *columns).rows())


def in_hospital(events: pl.DataFrame) -> pl.DataFrame:
    """Events of hospital stays: not those of the emergency department or of an ICU stay's own."""
    stays = events.filter(pl.col("code").str.starts_with("HOSPITAL_ADMISSION"))["encounter_id"]
    return events.filter(pl.col("encounter_id").is_in(stays.implode()))


def test_the_same_100_subjects(roads: Roads) -> None:
    subjects = [set(events["subject_id"]) for events in roads.values()]
    assert subjects[0] == subjects[1] == subjects[2]
    assert len(subjects[0]) == 100


@pytest.mark.parametrize(("pattern", "n"), [("^DIAGNOSIS//", 4506), ("^PROCEDURE//ICD//", 722)])
def test_the_same_codes_in_the_same_stays_known_at_the_same_time(
    roads: Roads, pattern: str, n: int
) -> None:
    columns = ("code", "encounter_id", "time", "available_time")
    fhir = rows(in_hospital(roads["fhir"]), pattern, *columns)
    tables = rows(roads["csv"], pattern, *columns)
    assert fhir == tables
    assert tables.total() == n
    assert rows(roads["csv"], pattern, "code", "time") == rows(
        roads["meds"], pattern, "code", "time"
    )


def test_meds_knows_when_codes_were_known_but_for_dates_outside_their_stay(roads: Roads) -> None:
    columns = ("code", "time", "available_time")
    for pattern, n_different in (("^DIAGNOSIS//", 0), ("^DRG//", 0), ("^PROCEDURE//ICD//", 5)):
        tables = rows(roads["csv"], pattern, *columns)
        assert (tables - rows(roads["meds"], pattern, *columns)).total() == n_different


def test_fhir_adds_the_codes_of_the_emergency_department(roads: Roads) -> None:
    inside = rows(in_hospital(roads["fhir"]), "^DIAGNOSIS//").total()
    assert rows(roads["fhir"], "^DIAGNOSIS//").total() - inside == 545
    assert rows(roads["fhir"], "^ED_REGISTRATION").total() == 222


def test_the_same_hospital_stays(roads: Roads) -> None:
    for pattern, n in (("^HOSPITAL_ADMISSION", 275), ("^HOSPITAL_DISCHARGE", 275)):
        stays = rows(roads["csv"], pattern, "time")
        assert stays.total() == n
        assert stays == rows(roads["fhir"], pattern, "time") == rows(roads["meds"], pattern, "time")
        assert rows(roads["csv"], pattern, "encounter_id") == rows(
            roads["fhir"], pattern, "encounter_id"
        )
    assert (
        rows(roads["csv"], "^HOSPITAL_DISCHARGE", "code", "time")
        == rows(roads["fhir"], "^HOSPITAL_DISCHARGE", "code", "time")
        == rows(roads["meds"], "^HOSPITAL_DISCHARGE", "code", "time")
    )


def test_meds_stays_found_by_order_are_those_of_the_tables(roads: Roads) -> None:
    bounds = pl.col("code").str.contains("^HOSPITAL_(ADMISSION|DISCHARGE)")
    pairs = [
        Counter(
            roads[name]
            .filter(bounds)
            .group_by("subject_id", "encounter_id")
            .agg(pl.col("time").min().alias("start"), pl.col("time").max().alias("end"))
            .select("subject_id", "start", "end")
            .rows()
        )
        for name in ("csv", "meds")
    ]
    assert pairs[0] == pairs[1]
    assert pairs[0].total() == 275


def test_admission_types_are_words_in_tables_and_meds_and_priorities_in_fhir(roads: Roads) -> None:
    code = ("code", "time")
    tables = rows(roads["csv"], "^HOSPITAL_ADMISSION", *code)
    assert tables == rows(roads["meds"], "^HOSPITAL_ADMISSION", *code)
    source = pl.col("code").str.split("//").list.last().alias("source")
    same_source = [
        rows(roads[name].with_columns(source), "^HOSPITAL_ADMISSION", "source", "time")
        for name in ("csv", "fhir")
    ]
    assert same_source[0] == same_source[1]


def test_the_same_icu_stays(roads: Roads) -> None:
    for pattern in ("^ICU_ADMISSION", "^ICU_DISCHARGE"):
        stays = rows(roads["csv"], pattern, "code", "time")
        assert stays.total() == 140
        assert stays == rows(roads["fhir"], pattern, "code", "time")
        assert stays == rows(roads["meds"], pattern, "code", "time")


def test_deaths_on_the_same_day_and_never_before_the_end_of_a_stay_in_the_tables(
    roads: Roads,
) -> None:
    days = [
        rows(events.with_columns(pl.col("time").dt.date().alias("day")), "^MEDS_DEATH", "day")
        for events in roads.values()
    ]
    assert days[0] == days[1] == days[2]
    assert days[0].total() == 31
    for name in ("csv", "fhir"):
        deaths = roads[name].filter(pl.col("code") == "MEDS_DEATH")
        ends = roads[name].filter(pl.col("code").str.starts_with("HOSPITAL_DISCHARGE"))
        late = deaths.join(ends, on="subject_id").filter(pl.col("time") < pl.col("time_right"))
        assert late.height == 0, name


def test_births_in_the_same_year_and_the_same_sex(roads: Roads) -> None:
    births = [
        rows(events.with_columns(pl.col("time").dt.year().alias("year")), "^MEDS_BIRTH", "year")
        for events in roads.values()
    ]
    assert births[0] == births[1] == births[2]
    first_of_january = rows(roads["csv"], "^MEDS_BIRTH", "time")
    assert first_of_january == rows(roads["meds"], "^MEDS_BIRTH", "time")
    sexes = [rows(events, "^GENDER", "code") for events in roads.values()]
    assert sexes[0] == sexes[1] == sexes[2]


def test_the_same_fluids_charted_dates_and_microbiology_in_fhir_and_tables(roads: Roads) -> None:
    for pattern, columns in {
        "^SUBJECT_FLUID_OUTPUT//": ("code", "time", "numeric_value"),
        "^CHART_DATE//": ("code", "time", "available_time"),
        "^MICROBIOLOGY_ORGANISM//": ("code", "time"),
        "^MICROBIOLOGY_TEST//": ("time",),  # a coded answer is part of FHIR's code
    }.items():
        assert rows(roads["fhir"], pattern, *columns) == rows(roads["csv"], pattern, *columns)
    known = ("code", "time", "available_time")
    fhir = rows(roads["fhir"], "^SUBJECT_FLUID_OUTPUT//", *known)
    tables = rows(roads["csv"], "^SUBJECT_FLUID_OUTPUT//", *known)
    assert (fhir - tables).total() == 1  # stored in the hour that summer time skips


def test_microbiology_is_known_when_it_was_filed_where_the_source_says_when(roads: Roads) -> None:
    organisms = roads["csv"].filter(pl.col("code").str.contains("^MICROBIOLOGY_ORGANISM"))
    days = (organisms["available_time"] - organisms["time"]).dt.total_hours() / 24
    assert float(days.quantile(0.1) or 0.0) > 1.0  # a culture takes days
    assert (days >= 0).all()


@pytest.mark.parametrize(
    "pattern",
    [
        r"^TRANSFER_TO//",
        r"^DRG//",
        r"^SUBJECT_FLUID_OUTPUT//",
        r"^MEDICATION//(START|STOP)//",
        r"^(ED_REGISTRATION|ED_OUT)$",
        r"^(Weight|Height|BMI)",
    ],
)
def test_the_same_further_events_in_tables_and_meds_but_for_repeats(
    roads: Roads, pattern: str
) -> None:
    # Names differ in runs of blanks, which ours makes one.
    one_blank = pl.col("code").str.replace_all(r"\s+", " ").str.strip_chars()
    meds = roads["meds"].with_columns(one_blank)
    assert set(rows(roads["csv"], pattern, "code", "time")) == set(
        rows(meds, pattern, "code", "time")
    )


def test_bedside_procedures_of_the_tables_are_in_fhir_and_meds(roads: Roads) -> None:
    # The tables' copy of these was damaged, so it has fewer.
    pattern = "^PROCEDURE//(START|END)//"
    tables = set(rows(roads["csv"], pattern, "code", "time"))
    assert tables < set(rows(roads["fhir"], pattern, "code", "time"))
    assert tables < set(rows(roads["meds"], pattern, "code", "time"))


def test_what_a_road_has_alone(roads: Roads) -> None:
    classes = {
        name: set(events["code"].str.split("//").list.first()) for name, events in roads.items()
    }
    assert {"DRG", "Weight (Lbs)", "Blood Pressure"} <= (
        classes["csv"] & classes["meds"]
    ) - classes["fhir"]
    assert "SERVICE" in (classes["csv"] & classes["fhir"]) - classes["meds"]
    assert {"VITAL", "OBSERVATION", "SPECIMEN"} <= classes["fhir"] - classes["csv"]
    assert {"LAB", "HCPCS"} <= classes["meds"] - classes["csv"]  # absent from the tables' copy
