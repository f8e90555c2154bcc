"""The `metadata/` folder of a data set: codes, splits, source ids and facts, as MEDS asks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from tsfm import codes, schema
from tsfm.checked_parquet import read_table, write_table


def subject_ids(root: str | Path) -> dict[int, str]:
    """Subject id to the id in the source system; empty where the source gave none."""
    path = schema.metadata_dir(root) / "subject_ids.parquet"
    if not path.exists():
        return {}
    table = read_table(path)
    return dict(
        zip(table[schema.SUBJECT_ID].to_pylist(), table["source_id"].to_pylist(), strict=True)
    )


def subject_splits(root: str | Path) -> dict[int, str]:
    """Subject id to split, from `metadata/subject_splits.parquet`."""
    table = read_table(schema.metadata_dir(root) / "subject_splits.parquet")
    return dict(zip(table[schema.SUBJECT_ID].to_pylist(), table["split"].to_pylist(), strict=True))


def dataset_facts(root: str | Path) -> dict[str, Any]:
    """Contents of `metadata/dataset.json`."""
    path = schema.metadata_dir(root) / "dataset.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_metadata(
    root: str | Path,
    *,
    code_counts: Mapping[str, int],
    descriptions: Mapping[str, str],
    subject_splits: Mapping[int, str],
    subject_ids: Mapping[int, str],
    dataset: Mapping[str, Any],
) -> None:
    """Write `metadata/` as MEDS asks, plus the map back to the source's subject ids."""
    folder = schema.metadata_dir(root)
    names = sorted(code_counts)
    write_table(
        pa.table(
            {
                schema.CODE: names,
                "description": [descriptions.get(name) for name in names],
                "parent_codes": [list(codes.parents(name))[:1] for name in names],
                "n_events": [code_counts[name] for name in names],
            },
            schema=schema.CODE_METADATA,
        ),
        folder / "codes.parquet",
    )
    write_table(
        pa.table(
            {
                schema.SUBJECT_ID: list(subject_splits),
                "split": list(subject_splits.values()),
            },
            schema=schema.SUBJECT_SPLITS,
        ),
        folder / "subject_splits.parquet",
    )
    if subject_ids:
        write_table(
            pa.table(
                {schema.SUBJECT_ID: list(subject_ids), "source_id": list(subject_ids.values())},
                schema=schema.SUBJECT_IDS,
            ),
            folder / "subject_ids.parquet",
        )
    facts = {
        "meds_version": schema.MEDS_VERSION,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "raw_source_id_columns": [schema.ENCOUNTER_ID],
        "additional_value_modality_columns": [schema.SIGNAL_ID],
        "other_extension_columns": [schema.AVAILABLE_TIME],
        **dataset,
    }
    (folder / "dataset.json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
