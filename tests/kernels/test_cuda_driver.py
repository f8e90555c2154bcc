"""Kernels are launched as asked, and what the driver refuses is said.

A driver library built here stands in for NVIDIA's: it keeps what it was told and runs one kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tsfm.kernels import cuda_driver, nvrtc
from tsfm.kernels.cuda_driver import CudaError, Launcher

STUB = r"""
#include <cstdio>
#include <cstdlib>
#include <cstring>
struct Params { const float* from; float* to; int count; float factor; };
struct Record { unsigned grid[3], block[3], shared; void *stream, *context; int allowed, loads; };
static Record record;
static thread_local void* current;
extern "C" {
Record* stub_record() { return &record; }
int cuDeviceGet(int* device, int index) { *device = index; return index > 7 ? 101 : 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = (void*)(long)(0x1000 + device);
  return 0;
}
int cuCtxGetCurrent(void** context) { *context = current; return 0; }
int cuCtxSetCurrent(void* context) { current = context; return 0; }
int cuModuleLoadData(void** module, const void* image) {
  if (!current) return 201;
  record.loads++;
  *module = (void*)1;
  return memcmp(image, "\x7f" "ELF", 4) ? 200 : 0;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = (void*)2;
  return module != (void*)1 || strcmp(name, "scale") ? 500 : 0;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  if (function != (void*)2 || attribute != 8 || value > 232448) return 1;
  record.allowed = value;
  return 0;
}
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void* stream, void** params, void** extra) {
  if (!current) return 201;
  if (function != (void*)2 || extra || bx > 1024) return 1;
  record = {{gx, gy, gz}, {bx, by, bz}, shared, stream, current, record.allowed, record.loads};
  Params p = *(Params*)params[0];
  for (int i = 0; i < p.count; i++) p.to[i] = p.factor * p.from[i];
  return 0;
}
int cuGetErrorName(int status, const char** name) {
  *name = status == 500 ? "CUDA_ERROR_NOT_FOUND" : status == 200 ? "CUDA_ERROR_INVALID_IMAGE"
        : status == 201 ? "CUDA_ERROR_INVALID_CONTEXT" : "CUDA_ERROR_INVALID_VALUE";
  return status == 101;  // one that this driver can't name
}
}
"""


class ScaleParams(ctypes.Structure):
    """The stub's only kernel: to = factor * from."""

    _fields_ = (
        ("from_", ctypes.c_void_p), ("to", ctypes.c_void_p), ("count", ctypes.c_int),
        ("factor", ctypes.c_float),
    )  # fmt: skip


class Record(ctypes.Structure):
    """What the stub was told at the last launch."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("context", ctypes.c_void_p), ("allowed", ctypes.c_int),
        ("loads", ctypes.c_int),
    )  # fmt: skip


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The stub, freshly built."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "stub.cpp").write_text(STUB)
    command = ["g++", "-shared", "-fPIC", "-o", "libstub.so", "stub.cpp"]
    subprocess.run(command, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "libstub.so"))
    library.stub_record.restype = ctypes.POINTER(Record)
    return library


@contextlib.contextmanager
def stream_77(device: torch.device) -> Iterator[int]:
    yield 77


def make_launcher(driver: Any, code: bytes = b"\x7fELF") -> Launcher:
    return Launcher(code, driver, torch.device("cuda", 3), stream_77)


def scale(x: torch.Tensor, y: torch.Tensor, factor: float) -> ScaleParams:
    return ScaleParams(x.data_ptr(), y.data_ptr(), len(x), factor)


def test_a_launch_reaches_the_driver_as_asked(driver: Any) -> None:
    x, y = torch.arange(5.0), torch.zeros(5)
    make_launcher(driver).launch("scale", (7, 2, 3), 128, scale(x, y, 3.0), shared_bytes=1000)
    record = driver.stub_record().contents
    assert torch.equal(y, 3 * x)
    assert list(record.grid) == [7, 2, 3]
    assert list(record.block) == [128, 1, 1]
    assert (record.shared, record.stream) == (1000, 77)
    assert record.context == 0x1000 + 3


def test_much_shared_memory_is_asked_for_once(driver: Any) -> None:
    launcher, record = make_launcher(driver), driver.stub_record().contents
    x, y = torch.ones(1), torch.zeros(1)
    record.allowed = 0
    for shared_bytes, allowed in ((48 << 10, 0), (100_000, 100_000), (60_000, 100_000)):
        launcher.launch("scale", (1, 1, 1), 32, scale(x, y, 1.0), shared_bytes)
        assert driver.stub_record().contents.allowed == allowed
    record.allowed = 7
    launcher.launch("scale", (1, 1, 1), 32, scale(x, y, 1.0), 100_000)
    assert driver.stub_record().contents.allowed == 7


def test_a_thread_without_a_context_may_launch(driver: Any) -> None:
    launcher, x, y = make_launcher(driver), torch.ones(3), torch.zeros(3)
    thread = threading.Thread(
        target=launcher.launch, args=("scale", (1, 1, 1), 32, scale(x, y, 2.0))
    )
    thread.start()
    thread.join()
    assert torch.equal(y, 2 * x)


def test_what_the_driver_refuses_is_named(driver: Any) -> None:
    launcher, params = make_launcher(driver), scale(torch.ones(1), torch.zeros(1), 1.0)
    for kernel, block, shared_bytes, name in (
        ("missing", 32, 0, "cuModuleGetFunction ended with CUDA_ERROR_NOT_FOUND"),
        ("scale", 2048, 0, "cuLaunchKernel ended with CUDA_ERROR_INVALID_VALUE"),
        ("scale", 32, 1 << 20, "cuFuncSetAttribute ended with CUDA_ERROR_INVALID_VALUE"),
    ):
        with pytest.raises(CudaError, match=name) as caught:
            launcher.launch(kernel, (1, 1, 1), block, params, shared_bytes)
        assert (caught.value.code, caught.value.place) == ("cuda_driver", kernel)
    with pytest.raises(CudaError, match="CUDA_ERROR_INVALID_IMAGE") as caught:
        make_launcher(driver, b"nonsense")
    assert "Update the driver" in caught.value.remedy
    with pytest.raises(CudaError, match="cuDeviceGet ended with 101"):
        Launcher(b"\x7fELF", driver, torch.device("cuda", 9), stream_77)


def test_a_source_is_loaded_once_a_device(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def compile_source(name: str, architecture: str) -> bytes:
        asked.append((name, architecture))
        return b"\x7fELF"

    monkeypatch.setattr(nvrtc, "compile_source", compile_source)
    monkeypatch.setattr(nvrtc, "find_nvrtc", lambda: SimpleNamespace(architectures=(80, 90)))
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(nvrtc, "load_driver", lambda: driver)
    monkeypatch.setattr(cuda_driver, "_torch_stream", stream_77)
    nvrtc._loaded.cache_clear()
    record = driver.stub_record().contents
    record.loads = 0
    current = nvrtc.launcher("tiny", torch.device("cuda"))
    assert nvrtc.launcher("tiny", torch.device("cuda", 1)) is current
    assert nvrtc.launcher("tiny", torch.device("cuda", 0)) is not current
    assert driver.stub_record().contents.loads == 2
    assert asked == 2 * [("tiny", "sm_90")]
    nvrtc._loaded.cache_clear()
