"""Noise has the power it is asked for, and is refused where there is no room for its band."""

from __future__ import annotations

import numpy as np
import pytest

from tsfm.errors import InputError
from tsfm.simulation.signal_noise import KINDS, LEAST_HZ, LEAST_SAMPLES, add_noise, make_noise


@pytest.mark.parametrize("kind", KINDS)
def test_the_least_rate_and_length_do(kind: str) -> None:
    noise = make_noise(kind, LEAST_SAMPLES, LEAST_HZ[kind], np.random.default_rng(0))
    assert noise.std() == pytest.approx(1.0)
    signal = np.sin(np.arange(LEAST_SAMPLES))
    assert np.isfinite(add_noise(signal, kind, 6.0, LEAST_HZ[kind], seed=0)).all()


@pytest.mark.parametrize(
    ("code", "kind", "fs_hz", "n"),
    [
        ("unknown_noise", "hum", 250.0, 1000),
        ("bad_recording", "muscle", 25.0, 1000),
        ("bad_recording", "muscle", 40.0, 1000),
        ("bad_recording", "wander", float("nan"), 1000),
        ("bad_recording", "electrode", float("inf"), 1000),
        ("bad_recording", "wander", 250.0, 10),
    ],
)
def test_noise_without_room_is_refused(code: str, kind: str, fs_hz: float, n: int) -> None:
    for make in (
        lambda: add_noise(np.zeros(n), kind, 6.0, fs_hz, 0),
        lambda: make_noise(kind, n, fs_hz, np.random.default_rng(0)),
    ):
        with pytest.raises(InputError) as caught:
            make()
        assert caught.value.code == code


@pytest.mark.parametrize("offset", [0.0, 5.0, 1000.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_ratio_is_of_what_was_measured_whatever_gap_and_offset(
    kind: str, offset: float
) -> None:
    t = np.arange(3750) / 125
    whole = np.sin(2 * np.pi * 1.2 * t) + 0.3 * np.sin(2 * np.pi * 8 * t)
    gapped = whole + offset
    gapped[1000:1100] = np.nan
    expected = (add_noise(whole, kind, 6.0, 125.0, 3) - whole).std()
    added = add_noise(gapped, kind, 6.0, 125.0, 3) - gapped
    assert np.isnan(added[1000:1100]).all()
    assert np.nanstd(added) == pytest.approx(expected, rel=0.05)


def test_a_row_without_a_measurement_gets_no_noise() -> None:
    rows = np.stack([np.full(500, np.nan), np.sin(np.arange(500.0))])
    found = add_noise(rows, "wander", 0.0, 125.0, 0)
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()
