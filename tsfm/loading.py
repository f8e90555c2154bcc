"""`tsfm.load`: a model directory of any kind, or a model that comes with the package."""

from __future__ import annotations

import json
from pathlib import Path

from tsfm.errors import InputError
from tsfm.forecasting.forecaster import Forecaster
from tsfm.models.beat_checkpoint import BEAT_CLASSIFIER_TYPE, load_beat_classifier
from tsfm.models.beat_classifier import BeatClassifier
from tsfm.models.checkpoint import find_model, load_model
from tsfm.models.encoder_directory import EncoderDirectory, open_encoder
from tsfm.models.forecaster_checkpoint import FORECASTER_TYPE
from tsfm.models.ppg_encoder_checkpoint import (
    PPG_ENCODER_TYPE,
    PpgEncoderDirectory,
    load_ppg_encoder,
)
from tsfm.models.signal_checkpoint import ENCODER_TYPE
from tsfm.scoring.trained_model import TrainedModel

AnyModel = TrainedModel | Forecaster | EncoderDirectory | PpgEncoderDirectory | BeatClassifier


def load(path_or_name: str | Path) -> AnyModel:
    """Load a model of any kind; runs no code that the files name, and needs no network.

    Args:
        path_or_name: A model directory, or the name of a model that comes with the package:
            `forecaster-zero`, `forecaster-icu`, `ecg-encoder`, `ppg-encoder`, `ecg-beats`.

    Raises:
        InputError: There is no model, or what is given is neither path nor name.
        IntegrityError: A file differs from what was written.
        ModelMismatch: Its parts do not belong together.
    """
    if not isinstance(path_or_name, str | Path):
        raise InputError(
            f"neither a path nor a name but {type(path_or_name).__name__}", code="missing_model",
            place="path_or_name", remedy="Give a model directory, or the name of a model.",
        )  # fmt: skip
    folder = find_model(path_or_name)
    kind = _model_type(folder)
    if kind == FORECASTER_TYPE:
        return Forecaster.from_pretrained(folder)
    if kind == ENCODER_TYPE:
        return open_encoder(folder)
    if kind == PPG_ENCODER_TYPE:
        return load_ppg_encoder(folder)
    if kind == BEAT_CLASSIFIER_TYPE:
        return load_beat_classifier(folder)
    return TrainedModel(load_model(folder))


def _model_type(folder: Path) -> str:
    """What the directory says it is; whatever is wrong with it, its own loader says."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
