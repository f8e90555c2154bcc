"""Scoring: every eligible stay once, nothing from the future, no stay scored out of nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tsfm import event_table, schema
from tsfm.errors import ModelMismatch
from tsfm.evaluation.recalibration import KINDS, fit_recalibration
from tsfm.models.checkpoint import load_model, save_model
from tsfm.models.heads import CompetingHazards
from tsfm.scoring.batch_score import score_events
from tsfm.scoring.predictions import check_scores
from tsfm.tasks.cohorts import Followup
from tsfm.training.task_answers import score_tasks

TASK = "readmission_30d"
KEY = [schema.SUBJECT_ID, schema.PREDICTION_TIME]


def test_outcomes_that_add_up_to_a_little_more_than_one_leave_no_negative_rest(
    tiny_hospital: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounded(self: Any, log_hazard: torch.Tensor, horizon_days: float) -> torch.Tensor:
        event = torch.linspace(0.1, 0.9, len(log_hazard))
        return torch.stack([event, 1 - event + 6e-8], 1)

    monkeypatch.setattr(CompetingHazards, "cumulative_incidence", rounded)
    found = score_events(load_model(tiny_hospital.model), tiny_hospital.events, TASK)
    check_scores(found.scores)
    assert found.scores.filter(pl.col("status") == "scored")["probability_none"].max() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_what_the_stored_map_makes_of_the_raw_one(
    tiny_hospital: Any, tmp_path: Path, kind: str
) -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 0.5, 400)
    found = fit_recalibration(kind, rng.random(400) < 1.5 * p, p)
    model = load_model(tiny_hospital.model)
    save_model(
        tmp_path / "model", model.model, model.vocabulary, model.scale, facts=model.facts,
        calibration={TASK: found.as_dict()},
    )  # fmt: skip
    mapped = load_model(tmp_path / "model")
    raw = score_events(replace(model, calibration={}), tiny_hospital.events, TASK).scores
    scores = score_events(mapped, tiny_hospital.events, TASK).scores
    check_scores(scores)
    expected = found.apply(raw["probability"].to_numpy())
    np.testing.assert_allclose(scores["probability"].to_numpy(), expected, rtol=1e-5)
    cohort = pl.read_parquet(tiny_hospital.labels / TASK / "cohort.parquet")
    several = score_tasks(mapped, tiny_hospital.tokens, {TASK: cohort})[TASK].sort(KEY)
    np.testing.assert_allclose(several["probability"].to_numpy(), expected, rtol=1e-3)


def rewrite(root: Path, out: Path, change: Any) -> None:
    """Write a changed copy of an event table with the same metadata."""
    with event_table.EventWriter(out, n_shards=2) as writer:
        for shard in event_table.scan_events(root):
            writer.add(change(shard))
        writer.finish(
            dataset=event_table.dataset_facts(root),
            subject_splits=event_table.subject_splits(root),
            subject_ids=event_table.subject_ids(root),
        )


def test_every_eligible_stay_comes_out_once(tiny_hospital: Any) -> None:
    found = score_events(load_model(tiny_hospital.model), tiny_hospital.events, TASK)
    eligible = found.cohort.filter("eligible").select(KEY).sort(KEY)
    assert found.scores.select(KEY).sort(KEY).equals(eligible)
    scored = found.scores.filter(pl.col("status") == "scored")
    assert scored.height > 0
    total = scored.select(pl.sum_horizontal(pl.col("^probability.*$")))["probability"]
    np.testing.assert_allclose(total.to_numpy(), 1.0, atol=1e-5)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_leak_audit_every_later_event_changed_and_no_score_moves(
    tiny_hospital: Any, tmp_path: Path, share: float
) -> None:
    model = load_model(tiny_hospital.model)
    before = score_events(model, tiny_hospital.events, TASK, followup=Followup("complete"))
    times = before.scores[schema.PREDICTION_TIME].sort()
    cut = times[int(share * len(times))]

    def scramble(shard: pl.DataFrame) -> pl.DataFrame:
        later = pl.col(schema.AVAILABLE_TIME) > cut
        # What decides the cohort itself is kept; every other later fact becomes another one.
        keep = pl.col(schema.CODE).str.contains("HOSPITAL_|MEDS_")
        others = shard.filter(pl.col(schema.CODE).str.contains("^LAB|^DIAGNOSIS|^MEDICATION"))
        drawn = others[schema.CODE].sample(shard.height, with_replacement=True, seed=5)
        return shard.with_columns(
            pl.when(later & ~keep).then(drawn).otherwise(pl.col(schema.CODE)).alias(schema.CODE),
            pl.when(later)
            .then(-99.0)
            .otherwise(pl.col(schema.NUMERIC_VALUE))
            .alias(schema.NUMERIC_VALUE),
        )

    rewrite(tiny_hospital.events, tmp_path / "changed", scramble)
    after = score_events(model, tmp_path / "changed", TASK, followup=Followup("complete"))
    early = pl.col(schema.PREDICTION_TIME) <= cut
    first, second = (s.scores.filter(early).sort(KEY) for s in (before, after))
    assert first.height > 10
    assert first.equals(second)  # bit for bit
    late_before, late_after = (s.scores.filter(~early).sort(KEY) for s in (before, after))
    assert not late_before["probability"].equals(late_after["probability"])


def test_a_hospital_with_other_codes_is_not_scored_as_low_risk(
    tiny_hospital: Any, tmp_path: Path
) -> None:
    def rename(shard: pl.DataFrame) -> pl.DataFrame:
        keep = pl.col(schema.CODE).str.contains("HOSPITAL_|MEDS_")
        return shard.filter(keep).with_columns(pl.col(schema.CODE))

    rewrite(tiny_hospital.events, tmp_path / "bare", rename)
    model = load_model(tiny_hospital.model)
    found = score_events(model, tmp_path / "bare", TASK)
    assert found.scores.height == found.cohort.filter("eligible").height


def test_a_model_without_the_task_is_named(tiny_hospital: Any) -> None:
    with pytest.raises(ModelMismatch) as caught:
        score_events(load_model(tiny_hospital.pretrained), tiny_hospital.events, TASK)
    assert caught.value.code == "task_not_trained"


def test_scores_do_not_depend_on_how_subjects_are_packed(tiny_hospital: Any) -> None:
    model = load_model(tiny_hospital.model)
    wide = score_events(model, tiny_hospital.events, TASK).scores
    narrow = score_events(model, tiny_hospital.events, TASK, max_tokens=1).scores
    np.testing.assert_allclose(
        wide["probability"].to_numpy(), narrow["probability"].to_numpy(), rtol=1e-4, atol=1e-6
    )
