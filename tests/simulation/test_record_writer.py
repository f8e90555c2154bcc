"""Written records come back as they were, or are refused."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tsfm.errors import InputError
from tsfm.ingest.wfdb_records import ingest_wfdb
from tsfm.signals.store import SignalStore
from tsfm.simulation.record_writer import write_record
from tsfm.simulation.waveforms import simulate_beats, simulate_ecg, simulate_ppg


def test_written_records_come_back_at_their_own_rates(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    beats = simulate_beats(rng, duration_s=20, heart_rate_bpm=66)
    signals = {
        **simulate_ecg(rng, fs_hz=250, duration_s=20, beats=beats),
        "PPG": simulate_ppg(rng, fs_hz=125, duration_s=20, beat_times_s=beats.times_s),
    }
    signals["V5"][100:150] = np.nan
    start = datetime(2031, 5, 6, 7, 8, 9)
    rates = {"II": 250, "V5": 250, "PPG": 125}
    header = write_record(tmp_path / "in", "r-1", signals, fs_hz=rates, start_time=start)
    assert header.is_file()
    summary = ingest_wfdb(tmp_path / "in", tmp_path / "out")
    assert summary.events_by_class == {"ECG": 1, "PPG": 1}
    store = SignalStore(tmp_path / "out")
    record = store.read_record(store.index["signal_id"][0])
    assert record.leads == ("II", "V5", "PPG")
    assert record.fs_hz == (250.0, 250.0, 125.0)
    assert record.units == ("mV", "mV", "NU")
    assert record.start_time == start
    for name, values in zip(record.leads, record.values, strict=True):
        step = 1 / store.index.filter(lead=name)["gain"][0]
        assert step <= 0.001
        np.testing.assert_allclose(values, signals[name], atol=step / 2 + 1e-7)
    assert np.isnan(record.values[1]).sum() == 50


def test_signals_of_unequal_duration_are_refused(tmp_path: Path) -> None:
    signals = {"II": np.zeros(500), "PPG": np.zeros(200)}
    with pytest.raises(InputError) as caught:
        write_record(tmp_path, "r", signals, fs_hz={"II": 250, "PPG": 125}, start_time=None)
    assert caught.value.code == "unequal_durations"


@pytest.mark.parametrize(("unit", "size"), [("V", 1e-3), ("mV", 1.0), ("nV", 1e6)])
def test_the_gain_uses_the_bits_in_any_unit(tmp_path: Path, unit: str, size: float) -> None:
    values = np.sin(np.arange(500) / 20) * size
    write_record(
        tmp_path / "in", "r", {"II": values}, fs_hz=250, start_time=None, units={"II": unit}
    )
    ingest_wfdb(tmp_path / "in", tmp_path / "out")
    store = SignalStore(tmp_path / "out")
    found = store.read(store.index["signal_id"][0], "II")
    np.testing.assert_allclose(found, values, atol=size / 5000)


def test_what_lies_below_the_finest_step_is_nought(tmp_path: Path) -> None:
    signals = {"II": np.full(500, 1e-310), "V5": np.zeros(500), "V6": np.full(500, np.nan)}
    write_record(tmp_path / "in", "r", signals, fs_hz=250, start_time=None)
    ingest_wfdb(tmp_path / "in", tmp_path / "out")
    store = SignalStore(tmp_path / "out")
    assert store.index["lead"].to_list() == ["II", "V5"]
    assert not store.read(store.index["signal_id"][0], "II").any()


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("bad_record", {"name": "a b"}),
        ("bad_record", {"signals": {}}),
        ("bad_sampling_rate", {"fs_hz": 0.0007}),
        ("bad_sampling_rate", {"fs_hz": 360.12345678}),
        ("bad_sampling_rate", {"fs_hz": float("inf")}),
        ("bad_sampling_rate", {"fs_hz": float("nan")}),
        ("bad_sampling_rate", {"fs_hz": -250}),
        ("bad_sampling_rate", {"fs_hz": {"V5": 250}}),
        ("bad_signal", {"signals": {"II": np.array([0.0, np.inf])}}),
        ("bad_signal", {"signals": {"II": np.array([0.0, 1e30])}}),
        ("bad_signal", {"signals": {"II": np.zeros(0)}}),
        ("bad_signal", {"signals": {"II": np.zeros((2, 2))}}),
        ("bad_signal", {"signals": {"II": np.zeros(())}}),
        ("bad_time", {"start_time": datetime(2030, 1, 1, tzinfo=UTC)}),
        ("unknown_lead", {"units": {"I I": "V"}}),
        ("bad_record", {"units": {"II": ""}}),
        ("bad_record", {"units": {"II": "mm Hg"}}),
        ("bad_record", {"signals": {"": np.zeros(4)}}),
        ("bad_record", {"signals": {"II ": np.zeros(4)}}),
        ("bad_record", {"signals": {"II\nV5": np.zeros(4)}}),
    ],
    ids=str,
)
def test_what_the_format_can_not_say_is_refused(
    tmp_path: Path, code: str, changes: dict[str, Any]
) -> None:
    usual = {"name": "r", "signals": {"II": np.zeros(4)}, "fs_hz": 250, "start_time": None}
    with pytest.raises(InputError) as caught:
        write_record(tmp_path, **{**usual, **changes})
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fs_hz", [250, 249.89, 62.4725, 1000 / 3, 0.125])
def test_a_rate_that_is_a_fraction_comes_back(tmp_path: Path, fs_hz: float) -> None:
    write_record(tmp_path / "in", "r", {"II": np.ones(9)}, fs_hz=fs_hz, start_time=None)
    ingest_wfdb(tmp_path / "in", tmp_path / "out")
    assert SignalStore(tmp_path / "out").index["fs_hz"][0] == pytest.approx(fs_hz, rel=1e-9)
