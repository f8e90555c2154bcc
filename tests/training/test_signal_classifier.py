"""Fine-tuning of the encoder learns what can be learnt, and repeats itself."""

from dataclasses import replace

import pytest
import torch

from tsfm.errors import InputError, ModelMismatch
from tsfm.models.biosignal_encoder import BiosignalConfig, BiosignalEncoder
from tsfm.training import signal_classifier
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


ASK = {"fs_hz": 100, "leads": ("I", "II")}
SHORT = SignalTraining(epochs=1, batch_size=4, crop_s=1.0)


def _few(n=10):
    signal, label = _records(n)
    torch.manual_seed(0)
    return BiosignalEncoder(SMALL), signal, label


def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    encoder, signal, label = _few()
    how = SignalTraining(epochs=4, batch_size=2, crop_s=2.0)
    whole = fit_signal_classifier(encoder, signal, label, training=how, **ASK)
    save, n_saved = signal_classifier.save_checkpoint, 0

    def save_and_stop(*args, **kwargs):
        nonlocal n_saved
        save(*args, **kwargs)
        n_saved += 1
        if n_saved == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(signal_classifier, "save_checkpoint", save_and_stop)
    place = str(tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        fit_signal_classifier(encoder, signal, label, training=how, checkpoint=place, **ASK)
    monkeypatch.undo()
    again = fit_signal_classifier(encoder, signal, label, training=how, checkpoint=place, **ASK)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


@pytest.mark.parametrize("change", [{"dropout": 0.7}, {"grid_hz": 80.0}])
def test_a_checkpoint_of_another_configuration_is_refused(tmp_path, change):
    encoder, signal, label = _few()
    place = tmp_path / "c"
    fit_signal_classifier(encoder, signal, label, training=SHORT, checkpoint=place, **ASK)
    other = BiosignalEncoder(replace(SMALL, **change))
    other.load_state_dict(encoder.state_dict())
    with pytest.raises(ModelMismatch):
        fit_signal_classifier(other, signal, label, training=SHORT, checkpoint=place, **ASK)


def test_one_unknown_label_among_exclusive_ones_teaches_nothing_and_breaks_nothing():
    encoder, signal, _ = _few()
    label = torch.nn.functional.one_hot(torch.arange(10) % 3).float()
    how = replace(SHORT, mixup=0.0, batch_size=10)
    label[3, 1] = torch.nan
    a = fit_signal_classifier(encoder, signal, label, training=how, exclusive=True, **ASK)
    assert all(torch.isfinite(x).all() for x in a.state_dict().values())
    label[3] = torch.tensor([torch.nan, 0.0, 1.0])
    b = fit_signal_classifier(encoder, signal, label, training=how, exclusive=True, **ASK)
    assert all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())
    mixed = replace(SHORT, epochs=2, batch_size=2)
    label[::2] = torch.nan  # batches without a label, by chance or by mixing
    c = fit_signal_classifier(encoder, signal, label, training=mixed, exclusive=True, **ASK)
    assert all(torch.isfinite(x).all() for x in c.state_dict().values())


@pytest.mark.parametrize("before", [0, 1000, 2400])
def test_crops_of_a_padded_record_lie_in_the_record(before):
    values = torch.zeros(200, 2, 3000)
    values[..., before : before + 600] = torch.arange(1.0, 601.0)
    draws = torch.Generator().manual_seed(0)
    how = SignalTraining(lead_dropout=0, noise_mv=0, wander_mv=0, scale=0, speed=0)
    x, there = augment(values, values > 0, 500, how, draws, grid_hz=100.0)
    assert there.float().mean() > 0.99
    starts = x[:, 0, 1]
    assert starts.min() < 10
    assert starts.max() > 90
    # A record that is shorter than the crop is whole, and nothing is repeated.
    x, there = augment(values, values > 0, 900, how, draws, grid_hz=100.0)
    assert (there[:, 0].sum(-1) >= 598).all()
    assert (there[:, 0].sum(-1) <= 600).all()


def test_the_lead_that_is_spared_was_measured():
    values = torch.randn(400, 12, 300)
    known = torch.zeros(400, 12, 300, dtype=torch.bool)
    known[:, 3] = True
    known[:200, 7] = True
    how = SignalTraining(lead_dropout=1.0)
    _, there = augment(values, known, 100, how, torch.Generator().manual_seed(0), grid_hz=100.0)
    assert there.any(-1).any(1).all()
    kept = there.any(-1)[:200].float().mean(0)
    assert kept[3] > 0.4
    assert kept[7] > 0.4


def test_training_leaves_torchs_own_chance_alone():
    encoder, signal, label = _few()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit_signal_classifier(encoder, signal, label, training=SHORT, **ASK)
    assert torch.equal(torch.rand(3), expected)


def test_numbers_of_any_type_are_read():
    encoder, signal, label = _few()
    counts = (1000 * signal).round()
    model = fit_signal_classifier(encoder, counts, label, training=SHORT, **ASK)
    own = model.predict(counts, **ASK)
    for other in (counts.double(), counts.short(), counts.numpy().astype("i4")):
        assert torch.equal(model.predict(other, **ASK), own)
    assert model.predict(signal[:0], **ASK).shape == (0, 2)
    again = fit_signal_classifier(
        encoder, counts.short().numpy(), label.long(), training=SHORT, **ASK
    )
    assert torch.equal(again.predict(counts, **ASK), own)


def test_what_does_not_fit_the_records_is_refused():
    encoder, signal, label = _few()

    def fit(signal=signal, label=label, leads=("I", "II"), **more):
        return fit_signal_classifier(
            encoder, signal, label, fs_hz=100, leads=leads, training=SHORT, **more
        )

    refused: list[tuple[dict, str]] = [
        ({"leads": ("I",)}, "bad_signal_shape"),
        ({"signal": signal[:0], "label": label[:0]}, "bad_signal_shape"),
        ({"label": label[:5]}, "bad_labels"),
        ({"label": torch.cat([label, label])}, "bad_labels"),
        ({"label": 7 * label}, "bad_labels"),
        ({"label": label[:, 0]}, "bad_labels"),
        ({"label": torch.ones(10, 2), "exclusive": True}, "bad_labels"),
        ({"label": label * torch.nan}, "no_labels"),
        ({"label": label * torch.nan, "exclusive": True}, "no_labels"),
    ]
    for changes, code in refused:
        with pytest.raises(InputError, match=code):
            fit(**changes)
    model = fit()
    for leads in (("I",), ("I", "II", "V1")):
        with pytest.raises(InputError, match="bad_signal_shape"):
            model.predict(signal, fs_hz=100, leads=leads)
    with pytest.raises(InputError, match="bad_batch_size"):
        model.predict(signal, batch_size=0, **ASK)


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 0}, {"mixup": -1.0}, {"mixup": 1e-9}, {"mixup": 1e3}, {"crop_s": 0.0},
     {"speed": 2.0}, {"decay": 2.0}, {"lr": float("nan")}, {"lead_dropout": 2.0},
     {"noise_mv": -1.0}, {"epochs": -1}, {"epochs": 1.5}, {"batch_size": 2.5}, {"seed": 0.5},
     {"seed": 2**64}],
    ids=str,
)  # fmt: skip
def test_what_trains_nothing_is_no_training(change):
    with pytest.raises(InputError, match="bad_training"):
        SignalTraining(**change)
