"""The time-invariant scan: one recurrence, whichever way it is computed."""

import pytest
import torch

from tsfm.errors import InputError
from tsfm.kernels.lti_scan import lti_scan

B, T, D, N = 2, 37, 6, 3


def _inputs(dtype=torch.float32):
    draws = torch.Generator().manual_seed(0)
    u = torch.randn(B, T, D, generator=draws, dtype=dtype)
    rate = torch.complex(
        -0.3 * torch.rand(D, N, generator=draws, dtype=dtype) - 0.01,
        3 * torch.rand(D, N, generator=draws, dtype=dtype),
    )
    real, imaginary = torch.randn(2, D, N, generator=draws, dtype=dtype)
    held = torch.randn(2, B, D, N, generator=draws, dtype=dtype)
    return u, rate, torch.complex(real, imaginary), torch.complex(held[0], held[1])


def _loop(u, rate, C, h):
    """The definition, token by token in float64."""
    u, rate, C, h = u.double(), rate.to(torch.complex128), C.to(torch.complex128), h
    ys = []
    for t in range(u.shape[1]):
        h = torch.exp(rate) * h + u[:, t, :, None]
        ys.append((C * h).sum(-1).real)
    return torch.stack(ys, 1), h


def test_it_is_the_recurrence_and_continues_it():
    u, rate, C, h = _inputs()
    expected, last = _loop(u, rate, C, h.to(torch.complex128))
    y, final = lti_scan(u, rate, C, initial_state=h, return_final_state=True)
    torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(final.to(torch.complex128), last, atol=1e-4, rtol=1e-4)


def test_the_fft_says_the_same_in_float64():
    u, rate, C, h = _inputs(torch.float64)
    expected, last = _loop(u, rate, C, h)
    y, final = lti_scan(u, rate, C, initial_state=h, return_final_state=True)
    torch.testing.assert_close(y, expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(final, last, atol=1e-9, rtol=1e-9)


def test_reversed_is_flipped():
    u, rate, C, _ = _inputs()
    there = lti_scan(u, rate, C, reverse=True)
    again = lti_scan(u.flip(1), rate, C)
    assert isinstance(again, torch.Tensor)
    torch.testing.assert_close(there, again.flip(1))


@pytest.mark.parametrize("reverse", [False, True])
def test_the_compiled_derivative_is_that_of_the_fft(reverse):
    u, rate, C, _ = _inputs()
    slope = torch.randn(B, T, D, generator=torch.Generator().manual_seed(1))
    found = []
    for dtype, complex_ in ((torch.float32, torch.complex64), (torch.float64, torch.complex128)):
        leaves = [u.to(dtype), rate.to(complex_), C.to(complex_)]
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        y = lti_scan(*leaves, reverse=reverse)
        assert isinstance(y, torch.Tensor)
        (y * slope.to(dtype)).sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours.to(theirs.dtype), theirs, atol=2e-3, rtol=2e-3)


def test_a_gradient_passes_through_states():
    u, rate, C, h = _inputs()
    h = h.requires_grad_()
    y, final = lti_scan(u, rate, C, initial_state=h, return_final_state=True)
    (y.sum() + final.real.sum()).backward()
    gradient = h.grad
    assert gradient is not None
    assert torch.isfinite(torch.view_as_real(gradient)).all()
    assert gradient.abs().max() > 0


def test_a_reversed_scan_has_no_state():
    u, rate, C, h = _inputs()
    with pytest.raises(InputError, match="chunk"):
        lti_scan(u, rate, C, initial_state=h, reverse=True)
