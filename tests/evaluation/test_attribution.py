"""What a score rests on: leaving an event out is exact, and integrated gradients add up."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tsfm.errors import InputError, ModelMismatch
from tsfm.evaluation.attribution import integrate_gradients, occlude
from tsfm.evaluation.calibration import logit
from tsfm.evaluation.known_past import KnownPast, calibrated_log_odds, pack_tokens
from tsfm.models.checkpoint import ModelDirectory
from tsfm.models.timeline import TimelineModel
from tsfm.scoring.trained_model import TrainedModel

from .model_patients import END, LABS, TASK, make_events, make_model


@pytest.fixture(scope="module")
def directory() -> ModelDirectory:
    return make_model()


def moment_of(events: pl.DataFrame, *, hours_more: float = 0.0) -> datetime:
    last: Any = events.filter(pl.col("code") == END)["available_time"].max()
    return last + timedelta(hours=hours_more)


def log_odds_without(directory: ModelDirectory, past: KnownPast, left_out: int) -> float:
    """Log odds from a batch made anew of all tokens but one."""
    at = np.delete(np.arange(past.n), left_out)
    batch = pack_tokens(past.tokens, directory.scale.step, at, np.array([len(at)]))
    elapsed = past.elapsed_hours[torch.from_numpy(at[-1:])]
    with torch.no_grad():
        hidden = directory.model(batch)[-1:]
        return float(calibrated_log_odds(directory, past.task, hidden, elapsed))


@pytest.mark.parametrize("n", [1, 7, 60])
@pytest.mark.parametrize("max_tokens", [40, 65_536])
def test_an_effect_is_that_of_a_record_without_the_event(
    directory: ModelDirectory, n: int, max_tokens: int
) -> None:
    events = make_events(1, n)
    moment = moment_of(events, hours_more=3.0)
    found = occlude(directory, events, TASK, moment, max_tokens=max_tokens)
    past = KnownPast.create(directory, events, TASK, moment)
    assert past.n == events.height
    expected = [found.log_odds - log_odds_without(directory, past, i) for i in range(past.n)]
    np.testing.assert_allclose(found.events["effect"].to_numpy(), expected, atol=1e-5)
    assert np.abs(expected).max() > 1e-3


def test_an_effect_is_that_of_scoring_anew_without_the_row(directory: ModelDirectory) -> None:
    events = make_events(2, 20)
    found = occlude(directory, events, TASK, moment_of(events))
    model = TrainedModel(directory)
    for row in (6, 11, 15):
        event = found.events.row(row, named=True)
        rest = events.filter(
            (pl.col("available_time") != event["available_time"])
            | (pl.col("code") != event["code"])
            | pl.col("numeric_value").ne_missing(event["numeric_value"])
        )
        assert rest.height == events.height - 1
        before, after = (model.score(e, TASK)["probability"][0] for e in (events, rest))
        assert event["effect"] == pytest.approx(logit(before) - logit(after), abs=1e-5)


def test_later_events_have_no_part_in_a_score(directory: ModelDirectory) -> None:
    events = make_events(3, 30)
    moment = events["available_time"].sort()[15]
    early = occlude(directory, events, TASK, moment)
    assert early.events.height < events.height
    assert early.events["available_time"].max() <= moment
    later = pl.col("available_time") > moment
    changed = events.with_columns(
        pl.when(later).then(-9.0).otherwise(pl.col("numeric_value")).alias("numeric_value")
    )
    assert occlude(directory, changed, TASK, moment).events.equals(early.events)


def test_the_only_event_has_no_effect_to_name(directory: ModelDirectory) -> None:
    events = make_events(1, 3).filter(pl.col("code") == END)
    found = occlude(directory, events, TASK, moment_of(events))
    assert found.events["effect"].to_list() == [None]
    assert found.top().height == 0


@pytest.mark.parametrize("max_tokens", [100, 65_536])
def test_integrated_gradients_add_up(directory: ModelDirectory, max_tokens: int) -> None:
    events = make_events(4, 40)
    found = integrate_gradients(directory, events, TASK, moment_of(events), max_tokens=max_tokens)
    assert found.baseline_log_odds is not None
    distance = found.log_odds - found.baseline_log_odds
    assert abs(distance) > 0.05
    total = found.events["effect"].to_numpy().sum()
    assert total == pytest.approx(distance, rel=0.01)
    assert found.residual == pytest.approx(distance - total, abs=1e-6)
    occluded = occlude(directory, events, TASK, moment_of(events))
    assert occluded.log_odds == pytest.approx(found.log_odds, abs=1e-5)


def test_an_event_that_tells_nothing_has_no_share() -> None:
    directory = make_model(seed=3)
    events = make_events(5, 25)
    # With the unknown code's rows in every table, an event without a value tells its time alone.
    index = directory.vocabulary.ids[LABS[0]]
    embedding = directory.model.embedding
    with torch.no_grad():
        for name in ("code", "value", "trend", "change", "increment"):
            getattr(embedding, name).weight[index] = getattr(embedding, name).weight[0]
    lab = pl.col("code") == LABS[0]
    bare = events.with_columns(
        pl.when(lab).then(None).otherwise(pl.col("numeric_value")).alias("numeric_value")
    )
    found = integrate_gradients(directory, bare, TASK, moment_of(events)).events
    assert found.filter(lab)["effect"][0] == pytest.approx(0.0, abs=1e-9)
    assert np.abs(found.filter(~lab)["effect"].to_numpy()).max() > 0.01


def test_the_largest_effects_come_first_whatever_their_sign(directory: ModelDirectory) -> None:
    events = make_events(6, 40)
    found = occlude(directory, events, TASK, moment_of(events))
    top = found.top(5)["effect"].abs().to_list()
    assert top == sorted(top, reverse=True)
    assert top[0] == found.events["effect"].abs().max()
    assert f"{1 / (1 + np.exp(-found.log_odds)):.1%}" in found._repr_html_()


def test_questions_that_can_not_be_asked_are_refused(directory: ModelDirectory) -> None:
    events = make_events(1, 5)
    both = pl.concat([events, make_events(2, 5)])
    with pytest.raises(InputError, match="not_one_subject"):
        occlude(directory, both, TASK, moment_of(events))
    with pytest.raises(InputError, match="no_events"):
        occlude(directory, events, TASK, datetime(2000, 1, 1))
    with pytest.raises(ModelMismatch, match="task_not_trained"):
        integrate_gradients(directory, events, "mortality_30d", moment_of(events))


def test_occlusion_of_a_model_with_attention_is_refused_by_name() -> None:
    directory = make_model()
    config = replace(directory.model.config, attention_after=(0,))
    other = replace(directory, model=TimelineModel(config))
    events = make_events(1, 12)
    with pytest.raises(ModelMismatch, match="no_occlusion"):
        occlude(other, events, TASK, moment_of(events))
