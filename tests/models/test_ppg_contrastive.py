"""The loss is its formula, one's own is never a negative, and the teacher follows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tsfm.errors import InputError
from tsfm.models.ppg_contrastive import (
    ContrastConfig,
    ParticipantContrast,
    contrast_loss,
    koleo,
    participant_contrast,
)

CONFIG = ContrastConfig()


def loss_by_hand(
    first: Tensor, second: Tensor, owners: list[int], config: ContrastConfig
) -> tuple[float, float]:
    """Contrast and KoLeo in loops over Python numbers, from the formula."""

    def unit(z: Tensor) -> list[list[float]]:
        rows = z.double().tolist()
        return [[x / math.sqrt(sum(v * v for v in row)) for x in row] for row in rows]

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    def one_way(own: list[list[float]], other: list[list[float]]) -> float:
        total = 0.0
        for i, a in enumerate(own):
            mass = math.exp(dot(a, other[i]) / config.temperature)
            positive = mass
            for j in range(len(own)):
                if owners[j] != owners[i]:
                    mass += math.exp(dot(a, other[j]) / config.temperature)
                    mass += math.exp(dot(a, own[j]) / config.temperature)
            total -= math.log(positive / mass)
        return total / len(own)

    def spread(z: list[list[float]]) -> float:
        total = 0.0
        for i, a in enumerate(z):
            nearest = max((j for j in range(len(z)) if j != i), key=lambda j: dot(a, z[j]))
            distance = math.sqrt(sum((x - y) ** 2 for x, y in zip(a, z[nearest], strict=True)))
            total -= math.log(distance + 1e-8)
        return total / len(z)

    one, two = unit(first), unit(second)
    contrast = 0.5 * (one_way(one, two) + one_way(two, one))
    return contrast, 0.5 * (spread(one) + spread(two))


def pairs(n: int = 7, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, n, width, generator=generator, dtype=torch.float64)
    return first, second


@pytest.mark.parametrize("owners", [[0, 1, 2, 3, 4, 5, 6], [0, 0, 1, 2, 2, 2, 3], [0] * 7])
def test_the_loss_is_its_formula(owners: list[int]) -> None:
    first, second = pairs()
    found = contrast_loss(first, second, torch.tensor(owners), CONFIG)
    contrast, spread = loss_by_hand(first, second, owners, CONFIG)
    assert float(found.contrast) == pytest.approx(contrast, rel=1e-10)
    assert float(found.koleo) == pytest.approx(spread, rel=1e-10)
    assert float(found.total) == pytest.approx(contrast + 0.1 * spread, rel=1e-10)


def test_two_strangers_at_right_angles_have_the_loss_that_one_can_work_out() -> None:
    first = second = torch.eye(2, dtype=torch.float64)
    found = contrast_loss(first, second, torch.tensor([0, 1]), CONFIG)
    # Each finds itself at 1, the other at 0 in either view, a root of two away.
    assert float(found.contrast) == pytest.approx(math.log1p(2 * math.exp(-25)))
    assert float(found.koleo) == pytest.approx(-math.log(math.sqrt(2)), abs=1e-7)


def test_ones_own_other_segments_are_no_negatives() -> None:
    owners = torch.tensor([0, 0, 1, 2, 1])
    own, other = (nn.functional.normalize(z[:5], dim=-1) for z in pairs())
    across, within = (own @ other.T).requires_grad_(), (own @ own.T).requires_grad_()
    participant_contrast(across, within, owners, CONFIG.temperature).backward()
    stranger = owners[:, None] != owners
    itself = torch.eye(5, dtype=torch.bool)
    assert across.grad is not None
    assert within.grad is not None
    assert (across.grad[itself] < 0).all()
    assert (across.grad[stranger] > 0).all()
    assert (within.grad[stranger] > 0).all()
    assert not across.grad[~stranger & ~itself].any()
    assert not within.grad[~stranger].any()


def test_a_batch_of_one_participant_has_nothing_to_tell_apart() -> None:
    first, second = pairs()
    found = contrast_loss(first, second, torch.zeros(7, dtype=torch.int64), CONFIG)
    assert float(found.contrast) == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_finite_where_similarities_are_one(dtype: torch.dtype) -> None:
    """exp(1 / 0.04) and 1e-8 both fall out of float16."""
    same = torch.ones(6, 8, dtype=dtype).requires_grad_()
    loss = contrast_loss(same, same.detach(), torch.arange(6), CONFIG)
    loss.total.backward()
    assert all(torch.isfinite(part) for part in loss)
    assert float(loss.contrast.detach()) == pytest.approx(math.log(11), rel=1e-5)
    assert same.grad is not None
    assert torch.isfinite(same.grad).all()


def test_half_precision_agrees_with_double() -> None:
    first, second = pairs()
    owners = torch.arange(7)
    exact = contrast_loss(first, second, owners, CONFIG)
    for dtype, error in ((torch.float16, 0.01), (torch.bfloat16, 0.1)):
        rounded = contrast_loss(first.to(dtype), second.to(dtype), owners, CONFIG)
        assert float(rounded.total) == pytest.approx(float(exact.total), rel=error)
        with torch.autocast("cpu", dtype=dtype):
            in_autocast = contrast_loss(first.to(dtype), second.to(dtype), owners, CONFIG)
        torch.testing.assert_close(in_autocast.total, rounded.total)


def test_koleo_falls_as_vectors_spread() -> None:
    angles = torch.tensor([0.0, 0.1, 2.0, 2.1]), torch.arange(4) * torch.pi / 2
    close, even = (koleo(torch.stack([a.cos(), a.sin()], 1)) for a in angles)
    assert even < close
    assert float(even) == pytest.approx(-math.log(math.sqrt(2)), abs=1e-6)


def test_one_pair_is_refused() -> None:
    with pytest.raises(InputError, match="batch_too_small"):
        contrast_loss(torch.randn(1, 4), torch.randn(1, 4), torch.zeros(1).long(), CONFIG)


class Backbone(nn.Module):
    """As little as has parameters, buffers and a count."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, segments: Tensor) -> Tensor:
        return self.norm(self.linear(segments.flatten(1)))


def model_and_batch() -> tuple[ParticipantContrast, tuple[Tensor, Tensor, Tensor]]:
    torch.manual_seed(0)
    model = ParticipantContrast(Backbone(), 6, ContrastConfig(hidden_width=16, projection_width=4))
    return model, (torch.randn(5, 2, 6) + 3, torch.randn(5, 2, 6) + 3, torch.arange(5))


def test_the_teacher_is_a_moving_average_of_parameters_and_buffers() -> None:
    model, batch = model_and_batch()
    before = {k: v.clone() for k, v in model.teacher.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(*batch).total.backward()
    optimizer.step()
    student = nn.Sequential(model.backbone, model.head).state_dict()
    assert not torch.equal(student["0.norm.running_mean"], before["0.norm.running_mean"])
    model.update_teacher()
    for name, now in model.teacher.state_dict().items():
        if now.is_floating_point():
            torch.testing.assert_close(now, 0.99 * before[name] + 0.01 * student[name])
        else:
            assert torch.equal(now, student[name])


def test_a_forward_pass_changes_nothing_in_the_teacher() -> None:
    model, batch = model_and_batch()
    before = {k: v.clone() for k, v in model.teacher.state_dict().items()}
    model(*batch).total.backward()
    for name, now in model.teacher.state_dict().items():
        assert torch.equal(now, before[name]), name
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.backbone.parameters())


def test_the_teacher_drops_nothing_out_and_normalises_by_the_batch() -> None:
    model, (_, second, _) = model_and_batch()
    torch.testing.assert_close(model.teacher(second), model.teacher(second))
    assert not torch.equal(model.head(model.backbone(second)), model.head(model.backbone(second)))
    by_batch = model.teacher_backbone(second)
    torch.testing.assert_close(by_batch.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    model.eval()
    by_history = model.teacher_backbone(second)
    assert not torch.allclose(by_batch, by_history)
    torch.testing.assert_close(model.teacher_backbone(second[:1]), by_history[:1])
