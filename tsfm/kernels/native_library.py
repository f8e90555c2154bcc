"""The compiled CPU kernels: found beside this file, checked, and loaded by ctypes.

`pip install` builds them from `native/kernels.cpp` where there is a C++ compiler; the extension is
optional, so without one the install succeeds and the numba kernels take their place. The library
knows nothing of Python or torch. Its threads are those of torch: it is built without an OpenMP
runtime of its own and finds the one that torch has loaded, since two pools on the same cores spin
against each other.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

import torch

from tsfm.errors import InputError

# Changes with `KERNELS_ABI` in native/kernels.cpp, whenever a struct or a function does.
ABI = 2
_INSTRUCTIONS = {16: "AVX-512", 8: "AVX2", 4: "SSE or NEON"}


def library() -> ctypes.CDLL:
    """The loaded kernels.

    Raises:
        InputError: They are not installed or do not load here; the message says why.
    """
    loaded, reason = _load()
    if loaded is None:
        raise InputError(
            f"no compiled CPU kernels: {reason}", code="no_native_kernels", place="backend",
            remedy="Install a C++ compiler and tsfm again, or use backend='numba'.",
        )  # fmt: skip
    return loaded


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the compiled kernels can be used here."""
    return _load()[0] is not None


@torch.compiler.assume_constant_result
def describe() -> str:
    """One line for people: what the kernels run on, or why there are none."""
    loaded, reason = _load()
    if loaded is None:
        return f"C++ kernels {reason}"
    return f"C++ kernels, {lanes()} channels a vector ({_INSTRUCTIONS[lanes()]})"


def lanes() -> int:
    """Floats that a vector of the kernels in force holds: 16, 8 or 4."""
    return library().tsfm_lanes()


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    built = sorted(Path(__file__).parent.glob("_native*.so"))
    if not built:
        return None, "not built when tsfm was installed (no C++ compiler?)"
    try:
        if (runtime := _openmp_of_torch()) is not None:
            ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
        loaded = ctypes.CDLL(str(built[-1]))
        found = loaded.tsfm_kernels_abi()
    except (OSError, AttributeError) as error:
        return None, f"{built[-1].name} does not load ({error})"
    if found != ABI:
        return None, f"{built[-1].name} is of another version; install tsfm again"
    return loaded, ""


def _openmp_of_torch() -> str | None:
    if not sys.platform.startswith("linux"):
        return None
    mapped = {
        line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line
    }
    runtimes = sorted(
        p for p in mapped if Path(p).name.startswith(("libgomp", "libiomp", "libomp"))
    )
    of_torch = [p for p in runtimes if "torch" in Path(p).parts]
    return (of_torch or runtimes or ["libgomp.so.1"])[0]
