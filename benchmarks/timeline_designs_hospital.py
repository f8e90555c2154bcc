"""The simulated hospital that token designs are compared on: its events in both of them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import polars as pl

import tsfm
from tsfm import event_table, schema
from tsfm.tokens.ethos_tokens import EthosTimelines, tokenize_ethos
from tsfm.tokens.ethos_vocabulary import EthosVocabulary, fit_ethos_vocabulary
from tsfm.tokens.token_store import TokenStore


@dataclass(frozen=True)
class Hospital:
    """The simulated hospital in both designs, by split where whole events are held."""

    folder: Path
    store: TokenStore
    words: EthosVocabulary
    events: dict[str, pl.DataFrame]

    @property
    def everyone(self) -> pl.DataFrame:
        return pl.concat(list(self.events.values()))

    def form_folder(self, form: str) -> Path:
        """Where a form of our model is kept."""
        return self.folder / "forms" / form


def make_hospital(out: Path, n_patients: int, seed: int) -> Hospital:
    """Simulate, ingest and tokenise in both designs, or open what was made before."""
    if not (out / "words" / "done").exists():
        for name in ("hospital", "events", "tokens", "words"):
            shutil.rmtree(out / name, ignore_errors=True)
        tsfm.simulate_hospital(
            out / "hospital", n_patients=n_patients, seed=seed, waveform_fraction=0.0,
            progress=False,
        )  # fmt: skip
        tsfm.ingest_fhir(out / "hospital" / "fhir", out / "events", progress=False)
        tsfm.build_token_store(out / "events", out / "tokens")
        splits = event_table.subject_splits(out / "events")
        training = pl.Series([s for s, split in splits.items() if split == schema.TRAIN])
        shards = event_table.scan_events(out / "events")
        fit_ethos_vocabulary(shards, training).save(out / "words")
        (out / "words" / "done").touch()
    store = TokenStore.open(out / "tokens")
    everything = pl.concat(list(event_table.scan_events(out / "events")))
    split_of = pl.DataFrame(
        list(event_table.subject_splits(out / "events").items()),
        schema={schema.SUBJECT_ID: pl.Int64, "split": pl.String}, orient="row",
    )  # fmt: skip
    events = {
        split: everything.filter(
            pl.col(schema.SUBJECT_ID).is_in(
                split_of.filter(pl.col("split") == split)[schema.SUBJECT_ID].implode()
            )
        )
        for split in (schema.TRAIN, schema.TUNING, schema.HELD_OUT)
    }
    return Hospital(out, store, EthosVocabulary.load(out / "words"), events)


def training_tokens(hospital: Hospital) -> EthosTimelines:
    return tokenize_ethos(hospital.events[schema.TRAIN], hospital.words)


def tokens_a_patient(hospital: Hospital) -> dict[str, float]:
    table = hospital.store.subjects.filter(pl.col("split") == schema.TRAIN)
    spoken = training_tokens(hospital)
    n_words = len(spoken.token) + len(spoken.static) + 2 * len(spoken.subject_id)
    return {"fused": float(table["length"].mean()), "ethos": n_words / len(spoken.subject_id)}
