"""The model directory of a signal model: an encoder, or a classifier of beats.

It holds `config.json` (sizes and facts of the training), `model.safetensors`, `calibration.json`
(empty: embeddings have none), `README.md` (the card) and `manifest.json`, as the directories of
timeline models (`checkpoint`) and forecasters do. A size that no model here has is refused before
a network is built.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from torch import nn

from tsfm import __version__
from tsfm.errors import IntegrityError, ModelMismatch
from tsfm.models.biosignal_encoder import BiosignalConfig, BiosignalEncoder
from tsfm.models.checkpoint import (
    FORMAT_VERSION,
    check_keys,
    find_model,
    load_weights,
    verify_directory,
    writing_directory,
)

ENCODER_TYPE = "biosignal_encoder"
_MOST = 4096
_KEYS = {"format_version", "tsfm_version", "model_type", "model", "facts"}
_Config = TypeVar("_Config")


def save_encoder(
    path: str | Path, encoder: BiosignalEncoder, *, facts: Mapping[str, Any], card: str
) -> str:
    """Write an encoder's model directory atomically and return its hash.

    Args:
        path: Final folder.
        encoder: What to save.
        facts: Plain scalars about its training.
        card: `README.md`, in Markdown.

    Raises:
        InputError: The folder is not empty, or is a file.
    """
    return save_signal_model(path, ENCODER_TYPE, encoder, encoder.config, facts=facts, card=card)


def load_encoder(path_or_name: str | Path) -> BiosignalEncoder:
    """Load an encoder, in evaluation mode, by its path or by the name of a packaged one.

    Raises:
        InputError: There is no model.
        IntegrityError: A file differs from what was written.
        ModelMismatch: Its parts do not belong together.
    """
    folder = find_model(path_or_name)
    config = read_signal_config(folder, ENCODER_TYPE, BiosignalConfig)
    encoder = BiosignalEncoder(config)
    load_weights(encoder, folder / "model.safetensors")
    return encoder.eval()


def save_signal_model(
    path: str | Path, model_type: str, model: nn.Module, config: Any, *,
    facts: Mapping[str, Any], card: str,
) -> str:  # fmt: skip
    """Write any signal model; see `save_encoder`.

    Args:
        path: Final folder.
        model_type: What `config.json` says it is.
        model: Network whose weights are saved.
        config: Its configuration, a dataclass of plain values.
        facts: Plain scalars about its training.
        card: `README.md`, in Markdown.
    """
    stored = {
        "format_version": FORMAT_VERSION,
        "tsfm_version": __version__,
        "model_type": model_type,
        "model": asdict(config),
        "facts": dict(facts),
    }
    weights = {name: x.detach().cpu().contiguous() for name, x in model.state_dict().items()}
    with writing_directory(path) as folder:
        text = json.dumps(stored, indent=2) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        save_file(weights, folder / "model.safetensors")
        (folder / "calibration.json").write_text("{}\n", encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
    return verify_directory(Path(path))


def read_signal_config(folder: Path, model_type: str, kind: type[_Config]) -> _Config:
    """Configuration of a verified model directory; an unknown key is an error.

    Args:
        folder: The model directory.
        model_type: What it must say it is.
        kind: Dataclass of the configuration, whose fields all have defaults.

    Raises:
        IntegrityError: A file differs from what was written.
        ModelMismatch: Another type or format, unknown keys, wrong types, or an impossible size.
    """
    verify_directory(folder)
    place = str(folder)
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IntegrityError(
            "config.json can't be read", code="bad_config", place=place,
            remedy="Restore the directory from a copy.",
        ) from error  # fmt: skip
    if not isinstance(stored, dict) or stored.get("model_type") != model_type:
        raise ModelMismatch(
            f"not a model of type {model_type}", code="unknown_model_type", place=place,
            remedy="`tsfm.load` finds out what a directory holds.",
        )  # fmt: skip
    if unknown := sorted(set(stored) - _KEYS):
        raise _bad_config(f"unknown key '{unknown[0]}'", place)
    values = stored.get("model")
    if stored.get("format_version") != FORMAT_VERSION or not isinstance(values, dict):
        raise _bad_config("another format, or no configuration", place)
    check_keys(values, kind, place)
    usual = asdict(kind())  # type: ignore[call-overload]
    for name, value in values.items():
        allowed = (int, float) if type(usual[name]) is float else (type(usual[name]),)
        if isinstance(usual[name], tuple):
            allowed = (list,)
        if type(value) not in allowed:
            raise _bad_config(f"'{name}' is of the wrong type", place)
        if type(value) in (int, float) and not 0 <= value <= _MOST:
            raise _bad_config(f"'{name}' asks for an impossible size", place)
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind(**plain)


def _bad_config(what: str, place: str) -> ModelMismatch:
    return ModelMismatch(
        what, code="bad_model_config", place=place,
        remedy="Restore config.json, or use a tsfm version that knows it.",
    )  # fmt: skip
