"""Futures of a loaded model as events that a person can read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tsfm import schema
from tsfm.batches.batch import make_batch
from tsfm.errors import InputError
from tsfm.models.checkpoint import ModelDirectory
from tsfm.rollouts.futures import FutureTokens
from tsfm.rollouts.outcomes import Outcome
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
    assert events.columns == [
        "subject_id", "future", "time", "available_time", "code", "numeric_value",
    ]  # fmt: skip
    assert events.height == len(futures.tokens) == futures.n_tokens.sum() > 50
    assert set(events[schema.SUBJECT_ID]) == set(tokens["subject_id"].tolist())
    assert set(events["future"]) == {0, 1, 2}
    assert events[schema.TIME].dtype == events[schema.AVAILABLE_TIME].dtype == pl.Datetime("us")
    lag = (events[schema.AVAILABLE_TIME] - events[schema.TIME]).dt.total_microseconds() / 3.6e9
    np.testing.assert_allclose(lag, futures.tokens.lag_hours, atol=1e-6)
    assert (lag > 0).any()
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
        times = own[schema.AVAILABLE_TIME].cast(pl.Int64).to_numpy() / 1e6
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


def test_an_outcome_of_a_class_has_all_that_is_below_it() -> None:
    icd = "DIAGNOSIS//ICD//10//"
    vocabulary = Vocabulary(
        ("UNK", f"{icd}E11", f"{icd}E119", f"{icd}I50", f"{icd}I509", "MEDS_DEATH")
    )
    found = Outcome.of_classes(
        "diabetes", vocabulary, [f"{icd}E11"], horizon_days=30.0, competing=[f"{icd}I50"]
    )
    assert (found.codes, found.competing) == ((1, 2), (3, 4))


def test_an_outcome_of_a_string_or_of_an_unknown_code_is_refused() -> None:
    vocabulary = Vocabulary(("UNK", "HOSPITAL_ADMISSION", "MEDS_DEATH"))
    for classes, competing, code in (
        ("HOSPITAL_ADMISSION", (), "bad_outcome"),
        (["HOSPITAL_ADMISSION"], "MEDS_DEATH", "bad_outcome"),
        (["HOSPITAL_"], (), "unknown_outcome_code"),
    ):
        with pytest.raises(InputError, match=code):
            Outcome.of_classes("x", vocabulary, classes, horizon_days=1.0, competing=competing)
