"""An encoder's directory comes back as it was stored, and whatever was done to it is noticed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tsfm.errors import InputError, IntegrityError, ModelMismatch, TsfmError
from tsfm.models.efficientnet1d import EfficientNet1d, EfficientNet1dConfig, standardise
from tsfm.models.ppg_encoder_checkpoint import SegmentSpec, load_ppg_encoder, save_ppg_encoder

SPEC = SegmentSpec(fs_hz=64.0, duration_s=10.0)


@pytest.fixture(scope="module")
def encoder() -> EfficientNet1d:
    torch.manual_seed(0)
    encoder = EfficientNet1d(EfficientNet1dConfig(2, 1))
    encoder(torch.randn(4, 2, 640))  # so that its norms have a history
    return encoder.eval()


@pytest.fixture
def saved(tmp_path: Path, encoder: EfficientNet1d) -> Path:
    save_ppg_encoder(tmp_path / "model", encoder, segments=SPEC, facts={"seed": 3})
    return tmp_path / "model"


def change(folder: Path, **changes: Any) -> None:
    """Change the configuration and make the manifest agree, as a careful vandal would."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    digests = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.iterdir()
        if p.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps(digests))


def test_it_comes_back_bit_for_bit(saved: Path, encoder: EfficientNet1d, tmp_path: Path) -> None:
    found = load_ppg_encoder(saved)
    assert (found.segments, found.facts) == (SPEC, {"seed": 3})
    stored = found.encoder.state_dict()
    assert all(torch.equal(stored[name], value) for name, value in encoder.state_dict().items())
    again = save_ppg_encoder(
        tmp_path / "again", found.encoder, segments=found.segments, facts=found.facts
    )
    assert again == found.hash
    assert not list(tmp_path.glob(".*"))  # nothing half-written is left


def test_half_precision_halves_the_file_and_hardly_moves_a_vector(
    saved: Path, encoder: EfficientNet1d, tmp_path: Path
) -> None:
    save_ppg_encoder(tmp_path / "half", encoder, segments=SPEC, half=True)
    sizes = [(f / "model.safetensors").stat().st_size for f in (tmp_path / "half", saved)]
    assert sizes[0] < 0.7 * sizes[1]
    segments = np.random.default_rng(0).normal(size=(3, 2, 640)).astype(np.float32)
    whole, half = (
        load_ppg_encoder(f).embed(segments, fs_hz=64.0) for f in (saved, tmp_path / "half")
    )
    np.testing.assert_allclose(half, whole, atol=0.01 * float(np.abs(whole).max()))


def test_a_vector_does_not_depend_on_gain_offset_or_neighbours(
    saved: Path, encoder: EfficientNet1d
) -> None:
    found = load_ppg_encoder(saved)
    segments = np.random.default_rng(0).normal(size=(5, 2, 640)).astype(np.float32)
    vectors = found.embed(segments, fs_hz=64.0, batch_size=2)
    assert vectors.shape == (5, 256)
    np.testing.assert_allclose(found.embed(40 * segments + 9, fs_hz=64.0), vectors, atol=1e-4)
    with torch.no_grad():
        expected = encoder(standardise(torch.from_numpy(segments[2:3])))
    np.testing.assert_allclose(vectors[2:3], expected.numpy(), atol=1e-5)
    assert found.embed(segments[:0], fs_hz=64.0).shape == (0, 256)


def _waves(fs_hz: float) -> np.ndarray:
    """Ten seconds of two channels that hold nothing above 8 Hz."""
    t = np.arange(round(10 * fs_hz)) / fs_hz
    waves = [np.sin(2 * np.pi * 1.2 * t) + 0.4 * np.sin(2 * np.pi * f * t) for f in (2.4, 7.0)]
    return np.stack(waves)[None].astype(np.float32)


def test_another_rate_is_brought_to_the_encoders(saved: Path) -> None:
    found = load_ppg_encoder(saved)
    own = found.embed(_waves(64.0), fs_hz=64.0)[0]
    for fs_hz in (100.0, 125.0, 300.0):
        other = found.embed(_waves(fs_hz), fs_hz=fs_hz)[0]
        assert own @ other / np.linalg.norm(own) / np.linalg.norm(other) > 0.99, fs_hz
    gap = _waves(125.0)
    gap[..., 300:500] = np.nan
    assert np.isfinite(found.embed(gap, fs_hz=125.0)).all()
    assert found.embed(gap[:0], fs_hz=125.0).shape == (0, 256)
    with pytest.raises(InputError, match="bad_sampling_rate"):
        found.embed(_waves(64.0), fs_hz=1.0)


@pytest.mark.parametrize("fs_hz", [float("nan"), float("inf"), 0.0, -64.0])
def test_what_is_no_rate_is_refused(saved: Path, fs_hz: float) -> None:
    for n in (0, 1):
        with pytest.raises(InputError, match="bad_sampling_rate"):
            load_ppg_encoder(saved).embed(_waves(64.0)[:n], fs_hz=fs_hz)


def test_an_array_in_any_layout_gives_the_same_vectors(saved: Path) -> None:
    found, waves = load_ppg_encoder(saved), _waves(64.0)
    own = found.embed(waves, fs_hz=64.0)
    for other in (waves[:, ::-1][:, ::-1], waves.astype(">f4"), np.asfortranarray(waves)):
        np.testing.assert_array_equal(found.embed(other, fs_hz=64.0), own)
    with pytest.raises(InputError, match="bad_batch_size"):
        found.embed(waves, fs_hz=64.0, batch_size=0)


def test_other_channels_are_refused(saved: Path) -> None:
    with pytest.raises(ModelMismatch, match="bad_segments"):
        load_ppg_encoder(saved).embed(np.zeros((1, 1, 640)), fs_hz=64.0)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
def test_a_flipped_bit_is_noticed(saved: Path, name: str) -> None:
    data = bytearray((saved / name).read_bytes())
    data[len(data) // 2] ^= 1
    (saved / name).write_bytes(bytes(data))
    with pytest.raises(IntegrityError):
        load_ppg_encoder(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"_target_": "os.system"},
        {"model": {"n_channels": 2, "expansion": 1, "_target_": "os.system"}},
        {"model": {"n_channels": 2, "expansion": 2}},
        {"model": {"n_channels": 2, "expansion": 10**9}},
        {"model": {"n_channels": 2.0, "expansion": 1}},
        {"model": {"n_channels": 2}},
        {"model": 3},
        {"model_type": "timeline"},
        {"format_version": 2},
        {"segments": {"fs_hz": 64.0}},
        {"segments": {"fs_hz": 0.0, "duration_s": 10.0}},
        {"segments": {"fs_hz": "64", "duration_s": 10.0}},
        {"facts": {"a": [1]}},
    ],
    ids=str,
)
def test_a_forged_configuration_is_refused(saved: Path, changes: dict[str, Any]) -> None:
    change(saved, **changes)
    with pytest.raises(ModelMismatch):
        load_ppg_encoder(saved)


def test_it_never_overwrites(saved: Path, encoder: EfficientNet1d) -> None:
    with pytest.raises(InputError, match="output_exists"):
        save_ppg_encoder(saved, encoder, segments=SPEC)


def test_the_card_has_a_header_that_hubs_read(saved: Path) -> None:
    _, header, body = (saved / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "tsfm"
    assert "- seed: 3" in body


def test_what_would_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    encoder = EfficientNet1d(EfficientNet1dConfig(2, 1))
    for long in (SegmentSpec(64.0, 86_400.0), SegmentSpec(50_000.0, 1.0)):
        with pytest.raises(InputError, match="bad_model_config"):
            save_ppg_encoder(tmp_path / "m", encoder, segments=long)
    with torch.no_grad():
        next(encoder.parameters())[0] = 70_000.0  # no number of float16
    with pytest.raises(TsfmError, match="weights_not_finite"):
        save_ppg_encoder(tmp_path / "m", encoder, segments=SPEC, half=True)
    assert not (tmp_path / "m").exists()
    save_ppg_encoder(tmp_path / "m", encoder, segments=SPEC)


def test_infinite_samples_are_refused_and_a_mask_is_kept(saved: Path) -> None:
    found, waves = load_ppg_encoder(saved), _waves(64.0)
    gap = np.zeros(waves.shape, bool)
    gap[..., 100:160] = True
    for fs_hz in (64.0, 100.0):
        with pytest.raises(InputError, match="infinite_signal"):
            found.embed(np.where(gap, np.inf, waves), fs_hz=fs_hz)
        np.testing.assert_array_equal(
            found.embed(np.ma.masked_array(waves, gap), fs_hz=fs_hz),
            found.embed(np.where(gap, np.nan, waves), fs_hz=fs_hz),
        )


def test_a_rate_may_be_any_scalar(saved: Path) -> None:
    found, waves = load_ppg_encoder(saved), _waves(100.0)
    own = found.embed(waves, fs_hz=100.0)
    for fs_hz in (np.float32(100.0), torch.tensor(100)):
        np.testing.assert_array_equal(found.embed(waves, fs_hz=fs_hz), own)
