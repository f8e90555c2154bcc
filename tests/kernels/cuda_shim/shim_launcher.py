"""Runs a `.cu` of `cuda/` on the CPU: g++ and `cpu_shim.h` in place of a compiler and a device.

`ShimLauncher(name)` has the `launch` of `tsfm.kernels.nvrtc.Launcher`, so a host module that takes
a launcher runs the very kernels that the GPU gets, on CPU tensors. The library is built from
`<name>_entry.cpp` of this folder once for each state of the sources. It proves results, barriers
and indices; it says nothing about speed.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CUDA = HERE.parents[2] / "cuda"
FLAGS = (
    "-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=fast", "-fno-math-errno",
    "-fno-trapping-math", "-fno-gnu-unique", "-Wall", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE",
)  # fmt: skip


class LaunchError(RuntimeError):
    """The shim refused a launch or met a divergent barrier."""


class ShimLauncher:
    """Launches the kernels of one `.cu` on the CPU."""

    def __init__(self, name: str, folder: Path = HERE) -> None:
        """Build, if need be, and load the kernels that `<name>_entry.cpp` of a folder lists."""
        self._library = ctypes.CDLL(str(build(folder / f"{name}_entry.cpp")))
        self._library.shim_message.restype = ctypes.c_char_p
        self.launched: list[str] = []

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: int,
        params: ctypes.Structure,
        shared_bytes: int = 0,
    ) -> None:
        """Run one kernel to its end.

        Raises:
            LaunchError: Unknown kernel, impossible grid, or a divergent barrier.
        """
        self.launched.append(kernel)
        status = self._library.shim_launch(
            kernel.encode(), *map(ctypes.c_uint, grid), ctypes.c_uint(block),
            ctypes.byref(params), ctypes.c_uint(shared_bytes),
        )  # fmt: skip
        if status:
            raise LaunchError(self._library.shim_message().decode())


@functools.cache
def build(entry: Path, extra: tuple[str, ...] = ()) -> Path:
    """Compile an entry file to a shared library, unless that has been done before.

    Raises:
        FileNotFoundError: There is no g++.
        RuntimeError: The compiler's own words.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("g++")
    sources = [entry, HERE / "cpu_shim.h", *sorted(CUDA.glob("*.cu*"))]
    digest = hashlib.sha256(" ".join((*FLAGS, *extra)).encode())
    for source in sources:
        digest.update(source.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"tsfm-cuda-shim-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{entry.stem}-{digest.hexdigest()[:16]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / "made.so"
            command = [compiler, *FLAGS, *extra, f"-I{HERE}", f"-I{CUDA}", str(entry)]
            ended = subprocess.run(
                [*command, "-o", str(made)], capture_output=True, text=True, check=False
            )
            if ended.returncode:
                raise RuntimeError(ended.stderr)
            made.replace(library)
    return library
