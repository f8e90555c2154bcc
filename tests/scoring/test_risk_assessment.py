"""RiskAssessment resources: valid FHIR, one a scored stay, on one scale."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from tsfm import schema
from tsfm.errors import InputError, ModelMismatch
from tsfm.scoring.risk_assessment import (
    OWN_NUMBERS,
    OutcomeText,
    RiskBands,
    write_risk_assessments,
)

MODEL = "ab" * 32
BANDS = RiskBands(low=0.05, moderate=0.10, high=0.20)
NOW = datetime(2026, 3, 1, 4, 5, 6, tzinfo=UTC)


def make_scores(probabilities: list[float | None], **columns: Any) -> pl.DataFrame:
    """One stay a probability; None is a stay that was not scored."""
    n = len(probabilities)
    frame = pl.DataFrame(
        {
            schema.SUBJECT_ID: range(1, n + 1),
            schema.PREDICTION_TIME: [datetime(2020, 3, 8, 2, 30, i % 60) for i in range(n)],
            schema.ENCOUNTER_ID: range(501, 501 + n),
            "task": ["readmission_30d"] * n,
            "status": ["not_scored" if p is None else "scored" for p in probabilities],
            "reason": ["no_history" if p is None else None for p in probabilities],
            "probability": probabilities,
            "probability_competing": [None if p is None else (1 - p) / 4 for p in probabilities],
            "probability_none": [None if p is None else (1 - p) * 0.75 for p in probabilities],
            "model_hash": [MODEL] * n,
        },
        schema_overrides={
            "reason": pl.String,
            "probability": pl.Float32,
            "probability_competing": pl.Float32,
            "probability_none": pl.Float32,
        },
    )
    return frame.with_columns(**columns)


def write(scores: pl.DataFrame, path: Path, **more: Any) -> list[dict[str, Any]]:
    """Write with plain arguments and read the lines back."""
    arguments: dict[str, Any] = {
        "subject_sources": {1: "pat-1"},
        "encounter_sources": {501: "enc-1"},
        "task": "readmission_30d",
        "model_name": "demo",
        "model_version": "1.2",
        "model_hash": MODEL,
        "bands": BANDS,
        "generated_at": NOW,
        "clock": "utc",
        **more,
    }
    n = write_risk_assessments(scores, path, **arguments)
    lines = path.read_bytes().splitlines()
    assert len(lines) == n
    return [msgspec.json.decode(line) for line in lines]


@pytest.mark.parametrize("clock", ["utc", "wall"])
def test_every_resource_is_valid_fhir(tmp_path: Path, clock: str) -> None:
    from fhir.resources.R4B.riskassessment import RiskAssessment

    draw = np.random.default_rng(5)
    values = [0.0, 1.0, 1e-6, 0.99999, *draw.random(196).tolist()]
    resources = write(make_scores(values), tmp_path / "r.ndjson", clock=clock)
    assert len(resources) == 200
    for resource in resources:
        checked: Any = RiskAssessment.model_validate(resource)
        assert checked.status == "final"
        assert all(0 <= part.probabilityDecimal <= 1 for part in checked.prediction)


def test_the_scale_is_a_fraction_with_four_decimals(tmp_path: Path) -> None:
    resources = write(make_scores([0.0, 1.0, 0.123456]), tmp_path / "r.ndjson")
    decimals = [r["prediction"][0]["probabilityDecimal"] for r in resources]
    assert decimals == [0.0, 1.0, 0.1235]
    assert b'"probabilityDecimal":0.1235' in (tmp_path / "r.ndjson").read_bytes()


@pytest.mark.parametrize(
    ("probability", "decimal", "word"),
    [(0.19996, 0.2, "high"), (0.19994, 0.1999, "moderate"), (0.049951, 0.05, "low")],
)
def test_the_word_is_that_of_the_number_beside_it(
    tmp_path: Path, probability: float, decimal: float, word: str
) -> None:
    told = write(make_scores([probability]), tmp_path / "r.ndjson")[0]["prediction"][0]
    assert told["probabilityDecimal"] == decimal
    assert told["qualitativeRisk"]["coding"][0]["code"] == word


def test_only_scored_stays_have_a_resource(tmp_path: Path) -> None:
    resources = write(make_scores([0.1, None, 0.3, None]), tmp_path / "r.ndjson")
    assert [r["subject"]["identifier"]["value"] for r in resources[1:]] == ["3"]
    assert len(resources) == 2


def test_references_are_the_sources_ids_where_fhir_can_hold_them(tmp_path: Path) -> None:
    resources = write(
        make_scores([0.1, 0.2, 0.3]),
        tmp_path / "r.ndjson",
        subject_sources={1: "pat-1", 2: "MRN 7/8"},
        encounter_sources=None,
    )
    assert resources[0]["subject"] == {"reference": "Patient/pat-1"}
    assert resources[1]["subject"] == {"type": "Patient", "identifier": {"value": "MRN 7/8"}}
    for kind, number, found in (
        ("Patient", "3", resources[2]["subject"]),
        ("Encounter", "501", resources[0]["encounter"]),
    ):
        assert found["type"] == kind
        assert (found["identifier"]["system"], found["identifier"]["value"]) == (
            OWN_NUMBERS,
            number,
        )
        assert found["identifier"]["type"]["text"] == f"{kind} number of tsfm"


def test_a_stay_without_an_encounter_names_none(tmp_path: Path) -> None:
    scores = make_scores([0.1], encounter_id=pl.lit(None, pl.Int64))
    assert "encounter" not in write(scores, tmp_path / "r.ndjson")[0]


def test_the_id_changes_with_each_part_of_the_key_and_with_nothing_else(tmp_path: Path) -> None:
    scores = make_scores([0.1, 0.2])
    first = write(scores, tmp_path / "a.ndjson")
    again = write(
        scores.with_columns(probability=pl.lit(0.4, pl.Float32), probability_none=None),
        tmp_path / "b.ndjson",
        generated_at=datetime(2027, 1, 1, tzinfo=UTC),
    )
    assert [r["id"] for r in first] == [r["id"] for r in again]
    other_model = write(
        scores.with_columns(model_hash=pl.lit("cd" * 32)),
        tmp_path / "c.ndjson",
        model_hash="cd" * 32,
    )
    other_time = write(
        scores.with_columns(pl.col("prediction_time").dt.offset_by("1s")), tmp_path / "d.ndjson"
    )
    words = OutcomeText("Event")
    other_task = write(
        scores.with_columns(task=pl.lit("other")),
        tmp_path / "e.ndjson",
        task="other",
        words=words,
    )
    ids = [r["id"] for r in [*first, *other_model, *other_time, *other_task]]
    assert len(set(ids)) == len(ids)


def test_the_period_is_the_horizon_after_the_prediction_time(tmp_path: Path) -> None:
    resource = write(make_scores([0.1]), tmp_path / "r.ndjson")[0]
    assert resource["occurrenceDateTime"] == "2020-03-08T02:30:00+00:00"
    assert resource["prediction"][0]["whenPeriod"] == {
        "start": "2020-03-08T02:30:00+00:00",
        "end": "2020-04-07T02:30:00+00:00",
    }
    assert resource["meta"]["lastUpdated"] == "2026-03-01T04:05:06+00:00"


def test_an_outcome_without_a_fixed_end_has_an_open_period(tmp_path: Path) -> None:
    scores = make_scores([0.1], task=pl.lit("mortality_in_hospital"))
    resource = write(scores, tmp_path / "r.ndjson", task="mortality_in_hospital")[0]
    assert "end" not in resource["prediction"][0]["whenPeriod"]


def test_a_long_stay_is_about_neither_outcome(tmp_path: Path) -> None:
    task = "length_of_stay_7d"
    scores = make_scores([0.8], task=pl.lit(task), probability_none=pl.lit(0.8, pl.Float32))
    stay, death = write(scores, tmp_path / "r.ndjson", task=task)[0]["prediction"]
    assert "7 days" in stay["outcome"]["text"]
    assert stay["probabilityDecimal"] == 0.8
    assert death["probabilityDecimal"] == 0.05


def test_a_wall_clock_is_said_in_a_note(tmp_path: Path) -> None:
    wall = write(make_scores([0.1]), tmp_path / "w.ndjson", clock="wall")[0]
    utc = write(make_scores([0.1]), tmp_path / "u.ndjson", clock="utc")[0]
    assert "local clock" in wall["note"][0]["text"]
    assert "note" not in utc


def test_the_competing_event_has_its_own_prediction_without_the_events_bands(
    tmp_path: Path,
) -> None:
    resource = write(make_scores([0.2]), tmp_path / "r.ndjson")[0]
    event, competing = resource["prediction"]
    assert event["qualitativeRisk"]["coding"][0]["code"] == "high"
    assert competing["probabilityDecimal"] == 0.2
    assert "qualitativeRisk" not in competing
    alone = make_scores([0.2], probability_competing=pl.lit(None, pl.Float32))
    assert len(write(alone, tmp_path / "s.ndjson")[0]["prediction"]) == 1


@pytest.mark.parametrize(
    ("probability", "word"),
    [(0.0499, "negligible"), (0.05, "low"), (0.0999, "low"), (0.1, "moderate"), (0.2, "high")],
)
def test_each_band_begins_at_its_bound(probability: float, word: str) -> None:
    assert BANDS.word(probability) == word


@pytest.mark.parametrize("bands", [(0.2, 0.1, 0.3), (-0.1, 0.1, 0.3), (0.1, 0.2, 20)])
def test_bands_out_of_order_are_refused(bands: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="bad_risk_bands"):
        RiskBands(*bands)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"task": "unheard_of"}, "unknown_task"),
        ({"clock": "local"}, "unknown_clock"),
        ({"generated_at": datetime(2026, 1, 1)}, "no_time_zone"),
    ],
)
def test_arguments_that_would_be_guessed_are_refused(
    tmp_path: Path, more: dict[str, Any], code: str
) -> None:
    with pytest.raises(InputError, match=code):
        write(make_scores([0.1]), tmp_path / "r.ndjson", **more)


def test_a_row_of_another_model_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "r.ndjson"
    write(make_scores([0.1]), path)
    before = path.read_bytes()
    with pytest.raises(ModelMismatch):
        write(make_scores([0.5], model_hash=pl.lit("cd" * 32)), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.ndjson"]


def test_no_stays_give_an_empty_file(tmp_path: Path) -> None:
    assert write(make_scores([None]), tmp_path / "r.ndjson") == []
