"""An encoder in a researcher's hands takes arrays of any layout, and millivolts only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tsfm.errors import InputError
from tsfm.models.biosignal_encoder import BiosignalConfig, BiosignalEncoder
from tsfm.models.encoder_directory import EncoderDirectory
from tsfm.simulation.waveforms import simulate_ecg

SMALL = BiosignalConfig(
    d_model=8, n_layers=1, d_state=2, n_filters=2, stem_width=4, n_summary=1, d_embedding=4
)
LEADS = ("I", "II", "V1")
FS_HZ = 250.0


@pytest.fixture(scope="module")
def encoder() -> EncoderDirectory:
    torch.manual_seed(0)
    return EncoderDirectory(BiosignalEncoder(SMALL).eval(), {}, "0" * 64)


@pytest.fixture(scope="module")
def records() -> np.ndarray:
    rows = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        made = simulate_ecg(rng, fs_hz=FS_HZ, duration_s=10.0, heart_rate_bpm=70.0, leads=LEADS)
        rows.append(np.stack([made[name] for name in LEADS]))
    return np.stack(rows).astype(np.float32)


def test_an_array_in_any_layout_gives_the_same_vectors(
    encoder: EncoderDirectory, records: np.ndarray
) -> None:
    own = encoder.embed(records, fs_hz=FS_HZ, leads=LEADS)
    turned = np.ascontiguousarray(records[:, ::-1])[:, ::-1]
    assert turned.strides[1] < 0
    for other in (turned, records.astype(">f4"), np.asfortranarray(records)):
        np.testing.assert_array_equal(encoder.embed(other, fs_hz=FS_HZ, leads=LEADS), own)
    tensor = torch.from_numpy(records.astype(np.float64))
    np.testing.assert_array_equal(encoder.embed(tensor, fs_hz=FS_HZ, leads=LEADS), own)
    np.testing.assert_array_equal(
        encoder.encode(turned, fs_hz=FS_HZ, leads=LEADS).embedding.numpy(), own
    )


@pytest.mark.parametrize("scale", [1000.0, 200.0, 0.001])
def test_another_unit_is_refused(
    encoder: EncoderDirectory, records: np.ndarray, scale: float
) -> None:
    for read in (encoder.embed, encoder.encode):
        with pytest.raises(InputError, match="no_millivolts"):
            read(scale * records, fs_hz=FS_HZ, leads=LEADS)


def test_electrodes_that_were_off_refuse_no_record_beside_them(
    encoder: EncoderDirectory, records: np.ndarray
) -> None:
    mixed = records.copy()
    mixed[1] = np.random.default_rng(0).integers(0, 6, records[1].shape) * np.float32(0.001)
    sound = encoder.embed(mixed, fs_hz=FS_HZ, leads=LEADS)[[0, 2]]
    own = encoder.embed(records, fs_hz=FS_HZ, leads=LEADS)[[0, 2]]
    np.testing.assert_allclose(sound, own, atol=1e-6)
    mixed[[0, 2]] = 0.3  # flat records say nothing of a unit
    with pytest.raises(InputError, match="no_millivolts"):
        encoder.embed(mixed, fs_hz=FS_HZ, leads=LEADS)


def test_a_record_in_microvolts_is_refused_whatever_is_beside_it(
    encoder: EncoderDirectory, records: np.ndarray
) -> None:
    mixed = records.copy()
    mixed[1] *= 1000.0
    for read in (encoder.embed, encoder.encode):
        with pytest.raises(InputError, match=r"no_millivolts.*record 1"):
            read(mixed, fs_hz=FS_HZ, leads=LEADS)


def test_flat_dead_and_short_leads_are_no_volts(
    encoder: EncoderDirectory, records: np.ndarray
) -> None:
    dead = np.random.default_rng(0).integers(0, 2, records.shape) * np.float32(0.001)
    dead[:, 0] = records[:, 0]
    flat = np.full_like(records, 0.3)
    part = np.full_like(records, np.nan)
    part[..., :20] = 0.001 * records[..., :20]
    for well in (dead, flat, part, 0.001 * records[..., :100]):
        assert np.isfinite(encoder.embed(well, fs_hz=FS_HZ, leads=LEADS)).all()


def test_a_masked_array_is_read_with_its_mask(
    encoder: EncoderDirectory, records: np.ndarray
) -> None:
    gap = np.zeros(records.shape, bool)
    gap[..., 300:600] = True
    masked = np.ma.masked_array(np.where(gap, -32.768, records), gap)
    np.testing.assert_array_equal(
        encoder.embed(masked, fs_hz=FS_HZ, leads=LEADS),
        encoder.embed(np.where(gap, np.nan, records), fs_hz=FS_HZ, leads=LEADS),
    )


def test_no_leads_and_no_record_to_encode_are_refused(
    encoder: EncoderDirectory, records: np.ndarray
) -> None:
    for signal, leads in ((records[:, :0], ()), (records[:0], LEADS)):
        with pytest.raises(InputError, match="bad_signal_shape"):
            encoder.encode(signal, fs_hz=FS_HZ, leads=leads)
    with pytest.raises(InputError, match="bad_signal_shape"):
        encoder.embed(records[:0, :0], fs_hz=FS_HZ, leads=())


def test_noise_offsets_gaps_and_a_few_bad_leads_are_millivolts_still(
    encoder: EncoderDirectory, records: np.ndarray
) -> None:
    spoilt = 3 * records + 300.0
    spoilt += np.random.default_rng(0).normal(0, 0.5, spoilt.shape).astype(np.float32)
    spoilt[0, 0] *= 1000
    spoilt[1, :, 100:160] = 500.0  # a spike
    spoilt[2, :, 300:1500] = np.nan
    assert np.isfinite(encoder.embed(spoilt, fs_hz=FS_HZ, leads=LEADS)).all()
    nothing = np.full_like(records, np.nan)
    assert np.isfinite(encoder.embed(nothing, fs_hz=FS_HZ, leads=LEADS)).all()
    short = encoder.embed(records[..., :1], fs_hz=FS_HZ, leads=LEADS)
    assert short.shape == (3, 4)
    assert encoder.embed(records[:0], fs_hz=FS_HZ, leads=LEADS).shape == (0, 4)


def test_the_batch_size_changes_no_answer(encoder: EncoderDirectory, records: np.ndarray) -> None:
    own = encoder.embed(records, fs_hz=FS_HZ, leads=LEADS)
    one = encoder.embed(records, fs_hz=FS_HZ, leads=LEADS, batch_size=1)
    np.testing.assert_allclose(one, own, atol=1e-5)
    for size in (0, -1):
        with pytest.raises(InputError, match="bad_batch_size"):
            encoder.embed(records, fs_hz=FS_HZ, leads=LEADS, batch_size=size)


def test_what_is_infinite_or_has_no_rate_is_refused(
    encoder: EncoderDirectory, records: np.ndarray
) -> None:
    infinite = records.copy()
    infinite[0, 0, 0] = np.inf
    with pytest.raises(InputError, match="infinite_signal"):
        encoder.embed(infinite, fs_hz=FS_HZ, leads=LEADS)
    with pytest.raises(InputError, match="bad_sampling_rate"):
        encoder.embed(records, fs_hz=float("nan"), leads=LEADS)
