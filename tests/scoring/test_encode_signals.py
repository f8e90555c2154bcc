"""From a signal store to vectors, and by the whole road to a score that reads them."""

import json
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
import torch

from tsfm import codes, event_table, schema
from tsfm.errors import InputError, ModelMismatch
from tsfm.models.biosignal_encoder import BiosignalConfig, BiosignalEncoder
from tsfm.models.checkpoint import load_model
from tsfm.models.encoder_directory import level, open_encoder, token_vectors
from tsfm.models.mamba import MambaConfig
from tsfm.models.signal_checkpoint import save_encoder
from tsfm.models.signal_grid import to_grid
from tsfm.scoring.batch_score import score_events
from tsfm.scoring.encode_signals import NO_LEAD, NO_RATE, NO_UNIT, NOTHING, encode_signals
from tsfm.scoring.trained_model import TrainedModel
from tsfm.signals.shards import Lead, SignalWriter
from tsfm.tasks.registry import find_cohort
from tsfm.tokens.signal_vectors import FOLDER, SignalVectors
from tsfm.tokens.token_store import build_token_store
from tsfm.training.finetune import FinetuneConfig, finetune
from tsfm.training.loop import TrainConfig
from tsfm.training.pretrain import ModelParts, pretrain

SMALL = BiosignalConfig(d_model=8, n_layers=1, d_state=2, n_filters=4, stem_width=8, d_embedding=12)
TASK = "readmission_30d"
START = datetime(2150, 1, 1)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    save_encoder(folder, BiosignalEncoder(SMALL), facts={"a": 1}, card="a card")
    return folder


def wave(seconds=10.0, fs_hz=100.0, seed=0, uv=False):
    t = np.arange(round(seconds * fs_hz)) / fs_hz
    x = np.sin(2 * np.pi * (1 + seed % 7) * t + seed) * (1 + 0.1 * seed)
    return (x * (1000 if uv else 1)).astype(np.float32)


def lead(name, x, fs_hz=100.0, units: str | None = "mV", modality="ecg"):
    return Lead(name, modality, fs_hz, x, units, None if units is None else 1.0)


def write_signals(root, records):
    with SignalWriter(root) as writer:
        for i, leads in enumerate(records):
            writer.add(leads, signal_id=f"s{i}", subject_id=i, record=f"r{i}", start_time=None)


def test_records_of_any_form_are_encoded_and_the_others_counted(tmp_path, encoder):
    gap = np.full(1000, np.nan, np.float32)
    write_signals(
        tmp_path,
        [
            [lead("I", wave()), lead("V2", wave(seed=1))],
            [lead("v2", wave(seed=1, uv=True), units="uV"), lead("i", wave(uv=True), units="uV")],
            [lead("PLETH", wave(), units="NU", modality="ppg")],
            [lead("II", wave(), units=None)],
            [lead("II", gap)],
            [lead("II", wave(fs_hz=40.0), fs_hz=40.0)],
            [lead("II", wave(95.0, 250.0), 250.0), lead("III", wave(95.0, 125.0), 125.0)],
        ],
    )
    summary = encode_signals(tmp_path, encoder, progress=False)
    assert summary.encoded == 3
    assert summary.left == {NO_LEAD: 1, NO_UNIT: 1, NOTHING: 1, NO_RATE: 1}
    assert "encoded" in summary.as_text()
    found = SignalVectors.open(tmp_path / FOLDER)
    assert found.signal_id == ("s0", "s1", "s6")
    assert found.left == ("s2", "s3", "s4", "s5")
    assert found.vectors.shape == (3, 4 + 2, 8)
    assert found.encoder_hash == open_encoder(encoder).hash
    assert np.isfinite(found.vectors).all()
    # The same signals in another order, unit and spelling are the same record.
    np.testing.assert_allclose(found.vectors[0], found.vectors[1], atol=2e-5)


def test_a_short_record_has_the_vectors_of_one_pass(tmp_path, encoder):
    signal = np.stack([wave(), wave(seed=3)])
    write_signals(tmp_path, [[lead("II", signal[0]), lead("V5", signal[1])]])
    encode_signals(tmp_path, encoder, progress=False)
    directory = open_encoder(encoder)
    own = directory.encode(signal[None], fs_hz=100, leads=("II", "V5"))
    found = SignalVectors.open(tmp_path / FOLDER).vectors
    np.testing.assert_allclose(found, token_vectors(own).numpy(), atol=1e-5)
    assert directory.n_vectors == found.shape[1]
    embedding = found[0, 4:].ravel()[:12]
    np.testing.assert_allclose(embedding, own.embedding[0].numpy(), atol=1e-5)


def test_a_long_record_is_the_mean_of_its_windows(tmp_path, encoder):
    x = wave(70.0)
    write_signals(tmp_path, [[lead("II", x)]])
    encode_signals(tmp_path, encoder, window_s=30.0, progress=False)
    directory = open_encoder(encoder)
    parts, weights = [], []
    for start in (0, 3000, 6000):
        values, known = to_grid(
            level(torch.from_numpy(x[start : start + 3000]))[None, None], fs_hz=100, grid_hz=100.0
        )
        with torch.no_grad():
            encoded = directory.encoder.encode_grid(values, known, torch.tensor([1]))
        parts.append(token_vectors(encoded)[0].numpy())
        weights.append(float(known.sum()))
    expected = np.average(parts, axis=0, weights=weights)
    np.testing.assert_allclose(
        SignalVectors.open(tmp_path / FOLDER).vectors[0], expected, atol=1e-5
    )


def test_what_embed_refuses_is_counted_and_spoils_no_other_record(tmp_path, encoder):
    steps, spike = wave(70.0) * 1000, wave()
    steps[:3000] = 0  # a window alone would look like millivolts
    spike[500] = 3e38
    records = [
        [lead("II", wave())],
        [lead("II", steps)],
        [lead("II", spike, units="V")],
        [lead("II", wave(seed=2))],
    ]
    write_signals(tmp_path / "all", records)
    write_signals(tmp_path / "good", records[:1] + records[-1:])
    summary = encode_signals(tmp_path / "all", encoder, progress=False)
    assert summary.encoded == 2
    assert summary.left == {"no_millivolts": 1, "infinite_values": 1}
    encode_signals(tmp_path / "good", encoder, progress=False)
    found, good = (SignalVectors.open(tmp_path / name / FOLDER) for name in ("all", "good"))
    assert (found.signal_id, found.left) == (("s0", "s3"), ("s1", "s2"))
    np.testing.assert_allclose(found.vectors, good.vectors, atol=1e-6)


def test_volts_called_millivolts_are_counted_by_all_windows_of_a_record(tmp_path, encoder):
    still_first = wave(70.0)
    still_first[:3000] *= 0.001  # electrodes that were off at first
    write_signals(
        tmp_path,
        [
            [lead("II", 0.001 * wave(70.0)), lead("V2", 0.002 * wave(70.0))],
            [lead("II", still_first)],
            [lead("II", np.zeros(1000, np.float32))],
            [lead("II", 0.001 * wave(), units="V")],
        ],
    )
    summary = encode_signals(tmp_path, encoder, progress=False)
    assert summary.left == {"no_millivolts": 1}
    assert SignalVectors.open(tmp_path / FOLDER).signal_id == ("s1", "s2", "s3")


def test_the_lead_of_the_exact_name_is_read_before_one_with_a_prefix(tmp_path, encoder):
    other, own = lead("ECG II", wave(seed=3)), lead("II", wave())
    write_signals(tmp_path, [[other, own], [own]])
    assert encode_signals(tmp_path, encoder, progress=False).encoded == 2
    vectors = SignalVectors.open(tmp_path / FOLDER).vectors
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


def test_a_lead_may_be_called_a_lead(tmp_path, encoder):
    write_signals(tmp_path, [[lead("lead II", wave())], [lead("ECG I", wave())]])
    assert encode_signals(tmp_path, encoder, progress=False).encoded == 2


def test_bad_windows_and_infinite_samples_are_refused(tmp_path, encoder):
    write_signals(tmp_path, [[lead("II", wave())]])
    with pytest.raises(InputError, match="shorter than a second"):
        encode_signals(tmp_path, encoder, window_s=0.1)
    encode_signals(tmp_path, encoder, progress=False)
    before = (tmp_path / FOLDER / "vectors.f32").read_bytes()
    for window_s in (np.inf, np.nan):
        with pytest.raises(InputError, match="bad_window"):
            encode_signals(tmp_path, encoder, window_s=window_s)
    for batch_size in (0, -1):
        with pytest.raises(InputError, match="bad_batch_size"):
            encode_signals(tmp_path, encoder, batch_size=batch_size)
    assert (tmp_path / FOLDER / "vectors.f32").read_bytes() == before
    with pytest.raises(InputError, match="holds no signals"):
        encode_signals(tmp_path / "nothing", encoder)
    with pytest.raises(InputError, match="infinite"):
        open_encoder(encoder).embed(np.full((1, 1, 100), np.inf), fs_hz=100, leads=("II",))


def patients(root, n=60):
    """Stays of patients, half of them with an ECG; those with a fast one come back."""
    rows, records = [], []
    for i in range(n):
        at = START + timedelta(days=i)
        rows.append((i, at - timedelta(days=20000), codes.BIRTH, None))
        rows.append((i, at, f"{codes.ADMISSION}//EMERGENCY", None))
        if i % 2:
            rows.append((i, at + timedelta(hours=3), "ECG//1", f"s{len(records)}"))
            records.append([lead("II", wave(seed=i))])
        rows.append((i, at + timedelta(days=2), f"{codes.DISCHARGE}//HOME", None))
        if i % 3 == 0:
            rows.append((i, at + timedelta(days=12), f"{codes.ADMISSION}//EMERGENCY", None))
    frame = pl.DataFrame(
        rows, orient="row",
        schema={schema.SUBJECT_ID: pl.Int64, schema.TIME: pl.Datetime("us"),
                schema.CODE: pl.String, schema.SIGNAL_ID: pl.String},
    )  # fmt: skip
    with event_table.EventWriter(root, n_shards=2) as writer:
        writer.add(frame)
        writer.finish(dataset={"clock": "wall", "dates_shifted": True})
    write_signals(root, records)


@pytest.fixture(scope="module")
def road(tmp_path_factory, encoder):
    """Event table and a fine-tuned model that reads waveforms."""
    root = tmp_path_factory.mktemp("road")
    patients(root / "events")
    encode_signals(root / "events", encoder, progress=False)
    build_token_store(root / "events", root / "tokens", min_count=1)
    cohort = find_cohort(root / "events", TASK)
    config = TrainConfig(epochs=1, max_tokens=2048)
    pretrain(
        root / "tokens", root / "pretrained", backbone=MambaConfig(d_model=8, n_layers=1),
        parts=ModelParts(memory_width=8), config=config, progress=False,
    )  # fmt: skip
    finetune(root / "pretrained", root / "tokens", cohort, TASK, root / "model",
             config=FinetuneConfig(train=config), progress=False)  # fmt: skip
    return root


def test_a_model_keeps_which_encoder_it_reads(road, encoder):
    config = load_model(road / "model").model.config
    assert (config.signal_vectors, config.signal_width) == (6, 8)
    assert config.signal_encoder == open_encoder(encoder).hash
    stored = json.loads((road / "tokens" / "config.json").read_text())
    assert stored["signal_encoder"] == config.signal_encoder


def stir(model):
    """Let waveforms weigh: one epoch on sixty patients teaches little."""
    torch.manual_seed(1)
    assert model.model.embedding.signals is not None
    torch.nn.init.normal_(model.model.embedding.signals.write.weight)
    torch.nn.init.normal_(model.model.tasks[TASK].score.weight)
    return model


def by_subject(scores):
    return dict(scores.select(schema.SUBJECT_ID, "probability").rows())


def test_scores_read_the_waveforms_of_those_who_have_one(road):
    model = stir(load_model(road / "model"))
    own = SignalVectors.open(road / "events" / FOLDER)
    other = SignalVectors(own.signal_id, -np.array(own.vectors), own.encoder_hash)
    usual = by_subject(score_events(model, road / "events", TASK, progress=False).scores)
    given = by_subject(
        score_events(model, road / "events", TASK, signals=other, progress=False).scores
    )
    moved = {s for s in usual if usual[s] != given[s]}
    assert moved == {s for s in usual if s % 2}


def test_a_waveform_that_is_known_later_moves_no_score(road):
    model = stir(load_model(road / "model"))
    events = pl.concat(list(event_table.scan_events(road / "events"))).with_columns(
        pl.when(pl.col(schema.SIGNAL_ID).is_not_null())
        .then(pl.col(schema.TIME) + pl.duration(days=2))
        .otherwise(pl.col(schema.AVAILABLE_TIME))
        .alias(schema.AVAILABLE_TIME)
    )
    own = SignalVectors.open(road / "events" / FOLDER)
    other = SignalVectors(own.signal_id, -np.array(own.vectors), own.encoder_hash)
    trained = TrainedModel(model)
    first, second = (trained.score(events, TASK, signals=v) for v in (own, other))
    assert first.equals(second)
    assert first.height >= 40


def test_a_score_is_never_given_as_if_there_were_no_waveforms(road, tmp_path):
    model = load_model(road / "model")
    events = pl.concat(list(event_table.scan_events(road / "events")))
    with pytest.raises(InputError, match="30 of the events' are not encoded"):
        TrainedModel(model).score(events, TASK)
    some = SignalVectors.open(road / "events" / FOLDER)
    fewer = SignalVectors(some.signal_id[1:], np.array(some.vectors)[1:], some.encoder_hash)
    with pytest.raises(InputError, match="1 of the events' are not encoded"):
        TrainedModel(model).score(events, TASK, signals=fewer)
    without = events.with_columns(pl.lit(None, pl.String).alias(schema.SIGNAL_ID))
    assert TrainedModel(model).score(without, TASK).height >= 40
    own = SignalVectors.open(road / "events" / FOLDER)
    foreign = SignalVectors(own.signal_id, np.array(own.vectors), "0" * 64)
    with pytest.raises(ModelMismatch, match="another encoder"):
        TrainedModel(model).score(events, TASK, signals=foreign)


def test_a_run_names_the_vectors_it_read(road):
    from tsfm.scoring.run_manifest import hash_dataset

    assert f"{FOLDER}/vectors.f32" in hash_dataset(road / "events")


def test_no_records_are_no_vectors(encoder):
    found = open_encoder(encoder).embed(np.zeros((0, 1, 100)), fs_hz=100, leads=("II",))
    assert found.shape == (0, 12)
