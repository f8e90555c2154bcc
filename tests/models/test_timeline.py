"""The timeline model: packed subjects do not touch, the future does not leak, time matters."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from tsfm.batches.batch import Batch, make_batch
from tsfm.errors import ModelMismatch
from tsfm.models.mamba import MambaConfig
from tsfm.models.timeline import TimelineConfig, TimelineModel

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
