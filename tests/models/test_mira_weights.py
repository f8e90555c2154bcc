"""Checkpoints of MIRA's released layout: every tensor and setting is used, or refused by name.

That the published code gives the same numbers with them is in `test_mira_released.py`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tsfm.errors import InputError, IntegrityError, ModelMismatch, TsfmError
from tsfm.models.mira_weights import load_released_mira, released_config, released_shapes

SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_experts": 4, "num_experts_per_tok": 2, "ode_func_hidden_dims": [16, 16],
}  # fmt: skip


def random_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(6)
    shapes = released_shapes(released_config(SIZES))
    return {n: torch.randn(shape, generator=generator) / 4 for n, shape in shapes.items()}


def some(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7))


def write_folder(folder: Path, weights: dict[str, Tensor], **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**SIZES, **changes}))
    return folder


def test_a_folder_a_file_and_a_state_dict_give_one_model(tmp_path: Path) -> None:
    weights, config = random_weights(), released_config(SIZES)
    folder = write_folder(tmp_path / "whole", weights, torch_dtype="bfloat16", use_cache=True)
    shards = write_folder(tmp_path / "shards", dict(list(weights.items())[:9]))
    save_file(dict(list(weights.items())[9:]), shards / "model-2.safetensors")
    x, t = some(2, 7), some(2, 7).cumsum(1)
    expected = load_released_mira(weights, config)(x, t)
    for source in (folder, folder / "model.safetensors", shards):
        given = config if source.is_file() else None
        assert torch.equal(load_released_mira(source, given)(x, t), expected)


def test_narrow_weights_are_widened() -> None:
    narrow = {n: x.bfloat16() for n, x in random_weights().items()}
    wide = {n: x.float() for n, x in narrow.items()}
    config = released_config(SIZES)
    x, t = some(1, 7), torch.arange(7.0)[None]
    assert torch.equal(
        load_released_mira(narrow, config)(x, t), load_released_mira(wide, config)(x, t)
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"patch_length": 16}, "patch_length"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"use_dense": True}, "use_dense"),
        ({"time_aware_rotary": False}, "time_aware_rotary"),
        ({"hidden_size": "16"}, "hidden_size"),
        ({"num_experts": 4.0}, "num_experts"),
        ({"rope_theta": True}, "rope_theta"),
        ({"ode_func_hidden_dims": 16}, "ode_func_hidden_dims"),
        ({"ode_func_hidden_dims": ["16"]}, "ode_func_hidden_dims"),
    ],
)
def test_a_setting_of_another_network_or_type_is_refused(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ModelMismatch, match=named):
        released_config({**SIZES, **changes})


def test_a_setting_that_is_missing_is_named() -> None:
    with pytest.raises(ModelMismatch, match="hidden_size"):
        released_config({k: v for k, v in SIZES.items() if k != "hidden_size"})


@pytest.mark.parametrize("heads", [(3, 3), (16, 16), (4, 3)])
def test_heads_that_do_not_divide_are_refused(heads: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="heads_do_not_divide"):
        released_config({**SIZES, "num_attention_heads": heads[0], "num_key_value_heads": heads[1]})


def test_whole_numbers_may_stand_for_others() -> None:
    assert released_config({**SIZES, "rope_theta": 500}).rope_theta == 500.0


def test_tensors_that_do_not_fit_are_named() -> None:
    weights, config = random_weights(), released_config(SIZES)
    name = "model.norm.weight"
    for wrong in (
        {n: x for n, x in weights.items() if n != name},
        {**weights, "model.norm.bias": torch.zeros(16)},
        {**weights, name: torch.zeros(17)},
    ):
        with pytest.raises(ModelMismatch, match=r"model\.norm"):
            load_released_mira(wrong, config)
    with pytest.raises(ModelMismatch, match="ode_extrapolation_block"):
        load_released_mira(weights, replace(config, use_terminal_ode=False))


def test_files_that_are_none_say_so(tmp_path: Path) -> None:
    weights = random_weights()
    cases: list[tuple[Any, type[TsfmError]]] = [
        (tmp_path / "nowhere.safetensors", InputError),
        (tmp_path, InputError),
        (weights, InputError),
    ]
    for source, kind in cases:
        with pytest.raises(kind):
            load_released_mira(source)
    folder = write_folder(tmp_path / "broken", weights)
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(IntegrityError):
        load_released_mira(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(IntegrityError):
        load_released_mira(folder)
