"""Whose forecasts are timed: MIRA's released loop, Chronos-2's architecture, and ours.

Each is a process of its own with one thread, which `forecast_speed.py` starts with a job and asks
for a number of calls at a time:

    python forecast_speed_peers.py '{"what": "chronos", "sizes": [256, 32, 1024, 4, 8]}'

Peers run it by interpreters of environments without `tsfm`, hence the imports inside functions.
Weights are random, since time does not depend on them.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from tsfm.models.forecast_data import ForecastContext, ForecastQueries
    from tsfm.models.forecaster import ForecasterConfig

N_SERIES, N_POINTS, N_QUERIES = 4, 448, 64
N_VARIABLES = 36  # of PhysioNet 2012
ORIGIN = 1.7e9
PATCH = 16
LEVELS = (0.01, *(round(0.05 * i, 2) for i in range(1, 20)), 0.99)  # Chronos-2's 21
# A count of parameters and a work to time.
Served = tuple[int, Callable[[], Any]]


def serve_ours(job: dict[str, Any]) -> Served:
    from tsfm.models.forecaster import ForecasterModel

    model = ForecasterModel(grown(**job["grown"])).eval()
    context, queries = irregular(N_SERIES, N_POINTS)
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
    """One vital sign and one forecast at each call, the model as benchmarks/p12_training has it."""
    from tsfm.forecasting.stream import ForecastStream
    from tsfm.models.forecaster import ForecasterConfig, ForecasterModel

    model = ForecasterModel(ForecasterConfig(n_variables=N_VARIABLES)).eval()
    stream = ForecastStream(model, N_VARIABLES)
    n_before = job["points_before"]
    values, hours = irregular_rows(1, n_before + job["updates"] + 10)
    arriving = iter(zip(hours[0].tolist(), values[0].tolist(), strict=True))

    def take(variable: int) -> float:
        hour, value = next(arriving)
        seconds = ORIGIN + 360.0 * hour  # ten points an hour, of all variables
        stream.update(variable, seconds, value)
        return seconds

    for i in range(n_before):
        take(i % N_VARIABLES)

    def update_and_forecast() -> Any:
        return stream.forecast([take(0) + 3600.0], [0]).quantiles_in_units()

    return parameters_of(model), update_and_forecast


def serve(job: dict[str, Any]) -> None:
    """Answer each line of input, a number of calls, by a line of their seconds.

    Seconds are those of the processor. With one thread they are the clock's, but for what else the
    machine does meanwhile, which would meet a loop of many seconds more than a call of a few
    milliseconds.
    """
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
                started = time.process_time()
                work()
                seconds.append(time.process_time() - started)
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
        started = time.process_time()
        model(*large)
        seconds.append(time.process_time() - started)
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


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
