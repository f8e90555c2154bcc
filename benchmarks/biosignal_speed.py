"""How long one ECG takes: ten seconds of twelve leads at 500 Hz, on one thread.

Ours is the biosignal encoder in the form that is scored on PTB-XL (`ptbxl.py`), and in its other
forms; the peers are Net1D, which is ECGFounder's network, and those of `ecg_peers.py`. All have
random weights: time does not hang on them. Ours and Net1D read the record as it comes, at 500 Hz.
The other peers are timed at 500 Hz, and at 100 Hz as the benchmark of PTB-XL feeds them, where
the time of resampling is not counted.

Time is the processor's for this process, so that a machine shared with others does not slow a
network; with one thread and nobody else it is the time on the clock, which stands beside it. The
networks take turns, and the table shows medians.

    python benchmarks/biosignal_speed.py            half a minute
    python benchmarks/biosignal_speed.py --quick    fewer turns

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from ecg_peers import build
from measure import Row, machine_line, show
from torch import nn

from tsfm.kernels.heap import keep_freed_memory
from tsfm.models.biosignal_encoder import BiosignalConfig, BiosignalEncoder
from tsfm.signals.store import STANDARD_LEADS

FS_HZ, DURATION_S, N_LABELS = 500, 10, 5
MUST_MS, AIM_MS = 25.0, 10.0
OURS, NET1D = "ours, selective scan", "Net1D, 150 labels"
FORMS = {
    OURS: BiosignalConfig(scan="selective"),
    "ours, time-invariant scan": BiosignalConfig(),
    "ours, causal, time-invariant": BiosignalConfig(causal=True),
}


def works(signal: torch.Tensor) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Parameters of each network, and one record through it."""
    found: dict[str, tuple[int, Callable[[], Any]]] = {}

    def add(name: str, model: nn.Module, work: Callable[[nn.Module], Any]) -> None:
        model.eval()
        found[name] = sum(p.numel() for p in model.parameters()), lambda: work(model)

    for name, config in FORMS.items():
        add(
            name, BiosignalEncoder(config),
            lambda model: model(signal, fs_hz=FS_HZ, leads=STANDARD_LEADS),
        )  # fmt: skip
    add(NET1D, build("net1d", signal.shape[1], 150), lambda model: model(signal))
    slow = signal[..., ::5].contiguous()
    for kind in ("xresnet1d101", "s4", "resnet"):
        for rate, record in ((500, signal), (100, slow)):
            model = build(kind, signal.shape[1], N_LABELS)
            add(f"{kind} at {rate} Hz", model, lambda model, record=record: model(record))
    return found


def measured(
    found: dict[str, tuple[int, Callable[[], Any]]], rounds: int
) -> dict[str, tuple[float, float]]:
    """Median milliseconds of the processor and on the clock."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for turn in range(rounds + 1):
        for name, (_, work) in found.items():
            clock, processor = time.perf_counter(), time.process_time()
            work()
            spent = time.process_time() - processor, time.perf_counter() - clock
            if turn:  # the first one warms up
                times[name].append(spent)
    return {
        name: tuple(1e3 * statistics.median(row[i] for row in rows) for i in (0, 1))
        for name, rows in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    print(machine_line())
    signal = torch.randn(1, len(STANDARD_LEADS), FS_HZ * DURATION_S)
    with torch.inference_mode():
        found = works(signal)
        times = measured(found, rounds=5 if arguments.quick else 40)
    print(f"\n{'':30} {'million parameters':>20} {'ms, processor':>14} {'ms, clock':>10}")
    for name, (processor, clock) in times.items():
        print(f"{name:30} {found[name][0] / 1e6:20.2f} {processor:14.1f} {clock:10.1f}")
    ours, net1d = times[OURS][0], times[NET1D][0]
    show([
        Row("ours", ours, MUST_MS, AIM_MS, False, unit=" ms"),
        Row("Net1D takes as long as", net1d / ours, 1.0, 3.0, True),
    ])  # fmt: skip
    answer = {
        "ms_ours": round(ours, 2), "ms_net1d": round(net1d, 2), "ratio": round(net1d / ours, 2),
        "ms": {name: round(processor, 2) for name, (processor, _) in times.items()},
        "ms_clock": {name: round(clock, 2) for name, (_, clock) in times.items()},
        "parameters_ours": found[OURS][0],
    }  # fmt: skip
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
