# pyright: strict
"""The packed token store: one raw file a field, memory-mapped, plus the subjects' borders.

`tokens/` holds `<field>.bin` (little-endian, see `TOKEN_FIELDS`), `subjects.parquet` (borders,
birth, split), `vocabulary/`, `config.json`, and `signal_vectors/` where the data set's waveforms
have been encoded. Tokens of all subjects lie end to end; there is no padding to store or to skip.

A store may be fitted (vocabulary and scales from its training subjects) or made with an existing
vocabulary, so that another hospital's data meets a model's ids.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tqdm import tqdm

from tsfm import event_table, schema
from tsfm.checked_parquet import write_frame
from tsfm.data_end import DataEnd
from tsfm.errors import InputError, ModelMismatch
from tsfm.tokens.event_tokens import (
    TOKEN_FIELDS,
    scan_training_values,
    tokenize_events,
    training_counts,
)
from tsfm.tokens.signal_vectors import FOLDER as SIGNALS_DIR
from tsfm.tokens.signal_vectors import SignalVectors, require_encoder, vectors_of
from tsfm.tokens.store_files import FieldFiles, bad_store, map_fields, sample_hash
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
            config: dict[str, Any] = dict(json.loads((folder / "config.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
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
        n_tokens = config.get("n_tokens")
        if not isinstance(n_tokens, int) or n_tokens < 0:
            raise bad_store("config.json does not say how many tokens there are", folder)
        fields = map_fields(folder, n_tokens)
        subjects = _read_subjects(folder, n_tokens)
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

    @cached_property
    def hash(self) -> str:
        """Names what the store holds: its tokens, its subjects and their splits, its scales."""
        digest = hashlib.sha256(self.vocabulary.hash.encode())
        digest.update((self.config.get("content_hash") or sample_hash(self.fields)).encode())
        told = ("data_as_of", "dates_shifted", "watched_until_us", "signal_encoder")
        digest.update(json.dumps({k: v for k, v in self.config.items() if k in told}).encode())
        for name in (schema.SUBJECT_ID, "start", "length", "birth_s"):
            digest.update(np.ascontiguousarray(self.subjects[name].to_numpy()).tobytes())
        digest.update("\n".join(map(str, self.subjects["split"].to_list())).encode())
        for array in (self.scale.median, self.scale.scale, self.scale.edges, self.scale.step):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

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


def _read_subjects(folder: Path, n_tokens: int) -> pl.DataFrame:
    try:
        subjects = pl.read_parquet(folder / "subjects.parquet")
        end = int((subjects["start"] + subjects["length"]).max() or 0)  # type: ignore[arg-type]
        lacks = {schema.SUBJECT_ID, "birth_s", "split"} - set(subjects.columns)
    except (OSError, TypeError, pl.exceptions.PolarsError) as error:
        raise bad_store("subjects.parquet can't be read", folder) from error
    if lacks or end > n_tokens:
        raise bad_store("subjects.parquet is not that of these tokens", folder)
    return subjects


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

    Raises:
        InputError: The folder holds a store; or the data set's splits leave a subject out, or have
            a name that is none.
        FormatError: The data set's `data_as_of` is not a time stamp.
    """
    folder = Path(out)
    if (folder / "config.json").exists():
        raise InputError(
            "the output folder already holds a token store",
            code="output_exists",
            place=str(folder),
            remedy="Choose another --out, or remove the old one.",
        )
    splits = _read_splits(root)
    facts = event_table.dataset_facts(root)
    end = DataEnd(facts)
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
        paths = {name: folder / f"{name}.bin" for name in TOKEN_FIELDS}
        files = FieldFiles({n: stack.enter_context(p.open("wb")) for n, p in paths.items()})
        bar = tqdm(
            event_table.shard_paths(root), desc="tokenize", unit="shard", disable=None, leave=False
        )
        for path in bar:
            shard = event_table.read_events(path)
            tokens = tokenize_events(shard, vocabulary, scale, signals=signals)
            counts.add(tokens.counts)
            files.append(tokens)
            end.see(shard)
            subjects.append(
                pl.DataFrame(
                    {
                        schema.SUBJECT_ID: tokens.subject_id,
                        "start": tokens.start[:-1] + n_tokens,
                        "length": np.diff(tokens.start),
                        "birth_s": tokens.birth_s,
                        "split": _splits_of(tokens.subject_id, splits, root),
                    }
                )
            )
            n_tokens += len(tokens.code)
    write_frame(pl.concat(subjects), folder / "subjects.parquet")
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
        "watched_until_us": end.until_us,
        "content_hash": files.hash,
    }
    # Written last, and whole or not at all: a folder with a `config.json` is a whole store.
    temporary = folder / ".config.json.tmp"
    temporary.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(temporary, folder / "config.json")
    return TokenStore.open(folder)


def _read_splits(root: str | Path) -> dict[int, str]:
    """Splits of the data set's subjects.

    Raises:
        InputError: `unknown_split`: one of them is null or another word.
    """
    splits = event_table.subject_splits(root)
    strange = sum(split not in schema.SPLITS for split in splits.values())
    if strange:
        raise InputError(
            f"{strange} subjects are in no known split", code="unknown_split",
            place=_splits_path(root), remedy=f"Use {', '.join(schema.SPLITS)}.",
        )  # fmt: skip
    return splits


def _splits_of(
    subject_id: NDArray[np.int64], splits: dict[int, str], root: str | Path
) -> list[str]:
    """Split of each subject; one that has none might have been held out, so none is made up."""
    found = [splits.get(subject) for subject in subject_id.tolist()]
    known = [split for split in found if split is not None]
    if len(known) < len(found):
        raise InputError(
            f"{len(found) - len(known)} subjects of the events have no split",
            code="missing_split", place=_splits_path(root),
            remedy="Give every subject a row, or ingest the data set anew.",
        )  # fmt: skip
    return known


def _splits_path(root: str | Path) -> str:
    return str(schema.metadata_dir(root) / "subject_splits.parquet")


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
            place=_splits_path(root),
            remedy="Use --vocabulary of an existing model, or a data set with a training split.",
        )
    code_counts: dict[str, int] = {}
    for shard in event_table.scan_events(root):
        for code, n in training_counts(shard, training).items():
            code_counts[code] = code_counts.get(code, 0) + n
    vocabulary = fit_vocabulary(code_counts, min_count=min_count)
    ids, values, owners = scan_training_values(str(root), training, vocabulary)
    return vocabulary, fit_value_scale(ids, values, n_codes=len(vocabulary), subjects=owners)
