"""CUDA kernels compiled on the machine that runs them, and kept on disk.

The sources in `tsfm.cuda` include nothing of the CUDA toolkit and nothing of torch, so NVIDIA's
run-time compiler (NVRTC, one shared library) turns them into machine code within seconds, and that
code depends on neither Python's nor torch's version. The compiler is called through ctypes: nothing
is built when the package is installed, and compiling needs no GPU.

Interface: NVRTC's reference manual. Linux only. `cuda_driver.py` launches what is compiled here;
which kernel to launch, and on what, is the business of the `cuda_*` modules of the ops.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.resources
import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tsfm.kernels.cuda_driver import CudaError, Launcher, load_driver

LOWEST_ARCHITECTURE = 80
OPTIONS = ("--std=c++17",)

_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
_SYSTEM_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Availability:
    """Whether CUDA kernels can be used, and what that rests on; true if they can."""

    usable: bool
    explanation: str

    def __bool__(self) -> bool:
        """Whether CUDA kernels can be used."""
        return self.usable


def available() -> Availability:
    """Say whether CUDA kernels can be compiled and launched by this Python, and why."""
    if torch.version.cuda is None:
        return Availability(False, f"this torch ({torch.__version__}) is built without CUDA")
    if not torch.cuda.is_available():
        return Availability(False, "torch sees no CUDA device: none, or no driver for it")
    try:
        nvrtc = find_nvrtc()
        architecture = architecture_of(torch.cuda.get_device_capability(), nvrtc.architectures)
    except CudaError as error:
        return Availability(False, str(error))
    name = torch.cuda.get_device_name()
    version = ".".join(map(str, nvrtc.version))
    return Availability(True, f"{name}, compiled for {architecture} by NVRTC {version}")


def launcher(name: str, device: torch.device) -> Launcher:
    """Kernels of `tsfm/cuda/<name>.cu`, ready on a device; compiled or loaded once a process.

    Args:
        name: Source without its suffix, such as `selective_scan`.
        device: A CUDA device; without an index, torch's current one.

    Raises:
        CudaError: If NVRTC is missing, the device is too old or the driver refuses the code.
    """
    torch.cuda.init()
    index = torch.cuda.current_device() if device.index is None else device.index
    return _loaded(name, index)


@functools.cache
def _loaded(name: str, index: int) -> Launcher:
    device = torch.device("cuda", index)
    capability = torch.cuda.get_device_capability(device)
    code = compile_source(name, architecture_of(capability, find_nvrtc().architectures))
    return Launcher(code, load_driver(), device)


class Nvrtc:
    """A loaded run-time compiler.

    Attributes:
        version: Major and minor number.
        architectures: Those it compiles for, such as 90, rising.
    """

    def __init__(self, library: Any) -> None:
        """Ask the library what it is."""
        self._library = library
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor, number = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(number))
        known = (ctypes.c_int * number.value)()
        self._call("nvrtcGetSupportedArchs", known)
        self.version: tuple[int, int] = (major.value, minor.value)
        self.architectures: tuple[int, ...] = tuple(sorted(known))

    def compile(
        self, file: str, source: str, headers: dict[str, str], options: Iterable[str]
    ) -> tuple[bytes, str]:
        """Compile one source.

        Returns:
            A cubin for options with `sm_..`, PTX for those with `compute_..`; the compiler's log.
        """
        program = ctypes.c_void_p()
        texts = _strings(headers.values())
        create = (source.encode(), file.encode(), len(headers), texts, _strings(headers))
        self._call("nvrtcCreateProgram", ctypes.byref(program), *create)
        try:
            flags = _strings(options)
            status = self._library.nvrtcCompileProgram(program, len(flags), flags)
            log = self._read("ProgramLog", program).rstrip(b"\0").decode(errors="replace")
            if status != 0:
                self._refuse(status, file, log)
            size = ctypes.c_size_t()
            self._call("nvrtcGetCUBINSize", program, ctypes.byref(size))
            return self._read("CUBIN" if size.value else "PTX", program), log
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, content)
        return content.raw

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            self._refuse(status, function, "")

    def _refuse(self, status: int, place: str, log: str) -> None:
        reason = (self._library.nvrtcGetErrorString(status) or b"").decode()
        first = next((line.strip() for line in log.splitlines() if "error" in line), "")
        raise CudaError(
            f"NVRTC does not compile this: {reason} {first}".rstrip(),
            code="cuda_compile",
            place=place,
            remedy="Choose another backend to run without these kernels.",
        )


def find_nvrtc() -> Nvrtc:
    """Load the run-time compiler, once a process.

    Raises:
        CudaError: If none is installed.
    """
    return _first_of(tuple(nvrtc_candidates()))


@functools.cache
def _first_of(names: tuple[str, ...]) -> Nvrtc:
    for name in names:
        with contextlib.suppress(OSError):
            return Nvrtc(ctypes.CDLL(name))
    raise CudaError(
        "NVIDIA's run-time compiler (NVRTC) is not installed",
        code="cuda_no_nvrtc",
        remedy="Install it with `pip install nvidia-cuda-nvrtc`.",
    )


def nvrtc_candidates() -> list[str]:
    """Where NVRTC may be, best first: wheels, what torch carries, then the system's loader.

    Code of a newer major version than the driver's can't be loaded, and torch runs, so the major
    version that torch was built with comes first; then the newest.
    """
    spec = importlib.util.find_spec("nvidia")
    found = [
        library
        for root in (spec.submodule_search_locations or () if spec else ())
        for library in Path(root).glob("*/lib/libnvrtc.so.*")
    ]
    found += (Path(torch.__file__).parent / "lib").glob("libnvrtc[-.]*so*")
    own = int((torch.version.cuda or "0").split(".")[0])

    def rank(library: str) -> tuple[bool, int]:
        suffix = library.rpartition(".so")[2].strip(".").split(".")[0]
        major = int(suffix) if suffix.isdigit() else 0
        return major == own, major

    files = [str(path) for path in sorted(found) if "builtins" not in path.name]
    return sorted(files, key=rank, reverse=True) + sorted(_SYSTEM_NAMES, key=rank, reverse=True)


def architecture_of(capability: tuple[int, int], known: tuple[int, ...]) -> str:
    """What to compile for: the device's own architecture, else PTX of the nearest lower one.

    Args:
        capability: Of the device, such as (9, 0).
        known: Architectures that the compiler knows, rising.

    Raises:
        CudaError: If the device is older than the kernels.
    """
    own = 10 * capability[0] + capability[1]
    lower = [one for one in known if LOWEST_ARCHITECTURE <= one <= own]
    if not lower:
        raise CudaError(
            f"the device's architecture sm_{own} is below sm_{LOWEST_ARCHITECTURE}",
            code="cuda_architecture",
            remedy="Choose another backend to run without these kernels.",
        )
    return f"sm_{own}" if own in known else f"compute_{lower[-1]}"


def compile_source(name: str, architecture: str) -> bytes:
    """Machine code of `tsfm/cuda/<name>.cu`, from the cache on disk if it is there.

    Args:
        name: Source without its suffix.
        architecture: `sm_90` and the like for a cubin, `compute_90` for PTX.

    Raises:
        CudaError: If NVRTC is missing or refuses.
    """
    file = f"{name}.cu"
    source = read_source(file)
    headers = _included(source)
    options = (f"--gpu-architecture={architecture}", *OPTIONS)
    nvrtc = find_nvrtc()
    parts = json.dumps([file, source, sorted(headers.items()), options, nvrtc.version])
    key = hashlib.sha256(parts.encode()).hexdigest()
    path = cache_folder() / f"{name}-{architecture}-{key[:32]}.bin"
    code = _read_cached(path)
    if code is None:
        code, _ = nvrtc.compile(file, source, headers, options)
        _write_cached(path, code)
    return code


def read_source(file: str) -> str:
    """Text of a file in `tsfm.cuda`."""
    return importlib.resources.files("tsfm.cuda").joinpath(file).read_text(encoding="utf-8")


def cache_folder() -> Path:
    """Where compiled code is kept: below `$XDG_CACHE_HOME` if that is absolute, else `~/.cache`."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (root if root.is_absolute() else Path.home() / ".cache") / "tsfm" / "kernels"


def _included(source: str) -> dict[str, str]:
    """Our own headers that a source includes, by name, and those that they include."""
    headers: dict[str, str] = {}
    waiting = _INCLUDE.findall(source)
    while waiting:
        header = waiting.pop()
        if header not in headers:
            headers[header] = read_source(header)
            waiting += _INCLUDE.findall(headers[header])
    return headers


def _read_cached(path: Path) -> bytes | None:
    """Code behind its digest; None where there is none or the digest is another's."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write_cached(path: Path, code: bytes) -> None:
    # A cache that can't be written costs time only.
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise


def _strings(texts: Iterable[str]) -> Any:
    encoded = [text.encode() for text in texts]
    return (ctypes.c_char_p * len(encoded))(*encoded)
