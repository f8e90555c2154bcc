"""Models that come with the package: small, whole, with cards, and loaded by name."""

import json

import numpy as np
import pytest
import torch

import tsfm
from tsfm.models.beat_classifier import BeatClassifier
from tsfm.models.checkpoint import PRETRAINED
from tsfm.models.encoder_directory import EncoderDirectory
from tsfm.models.ppg_encoder_checkpoint import PpgEncoderDirectory
from tsfm.signals.resampling import resample
from tsfm.signals.store import STANDARD_LEADS
from tsfm.simulation.ecg_findings import EcgFindings
from tsfm.simulation.ecg_records import simulate_record

KINDS = {"ecg-encoder": EncoderDirectory, "ppg-encoder": PpgEncoderDirectory,
         "ecg-beats": BeatClassifier}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_they_are_loaded_by_name_and_small(name):
    assert isinstance(tsfm.load(name), KINDS[name])
    folder = PRETRAINED / name
    assert sum(p.stat().st_size for p in folder.rglob("*")) < 10 * 2**20
    card = (folder / "README.md").read_text()
    facts = json.loads((folder / "config.json").read_text())["facts"]
    assert "benchmarks/train_" in card
    assert "Limits" in card
    assert facts["data"]


@pytest.fixture(scope="module")
def encoder():
    return tsfm.load("ecg-encoder")


@pytest.fixture(scope="module")
def records():
    """Eight hearts at 500 Hz."""
    return np.stack([
        simulate_record(np.random.default_rng(i), fs_hz=500.0).signal_mv for i in range(8)
    ])  # fmt: skip


def cosine(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("rate", [100, 125, 250, 360])
def test_a_record_is_the_same_at_every_rate(encoder, records, rate):
    whole = encoder.embed(records, fs_hz=500, leads=STANDARD_LEADS)
    other = resample(records, fs_hz=500.0, to_hz=float(rate)).astype(np.float32)
    assert cosine(whole, encoder.embed(other, fs_hz=rate, leads=STANDARD_LEADS)).min() > 0.99


def test_leads_may_stand_in_any_order(encoder, records):
    order = np.random.default_rng(0).permutation(12)
    turned = encoder.embed(records[:, order], fs_hz=500, leads=[STANDARD_LEADS[i] for i in order])
    usual = encoder.embed(records, fs_hz=500, leads=STANDARD_LEADS)
    np.testing.assert_allclose(turned, usual, atol=1e-4)


def test_a_lead_that_is_missing_is_as_if_it_were_not_named(encoder, records):
    gone = records.copy()
    gone[:, 3:6] = np.nan
    rest = [i for i in range(12) if i not in (3, 4, 5)]
    np.testing.assert_allclose(
        encoder.embed(gone, fs_hz=500, leads=STANDARD_LEADS),
        encoder.embed(records[:, rest], fs_hz=500, leads=[STANDARD_LEADS[i] for i in rest]),
        atol=1e-4,
    )


def test_the_ecg_encoder_tells_wide_from_narrow(encoder):
    """A linear probe of sixty hearts tells left bundle branch block in sixty others."""
    rng = np.random.default_rng(0)

    def hearts(n):
        wide = np.arange(n) % 2
        made = [
            simulate_record(
                rng,
                EcgFindings(rng.uniform(55, 95), qrs_ms=150.0, conduction="lbbb")
                if w
                else EcgFindings(rng.uniform(55, 95)),
                fs_hz=100.0,
            ).signal_mv
            for w in wide
        ]
        return encoder.embed(np.stack(made), fs_hz=100, leads=STANDARD_LEADS), wide

    (x, y), (x_test, y_test) = hearts(60), hearts(60)
    centre = [x[y == k].mean(0) for k in (0, 1)]
    along = (x_test - (centre[0] + centre[1]) / 2) @ (centre[1] - centre[0])
    assert np.mean((along > 0) == y_test) > 0.95


def test_records_with_gaps_and_flat_leads_have_finite_vectors(encoder):
    signal = torch.zeros(2, 12, 1000)
    signal[0, :, 300:600] = torch.nan
    signal[1, 0] = torch.nan
    assert np.isfinite(encoder.embed(signal, fs_hz=100, leads=STANDARD_LEADS)).all()
