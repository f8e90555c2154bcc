"""Fixtures for reading small FHIR exports made in the test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tsfm import event_table
from tsfm.ingest.fhir_ndjson import ingest_fhir
from tsfm.ingest.provenance import IngestSummary

Ingested = tuple[IngestSummary, dict[str, dict[str, Any]], pl.DataFrame]


@pytest.fixture
def ingest_rows(tmp_path: Path) -> Callable[..., Ingested]:
    """Return a function from FHIR resources to (summary, event by code, all events)."""

    def run(*rows: dict[str, Any], **options: Any) -> Ingested:
        src = tmp_path / "src"
        src.mkdir(exist_ok=True)
        (src / "rows.ndjson").write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = {"max_quarantined": 1.0, "n_shards": 1, "progress": False, **options}
        summary = ingest_fhir(src, tmp_path / "out", **options)
        frame = pl.concat(list(event_table.scan_events(tmp_path / "out")))
        return summary, {row["code"]: row for row in frame.iter_rows(named=True)}, frame

    return run
