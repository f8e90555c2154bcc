"""The chain is the best one there is, and finds pulses among false rises."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsfm.signals.pulse_chain import best_chain
from tsfm.signals.pulses import find_pulses
from tsfm.simulation.signal_noise import add_noise
from tsfm.simulation.waveforms import simulate_ppg

FS_HZ = 100.0


def value_of(time_s, strength, chosen):
    """What a choice of candidates earns in the best of all ways to cut it into chains."""
    earned = np.minimum(strength, 1.2) - 0.35
    n = len(chosen)
    if (np.diff(time_s[list(chosen)]) < 0.28).any():
        return -np.inf
    best = -np.inf
    for cuts in range(2 ** max(n - 1, 0)):
        value, chain = 0.0, []
        for place, i in enumerate(chosen):
            new = place == 0 or bool(cuts >> (place - 1) & 1)
            value += earned[i]
            if new:
                value, chain = value - 0.5, [i]
                continue
            interval = time_s[i] - time_s[chain[-1]]
            if interval > 2.2:
                value = -np.inf
                break
            if len(chain) > 1:
                before = time_s[chain[-1]] - time_s[chain[-2]]
                value -= min(abs(np.log(interval / before)), 0.7)
            chain.append(i)
        best = max(best, value)
    return best if n else 0.0


@given(st.lists(st.tuples(st.integers(8, 120), st.floats(0.2, 1.5)), min_size=1, max_size=7))
@settings(max_examples=60, deadline=None)
def test_no_choice_of_candidates_is_worth_more(steps):
    at = np.cumsum([step for step, _ in steps]).astype(np.int64)
    strength = np.array([s for _, s in steps])
    kept = np.flatnonzero(best_chain(at, strength, fs_hz=FS_HZ))
    every = [
        value_of(at / FS_HZ, strength, chosen)
        for k in range(len(at) + 1)
        for chosen in combinations(range(len(at)), k)
    ]
    assert value_of(at / FS_HZ, strength, tuple(kept)) == pytest.approx(max(every), abs=1e-9)


def test_weak_rises_between_even_pulses_are_left_out():
    pulses = np.arange(50, 3000, 80)
    false = pulses[::3] + 35
    at = np.sort(np.concatenate([pulses, false]))
    strength = np.where(np.isin(at, pulses), 1.0, 0.8)
    assert np.array_equal(at[best_chain(at, strength, fs_hz=FS_HZ)], pulses)


def test_a_pause_is_no_reason_to_lose_pulses():
    at = np.concatenate([np.arange(50, 1000, 80), np.arange(1600, 2600, 60)])
    assert best_chain(at, np.ones(len(at)), fs_hz=FS_HZ).all()
    assert best_chain(np.zeros(0, np.int64), np.zeros(0), fs_hz=FS_HZ).shape == (0,)


@pytest.mark.parametrize("snr_db", [6, 0])
def test_motion_hides_few_pulses(snr_db):
    rng = np.random.default_rng(2)
    clean = simulate_ppg(rng, fs_hz=FS_HZ, duration_s=120.0, heart_rate_bpm=75.0)
    truth = find_pulses(clean, fs_hz=FS_HZ).upstrokes
    found = find_pulses(add_noise(clean, "electrode", snr_db, FS_HZ, 1), fs_hz=FS_HZ).upstrokes
    away = np.abs(found[:, None] - truth).min(0) / FS_HZ
    assert np.mean(away < 0.15) > 0.85
    assert abs(len(found) - len(truth)) <= 0.1 * len(truth)
