"""How fast the scan kernels are, and how exact: against mambapy, transformers and a plain loop.

Everything is measured in one process, on the same tensors, as medians after a warm-up. The peers
make large temporaries; with glibc's defaults each of these is mapped and unmapped at every call,
which costs more than the arithmetic. So the script starts itself again with an allocator that keeps
its memory: that is fair to the peers, and changes ours little. Ratios are what counts.

    python benchmarks/scan.py                some three minutes on two cores
    python benchmarks/scan.py --quick        small shapes, to see that it runs
    python benchmarks/scan.py --test FILE    errors also on the tensors of a .safetensors file (u,
                                             delta, A, B, C, named as the arguments of the scan)

The last line is one JSON object. Peers: mambapy 1.2 and transformers 5 (`pip install -e
'.[dev]'`); rows whose peer is missing say so.
"""

from __future__ import annotations

import os
import sys

# Before anything allocates.
_ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "TRANSFORMERS_OFFLINE": "1",
}
if __name__ == "__main__" and any(os.environ.get(k) != v for k, v in _ALLOCATOR.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_ALLOCATOR})

import argparse
import ctypes
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import Row, machine, medians_ms, show
from scan_peers import mambapy_scan, plain_loop, plain_step, transformers_scan
from torch import Tensor

from tsfm.kernels import native_library
from tsfm.kernels.causal_conv import causal_conv1d
from tsfm.kernels.selective_scan import selective_scan
from tsfm.kernels.state_update import state_update
from tsfm.models.mamba import MambaBlock, MambaConfig


@dataclass(frozen=True)
class Sizes:
    """Shapes of one run: the scan is (1, n_channels, n_tokens, n_state)."""

    n_channels: int = 512
    n_tokens: int = 1024
    n_state: int = 16
    decode_rows: int = 64
    decode_channels: int = 1536
    d_model: int = 256
    block_tokens: int = 512
    runs: int = 25


QUICK = Sizes(n_channels=48, n_tokens=96, decode_channels=64, d_model=32, block_tokens=64, runs=5)


def make_inputs(sizes: Sizes, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Inputs as in a Mamba block at its start: steps log-uniform in 0.001 .. 0.1, A = -(1 .. N)."""
    generator = torch.Generator().manual_seed(0)
    rows = (1, sizes.n_tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    step = torch.exp(-2.3 - 4.6 * torch.rand(*rows, sizes.n_channels, generator=generator)).to(
        dtype
    )
    rates = torch.arange(1, sizes.n_state + 1).to(dtype)
    return {
        "u": normal(*rows, sizes.n_channels),
        "delta": step,
        "A": -rates.repeat(sizes.n_channels, 1),
        "B": normal(*rows, sizes.n_state),
        "C": normal(*rows, sizes.n_state),
    }


def with_gradients(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}


def train(scan: Callable[..., Tensor], inputs: dict[str, Tensor], dy: Tensor) -> None:
    for tensor in inputs.values():
        tensor.grad = None
    scan(**inputs).backward(dy)


def scan_rows(sizes: Sizes) -> tuple[list[Row], dict[str, float]]:
    inputs = make_inputs(sizes)
    turned = {
        name: t if name == "A" else t.transpose(1, 2).contiguous() for name, t in inputs.items()
    }
    dy = torch.randn(1, sizes.n_tokens, sizes.n_channels)
    backends = ["native", "numba"] if native_library.available() else ["numba"]
    forward: dict[str, Callable[[], Any]] = {
        f"{backend} forward": partial(selective_scan, **inputs, backend=backend)
        for backend in backends
    }
    forward |= {
        "mambapy forward": partial(mambapy_scan, **inputs),
        "transformers forward": partial(transformers_scan, **turned),
        "loop forward": partial(plain_loop, **inputs),
    }
    leaves = with_gradients(inputs)
    trained = {
        f"{backend} forward and backward": partial(
            train, partial(selective_scan, backend=backend), leaves, dy
        )
        for backend in backends
    }
    trained["mambapy forward and backward"] = partial(train, mambapy_scan, leaves, dy)
    with torch.no_grad():
        milliseconds = medians_ms(forward, sizes.runs)
    milliseconds |= medians_ms(trained, sizes.runs)
    ours = backends[0]
    at = milliseconds.get
    numba = at("numba forward"), at("numba forward and backward")

    def ratio(above: str, below: str) -> float | None:
        one, other = at(above), at(below)
        return None if not one or not other else one / other

    rows = [
        Row("forward, against mambapy", ratio("mambapy forward", f"{ours} forward"), 15, 27, True),
        Row(
            "forward, against transformers' loop",
            ratio("transformers forward", f"{ours} forward"), 30, 54, True,
        ),
        Row(
            "forward and backward, against mambapy",
            ratio("mambapy forward and backward", f"{ours} forward and backward"), 12, 22, True,
        ),
        Row(
            "forward and backward over forward",
            ratio(f"{ours} forward and backward", f"{ours} forward"), 5, 3.5, False,
        ),
    ]  # fmt: skip
    if ours == "native":
        rows += [
            Row("numba, forward over C++", numba[0] / at("native forward", 1), 4, 1.7, False),
            Row(
                "numba, forward and backward over C++",
                numba[1] / at("native forward and backward", 1), 6, 3, False,
            ),
        ]  # fmt: skip
    return rows, milliseconds


def form_rows(sizes: Sizes) -> list[Row]:
    inputs = make_inputs(sizes)
    extra = {
        "z": torch.randn(1, sizes.n_tokens, sizes.n_channels),
        "D": torch.randn(sizes.n_channels),
        "delta_bias": torch.randn(sizes.n_channels),
    }
    packed = {n: t if n == "A" else t[0] for n, t in inputs.items()}
    lengths = (
        torch.rand(100, generator=torch.Generator().manual_seed(1)).exponential_().clamp(min=0.02)
    )
    borders = torch.cat([torch.zeros(1), torch.cumsum(lengths, 0)])
    borders = (borders / borders[-1] * sizes.n_tokens).round().to(torch.int32).unique()
    with torch.no_grad():
        forms = {
            "bare": lambda: selective_scan(**inputs),
            "zoh": lambda: selective_scan(**inputs, input="zoh"),
            "fused": lambda: selective_scan(**inputs, **extra, delta_softplus=True),
            "packed": lambda: selective_scan(**packed, cu_seqlens=borders),
        }
        times = medians_ms(forms, 3 * sizes.runs)
    bare = times["bare"]
    return [
        Row("zoh over euler", times["zoh"] / bare, 1.45, 1.25, False),
        Row("softplus, skip and gate over the bare scan", times["fused"] / bare, 1.4, 1.25, False),
        Row(
            f"{len(borders) - 1} packed patients over one sequence of their length",
            times["packed"] / bare, 1.15, 1.05, False,
        ),
    ]  # fmt: skip


def decode_row(sizes: Sizes) -> Row:
    rows, width, n_state = sizes.decode_rows, sizes.decode_channels, sizes.n_state
    state = torch.zeros(rows, width, n_state)
    given = {
        "u": torch.randn(rows, width),
        "delta": torch.rand(rows, width) * 0.1,
        "A": -torch.arange(1.0, n_state + 1).repeat(width, 1),
        "B": torch.randn(rows, n_state),
        "C": torch.randn(rows, n_state),
        "D": torch.randn(width),
        "z": torch.randn(rows, width),
    }
    with torch.no_grad():
        times = medians_ms(
            {
                "ours": partial(state_update, state, **given),
                "torch": partial(plain_step, state, **given),
            },
            3 * sizes.runs,
        )
    name = f"a decoding step, B = {rows}, D = {width}, against torch"
    return Row(name, times["torch"] / times["ours"], 8, 13, True)


def conv_row(sizes: Sizes) -> Row:
    width = sizes.n_channels
    x = torch.randn(1, sizes.n_tokens, width)
    weight, bias = torch.randn(width, 4), torch.randn(width)

    def torch_conv() -> Tensor:
        y = F.conv1d(x.transpose(1, 2), weight.unsqueeze(1), bias, padding=3, groups=width)
        return F.silu(y[..., :-3]).transpose(1, 2).contiguous()

    with torch.no_grad():
        ours = partial(causal_conv1d, x, weight, bias, activation="silu")
        times = medians_ms({"ours": ours, "torch": torch_conv}, 3 * sizes.runs)
    name = "causal conv k = 4 with silu, against torch conv1d"
    return Row(name, times["torch"] / times["ours"], 8, 20, True)


def block_row(sizes: Sizes) -> tuple[Row, dict[str, float]]:
    config = MambaConfig(
        d_model=sizes.d_model, n_layers=1, d_state=sizes.n_state, dropout=0.0, input="euler",
        inner_norm=False, real_time=False,
    )  # fmt: skip
    block = MambaBlock(config)
    x = torch.randn(sizes.block_tokens, sizes.d_model, requires_grad=True)
    borders = torch.tensor([0, sizes.block_tokens], dtype=torch.int32)
    gap = torch.zeros(sizes.block_tokens)

    def ours() -> None:
        block.zero_grad()
        block(x, gap, borders).sum().backward()

    def build(use_mambapy: bool) -> Callable[[], None]:
        from transformers import MambaConfig as TransformersConfig
        from transformers.models.mamba.modeling_mamba import MambaMixer

        mixer = MambaMixer(
            TransformersConfig(
                hidden_size=sizes.d_model, state_size=sizes.n_state, num_hidden_layers=1,
                use_mambapy=use_mambapy,
            ),
            layer_idx=0,
        )  # fmt: skip

        def step() -> None:
            mixer.zero_grad()
            mixer(x.unsqueeze(0)).sum().backward()

        return step

    name = "a whole Mamba block, train step, against transformers"
    try:
        works = {
            "block, train step": ours,
            "transformers' block": build(use_mambapy=False),
            "transformers' block with mambapy": build(use_mambapy=True),
        }
    except ImportError:
        return Row(name, None, 10, 20, True, note="transformers is not installed"), {}
    times = medians_ms(works, 5)
    ratio = times["transformers' block"] / times["block, train step"]
    return Row(name, ratio, 10, 20, True), times


def error_rows(sizes: Sizes, inputs: dict[str, Tensor], label: str = "") -> list[Row]:
    """Largest error over the largest value, of each output, against float64; the worst of them."""
    doubles = with_gradients({name: t.double() for name, t in inputs.items()})
    floats = with_gradients({name: t.float() for name, t in inputs.items()})
    exact = selective_scan(**doubles, backend="torch")
    found = selective_scan(**floats)
    dy = torch.randn(exact.shape, generator=torch.Generator().manual_seed(2))
    exact.backward(dy.double())
    found.backward(dy)
    worst = 0.0
    for name, leaf in floats.items():
        expected = doubles[name].grad
        assert leaf.grad is not None
        assert expected is not None
        worst = max(worst, relative_error(leaf.grad, expected))
    forward = relative_error(found.detach(), exact.detach())
    return [
        Row(f"largest relative error, forward{label}", forward, 5e-7, 2e-7, False, unit=""),
        Row(f"largest relative error, gradients{label}", worst, 2e-6, 5e-7, False, unit=""),
    ]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


def memory_row(sizes: Sizes) -> Row:
    """Peak memory of a train step beyond inputs, output and gradients, in a fresh process."""
    name = "extra memory in training, in float32 activations"
    if not sys.platform.startswith("linux"):
        return Row(name, None, 1, 0.5, False, unit="", note="measured on Linux only")
    fresh = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, __file__, "--memory-of", f"{sizes.n_channels},{4 * sizes.n_tokens}"],
        env={**fresh, "TSFM_MEMORY_CHILD": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return Row(name, float(done.stdout.split()[-1]), 1, 0.5, False, unit="")


def measure_memory(n_channels: int, n_tokens: int) -> float:
    sizes = Sizes(n_channels=n_channels, n_tokens=n_tokens)
    small = with_gradients(make_inputs(Sizes(n_channels=n_channels, n_tokens=64)))
    train(selective_scan, small, torch.ones(1, 64, n_channels))  # code and threads are loaded
    inputs = with_gradients(make_inputs(sizes))
    dy = torch.ones(1, n_tokens, n_channels)
    ctypes.CDLL(None).malloc_trim(0)  # what was freed must not serve unseen
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    y = selective_scan(**inputs)
    y.backward(dy)
    made = [y, *(t.grad for t in inputs.values())]
    needed = sum(t.numel() * 4 for t in made if t is not None)
    return (resident("VmHWM") - before - needed) / (4 * n_channels * n_tokens)


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small shapes, seconds")
    parser.add_argument(
        "--test", type=Path, help="a .safetensors file of inputs to judge errors on"
    )
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(measure_memory(*(int(x) for x in arguments.memory_of.split(","))))
        return
    torch.manual_seed(0)
    sizes = QUICK if arguments.quick else Sizes()
    print(f"scan of (1, {sizes.n_channels}, {sizes.n_tokens}, {sizes.n_state}), float32")
    rows, milliseconds = scan_rows(sizes)
    rows += [decode_row(sizes), conv_row(sizes), *form_rows(sizes), memory_row(sizes)]
    rows += error_rows(sizes, make_inputs(sizes))
    if arguments.test is not None:
        from safetensors.torch import load_file

        rows += error_rows(sizes, load_file(arguments.test), f", {arguments.test.name}")
    block, block_ms = block_row(sizes)
    rows.append(block)
    milliseconds |= block_ms
    for name, value in milliseconds.items():
        print(f"  {name:34} {value:10.3f} ms")
    show(rows)
    print()
    print(
        json.dumps(
            {
                "machine": machine(),
                "quick": arguments.quick,
                "milliseconds": {k: round(v, 4) for k, v in milliseconds.items()},
                "rows": {row.name: row.value for row in rows},
                "met": {row.name: row.met for row in rows},
            }
        )
    )


if __name__ == "__main__":
    main()
