"""What a forecast costs, against the peers that it is to beat, at equal counts of parameters.

4 irregular series of 448 points are asked for 64 times each; weights are random, since time does
not depend on them. Every contestant is a process of its own with one thread, and they take turns
(`forecast_speed_peers.py`):

* MIRA's released code (`sktime.libs.mira`): its autoregressive loop over the batch, one call a
  time asked for. `released_forecast`, our rendering of that loop, is timed beside it.
* Chronos-2's architecture (`chronos-forecasting`): one forward pass, 28 patches of 16 points in and
  4 out. It reads a regular grid and knows no times.
* Ours: `forecaster-zero`, encode and answer, grown to the peer's count in two ways. `wide` is wider
  throughout; `experts` has the released width and more experts in its query layers, of which a
  query uses two, so that its count says little of its work. MIRA's count is of that kind too.

Three more figures: one `ForecastStream.update` and forecast of one vital sign, of 36, after 500
points; and how time and peak memory of encode and answer grow with one series' length, as the
exponent of a power of the length.

    python benchmarks/forecast_speed.py              some minutes
    python benchmarks/forecast_speed.py --published  peers of 113 and 119 million; half an hour
    python benchmarks/forecast_speed.py --quick      tiny sizes, to see that it runs

Peers want versions of other libraries that do not go together, so they run by interpreters of
environments of their own, which TSFM_MIRA_PYTHON and TSFM_CHRONOS_PYTHON name, or the options; a
peer without one is not measured:

    mira-venv/bin/pip install "sktime==1.2.0" "transformers==4.40.1" torchdiffeq torch
    chronos-venv/bin/pip install "chronos-forecasting>=2" torch

Seconds are those of the processor (see `serve`). The last line is one JSON object, null where
nothing was measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from forecast_speed_peers import N_POINTS, N_QUERIES, N_SERIES, N_VARIABLES, grown, parameters_of
from measure import Row, machine, show
from train_forecaster_zero import ZERO

from tsfm.errors import InputError
from tsfm.models.forecaster import ForecasterModel

MOST_OFF = 0.1  # share by which counts of parameters may differ
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
# As `tsfm.kernels.heap` has it: freed memory stays, for every contestant.
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
SERVER = str(Path(__file__).with_name("forecast_speed_peers.py"))


@dataclass(frozen=True)
class Sizes:
    """Sizes of the peers and of what is asked.

    Attributes:
        mira: Width, inner width, layers and heads; 8 experts, 2 a token.
        chronos: Width, width of a head, inner width, layers and heads.
        expert_width: Width of ours where it grows by experts.
        rounds: Turns of each contestant.
        loop_rounds: Turns against MIRA's loop, which takes seconds.
        runs: Calls of a fast contestant in each of its turns.
        points_before: Points that the stream has read.
        updates: Further points that it takes, each with a forecast.
        lengths: Lengths of the one series.
        fitted_from: Shortest length that the exponent looks at: below it fixed costs rule.
    """

    mira: tuple[int, int, int, int] = (128, 512, 3, 4)
    chronos: tuple[int, int, int, int, int] = (256, 32, 1024, 4, 8)
    expert_width: int = 64
    rounds: int = 7
    loop_rounds: int = 5
    runs: int = 5
    points_before: int = 500
    updates: int = 200
    lengths: tuple[int, ...] = (1_000, 3_000, 10_000, 30_000, 100_000)
    fitted_from: int = 3_000


QUICK = Sizes(
    mira=(32, 96, 1, 2), chronos=(40, 8, 80, 1, 4), expert_width=16, rounds=1, loop_rounds=1,
    runs=1, points_before=40, updates=5, lengths=(500, 2_000), fitted_from=500,
)  # fmt: skip
PUBLISHED = Sizes(
    mira=(384, 1536, 12, 12), chronos=(768, 64, 3072, 12, 12), expert_width=256, loop_rounds=1
)


def count(width: int, experts: int) -> int:
    with torch.device("meta"):
        return parameters_of(ForecasterModel(grown(width, experts)))


def matched(n_parameters: int, expert_width: int | None = None) -> dict[str, int]:
    """Width and experts of the form of ours that comes nearest to a count of parameters.

    Args:
        n_parameters: The peer's.
        expert_width: Grow by experts at this width; None: by width, with the experts as released.

    Raises:
        InputError: Not within a tenth.
    """

    def form(step: int) -> dict[str, int]:
        if expert_width is None:  # heads are halved for the turning: width in steps of 8
            return {"width": 2 * ZERO.n_heads * step, "experts": ZERO.query_experts}
        return {"width": expert_width, "experts": 1 + step}

    low, high = 1, 2
    while count(**form(high)) < n_parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(**form(middle)) < n_parameters else (low, middle)
    best = min((form(low), form(high)), key=lambda one: abs(count(**one) - n_parameters))
    if abs(count(**best) / n_parameters - 1) > MOST_OFF:
        raise InputError(
            f"no form has nearly {n_parameters} parameters", code="no_equal_count",
            place="matched", remedy="Choose another size of the peer or another width.",
        )  # fmt: skip
    return best


class Contestant:
    """A process that serves one job; closed with the block."""

    def __init__(self, job: dict[str, Any], interpreter: str = sys.executable) -> None:
        self.what = job["what"]
        self.process = subprocess.Popen(
            [interpreter, SERVER, json.dumps(job)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **THREADS, **({} if job["what"] == "growth" else KEPT)},
        )  # fmt: skip

    def read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.what} has ended with {self.process.wait()}, see above")
        return json.loads(line)

    def seconds(self, runs: int) -> list[float]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{runs}\n")
        self.process.stdin.flush()
        return self.read()

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def take_turns(
    contestants: dict[str, Contestant], rounds: int, runs: dict[str, int]
) -> dict[str, float]:
    """Median seconds of each, over rounds of turns."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            times[name].append(statistics.median(contestant.seconds(runs[name])))
    return {name: statistics.median(found) for name, found in times.items()}


def against(peer: str, interpreter: str, sizes: Sizes) -> dict[str, dict[str, float]]:
    """Seconds and parameters of a peer and of ours, grown to its count in both ways."""
    job = {"what": peer, "sizes": getattr(sizes, peer)}
    slow = {"mira", "released"}
    with Contestant(job, interpreter) as first:
        n = first.read()["parameters"]
        forms = {"wide": matched(n), "experts": matched(n, sizes.expert_width)}
        jobs = {name: {"what": "ours", "grown": form} for name, form in forms.items()}
        if peer == "mira":
            jobs["released"] = {**job, "what": "released"}
        found: dict[str, dict[str, float]] = {peer: {"parameters": n}}
        contestants = {peer: first}
        try:
            for name, of_ours in jobs.items():
                contestants[name] = Contestant(of_ours)
                found[name] = {**contestants[name].read(), **forms.get(name, {})}
            rounds = sizes.loop_rounds if peer == "mira" else sizes.rounds
            runs = {name: 1 if name in slow else sizes.runs for name in contestants}
            for name, seconds in take_turns(contestants, rounds, runs).items():
                found[name]["milliseconds"] = round(1e3 * seconds, 3)
        finally:
            for contestant in contestants.values():
                contestant.__exit__()
    return found


def exponent(lengths: list[int], costs: list[float]) -> float:
    """The power of the length by which a cost grows: slope of logarithms, by least squares."""
    x, y = ([math.log(number) for number in numbers] for numbers in (lengths, costs))
    return statistics.linear_regression(x, y).slope


def growth(sizes: Sizes) -> dict[int, dict[str, float]]:
    """Seconds and MiB at each length."""
    found = {}
    for n_points in sizes.lengths:
        with Contestant({"what": "growth", "n_points": n_points}) as contestant:
            found[n_points] = contestant.read()
    return found


def update_ms(sizes: Sizes) -> float:
    """Milliseconds of one point taken and one forecast given."""
    job = {"what": "stream", "points_before": sizes.points_before, "updates": sizes.updates}
    with Contestant(job) as contestant:
        contestant.read()
        return 1e3 * statistics.median(contestant.seconds(sizes.updates))


def peer_rows(
    peer: str, interpreter: str | None, sizes: Sizes, figures: dict[str, Any]
) -> list[Row]:
    """Ratios to one peer; what they rest on is printed and put into `figures`."""
    title, must, aim = {
        "mira": ("MIRA's released loop", 100.0, 400.0), "chronos": ("Chronos-2's form", 1.0, 3.0),
    }[peer]  # fmt: skip
    found = None
    if interpreter is None:
        print(f"  {title}: no interpreter given, not measured")
    else:
        found = figures[peer] = against(peer, interpreter, sizes)
        for name, told in found.items():
            form = f"   {told['width']} wide, {told['experts']} experts" if "width" in told else ""
            print(f"  {name:10} {told['milliseconds']:12.2f} ms {told['parameters']:>12,}{form}")
    rows = []
    for name in ("wide", "experts"):
        ratio = None
        if found is not None:
            ratio = found[peer]["milliseconds"] / found[name]["milliseconds"]
        rows.append(Row(f"against {title}, ours {name}", ratio, must, aim, True))
    return rows


def growth_rows(sizes: Sizes, costs: dict[int, dict[str, float]]) -> list[Row]:
    """Exponents of time and memory."""
    for n_points, cost in costs.items():
        print(f"  {n_points:>7,} points {1e3 * cost['seconds']:9.1f} ms {cost['mib']:9.1f} MiB")
    fitted = [n for n in sizes.lengths if n >= sizes.fitted_from]
    return [
        Row(f"{what} of encode and answer, power of length",
            exponent(fitted, [costs[n][key] for n in fitted]), 1.1, 1.0, False, unit="")
        for what, key in (("time", "seconds"), ("memory", "mib"))
    ]  # fmt: skip


def main() -> None:
    """Measure, print the table and the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="tiny sizes, seconds")
    size.add_argument("--published", action="store_true", help="peers of their published sizes")
    for peer in ("mira", "chronos"):
        variable = f"TSFM_{peer.upper()}_PYTHON"
        parser.add_argument(
            f"--{peer}-python", default=os.environ.get(variable) or None,
            help=f"interpreter of an environment with the peer (default: {variable})",
        )  # fmt: skip
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    sizes = QUICK if chosen.quick else PUBLISHED if chosen.published else Sizes()
    print(f"{N_SERIES} series of {N_POINTS} points, {N_QUERIES} times each, one thread, float32")
    figures: dict[str, Any] = {}
    mira = peer_rows("mira", chosen.mira_python, sizes, figures)
    chronos = peer_rows("chronos", chosen.chronos_python, sizes, figures)
    name = f"update and a forecast of one of {N_VARIABLES} variables"
    update = Row(name, update_ms(sizes), 5.0, 5.0, False, unit="ms")
    costs = growth(sizes)
    seconds, mib = growth_rows(sizes, costs)
    rows = [*mira, *chronos, update, seconds, mib]
    show(rows)
    print()
    told = {
        "machine": machine(), "quick": chosen.quick, "published": chosen.published,
        "sizes": asdict(sizes),
        "mira_ratio": mira[0].value, "mira_ratio_experts": mira[1].value,
        "chronos_ratio": chronos[0].value, "chronos_ratio_experts": chronos[1].value,
        "update_ms": update.value, "time_exponent": seconds.value, "memory_exponent": mib.value,
        "figures": figures, "growth": costs, "met": {row.name: row.met for row in rows},
    }  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main()
