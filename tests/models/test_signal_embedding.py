"""A waveform changes its own token and what follows, and patients without one lose nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tsfm.batches.batch import make_batch
from tsfm.errors import ModelMismatch
from tsfm.models.mamba import MambaConfig
from tsfm.models.timeline import TimelineConfig, TimelineModel
from tsfm.tokens.signal_vectors import SignalVectors

CONFIG = TimelineConfig(
    5, MambaConfig(d_model=16, n_layers=1, d_state=4), memory_width=8, signal_vectors=3,
    signal_width=4, signal_dropout=0.5, signal_encoder="e",
)  # fmt: skip


def make_model(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    model = TimelineModel(config).eval()
    if model.embedding.signals is not None:
        torch.nn.init.normal_(model.embedding.signals.write.weight)
        torch.nn.init.normal_(model.embedding.signals.write.bias)
    return model


def batch_of(signal, lengths=(4, 3), vectors=None):
    rng = np.random.default_rng(0)
    n = sum(lengths)
    if vectors is None:
        vectors = rng.normal(size=(2, 3, 4)).astype(np.float32)
    return make_batch(
        code=rng.integers(0, 5, n).astype(np.int32), value=np.full(n, np.nan, np.float32),
        bin=np.zeros(n, np.int8), time_s=np.cumsum(rng.exponential(3600, n)),
        lag_hours=np.zeros(n, np.float32), lengths=np.array(lengths),
        subject_id=np.arange(len(lengths)), birth_s=np.zeros(len(lengths)),
        step=np.ones(5, np.float32), signal=np.array(signal, np.int32),
        signals=SignalVectors(tuple("ab"[: len(vectors)]), vectors, "e"),
    )  # fmt: skip


def test_it_starts_at_nothing():
    torch.manual_seed(0)
    model = TimelineModel(CONFIG).eval()
    plain = TimelineModel(replace(CONFIG, signal_vectors=0)).eval()
    plain.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith("embedding.signals.")}
    )
    batch = batch_of([-1, 0, -1, 1, -1, -1, -1])
    torch.testing.assert_close(model(batch), plain(batch), rtol=0, atol=0)


def test_a_waveform_moves_what_follows_it_in_its_own_subject_only():
    model = make_model()
    with_one, without = (model(batch_of([-1, -1, s, -1, -1, -1, -1])) for s in (0, -1))
    moved = (with_one != without).any(1)
    assert moved.tolist() == [False, False, True, True, False, False, False]


def test_every_vector_is_read():
    model = make_model()
    base = np.random.default_rng(1).normal(size=(1, 3, 4)).astype(np.float32)
    signal = [0, -1, -1, -1, -1, -1, -1]
    usual = model(batch_of(signal, vectors=base))
    for k in range(3):
        other = base.copy()
        other[0, k] = -other[0, k]
        assert not torch.equal(model(batch_of(signal, vectors=other)), usual)


def test_training_hides_all_waveforms_of_some_subjects():
    part = make_model().embedding.signals
    assert part is not None
    part.train()
    batch = batch_of([0, -1, 1, -1, -1, -1, 0], lengths=(4, 3))
    torch.manual_seed(0)
    seen = {tuple(part._read(batch).nonzero().squeeze(1).tolist()) for _ in range(50)}
    assert seen == {(), (0, 2), (6,), (0, 2, 6)}
    part.eval()
    assert part._read(batch).nonzero().squeeze(1).tolist() == [0, 2, 6]


def test_vectors_of_another_shape_are_refused():
    with pytest.raises(ModelMismatch, match="the model reads"):
        make_model()(batch_of([0] + [-1] * 6, vectors=np.zeros((1, 2, 4), np.float32)))


def test_a_model_that_reads_none_passes_them_by():
    model = make_model(replace(CONFIG, signal_vectors=0))
    a, b = (model(batch_of(s)) for s in ([0] + [-1] * 6, [-1] * 7))
    assert torch.equal(a, b)
