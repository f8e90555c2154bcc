"""Real exports: MIMIC-IV on FHIR against its counts and its MEDS conversion, and synthetic sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from tsfm import event_table, schema
from tsfm.ingest.fhir_ndjson import ingest_fhir

from .fhir_rows import is_balanced

DEMO_ROWS = {
    "Patient": 100,
    "Encounter": 275 + 222 + 140,
    "Condition": 4506 + 545,
    "Location": 31,
    "Organization": 1,
    "Medication": 1480 + 314,
    "MedicationAdministration": 36131 + 20404,
    "MedicationDispense": 14293 + 1082,
    "MedicationRequest": 17552,
    "MedicationStatement": 2411,
    "Observation": 15280 + 2742 + 338 + 1036 + 1893 + 9362 + 6300,
    "Procedure": 722 + 1260 + 1468,
    "Specimen": 1336 + 11122,
}


def test_the_mimic_demo_is_read_to_the_last_row(
    data_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    meds = pytest.importorskip("meds")
    summary = ingest_fhir(data_dir("mimic-iv-fhir-demo") / "fhir", tmp_path, progress=False)
    assert summary.rows_read == DEMO_ROWS
    assert is_balanced(summary)
    assert summary.n_subjects == 100
    assert summary.quarantined == {"no_value": 1343 + 764, "no_time": 45}
    shards = event_table.shard_paths(tmp_path)
    for shard in shards:
        table = pq.read_table(shard)
        meds.DataSchema.validate(table)
        schema.check_order(table)
    table = pl.concat(list(event_table.scan_events(tmp_path)))
    assert summary.events_by_class["HOSPITAL_ADMISSION"] == 275
    assert summary.events_by_class["HOSPITAL_DISCHARGE"] == 275
    assert summary.events_by_class["ICU_ADMISSION"] == 140
    assert summary.events_by_class["ED_REGISTRATION"] == 222
    assert summary.events_by_class["MEDS_DEATH"] == 31
    assert 10000032 in table["subject_id"]
    assert 22595853 in table["encounter_id"]
    facts = event_table.dataset_facts(tmp_path)
    assert (facts["clock"], facts["data_as_of"], facts["dates_shifted"]) == ("wall", None, True)
    death = table.filter(pl.col("code") == "MEDS_DEATH").select("subject_id", death="time")
    assert (
        table.join(death, on="subject_id")
        .filter(
            pl.col("code").str.starts_with("HOSPITAL_DISCHARGE")
            & (pl.col("time") > pl.col("death"))
        )
        .is_empty()
    )


def test_the_mimic_demo_agrees_with_its_official_meds_conversion(
    data_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    official = pl.read_parquet(data_dir("mimic-iv-demo-meds") / "data" / "*.parquet")
    ingest_fhir(data_dir("mimic-iv-fhir-demo") / "fhir", tmp_path, progress=False)
    ours = pl.concat(list(event_table.scan_events(tmp_path)))
    keys = ["subject_id", "time", "code"]
    for prefix in (
        "HOSPITAL_DISCHARGE//",
        "ICU_ADMISSION//",
        "ICU_DISCHARGE//",
        "INFUSION_END//",  # starts of boluses differ by a minute: FHIR gives their end only
        "SUBJECT_FLUID_OUTPUT//",
        "DIAGNOSIS//ICD//",
        "PROCEDURE//ICD//",
    ):
        theirs = official.filter(pl.col("code").str.starts_with(prefix)).select(keys)
        missing = theirs.join(ours.select(keys), on=keys, how="anti")
        assert theirs.height > 100
        # The FHIR set was cast to a zone with summer time: the hour that it skips moved by one.
        skipped = (pl.col("time").dt.month() == 3) & (pl.col("time").dt.hour() == 2)
        assert missing.filter(~skipped).is_empty(), prefix
        assert missing.height < 10


@pytest.mark.parametrize(
    ("folder", "n_subjects", "set_aside"),
    [
        ("synthea-hiv-bundles", 8, {"no_value": 1}),
        ("synthea-hiv-bulk", 79, {"no_value": 190}),
        ("smart-bulk-10-patients", 13, {"no_resource_type": 4}),
        ("pathling-r4", 9, {}),
        ("us-core-examples", 4, {"no_value": 11, "no_time": 5, "duplicate_resource": 1}),
    ],
)
def test_other_exports_are_read(
    data_dir: Callable[[str], Path],
    tmp_path: Path,
    folder: str,
    n_subjects: int,
    set_aside: dict[str, int],
) -> None:
    summary = ingest_fhir(data_dir("fhir-samples") / folder, tmp_path, progress=False)
    assert summary.n_subjects == n_subjects
    assert summary.quarantined == set_aside
    assert is_balanced(summary)
