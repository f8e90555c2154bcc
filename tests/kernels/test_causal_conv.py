"""The short convolution is torch's own, and stays within a subject."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tsfm.kernels.causal_conv import causal_conv1d


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
