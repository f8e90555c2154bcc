"""Draws: inverse distribution functions, and what keeping a future from an outcome changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tsfm.models.timeline_stepper import NextToken
from tsfm.rollouts.draws import draw_tokens, draw_values
from tsfm.rollouts.random_streams import PER_STEP, uniforms
from tsfm.rollouts.waits import Waits

N_CODES, N_ROWS = 150, 20_000
# Half of the codes, so that keeping a future from them changes much.
SET = np.arange(0, N_CODES, 2)
MEMBER = torch.zeros(N_CODES, 1)
MEMBER[SET] = 1.0


def make_law(n_rows: int = N_ROWS, n_codes: int = N_CODES) -> NextToken:
    logits = torch.randn(n_codes, generator=torch.Generator().manual_seed(0)) * 2
    one = torch.ones(n_rows)
    return NextToken(logits.expand(n_rows, -1).clone(), -one, 2.0 * one, 0.0 * one)


def draw(left_hours: float = 12.0, *, keep_out: bool = False, n_rows: int = N_ROWS):
    law, rng = make_law(n_rows), np.random.default_rng(0)
    u = torch.from_numpy(rng.random((2, n_rows)))
    waits = Waits.create(law, torch.zeros(n_rows, dtype=torch.float64))
    left = torch.full((n_rows,), left_hours, dtype=torch.float64)
    drawn = draw_tokens(law, waits, MEMBER, u[0], u[1], left, keep_out=keep_out)
    within = float(waits.within(left)[0])
    chances = torch.softmax(law.code_logits[0].double(), -1).numpy()
    return drawn, chances, within


def test_codes_come_as_often_as_the_model_says() -> None:
    drawn, chances, within = draw()
    counts = np.bincount(drawn.code, minlength=N_CODES)
    chi = ((counts - N_ROWS * chances) ** 2 / (N_ROWS * chances)).sum()
    assert chi == pytest.approx(N_CODES - 1, abs=4 * np.sqrt(2 * N_CODES))
    np.testing.assert_allclose(drawn.in_set[:, 0], chances[SET].sum(), rtol=1e-5)
    assert np.mean(drawn.wait_hours <= 12.0) == pytest.approx(within, abs=0.015)


@pytest.mark.parametrize("n_codes", [1, 63, 64, 65, 200])
def test_the_code_at_a_share_of_the_sum_is_found_whatever_the_size(n_codes: int) -> None:
    rng = np.random.default_rng(n_codes)
    logits = torch.from_numpy(rng.normal(size=(1, n_codes)) * 3).float()
    ends = torch.cumsum(torch.softmax(logits.double(), -1)[0], 0)
    starts = torch.cat([torch.zeros(1, dtype=torch.float64), ends[:-1]])
    u = torch.cat([starts + 0.01 * (ends - starts), starts + 0.99 * (ends - starts)])
    rows, one = len(u), torch.ones(len(u))
    law = NextToken(logits.expand(rows, -1).clone(), one, one, one)
    waits = Waits.create(law, torch.zeros(rows, dtype=torch.float64))
    member = torch.zeros(n_codes, 0)
    drawn = draw_tokens(law, waits, member, u, u, u, keep_out=False)
    # Codes so rare that float32 logits blur where they begin are left out.
    sure = np.tile((ends - starts).numpy() > 1e-5, 2)
    assert np.array_equal(drawn.code[sure], np.tile(np.arange(n_codes), 2)[sure])


def test_kept_from_an_outcome_waits_and_codes_are_those_given_that_it_does_not_come() -> None:
    free, chances, within = draw()
    kept, _, _ = draw(keep_out=True)
    q = chances[SET].sum()
    assert not np.isin(kept.code, SET).any()
    in_time = kept.wait_hours <= 12.0
    assert in_time.mean() == pytest.approx(within * (1 - q) / (1 - q * within), abs=0.012)
    # What the ordinary draws are, once those that meet the outcome are thrown away.
    left = ~(np.isin(free.code, SET) & (free.wait_hours <= 12.0))
    assert in_time.mean() == pytest.approx((free.wait_hours[left] <= 12.0).mean(), abs=0.015)
    for part in (0.25, 0.5, 0.75):
        mine = np.quantile(kept.wait_hours[in_time], part)
        theirs = np.quantile(free.wait_hours[left & (free.wait_hours <= 12.0)], part)
        assert mine == pytest.approx(theirs, rel=0.06, abs=0.05)


def test_values_are_normal_and_stay_where_the_head_was_trained() -> None:
    u = torch.tensor([0.0, 0.5, 0.8413447, 1 - 1e-16], dtype=torch.float64)
    values = draw_values(torch.full((4,), 1.0), torch.full((4,), 2.0), u)
    np.testing.assert_allclose(values, [-6.0, 1.0, 3.0, 6.0], atol=1e-5)
    assert values.dtype == np.float32


def test_a_stream_is_the_same_drawn_at_once_or_in_parts() -> None:
    whole = uniforms(5, -7, 3, first_step=0, n_steps=40)
    parts = [uniforms(5, -7, 3, first_step=at, n_steps=10) for at in (0, 10, 20, 30)]
    assert whole.shape == (40, PER_STEP)
    assert np.array_equal(np.concatenate(parts), whole)


def test_no_two_streams_share_a_number() -> None:
    keys = [(s, i, f) for s in (0, 1) for i in (1, 2, 2**40, -1) for f in (0, 1, 99)]
    numbers = [uniforms(*key, first_step=0, n_steps=50).ravel() for key in keys]
    assert len(np.unique(np.concatenate(numbers))) == len(keys) * 50 * PER_STEP
    assert np.concatenate(numbers).mean() == pytest.approx(0.5, abs=0.02)
