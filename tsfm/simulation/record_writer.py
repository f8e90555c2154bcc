"""Signals written as WFDB records, each at its own rate.

Samples are of 16 bits (format 16), with a gain that is a power of ten and uses them, whatever the
unit: an ECG in volts keeps its microvolts. What the format can't say as given, such as a rate that
is no simple fraction, is refused and not written as something else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from tsfm.errors import InputError

Signal = npt.NDArray[np.float64]

_MAX_ADC = 32_000
_MIN_GAIN, _MAX_GAIN = 1e-12, 1e12
_MAX_DENOMINATOR = 1000


def write_record(
    folder: str | Path,
    name: str,
    signals: Mapping[str, Signal],
    *,
    fs_hz: float | Mapping[str, float],
    start_time: datetime | None,
    units: Mapping[str, str] | None = None,
) -> Path:
    """Write one WFDB record.

    Args:
        folder: Where `name.hea` and `name.dat` go; made if absent.
        name: Record name: letters, digits, `-` and `_`.
        signals: Name to (n_samples,) values; a NaN is written as "no measurement". Steps are of at
            least 1e-12 units.
        fs_hz: Sampling rate, of each signal or of all: a fraction with a denominator of 1,000 at
            most.
        start_time: Naive start on the wall clock; None where the record shall not say it.
        units: Unit of each signal; by default NU for a PPG and mV for all others.

    Returns:
        Path of the header.

    Raises:
        InputError: `bad_record`, `bad_sampling_rate`, `bad_signal`, `unequal_durations`, `bad_time`
            or `unknown_lead`: something that the format can't say.
    """
    import wfdb

    if not signals or re.fullmatch(r"[-\w]+", name, re.ASCII) is None:
        _refuse(
            "no such record can be written",
            "bad_record",
            name,
            "Give signals, and a name of letters, digits, - and _.",
        )
    if start_time is not None and start_time.tzinfo is not None:
        _refuse("a start with a time zone", "bad_time", name, "Give it as the wall clock shows it.")
    unknown = (units or {}).keys() - signals.keys()
    if unknown:
        remedy = f"The signals are {', '.join(signals)}."
        _refuse(f"units of no signal: {', '.join(sorted(unknown))}", "unknown_lead", name, remedy)
    for lead in signals:
        if not lead.isprintable() or not lead or lead != lead.strip():
            remedy = "Give names of printed characters, without blanks at either end."
            _refuse("a signal's name that a header can't hold", "bad_record", name, remedy)
    for unit in (units or {}).values():
        if re.fullmatch(r"\S+", unit) is None or not unit.isprintable():
            remedy = "Give units without blanks, NU where there is none."
            _refuse("a unit that a header can't hold", "bad_record", name, remedy)
    rates = {
        lead: _as_fraction(fs_hz.get(lead, math.nan) if isinstance(fs_hz, Mapping) else fs_hz, lead)
        for lead in signals
    }
    denominator = math.lcm(*(rate.denominator for rate in rates.values()))
    numerators = [int(rate * denominator) for rate in rates.values()]
    frames_hz = Fraction(math.gcd(*numerators), denominator)
    per_frame = [int(rate / frames_hz) for rate in rates.values()]
    digital, gains = zip(
        *(_digitise(values, lead) for lead, values in signals.items()), strict=True
    )
    lengths = {Fraction(len(values)) / n for values, n in zip(digital, per_frame, strict=True)}
    if len(lengths) > 1:
        _refuse(
            "the signals last unequally long",
            "unequal_durations",
            name,
            "Give each signal its rate times the same number of seconds.",
        )
    default = {
        lead: "NU" if re.search("ppg|pleth", lead, re.IGNORECASE) else "mV" for lead in rates
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    wfdb.wrsamp(
        name,
        fs=float(frames_hz),
        units=[{**default, **(units or {})}[lead] for lead in signals],
        sig_name=list(signals),
        e_d_signal=list(digital),
        samps_per_frame=per_frame,
        fmt=["16"] * len(signals),
        adc_gain=list(gains),
        baseline=[0] * len(signals),
        base_datetime=start_time,
        write_dir=str(folder),
    )
    return Path(folder) / f"{name}.hea"


def _as_fraction(fs_hz: float, lead: str) -> Fraction:
    if math.isfinite(fs_hz) and fs_hz > 0:
        rate = Fraction(fs_hz).limit_denominator(_MAX_DENOMINATOR)
        if math.isclose(rate, fs_hz, rel_tol=1e-12):
            return rate
    return _refuse(
        "no rate, or none that can be written",
        "bad_sampling_rate",
        f"lead {lead}",
        f"Give a fraction with a denominator of {_MAX_DENOMINATOR} at most.",
    )


def _digitise(values: Signal, lead: str) -> tuple[npt.NDArray[np.int64], float]:
    """ADC values and a round gain that uses the 16 bits; NaN becomes "no measurement"."""
    values = np.asarray(values, np.float64)
    largest = float(np.nanmax(np.abs(values), initial=0.0)) if values.ndim == 1 else math.nan
    if not (len(np.atleast_1d(values)) and largest <= _MAX_ADC / _MIN_GAIN):
        _refuse(
            "no row of numbers that 16 bits can hold",
            "bad_signal",
            f"lead {lead}",
            "Give (n_samples,) finite values, or NaN where nothing was measured.",
        )
    gain = 1.0
    if largest:
        # Of a value too small for the finest step the logarithm is not asked.
        gain = 10.0 ** math.floor(math.log10(_MAX_ADC / max(largest, _MAX_ADC / _MAX_GAIN)))
    digital = np.where(np.isnan(values), -(2.0**15), np.rint(np.nan_to_num(values) * gain))
    return digital.astype(np.int64), gain


def _refuse(message: str, code: str, place: str, remedy: str) -> NoReturn:
    raise InputError(message, code=code, place=place, remedy=remedy)
