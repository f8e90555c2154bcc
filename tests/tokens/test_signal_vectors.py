"""Vectors of waveforms come back as written, and tokens point to them by their event's record."""

import shutil
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from tsfm import event_table, schema
from tsfm.batches.dataset import TokenDataset, batches_of
from tsfm.batches.patient_views import PatientViews, View
from tsfm.errors import InputError, IntegrityError, ModelMismatch
from tsfm.tokens import signal_vectors
from tsfm.tokens.event_tokens import tokenize_events
from tsfm.tokens.signal_vectors import (
    FOLDER,
    NO_SIGNAL,
    SignalVectors,
    hash_signals,
    require_encoder,
    vectors_of,
)
from tsfm.tokens.token_store import TokenStore, build_token_store

START = datetime(2150, 1, 1)


def make_vectors(ids=("a", "b", "c"), seed=0):
    rng = np.random.default_rng(seed)
    return SignalVectors(tuple(ids), rng.normal(size=(len(ids), 2, 4)).astype(np.float32), "f" * 64)


def make_events(signals):
    """One subject a row of ids: an ECG an hour, and a lab between."""
    rows = []
    for subject, ids in enumerate(signals):
        for hour, signal_id in enumerate(ids):
            at = START + timedelta(hours=hour)
            rows.append((subject, at, "ECG//12", signal_id))
            rows.append((subject, at + timedelta(minutes=5), "LAB//X", None))
    frame = pl.DataFrame(
        rows, orient="row",
        schema={schema.SUBJECT_ID: pl.Int64, schema.TIME: pl.Datetime("us"),
                schema.CODE: pl.String, schema.SIGNAL_ID: pl.String},
    )  # fmt: skip
    return frame.select(
        (pl.col(n).cast(k) if n in frame.columns else pl.lit(None, dtype=k)).alias(n)
        for n, k in event_table.POLARS_EVENTS.items()
    ).with_columns(pl.col(schema.TIME).alias(schema.AVAILABLE_TIME))


def write_table(root, events, vectors=None):
    with event_table.EventWriter(root, n_shards=2) as writer:
        writer.add(events)
        writer.finish(dataset={"clock": "wall", "dates_shifted": True})
    if vectors is not None:
        vectors.save(root / FOLDER)


@pytest.mark.parametrize("ids", [("a", "b", "c"), ()])
def test_what_is_written_comes_back(tmp_path, ids):
    vectors = make_vectors(ids)
    vectors.save(tmp_path / "v")
    vectors.save(tmp_path / "v")  # a second run replaces the first
    found = SignalVectors.open(tmp_path / "v")
    assert found.signal_id == ids
    assert found.encoder_hash == vectors.encoder_hash
    assert np.array_equal(found.vectors, vectors.vectors)
    assert found.vectors.shape[1:] == (2, 4)


def test_rows_are_found_by_id():
    rows = make_vectors().rows(["c", None, "a", "not encoded"])
    assert rows.tolist() == [2, NO_SIGNAL, 0, NO_SIGNAL]


def test_tables_that_are_none_are_refused(tmp_path):
    with pytest.raises(InputError, match="stands twice"):
        make_vectors(("a", "a"))
    with pytest.raises(InputError, match="for 1 records"):
        SignalVectors(("a",), np.zeros((2, 1, 1), np.float32), "h")
    with pytest.raises(InputError, match="no vectors"):
        SignalVectors.open(tmp_path)
    assert vectors_of(tmp_path) is None
    make_vectors().save(tmp_path / FOLDER)
    with (tmp_path / FOLDER / "vectors.f32").open("ab") as file:
        file.write(b"1234")
    with pytest.raises(IntegrityError, match="can't be read"):
        vectors_of(tmp_path)


def test_another_encoders_vectors_are_refused():
    require_encoder(make_vectors(), "", place="")
    require_encoder(None, "e" * 64, place="")
    require_encoder(make_vectors(), "f" * 64, place="")
    with pytest.raises(ModelMismatch, match="another encoder"):
        require_encoder(make_vectors(), "e" * 64, place="")


def test_tokens_of_a_store_point_to_their_records(tmp_path):
    vectors = make_vectors()
    write_table(tmp_path / "events", make_events([["b", "not encoded"], ["a", "c", None]]), vectors)
    store = build_token_store(tmp_path / "events", tmp_path / "tokens", min_count=1)
    assert store.config["signal_encoder"] == vectors.encoder_hash
    assert store.signals is not None
    data = TokenDataset(store, None)
    batch = data.batch(np.arange(len(data)))
    at = batch.signal >= 0
    assert batch.signal[at].tolist() == [0, 1, 2]
    order = [1, 0, 2] if batch.subject_id.tolist() == [0, 1] else [0, 2, 1]
    assert np.array_equal(batch.signal_vectors.numpy(), vectors.vectors[order])
    assert batch.code[at].unique().numel() == 1
    for token in batches_of(
        tokenize_events(
            event_table.sort_events(make_events([["b"]])), store.vocabulary, store.scale,
            signals=vectors,
        ),
        store.scale, max_tokens=100,
    ):  # fmt: skip
        assert token.signal.tolist() == [0, NO_SIGNAL]
        assert np.array_equal(token.signal_vectors[0].numpy(), vectors.vectors[1])


def test_a_store_without_vectors_has_no_waveforms(tmp_path):
    write_table(tmp_path / "events", make_events([["a", "b"]]))
    store = build_token_store(tmp_path / "events", tmp_path / "tokens", min_count=1)
    batch = TokenDataset(store, None).batch(np.array([0]))
    assert store.signals is None
    assert (batch.signal == NO_SIGNAL).all()
    assert batch.signal_vectors.numel() == 0
    assert (store.fields["modality"] == 1).sum() == 2


def test_a_store_of_an_older_version_is_refused(tmp_path):
    write_table(tmp_path / "events", make_events([["a"]]))
    build_token_store(tmp_path / "events", tmp_path / "tokens", min_count=1)
    config = tmp_path / "tokens" / "config.json"
    config.write_text(config.read_text().replace('"format_version": 2', '"format_version": 1'))
    with pytest.raises(ModelMismatch, match="another version"):
        TokenStore.open(tmp_path / "tokens")


def test_only_the_events_of_its_kind_are_told(tmp_path):
    """A record of ECG and PPG gives two events with one id; the vectors are the ECG's."""
    events = make_events([["a"]])
    ppg = events.filter(pl.col(schema.CODE) == "ECG//12").with_columns(
        pl.lit("PPG").alias(schema.CODE)
    )
    vectors = make_vectors()
    write_table(tmp_path / "events", pl.concat([events, ppg]), vectors)
    store = build_token_store(tmp_path / "events", tmp_path / "tokens", min_count=1)
    told = [store.vocabulary.codes[c] for c in store.fields["code"][store.fields["signal"] >= 0]]
    assert told == ["ECG//12"]
    assert (store.fields["modality"] == 1).sum() == 2


def test_vectors_of_signals_that_have_changed_are_refused(tmp_path):
    (tmp_path / "signals").mkdir()
    manifest = tmp_path / "signals" / "manifest.json"
    manifest.write_text("{}")
    old = make_vectors()
    SignalVectors(
        old.signal_id, old.vectors, old.encoder_hash, signals_hash=hash_signals(tmp_path)
    ).save(tmp_path / FOLDER)
    assert vectors_of(tmp_path) is not None
    manifest.write_text('{"files": {}}')
    with pytest.raises(ModelMismatch, match="have changed"):
        vectors_of(tmp_path)


def test_records_that_had_nothing_to_encode_are_known_as_such(tmp_path):
    some = make_vectors()
    SignalVectors(some.signal_id, some.vectors, "h", left=("d",)).save(tmp_path / "v")
    found = SignalVectors.open(tmp_path / "v")
    assert found.left == ("d",)
    assert found.rows(["d", "a"]).tolist() == [NO_SIGNAL, 0]
    assert found.unexamined(["a", "d", "e", "f"]) == 2


def test_a_store_that_lost_its_vectors_is_refused(tmp_path):
    write_table(tmp_path / "events", make_events([["a"]]), make_vectors())
    store = build_token_store(tmp_path / "events", tmp_path / "tokens", min_count=1)
    with pytest.raises(ModelMismatch, match="another encoder"):
        store.require_model(store.vocabulary.hash, "0" * 64)
    make_vectors(("z",)).save(tmp_path / "tokens" / FOLDER)
    TokenStore.open(tmp_path / "tokens")  # as many rows as are pointed to
    SignalVectors(("z",), np.zeros((1, 2, 4), np.float32), "other").save(
        tmp_path / "tokens" / FOLDER
    )
    with pytest.raises(ModelMismatch, match="not those"):
        TokenStore.open(tmp_path / "tokens")
    shutil.rmtree(tmp_path / "tokens" / FOLDER)
    with pytest.raises(InputError, match="no vectors"):
        TokenStore.open(tmp_path / "tokens")


def test_two_views_of_a_patient_share_one_table_of_vectors(tmp_path):
    """The view in front has no waveform for a patient whose other view has one."""
    vectors = make_vectors()
    for name, signals in (("whole", [["a", "b"], ["c"]]), ("part", [["b"], [None]])):
        write_table(tmp_path / name, make_events(signals), vectors)
    whole = build_token_store(tmp_path / "whole", tmp_path / "t1", min_count=1)
    part = build_token_store(tmp_path / "part", tmp_path / "t2", vocabulary_from=tmp_path / "t1")
    first = View(whole)
    both = PatientViews([first, View(part, first.end_key)], None)
    batch = both.batch(np.arange(2))
    told = batch.signal_vectors[batch.signal[batch.signal >= 0]].numpy()
    seen = [vectors.vectors.tolist().index(one.tolist()) for one in told]
    assert sorted(seen[:3]) == [0, 1, 2]
    assert seen[3:] == [1]
    make_vectors(seed=1, ids=("a", "b", "x")).save(tmp_path / "t2" / FOLDER)
    with pytest.raises(ModelMismatch, match="different vectors"):
        PatientViews([first, View(TokenStore.open(tmp_path / "t2"), first.end_key)], None)


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(signal_vectors, "write_frame", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_vectors().save(tmp_path / "v")
    assert not list(tmp_path.iterdir())
