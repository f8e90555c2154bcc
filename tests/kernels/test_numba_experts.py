"""Many experts compiled are the experts one product at a time."""

from __future__ import annotations

import pytest
import torch

from tsfm.kernels.numba_experts import many_experts
from tsfm.models.experts import MANY_EXPERTS, grouped_experts


@pytest.mark.parametrize(("n_tokens", "n_experts", "top_k"), [(50, 40, 2), (3, 100, 1), (0, 20, 2)])
def test_the_compiled_form_gives_what_the_products_give(
    n_tokens: int, n_experts: int, top_k: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(n_tokens, 32)[:, ::2]  # not contiguous
    gate_up, out = torch.randn(n_experts, 16, 24), torch.randn(n_experts, 12, 16)
    experts = torch.rand(n_tokens, n_experts).topk(top_k).indices
    weights = torch.rand(n_tokens, top_k)
    given = many_experts(x, experts, weights, gate_up, out)
    wanted = torch.zeros(n_tokens, 16)
    for t in range(n_tokens):
        for k in range(top_k):
            gate, up = (x[t] @ gate_up[experts[t, k]]).chunk(2)
            gated = torch.nn.functional.silu(gate) * up
            wanted[t] += weights[t, k] * (gated @ out[experts[t, k]])
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)


def test_training_and_evaluation_agree_on_many_experts() -> None:
    torch.manual_seed(1)
    n_experts = MANY_EXPERTS + 1
    x = torch.randn(30, 16)
    gate_up = torch.randn(n_experts, 16, 24, requires_grad=True)
    out = torch.randn(n_experts, 12, 16, requires_grad=True)
    experts = torch.rand(30, n_experts).topk(2).indices
    weights = torch.rand(30, 2)
    trained = grouped_experts(x, experts, weights, gate_up, out)
    assert trained.requires_grad
    with torch.no_grad():
        evaluated = grouped_experts(x, experts, weights, gate_up, out)
    torch.testing.assert_close(evaluated, trained.detach(), rtol=1e-4, atol=1e-4)


def test_gates_far_out_are_finite() -> None:
    x = torch.tensor([[300.0], [-300.0]])
    ones = torch.ones(20, 1, 2), torch.ones(20, 1, 1)
    given = many_experts(x, torch.tensor([[0], [19]]), torch.ones(2, 1), *ones)
    torch.testing.assert_close(given, torch.tensor([[9e4], [0.0]]))
