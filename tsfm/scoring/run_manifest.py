"""`run.json`: what was read, what was made, with which model, and how many of everything.

A score can be traced back only if the files, the model and the code that made it are named by
their contents. The manifest holds hashes, counts and settings, and no patient's data: shard names,
reasons and totals only. Who reads a run's tables compares them with it (`check_outputs`).

It also keeps the books: every eligible stay is scored or not scored with a reason, and a manifest
whose sums do not agree is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import polars as pl

from tsfm import schema
from tsfm.errors import FormatError, InputError, IntegrityError
from tsfm.tokens.signal_vectors import FOLDER as SIGNALS_DIR

FILE_NAME = "run.json"
_MAPPINGS = (
    "inputs",
    "dataset",
    "counts",
    "unknown_codes",
    "outputs",
    "settings",
    "scored_by_split",
)


@dataclass(frozen=True)
class StayCounts:
    """What became of every stay that was looked at.

    Attributes:
        eligible: Stays that the task asks a score for.
        scored: Of these, the ones with a probability.
        not_scored: The others, by reason.
        not_eligible: Stays that the task does not ask for, by reason.
    """

    eligible: int
    scored: int
    not_scored: dict[str, int] = field(default_factory=dict)
    not_eligible: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse books that do not balance."""
        accounted = self.scored + sum(self.not_scored.values())
        if accounted != self.eligible:
            raise IntegrityError(
                f"{self.eligible} stays are eligible but {accounted} are accounted for",
                code="stays_unaccounted",
                place="counts",
                remedy="Every eligible stay needs one row: scored, or not_scored with a reason.",
            )

    @property
    def seen(self) -> int:
        """Stays looked at in all."""
        return self.eligible + sum(self.not_eligible.values())


@dataclass(frozen=True)
class UnknownCodes:
    """How the model's vocabulary met the data's codes, counted in tokens.

    Attributes:
        tokens: Tokens read.
        mapped_to_parent: Of these, codes not in the vocabulary that fell back to a parent code.
        unknown: Of these, codes with no parent in the vocabulary either.
    """

    tokens: int = 0
    mapped_to_parent: int = 0
    unknown: int = 0


@dataclass(frozen=True)
class RunManifest:
    """Facts of one scoring run.

    Attributes:
        run_id: See `new_run_id`.
        task: Task that was scored.
        model_name: Name of the model.
        model_hash: Hash of the model directory.
        inputs: Path below the data set's root to sha256: every event shard and metadata table.
        dataset: Contents of `metadata/dataset.json`.
        threads: Threads that the arithmetic used.
        started: UTC, ISO 8601.
        ended: UTC, ISO 8601.
        counts: What became of every stay.
        unknown_codes: How the vocabulary met the data.
        data_as_of: Until when the data tell the subjects' story, on the data set's clock: the
            export's own time, or the last moment that was recorded. None where that is not known.
        outputs: File name to sha256 of what was written.
        settings: What scoring was asked for besides: `bands` (where the words of risk begin),
            `threshold`, `followup` (null: what the data set says), `capacity` (the share of stays
            in the report). Empty where a run was made before this was kept.
        scored_by_split: Scored stays by their subjects' split: of training subjects the model may
            know the outcome. Empty where a run was made before this was kept.
        device: Device that the arithmetic ran on.
        tsfm_version: Version of this package.
    """

    run_id: str
    task: str
    model_name: str
    model_hash: str
    inputs: dict[str, str]
    dataset: dict[str, Any]
    threads: int
    started: str
    ended: str
    counts: StayCounts
    unknown_codes: UnknownCodes = UnknownCodes()
    data_as_of: str | None = None
    outputs: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    scored_by_split: dict[str, int] = field(default_factory=dict)
    device: str = "cpu"
    tsfm_version: str = field(default_factory=lambda: _version())

    def as_dict(self) -> dict[str, Any]:
        """Plain values, in the order of the fields."""
        return asdict(self)

    def write(self, path: str | Path) -> None:
        """Write as JSON to a temporary name, then rename."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        temporary.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, target)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a manifest that `write` wrote.

        Raises:
            InputError: There is no such file.
            FormatError: It is not a run manifest of this version.
            IntegrityError: Its counts do not balance.
        """
        source = Path(path)
        try:
            raw = json.loads(source.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                "there is no run manifest",
                code="missing_manifest",
                place=source.name,
                remedy="Make one with `tsfm score`.",
            ) from None
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
            raise _bad_manifest(source, "is not JSON") from None
        known = {entry.name for entry in fields(cls)}
        if not isinstance(raw, dict) or set(raw) - known:
            raise _bad_manifest(source, "holds unknown fields")
        if not all(isinstance(raw.get(name, {}), dict) for name in _MAPPINGS):
            raise _bad_manifest(source, "holds fields of another type")
        try:
            return cls(
                **{
                    **raw,
                    "counts": StayCounts(**raw["counts"]),
                    "unknown_codes": UnknownCodes(**raw["unknown_codes"]),
                }
            )
        except (KeyError, TypeError, AttributeError):
            raise _bad_manifest(source, "lacks fields") from None

    def check_outputs(self, folder: str | Path, names: Iterable[str]) -> None:
        """See that tables of the run are those that it wrote.

        Args:
            folder: The run's folder.
            names: Files to look at; those that are not there, or not named here, are passed over.

        Raises:
            IntegrityError: One is another.
        """
        for name in names:
            path = Path(folder) / name
            if name in self.outputs and path.exists() and hash_file(path) != self.outputs[name]:
                raise IntegrityError(
                    "a table of the run is not the one that was written",
                    code="output_changed",
                    place=str(path),
                    remedy="Score again, or put the run's own file back.",
                )


def count_stays(scores: pl.DataFrame, cohort: pl.DataFrame | None = None) -> StayCounts:
    """Count a score table, and the stays of the cohort that the task does not ask for.

    Args:
        scores: `schema.SCORES` of one run.
        cohort: `schema.COHORT`; None where stays that are not eligible were not listed.

    Raises:
        IntegrityError: The cohort's eligible stays are not the ones of `scores`.
    """
    stay = [schema.SUBJECT_ID, schema.PREDICTION_TIME]
    not_eligible: dict[str, int] = {}
    if cohort is not None:
        eligible = cohort.filter(pl.col("eligible"))
        lost = eligible.join(scores, on=stay, how="anti").height
        extra = scores.join(eligible, on=stay, how="anti").height
        if lost or extra:
            raise IntegrityError(
                f"{lost} eligible stays have no row and {extra} rows have no eligible stay",
                code="stays_unaccounted",
                place="scores",
                remedy="Score and cohort must be of the same event table and task.",
            )
        not_eligible = _count_by(cohort.filter(~pl.col("eligible")), "reason")
    return StayCounts(
        eligible=scores.height,
        scored=scores.filter(pl.col("status") == "scored").height,
        not_scored=_count_by(scores.filter(pl.col("status") != "scored"), "reason"),
        not_eligible=not_eligible,
    )


def count_splits(scores: pl.DataFrame, split_of: Mapping[int, str]) -> dict[str, int]:
    """Scored stays by split of their subject, the largest first."""
    scored = scores.filter(pl.col("status") == "scored")[schema.SUBJECT_ID].to_list()
    return dict(Counter(split_of.get(subject, "unknown") for subject in scored).most_common())


def hash_file(path: str | Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(root: str | Path, paths: Iterable[str | Path]) -> dict[str, str]:
    """Path below `root`, with forward slashes, to sha256, sorted by path.

    Args:
        root: Folder that the names are relative to, so that no machine's path is written.
        paths: Files below it, absolute or relative to `root`.
    """
    folder = Path(root)
    files = sorted({(folder / path).relative_to(folder) for path in paths})
    return {file.as_posix(): hash_file(folder / file) for file in files}


def hash_dataset(root: str | Path) -> dict[str, str]:
    """Hashes of every event shard, metadata file and table of waveforms' vectors of a data set."""
    folders = (schema.data_dir(root), schema.metadata_dir(root), Path(root) / SIGNALS_DIR)
    return hash_files(
        root,
        (
            path.relative_to(root)
            for folder in folders
            for path in folder.rglob("*")
            if path.is_file()
        ),
    )


def new_run_id(started: datetime) -> str:
    """A name for a run that sorts by time and is not given twice.

    >>> new_run_id(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))[:17]
    '20260102T030405Z-'
    """
    return f"{started.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def _count_by(frame: pl.DataFrame, column: str) -> dict[str, int]:
    counts = frame.group_by(pl.col(column).fill_null("unknown")).len()
    return dict(counts.sort(["len", column], descending=[True, False]).iter_rows())


def _bad_manifest(path: Path, what: str) -> FormatError:
    return FormatError(
        f"the run manifest {what}",
        code="bad_manifest",
        place=path.name,
        remedy="Score again with this version.",
    )


def _version() -> str:
    from tsfm import __version__

    return __version__
