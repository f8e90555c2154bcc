"""Training state on disk: stop at any moment, go on where it stopped.

A checkpoint is a folder with `tensors.safetensors` (weights, their average, the optimizer's
moments, the random state) and `state.json` (step, epoch, history). It is written beside its name
and renamed, and the one before goes only when it stands there: a stop at any point leaves a whole
one to find. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tsfm.errors import IntegrityError, ModelMismatch
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
        state: Plain values: fingerprint, digest of the data, step, epoch, history.
        best: Weights of the best epoch so far.
    """
    tensors: dict[str, Tensor] = {"rng": torch.get_rng_state()}
    tensors |= {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.weights.items()}
    tensors |= {f"best.{k}": v for k, v in (best or {}).items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
    temporary = _temporary(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    # Clones, because the average starts as a view of nothing but may share storage with `best`.
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()},
              temporary / "tensors.safetensors")  # fmt: skip
    (temporary / "state.json").write_text(
        json.dumps({**state, "average_updates": average.n_updates}) + "\n"
    )
    old = _old(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint; one that was stopped before it had its name is given it."""
    left_over = (_temporary(folder), _old(folder))
    if not _is_whole(folder):
        for left in left_over:
            if _is_whole(left):
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(left, folder)
                break
    if _is_whole(folder):
        for left in left_over:  # or it would come back when the checkpoint is removed
            shutil.rmtree(left, ignore_errors=True)
    return folder.exists()


def load_checkpoint(
    folder: Path,
    *,
    fingerprint: str,
    model: nn.Module,
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
    data: str | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Bring a training back to where it stopped.

    Args:
        folder: Checkpoint folder.
        fingerprint: What the run is made of (configuration, seed, sizes of the data).
        model: Freshly built model, filled in place.
        average: Its average, filled in place.
        optimizer: Its optimizer, filled in place.
        data: Digest of what the data hold, compared with the state's `data`. A checkpoint of an
            older version has none and is taken at its fingerprint's word.

    Returns:
        The plain state, and the weights of the best epoch so far (empty if none).

    Raises:
        ModelMismatch: The checkpoint belongs to another run.
        IntegrityError: It can't be read.
    """
    try:
        state = _read_state(folder)
        if state["fingerprint"] != fingerprint or data != state.get("data", data):
            raise ModelMismatch(
                "the checkpoint belongs to a run with other data, configuration or seed",
                code="checkpoint_of_another_run",
                place=str(folder),
                remedy="Choose another --out, or remove the checkpoint to start afresh.",
            )
        tensors = load_file(folder / "tensors.safetensors")
        best = _fill(tensors, state, model, average, optimizer)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise IntegrityError(
            "the checkpoint can't be read", code="bad_checkpoint", place=str(folder),
            remedy="Restore it, or remove it to start afresh.",
        ) from error  # fmt: skip
    return state, best


def _fill(
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    model: nn.Module,
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
) -> dict[str, Tensor]:
    """Put everything back in its place, and give the weights of the best epoch."""
    torch.set_rng_state(tensors["rng"])
    model.load_state_dict(_below(tensors, "model."))
    average.weights = _below(tensors, "average.")
    average.n_updates = state["average_updates"]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below(tensors, "optimizer.").items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return _below(tensors, "best.")


def _read_state(folder: Path) -> dict[str, Any]:
    state = json.loads((folder / "state.json").read_text())
    if not isinstance(state, dict):
        raise TypeError("the state is no table")
    return state


def _is_whole(folder: Path) -> bool:
    """Whether both files are there in full: the state is written last."""
    try:
        _read_state(folder)
        with safe_open(folder / "tensors.safetensors", "pt"):
            return True
    except (OSError, ValueError, TypeError, SafetensorError):
        return False


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.tmp")


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
