"""Features token by token are those of the whole batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsfm.batches.batch import make_batch
from tsfm.rollouts.event_steps import EventSteps, Histories

from .timeline_patients import make_scale, make_tokens

FEATURES = (
    "code", "value", "bin", "time_s", "gap_hours", "since_hours", "repeated", "change", "increment",
    "rate", "age_years", "age_known", "hour", "position", "subject_id",
)  # fmt: skip


def cut(tokens: dict[str, Any], kept: list[int]) -> dict[str, Any]:
    """The first tokens of each subject."""
    starts = np.concatenate([[0], np.cumsum(tokens["lengths"])[:-1]])
    at = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, kept, strict=True)])
    columns = ("code", "value", "bin", "time_s", "lag_hours")
    return {**tokens, **{k: tokens[k][at] for k in columns}, "lengths": np.array(kept)}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 9))
def test_a_token_that_follows_has_the_features_it_has_in_the_whole(
    seed: int, pasts: list[int], n_more: int
) -> None:
    rng = np.random.default_rng(seed)
    lengths = np.array(pasts) + n_more
    tokens = make_tokens(tuple(lengths.tolist()), seed)
    tokens["code"] = (tokens["code"] % 4 + 1).astype(np.int32)  # many repeats
    tokens["bin"] = make_scale().apply(
        tokens["code"], make_scale().invert(tokens["code"], tokens["value"])
    )[1]
    tokens["value"] = np.where(tokens["bin"] > 0, tokens["value"], np.nan).astype(np.float32)
    tokens["time_s"] = np.floor(tokens["time_s"] / 36000.0) * 36000.0  # some at one moment
    whole = make_batch(**tokens)
    steps = EventSteps.create(make_batch(**cut(tokens, pasts)), make_scale(), 9)
    rows = rng.permutation(9)[: len(pasts)]
    for subject, row in enumerate(rows.tolist()):
        steps.time_s[row] = 1.0  # what an earlier future has left there
        steps.start(row, subject)
    first = whole.cu_seqlens.numpy()[:-1] + np.array(pasts)
    for n in range(n_more):
        at = first + n
        found = steps.tokens(
            rows,
            np.arange(len(pasts)),
            np.full(len(pasts), n),
            whole.time_s.numpy()[at - 1],
            whole.code.numpy()[at],
            tokens["value"][at],
            whole.time_s.numpy()[at],
        )
        for name in FEATURES:
            expected = getattr(whole, name)
            expected = expected if name == "subject_id" else expected[at]
            torch.testing.assert_close(getattr(found, name), expected, rtol=1e-5, atol=1e-5)


def test_a_sampled_token_lags_as_the_last_one_of_its_code_did() -> None:
    tokens = make_tokens((6, 3))
    tokens["code"] = np.array([1, 2, 1, 3, 2, 1, 2, 5, 5], np.int32)
    tokens["lag_hours"] = np.arange(9, dtype=np.float32)
    past = Histories.create(make_batch(**tokens), 30)
    lags = past.lag_hours(np.array([0, 0, 0, 1, 1, 1]), np.array([1, 2, 29, 5, 2, 1]))
    assert lags.tolist() == [5.0, 4.0, 0.0, 8.0, 6.0, 0.0]
