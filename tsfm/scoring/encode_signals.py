"""Run an encoder over a data set's waveforms, so that their events' tokens can say what it saw.

Every record of the signal store that has one of the twelve standard leads, in volts or a part of
them, gets a few vectors, see `token_vectors`. They are written once
(`tsfm.tokens.signal_vectors`) and read by tokenising, training and scoring. A record is known when
it has ended, as its event's `available_time` says, so vectors of the whole record leak nothing.

Records are read in windows, so that a week-long one needs no more memory than a short one; its
vectors are the windows' means, weighted by how much of each was measured. Records that have nothing
to encode, move like no millivolts whatever their header says, or hold infinite values, are counted
and get no vectors: their tokens say that there was a record, and no more. A record that moves, but
never by as much as a heart's, is in volts or had its electrodes off. It is left by itself here,
where `EncoderDirectory.embed` refuses no batch for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from tsfm import schema
from tsfm.errors import InputError
from tsfm.models.biosignal_encoder import SLOTS, lead_slots
from tsfm.models.encoder_directory import (
    LEAST_MV,
    EncoderDirectory,
    level,
    movement,
    open_encoder,
    token_vectors,
)
from tsfm.models.signal_grid import MAX_HZ, MIN_HZ, to_grid
from tsfm.signals.store import STANDARD_LEADS, SignalStore, bare_lead
from tsfm.tokens.signal_vectors import FOLDER, SignalVectors, hash_signals

NO_LEAD, NO_UNIT, NO_RATE = "no_standard_lead", "no_electric_unit", "rate_out_of_range"
NOTHING, INFINITE, NO_MILLIVOLTS = "nothing_measured", "infinite_values", "no_millivolts"
_LEAST_S = 1.0
_MOST_WAITING = 8  # batches of windows of different forms
_TO_MV = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "v": 1e3, "nv": 1e-6}


@dataclass
class EncodingSummary:
    """What became of every record.

    Attributes:
        encoded: Records with vectors.
        left: Reason to the number of records without.
    """

    encoded: int = 0
    left: dict[str, int] = field(default_factory=dict)

    def as_text(self) -> str:
        """Aligned lines."""
        rows = [("records", self.encoded + sum(self.left.values())), ("  encoded", self.encoded)]
        rows += [(f"  left: {reason}", n) for reason, n in sorted(self.left.items())]
        return "\n".join(f"{name:<28}{value:>14,}" for name, value in rows)


@dataclass(frozen=True, eq=False)
class _Window:
    """A stretch of a record on the encoder's grid: (lead, point) values, and which are known."""

    record: int
    values: Tensor
    known: Tensor


@dataclass
class _Faults:
    """What speaks against a record: it is told by all windows together.

    Attributes:
        wide: Stretches that move further than electrodes do; see `Movement`.
        measured: All stretches.
        largest: Furthest that a lead moves; see `Movement`.
        infinite: Whether a value is.
    """

    wide: int = 0
    measured: int = 0
    largest: float = 0.0
    infinite: bool = False

    @property
    def reason(self) -> str | None:
        """Why the record can't be read; None where it can."""
        if self.infinite:
            return INFINITE
        small = 0 < self.largest < LEAST_MV
        return NO_MILLIVOLTS if small or 2 * self.wide > self.measured else None


def encode_signals(
    root: str | Path,
    encoder: str | Path,
    *,
    window_s: float = 30.0,
    batch_size: int = 32,
    progress: bool | None = None,
) -> EncodingSummary:
    """Encode all records of a data set and write `signal_vectors/` below its root.

    Args:
        root: Root of a data set with a signal store.
        encoder: Model directory of an encoder, or the name of one that comes with the package.
        window_s: Longest stretch that is encoded at once.
        batch_size: Windows of one form that are encoded together.
        progress: Show a bar; None: on a terminal only.

    Raises:
        InputError: `no_signals`; `bad_window`: a window too short for a heart beat, or without end;
            `bad_batch_size`: below 1.
        IntegrityError: The store or the encoder is damaged.
    """
    if not _LEAST_S <= window_s < math.inf:
        raise InputError(
            "a window shorter than a second, or without end", code="bad_window", place="window_s",
            remedy="Use 10 to 60 seconds.",
        )  # fmt: skip
    if not batch_size >= 1:
        raise InputError(
            "a batch of no windows", code="bad_batch_size", place="batch_size",
            remedy="Use 1 or more.",
        )  # fmt: skip
    store, directory = SignalStore(root), open_encoder(encoder)
    names: list[str] = store.index[schema.SIGNAL_ID].unique(maintain_order=True).to_list()
    sums = _Sums(directory, len(names), batch_size)
    summary, refused = EncodingSummary(), list[int]()
    rows = store.index.partition_by(schema.SIGNAL_ID, maintain_order=True)
    bar = tqdm(
        rows, desc="encode", unit="record",
        disable=None if progress is None else not progress, leave=False,
    )  # fmt: skip
    with torch.inference_mode():
        for record, leads in enumerate(bar):
            chosen, reason = _known_leads(leads)
            n_windows, faults = 0, _Faults()
            for window in _windows(store, record, chosen, window_s, directory, faults):
                sums.add(tuple(lead_slots(chosen["lead"].to_list()).tolist()), window)
                n_windows += 1
            if faults.reason:
                refused.append(record)
            if faults.reason or not n_windows:
                reason = faults.reason or reason or NOTHING
                summary.left[reason] = summary.left.get(reason, 0) + 1
        sums.flush()
    sums.weight[refused] = 0
    there = np.flatnonzero(sums.weight > 0)
    summary.encoded = len(there)
    vectors = sums.total[there] / sums.weight[there, None, None]
    left = np.flatnonzero(sums.weight == 0)
    SignalVectors(
        tuple(names[i] for i in there), vectors, directory.hash,
        left=tuple(names[i] for i in left), signals_hash=hash_signals(root),
    ).save(Path(root) / FOLDER)  # fmt: skip
    return summary


class _Sums:
    """Weighted sums of every record's vectors, filled batch by batch."""

    def __init__(self, directory: EncoderDirectory, n_records: int, batch_size: int) -> None:
        shape = (n_records, directory.n_vectors, directory.encoder.config.d_model)
        self.encoder, self.batch_size = directory.encoder, batch_size
        self.total = np.zeros(shape, np.float32)
        self.weight = np.zeros(n_records, np.float32)
        self.waiting: dict[tuple[tuple[int, ...], int], list[_Window]] = {}

    def add(self, slots: tuple[int, ...], window: _Window) -> None:
        form = (slots, window.values.shape[-1])
        held = self.waiting.setdefault(form, [])
        held.append(window)
        if len(held) == self.batch_size:
            self._encode(form)
        elif sum(map(len, self.waiting.values())) > _MOST_WAITING * self.batch_size:
            self.flush()

    def flush(self) -> None:
        for form in list(self.waiting):
            self._encode(form)

    def _encode(self, form: tuple[tuple[int, ...], int]) -> None:
        windows = self.waiting.pop(form)
        values = torch.stack([w.values for w in windows])
        known = torch.stack([w.known for w in windows])
        encoded = self.encoder.encode_grid(values, known, torch.tensor(form[0]))
        for window, vectors in zip(windows, token_vectors(encoded).numpy(), strict=True):
            weight = float(window.known.any(0).sum())
            self.total[window.record] += weight * vectors
            self.weight[window.record] += weight


def _known_leads(leads: pl.DataFrame) -> tuple[pl.DataFrame, str | None]:
    """Leads of a record that an encoder of ECG reads, each once, and why there is none."""
    other = len(SLOTS) - 1
    slot = [int(lead_slots([name])[0]) for name in leads["lead"].to_list()]
    unit = [_TO_MV.get((u or "").strip().casefold()) for u in leads["units"].to_list()]
    # `II` comes before `ECG II`, as in `lead_slots`: the first of a slot is read.
    prefixed = [bare_lead(name) != name.strip() for name in leads["lead"].to_list()]
    table = leads.with_columns(
        pl.Series("_slot", slot), pl.Series("_mv", unit, dtype=pl.Float64),
        pl.Series("_prefixed", prefixed),
    ).sort("_prefixed", maintain_order=True)  # fmt: skip
    ecg = table.filter((pl.col("_slot") != other) & (pl.col("_slot") < len(STANDARD_LEADS)))
    electric = ecg.filter(pl.col("_mv").is_not_null())
    read = electric.filter(pl.col("fs_hz").is_between(MIN_HZ, MAX_HZ))
    read = read.unique("_slot", keep="first", maintain_order=True)
    reason = NO_RATE if electric.height else NO_UNIT if ecg.height else NO_LEAD
    return read, None if read.height else reason


def _windows(
    store: SignalStore, record: int, leads: pl.DataFrame, window_s: float,
    directory: EncoderDirectory, faults: _Faults,
) -> Iterator[_Window]:  # fmt: skip
    """Windows of a record that hold anything, whatever the rates of its leads.

    They end at the first infinite value; what is wrong with the record is added to `faults`.
    """
    if not leads.height:
        return
    name, grid_hz = leads[schema.SIGNAL_ID][0], directory.encoder.config.grid_hz
    rows = leads.select("lead", "fs_hz", "n_samples", "_mv").rows()
    duration_s = max(n / fs for _, fs, n, _ in rows)
    for k in range(math.ceil(duration_s / window_s)):
        parts: list[tuple[Tensor, Tensor]] = []
        for lead, fs_hz, n_samples, mv in rows:
            start, stop = (
                min(round(s * fs_hz), n_samples) for s in (k * window_s, (k + 1) * window_s)
            )
            signal = torch.from_numpy(store.read(name, lead, start, stop)) * mv
            faults.infinite |= bool(torch.isinf(signal).any())
            if faults.infinite:
                return
            if len(signal):
                moved = movement(signal[None], fs_hz)
                faults.wide += moved.wide
                faults.measured += moved.measured
                faults.largest = max(faults.largest, moved.largest)
                on_grid = to_grid(level(signal)[None, None], fs_hz=fs_hz, grid_hz=grid_hz)
                parts.append((on_grid[0][0, 0], on_grid[1][0, 0]))
            else:
                parts.append((torch.zeros(0), torch.zeros(0, dtype=torch.bool)))
        longest = max(len(values) for values, _ in parts)
        padded = [[F.pad(x, (0, longest - len(x))) for x in part] for part in parts]
        known = torch.stack([there for _, there in padded])
        if known.any(0).sum() >= _LEAST_S * grid_hz:
            yield _Window(record, torch.stack([values for values, _ in padded]), known)
