"""What codes come next is found as a search by hand finds it, and a record's end is its end."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from tsfm import codes
from tsfm.batches.batch import Batch, make_batch
from tsfm.models.mamba import MambaConfig
from tsfm.models.timeline import TimelineConfig, TimelineModel
from tsfm.tokens.token_store import TokenStore
from tsfm.training.losses import (
    HAZARD_POSITIONS,
    AdmissionTargets,
    LossWeights,
    code_members,
    next_occurrences,
    pretraining_loss,
)

VOCABULARY = (
    "UNK", "DIAGNOSIS//ICD//10//I50", "DIAGNOSIS//ICD//10//I5023", "LAB//1", "LAB//1//mg",
    "MEDS_DEATH", "HOSPITAL_ADMISSION//URGENT",
)  # fmt: skip
NAMES = ("DIAGNOSIS//ICD//10//I50", "LAB", "MEDS_DEATH", "PROCEDURE")
DEATH = 5
START_S = 1.5e9


def make_tokens(seed: int = 0, lengths: tuple[int, ...] = (30, 1, 60)) -> Batch:
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    code = rng.choice([0, 1, 2, 3, 4, 6], n)
    code[lengths[0] - 4] = DEATH
    steps = np.where(rng.random(n) < 0.4, 0.0, rng.exponential(3e4, n))  # many at one moment
    return make_batch(
        code=code.astype(np.int32),
        value=rng.normal(size=n).astype(np.float32),
        bin=rng.integers(1, 11, n).astype(np.int8),
        time_s=np.concatenate([START_S + np.cumsum(s) for s in np.split(steps, [30, 31])]),
        lag_hours=np.zeros(n, np.float32),
        lengths=np.array(lengths),
        subject_id=np.arange(len(lengths)),
        birth_s=np.zeros(len(lengths)),
        step=np.ones(len(VOCABULARY), np.float32),
    )


def make_targets(until_s: float | None) -> AdmissionTargets:
    return AdmissionTargets(np.array([6]), np.array([DEATH]), until_s, VOCABULARY)


def is_one_of(code: str, name: str) -> bool:
    return code == name or name in codes.parents(code)


@pytest.mark.parametrize("until_s", [None, START_S + 5e6])
def test_the_next_occurrence_is_the_one_that_a_search_by_hand_finds(until_s: float | None) -> None:
    batch = make_tokens()
    everywhere = np.arange(batch.n_tokens)
    found = next_occurrences(batch, make_targets(until_s), NAMES, everywhere)
    times, kept = batch.time_s.tolist(), found.position.tolist()
    names = [VOCABULARY[c] for c in batch.code.tolist()]
    for start, stop in pairwise(batch.cu_seqlens.tolist()):
        deaths = [times[i] for i in range(start, stop) if names[i] == "MEDS_DEATH"]
        end = min([*deaths, times[stop - 1] if until_s is None else until_s])
        for at in range(start, stop):
            assert (at in kept) == (times[at] < end)
            if at not in kept:
                continue
            row = kept.index(at)
            for k, name in enumerate(NAMES):
                later = [
                    times[i]
                    for i in range(start, stop)
                    if times[at] < times[i] <= end and is_one_of(names[i], name)
                ]
                expected = min(later, default=end) - times[at]
                assert bool(found.is_event[row, k]) == bool(later)
                assert float(found.days[row, k]) == pytest.approx(expected / 86400, rel=1e-5)


def test_nothing_is_known_beyond_the_end() -> None:
    batch = make_tokens()
    found = next_occurrences(batch, make_targets(None), NAMES, np.arange(batch.n_tokens))
    assert bool((found.days > 0).all())
    assert not bool(found.is_event[:, 3].any())  # no procedure anywhere
    last = batch.cu_seqlens[1:] - 1
    assert not set(last.tolist()) & set(found.position.tolist())


def test_a_code_is_an_occurrence_of_itself_and_of_its_parents() -> None:
    borders, members = code_members(VOCABULARY, NAMES)
    found = [members[a:b].tolist() for a, b in pairwise(borders.tolist())]
    assert found == [[], [0], [0], [1], [1], [2], []]


def make_model(*names: str) -> TimelineModel:
    torch.manual_seed(0)
    backbone = MambaConfig(d_model=8, n_layers=1, d_state=2)
    return TimelineModel(TimelineConfig(len(VOCABULARY), backbone, hazard_codes=names)).eval()


def test_the_hazards_are_a_part_of_the_loss_only_where_there_are_any() -> None:
    batch, targets = make_tokens(), make_targets(None)
    plain, asked = make_model(), make_model(*NAMES)
    asked.load_state_dict(plain.state_dict(), strict=False)
    both = [
        pretraining_loss(model, batch, model(batch), targets, LossWeights())
        for model in (plain, asked)
    ]
    (without, parts), (total, more) = both
    assert set(more) - set(parts) == {"hazards"}
    torch.testing.assert_close(total, without + 0.25 * more["hazards"])
    off = dataclasses.replace(LossWeights(), hazards=0.0)
    again, _ = pretraining_loss(asked, batch, asked(batch), targets, off)
    assert torch.equal(again, without)


def test_what_hazards_cost_does_not_grow_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_tokens(lengths=(30, 1, 2000))
    model = make_model(*NAMES).train()
    assert model.many_hazards is not None
    asked: list[int] = []
    model.many_hazards.register_forward_hook(lambda _, given, __: asked.append(len(given[0])))
    for _ in range(2):
        pretraining_loss(model, batch, model(batch), make_targets(START_S + 1e9), LossWeights())
    assert max(asked) <= HAZARD_POSITIONS
    assert min(asked) > HAZARD_POSITIONS * 0.9


def make_alone(time_s: float = START_S) -> Batch:
    """A newborn: one token."""
    return make_batch(
        code=np.array([1], np.int32), value=np.array([np.nan], np.float32),
        bin=np.zeros(1, np.int8), time_s=np.array([time_s]), lag_hours=np.zeros(1, np.float32),
        lengths=np.array([1]), subject_id=np.array([9]), birth_s=np.array([time_s]),
        step=np.ones(len(VOCABULARY), np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("names", [(), NAMES])
def test_what_a_batch_cannot_teach_is_no_part_of_its_loss(names: tuple[str, ...]) -> None:
    model = make_model(*names).train()
    late = make_targets(START_S - 1)  # every token after the end of follow-up
    cases = (
        (make_alone(), make_targets(START_S + 1e6), {"admission"}),
        (make_alone(), late, set()),
        (make_tokens(), late, {"code", "value", "time"}),
    )
    for batch, targets, expected in cases:
        model.zero_grad()
        total, parts = pretraining_loss(model, batch, model(batch), targets, LossWeights())
        assert set(parts) - {"hazards"} == expected
        assert bool(total.isfinite())
        total.backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
        weights = LossWeights()
        assert float(total.detach()) == pytest.approx(
            sum(getattr(weights, name) * part for name, part in parts.items()), rel=1e-5
        )


def test_parts_that_are_all_there_have_the_whole_weight_and_none_has_none() -> None:
    weights, four = LossWeights(), ("code", "value", "time", "admission")
    assert weights.share_of(four, hazards=False) == 1.0
    assert weights.share_of((*four, "hazards"), hazards=True) == 1.0
    assert weights.share_of(("admission",), hazards=False) == 0.5
    assert weights.share_of((), hazards=True) == 0.0


@pytest.mark.parametrize(
    ("config", "until_s"),
    [
        ({"watched_until_us": 5_000_000}, 5.0),
        ({"watched_until_us": 5_000_000, "data_as_of": "2024-01-01"}, 5.0),
        ({"watched_until_us": None, "data_as_of": "2024-01-01"}, None),
        ({"data_as_of": "1970-01-02T00:00:00"}, 86400.0),
        ({"data_as_of": "1970-01-01T00:00:00-05:00"}, 18000.0),
        ({"data_as_of": "1970-01-02", "dates_shifted": True}, None),
        ({}, None),
    ],
)
def test_follow_up_is_the_stores_and_of_an_older_store_what_its_data_set_said(
    tiny_hospital: Any, config: dict[str, Any], until_s: float | None
) -> None:
    store = TokenStore.open(tiny_hospital.tokens)
    assert AdmissionTargets.create(dataclasses.replace(store, config=config)).until_s == until_s
