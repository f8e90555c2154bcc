"""`tsfm.load`: a model directory of either kind, or a model that comes with the package."""

from __future__ import annotations

import json
from pathlib import Path

from tsfm.forecasting.forecaster import Forecaster
from tsfm.models.checkpoint import find_model, load_model
from tsfm.models.forecaster_checkpoint import FORECASTER_TYPE
from tsfm.scoring.trained_model import TrainedModel


def load(path_or_name: str | Path) -> TrainedModel | Forecaster:
    """Load a model of either kind; runs no code that the files name, and needs no network.

    Args:
        path_or_name: A model directory, or the name of a model that comes with the package:
            `forecaster-zero`, `forecaster-icu`.

    Raises:
        InputError: There is no model.
        IntegrityError: A file differs from what was written.
        ModelMismatch: Its parts do not belong together.
    """
    folder = find_model(path_or_name)
    if _model_type(folder) == FORECASTER_TYPE:
        return Forecaster.from_pretrained(folder)
    return TrainedModel(load_model(folder))


def _model_type(folder: Path) -> str:
    """What the directory says it is; whatever is wrong with it, its own loader says."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
