# pyright: strict
"""The raw files of a token store: one a field, mapped with their sizes checked, and told apart.

A run that was stopped goes on only with the data it began with. What a store holds is named by a
hash of its bytes, taken while they are written; a store of an older version has none, and is named
by the sizes of its files and a bounded sample of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tsfm.errors import ModelMismatch
from tsfm.tokens.event_tokens import TOKEN_FIELDS, SubjectTokens

_BLOCKS = 64
_BLOCK = 4096  # tokens
_REMEDY = "Make the store anew with `tsfm tokenize`."


class FieldFiles:
    """Appends tokens to the files of all fields and hashes what is written.

    Args:
        files: An open file for each of `TOKEN_FIELDS`.
    """

    def __init__(self, files: Mapping[str, BinaryIO]) -> None:
        """Start with nothing written."""
        self._files = files
        self._digests = {name: hashlib.sha256() for name in TOKEN_FIELDS}

    def append(self, tokens: SubjectTokens) -> None:
        """Write the tokens of some subjects."""
        for name, kind in TOKEN_FIELDS.items():
            array: NDArray[Any] = getattr(tokens, name)
            data = np.ascontiguousarray(array, dtype=kind).tobytes()
            self._files[name].write(data)
            self._digests[name].update(data)

    @property
    def hash(self) -> str:
        """sha256 of all fields so far."""
        parts = [f"{name} {digest.hexdigest()}" for name, digest in self._digests.items()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def map_fields(folder: Path, n_tokens: int) -> dict[str, NDArray[Any]]:
    """Memory-mapped array of each of `TOKEN_FIELDS`.

    Args:
        folder: Folder of the store.
        n_tokens: Length of each.

    Raises:
        ModelMismatch: `bad_token_store`: a file is missing, or longer or shorter than that.
    """
    fields: dict[str, NDArray[Any]] = {}
    for name, kind in TOKEN_FIELDS.items():
        path = folder / f"{name}.bin"
        size = n_tokens * np.dtype(kind).itemsize
        try:
            fits = path.stat().st_size == size
        except OSError as error:
            raise bad_store(f"{path.name} is missing", folder) from error
        if not fits:
            raise bad_store(f"{path.name} does not hold {n_tokens:,} tokens", folder)
        fields[name] = (
            np.memmap(path, dtype=kind, mode="r", shape=(n_tokens,))
            if n_tokens
            else np.zeros(0, kind)
        )
    return fields


def sample_hash(fields: Mapping[str, NDArray[Any]]) -> str:
    """Hash of the sizes of all fields and of blocks spread evenly over them."""
    digest = hashlib.sha256()
    for name, array in fields.items():
        digest.update(f"{name} {array.dtype} {len(array)}\n".encode())
        starts = np.linspace(0, max(0, len(array) - _BLOCK), _BLOCKS).astype(np.int64)
        for start in np.unique(starts).tolist():
            digest.update(np.ascontiguousarray(array[start : start + _BLOCK]).tobytes())
    return digest.hexdigest()


def bad_store(what: str, folder: Path) -> ModelMismatch:
    """The error of a store whose files do not belong together."""
    return ModelMismatch(what, code="bad_token_store", place=str(folder), remedy=_REMEDY)
