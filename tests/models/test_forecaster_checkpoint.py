"""A forecaster's directory comes back bit for bit, and whatever was done to it is noticed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tsfm.errors import InputError, IntegrityError, ModelMismatch, TsfmError
from tsfm.models.forecaster import ForecasterConfig, ForecasterModel
from tsfm.models.forecaster_checkpoint import (
    Covariate,
    Variable,
    load_forecaster,
    read_forecaster_config,
    save_forecaster,
)

TINY = ForecasterConfig(
    n_variables=2, d_model=8, n_heads=2, n_reader_layers=1, n_variable_layers=1, n_query_layers=1,
    experts=0, n_known=1,
)  # fmt: skip
VARIABLES = (Variable("heart rate", "/min"), Variable("K", "mmol/L"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = ForecasterModel(TINY)
    model.set_variable_scale(torch.tensor([80.0, 4.0]), torch.tensor([15.0, 0.5]))
    save_forecaster(
        tmp_path / "model", model, variables=VARIABLES, covariates=[Covariate("dose", 1.0, 2.0)],
        facts={"seed": 3},
    )  # fmt: skip
    return tmp_path / "model"


def forge(folder: Path) -> None:
    """Make the manifest agree with the files, as a careful vandal would."""
    digests = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.iterdir()
        if p.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps(digests))


def change(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    model = config["model"] | changes.pop("model", {})
    (folder / "config.json").write_text(json.dumps(config | {"model": model} | changes))
    forge(folder)


def test_it_comes_back_bit_for_bit(saved: Path, tmp_path: Path) -> None:
    found = load_forecaster(saved)
    assert found.variables == VARIABLES
    assert found.covariates == (Covariate("dose", 1.0, 2.0),)
    assert found.facts == {"seed": 3}
    assert found.model.config == TINY
    again = save_forecaster(
        tmp_path / "again", found.model, variables=found.variables, covariates=found.covariates,
        facts=found.facts,
    )  # fmt: skip
    assert again == found.hash
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()
    assert not list(tmp_path.glob(".*"))  # nothing half-written is left


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "calibration.json", "README.md"]
)
def test_a_flipped_bit_is_noticed(saved: Path, name: str) -> None:
    data = bytearray((saved / name).read_bytes())
    data[len(data) // 2] ^= 1
    (saved / name).write_bytes(bytes(data))
    with pytest.raises(IntegrityError):
        load_forecaster(saved)


def test_an_added_file_is_noticed(saved: Path) -> None:
    (saved / "model.bin").write_bytes(b"pickle")
    with pytest.raises(IntegrityError):
        load_forecaster(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"_target_": "os.system"},
        {"model": {"_target_": "os.system"}},
        {"model_type": "timeline"},
        {"format_version": 2},
        {"variables": [{"name": "K", "unit": "mmol/L"}]},
        {"variables": [{"name": "K", "unit": ""}, {"name": "K", "unit": ""}]},
        {"variables": [{"name": 1, "unit": ""}, {"name": "K", "unit": ""}]},
        {"variables": 3},
        {"covariates": []},
        {"covariates": [{"name": "dose", "location": 0.0, "scale": 0.0}]},
        {"facts": {"a": [1]}},
        {"model": {"d_model": 16}},
        {"model": {"d_model": 4096, "n_reader_layers": 64}},
        {"model": {"n_reader_layers": 10**9}},
        {"model": {"n_heads": 3}},
        {"model": {"d_model": "8"}},
        {"model": {"dropout": -1.0}},
        {"model": {"reader": "__import__"}},
        {"model": {"rotary_periods_s": [1.0]}},
        {"model": {"rotary_periods_s": [9.0, 1.0]}},
    ],
    ids=str,
)
def test_a_forged_configuration_is_refused_before_anything_is_built(
    saved: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    change(saved, **changes)

    def none(*_: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("tsfm.models.forecaster_checkpoint.load_weights", none)
    with pytest.raises(ModelMismatch):
        load_forecaster(saved)


def test_a_number_that_json_does_not_know_is_refused(saved: Path) -> None:
    text = (saved / "config.json").read_text().replace('"dropout": 0.1', '"dropout": NaN')
    (saved / "config.json").write_text(text)
    forge(saved)
    with pytest.raises(ModelMismatch):
        load_forecaster(saved)


def test_weights_must_be_finite_and_scales_positive(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    for name, bad in (("head.out.bias", torch.nan), ("variable_scale", -1.0)):
        save_file(
            weights | {name: torch.full_like(weights[name], bad)}, saved / "model.safetensors"
        )
        forge(saved)
        with pytest.raises(ModelMismatch) as caught:
            load_forecaster(saved)
        assert caught.value.code == "weights_mismatch"


def test_a_folder_that_is_taken_is_left_alone(saved: Path) -> None:
    before = sorted(p.name for p in saved.iterdir())
    with pytest.raises(InputError):
        save_forecaster(saved, ForecasterModel(TINY), variables=VARIABLES,
                        covariates=[Covariate("dose")])  # fmt: skip
    assert sorted(p.name for p in saved.iterdir()) == before


def test_a_failed_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TsfmError):
        save_forecaster(tmp_path / "model", ForecasterModel(TINY), variables=VARIABLES,
                        covariates=[Covariate("dose")], facts={"loss": float("nan")})  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_of_an_earlier_version_gets_what_was_usual() -> None:
    assert read_forecaster_config({"d_model": 32}) == ForecasterConfig(d_model=32)


def test_the_card_has_front_matter_and_units(saved: Path) -> None:
    _, front, text = (saved / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "tsfm"
    assert "K: mmol/L" in text


def test_nothing_there_says_what_is(tmp_path: Path) -> None:
    for name in (tmp_path / "none", "forecaster-of-nobody"):
        with pytest.raises(InputError) as caught:
            load_forecaster(name)
        assert caught.value.code == "missing_model"


@pytest.mark.parametrize("table", [0, 8, 512])
def test_a_model_with_a_table_comes_back_and_an_older_one_has_none(
    tmp_path: Path, table: int
) -> None:
    config = replace(TINY, table=table)
    save_forecaster(
        tmp_path / "model", ForecasterModel(config), variables=VARIABLES,
        covariates=[Covariate("dose", 1.0, 2.0)],
    )  # fmt: skip
    assert load_forecaster(tmp_path / "model").model.config == config
    if not table:
        stored = json.loads((tmp_path / "model" / "config.json").read_text())
        del stored["model"]["table"]
        (tmp_path / "model" / "config.json").write_text(json.dumps(stored))
        forge(tmp_path / "model")
        assert load_forecaster(tmp_path / "model").model.config == config


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    model = ForecasterModel(replace(TINY, table=5000))
    with pytest.raises(ModelMismatch, match="smaller"):
        save_forecaster(
            tmp_path / "model", model, variables=VARIABLES, covariates=[Covariate("dose", 1.0, 2.0)]
        )
    assert not (tmp_path / "model").exists()
