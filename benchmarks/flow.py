"""What the closed form of the scan's flow costs and gives, against a solver of the same flow.

1,000 rows of width 128 (16 channels of 8 components) are asked for 64 moments each. The truth is
the closed form in float64. The solvers get dh/dt = A kappa h as it is, elementwise, the cheapest
right side there is, and every (row, moment) as a row of one solve (`solve_flow`). Two spans: a
gentle one, where the fastest component decays by exp(-4) at most, and a stiff one, exp(-100), which
is what gaps of days do to channels of minutes. A neural field (`OdeFlow`) of the same width is
timed beside them; no closed form exists for it. All on one thread, since two wait for each other
wherever something else has one of the cores, and with freed memory kept, which is fair to the
solvers and their large temporaries.

    python benchmarks/flow.py            some minutes
    python benchmarks/flow.py --quick    few rows and moments, to see that it runs

The last line is one JSON object; an error that is not finite is null in it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from measure import Row, machine, medians_ms, show
from torch import Tensor

from tsfm.kernels.heap import keep_freed_memory
from tsfm.models.ode_flow import FlowConfig, OdeFlow, Solver, solve_flow
from tsfm.models.scan_flow import scan_flow

SPANS = {"gentle": 4.0, "stiff": 100.0}
SOLVERS = {"rk4": Solver("rk4", n_steps=16), "dopri5": Solver("dopri5", rtol=1e-5, atol=1e-6)}


@dataclass(frozen=True)
class Sizes:
    """How much is asked."""

    n_rows: int = 1000
    n_channels: int = 16
    n_state: int = 8
    n_queries: int = 64


QUICK = Sizes(n_rows=20, n_queries=4)


def make_inputs(sizes: Sizes, span: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """State, A, kappa and hours as a Mamba block has them, in float64.

    The longest interval takes the fastest component to exp(-span); the rest are spread evenly over
    four decades of time below it.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (sizes.n_rows, sizes.n_channels, sizes.n_state)
    h = torch.randn(shape, generator=generator, dtype=torch.float64)
    A = -torch.arange(1, sizes.n_state + 1, dtype=torch.float64).repeat(sizes.n_channels, 1)
    gap_rate = 1 / torch.logspace(math.log10(0.5), math.log10(175_320.0), sizes.n_channels).double()
    longest = span / float((-A * gap_rate[:, None]).max())
    decades = 4 * torch.rand(sizes.n_rows, sizes.n_queries, generator=generator).double()
    return h, A, gap_rate, longest * 10**-decades


def span_figures(sizes: Sizes, span: float) -> dict[str, tuple[float, float]]:
    """Milliseconds and largest error of each way, on the same numbers."""
    exact_inputs = make_inputs(sizes, span)
    exact = scan_flow(*exact_inputs)
    h, A, gap_rate, hours = (tensor.float() for tensor in exact_inputs)
    rates = (A * gap_rate[:, None]).flatten()
    repeated = h.flatten(1).repeat_interleave(sizes.n_queries, dim=0)
    intervals = hours.flatten()

    ways: dict[str, Callable[[], Tensor]] = {
        "closed form": lambda: scan_flow(h, A, gap_rate, hours)
    }
    for name, solver in SOLVERS.items():
        ways[name] = lambda solver=solver: solve_flow(
            lambda t, x: rates * x, repeated, intervals, solver=solver
        )
    errors = {name: largest_error(way(), exact) for name, way in ways.items()}
    times = medians_ms(ways, runs=3, rounds=1)
    return {name: (times[name], errors[name]) for name in ways}


def largest_error(found: Tensor, exact: Tensor) -> float:
    error = (found.view(exact.shape).double() - exact).abs()
    return float(error.max()) if bool(error.isfinite().all()) else math.inf


def neural_figures(sizes: Sizes) -> dict[str, float]:
    """Milliseconds of a neural field of the same width over intervals of up to four rests."""
    hours = make_inputs(sizes, 4.0)[3].float().flatten()
    width = sizes.n_channels * sizes.n_state
    h = torch.randn(sizes.n_rows, width).repeat_interleave(sizes.n_queries, dim=0)
    rest = float(hours.max()) / 4
    ways: dict[str, Callable[[], Tensor]] = {}
    for name, solver in SOLVERS.items():
        flow = OdeFlow(FlowConfig(width, rest_hours=rest, solver=solver))
        ways[name] = lambda flow=flow: flow(h, hours)
    return medians_ms(ways, runs=3, rounds=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rows, seconds")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    keep_freed_memory()
    sizes = QUICK if arguments.quick else Sizes()
    width = sizes.n_channels * sizes.n_state
    print(f"{sizes.n_rows} rows of width {width}, {sizes.n_queries} moments each, float32")
    rows: list[Row] = []
    figures: dict[str, dict[str, float | None]] = {}
    with torch.no_grad():
        for span, size in SPANS.items():
            found = span_figures(sizes, size)
            closed = found["closed form"]
            for name, (milliseconds, error) in found.items():
                print(f"  {span:7} {name:12} {milliseconds:10.2f} ms   largest error {error:.1e}")
                figures[f"{span}, {name}"] = {
                    "milliseconds": round(milliseconds, 3),
                    "largest_error": error if math.isfinite(error) else None,
                }
                if name != "closed form":
                    times_faster = milliseconds / closed[0]
                    rows.append(Row(f"{span}, faster than {name}", times_faster, 10, 50, True))
            rows.append(Row(f"{span}, error", closed[1], 1e-5, 1e-6, False, unit=""))
        for name, milliseconds in neural_figures(sizes).items():
            print(f"  neural  {name:12} {milliseconds:10.2f} ms")
            figures[f"neural, {name}"] = {"milliseconds": round(milliseconds, 3)}
    show(rows)
    print()
    print(
        json.dumps(
            {
                "machine": machine(),
                "quick": arguments.quick,
                "figures": figures,
                "rows": {row.name: row.value for row in rows},
                "met": {row.name: row.met for row in rows},
            }
        )
    )


if __name__ == "__main__":
    main()
