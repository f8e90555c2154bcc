"""Model directories: plain scalars and tensors, nothing that runs.

A model directory holds `config.json`, `model.safetensors`, `vocabulary/`, `calibration.json` (after
fine-tuning), `README.md` (the model card) and `manifest.json` (sha256 of all the others). It is
written beside its final name and renamed, so a reader sees a whole model or none. Loading checks
every hash, every tensor's name, shape and finiteness, and instantiates only the classes of
`MODEL_TYPES`: a file names a model, never code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import tsfm
from tsfm import __version__
from tsfm.errors import InputError, IntegrityError, ModelMismatch, TsfmError
from tsfm.models.model_card import render_model_card
from tsfm.models.stored_config import MOST_PARAMETERS as MOST_PARAMETERS
from tsfm.models.stored_config import build_model, read_calibration, read_json
from tsfm.models.stored_config import check_keys as check_keys
from tsfm.models.stored_config import read_config as read_config
from tsfm.models.timeline import MODEL_TYPE, TimelineModel
from tsfm.models.weights_file import write_weights
from tsfm.tokens.event_tokens import SubjectTokens, tokenize_events, told_signals
from tsfm.tokens.signal_vectors import SignalVectors, require_encoder
from tsfm.tokens.token_store import VOCABULARY_DIR, load_vocabulary
from tsfm.tokens.value_scale import ValueScale
from tsfm.tokens.vocabulary import Vocabulary

FORMAT_VERSION = 1
MODEL_TYPES = {MODEL_TYPE: TimelineModel}
PRETRAINED = Path(tsfm.__file__).parent / "pretrained"


@dataclass(frozen=True)
class ModelDirectory:
    """A loaded model with what belongs to it.

    Attributes:
        path: Its folder.
        model: The network, in evaluation mode.
        vocabulary: Codes of its tokens.
        scale: Scales of its values.
        calibration: Task name to the recalibration of its probabilities.
        facts: What `config.json` says beside the model's configuration.
        hash: sha256 of its manifest: names this model in every prediction.
    """

    path: Path
    model: TimelineModel
    vocabulary: Vocabulary
    scale: ValueScale
    calibration: dict[str, dict[str, Any]]
    facts: dict[str, Any]
    hash: str

    def tokenize(
        self, events: pl.DataFrame, *, signals: SignalVectors | None = None
    ) -> SubjectTokens:
        """Whole subjects as this model's tokens.

        Args:
            events: Event frame, every subject complete.
            signals: Vectors of the waveforms that the events point to.

        Raises:
            InputError: `no_signal_vectors`: the model reads waveforms, and the events point to
                some that nobody has encoded. A score without them would look like one with them.
            ModelMismatch: The vectors are another encoder's.
        """
        encoder = self.model.config.signal_encoder
        if not encoder:
            signals = None
        else:
            code_class = signals.code_class if signals is not None else SignalVectors.code_class
            asked = told_signals(events, code_class).drop_nulls().to_list()
            missing = len(asked) if signals is None else signals.unexamined(asked)
            if missing:
                raise InputError(
                    f"the model reads waveforms, and {missing} of the events' are not encoded",
                    code="no_signal_vectors", place=str(self.path),
                    remedy="Encode with `tsfm encode`, or set signal_id to null to go without.",
                )  # fmt: skip
        require_encoder(signals, encoder, place=str(self.path))
        return tokenize_events(events, self.vocabulary, self.scale, signals=signals)

    def _repr_html_(self) -> str:
        n = sum(p.numel() for p in self.model.parameters())
        config = self.model.config
        tasks = ", ".join((*config.tasks, *config.class_tasks)) or "none"
        return (
            f"<b>{MODEL_TYPE}</b> {self.hash[:12]}<table><tr><td>parameters</td><td>{n:,}</td></tr>"
            f"<tr><td>codes</td><td>{len(self.vocabulary):,}</td></tr>"
            f"<tr><td>tasks</td><td>{tasks}</td></tr></table>"
        )


def save_model(
    path: str | Path,
    model: TimelineModel,
    vocabulary: Vocabulary,
    scale: ValueScale,
    *,
    facts: Mapping[str, Any],
    calibration: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Write a model directory atomically, with its card, and return its hash.

    Args:
        path: Final folder.
        model: Network to save.
        vocabulary: Its vocabulary.
        scale: Its value scales.
        facts: Plain scalars about training (seed, data, epochs ...).
        calibration: Task to recalibration, as `Recalibration.as_dict` or a temperature.

    Raises:
        InputError: The folder is not empty, or is a file.
        TsfmError: `weights_not_finite`: the network holds what is no number; nothing is written.
    """
    _require_finite(model)
    calibration = calibration or {}
    config = {
        "format_version": FORMAT_VERSION,
        "tsfm_version": __version__,
        "model_type": MODEL_TYPE,
        "vocabulary_hash": vocabulary.hash,
        "model": model.config.stored(),
        "facts": dict(facts),
    }
    with writing_directory(path) as temporary:
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        write_weights(model.state_dict(), temporary / "model.safetensors")
        vocabulary.save(temporary / VOCABULARY_DIR)
        scale.save(temporary / VOCABULARY_DIR)
        (temporary / "calibration.json").write_text(json.dumps(calibration, indent=2) + "\n")
        card = render_model_card(model, facts=facts, calibration=calibration)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return _sha256(Path(path) / "manifest.json")


@contextmanager
def writing_directory(path: str | Path) -> Iterator[Path]:
    """Folder to write a model into; with its manifest it takes its final name at the end.

    Raises:
        InputError: The final folder is not empty, or is a file.
    """
    folder = Path(path)
    refuse_existing(folder)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        digests = _digests(temporary)
        (temporary / "manifest.json").write_text(json.dumps(digests, indent=2) + "\n")
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def refuse_existing(path: str | Path) -> None:
    """Check, before a long training, that a model can be written there.

    Raises:
        InputError: The folder is not empty, or is a file.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            "the output folder is not empty",
            code="output_exists",
            place=str(folder),
            remedy="Choose another --out, or remove the old one.",
        )


def load_model(path: str | Path) -> ModelDirectory:
    """Load a model directory.

    Raises:
        InputError: There is no model.
        IntegrityError: A file differs from what was written.
        ModelMismatch: Configuration, vocabulary and weights do not belong together, or a file says
            what none may say.
    """
    folder = find_model(path)
    digest = verify_directory(folder)
    config = read_json(folder / "config.json")
    _require_timelines(config, folder)
    vocabulary, scale = load_vocabulary(folder / VOCABULARY_DIR)
    if config.get("vocabulary_hash") != vocabulary.hash:
        raise ModelMismatch(
            "the vocabulary is not the one this model was trained with",
            code="vocabulary_mismatch",
            place=str(folder),
            remedy="Restore the vocabulary folder that belongs to this model.",
        )
    stored, facts = config.get("model"), config.get("facts", {})
    if not isinstance(stored, dict) or not isinstance(facts, dict):
        raise ModelMismatch(
            "the configuration is incomplete or of wrong types", code="bad_model_config",
            place=str(folder), remedy="Restore config.json.",
        )  # fmt: skip
    model = build_model(read_config(stored, place=str(folder)), place=str(folder))
    if model.config.n_codes != len(vocabulary):
        raise ModelMismatch(
            "the model's number of codes is not its vocabulary's",
            code="vocabulary_mismatch",
            place=str(folder),
            remedy="Restore the model directory as it was written.",
        )
    load_weights(model, folder / "model.safetensors")
    model.eval()
    calibration = read_calibration(folder / "calibration.json")
    return ModelDirectory(
        path=folder,
        model=model,
        vocabulary=vocabulary,
        scale=scale,
        calibration=calibration,
        facts=facts,
        hash=digest,
    )


def _require_timelines(config: Mapping[str, Any], folder: Path) -> None:
    kind = str(config.get("model_type"))
    if kind not in MODEL_TYPES:
        # A word of a file is repeated only where it can be a name.
        named = kind if re.fullmatch(r"[a-z][a-z_-]{0,40}", kind) else "unknown"
        raise ModelMismatch(
            f"a model of another type ({named}), not one of timelines", code="unknown_model_type",
            place=str(folder), remedy="Give one that `tsfm pretrain` or `tsfm finetune` wrote.",
        )  # fmt: skip
    if config.get("format_version") != FORMAT_VERSION:
        raise ModelMismatch(
            "a model of an unknown format", code="unknown_model_type", place=str(folder),
            remedy=f"This version of tsfm reads format {FORMAT_VERSION}; use that which wrote it.",
        )  # fmt: skip


def find_model(path_or_name: str | Path) -> Path:
    """Folder of a model: a path, or the name of one that comes with the package.

    Raises:
        InputError: There is no such folder.
    """
    folder = Path(path_or_name)
    named = PRETRAINED / str(path_or_name)
    if not folder.exists() and str(path_or_name) == named.name and named.is_dir():
        return named
    if folder.is_dir():
        return folder
    names = sorted(p.name for p in PRETRAINED.glob("*") if p.is_dir())
    known = f", or one of {', '.join(names)}" if names else ""
    raise InputError(
        "no model directory", code="missing_model", place=str(path_or_name),
        remedy=f"Give a folder written by tsfm{known}.",
    )  # fmt: skip


def verify_directory(folder: Path) -> str:
    """Check every file of a model directory against its manifest, and give the manifest's hash.

    Raises:
        InputError: There is no manifest.
        IntegrityError: A file differs from what was written.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        named = set(manifest.items())
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(
            "no model directory",
            code="missing_model",
            place=str(folder),
            remedy="Give a folder written by `tsfm pretrain` or `tsfm finetune`.",
        ) from error
    changed = sorted(name for name, _ in named ^ set(_digests(folder).items()))
    if changed:
        raise IntegrityError(
            f"{len(set(changed))} files differ from the manifest, first {changed[0]}",
            code="model_changed",
            place=str(folder),
            remedy="Restore the model directory as it was written.",
        )
    return _sha256(folder / "manifest.json")


def load_weights(model: nn.Module, path: Path) -> None:
    """Load safetensors whose names, shapes and finiteness fit the model exactly."""
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(
            "unreadable weights", code="bad_weights", place=path.name,
            remedy="Restore model.safetensors.",
        ) from error  # fmt: skip
    expected: dict[str, Tensor] = model.state_dict()
    wrong = sorted(
        name
        for name in set(weights) | set(expected)
        if name not in weights
        or name not in expected
        or weights[name].shape != expected[name].shape
        or not bool(torch.isfinite(weights[name]).all())
    )
    if wrong:
        raise ModelMismatch(
            f"{len(wrong)} tensors are missing, extra, misshapen or not finite, first {wrong[0]}",
            code="weights_mismatch",
            place=path.name,
            remedy="Use the weights that were written with this configuration.",
        )
    model.load_state_dict(weights)


def _require_finite(model: nn.Module) -> None:
    wrong = [k for k, v in model.state_dict().items() if not bool(torch.isfinite(v).all())]
    if wrong:
        raise TsfmError(
            f"{len(wrong)} tensors of the model are not finite, first {wrong[0]}",
            code="weights_not_finite", place="save_model",
            remedy="Train with a lower learning rate; no model was written.",
        )  # fmt: skip


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
