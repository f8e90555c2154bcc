"""The timeline model: packed subjects do not touch, the future does not leak, time matters."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch

from tsfm.batches.batch import Batch, make_batch
from tsfm.errors import ModelMismatch
from tsfm.models.checkpoint import read_config
from tsfm.models.mamba import MambaConfig
from tsfm.models.timeline import TimelineConfig, TimelineModel

PARTS = {
    "attention": {"attention_after": (1,)},
    "attention alone": {"attention_only": True, "memory_width": 0},
    "shared codes": {"share_codes": True, "code_words": 8},
    "hazards": {"hazard_codes": ("LAB", "DIAGNOSIS"), "hazard_edges_days": (0.0, 7.0)},
}
LENGTHS = np.array([5, 1, 40, 17], np.int64)


def make_tokens(seed: int = 0, lengths: np.ndarray = LENGTHS) -> Batch:
    rng = np.random.default_rng(seed)
    n = int(lengths.sum())
    times = np.concatenate([1.5e9 + np.cumsum(rng.exponential(3e4, k)) for k in lengths])
    return make_batch(
        code=rng.integers(1, 30, n).astype(np.int32),
        value=np.where(rng.random(n) < 0.5, rng.normal(size=n), np.nan).astype(np.float32),
        bin=rng.integers(0, 11, n).astype(np.int8),
        time_s=times,
        lag_hours=rng.exponential(1.0, n).astype(np.float32),
        lengths=lengths,
        subject_id=np.arange(len(lengths)),
        birth_s=np.array([0.0, np.nan, -1e9, 1e8])[: len(lengths)],
        step=np.ones(30, np.float32),
    )


@pytest.fixture
def model() -> TimelineModel:
    torch.manual_seed(0)
    config = TimelineConfig(30, MambaConfig(d_model=16, n_layers=2), tasks=("readmission_30d",))
    return TimelineModel(config).eval()


def test_a_packed_subject_gives_what_it_gives_alone(model: TimelineModel) -> None:
    batch = make_tokens()
    together = model(batch)
    borders = batch.cu_seqlens.tolist()
    for index, (start, end) in enumerate(itertools.pairwise(borders)):
        alone = make_batch(
            code=batch.code[start:end].numpy().astype(np.int32),
            value=np.where(batch.value == 0, np.nan, batch.value)[start:end].astype(np.float32),
            bin=batch.bin[start:end].numpy().astype(np.int8),
            time_s=batch.time_s[start:end].numpy(),
            lag_hours=batch.lag_hours[start:end].numpy(),
            lengths=np.array([end - start]),
            subject_id=np.array([index]),
            birth_s=np.array([[0.0, np.nan, -1e9, 1e8][index]]),
            step=np.ones(30, np.float32),
        )
        torch.testing.assert_close(model(alone), together[start:end], rtol=1e-4, atol=1e-5)


def test_no_token_sees_a_later_one(model: TimelineModel) -> None:
    batch, changed = make_tokens(0), make_tokens(1)
    cut = 20  # inside the third subject
    mixed = {
        name: torch.cat([getattr(batch, name)[:cut], getattr(changed, name)[cut:]])
        for name in ("code", "value", "bin", "lag_hours", "hour", "age_years")
    }
    hidden = model(dataclasses.replace(batch, **mixed))
    assert torch.equal(hidden[:cut], model(batch)[:cut])
    assert not torch.equal(hidden[cut:], model(batch)[cut:])


def test_the_same_events_at_another_pace_are_another_patient(model: TimelineModel) -> None:
    batch = make_tokens()
    slower = dataclasses.replace(batch, gap_hours=batch.gap_hours * 50)
    assert float((model(slower) - model(batch)).detach().abs().max()) > 1e-2


def test_every_parameter_of_the_backbone_learns(model: TimelineModel) -> None:
    model.train()
    hidden = model(make_tokens())
    (hidden * torch.randn_like(hidden)).sum().backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if name.startswith(("embedding", "backbone"))
        and (parameter.grad is None or not bool(parameter.grad.abs().sum() > 0))
    ]
    assert without == []


def test_a_task_without_a_head_is_named(model: TimelineModel) -> None:
    with pytest.raises(ModelMismatch) as caught:
        model.task_head("mortality_in_hospital")
    assert caught.value.code == "task_not_trained"


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_a_part_is_stored_and_read_back_and_the_plain_model_names_none(
    part: dict[str, Any],
) -> None:
    config = TimelineConfig(30, MambaConfig(d_model=16, n_layers=2), **part)
    stored = config.stored()
    assert set(part) <= set(stored)
    assert read_config(json.loads(json.dumps(stored))) == config
    plain = set(TimelineConfig(30).stored())
    assert plain == {
        "n_codes", "backbone", "memory_width", "edges_days", "code_dropout", "tasks",
        "class_tasks", "n_classes",
    }  # fmt: skip


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_with_any_part_the_future_does_not_leak(part: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = TimelineConfig(30, MambaConfig(d_model=16, n_layers=2), **part)
    model = TimelineModel(config).eval()
    batch, changed = make_tokens(0), make_tokens(1)
    cut = 20
    mixed = {
        name: torch.cat([getattr(batch, name)[:cut], getattr(changed, name)[cut:]])
        for name in ("code", "value", "bin", "lag_hours", "hour", "age_years")
    }
    hidden = model(dataclasses.replace(batch, **mixed))
    torch.testing.assert_close(hidden[:cut], model(batch)[:cut], rtol=1e-5, atol=1e-6)
    assert not torch.equal(hidden[cut:], model(batch)[cut:])


def test_a_plain_model_has_the_tensors_it_always_had(model: TimelineModel) -> None:
    rooms = {name.partition(".")[0] for name in model.state_dict()}
    assert rooms == {"embedding", "memory", "backbone", "next_event", "admission", "tasks"}
    within = {name.split(".")[1] for name in model.state_dict() if name.startswith("embedding")}
    assert within == {"code", "value", "trend", "change", "increment", "bin", "time", "mix"}
    with_hazards = dataclasses.replace(model.config, hazard_codes=("LAB",))
    more = set(TimelineModel(with_hazards).state_dict()) - set(model.state_dict())
    assert more == {f"many_hazards.{k}" for k in ("task", "bias", "bins.weight", "bins.bias")}


def test_the_hazards_of_codes_are_asked_of_a_model_that_has_them(model: TimelineModel) -> None:
    hidden = torch.randn(3, 16)
    with pytest.raises(ModelMismatch) as caught:
        model.code_probability(hidden, 30.0)
    assert caught.value.code == "no_code_hazards"
    config = TimelineConfig(30, MambaConfig(d_model=16), hazard_codes=("LAB", "DIAGNOSIS"))
    found = TimelineModel(config).code_probability(hidden, 30.0, torch.tensor([0.0, 5.0, 9.0]))
    torch.testing.assert_close(found, torch.full((3, 2), 1 - np.exp(-0.03)))
