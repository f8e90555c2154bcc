"""The compiled skip, gate and norm are the plain ones, gradients included."""

from __future__ import annotations

import torch

from tsfm.kernels.gated_norm import gated_rms_norm, gated_rms_norm_torch


def test_the_compiled_form_has_the_values_and_gradients_of_the_plain_one() -> None:
    torch.manual_seed(0)
    shapes = [(700, 24), (700, 24), (700, 24), (24,), (24,)]
    leaves = [torch.randn(shape) * 3 for shape in shapes]
    weights = torch.randn(700, 24)
    found: list[list[torch.Tensor]] = []
    for form in (gated_rms_norm, gated_rms_norm_torch):
        y, u, z, skip, weight = own = [leaf.clone().requires_grad_() for leaf in leaves]
        out = form(y, u, z, skip, weight, 1e-5)
        (out * weights).sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in own if leaf.grad is not None)])
    for compiled, plain in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=2e-4, atol=2e-4)


def test_gates_far_out_are_finite() -> None:
    y = torch.ones(3, 2)
    z = torch.tensor([[-1e4, 1e4], [0.0, -80.0], [80.0, 1.0]])
    out = gated_rms_norm(y, y, z, torch.ones(2), torch.ones(2), 1e-5)
    assert bool(torch.isfinite(out).all())


def test_a_few_tokens_without_gradients_have_the_values_of_many() -> None:
    torch.manual_seed(1)
    y, u, z = (torch.randn(5, 48)[:, ::2] * 3 for _ in range(3))  # not contiguous
    skip, weight = torch.randn(24), torch.randn(24)
    with torch.no_grad():
        given = gated_rms_norm(y, u, z, skip, weight, 1e-5)
    plain = gated_rms_norm_torch(y, u, z, skip, weight, 1e-5)
    torch.testing.assert_close(given, plain, rtol=2e-5, atol=2e-5)
