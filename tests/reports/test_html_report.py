"""The report: one file that asks for nothing, shows no patient, and says what it can't say."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from tsfm.reports.evaluation_data import EvaluationData
from tsfm.reports.evaluation_summary import Evaluation, evaluate
from tsfm.reports.html_report import render_report, write_report

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Tags, attributes and words of a page; complains about tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name.endswith(("href", "src")):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def found(run: EvaluationData) -> Evaluation:
    return evaluate(run, n_resamples=40)


@pytest.fixture(scope="module")
def text(run: EvaluationData, found: Evaluation) -> str:
    return render_report(run, found)


def test_the_page_asks_for_nothing_and_runs_nothing(text: str) -> None:
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_it_says_how_good_the_scores_are(text: str, found: Evaluation) -> None:
    page = Page(text)
    ours = found.models[0]
    assert f"{ours.auroc.value:.3f}" in page.text
    for name in ("demo", "noisy", "LACE", "Slope", "Sensitivity", "10% (chosen)"):
        assert name in page.text
    assert page.tags.count("svg") == 4
    assert "death before readmission" in page.text


def test_it_counts_every_stay_with_its_reason(text: str) -> None:
    words = Page(text).text
    assert "Stays looked at 420" in words
    assert "not eligible: minor 20" in words
    assert "not scored: no event known by then 10" in words
    assert "Scored stays 390" in words


def test_known_outcomes_of_a_split_are_not_called_those_of_all_that_were_scored(
    run: EvaluationData, text: str
) -> None:
    assert "Scored stays 390 \N{EM DASH} with a known outcome 390" in Page(text).text
    assert run.labels is not None
    first = pl.col("subject_id") <= 100
    reasons = {"not_scored": {"no_event_known_by_then": 10}, "not_eligible": {}}
    part = replace(
        run, scores=run.scores.filter(first), labels=run.labels.filter(first), subset="held_out",
        manifest={**run.manifest, "counts": {"eligible": 400, "scored": 390, **reasons}},
    )  # fmt: skip
    words = Page(render_report(part, evaluate(part, n_resamples=5))).text
    known = "of them judged here (held-out), with a known outcome 190"
    assert f"Scored stays 390 \N{EM DASH} {known}" in words


def test_a_small_group_is_hidden_and_cannot_be_had_by_subtraction(text: str) -> None:
    words = Page(text).text
    assert "RARE not shown" in words
    assert "OTHER not shown" in words
    assert re.search(r"WIDE 2\d\d", words)


def test_no_patient_is_on_the_page(run: EvaluationData, text: str) -> None:
    words = Page(text).text
    assert "subject_id" not in words
    for encounter in run.scores["encounter_id"].head(50):
        assert str(encounter) not in words
    assert "2150-01" not in words


def test_the_same_run_gives_the_same_bytes(run: EvaluationData, found: Evaluation) -> None:
    assert render_report(run, found) == render_report(run, found)


def test_without_outcomes_it_shows_scores_and_counts(run: EvaluationData) -> None:
    data = replace(run, labels=None, cohort=None)
    page = Page(render_report(data, evaluate(data)))
    assert "No outcome is known yet" in page.text
    assert page.tags.count("svg") == 1
    assert "AUROC" not in page.text
    assert "Stays looked at" not in page.text


def test_scores_without_the_column_of_reasons_have_a_page(run: EvaluationData) -> None:
    manifest = {k: v for k, v in run.manifest.items() if k != "counts"}
    scored = run.scores.filter(pl.col("status") == "scored").drop("reason")
    data = replace(
        run, scores=scored, manifest=manifest, labels=None, cohort=None, baselines={},
        subgroups=None,
    )  # fmt: skip
    assert f"Scored stays {scored.height:,}" in Page(render_report(data, evaluate(data))).text


def test_a_run_that_scored_nobody_still_has_a_report(run: EvaluationData) -> None:
    nobody = run.scores.filter(pl.col("status") == "not_scored")
    data = replace(run, scores=nobody, labels=None, cohort=None, baselines={}, subgroups=None)
    page = Page(render_report(data, evaluate(data)))
    assert "Scored stays 0" in page.text
    assert "svg" not in page.tags


def test_one_class_only_has_a_report_without_curves(run: EvaluationData) -> None:
    assert run.labels is not None
    data = replace(run, labels=run.labels.with_columns(boolean_value=pl.lit(False)))
    page = Page(render_report(data, evaluate(data, n_resamples=5)))
    assert "nan" not in page.text.lower().split()
    assert page.tags.count("svg") == 2


def test_few_outcomes_are_cautioned_about(text: str, found: Evaluation) -> None:
    n_events = found.models[0].n_events
    assert n_events is not None
    few = n_events < 100
    assert ("Only" in Page(text).text) == few
    assert few


def test_names_from_the_data_are_text_and_never_markup(run: EvaluationData) -> None:
    nasty = "<script>alert(1)</script>"
    assert run.subgroups is not None
    data = replace(
        run,
        model_name=nasty,
        baselines={f"{nasty}&": run.baselines["noisy"]},
        subgroups=run.subgroups.with_columns(sex=pl.lit(nasty)),
        manifest={"run_id": nasty, "dataset": {"dataset_name": nasty}},
    )
    page = Page(render_report(data, evaluate(data, n_resamples=5)))
    assert "script" not in page.tags
    assert page.text.count("alert(1)") >= 5


def test_the_file_is_written_whole(run: EvaluationData, found: Evaluation, tmp_path: Path) -> None:
    path = write_report(run, tmp_path / "out" / "report.html", evaluation=found)
    assert path.read_text(encoding="utf-8") == render_report(run, found)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
