"""Windows of the zero-shot benchmark: real times, nothing of the future, points taken away."""

from __future__ import annotations

import gzip
import importlib
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wfdb

from tsfm.errors import FormatError, InputError

WEEK_SECONDS = 7 * 86_400


@pytest.fixture(scope="module")
def data(repository: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "benchmarks"))
        yield importlib.import_module("zero_shot_data")


def write_ili(path: Path, first: date, n: int, *, start: float = 1.0) -> None:
    rows = [f"{first + timedelta(weeks=i)} 00:00:00,{start + i}" for i in range(n)]
    path.write_text("\n".join(["date,% WEIGHTED ILI", *rows]) + "\n")


def write_states(path: Path, column: str, values: dict[str, list[str]]) -> None:
    """Weeks from 2010-40 on; 52 in every year but 2014, which has 53."""
    lines = [f"REGION TYPE,REGION,YEAR,WEEK,{column}"]
    for state, texts in values.items():
        year, week = 2010, 40
        for text in texts:
            lines.append(f"States,{state},{year},{week},{text}")
            week += 1
            if week > (53 if year == 2014 else 52):
                year, week = year + 1, 1
    path.write_bytes(gzip.compress("\n".join(lines).encode()))


def write_jhu(path: Path, rows: dict[tuple[str, str], np.ndarray]) -> None:
    n = len(next(iter(rows.values())))
    days = [date(2020, 1, 22) + timedelta(days=i) for i in range(n)]
    names = [f"{day.month}/{day.day}/{day:%y}" for day in days]
    lines = [",".join(["Province_State,Country_Region,Lat,Long", *names])]
    for (province, country), values in rows.items():
        lines.append(",".join([province, country, "0", "0", *(str(v) for v in values)]))
    path.write_bytes(gzip.compress("\n".join(lines).encode()))


def write_record(folder: Path, name: str, signal_mv: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    wfdb.wrsamp(
        name, fs=360, units=["mV", "mV"], sig_name=["MLII", "V1"], fmt=["212", "212"],
        p_signal=np.stack([signal_mv, -signal_mv], axis=1), adc_gain=[200, 200], baseline=[0, 0],
        write_dir=str(folder),
    )  # fmt: skip


def steps_ago(window: Any) -> np.ndarray:
    """Where the points that were left lie in the context."""
    return np.round((window.target_seconds[0] - window.seconds) / window.step_seconds)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every set, small: values count the steps, so a value tells its own time."""
    root = tmp_path / "public-ts"
    root.mkdir()
    write_ili(root / "ili_national_illness_first70pct.csv", date(2002, 1, 1), 420)
    count = [str(i) for i in range(490)]
    write_states(root / "cdc_ilinet_states_weekly.csv.gz", "%UNWEIGHTED ILI", {"Ohio": count})
    write_states(
        root / "cdc_nrevss_prior_2015_states_weekly.csv.gz",
        "PERCENT POSITIVE",
        {"Iowa": ["X"] * 250, "Ohio": count[:230]},
    )
    flu = ["date,location,location_name,value,weekly_rate"]
    for i in range(230):
        for name in ("Ohio", "US"):
            flu.append(f"{date(2022, 2, 5) + timedelta(weeks=i)},39,{name},{i},1")
    (root / "cdc_flu_hospital_admissions_weekly.csv").write_text("\n".join(flu))
    write_jhu(root / "jhu_covid19_confirmed_global.csv.gz", {("", "Andorra"): np.arange(1143)})
    write_record(tmp_path / "wfdb" / "mitdb", "101", np.sin(np.arange(4000) / 20))
    return tmp_path


def test_every_set_is_found_and_cut_without_overlap_of_targets(data: Any, folder: Path) -> None:
    assert data.available_sets(folder) == data.SETS
    for name in data.SETS:
        windows = data.read_windows(folder, name, 0.3)
        assert windows
        for window in windows:
            assert len(window.seconds) == len(window.values) > 2
            assert (np.diff(window.seconds) > 0).all()
            assert window.seconds[-1] < window.target_seconds[0]
            assert len(window.target_values) == data.HORIZON == 64
            assert np.isfinite(window.target_values).all()
            assert np.isfinite(window.values).all()
            assert np.allclose(np.diff(window.target_seconds), window.step_seconds)
        starts = [w.target_seconds[0] for w in windows if w.series == windows[0].series]
        assert (np.diff(starts) >= 64 * windows[0].step_seconds - 1e-6).all()


@pytest.mark.parametrize(
    ("name", "n_windows", "least", "most"),
    [("ili", 5, 100, 192), ("jhu", 3, 256, 256), ("flu", 2, 102, 166), ("ilinet", 4, 192, 192),
     ("nrevss", 2, 102, 166), ("mitbih", 12, 512, 512)],
)  # fmt: skip
def test_cuts_and_contexts_are_those_of_the_table(
    data: Any, folder: Path, name: str, n_windows: int, least: int, most: int
) -> None:
    windows = data.read_windows(folder, name, 0.0)
    assert len(windows) == n_windows
    lengths = [len(window.values) for window in windows]
    assert (min(lengths), max(lengths)) == (least, most)


def test_what_follows_a_cut_changes_no_context(data: Any, folder: Path) -> None:
    path = folder / "public-ts" / "jhu_covid19_confirmed_global.csv.gz"
    before = data.read_windows(folder, "jhu", 0.3, seed=3)
    write_jhu(path, {("", "Andorra"): np.where(np.arange(1143) < 1079, np.arange(1143), -7)})
    after = data.read_windows(folder, "jhu", 0.3, seed=3)
    np.testing.assert_array_equal(before[-1].seconds, after[-1].seconds)
    np.testing.assert_array_equal(before[-1].values, after[-1].values)
    assert before[-1].naive_error == after[-1].naive_error
    assert (after[-1].target_values == -7).all()


def test_the_missing_rate_takes_its_share_and_lower_rates_take_a_part_of_it(
    data: Any, folder: Path
) -> None:
    series = data.read_series(folder, "ilinet")
    whole = data.cut_windows(series, "ilinet", 0.0)
    previous = [set(window.seconds) for window in whole]
    for rate in (0.1, 0.3, 0.5, 0.7, 0.9):
        windows = data.cut_windows(series, "ilinet", rate, seed=1)
        for i, (window, full) in enumerate(zip(windows, whole, strict=True)):
            assert len(window.values) == 192 - round(rate * 192)
            assert set(window.seconds) < previous[i]
            assert window.naive_error == full.naive_error == 52
            kept = np.isin(full.seconds, window.seconds)
            np.testing.assert_array_equal(full.values[kept], window.values)
            previous[i] = set(window.seconds)
    assert len(data.cut_windows(series, "ilinet", 0.999)[0].values) == 2


def test_which_points_go_depends_on_the_seed_and_the_window_alone(data: Any, folder: Path) -> None:
    path = folder / "public-ts" / "cdc_ilinet_states_weekly.csv.gz"
    alone = data.read_windows(folder, "ilinet", 0.3, seed=5)
    other = data.read_windows(folder, "ilinet", 0.3, seed=6)
    count = [str(i) for i in range(490)]
    write_states(path, "%UNWEIGHTED ILI", {"Alaska": count, "Ohio": count})
    both = data.read_windows(folder, "ilinet", 0.3, seed=5)
    ohio = [window for window in both if window.series == "Ohio"]
    alaska = [window for window in both if window.series == "Alaska"]
    for a, b in zip(alone, ohio, strict=True):
        np.testing.assert_array_equal(a.seconds, b.seconds)
    for unlike in (other, alaska, alone[1:] + alone[:1]):
        for a, b in zip(alone, unlike, strict=True):
            assert not np.array_equal(steps_ago(a), steps_ago(b))


def test_a_window_needs_all_of_its_targets_and_enough_of_its_context(
    data: Any, folder: Path
) -> None:
    path = folder / "public-ts" / "cdc_ilinet_states_weekly.csv.gz"
    texts = [str(i) for i in range(490)]
    texts[490 - 100] = "X"  # among the targets of the last cut but one
    write_states(path, "%UNWEIGHTED ILI", {"Ohio": texts})
    starts = [w.target_values[0] for w in data.read_windows(folder, "ilinet", 0.0)]
    assert starts == [490 - 256, 490 - 192, 490 - 64]
    texts = ["X"] * 380 + [str(i) for i in range(380, 490)]
    write_states(path, "%UNWEIGHTED ILI", {"Ohio": texts})
    assert data.read_windows(folder, "ilinet", 0.0) == []  # 46 known points, and 48 are needed


def test_weeks_of_the_cdc_end_on_the_right_saturdays_with_week_53(data: Any, folder: Path) -> None:
    # Published calendar of MMWR weeks: 2014 has 53, and its last one ends in 2015.
    for year, week, day in [
        (2020, 1, date(2020, 1, 4)), (2014, 53, date(2015, 1, 3)), (2015, 1, date(2015, 1, 10)),
        (2010, 40, date(2010, 10, 9)), (2009, 1, date(2009, 1, 10)), (2012, 1, date(2012, 1, 7)),
    ]:  # fmt: skip
        found = datetime.fromtimestamp(data.week_end_seconds(year, week), UTC)
        assert found.date() == day
        assert found.weekday() == 5
    (ohio,) = data.read_series(folder, "ilinet")
    assert len(ohio.values) == 490
    np.testing.assert_array_equal(ohio.values, np.arange(490))
    assert ohio.step_seconds == WEEK_SECONDS


def test_another_folder_with_other_rows_and_plain_files_reads_alike(
    data: Any, tmp_path: Path
) -> None:
    write_ili(tmp_path / "ili_national_illness_last30pct.csv", date(2014, 12, 16), 290)
    write_jhu(
        tmp_path / "jhu.gz", {("Hebei", "China"): np.arange(1143.0), ("", "Chad"): np.ones(1143)}
    )
    raw = gzip.decompress((tmp_path / "jhu.gz").read_bytes())
    (tmp_path / "jhu_covid19_confirmed_global.csv").write_bytes(raw)
    write_record(tmp_path / "mitdb", "200", np.cos(np.arange(3000) / 30))
    assert data.available_sets(tmp_path) == ("ili", "jhu", "mitbih")
    assert len(data.read_windows(tmp_path, "ili", 0.3)) == 3
    names = [series.name for series in data.read_series(tmp_path, "jhu")]
    assert names == ["China / Hebei", "Chad"]
    constant = [w for w in data.read_windows(tmp_path, "jhu", 0.3) if w.series == "Chad"]
    assert all(np.isnan(window.naive_error) for window in constant)
    write_ili(tmp_path / "ili_national_illness_first70pct.csv", date(2002, 1, 1), 676)
    (joined,) = data.read_series(tmp_path, "ili")
    assert len(joined.values) == 966
    assert np.isfinite(joined.values).all()


def test_the_signal_is_the_first_lead_in_millivolts(data: Any, folder: Path) -> None:
    (record,) = data.read_series(folder, "mitbih")
    np.testing.assert_allclose(record.values, np.sin(np.arange(4000) / 20), atol=1 / 400 + 1e-9)
    assert record.step_seconds == 1 / 360


def test_the_cap_chooses_evenly_from_the_first_window_to_the_last(
    data: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = data.read_series(folder, "mitbih")
    everything = data.cut_windows(series, "mitbih", 0.0)
    monkeypatch.setattr(data, "MOST_WINDOWS", 5)
    few = data.cut_windows(series, "mitbih", 0.0)
    assert len(few) == 5
    starts = [window.target_seconds[0] for window in everything]
    chosen = [starts.index(window.target_seconds[0]) for window in few]
    assert chosen[0] == 0
    assert chosen[-1] == len(everything) - 1
    assert chosen == sorted(set(chosen))


def test_what_may_train_ends_before_every_target_of_its_whole_family(
    data: Any, folder: Path
) -> None:
    kept = data.training_series(folder)
    influenza = ("ili", "flu", "ilinet", "nrevss")
    first = {
        family: min(
            window.target_seconds[0]
            for name in names
            for window in data.read_windows(folder, name, 0.3)
        )
        for family, names in {"influenza": influenza, "covid": ("jhu",)}.items()
    }
    # National weeks are evaluated from 2003 on, before any state begins: no state may train.
    assert set(kept) == {"ili", "jhu"}
    assert kept["ili"][0].seconds[-1] == first["influenza"] - WEEK_SECONDS
    assert kept["jhu"][0].seconds[-1] == first["covid"] - 86_400
    (folder / "public-ts" / "ili_national_illness_first70pct.csv").unlink()
    kept = data.training_series(folder)
    assert set(kept) == {"ilinet", "nrevss", "jhu"}
    states = min(
        w.target_seconds[0] for name in influenza[1:] for w in data.read_windows(folder, name, 0)
    )
    for name in ("ilinet", "nrevss"):
        assert all(series.seconds[-1] < states for series in kept[name])


def test_what_cannot_be_read_says_so(data: Any, folder: Path) -> None:
    with pytest.raises(InputError, match="unknown_set"):
        data.read_series(folder, "m4")
    with pytest.raises(InputError, match="missing_file"):
        data.read_series(folder / "nowhere", "ili")
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="bad_missing_rate"):
            data.read_windows(folder, "ili", rate)
    path = folder / "public-ts" / "cdc_ilinet_states_weekly.csv.gz"
    write_states(path, "%UNWEIGHTED ILI", {"Ohio": ["1.5", "a lot"]})
    with pytest.raises(FormatError, match="bad_number") as caught:
        data.read_series(folder, "ilinet")
    assert "a lot" not in str(caught.value)
    write_states(path, "ILITOTAL", {"Ohio": ["1"]})
    for ask in (lambda: data.read_series(folder, "ilinet"), lambda: data.available_sets(folder)):
        with pytest.raises(FormatError, match="no_column"):
            ask()
    ili = folder / "public-ts" / "ili_national_illness_first70pct.csv"
    ili.write_text("date,OT\n2002-01-01,1\n2002-01-08,2\n2002-01-12,3\n")
    with pytest.raises(FormatError, match="off_grid"):
        data.read_series(folder, "ili")


def test_the_open_data_gives_windows_of_every_set(
    data: Any, data_dir: Callable[[str], Path]
) -> None:
    folder = data_dir("public-ts").parent
    for name in ("ili", "jhu", "flu", "ilinet", "nrevss"):
        windows = data.read_windows(folder, name, 0.3)
        assert 30 < len(windows) <= data.MOST_WINDOWS
        assert len({window.series for window in windows}) >= 7
        # The sum of all states is no series of its own; the country among countries is.
        assert ("US" in {window.series for window in windows}) <= (name == "jhu")
    kept = data.training_series(folder)
    assert set(kept) == {"ili", "jhu"}
