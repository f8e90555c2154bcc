"""Patient timelines in continuous time.

Public names are loaded when first used, so that `import tsfm` costs little and imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC: dict[str, str] = {}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'tsfm' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Names for completion."""
    return sorted(__all__)
