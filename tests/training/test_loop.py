"""Training: it learns, it repeats itself, and it goes on where it was stopped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tsfm import schema
from tsfm.batches.dataset import TokenDataset
from tsfm.errors import InputError, ModelMismatch, TsfmError
from tsfm.models.mamba import MambaConfig
from tsfm.models.timeline import TimelineConfig, TimelineModel
from tsfm.tokens.token_store import TokenStore, build_token_store
from tsfm.training import loop as training_loop
from tsfm.training.finetune import finetune
from tsfm.training.loop import TrainConfig, TrainResult, train
from tsfm.training.losses import AdmissionTargets, LossWeights, pretraining_loss

CONFIG = TrainConfig(epochs=3, max_tokens=3000, seed=1)


class Run:
    """One small pretraining whose parts can be driven by hand."""

    def __init__(self, tokens: Path) -> None:
        self.store = TokenStore.open(tokens)
        self.training = TokenDataset(self.store, schema.TRAIN)
        self.tuning = TokenDataset(self.store, schema.TUNING)
        self.targets = AdmissionTargets.create(self.store)
        torch.manual_seed(0)
        backbone = MambaConfig(d_model=8, n_layers=1, d_state=2)
        self.model = TimelineModel(TimelineConfig(len(self.store.vocabulary), backbone))

    def loss(self, model: TimelineModel, batch: Any, hidden: torch.Tensor) -> Any:
        total, parts = pretraining_loss(model, batch, hidden, self.targets, LossWeights())
        return total, float(batch.n_tokens), parts

    def train(self, folder: Path, config: TrainConfig = CONFIG) -> training_loop.TrainResult:
        return train(
            self.model, self.training, self.tuning, self.loss, config,
            folder=folder, what="test", fingerprint="one", progress=False,
        )  # fmt: skip


def test_the_tuning_loss_falls(tiny_hospital: Any, tmp_path: Path) -> None:
    result = Run(tiny_hospital.tokens).train(tmp_path)
    losses = [entry["tuning_loss"] for entry in result.history]
    assert losses[-1] < losses[0]


def test_a_stopped_run_resumes_to_the_same_weights(
    tiny_hospital: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run(tiny_hospital.tokens)
    expected = whole.train(tmp_path / "whole")
    stopped = Run(tiny_hospital.tokens)
    seen = 0
    true_save = training_loop.save_checkpoint

    def save_then_stop(*args: Any, **kwargs: Any) -> None:
        nonlocal seen
        true_save(*args, **kwargs)
        seen += 1
        if seen == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(training_loop, "save_checkpoint", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.train(tmp_path / "cut")
    monkeypatch.setattr(training_loop, "save_checkpoint", true_save)
    resumed = Run(tiny_hospital.tokens)
    result = resumed.train(tmp_path / "cut")
    assert result.resumed
    assert result.tuning_loss == expected.tuning_loss
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_another_run_is_refused(tiny_hospital: Any, tmp_path: Path) -> None:
    run = Run(tiny_hospital.tokens)
    run.train(tmp_path, TrainConfig(epochs=1, max_tokens=3000))
    with pytest.raises(ModelMismatch) as caught:
        train(
            run.model, run.training, run.tuning, run.loss, CONFIG,
            folder=tmp_path, what="test", fingerprint="two", progress=False,
        )  # fmt: skip
    assert caught.value.code == "checkpoint_of_another_run"


def test_the_next_admission_is_found_and_death_competes(tiny_hospital: Any) -> None:
    run = Run(tiny_hospital.tokens)
    batch = run.training.batch(run.training.plan(max_tokens=10**9, seed=0, epoch=0)[0])
    points = run.targets.points(batch)
    codes = [run.store.vocabulary.codes[i] for i in batch.code.tolist()]
    times, borders = batch.time_s.tolist(), batch.cu_seqlens.tolist()
    assert run.targets.until_s is not None
    for k in range(0, len(points), 97):
        at = int(points.position[k])
        subject = next(i for i, b in enumerate(borders[1:]) if at < b)
        later = [
            (times[j], codes[j].split("//")[0])
            for j in range(borders[subject], borders[subject + 1])
            if times[j] > times[at]
            and codes[j].split("//")[0] in ("HOSPITAL_ADMISSION", "MEDS_DEATH")
        ]
        first = min(later, default=(float("inf"), "censored"))
        expected = {"HOSPITAL_ADMISSION": 1, "MEDS_DEATH": 2}.get(first[1], 0)
        end = first[0] if expected else run.targets.until_s
        assert int(points.outcome[k]) == expected
        assert float(points.days[k]) == pytest.approx((end - times[at]) / 86400, rel=1e-5)


def test_a_store_of_another_vocabulary_is_refused(tiny_hospital: Any, tmp_path: Path) -> None:
    import polars as pl

    build_token_store(tiny_hospital.events, tmp_path / "other", min_count=10_000)
    cohort = pl.read_parquet(tiny_hospital.labels / "readmission_30d" / "cohort.parquet")
    with pytest.raises(ModelMismatch) as caught:
        finetune(
            tiny_hospital.pretrained, tmp_path / "other", cohort, "readmission_30d", tmp_path / "m"
        )
    assert caught.value.code == "vocabulary_mismatch"


def test_no_eligible_stay_is_a_clear_error(tiny_hospital: Any, tmp_path: Path) -> None:
    import polars as pl

    cohort = pl.read_parquet(tiny_hospital.labels / "readmission_30d" / "cohort.parquet")
    with pytest.raises(InputError) as caught:
        finetune(
            tiny_hospital.pretrained, tiny_hospital.tokens, cohort.clear(), "readmission_30d",
            tmp_path / "m",
        )  # fmt: skip
    assert caught.value.code == "empty_cohort"


def test_a_training_of_no_epoch_is_refused() -> None:
    for epochs in (0, -1):
        with pytest.raises(InputError, match="bad_epochs"):
            TrainConfig(epochs=epochs)


def test_a_training_that_could_train_nothing_is_refused() -> None:
    wrong: list[dict[str, Any]] = [
        *({"lr": lr} for lr in (0.0, -1.0, math.nan, math.inf)),
        *({"seed": seed} for seed in (-1, 2**64)),
        {"max_tokens": 0},
    ]
    for field in wrong:
        with pytest.raises(InputError, match="bad_training") as caught:
            TrainConfig(**field)
        assert caught.value.remedy
        assert caught.value.place == f"TrainConfig.{next(iter(field))}"


def test_the_table_of_epochs_has_a_column_for_every_name_however_long() -> None:
    name = "mortality_in_hospital"
    history = [{"epoch": 0, "tuning_loss": 1.0, "tuning": {name: 2.0, "short": 3.0}}]
    header, row, _ = TrainResult(0, 1.0, history).as_text().splitlines()
    for words, value in (("tuning loss", "1.0000"), (name, "2.0000"), ("short", "3.0000")):
        ends = header.index(f"  {words}") + 2 + len(words)  # set apart, and over its number
        assert row[:ends].endswith(f" {value}")


def test_a_loss_that_is_no_number_chooses_no_epoch(tiny_hospital: Any, tmp_path: Path) -> None:
    run = Run(tiny_hospital.tokens)
    with torch.no_grad():
        run.model.admission.baseline.fill_(float("nan"))
    with pytest.raises(TsfmError, match="loss_not_finite"):
        run.train(tmp_path)
    assert not (tmp_path / "checkpoint").exists()
