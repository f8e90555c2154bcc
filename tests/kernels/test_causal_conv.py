"""The short convolution is torch's own, and stays within a subject."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tsfm.kernels.causal_conv import causal_conv1d, causal_conv1d_torch


def test_one_sequence_equals_torch() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(50, 6), torch.randn(6, 4), torch.randn(6)
    expected = (
        F.conv1d(F.pad(x.T.unsqueeze(0), (3, 0)), weight.unsqueeze(1), bias, groups=6).squeeze(0).T
    )
    torch.testing.assert_close(causal_conv1d(x, weight, bias, torch.arange(50)), expected)


def test_a_tap_never_reaches_into_another_subject() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(9, 3), torch.randn(3, 4)
    position = torch.tensor([0, 0, 1, 2, 3, 4, 0, 1, 2])
    packed = causal_conv1d(x, weight, None, position)
    for start, end in ((0, 1), (1, 6), (6, 9)):
        alone = causal_conv1d(x[start:end], weight, None, torch.arange(end - start))
        torch.testing.assert_close(packed[start:end], alone)


def test_the_compiled_form_has_the_gradients_of_the_plain_one() -> None:
    torch.manual_seed(0)
    position = torch.cat([torch.arange(n) for n in (1, 700, 2, 3, 600)])
    leaves = [torch.randn(len(position), 5), torch.randn(5, 4), torch.randn(5)]
    weights = torch.randn(len(position), 5)
    found: list[list[torch.Tensor]] = []
    for form in (causal_conv1d, causal_conv1d_torch):
        own = [leaf.clone().requires_grad_() for leaf in leaves]
        y = form(own[0], own[1], own[2], position)
        (y * weights).sum().backward()
        found.append([y.detach(), *(leaf.grad for leaf in own if leaf.grad is not None)])
    for compiled, plain in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)
