"""CUDA sources become machine code without a GPU, once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import torch

from tsfm.kernels import nvrtc
from tsfm.kernels.cuda_driver import CudaError

CUDA = Path(__file__).parents[2] / "cuda"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
MOST_SECONDS = 0.1
TINY = {
    "tiny.cu": '#include "outer.cuh"\nextern "C" __global__ void tiny(float* x) { *x = ONE; }',
    "outer.cuh": '#pragma once\n#include "inner.cuh"\n',
    "inner.cuh": "#pragma once\n#define ONE 1.f\n",
    "wrong.cu": "__device__ int wrong(such_type x);",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and NVRTC found anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    nvrtc._first_of.cache_clear()
    return tmp_path / "tsfm" / "kernels"


@pytest.fixture
def tiny(cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Sources to change at will, in place of the package's."""
    needs_nvrtc()
    sources = dict(TINY)
    monkeypatch.setattr(nvrtc, "read_source", sources.__getitem__)
    return sources


def needs_nvrtc() -> None:
    try:
        nvrtc.find_nvrtc()
    except CudaError:
        pytest.skip("needs NVRTC")


def spills(report: str) -> list[int]:
    """Bytes of every function's spills, as ptxas reports them."""
    return [int(n) for n in re.findall(r"(\d+) bytes spill", report)]


def registers(report: str) -> list[int]:
    return [int(n) for n in re.findall(r"Used (\d+) registers", report)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("name", "kernels"), [("state_update", 6), ("causal_conv", 16)])
def test_nvrtc_compiles_without_spills(name: str, kernels: int, architecture: str) -> None:
    needs_nvrtc()
    file = f"{name}.cu"
    source = nvrtc.read_source(file)
    options = (f"--gpu-architecture={architecture}", *nvrtc.OPTIONS, "--ptxas-options=-v")
    code, log = nvrtc.find_nvrtc().compile(file, source, nvrtc._included(source), options)
    assert code.startswith(b"\x7fELF")
    assert "warning" not in log
    assert len(registers(log)) == kernels
    assert max(registers(log)) <= 168  # three blocks of 128 threads a multiprocessor
    assert max(spills(log)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", sorted(path.stem for path in CUDA.glob("selective_scan*.cu")))
def test_nvrtc_compiles_the_scan(
    name: str, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_nvrtc()
    # Half a minute of compiling is spent once for each state of the sources.
    kept = Path(tempfile.gettempdir()) / f"tsfm-nvrtc-{os.getuid()}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    assert nvrtc.compile_source(name, architecture).startswith(b"\x7fELF")


@pytest.mark.parametrize("name", ["state_update", "causal_conv"])
def test_nvcc_compiles_without_spills(name: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc") or pytest.skip("needs nvcc")
    command = [nvcc, "-std=c++17", "-cubin", "-arch=sm_90", "-Xptxas=-v", "-Werror=all-warnings"]
    ended = subprocess.run(
        [*command, "-o", str(tmp_path / "out.cubin"), str(CUDA / f"{name}.cu")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert registers(ended.stderr)
    assert max(spills(ended.stderr)) == 0


def test_code_for_later_devices_is_ptx(tiny: dict[str, str]) -> None:
    code = nvrtc.compile_source("tiny", "compute_80")
    assert b".target sm_80" in code
    assert code.endswith(b"\0")  # the driver reads PTX up to there


def test_a_cached_kernel_is_had_at_once(
    tiny: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = nvrtc.compile_source("tiny", "sm_90")
    monkeypatch.setattr(nvrtc.Nvrtc, "compile", None)
    seconds: list[float] = []
    for _ in range(3):
        nvrtc._first_of.cache_clear()  # as in a new process
        start = time.perf_counter()
        assert nvrtc.compile_source("tiny", "sm_90") == code
        seconds.append(time.perf_counter() - start)
    assert min(seconds) <= MOST_SECONDS


@pytest.mark.parametrize("changed", ["tiny.cu", "outer.cuh", "inner.cuh"])
def test_a_changed_source_is_compiled_anew(tiny: dict[str, str], cache: Path, changed: str) -> None:
    nvrtc.compile_source("tiny", "sm_90")
    tiny[changed] += "// changed\n"
    nvrtc.compile_source("tiny", "sm_90")
    assert len(list(cache.iterdir())) == 2


def test_architectures_and_versions_are_kept_apart(
    tiny: dict[str, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert nvrtc.compile_source("tiny", "sm_80") != nvrtc.compile_source("tiny", "sm_90")
    monkeypatch.setattr(nvrtc.find_nvrtc(), "version", (99, 0))
    nvrtc.compile_source("tiny", "sm_90")
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("damage", ["empty", "code only", "flipped", "cut"])
def test_a_damaged_cache_file_is_compiled_anew(
    tiny: dict[str, str], cache: Path, damage: str
) -> None:
    code = nvrtc.compile_source("tiny", "sm_90")
    (path,) = cache.iterdir()
    good = path.read_bytes()
    flipped = good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]
    damaged = {"empty": b"", "code only": code, "flipped": flipped, "cut": good[:-1]}
    path.write_bytes(damaged[damage])
    assert nvrtc.compile_source("tiny", "sm_90") == code
    assert path.read_bytes() == good
    assert list(cache.iterdir()) == [path]


def test_a_cache_that_can_not_be_written_is_done_without(
    tiny: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert nvrtc.compile_source("tiny", "sm_90").startswith(b"\x7fELF")


def test_a_relative_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "here"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert nvrtc.cache_folder() == Path.home() / ".cache" / "tsfm" / "kernels"


def test_what_nvrtc_refuses_is_named(tiny: dict[str, str]) -> None:
    with pytest.raises(CudaError, match="such_type") as caught:
        nvrtc.compile_source("wrong", "sm_90")
    assert (caught.value.code, caught.value.place) == ("cuda_compile", "wrong.cu")
    with pytest.raises(CudaError, match="gpu-architecture"):
        nvrtc.compile_source("tiny", "sm_1")


def test_without_nvrtc_the_error_says_what_to_install(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvrtc, "nvrtc_candidates", lambda: ["libnvrtc.so.that-is-not"])
    with pytest.raises(CudaError, match="pip install nvidia-cuda-nvrtc") as caught:
        nvrtc.compile_source("state_update", "sm_90")
    assert caught.value.code == "cuda_no_nvrtc"


def test_torch_s_own_major_version_of_nvrtc_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    places = ("cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12")
    for place in (*places, "cu13/lib/libnvrtc-builtins.so.13.0"):
        path = tmp_path / "nvidia" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for version, order in (("12.6", places[::-1]), ("13.0", places), (None, places)):
        monkeypatch.setattr(torch.version, "cuda", version)
        found = nvrtc.nvrtc_candidates()
        ours = [str(Path(one).relative_to(tmp_path / "nvidia"))
                for one in found if one.startswith(str(tmp_path))]  # fmt: skip
        assert ours == list(order)
        assert set(nvrtc._SYSTEM_NAMES) <= set(found)


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [((8, 0), "sm_80"), ((9, 0), "sm_90"), ((8, 9), "compute_80"), ((12, 1), "compute_100")],
)
def test_an_unknown_device_takes_ptx_of_the_nearest_lower_one(
    capability: tuple[int, int], architecture: str
) -> None:
    assert nvrtc.architecture_of(capability, (75, 80, 90, 100)) == architecture


def test_an_old_device_is_refused() -> None:
    with pytest.raises(CudaError, match="sm_75") as caught:
        nvrtc.architecture_of((7, 5), (75, 80, 90))
    assert caught.value.code == "cuda_architecture"


def test_availability_says_why(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_nvrtc()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not nvrtc.available()
    assert "built without CUDA" in nvrtc.available().explanation
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in nvrtc.available().explanation
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Example")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    assert not nvrtc.available()
    assert "sm_70" in nvrtc.available().explanation
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert nvrtc.available()
    assert re.search(r"NVIDIA Example.* sm_90 by NVRTC \d+\.\d", nvrtc.available().explanation)
    monkeypatch.setattr(nvrtc, "nvrtc_candidates", lambda: [])
    assert not nvrtc.available()
    assert "NVRTC" in nvrtc.available().explanation
