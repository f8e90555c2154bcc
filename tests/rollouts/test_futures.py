"""Futures of a loaded model as events that a person can read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tsfm import schema
from tsfm.batches.batch import make_batch
from tsfm.models.checkpoint import ModelDirectory
from tsfm.rollouts.futures import FutureTokens
from tsfm.rollouts.sample import FutureSource, sample_futures
from tsfm.tokens.vocabulary import Vocabulary

from .timeline_patients import DEATH, N_CODES, make_model, make_scale, make_tokens


@pytest.fixture
def directory() -> ModelDirectory:
    names = [f"LAB//{i}//mg" for i in range(N_CODES)]
    names[DEATH] = "MEDS_DEATH"
    return ModelDirectory(
        path=Path(), model=make_model(), vocabulary=Vocabulary(tuple(names)), scale=make_scale(),
        calibration={}, facts={}, hash="",
    )  # fmt: skip


def test_a_loaded_model_gives_its_own_scales_and_death(directory: ModelDirectory) -> None:
    source = FutureSource.of(directory)
    assert source.death == (DEATH,)
    assert source.scale is directory.scale


def test_events_have_names_times_and_the_codes_own_units(directory: ModelDirectory) -> None:
    tokens = make_tokens()
    futures = sample_futures(directory, make_batch(**tokens), n_futures=3, horizon_days=5.0, seed=0)
    events = futures.events(directory.vocabulary, directory.scale)
    assert events.columns == ["subject_id", "future", "time", "code", "numeric_value"]
    assert events.height == len(futures.tokens) == futures.n_tokens.sum() > 50
    assert set(events[schema.SUBJECT_ID]) == set(tokens["subject_id"].tolist())
    assert set(events["future"]) == {0, 1, 2}
    assert events[schema.TIME].dtype == pl.Datetime("us")
    ids, _, _ = directory.vocabulary.encode(events[schema.CODE])
    assert np.array_equal(ids, futures.tokens.code)
    has_value = np.isfinite(directory.scale.median)[ids]
    assert np.array_equal(events[schema.NUMERIC_VALUE].is_not_null().to_numpy(), has_value)
    value = events[schema.NUMERIC_VALUE].fill_null(float("nan")).to_numpy()
    z, bins = directory.scale.apply(ids, value)
    np.testing.assert_allclose(z, futures.tokens.value, atol=1e-3)
    assert np.mean(bins == futures.tokens.bin) > 0.99  # but for values at a border
    for (subject, _), own in events.group_by("subject_id", "future"):
        last = tokens["time_s"][np.cumsum(tokens["lengths"])[subject - 1000] - 1]
        times = own[schema.TIME].cast(pl.Int64).to_numpy() / 1e6
        assert times.min() >= last - 1e-5
        assert (np.diff(times) >= 0).all()


def test_tokens_of_successive_steps_are_put_together_by_future() -> None:
    def step(future: list[int], code: list[int]) -> FutureTokens:
        n = len(future)
        real = np.zeros(n, np.float32)
        return FutureTokens(
            np.array(future), np.array(code), real, np.zeros(n, np.int64), np.zeros(n), real
        )

    gathered = FutureTokens.gather([step([0, 2], [1, 2]), step([2, 0], [3, 4]), step([1], [5])])
    assert gathered.future.tolist() == [0, 0, 1, 2, 2]
    assert gathered.code.tolist() == [1, 4, 5, 2, 3]
    assert len(FutureTokens.gather([])) == 0
