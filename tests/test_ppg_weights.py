"""The shipped PPG encoder knows a person again, and the scripts around it run in quick form."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tsfm.models.checkpoint import PRETRAINED
from tsfm.models.efficientnet1d import EfficientNet1dConfig
from tsfm.models.ppg_encoder_checkpoint import (
    PpgEncoderDirectory,
    SegmentSpec,
    load_ppg_encoder,
)
from tsfm.signals.resampling import resample
from tsfm.simulation.ppg_participants import (
    draw_participant,
    simulate_cohort,
    simulate_participant,
)
from tsfm.training.participant_contrast import participant_retrieval

NAME = "ppg-encoder"


@pytest.fixture(scope="module")
def shipped() -> PpgEncoderDirectory:
    return load_ppg_encoder(NAME)


def cosine(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def cohort(n_people: int, n_segments: int, seed: int) -> tuple[NDArray, NDArray]:
    return simulate_cohort(
        np.random.default_rng([880_001, seed]), n_participants=n_people, n_segments=n_segments,
        fs_hz=64.0, duration_s=32.0,
    )  # fmt: skip


def run(repository: Path, script: str, *more: str) -> tuple[str, dict]:
    """What a script prints in its quick form, and its last line."""
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", "--quick", *more],
        cwd=repository, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, json.loads(done.stdout.strip().splitlines()[-1])


def test_the_weights_load_by_name_and_tell_what_they_are(shipped: PpgEncoderDirectory) -> None:
    assert shipped.encoder.config.n_channels == 1
    assert shipped.segments.fs_hz == 64.0
    assert "simulated people only" in shipped.facts["data"]
    folder = PRETRAINED / NAME
    assert sum(f.stat().st_size for f in folder.iterdir()) < 10e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "simulated people only" in card
    assert "of the" in shipped.facts["weights"]


def test_a_segment_says_the_same_whichever_rate_it_was_recorded_at(
    shipped: PpgEncoderDirectory,
) -> None:
    rng = np.random.default_rng(1)
    for _ in range(4):
        person = draw_participant(rng)
        recorded = simulate_participant(rng, person, fs_hz=500.0, duration_s=32.0)
        read = [
            resample(resample(recorded, fs_hz=500.0, to_hz=fs_hz), fs_hz=fs_hz, to_hz=64.0)
            for fs_hz in (64.0, 125.0)
        ]
        vectors = shipped.embed(np.array(read, np.float32)[:, None], fs_hz=64.0)
        assert vectors.shape == (2, 256)
        assert cosine(vectors[0], vectors[1]) > 0.99


def test_units_do_not_matter_and_gaps_leave_numbers(shipped: PpgEncoderDirectory) -> None:
    segments, _ = cohort(3, 1, seed=2)
    whole = shipped.embed(segments, fs_hz=64.0)
    assert np.allclose(shipped.embed(7000 + 30 * segments, fs_hz=64.0), whole, atol=1e-2)
    holed = segments.copy()
    holed[:, :, 100:160] = np.nan
    holed[2] = np.nan  # the sensor was off
    vectors = shipped.embed(holed, fs_hz=64.0)
    assert np.isfinite(vectors).all()
    assert all(cosine(vectors[i], whole[i]) > 0.9 for i in range(2))


def test_two_segments_of_a_person_are_nearer_than_those_of_two(
    shipped: PpgEncoderDirectory,
) -> None:
    segments, people = cohort(24, 2, seed=3)
    vectors = shipped.embed(segments, fs_hz=64.0)
    unit = vectors - vectors.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    similar = unit @ unit.T
    same = people[:, None] == people[None, :]
    own = similar[same & ~np.eye(len(people), dtype=bool)]
    assert own.mean() > similar[~same].mean() + 0.3
    # A rank that chance gives one time in two: own against each stranger.
    assert (own[:, None] > similar[~same].reshape(len(own), -1)).mean() > 0.9
    assert participant_retrieval(vectors, people) > 0.5  # chance: 1 in 47


@pytest.mark.slow
def test_the_augmentations_are_timed_against_the_published_way(repository: Path) -> None:
    printed, found = run(repository, "signal_augment_speed.py")
    assert found["speedup"] == pytest.approx(found["ms_numpy"] / found["ms_ours"], rel=0.02)
    assert found["speedup"] > 1.0
    assert all(name in printed for name in ("cut_out", "time_warp", "channel_permute"))


def test_the_training_goes_on_where_it_stopped(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    script = importlib.import_module("train_ppg_encoder")
    form = (
        EfficientNet1dConfig(1, 1), replace(script.HOW, n_steps=3, n_participants_per_batch=4),
        SegmentSpec(64.0, 4.0),
    )  # fmt: skip
    whole, losses, _ = script.train(*form, tmp_path / "whole")
    _, first, _ = script.train(*form, tmp_path / "parts", stop_after=2)
    parts, again, _ = script.train(*form, tmp_path / "parts")
    assert len(first) == 2
    assert again == losses
    for name, tensor in parts.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name


@pytest.mark.slow
def test_the_training_script_writes_a_model(repository: Path, tmp_path: Path) -> None:
    save = tmp_path / "model"
    _, found = run(
        repository, "train_ppg_encoder.py", "--out", str(tmp_path / "run"), "--save", str(save)
    )
    assert found["steps"] == 3
    written = load_ppg_encoder(save)
    assert written.facts["weights"] == f"of the {found['weights']}"


@pytest.mark.slow
def test_the_embedding_is_compared_with_random_weights_and_features_by_hand(
    repository: Path,
) -> None:
    printed, found = run(repository, "ppg_embedding.py")
    for part in ("simulated", "recordings"):
        assert {"ppg-encoder", "random weights", "features by hand"} <= set(found[part])
        assert all(name in printed for name in found[part])
    ours = found["simulated"]["ppg-encoder"]
    assert 0 <= ours["retrieval"] <= 1
    assert 1 <= ours["effective_rank"] <= 256
    assert found["recordings"]["finder of pulses"]["hr_mae_bpm"] < 3
