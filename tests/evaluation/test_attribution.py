"""What a score rests on: leaving an event out is exact, and integrated gradients add up."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tsfm.errors import InputError, ModelMismatch
from tsfm.evaluation.attribution import integrate_gradients, occlude
from tsfm.evaluation.calibration import logit
from tsfm.evaluation.known_past import KnownPast, calibrated_log_odds, pack_tokens
from tsfm.evaluation.recalibration import Recalibration
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


@pytest.mark.parametrize("knots", [(0.0, 0.3, 0.6, 1.0), (0.5,)])
def test_a_score_is_explained_as_an_isotonic_map_has_it(
    directory: ModelDirectory, knots: tuple[float, ...]
) -> None:
    levels = (0.05, 0.2, 0.7, 0.9)[: len(knots)]
    bent = Recalibration("isotonic", knots=knots, levels=levels)
    events = make_events(4, 40)
    plain, mapped = (
        occlude(replace(directory, calibration={TASK: stored}), events, TASK, moment_of(events))
        for stored in ({}, bent.as_dict())
    )
    risk = [1 / (1 + np.exp(-one.log_odds)) for one in (plain, mapped)]
    assert risk[1] == pytest.approx(float(bent.apply(risk[0])), abs=1e-6)
    found = integrate_gradients(
        replace(directory, calibration={TASK: bent.as_dict()}), events, TASK, moment_of(events)
    )
    assert found.log_odds == pytest.approx(mapped.log_odds, abs=1e-5)
    assert np.isfinite(found.events["effect"].to_numpy()).all()


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


@pytest.mark.parametrize("explain", [occlude, integrate_gradients])
def test_a_record_is_read_as_scoring_reads_it(directory: ModelDirectory, explain: Any) -> None:
    events = make_events(4, 30)
    moment = events["available_time"].sort()[20]
    expected = explain(directory, events, TASK, moment)
    times = pl.col("time", "available_time")
    later = pl.col("time") > moment
    for other in (
        events.with_columns(times.cast(pl.Datetime("ms"))),
        events.with_columns(times.cast(pl.Datetime("ns"))),
        # Of facts to come nobody says when they are known.
        events.with_columns(available_time=pl.when(~later).then(pl.col("available_time"))),
        events.drop("signal_id", "text_value", "encounter_id"),
        events.to_pandas(),
        events.to_arrow(),
    ):
        found = explain(directory, other, TASK, moment)
        assert found.log_odds == expected.log_odds
        assert found.events.equals(expected.events)


@pytest.mark.parametrize("explain", [occlude, integrate_gradients])
def test_events_of_unknown_codes_alone_are_no_reason(
    directory: ModelDirectory, explain: Any
) -> None:
    events = make_events(1, 5).with_columns(code=pl.lit("ZZZ//1"))
    with pytest.raises(InputError, match="no_known_code"):
        explain(directory, events, TASK, events["available_time"].max())


@pytest.mark.parametrize(
    "form", [{"attention_after": (1,)}, {"attention_only": True}, {"memory_width": 0}], ids=str
)
def test_integrated_gradients_explain_the_score_of_the_model_whatever_its_layers(
    form: dict[str, Any],
) -> None:
    base = make_model()
    torch.manual_seed(1)
    model = TimelineModel(replace(base.model.config, **form)).eval()
    torch.nn.init.normal_(model.task_head(TASK).score.weight, std=1.0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(3.0 if "attention" in name else 1.0)
    directory = replace(base, model=model)
    events = make_events(1, 40, seed=3, stays=2)
    moment = moment_of(events, hours_more=3.0)
    past = KnownPast.create(directory, events, TASK, moment)
    with torch.no_grad():
        expected = float(past.log_odds(model(past.batch)[-1:], None))
    found = integrate_gradients(directory, events, TASK, moment, most_nodes=16)
    assert found.log_odds == pytest.approx(expected, abs=1e-5)


def test_questions_of_another_type_are_refused(directory: ModelDirectory) -> None:
    events, moment = make_events(1, 5), moment_of(make_events(1, 5))
    explanations: tuple[Any, ...] = (occlude, integrate_gradients)
    for explain in explanations:
        for max_tokens in (0, -5, 2.5, None):
            with pytest.raises(InputError, match="bad_max_tokens"):
                explain(directory, events, TASK, moment, max_tokens=max_tokens)
        with pytest.raises(InputError, match="bad_prediction_time"):
            explain(directory, events, TASK, moment.replace(tzinfo=UTC))
        with pytest.raises(InputError, match="unknown_frame"):
            explain(directory, "demo/events", TASK, moment)


def test_occlusion_of_a_model_with_attention_is_refused_by_name() -> None:
    directory = make_model()
    config = replace(directory.model.config, attention_after=(0,))
    other = replace(directory, model=TimelineModel(config))
    events = make_events(1, 12)
    with pytest.raises(ModelMismatch, match="no_occlusion"):
        occlude(other, events, TASK, moment_of(events))
