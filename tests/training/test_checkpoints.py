"""A checkpoint is found whole wherever it was stopped, and what can't be read is no fresh start."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tsfm.errors import IntegrityError, ModelMismatch
from tsfm.training import checkpoints
from tsfm.training.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from tsfm.training.optimizer import WeightAverage, make_optimizer


class Run:
    """A linear map in training."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2)
        self.optimizer = make_optimizer(self.model, lr=0.1, weight_decay=0.0)
        self.average = WeightAverage(self.model, 0.9)

    def step(self) -> None:
        self.model(torch.ones(1, 3)).sum().backward()
        self.optimizer.step()
        self.average.update(self.model)

    def save(self, folder: Path, epoch: int, **state: Any) -> None:
        save_checkpoint(
            folder, model=self.model, average=self.average, optimizer=self.optimizer,
            state={"fingerprint": "one", "epoch": epoch, **state},
        )  # fmt: skip

    def load(self, folder: Path, **options: Any) -> dict[str, Any]:
        return load_checkpoint(
            folder, fingerprint="one", model=self.model, average=self.average,
            optimizer=self.optimizer, **options,
        )[0]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "work" / "checkpoint"


@pytest.mark.parametrize("stop_at", range(1, 5))
def test_a_stop_while_it_takes_its_place_leaves_one_to_go_on_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    run = Run()
    run.step()
    run.save(folder, 1)
    moves = 0

    def count_then_stop(move: Callable[..., None]) -> Callable[..., None]:
        def moved(*args: Any, **options: Any) -> None:
            nonlocal moves
            moves += 1
            if moves == stop_at:
                raise KeyboardInterrupt
            move(*args, **options)

        return moved

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", count_then_stop(os.replace))
        patch.setattr(checkpoints.shutil, "rmtree", count_then_stop(checkpoints.shutil.rmtree))
        with pytest.raises(KeyboardInterrupt):
            run.save(folder, 2)
    assert find_checkpoint(folder)
    assert Run().load(folder)["epoch"] in (1, 2)
    run.save(folder, 3)
    assert Run().load(folder)["epoch"] == 3


def test_one_that_an_older_version_left_without_its_name_is_found(folder: Path) -> None:
    run = Run()
    run.save(folder, 4)
    os.replace(folder, folder.with_name(".checkpoint.tmp"))
    assert find_checkpoint(folder)
    assert run.load(folder)["epoch"] == 4


def test_one_that_is_removed_does_not_come_back(folder: Path) -> None:
    run = Run()
    run.save(folder, 4)
    for name in (".checkpoint.tmp", ".checkpoint.old"):
        shutil.copytree(folder, folder.with_name(name))
    assert find_checkpoint(folder)
    shutil.rmtree(folder)
    assert not find_checkpoint(folder)


def test_half_a_first_checkpoint_is_none(folder: Path) -> None:
    Run().save(folder, 1)
    (folder / "state.json").unlink()
    os.replace(folder, folder.with_name(".checkpoint.tmp"))
    assert not find_checkpoint(folder)
    assert not find_checkpoint(folder.with_name("none"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "state.json").unlink(),
        lambda f: (f / "state.json").write_text("{"),
        lambda f: (f / "state.json").write_text("[]"),
        lambda f: (f / "state.json").write_text('{"fingerprint": "one"}'),
        lambda f: (f / "tensors.safetensors").unlink(),
        lambda f: (f / "tensors.safetensors").write_bytes(
            (f / "tensors.safetensors").read_bytes()[:300]
        ),
        lambda f: checkpoints.save_file({"rng": torch.get_rng_state()}, f / "tensors.safetensors"),
    ],
)
def test_one_that_cannot_be_read_is_an_error_and_no_fresh_start(
    folder: Path, damage: Callable[[Path], Any]
) -> None:
    run = Run()
    run.step()
    run.save(folder, 1)
    damage(folder)
    assert find_checkpoint(folder)
    with pytest.raises(IntegrityError, match="bad_checkpoint"):
        run.load(folder)


def test_other_data_are_another_run_unless_an_older_version_did_not_say(folder: Path) -> None:
    run = Run()
    run.save(folder, 1, data="a")
    assert run.load(folder, data="a")["epoch"] == 1
    with pytest.raises(ModelMismatch, match="checkpoint_of_another_run"):
        run.load(folder, data="b")
    run.save(folder, 1)
    assert run.load(folder, data="b")["epoch"] == 1
