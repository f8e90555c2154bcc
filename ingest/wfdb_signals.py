# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
"""Samples of a WFDB record, one `Lead` a signal, each at its own rate.

The `wfdb` package reads the samples of one segment at a time, by a header that is written for it
from ours (`tsfm.ingest.wfdb_headers`): of the source's it misreads a rate of 3.6e2, a length of 0
and an absent initial value. Segments are put together here, because the package refuses segments of
unequal gain in digital form and fills what is missing with a value: here a segment without a signal
is a gap.

Skew is applied after the checksum, which is over the samples as stored. Samples that hold the
format's "no measurement" value are gaps, as are the ends that a skew leaves open.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tsfm.ingest.wfdb_headers import (
    INVALID_SAMPLE,
    MAX_RECORD_SAMPLES,
    NULL_NAME,
    WIDE_FORMATS,
    RecordError,
    RecordHeader,
    SignalLine,
    check_signal_files,
    read_header,
)
from tsfm.signals.shards import Lead, Samples, find_runs

MAX_NAME_LENGTH = 120
SLOWEST_WAVE_HZ = 2.0  # below this a "RESP" is a rate, a value a minute, and no wave
# A record of gaps costs its writer a line and us the disk: at most an hour of gap a second held.
MAX_GAP_RATIO = 3600

_ECG_NAME = re.compile(
    r"(?:lead)?(?:i{1,3}|av[rlf]|v[1-9xyz]?|mli{1,3}|ml5|mcl[1-9]?|c[cm]5|[ae]s|ai|d[34])"
)
_ABP_NAMES = {"abp", "art", "ibp", "bp", "ao", "aobp"}


@dataclass(frozen=True, eq=False)
class _Part:
    """One signal of one segment: its samples as stored, and which of them are no measurement."""

    samples: Samples
    invalid: npt.NDArray[np.bool_]
    checksum_ok: bool | None


def read_leads(header: RecordHeader, stem: Path, root: Path) -> list[Lead]:
    """Read all signals of one record.

    Args:
        header: The record's header.
        stem: Its path without the suffix.
        root: Resolved source folder, which no file of the record may leave.

    Returns:
        One lead a signal that has at least one measurement.

    Raises:
        RecordError: With the reason that the record can't be used for.
    """
    if header.segments:
        leads = _join_segments(header, stem, root)
    else:
        n_frames = check_signal_files(header, stem.parent, root)
        names = unique_names(header.signals)
        leads = [
            _lead(name, line, header.fs_hz, part)
            for name, line, part in zip(
                names, header.signals, _read_segment(header, stem, n_frames), strict=True
            )
        ]
    leads = [lead for lead in leads if sum(lead.gap_lengths) < len(lead.samples)]
    if not leads:
        raise RecordError("no_measurement")
    return leads


def modality_of(name: str, fs_hz: float) -> str:
    """Kind of signal by its name.

    >>> modality_of("MLII", 360.0), modality_of("Pleth", 125.0), modality_of("RESP", 1 / 60)
    ('ecg', 'ppg', 'other')
    """
    words = name.casefold().replace("_", " ").split()
    if not words or fs_hz < SLOWEST_WAVE_HZ:
        return "other"
    first, plain = words[0], "".join(words).replace("-", "")
    if first.startswith(("ecg", "ekg")) or _ECG_NAME.fullmatch(plain):
        return "ecg"
    if "pleth" in plain or "ppg" in plain:
        return "ppg"
    if plain in _ABP_NAMES:
        return "abp"
    return "resp" if first.startswith("resp") else "other"


def unique_names(lines: Sequence[SignalLine]) -> list[str]:
    """Names of a record's signals; a repeated one is numbered, an absent one made.

    >>> line = SignalLine("a.dat", 16, 1, 0, 0, 200.0, 0, "mV", 0, None, "ECG")
    >>> unique_names([line, line, replace(line, name="")])
    ['ECG', 'ECG#2', 'signal 3']
    """
    names: list[str] = []
    for number, line in enumerate(lines, start=1):
        name = line.name[:MAX_NAME_LENGTH] or f"signal {number}"
        candidate, n = name, 1
        while candidate in names:
            n += 1
            candidate = f"{name}#{n}"
        names.append(candidate)
    return names


def _read_segment(header: RecordHeader, stem: Path, n_frames: int) -> list[_Part]:
    """All signals of one checked segment."""
    record = _call_wfdb(header, stem.parent, n_frames)
    arrays: list[npt.NDArray[Any]] = record.e_d_signal or list(record.d_signal.T)
    if any(
        len(array) != n_frames * line.samples_per_frame
        for array, line in zip(arrays, header.signals, strict=True)
    ):
        raise RecordError("readers_disagree")
    parts = [_part(array, line) for array, line in zip(arrays, header.signals, strict=True)]
    if any(part.checksum_ok is False for part in parts):
        if header.n_frames:
            raise RecordError("checksum_mismatch")
        # The manual: without a declared length the checksum says nothing.
        parts = [replace(part, checksum_ok=None) for part in parts]
    return parts


def _call_wfdb(header: RecordHeader, folder: Path, n_frames: int) -> Any:
    import wfdb

    # wfdb 4.3 can't give big-endian samples (format 61) one array a signal.
    big_endian = any(line.format == 61 for line in header.signals)
    if big_endian and any(line.samples_per_frame > 1 for line in header.signals):
        raise RecordError("unsupported_format")
    wide = any(line.format in WIDE_FORMATS for line in header.signals)
    files = {s.file: f"{i}.dat" for i, s in enumerate(header.signals)}
    lines = [f"r {len(header.signals)} 1 {n_frames}"]
    for s in header.signals:
        kind = f"{s.format}x{s.samples_per_frame}+{s.byte_offset}"
        lines.append(f"{files[s.file]} {kind} 1 0 0 {s.init_value} 0 0")
    with tempfile.TemporaryDirectory() as own:
        (Path(own) / "r.hea").write_text("\n".join(lines) + "\n", encoding="ascii")
        for file, link in files.items():
            (Path(own) / link).symlink_to((folder / file).resolve())
        try:
            return wfdb.rdrecord(
                str(Path(own) / "r"),
                physical=False,
                smooth_frames=big_endian,
                ignore_skew=True,
                return_res=32 if wide else 16,
            )
        except Exception:  # wfdb raises eight types, none of them its own
            raise RecordError("unreadable_record") from None


def _part(array: npt.NDArray[Any], line: SignalLine) -> _Part:
    checksum_ok = None
    if line.checksum is not None:
        checksum_ok = (int(array.sum(dtype=np.int64)) - line.checksum) % 65536 == 0
    samples = array.astype(np.int32 if line.format in WIDE_FORMATS else np.int16, copy=False)
    value = INVALID_SAMPLE.get(line.format)
    invalid = samples == value if value is not None else np.zeros(len(samples), dtype=np.bool_)
    if line.skew:
        n_late = line.skew * line.samples_per_frame
        fill = np.full(n_late, value or 0, dtype=samples.dtype)
        samples = np.concatenate([samples[n_late:], fill])
        invalid = np.concatenate([invalid[n_late:], np.ones(n_late, dtype=np.bool_)])
    return _Part(samples, invalid, checksum_ok)


def _lead(name: str, line: SignalLine, frames_hz: float, part: _Part) -> Lead:
    starts, lengths = find_runs(part.invalid)
    fs_hz = frames_hz * line.samples_per_frame
    return Lead(
        name=name,
        modality=modality_of(name, fs_hz),
        fs_hz=fs_hz,
        samples=part.samples,
        units=line.units,
        gain=line.gain,
        baseline=line.baseline,
        gap_starts=starts.tolist(),
        gap_lengths=lengths.tolist(),
        checksum_ok=part.checksum_ok,
    )


def _join_segments(header: RecordHeader, stem: Path, root: Path) -> list[Lead]:
    """Put a multi-segment record together; what no segment has is a gap."""
    n_frames = sum(segment.n_frames for segment in header.segments)
    if header.n_frames not in (None, n_frames):
        raise RecordError("inconsistent_segments")
    headers = {
        name: _segment_header(name, stem, root)
        for name in {segment.name for segment in header.segments} - {NULL_NAME}
    }
    has_layout = header.segments[0].n_frames == 0 and header.segments[0].name != NULL_NAME
    layout = headers[header.segments[0].name] if has_layout else None
    if layout is not None and not layout.is_layout:
        raise RecordError("inconsistent_segments")
    placed: list[tuple[int, str]] = []  # first frame and name of each segment that has samples
    n_held, start = 0, 0
    for segment in header.segments[1 if has_layout else 0 :]:
        if segment.name != NULL_NAME:
            inner = headers[segment.name]
            if inner.is_layout or inner.fs_hz != header.fs_hz:
                raise RecordError("inconsistent_segments")
            if check_signal_files(inner, stem.parent, root) != segment.n_frames:
                raise RecordError("inconsistent_segments")
            n_held += segment.n_frames
            placed.append((start, segment.name))
        start += segment.n_frames
    if not placed:
        raise RecordError("no_measurement")
    names = unique_names((layout or headers[placed[0][1]]).signals)
    if len(names) != header.n_signals:
        raise RecordError("inconsistent_segments")
    # Within a fixed layout signals are told by their place, in a variable one by their name.
    columns = {
        name: unique_names(inner.signals) if layout else names for name, inner in headers.items()
    }
    if any(
        len(columns[name]) != len(headers[name].signals) or not set(columns[name]) <= set(names)
        for _, name in placed
    ):
        raise RecordError("inconsistent_segments")
    lines: dict[str, list[SignalLine]] = {name: [] for name in names}
    for _, segment_name in placed:
        for name, line in zip(columns[segment_name], headers[segment_name].signals, strict=True):
            lines[name].append(line)
    shown = {name: own for name, own in lines.items() if own}
    for own in shown.values():
        if len({line.samples_per_frame for line in own}) > 1:
            raise RecordError("inconsistent_segments")
        if len({line.units for line in own}) > 1:
            raise RecordError("mixed_units")
    n_samples = n_frames * sum(own[0].samples_per_frame for own in shown.values())
    if n_samples > MAX_RECORD_SAMPLES or n_frames > MAX_GAP_RATIO * n_held:
        raise RecordError("record_too_large")
    joined = {name: _Joined(own, n_frames) for name, own in shown.items()}
    for start, segment_name in placed:
        inner = headers[segment_name]
        n_inner = check_signal_files(inner, stem.parent, root)
        parts = _read_segment(inner, stem.parent / segment_name, n_inner)
        for name, line, part in zip(columns[segment_name], inner.signals, parts, strict=True):
            joined[name].put(start, line, part)
    return [_lead(name, own.line, header.fs_hz, own.part) for name, own in joined.items()]


def _segment_header(name: str, stem: Path, root: Path) -> RecordHeader:
    if name == stem.name:
        raise RecordError("nested_segments")
    try:
        header = read_header(stem.parent / f"{name}.hea", root)
    except RecordError as error:
        raise RecordError(
            "missing_segment" if error.reason == "missing_header" else error.reason
        ) from None
    if header.segments:  # the manual allows one level
        raise RecordError("nested_segments")
    return header


class _Joined:
    """One signal over all segments; in physical units where the segments' gains differ."""

    def __init__(self, lines: list[SignalLine], n_frames: int) -> None:
        n_samples = n_frames * lines[0].samples_per_frame
        self.line = lines[0]
        self._physical = len({(line.gain, line.baseline) for line in lines}) > 1
        if self._physical:
            self.line = replace(lines[0], gain=1.0 if lines[0].gain else None, baseline=0)
            dtype = np.dtype(np.float32)
        else:
            wide = any(line.format in WIDE_FORMATS for line in lines)
            dtype = np.dtype(np.int32 if wide else np.int16)
        self._samples: Samples = np.zeros(n_samples, dtype=dtype)
        self._invalid = np.ones(n_samples, dtype=np.bool_)
        self._checks: list[bool | None] = []

    def put(self, start_frame: int, line: SignalLine, part: _Part) -> None:
        start = start_frame * line.samples_per_frame
        place = slice(start, start + len(part.samples))
        if self._physical:
            self._samples[place] = (part.samples - float(line.baseline)) / (line.gain or 1.0)
        else:
            self._samples[place] = part.samples
        self._invalid[place] = part.invalid
        self._checks.append(part.checksum_ok)

    @property
    def part(self) -> _Part:
        return _Part(self._samples, self._invalid, True if all(self._checks) else None)
