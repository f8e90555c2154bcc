"""What the road from an export to a report leaves on disk, judged by those who will read it."""

from __future__ import annotations

import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from tsfm import event_table, schema
from tsfm.signals.store import SignalStore

TASKS = ("readmission_30d", "mortality_in_hospital", "length_of_stay_7d")
TASK = TASKS[0]
KEY = [schema.SUBJECT_ID, schema.PREDICTION_TIME]


def test_nothing_but_results_on_stdout_and_nothing_on_stderr(road: Any) -> None:
    for name, ended in road.said.items():
        assert ended.stderr == "", name
        assert ended.stdout.strip(), name
        assert "sim-" not in ended.stdout, name  # the simulated patients' ids


def test_events_and_metadata_are_meds(road: Any) -> None:
    meds = pytest.importorskip("meds")
    shards = event_table.shard_paths(road / "events")
    for shard in shards:
        table = pq.read_table(shard)
        meds.DataSchema.validate(table)
        schema.check_order(table)
    metadata = road / "events" / "metadata"
    meds.CodeMetadataSchema.validate(pq.read_table(metadata / "codes.parquet"))
    meds.SubjectSplitSchema.validate(pq.read_table(metadata / "subject_splits.parquet"))
    meds.DatasetMetadataSchema.validate(json.loads((metadata / "dataset.json").read_text()))
    counted = road.table("events/metadata/codes.parquet")["n_events"].sum()
    assert counted == sum(pq.read_metadata(shard).num_rows for shard in shards)


def test_waveforms_join_the_patients_and_stays_of_the_table(road: Any) -> None:
    before = pl.concat(event_table.scan_events(road / "events_without_signals"))
    after = pl.concat(event_table.scan_events(road / "events"))
    store = SignalStore(road / "events")
    store.verify()
    new = after.filter(pl.col("signal_id").is_not_null())
    assert new.height == after.height - before.height > 0
    assert set(new["code"]) == {"ECG//2", "PPG"}
    assert set(new["signal_id"]) == set(store.index["signal_id"])
    assert set(new["encounter_id"]) <= set(before["encounter_id"])
    assert event_table.subject_splits(road / "events") == event_table.subject_splits(
        road / "events_without_signals"
    )


def test_every_event_is_one_token(road: Any) -> None:
    events = pl.concat(event_table.scan_events(road / "events"))
    config = json.loads((road / "tokens" / "config.json").read_text())
    assert config["n_tokens"] == events.height
    assert config["n_exact"] + config["n_fallback"] + config["n_unknown"] == events.height
    assert f"{events.height:,}" in road.said["tokenize"].stdout


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_meds_and_every_stay_is_accounted_for(road: Any, task: str) -> None:
    meds = pytest.importorskip("meds")
    labels = road / "labels" / task / "labels.parquet"
    meds.LabelSchema.validate(pq.read_table(labels))
    cohort = road.table(f"labels/{task}/cohort.parquet")
    summary = json.loads(road.said[f"label {task}"].stdout)
    assert summary["n_stays"] == cohort.height
    assert summary["n_stays"] == summary["n_eligible"] + sum(summary["not_eligible"].values())
    known = summary["n_positive"] + summary["n_negative"]
    assert (
        known == pq.read_metadata(labels).num_rows == summary["n_eligible"] - summary["n_unknown"]
    )
    assert cohort.filter(pl.col("eligible") == pl.col("reason").is_not_null()).is_empty()


def test_the_stays_asked_about_are_the_simulated_discharges_with_their_true_outcomes(
    road: Any,
) -> None:
    ids = road.table("events/metadata/subject_ids.parquet")
    truth = road.table("hospital/truth.parquet").rename({"patient_id": "source_id"})
    truth = truth.join(ids, on="source_id").rename({"discharge_time": schema.PREDICTION_TIME})
    cohort = road.table(f"labels/{TASK}/cohort.parquet").filter("eligible")
    both = cohort.join(truth, on=KEY, suffix="_true")
    assert both.height == cohort.height == truth.height > 50
    words = {"readmission": "event", "death": "competing"}
    happened = pl.col("outcome_true").is_in(list(words))
    wrong = both.filter(happened & (pl.col("outcome") != pl.col("outcome_true").replace(words)))
    assert wrong.is_empty()
    labels = road.table(f"labels/{TASK}/labels.parquet")
    readmitted = truth.filter(pl.col("outcome") == "readmission").select(KEY)
    assert labels.filter("boolean_value").select(KEY).sort(KEY).equals(readmitted.sort(KEY))


def test_one_score_row_for_each_eligible_stay_and_the_books_balance(road: Any) -> None:
    eligible = road.table(f"labels/{TASK}/cohort.parquet").filter("eligible").select(KEY).sort(KEY)
    scores = road.table("run/scores.parquet")
    assert scores.select(KEY).sort(KEY).equals(eligible)
    scored = scores.filter(pl.col("status") == "scored")
    counts = road.run["counts"]
    assert counts["eligible"] == eligible.height
    assert counts["scored"] == scored.height
    assert counts["scored"] + sum(counts["not_scored"].values()) == counts["eligible"]
    cohort = road.table(f"labels/{TASK}/cohort.parquet")
    assert sum(counts["not_eligible"].values()) == cohort.height - eligible.height
    assert scores.filter(
        (pl.col("status") == "scored") & pl.col("probability").is_null()
    ).is_empty()


def test_a_run_names_its_inputs_and_outputs_by_their_contents(road: Any) -> None:
    for root, digests in (
        (road / "events", road.run["inputs"]),
        (road / "run", road.run["outputs"]),
    ):
        assert digests
        for name, digest in digests.items():
            assert hashlib.sha256((root / name).read_bytes()).hexdigest() == digest, name
    model = road / "model" / "manifest.json"
    assert road.run["model_hash"] == hashlib.sha256(model.read_bytes()).hexdigest()


def test_predictions_are_those_of_meds_evaluation(road: Any) -> None:
    prediction_schema = pytest.importorskip("meds_evaluation.schema").PredictionSchema
    prediction_schema.validate(pq.read_table(road / "run" / "predictions.parquet"))
    predictions = road.table("run/predictions.parquet")
    labels = road.table(f"labels/{TASK}/labels.parquet").sort(KEY)
    assert predictions.select(*KEY, "boolean_value").sort(KEY).equals(labels)
    scores = road.table("run/scores.parquet").select(*KEY, "probability")
    both = predictions.join(scores, on=KEY)
    assert both["predicted_boolean_probability"].equals(both["probability"], check_names=False)


def test_risk_assessments_are_valid_fhir_of_the_exports_own_patients(road: Any) -> None:
    resource = pytest.importorskip("fhir.resources.R4B.riskassessment").RiskAssessment
    lines = (road / "run" / "risk_assessments.ndjson").read_text().splitlines()
    scores = road.table("run/scores.parquet").filter(pl.col("status") == "scored")
    assert len(lines) == scores.height
    found = [resource.model_validate_json(line) for line in lines]
    assert len({one.id for one in found}) == len(found)
    patients = {
        json.loads(line)["id"]
        for file in (road / "hospital" / "fhir").glob("Patient*")
        for line in file.read_text().splitlines()
    }
    assert {one.subject.reference.removeprefix("Patient/") for one in found} <= patients
    told = sorted(float(one.prediction[0].probabilityDecimal) for one in found)
    assert told == pytest.approx(sorted(scores["probability"].to_list()), abs=5.1e-5)


class Page(HTMLParser):
    """Tags of a page, and every place that it would fetch something from."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name.split(":")[-1] in {"src", "href", "srcset", "data", "action", "poster"}:
                self.fetched.append(value or "")


def test_the_report_is_one_file_that_fetches_nothing_and_names_nobody(road: Any) -> None:
    text = (road / "run" / "report.html").read_text()
    page = Page(text)
    assert "svg" in page.tags
    assert not page.tags & {"script", "link", "iframe", "img", "object"}
    assert all(place.startswith("#") for place in page.fetched), page.fetched
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "sim-" not in text
    assert "20%" in text  # the capacity that `tsfm report` was given


def test_a_run_is_judged_beside_the_baselines_on_held_out_subjects(road: Any) -> None:
    found = json.loads(road.said["evaluate"].stdout)
    assert set(found["models"]) == {"model", "LACE", "HOSPITAL", "Boosted counts"}
    splits = event_table.subject_splits(road / "events")
    labels = road.table(f"labels/{TASK}/labels.parquet")
    held_out = [splits[subject] == "held_out" for subject in labels[schema.SUBJECT_ID]]
    assert {model["n"] for model in found["models"].values()} == {sum(held_out)}
    assert json.loads((road / "run" / "evaluation.json").read_text()) == found
