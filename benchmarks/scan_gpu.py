"""How close the CUDA kernels come to what an H100 can do, and to mamba-ssm's.

The floor is that of the arithmetic: each of the B D L N steps needs one exponential, and an H100
does 16 a clock on each of its 132 multiprocessors. For (8, 1536, 2048, 16) that makes 110
microseconds forward, and 195 backward, where the multiplications weigh more. Without a GPU every
row reads 'not measured'.

    python benchmarks/scan_gpu.py            a minute on a GPU
    python benchmarks/scan_gpu.py --quick    small shapes
    python benchmarks/scan_gpu.py --test FILE
                                             also the errors on the tensors of a .safetensors file

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import Row, machine, show
from torch import Tensor

from tsfm.kernels.scan_inputs import ScanForm, ScanInputs
from tsfm.kernels.selective_scan import selective_scan
from tsfm.kernels.state_update import state_update

FORWARD_FLOOR_MS = 0.110
BACKWARD_FLOOR_MS = 0.195
FULL = (8, 2048, 1536, 16)
SMALL = (2, 64, 64, 16)

ROWS = (
    Row("forward over its floor", None, 2.0, 1.5, False),
    Row("backward over its floor", None, 2.5, 1.8, False),
    Row("forward, against mamba-ssm", None, 1.0, 1.3, True),
    Row("backward, against mamba-ssm", None, 1.3, 2.0, True),
    Row("forward of one long sequence, against mamba-ssm", None, 3.0, 5.0, True),
    Row("packed at half fill, against mamba-ssm padded", None, 1.8, 2.0, True),
    Row("decoding, share of the bandwidth of a copy", None, 0.8, 0.9, True),
    Row("first use, seconds", None, 3.0, 1.0, False, unit=" s"),
    Row("first use from the cache, seconds", None, 0.1, 0.05, False, unit=" s"),
    Row("largest relative error, forward", None, 5e-7, 2e-7, False, unit=""),
)


def median_ms(work: Callable[[], Any], runs: int = 20) -> float:
    for _ in range(5):
        work()
    times = []
    for _ in range(runs):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def make_inputs(
    batch: int, length: int, width: int, n_state: int, dtype: torch.dtype
) -> ScanInputs:
    """One packed batch of sequences of one length."""
    rows = batch * length

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda")

    return ScanInputs(
        u=normal(rows, width).to(dtype),
        delta=torch.exp(-2.3 - 4.6 * torch.rand(rows, width, device="cuda")).to(dtype),
        A=-torch.arange(1.0, n_state + 1, device="cuda").repeat(width, 1),
        B=normal(rows, n_state).to(dtype),
        C=normal(rows, n_state).to(dtype),
        D=None,
        z=None,
        gap=None,
        gap_rate=None,
        delta_bias=None,
        initial_state=None,
        cu_seqlens=torch.arange(batch + 1, device="cuda", dtype=torch.int32) * length,
    )


def times_of(backend: Any, inputs: ScanInputs) -> tuple[float, float]:
    """Milliseconds of the forward pass and of the backward pass."""
    form = ScanForm(False, "euler", False)
    dy = torch.randn_like(inputs.u)
    needs = tuple(t is not None for t in inputs[:-1])
    forward = median_ms(lambda: backend.forward(inputs, form, final=False, checkpoints=False))
    _, _, saved = backend.forward(inputs, form, final=False, checkpoints=True)
    backward = median_ms(lambda: backend.backward(inputs, form, saved, dy, None, needs))
    return forward, backward


def measure(quick: bool) -> dict[str, float]:
    """Figures by the name of their row; what can't be measured here is left out."""
    from tsfm.kernels import cuda_scan, mamba_ssm_scan

    shape = SMALL if quick else FULL
    inputs = make_inputs(*shape, torch.bfloat16)
    forward, backward = times_of(cuda_scan, inputs)
    found = {
        "forward over its floor": forward / FORWARD_FLOOR_MS,
        "backward over its floor": backward / BACKWARD_FLOOR_MS,
    }
    plain = ScanForm(False, "euler", False)
    if mamba_ssm_scan.serves(inputs, plain) is None:
        theirs = times_of(mamba_ssm_scan, inputs)
        found["forward, against mamba-ssm"] = theirs[0] / forward
        found["backward, against mamba-ssm"] = theirs[1] / backward
        long = make_inputs(1, 500 if quick else 50_000, 256, 16, torch.bfloat16)
        found["forward of one long sequence, against mamba-ssm"] = (
            times_of(mamba_ssm_scan, long)[0] / times_of(cuda_scan, long)[0]
        )
        batch, length, width, n_state = shape
        half = make_inputs(batch, length // 2, width, n_state, torch.bfloat16)
        cut = torch.linspace(0, batch * length // 2, batch + 1, device="cuda").int()
        cut[1:-1] += torch.randint(-length // 8, length // 8, (batch - 1,), device="cuda").int()
        packed = times_of(cuda_scan, half._replace(cu_seqlens=cut))[0]
        found["packed at half fill, against mamba-ssm padded"] = theirs[0] / packed
    found["decoding, share of the bandwidth of a copy"] = decoding(64 if quick else 4096, shape[2])
    found["first use, seconds"], found["first use from the cache, seconds"] = first_uses()
    found["largest relative error, forward"] = error_of(make_inputs(*SMALL, torch.float32))
    return found


def decoding(rows: int, width: int) -> float:
    state = torch.zeros(rows, width, 16, device="cuda")
    given = {
        "u": torch.randn(rows, width, device="cuda"),
        "delta": torch.rand(rows, width, device="cuda"),
        "A": -torch.arange(1.0, 17, device="cuda").repeat(width, 1),
        "B": torch.randn(rows, 16, device="cuda"),
        "C": torch.randn(rows, 16, device="cuda"),
    }
    copy = torch.empty_like(state)
    with torch.no_grad():
        return median_ms(lambda: copy.copy_(state)) / median_ms(
            lambda: state_update(state, **given)
        )


def first_uses() -> tuple[float, float]:
    """Seconds until the kernels are ready, in an empty cache and then in the filled one."""
    code = (
        "import time, torch; from tsfm.kernels import nvrtc; torch.zeros(1, device='cuda')\n"
        "start = time.perf_counter()\n"
        "[nvrtc.launcher(n, torch.device('cuda')) for n in "
        "('selective_scan', 'state_update', 'causal_conv')]\n"
        "print(time.perf_counter() - start)"
    )
    with tempfile.TemporaryDirectory() as cache:
        seconds = [
            float(
                subprocess.run(
                    ["env", f"XDG_CACHE_HOME={cache}", sys.executable, "-c", code],
                    capture_output=True, text=True, check=True,
                ).stdout
            )
            for _ in range(2)
        ]  # fmt: skip
    return seconds[0], seconds[1]


def error_of(inputs: ScanInputs) -> float:
    arguments = {
        name: tensor
        for name, tensor in inputs._asdict().items()
        if tensor is not None
    }  # fmt: skip
    exact = {n: t if n == "cu_seqlens" else t.double().cpu() for n, t in arguments.items()}
    exact["cu_seqlens"] = exact["cu_seqlens"].cpu()
    expected = selective_scan(**exact, backend="torch")
    found = selective_scan(**arguments).double().cpu()
    return float((found - expected).abs().max() / expected.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small shapes, seconds")
    parser.add_argument("--test", type=Path, help="a .safetensors file of packed scan inputs")
    arguments = parser.parse_args()
    started = time.perf_counter()
    torch.manual_seed(0)
    found: dict[str, float] = {}
    if torch.cuda.is_available():
        found = measure(arguments.quick)
    rows = [replace(row, value=found.get(row.name)) for row in ROWS]
    if arguments.test is not None and torch.cuda.is_available():
        from safetensors.torch import load_file

        given = {n: t.cuda() for n, t in load_file(arguments.test).items()}
        none = dict.fromkeys(ScanInputs._fields)
        given.setdefault("cu_seqlens", torch.tensor([0, given["u"].shape[0]]).int().cuda())
        name = f"largest relative error, forward, {arguments.test.name}"
        rows.append(
            Row(name, error_of(ScanInputs(**{**none, **given})), 5e-7, 2e-7, False, unit="")
        )
    show(rows)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    print()
    print(
        json.dumps(
            {
                "machine": {**machine(), "gpu": card},
                "quick": arguments.quick,
                "seconds": round(time.perf_counter() - started, 1),
                "rows": {row.name: row.value for row in rows},
            }
        )
    )


if __name__ == "__main__":
    main()
