"""Several tasks from one pass: the same answers as apart, hidden history hidden, labels sound."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tests.training.conftest import FIVE, QUICK
from tsfm import codes, schema
from tsfm.batches.dataset import CohortIndex, TokenDataset
from tsfm.errors import FormatError, InputError, ModelMismatch
from tsfm.models.checkpoint import load_model
from tsfm.models.mamba import Mamba
from tsfm.tasks.registry import any_task_named, task_named
from tsfm.tokens.token_store import TokenStore
from tsfm.training.finetune import predict_incidence
from tsfm.training.multitask import MultitaskConfig, multitask_finetune, shared_loss, with_heads
from tsfm.training.questions import UNKNOWN_CLASS, hidden_token_store, open_site
from tsfm.training.task_answers import read_answers, score_tasks, task_losses


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each pass through a backbone."""
    passes: list[int] = []
    forward = Mamba.forward

    def counted(self: Mamba, x: torch.Tensor, *rest: Any, **options: Any) -> Any:
        passes.append(len(x))
        return forward(self, x, *rest, **options)

    monkeypatch.setattr(Mamba, "forward", counted)
    return passes


def test_all_five_answers_of_all_patients_come_from_one_pass(
    five_tasks: Any, tiny_hospital: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = five_tasks.loaded
    passes = count_passes(monkeypatch)
    scores = score_tasks(
        model, tiny_hospital.tokens, five_tasks.cohorts, hidden_tokens=five_tasks.hidden,
        split=schema.HELD_OUT, max_tokens=10**9,
    )  # fmt: skip
    assert len(passes) == 1
    assert list(scores) == list(FIVE)
    for name, frame in scores.items():
        task = any_task_named(name)
        chances = frame.drop(schema.SUBJECT_ID, schema.PREDICTION_TIME)
        assert frame.height > 10
        assert chances.columns == list(getattr(task, "classes", ["probability"]))
        values = chances.to_numpy()
        assert ((values >= 0) & (values <= 1)).all()
        if len(chances.columns) > 1:
            np.testing.assert_allclose(values.sum(1), 1, atol=1e-6)


def test_a_task_answers_among_others_as_it_does_alone(five_tasks: Any, tiny_hospital: Any) -> None:
    model = five_tasks.loaded.model
    site = five_tasks.site(tiny_hospital)
    together = read_answers(model, site, site.patients(schema.TUNING))
    for question in site.questions:
        name = question.task.name
        alone = five_tasks.site(tiny_hospital, name)
        answers = read_answers(model, alone, alone.patients(schema.TUNING))
        asked = ~torch.isnan(answers[name][:, 0])
        assert asked.any()
        torch.testing.assert_close(
            together[name][asked], answers[name][asked], rtol=1e-4, atol=1e-5
        )


def test_hazards_are_those_of_the_road_for_one_task(five_tasks: Any, tiny_hospital: Any) -> None:
    """`finetune.predict_incidence` on the plain store, by subject id."""
    model, task = five_tasks.loaded.model, task_named("readmission_30d")
    site = five_tasks.site(tiny_hospital)
    question = site.questions[0]
    subjects = set(question.stays[schema.SUBJECT_ID].to_list())
    tuning = TokenDataset(TokenStore.open(tiny_hospital.tokens), schema.TUNING, subjects=subjects)
    index = CohortIndex.create(question.stays)
    rows, incidence = predict_incidence(model, tuning, index, task, 4096)
    found = read_answers(model, site, site.patients(schema.TUNING))[task.name]
    np.testing.assert_allclose(found[rows].numpy(), incidence, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_weighted_mean_of_the_tasks_means(
    five_tasks: Any, tiny_hospital: Any
) -> None:
    model, site = five_tasks.loaded.model, five_tasks.site(tiny_hospital)
    weights = {"comorbidity_charlson": 3.0, "readmission_30d": 0.5}
    config = replace(QUICK, task_weights=weights)
    loss = shared_loss([site], config)
    means = task_losses(model, site, schema.TUNING)
    expected = sum(weights.get(n, 1.0) * m for n, m in means.items()) / (3.0 + 0.5 + 3.0)
    total, n = 0.0, 0.0
    with torch.no_grad():
        for batch in site.patients(schema.TUNING).batches(max_tokens=1500):
            value = loss(model, batch, model(batch))
            assert value is not None
            assert value[0].item() == pytest.approx(sum(value[2].values()), rel=1e-4)
            total, n = total + value[0].item() * value[1], n + value[1]
    assert n == sum(site.n_stays(site.patients(schema.TUNING)).values())
    assert total / n == pytest.approx(expected, rel=1e-4)


def test_every_task_teaches_the_shared_states_and_its_own_head_alone(
    five_tasks: Any, tiny_hospital: Any
) -> None:
    model, site = five_tasks.loaded.model, five_tasks.site(tiny_hospital)
    batch = next(site.patients(schema.TRAIN).batches(max_tokens=3000))
    for question in site.questions:
        model.zero_grad()
        question.losses(model, batch, model(batch)).mean().backward()
        touched = {
            name.split(".")[1] for name, p in model.named_parameters()
            if name.startswith(("tasks.", "class_tasks.")) and p.grad is not None and p.grad.any()
        }  # fmt: skip
        assert touched == {question.task.name}
        gradient = model.embedding.code.weight.grad
        assert gradient is not None
        assert gradient.any()


def test_training_lowers_the_loss_and_is_written_with_all_its_facts(five_tasks: Any) -> None:
    history = five_tasks.result.history
    assert history[-1]["tuning_loss"] < history[0]["tuning_loss"]
    assert set(history[0]["tuning"]) == set(FIVE)
    stored = json.loads((five_tasks.model / "calibration.json").read_text())
    assert stored["length_of_stay_bins"]["temperature"] > 0
    assert set(stored["readmission_30d"]) == {"slope", "offset", "n"}
    loaded = five_tasks.loaded
    assert loaded.model.config.class_tasks == ("length_of_stay_bins", "comorbidity_charlson")
    assert loaded.model.config.n_classes == (4, 5)
    assert loaded.facts["claim_denial.n_training_stays"] > 50
    assert not five_tasks.model.with_name("model.work").exists()


def test_no_state_of_the_hidden_view_hangs_on_a_diagnosis(
    five_tasks: Any, tiny_hospital: Any
) -> None:
    model, site = five_tasks.loaded.model, five_tasks.site(tiny_hospital)
    batch = next(site.patients(schema.TUNING).batches(max_tokens=10**9))
    own = site.store.vocabulary.ids_of_class(codes.DIAGNOSIS)
    is_diagnosis = torch.from_numpy(np.isin(batch.code.numpy(), own))
    assert is_diagnosis.any()
    # Other diagnoses throughout: what is asked on hidden history does not move at all.
    changed = replace(batch, code=torch.where(is_diagnosis, own[0], batch.code))
    with torch.no_grad():
        hidden, other = model(batch), model(changed)
    for question in site.questions:
        points = question.index.points_in(batch)
        same = torch.equal(hidden[points.position], other[points.position])
        assert same == (question.task.name == "comorbidity_charlson")


def test_the_hidden_stream_is_the_stream_of_a_patient_without_diagnoses(
    five_tasks: Any, tiny_hospital: Any
) -> None:
    whole, hidden = TokenStore.open(tiny_hospital.tokens), TokenStore.open(five_tasks.hidden)
    names = np.array([codes.code_class(c) for c in whole.vocabulary.codes])
    assert hidden.vocabulary.hash == whole.vocabulary.hash
    assert codes.DIAGNOSIS in names[whole.fields["code"]]
    assert codes.DIAGNOSIS not in names[hidden.fields["code"]]
    left = (names[whole.fields["code"]] != codes.DIAGNOSIS).sum()
    assert len(hidden) == left
    shown, split = (dict(s.subjects.select("subject_id", "split").iter_rows())
                    for s in (whole, hidden))  # fmt: skip
    assert shown == split


def test_hidden_history_must_be_given_and_must_be_hidden(
    five_tasks: Any, tiny_hospital: Any, tmp_path: Path
) -> None:
    digest = five_tasks.loaded.vocabulary.hash
    cohorts = {"comorbidity_charlson": five_tasks.cohorts["comorbidity_charlson"]}
    for given, code in ((None, "no_hidden_history"), (tiny_hospital.tokens, "history_not_hidden")):
        with pytest.raises(InputError) as caught:
            open_site(tiny_hospital.tokens, cohorts, vocabulary_hash=digest, hidden_tokens=given)
        assert caught.value.code == code
    with pytest.raises(InputError, match="task_hides_nothing"):
        hidden_token_store(
            tiny_hospital.events, tmp_path / "x", task="readmission_30d",
            vocabulary_from=tiny_hospital.pretrained,
        )  # fmt: skip


def test_the_longest_patient_is_read_at_the_last_known_token_like_any_other(
    five_tasks: Any, tiny_hospital: Any
) -> None:
    site = five_tasks.site(tiny_hospital, "readmission_30d")
    patients = site.patients(None)
    longest = int(np.argmax(patients.length))
    batch = patients.batch(np.array([longest]))  # a batch with nothing beside it
    points = site.questions[0].index.points_in(batch)
    asked = site.questions[0].index.time_s[points.row.numpy()]
    times = batch.time_s.numpy()
    for position, moment in zip(points.position.tolist(), asked.tolist(), strict=True):
        assert times[position] <= moment + 1e-6
        assert position + 1 == len(times) or times[position + 1] > moment
    assert (points.position > 0).all()


def test_outcomes_and_later_tokens_do_not_reach_an_answer(
    five_tasks: Any, tiny_hospital: Any
) -> None:
    """All that the answer hangs on is known by then: cutting the rest away changes nothing."""
    model, site = five_tasks.loaded.model, five_tasks.site(tiny_hospital, "length_of_stay_bins")
    question = site.questions[0]
    batch = next(site.patients(schema.TUNING).batches(max_tokens=10**9))
    points = question.index.points_in(batch)
    code = batch.code.clone()
    last = points.position[len(points) // 2]
    code[last + 1 :] = 0
    with torch.no_grad():
        before, after = model(batch), model(replace(batch, code=code))
    earlier = points.position <= last
    assert torch.equal(before[points.position[earlier]], after[points.position[earlier]])
    swapped = five_tasks.cohorts["length_of_stay_bins"].with_columns(
        outcome=pl.lit(None, pl.String)
    )
    scored = [
        score_tasks(five_tasks.model, tiny_hospital.tokens, {"length_of_stay_bins": cohort})
        for cohort in (five_tasks.cohorts["length_of_stay_bins"], swapped)
    ]
    assert scored[0]["length_of_stay_bins"].equals(scored[1]["length_of_stay_bins"])


def test_nothing_that_is_stored_is_changed_by_asking(five_tasks: Any, tiny_hospital: Any) -> None:
    site = five_tasks.site(tiny_hospital)
    kept = {n: np.array(site.store.fields[n]) for n in site.store.fields}
    cohorts = {n: frame.clone() for n, frame in five_tasks.cohorts.items()}
    task_losses(five_tasks.loaded.model, site, schema.TUNING)
    for name, column in kept.items():
        np.testing.assert_array_equal(site.store.fields[name], column)
        assert not site.store.fields[name].flags.writeable
    assert all(five_tasks.cohorts[n].equals(frame) for n, frame in cohorts.items())


def test_stays_whose_class_is_not_known_teach_nothing(five_tasks: Any, tiny_hospital: Any) -> None:
    cohort = five_tasks.cohorts["length_of_stay_bins"]
    rows = pl.int_range(pl.len()) % 3 == 0
    unknown = cohort.with_columns(
        outcome=pl.when(rows & pl.col("eligible")).then(pl.lit("censored")).otherwise("outcome")
    )
    digest = five_tasks.loaded.vocabulary.hash
    for known in (True, False):
        site = open_site(
            tiny_hospital.tokens, {"length_of_stay_bins": unknown}, vocabulary_hash=digest,
            known=known,
        )  # fmt: skip
        question = site.questions[0]
        assert (question.label == UNKNOWN_CLASS).any() != known
        assert question.stays.height == len(question.label)
    with pytest.raises(FormatError, match="unknown_class"):
        open_site(
            tiny_hospital.tokens, {"length_of_stay_bins": five_tasks.cohorts["readmission_30d"]},
            vocabulary_hash=digest,
        )  # fmt: skip


def test_heads_that_are_there_are_kept_and_new_ones_start_from_the_training_stays(
    five_tasks: Any, tiny_hospital: Any
) -> None:
    site = five_tasks.site(tiny_hospital)
    training = site.patients(schema.TRAIN)
    start = load_model(tiny_hospital.pretrained).model
    fresh = with_heads(start, site.questions, training)
    bins = site.questions[2]
    taught = bins.label[np.isin(bins.keys, training.keys)]
    shares = (np.bincount(taught, minlength=4) + 1) / (len(taught) + 4)
    chances = torch.softmax(fresh.class_head("length_of_stay_bins").logits.bias, -1)
    np.testing.assert_allclose(chances.detach().numpy(), shares, rtol=1e-4)
    for name, tensor in start.admission.state_dict().items():
        assert torch.equal(tensor, fresh.tasks["readmission_30d"].state_dict()[name])
    tuned = five_tasks.loaded.model
    again = with_heads(tuned, site.questions, training)
    for name, tensor in tuned.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_an_old_model_without_class_heads_still_loads(tiny_hospital: Any, tmp_path: Path) -> None:
    from tsfm.models.checkpoint import read_config

    stored = json.loads((tiny_hospital.pretrained / "config.json").read_text())["model"]
    old = {k: v for k, v in stored.items() if k not in ("class_tasks", "n_classes")}
    assert read_config(old) == load_model(tiny_hospital.pretrained).model.config
    with pytest.raises(ModelMismatch, match="task_not_trained"):
        load_model(tiny_hospital.pretrained).model.class_head("length_of_stay_bins")


def test_what_cannot_be_trained_is_refused(
    five_tasks: Any, tiny_hospital: Any, tmp_path: Path
) -> None:
    def tune(cohorts: dict[str, pl.DataFrame], **changes: Any) -> None:
        multitask_finetune(
            tiny_hospital.pretrained, changes.pop("tokens", tiny_hospital.tokens), cohorts,
            tmp_path / "out", progress=False, config=MultitaskConfig(QUICK.train, **changes),
        )  # fmt: skip

    one = {"readmission_30d": five_tasks.cohorts["readmission_30d"]}
    with pytest.raises(InputError, match="no_tasks"):
        tune({})
    with pytest.raises(InputError, match="unknown_task"):
        tune({"x": one["readmission_30d"]})
    with pytest.raises(InputError, match="empty_cohort"):
        tune({"readmission_30d": one["readmission_30d"].clear()})
    for weights in ({"readmission_30d": 0.0}, {"mortality_in_hospital": 1.0}):
        with pytest.raises(InputError, match="bad_task_weights"):
            tune(one, task_weights=weights)
    shutil.copytree(tiny_hospital.tokens, tmp_path / "tokens")
    other = TokenStore.open(tmp_path / "tokens")
    vocabulary = type(other.vocabulary)((*other.vocabulary.codes[:-1], "Z"))
    vocabulary.save(tmp_path / "tokens" / "vocabulary")
    config = json.loads((tmp_path / "tokens" / "config.json").read_text())
    (tmp_path / "tokens" / "config.json").write_text(
        json.dumps({**config, "vocabulary_hash": vocabulary.hash})
    )
    with pytest.raises(ModelMismatch, match="vocabulary_mismatch"):
        tune(one, tokens=tmp_path / "tokens")
    assert not (tmp_path / "out").exists()
