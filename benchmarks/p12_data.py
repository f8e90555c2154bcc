"""PhysioNet 2012 as the two forecasting protocols that the literature compares on.

Both read the same rows (record_id, minute, parameter, value) and differ in everything else.

**Protocol A** (Zhang et al., t-PatchGNN, ICML 2024): every observation of the first 24 hours is
history, every observation of the next 24, minute 2,880 included, is a target. All 41 variables are
kept, the four descriptors of minute 0 among them; what stands twice at one minute is averaged.
Values are min-max per variable over the train and val stays, all 48 hours of them, with the -1
sentinels left in. A constant variable, MechVent, has a range of 1e-8 and so is 0 wherever it
stands. The parts are 60 / 20 / 20 %: sorted stays, shuffled with seed 42.

**Protocol B** (Yalavarthi et al., GraFITi, AAAI 2024, by its reader of this data set and the later
split .9 / .1 twice without shuffling): hourly means, standardised per variable over all stays and
hours, values at five deviations and beyond left out, 36 variables (no MechVent, no descriptor, no
Weight of minute 0). Hours 0 to 34 are history, the next three *rows* are targets. Published figures
hold what the reader loses, so it is lost here too: the first row of every hour but a stay's first
(it only closes the hour before) and the whole last hour of a stay. A row with nothing left in it
counts as one of the three.

What is not theirs: published stays stand in the order of a folder listing, ours are sorted by
record id, so parts differ from published ones. Rows without a parameter's name are counted and
left out before anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from tsfm.errors import FormatError, InputError

STATIC = ("Age", "Gender", "Height", "ICUType")
SERIES = (
    "ALP", "ALT", "AST", "Albumin", "BUN", "Bilirubin", "Cholesterol", "Creatinine", "DiasABP",
    "FiO2", "GCS", "Glucose", "HCO3", "HCT", "HR", "K", "Lactate", "MAP", "MechVent", "Mg",
    "NIDiasABP", "NIMAP", "NISysABP", "Na", "PaCO2", "PaO2", "Platelets", "RespRate", "SaO2",
    "SysABP", "Temp", "TroponinI", "TroponinT", "Urine", "WBC", "Weight", "pH",
)  # fmt: skip
ALL = tuple(sorted(STATIC + SERIES))
TRAIN, VAL, TEST, UNUSED = 0, 1, 2, -1
FURTHEST_SD = 5.0
LEAST_RANGE = 1e-8
MEAN = pl.col("value").cast(pl.Float64).mean()


@dataclass(frozen=True)
class Points:
    """Observations as columns of one length, sorted by stay, variable and hours.

    Attributes:
        stay: (n,) int64, index into `Protocol.record_ids`.
        variable: (n,) int64, index into `Protocol.variables`.
        hours: (n,) float64, since admission.
        value: (n,) float32, in the protocol's units.
    """

    stay: np.ndarray
    variable: np.ndarray
    hours: np.ndarray
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.stay)

    def where(self, rows: np.ndarray) -> Points:
        """The points at `rows`, a mask or indices, in that order."""
        return Points(self.stay[rows], self.variable[rows], self.hours[rows], self.value[rows])


@dataclass(frozen=True)
class Protocol:
    """One forecasting task: what may be seen, what is asked, and in which units.

    Attributes:
        name: "A" or "B".
        variables: Names, sorted.
        record_ids: (n_stays,) int64, sorted.
        part: (n_stays,) int64: 0 train, 1 val, 2 test, -1 not used.
        history: What a forecast may see, of all stays.
        targets: What is asked, of all stays.
        location: (n_variables,) float64; protocol units = (native - location) / scale.
        scale: (n_variables,) float64.
        cut_hours: Hours since admission at which forecasts are made: 24 for A, 35 for B.
        n_unnamed_rows: Rows left out because they name no parameter.
    """

    name: str
    variables: tuple[str, ...]
    record_ids: np.ndarray
    part: np.ndarray
    history: Points
    targets: Points
    location: np.ndarray
    scale: np.ndarray
    cut_hours: float
    n_unnamed_rows: int = 0


def read_protocol(folders: Sequence[Path], name: str, test: Sequence[Path] = ()) -> Protocol:
    """Read one protocol from the `observations-*.parquet` of the folders.

    With `test` folders all their stays are the test part, and `folders` are split as they would be
    alone, their own test stays being left unused: the train and val parts, and the units (which B
    otherwise takes from every stay), are the same whatever is tested.

    Args:
        folders: Where the stays to train and validate on lie; without `test` also to test on.
        name: "A" or "B".
        test: Where the stays of an independent test lie.

    Raises:
        InputError: Another name, no files, or a stay that occurs in two files.
        FormatError: A parameter that is not of this data set.
    """
    if name not in ("A", "B"):
        raise InputError(
            f"there is no protocol {name!r}", code="unknown_protocol", remedy="Give A or B."
        )
    named, n_unnamed = _read(folders, test)
    if name == "B":
        rows = _hours_as_read(named)
        return _assemble("B", rows, tuple(v for v in SERIES if v != "MechVent"), n_unnamed)
    rows = named.group_by("record_id", "is_test", "parameter", "minute").agg(MEAN)
    rows = rows.with_columns((pl.col("minute") / 60).alias("hours"))
    return _assemble("A", rows, ALL, n_unnamed)


def part_of(protocol: Protocol, points: Points, *parts: int) -> np.ndarray:
    """(n,) mask of the points whose stay is in one of `parts`."""
    return np.isin(protocol.part[points.stay], parts)


def targets_of(protocol: Protocol, *parts: int) -> Points:
    """The targets of `parts`, in the order of `protocol.targets`."""
    return protocol.targets.where(part_of(protocol, protocol.targets, *parts))


def split_a(n_stays: int) -> np.ndarray:
    """Part of each of `n_stays` sorted stays under A.

    The same stays as scikit-learn's `train_test_split(train_size=.8, random_state=42)`, whose
    train side is then cut at .75 unshuffled; it draws one permutation, test side first.
    """
    order = np.random.RandomState(42).permutation(n_stays)
    n_seen = int(0.8 * n_stays)
    seen = order[n_stays - n_seen :]
    part = np.full(n_stays, TEST)
    part[seen] = VAL
    part[seen[: int(0.75 * n_seen)]] = TRAIN
    return part


def split_b(n_stays: int) -> np.ndarray:
    """Part of each of `n_stays` sorted stays under B: the last tenth tests, a tenth before it is
    val.
    """
    n_seen = n_stays - -(-n_stays // 10)
    n_train = n_seen - -(-n_seen // 10)
    part = np.full(n_stays, TEST)
    part[:n_seen] = VAL
    part[:n_train] = TRAIN
    return part


def _read(folders: Sequence[Path], test: Sequence[Path]) -> tuple[pl.DataFrame, int]:
    tables: list[pl.DataFrame] = []
    for is_test, group in ((False, folders), (True, test)):
        for folder in group:
            paths = sorted(Path(folder).glob("observations-*.parquet"))
            if not paths:
                raise InputError(
                    "no observations-*.parquet",
                    code="no_input",
                    place=str(folder),
                    remedy="Give the folder of the PhysioNet 2012 tables.",
                )
            for path in paths:
                table = pl.read_parquet(path).with_columns(pl.lit(is_test).alias("is_test"))
                tables.append(table.with_columns(pl.col("parameter").cast(pl.String)))
    ids = pl.concat([table["record_id"].unique() for table in tables])
    if ids.n_unique() < len(ids):
        raise InputError(
            f"{len(ids) - ids.n_unique()} stays are in more than one file",
            code="repeated_stay",
            remedy="Give each file once, and no stay of training in the test folders.",
        )
    rows = pl.concat(tables)
    named = rows.filter(pl.col("parameter").is_not_null() & (pl.col("parameter") != ""))
    unknown = set(named["parameter"].unique()) - set(STATIC + SERIES)
    if unknown:
        raise FormatError(
            f"unknown parameters: {', '.join(sorted(unknown)[:5])}",
            code="unknown_parameter",
            remedy="Give the observations of PhysioNet 2012 as published.",
        )
    named = named.with_columns(pl.col("parameter").cast(pl.Enum(ALL)))
    return named, rows.height - named.height


def _hours_as_read(rows: pl.DataFrame) -> pl.DataFrame:
    """Hourly means as B's reader makes them, with `history` and `target` marks.

    A row without a value (null) stands for an hour that the reader has but that kept no reading.
    """
    described = (pl.col("minute") == 0) & pl.col("parameter").is_in([*STATIC, "Weight"])
    rows = rows.filter(~described).with_columns((pl.col("minute") // 60).alias("hour"))
    before = pl.col("hour").shift().over("record_id")
    rows = rows.with_columns(
        (before.is_not_null() & (before != pl.col("hour"))).alias("lost"),
        (pl.col("hour") == pl.col("hour").max().over("record_id")).alias("last"),
    ).filter(~pl.col("last"))
    means = (
        rows.filter(~pl.col("lost") & (pl.col("parameter") != "MechVent"))
        .group_by("record_id", "is_test", "hour", "parameter")
        .agg(MEAN)
    )
    hours = rows.select("record_id", "is_test", "hour").unique().sort("record_id", "hour")
    is_target = pl.col("hour") >= 35
    hours = hours.with_columns(is_target.cum_sum().over("record_id").alias("step"))
    hours = hours.with_columns(pl.col("hour").cast(pl.Float64).alias("hours"))
    return hours.join(means, on=["record_id", "is_test", "hour"], how="left")


def _assemble(
    name: str, rows: pl.DataFrame, variables: tuple[str, ...], n_unnamed: int
) -> Protocol:
    stays = rows.select("record_id", "is_test").unique().sort("record_id")
    record_ids, is_test = stays["record_id"].to_numpy(), stays["is_test"].to_numpy()
    split = split_a if name == "A" else split_b
    part = np.full(len(stays), TEST)
    part[~is_test] = split(int((~is_test).sum()))
    if is_test.any():
        part[~is_test & (part == TEST)] = UNUSED

    rows = rows.filter(pl.col("value").is_not_null())
    stay = np.searchsorted(record_ids, rows["record_id"].to_numpy())
    place = np.array([variables.index(v) if v in variables else -1 for v in ALL])
    variable = place[rows["parameter"].to_physical().to_numpy()]
    hours, native = rows["hours"].to_numpy(), rows["value"].to_numpy()
    step = rows["step"].to_numpy() if name == "B" else np.zeros(len(rows), dtype=np.int64)

    if name == "A":
        location, scale = _min_and_range(
            variable, native, np.isin(part[stay], (TRAIN, VAL)), len(variables)
        )
    else:
        location, scale = _mean_and_sd(variable, native, ~is_test[stay], len(variables))
    value = (native - location[variable]) / scale[variable]
    kept = np.abs(value) < FURTHEST_SD if name == "B" else np.full(len(value), True)
    order = np.lexsort((hours, variable, stay))
    order = order[kept[order]]
    points = Points(stay, variable, hours, value.astype(np.float32)).where(order)

    cut_hours = 24.0 if name == "A" else 35.0
    asked = points.hours >= cut_hours
    if name == "A":
        asked_here = asked & ~np.isin(points.variable, [ALL.index(static) for static in STATIC])
    else:
        asked_here = asked & (step[order] <= 3)
    return Protocol(
        name, variables, record_ids, part, points.where(~asked), points.where(asked_here),
        location, scale, cut_hours, n_unnamed,
    )  # fmt: skip


def _min_and_range(
    variable: np.ndarray, native: np.ndarray, counted: np.ndarray, n_variables: int
) -> tuple[np.ndarray, np.ndarray]:
    least, most = np.full(n_variables, np.inf), np.full(n_variables, -np.inf)
    np.minimum.at(least, variable[counted], native[counted])
    np.maximum.at(most, variable[counted], native[counted])
    seen = np.isfinite(least)
    least, most = np.where(seen, least, 0.0), np.where(seen, most, 1.0)
    return least, np.where(most > least, most - least, LEAST_RANGE)


def _mean_and_sd(
    variable: np.ndarray, native: np.ndarray, counted: np.ndarray, n_variables: int
) -> tuple[np.ndarray, np.ndarray]:
    variable, native = variable[counted], native[counted]
    n = np.maximum(np.bincount(variable, minlength=n_variables), 1)
    mean = np.bincount(variable, native, n_variables) / n
    spread = np.bincount(variable, (native - mean[variable]) ** 2, n_variables) / n
    return mean, np.where(spread > 0, np.sqrt(spread), 1.0)
