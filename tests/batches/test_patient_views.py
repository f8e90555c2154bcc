"""Views of a patient in one batch: each is the stream of its store, and they do not touch."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tsfm import schema
from tsfm.batches.dataset import TokenDataset
from tsfm.batches.patient_views import NO_KEY, PatientViews, Rehearsal, View
from tsfm.errors import InputError
from tsfm.tokens.token_store import TokenStore


@pytest.fixture(scope="module")
def store(tiny_hospital: Any) -> TokenStore:
    return TokenStore.open(tiny_hospital.tokens)


def two_views(store: TokenStore, **options: Any) -> PatientViews:
    views = [View(store), View(store, store.subjects.height)]
    return PatientViews(views, schema.TUNING, **options)


def test_one_view_is_the_plain_dataset_by_key(store: TokenStore) -> None:
    plain, views = TokenDataset(store, schema.TUNING), PatientViews([View(store)], schema.TUNING)
    for a, b in zip(plain.batches(max_tokens=2000), views.batches(max_tokens=2000), strict=True):
        for name in vars(a):
            if name != "subject_id":
                assert torch.equal(getattr(a, name), getattr(b, name)), name
        ids = store.subjects[schema.SUBJECT_ID].to_numpy()[b.subject_id.numpy()]
        assert ids.tolist() == a.subject_id.tolist()


def test_both_views_of_a_patient_stand_in_one_batch(store: TokenStore) -> None:
    views, n = two_views(store), store.subjects.height
    assert views.length.sum() == 2 * TokenDataset(store, schema.TUNING).n_tokens
    for batch in views.batches(max_tokens=3000):
        keys = batch.subject_id.tolist()
        half = len(keys) // 2
        assert keys[half:] == [key + n for key in keys[:half]]
        own = batch.n_tokens // 2
        assert torch.equal(batch.code[:own], batch.code[own:])
        assert torch.equal(batch.age_years[:own], batch.age_years[own:])
    assert sorted(views.keys.tolist()) == sorted({*views.keys.tolist()})


def test_a_cohort_is_keyed_in_its_own_order(store: TokenStore) -> None:
    ids = store.subjects[schema.SUBJECT_ID].to_list()
    cohort = pl.DataFrame({schema.SUBJECT_ID: [ids[3], -5, ids[0], ids[3]], "x": [1, 2, 3, 4]})
    keyed = View(store, 100).keyed(cohort)
    assert keyed[schema.SUBJECT_ID].to_list() == [103, NO_KEY, 100, 103]
    assert keyed["x"].to_list() == [1, 2, 3, 4]
    assert keyed.columns == cohort.columns


def test_a_patient_whom_one_view_does_not_know_has_the_other(store: TokenStore) -> None:
    from dataclasses import replace

    known = store.subjects.filter(pl.col("split") == schema.TUNING)[schema.SUBJECT_ID][0]
    less = replace(store, subjects=store.subjects.filter(pl.col(schema.SUBJECT_ID) != known))
    views = PatientViews(
        [View(store), View(less, store.subjects.height)], schema.TUNING, subjects={known}
    )
    assert views.batch(np.array([0])).n_subjects == 1


def test_keys_that_overlap_are_refused(store: TokenStore) -> None:
    with pytest.raises(InputError, match="overlapping_keys"):
        PatientViews([View(store), View(store, 5)], schema.TUNING)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.5, 0.8])
def test_rehearsal_takes_its_share_of_the_batches_anew_each_epoch(
    store: TokenStore, share: float
) -> None:
    n = store.subjects.height
    current = PatientViews([View(store)], schema.TRAIN)
    earlier = PatientViews([View(store, n)], schema.TRAIN)
    both = Rehearsal(current, earlier, share)
    plans = [both.plan(max_tokens=1000, seed=0, epoch=e) for e in (0, 1)]
    again = both.plan(max_tokens=1000, seed=0, epoch=0)
    assert all(np.array_equal(a, b) for a, b in zip(plans[0], again, strict=True))
    for epoch, plan in enumerate(plans):
        batches = [both.batch(chosen) for chosen in plan]
        of_earlier = [bool((b.subject_id >= n).all()) for b in batches]
        assert all(bool((b.subject_id >= n).any()) == e
                   for b, e in zip(batches, of_earlier, strict=True))  # fmt: skip
        own = [b for b, e in zip(batches, of_earlier, strict=True) if not e]
        assert sum(b.n_tokens for b in own) == current.n_tokens
        assert sum(of_earlier) == max(share > 0, round(len(own) * share / (1 - share)))
        if epoch and share:
            assert not np.array_equal(np.concatenate(plans[0]), np.concatenate(plan))
