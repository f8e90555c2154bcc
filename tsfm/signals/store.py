"""The signal store: waveforms of a data set as memory-mapped shards with an index.

Below the root of a data set, `signals/` holds raw little-endian shards (`0000.i16`, `0000.i32`,
`0000.f32`), `index.parquet` (one row a lead, `schema.SIGNAL_INDEX`) and `manifest.json` (size and
sha256 of each file). A lead lies in one piece in one shard, so a window of it is read without
touching the rest.

Digital samples are kept as the source has them, with gain and baseline beside them: nothing is
rounded. Every lead keeps its own sampling rate, units and gaps (runs of samples that are no
measurement). A lead that a record does not have is told by a mask and NaN, never by zeros. Digital
samples without a gain are ADC steps from the baseline and have no unit; floats are in their unit.

The store cleans and resamples nothing and says nothing about a signal's quality.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tsfm import event_table, schema
from tsfm.errors import InputError, IntegrityError
from tsfm.signals.shards import DTYPES, Lead, SignalWriter, describe_file, find_runs

__all__ = [
    "STANDARD_LEADS",
    "Lead",
    "SignalRecord",
    "SignalStore",
    "SignalWriter",
    "bare_lead",
    "canonical_lead",
    "find_runs",
]

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
"""The twelve leads of the standard electrocardiogram, in its order and spelling."""

_STANDARD = {name.casefold(): name for name in STANDARD_LEADS}
_PREFIX = re.compile(r"\A(?:(?:ecg|ekg|lead)[\s_-]*)+", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class SignalRecord:
    """The asked leads of one record, in the order asked.

    Attributes:
        signal_id: Key in the event table.
        subject_id: Whose record it is.
        record: Name in the source.
        start_time: Of the record on the data set's clock; None where it is not known.
        leads: Names as asked, the twelve standard ones in their usual spelling; the stored name of
            a lead whose usual one means another, as that of `ECG II` beside `II` does.
        values: One float32 array a lead, NaN in gaps. An absent lead is all NaN, with the rate and
            length of the first lead that is present.
        fs_hz: Sampling rate of each array.
        units: Unit of each array; None where uncalibrated or absent.
        present: (n_leads,) False where the record has no such lead.
    """

    signal_id: str
    subject_id: int
    record: str
    start_time: datetime | None
    leads: tuple[str, ...]
    values: list[npt.NDArray[np.float32]]
    fs_hz: tuple[float, ...]
    units: tuple[str | None, ...]
    present: npt.NDArray[np.bool_]


def bare_lead(name: str) -> str:
    """A name without outer blanks and without a prefix that says only that it is a lead's.

    >>> bare_lead("ECG MLII"), bare_lead("lead II"), bare_lead("V1")
    ('MLII', 'II', 'V1')
    """
    return _PREFIX.sub("", name.strip(), count=1)


def canonical_lead(name: str) -> str:
    """The usual spelling of a standard lead, which may be called `lead II` or `ECG II` as well.

    Another name is returned without outer blanks.

    >>> canonical_lead("AVR"), canonical_lead("lead II"), canonical_lead("MLII")
    ('aVR', 'II', 'MLII')
    """
    return _STANDARD.get(bare_lead(name).casefold(), name.strip())


class SignalStore:
    """Reads the signals of a data set; cheap to open, safe to hand to worker processes.

    Args:
        root: Root of the data set.
    """

    def __init__(self, root: str | Path) -> None:
        """Check that there are signals.

        Raises:
            InputError: `no_signals`.
        """
        self.root = Path(root)
        self.folder = self.root / "signals"
        if not (self.folder / "index.parquet").is_file():
            raise InputError(
                "the data set holds no signals",
                code="no_signals",
                place=str(self.folder),
                remedy="Add them with `tsfm ingest wfdb`.",
            )
        self._maps: dict[str, npt.NDArray[Any]] = {}

    def __reduce__(self) -> tuple[type[SignalStore], tuple[Path]]:
        """Pickle as the path: a pickled memory map would be a copy of the shard."""
        return SignalStore, (self.root,)

    @cached_property
    def index(self) -> pl.DataFrame:
        """One row a lead, with the columns of `schema.SIGNAL_INDEX`."""
        path = self.folder / "index.parquet"
        frame = pl.from_arrow(
            schema.align(event_table.read_table(path), schema.SIGNAL_INDEX, place=path.name)
        )
        assert isinstance(frame, pl.DataFrame)
        return frame

    def leads(self, signal_id: str) -> tuple[str, ...]:
        """Names of a record's leads as in the source, in its order."""
        return tuple(self._leads_of(signal_id))

    def read(
        self, signal_id: str, lead: str, start: int = 0, stop: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Physical values of a stretch of one lead.

        Args:
            signal_id: Key of the record.
            lead: Name, in any case; see also `canonical_lead`.
            start: First sample, from 0.
            stop: Sample after the last; the end by default.

        Returns:
            (stop - start,) values in the lead's units, in ADC steps from the baseline where it has
            none; NaN in gaps.

        Raises:
            InputError: No such record, lead or stretch.
            IntegrityError: The shard has another size than it was written with, or the index
                points beyond it.
        """
        row = self._row(self._find(signal_id, lead))
        start, stop = _stretch(row, start, stop)
        samples = self._samples(row, start, stop).astype(np.float64)
        if not row["shard"].endswith(".f32"):
            samples -= row["baseline"] or 0
            samples /= row["gain"] or 1.0
        starts = np.asarray(row["gap_starts"], dtype=np.int64)
        ends = starts + np.asarray(row["gap_lengths"], dtype=np.int64)
        for i in range(np.searchsorted(ends, start, "right"), np.searchsorted(starts, stop)):
            samples[max(starts[i] - start, 0) : ends[i] - start] = np.nan
        return samples.astype(np.float32)

    def read_digital(
        self, signal_id: str, lead: str, start: int = 0, stop: int | None = None
    ) -> npt.NDArray[Any]:
        """Stored samples of a stretch of one lead, a read-only view of the file; see `read`.

        Samples within gaps hold whatever the source has there.
        """
        row = self._row(self._find(signal_id, lead))
        return self._samples(row, *_stretch(row, start, stop))

    def read_record(
        self,
        signal_id: str,
        leads: Sequence[str] | str | None = None,
        *,
        start_s: float = 0.0,
        stop_s: float | None = None,
    ) -> SignalRecord:
        """Several leads of one record over the same seconds, each at its own rate.

        Args:
            signal_id: Key of the record.
            leads: Names, or a single one, in any case; by default all that the record has. One that
                it does not have is told by `present` and NaN.
            start_s: Start in seconds from the record's start.
            stop_s: End in seconds; a lead that ends before gives what it has.

        Raises:
            InputError: No such record, or a start or an end that is no number.
        """
        if not math.isfinite(start_s) or (stop_s is not None and math.isnan(stop_s)):
            raise InputError(
                "a start or an end that is no number of seconds",
                code="bad_time_range",
                place="read_record",
                remedy="Give seconds from the record's start; None for its end.",
            )
        if stop_s is not None and math.isinf(stop_s):
            stop_s = None if stop_s > 0 else 0.0
        known = self._leads_of(signal_id)
        leads = (leads,) if isinstance(leads, str) else leads
        asked = tuple(leads) if leads is not None else self.leads(signal_id)
        numbers = [_find_lead(known, name) for name in asked]
        reference = next((n for n in numbers if n is not None), next(iter(known.values())))
        values: list[npt.NDArray[np.float32]] = []
        rows = [self._row(reference if number is None else number) for number in numbers]
        for number, row in zip(numbers, rows, strict=True):
            last = row["n_samples"]
            start = min(max(round(start_s * row["fs_hz"]), 0), last)
            stop = last if stop_s is None else min(max(round(stop_s * row["fs_hz"]), start), last)
            values.append(
                np.full(stop - start, np.nan, dtype=np.float32)
                if number is None
                else self.read(signal_id, row["lead"], start, stop)
            )
        present = np.array([number is not None for number in numbers], dtype=np.bool_)
        first = self._row(reference)
        return SignalRecord(
            signal_id=signal_id,
            subject_id=first[schema.SUBJECT_ID],
            record=first["record"],
            start_time=first["start_time"],
            leads=tuple(
                usual if number in (None, _find_lead(known, usual)) else row["lead"]
                for usual, number, row in zip(
                    map(canonical_lead, asked), numbers, rows, strict=True
                )
            ),
            values=values,
            fs_hz=tuple(row["fs_hz"] for row in rows),
            units=tuple(
                row["units"] if there else None for row, there in zip(rows, present, strict=True)
            ),
            present=present,
        )

    def verify(self) -> None:
        """Compare size and sha256 of every file with what was written.

        Raises:
            IntegrityError: A file is missing, or its bytes differ.
        """
        for name, written in self._manifest.items():
            path = self.folder / name
            if not path.is_file() or describe_file(path) != written:
                raise IntegrityError(
                    "a file of the signal store differs from what was written",
                    code="checksum_mismatch",
                    place=name,
                    remedy="Restore it from a copy, or ingest the records again.",
                )

    @cached_property
    def _manifest(self) -> dict[str, dict[str, Any]]:
        try:
            files = json.loads((self.folder / "manifest.json").read_text())["files"]
            return {str(Path(name).name): dict(entry) for name, entry in files.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise IntegrityError(
                "the signal store's manifest can't be read",
                code="bad_manifest",
                place="signals/manifest.json",
                remedy="Restore it from a copy, or ingest the records again.",
            ) from error

    @cached_property
    def _records(self) -> dict[str, dict[str, int]]:
        records: dict[str, dict[str, int]] = {}
        ids, names = self.index[schema.SIGNAL_ID].to_list(), self.index["lead"].to_list()
        for number, (signal_id, name) in enumerate(zip(ids, names, strict=True)):
            records.setdefault(signal_id, {})[name] = number
        return records

    def _leads_of(self, signal_id: str) -> dict[str, int]:
        if signal_id not in self._records:
            raise InputError(
                "no such record in the signal store",
                code="unknown_signal",
                place=f"signal {signal_id}",
                remedy="Use a signal_id of the event table of the same data set.",
            )
        return self._records[signal_id]

    def _find(self, signal_id: str, lead: str) -> int:
        number = _find_lead(self._leads_of(signal_id), lead)
        if number is None:
            raise InputError(
                f"the record has no lead '{lead}'",
                code="unknown_lead",
                place=f"signal {signal_id}",
                remedy=f"It has {', '.join(self.leads(signal_id))}; `read_record` gives a mask.",
            )
        return number

    def _row(self, number: int) -> dict[str, Any]:
        return self.index.row(number, named=True)

    def _samples(self, row: dict[str, Any], start: int, stop: int) -> npt.NDArray[Any]:
        offset, shard = row["offset"], self._map(row["shard"])
        if not 0 <= offset <= len(shard) - row["n_samples"]:
            raise IntegrityError(
                "the index of the signal store points beyond a shard",
                code="bad_offset",
                place=row["shard"],
                remedy="Restore signals/ from a copy, or ingest the records again.",
            )
        return shard[offset + start : offset + stop]

    def _map(self, name: str) -> npt.NDArray[Any]:
        if name not in self._maps:
            path = self.folder / Path(name).name
            written = self._manifest.get(name, {}).get("bytes")
            if path.suffix not in DTYPES or not path.is_file() or path.stat().st_size != written:
                raise IntegrityError(
                    "a shard of the signal store is missing or has another size",
                    code="wrong_size",
                    place=name,
                    remedy="Restore it from a copy, or ingest the records again.",
                )
            self._maps[name] = np.memmap(path, dtype=DTYPES[path.suffix], mode="r")
        return self._maps[name]


def _find_lead(leads: dict[str, int], name: str) -> int | None:
    if name in leads:
        return leads[name]
    usual = canonical_lead(name)
    for folded in (name.strip().casefold(), usual.casefold()):
        for lead, row in leads.items():
            if lead.strip().casefold() == folded:
                return row
    return next((row for lead, row in leads.items() if canonical_lead(lead) == usual), None)


def _stretch(row: dict[str, Any], start: int, stop: int | None) -> tuple[int, int]:
    n_samples = int(row["n_samples"])
    end = n_samples if stop is None else stop
    if not 0 <= start <= end <= n_samples:
        raise InputError(
            f"samples {start} to {end} are not within the lead",
            code="bad_sample_range",
            place=f"lead {row['lead']} of signal {row[schema.SIGNAL_ID]}",
            remedy=f"It has {n_samples} samples.",
        )
    return start, end
