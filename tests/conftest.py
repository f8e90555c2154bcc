"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_dir() -> Callable[[str], Path]:
    """Return a function that finds a folder of the real data sets, or skips the test."""
    root = Path(os.environ.get("TSFM_DATA", REPOSITORY.parent / "shared" / "data"))

    def find(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            pytest.skip(f"needs {name} under TSFM_DATA or ../shared/data")
        return folder

    return find


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY
