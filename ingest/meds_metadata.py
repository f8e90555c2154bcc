# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What a MEDS data set says beside its events: facts, splits, descriptions and waveforms.

What the source says is kept, and what can't be what it says is `bad_metadata`. Of splits said twice
that one is kept on which is trained least: a subject that the source holds out must not be learned
from because its files disagree.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Set
from datetime import datetime
from pathlib import Path
from typing import Any

from tsfm import clock, codes, event_table, schema
from tsfm.dataset_metadata import bad_metadata, subject_rows, text_column
from tsfm.ingest.provenance import dataset_facts, source_name
from tsfm.signals.store import SignalStore

_FACTS = "metadata/dataset.json"
# Of the run that wrote them, or of columns that are not read.
_NOT_KEPT = (
    "meds_version",
    "created_at",
    "raw_source_id_columns",
    "code_modifier_columns",
    "additional_value_modality_columns",
    "site_id_columns",
    "other_extension_columns",
)
_BY_CARE = {schema.HELD_OUT: 0, schema.TUNING: 2, schema.TRAIN: 3}
_OTHER_SPLIT = 1  # a name of the source's own is never trained on


def read_facts(root: Path) -> dict[str, Any]:
    """Contents of `metadata/dataset.json`; those that are acted on are checked.

    Raises:
        FormatError: `bad_metadata`.
    """
    try:
        facts: Any = event_table.dataset_facts(root)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise bad_metadata("not a JSON object", _FACTS)
    for name, is_right in _ACTED_ON.items():
        if facts.get(name) is not None and not is_right(facts[name]):
            raise bad_metadata(f"'{name}' is nothing that can be acted on", _FACTS)
    return facts


def kept_facts(
    facts: dict[str, Any], root: Path, *, is_utc: bool, is_filled: bool, **more: Any
) -> dict[str, Any]:
    """Fields of the new `metadata/dataset.json`: the source's own, and what became of them.

    Args:
        facts: From `read_facts`.
        root: The source.
        is_utc: Times with a zone were brought to UTC.
        is_filled: Billing codes were given the delay of this run.
        more: What this run knows; its `coding_delay_hours` only where the source says none.
    """
    if not is_filled and facts.get("coding_delay_hours") is not None:
        more["coding_delay_hours"] = facts["coding_delay_hours"]
    own = {name: value for name, value in facts.items() if name not in _NOT_KEPT}
    return own | dataset_facts(
        str(facts.get("dataset_name") or source_name(root)),
        module="meds_dataset",
        clock="utc" if is_utc else facts.get("clock") or "wall",
        **more,
    )


def are_dates_shifted(facts: dict[str, Any], root: Path) -> bool:
    """Whether dates are shifted by subject: as the facts say, else by the data set's name."""
    said = facts.get("dates_shifted")
    if isinstance(said, bool):
        return said
    name = str(facts.get("dataset_name") or "") + source_name(root)
    return "mimic" in name.lower()


def read_splits(
    root: Path, folders: Iterable[tuple[int, Set[str]]], counts: Counter[str]
) -> dict[int, str]:
    """Splits that the source gives: by its table, else by its folders.

    Args:
        root: The source.
        folders: Every subject with the splits whose folders it is in.
        counts: Gains subjects: `split_conflicts`, in two splits by one source; `split_unlike`,
            listed with another than that of their folder; `split_unsaid`, in none where others
            are.

    Raises:
        FormatError: `bad_metadata`.
    """
    listed: dict[int, str] = {}
    twice: set[int] = set()
    path = schema.metadata_dir(root) / "subject_splits.parquet"
    if path.exists():
        for subject, split in subject_rows(path, "split", ids=(schema.SUBJECT_ID, "patient_id")):
            if split and listed.setdefault(subject, split) != split:
                twice.add(subject)
                listed[subject] = min(split, listed[subject], key=_care)
    counts["split_conflicts"] += len(twice)
    splits: dict[int, str] = {}
    n_subjects = 0
    for subject, named in folders:
        n_subjects += 1
        if said := listed.get(subject):
            splits[subject] = said
            counts["split_unlike"] += bool(named) and named != {said}
        elif named:
            splits[subject] = min(named, key=_care)
            counts["split_conflicts"] += len(named) > 1
    if splits:
        counts["split_unsaid"] += n_subjects - len(splits)
    return splits


def read_descriptions(root: Path) -> tuple[dict[str, str], list[str]]:
    """Code to text, and what the reader must know of the table of codes.

    Raises:
        FormatError: `bad_metadata`.
    """
    path = schema.metadata_dir(root) / "codes.parquet"
    if not path.exists():
        return {}, []
    table = event_table.read_table(path)
    names = text_column(table, schema.CODE, place=f"metadata/{path.name}")
    rows = [row for row, name in zip(table.to_pylist(), names, strict=True) if name]
    n_parents = sum(
        row.get("parent_codes") not in (None, [], list(codes.parents(row[schema.CODE]))[:1])
        for row in rows
    )
    notes = [f"parent codes of {n_parents:,} codes were replaced by our own"] if n_parents else []
    texts = {row[schema.CODE]: str(row["description"]) for row in rows if row.get("description")}
    return texts, notes


def copy_signals(root: Path, out: Path, used: Set[str]) -> list[str]:
    """Copy the waveforms that events point to, and say which are not there.

    Args:
        root: The source.
        out: Folder to write `signals/` into.
        used: Keys in the events.

    Raises:
        IntegrityError: A file of the signals is missing or differs from what was written.
    """
    found: Set[str] = set()
    if used and (root / "signals" / "index.parquet").is_file():
        store = SignalStore(root)
        (out / "signals").mkdir()
        # Only the last part of a name: one that leads elsewhere is not followed.
        shards = {Path(name).name for name in store.index["shard"].unique()}
        for name in sorted(shards | {"index.parquet", "manifest.json"}):
            if (store.folder / name).is_file():
                shutil.copyfile(store.folder / name, out / "signals" / name)
        SignalStore(out).verify()
        found = used & set(store.index[schema.SIGNAL_ID].unique())
    notes = [f"waveforms of {len(found):,} records were copied, sums verified"] if found else []
    if lost := len(used) - len(found):
        notes.append(
            f"waveforms of {lost:,} records are not there: their events' signal_id leads nowhere"
        )
    return notes


def _care(split: str) -> tuple[int, str]:
    return _BY_CARE.get(split, _OTHER_SPLIT), split


def _is_clock(value: Any) -> bool:
    return value in ("utc", "wall")


def _is_moment(value: Any) -> bool:
    try:
        year = datetime.fromisoformat(value).year
    except (ValueError, TypeError):
        return False
    return clock.FIRST_YEAR <= year <= clock.LAST_YEAR


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_delay(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


_ACTED_ON = {
    "clock": _is_clock,
    "data_as_of": _is_moment,
    "dates_shifted": _is_flag,
    "coding_delay_hours": _is_delay,
}
