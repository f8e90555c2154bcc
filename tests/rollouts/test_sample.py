"""Futures: what they would be in one pass, whoever else is in the batch, and how they end."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tsfm.batches.batch import Batch, make_batch
from tsfm.errors import InputError, ModelMismatch
from tsfm.models.timeline_stepper import TimelineStepper
from tsfm.rollouts.futures import DECIDED, DIED, HORIZON, UNFINISHED, Futures
from tsfm.rollouts.outcomes import Outcome
from tsfm.rollouts.sample import FutureSource, sample_futures

from .timeline_patients import (
    DEATH,
    make_model,
    make_scale,
    make_source,
    make_tokens,
    subjects_of,
    with_futures,
)

HORIZON_DAYS = 12.0
FEATURES = (
    "code", "value", "bin", "time_s", "gap_hours", "since_hours", "repeated", "change", "increment",
    "rate", "lag_hours", "age_years", "age_known", "hour", "position",
)  # fmt: skip


@dataclass(frozen=True)
class WatchedStepper(TimelineStepper):
    """A stepper that keeps what goes through it."""

    seen: list[tuple[Batch, Tensor, Tensor]] = field(default_factory=list)

    def step(self, tokens: Batch, state: Any, source_slots: Tensor, target_slots: Tensor) -> Tensor:
        hidden = super().step(tokens, state, source_slots, target_slots)
        self.seen.append((tokens, target_slots, hidden))
        return hidden


def sample(tokens: dict[str, Any], **options: Any) -> Futures:
    given = {"n_futures": 5, "horizon_days": HORIZON_DAYS, "seed": 11, **options}
    source = given.pop("source", None) or make_source()
    return sample_futures(source, make_batch(**tokens), **given)


@pytest.fixture(scope="module")
def futures() -> Futures:
    return sample(make_tokens())


@pytest.mark.parametrize("max_rows", [3, 1024])
def test_a_future_is_to_the_model_what_one_pass_over_its_timeline_is(max_rows: int) -> None:
    tokens = make_tokens()
    stepper = WatchedStepper(make_model())
    source = FutureSource(stepper, make_scale(), (DEATH,))
    futures = sample(tokens, source=source, max_rows=max_rows)
    whole, pasts = with_futures(tokens, futures)
    with torch.no_grad():
        hidden = stepper.model(whole)
    # Futures take slots in their order, and hold one until their last token.
    begins = iter(np.flatnonzero(futures.n_tokens).tolist())
    holds: dict[int, int] = {}
    to_come = futures.n_tokens.copy()
    at: list[int] = []
    for step, slots, _ in stepper.seen:
        for slot, position in zip(slots.tolist(), step.position.tolist(), strict=True):
            if slot not in holds or not to_come[holds[slot]]:
                holds[slot] = next(begins)
            to_come[holds[slot]] -= 1
            at.append(int(whole.cu_seqlens[holds[slot]]) + position)
    assert sorted(at) == sorted(
        i
        for start, past, stop in zip(
            whole.cu_seqlens[:-1].tolist(), pasts, whole.cu_seqlens[1:].tolist(), strict=True
        )
        for i in range(start + past, stop)
    )
    assert len(at) > 200
    for name in FEATURES:
        found = torch.cat([getattr(step, name) for step, _, _ in stepper.seen])
        torch.testing.assert_close(found, getattr(whole, name)[at], rtol=1e-5, atol=1e-5)
    found = torch.cat([after for _, _, after in stepper.seen])
    torch.testing.assert_close(found, hidden[at], rtol=1e-4, atol=1e-4)


def test_the_next_code_of_a_whole_timeline_is_the_one_that_was_drawn(futures: Futures) -> None:
    # Chances at every step, from one pass: the codes that came are no surprise to the model.
    whole, pasts = with_futures(make_tokens(), futures)
    model = make_model()
    with torch.no_grad():
        chances = torch.softmax(model.next_event.code(model(whole)), -1).numpy()
    surprise, expected = 0.0, 0.0
    for i, (start, stop) in enumerate(itertools.pairwise(whole.cu_seqlens.tolist())):
        for at in range(start + int(pasts[i]), stop):
            p = chances[at - 1]
            surprise -= np.log(p[int(whole.code[at])])
            expected -= float((p * np.log(p)).sum())
    assert surprise == pytest.approx(expected, rel=0.15)


def test_a_subject_has_the_same_futures_in_any_order_and_in_any_company(futures: Futures) -> None:
    tokens = make_tokens()
    shuffled = sample(subjects_of(tokens, [2, 0, 3, 1]), max_rows=7)
    alone = [sample(subjects_of(tokens, [i]), max_rows=4) for i in range(4)]
    for subject in range(4):
        expected = of_subject(futures, 1000 + subject)
        for other in (shuffled, alone[subject]):
            found = of_subject(other, 1000 + subject)
            for mine, theirs in zip(found, expected, strict=True):
                assert np.array_equal(mine["code"], theirs["code"])
                np.testing.assert_allclose(mine["time_s"], theirs["time_s"], atol=5.0)
                np.testing.assert_allclose(mine["value"], theirs["value"], atol=1e-3)


def of_subject(futures: Futures, subject: int) -> list[dict[str, Any]]:
    tokens = futures.tokens
    return [
        {name: getattr(tokens, name)[tokens.future == i] for name in ("code", "time_s", "value")}
        for i in np.flatnonzero(futures.subject_id == subject)
    ]


def test_more_futures_begin_with_the_same_ones() -> None:
    tokens = subjects_of(make_tokens(), [2])
    few, many = sample(tokens, n_futures=2), sample(tokens, n_futures=6)
    for mine, theirs in zip(of_subject(few, 1002), of_subject(many, 1002)[:2], strict=True):
        assert np.array_equal(mine["code"], theirs["code"])
    codes = [future["code"].tolist() for future in of_subject(many, 1002)]
    assert len({tuple(c) for c in codes}) == 6


def test_another_seed_is_another_future() -> None:
    tokens = subjects_of(make_tokens(), [2])
    one, other = sample(tokens, n_futures=1), sample(tokens, n_futures=1, seed=12)
    assert one.tokens.code.tolist() != other.tokens.code.tolist()


def test_a_future_ends_at_the_horizon_at_death_or_at_the_limit() -> None:
    tokens = make_tokens()
    futures = sample(tokens, n_futures=20, max_tokens=25)
    assert set(futures.ending) == {HORIZON, DIED, UNFINISHED}
    assert sum(futures.endings.values()) == 80
    last_known = make_batch(**tokens).time_s.numpy()[np.cumsum(tokens["lengths"]) - 1]
    for i in range(len(futures)):
        own = futures.tokens.future == i
        codes, times = futures.tokens.code[own], futures.tokens.time_s[own]
        assert len(codes) == futures.n_tokens[i] <= 25
        assert (np.diff(times) >= 0).all()
        assert (times <= last_known[i // 20] + HORIZON_DAYS * 86400.0 + 1e-3).all()
        assert (codes[:-1] != DEATH).all()
        assert (futures.ending[i] == DIED) == (len(codes) > 0 and codes[-1] == DEATH)
        assert (futures.ending[i] == UNFINISHED) <= (len(codes) == 25)


def test_a_quiet_time_before_the_prediction_rules_out_what_would_have_come_in_it() -> None:
    tokens = subjects_of(make_tokens(), [2])
    elapsed = np.array([30.0])
    futures = sample(tokens, n_futures=60, elapsed_hours=elapsed)
    last = float(tokens["time_s"][-1])
    waits = (futures.tokens.time_s - last) / 3600.0
    assert waits.min() >= 30.0
    assert waits.max() <= 30.0 + HORIZON_DAYS * 24
    assert waits.max() > HORIZON_DAYS * 24  # the horizon counts from the prediction


def test_futures_stop_once_the_question_is_answered() -> None:
    tokens = make_tokens()
    outcome = Outcome("few", (1, 2, 3), HORIZON_DAYS, competing=(4,))
    whole = sample(tokens, outcomes=[outcome])
    brief = sample(tokens, outcomes=[outcome], stop_when_decided=True, keep_tokens=False)
    assert np.array_equal(whole.tally.came, brief.tally.came)
    np.testing.assert_allclose(whole.tally.expected, brief.tally.expected, atol=1e-4)
    assert brief.n_tokens.sum() < whole.n_tokens.sum()
    assert (brief.ending == DECIDED).any()
    assert len(brief.tokens) == 0
    assert not brief.tally.undecided.any()


def test_the_tally_is_what_a_walk_through_the_tokens_finds() -> None:
    tokens = make_tokens()
    outcomes = [
        Outcome("wide", (1, 2, 3, 4), HORIZON_DAYS),
        Outcome("soon", (1, 2, 3, 4), 0.5, competing=(5, 6, 7)),
        Outcome("death", (DEATH,), HORIZON_DAYS),
    ]
    futures = sample(tokens, n_futures=30, outcomes=outcomes)
    ends = np.repeat(tokens["time_s"][np.cumsum(tokens["lengths"]) - 1], 30)
    for column, outcome in enumerate(outcomes):
        for i in range(len(futures)):
            own = futures.tokens.future == i
            came = False
            for code, time in zip(
                futures.tokens.code[own], futures.tokens.time_s[own], strict=True
            ):
                if time > ends[i] + outcome.horizon_days * 86400.0:
                    break
                if int(code) in outcome.codes + outcome.competing:
                    came = int(code) in outcome.codes
                    break
            assert futures.tally.came[i, column] == came
    assert 0 < futures.tally.came.mean() < 1


def test_a_future_kept_from_an_outcome_never_meets_it() -> None:
    tokens = make_tokens()
    outcome = Outcome("many", tuple(range(1, 15)), HORIZON_DAYS)
    futures = sample(tokens, n_futures=10, kept_from=outcome)
    assert futures.kept_from_outcome
    assert not np.isin(futures.tokens.code, outcome.codes).any()
    assert futures.n_tokens.sum() > 50
    assert ((futures.tally.escaped >= 0) & (futures.tally.escaped <= 1)).all()


def test_an_outcome_of_every_code_leaves_no_token() -> None:
    every = Outcome("any", tuple(range(30)), HORIZON_DAYS)
    futures = sample(make_tokens(), kept_from=every)
    assert futures.n_tokens.sum() == 0
    ordinary = sample(make_tokens(), outcomes=[every], stop_when_decided=True)
    assert np.allclose(1 - futures.tally.escaped, ordinary.tally.expected, atol=1e-6)


def with_death(tokens: dict[str, Any], subject: int) -> dict[str, Any]:
    """The same, but that one token of a subject is its death."""
    code = tokens["code"].copy()
    code[tokens["lengths"][:subject].sum()] = DEATH
    return {**tokens, "code": code}


@pytest.mark.parametrize("max_rows", [3, 1024])
def test_one_who_is_dead_has_no_future_and_stops_nobody_elses(max_rows: int) -> None:
    tokens = make_tokens()
    outcomes = [
        Outcome("many", tuple(range(1, 15)), HORIZON_DAYS),
        Outcome("death", (DEATH,), HORIZON_DAYS),
    ]
    alive = sample(tokens, outcomes=outcomes)
    found = sample(with_death(tokens, 2), outcomes=outcomes, max_rows=max_rows)
    dead = found.subject_id == 1002
    assert (found.ending[dead] == DIED).all()
    assert not found.n_tokens[dead].any()
    tally = found.tally
    for told in (tally.came, tally.expected, tally.undecided):
        assert not told[dead].any()
    assert (tally.escaped[dead] == 1).all()
    for subject in (1000, 1001, 1003):
        for mine, theirs in zip(
            of_subject(found, subject), of_subject(alive, subject), strict=True
        ):
            assert np.array_equal(mine["code"], theirs["code"])
    assert np.array_equal(tally.came[~dead], alive.tally.came[~dead])


def test_a_batch_of_the_dead_alone_is_no_error() -> None:
    tokens = with_death(subjects_of(make_tokens(), [0]), 0)
    found = sample(tokens, kept_from=Outcome("many", (1, 2, 3), HORIZON_DAYS))
    assert found.endings["died"] == len(found) == 5
    assert len(found.tokens) == 0
    assert (found.tally.escaped == 1).all()


def test_what_cannot_be_asked_is_refused() -> None:
    tokens = make_tokens()
    for options, error in (
        ({"n_futures": 0}, "bad_futures"),
        ({"n_futures": 2.0}, "bad_futures"),
        ({"n_futures": None}, "bad_futures"),
        ({"horizon_days": float("nan")}, "bad_futures"),
        ({"horizon_days": "30"}, "bad_futures"),
        ({"max_rows": 0}, "bad_futures"),
        ({"max_tokens": 2.5}, "bad_futures"),
        ({"seed": 2**63}, "bad_seed"),
        ({"seed": -(2**63) - 1}, "bad_seed"),
        ({"seed": 1.7}, "bad_seed"),
        ({"seed": None}, "bad_seed"),
        ({"elapsed_hours": np.array([1.0])}, "bad_elapsed_hours"),
        ({"elapsed_hours": [0.0, 1.0, np.inf, 0.0]}, "bad_elapsed_hours"),
        ({"elapsed_hours": [0.0, 1.0, np.nan, 0.0]}, "bad_elapsed_hours"),
        ({"elapsed_hours": ["0", "1", "2", "3"]}, "bad_elapsed_hours"),
        ({"outcomes": [Outcome("late", (1,), HORIZON_DAYS + 1)]}, "bad_outcome"),
        ({"stop_when_decided": True}, "bad_futures"),
    ):
        with pytest.raises(InputError) as caught:
            sample(tokens, **options)
        assert caught.value.code == error
    source = make_source()
    short = replace(make_scale(), median=np.zeros(3, np.float32))
    with pytest.raises(ModelMismatch):
        sample(tokens, source=replace(source, scale=short))
    with pytest.raises(InputError) as caught:
        TimelineStepper(make_model().train())
    assert caught.value.code == "model_in_training"
