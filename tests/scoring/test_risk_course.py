"""A risk course says at every moment what a scoring run at that moment would have said."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tsfm import event_table, schema
from tsfm.batches.dataset import CohortIndex, batches_of
from tsfm.errors import InputError, ModelMismatch
from tsfm.evaluation.calibration import LogisticLine, logit, recalibrate
from tsfm.models.checkpoint import ModelDirectory, load_model
from tsfm.scoring.batch_score import score_events
from tsfm.scoring.risk_course import COLUMNS, risk_course
from tsfm.tasks.registry import task_named
from tsfm.tokens.event_tokens import tokenize_events

TASK = "readmission_30d"


@pytest.fixture(scope="module")
def directory(tiny_hospital: Any) -> ModelDirectory:
    found = load_model(tiny_hospital.model)
    return replace(found, calibration={TASK: {"slope": 0.9, "offset": -0.2}})


@pytest.fixture(scope="module")
def events(tiny_hospital: Any) -> pl.DataFrame:
    return event_table.read_events(event_table.shard_paths(tiny_hospital.events)[0])


@pytest.fixture(scope="module")
def course(directory: ModelDirectory, events: pl.DataFrame) -> pl.DataFrame:
    return risk_course(directory, events, TASK)


def score_by_itself(
    directory: ModelDirectory, events: pl.DataFrame, subject: int, moment: datetime
) -> float:
    """Risk from nothing but the events known at a moment, in a pass of its own."""
    known = pl.col("available_time").is_null() | (pl.col("available_time") <= moment)
    own = events.filter((pl.col("subject_id") == subject) & known)
    asked = pl.DataFrame(
        {"subject_id": subject, "prediction_time": moment, "outcome": None, "outcome_days": 1.0}
    )
    task, model = task_named(TASK), directory.model
    tokens = tokenize_events(own, directory.vocabulary, directory.scale)
    (batch,) = batches_of(tokens, directory.scale, max_tokens=10**6)
    points = CohortIndex.create(asked).points_in(batch)
    hazard = model.log_hazard(TASK, model(batch), points.position, points.elapsed_hours)
    raw = model.task_head(TASK).cumulative_incidence(hazard, task.horizon_days)[:, 0]
    stored = directory.calibration[TASK]
    line = LogisticLine(intercept=stored["offset"], slope=stored["slope"])
    return float(recalibrate(raw.detach().numpy(), line)[0])


def test_a_course_equals_scoring_at_each_moment(
    directory: ModelDirectory, events: pl.DataFrame, course: pl.DataFrame
) -> None:
    settled = course.filter("settled")
    some = settled.sample(25, seed=1)
    for row in some.iter_rows(named=True):
        alone = score_by_itself(directory, events, row["subject_id"], row["time"])
        assert row["probability"] == pytest.approx(alone, rel=1e-5)


def test_a_course_ends_with_the_score_of_the_nightly_run(
    directory: ModelDirectory, tiny_hospital: Any
) -> None:
    scores = score_events(directory, tiny_hospital.events, TASK).scores
    course = risk_course(directory, tiny_hospital.events, TASK)
    last = course.filter("settled").group_by("subject_id", "start_time").last()
    both = scores.join(
        last, left_on=["subject_id", "prediction_time"], right_on=["subject_id", "time"]
    )
    assert both.height > 50
    np.testing.assert_allclose(
        both["probability"].to_numpy(), both["probability_right"].to_numpy(), rtol=1e-4
    )


def test_every_newly_known_event_of_a_stay_has_one_row(
    events: pl.DataFrame, course: pl.DataFrame
) -> None:
    assert dict(course.schema) == COLUMNS
    subject, start = course.row(len(course) // 2)[0], course["start_time"][len(course) // 2]
    own = course.filter((pl.col("subject_id") == subject) & (pl.col("start_time") == start))
    known = events.filter(
        (pl.col("subject_id") == subject)
        & pl.col("available_time").is_between(start, own["time"].max())
    )
    assert own.height >= known.height > 3
    assert sorted(own.filter(pl.col("time") > start)["code"]) == sorted(
        known.filter(pl.col("available_time") > start)["code"]
    )
    log_odds = logit(own["probability"].to_numpy())
    np.testing.assert_allclose(own["log_odds_change"][1:].to_numpy(), np.diff(log_odds), atol=1e-9)
    assert own["log_odds_change"][0] is None
    assert own["n_new"].to_list() == [1] * own.height
    for _, tied in own.group_by("time"):
        assert tied["settled"].to_list() == [False] * (tied.height - 1) + [True]


def test_later_events_move_nothing_before_them(
    directory: ModelDirectory, events: pl.DataFrame, course: pl.DataFrame
) -> None:
    cut = course["time"].sort()[len(course) // 2]
    later = (pl.col("available_time") > cut) & pl.col("code").str.contains("^LAB|^VITAL")
    changed = events.with_columns(
        pl.when(later).then(-9.0).otherwise(pl.col("numeric_value")).alias("numeric_value")
    )
    after = risk_course(directory, changed, TASK)
    early = pl.col("time") <= cut
    assert after.filter(early).equals(course.filter(early))
    assert not after.equals(course)


def test_regular_moments_let_the_risk_flow_between_events(
    directory: ModelDirectory, events: pl.DataFrame, course: pl.DataFrame
) -> None:
    subject = course["subject_id"][0]
    grid = risk_course(directory, events, TASK, subjects=[subject], every=timedelta(hours=5))
    assert grid["subject_id"].unique().to_list() == [subject]
    assert grid["settled"].all()
    for (start,), stay in grid.group_by("start_time", maintain_order=True):
        hours = (stay["time"] - start).dt.total_microseconds() / 3.6e9
        assert hours.to_list() == [5.0 * i for i in range(stay.height)]
    row = grid.filter(pl.col("n_new") == 0).row(0, named=True)
    alone = score_by_itself(directory, events, subject, row["time"])
    assert row["probability"] == pytest.approx(alone, rel=1e-5)


def test_a_folder_and_small_batches_give_the_same_course(
    directory: ModelDirectory, tiny_hospital: Any, course: pl.DataFrame
) -> None:
    subjects = course["subject_id"].unique().sort()[:5].to_list()
    narrow = risk_course(directory, tiny_hospital.events, TASK, subjects=subjects, max_tokens=1)
    expected = course.filter(pl.col("subject_id").is_in(subjects))
    assert narrow.drop("probability", "log_odds_change").equals(
        expected.drop("probability", "log_odds_change")
    )
    np.testing.assert_allclose(narrow["probability"], expected["probability"], rtol=1e-4)


def test_a_stay_without_a_discharge_ends_where_the_next_begins(
    directory: ModelDirectory, events: pl.DataFrame, course: pl.DataFrame
) -> None:
    stays = course.group_by("subject_id").agg(pl.col("start_time").unique().sort())
    subject, starts = stays.filter(pl.col("start_time").list.len() > 1).row(0)
    first = course.filter((pl.col("subject_id") == subject) & (pl.col("start_time") == starts[0]))
    end = (pl.col("time") == first["time"].max()) & pl.col("code").str.contains("DISCHARGE")
    own = events.filter(pl.col("subject_id") == subject).filter(~end)
    found = risk_course(directory, own, TASK)
    open_stay = found.filter(pl.col("start_time") == starts[0])
    assert open_stay["time"].max() < starts[1]
    assert found.filter(pl.col("start_time") == starts[1]).height


@pytest.mark.parametrize("every", [None, timedelta(hours=3)])
def test_a_course_ends_before_the_death_is_known(
    directory: ModelDirectory, events: pl.DataFrame, every: timedelta | None
) -> None:
    whole = risk_course(directory, events, TASK, every=every)
    subject = whole["subject_id"].unique(maintain_order=True)[3]
    own = whole.filter(pl.col("subject_id") == subject)
    known = own["time"][own.height // 2]
    death = pl.DataFrame(
        {"subject_id": subject, "time": known, "code": "MEDS_DEATH", "available_time": known}
    ).cast({"time": pl.Datetime("us"), "available_time": pl.Datetime("us")})
    # A death that becomes known twice, and earlier than other facts of the same moment.
    later = death.with_columns(pl.col("time", "available_time") + timedelta(days=2))
    found = risk_course(
        directory, pl.concat([death, later, events], how="diagonal"), TASK, every=every
    )
    alive = whole.filter((pl.col("subject_id") != subject) | (pl.col("time") < known))
    assert 0 < alive.filter(pl.col("subject_id") == subject).height < own.height
    numbers = ["probability", "log_odds_change"]
    assert found.drop(numbers).equals(alive.drop(numbers))
    np.testing.assert_allclose(found["probability"], alive["probability"], rtol=1e-5)


def test_a_course_of_any_frame_that_is_scored_is_the_same(
    directory: ModelDirectory, events: pl.DataFrame
) -> None:
    subjects = events["subject_id"].unique().sort()[:4].to_list()
    some = events.filter(pl.col("subject_id").is_in(subjects))
    expected = risk_course(directory, some, TASK)
    times = pl.col("time", "available_time")
    for other in (
        some.with_columns(times.cast(pl.Datetime("ns"))),
        some.with_columns(times.cast(pl.Datetime("ms"))),
        some.to_pandas(use_pyarrow_extension_array=True),  # plain pandas rounds the encounters
        some.drop("signal_id", "text_value"),
    ):
        assert risk_course(directory, other, TASK).equals(expected)
    untold = some.drop("available_time")
    told = some.with_columns(available_time="time")
    assert risk_course(directory, untold, TASK).equals(risk_course(directory, told, TASK))


def test_no_patients_give_no_rows(directory: ModelDirectory, events: pl.DataFrame) -> None:
    empty = risk_course(directory, events.head(0), TASK)
    assert dict(empty.schema) == COLUMNS
    assert empty.height == 0
    assert risk_course(directory, events, TASK, subjects=[-1]).height == 0


def test_codes_that_the_model_never_met_give_no_risk(directory: ModelDirectory) -> None:
    start = datetime(2150, 1, 1)
    strange = pl.DataFrame(
        {
            "subject_id": [1, 1],
            "time": [start, start + timedelta(hours=1)],
            "code": ["HOSPITAL_ADMISSION", "NOBODY//KNOWS"],
        }
    )
    frame = strange.select(
        (pl.col(n).cast(k) if n in strange.columns else pl.lit(None, dtype=k)).alias(n)
        for n, k in event_table.POLARS_EVENTS.items()
    ).with_columns(pl.col(schema.AVAILABLE_TIME).fill_null(pl.col(schema.TIME)))
    lost = replace(directory, vocabulary=type(directory.vocabulary)(("UNK",)))
    found = risk_course(lost, frame, TASK)
    assert found["probability"].to_list() == [None, None]


def test_what_can_not_be_asked_is_refused(
    directory: ModelDirectory, events: pl.DataFrame, tmp_path: Path
) -> None:
    for every in (timedelta(0), 6):
        with pytest.raises(InputError, match="bad_every"):
            risk_course(directory, events, TASK, every=every)  # type: ignore[arg-type]
    for subjects in (["a"], [1.5], "12", 3):
        with pytest.raises(InputError, match="bad_subjects"):
            risk_course(directory, events, TASK, subjects=subjects)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="bad_max_tokens"):
        risk_course(directory, events, TASK, max_tokens=0)
    with pytest.raises(InputError, match="missing_column"):
        risk_course(directory, events.drop("code"), TASK)
    zoned = events.with_columns(pl.col("time").dt.replace_time_zone("UTC"))
    with pytest.raises(InputError, match="bad_time_type"):
        risk_course(directory, zoned, TASK)
    with pytest.raises(ModelMismatch, match="task_not_trained"):
        risk_course(directory, events, "mortality_30d")
    with pytest.raises(InputError, match="no_events"):
        risk_course(directory, tmp_path, TASK)
