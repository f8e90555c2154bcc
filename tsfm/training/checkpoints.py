"""Training state on disk: stop at any moment, go on where it stopped.

A checkpoint is a folder with `tensors.safetensors` (weights, their average, the optimizer's
moments, the random state) and `state.json` (step, epoch, history). It is written beside its name
and renamed. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tsfm.errors import ModelMismatch
from tsfm.training.optimizer import WeightAverage


def save_checkpoint(
    folder: Path,
    *,
    model: nn.Module,
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    best: dict[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint atomically.

    Args:
        folder: Its final name.
        model: Model in training.
        average: Moving average of its weights.
        optimizer: Its optimizer.
        state: Plain values: fingerprint, step, epoch, history.
        best: Weights of the best epoch so far.
    """
    tensors: dict[str, Tensor] = {"rng": torch.get_rng_state()}
    tensors |= {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.weights.items()}
    tensors |= {f"best.{k}": v for k, v in (best or {}).items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    # Clones, because the average starts as a view of nothing but may share storage with `best`.
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()},
              temporary / "tensors.safetensors")  # fmt: skip
    (temporary / "state.json").write_text(
        json.dumps({**state, "average_updates": average.n_updates}) + "\n"
    )
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)


def load_checkpoint(
    folder: Path,
    *,
    fingerprint: str,
    model: nn.Module,
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Bring a training back to where it stopped.

    Args:
        folder: Checkpoint folder.
        fingerprint: What the run is made of (data, configuration, seed).
        model: Freshly built model, filled in place.
        average: Its average, filled in place.
        optimizer: Its optimizer, filled in place.

    Returns:
        The plain state, and the weights of the best epoch so far (empty if none).

    Raises:
        ModelMismatch: The checkpoint belongs to another run.
    """
    state = json.loads((folder / "state.json").read_text())
    if state["fingerprint"] != fingerprint:
        raise ModelMismatch(
            "the checkpoint belongs to a run with other data, configuration or seed",
            code="checkpoint_of_another_run",
            place=str(folder),
            remedy="Choose another --out, or remove the checkpoint to start afresh.",
        )
    tensors = load_file(folder / "tensors.safetensors")
    torch.set_rng_state(tensors["rng"])
    model.load_state_dict(_below(tensors, "model."))
    average.weights = _below(tensors, "average.")
    average.n_updates = state["average_updates"]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below(tensors, "optimizer.").items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return state, _below(tensors, "best.")


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
