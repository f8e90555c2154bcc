"""Hostile WFDB records are set aside with a reason: no hang, no memory, no other error."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsfm.ingest.provenance import IngestSummary
from tsfm.ingest.wfdb_headers import RecordError, parse_header
from tsfm.ingest.wfdb_records import ingest_wfdb
from tsfm.signals.store import SignalStore

GOOD = "16 200/mV 16 0 0 4950 0 II"


def write_raw(folder: Path, name: str, header: str | bytes) -> None:
    """A record of 100 samples of format 16 with the given header."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.dat").write_bytes(np.arange(100, dtype="<i2").tobytes())
    (folder / f"{name}.hea").write_bytes(header.encode() if isinstance(header, str) else header)


def ingest_beside_a_good_record(tmp_path: Path) -> IngestSummary:
    """Read `tmp_path/in` after adding one good record, which the others must not spoil."""
    write_raw(tmp_path / "in" / "good", "good", f"good 1 250 100\ngood.dat {GOOD}\n")
    start, memory = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    summary = ingest_wfdb(tmp_path / "in", tmp_path / "out", max_quarantined=1.0)
    assert time.perf_counter() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000  # KiB
    assert summary.rows_used == {"record": 1}
    assert summary.rows_read["record"] == (
        1 + sum(summary.quarantined.values()) + sum(summary.rows_ignored.values())
    )
    assert SignalStore(tmp_path / "out").index["record"].to_list() == ["good/good"]
    return summary


@pytest.mark.parametrize(
    ("reason", "header"),
    [
        ("empty_header", b""),
        ("empty_header", b"# only a comment\n"),
        ("bad_header", b"r\0 1 250 100\nr.dat 16\n"),
        ("bad_header", bytes(range(1, 256))),
        ("bad_header", "r 99999999 250 100\n" + f"r.dat {GOOD}\n"),
        ("bad_header", f"r 2 250 100\nr.dat {GOOD}\n"),
        ("bad_header", f"r -1 250 100\nr.dat {GOOD}\n"),
        ("bad_header", "r 1 250 100\nr.dat 16 200/mV 16 0 0 x 0 II\n"),
        ("bad_header", "r 1 250 100\nr.dat 16x0 200\n"),
        ("bad_header", "r 1 250 100\nr.dat 16x1000000000 200\n"),
        ("bad_header", "r 1 250 100\nr.dat 16:100 200\n"),
        ("bad_header", "r 1 250 100\nr.dat 16 1e999\n"),
        ("bad_header", "r 1 250 100\nr.dat 16 nan/mV\n"),
        ("bad_header", f"r 2 250 50\nr.dat {GOOD}\nr.dat 212 200\n"),
        ("bad_header", f"r 3 250 30\nr.dat {GOOD}\ns.dat {GOOD}\nr.dat {GOOD}\n"),
        ("header_too_large", "r 1 250 100\nr.dat 16 " + "9" * 60_000 + "\n"),
        ("header_too_large", b"#" * (2**20 + 1)),
        ("bad_sampling_rate", f"r 1 0 100\nr.dat {GOOD}\n"),
        ("bad_sampling_rate", f"r 1 -250 100\nr.dat {GOOD}\n"),
        ("bad_sampling_rate", f"r 1 nan 100\nr.dat {GOOD}\n"),
        ("bad_sampling_rate", f"r 1 inf 100\nr.dat {GOOD}\n"),
        ("bad_sampling_rate", f"r 1 1e400 100\nr.dat {GOOD}\n"),
        ("no_sampling_rate", f"r 1\nr.dat {GOOD}\n"),
        ("truncated_signal_file", f"r 1 250 1000000000000\nr.dat {GOOD}\n"),
        ("truncated_signal_file", f"r 1 250 101\nr.dat {GOOD}\n"),
        ("truncated_signal_file", "r 1 250 100\nr.dat 16+1 200\n"),
        ("truncated_signal_file", "r 1 250 1000000000000\nr.dat 516 200\n"),
        ("checksum_mismatch", "r 1 250 100\nr.dat 16 200/mV 16 0 0 4951 0 II\n"),
        ("missing_signal_file", f"r 1 250 100\nother.dat {GOOD}\n"),
        ("no_samples", "r 1 250 0\nr.dat 16+200 200\n"),
        ("bad_sampling_rate", f"r 1 .00000000000000000001 100\nr.dat {GOOD}\n"),
        ("bad_sampling_rate", f"r 1 1e-20 100\nr.dat {GOOD}\n"),
        ("bad_sampling_rate", f"r 1 .0000000001 100 10:00:00 01/02/2020\nr.dat {GOOD}\n"),
        ("time_out_of_range", f"r 1 .00001 100 10:00:00 31/12/2999\nr.dat {GOOD}\n"),
        ("bad_header", "r 1 250 100\nr.dat 16 1e-300/mV\n"),
        ("bad_header", "r 1 250 100\nr.dat 16 -1e300/mV\n"),
        ("bad_header", "r 1 250 100\nr.dat 16 200/mV 16 999999999999999\n"),
        ("bad_header", "r 1 250 100\nr.dat 16 200(9999999999)/mV 16 0\n"),
        ("bad_time", f"r 1 250 100 10:00:00 99/99/9999\nr.dat {GOOD}\n"),
        ("bad_time", f"r 1 250 100 25:00:00 01/01/2030\nr.dat {GOOD}\n"),
        ("time_out_of_range", f"r 1 250 100 10:00:00 01/01/0001\nr.dat {GOOD}\n"),
        ("unsupported_format", "r 1 250 100\nr.dat 999 200\n"),
        ("unsafe_file_name", f"r 1 250 100\n../secret.dat {GOOD}\n"),
        ("unsafe_file_name", f"r 1 250 100\n/etc/passwd {GOOD}\n"),
        ("unsafe_file_name", f"r 1 250 100\nhttp://127.0.0.1/x {GOOD}\n"),
        ("unsafe_file_name", f"r 1 250 100\nmemory://x {GOOD}\n"),
        ("unsafe_file_name", f"r 1 250 100\n- {GOOD}\n"),
        ("nested_segments", "r/1 1 250 100\nr 100\n"),
        ("unsafe_file_name", "r/1 1 250 100\n../x 100\n"),
        ("missing_segment", "r/2 1 250 200\nnone 100\nnone 100\n"),
        ("inconsistent_segments", "r/2 1 250 200\n~ 10\n~ 100\n"),
        ("no_measurement", "r/1 1 250 536870912\n~ 536870912\n"),
        ("bad_header", "r/2 1 250 200\n~ 200\n"),
        ("bad_header", "r/0 1 250 200\n"),
    ],
)
def test_a_hostile_header_is_set_aside(tmp_path: Path, reason: str, header: str | bytes) -> None:
    write_raw(tmp_path / "in", "r", header)
    assert ingest_beside_a_good_record(tmp_path).quarantined == {reason: 1}


def test_a_rate_may_have_an_exponent_and_a_length_may_be_nought(tmp_path: Path) -> None:
    for name, line in (("plain", "360 100"), ("power", "3.6e2 100"), ("open", "360. 0")):
        folder = tmp_path / "in" / name
        write_raw(folder, name, f"{name} 1 {line}\n{name}.dat {GOOD}\n")
    assert ingest_wfdb(tmp_path / "in", tmp_path / "out").rows_used == {"record": 3}
    index = SignalStore(tmp_path / "out").index
    assert index["fs_hz"].to_list() == [360.0] * 3
    assert index["n_samples"].to_list() == [100] * 3


def test_an_absent_initial_value_is_the_adc_zero(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "r.dat").write_bytes(np.array([1, 2, -1], dtype=np.int8).tobytes())
    (folder / "r.hea").write_text("r 1 250 3\nr.dat 8 200/mV 12 1024\n")
    ingest_wfdb(folder, tmp_path / "out")
    store = SignalStore(tmp_path / "out")
    signal_id = store.index["signal_id"][0]
    assert store.read_digital(signal_id, "signal 1").tolist() == [1025, 1027, 1026]
    np.testing.assert_allclose(store.read(signal_id, "signal 1") * 200, [1, 3, 2])


def test_segments_that_name_each_other_are_set_aside(tmp_path: Path) -> None:
    write_raw(tmp_path / "in", "a", "a/1 1 250 100\nb 100\n")
    write_raw(tmp_path / "in", "b", "b/1 1 250 100\na 100\n")
    assert ingest_beside_a_good_record(tmp_path).quarantined == {"nested_segments": 2}


def test_a_small_segment_in_a_huge_gap_asks_for_no_disk(tmp_path: Path) -> None:
    write_raw(tmp_path / "in", "a", "a/2 1 250 400000100\ns 100\n~ 400000000\n")
    write_raw(tmp_path / "in", "s", f"s 1 250 100\ns.dat {GOOD}\n")
    summary = ingest_beside_a_good_record(tmp_path)
    assert summary.quarantined == {"record_too_large": 1}
    assert summary.rows_ignored == {"segment of another record": 1}


def test_segments_of_unequal_rate_are_set_aside(tmp_path: Path) -> None:
    write_raw(tmp_path / "in", "a", "a/2 1 250 200\ns 100\nt 100\n")
    write_raw(tmp_path / "in", "s", f"s 1 250 100\ns.dat {GOOD}\n")
    write_raw(tmp_path / "in", "t", f"t 1 500 100\nt.dat {GOOD}\n")
    assert ingest_beside_a_good_record(tmp_path).quarantined == {"inconsistent_segments": 1}


@pytest.mark.parametrize("name", ["link.dat", "link.hea"])
def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path, name: str) -> None:
    write_raw(tmp_path / "outside", "secret", f"link 1 250 100\nlink.dat {GOOD}\n")
    write_raw(tmp_path / "in", "link", f"link 1 250 100\nlink.dat {GOOD}\n")
    (tmp_path / "in" / name).unlink()
    (tmp_path / "in" / name).symlink_to(tmp_path / "outside" / f"secret{name[4:]}")
    assert ingest_beside_a_good_record(tmp_path).quarantined == {"outside_source": 1}


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    write_raw(tmp_path / "in" / "raw", "r", f"r 1 250 100\nr.dat {GOOD}\n")
    (tmp_path / "in" / "r.hea").write_text(f"r 1 250 100\nr.dat {GOOD}\n")
    (tmp_path / "in" / "r.dat").symlink_to("raw/r.dat")
    summary = ingest_wfdb(tmp_path / "in", tmp_path / "out")
    assert summary.rows_used == {"record": 2}


def test_a_link_to_a_folder_is_counted(tmp_path: Path) -> None:
    write_raw(tmp_path / "outside", "r", f"r 1 250 100\nr.dat {GOOD}\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "sub").symlink_to(tmp_path / "outside")
    summary = ingest_beside_a_good_record(tmp_path)
    assert "1 links to folders were not followed" in summary.notes


@pytest.mark.parametrize("name", ["r.dat", "r.hea"])
def test_a_pipe_is_not_waited_on(tmp_path: Path, name: str) -> None:
    write_raw(tmp_path / "in", "r", f"r 1 250 100\nr.dat {GOOD}\n")
    (tmp_path / "in" / name).unlink()
    os.mkfifo(tmp_path / "in" / name)
    assert ingest_beside_a_good_record(tmp_path).quarantined == {"not_a_regular_file": 1}


def test_a_folder_or_a_link_to_itself_is_no_signal_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_raw(tmp_path / "in", name, f"{name} 1 250 100\n{name}.dat {GOOD}\n")
        (tmp_path / "in" / f"{name}.dat").unlink()
    (tmp_path / "in" / "a.dat").mkdir()
    (tmp_path / "in" / "b.dat").symlink_to("b.dat")
    summary = ingest_beside_a_good_record(tmp_path)
    assert summary.quarantined == {"not_a_regular_file": 1, "unreadable_file": 1}


def test_a_name_that_is_no_text_is_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_raw(folder, "r", f"r 1 250 100\nr.dat {GOOD}\n")
    os.rename(folder / "r.hea", os.path.join(os.fsencode(folder), b"\xff.hea"))
    assert ingest_beside_a_good_record(tmp_path).quarantined == {"unsafe_file_name": 1}


def test_a_folder_name_is_no_chain_of_file_systems(tmp_path: Path) -> None:
    write_raw(tmp_path / "in" / "zip::x", "r", f"r 1 250 100\nr.dat {GOOD}\n")
    assert ingest_beside_a_good_record(tmp_path).quarantined == {"unsafe_file_name": 1}


def test_comments_and_contents_are_not_copied_to_the_quarantine(tmp_path: Path) -> None:
    write_raw(tmp_path / "in", "r", f"r 1 0 100\nr.dat {GOOD}\n# Name: Jane Doe\n")
    ingest_beside_a_good_record(tmp_path)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(b"Jane" in path.read_bytes() for path in files)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_else(raw: bytes) -> None:
    reason = "none"
    try:
        parse_header(raw)
    except RecordError as error:
        reason = error.reason
    assert reason.replace("_", "").isalpha()


WORDS = "r r/2 1 0 -1 250 1/2(3) 100 r.dat ~ 16 8 212 516 80x2:1+4 200/mV 10:00:00 1/1/2000 II # é"
tokens = st.sampled_from([*WORDS.split(), "\n", "\n", "\n", "\t", "\x85"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(tokens, max_size=14), min_size=1, max_size=3))
def test_random_headers_never_break_a_run(
    tmp_path_factory: pytest.TempPathFactory, headers: list[list[str]]
) -> None:
    folder = tmp_path_factory.mktemp("random")
    write_raw(folder / "in", "good", f"good 1 250 100\ngood.dat {GOOD}\n")
    for number, parts in enumerate(headers):
        write_raw(folder / "in", f"h{number}", " ".join(parts))
        (folder / "in" / "r.dat").write_bytes(b"x" * 40)
    summary = ingest_wfdb(folder / "in", folder / "out", max_quarantined=1.0)
    assert summary.rows_read["record"] == (
        summary.rows_used["record"]
        + sum(summary.quarantined.values())
        + sum(summary.rows_ignored.values())
    )
    SignalStore(folder / "out").verify()
