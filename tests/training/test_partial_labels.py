"""The partial-label loss is the formula it states, and its probabilities can be taken back."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tsfm.errors import InputError
from tsfm.training.partial_labels import partial_label_loss, recorded_probability

NAN = float("nan")


def test_it_is_its_formula_entry_by_entry() -> None:
    torch.manual_seed(0)
    logits = torch.randn(30, 4) * 3
    labels = torch.tensor([0.0, 1.0, NAN])[torch.randint(3, (30, 4))]
    sure = torch.rand(30, 4) < 0.3
    costs = []
    for i in range(30):
        for j in range(4):
            p, label = 1 / (1 + math.exp(-logits[i, j].item())), labels[i, j].item()
            if label == 1:
                costs.append(-math.log(p))
            elif label == 0:
                costs.append(-math.log(1 - p) * (1 if sure[i, j] else p**1.5))
    found = partial_label_loss(logits, labels, sure=sure)
    assert found.item() == pytest.approx(sum(costs) / len(costs), rel=1e-5)


def test_without_focusing_it_is_cross_entropy() -> None:
    logits, labels = torch.randn(8, 3), torch.randint(2, (8, 3)).float()
    torch.testing.assert_close(
        partial_label_loss(logits, labels, gamma=0.0),
        F.binary_cross_entropy_with_logits(logits, labels),
    )


def test_what_is_not_known_teaches_nothing() -> None:
    logits = torch.randn(5, 2, requires_grad=True)
    labels = torch.tensor([[1.0, NAN], [NAN, 0.0], [NAN, NAN], [0.0, 1.0], [1.0, 1.0]])
    partial_label_loss(logits, labels).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad == 0, torch.isnan(labels))
    nothing = partial_label_loss(logits, torch.full((5, 2), NAN))
    assert nothing.item() == 0.0
    nothing.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_and_gradient_are_finite_at_any_logit(dtype: torch.dtype) -> None:
    logits = torch.tensor([[-3e4, -50.0, 0.0, 50.0, 3e4]], dtype=dtype).T.repeat(1, 2)
    logits.requires_grad_()
    loss = partial_label_loss(logits, torch.tensor([[0.0, 1.0]]).repeat(5, 1))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9])
def test_the_share_of_ones_is_found_again_where_the_pulls_are_even(
    gamma: float, share: float
) -> None:
    labels = (torch.arange(100) < round(100 * share)).float()[:, None]

    def pull(logit: float) -> float:
        at = torch.tensor(logit, requires_grad=True)
        partial_label_loss(at.expand(100, 1), labels, gamma=gamma).backward()
        assert at.grad is not None
        return at.grad.item()

    low, high = -12.0, 12.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if pull(middle) < 0 else (low, middle)
    found = recorded_probability(torch.tensor(low), gamma=gamma).item()
    assert found == pytest.approx(share, rel=1e-3)
    p = 1 / (1 + math.exp(-low))
    assert p > share + 0.005 if gamma else p == pytest.approx(share, rel=1e-3)


def test_taking_back_keeps_order_and_bounds() -> None:
    found = recorded_probability(torch.linspace(-80, 80, 401))
    assert (found.diff() >= 0).all()
    assert found[0] < 1e-30
    assert found[-1] == 1.0
    torch.testing.assert_close(recorded_probability(torch.tensor(0.3), gamma=0.0).item(),
                               torch.tensor(0.3).double().sigmoid().item())  # fmt: skip


def test_more_positives_without_a_label_are_still_called_positive() -> None:
    torch.manual_seed(0)
    x = torch.randn(4000, 1)
    truth = (torch.rand(4000, 1) < torch.sigmoid(4 * x)).float()
    labels = truth * (torch.rand(4000, 1) < 0.4)  # three in five go unmentioned

    def called(gamma: float) -> float:
        weight, bias = torch.zeros(1, 1, requires_grad=True), torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.Adam([weight, bias], lr=0.1)
        for _ in range(150):
            optimizer.zero_grad()
            partial_label_loss(x @ weight + bias, labels, gamma=gamma).backward()
            optimizer.step()
        positive = (x @ weight + bias > 0)[truth == 1]
        return positive.float().mean().item()

    assert called(0.0) < 0.25
    assert called(1.5) > 0.45


@pytest.mark.parametrize("labels", [torch.full((2, 2), 0.5), torch.zeros(2, 3)])
def test_labels_that_are_none_are_refused(labels: torch.Tensor) -> None:
    with pytest.raises(InputError, match="bad_labels"):
        partial_label_loss(torch.zeros(2, 2), labels)


def test_a_negative_gamma_is_refused() -> None:
    with pytest.raises(InputError, match="bad_gamma"):
        partial_label_loss(torch.zeros(1, 1), torch.zeros(1, 1), gamma=-1.0)


def test_a_gamma_that_is_no_number_is_refused() -> None:
    for gamma in (float("nan"), float("inf"), -1.0):
        with pytest.raises(InputError, match="bad_gamma"):
            partial_label_loss(torch.zeros(1, 1), torch.ones(1, 1), gamma=gamma)
        with pytest.raises(InputError, match="bad_gamma"):
            recorded_probability(torch.zeros(1), gamma=gamma)
