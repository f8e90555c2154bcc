# pyright: strict
"""What an encoder says of the waveforms of a data set: a few vectors a record, memory-mapped.

A waveform is an event, and its token needs a vector. The encoder that makes it is run once over the
signal store (`tsfm.scoring.encode_signals`); from then on tokens point to rows of this table by
their event's `signal_id`. So neither tokenising nor training touches a sample, and no torch is
needed to read it.

Below the root of a data set, `signal_vectors/` holds `vectors.f32` (little-endian, one block of
`n_vectors` x `width` a record), `index.parquet` (the records' ids, in order) and `config.json` (the
shape, and the hash of the encoder: vectors of two encoders mean different things and never mix).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import schema
from tsfm.errors import InputError, IntegrityError, ModelMismatch

FOLDER = "signal_vectors"
NO_SIGNAL = -1
_REMEDY = "Make them anew with `tsfm encode`."


@dataclass(frozen=True, eq=False)
class SignalVectors:
    """Vectors of some records.

    Attributes:
        signal_id: Ids of the records, in order.
        vectors: (record, n_vectors, width) float32.
        encoder_hash: Hash of the encoder's model directory.
    """

    signal_id: tuple[str, ...]
    vectors: NDArray[np.float32]
    encoder_hash: str

    def __post_init__(self) -> None:
        """Refuse vectors that are no table of these records.

        Raises:
            InputError: `bad_signal_vectors`.
        """
        if self.vectors.ndim != 3 or len(self.vectors) != len(self.signal_id):
            raise InputError(
                f"vectors of shape {self.vectors.shape} for {len(self.signal_id)} records",
                code="bad_signal_vectors", place="vectors",
                remedy="Give (record, vector, width) and an id for each record.",
            )  # fmt: skip
        if len(self._row) != len(self.signal_id):
            raise InputError(
                "a record stands twice", code="repeated_signal", place="signal_id",
                remedy="Give each record once.",
            )  # fmt: skip

    @classmethod
    def open(cls, folder: str | Path) -> SignalVectors:
        """Map a written table into memory.

        Raises:
            InputError: `no_signal_vectors`: there is none.
            IntegrityError: `bad_signal_vectors`: its files do not belong together.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise InputError(
                "no vectors of waveforms", code="no_signal_vectors", place=str(folder),
                remedy="Make them with `tsfm encode`.",
            )  # fmt: skip
        try:
            config = json.loads((folder / "config.json").read_text())
            n_vectors, width = int(config["n_vectors"]), int(config["width"])
            encoder_hash = str(config["encoder_hash"])
            ids = tuple(str(x) for x in pl.read_parquet(folder / "index.parquet").to_series())
            path = folder / "vectors.f32"
            shape = (len(ids), n_vectors, width)
            if path.stat().st_size != 4 * len(ids) * n_vectors * width:
                raise ValueError("size")
            vectors = (
                np.memmap(path, "<f4", "r", shape=shape) if ids else np.zeros(shape, np.float32)
            )
        except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
            raise IntegrityError(
                "the vectors of waveforms can't be read", code="bad_signal_vectors",
                place=str(folder), remedy=_REMEDY,
            ) from error  # fmt: skip
        return cls(ids, vectors, encoder_hash)

    def save(self, folder: str | Path) -> None:
        """Write the table; a reader sees all of it or none. An older one is replaced."""
        folder = Path(folder)
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        np.ascontiguousarray(self.vectors, "<f4").tofile(temporary / "vectors.f32")
        ids = pl.Series(schema.SIGNAL_ID, list(self.signal_id), dtype=pl.String)
        pl.DataFrame([ids]).write_parquet(temporary / "index.parquet")
        config: dict[str, Any] = {
            "n_vectors": self.vectors.shape[1], "width": self.vectors.shape[2],
            "encoder_hash": self.encoder_hash,
        }  # fmt: skip
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)

    @property
    def n_vectors(self) -> int:
        """Vectors of a record."""
        return self.vectors.shape[1]

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self.vectors.shape[2]

    def rows(self, signal_id: Iterable[str | None]) -> NDArray[np.int32]:
        """Row of each record; `NO_SIGNAL` for None and for a record that was not encoded."""
        return np.array([self._row.get(name, NO_SIGNAL) for name in signal_id], np.int32)

    @cached_property
    def _row(self) -> dict[str | None, int]:
        return {name: i for i, name in enumerate(self.signal_id)}


def vectors_of(root: str | Path) -> SignalVectors | None:
    """Vectors of a data set's waveforms, None where none were made."""
    folder = Path(root) / FOLDER
    return SignalVectors.open(folder) if folder.is_dir() else None


def require_encoder(signals: SignalVectors | None, encoder_hash: str, *, place: str) -> None:
    """Check that vectors are those of the encoder that a model was trained with.

    Args:
        signals: What is at hand.
        encoder_hash: The model's encoder; empty where the model reads no waveforms.
        place: For the message.

    Raises:
        ModelMismatch: `signal_encoder_mismatch`: they are another encoder's.
    """
    if signals is not None and encoder_hash and signals.encoder_hash != encoder_hash:
        raise ModelMismatch(
            "the waveforms were encoded by another encoder than the model was trained with",
            code="signal_encoder_mismatch", place=place,
            remedy="Encode them with the model's encoder: `tsfm encode`.",
        )  # fmt: skip
