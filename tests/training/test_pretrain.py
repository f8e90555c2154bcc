"""Pretraining with parts that are off by default: they are learnt, kept and read back."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tsfm import codes, schema
from tsfm.batches.dataset import TokenDataset
from tsfm.errors import InputError, ModelMismatch
from tsfm.models.checkpoint import ModelDirectory, load_model
from tsfm.models.mamba import MambaConfig
from tsfm.models.timeline_backbone import HybridBackbone
from tsfm.tokens.event_tokens import TOKEN_FIELDS
from tsfm.tokens.token_store import TokenStore
from tsfm.training import loop as training_loop
from tsfm.training.loop import TrainConfig, TrainResult
from tsfm.training.losses import AdmissionTargets, next_occurrences
from tsfm.training.pretrain import ModelParts, frequent_codes, pretrain

BACKBONE = MambaConfig(d_model=8, n_layers=1, d_state=2)
CONFIG = TrainConfig(epochs=4, max_tokens=3000)
HEART_FAILURE = "DIAGNOSIS//ICD//10//I50"
PARTS = ModelParts(
    attention_after=(1,),
    hazard_codes=("LAB",),
    n_hazard_codes=12,
    n_hazard_bins=4,
    share_codes=True,
    descriptions={HEART_FAILURE: "Heart failure"},
)


@pytest.fixture(scope="module")
def pretrained(
    tiny_hospital: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelDirectory, TrainResult]:
    out = tmp_path_factory.mktemp("parts") / "model"
    result = pretrain(
        tiny_hospital.tokens, out, backbone=BACKBONE, parts=PARTS, config=CONFIG, progress=False
    )
    return load_model(out), result


@pytest.fixture(scope="module")
def training(tiny_hospital: Any) -> TokenDataset:
    return TokenDataset(TokenStore.open(tiny_hospital.tokens), schema.TRAIN)


def subjects_with(training: TokenDataset, names: tuple[str, ...], name: str) -> int:
    """Subjects in whom it happens after their first moment, by a plain loop."""
    fields, n = training.store.fields, 0
    for start, length in zip(training.start.tolist(), training.length.tolist(), strict=True):
        part = slice(start, start + length)
        time_s, code = fields["time_s"][part], fields["code"][part]
        later = {names[c] for c in code[time_s > time_s[0]].tolist()}
        n += any(name in (c, *codes.parents(c)) for c in later)
    return n


def test_all_parts_are_read_back(pretrained: tuple[ModelDirectory, TrainResult]) -> None:
    directory, result = pretrained
    assert "hazards" in result.history[-1]["tuning"]
    assert isinstance(directory.model.backbone, HybridBackbone)
    config = directory.model.config
    assert len(config.hazard_codes) == len(set(config.hazard_codes)) == 13
    assert config.hazard_codes[0] == "LAB"
    assert config.hazard_edges_days[0] == 0
    assert 2 <= len(config.hazard_edges_days) <= 4


@torch.no_grad()
def test_states_tell_more_of_what_comes_than_rates_do(
    pretrained: tuple[ModelDirectory, TrainResult], training: TokenDataset
) -> None:
    model = pretrained[0].model
    head, names = model.many_hazards, model.config.hazard_codes
    assert head is not None
    batch = training.batch(np.arange(len(training)))
    targets = AdmissionTargets.create(training.store)
    found = next_occurrences(batch, targets, names, np.arange(0, batch.n_tokens, 7))
    log2_hazard = head(model(batch)[found.position])
    whole = log2_hazard.mean(0).expand_as(log2_hazard)
    with_states, without = (
        head.negative_log_likelihood(each, found.days, found.is_event).mean()
        for each in (log2_hazard, whole)
    )
    assert with_states < without


def test_parents_stand_by_the_weights(pretrained: tuple[ModelDirectory, TrainResult]) -> None:
    directory, _ = pretrained
    sharing, names = directory.model.embedding.sharing, directory.vocabulary.codes
    assert sharing is not None
    for name, parent in zip(names, sharing.parent.long().tolist(), strict=True):
        known = [p for p in codes.parents(name) if p in directory.vocabulary.ids]
        assert (names[parent] if parent >= 0 else None) == (known[0] if known else None)
    with_words = [name for name, row in zip(names, sharing.words, strict=True) if row[0] >= 0]
    assert with_words == [name for name in names if name == HEART_FAILURE]


def test_the_most_frequent_codes_are_those_of_the_most_subjects(training: TokenDataset) -> None:
    names = training.store.vocabulary.codes
    chosen = frequent_codes(training, 12)
    counts = [subjects_with(training, names, name) for name in chosen]
    assert counts == sorted(counts, reverse=True)
    every = [subjects_with(training, names, name) for name in names if name not in chosen]
    above = {p for name in chosen for p in codes.parents(name)}
    better = [
        name
        for name, n in zip((x for x in names if x not in chosen), every, strict=True)
        if n > counts[-1] and name not in above
    ]
    assert better == []
    assert codes.BIRTH not in chosen
    for name, n in zip(chosen, counts, strict=True):
        above = [p for p in codes.parents(name) if p in chosen]
        assert n not in [counts[chosen.index(p)] for p in above]


def test_codes_that_the_vocabulary_lacks_are_refused(tiny_hospital: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        pretrain(tiny_hospital.tokens, tmp_path / "m", parts=ModelParts(hazard_codes=("NO//SUCH",)))
    assert caught.value.code == "unknown_hazard_code"


def test_a_model_with_parts_is_fine_tuned_as_any_other(
    pretrained: tuple[ModelDirectory, TrainResult], tiny_hospital: Any, tmp_path: Path
) -> None:
    from tsfm.training.finetune import FinetuneConfig, finetune

    start = pretrained[0]
    cohort = pl.read_parquet(tiny_hospital.labels / "readmission_30d" / "cohort.parquet")
    out = tmp_path / "tuned"
    finetune(
        start.path, tiny_hospital.tokens, cohort, "readmission_30d", out,
        config=FinetuneConfig(train=TrainConfig(epochs=1, max_tokens=4096)), progress=False,
    )  # fmt: skip
    tuned = load_model(out).model
    assert tuned.config.hazard_codes == start.model.config.hazard_codes
    assert tuned.embedding.sharing is not None
    assert start.model.embedding.sharing is not None
    assert torch.equal(tuned.embedding.sharing.parent, start.model.embedding.sharing.parent)
    assert tuned.many_hazards is not None
    assert bool(np.isfinite(tuned.many_hazards.bias.detach().numpy()).all())


def with_newborn(store: Path, out: Path, like: str) -> TokenStore:
    """A store with one more subject of a split, who has one token."""
    shutil.copytree(store, out)
    for name, kind in TOKEN_FIELDS.items():
        with (out / f"{name}.bin").open("ab") as file:
            file.write(np.fromfile(out / f"{name}.bin", kind)[:1].tobytes())
    subjects = pl.read_parquet(out / "subjects.parquet")
    n = int(subjects["length"].sum())
    newborn = subjects.head(1).with_columns(
        subject_id=pl.lit(10**12, pl.Int64), start=pl.lit(n, pl.Int64),
        length=pl.lit(1, pl.Int64), split=pl.lit(like),
    )  # fmt: skip
    pl.concat([subjects, newborn]).write_parquet(out / "subjects.parquet")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "n_tokens": n + 1}))
    return TokenStore.open(out)


def test_a_subject_of_one_token_alone_in_a_batch_spoils_no_epoch(
    tiny_hospital: Any, tmp_path: Path
) -> None:
    config = TrainConfig(epochs=3, max_tokens=64)  # every subject in a batch of its own
    losses: list[list[float]] = []
    for split in (schema.HELD_OUT, schema.TUNING):
        store = with_newborn(tiny_hospital.tokens, tmp_path / split, split)
        assert store.subjects.height > 0
        out = tmp_path / f"model-{split}"
        result = pretrain(tmp_path / split, out, backbone=BACKBONE, config=config, progress=False)
        losses.append([entry["tuning_loss"] for entry in result.history])
        assert result.best_epoch == int(np.argmin(losses[-1]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[1] != losses[0]  # it does count with what it has


def test_a_stopped_run_does_not_go_on_with_a_store_of_other_values(
    tiny_hospital: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_save = training_loop.save_checkpoint

    def save_then_stop(*args: Any, **options: Any) -> None:
        true_save(*args, **options)
        raise KeyboardInterrupt

    run = functools.partial(
        pretrain, out=tmp_path / "m", backbone=BACKBONE,
        config=TrainConfig(epochs=2, max_tokens=9000), progress=False,
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "save_checkpoint", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_hospital.tokens)
    other = tmp_path / "other"
    shutil.copytree(tiny_hospital.tokens, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "content_hash": "another"}))
    with pytest.raises(ModelMismatch, match="checkpoint_of_another_run"):
        run(other)
    assert run(tiny_hospital.tokens).resumed


@pytest.mark.parametrize(
    "backbone", [MambaConfig(n_layers=0), MambaConfig(n_layers=-2), MambaConfig(d_model=0)]
)
def test_a_backbone_that_no_model_can_be_loaded_with_is_refused_before_training(
    tiny_hospital: Any, tmp_path: Path, backbone: MambaConfig
) -> None:
    out = tmp_path / "model"
    with pytest.raises(InputError, match="bad_model_config") as caught:
        pretrain(tiny_hospital.tokens, out, backbone=backbone, config=CONFIG)
    assert "config.json" not in caught.value.remedy  # nothing is stored yet
    assert not list(tmp_path.iterdir())
