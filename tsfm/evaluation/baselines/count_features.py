"""Count features of a record at prediction times, for gradient boosting: the baseline to beat.

In the manner of MEDS-Tab: for the codes that most training subjects have (ICD and ATC codes by
their wider groups too, and every class of codes), how often each became known in windows that end
at the prediction time; for codes with values, the last one and its age, and minimum, maximum, mean
and standard deviation over the stay and over 30 days; and what the stay itself tells. Missing
values are NaN, which the trees handle.

An event counts in a window by its `available_time`, so nothing that was not known is used; codes
are chosen from what was known at some prediction time of a training subject. Codes and their names
are learned, nothing else: no value is scaled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import clock, codes, event_table, schema
from tsfm.evaluation.baselines.boosting import BoostedModel, fit_boosting
from tsfm.evaluation.baselines.lace import acute_admissions, count_before
from tsfm.tasks.stays import code_part, in_class

__all__ = ["BoostedModel", "count_features", "fit_boosting"]

WINDOW_DAYS = (1, 7, 30, 180, 365)
MIN_SUBJECTS = 5  # training subjects below which a code or an admission type is not used
MAX_ADMISSION_TYPES = 12

_STATISTICS = ("min", "max", "mean", "std")
_ROW, _KNOWN = "_row", "_known"
_ALWAYS = np.iinfo(np.int64).min
_KEYS = [schema.SUBJECT_ID, schema.PREDICTION_TIME]


@dataclass(frozen=True)
class _Plan:
    """What is counted: learned from training subjects."""

    groups: tuple[str, ...]
    numeric: frozenset[str]
    admission_types: tuple[str, ...]

    def names(self) -> list[str]:
        """Feature names in column order."""
        windows = [*(f"{days}d" for days in WINDOW_DAYS), "stay", "ever"]
        found = list(_CONTEXT) + [f"admission_type={name}" for name in self.admission_types]
        for group in self.groups:
            found += [f"{group}/count/{window}" for window in windows]
            if group in self.numeric:
                found += [f"{group}/last", f"{group}/hours_since_last", f"{group}/change/stay"]
                found += [f"{group}/{s}/{w}" for w in ("stay", "30d") for s in _STATISTICS]
        return found


_CONTEXT = (
    "age_years",
    "female",
    "hours_in_hospital",
    "hour_of_day",
    "day_of_week",
    "acute_admission",
    "n_previous_stays",
    "days_since_discharge",
)


def count_features(
    root: str | Path,
    cohort: pl.DataFrame,
    train_subjects: Iterable[int],
    *,
    max_codes: int = 300,
) -> tuple[NDArray[np.float32], list[str]]:
    """Features of every row of a cohort.

    Args:
        root: Root of the event table.
        cohort: Rows of `schema.COHORT`, usually the eligible ones.
        train_subjects: Subjects from whom the codes are chosen.
        max_codes: Codes and groups of codes that are counted, those of most training subjects
            first.

    Returns:
        Matrix of shape (rows of the cohort, features), in the cohort's order, and the names.
    """
    asked = (
        cohort.select(*_KEYS, "start_time")
        .with_row_index(_ROW)
        .sort(schema.SUBJECT_ID, schema.PREDICTION_TIME)
    )
    plan = _choose(root, asked, set(train_subjects), max_codes)
    names = plan.names()
    features = np.full((len(names), cohort.height), np.nan, dtype=np.float32).T
    for path in event_table.shard_paths(root):
        events = _known_events(path, asked)
        here = asked.join(
            events.select(schema.SUBJECT_ID).unique(), on=schema.SUBJECT_ID, how="semi"
        )
        if here.height:
            _fill(features, events, here, plan)
    return features, names


def _known_events(path: Path, asked: pl.DataFrame) -> pl.DataFrame:
    """Events of the cohort's subjects that are available at their last prediction time."""
    last = asked.group_by(schema.SUBJECT_ID).agg(_last=pl.col(schema.PREDICTION_TIME).max())
    known = pl.coalesce(schema.AVAILABLE_TIME, schema.TIME)
    return (
        event_table.read_events(path)
        .lazy()
        .join(last.lazy(), on=schema.SUBJECT_ID, maintain_order="left")
        .filter(known.is_null() | (known <= pl.col("_last")))
        .select(
            schema.SUBJECT_ID,
            schema.TIME,
            schema.CODE,
            pl.col(schema.NUMERIC_VALUE).fill_nan(None),
            schema.AVAILABLE_TIME,
            known.dt.epoch("us").fill_null(_ALWAYS).alias(_KNOWN),
        )
        .sort(schema.SUBJECT_ID, _KNOWN, schema.TIME, nulls_last=False, maintain_order=True)
        .collect()
    )


def _groups_of(code: str) -> list[str]:
    """What a code is counted as: itself, its wider group where it has one, its class."""
    parts = code.split(codes.SEPARATOR)
    found = [code]
    if len(parts) >= 4 and parts[:2] == [codes.DIAGNOSIS, "ICD"]:
        found.append(codes.SEPARATOR.join([*parts[:3], parts[3][:3]]))
    elif len(parts) == 3 and parts[1] == "ATC":
        found.append(codes.SEPARATOR.join([*parts[:2], parts[2][:4]]))
    return list(dict.fromkeys([*found, parts[0]]))


def _group_map(events: pl.DataFrame) -> pl.DataFrame:
    pairs = [(c, group) for c in events[schema.CODE].unique().to_list() for group in _groups_of(c)]
    return pl.DataFrame(pairs, schema={schema.CODE: pl.String, "group": pl.String}, orient="row")


def _choose(
    root: str | Path, asked: pl.DataFrame, train_subjects: set[int], max_codes: int
) -> _Plan:
    train = asked.filter(pl.col(schema.SUBJECT_ID).is_in(list(train_subjects)))
    counts: list[pl.DataFrame] = []
    types: list[pl.DataFrame] = []
    for path in event_table.shard_paths(root):
        events = _known_events(path, train)
        # Subjects a code first, groups after: rows shrink before they multiply.
        by_subject = events.group_by(schema.SUBJECT_ID, schema.CODE).agg(
            n=pl.len(), n_values=pl.col(schema.NUMERIC_VALUE).count()
        )
        counts.append(
            by_subject.join(_group_map(events), on=schema.CODE)
            .with_columns(own=pl.col("group") == pl.col(schema.CODE))
            .group_by("group")
            .agg(
                subjects=pl.col(schema.SUBJECT_ID).n_unique(),
                n=pl.col("n").sum(),
                n_values=(pl.col("n_values") * pl.col("own")).sum(),
            )
        )
        types.append(_admission_types(events, train).select(schema.SUBJECT_ID, "admission_type"))
    chosen = (
        pl.concat(counts)
        .group_by("group")
        .agg(pl.all().sum())
        .filter(pl.col("subjects") >= MIN_SUBJECTS)
        .sort(["subjects", "group"], descending=[True, False])
        .head(max_codes)
    )
    common = (
        pl.concat(types)
        .drop_nulls()
        .group_by("admission_type")
        .agg(subjects=pl.col(schema.SUBJECT_ID).n_unique())
        .filter(pl.col("subjects") >= MIN_SUBJECTS)
        .sort(["subjects", "admission_type"], descending=[True, False])
        .head(MAX_ADMISSION_TYPES)
    )
    numeric = chosen.filter(pl.col("n_values") * 2 >= pl.col("n"))["group"]
    return _Plan(
        tuple(chosen["group"].to_list()),
        frozenset(numeric.to_list()),
        tuple(common["admission_type"].to_list()),
    )


def _admission_types(events: pl.DataFrame, asked: pl.DataFrame) -> pl.DataFrame:
    """`asked` with the type of the admission that opens the stay."""
    kinds = (
        events.filter(in_class(codes.ADMISSION) & pl.col(schema.TIME).is_not_null())
        .select(
            schema.SUBJECT_ID,
            pl.col(schema.TIME).alias("start_time"),
            code_part(1).alias("admission_type"),
            pl.col(_KNOWN),
        )
        .unique([schema.SUBJECT_ID, "start_time"], keep="first", maintain_order=True)
    )
    known = pl.col(_KNOWN) <= pl.col(schema.PREDICTION_TIME).dt.epoch("us")
    return asked.join(kinds, on=[schema.SUBJECT_ID, "start_time"], how="left").with_columns(
        pl.when(known).then("admission_type").alias("admission_type")
    )


def _fill(
    features: NDArray[np.float32], events: pl.DataFrame, asked: pl.DataFrame, plan: _Plan
) -> None:
    """Write the rows of one shard's subjects."""
    rows = asked[_ROW].to_numpy()
    column = 0
    for values in _context(events, asked, plan):
        features[rows, column] = values
        column += 1
    bounds = _positions(events, asked)
    now_us = asked[schema.PREDICTION_TIME].dt.epoch("us").to_numpy()
    # As floats, exact for microseconds of our era: a value without a time has no age.
    times = events[schema.TIME].dt.epoch("us").cast(pl.Float64).fill_null(float("nan")).to_numpy()
    numbers = events[schema.NUMERIC_VALUE].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    for group, places in zip(plan.groups, _places(events, plan.groups), strict=True):
        ranks = {name: np.searchsorted(places, at) for name, at in bounds.items()}
        for name in (*(f"{days}d" for days in WINDOW_DAYS), "stay", "ever"):
            features[rows, column] = ranks["now"] - ranks[name]
            column += 1
        if group in plan.numeric:
            valued = places[~np.isnan(numbers[places])]
            ranks = {
                name: np.searchsorted(valued, bounds[name])
                for name in ("now", "stay", "30d", "ever")
            }
            for values in _summarise(numbers[valued], times[valued], ranks, now_us):
                features[rows, column] = values
                column += 1


def _positions(events: pl.DataFrame, asked: pl.DataFrame) -> dict[str, NDArray[np.int64]]:
    """For each row, how many events of the sorted table lie at or before a moment of its subject.

    `now` is the prediction time; the others open the windows (exclusive of what lies before).
    """
    subjects = events[schema.SUBJECT_ID].to_numpy()
    known = events[_KNOWN].to_numpy()
    who = asked[schema.SUBJECT_ID].to_numpy()
    now = asked[schema.PREDICTION_TIME].dt.epoch("us").to_numpy()
    moments = {"now": now}
    for days in WINDOW_DAYS:
        moments[f"{days}d"] = now - days * clock.DAY_US
    moments["stay"] = asked["start_time"].dt.epoch("us").to_numpy() - 1  # admission included
    # One lexicographic sort of events and questions; a question stands behind the events it ties
    # with, so its place is the number of events up to it.
    queries = np.concatenate(list(moments.values()))
    all_subjects = np.concatenate([subjects, np.tile(who, len(moments))])
    all_moments = np.concatenate([known, queries])
    is_query = np.concatenate([np.zeros(len(known), bool), np.ones(len(queries), bool)])
    order = np.lexsort((is_query, all_moments, all_subjects))
    seen = np.cumsum(~is_query[order])
    place = np.empty(len(order), dtype=np.int64)
    place[order] = seen
    answers = place[len(known) :].reshape(len(moments), len(who))
    found = dict(zip(moments, answers, strict=True))
    found["ever"] = np.searchsorted(subjects, who, side="left")
    return found


def _places(events: pl.DataFrame, groups: tuple[str, ...]) -> list[NDArray[np.int64]]:
    """Row numbers, ascending, of the events of each group."""
    number = {group: position for position, group in enumerate(groups)}
    mapped = _group_map(events).filter(pl.col("group").is_in(list(groups)))
    mapped = mapped.with_columns(
        pl.col("group").replace_strict(number, return_dtype=pl.Int32).alias("number")
    )
    hits = (
        events.select(schema.CODE)
        .with_row_index("place")
        .join(mapped.select(schema.CODE, "number"), on=schema.CODE)
        .sort("number", "place")
    )
    ends = np.searchsorted(hits["number"].to_numpy(), np.arange(len(groups) + 1))
    place = hits["place"].cast(pl.Int64).to_numpy()
    return [place[ends[i] : ends[i + 1]] for i in range(len(groups))]


def _summarise(
    values: NDArray[np.float64],
    times_us: NDArray[np.float64],
    ranks: dict[str, NDArray[np.int64]],
    now_us: NDArray[np.int64],
) -> Iterable[NDArray[np.float64]]:
    """Last value, hours since it, change in the stay, then statistics of stay and 30 days."""
    now = ranks["now"]
    nothing = np.full(len(now), np.nan)
    if not len(values):
        yield from [nothing] * (3 + 2 * len(_STATISTICS))
        return
    has_any, in_stay = now > ranks["ever"], now > ranks["stay"]
    latest = np.maximum(now - 1, 0)
    first = np.minimum(ranks["stay"], len(values) - 1)
    yield np.where(has_any, values[latest], np.nan)
    yield np.where(has_any, (now_us - times_us[latest]) / clock.HOUR_US, np.nan)
    yield np.where(in_stay, values[latest] - values[first], np.nan)
    padded = np.append(values, np.nan)
    for window in ("stay", "30d"):
        since = ranks[window]
        n = now - since
        some = n > 0
        pairs = np.column_stack([since, now]).ravel()
        # Each window is summed by itself: in cumulative sums, what is later moves the last digits.
        row = np.repeat(np.arange(len(n)), n)
        own = values[np.arange(len(row)) + np.repeat(since - (np.cumsum(n) - n), n)]
        divisor = np.maximum(n, 1)
        mean = np.bincount(row, own, len(n)) / divisor
        variance = np.bincount(row, (own - mean[row]) ** 2, len(n)) / divisor
        yield np.where(some, np.minimum.reduceat(padded, pairs)[::2], np.nan)
        yield np.where(some, np.maximum.reduceat(padded, pairs)[::2], np.nan)
        yield np.where(some, mean, np.nan)
        yield np.where(some, np.sqrt(variance), np.nan)


def _context(
    events: pl.DataFrame, asked: pl.DataFrame, plan: _Plan
) -> Iterable[NDArray[np.float64]]:
    """What the stay itself tells, in the order of `_CONTEXT` and the admission types."""
    subject, now, start = schema.SUBJECT_ID, pl.col(schema.PREDICTION_TIME), pl.col("start_time")
    births = events.filter(in_class(codes.BIRTH)).select(
        subject, birth=schema.TIME, born_known=_KNOWN
    )
    sexes = events.filter(in_class(codes.GENDER)).select(
        subject, sex=code_part(1).str.slice(0, 1).str.to_uppercase(), sex_known=_KNOWN
    )
    one = {"keep": "first", "maintain_order": True}
    admissions = events.filter(in_class(codes.ADMISSION))
    questions = asked.select(*_KEYS, "start_time").unique(_KEYS, **one)
    before = count_before(
        admissions, questions, since=start.dt.offset_by("-200y"), until=start
    ).rename({"n": "n_previous"})
    discharges = events.filter(in_class(codes.DISCHARGE)).select(
        subject, left=schema.TIME, left_known=_KNOWN
    )
    now_us = now.dt.epoch("us")
    previous = (
        questions.join(discharges, on=subject)
        .filter((pl.col("left") < start) & (pl.col("left_known") <= now_us))
        .group_by(_KEYS)
        .agg(pl.col("left").max())
    )
    acute = acute_admissions(events, questions).select(*_KEYS, "acute")
    frame = (
        _admission_types(events, asked)
        .join(births.unique(subject, **one), on=subject, how="left")
        .join(sexes.unique(subject, **one), on=subject, how="left")
    )
    for table in (before, previous, acute):
        frame = frame.join(table, on=_KEYS, how="left")
    born = pl.when(pl.col("born_known") <= now_us).then("birth")
    sex = pl.when(pl.col("sex_known") <= now_us).then("sex")
    day = pl.lit(clock.DAY_US, dtype=pl.Float64)
    in_order = asked.select(_ROW).join(frame, on=_ROW, how="left", maintain_order="left")
    columns = in_order.select(
        ((now - born).dt.total_microseconds() / day / 365.25).alias("age_years"),
        pl.when(sex.is_in(["F", "M"])).then(sex == "F").cast(pl.Float64).alias("female"),
        ((now - start).dt.total_microseconds() / day * 24).alias("hours_in_hospital"),
        (now.dt.hour() + now.dt.minute() / 60).alias("hour_of_day"),
        now.dt.weekday().alias("day_of_week"),
        pl.col("acute").alias("acute_admission"),
        pl.col("n_previous").alias("n_previous_stays"),
        ((start - pl.col("left")).dt.total_microseconds() / day).alias("days_since_discharge"),
        *(
            (pl.col("admission_type") == name).fill_null(False).alias(f"type_{i}")
            for i, name in enumerate(plan.admission_types)
        ),
    )
    for name in columns.columns:
        yield columns[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
