"""The benchmark of R peaks runs, counts right, and says whose records chose the constants."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tsfm.evaluation.beat_matching import match_beats

KEYS = {"se_50ms", "ppv_50ms", "se_150ms", "ppv_150ms", "cpu_s_per_24h"}


@pytest.fixture
def load(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    pytest.importorskip("wfdb")
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    return importlib.import_module


def test_the_quick_form_ends_with_the_keys_of_the_whole(repository: Path) -> None:
    pytest.importorskip("wfdb")
    done = subprocess.run(
        [sys.executable, "benchmarks/rpeaks.py", "--quick", "--noise"],
        cwd=repository, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert set(found) >= KEYS | {"peers", "noise", "mean_drop"}
    assert found["se_50ms"] > 95
    assert found["ppv_50ms"] > 95
    for peer in found["peers"].values():
        assert set(peer) >= KEYS
        value, low, high = peer["ours_less"]["f1_50ms"]
        assert low <= value <= high
    named = {"ours", *found["peers"]}
    assert set(found["noise"]) == {"none", "wander", "muscle", "electrode"}
    for kind in found["noise"].values():
        assert all(set(row) == named for row in kind.values())
    assert found["mean_drop"].keys() == named


def test_differences_are_those_of_pooled_counts(load: Callable[[str], ModuleType]) -> None:
    rpeaks = load("rpeaks")
    ours = [np.array([[9, 1, 0], [10, 0, 0]]), np.array([[20, 0, 2], [20, 0, 2]])]
    peer = [np.array([[5, 5, 5], [8, 2, 2]]), np.array([[20, 0, 2], [20, 0, 2]])]
    found = rpeaks.differences(ours, peer, ["a", "b"])
    value, low, high = found["f1_50ms"]
    f1 = 100 * 2 * 29 / (2 * 29 + 1 + 2), 100 * 2 * 25 / (2 * 25 + 5 + 7)
    assert value == pytest.approx(f1[0] - f1[1], abs=1e-3)
    assert low == 0  # resamples of the second person alone: no difference
    assert high == pytest.approx(100 * 18 / 19 - 50, abs=1e-3)  # of the first alone


def test_records_of_a_person_who_chose_the_constants_are_named(
    load: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    rpeaks, mitdb = load("rpeaks"), load("mitdb_records")
    for name in ("201", "208"):
        (tmp_path / f"{name}.atr").touch()
    empty = np.zeros((1, 9), np.float32), np.zeros(0, np.int64), np.zeros(0, np.str_)
    records = [
        mitdb.BeatRecord(name, mitdb.ONE_PERSON.get(name, name), 360.0, ("MLII",), *empty)
        for name in ("200", "202", "208")
    ]
    assert rpeaks.known_persons(tmp_path, records) == ["202", "208"]
    assert rpeaks.known_persons(tmp_path, records[:1]) == []


@pytest.mark.parametrize("kind", ["wander", "muscle", "electrode"])
def test_noise_has_the_ratio_it_was_asked_for(load: Callable[[str], ModuleType], kind: str) -> None:
    from tsfm.simulation import signal_noise as noise

    t = np.arange(60 * 360) / 360.0
    signal = np.sin(2 * np.pi * 8 * t)
    for snr_db in (24, 0, -6):
        added = noise.add_noise(signal, kind, snr_db, 360.0, seed=1) - signal
        ratio = signal.std() / added.std()
        assert 20 * np.log10(ratio) == pytest.approx(snr_db, abs=0.3)
    again = noise.add_noise(signal, kind, 0, 360.0, seed=1)
    assert np.array_equal(again, noise.add_noise(signal, kind, 0, 360.0, seed=1))
    assert not np.array_equal(again, noise.add_noise(signal, kind, 0, 360.0, seed=2))


def test_scores_of_the_known_records_do_not_fall(
    load: Callable[[str], ModuleType], data_dir: Callable[[str], Path]
) -> None:
    """What the issue asks of DS1, on every tenth record of it."""
    records = load("mitdb_records")
    folder = data_dir("wfdb/mitdb")
    counts = {18: np.zeros(3), 54: np.zeros(3)}
    from tsfm.signals.beats import find_r_peaks

    for name in ("108", "203", "230"):
        record = records._read(folder, name)
        peaks = find_r_peaks(record.signal[0], fs_hz=record.fs_hz)
        for tolerance, total in counts.items():
            match = match_beats(record.beats, peaks, tolerance=tolerance)
            total += (match.n_matched, match.n_missed, match.n_extra)
    for tolerance, must in ((18, 0.98), (54, 0.99)):
        hit, missed, extra = counts[tolerance]
        assert hit / (hit + missed) > must
        assert hit / (hit + extra) > must
