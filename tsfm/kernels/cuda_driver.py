"""Loads compiled CUDA code and launches its kernels through the driver API, by ctypes.

A kernel takes one struct by value, `extern "C" __global__ void name(Params params)`, which Python
mirrors as a `ctypes.Structure`. Work is queued on torch's current stream of the device, in the
device's primary context, which is the one that torch uses; so torch's tensors are the kernels' own,
and a tensor may be dropped as soon as its kernel is queued. Every status is looked at.

Interface: the CUDA driver API's reference manual. Where the code comes from is `nvrtc.py`'s affair.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tsfm.errors import InputError, TsfmError

# A kernel gets this much dynamic shared memory unasked.
_USUAL_SHARED_BYTES = 48 * 1024
_MAX_DYNAMIC_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
# The driver knows neither this code's format nor a kernel in it for the device.
_TOO_OLD = (
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    "CUDA_ERROR_NO_BINARY_FOR_GPU",
    "CUDA_ERROR_INVALID_IMAGE",
)


# As the kernels' names say them.
TYPE_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}

# What a small device has; where the kernels run without one, they split their work as for that.
_PROCESSORS_ELSEWHERE = 108


class CudaError(TsfmError):
    """CUDA kernels can't be compiled, loaded or launched here."""


@runtime_checkable
class Launches(Protocol):
    """What the ops need of a launcher; the tests have one that runs kernels on the CPU."""

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: int,
        params: ctypes.Structure,
        shared_bytes: int = 0,
    ) -> None:
        """Queue a kernel; see `Launcher.launch`."""
        ...


def address(tensor: Tensor | None) -> int | None:
    """Address of a tensor's first number, None for an absent tensor: a field of a params struct."""
    return None if tensor is None else tensor.data_ptr()


def type_name(dtype: torch.dtype, place: str) -> str:
    """A type as the kernels' names say it.

    Raises:
        InputError: If the kernels have no such type.
    """
    if dtype not in TYPE_NAMES:
        raise InputError(
            f"the CUDA kernels have no {dtype}", code="cuda_type", place=place,
            remedy="Pass float32, bfloat16 or float16.",
        )  # fmt: skip
    return TYPE_NAMES[dtype]


@functools.cache
def processor_count(device: torch.device) -> int:
    """Number of the device's multiprocessors."""
    if device.type != "cuda":
        return _PROCESSORS_ELSEWHERE
    return torch.cuda.get_device_properties(device).multi_processor_count


class Launcher:
    """The kernels of one compiled source on one device.

    Args:
        code: A cubin, or PTX, which the driver compiles.
        driver: The CUDA driver's library.
        device: Device with its index.
        stream_of: Makes the device current in torch and gives the handle of its current stream.
    """

    def __init__(
        self,
        code: bytes,
        driver: Any,
        device: torch.device,
        stream_of: Callable[[torch.device], AbstractContextManager[int | None]] | None = None,
    ) -> None:
        """Load the code."""
        self._driver = driver
        self._device = device
        self._stream_of = stream_of or _torch_stream
        self._functions: dict[str, ctypes.c_void_p] = {}
        self._shared_bytes: dict[str, int] = {}
        self._context = ctypes.c_void_p()
        self._module = ctypes.c_void_p()
        handle = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(handle), ctypes.c_int(device.index))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), handle)
        with self._stream_of(device):
            self._make_current()
            self._call("cuModuleLoadData", ctypes.byref(self._module), ctypes.c_char_p(code))

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: int,
        params: ctypes.Structure,
        shared_bytes: int = 0,
    ) -> None:
        """Queue a kernel on the device's current stream.

        Args:
            kernel: Its name.
            grid: Number of blocks along x, y and z.
            block: Number of threads of a block.
            params: The kernel's only argument, copied before this returns.
            shared_bytes: Dynamic shared memory of a block.

        Raises:
            CudaError: If there is no such kernel or the driver refuses the launch.
        """
        with self._stream_of(self._device) as stream:
            self._make_current()
            function = self._function(kernel)
            self._allow_shared(kernel, function, shared_bytes)
            arguments = (ctypes.c_void_p * 1)(ctypes.addressof(params))
            shape = [ctypes.c_uint(size) for size in (*grid, block, 1, 1, shared_bytes)]
            handle = ctypes.c_void_p(stream)
            self._call("cuLaunchKernel", function, *shape, handle, arguments, None, place=kernel)

    def _function(self, kernel: str) -> ctypes.c_void_p:
        found = self._functions.get(kernel)
        if found is None:
            found = ctypes.c_void_p()
            name = ctypes.c_char_p(kernel.encode())
            self._call("cuModuleGetFunction", ctypes.byref(found), self._module, name, place=kernel)
            self._functions[kernel] = found
        return found

    def _allow_shared(self, kernel: str, function: ctypes.c_void_p, shared_bytes: int) -> None:
        if shared_bytes <= self._shared_bytes.get(kernel, _USUAL_SHARED_BYTES):
            return
        attribute = ctypes.c_int(_MAX_DYNAMIC_SHARED_BYTES)
        size = ctypes.c_int(shared_bytes)
        self._call("cuFuncSetAttribute", function, attribute, size, place=kernel)
        self._shared_bytes[kernel] = shared_bytes

    def _make_current(self) -> None:
        # A thread that has not used CUDA yet, such as one of autograd's, has no context, and torch
        # sets none where its own record says that the device is the current one already.
        current = ctypes.c_void_p()
        self._call("cuCtxGetCurrent", ctypes.byref(current))
        if current.value != self._context.value:
            self._call("cuCtxSetCurrent", self._context)

    def _call(self, function: str, *arguments: Any, place: str = "") -> None:
        status = int(getattr(self._driver, function)(*arguments))
        if status == 0:
            return
        text = ctypes.c_char_p()
        known = self._driver.cuGetErrorName(ctypes.c_int(status), ctypes.byref(text)) == 0
        name = text.value.decode() if known and text.value else str(status)
        raise CudaError(
            f"the CUDA driver's {function} ended with {name}",
            code="cuda_driver",
            place=place or str(self._device),
            remedy="Update the driver, or install nvidia-cuda-nvrtc in the driver's version."
            if name in _TOO_OLD
            else "Choose another backend to run without these kernels.",
        )


@contextlib.contextmanager
def _torch_stream(device: torch.device) -> Iterator[int | None]:
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream


@functools.cache
def load_driver() -> Any:
    """The CUDA driver's library.

    Raises:
        CudaError: If there is none.
    """
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise CudaError(
            "the CUDA driver (libcuda.so.1) can't be loaded",
            code="cuda_no_driver",
            remedy="Install NVIDIA's driver.",
        ) from None
