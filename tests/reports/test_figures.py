"""Figures: what is drawn is what the data say; SVG is inline, quiet and repeatable."""

from __future__ import annotations

import io
import subprocess
import sys
from datetime import datetime, timedelta
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from tsfm.errors import InputError
from tsfm.reports import figures
from tsfm.reports.figures import (
    capacity_plot,
    figure_to_svg,
    precision_recall_plot,
    reliability_plot,
    roc_plot,
    score_histogram,
    timeline_plot,
)


def draw(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels from calibrated probabilities."""
    generator = np.random.default_rng(seed)
    p = generator.beta(1.5, 6, n)
    return (generator.random(n) < p).astype(float), p


def texts(figure: Any) -> str:
    """All words of a figure."""
    found = []
    for axes in figure.axes:
        found += [t.get_text() for t in axes.texts]
        found += [axes.get_xlabel(), axes.get_ylabel()]
        found += [t.get_text() for t in axes.get_yticklabels()]
    return "\n".join(found)


def lines_of(axes: Any, colour: str) -> list[Any]:
    return [line for line in axes.lines if line.get_color() == colour]


def test_the_reliability_plot_has_one_scale_and_shows_every_bin() -> None:
    y, p = draw()
    figure = reliability_plot(y, p, slope=0.98, intercept=-0.04, outcome="readmission")
    panels: list[Any] = figure.axes
    top, bottom = panels
    assert top.get_xlim() == top.get_ylim()
    (dots,) = [line for line in top.lines if line.get_marker() == "o"]
    assert len(dots.get_xdata()) == 10
    assert "slope 0.98" in texts(figure)
    assert "intercept \N{MINUS SIGN}0.04" in texts(figure)
    assert sum(bar.get_height() for bar in bottom.patches) == 400
    figure.savefig(io.BytesIO())
    box = top.get_window_extent()
    assert box.width == pytest.approx(box.height, rel=1e-6)


def test_the_reliability_plot_of_one_constant_score_is_one_point() -> None:
    figure = reliability_plot([0, 1, 0, 0], [0.25] * 4)
    axes: Any = figure.axes[0]
    (dots,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert list(dots.get_xdata()) == [0.25]
    assert list(dots.get_ydata()) == [0.25]


def test_the_roc_curve_encloses_the_area() -> None:
    from sklearn.metrics import roc_auc_score

    y, p = draw()
    rounded = np.round(p, 1)
    axes = roc_plot({"ours": (y, p), "rounded": (y, rounded)}).axes[0]
    for colour, scores in ((figures.LINES[0][0], p), (figures.LINES[1][0], rounded)):
        (line,) = lines_of(axes, colour)
        area = np.trapezoid(line.get_ydata(), line.get_xdata())
        assert area == pytest.approx(roc_auc_score(y, scores), abs=1e-12)
    legend = axes.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["ours", "rounded"]


def test_the_precision_recall_curve_ends_at_the_base_rate() -> None:
    y, p = draw()
    axes = precision_recall_plot({"ours": (y, p)}).axes[0]
    (line,) = lines_of(axes, figures.LINES[0][0])
    x, precision = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert x[-1] == 1.0
    assert precision[-1] == pytest.approx(y.mean())


def test_the_capacity_plot_agrees_with_the_alert_table() -> None:
    from tsfm.evaluation.discrimination import alerts_at_capacity

    y, p = draw()
    figure = capacity_plot(y, p, chosen=0.1)
    found = alerts_at_capacity(y, p, 0.1)
    words = texts(figure)
    assert f"{found.ppv:.0%}" in words
    assert f"{found.sensitivity:.0%}" in words
    assert "Sensitivity" in words
    assert "Positive predictive value" in words


@pytest.mark.parametrize(("n", "chosen"), [(23, 0.1), (7, 0.02), (40, 0.333)])
def test_the_dots_of_the_capacity_plot_are_whole_alerts(n: int, chosen: float) -> None:
    from tsfm.evaluation.discrimination import alerts_at_capacity

    y, p = draw(n, seed=4)
    y, p = np.r_[y, 1.0], np.r_[p, 0.99]
    found = alerts_at_capacity(y, p, chosen)
    axes: Any = capacity_plot(y, p, chosen=chosen).axes[0]
    dots = {
        line.get_color(): line.get_ydata()[0] for line in axes.lines if line.get_marker() == "o"
    }
    assert dots == {figures.BLUE: found.sensitivity, figures.VERMILLION: found.ppv}


NAMES = (
    "x$y",
    "cost$a_1$b",
    "a$\\frac{1$b",
    "_hidden",
    '"href="#y" id="z" url(#a)',
    "\u6a21\u578b v1",
)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("plot", [roc_plot, precision_recall_plot])
def test_a_model_may_have_any_name_and_has_it_in_the_legend(plot: Any) -> None:
    y, p = draw()
    figure = plot({name: (y, p) for name in NAMES})
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == list(NAMES)
    colours = [line.get_color() for line in legend.get_lines()]
    assert colours == [colour for colour, _ in figures.LINES]
    root = ElementTree.fromstring(figure_to_svg(figure, name="curve"))
    written = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert [text for text in written if text in NAMES] == list(NAMES)


def test_an_outcome_and_a_code_are_no_formula() -> None:
    y, p = draw()
    name = "a $\\frac{1$ b"
    for figure in (
        reliability_plot(y, p, outcome=name),
        score_histogram(p, outcome=name),
        timeline_plot(make_patient(), descriptions={"LAB//50912//mg/dL": name}),
    ):
        assert "frac{1$ b" in figure_to_svg(figure)
        figure.savefig(io.BytesIO())  # nor where their owner draws them


def test_the_histogram_counts_every_score() -> None:
    _, p = draw()
    axes: Any = score_histogram(p, outcome="death").axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == 400
    assert f"mean {p.mean():.1%}" in texts(axes.figure)


@pytest.mark.parametrize("plot", [reliability_plot, capacity_plot])
def test_no_rows_are_refused(plot: Any) -> None:
    with pytest.raises(InputError, match="bad_scores"):
        plot([], [])


def test_one_class_only_can_still_be_drawn() -> None:
    p = np.linspace(0.01, 0.3, 50)
    for labels in (np.zeros(50), np.ones(50)):
        for figure in (
            reliability_plot(labels, p),
            capacity_plot(labels, p, chosen=0.1),
            roc_plot({"ours": (labels, p)}),
            precision_recall_plot({"ours": (labels, p)}),
        ):
            figure_to_svg(figure)


def test_svg_is_the_same_bytes_each_time_and_refers_to_nothing_outside() -> None:
    y, p = draw()
    first, second = (
        figure_to_svg(reliability_plot(y, p), name="calibration", title='a "quoted" <title>')
        for _ in range(2)
    )
    assert first == second
    root = ElementTree.fromstring(first)
    assert root.get("aria-label") == 'a "quoted" <title>'
    for element in root.iter():
        for name, value in element.attrib.items():
            if name.endswith(("href", "src")):
                assert value.startswith("#calibration-")
            assert "url(http" not in value
    assert "<!DOCTYPE" not in first
    assert "metadata" not in first


def test_two_figures_on_one_page_share_no_id() -> None:
    y, p = draw()
    one, two = (figure_to_svg(reliability_plot(y, p), name=name) for name in ("one", "two"))
    ids = [
        {e.get("id") for e in ElementTree.fromstring(s).iter() if e.get("id")} for s in (one, two)
    ]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_figures_leave_pyplot_alone() -> None:
    program = (
        "import sys; from tsfm.reports import figures as f;"
        "f.figure_to_svg(f.reliability_plot([0, 1], [0.2, 0.6]));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def make_patient() -> pl.DataFrame:
    """Two stays with creatinine, a diagnosis that is coded late, and a death."""
    start = datetime(2150, 1, 3, 8)
    rows: list[tuple[Any, ...]] = [
        (7, None, "GENDER//F", None, None, None),
        (7, datetime(1950, 1, 1), "MEDS_BIRTH", None, datetime(1950, 1, 1), None),
    ]
    for stay, day in ((1, 0), (2, 20)):
        begin = start + timedelta(days=day)
        end = begin + timedelta(days=3)
        rows.append((7, begin, "HOSPITAL_ADMISSION//EMERGENCY", None, begin, stay))
        for hour in range(0, 72, 12):
            time = begin + timedelta(hours=hour)
            value = 1.0 + 0.1 * hour
            rows.append((7, time, "LAB//50912//mg/dL", value, time + timedelta(hours=1), stay))
        rows.append((7, end, "HOSPITAL_DISCHARGE//HOME", None, end, stay))
        rows.append((7, end, "DIAGNOSIS//ICD//10//I50", None, end + timedelta(days=5), stay))
    death = start + timedelta(days=40)
    rows.append((7, death, "MEDS_DEATH", None, death, None))
    columns = ["subject_id", "time", "code", "numeric_value", "available_time", "encounter_id"]
    return pl.DataFrame(rows, schema=columns, orient="row").with_columns(
        signal_id=pl.lit(None, pl.String)
    )


def spans(figure: Any) -> list[Any]:
    return [p for p in figure.axes[0].patches if p.get_facecolor()[:3] != (1.0, 1.0, 1.0)]


def test_the_timeline_shows_stays_lanes_and_series_with_units() -> None:
    figure = timeline_plot(make_patient(), descriptions={"LAB//50912//mg/dL": "Creatinine"})
    words = texts(figure)
    assert len(spans(figure)) == 2
    assert "Diagnoses  2" in words
    assert "Laboratory  12" in words
    assert "Creatinine\nmg/dL" in words
    assert "death" in words


def test_the_timeline_until_a_moment_shows_only_what_was_available_by_then() -> None:
    patient = make_patient()
    figure = timeline_plot(patient, until=datetime(2150, 1, 7))
    words = texts(figure)
    assert "Diagnoses" not in words
    assert "Laboratory  6" in words
    assert "death" not in words
    assert len(spans(figure)) == 1
    later = patient.filter((pl.col("available_time") <= datetime(2150, 1, 7)).fill_null(True))
    same = timeline_plot(later, until=datetime(2150, 1, 7))
    assert figure_to_svg(figure) == figure_to_svg(same)


def test_a_stay_in_progress_reaches_the_moment_and_no_further() -> None:
    moment = datetime(2150, 1, 24)
    figure = timeline_plot(make_patient(), until=moment)
    from matplotlib.dates import date2num

    assert len(spans(figure)) == 2
    assert max(s.get_x() + s.get_width() for s in spans(figure)) == pytest.approx(date2num(moment))


def test_a_timeline_is_of_one_subject_with_something_to_draw() -> None:
    patient = make_patient()
    with pytest.raises(InputError, match="not_one_subject"):
        timeline_plot(pl.concat([patient, patient.with_columns(subject_id=pl.lit(8, pl.Int64))]))
    with pytest.raises(InputError, match="no_events"):
        timeline_plot(patient, until=datetime(2140, 1, 1))
