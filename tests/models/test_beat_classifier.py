"""The weights that ship find ectopic beats, whatever the gain; a forged directory is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from tsfm.errors import InputError, IntegrityError, ModelMismatch
from tsfm.models.beat_checkpoint import load_beat_classifier, save_beat_classifier
from tsfm.models.beat_classifier import (
    CLASSES,
    BeatClassifier,
    BeatClassifierConfig,
    decide,
    share_v,
)
from tsfm.models.boosted_trees import BoostedTrees
from tsfm.models.checkpoint import PRETRAINED
from tsfm.simulation.waveforms import Beats, simulate_beats, simulate_ecg

FS_HZ, DURATION_S = 250.0, 180.0
N_SAMPLES = round(FS_HZ * DURATION_S)


def simulated(seed: int, *, af: bool = False) -> tuple[Beats, np.ndarray]:
    rng = np.random.default_rng(seed)
    beats = simulate_beats(
        rng, duration_s=DURATION_S, heart_rate_bpm=70, ectopic_fraction=0.0 if af else 0.12,
        atrial_fibrillation=af,
    )  # fmt: skip
    leads = simulate_ecg(rng, fs_hz=FS_HZ, duration_s=DURATION_S, beats=beats)
    return beats, np.stack(list(leads.values()))


@pytest.fixture(scope="module")
def shipped() -> BeatClassifier:
    return load_beat_classifier("ecg-beats")


@pytest.fixture(scope="module")
def record() -> tuple[Beats, np.ndarray]:
    return simulated(0)


def f1_of_v(beats: Beats, samples: np.ndarray, classes: np.ndarray) -> float:
    """F1 of ventricular beats, those within 0.1 s counting as found; classes apart from places."""
    inside = (beats.times_s > 0.5) & (beats.times_s < DURATION_S - 0.5)
    true = beats.times_s[inside & beats.ectopic]
    found = samples[classes == "V"] / FS_HZ
    found = found[(found > 0.5) & (found < DURATION_S - 0.5)]
    hits = (np.abs(true[:, None] - found).min(1, initial=9.0) < 0.1).sum()
    return 2 * hits / (len(true) + len(found))


@pytest.mark.parametrize("n_leads", [1, 2, 3])
def test_ectopic_beats_are_found(
    shipped: BeatClassifier, record: tuple[Beats, np.ndarray], n_leads: int
) -> None:
    beats, ecg = record
    given = np.concatenate([ecg, ecg[:1]])[:n_leads] if n_leads > 1 else ecg[0]
    found = shipped.classify(given, fs_hz=250)
    assert f1_of_v(beats, found.samples, found.classes) > 0.9
    assert found.probability.shape == (len(found), 4)
    np.testing.assert_allclose(found.probability.sum(1), 1)
    assert set(found.classes.tolist()) <= set(CLASSES)
    assert "beats" in found._repr_html_()


def test_ectopic_beats_at_given_places_are_found(
    shipped: BeatClassifier, record: tuple[Beats, np.ndarray]
) -> None:
    beats, ecg = record
    at = np.rint(beats.times_s * FS_HZ).astype(np.int64)
    at = at[(at >= 0) & (at < N_SAMPLES)]
    found = shipped.classify(ecg, fs_hz=FS_HZ, r_peaks=at)
    np.testing.assert_array_equal(found.samples, at)
    assert f1_of_v(beats, found.samples, found.classes) > 0.9


def test_gain_and_offset_change_nothing(
    shipped: BeatClassifier, record: tuple[Beats, np.ndarray]
) -> None:
    _, ecg = record
    one = shipped.classify(ecg, fs_hz=FS_HZ)
    other = shipped.classify(ecg * np.array([[1000.0], [0.01]]), fs_hz=FS_HZ)
    np.testing.assert_array_equal(one.samples, other.samples)
    np.testing.assert_array_equal(one.classes, other.classes)


def test_a_gap_costs_its_own_beats(
    shipped: BeatClassifier, record: tuple[Beats, np.ndarray]
) -> None:
    _, ecg = record
    whole = shipped.classify(ecg, fs_hz=FS_HZ)
    start, stop = 20_000, 22_500
    broken = ecg.copy()
    broken[:, start:stop] = np.nan
    for r_peaks in (None, whole.samples):
        found = shipped.classify(broken, fs_hz=FS_HZ, r_peaks=r_peaks)
        assert not ((found.samples >= start) & (found.samples < stop)).any()
        near = round(FS_HZ)
        far = (whole.samples < start - near) | (whole.samples >= stop + near)
        same = (found.samples < start - near) | (found.samples >= stop + near)
        np.testing.assert_array_equal(found.samples[same], whole.samples[far])
        assert np.sum(found.classes[same] != whole.classes[far]) <= 1


def test_no_beat_of_fibrillation_is_supraventricular(shipped: BeatClassifier) -> None:
    _, ecg = simulated(1, af=True)
    found = shipped.classify(ecg, fs_hz=FS_HZ)
    assert len(found) > 100
    assert np.mean(found.classes == "S") < 0.02


def test_few_beats_or_none_are_no_error(
    shipped: BeatClassifier, record: tuple[Beats, np.ndarray]
) -> None:
    _, ecg = record
    for nothing in (np.zeros(5000), np.full(5000, np.nan), np.zeros((2, 0)), np.zeros((2, 10))):
        found = shipped.classify(nothing, fs_hz=FS_HZ)
        assert (len(found), found.classes.shape, found.probability.shape) == (0, (0,), (0, 4))
    at = shipped.classify(ecg, fs_hz=FS_HZ).samples
    for n in range(4):
        assert len(shipped.classify(ecg, fs_hz=FS_HZ, r_peaks=at[:n])) == n


def test_what_is_no_record_is_refused(shipped: BeatClassifier) -> None:
    calls: list[tuple[np.ndarray, float, list[int] | None]] = [
        (np.zeros((1, 2, 500)), 250.0, None), (np.zeros((0, 500)), 250.0, None),
        (np.zeros(500), 250.0, [300, 200]), (np.zeros(500), 250.0, [500]),
        (np.zeros(500), 250.0, [-1]), (np.zeros(500), 60.0, [100]), (np.zeros(500), 20.0, None),
        (np.zeros(500), float("nan"), None), (np.zeros(500), 0.0, [100]),
    ]  # fmt: skip
    for ecg, fs_hz, r_peaks in calls:
        with pytest.raises(InputError):
            shipped.classify(ecg, fs_hz=fs_hz, r_peaks=r_peaks)


def test_turned_records_and_seconds_are_refused(
    shipped: BeatClassifier, record: tuple[Beats, np.ndarray]
) -> None:
    beats, ecg = record
    with pytest.raises(InputError, match=r"\(leads, samples\)"):
        shipped.classify(ecg[:2].T, fs_hz=FS_HZ)
    for r_peaks in (beats.times_s, [300.0, np.nan], ["300"]):
        with pytest.raises(InputError, match="bad_beats"):
            shipped.classify(ecg, fs_hz=FS_HZ, r_peaks=r_peaks)
    with pytest.raises(InputError, match="bad_beats"):
        shipped.classify(np.ones(1), fs_hz=FS_HZ, r_peaks=[0])
    at = shipped.classify(ecg, fs_hz=FS_HZ).samples
    again = shipped.classify(ecg, fs_hz=FS_HZ, r_peaks=at.astype(np.float64))
    np.testing.assert_array_equal(again.samples, at)


def test_the_class_is_decided_as_it_says() -> None:
    found = np.array([[0.5, 0.1, 0.3, 0.1], [0.5, 0.2, 0.2, 0.1], [0.1, 0.1, 0.6, 0.2],
                      [0.1, 0.1, 0.1, 0.7], [0.3, 0.0, 0.0, 0.7]])  # fmt: skip
    regular = np.ones(5, np.bool_)
    assert decide(found, regular, s_scale=4, f_scale=0.3).tolist() == [0, 1, 2, 3, 0]
    assert decide(found, ~regular, s_scale=4, f_scale=0.3).tolist() == [0, 0, 2, 3, 0]


def test_v_is_shared_among_beats_that_look_alike() -> None:
    narrow, wide = np.zeros((2, 2, 85), np.float32)
    narrow[:, 33:37], wide[:, 25:50] = 1.0, -2.0
    windows = np.stack([narrow, wide, narrow, wide, wide, wide * 0.2])
    v = np.array([0.05, 0.9, 0.15, 0.8, 0.1, 0.3])
    found = np.stack([0.6 * (1 - v), 0.3 * (1 - v), v, 0.1 * (1 - v)], 1)
    wholly = share_v(found, windows, 1.0)
    np.testing.assert_allclose(wholly[:, 2], [0.1, 0.6, 0.1, 0.6, 0.6, 0.3], atol=1e-4)
    np.testing.assert_allclose(share_v(found, windows, 0.5)[4, 2], 0.35, atol=1e-4)
    np.testing.assert_allclose(share_v(found, windows, 0.0), found)
    np.testing.assert_allclose(wholly[:, 0], 6 * wholly[:, 3])
    np.testing.assert_allclose(wholly.sum(1), 1)
    certain = share_v(np.array([[0.0, 0.0, 1.0, 0.0]] * 2), windows[:2], 0.8)
    np.testing.assert_array_equal(certain, [[0.0, 0.0, 1.0, 0.0]] * 2)
    assert share_v(found[:0], windows[:0], 0.8).shape == (0, 4)


def small() -> BeatClassifier:
    """One stump a class: the interval before a beat, against the usual one."""
    trees = BoostedTrees(
        n_features=1, n_columns=4, root=np.arange(4, dtype=np.int32),
        column=np.arange(4, dtype=np.int16), feature=np.zeros(4, np.int16),
        threshold=np.full(4, 0.87), left=~np.arange(0, 8, 2, dtype=np.int32),
        right=~np.arange(1, 8, 2, dtype=np.int32), missing=np.zeros(4, np.int8),
        default_left=np.zeros(4, np.bool_), leaf=np.array([0.0, 3, 2, 0, 3, 0, 0, 0]),
    )  # fmt: skip
    return BeatClassifier(trees, BeatClassifierConfig("before_base", 1, 0.12, 2.0, 1.0, 0.3, 0.0))


def test_probabilities_are_without_the_weight_of_the_fit(record: tuple[Beats, np.ndarray]) -> None:
    classifier = small()
    plain = replace(classifier, config=replace(classifier.config, s_weight=1.0))
    weighted, free = (c.classify(record[1], fs_hz=FS_HZ) for c in (classifier, plain))
    np.testing.assert_array_equal(weighted.classes, free.classes)
    odds = [x.probability[:, 1] / x.probability[:, 0] for x in (weighted, free)]
    np.testing.assert_allclose(2 * odds[0], odds[1])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_beat_classifier(tmp_path / "model", small(), facts={"seed": 3})
    return tmp_path / "model"


def sign(folder: Path) -> None:
    """Make the manifest agree, as a careful vandal would."""
    digests = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.iterdir()
        if p.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps(digests))


def configured(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["model"] |= changes
        (folder / "config.json").write_text(json.dumps(config))

    return change


def forged(name: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        arrays = load_file(folder / "model.safetensors")
        arrays[name] = arrays[name].copy()
        arrays[name][0] = value
        save_file(arrays, folder / "model.safetensors")

    return change


FORGED = {
    "an unknown key": configured(code="os.system"),
    "two members": configured(n_members=2),
    "no member": configured(n_members=0),
    "a negative weight": configured(s_scale=-1.0),
    "more than all of V": configured(v_shared=1.5),
    "a text": configured(irregular="0.12"),
    "no feature": configured(features=" "),
    "a far node": forged("left", 4),
    "a ring": forged("root", 1),
    "an endless leaf": forged("leaf", np.nan),
}


def test_it_comes_back_as_it_was_stored(saved: Path, tmp_path: Path) -> None:
    found = load_beat_classifier(saved)
    assert (found.config, found.facts) == (small().config, {"seed": 3})
    for name, array in small().trees.state().items():
        np.testing.assert_array_equal(found.trees.state()[name], array)
    assert save_beat_classifier(tmp_path / "again", found) == found.hash
    assert found.hash[:12] in found._repr_html_()
    with pytest.raises(InputError, match="output_exists"):
        save_beat_classifier(saved, found)


@pytest.mark.parametrize("kind", FORGED)
def test_forged_parts_are_refused(saved: Path, kind: str) -> None:
    FORGED[kind](saved)
    with pytest.raises(IntegrityError, match="model_changed"):
        load_beat_classifier(saved)
    sign(saved)
    with pytest.raises(ModelMismatch):
        load_beat_classifier(saved)


def test_a_classifier_of_before_v_was_shared_is_read_as_it_was(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    del config["model"]["v_shared"]
    (saved / "config.json").write_text(json.dumps(config))
    sign(saved)
    assert load_beat_classifier(saved).config == small().config


def test_torn_weights_are_refused(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(IntegrityError, match="model_changed"):
        load_beat_classifier(saved)
    sign(saved)
    with pytest.raises(IntegrityError, match="bad_weights"):
        load_beat_classifier(saved)


def test_an_unknown_feature_is_refused(saved: Path) -> None:
    configured(features="phase_of_the_moon")(saved)
    sign(saved)
    classifier = load_beat_classifier(saved)
    with pytest.raises(ModelMismatch, match="unknown_features"):
        classifier.classify(np.zeros(5000), fs_hz=FS_HZ, r_peaks=[2000])


def test_the_shipped_card_tells_whose_data_it_is(shipped: BeatClassifier, tmp_path: Path) -> None:
    folder = PRETRAINED / "ecg-beats"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "tsfm"
    for told in ("MIT-BIH", "Open Data Commons Attribution License", "Moody", "201", "## Limits"):
        assert told in card
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2e6
    copy = shutil.copytree(folder, tmp_path / "copy")
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x07")
    with pytest.raises(IntegrityError):
        load_beat_classifier(copy)
