# pyright: strict
"""The packed token store: one raw file a field, memory-mapped, plus the subjects' borders.

`tokens/` holds `<field>.bin` (little-endian, see `TOKEN_FIELDS`), `subjects.parquet` (borders,
birth, split), `vocabulary/`, `config.json`, and `signal_vectors/` where the data set's waveforms
have been encoded. Tokens of all subjects lie end to end; there is no padding to store or to skip.

A store may be fitted (vocabulary and scales from its training subjects) or made with an existing
vocabulary, so that another hospital's data meets a model's ids.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tqdm import tqdm

from tsfm import event_table, schema
from tsfm.errors import InputError, ModelMismatch
from tsfm.tokens.event_tokens import (
    TOKEN_FIELDS,
    scan_training_values,
    tokenize_events,
    training_counts,
)
from tsfm.tokens.signal_vectors import FOLDER as SIGNALS_DIR
from tsfm.tokens.signal_vectors import SignalVectors, require_encoder, vectors_of
from tsfm.tokens.value_scale import ValueScale, fit_value_scale
from tsfm.tokens.vocabulary import EncodingCounts, Vocabulary, fit_vocabulary

FORMAT_VERSION = 2  # 2: tokens point to vectors of waveforms
VOCABULARY_DIR = "vocabulary"


@dataclass(frozen=True)
class TokenStore:
    """An open token store.

    Attributes:
        path: Its folder.
        fields: Memory-mapped array of each of `TOKEN_FIELDS`, all of length T.
        subjects: Frame with subject_id, start, length, birth_s, split.
        vocabulary: The codes' ids.
        scale: The values' scales.
        config: Counts and facts of the data set it was made from.
        signals: Vectors of the waveforms that tokens point to, None without.
    """

    path: Path
    fields: dict[str, NDArray[Any]]
    subjects: pl.DataFrame
    vocabulary: Vocabulary
    scale: ValueScale
    config: dict[str, Any]
    signals: SignalVectors | None = None

    @classmethod
    def open(cls, path: str | Path) -> TokenStore:
        """Map a store into memory.

        Raises:
            InputError: There is no store.
            ModelMismatch: Its parts do not belong together.
        """
        folder = Path(path)
        try:
            config = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise InputError(
                "no token store",
                code="missing_token_store",
                place=str(folder),
                remedy="Make one with `tsfm tokenize`.",
            ) from error
        if config.get("format_version") != FORMAT_VERSION:
            raise ModelMismatch(
                "a token store of another version", code="token_store_version", place=str(folder),
                remedy="Make the store anew with `tsfm tokenize`.",
            )  # fmt: skip
        vocabulary, scale = load_vocabulary(folder / VOCABULARY_DIR)
        if vocabulary.hash != config.get("vocabulary_hash"):
            raise ModelMismatch(
                "the token store's vocabulary is not the one it was written with",
                code="vocabulary_hash_mismatch",
                place=str(folder),
                remedy="Make the store anew with `tsfm tokenize`.",
            )
        n_tokens = int(config["n_tokens"])
        fields: dict[str, NDArray[Any]] = {
            name: np.memmap(folder / f"{name}.bin", dtype=kind, mode="r", shape=(n_tokens,))
            if n_tokens
            else np.zeros(0, kind)
            for name, kind in TOKEN_FIELDS.items()
        }
        subjects = pl.read_parquet(folder / "subjects.parquet")
        signals = None
        if config.get("signal_encoder"):
            signals = SignalVectors.open(folder / SIGNALS_DIR)
            last = int(fields["signal"].max(initial=-1))
            if signals.encoder_hash != config["signal_encoder"] or last >= len(signals.signal_id):
                raise ModelMismatch(
                    "the token store's vectors of waveforms are not those it was written with",
                    code="signal_vectors_mismatch", place=str(folder),
                    remedy="Make the store anew with `tsfm tokenize`.",
                )  # fmt: skip
        return cls(folder, fields, subjects, vocabulary, scale, config, signals)

    def __len__(self) -> int:
        """Tokens in all."""
        return int(self.config["n_tokens"])

    def require_model(self, vocabulary_hash: str, signal_encoder: str) -> None:
        """Check that a model may read this store.

        Args:
            vocabulary_hash: The model's vocabulary.
            signal_encoder: The encoder of the waveforms that it reads, empty for none.

        Raises:
            ModelMismatch: Another vocabulary or encoder.
            InputError: `no_signal_vectors`: the model reads waveforms, the store has some, and they
                are not encoded.
        """
        if self.vocabulary.hash != vocabulary_hash:
            raise ModelMismatch(
                "the token store and the model have different vocabularies",
                code="vocabulary_mismatch",
                place=str(self.path),
                remedy="Tokenize with `--vocabulary MODEL`.",
            )
        require_encoder(self.signals, signal_encoder, place=str(self.path))
        if signal_encoder and self.signals is None and bool(self.fields["modality"].any()):
            raise InputError(
                "the model reads waveforms, and those of the token store are not encoded",
                code="no_signal_vectors", place=str(self.path),
                remedy="Encode them with `tsfm encode`, then make the store anew.",
            )  # fmt: skip

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{name}</td><td style='text-align:right'>{self.config[name]:,}</td></tr>"
            for name in ("n_subjects", "n_tokens", "n_exact", "n_fallback", "n_unknown")
        )
        return f"<b>TokenStore</b> ({len(self.vocabulary):,} codes)<table>{rows}</table>"


def load_vocabulary(folder: str | Path) -> tuple[Vocabulary, ValueScale]:
    """Vocabulary and value scales of a store or model."""
    vocabulary = Vocabulary.load(folder)
    return vocabulary, ValueScale.load(folder, n_codes=len(vocabulary))


def build_token_store(
    root: str | Path,
    out: str | Path,
    *,
    vocabulary_from: str | Path | None = None,
    min_count: int = 10,
    signals: SignalVectors | None = None,
) -> TokenStore:
    """Tokenise an event table.

    Args:
        root: Root of the event table.
        out: Folder to write; must not hold a store.
        vocabulary_from: Folder with a `vocabulary/` to use (a model or another store); by default
            one is fitted on the training subjects.
        min_count: Rarer codes take their parent's id, when fitting.
        signals: Vectors of the waveforms; by default those of the data set.
    """
    folder = Path(out)
    if (folder / "config.json").exists():
        raise InputError(
            "the output folder already holds a token store",
            code="output_exists",
            place=str(folder),
            remedy="Choose another --out, or remove the old one.",
        )
    splits = event_table.subject_splits(root)
    if vocabulary_from is None:
        vocabulary, scale = fit(root, splits, min_count=min_count)
    else:
        vocabulary, scale = load_vocabulary(Path(vocabulary_from) / VOCABULARY_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary.save(folder / VOCABULARY_DIR)
    scale.save(folder / VOCABULARY_DIR)
    signals = signals or vectors_of(root)
    if signals is not None:
        signals.save(folder / SIGNALS_DIR)

    counts = EncodingCounts()
    subjects: list[pl.DataFrame] = []
    n_tokens = 0
    with ExitStack() as stack:
        files = {
            name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in TOKEN_FIELDS
        }
        bar = tqdm(
            event_table.shard_paths(root), desc="tokenize", unit="shard", disable=None, leave=False
        )
        for path in bar:
            shard = event_table.read_events(path)
            tokens = tokenize_events(shard, vocabulary, scale, signals=signals)
            counts.add(tokens.counts)
            for name, kind in TOKEN_FIELDS.items():
                array: NDArray[Any] = getattr(tokens, name)
                files[name].write(np.ascontiguousarray(array, dtype=kind).tobytes())
            subjects.append(
                pl.DataFrame(
                    {
                        schema.SUBJECT_ID: tokens.subject_id,
                        "start": tokens.start[:-1] + n_tokens,
                        "length": np.diff(tokens.start),
                        "birth_s": tokens.birth_s,
                        "split": [splits.get(int(s), schema.TRAIN) for s in tokens.subject_id],
                    }
                )
            )
            n_tokens += len(tokens.code)
    pl.concat(subjects).write_parquet(folder / "subjects.parquet")
    facts = event_table.dataset_facts(root)
    config = {
        "format_version": FORMAT_VERSION,
        "n_tokens": n_tokens,
        "n_subjects": sum(frame.height for frame in subjects),
        "n_exact": counts.exact,
        "n_fallback": counts.fallback,
        "n_unknown": counts.unknown,
        "vocabulary_hash": vocabulary.hash,
        "vocabulary_fitted": vocabulary_from is None,
        "signal_encoder": signals.encoder_hash if signals is not None else None,
        "dataset_name": facts.get("dataset_name"),
        "data_as_of": facts.get("data_as_of"),
        "dates_shifted": facts.get("dates_shifted", False),
    }
    # Written last, and whole or not at all: a folder with a `config.json` is a whole store.
    temporary = folder / ".config.json.tmp"
    temporary.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(temporary, folder / "config.json")
    return TokenStore.open(folder)


def fit(
    root: str | Path, splits: dict[int, str], *, min_count: int
) -> tuple[Vocabulary, ValueScale]:
    """Fit vocabulary and value scales on the training subjects of an event table.

    Raises:
        InputError: The split leaves no subject for training.
    """
    training = pl.Series(
        [s for s, split in splits.items() if split == schema.TRAIN], dtype=pl.Int64
    )
    if training.len() == 0:
        raise InputError(
            "no training subjects",
            code="no_training_subjects",
            place=str(schema.metadata_dir(root) / "subject_splits.parquet"),
            remedy="Use --vocabulary of an existing model, or a data set with a training split.",
        )
    code_counts: dict[str, int] = {}
    for shard in event_table.scan_events(root):
        for code, n in training_counts(shard, training).items():
            code_counts[code] = code_counts.get(code, 0) + n
    vocabulary = fit_vocabulary(code_counts, min_count=min_count)
    ids, values, owners = scan_training_values(str(root), training, vocabulary)
    return vocabulary, fit_value_scale(ids, values, n_codes=len(vocabulary), subjects=owners)
