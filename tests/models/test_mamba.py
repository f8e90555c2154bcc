"""The Mamba stack goes on from where it stopped: by stretches, by tokens, by forks."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tsfm.errors import InputError
from tsfm.models.checkpoint import read_config
from tsfm.models.mamba import Mamba, MambaConfig, MambaState

BORDERS = torch.tensor([0, 1, 12, 15, 30])
N_TOKENS, D_MODEL = 30, 8
FORMS = {
    "ours": {},
    "held": {"input": "zoh", "conv_bias": False, "proj_bias": True, "dt_rank": 3},
    "rising": {"input": "foh", "inner_norm": False, "d_conv": 2},
    "mamba1": {"input": "euler", "inner_norm": False, "real_time": False},
}


def make_model(form: str = "ours", dtype: torch.dtype = torch.float32) -> Mamba:
    torch.manual_seed(0)
    config = MambaConfig(d_model=D_MODEL, n_layers=2, d_state=4, **FORMS[form])
    model = Mamba(config).eval().to(dtype)
    with torch.no_grad():  # no parameter at a value that hides it
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def make_tokens(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N_TOKENS, D_MODEL, generator=generator, dtype=dtype)
    return x, torch.rand(N_TOKENS, generator=generator, dtype=dtype) * 40


def cut(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens of the first stretch of each subject and of the rest, with their borders."""
    starts, ends = BORDERS[:-1].tolist(), BORDERS[1:].tolist()
    firsts = [torch.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]
    rests = [torch.arange(s + n, e) for s, n, e in zip(starts, lengths, ends, strict=True)]
    borders = [
        torch.tensor([0, *itertools.accumulate(len(p) for p in parts)])
        for parts in (firsts, [r for r in rests if len(r)])
    ]
    return torch.cat(firsts), torch.cat(rests), borders[0], borders[1]


def rows_of(state: MambaState, rows: list[int]) -> MambaState:
    return MambaState(tuple(type(b)(b.conv[rows], b.scan[rows]) for b in state.blocks))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lengths", [[1, 1, 2, 14], [1, 2, 1, 3], [1, 10, 2, 1]])
def test_a_subject_goes_on_from_its_state(form: str, lengths: list[int]) -> None:
    model, (x, gap) = make_model(form), make_tokens()
    whole, last = model(x, gap, BORDERS, return_state=True)
    first, rest, first_borders, rest_borders = cut(lengths)
    before, state = model(x[first], gap[first], first_borders, return_state=True)
    torch.testing.assert_close(before, whole[first], rtol=1e-4, atol=1e-5)
    # The first subject has one token: it is over and has no part in what follows.
    after, final = model(
        x[rest], gap[rest], rest_borders, state=rows_of(state, [1, 2, 3]), return_state=True
    )
    torch.testing.assert_close(after, whole[rest], rtol=1e-4, atol=1e-5)
    for found, expected in zip(final.blocks, rows_of(last, [1, 2, 3]).blocks, strict=True):
        torch.testing.assert_close(found.conv, expected.conv, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.scan, expected.scan, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_flow_through_the_state_as_through_one_pass(form: str) -> None:
    model, (x, gap) = make_model(form, torch.float64), make_tokens(torch.float64)
    first, rest, first_borders, rest_borders = cut([1, 4, 1, 7])
    weights = torch.randn(N_TOKENS, D_MODEL, dtype=torch.float64)
    found = []
    for stretched in (False, True):
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        if stretched:
            before, state = model(leaf[first], gap[first], first_borders, return_state=True)
            own = rows_of(state, [1, 2, 3])
            after = model(leaf[rest], gap[rest], rest_borders, state=own)
            total = (before * weights[first]).sum() + (after * weights[rest]).sum()
        else:
            total = (model(leaf, gap, BORDERS) * weights).sum()
        total.backward()
        found.append([leaf.grad, *(p.grad for p in model.parameters())])
    for stretch, whole in zip(*found, strict=True):
        torch.testing.assert_close(stretch, whole, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_a_stretch_and_then_token_by_token_is_the_whole(form: str) -> None:
    model, (x, gap) = make_model(form), make_tokens()
    start, end = 15, 30
    whole = model(x[start:end], gap[start:end])
    with torch.no_grad():
        before, state = model(x[start : start + 3], gap[start : start + 3], return_state=True)
    hidden = [before]
    for t in range(start + 3, end):
        hidden.append(model.step(x[t : t + 1], gap[t : t + 1], state))
    torch.testing.assert_close(torch.cat(hidden), whole, rtol=1e-4, atol=1e-5)


def continued(model: Mamba, history: Tensor, gaps: Tensor, token: Tensor, gap: Tensor) -> Tensor:
    """Hidden state of a token after a history, in one pass."""
    return model(torch.cat([history, token[None]]), torch.cat([gaps, gap[None]]))[-1]


@pytest.mark.parametrize("form", FORMS)
def test_a_rollout_forks_a_subject_by_index(form: str) -> None:
    model, (x, gap) = make_model(form), make_tokens()
    (tokens, waits), borders = make_tokens(seed=1), torch.tensor([0, 5, 12])
    with torch.no_grad():
        _, state = model(x[:12], gap[:12], borders, return_state=True)
    state = state.with_rows(6)
    sources, targets = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 2, 5, 3])
    histories = [(x[:5], gap[:5]), (x[5:12], gap[5:12])]

    first = model.step(tokens[:4], waits[:4], state, sources, targets)
    second = model.step(tokens[4:8], waits[4:8], state, targets, targets)
    for row, source in enumerate(sources.tolist()):
        past, gaps = histories[source]
        expected = continued(model, past, gaps, tokens[row], waits[row])
        torch.testing.assert_close(first[row], expected, rtol=1e-4, atol=1e-5)
        past, gaps = torch.cat([past, tokens[row][None]]), torch.cat([gaps, waits[row][None]])
        expected = continued(model, past, gaps, tokens[4 + row], waits[4 + row])
        torch.testing.assert_close(second[row], expected, rtol=1e-4, atol=1e-5)


def test_two_subjects_may_change_places_in_one_step() -> None:
    model, (x, gap) = make_model(), make_tokens()
    with torch.no_grad():
        _, state = model(x[:12], gap[:12], torch.tensor([0, 5, 12]), return_state=True)
    swapped = state.with_rows(2)
    places = torch.tensor([0, 1])
    straight = model.step(x[12:14], gap[12:14], state, places, places)
    crossed = model.step(x[12:14], gap[12:14], swapped, places, places.flip(0))
    torch.testing.assert_close(crossed, straight)
    for found, expected in zip(swapped.blocks, state.blocks, strict=True):
        torch.testing.assert_close(found.conv, expected.conv.flip(0))
        torch.testing.assert_close(found.scan, expected.scan.flip(0))


@pytest.mark.parametrize(
    ("sources", "targets", "code"),
    [
        ([0, 2], [0, 1], "slot_out_of_range"),
        ([0, 1], [-1, 1], "slot_out_of_range"),
        ([0, 1], [1, 1], "duplicate_slots"),
        (None, [0, 1], "slot_out_of_range"),
    ],
)
def test_slots_that_cannot_be_leave_the_state_as_it_was(
    sources: list[int] | None, targets: list[int], code: str
) -> None:
    model, (x, gap) = make_model(), make_tokens()
    n_rows = 2 if sources is not None else 1
    with torch.no_grad():
        _, state = model(x[:12], gap[:12], torch.tensor([0, 5, 12]), return_state=True)
    state = rows_of(state, list(range(n_rows)))
    before = state.with_rows(n_rows)
    given = None if sources is None else torch.tensor(sources)
    with pytest.raises(InputError) as caught:
        model.step(x[12:14], gap[12:14], state, given, torch.tensor(targets))
    assert caught.value.code == code
    for found, expected in zip(state.blocks, before.blocks, strict=True):
        assert torch.equal(found.conv, expected.conv)
        assert torch.equal(found.scan, expected.scan)


def test_a_larger_table_keeps_the_rows_and_shares_nothing_with_the_old_one() -> None:
    model, (x, gap) = make_model(), make_tokens()
    _, state = model(x, gap, BORDERS, return_state=True)
    larger = state.with_rows(7)
    assert (len(state), len(larger)) == (4, 7)
    assert not any(tensor.requires_grad for block in larger.blocks for tensor in block)
    kept = [b.scan[:4].clone() for b in larger.blocks]
    model.step(x[:7], gap[:7], larger)
    for block, before in zip(state.blocks, kept, strict=True):
        assert torch.equal(block.scan, before)
        assert block.scan.requires_grad


def test_mamba1_looks_at_no_gap_and_our_form_insists_on_one() -> None:
    x, gap = make_tokens()
    model = make_model("mamba1")
    assert torch.equal(model(x, gap, BORDERS), model(x, None, BORDERS))
    with pytest.raises(InputError) as caught:
        make_model()(x, None, BORDERS)
    assert (caught.value.code, caught.value.place) == ("missing_gap", "gap_hours")


def test_a_state_of_another_model_is_refused() -> None:
    model, (x, gap) = make_model(), make_tokens()
    _, state = model(x, gap, return_state=True)
    with pytest.raises(InputError) as caught:
        model(x, gap, state=MambaState(state.blocks[:1]))
    assert (caught.value.code, caught.value.place) == ("wrong_state", "state")


def test_arguments_that_do_not_fit_the_model_are_named() -> None:
    model, (x, gap) = make_model(), make_tokens()
    _, state = model(x, gap, BORDERS, return_state=True)
    # As users call it: in tests shapes are checked before.
    forward, step = inspect.unwrap(type(model).forward), inspect.unwrap(type(model).step)
    few = gap[:2]
    for wrong, place in (
        (lambda: forward(model, x.unsqueeze(0), gap), "x"),
        (lambda: forward(model, x[:, :-1], gap), "x"),
        (lambda: step(model, x[:2, :-1], few, state), "x"),
        (lambda: step(model, x[:2], few, state, torch.ones(2, dtype=torch.int8)), "source_slots"),
        (lambda: step(model, x[:2], few, state, None, torch.tensor([0.0, 1.0])), "target_slots"),
        (lambda: state.with_rows(len(state) - 1), "n_rows"),
    ):
        with pytest.raises(InputError) as caught:
            wrong()
        assert caught.value.place == place


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_of_every_form_learns(form: str) -> None:
    model, (x, gap) = make_model(form), make_tokens()
    hidden = model(x, gap, BORDERS)
    (hidden * torch.randn_like(hidden)).sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_a_configuration_written_before_a_key_existed_is_read_with_its_default() -> None:
    old = ("d_model", "n_layers", "d_state", "expand", "d_conv", "dropout", "input")
    stored: dict[str, Any] = {k: getattr(MambaConfig(), k) for k in old}
    config = read_config({"n_codes": 10, "backbone": stored})
    assert config.backbone == MambaConfig()
    names = {name for name, _ in Mamba(config.backbone).blocks[0].named_parameters()}
    assert names == {
        "conv_weight", "conv_bias", "A_log", "D", "log_gap_rate", "in_proj.weight",
        "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "norm.weight", "out_proj.weight",
    }  # fmt: skip


def test_mamba1_has_the_parameters_of_mamba1() -> None:
    config = MambaConfig.mamba1(d_model=20, n_layers=1, d_state=16)
    shapes = {n: tuple(p.shape) for n, p in Mamba(config).blocks[0].named_parameters()}
    assert shapes == {
        "conv_weight": (40, 4), "conv_bias": (40,), "A_log": (40, 16), "D": (40,),
        "in_proj.weight": (80, 20), "x_proj.weight": (2 + 32, 40), "dt_proj.weight": (40, 2),
        "dt_proj.bias": (40,), "out_proj.weight": (20, 40),
    }  # fmt: skip
