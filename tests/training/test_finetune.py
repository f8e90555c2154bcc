"""One task: labels are read as they are, and a stopped run goes on only with those it had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from tsfm import schema
from tsfm.errors import FormatError, InputError, ModelMismatch
from tsfm.models.checkpoint import load_model
from tsfm.training import loop as training_loop
from tsfm.training.finetune import FinetuneConfig, finetune
from tsfm.training.loop import TrainConfig
from tsfm.training.questions import stays_hash
from tsfm.training.task_answers import score_tasks

TASK = "readmission_30d"
CONFIG = FinetuneConfig(train=TrainConfig(epochs=2, max_tokens=4096))


@pytest.fixture
def cohort(tiny_hospital: Any) -> pl.DataFrame:
    return pl.read_parquet(tiny_hospital.labels / TASK / "cohort.parquet")


class Tuning:
    """Fine-tunings of one model, each into its own folder."""

    def __init__(self, hospital: Any, root: Path) -> None:
        self.hospital, self.root = hospital, root

    def run(self, cohort: pl.DataFrame, name: str = "m") -> dict[str, torch.Tensor]:
        finetune(
            self.hospital.pretrained, self.hospital.tokens, cohort, TASK, self.root / name,
            config=CONFIG, progress=False,
        )  # fmt: skip
        return load_model(self.root / name).model.state_dict()

    def stop(self, cohort: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
        true_save = training_loop.save_checkpoint

        def save_then_stop(*args: Any, **options: Any) -> None:
            true_save(*args, **options)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(training_loop, "save_checkpoint", save_then_stop)
            with pytest.raises(KeyboardInterrupt):
                self.run(cohort)


@pytest.fixture
def tuning(tiny_hospital: Any, tmp_path: Path) -> Tuning:
    return Tuning(tiny_hospital, tmp_path)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_stopped_run_does_not_go_on_with_other_labels(
    tuning: Tuning, cohort: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning.stop(cohort, monkeypatch)
    outcome = pl.col("outcome")
    flipped = cohort.with_columns(
        outcome.replace({"event": "censored", "censored": "event", "none": "event"})
    )
    for other in (flipped, cohort.with_columns(pl.col("outcome_days") + 0.5), cohort.reverse()):
        with pytest.raises(ModelMismatch, match="checkpoint_of_another_run"):
            tuning.run(other)
    assert same(tuning.run(cohort), tuning.run(cohort, "whole"))


def test_whom_when_and_what_name_the_stays(cohort: pl.DataFrame) -> None:
    known = stays_hash(cohort)
    assert stays_hash(cohort.drop("start_time", "encounter_id")) == known
    changes = (
        pl.col(schema.SUBJECT_ID) + 1,
        pl.col(schema.PREDICTION_TIME).dt.offset_by("1us"),
        pl.col("outcome").replace("event", "competing"),
        pl.col("outcome_days") * 2,
    )
    assert known not in [stays_hash(cohort.with_columns(change)) for change in changes]


@pytest.mark.parametrize("days", [float("nan"), float("inf"), None])
def test_stays_of_which_no_days_are_known_teach_nothing(
    tuning: Tuning, cohort: pl.DataFrame, days: float | None
) -> None:
    row = pl.int_range(pl.len()) % 5 == 0
    changed = cohort.with_columns(
        outcome_days=pl.when(row).then(pl.lit(days, pl.Float64)).otherwise("outcome_days")
    )
    without = tuning.run(cohort.filter(~row), "without")
    assert same(tuning.run(changed), without)


def test_outcomes_spelt_otherwise_are_refused_and_those_of_the_schema_are_not(
    tuning: Tuning, cohort: pl.DataFrame
) -> None:
    with pytest.raises(InputError, match="bad_outcome"):
        tuning.run(cohort.with_columns(pl.col("outcome").str.to_uppercase()))
    plain = tuning.run(cohort, "censored")
    respelt = cohort.with_columns(pl.col("outcome").replace("censored", "none"))
    assert same(tuning.run(respelt, "none"), plain)


def test_a_cohort_in_another_unit_is_the_same_and_one_with_a_zone_is_refused(
    tuning: Tuning, cohort: pl.DataFrame
) -> None:
    moment, hospital = pl.col(schema.PREDICTION_TIME), tuning.hospital
    plain = score_tasks(hospital.model, hospital.tokens, {TASK: cohort})[TASK]
    for unit in ("ns", "us"):
        given = cohort.with_columns(moment.cast(pl.Datetime(unit)))
        assert score_tasks(hospital.model, hospital.tokens, {TASK: given})[TASK].equals(plain)
    zoned = cohort.with_columns(moment.dt.replace_time_zone("UTC"))
    with pytest.raises(FormatError, match="wrong_column_type"):
        score_tasks(hospital.model, hospital.tokens, {TASK: zoned})
    with pytest.raises(FormatError, match="wrong_column_type"):
        tuning.run(zoned)
    for name in ("eligible", "outcome", "outcome_days", schema.PREDICTION_TIME):
        with pytest.raises(FormatError, match="missing_column"):
            tuning.run(cohort.drop(name))


def test_scoring_reads_no_outcome(tuning: Tuning, cohort: pl.DataFrame) -> None:
    hospital = tuning.hospital
    plain = score_tasks(hospital.model, hospital.tokens, {TASK: cohort})[TASK]
    for given in (
        cohort.with_columns(pl.col("outcome").str.to_uppercase()),
        cohort.drop("outcome", "outcome_days"),
    ):
        assert score_tasks(hospital.model, hospital.tokens, {TASK: given})[TASK].equals(plain)
