"""Keep freed memory in the process instead of giving it back to the system.

With glibc's defaults every tensor above 32 MiB, and many smaller ones, is mapped, page-faulted and
unmapped at each use; on the CPU that costs more than the arithmetic done in it. Two settings of the
allocator end this. They only change when memory goes back, never a result.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST = 2**31 - 1
_MAPPED_FROM = 1 << 30


def keep_freed_memory() -> bool:
    """Ask glibc to reuse freed memory; returns whether there was a glibc to ask."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM) and mallopt(_M_TRIM_THRESHOLD, _LARGEST))
