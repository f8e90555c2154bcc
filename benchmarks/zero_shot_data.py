"""Windows of six public sets of series, with missing points.

For forecasts by models that have never seen the series: a model gets the context of a window, whose
points have real times and of which a share was taken away at random, and is asked for the next 64
points of the grid; shorter horizons are the first 24, 32 and 48 of them. Horizons and the 30 % of
points taken away are those of MIRA (arXiv 2506.07584, tables 2 and 4); contexts and
cut points are not stated there and are decided here:

| set | what | step | longest context | cuts a series |
|---|---|---|---|---|
| ili | US influenza-like illness, national, seven columns | week | 192 | the last 5 |
| jhu | COVID-19 cases confirmed, cumulative, as MIRA has them | day | 256 | 3, every third |
| flu | hospital admissions for influenza, a state | week | 192 | the last 2 |
| ilinet | share of visits for influenza-like illness, a state | week | 192 | the last 4 |
| nrevss | share of specimens positive for influenza, a state | week | 192 | the last 2 |
| mitbih | MIT-BIH ECG, first lead | 1/360 s | 512 | 12, evenly spaced |

The last cut leaves 64 points behind it; targets never overlap. Where a series is too young, its
context is shorter, down to 96 steps (ECG: 512). A window is used if all of its targets are known
and 48 points of its context are, so the choice looks at whether points exist, never at values.
State files of before and after 2015 count different laboratories and are not joined. "Weighted"
percentages are not given for states. The sum over all states is left out.

States and countries move together, and columns of one national file even more: windows are not
independent, and an interval must draw whole series (`Window.series`) at least. For the same reason
what may train is cut by time over the whole family of sets (`training_series`).

This reads nothing but these files, and it fills nothing in: gaps stay gaps.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm.errors import FormatError, InputError
from tsfm.ingest.wfdb_headers import read_header
from tsfm.ingest.wfdb_signals import read_leads

Floats = NDArray[np.float64]

HORIZONS = (24, 32, 48, 64)
HORIZON = max(HORIZONS)
MOST_WINDOWS = 300
FEWEST_OBSERVED = 48
DAY_SECONDS = 86_400.0
WEEK_SECONDS = 7 * DAY_SECONDS
NOT_REPORTED = ("X", "NA", "")


@dataclass(frozen=True)
class Series:
    """One regular series.

    Attributes:
        name: Unique within its set.
        seconds: (n,) times since 1970, or since the record's first sample, `step_seconds` apart.
        values: (n,) NaN where nothing was reported.
        step_seconds: Step of the grid.
        period: Steps of a season; 1 where none is known.
    """

    name: str
    seconds: Floats
    values: Floats
    step_seconds: float
    period: int


@dataclass(frozen=True)
class Window:
    """A context, what follows it, and what a forecast of it is divided by.

    Attributes:
        series: Name of the series, by which windows are drawn for intervals.
        seconds: (n,) times of the points that were left, ascending.
        values: (n,) their values; all are finite.
        target_seconds: (64,) the grid that follows the context.
        target_values: (64,) all are finite.
        step_seconds: Step of the grid.
        period: Steps of a season; 1 where none is known.
        naive_error: Mean absolute seasonal difference of the context before points were taken
            away, so that it is the same at every missing rate; NaN if the context is constant.
            For scores only.
    """

    series: str
    seconds: Floats
    values: Floats
    target_seconds: Floats
    target_values: Floats
    step_seconds: float
    period: int
    naive_error: float


@dataclass(frozen=True)
class _Set:
    read: Callable[[Path], Iterator[Series]]
    family: str
    context: int = 192
    least_context: int = 96
    n_cuts: int = 4
    stride: int = 1  # in horizons; 0: evenly over the series
    trains: bool = True


def available_sets(folder: Path) -> tuple[str, ...]:
    """Those of `SETS` whose files are in `folder`."""
    found = []
    for name, plan in _SETS.items():
        try:
            if next(plan.read(folder), None) is not None:
                found.append(name)
        except InputError as error:
            if error.code != "missing_file":
                raise
    return tuple(found)


def read_series(folder: Path, name: str) -> list[Series]:
    """Read all series of a set.

    Args:
        folder: Root of the data, with `public-ts/` and `wfdb/mitdb/` in it, or the files' own
            folder. Its rows may be others than those of the open data: other states, other weeks.
        name: One of `SETS`.

    Raises:
        InputError: No such set, or none of its files is there.
        FormatError: A column is missing, a value is no number, or times are on no one grid.
    """
    if name not in _SETS:
        raise InputError("No such set.", code="unknown_set", place=name, remedy=f"One of {SETS}.")
    return list(_SETS[name].read(folder))


def read_windows(folder: Path, name: str, missing_rate: float, seed: int = 0) -> list[Window]:
    """Read a set and cut it into windows; see `read_series` and `cut_windows`."""
    return cut_windows(read_series(folder, name), name, missing_rate, seed)


def cut_windows(
    series: list[Series], name: str, missing_rate: float, seed: int = 0
) -> list[Window]:
    """Cut windows of a set and take points of their contexts away.

    Which points go depends on the seed and the window alone, and those that go at a lower rate go
    at a higher one too. Two points are always left.

    Args:
        series: Of `read_series`.
        name: The set.
        missing_rate: Share of the context's known points to take away, 0 <= rate < 1.
        seed: Of the choice.

    Returns:
        At most `MOST_WINDOWS`, evenly chosen of all, ordered by series and time.

    Raises:
        InputError: A rate out of range.
    """
    if not 0 <= missing_rate < 1:
        raise InputError("A missing rate is in [0, 1).", code="bad_missing_rate")
    plan = _SETS[name]
    cuts = [(one, cut) for one in series for cut in _cuts(one, plan)]
    if len(cuts) > MOST_WINDOWS:
        chosen = np.linspace(0, len(cuts) - 1, MOST_WINDOWS).round().astype(int)
        cuts = [cuts[i] for i in chosen]
    return [_window(one, cut, plan, missing_rate, seed) for one, cut in cuts]


def training_series(folder: Path) -> dict[str, list[Series]]:
    """What of these sets may train a model that is then evaluated on them, by set.

    Evaluated on late windows, trained on early years: of a family of sets that watch the same
    epidemics (the four of influenza; COVID-19), only points strictly before the earliest target of
    any window of any set of the family. Held-out states or countries of the same weeks are thereby
    out of reach as well. Of the ECG nothing is given, because windows lie all over the records.
    A model that takes any of this is zero-shot by time only, and its figures must say so.

    Raises:
        FormatError: As `read_series`.
    """
    trains = [name for name in available_sets(folder) if _SETS[name].trains]
    read = {name: read_series(folder, name) for name in trains}
    earliest: dict[str, float] = {}
    for name, series in read.items():
        plan = _SETS[name]
        first = [float(one.seconds[cut]) for one in series for cut in _cuts(one, plan)]
        earliest[plan.family] = min([earliest.get(plan.family, np.inf), *first])
    kept: dict[str, list[Series]] = {}
    for name, series in read.items():
        for one in series:
            n = int(np.searchsorted(one.seconds, earliest[_SETS[name].family], side="left"))
            if np.isfinite(one.values[:n]).sum() >= FEWEST_OBSERVED:
                early = replace(one, seconds=one.seconds[:n], values=one.values[:n])
                kept.setdefault(name, []).append(early)
    return kept


def _cuts(series: Series, plan: _Set) -> list[int]:
    """Positions of the first targets, ascending."""
    known = np.flatnonzero(np.isfinite(series.values))
    last = (int(known[-1]) + 1 if len(known) else 0) - HORIZON
    if last < plan.least_context:
        return []
    if plan.stride:
        wanted = [last - i * plan.stride * HORIZON for i in reversed(range(plan.n_cuts))]
    else:
        wanted = [int(at) for at in np.linspace(plan.context, last, plan.n_cuts).round()]
    return [
        cut
        for cut in wanted
        if cut >= plan.least_context
        and np.isfinite(series.values[cut : cut + HORIZON]).all()
        and np.isfinite(series.values[max(0, cut - plan.context) : cut]).sum() >= FEWEST_OBSERVED
    ]


def _window(series: Series, cut: int, plan: _Set, missing_rate: float, seed: int) -> Window:
    start = max(0, cut - plan.context)
    context = series.values[start:cut]
    known = np.flatnonzero(np.isfinite(context))
    target_seconds = series.seconds[cut : cut + HORIZON]
    mark = zlib.crc32(f"{series.name}|{target_seconds[0]:.6f}".encode())
    order = np.random.default_rng([seed, mark]).permutation(len(known))
    n_left = max(2, len(known) - round(missing_rate * len(known)))
    left = np.sort(known[order[len(known) - n_left :]])
    return Window(
        series=series.name,
        seconds=series.seconds[start:cut][left],
        values=context[left],
        target_seconds=target_seconds,
        target_values=series.values[cut : cut + HORIZON],
        step_seconds=series.step_seconds,
        period=series.period,
        naive_error=_naive_error(context, series.period),
    )


def _naive_error(context: Floats, period: int) -> float:
    for lag in dict.fromkeys((period, 1)):
        differences = np.abs(context[lag:] - context[:-lag])
        differences = differences[np.isfinite(differences)]
        if len(differences) >= 8 and differences.max() > 0:
            return float(differences.mean())
    return float("nan")


def _find(folder: Path, pattern: str) -> list[Path]:
    """Files of one name, plain or gzipped, in the first likely folder that has any."""
    for place in (folder / "public-ts", folder):
        zipped = {path.with_suffix(""): path for path in place.glob(f"{pattern}.csv.gz")}
        found = zipped | {path: path for path in place.glob(f"{pattern}.csv")}
        if found:
            return [found[name] for name in sorted(found)]
    raise InputError(
        "The set's file is not there.",
        code="missing_file",
        place=f"{pattern}.csv[.gz]",
        remedy="Give the folder that holds public-ts/, or the files' own folder.",
    )


def _read_table(path: Path, needed: tuple[str, ...]) -> pl.DataFrame:
    table = pl.read_csv(path, infer_schema=False)
    if missing := [name for name in needed if name not in table.columns]:
        raise FormatError(f"Columns are missing: {missing}.", code="no_column", place=path.name)
    return table


def _numbers(column: pl.Series, place: str) -> Floats:
    """Numbers of a text column; what was not reported is NaN."""
    blank = column.is_null() | column.is_in(NOT_REPORTED)
    numbers = column.cast(pl.Float64, strict=False)
    if bool((numbers.is_null() & ~blank).any()):
        raise FormatError("A value is no number.", code="bad_number", place=place)
    return numbers.fill_null(float("nan")).to_numpy().astype(np.float64)


def _on_grid(name: str, at: Floats, values: Floats, step: float, period: int) -> Series:
    """A regular series; steps that have no row are NaN, of rows of one time the last known wins."""
    steps = (at - at.min()) / step
    index = steps.round().astype(int)
    if np.abs(steps - index).max() > 1e-6:
        raise FormatError("Times are not on one grid.", code="off_grid", place=name)
    grid = np.full(index.max() + 1, np.nan)
    known = np.isfinite(values)
    grid[index[known]] = values[known]
    return Series(name, at.min() + step * np.arange(len(grid)), grid, step, period)


def _seconds(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


def week_end_seconds(year: int, week: int) -> float:
    """Saturday that ends an MMWR week: the CDC's weeks begin on Sunday, and week 1 holds 4 January.

    >>> datetime.fromtimestamp(week_end_seconds(2020, 1), UTC).date()
    datetime.date(2020, 1, 4)
    """
    fourth = date(year, 1, 4)
    saturday = fourth + timedelta(days=(5 - fourth.weekday()) % 7)
    return _seconds(saturday + timedelta(weeks=week - 1))


def _read_ili(folder: Path) -> Iterator[Series]:
    tables = [_read_table(path, ("date",)) for path in _find(folder, "ili_national_illness*")]
    table = pl.concat(tables, how="diagonal")
    days = [date.fromisoformat(text[:10]) for text in table["date"]]
    at = np.array([_seconds(day) for day in days])
    for column in table.columns:
        if column != "date":
            numbers = _numbers(table[column], column)
            yield _on_grid(column, at, numbers, WEEK_SECONDS, 52)


def _read_jhu(folder: Path) -> Iterator[Series]:
    keys = ("Province_State", "Country_Region")
    for path in _find(folder, "jhu_covid19_confirmed_global"):
        table = _read_table(path, keys)
        columns = [name for name in table.columns if name.count("/") == 2]
        parts = [tuple(int(part) for part in name.split("/")) for name in columns]
        at = np.array([_seconds(date(2000 + year, month, day)) for month, day, year in parts])
        for row in table.iter_rows(named=True):
            name = " / ".join(row[key] for key in reversed(keys) if row[key])
            values = _numbers(pl.Series([row[column] for column in columns]), path.name)
            yield _on_grid(name, at, values, DAY_SECONDS, 7)


def _read_flu(folder: Path) -> Iterator[Series]:
    for path in _find(folder, "cdc_flu_hospital_admissions_weekly"):
        table = _read_table(path, ("date", "location_name", "value"))
        for (name,), rows in sorted(table.group_by("location_name")):
            if name != "US":
                at = np.array([_seconds(date.fromisoformat(text[:10])) for text in rows["date"]])
                yield _on_grid(str(name), at, _numbers(rows["value"], path.name), WEEK_SECONDS, 52)


def _read_states(path: Path, column: str, suffix: str = "") -> Iterator[Series]:
    table = _read_table(path, ("REGION", "YEAR", "WEEK", column))
    for (name,), rows in sorted(table.group_by("REGION")):
        weeks = zip(rows["YEAR"], rows["WEEK"], strict=True)
        at = np.array([week_end_seconds(int(year), int(week)) for year, week in weeks])
        numbers = _numbers(rows[column], path.name)
        yield _on_grid(f"{name}{suffix}", at, numbers, WEEK_SECONDS, 52)


def _read_ilinet(folder: Path) -> Iterator[Series]:
    for path in _find(folder, "cdc_ilinet_states_weekly"):
        yield from _read_states(path, "%UNWEIGHTED ILI")


def _read_nrevss(folder: Path) -> Iterator[Series]:
    for path in _find(folder, "cdc_nrevss_*_states_weekly"):
        before = "prior_2015" in path.name
        yield from _read_states(
            path, "PERCENT POSITIVE", f", {'before' if before else 'from'} 2015"
        )


def _read_mitbih(folder: Path) -> Iterator[Series]:
    for place in (folder / "wfdb" / "mitdb", folder / "mitdb", folder):
        paths = sorted(path for path in place.glob("*.hea") if path.stem.isdigit())
        if paths:
            break
    else:
        raise InputError("No MIT-BIH record is there.", code="missing_file", place="mitdb/*.hea")
    for path in paths:
        root = path.parent.resolve()
        header = read_header(root / path.name, root)
        lead = read_leads(header, root / path.stem, root)[0]
        values = (lead.samples.astype(np.float64) - lead.baseline) / (lead.gain or 1.0)
        for start, length in zip(lead.gap_starts, lead.gap_lengths, strict=True):
            values[start : start + length] = np.nan
        seconds = np.arange(len(values)) / lead.fs_hz
        yield Series(path.stem, seconds, values, 1 / lead.fs_hz, 1)


_SETS = {
    "ili": _Set(_read_ili, "influenza", n_cuts=5),
    "jhu": _Set(_read_jhu, "covid", context=256, n_cuts=3, stride=3),
    "flu": _Set(_read_flu, "influenza", n_cuts=2),
    "ilinet": _Set(_read_ilinet, "influenza", n_cuts=4),
    "nrevss": _Set(_read_nrevss, "influenza", n_cuts=2),
    "mitbih": _Set(
        _read_mitbih, "ecg", context=512, least_context=512, n_cuts=12, stride=0, trains=False
    ),
}
SETS: tuple[str, ...] = tuple(_SETS)
