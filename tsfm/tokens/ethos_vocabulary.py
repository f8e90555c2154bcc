# pyright: strict
"""The words of ETHOS-ARES: intervals of time, shared deciles, and pieces of codes.

After ETHOS (Renc et al., npj Digital Medicine 2024) and ETHOS-ARES (GigaScience 2025, giaf107):
time is one of 19 interval words between two events, a number is the word of its code and one of
ten words Q1 to Q10 that all codes share, and a code of a large hierarchy is spelt:

    DIAGNOSIS//ICD//10//S72001A      ICD//CM//S72   ICD//CM//3-6//001   ICD//CM//SFX//A
    PROCEDURE//ICD//10//02HV33Z      ICD//PCS//0    ICD//PCS//2 ...     seven in all
    MEDICATION//ATC//C03CA01//START  ATC//C03  ATC//4//C  ATC//SFX//A01  ATC//MANNER//START

All other codes are one word. So are ICD-9 codes: mapping them to ICD-10 needs tables that are not
ours to give, and loses a part of them. Words too rare in training are left to their parents, as in
`tsfm.tokens.vocabulary`. The design is a peer to compare ours with, on the same events.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import codes, schema
from tsfm.errors import InputError, ModelMismatch
from tsfm.tokens.event_tokens import order_of_knowing
from tsfm.tokens.value_scale import N_BINS, ValueScale, fit_value_scale
from tsfm.tokens.vocabulary import UNKNOWN_ID, EncodingCounts, Vocabulary, fit_vocabulary

FILE_NAME = "ethos_vocabulary.json"
_MINUTE, _HOUR, _DAY = 60_000_000, 3_600_000_000, 86_400_000_000
HALF_YEAR_US = 180 * _DAY
"""Six of the design's months: longer gaps are so many words of half a year."""

_LOWER_US = {
    "5m-15m": 5 * _MINUTE,
    "15m-45m": 15 * _MINUTE,
    "45m-1h15m": 45 * _MINUTE,
    "1h15m-2h": 75 * _MINUTE,
    "2h-3h": 2 * _HOUR,
    "3h-5h": 3 * _HOUR,
    "5h-8h": 5 * _HOUR,
    "8h-12h": 8 * _HOUR,
    "12h-18h": 12 * _HOUR,
    "18h-1d": 18 * _HOUR,
    "1d-2d": _DAY,
    "2d-4d": 2 * _DAY,
    "4d-7d": 4 * _DAY,
    "7d-12d": 7 * _DAY,
    "12d-20d": 12 * _DAY,
    "20d-30d": 20 * _DAY,
    "30d-2mt": 30 * _DAY,
    "2mt-6mt": 60 * _DAY,
    "=6mt": HALF_YEAR_US,
}
INTERVALS = tuple(_LOWER_US)
DECILES = tuple(f"Q{k}" for k in range(1, N_BINS + 1))
TIMELINE_END, AGE_UNKNOWN = "TIMELINE_END", "AGE//UNK"
FIRST_INTERVAL_ID = 1
FIRST_DECILE_ID = FIRST_INTERVAL_ID + len(INTERVALS)
END_ID = FIRST_DECILE_ID + len(DECILES)
AGE_UNKNOWN_ID = END_ID + 1
FIRST_CODE_ID = AGE_UNKNOWN_ID + 1
_FIXED = (codes.UNKNOWN, *INTERVALS, *DECILES, TIMELINE_END, AGE_UNKNOWN)

_BORDERS = np.array(list(_LOWER_US.values()), np.int64)
_PCS_LENGTH = 7


class Kind(IntEnum):
    """What a token says."""

    UNKNOWN = 0
    INTERVAL = 1
    DECILE = 2
    CODE = 3
    END = 4


@dataclass(frozen=True)
class EthosVocabulary:
    """Ids of words, deciles of measures, and how long an interval is on average.

    Attributes:
        tokens: Words; the first `FIRST_CODE_ID` ids are the same in every vocabulary.
        measures: Whole codes that have deciles; id 0 has none.
        scale: Deciles of the measures, by their ids.
        interval_seconds: Mean length of each of `INTERVALS` among training subjects.
    """

    tokens: Vocabulary
    measures: Vocabulary
    scale: ValueScale
    interval_seconds: tuple[float, ...]

    def __len__(self) -> int:
        """Number of words."""
        return len(self.tokens)

    @cached_property
    def hash(self) -> str:
        """sha256 of all that was fitted: what ties a model to its vocabulary."""
        return _digest(self._content())

    @cached_property
    def kind(self) -> NDArray[np.int8]:
        """(V,) `Kind` of each word."""
        kind = np.full(len(self), Kind.CODE, np.int8)
        kind[0] = Kind.UNKNOWN
        kind[FIRST_INTERVAL_ID:FIRST_DECILE_ID] = Kind.INTERVAL
        kind[FIRST_DECILE_ID:END_ID] = Kind.DECILE
        kind[END_ID] = Kind.END
        return kind

    @cached_property
    def hours(self) -> NDArray[np.float64]:
        """(V,) hours by which each word moves the clock: none but intervals do."""
        hours = np.zeros(len(self))
        hours[FIRST_INTERVAL_ID:FIRST_DECILE_ID] = np.array(self.interval_seconds) / 3600.0
        return hours

    def decode(self, ids: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
        """Kind of each token of a timeline, and the hours gone by at it.

        Time is the sum of mean interval lengths: this is all that the words say of it. Gaps under
        five minutes have no word, so the clock is slow by their sum.

        Args:
            ids: (T,) tokens of one timeline.
        """
        return self.kind[ids], np.cumsum(self.hours[ids])

    def word_ids(self, code: str) -> tuple[list[int], EncodingCounts]:
        """Ids of the words of a code, and how faithfully they say it."""
        counts = EncodingCounts()
        ids: list[int] = []
        for word in words(code):
            index, exact = self.tokens.lookup(word)
            own = exact and index != UNKNOWN_ID
            counts.add(EncodingCounts(own, not own and index != UNKNOWN_ID, index == UNKNOWN_ID))
            ids.append(index)
        return ids, counts

    def ids_of_class(self, *names: str) -> list[int]:
        """Ids of all words that are one of these codes or below it: an outcome, or a stop."""
        return sorted({i for name in names for i in self.tokens.ids_of_class(name)})

    def save(self, folder: str | Path) -> None:
        """Write `ethos_vocabulary.json` into a folder."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**self._content(), "sha256": self.hash}, allow_nan=False)
        (path / FILE_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> EthosVocabulary:
        """Read `ethos_vocabulary.json` from a folder.

        Raises:
            ModelMismatch: The file is missing, of another form, or was changed since.
        """
        path = Path(folder) / FILE_NAME
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            expected = str(stored.pop("sha256"))
            found = cls(
                Vocabulary(tuple(stored["tokens"])),
                Vocabulary(tuple(stored["measures"])),
                _scale_of(stored),
                tuple(float(x) for x in stored["interval_seconds"]),
            )
            fits = found.tokens.codes[:FIRST_CODE_ID] == _FIXED
            fits = fits and len(found.interval_seconds) == len(INTERVALS)
            fits = fits and len(found.measures) == len(found.scale.median)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unreadable(path) from error
        if not fits:
            raise _unreadable(path)
        if found.hash != expected:
            raise ModelMismatch(
                "the vocabulary was changed after it was written",
                code="vocabulary_hash_mismatch",
                place=str(path),
                remedy="Restore the file that belongs to this model.",
            )
        return found

    def _content(self) -> dict[str, Any]:
        """Plain scalars of all fields; the measures' scales leave out the first, which is none."""
        return {
            "tokens": list(self.tokens.codes),
            "measures": list(self.measures.codes),
            "median": self.scale.median[1:].tolist(),
            "scale": self.scale.scale[1:].tolist(),
            "edges": self.scale.edges[1:].tolist(),
            "interval_seconds": list(self.interval_seconds),
        }


def words(code: str) -> tuple[str, ...]:
    """The words that spell a code, the widest first.

    >>> words("DIAGNOSIS//ICD//10//I5023")
    ('ICD//CM//I50', 'ICD//CM//3-6//23')
    >>> words("MEDICATION//ATC//C03CA01//ORDERED")
    ('ATC//C03', 'ATC//4//C', 'ATC//SFX//A01', 'ATC//MANNER//ORDERED')
    >>> words("LAB//50912//mg/dL")
    ('LAB//50912//mg/dL',)
    """
    match code.split(codes.SEPARATOR):
        case [codes.DIAGNOSIS, "ICD", "10", leaf, *rest]:
            spelt = [("ICD//CM", leaf[:3]), ("ICD//CM//3-6", leaf[3:6]), ("ICD//CM//SFX", leaf[6:])]
            spelt += [("ICD//MANNER", part) for part in rest]
        case [codes.PROCEDURE, "ICD", "10", leaf, *rest] if len(leaf) == _PCS_LENGTH:
            spelt = [("ICD//PCS", character) for character in leaf]
            spelt += [("ICD//MANNER", part) for part in rest]
        case [codes.MEDICATION, "ATC", leaf, *rest]:
            spelt = [("ATC", leaf[:3]), ("ATC//4", leaf[3:4]), ("ATC//SFX", leaf[4:])]
            spelt += [("ATC//MANNER", part) for part in rest]
        case _:
            return (code,)
    return tuple(f"{kind}{codes.SEPARATOR}{text}" for kind, text in spelt if text)


def intervals(gap_us: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which interval word each gap has, and how often.

    Args:
        gap_us: (N,) microseconds, not negative.

    Returns:
        Index into `INTERVALS` and number of words, 0 under five minutes. From half a year on, the
        gap in half years, rounded, is the number.
    """
    index = np.searchsorted(_BORDERS, gap_us, side="right") - 1
    half_years = (gap_us + HALF_YEAR_US // 2) // HALF_YEAR_US
    count = np.where(index == len(INTERVALS) - 1, half_years, index >= 0).astype(np.int64)
    return np.maximum(index, 0), count


def fit_ethos_vocabulary(
    shards: Iterable[pl.DataFrame],
    training_subjects: pl.Series,
    *,
    min_count: int = 10,
    min_values: int = 10,
) -> EthosVocabulary:
    """Fit words, deciles and mean intervals on training subjects.

    Args:
        shards: Event frames, every subject complete in one of them.
        training_subjects: Whose events are read.
        min_count: Rarer words are left to their parents.
        min_values: Codes with fewer numbers have no deciles: they are said without a number.

    Raises:
        InputError: No event of a training subject.
    """
    code_counts: dict[str, int] = {}
    measured = [pl.DataFrame(schema={"code": pl.String, "x": pl.Float32})]
    seconds, number = np.zeros(len(INTERVALS)), np.zeros(len(INTERVALS))
    for shard in shards:
        stream = order_of_knowing(
            shard.filter(pl.col(schema.SUBJECT_ID).is_in(training_subjects.implode()))
        ).filter(pl.col(schema.CODE) != codes.BIRTH)
        for code, n in stream[schema.CODE].value_counts().iter_rows():
            code_counts[code] = code_counts.get(code, 0) + n
        measured.append(
            stream.select(
                pl.col(schema.CODE).alias("code"), pl.col(schema.NUMERIC_VALUE).alias("x")
            )
            .filter(pl.col("x").is_finite())
            .cast({"x": pl.Float32})
        )
        clock = stream.filter(pl.col(schema.AVAILABLE_TIME).is_not_null())
        subject, known = clock[schema.SUBJECT_ID].to_numpy(), clock["_stream_us"].to_numpy()
        gap = np.diff(known)[subject[1:] == subject[:-1]]
        index, count = intervals(gap)
        np.add.at(seconds, index, np.where(count > 0, gap / 1e6, 0.0))
        np.add.at(number, index, count)
    if not code_counts:
        raise InputError(
            "no events of training subjects",
            code="no_training_subjects",
            place="training_subjects",
            remedy="Give a data set with a training split.",
        )
    # Where training saw none, the middle of the interval on a scale of logarithms.
    upper = np.append(_BORDERS[1:], HALF_YEAR_US)
    middle = np.sqrt(_BORDERS / 1e6) * np.sqrt(upper / 1e6)
    mean = np.where(number > 0, seconds / np.maximum(number, 1), middle)
    measures, scale = _fit_measures(pl.concat(measured), min_values)
    return EthosVocabulary(
        _fit_words(code_counts, min_count), measures, scale, tuple(mean.tolist())
    )


def _fit_words(code_counts: Mapping[str, int], min_count: int) -> Vocabulary:
    counts: dict[str, int] = {}
    for code, n in code_counts.items():
        for word in words(code):
            counts[word] = counts.get(word, 0) + n
    chosen = fit_vocabulary(counts, min_count=min_count).codes
    return Vocabulary((*_FIXED, *(word for word in chosen if word not in _FIXED)))


def _fit_measures(values: pl.DataFrame, min_values: int) -> tuple[Vocabulary, ValueScale]:
    counts = values["code"].value_counts().filter(pl.col("count") >= min_values)
    measures = Vocabulary((codes.UNKNOWN, *sorted(set(counts["code"]) - {codes.UNKNOWN})))
    ids = values["code"].replace_strict(measures.ids, default=0, return_dtype=pl.Int32).to_numpy()
    kept = ids > 0
    x = values["x"].to_numpy()[kept]
    return measures, fit_value_scale(ids[kept], x, n_codes=len(measures), min_values=min_values)


def _scale_of(stored: Mapping[str, Any]) -> ValueScale:
    """Scales of the measures as they were fitted, none for id 0."""
    median = np.array([np.nan, *stored["median"]], np.float32)
    edges = np.zeros((len(median), N_BINS - 1), np.float32)
    edges[1:] = np.array(stored["edges"], np.float32).reshape(len(median) - 1, N_BINS - 1)
    scale = np.array([1.0, *stored["scale"]], np.float32)
    return ValueScale(median, scale, edges, np.ones(len(median), np.float32))


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _unreadable(path: Path) -> ModelMismatch:
    return ModelMismatch(
        "no readable vocabulary of ETHOS words",
        code="bad_vocabulary",
        place=str(path),
        remedy="Use the folder as it was written by tsfm.",
    )
