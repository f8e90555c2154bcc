"""The picture of a risk course draws what its frame says, of one stay."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest

from tsfm.errors import InputError
from tsfm.reports.figure_style import BLUE, VERMILLION, figure_to_svg
from tsfm.reports.risk_course_figure import plot_risk_course

START = datetime(2150, 3, 1, 8)


def make_course() -> pl.DataFrame:
    """Two stays of one subject and one of another; two events of the second stay are known at once.

    The changes of the second stay are +1.0, -2.0 (two events at once), 0 and +0.5.
    """
    hours = [0, 4, 9, 9, 20, 30]
    second = pl.DataFrame(
        {
            "subject_id": 1,
            "encounter_id": 7,
            "start_time": START + timedelta(days=40),
            "time": [START + timedelta(days=40, hours=h) for h in hours],
            "code": [
                "ADMISSION",
                "LAB//1//mg",
                "LAB//2//mg",
                "DRUG//a",
                "LAB//3//mg",
                "LAB//4//mg",
            ],
            "n_new": 1,
            "settled": [True, True, False, True, True, True],
            "probability": [0.1, 0.23, 0.09, 0.039, 0.039, 0.063],
            "log_odds_change": [None, 1.0, -1.5, -0.5, 0.0, 0.5],
        }
    )
    first = second.head(2).with_columns(
        pl.col("start_time") - timedelta(days=40), pl.col("time") - timedelta(days=40)
    )
    other = first.with_columns(pl.lit(2).alias("subject_id"))
    return pl.concat([first, second, other])


def words(figure: Any) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


def test_the_line_is_the_settled_risk_of_the_last_stay() -> None:
    figure = plot_risk_course(make_course(), 1, outcome="readmission")
    above: Any = figure.axes[0]
    (line,) = [one for one in above.lines if one.get_marker() == "None"]
    assert list(line.get_ydata()) == [0.1, 0.23, 0.039, 0.039, 0.063]
    assert "6.3%" in words(figure)
    assert "Risk of readmission" in words(figure)


def test_the_largest_changes_are_numbered_in_the_order_of_time_and_named() -> None:
    texts = {"LAB//1//mg": "Creatinine"}
    figure = plot_risk_course(make_course(), 1, descriptions=texts, n_named=2)
    found = words(figure)
    assert "1   +1.00   Creatinine" in found
    assert "2   \N{MINUS SIGN}2.00   LAB 2 mg and 1 more" in found
    assert "LAB 4 mg" not in found
    above: Any = figure.axes[0]
    colours = [one.get_color() for one in above.lines if one.get_marker() == "o"]
    assert colours == [VERMILLION, BLUE]


def test_a_stay_can_be_chosen() -> None:
    figure = plot_risk_course(make_course(), 1, start_time=START)
    above: Any = figure.axes[0]
    assert list(above.lines[0].get_ydata()) == [0.1, 0.23]


def test_a_stay_of_one_event_can_be_drawn() -> None:
    figure = plot_risk_course(make_course().head(1), 1)
    assert figure_to_svg(figure).startswith("<svg")


def test_nothing_to_draw_is_refused() -> None:
    course = make_course()
    for frame, subject in (
        (course, 3),
        (course.with_columns(pl.lit(None, pl.Float64).alias("probability")), 1),
    ):
        with pytest.raises(InputError, match="no_course"):
            plot_risk_course(frame, subject)
    with pytest.raises(InputError, match="no_course"):
        plot_risk_course(course, 1, start_time=START - timedelta(days=1))
