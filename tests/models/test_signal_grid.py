"""Signals of any rate and type come onto one grid of time."""

import math

import numpy as np
import pytest
import torch

from tsfm.errors import InputError
from tsfm.models import signal_grid
from tsfm.models.signal_grid import GridStream, read_rate, to_grid, to_tensor


def test_what_would_fold_is_taken_out():
    t = torch.arange(2000) / 500
    hum = torch.sin(2 * math.pi * 120 * t).view(1, 1, -1)
    values, _ = to_grid(hum, fs_hz=500, grid_hz=100)
    assert values[..., 10:-10].abs().max() < 0.02


@pytest.mark.parametrize("fs_hz", [100, 250, 62.4725])
def test_whole_numbers_are_values_on_the_grid_too(fs_hz):
    counts = torch.arange(2000).view(1, 2, 1000)
    values, known = to_grid(counts, fs_hz=fs_hz, grid_hz=100)
    assert torch.equal(values, to_grid(counts.float(), fs_hz=fs_hz, grid_hz=100)[0])
    assert values.max() > 1500
    assert known.all()


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, torch.tensor])
def test_a_rate_may_be_any_scalar(kind):
    signal = torch.randn(2, 1, 720)
    own = to_grid(signal, fs_hz=360, grid_hz=100)[0]
    assert torch.equal(to_grid(signal, fs_hz=kind(360), grid_hz=100)[0], own)


@pytest.mark.parametrize("no_rate", [None, "250", [250, 250], torch.ones(2)], ids=str)
def test_what_is_no_number_is_no_rate(no_rate):
    with pytest.raises(InputError, match="bad_sampling_rate"):
        read_rate(no_rate)


def test_what_a_masked_array_masks_was_not_measured():
    samples = np.arange(6.0).reshape(1, 1, 6)
    found = to_tensor(np.ma.masked_array(samples, samples == 3))
    assert torch.isnan(found).nonzero().tolist() == [[0, 0, 3]]
    whole = to_tensor(np.ma.masked_array(samples.astype(int), samples == 3))
    assert torch.isnan(whole).nonzero().tolist() == [[0, 0, 3]]


@pytest.mark.parametrize("fs_hz", [250, 360, 62.5, 62.4725])
def test_a_finished_grid_has_no_more_points(fs_hz):
    grid = GridStream(fs_hz=fs_hz, grid_hz=100)
    grid.push(torch.ones(1, 1, 200))
    grid.finish()
    assert grid.finish()[0].shape[-1] == 0


def test_points_with_weights_of_their_own_are_the_same_in_blocks_of_any_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signal = torch.randn(3, 2, 900, generator=torch.Generator().manual_seed(0))
    whole, there = signal_grid.to_grid(signal, fs_hz=62.4725, grid_hz=100.0)
    monkeypatch.setattr(signal_grid, "_MOST_COPIED", 500)
    parts, known = signal_grid.to_grid(signal, fs_hz=62.4725, grid_hz=100.0)
    torch.testing.assert_close(parts, whole)
    assert torch.equal(known, there)
