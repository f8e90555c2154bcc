"""What an input weighs over an interval, against arithmetic of fifty digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch

from tsfm.kernels.input_weights import weigh

mpmath.mp.dps = 50
RATES = (-1e-9, -1e-4, -0.3, -1.0, -1.7, -40.0)
SECONDS = (1e-6, 0.2, 0.99, 1.0, 1.01, 30.0)


def exact(kind: str) -> Callable[[Any, Any], Any]:
    def held(A: Any, s: Any) -> Any:
        return mpmath.expm1(A * s) / A

    def rising(A: Any, s: Any) -> Any:
        return (mpmath.expm1(A * s) - A * s) / (A * A * s)

    forms = {"held": held, "rising": rising, "falling": lambda A, s: held(A, s) - rising(A, s)}
    return forms[kind]


@pytest.mark.parametrize("kind", ["held", "rising", "falling"])
def test_weights_and_their_slopes_are_exact_to_rounding(kind: str) -> None:
    A = torch.tensor(RATES, dtype=torch.float64)[:, None].requires_grad_()
    form = exact(kind)
    for second in SECONDS:
        s = torch.full((len(RATES),), second, dtype=torch.float64).requires_grad_()
        # One token a channel, so that each slope stands alone.
        found = torch.stack([weigh(A[d : d + 1], s[d : d + 1][None], kind)[0, 0, 0]
                             for d in range(len(RATES))])  # fmt: skip
        by_rate, by_second = torch.autograd.grad(found.sum(), (A, s))
        for d, rate in enumerate(RATES):
            point = (mpmath.mpf(rate), mpmath.mpf(second))
            for got, wanted in (
                (found[d], form(*point)),
                (by_rate[d, 0], mpmath.diff(form, point, (1, 0))),
                (by_second[d], mpmath.diff(form, point, (0, 1))),
            ):
                assert float(got.detach()) == pytest.approx(float(wanted), rel=1e-13, abs=1e-300)


def test_the_sides_of_a_line_add_up_to_a_held_value() -> None:
    A, s = -torch.rand(4, 3, dtype=torch.float64), torch.rand(5, 4, dtype=torch.float64) * 9
    both = weigh(A, s, "rising") + weigh(A, s, "falling")
    torch.testing.assert_close(both, weigh(A, s, "held"), rtol=1e-13, atol=0.0)


def test_no_time_weighs_nothing() -> None:
    A, s = -torch.ones(2, 3), torch.zeros(1, 2)
    for kind in ("held", "rising", "falling"):
        assert not weigh(A, s, kind).any()
