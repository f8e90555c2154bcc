"""Small made-up MEDS data sets, and what becomes of them."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tsfm import event_table
from tsfm.errors import TsfmError
from tsfm.ingest.meds_dataset import ingest_meds
from tsfm.ingest.provenance import IngestSummary

T = datetime.fromisoformat
IN, OUT = T("2020-03-02 10:00"), T("2020-03-05 15:00")
DELAY = timedelta(hours=120)
TYPES = {
    "subject_id": pa.int64(),
    "time": pa.timestamp("us"),
    "code": pa.string(),
    "numeric_value": pa.float32(),
}


def shard(rows: list[tuple[Any, ...]], **types: pa.DataType) -> pa.Table:
    kinds = {**TYPES, **types}
    columns = list(zip(*rows, strict=True)) or [() for _ in kinds]
    arrays = [pa.array(c, k) for c, k in zip(columns, list(kinds.values()), strict=True)]
    return pa.table(arrays, names=list(kinds))


def write(folder: Path, shards: dict[str, pa.Table]) -> Path:
    for name, table in shards.items():
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    return folder


def ingest(src: Path, **options: Any) -> tuple[pl.DataFrame, IngestSummary, Path]:
    out = src.parent / f"{src.name}-out{len(list(src.parent.iterdir()))}"
    summary = ingest_meds(src, out, **options)
    assert summary.n_rows == sum(summary.rows_used.values()) + sum(summary.quarantined.values())
    return pl.concat(event_table.scan_events(out)), summary, out


def error_of(src: Path, **options: Any) -> TsfmError:
    with pytest.raises(TsfmError) as caught:
        ingest_meds(src, src.parent / "out", **options)
    assert not list((src.parent / "out").glob("data/*"))
    return caught.value


STAY = [
    (1, None, "GENDER//F", None),
    (1, T("2019-01-01"), "LAB//1", 0.5),
    (1, T("2020-03-02"), "PROCEDURE//ICD//9//5491", None),  # a date: before the first hour
    (1, IN, "HOSPITAL_ADMISSION//URGENT", None),
    (1, T("2020-03-03 08:00"), "LAB//1", 1.5),
    (1, OUT, "HOSPITAL_DISCHARGE//HOME", None),
    (1, OUT, "DIAGNOSIS//ICD//10//I10", None),
    (1, OUT, "DRG//APR//1//X", None),
    (1, OUT, "PROCEDURE//START//2", None),
    (1, T("2020-04-01"), "DIAGNOSIS//ICD//10//E11", None),  # of no stay
]
