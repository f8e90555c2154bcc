"""Writing the signal store: raw shards, index and manifest.

The layout is told in `tsfm.signals.store`, which reads it. Leads are written as they come: memory
holds one of them, whatever the number of records. A shard is one array of one type; `DTYPES` says
which by the suffix of its name.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tsfm import event_table, schema
from tsfm.errors import InputError

SHARD_BYTES = 64 * 2**20
DTYPES = {".i16": np.dtype("<i2"), ".i32": np.dtype("<i4"), ".f32": np.dtype("<f4")}
"""Type of a shard's samples by the suffix of its name."""

_SUFFIXES = {dtype: suffix for suffix, dtype in DTYPES.items()}

Samples = npt.NDArray[np.int16 | np.int32 | np.float32]


@dataclass(frozen=True, eq=False)
class Lead:
    """One signal of a record, as it is put into the store.

    Attributes:
        name: Name in the source; unique within its record.
        modality: `ecg`, `ppg`, `abp`, `resp` or `other`.
        fs_hz: Sampling rate of this signal.
        samples: (n_samples,) int16 or int32 in ADC steps, or float32 in `units`; a NaN is a gap.
        units: Physical unit; None where the source is not calibrated.
        gain: ADC steps a unit; None where the source is not calibrated, and steps have no unit.
            Floats need none.
        baseline: ADC value of zero units.
        gap_starts: First samples of the runs without a measurement, ascending.
        gap_lengths: Their lengths.
        checksum_ok: Whether the source's own checksum agreed; None where it gives none.
    """

    name: str
    modality: str
    fs_hz: float
    samples: Samples
    units: str | None
    gain: float | None
    baseline: int = 0
    gap_starts: Sequence[int] = ()
    gap_lengths: Sequence[int] = ()
    checksum_ok: bool | None = None


class SignalWriter:
    """Writes `signals/` of one data set; use as a context manager.

    The folder appears complete when the context ends without an error, and not at all otherwise.

    Args:
        root: Root of the data set; must not hold signals already.
        shard_bytes: A new shard is begun before one grows past this; a longer lead has its own.
    """

    def __init__(self, root: str | Path, *, shard_bytes: int = SHARD_BYTES) -> None:
        """Refuse to write over other signals.

        Raises:
            InputError: `output_exists`.
        """
        self.folder = Path(root) / "signals"
        if self.folder.exists():
            raise InputError(
                "the output folder already holds signals",
                code="output_exists",
                place=str(self.folder),
                remedy="Choose another --out; or remove signals/ there and ingest all records that "
                "its events point to.",
            )
        self.shard_bytes = shard_bytes
        Path(root).mkdir(parents=True, exist_ok=True)
        self._temporary = Path(tempfile.mkdtemp(prefix=".signals-", dir=root))
        self._shards: dict[str, _Shard] = {}
        self._finished: dict[str, dict[str, Any]] = {}
        self._rows: list[dict[str, Any]] = []
        self._keys: set[tuple[str, str]] = set()

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put the folder in its place; after a failure remove what was written."""
        try:
            for shard in list(self._shards.values()):
                self._close(shard)
            if kind is None:
                self._write_index()
                os.rename(self._temporary, self.folder)
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def add(
        self,
        leads: Iterable[Lead],
        *,
        signal_id: str,
        subject_id: int,
        record: str,
        start_time: datetime | None,
    ) -> None:
        """Write the leads of one record; the index has all of them or, after a refusal, none.

        Args:
            leads: Taken one at a time.
            signal_id: Key of the record.
            subject_id: Whose it is.
            record: Its name in the source.
            start_time: Naive, on the data set's clock; None where it is not known.

        Raises:
            InputError: A lead's name comes twice, its samples have another type, its rate or gain
                is not a number that can be used, its gaps are no stretches of it (`bad_gaps`), or
                the start has a time zone (`bad_time`).
        """
        if start_time is not None and start_time.tzinfo is not None:
            raise InputError(
                "a start with a time zone",
                code="bad_time",
                place=f"record {record}",
                remedy="Bring it to the data set's clock and drop the zone.",
            )
        rows: list[dict[str, Any]] = []
        keys: set[tuple[str, str]] = set()
        for lead in leads:
            place = f"lead {lead.name} of {record}"
            dtype = lead.samples.dtype.newbyteorder("<")
            if dtype not in _SUFFIXES or lead.samples.ndim != 1 or not lead.samples.size:
                raise InputError(
                    "samples are not one row of int16, int32 or float32",
                    code="bad_samples",
                    place=place,
                    remedy="Convert them without loss first.",
                )
            if not (math.isfinite(lead.fs_hz) and lead.fs_hz > 0):
                raise InputError("no sampling rate", code="bad_sampling_rate", place=place)
            if lead.gain is not None and (not math.isfinite(lead.gain) or lead.gain == 0):
                raise InputError("not a gain", code="bad_gain", place=place)
            key = (signal_id, lead.name)
            if key in self._keys or key in keys:
                raise InputError("a lead comes twice", code="duplicate_lead", place=place)
            keys.add(key)
            gap_starts, gap_lengths = _gaps(lead)
            shard, offset = self._append(lead.samples.astype(dtype, copy=False))
            rows.append(
                {
                    schema.SIGNAL_ID: signal_id,
                    schema.SUBJECT_ID: subject_id,
                    "record": record,
                    "start_time": start_time,
                    "lead": lead.name,
                    "modality": lead.modality,
                    "fs_hz": lead.fs_hz,
                    "n_samples": len(lead.samples),
                    "units": lead.units if lead.gain is not None or dtype.kind == "f" else None,
                    "gain": lead.gain,
                    "baseline": lead.baseline,
                    "shard": shard,
                    "offset": offset,
                    "gap_starts": gap_starts,
                    "gap_lengths": gap_lengths,
                    "checksum_ok": lead.checksum_ok,
                }
            )
        self._rows += rows
        self._keys |= keys

    def _append(self, samples: Samples) -> tuple[str, int]:
        suffix = _SUFFIXES[samples.dtype]
        shard = self._shards.get(suffix)
        if shard and shard.n_bytes and shard.n_bytes + samples.nbytes > self.shard_bytes:
            self._close(shard)
            shard = None
        if shard is None:
            n_before = sum(name.endswith(suffix) for name in self._finished)
            shard = _Shard(self._temporary / f"{n_before:04d}{suffix}")
            self._shards[suffix] = shard
        offset = shard.n_bytes // samples.itemsize
        shard.write(samples)
        return shard.path.name, offset

    def _close(self, shard: _Shard) -> None:
        self._finished[shard.path.name] = shard.close()
        del self._shards[shard.path.suffix]

    def _write_index(self) -> None:
        index = self._temporary / "index.parquet"
        event_table.write_table(pa.Table.from_pylist(self._rows, schema.SIGNAL_INDEX), index)
        files = {**self._finished, index.name: describe_file(index)}
        manifest = {"byte_order": "little", "files": dict(sorted(files.items()))}
        (self._temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def find_runs(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Starts and lengths of the runs of True.

    >>> starts, lengths = find_runs(np.array([True, False, True, True]))
    >>> starts.tolist(), lengths.tolist()
    ([0, 2], [1, 2])
    """
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return edges[0::2].astype(np.int64), (edges[1::2] - edges[0::2]).astype(np.int64)


def describe_file(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file, as the manifest has them."""
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


class _Shard:
    """One file being written, with its digest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_bytes = 0
        self._file = path.open("wb")
        self._digest = hashlib.sha256()

    def write(self, samples: Samples) -> None:
        data = np.ascontiguousarray(samples).view(np.uint8).data
        self._file.write(data)
        self._digest.update(data)
        self.n_bytes += samples.nbytes

    def close(self) -> dict[str, Any]:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"bytes": self.n_bytes, "sha256": self._digest.hexdigest()}


def _gaps(lead: Lead) -> tuple[list[int], list[int]]:
    n_samples, n_gaps = len(lead.samples), len(lead.gap_starts)
    gaps = list(zip(lead.gap_starts, lead.gap_lengths, strict=False))
    inside = all(start >= 0 < length <= n_samples - start for start, length in gaps)
    if n_gaps != len(lead.gap_lengths) or not inside:
        raise InputError(
            "gaps that are no stretches of the lead",
            code="bad_gaps",
            place=f"lead {lead.name}",
            remedy="Give each a first sample from 0 and a length of 1 or more, up to its end.",
        )
    mask = np.zeros(n_samples, dtype=np.bool_)
    for start, length in gaps:
        mask[start : start + length] = True
    if lead.samples.dtype.kind == "f":
        mask |= ~np.isfinite(lead.samples)
    starts, lengths = find_runs(mask)
    return starts.tolist(), lengths.tolist()
