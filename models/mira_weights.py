"""Checkpoints of MIRA's released layout, read into `mira_released`.

The layout is that of `save_pretrained` of the published code: `config.json` and safetensors, with
one matrix for each part of each expert. Here the experts of a layer lie in two tensors, the columns
of the gate before the others. Every tensor of a file is used, and every parameter comes from the
file, or loading fails by name; so does a setting that is not known. Nothing named by a file is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tsfm.errors import InputError, IntegrityError, ModelMismatch
from tsfm.models.mira_released import ReleasedMira, ReleasedMiraConfig

_MOST_NAMED = 6
# Settings that have one value here; another one is a different network.
_FIXED: dict[str, Any] = {
    "model_type": "mira", "input_size": 1, "hidden_act": "silu", "use_dense": False,
    "time_aware_rotary": True, "ode_func_activation": "silu",
}  # fmt: skip
# Settings that change no output: of training, of generation, of the file, or never read there.
_WITHOUT_EFFECT = frozenset({
    "_name_or_path", "apply_aux_loss", "architectures", "attention_dropout", "auto_map", "dtype",
    "gradient_checkpointing_kwargs", "horizon_lengths", "initializer_range",
    "max_position_embeddings", "ode_activation_threshold", "router_aux_loss_factor",
    "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache",
})  # fmt: skip


def load_released_mira(
    source: str | Path | Mapping[str, Tensor], config: ReleasedMiraConfig | None = None
) -> ReleasedMira:
    """Load a checkpoint of the released layout, in float32 and evaluation mode, on the CPU.

    Args:
        source: A folder with `config.json` and safetensors (whole or in shards), a safetensors
            file, or a state dict by the released names.
        config: Its form; None reads the folder's `config.json`.

    Raises:
        InputError: There is no such file, or nothing says of what form it is.
        IntegrityError: A file cannot be read.
        ModelMismatch: Tensors and configuration do not belong together.
    """
    if not isinstance(source, Mapping):
        path = Path(source)
        if config is None and path.is_dir():
            config = released_config(_read_json(path / "config.json"))
        source = _read_tensors(path)
    if config is None:
        raise InputError(
            "tensors alone do not say what network they are of", code="missing_config",
            place="config", remedy="Pass a ReleasedMiraConfig, or a folder with config.json.",
        )  # fmt: skip
    expected = released_shapes(config)
    wrong = sorted(expected.keys() ^ source.keys())
    wrong += [n for n, shape in expected.items() if n in source and source[n].shape != shape]
    if wrong:
        raise _mismatch("tensors missing, unknown or of another shape", wrong)
    model = ReleasedMira(config)
    model.load_state_dict(_translated({n: x.float() for n, x in source.items()}, config))
    return model.eval()


def released_config(contents: Mapping[str, Any]) -> ReleasedMiraConfig:
    """Read the contents of a `config.json`.

    Raises:
        InputError: The sizes do not fit each other.
        ModelMismatch: A setting is unknown, missing, of a wrong type, or of another network.
    """
    known = {one.name: one.default is MISSING for one in fields(ReleasedMiraConfig)}
    odd = sorted(contents.keys() - known.keys() - _FIXED.keys() - _WITHOUT_EFFECT)
    odd += [key for key, only in _FIXED.items() if contents.get(key, only) != only]
    if odd:
        raise _mismatch("settings unknown or not supported", odd)
    given = {key: value for key, value in contents.items() if key in known}
    missing = [key for key, needed in known.items() if needed and key not in given]
    if missing:
        raise _mismatch("settings missing", missing)
    wrong = [one.name for one in fields(ReleasedMiraConfig) if not _fits(one, given)]
    if wrong:
        raise _mismatch("settings of a wrong type", wrong)
    if "ode_func_hidden_dims" in given:
        given["ode_func_hidden_dims"] = tuple(given["ode_func_hidden_dims"])
    for one in fields(ReleasedMiraConfig):
        if one.type == "float" and one.name in given:  # JSON may write 10000
            given[one.name] = float(given[one.name])
    return ReleasedMiraConfig(**given)


def released_shapes(config: ReleasedMiraConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's tensors."""
    d, heads = config.hidden_size, config.num_attention_heads
    d_shared = (config.num_key_value_heads or heads) * (d // heads)
    shapes: dict[str, tuple[int, ...]] = {
        f"model.embed_layer.{kind}_layer.weight": (d, 1) for kind in ("emb", "gate")
    }
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        for kind, rows in (("q", d), ("k", d_shared), ("v", d_shared)):
            shapes[f"{layer}.self_attn.{kind}_proj.weight"] = (rows, d)
            shapes[f"{layer}.self_attn.{kind}_proj.bias"] = (rows,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (d, d)
        shapes[f"{layer}.ffn_layer.gate.weight"] = (config.num_experts, d)
        shapes[f"{layer}.ffn_layer.shared_expert_gate.weight"] = (1, d)
        inner = config.intermediate_size // config.num_experts_per_tok
        experts = {f"experts.{j}": inner for j in range(config.num_experts)}
        for name, width in {**experts, "shared_expert": config.intermediate_size}.items():
            for kind, shape in (("gate", (width, d)), ("up", (width, d)), ("down", (d, width))):
                shapes[f"{layer}.ffn_layer.{name}.{kind}_proj.weight"] = shape
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{norm}.weight"] = (d,)
    shapes["model.norm.weight"] = (d,)
    shapes["lm_heads.0.out_layer.weight"] = (1, d)
    if config.use_terminal_ode:
        widths = (d + config.ode_func_use_time, *config.ode_func_hidden_dims, d)
        for i in range(len(widths) - 1):
            net = f"ode_extrapolation_block.ode_func.net.{2 * i}"
            shapes[f"{net}.weight"] = (widths[i + 1], widths[i])
            shapes[f"{net}.bias"] = (widths[i + 1],)
    return shapes


def _fits(setting: Field[Any], given: Mapping[str, Any]) -> bool:
    """Whether a setting, if it is given, is of its type, as JSON has types."""
    value = given.get(setting.name, setting.default)
    if isinstance(value, list | tuple):
        return setting.name == "ode_func_hidden_dims" and all(type(one) is int for one in value)
    kinds = {"float": "int float", "int | None": "int NoneType"}
    return type(value).__name__ in kinds.get(str(setting.type), str(setting.type)).split()


def _translated(tensors: Mapping[str, Tensor], config: ReleasedMiraConfig) -> dict[str, Tensor]:
    """The same numbers by our names."""
    ours = {
        "embedding.gate.weight": tensors["model.embed_layer.gate_layer.weight"],
        "embedding.value.weight": tensors["model.embed_layer.emb_layer.weight"],
        "norm.weight": tensors["model.norm.weight"],
        "head.weight": tensors["lm_heads.0.out_layer.weight"],
    }
    for i in range(config.num_hidden_layers):
        theirs, layer = f"model.layers.{i}", f"layers.{i}"
        for kind, name in (("q", "query"), ("k", "key"), ("v", "value")):
            for part in ("weight", "bias"):
                ours[f"{layer}.{name}.{part}"] = tensors[f"{theirs}.self_attn.{kind}_proj.{part}"]
        ours[f"{layer}.out.weight"] = tensors[f"{theirs}.self_attn.o_proj.weight"]
        ours[f"{layer}.attention_norm.weight"] = tensors[f"{theirs}.input_layernorm.weight"]
        after = tensors[f"{theirs}.post_attention_layernorm.weight"]
        ours[f"{layer}.experts_norm.weight"] = after
        theirs, layer = f"{theirs}.ffn_layer", f"{layer}.experts"
        ours[f"{layer}.router.weight"] = tensors[f"{theirs}.gate.weight"]
        ours[f"{layer}.shared_gate.weight"] = tensors[f"{theirs}.shared_expert_gate.weight"]
        gate_up, out = _expert(tensors, f"{theirs}.shared_expert")
        ours[f"{layer}.shared.gate_up.weight"], ours[f"{layer}.shared.out.weight"] = gate_up, out
        experts = [_expert(tensors, f"{theirs}.experts.{j}") for j in range(config.num_experts)]
        ours[f"{layer}.gate_up"] = torch.stack([first.T for first, _ in experts])
        ours[f"{layer}.out"] = torch.stack([last.T for _, last in experts])
        ours[f"{layer}.balance_bias"] = torch.zeros(config.num_experts)
    if config.use_terminal_ode:
        for i in range(len(config.ode_func_hidden_dims) + 1):
            for part in ("weight", "bias"):
                name = f"ode_extrapolation_block.ode_func.net.{2 * i}.{part}"
                ours[f"ode.layers.{i}.{part}"] = tensors[name]
    return ours


def _expert(tensors: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    gate, up, down = (tensors[f"{name}.{kind}_proj.weight"] for kind in ("gate", "up", "down"))
    return torch.cat([gate, up]), down


def _read_tensors(path: Path) -> dict[str, Tensor]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise InputError(
            "no safetensors are there", code="no_model", place=str(path),
            remedy="Name a folder that save_pretrained wrote, or a safetensors file.",
        )  # fmt: skip
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors.update(load_file(file))
        except (SafetensorError, OSError) as failure:
            raise IntegrityError(
                "the file holds no tensors", code="bad_tensors", place=str(file),
                remedy="Copy it again from its source.",
            ) from failure  # fmt: skip
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as failure:
        raise InputError(
            "no config.json is there", code="no_model", place=str(path),
            remedy="Pass a ReleasedMiraConfig.",
        ) from failure  # fmt: skip
    except ValueError as failure:
        raise IntegrityError(
            "the file is no JSON", code="bad_config", place=str(path),
            remedy="Copy it again from its source.",
        ) from failure  # fmt: skip
    if not isinstance(contents, dict):
        raise _mismatch("config.json holds no settings", [path.name])
    return contents


def _mismatch(problem: str, names: Iterable[str]) -> ModelMismatch:
    names = list(names)
    shown = ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
    return ModelMismatch(
        f"{problem}: {shown}", code="not_released_mira", place="checkpoint",
        remedy="Only checkpoints of the released MIRA layout are read.",
    )  # fmt: skip
