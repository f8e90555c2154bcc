"""Weights on disk, with the rights that every other file of the process gets.

`safetensors` writes for the owner alone, whatever the umask says: a model that one account trained
could not be read by the account that scores at night, while its card and settings could.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file.

    Args:
        weights: Contiguous tensors by name; none shares memory with another.
        path: Of the file.
    """
    path.write_bytes(save(dict(weights)))
