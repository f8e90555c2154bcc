"""Probes read frozen states; patients are not shared; few labels give a curve with its spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.training.conftest import FIVE
from tsfm import schema
from tsfm.batches.dataset import CohortIndex, TokenDataset
from tsfm.errors import InputError
from tsfm.models.checkpoint import load_model
from tsfm.tasks.registry import task_named
from tsfm.tokens.token_store import TokenStore
from tsfm.training import probe
from tsfm.training.probe import FrozenStates, few_shot_curve, frozen_states, linear_probe

TASK = "readmission_30d"


def digests(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_states_are_those_at_the_prediction_times_with_the_labels_of_the_task(
    five_tasks: Any, tiny_hospital: Any
) -> None:
    from tsfm.tasks.registry import labels_of

    cohort = five_tasks.cohorts[TASK]
    found = frozen_states(tiny_hospital.pretrained, tiny_hospital.tokens, cohort, TASK)
    labels = labels_of(cohort, task_named(TASK))
    assert len(found.label) == labels.height
    assert found.label.sum() == labels[schema.BOOLEAN_VALUE].sum()
    model = load_model(tiny_hospital.pretrained).model
    one = int(found.subject_id[0])
    data = TokenDataset(TokenStore.open(tiny_hospital.tokens), None, subjects={one})
    batch = data.batch(np.array([0]))
    known = labels.filter(pl.col(schema.SUBJECT_ID) == one)
    points = CohortIndex.create(
        known.with_columns(outcome=pl.lit("event"), outcome_days=pl.lit(1.0))
    ).points_in(batch)
    expected = model(batch).detach()[points.position].numpy()
    own = found.states[found.subject_id == one]
    np.testing.assert_allclose(own[:, :-1], expected, rtol=1e-4, atol=1e-5)


def test_a_patient_is_in_one_split_alone(five_tasks: Any, tiny_hospital: Any) -> None:
    cohort = five_tasks.cohorts[TASK]
    found = frozen_states(tiny_hospital.pretrained, tiny_hospital.tokens, cohort, TASK)
    owners = {s: set(found.subject_id[found.of_split(s)].tolist()) for s in schema.SPLITS}
    assert sum(map(len, owners.values())) == len(set.union(*owners.values()))


@pytest.mark.parametrize("name", [n for n in FIVE if n != "mortality_in_hospital"])  # two deaths
def test_any_task_can_be_probed_and_the_model_stays_as_it_is(
    five_tasks: Any, tiny_hospital: Any, name: str
) -> None:
    before = digests(tiny_hospital.pretrained)
    result = linear_probe(
        tiny_hospital.pretrained, tiny_hospital.tokens, five_tasks.cohorts[name], name,
        hidden_tokens=five_tasks.hidden,
    )  # fmt: skip
    assert digests(tiny_hospital.pretrained) == before
    assert result.penalty in probe.PENALTIES
    assert result.n_training > result.n_scored > 0
    assert np.isfinite(result.log_loss)
    assert np.isnan(result.auroc) or 0 <= result.auroc <= 1


def made_up(n_patients: int = 200, noise: float = 0.5) -> FrozenStates:
    """States of which one channel says the class, two stays a patient."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 2 * n_patients)
    states = rng.normal(size=(2 * n_patients, 6)).astype(np.float32)
    states[:, 2] += (2 * label - 1) / noise
    subject = np.repeat(np.arange(n_patients), 2)
    split = np.array([schema.SPLITS[min(s % 5, 2)] for s in subject.tolist()])
    split[subject % 5 > 2] = schema.TRAIN
    return FrozenStates(states, label, subject, split, ("false", "true"))


def test_what_a_state_says_is_found_and_more_patients_find_more_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "frozen_states", lambda *_, **__: made_up(noise=1.0))
    nothing = pl.DataFrame()
    result = linear_probe("", "", nothing, TASK)
    assert result.auroc > 0.85
    assert result.n_training == 240
    curve = few_shot_curve("", "", nothing, TASK, n_subjects=(2, 8, 100, 999), n_draws=8)
    assert curve["n_subjects"].to_list() == [2, 8, 100]  # there are 120
    assert curve["n_stays"].to_list() == [4, 16, 200]
    assert curve["auroc_mean"].is_sorted()
    assert curve["auroc_sd"][0] > curve["auroc_sd"][2] > 0
    assert curve["log_loss_mean"].is_sorted(descending=True)
    assert curve.equals(
        few_shot_curve("", "", nothing, TASK, n_subjects=(2, 8, 100, 999), n_draws=8)
    )


def test_draws_of_one_class_know_its_share_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    states = made_up()
    alike = FrozenStates(
        states.states, np.where(states.split == schema.TRAIN, 1, states.label), states.subject_id,
        states.split, states.classes,
    )  # fmt: skip
    monkeypatch.setattr(probe, "frozen_states", lambda *_, **__: alike)
    curve = few_shot_curve("", "", pl.DataFrame(), TASK, n_subjects=(4,), n_draws=2)
    assert curve["auroc_mean"].to_list() == [0.5]
    share = alike.label[alike.split == schema.HELD_OUT].mean()
    expected = -share * np.log(0.9) - (1 - share) * np.log(0.1)  # eight stays, one of each added
    assert curve["log_loss_mean"][0] == pytest.approx(expected)
    with pytest.raises(InputError, match="one_class"):
        linear_probe("", "", pl.DataFrame(), TASK)
    with pytest.raises(InputError, match="too_few_subjects"):
        few_shot_curve("", "", pl.DataFrame(), TASK, n_subjects=(9999,))
    with pytest.raises(InputError, match="empty_split"):
        linear_probe("", "", pl.DataFrame(), TASK, split="x")


def test_a_class_that_was_not_seen_keeps_a_chance() -> None:
    states = made_up()
    three = FrozenStates(*list(vars(states).values())[:4], classes=("a", "b", "c"))
    chances = probe._fit(three, three.of_split(schema.TRAIN), 1.0)
    assert (chances > 0).all()
    np.testing.assert_allclose(chances.sum(1), 1)
