"""A data set is shown whole or not at all, in a folder that held nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tsfm import event_table
from tsfm.errors import FormatError, InputError
from tsfm.event_table import EventWriter
from tsfm.signals.store import Lead, SignalWriter

EVENTS = pl.DataFrame(
    {"subject_id": range(40), "time": [datetime(2020, 1, 1)] * 40, "code": ["A"] * 40},
    schema_overrides={"time": pl.Datetime("us")},
)


def finish(root: Path, *, with_signals: bool = True) -> None:
    with EventWriter(root, with_signals=with_signals) as writer:
        writer.add(EVENTS)
        writer.finish(dataset={})


def die_in(root: Path, where: str) -> None:
    """Write the events in a process that is killed when it calls a function for the second time."""
    code = f"""
import os, signal
from datetime import datetime
import polars as pl
from tsfm import event_table, output_folder
events = pl.DataFrame({{"subject_id": range(40), "time": [datetime(2020, 1, 1)] * 40,
                       "code": ["A"] * 40}})
real, calls = {where}, []
def dying(*arguments, **named):
    if calls:
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(1)
    return real(*arguments, **named)
{where} = dying
with event_table.EventWriter({str(root)!r}) as writer:
    writer.add(events)
    writer.add(events)
    writer.finish(dataset={{}})
"""
    ended = subprocess.run([sys.executable, "-c", code], timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "where",
    ["event_table.EventWriter.add", "event_table.write_events", "output_folder.os.rename"],
)
def test_a_killed_run_shows_no_part_and_is_cleared_by_the_next(tmp_path: Path, where: str) -> None:
    root = tmp_path / "out"
    die_in(root, where)
    with pytest.raises(InputError, match="no_events"):
        event_table.shard_paths(root)
    assert [p.name for p in root.iterdir() if p.name.startswith(".unfinished-")]
    finish(root)
    assert sorted(p.name for p in root.iterdir()) == ["data", "metadata"]
    assert sum(shard.height for shard in event_table.scan_events(root)) == 40
    assert len(event_table.subject_splits(root)) == 40


@pytest.mark.parametrize("with_signals", [True, False])
def test_signals_that_a_killed_run_did_not_write_are_kept(
    tmp_path: Path, with_signals: bool
) -> None:
    root = tmp_path / "out"
    signals(root)
    before = {p.name: p.read_bytes() for p in (root / "signals").iterdir()}
    die_in(root, "output_folder.os.rename")  # metadata has its place, the events do not
    if with_signals:
        finish(root)
        assert sorted(p.name for p in root.iterdir()) == ["data", "metadata", "signals"]
    else:
        with pytest.raises(InputError, match="output_exists"):
            finish(root, with_signals=False)
    assert {p.name: p.read_bytes() for p in (root / "signals").iterdir()} == before


def test_a_run_killed_while_it_clears_a_killed_run_leaves_what_can_be_cleared(
    tmp_path: Path,
) -> None:
    root = tmp_path / "out"
    die_in(root, "output_folder.os.rename")  # metadata has its place, the events do not
    die_in(root, "output_folder.shutil.rmtree")
    finish(root)
    assert sorted(p.name for p in root.iterdir()) == ["data", "metadata"]


def test_metadata_that_a_killed_run_did_not_show_are_kept(tmp_path: Path) -> None:
    root = tmp_path / "out"
    die_in(root, "event_table.write_events")
    put("metadata/codes.parquet", "mine")(root)
    with pytest.raises(InputError, match="output_exists"):
        finish(root)
    assert (root / "metadata" / "codes.parquet").read_text() == "mine"


def test_signals_that_a_killed_run_had_shown_are_cleared_with_it(tmp_path: Path) -> None:
    root = tmp_path / "out"
    code = f"""
import os, signal
from pathlib import Path
from tsfm.output_folder import OutputFolder
folder = OutputFolder({str(root)!r}, with_signals=False)
for name in ("signals", "metadata", "data"):
    (folder.unfinished / name).mkdir()
for name in ("index.parquet", "manifest.json"):
    (folder.unfinished / "signals" / name).touch()
rename, calls = os.rename, []
def dying(*arguments):
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(rename(*arguments))
os.rename = dying
folder.show()
"""
    ended = subprocess.run([sys.executable, "-c", code], timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert {"signals", "metadata"} < {p.name for p in root.iterdir()}
    finish(root, with_signals=False)
    assert sorted(p.name for p in root.iterdir()) == ["data", "metadata"]


@pytest.mark.parametrize("root", ["file", "file/below", "link"])
def test_an_output_folder_that_is_a_file_is_refused(tmp_path: Path, root: str) -> None:
    put("file", "mine")(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="output_exists"):
        finish(tmp_path / root)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failed_run_leaves_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    nobody = EVENTS.with_columns(pl.lit(None).alias("subject_id"))
    writer = EventWriter(tmp_path / "out")
    with pytest.raises(FormatError), writer:
        writer.add(nobody)
    assert list((tmp_path / "out").iterdir()) == []


def test_spilled_events_of_an_earlier_version_are_cleared(tmp_path: Path) -> None:
    spill = tmp_path / ".spill-a1b2c3d4"
    spill.mkdir()
    (spill / "3-000012.parquet").write_bytes(b"events")
    finish(tmp_path)
    assert not spill.exists()


def signals(root: Path) -> None:
    lead = Lead("II", "ecg", 250.0, np.arange(9, dtype=np.int16), units="mV", gain=200.0)
    with SignalWriter(root) as writer:
        writer.add([lead], signal_id="s", subject_id=1, record="r", start_time=None)


def put(name: str, text: str = "") -> Callable[[Path], None]:
    def make(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)

    return make


@pytest.mark.parametrize(
    "make",
    [
        put("notes.txt"),
        put(".hidden"),
        put("data/train/0.parquet"),
        put("metadata/dataset.json", "{}"),
        put("quarantine/notes.ndjson", "mine\n"),
        put("quarantine/notes.ndjson", '{"mine": 1}\n'),
        put("quarantine/notes.txt"),
        put("quarantine/below/no_code.ndjson"),
        put("signals/mine.dat"),
        put(".spill-mine/notes.txt"),
        put(".unfinished-work/notes.txt"),
        put("data"),
        lambda root: (root / "data").mkdir(),
        lambda root: (root / "quarantine").symlink_to(root.parent),
    ],
)
def test_a_folder_that_holds_anything_else_is_refused_and_kept(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    root = tmp_path / "out"
    root.mkdir()
    make(root)
    before = {p: p.is_file() and p.read_bytes() for p in root.rglob("*")}
    with pytest.raises(InputError, match="output_exists"):
        finish(root)
    assert {p: p.is_file() and p.read_bytes() for p in root.rglob("*")} == before


def test_what_others_write_beside_a_table_may_be_there(tmp_path: Path) -> None:
    put("quarantine/no_code.ndjson", '{"file": "a.csv", "line": 3}\n{"fi')(tmp_path)
    put("quarantine/bad_time.ndjson")(tmp_path)
    signals(tmp_path)
    (tmp_path / ".signals-7").mkdir()
    with pytest.raises(InputError, match="output_exists"):
        finish(tmp_path, with_signals=False)
    finish(tmp_path)
    assert (tmp_path / "signals" / "index.parquet").is_file()
    assert len(list((tmp_path / "quarantine").iterdir())) == 2


def test_a_live_run_is_told_from_a_dead_one(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as writer:
        writer.add(EVENTS)
        with pytest.raises(InputError, match="output_in_use"):
            finish(tmp_path)
        writer.finish(dataset={})
    with pytest.raises(InputError, match="output_exists"):
        finish(tmp_path)
    assert sum(shard.height for shard in event_table.scan_events(tmp_path)) == 40


def test_a_forked_child_does_not_keep_the_claim(tmp_path: Path) -> None:
    with EventWriter(tmp_path):
        child = os.fork()
        if child == 0:  # pragma: no cover
            time.sleep(60)
            os._exit(0)
    try:
        finish(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert sum(shard.height for shard in event_table.scan_events(tmp_path)) == 40


def test_a_merge_that_was_stopped_half_way_can_be_made_anew(tmp_path: Path) -> None:
    finish(tmp_path)
    records = EVENTS.select("subject_id", "time").with_columns(
        code=pl.lit("ECG"), signal_id=pl.format("r{}", "subject_id")
    )
    event_table.append_events(tmp_path, records.head(15))  # as far as it came
    info = event_table.append_events(tmp_path, records)
    found = pl.concat(event_table.scan_events(tmp_path))
    assert found.filter(pl.col("code") == "ECG")["signal_id"].n_unique() == 40
    assert found.height == info.n_events == 80


def test_without_locks_nothing_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    finish(tmp_path / "out")
    left = tmp_path / "other" / ".unfinished-a1b2c3d4" / "spill"
    left.mkdir(parents=True)
    with pytest.raises(InputError, match="output_exists"):
        finish(tmp_path / "other")
    assert left.is_dir()
