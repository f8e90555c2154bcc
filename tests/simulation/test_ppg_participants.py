"""Participants differ from each other and stay alike to themselves."""

from __future__ import annotations

import numpy as np
import pytest

from tsfm.errors import InputError
from tsfm.simulation.ppg_participants import (
    draw_participant,
    simulate_cohort,
    simulate_participant,
)


def spectrum_peak_hz(signal: np.ndarray, fs_hz: float) -> float:
    power = np.abs(np.fft.rfft(signal - signal.mean())) ** 2
    frequency = np.fft.rfftfreq(len(signal), 1 / fs_hz)
    power[frequency < 0.6] = 0.0
    return float(frequency[power.argmax()])


def test_pulses_come_at_the_resting_rate_give_or_take_the_hour() -> None:
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(40):
        participant = draw_participant(rng)
        signal = simulate_participant(rng, participant, fs_hz=64, duration_s=60)
        found = 60 * spectrum_peak_hz(signal, 64)
        # A high dicrotic wave can make the second harmonic the larger one.
        errors.append(min(abs(found / k - participant.heart_rate_bpm) for k in (1, 2)))
    assert np.median(errors) < 8
    assert np.max(errors) < 25


def test_the_same_seed_is_the_same_cohort_and_segments_differ() -> None:
    def cohort() -> tuple[np.ndarray, np.ndarray]:
        return simulate_cohort(
            np.random.default_rng(3), n_participants=3, n_segments=2, fs_hz=50, duration_s=4
        )

    (segments, owners), (again, _) = cohort(), cohort()
    assert segments.shape == (6, 1, 200)
    assert owners.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(segments, again)
    assert not np.allclose(segments[0], segments[1])


def test_a_rate_twice_as_high_shows_the_same_pulses() -> None:
    participant = draw_participant(np.random.default_rng(1))
    quiet = {**participant.__dict__, "noise": 0.0}
    slow, fast = (
        simulate_participant(
            np.random.default_rng(2), type(participant)(**quiet), fs_hz=fs_hz, duration_s=20
        )
        for fs_hz in (64, 128)
    )
    np.testing.assert_allclose(fast[::2], slow, atol=1e-9)


@pytest.mark.parametrize("how", [(0.0, 5.0), (64.0, -1.0), (np.inf, 5.0), (64.0, np.inf)])
def test_a_segment_without_rate_or_length_is_refused(how: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="bad_segment"):
        simulate_participant(rng, draw_participant(rng), fs_hz=how[0], duration_s=how[1])
    with pytest.raises(InputError, match="bad_segment"):
        simulate_cohort(rng, n_participants=0, n_segments=1, fs_hz=how[0], duration_s=how[1])


@pytest.mark.parametrize("sizes", [(-1, 2), (2, -1)])
def test_a_cohort_of_less_than_nobody_is_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="bad_segment"):
        simulate_cohort(
            np.random.default_rng(0), n_participants=sizes[0], n_segments=sizes[1], fs_hz=64,
            duration_s=5,
        )  # fmt: skip
