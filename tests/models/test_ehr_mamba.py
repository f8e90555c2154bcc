"""EHRMamba: prompts that share a history answer as if each had read it alone."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tsfm.errors import InputError
from tsfm.models.ehr_mamba import EhrMamba, EhrMambaConfig
from tsfm.models.ehr_mamba_embedding import EhrMambaTokens
from tsfm.models.mamba import MambaConfig
from tsfm.tokens.ehr_mamba_tokens import EhrMambaPrompts, EhrMambaStreams

N_WORDS, N_TASKS = 40, 3
LENGTHS = (6, 1, 30, 11)
# Three tasks at one moment, and subjects asked at several, in no order.
POSITIONS = (35, 5, 5, 5, 10, 20, 47, 20, 6)
TASKS = (0, 0, 1, 2, 1, 0, 2, 2, 1)


def make_model(dtype: torch.dtype = torch.float32, **changes: Any) -> EhrMamba:
    torch.manual_seed(0)
    backbone = MambaConfig.mamba1(d_model=16, n_layers=2, d_state=4)
    config = EhrMambaConfig(N_WORDS, backbone, time_width=6, n_visits=4, dropout=0.0)
    return EhrMamba(replace(config, **changes)).to(dtype).eval()


def make_streams(seed: int = 0) -> EhrMambaStreams:
    rng = np.random.default_rng(seed)
    n = sum(LENGTHS)
    return EhrMambaStreams(
        word=rng.integers(N_TASKS, N_WORDS, n),
        kind=rng.integers(1, 10, n),
        time_s=np.concatenate([1.5e9 + np.cumsum(rng.exponential(3e5, k)) for k in LENGTHS]),
        visit=rng.integers(0, 9, n),
        side=rng.integers(0, 3, n),
        start=np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64),
        subject_id=np.arange(len(LENGTHS)),
        birth_s=np.array([0.0, np.nan, -1e9, 1e8]),
    )


def make_prompts(seed: int = 0) -> EhrMambaPrompts:
    rng = np.random.default_rng(seed)
    n = len(POSITIONS)
    return EhrMambaPrompts(
        position=np.array(POSITIONS),
        word=np.array(TASKS),
        gap_hours=rng.exponential(20.0, n),
        age_years=rng.uniform(20, 90, n),
        label=rng.integers(0, 2, n),
        task=np.array([f"task {k}" for k in TASKS]),
        row=np.arange(n),
    )


def cast(tokens: EhrMambaTokens, dtype: torch.dtype) -> EhrMambaTokens:
    return replace(
        tokens, gap_weeks=tokens.gap_weeks.to(dtype), age_years=tokens.age_years.to(dtype)
    )


def alone(model: EhrMamba, tokens: EhrMambaTokens, prompts: EhrMambaPrompts) -> Tensor:
    """Each question by a full pass over its history with its prompt at the end."""
    asked = EhrMambaTokens.of_prompts(prompts)
    borders = tokens.cu_seqlens.tolist()
    answers = []
    for k, position in enumerate(prompts.position.tolist()):
        start = max(b for b in borders[:-1] if b <= position)
        history = tokens.at(torch.arange(start, position + 1), torch.tensor([0]))
        names = ("word", "kind", "gap_weeks", "age_years", "visit", "side")
        whole = {n: torch.cat([getattr(history, n), getattr(asked, n)[k : k + 1]]) for n in names}
        length = position + 2 - start
        hidden = model(EhrMambaTokens(**whole, cu_seqlens=torch.tensor([0, length])))
        answers.append(model.answer(hidden[-1]))
    return torch.stack(answers)


def test_one_pass_answers_all_prompts_as_separate_full_passes_do() -> None:
    model, prompts = make_model(), make_prompts()
    tokens = EhrMambaTokens.of_streams(make_streams())
    together = model.answers(tokens, prompts)
    torch.testing.assert_close(together, alone(model, tokens, prompts), rtol=1e-5, atol=1e-5)
    assert len({tuple(row) for row in together.tolist()}) == len(prompts)


def test_gradients_of_the_shared_pass_are_the_sum_of_the_separate_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_prompts = EhrMambaTokens.of_prompts
    monkeypatch.setattr(
        EhrMambaTokens, "of_prompts", lambda prompts: cast(of_prompts(prompts), torch.float64)
    )
    model, prompts = make_model(torch.float64), make_prompts()
    tokens = cast(EhrMambaTokens.of_streams(make_streams()), torch.float64)
    weights = torch.randn(len(prompts), 2, dtype=torch.float64)
    found = []
    for answers in (model.answers, lambda t, p: alone(model, t, p)):
        model.zero_grad()
        (answers(tokens, prompts) * weights).sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert "embedding.time.rate" in found[0]
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-8, atol=1e-10)


def test_steps_from_forked_rows_answer_the_same_and_leave_the_histories_alone() -> None:
    model, prompts = make_model(), make_prompts()
    tokens = EhrMambaTokens.of_streams(make_streams())
    with torch.no_grad():
        forks = model.forks(tokens, prompts.position)
    before = [(b.conv.clone(), b.scan.clone()) for b in forks.state.blocks]
    stepped = model.step_prompts(prompts, forks)
    torch.testing.assert_close(
        stepped, model.answers(tokens, prompts).detach(), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(model.step_prompts(prompts, forks), stepped)
    for held, (conv, scan) in zip(forks.state.blocks, before, strict=True):
        assert torch.equal(held.conv, conv)
        assert torch.equal(held.scan, scan)


def test_a_history_is_read_once_however_many_tasks_are_asked() -> None:
    model, prompts = make_model(), make_prompts()
    tokens = EhrMambaTokens.of_streams(make_streams())
    read: list[int] = []
    model.backbone.register_forward_pre_hook(lambda _, given: read.append(len(given[0])))
    at_end = np.repeat(tokens.cu_seqlens[1:].numpy() - 1, 3)  # all tasks of all subjects
    forks = model.forks(tokens, at_end)
    assert read == [len(tokens)]
    assert len(forks.state) == len(LENGTHS)
    read.clear()
    model.forks(tokens, prompts.position)
    asked_until = {5: 6, 6: 1, 35: 29, 47: 11}  # the last question of each subject
    assert sum(read) == sum(asked_until.values())


def test_the_history_of_a_task_does_not_hang_on_the_task() -> None:
    model, prompts = make_model(), make_prompts()
    tokens = EhrMambaTokens.of_streams(make_streams())
    answers = model.answers(tokens, prompts)
    other = replace(prompts, word=np.where(prompts.row == 2, 0, prompts.word))
    changed = model.answers(tokens, other)
    assert [k for k in range(len(prompts)) if not torch.equal(answers[k], changed[k])] == [2]


def test_a_full_row_is_asked_at_its_last_word_and_not_at_its_first() -> None:
    model = make_model()
    streams = make_streams()
    prompts = replace(make_prompts(), position=np.full(len(POSITIONS), 36))  # end of the longest
    answers = model.answers(EhrMambaTokens.of_streams(streams), prompts)
    for place, moves in ((36, True), (7, True), (37, False), (5, False)):
        word = streams.word.copy()
        word[place] = (word[place] + 1) % (N_WORDS - N_TASKS) + N_TASKS
        changed = EhrMambaTokens.of_streams(replace(streams, word=word))
        assert torch.equal(model.answers(changed, prompts), answers) != moves


def test_the_wait_and_the_age_at_the_moment_reach_the_answer() -> None:
    model, prompts = make_model(), make_prompts()
    tokens = EhrMambaTokens.of_streams(make_streams())
    answers = model.answers(tokens, prompts)
    for changes in ({"gap_hours": prompts.gap_hours + 1}, {"age_years": prompts.age_years + 1}):
        other = model.answers(tokens, replace(prompts, **changes))
        assert float((other - answers).detach().abs().min()) > 1e-6


def test_the_next_word_is_asked_within_a_subject_alone() -> None:
    model = make_model()
    tokens = EhrMambaTokens.of_streams(make_streams())
    chances = torch.log_softmax(model.next_word(model(tokens)), -1)
    borders = tokens.cu_seqlens.tolist()
    own = [t for a, b in itertools.pairwise(borders) for t in range(a, b - 1)]
    expected = -torch.stack([chances[t, tokens.word[t + 1]] for t in own]).mean()
    torch.testing.assert_close(model.loss(tokens), expected)
    lone = tokens.at(torch.tensor([0, 7]), torch.tensor([0, 1, 2]))
    with pytest.raises(InputError, match="no_targets"):
        model.loss(lone)


def test_each_task_counts_alike_and_unlabelled_questions_not_at_all() -> None:
    model, prompts = make_model(), make_prompts()
    tokens = EhrMambaTokens.of_streams(make_streams())
    label = prompts.label.copy()
    label[1] = -1
    answers = torch.log_softmax(model.answers(tokens, prompts), -1)
    means = [
        -torch.stack([answers[k, label[k]] for k in range(len(TASKS)) if TASKS[k] == t and k != 1])
        .mean()
        for t in range(N_TASKS)
    ]  # fmt: skip
    found = model.answer_loss(tokens, replace(prompts, label=label))
    torch.testing.assert_close(found, torch.stack(means).mean())
    with pytest.raises(InputError, match="no_labels"):
        model.answer_loss(tokens, replace(prompts, label=np.full(len(TASKS), -1)))


def test_pretraining_and_prompting_learn_every_parameter() -> None:
    model, prompts = make_model(), make_prompts()
    tokens = EhrMambaTokens.of_streams(make_streams())
    (model.loss(tokens) + model.answer_loss(tokens, prompts)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_prompted_tasks_can_be_learnt_apart() -> None:
    """Two tasks of opposite answers from the same histories: only the prompt tells them apart."""
    model = make_model()
    tokens = EhrMambaTokens.of_streams(make_streams())
    ends = tokens.cu_seqlens[1:].numpy() - 1
    truth = np.arange(4) % 2
    prompts = EhrMambaPrompts(
        position=np.tile(ends, 2), word=np.repeat([0, 1], 4), gap_hours=np.ones(8),
        age_years=np.full(8, 50.0), label=np.concatenate([truth, 1 - truth]),
        task=np.repeat(["a", "b"], 4), row=np.arange(8),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model.answer_loss(tokens, prompts).backward()
        optimizer.step()
    assert model.answers(tokens, prompts).argmax(1).tolist() == prompts.label.tolist()


def test_the_defaults_are_the_published_sizes() -> None:
    config = EhrMambaConfig(100)
    backbone = config.backbone
    assert (backbone.d_model, backbone.n_layers, backbone.d_state) == (768, 32, 16)
    assert (backbone.expand, backbone.d_conv, config.dropout) == (2, 4, 0.1)
    assert (config.time_width, config.n_visits) == (32, 512)
    assert (backbone.input, backbone.real_time, backbone.inner_norm) == ("euler", False, False)


def test_a_backbone_in_real_time_and_places_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="not_mamba1"):
        EhrMamba(EhrMambaConfig(10, MambaConfig(d_model=8, n_layers=1)))
    model, tokens = make_model(), EhrMambaTokens.of_streams(make_streams())
    for position in ([], [-1], [48]):
        with pytest.raises(InputError, match="bad_position"):
            model.forks(tokens, np.array(position, np.int64))
