"""Turned leads are projections of one vector; masked ones leave at least one that was measured."""

from __future__ import annotations

import math

import pytest
import torch

from tsfm.errors import InputError
from tsfm.training.lead_rotation import VIEWS, mask_leads, rotate_lead_one

ANGLE = {"aVL": -30, "-aVR": 30, "II": 60, "-III": -60, "aVF": 90, "-aVF": -90}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", list(VIEWS))
def test_each_view_is_the_projection_on_its_axis(name: str) -> None:
    vector = torch.randn(50, 2, dtype=torch.float64)

    def projection(degrees: float) -> torch.Tensor:
        angle = math.radians(degrees)
        axis = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        return vector @ axis

    one, two = projection(0), projection(60)
    a, b = VIEWS[name]
    size = math.sqrt(3) / 2 if "aV" in name else 1.0  # augmented leads are smaller
    torch.testing.assert_close(a * one + b * two, size * projection(ANGLE[name]))


def test_half_of_the_records_are_turned_each_way_as_often() -> None:
    one, two = torch.full((6000, 1), 1.0), torch.full((6000, 1), 10.0)
    found = rotate_lead_one(one, two, draws()).squeeze(-1)
    assert (found == 1.0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    for a, b in VIEWS.values():
        share = (found == a + 10 * b).float().mean().item()
        assert share == pytest.approx(0.5 / 6, abs=0.012)


def test_lead_one_is_kept_bit_by_bit_beside_gaps_of_lead_two() -> None:
    one, two = torch.randn(40, 9), torch.full((40, 9), float("nan"))
    assert torch.equal(rotate_lead_one(one, two, draws(), chance=0.0), one)
    found = rotate_lead_one(one, two, draws(), chance=0.5)
    whole = ~torch.isnan(found).any(1)
    assert 5 < int(whole.sum()) < 35
    assert torch.equal(found[whole], one[whole])


def test_some_measured_lead_always_stays() -> None:
    signal = torch.randn(300, 4, 7)
    signal[:, 1] = float("nan")
    found, kept = mask_leads(signal, draws(), chance=0.9)
    assert kept.any(1).all()
    assert not kept[:, 1].any()
    assert torch.equal(~torch.isnan(found).all(-1), kept)
    assert torch.equal(found[kept], signal[kept])
    alone, kept = mask_leads(signal, draws(), chance=1.0)
    assert (kept.sum(1) == 1).all()
    counts = kept.sum(0)
    assert (counts[[0, 2, 3]] > 60).all()
    assert torch.isnan(alone).all(-1).sum() == 900


def test_leads_go_as_often_as_said_and_never_by_a_chance_of_nought() -> None:
    signal = torch.randn(2000, 12, 1)
    _, kept = mask_leads(signal, draws(), chance=0.5)
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.01 + 1 / 24)
    same, kept = mask_leads(signal, draws(), chance=0.0)
    assert kept.all()
    assert torch.equal(same, signal)


def test_chances_and_shapes_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="bad_chance"):
        mask_leads(torch.zeros(1, 2, 3), draws(), chance=1.5)
    with pytest.raises(InputError, match="bad_signal_shape"):
        rotate_lead_one(torch.zeros(2, 3), torch.zeros(2, 4), draws())


def test_lead_two_alone_needs_nothing_of_lead_one() -> None:
    one, two = torch.full((600, 4), float("nan")), torch.randn(600, 4)
    found = rotate_lead_one(one, two, torch.Generator().manual_seed(0), chance=1.0)
    whole = torch.isfinite(found).all(1)
    assert 60 < whole.sum() < 140  # a sixth of them
    assert torch.equal(found[whole], two[whole])
