"""What a model directory's JSON files may say, checked before anything is built of it.

A number in a file becomes the size of an array, and a name there becomes a part of a network: so
the type and the range of every value are checked, and how many parameters they add up to, before
the first of them is made. Hashes of a manifest say that files are as they were written, not by
whom.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from torch import nn

from tsfm.errors import ModelMismatch
from tsfm.kernels.scan_inputs import INPUTS
from tsfm.models.mamba import MambaConfig
from tsfm.models.timeline import TimelineConfig, TimelineModel

MOST_PARAMETERS = 2_000_000_000
_MOST_LAYERS = 1000
_BOUND = 1e15  # what no field is meant to reach
_AT_LEAST_ONE = ("d_model", "n_layers", "d_state", "expand", "d_conv", "n_codes",
                 "attention_heads", "hazard_rank")  # fmt: skip
_SHARES = ("dropout", "code_dropout", "signal_dropout")


def read_config(stored: Mapping[str, Any], *, place: str = "") -> TimelineConfig:
    """Configuration from plain values; an unknown key is an error.

    Raises:
        ModelMismatch: Unknown keys, wrong types, or a model too large to be meant.
    """
    if not isinstance(stored, Mapping) or not isinstance(stored.get("backbone"), Mapping):
        raise _bad_config("the configuration is incomplete or of wrong types", place)
    check_keys(stored, TimelineConfig, place)
    check_keys(stored["backbone"], MambaConfig, place)
    plain = {name: value for name, value in stored.items() if name != "backbone"}
    wrong = _wrong_types(stored["backbone"], MambaConfig) + _wrong_types(plain, TimelineConfig)
    if wrong or "n_codes" not in plain:
        raise _bad_config("the configuration is incomplete or of wrong types", place)
    backbone = MambaConfig(**_cast(stored["backbone"], MambaConfig))
    config = TimelineConfig(**_cast(plain, TimelineConfig), backbone=backbone)
    fault = find_fault(config)
    if fault:
        raise _bad_config(fault, place)
    return config


def find_fault(config: TimelineConfig) -> str | None:
    """Why no model of a configuration can be; None where one can, and is read back once stored."""
    if not (_is_in_range(config) and 0 < n_parameters(config) < MOST_PARAMETERS):
        return "the configuration asks for an impossible size"
    if not _has_sound_names(config):
        return "the configuration's tasks or bins are none"
    return None


def build_model(config: TimelineConfig, *, place: str = "") -> TimelineModel:
    """The network of a configuration, with weights still to come.

    Raises:
        ModelMismatch: Its parts do not go together.
    """
    try:
        return TimelineModel(config)
    except (ValueError, KeyError, TypeError, RuntimeError, ArithmeticError) as error:
        raise _bad_config("the configuration's parts do not go together", place) from error


def check_keys(stored: Mapping[str, Any], kind: type, place: str) -> None:
    """Check that every key is a field of the class.

    Raises:
        ModelMismatch: One is not.
    """
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(stored) - known)
    if unknown:
        raise ModelMismatch(
            f"unknown configuration key '{unknown[0]}'", code="unknown_config_key", place=place,
            remedy="Use a tsfm version that knows it.",
        )  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds names and values.

    Raises:
        ModelMismatch: It is missing, or no such file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path) from error
    if not isinstance(found, dict):
        raise _unreadable(path)
    return found


def read_calibration(path: Path) -> dict[str, dict[str, Any]]:
    """Task name to its recalibration.

    Raises:
        ModelMismatch: The file says something else.
    """
    found = read_json(path)
    if not all(isinstance(own, dict) and _has_temperature(own) for own in found.values()):
        raise _unreadable(path)
    return found


def n_parameters(config: TimelineConfig) -> int:
    """About how many parameters the network has: its matrices, without offsets and norms."""
    backbone, width = config.backbone, config.backbone.d_model
    inner = backbone.expand * width
    rank = backbone.dt_rank or max(1, -(-width // 16))
    block = inner * (3 * width + backbone.d_conv + 2 * rank + 3 * backbone.d_state)
    attention = 4 * width**2 + 3 * width * inner
    n_attention = len(config.attention_after) + backbone.n_layers * config.attention_only
    n_bins = len(config.hazard_edges_days)
    return sum(
        (
            backbone.n_layers * block * (not config.attention_only) + n_attention * attention,
            7 * config.n_codes * width + config.code_words * width,
            2 * config.memory_width * width,
            (1 + len(config.tasks) + len(config.class_tasks)) * width**2,
            sum(config.n_classes) * width,
            config.hazard_rank * (n_bins * width + len(config.hazard_codes)),
            2 * width * (config.signal_vectors * config.signal_width + width),
        )
    )


def _wrong_types(stored: Mapping[str, Any], kind: type) -> list[str]:
    hints = get_type_hints(kind)
    return [name for name, value in stored.items() if not _is_a(value, hints[name])]


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a plain value is of a field's type; a truth value is no number."""
    if get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and all(_is_a(v, get_args(hint)[0]) for v in value)
    if get_origin(hint) is UnionType:
        return any(_is_a(value, one) for one in get_args(hint))
    if hint in (int, float):
        kinds = int if hint is int else int | float
        return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < _BOUND
    return isinstance(value, NoneType if hint is None else hint)


def _cast(stored: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Lists as tuples, and whole numbers where others may stand as such."""
    hints = get_type_hints(kind)
    return {name: _as_field(value, hints[name]) for name, value in stored.items()}


def _as_field(value: Any, hint: Any) -> Any:
    if get_origin(hint) is tuple:
        return tuple(_as_field(one, get_args(hint)[0]) for one in value)
    return float(value) if hint is float else value


def _is_in_range(config: TimelineConfig) -> bool:
    values = vars(config) | vars(config.backbone)
    whole = [v for v in values.values() if isinstance(v, int)]
    many = [*config.n_classes, *config.attention_after]
    return (
        min([*whole, *many]) >= 0
        and min([*(values[name] for name in _AT_LEAST_ONE), *config.n_classes]) >= 1
        and all(0 <= values[name] <= 1 for name in _SHARES)
        and max(config.backbone.n_layers, len(config.attention_after)) <= _MOST_LAYERS
        and min(config.backbone.fastest_hours, config.backbone.slowest_hours) > 0
        and config.backbone.norm_eps >= 0
        and config.backbone.input in INPUTS
    )


def _has_sound_names(config: TimelineConfig) -> bool:
    """Whether names can be those of a network's parts, one class number each, and bins ascend."""
    names = (*config.tasks, *config.class_tasks)
    named = all(name and "." not in name and not hasattr(nn.ModuleDict, name) for name in names)
    once = all(len(set(own)) == len(own) for own in (config.tasks, config.class_tasks))
    edges = (config.edges_days, config.hazard_edges_days)
    ascend = all(
        own[:1] == (0,) and all(a < b for a, b in pairwise(own)) for own in edges
    )  # fmt: skip
    return named and once and ascend and len(config.class_tasks) == len(config.n_classes)


def _has_temperature(calibration: Mapping[str, Any]) -> bool:
    temperature = calibration.get("temperature", 1.0)
    return _is_a(temperature, float) and temperature > 0


def _bad_config(what: str, place: str) -> ModelMismatch:
    return ModelMismatch(what, code="bad_model_config", place=place, remedy="Restore config.json.")


def _unreadable(path: Path) -> ModelMismatch:
    return ModelMismatch(
        f"{path.name} can't be read", code="bad_model_file", place=str(path.parent),
        remedy="Restore the model directory as it was written.",
    )  # fmt: skip
