"""A second site: rehearsal comes in its share, and what is forgotten is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tests.training.conftest import FIVE, QUICK
from tsfm import schema
from tsfm.errors import InputError, ModelMismatch
from tsfm.models.checkpoint import load_model
from tsfm.training.continual import ContinualResult, SiteData, continual_finetune
from tsfm.training.loop import TrainConfig
from tsfm.training.multitask import shared_loss
from tsfm.training.task_answers import task_losses

TASKS = ("readmission_30d", "length_of_stay_bins")
HARD = replace(QUICK, train=TrainConfig(epochs=4, max_tokens=4096, lr=1e-2), pretraining_weight=0.0)


def contrary(cohorts: dict[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """The same hospital with other answers: what is learnt there is wrong here."""
    asked = cohorts["length_of_stay_bins"].filter("eligible")["outcome"]
    rarest = asked.value_counts().sort("count", "outcome")["outcome"][0]
    lengths = cohorts["length_of_stay_bins"].with_columns(
        outcome=pl.when("eligible").then(pl.lit(rarest))
    )
    readmissions = cohorts["readmission_30d"].with_columns(
        outcome=pl.when("eligible").then(pl.lit("event")),
        outcome_days=pl.when("eligible").then(pl.lit(2.0)),
    )
    return {"readmission_30d": readmissions, "length_of_stay_bins": lengths}


@pytest.fixture(scope="module")
def gone_on(five_tasks: Any, tiny_hospital: Any, tmp_path_factory: Any) -> Any:
    """Go on at a contrary site, with and without rehearsal."""
    root = tmp_path_factory.mktemp("sites")
    own = {name: five_tasks.cohorts[name] for name in TASKS}
    first = SiteData(tiny_hospital.tokens, own)
    second = SiteData(tiny_hospital.tokens, contrary(own))

    def go(rehearsal: float) -> tuple[ContinualResult, Path]:
        out = root / f"{rehearsal}"
        result = continual_finetune(
            five_tasks.model, second, first, out, rehearsal=rehearsal, config=HARD, progress=False
        )
        return result, out

    return {share: go(share) for share in (0.0, 0.5)}


def test_what_was_forgotten_is_the_loss_that_the_first_site_gained(
    gone_on: Any, five_tasks: Any, tiny_hospital: Any
) -> None:
    result, out = gone_on[0.0]
    site = five_tasks.site(tiny_hospital, *TASKS)
    before = task_losses(five_tasks.loaded.model, site, schema.TUNING)
    after = task_losses(load_model(out).model, site, schema.TUNING)
    assert result.before == pytest.approx(before, rel=1e-5)
    assert result.after == pytest.approx(after, rel=1e-5)
    for name in TASKS:
        assert result.forgetting[name] == pytest.approx(after[name] - before[name], rel=1e-3)
        assert result.forgetting[name] > 0.01
        assert load_model(out).facts[f"{name}.forgetting"] == result.forgetting[name]
    assert "forgotten" in result.as_text()
    assert len(result.as_text().splitlines()) == 3


def test_rehearsal_forgets_less(gone_on: Any) -> None:
    without, with_it = gone_on[0.0][0].forgetting, gone_on[0.5][0].forgetting
    assert all(with_it[name] < without[name] for name in TASKS)


def test_heads_of_tasks_that_are_not_gone_on_with_stay(gone_on: Any, five_tasks: Any) -> None:
    old, new = five_tasks.loaded, load_model(gone_on[0.5][1])
    assert new.model.config == old.model.config
    assert set(new.calibration) == set(FIVE)
    assert new.facts["rehearsal"] == 0.5


def test_a_share_that_is_none_and_a_first_site_of_unknown_tasks_are_refused(
    five_tasks: Any, tiny_hospital: Any, tmp_path: Path
) -> None:
    site = SiteData(tiny_hospital.tokens, {TASKS[0]: five_tasks.cohorts[TASKS[0]]})
    with pytest.raises(InputError, match="bad_share"):
        continual_finetune(five_tasks.model, site, site, tmp_path / "a", rehearsal=1.0)
    with pytest.raises(ModelMismatch, match="task_not_trained"):
        continual_finetune(tiny_hospital.pretrained, site, site, tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_two_sites_may_number_their_patients_alike(five_tasks: Any, tiny_hospital: Any) -> None:
    first = five_tasks.site(tiny_hospital, *TASKS)
    second = five_tasks.site(tiny_hospital, *TASKS, first_key=first.views[-1].end_key)
    chosen = np.arange(3)
    batches = [site.patients(schema.TUNING).batch(chosen) for site in (first, second)]
    for site, other in ((0, 1), (1, 0)):
        question = (first, second)[site].questions[0]
        assert len(question.index.points_in(batches[site])) > 0
        assert len(question.index.points_in(batches[other])) == 0


def test_an_earlier_sites_own_task_is_rehearsed(five_tasks: Any, tiny_hospital: Any) -> None:
    model, (old, new) = five_tasks.loaded.model, TASKS
    site = five_tasks.site(tiny_hospital, new)
    earlier = five_tasks.site(tiny_hospital, old, first_key=site.views[-1].end_key)
    config = replace(HARD, task_weights={old: 3.0})
    loss = shared_loss([site, earlier], config)
    model.train()
    batch = earlier.patients(schema.TRAIN).batch(np.arange(20))
    value = loss(model, batch, model(batch))
    assert value is not None
    assert value[2].keys() == {old}
    model.eval()
    # Every stay of a site's only task weighs alike: the mean, in its share of both sites' tasks.
    with torch.no_grad():
        hidden = model(batch)
        each = earlier.questions[0].losses(model, batch, hidden)
        model.training = True  # the weights of training, without its dropout
        value = loss(model, batch, hidden)
    assert value is not None
    assert value[0].item() == pytest.approx(0.75 * each.mean().item(), rel=1e-5)
    model.eval()
    batch = site.patients(schema.TUNING).batch(np.arange(10))
    with torch.no_grad():
        value = loss(model, batch, model(batch))
        each = site.questions[0].losses(model, batch, model(batch))
    assert value is not None
    assert value[0].item() == pytest.approx(each.mean().item(), rel=1e-5)


def test_rehearsal_teaches_a_head_that_the_second_site_does_not_ask(
    five_tasks: Any, tiny_hospital: Any, tmp_path: Path
) -> None:
    new, old = TASKS[1], TASKS[0]
    first = SiteData(tiny_hospital.tokens, {old: five_tasks.cohorts[old]})
    second = SiteData(tiny_hospital.tokens, {new: five_tasks.cohorts[new]})
    before = five_tasks.loaded.model.task_head(old).baseline
    for share in (0.0, 0.5):
        out = tmp_path / f"{share}"
        continual_finetune(
            five_tasks.model, second, first, out, rehearsal=share, config=HARD, progress=False
        )
        after = load_model(out).model.task_head(old).baseline
        assert torch.allclose(after, before, rtol=1e-6, atol=0) == (share == 0)
