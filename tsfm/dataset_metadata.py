"""The `metadata/` folder of a data set: codes, splits, source ids and facts, as MEDS asks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from tsfm import codes, schema
from tsfm.checked_parquet import read_table, write_table
from tsfm.errors import FormatError


def subject_ids(root: str | Path) -> dict[int, str]:
    """Subject id to the id in the source system; empty where the source gave none.

    Raises:
        FormatError: `bad_metadata`.
    """
    path = schema.metadata_dir(root) / "subject_ids.parquet"
    return dict(subject_rows(path, "source_id")) if path.exists() else {}


def subject_splits(root: str | Path) -> dict[int, str]:
    """Subject id to split, from `metadata/subject_splits.parquet`.

    Raises:
        FormatError: `bad_metadata`.
    """
    return dict(subject_rows(schema.metadata_dir(root) / "subject_splits.parquet", "split"))


def subject_rows(
    path: Path, column: str, *, ids: Sequence[str] = (schema.SUBJECT_ID,)
) -> list[tuple[int, str]]:
    """Subject ids of a metadata table with what a column says of each, row by row.

    Args:
        path: The table.
        column: The column, of text. Rows without an id or a text are left out.
        ids: Names that the column of ids may have.

    Raises:
        FormatError: `bad_metadata`: a column is missing or of another type.
    """
    table = read_table(path)
    id_name = next((name for name in ids if name in table.column_names), ids[0])
    place = f"metadata/{path.name}"
    texts = text_column(table, column, place=place)
    numbers = _column(table, id_name, place=place)
    if not pa.types.is_integer(numbers.type):
        raise bad_metadata(f"column '{id_name}' is {numbers.type}, not int64", place)
    try:
        numbers = numbers.cast(pa.int64())
    except pa.ArrowInvalid:
        raise bad_metadata(f"column '{id_name}' holds numbers beyond int64", place) from None
    rows = zip(numbers.to_pylist(), texts, strict=True)
    return [(subject, text) for subject, text in rows if subject is not None and text is not None]


def text_column(table: pa.Table, name: str, *, place: str) -> list[str | None]:
    """Values of a column of text.

    Raises:
        FormatError: `bad_metadata`.
    """
    column = _column(table, name, place=place)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not (pa.types.is_null(kind) or any(is_kind(kind) for is_kind in kinds)):
        raise bad_metadata(f"column '{name}' is {column.type}, not string", place)
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raise bad_metadata(f"column '{name}' is not UTF-8", place) from None


def bad_metadata(what: str, place: str) -> FormatError:
    """The error for metadata that can't be what it says."""
    return FormatError(what, code="bad_metadata", place=place, remedy="Mend or remove it.")


def _column(table: pa.Table, name: str, *, place: str) -> pa.ChunkedArray:
    if table.column_names.count(name) != 1:
        raise bad_metadata(f"not one column '{name}'", place)
    return table[name]


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
