"""The shim sees what would go wrong on a GPU: it refuses, instead of computing something."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

SHIM = Path(__file__).with_name("shim_launcher.py")
N_BLOCKS, N_THREADS = 4, 64
SOURCE = """
#include "cpu_shim.h"
struct Params { float* out; int variant; };
extern "C" __global__ void reverse_block(Params p) {
  DYNAMIC_SHARED(raw);
  float* shared = (float*)raw;
  int i = (int)threadIdx.x, n = (int)blockDim.x;
  shared[i] = (float)i;
  if (p.variant == 1 && i == 3) return;
  if (p.variant == 2) shared[n + 1] = 0.f;
  if (p.variant == 3) __syncwarp();
  else __syncthreads();
  float x = shared[n - 1 - i];
  if (p.variant == 4 && i % 32 < 16) x = __shfl_xor_sync(0xffffffffu, x, 1);
  p.out[blockIdx.x * n + i] = x;
}
extern "C" __global__ void sum_warps(Params p) {
  float x = (float)threadIdx.x, before = x;
  for (int o = 16; o; o /= 2) x += __shfl_xor_sync(0xffffffffu, x, o);
  for (int o = 1; o < 32; o *= 2) {
    float left = __shfl_up_sync(0xffffffffu, before, o);
    if ((int)threadIdx.x % 32 >= o) before += left;
  }
  p.out[blockIdx.x * blockDim.x + threadIdx.x] = p.variant ? before : x;
}
SHIM_KERNELS(SHIM_KERNEL(reverse_block, Params), SHIM_KERNEL(sum_warps, Params))
"""


class Params(ctypes.Structure):
    """Of the test's kernels."""

    _fields_ = [("out", ctypes.c_void_p), ("variant", ctypes.c_int32)]


@functools.cache
def shim() -> Any:
    spec = importlib.util.spec_from_file_location("shim_launcher", SHIM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    entry = tmp_path_factory.mktemp("shim") / "trial_entry.cpp"
    entry.write_text(SOURCE)
    return shim().ShimLauncher("trial", entry.parent)


def run(launcher: Any, kernel: str, variant: int = 0, shared_bytes: int = 4 * N_THREADS) -> Any:
    out = torch.full((N_BLOCKS, N_THREADS), -1.0)
    params = Params(out.data_ptr(), variant)
    launcher.launch(kernel, (N_BLOCKS, 1, 1), N_THREADS, params, shared_bytes)
    return out


def test_threads_see_what_the_others_wrote_before_the_barrier(launcher: Any) -> None:
    expected = torch.arange(N_THREADS).flip(0).float().expand(N_BLOCKS, -1)
    assert torch.equal(run(launcher, "reverse_block"), expected)


def test_a_barrier_of_a_warp_where_the_block_needs_one_shows(launcher: Any) -> None:
    out = run(launcher, "reverse_block", variant=3)
    assert bool(out.isnan().any())


def test_shuffles_cross_a_warp_and_no_more(launcher: Any) -> None:
    warps = torch.arange(N_THREADS).view(2, 32).float()
    sums = warps.sum(1, keepdim=True).expand(2, 32).reshape(-1)
    assert torch.equal(run(launcher, "sum_warps"), sums.expand(N_BLOCKS, -1))
    running = warps.cumsum(1).reshape(-1)
    assert torch.equal(run(launcher, "sum_warps", variant=1), running.expand(N_BLOCKS, -1))


@pytest.mark.parametrize(
    ("kernel", "variant", "shared_bytes", "words"),
    [
        ("reverse_block", 1, 4 * N_THREADS, "divergent barrier"),
        ("reverse_block", 4, 4 * N_THREADS, "divergent barrier"),
        ("reverse_block", 2, 4 * N_THREADS, "beyond its 256 bytes"),
        ("reverse_block", 0, 1 << 20, "no device takes"),
        ("reverse", 0, 0, "no kernel 'reverse'"),
    ],
)
def test_what_a_gpu_would_not_survive_is_refused(
    launcher: Any, kernel: str, variant: int, shared_bytes: int, words: str
) -> None:
    with pytest.raises(shim().LaunchError, match=words):
        run(launcher, kernel, variant, shared_bytes)
    assert not bool(run(launcher, "reverse_block").isnan().any())  # and it goes on
