"""What a forecast costs, against the peers that it is to beat, at equal counts of parameters.

4 irregular series of 448 points are asked for 64 times each; weights are random, since time does
not depend on them. Every contestant is a process of its own with one thread, and they take turns:

* MIRA's released code (`sktime.libs.mira`): its autoregressive loop over the batch, one call a
  time asked for. `released_forecast`, our rendering of that loop, is timed beside it.
* Chronos-2's architecture (`chronos-forecasting`): one forward pass, 28 patches of 16 points in and
  4 out. It reads a regular grid and knows no times.
* Ours: `forecaster-zero`, encode and answer, grown to the peer's count in two ways. `wide` is wider
  throughout; `experts` has the released width and more experts in its query layers, of which a
  query uses two, so that its count says little of its work. MIRA's count is of that kind too.

Three more figures: one `ForecastStream.update` and forecast of one variable, of 41, after 300
points; and how time and peak memory of encode and answer grow with one series' length, as the
exponent of a power of the length.

    python benchmarks/forecast_speed.py              some minutes
    python benchmarks/forecast_speed.py --published  peers of 113 and 119 million; half an hour
    python benchmarks/forecast_speed.py --quick      tiny sizes, to see that it runs

Peers want versions of other libraries that do not go together, so TSFM_MIRA_PYTHON and
TSFM_CHRONOS_PYTHON name interpreters of environments of their own; a peer without one is skipped:

    mira-venv/bin/pip install "sktime==1.2.0" "transformers==4.40.1" torchdiffeq torch
    chronos-venv/bin/pip install "chronos-forecasting==2.3.2"

They run this file too (`--serve`), hence the imports inside its functions. The last line is one
JSON object, null where nothing was measured.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from measure import Row

    from tsfm.models.forecast_data import ForecastContext, ForecastQueries
    from tsfm.models.forecaster import ForecasterConfig

N_SERIES, N_POINTS, N_QUERIES = 4, 448, 64
ORIGIN = 1.7e9
MOST_OFF = 0.1  # share by which counts of parameters may differ
PATCH = 16
LEVELS = (0.01, *(round(0.05 * i, 2) for i in range(1, 20)), 0.99)  # Chronos-2's 21
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
# As `tsfm.kernels.heap` has it: freed memory stays, for every contestant.
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


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
        updates: Points that the stream takes, each with a forecast.
        lengths: Lengths of the one series.
        fitted_from: Shortest length that the exponent looks at: below it fixed costs rule.
    """

    mira: tuple[int, int, int, int] = (128, 512, 3, 4)
    chronos: tuple[int, int, int, int, int] = (256, 32, 1024, 4, 8)
    expert_width: int = 64
    rounds: int = 7
    loop_rounds: int = 5
    runs: int = 5
    updates: int = 200
    lengths: tuple[int, ...] = (1_000, 3_000, 10_000, 30_000, 100_000)
    fitted_from: int = 3_000


QUICK = Sizes(
    mira=(32, 64, 1, 2), chronos=(32, 8, 64, 1, 4), expert_width=16, rounds=1, loop_rounds=1,
    runs=1, updates=5, lengths=(500, 2_000), fitted_from=500,
)  # fmt: skip
PUBLISHED = Sizes(
    mira=(384, 1536, 12, 12), chronos=(768, 64, 3072, 12, 12), expert_width=256, loop_rounds=1
)


# Contestants, each in a process of its own: a count of parameters and a work to time.
Served = tuple[int, Callable[[], Any]]


def serve_ours(job: dict[str, Any]) -> Served:
    from tsfm.models.forecaster import ForecasterModel

    model = ForecasterModel(grown(**job["grown"])).eval()
    context, queries = irregular(job["n_series"], job["n_points"])
    return parameters_of(model), lambda: model(context, queries).quantiles_in_units()


def serve_mira(job: dict[str, Any]) -> Served:
    peer: Any = importlib.import_module("sktime.libs.mira")
    model = peer.MIRAForPrediction(peer.MIRAConfig(**mira_config(job["sizes"]))).eval()
    values, hours = irregular_rows(N_SERIES, N_POINTS + N_QUERIES)

    def loop(n_queries: int = N_QUERIES) -> Any:
        n = N_POINTS + n_queries
        return peer.mira_predict_autoregressive_norm(
            model, values[:, :n], hours[:, :n], N_POINTS, n_queries, 0.0, 1.0
        )

    loop(2)
    return parameters_of(model), loop


def serve_released(job: dict[str, Any]) -> Served:
    from tsfm.models.mira_released import ReleasedMira, ReleasedMiraConfig, released_forecast

    model = ReleasedMira(ReleasedMiraConfig(**mira_config(job["sizes"]))).eval()
    values, hours = irregular_rows(N_SERIES, N_POINTS + N_QUERIES)
    given, asked = hours.split((N_POINTS, N_QUERIES), dim=1)
    known = values[:, :N_POINTS]
    released_forecast(model, known, given, asked[:, :2])
    return parameters_of(model), lambda: released_forecast(model, known, given, asked)


def serve_chronos(job: dict[str, Any]) -> Served:
    peer: Any = importlib.import_module("chronos.chronos2")
    width, head, inner, layers, heads = job["sizes"]
    form = {
        "context_length": 8192, "output_patch_size": PATCH, "input_patch_size": PATCH,
        "input_patch_stride": PATCH, "quantiles": list(LEVELS), "use_reg_token": True,
        "use_arcsinh": True, "max_output_patches": 64, "time_encoding_scale": 8192,
    }  # fmt: skip
    config = peer.Chronos2CoreConfig(
        d_model=width, d_kv=head, d_ff=inner, num_layers=layers, num_heads=heads, reg_token_id=1,
        chronos_config=form,
    )  # fmt: skip
    model = peer.Chronos2Model(config).eval()
    values, _ = irregular_rows(N_SERIES, N_POINTS)
    n_patches = N_QUERIES // PATCH
    return parameters_of(model), lambda: model(context=values, num_output_patches=n_patches)


def serve_stream(job: dict[str, Any]) -> Served:
    """One point and one forecast at each call."""
    from tsfm.forecasting.stream import ForecastStream
    from tsfm.models.forecaster import ForecasterConfig, ForecasterModel

    model = ForecasterModel(ForecasterConfig(n_variables=41)).eval()
    stream = ForecastStream(model, 41)
    values, hours = irregular_rows(1, 300 + job["updates"] + 10)
    arriving = iter(zip(hours[0].tolist(), values[0].tolist(), strict=True))

    def take(variable: int) -> float:
        hour, value = next(arriving)
        seconds = ORIGIN + 360.0 * hour  # ten points an hour, of all variables
        stream.update(variable, seconds, value)
        return seconds

    for i in range(300):
        take(i % 41)

    def update_and_forecast() -> Any:
        return stream.forecast([take(0) + 3600.0], [0]).quantiles_in_units()

    return parameters_of(model), update_and_forecast


def serve(job: dict[str, Any]) -> None:
    """Answer each line of input, a number of calls, by a line of their seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    makers = {
        "ours": serve_ours, "mira": serve_mira, "released": serve_released,
        "chronos": serve_chronos, "stream": serve_stream,
    }  # fmt: skip
    # What libraries print goes to the other stream: this one is the protocol's.
    sys.stdout, out = sys.stderr, sys.stdout
    with torch.inference_mode():
        if job["what"] == "growth":
            print(json.dumps(cost_of_length(job["n_points"])), file=out, flush=True)
            return
        n_parameters, work = makers[job["what"]](job)
        print(json.dumps({"parameters": n_parameters}), file=out, flush=True)
        for line in sys.stdin:
            runs = int(line)
            if runs > 1:  # caches are cold after the others' turns
                work()
            seconds = []
            for _ in range(runs):
                started = time.perf_counter()
                work()
                seconds.append(time.perf_counter() - started)
            print(json.dumps(seconds), file=out, flush=True)


def cost_of_length(n_points: int) -> dict[str, float]:
    """Seconds, and MiB at the peak beyond model and points, of one series' encode and answer."""
    from train_forecaster_zero import ZERO

    from tsfm.models.forecaster import ForecasterModel

    model = ForecasterModel(ZERO).eval()
    small, large = irregular(1, 50), irregular(1, n_points)
    model(*small)  # what is compiled or laid out once is not the length's
    ctypes.CDLL(None).malloc_trim(0)
    before = memory_mib("VmRSS")
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the peak starts anew
    model(*large)
    peak = memory_mib("VmHWM") - before
    seconds = []
    for _ in range(3 if n_points > 20_000 else 7):
        started = time.perf_counter()
        model(*large)
        seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds), "mib": peak}


def memory_mib(name: str) -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(name))


def parameters_of(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def mira_config(sizes: tuple[int, int, int, int]) -> dict[str, Any]:
    width, inner, layers, heads = sizes
    return {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_experts": 8, "num_experts_per_tok": 2,
    }  # fmt: skip


# What is asked, and of which of ours.


def irregular_rows(n_rows: int, n_points: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of random walks and their times in hours, gaps of 0.1 to 1.9."""
    generator = torch.Generator().manual_seed(0)
    hours = (0.1 + 1.8 * torch.rand(n_rows, n_points, generator=generator)).cumsum(1)
    values = torch.randn(n_rows, n_points, generator=generator).cumsum(1)
    return (values - values.mean(1, keepdim=True)) / values.std(1, keepdim=True), hours


def irregular(n_series: int, n_points: int) -> tuple[ForecastContext, ForecastQueries]:
    from tsfm.models.forecast_data import ForecastContext, ForecastQueries

    values, hours = irregular_rows(n_series, n_points)
    seconds = ORIGIN + 3600 * hours.double()
    now = seconds[:, -1].clone()
    ahead = 3600 * torch.arange(1, N_QUERIES + 1, dtype=torch.float64)
    entities = torch.arange(n_series + 1)
    context = ForecastContext(
        seconds.flatten(), values.flatten(), n_points * entities,
        torch.zeros(n_series, dtype=torch.int64), entities, now,
    )  # fmt: skip
    return context, ForecastQueries((now[:, None] + ahead).flatten(), N_QUERIES * entities)


def grown(width: int, experts: int) -> ForecasterConfig:
    from train_forecaster_zero import ZERO

    return replace(ZERO, d_model=width, query_experts=experts)


def count(width: int, experts: int) -> int:
    from tsfm.models.forecaster import ForecasterModel

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
    from train_forecaster_zero import ZERO

    from tsfm.errors import InputError

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


# The turns.


class Contestant:
    """A process that serves one job; closed with the block."""

    def __init__(self, job: dict[str, Any], interpreter: str = sys.executable) -> None:
        self.what = job["what"]
        self.process = subprocess.Popen(
            [interpreter, __file__, "--serve", json.dumps(job)],
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
        asked = {"what": "ours", "n_series": N_SERIES, "n_points": N_POINTS}
        forms = {"wide": matched(n), "experts": matched(n, sizes.expert_width)}
        jobs = {name: {**asked, "grown": form} for name, form in forms.items()}
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
    with Contestant({"what": "stream", "updates": sizes.updates}) as contestant:
        contestant.read()
        return 1e3 * statistics.median(contestant.seconds(sizes.updates))


def peer_rows(peer: str, sizes: Sizes, figures: dict[str, Any]) -> list[Row]:
    from measure import Row

    variable = f"TSFM_{peer.upper()}_PYTHON"
    title, must, aim = {
        "mira": ("MIRA's released loop", 100.0, 400.0), "chronos": ("Chronos-2's form", 1.0, 3.0),
    }[peer]  # fmt: skip
    interpreter = os.environ.get(variable)
    found = None
    if interpreter is None:
        print(f"{title}: skipped, {variable} names no interpreter")
    else:
        found = figures[peer] = against(peer, interpreter, sizes)
        for name, told in found.items():
            form = f"   {told['width']} wide, {told['experts']} experts" if "width" in told else ""
            print(f"  {name:10} {told['milliseconds']:12.2f} ms {told['parameters']:>12,}{form}")
    rows = []
    for name in ("wide", "experts"):
        ratio = found and found[peer]["milliseconds"] / found[name]["milliseconds"]
        rows.append(Row(f"{title}, {name}", ratio, must, aim, True, note=f"no {variable}"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="tiny sizes, seconds")
    size.add_argument("--published", action="store_true", help="peers of their published sizes")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve is not None:
        serve(json.loads(chosen.serve))
        return
    from measure import Row, machine, show

    torch.set_num_threads(1)
    sizes = QUICK if chosen.quick else PUBLISHED if chosen.published else Sizes()
    print(f"{N_SERIES} series of {N_POINTS} points, {N_QUERIES} times each, one thread, float32")
    figures: dict[str, Any] = {}
    mira, chronos = (peer_rows(peer, sizes, figures) for peer in ("mira", "chronos"))
    update = Row("update and one forecast", update_ms(sizes), 5.0, 5.0, False, unit="ms")
    costs = growth(sizes)
    for n_points, cost in costs.items():
        print(f"  {n_points:>7,} points {1e3 * cost['seconds']:9.1f} ms {cost['mib']:9.1f} MiB")
    fitted = [n for n in sizes.lengths if n >= sizes.fitted_from]
    seconds, mib = (
        Row(f"{what}, power of length", exponent(fitted, [costs[n][key] for n in fitted]),
            1.1, 1.0, False, unit="")
        for what, key in (("time", "seconds"), ("memory", "mib"))
    )  # fmt: skip
    rows = [*mira, *chronos, update, seconds, mib]
    show(rows)
    print()
    told = {
        "machine": machine(), "quick": chosen.quick, "published": chosen.published,
        "sizes": asdict(sizes),
        "mira_ratio": mira[0].value, "mira_ratio_experts": mira[1].value,
        "chronos_ratio": chronos[0].value, "chronos_ratio_experts": chronos[1].value,
        "update_ms": update.value, "time_exponent": seconds.value, "memory_exponent": mib.value,
        "parameters": {
            peer: {name: one["parameters"] for name, one in found.items()}
            for peer, found in figures.items()
        },
        "figures": figures, "growth": costs, "met": {row.name: row.met for row in rows},
    }  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main()
