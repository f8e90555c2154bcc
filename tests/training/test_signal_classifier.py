"""Fine-tuning of the encoder learns what can be learnt, and repeats itself."""

import pytest
import torch

from tsfm.errors import ModelMismatch
from tsfm.models.biosignal_encoder import BiosignalConfig, BiosignalEncoder
from tsfm.training.signal_classifier import SignalTraining, augment, fit_signal_classifier

SMALL = BiosignalConfig(
    d_model=16, n_layers=1, d_state=4, n_filters=4, stem_width=8, n_summary=1, d_embedding=16,
    scan="selective",
)  # fmt: skip


def _records(n=64):
    """Fast waves on lead I are label 0; a large lead II is label 1."""
    draws = torch.Generator().manual_seed(0)
    label = (torch.rand(n, 2, generator=draws) < 0.5).float()
    t = torch.arange(300) / 100
    phase = 6.3 * torch.rand(n, 1, generator=draws)
    hz = 3 + 9 * label[:, :1]
    one = torch.sin(6.283 * hz * t + phase)
    two = (0.3 + 1.5 * label[:, 1:]) * torch.sin(6.283 * 5 * t + phase)
    return torch.stack([one, two], 1), label


def _fit(seed=0, epochs=12, label=None):
    torch.manual_seed(0)
    signal, truth = _records()
    return fit_signal_classifier(
        BiosignalEncoder(SMALL), signal, truth if label is None else label, fs_hz=100,
        leads=("I", "II"), training=SignalTraining(epochs=epochs, batch_size=16, lr=5e-3,
                                                   crop_s=2.0, decay=0.9, seed=seed),
    )  # fmt: skip


def test_it_learns_and_keeps_amplitude():
    signal, label = _records()
    p = _fit().predict(signal, fs_hz=100, leads=("I", "II"))
    assert ((p > 0.5) == (label > 0.5)).float().mean() > 0.9


def test_the_same_seed_gives_the_same_model():
    signal, _ = _records()
    a, b = (_fit(epochs=1).predict(signal, fs_hz=100, leads=("I", "II")) for _ in range(2))
    torch.testing.assert_close(a, b)


def test_unknown_labels_teach_nothing_and_break_nothing():
    _, label = _records()
    label[::2] = torch.nan
    p = _fit(epochs=1, label=label).predict(_records()[0], fs_hz=100, leads=("I", "II"))
    assert torch.isfinite(p).all()


def test_a_record_is_never_left_without_leads():
    values = torch.randn(50, 3, 200)
    known = torch.ones(50, 3, 200, dtype=torch.bool)
    draws = torch.Generator().manual_seed(0)
    x, there = augment(values, known, 100, SignalTraining(lead_dropout=1.0), draws, grid_hz=100.0)
    assert x.shape == (50, 3, 100)
    assert there.any(1).all()
    assert not there.all()
    assert (x[~there] == 0).all()


def test_without_changes_a_crop_is_a_stretch_of_the_record():
    values = torch.arange(200.0).expand(4, 1, 200)
    still = SignalTraining(lead_dropout=0, noise_mv=0, wander_mv=0, scale=0, speed=0)
    known = torch.ones(4, 1, 200, dtype=torch.bool)
    x, _ = augment(values, known, 50, still, torch.Generator().manual_seed(1), grid_hz=100.0)
    assert x.diff(dim=-1).sub(1).abs().max() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("kind", "low", "high"), [("muscle", 20, 50), ("motion", 1, 10)])
def test_bursts_lie_in_their_band_and_are_as_large_as_was_said(
    kind: str, low: float, high: float
) -> None:
    still = {"lead_dropout": 0.0, "noise_mv": 0.0, "wander_mv": 0.0, "scale": 0.0, "speed": 0.0}
    how = SignalTraining(**still, **{f"{kind}_mv": 0.5})  # pyright: ignore[reportArgumentType]
    silence, known = torch.zeros(64, 2, 1000), torch.ones(64, 2, 1000, dtype=torch.bool)
    x, _ = augment(silence, known, 1000, how, torch.Generator().manual_seed(0), grid_hz=100.0)
    size = x.std(-1)
    assert size.max() <= 0.5 + 1e-3
    assert size.max() > 0.3
    assert torch.allclose(size[:, 0], size[:, 1], atol=1e-3)  # leads differ in noise, not in size
    assert (x[:, 0] - x[:, 1]).abs().max() > 0.1
    power = torch.fft.rfft(x).abs().square().mean((0, 1))
    hz = torch.fft.rfftfreq(1000, 0.01)
    inside = (hz >= low - 1) & (hz <= high + 1)  # a burst widens its band a little
    assert power[inside].sum() > 0.95 * power.sum()


def test_a_checkpoint_goes_on_and_is_no_other_trainings(tmp_path):
    signal, label = _records()
    ask = {"fs_hz": 100, "leads": ("I", "II")}

    def fit(label, epochs, checkpoint=None):
        torch.manual_seed(0)
        how = SignalTraining(epochs=epochs, batch_size=16, crop_s=2.0, decay=0.9)
        return fit_signal_classifier(
            BiosignalEncoder(SMALL), signal, label, training=how, checkpoint=checkpoint, **ask
        )

    once = fit(label, 2, tmp_path / "c").predict(signal, **ask)
    again = fit(label, 2, tmp_path / "c").predict(signal, **ask)
    torch.testing.assert_close(once, again)
    torch.testing.assert_close(once, fit(label, 2).predict(signal, **ask))
    with pytest.raises(ModelMismatch, match="other data"):
        fit(1 - label, 2, tmp_path / "c")
