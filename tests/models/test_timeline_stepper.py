"""The timeline model goes on token by token from what one pass has left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tsfm.batches.batch import Batch, make_batch
from tsfm.errors import InputError
from tsfm.models.event_memory import EventMemory
from tsfm.models.mamba import MambaConfig, MambaState
from tsfm.models.timeline import TimelineConfig, TimelineModel
from tsfm.models.timeline_stepper import TimelineStepper

N_CODES, N_MORE = 12, 6
PASTS = (3, 1, 9)
PER_TOKEN = [
    name
    for name in Batch.__dataclass_fields__
    if name not in ("cu_seqlens", "subject_id", "signal_vectors")
]


PLAIN = {"memory_width": 24}
FORMS = {
    "mamba": PLAIN,
    "attention": {**PLAIN, "attention_after": (0, 1), "share_codes": True},
    "attention alone": {"memory_width": 0, "attention_only": True},
}


def make_stepper(form: dict[str, Any]) -> TimelineStepper:
    torch.manual_seed(0)
    config = TimelineConfig(N_CODES, MambaConfig(d_model=16, n_layers=2), **form)
    return TimelineStepper(TimelineModel(config).eval())


@pytest.fixture
def stepper() -> TimelineStepper:
    return make_stepper(PLAIN)


def make_tokens() -> Batch:
    rng = np.random.default_rng(0)
    lengths = np.array(PASTS) + N_MORE
    n = int(lengths.sum())
    bins = rng.integers(0, 11, n)
    return make_batch(
        code=rng.integers(0, N_CODES, n).astype(np.int32),
        value=np.where(bins > 0, rng.normal(size=n), np.nan).astype(np.float32),
        bin=bins.astype(np.int8),
        time_s=np.concatenate([1.5e9 + np.cumsum(rng.exponential(3e4, k)) for k in lengths]),
        lag_hours=rng.exponential(1.0, n).astype(np.float32),
        lengths=lengths,
        subject_id=np.arange(len(lengths)),
        birth_s=np.zeros(len(lengths)),
        step=np.ones(N_CODES, np.float32),
    )


def part(batch: Batch, at: list[int], lengths: list[int]) -> Batch:
    """Tokens with the features that they have in the whole."""
    tokens = {name: getattr(batch, name)[at] for name in PER_TOKEN}
    borders = torch.tensor([0, *np.cumsum(lengths).tolist()])
    return Batch(
        **tokens, cu_seqlens=borders, subject_id=torch.arange(len(lengths)),
        signal_vectors=batch.signal_vectors,
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_past_and_then_token_by_token_is_the_whole(form: dict[str, Any]) -> None:
    stepper = make_stepper(form)
    batch = make_tokens()
    whole = stepper.model(batch).detach()
    starts = batch.cu_seqlens[:-1].tolist()
    past = [s + i for s, n in zip(starts, PASTS, strict=True) for i in range(n)]
    hidden, state = stepper.prefill(part(batch, past, list(PASTS)), 8)
    ends = [s + n - 1 for s, n in zip(starts, PASTS, strict=True)]
    torch.testing.assert_close(hidden, whole[ends], rtol=1e-4, atol=1e-5)
    slots = torch.tensor([0, 1, 2])
    for n in range(N_MORE):
        at = [end + 1 + n for end in ends]
        target = torch.tensor([4, 7, 3])  # the pasts stay where they are
        found = stepper.step(part(batch, at, [1] * 3), state, slots, target)
        torch.testing.assert_close(found, whole[at], rtol=1e-4, atol=1e-5)
        slots = target


def test_futures_fork_from_one_past_without_touching_it(stepper: TimelineStepper) -> None:
    batch = make_tokens()
    _, state = stepper.prefill(part(batch, [0, 1, 2], [3]), 6)
    assert isinstance(state.backbone, MambaState)
    kept = state.memory[0].clone(), [block.scan[0].clone() for block in state.backbone.blocks]
    tokens = part(batch, [3, 4, 12], [1] * 3)
    together = stepper.step(tokens, state, torch.tensor([0, 0, 0]), torch.tensor([1, 5, 2]))
    for row, slot in enumerate((3, 4, 1)):
        one = part(batch, [[3, 4, 12][row]], [1])
        alone = stepper.step(one, state, torch.tensor([0]), torch.tensor([slot]))
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)
    assert torch.equal(state.memory[0], kept[0])
    for block, scan in zip(state.backbone.blocks, kept[1], strict=True):
        assert torch.equal(block.scan[0], scan)


def test_the_laws_of_the_next_token_are_those_of_the_loss(stepper: TimelineStepper) -> None:
    batch = make_tokens()
    hidden = stepper.model(batch).detach()[:5]
    code = batch.code[1:6]
    law = stepper.next_token(hidden)
    mean, std = stepper.next_value(hidden, code)
    value, gap = torch.randn(5), torch.rand(5) * 9 + 0.1
    loss = stepper.model.next_event.loss(hidden, code, value, torch.ones(5), gap)
    chances = torch.log_softmax(law.code_logits, -1).gather(1, code[:, None])
    torch.testing.assert_close(loss.code, -chances.mean())
    normal = torch.distributions.Normal(mean, std).log_prob(value)
    torch.testing.assert_close(loss.value, -normal.mean())
    wait = torch.distributions.Normal(law.log_wait_mean, torch.exp(law.log_wait_log_std))
    later = torch.nn.functional.logsigmoid(-law.same_logit)
    expected = -(wait.log_prob(torch.log(gap)) + later).mean()
    torch.testing.assert_close(loss.time, expected)


@pytest.mark.parametrize(
    ("form", "sizes"),
    [
        (FORMS["attention"], {}),
        (FORMS["attention alone"], {}),
        (PLAIN, {"n_layers": 3}),
        (PLAIN, {"d_model": 24}),
        ({"memory_width": 25}, {}),
    ],
    ids=["attention", "attention alone", "layers", "width", "memory"],
)
def test_the_state_of_another_model_is_refused_and_stays_as_it_was(
    stepper: TimelineStepper, form: dict[str, Any], sizes: dict[str, Any]
) -> None:
    whole: dict[str, Any] = {"d_model": 16, "n_layers": 2, **sizes}
    config = MambaConfig(**whole)
    other = TimelineStepper(TimelineModel(TimelineConfig(N_CODES, config, **form)).eval())
    _, state = stepper.prefill(part(make_tokens(), [0, 1, 2], [3]), 2)
    assert isinstance(state.backbone, MambaState)
    tables = [state.memory, *(table for block in state.backbone.blocks for table in block)]
    before = [table.clone() for table in tables]
    slot = torch.tensor([0])
    with pytest.raises(InputError) as caught:
        other.step(part(make_tokens(), [3], [1]), state, slot, slot)
    assert caught.value.code == "wrong_state"
    assert all(map(torch.equal, tables, before))


def test_fewer_slots_than_subjects_are_refused(stepper: TimelineStepper) -> None:
    with pytest.raises(InputError) as caught:
        stepper.prefill(part(make_tokens(), [0, 1, 2, 3], [2, 2]), 1)
    assert caught.value.code == "too_few_slots"


def test_a_model_in_training_is_refused(stepper: TimelineStepper) -> None:
    with pytest.raises(InputError) as caught:
        TimelineStepper(stepper.model.train())
    assert caught.value.code == "model_in_training"


def test_the_event_memory_goes_on_from_its_state() -> None:
    torch.manual_seed(0)
    memory = EventMemory(8, width=10, fastest_hours=0.5, slowest_hours=1e4)
    x, gap = torch.randn(12, 8), torch.rand(12) * 30
    borders = torch.tensor([0, 5, 12])
    plain = memory(x, gap, borders)
    whole, last = memory(x, gap, borders, return_state=True)
    assert torch.equal(plain, whole)
    assert last.shape == (2, 10, 1)
    _, state = memory(x[:3], gap[:3], torch.tensor([0, 3]), return_state=True)
    state = state.detach().clone()
    for t in (3, 4):
        found = memory.step(x[t : t + 1], gap[t : t + 1], state)
        torch.testing.assert_close(found[0], whole[t].detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last[:1].detach(), rtol=1e-4, atol=1e-5)
