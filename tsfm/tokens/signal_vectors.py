# pyright: strict
"""What an encoder says of the waveforms of a data set: a few vectors a record, memory-mapped.

A waveform is an event, and its token needs a vector. The encoder that makes it is run once over the
signal store (`tsfm.scoring.encode_signals`); from then on tokens point to rows of this table by
their event's `signal_id`. So neither tokenising nor training touches a sample, and no torch is
needed to read it.

Below the root of a data set, `signal_vectors/` holds `vectors.f32` (little-endian, one block of
`n_vectors` x `width` a record), `index.parquet` (the records' ids, those with vectors first and in
order, then those that had nothing to encode) and `config.json`: the shape; the hash of the encoder,
since vectors of two encoders mean different things and never mix; the hash of the signal store,
since records that came or changed later are not in the table; and the class of the events that the
vectors belong to. A record of ECG and PPG gives an event of each, and only the ECG's is told.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import schema
from tsfm.checked_parquet import write_frame
from tsfm.errors import InputError, IntegrityError, ModelMismatch

FOLDER = "signal_vectors"
NO_SIGNAL = -1
_ECG = "ECG"
_REMEDY = "Make them anew with `tsfm encode`."


@dataclass(frozen=True, eq=False)
class SignalVectors:
    """Vectors of some records.

    Attributes:
        signal_id: Ids of the records, in order.
        vectors: (record, n_vectors, width) float32.
        encoder_hash: Hash of the encoder's model directory.
        left: Ids of records that had nothing to encode.
        signals_hash: Hash of the signal store's manifest; empty where it is not known.
        code_class: First part of the codes of the events that are told.
    """

    signal_id: tuple[str, ...]
    vectors: NDArray[np.float32]
    encoder_hash: str
    left: tuple[str, ...] = ()
    signals_hash: str = ""
    code_class: str = _ECG

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
        if len(self._row) != len(self.signal_id) + len(self.left):
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
            hashes = str(config["encoder_hash"]), str(config["signals_hash"])
            every = tuple(str(x) for x in pl.read_parquet(folder / "index.parquet").to_series())
            ids = every[: int(config["n_records"])]
            code_class = str(config["code_class"])
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
        return cls(ids, vectors, hashes[0], every[len(ids) :], hashes[1], code_class)

    def save(self, folder: str | Path) -> None:
        """Write the table; a reader sees all of it or none. An older one is replaced."""
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            np.ascontiguousarray(self.vectors, "<f4").tofile(temporary / "vectors.f32")
            ids = pl.Series(schema.SIGNAL_ID, [*self.signal_id, *self.left], dtype=pl.String)
            write_frame(pl.DataFrame([ids]), temporary / "index.parquet")
            config: dict[str, Any] = {
                "n_vectors": self.vectors.shape[1], "width": self.vectors.shape[2],
                "n_records": len(self.signal_id), "encoder_hash": self.encoder_hash,
                "signals_hash": self.signals_hash, "code_class": self.code_class,
            }  # fmt: skip
            (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        old = temporary.with_name(f"{temporary.name}-old")
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)

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

    def unexamined(self, signal_id: Iterable[str]) -> int:
        """Records among these that nobody has tried to encode."""
        return sum(name not in self._row for name in signal_id)

    @cached_property
    def _row(self) -> dict[str | None, int]:
        rows: dict[str | None, int] = dict.fromkeys(self.left, NO_SIGNAL)
        return rows | {name: i for i, name in enumerate(self.signal_id)}


def vectors_of(root: str | Path) -> SignalVectors | None:
    """Vectors of a data set's waveforms, None where none were made.

    Raises:
        ModelMismatch: `signals_changed`: they are of other signals than the data set holds.
        IntegrityError: Their files do not belong together.
    """
    folder = Path(root) / FOLDER
    if not folder.is_dir():
        return None
    found = SignalVectors.open(folder)
    if found.signals_hash != hash_signals(root):
        raise ModelMismatch(
            "the data set's signals have changed since they were encoded", code="signals_changed",
            place=str(folder), remedy=_REMEDY,
        )  # fmt: skip
    return found


def hash_signals(root: str | Path) -> str:
    """sha256 of the signal store's manifest, empty where there is no store."""
    path = Path(root) / "signals" / "manifest.json"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


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
