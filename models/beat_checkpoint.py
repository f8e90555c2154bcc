"""The model directory of a beat classifier, beside that of an encoder (`signal_checkpoint`).

It holds `config.json` (what the trees read, how a class is decided, facts of the training),
`model.safetensors` (the arrays of the trees), `README.md` (the card) and `manifest.json`. No code
is stored and none is run: trees are numbers, and every one of them is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import nn

from tsfm import __version__
from tsfm.errors import IntegrityError
from tsfm.models.beat_classifier import CLASSES, BeatClassifier, BeatClassifierConfig
from tsfm.models.boosted_trees import BoostedTrees
from tsfm.models.checkpoint import find_model
from tsfm.models.signal_checkpoint import read_signal_directory, read_sizes, save_signal_model

BEAT_CLASSIFIER_TYPE = "beat_classifier"
_LIMITS = (
    "Trained on few people of one database, at annotated beats. Where leads, devices or patients"
    " differ it may do worse; validate it where it is used.",
    "Paced beats and beats that nobody can classify are no class of it: it calls them one of the"
    " four.",
    "No beat is named S where the rhythm is irregular, as in atrial fibrillation.",
    "Fusion beats are few in training and not to be counted on: see their F1.",
    "Shapes are told against the record's usual beat: give it minutes rather than seconds.",
    "It names beats, makes no diagnosis and is no medical device.",
)


class _Arrays(nn.Module):
    """Arrays as the tensors that are stored."""

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        super().__init__()
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(array))


def save_beat_classifier(
    path: str | Path, classifier: BeatClassifier, *, facts: Mapping[str, Any] | None = None
) -> str:
    """Write a model directory atomically, with its card, and return its hash.

    Args:
        path: Final folder.
        classifier: What to save.
        facts: Plain scalars about the training; those of the classifier if not given.

    Raises:
        InputError: The folder is not empty, or is a file.
    """
    told = classifier.facts if facts is None else facts
    return save_signal_model(
        path, BEAT_CLASSIFIER_TYPE, _Arrays(classifier.trees.state()), classifier.config,
        facts=told, card=beat_classifier_card(classifier, facts=told),
    )  # fmt: skip


def load_beat_classifier(path_or_name: str | Path) -> BeatClassifier:
    """Load a classifier by its path or by the name of a packaged one, `ecg-beats`.

    Raises:
        InputError: There is no model.
        IntegrityError: A file differs from what was written.
        ModelMismatch: Its parts do not belong together.
    """
    folder = find_model(path_or_name)
    stored, digest = read_signal_directory(folder, BEAT_CLASSIFIER_TYPE)
    usual = BeatClassifierConfig("any", 1, 1.0, 1.0, 1.0, 1.0, 0.0)
    # Directories of before V was shared do not name it.
    sizes = {"v_shared": 0.0, **stored["model"]}
    config = read_sizes(sizes, usual, str(folder), complete=True)
    try:
        arrays = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise IntegrityError(
            "unreadable weights", code="bad_weights", place=str(folder),
            remedy="Restore model.safetensors.",
        ) from error  # fmt: skip
    trees = BoostedTrees.from_state(
        arrays,
        n_features=len(config.features.split()),
        n_columns=config.n_members * len(CLASSES),
    )
    return BeatClassifier(trees, config, stored["facts"], digest)


def beat_classifier_card(classifier: BeatClassifier, *, facts: Mapping[str, Any]) -> str:
    """Model card in Markdown, with the header that model hubs read."""
    config, trees = classifier.config, classifier.trees
    told = [f"- {name}: {value}" for name, value in facts.items()]
    return "\n".join(
        [
            "---", "library_name: tsfm", "tags:", "- ecg", "- arrhythmia", "- gradient-boosting",
            "---", "", "# Beat classifier", "", "## What it gives", "",
            "The class of every beat of an electrocardiogram, as ANSI/AAMI EC57 groups them: N"
            " (normal and bundle branch block), S (supraventricular), V (ventricular), F (fusion),"
            " with probabilities. One lead or two, any unit, any rate above 70 Hz. R peaks are"
            " found if they are not given.", "", "## How to use it", "", "```python",
            "from tsfm.models.beat_checkpoint import load_beat_classifier", "",
            "beats = load_beat_classifier(folder).classify(ecg, fs_hz=360)",
            "beats.samples, beats.classes, beats.probability", "```", "", "## Model", "",
            f"- trees: {trees.n_trees:,}, {len(trees.leaf):,} leaves,"
            f" from {config.n_members} fits",
            f"- features of a beat: {trees.n_features} (tsfm.signals.beat_features)",
            f"- no S where intervals step by more than {config.irregular:g} of their length",
            f"- weights in the decision: S {config.s_scale:g} against N, F {config.f_scale:g}",
            f"- {config.v_shared:.0%} of V's probability is the mean over the record's beats of the"
            " same shape",
            "- probabilities: means of softmax scores, without the weight"
            f" ({config.s_weight:g}) that S had in the fit",
            f"- written by: tsfm {__version__}", "", "## Training", "", *(told or ["- not told"]),
            "", "## Limits", "", *(f"- {limit}" for limit in _LIMITS), "",
        ]
    )  # fmt: skip
