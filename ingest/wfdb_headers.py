# pyright: strict
"""WFDB headers, read strictly and checked before anything else of a record is opened.

The grammar is that of the WFDB manual (https://physionet.org/physiotools/wag/header-5.htm), one
token at a time and in full: a lenient reader takes a rate of -250 for the default of 250, "µV" for
"V", and follows a link or waits on a pipe that stands in for a signal file. Here a header must say
its sampling rate, its files must be plain names of regular files within the source folder, and
their sizes must hold what the header declares before memory is asked for.

What a header can't be used for is a `RecordError` with a quarantine reason. Comments are not kept:
they may name the patient. Samples are read by `tsfm.ingest.wfdb_signals`.
"""

from __future__ import annotations

import math
import os
import re
import stat
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path

MAX_HEADER_BYTES = 2**20
MAX_LINE_LENGTH = 4096
MAX_SIGNALS = 4096
MAX_SEGMENTS = 100_000
MAX_SAMPLES_PER_FRAME = 100_000
MAX_RECORD_SAMPLES = 2**29  # over all signals: 1 GiB of 16-bit samples
MIN_FS_HZ, MAX_FS_HZ = 1e-5, 1e7  # from a value a day
MIN_GAIN, MAX_GAIN, MAX_ADC = 1e-12, 1e15, 2**31  # beyond, values are no numbers of 32 bits
FIRST_YEAR, LAST_YEAR = 1850, 2999  # MIMIC-II moved its dates as far as the 29th century

NULL_NAME = "~"  # a signal or a segment without samples

BYTES_PER_SAMPLE = {8: 1, 16: 2, 24: 3, 32: 4, 61: 2, 80: 1, 160: 2, 212: 1.5} | {
    code: 4 / 3 for code in (310, 311)
}
FLAC_FORMATS = (508, 516, 524)
WIDE_FORMATS = (8, 24, 32, 524)  # samples may need more than 16 bits
INVALID_SAMPLE = {
    code: -(2 ** (bits - 1))
    for bits, codes in {
        8: (80, 508),
        10: (310, 311),
        12: (212,),
        16: (16, 61, 160, 516),
        24: (24, 524),
        32: (32,),
    }.items()
    for code in codes
}
"""The ADC value that means "no measurement"; format 8 has none."""

_RECORD_NAME = re.compile(r"([-\w]+)(?:/(\d{1,9}))?", re.ASCII)
_FS = re.compile(
    r"((?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE][-+]?\d{1,3})?)"
    r"(?:/[-+.\d]{1,40}(?:\([-+.\d]{1,40}\))?)?",
    re.ASCII,
)
_INTEGER = re.compile(r"[-+]?\d{1,15}", re.ASCII)
_TIME = re.compile(r"(?:(?:(\d{1,2}):)?(\d{1,2}):)?(\d{1,2})(?:\.(\d{1,9}))?", re.ASCII)
_DATE = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})", re.ASCII)
_FILE_NAME = re.compile(r"(?!-(?:\.|$))[-\w]{1,200}(?:\.\w{1,40})?", re.ASCII)
_FORMAT = re.compile(r"(\d{1,4})(?:x(\d{1,9}))?(?::(\d{1,9}))?(?:\+(\d{1,12}))?", re.ASCII)
_GAIN = re.compile(
    r"([-+]?(?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE][-+]?\d{1,3})?)"
    r"(?:\(([-+]?\d{1,10})\))?(?:/(\S*))?",
    re.ASCII,
)
_SEGMENT_NAME = re.compile(r"[-\w]+", re.ASCII)


class RecordError(ValueError):
    """A record can't be used; its one argument is a quarantine reason code."""

    @property
    def reason(self) -> str:
        """The reason code."""
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class SignalLine:
    """What a header says of one signal.

    Attributes:
        file: Plain name of its signal file.
        format: WFDB storage format.
        samples_per_frame: Its rate as a multiple of the record's.
        skew: Frames by which it lags in the file.
        byte_offset: Bytes (in FLAC files samples) before the first sample.
        gain: ADC steps a unit; None where the signal is not calibrated.
        baseline: ADC value of zero units.
        units: Physical unit; None where the signal is not calibrated.
        init_value: First sample, from which format 8 counts on; by default the ADC value of zero.
        checksum: 16-bit sum of the samples; None where absent or 0, which many writers put there.
        name: Its name or description; may be empty.
    """

    file: str
    format: int
    samples_per_frame: int
    skew: int
    byte_offset: int
    gain: float | None
    baseline: int
    units: str | None
    init_value: int
    checksum: int | None
    name: str


@dataclass(frozen=True, slots=True)
class SegmentLine:
    """One segment of a multi-segment record: a record's name or `~`, and its frames."""

    name: str
    n_frames: int


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """What a header says of its record.

    Attributes:
        fs_hz: Frames a second.
        n_signals: Declared number of signals.
        n_frames: Declared length; None where that is 0 or absent: the size of the files tells it.
        start_time: On the wall clock; None unless both date and time are given.
        signals: Of a record of one segment.
        segments: Of a record of several.
    """

    fs_hz: float
    n_signals: int
    n_frames: int | None
    start_time: datetime | None
    signals: tuple[SignalLine, ...]
    segments: tuple[SegmentLine, ...]

    @property
    def is_layout(self) -> bool:
        """Whether it only names the signals of a multi-segment record."""
        return bool(self.signals) and all(line.file == NULL_NAME for line in self.signals)


def read_header(path: Path, root: Path) -> RecordHeader:
    """Read one header file.

    Args:
        path: The `.hea` file.
        root: Resolved source folder, which no link may leave.

    Raises:
        RecordError: It is no regular file within `root`, or no header.
    """
    resolved = find_regular_file(path, root, missing="missing_header")
    try:
        # O_NONBLOCK: should a pipe take the file's place after the check, this does not wait on it.
        handle = os.open(resolved, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            raw = file.read(MAX_HEADER_BYTES + 1)
    except OSError:
        raise RecordError("unreadable_file") from None
    return parse_header(raw)


def parse_header(raw: bytes) -> RecordHeader:
    """Parse a header's bytes.

    >>> header = parse_header(b"r1 1 360 1000\\nr1.dat 212 200 11 1024 955 29832 0 MLII\\n")
    >>> header.fs_hz, header.signals[0].name, header.signals[0].baseline
    (360.0, 'MLII', 1024)

    Raises:
        RecordError: It breaks the grammar or a bound.
    """
    if len(raw) > MAX_HEADER_BYTES:
        raise RecordError("header_too_large")
    if b"\0" in raw:
        raise RecordError("bad_header")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    # Not splitlines(): that also ends a line at characters that a latin-1 comment may hold.
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text)]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise RecordError("empty_header")
    if any(len(line) > MAX_LINE_LENGTH for line in lines):
        raise RecordError("header_too_large")
    return _parse_lines(lines)


def find_regular_file(path: Path, root: Path, *, missing: str) -> Path:
    """Where `path` leads, which must be a regular file within `root`.

    Raises:
        RecordError: `missing`, `outside_source` or `not_a_regular_file`.
    """
    try:
        resolved = Path(os.path.realpath(path, strict=True))
        mode = resolved.stat().st_mode
    except FileNotFoundError:
        raise RecordError(missing) from None
    except (OSError, ValueError):
        raise RecordError("unreadable_file") from None
    if not resolved.is_relative_to(root):
        raise RecordError("outside_source")
    if not stat.S_ISREG(mode):
        raise RecordError("not_a_regular_file")
    return resolved


def check_signal_files(header: RecordHeader, folder: Path, root: Path) -> int:
    """Check that a segment's files hold what its header declares.

    Returns:
        Frames of the segment: as declared, or counted from the first file's size.

    Raises:
        RecordError: A file is missing, cut short, no regular file or outside `root`; its signals
            differ in format or are not in one block of the header; or there is too much of it.
    """
    if "::" in str(folder):  # a file-system chain to the package that opens the signal files
        raise RecordError("unsafe_file_name")
    blocks = [list(block) for _, block in groupby(header.signals, key=lambda line: line.file)]
    if len({block[0].file for block in blocks}) < len(blocks):
        raise RecordError("bad_header")
    n_frames = header.n_frames
    for block in blocks:
        if len({(line.format, line.byte_offset) for line in block}) > 1:
            raise RecordError("bad_header")
        path = find_regular_file(folder / block[0].file, root, missing="missing_signal_file")
        n_frames = _check_block(block, path, n_frames)
    if not n_frames:
        raise RecordError("no_samples")
    if n_frames * sum(line.samples_per_frame for line in header.signals) > MAX_RECORD_SAMPLES:
        raise RecordError("record_too_large")
    if any(line.skew >= n_frames for line in header.signals):
        raise RecordError("bad_header")
    return n_frames


def _check_block(block: list[SignalLine], path: Path, n_frames: int | None) -> int:
    """Frames of the signals in one file, which must not be more than it holds."""
    line = block[0]
    per_frame = sum(other.samples_per_frame for other in block)
    if line.format in FLAC_FORMATS:
        if any(other.samples_per_frame != line.samples_per_frame for other in block):
            raise RecordError("bad_header")
        if n_frames is None:
            raise RecordError("no_length")
        held = _flac_samples(path) - line.byte_offset
        if held < n_frames * line.samples_per_frame:
            raise RecordError("truncated_signal_file")
        return n_frames
    if line.format not in BYTES_PER_SAMPLE:
        raise RecordError("unsupported_format")
    held = path.stat().st_size - line.byte_offset
    if n_frames is None:
        return int(held / (BYTES_PER_SAMPLE[line.format] * per_frame))
    n_samples = n_frames * per_frame
    if line.format == 212:
        needed = (3 * n_samples + 1) // 2
    elif line.format in (310, 311):
        needed = (4 * n_samples + 2) // 3
    else:
        needed = n_samples * int(BYTES_PER_SAMPLE[line.format])
    if held < needed:
        raise RecordError("truncated_signal_file")
    return n_frames


def _flac_samples(path: Path) -> int:
    """Samples a channel by the file's STREAMINFO block (RFC 9639, section 8.2)."""
    with path.open("rb") as file:
        head = file.read(26)
    if len(head) < 26 or head[:4] != b"fLaC" or head[4] & 0x7F != 0:
        raise RecordError("truncated_signal_file")
    return int.from_bytes(head[18:26], "big") & (2**36 - 1)


def _parse_lines(lines: list[str]) -> RecordHeader:
    tokens = lines[0].split()
    name = _RECORD_NAME.fullmatch(tokens[0])
    if name is None or not 2 <= len(tokens) <= 6:
        raise RecordError("bad_header")
    n_signals = _integer(tokens[1], low=0)
    n_segments = int(name[2]) if name[2] is not None else None
    expected = n_signals if n_segments is None else n_segments
    if n_signals > MAX_SIGNALS or expected != len(lines) - 1 or n_segments == 0:
        raise RecordError("bad_header")
    if n_segments is not None and n_segments > MAX_SEGMENTS:
        raise RecordError("header_too_large")
    fs_hz = _sampling_rate(tokens[2]) if len(tokens) > 2 else None
    if fs_hz is None:
        raise RecordError("no_sampling_rate")
    # The manual: no samples are an unspecified number of samples.
    n_frames = (_integer(tokens[3], low=0) or None) if len(tokens) > 3 else None
    header = RecordHeader(
        fs_hz=fs_hz,
        n_signals=n_signals,
        n_frames=n_frames,
        start_time=_start_time(tokens[4:]),
        signals=() if n_segments is not None else tuple(map(_signal_line, lines[1:])),
        segments=() if n_segments is None else tuple(map(_segment_line, lines[1:])),
    )
    if not header.is_layout and any(line.file == NULL_NAME for line in header.signals):
        raise RecordError("unsupported_format")
    return header


def _integer(token: str, *, low: int | None = None) -> int:
    if _INTEGER.fullmatch(token) is None or (low is not None and int(token) < low):
        raise RecordError("bad_header")
    return int(token)


def _sampling_rate(token: str) -> float:
    match = _FS.fullmatch(token)
    fs_hz = float(match[1]) if match else math.nan
    if not MIN_FS_HZ <= fs_hz <= MAX_FS_HZ:
        raise RecordError("bad_sampling_rate")
    return fs_hz


def _start_time(tokens: list[str]) -> datetime | None:
    if not tokens:
        return None
    time = _TIME.fullmatch(tokens[0])
    if time is None:
        raise RecordError("bad_time")
    if len(tokens) < 2:
        return None
    date = _DATE.fullmatch(tokens[1])
    if date is None:
        raise RecordError("bad_time")
    hour, minute, second = (int(part or 0) for part in time.groups()[:3])
    microsecond = int((time[4] or "").ljust(6, "0")[:6])
    day, month, year = (int(part) for part in date.groups())
    try:
        start = datetime(year, month, day, hour, minute, second, microsecond)
    except ValueError:
        raise RecordError("bad_time") from None
    if not FIRST_YEAR <= year <= LAST_YEAR:
        raise RecordError("time_out_of_range")
    return start


def _signal_line(line: str) -> SignalLine:
    tokens = line.split(maxsplit=8)
    if tokens[0] != NULL_NAME and _FILE_NAME.fullmatch(tokens[0]) is None:
        raise RecordError("unsafe_file_name")
    kind = _FORMAT.fullmatch(tokens[1]) if len(tokens) > 1 else None
    scale = _GAIN.fullmatch(tokens[2]) if len(tokens) > 2 else None
    if kind is None or (scale is None and len(tokens) > 2):
        raise RecordError("bad_header")
    samples_per_frame = int(kind[2] or 1)
    if not 1 <= samples_per_frame <= MAX_SAMPLES_PER_FRAME:
        raise RecordError("bad_header")
    numbers = [_integer(token) for token in tokens[3:8]]
    adc_zero = numbers[1] if len(numbers) > 1 else 0
    init_value = numbers[2] if len(numbers) > 2 else adc_zero
    checksum = numbers[3] if len(numbers) > 3 else 0
    # A gain of 0, or none, says "not calibrated": no value in millivolts may be claimed.
    gain = float(scale[1]) if scale else 0.0
    baseline = int(scale[2]) if scale and scale[2] else adc_zero
    if gain and not MIN_GAIN <= abs(gain) <= MAX_GAIN:
        raise RecordError("bad_header")
    if max(abs(baseline), abs(init_value)) > MAX_ADC:
        raise RecordError("bad_header")
    return SignalLine(
        file=tokens[0],
        format=int(kind[1]),
        samples_per_frame=samples_per_frame,
        skew=int(kind[3] or 0),
        byte_offset=int(kind[4] or 0),
        gain=gain or None,
        baseline=baseline,
        units=((scale[3] if scale else None) or "mV") if gain else None,
        init_value=init_value,
        checksum=checksum or None,
        name=" ".join(tokens[8].split()) if len(tokens) > 8 else "",
    )


def _segment_line(line: str) -> SegmentLine:
    tokens = line.split()
    if len(tokens) != 2:
        raise RecordError("bad_header")
    if tokens[0] != NULL_NAME and _SEGMENT_NAME.fullmatch(tokens[0]) is None:
        raise RecordError("unsafe_file_name")
    return SegmentLine(tokens[0], _integer(tokens[1], low=0))
