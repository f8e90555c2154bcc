"""A model directory is whole, unchanged, and its own; everything else is a typed error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tsfm.errors import InputError, IntegrityError, ModelMismatch, TsfmError
from tsfm.models.checkpoint import load_model, read_config, save_model
from tsfm.models.timeline import TimelineModel
from tsfm.models.weights_file import write_weights


@pytest.fixture
def copied(tiny_hospital: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_hospital.model, tmp_path / "model"))


def forget_manifest(model: Path) -> None:
    """Make the manifest agree with the files, as a careful vandal would."""
    import hashlib

    digests = {
        str(p.relative_to(model)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in model.rglob("*")
        if p.is_file() and p.name != "manifest.json"
    }
    (model / "manifest.json").write_text(json.dumps(digests))


def test_it_is_read_back_whole(tiny_hospital: Any) -> None:
    first, second = load_model(tiny_hospital.model), load_model(tiny_hospital.model)
    assert first.hash == second.hash
    assert first.model.config.tasks == ("readmission_30d",)
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "vocabulary/codes.json", "calibration.json"]
)
def test_a_changed_file_is_noticed(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(bytes(data))
    with pytest.raises(IntegrityError) as caught:
        load_model(copied)
    assert caught.value.exit_code == 4


def test_an_added_file_is_noticed(copied: Path) -> None:
    (copied / "extra.py").write_text("print('hello')")
    with pytest.raises(IntegrityError):
        load_model(copied)


def test_another_models_vocabulary_is_refused(copied: Path) -> None:
    from tsfm.tokens.vocabulary import Vocabulary

    own = Vocabulary.load(copied / "vocabulary")
    Vocabulary((*own.codes[:-1], "OTHER")).save(copied / "vocabulary")
    forget_manifest(copied)
    with pytest.raises(ModelMismatch) as caught:
        load_model(copied)
    assert caught.value.code == "vocabulary_mismatch"


def test_weights_that_are_not_numbers_are_refused(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    name = next(iter(weights))
    weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, copied / "model.safetensors")
    forget_manifest(copied)
    with pytest.raises(ModelMismatch) as caught:
        load_model(copied)
    assert caught.value.code == "weights_mismatch"


@pytest.mark.parametrize(
    "change", [{"_target_": "os.system"}, {"n_codes": 10**12}, {"n_codes": "x"}]
)
def test_a_strange_configuration_is_refused(tiny_hospital: Any, change: dict[str, Any]) -> None:
    stored = json.loads((tiny_hospital.model / "config.json").read_text())["model"]
    with pytest.raises(ModelMismatch):
        read_config({**stored, **change})


def test_no_model_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_model(tmp_path)
    assert caught.value.code == "missing_model"
    assert isinstance(caught.value, TsfmError)


def test_a_model_with_classes_names_its_tasks(tiny_hospital: Any) -> None:
    found = load_model(tiny_hospital.model)
    config = replace(found.model.config, class_tasks=("length_of_stay_bins",), n_classes=(4,))
    assert "length_of_stay_bins" in replace(found, model=TimelineModel(config))._repr_html_()


def test_weights_that_are_not_numbers_are_not_written(tiny_hospital: Any, tmp_path: Path) -> None:
    found = load_model(tiny_hospital.model)
    with torch.no_grad():
        found.model.admission.baseline[0, 0] = float("nan")
    with pytest.raises(TsfmError, match="weights_not_finite"):
        save_model(tmp_path / "m", found.model, found.vocabulary, found.scale, facts={})
    assert not list(tmp_path.iterdir())


def drop_a_code(model: Path) -> None:
    with np.load(model / "vocabulary" / "value_scale.npz") as stored:
        arrays = dict(stored)
    np.savez(model / "vocabulary" / "value_scale.npz", **{**arrays, "scale": arrays["scale"][:5]})


def write_config(**changes: Any) -> Callable[[Path], Any]:
    """A change of `config.json`; None takes a key away."""

    def change(model: Path) -> None:
        path = model / "config.json"
        config = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda m: (m / "config.json").write_text("[1]"),
        lambda m: (m / "config.json").write_text("{"),
        lambda m: (m / "config.json").unlink(),
        write_config(model=None),
        write_config(model=[1]),
        write_config(model_type=["timeline"]),
        write_config(facts=3),
        lambda m: (m / "calibration.json").unlink(),
        lambda m: (m / "calibration.json").write_text("[1, 2]"),
        lambda m: (m / "calibration.json").write_text('{"readmission_30d": 3}'),
        lambda m: (m / "calibration.json").write_text('{"x": {"temperature": 0}}'),
        drop_a_code,
        lambda m: (m / "vocabulary" / "value_scale.npz").write_bytes(b"PK\x03\x04" + bytes(99)),
    ],
)
def test_files_that_agree_with_the_manifest_and_say_nonsense_are_refused(
    copied: Path, change: Callable[[Path], Any]
) -> None:
    change(copied)
    forget_manifest(copied)
    with pytest.raises(ModelMismatch):
        load_model(copied)


def test_weights_have_the_rights_of_every_other_file(tmp_path: Path) -> None:
    write_weights({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    (tmp_path / "card").write_text("")
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "card").stat().st_mode
    assert torch.equal(load_file(tmp_path / "model.safetensors")["a"], torch.zeros(3))
