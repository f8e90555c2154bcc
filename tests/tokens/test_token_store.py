"""The store holds every event once, packed, and knows whose vocabulary it uses."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tsfm.checked_parquet import write_table
from tsfm.errors import InputError, ModelMismatch
from tsfm.event_table import EventWriter, read_events, shard_paths, subject_splits
from tsfm.tokens.token_store import TokenStore, build_token_store

START = datetime(2024, 1, 1)


@pytest.fixture
def events(tmp_path: Path) -> Path:
    root = tmp_path / "events"
    rng = np.random.default_rng(0)
    rows = [
        {
            "subject_id": subject,
            "time": START + timedelta(hours=float(rng.integers(0, 900))),
            "code": str(rng.choice(["LAB//1//mg", "LAB//2//mg", "DIAGNOSIS//ICD//10//I50"])),
            "numeric_value": float(rng.normal()),
        }
        for subject in range(1, 60)
        for _ in range(int(rng.integers(1, 20)))
    ]
    held_out = {"subject_id": 7, "time": START, "code": "SECRET//held", "numeric_value": None}
    splits = {s: "held_out" if s == 7 else "tuning" if s % 9 == 0 else "train" for s in range(60)}
    with EventWriter(root, n_shards=3) as writer:
        writer.add(pl.DataFrame([*rows, *[held_out] * 50]))
        writer.finish(dataset={"dataset_name": "made"}, subject_splits=splits)
    return root


def test_every_event_is_one_token(events: Path, tmp_path: Path) -> None:
    store = build_token_store(events, tmp_path / "tokens")
    table = pl.concat([pl.read_parquet(p) for p in sorted((events / "data").glob("*.parquet"))])
    assert len(store) == table.height
    assert store.subjects["length"].sum() == table.height
    expected = dict(table["subject_id"].value_counts().iter_rows())
    assert dict(store.subjects.select("subject_id", "length").iter_rows()) == expected


def test_the_vocabulary_never_sees_another_split(events: Path, tmp_path: Path) -> None:
    store = build_token_store(events, tmp_path / "tokens", min_count=1)
    assert not any("SECRET" in code for code in store.vocabulary.codes)
    assert store.config["n_unknown"] == 50


def test_another_data_set_meets_a_models_ids(events: Path, tmp_path: Path) -> None:
    first = build_token_store(events, tmp_path / "tokens")
    second = build_token_store(events, tmp_path / "again", vocabulary_from=tmp_path / "tokens")
    assert second.vocabulary.hash == first.vocabulary.hash
    assert not second.config["vocabulary_fitted"]
    np.testing.assert_array_equal(first.fields["code"], second.fields["code"])


def test_a_store_is_not_written_over(events: Path, tmp_path: Path) -> None:
    build_token_store(events, tmp_path / "tokens")
    with pytest.raises(InputError) as caught:
        build_token_store(events, tmp_path / "tokens")
    assert caught.value.code == "output_exists"


def test_a_store_cut_short_is_none_and_is_made_again(
    events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def fail_halfway(path: Path, text: str, *args: Any, **kwargs: Any) -> int:
        if "config.json" not in path.name:
            return write(path, text, *args, **kwargs)
        write(path, text[:20])
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail_halfway)
        with pytest.raises(OSError, match="no space"):
            build_token_store(events, tmp_path / "tokens")
    with pytest.raises(InputError):
        TokenStore.open(tmp_path / "tokens")
    assert len(build_token_store(events, tmp_path / "tokens")) > 0


def test_a_swapped_vocabulary_is_refused(events: Path, tmp_path: Path) -> None:
    build_token_store(events, tmp_path / "a", min_count=1)
    build_token_store(events, tmp_path / "b", min_count=100_000)
    for name in ("codes.json", "value_scale.npz"):
        source = tmp_path / "b" / "vocabulary" / name
        (tmp_path / "a" / "vocabulary" / name).write_bytes(source.read_bytes())
    with pytest.raises(ModelMismatch) as caught:
        TokenStore.open(tmp_path / "a")
    assert caught.value.code == "vocabulary_hash_mismatch"


def test_no_store_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        TokenStore.open(tmp_path)
    assert caught.value.code == "missing_token_store"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (pl.col("subject_id") != 7, "missing_split"),
        (pl.col("split").replace("tuning", "validation"), "unknown_split"),
        (pl.col("split").replace("held_out", None), "missing_split"),
    ],
)
def test_a_subject_without_a_split_of_ours_is_not_trained_on(
    events: Path, tmp_path: Path, change: pl.Expr, code: str
) -> None:
    path = events / "metadata" / "subject_splits.parquet"
    splits = pl.read_parquet(path)
    is_filter = splits.select(change).to_series().dtype == pl.Boolean
    changed = splits.filter(change) if is_filter else splits.with_columns(change)
    write_table(changed.to_arrow(), path)
    with pytest.raises(InputError) as caught:
        build_token_store(events, tmp_path / "tokens")
    assert caught.value.code == code
    with pytest.raises(InputError, match="missing_token_store"):
        TokenStore.open(tmp_path / "tokens")


def write_config(store: Path, **changes: Any) -> None:
    path = store / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def write_subjects(store: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    change(pl.read_parquet(store / "subjects.parquet")).write_parquet(store / "subjects.parquet")


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: (s / "code.bin").write_bytes(bytes(40) + (s / "code.bin").read_bytes()),
        lambda s: (s / "code.bin").write_bytes((s / "code.bin").read_bytes()[:-4]),
        lambda s: (s / "value.bin").write_bytes(b""),
        lambda s: (s / "signal.bin").unlink(),
        lambda s: (s / "subjects.parquet").unlink(),
        lambda s: (s / "subjects.parquet").write_bytes(b"PAR1"),
        lambda s: write_subjects(s, lambda frame: frame.drop("length")),
        lambda s: write_subjects(s, lambda frame: frame.drop("split")),
        lambda s: write_subjects(s, lambda frame: frame.with_columns(pl.col("start") + 1)),
        lambda s: (s / "config.json").write_text("[]"),
        lambda s: (s / "config.json").write_text("3"),
        lambda s: write_config(s, n_tokens=None),
        lambda s: write_config(s, n_tokens="7"),
        lambda s: (s / "vocabulary" / "value_scale.npz").write_bytes(
            (s / "vocabulary" / "value_scale.npz").read_bytes()[:300]
        ),
        lambda s: (s / "vocabulary" / "value_scale.npz").unlink(),
    ],
)
def test_a_damaged_store_is_not_opened(
    events: Path, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    build_token_store(events, tmp_path / "tokens")
    damage(tmp_path / "tokens")
    with pytest.raises((InputError, ModelMismatch)):
        TokenStore.open(tmp_path / "tokens")


def test_a_store_is_named_by_what_it_holds(events: Path, tmp_path: Path) -> None:
    one = build_token_store(events, tmp_path / "a")
    assert build_token_store(events, tmp_path / "b").hash == one.hash
    table = pl.concat([read_events(path) for path in shard_paths(events)])
    changes = [
        {"numeric_value": pl.col("numeric_value") + (pl.int_range(pl.len()) == 50)},
        {"code": pl.when(pl.int_range(pl.len()) == 9).then(pl.lit("LAB")).otherwise("code")},
        {"available_time": pl.col("available_time").dt.offset_by("1us")},
        {},
    ]
    hashes = {one.hash}
    for k, change in enumerate(changes):
        root = tmp_path / f"events{k}"
        with EventWriter(root, n_shards=3) as writer:
            writer.add(table.with_columns(**change))
            splits = {**subject_splits(events), **({} if change else {9: "held_out"})}
            writer.finish(dataset={"dataset_name": "made"}, subject_splits=splits)
        other = build_token_store(root, tmp_path / f"tokens{k}", vocabulary_from=tmp_path / "a")
        hashes.add(other.hash)
    assert len(hashes) == 1 + len(changes)


def test_a_store_of_before_is_named_by_a_sample_of_it(events: Path, tmp_path: Path) -> None:
    build_token_store(events, tmp_path / "tokens")
    write_config(tmp_path / "tokens", content_hash=None, watched_until_us=None)
    old = TokenStore.open(tmp_path / "tokens")
    assert TokenStore.open(tmp_path / "tokens").hash == old.hash
    values = bytearray((tmp_path / "tokens" / "value.bin").read_bytes())
    values[400:404] = bytes(4)
    (tmp_path / "tokens" / "value.bin").write_bytes(values)
    assert TokenStore.open(tmp_path / "tokens").hash != old.hash
