"""The model directory of a signal model, beside that of a timeline model (`checkpoint`).

It holds `config.json` (sizes and facts of the training), `model.safetensors`, `README.md` (the
card) and `manifest.json`. A size that no model here has is refused before a network is built.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from torch import nn

from tsfm import __version__
from tsfm.errors import InputError, ModelMismatch, TsfmError
from tsfm.models.biosignal_encoder import BiosignalEncoder
from tsfm.models.checkpoint import (
    FORMAT_VERSION,
    check_keys,
    verify_directory,
    writing_directory,
)
from tsfm.models.weights_file import write_weights

ENCODER_TYPE = "biosignal_encoder"
_MOST = 4096
_PLAIN = str | int | float | None
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
        InputError: The folder is not empty, or is a file; facts or sizes that would not be read
            again.
        TsfmError: `weights_not_finite`. Nothing was written.
    """
    return save_signal_model(path, ENCODER_TYPE, encoder, encoder.config, facts=facts, card=card)


def save_signal_model(
    path: str | Path, model_type: str, model: nn.Module, config: Any, *,
    facts: Mapping[str, Any], card: str, half: bool = False, **parts: Mapping[str, Any],
) -> str:  # fmt: skip
    """Write any signal model; see `save_encoder`.

    Args:
        path: Final folder.
        model_type: What `config.json` says it is.
        model: Network whose weights are saved.
        config: Its configuration, a dataclass of plain values.
        facts: Plain scalars about its training.
        card: `README.md`, in Markdown.
        half: Store matrices in float16, which halves the file.
        parts: Further keys of `config.json`.
    """
    check_readable(asdict(config), config, str(path))
    _check_facts(facts, str(path))
    stored = {
        "format_version": FORMAT_VERSION,
        "tsfm_version": __version__,
        "model_type": model_type,
        "model": asdict(config),
        **parts,
        "facts": dict(facts),
    }
    weights = {
        name: (x.half() if half and x.dim() > 1 and x.is_floating_point() else x)
        .detach().cpu().contiguous()
        for name, x in model.state_dict().items()
    }  # fmt: skip
    wrong = [name for name, x in weights.items() if not bool(torch.isfinite(x).all())]
    if wrong:
        raise TsfmError(
            f"{len(wrong)} tensors are not finite as they would be stored, first {wrong[0]}",
            code="weights_not_finite", place=str(path),
            remedy="Store them whole, or train with a lower learning rate.",
        )  # fmt: skip
    with writing_directory(path) as folder:
        text = json.dumps(stored, indent=2) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        write_weights(weights, folder / "model.safetensors")
        (folder / "README.md").write_text(card, encoding="utf-8")
    return verify_directory(Path(path))


def read_signal_directory(folder: Path, model_type: str, *parts: str) -> tuple[dict[str, Any], str]:
    """Contents of `config.json` of a verified model directory, and its hash.

    Args:
        folder: The model directory.
        model_type: What it must say it is.
        parts: Further keys that it must have.

    Raises:
        IntegrityError: A file differs from what was written.
        ModelMismatch: Another type or format, or keys that are unknown or missing.
    """
    digest, place = verify_directory(folder), str(folder)
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise bad_signal_config("config.json is no JSON", place) from error
    if not isinstance(stored, dict):
        raise bad_signal_config("config.json is no JSON object", place)
    if stored.get("model_type") != model_type or stored.get("format_version") != FORMAT_VERSION:
        raise ModelMismatch(
            f"not a model of type {model_type}, or of an unknown format",
            code="unknown_model_type", place=place,
            remedy=f"This version reads format {FORMAT_VERSION}.",
        )  # fmt: skip
    known = _KEYS | set(parts)
    if unknown := sorted(set(stored) - known):
        raise bad_signal_config(f"unknown key '{unknown[0]}'", place, code="unknown_config_key")
    missing = sorted(known - set(stored))
    plain = all(isinstance(stored.get(name), dict) for name in ("model", "facts", *parts))
    if missing or not plain:
        raise bad_signal_config("keys are missing or of wrong types", place)
    if not all(isinstance(x, _PLAIN) for x in stored["facts"].values()):
        raise bad_signal_config("facts are no plain values", place)
    return stored, digest


def read_sizes(
    values: Mapping[str, Any], usual: _Config, place: str, *, complete: bool = False
) -> _Config:
    """Configuration from plain values; a missing one is the usual.

    Args:
        values: What `config.json` holds.
        usual: A configuration of the class whose fields say which types are allowed.
        place: For errors.
        complete: A missing value is an error, as that of a sampling rate must be.

    Raises:
        ModelMismatch: Unknown or missing keys, wrong types, or an impossible size.
    """
    check_keys(values, type(usual), place)
    if complete and len(values) < len(vars(usual)):
        raise bad_signal_config("keys are missing", place)
    kinds = get_type_hints(type(usual))
    for name, value in values.items():
        kind = kinds[name]
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise bad_signal_config(f"'{name}' is not a plain {kind.__name__}", place)
        if isinstance(value, int | float) and not 0 <= value <= _MOST:
            raise bad_signal_config(f"'{name}' asks for an impossible size", place)
    try:
        return type(usual)(**values)
    except (ValueError, InputError) as error:
        raise bad_signal_config("a size or a name that no model has", place) from error


def check_readable(values: Mapping[str, Any], usual: Any, place: str) -> None:
    """Check, before anything is written, that `read_sizes` will take these values again.

    Raises:
        InputError: It will not.
    """
    written = json.loads(json.dumps(dict(values), default=lambda _: None))
    try:
        read_sizes(written, usual, place, complete=True)
    except ModelMismatch as error:
        raise InputError(
            f"what no model directory may hold: {error.message}", code=error.code, place=place,
            remedy="Nothing was written; use a plain value of the configuration's own type and"
            " range: int(x) for a number of NumPy.",
        ) from error  # fmt: skip


def _check_facts(facts: Mapping[str, Any], place: str) -> None:
    if not all(isinstance(k, str) and isinstance(x, _PLAIN) for k, x in facts.items()):
        raise InputError(
            "facts that are no plain values", code="bad_facts", place=place,
            remedy="Give text and numbers of Python, without lists: float(x) for one of NumPy.",
        )  # fmt: skip


def bad_signal_config(what: str, place: str, *, code: str = "bad_model_config") -> ModelMismatch:
    """The error of a configuration that can't be used."""
    return ModelMismatch(
        what, code=code, place=place,
        remedy="Restore config.json, or use a tsfm version that knows it.",
    )  # fmt: skip
