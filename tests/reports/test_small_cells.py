"""What would tell of one to ten subjects is in no page, table or file."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from tsfm.errors import FormatError
from tsfm.evaluation.bootstrap import Interval
from tsfm.evaluation.calibration import reliability_curve
from tsfm.evaluation.discrimination import alerts_at_capacity
from tsfm.reports.competing_outcomes import compare_outcomes
from tsfm.reports.evaluation_data import EvaluationData
from tsfm.reports.evaluation_summary import evaluate
from tsfm.reports.html_report import render_report
from tsfm.reports.model_figures import ModelFigures
from tsfm.reports.small_cells import pooled_reasons, shown_alerts, shown_count


def words(page: str) -> str:
    return " ".join(re.sub("<[^>]+>", " ", page).split())


def with_events(data: EvaluationData, n: int) -> EvaluationData:
    """The run, of whose scored subjects so many have the outcome."""
    assert data.labels is not None
    ill = pl.col("subject_id").is_between(11, 10 + n)
    return replace(data, labels=data.labels.with_columns(boolean_value=ill))


def stays(subject_ids: list[int], p: list[float]) -> pl.DataFrame:
    y = [i % 2 == 0 for i in range(len(p))]
    return pl.DataFrame({"subject_id": subject_ids, "boolean_value": y, "probability": p})


def alerts_shown(labelled: pl.DataFrame, shares: list[float], chosen: float) -> list[float]:
    y, p = (labelled[name].to_numpy() for name in ("boolean_value", "probability"))
    found = {share: alerts_at_capacity(y, p, share) for share in shares}
    return list(shown_alerts(found, labelled, chosen))


def test_a_count_of_few_is_said_to_be_one() -> None:
    assert [shown_count(n) for n in (0, 1, 10, 11, 1200)] == [
        "0", "fewer than 11", "fewer than 11", "11", "1,200",
    ]  # fmt: skip


def test_alerts_of_few_are_not_shown() -> None:
    single = stays(list(range(200)), np.linspace(0.9, 0.1, 200).tolist())
    assert alerts_shown(single, [0.03, 0.05, 0.2], 0.05) == [0.2]
    assert alerts_shown(single, [0.2, 0.95, 1.0], 0.2) == [0.2, 1.0]
    # Forty alerts, all of them for one subject.
    one = pl.when(pl.int_range(200) < 40).then(0).otherwise("subject_id")
    often = single.with_columns(one.alias("subject_id"))
    assert alerts_shown(often, [0.2, 0.5], 0.2) == [0.5]


def test_two_capacities_do_not_leave_a_few_alerts_between_them() -> None:
    single = stays(list(range(600)), np.linspace(0.9, 0.1, 600).tolist())
    assert alerts_shown(single, [0.05, 0.1, 0.2], 0.1) == [0.05, 0.1, 0.2]
    assert alerts_shown(single, [0.05, 0.1, 0.11, 0.2], 0.11) == [0.05, 0.11, 0.2]


def test_alerts_do_not_tell_that_a_few_have_the_outcome_or_lack_it() -> None:
    def shown(ill: list[int], p: list[float] | None = None) -> list[float]:
        labelled = stays(list(range(400)), p or np.linspace(0.9, 0.1, 400).tolist())
        labelled = labelled.with_columns(boolean_value=pl.col("subject_id").is_in(ill))
        found = alerts_shown(labelled, [0.1, 0.2, 0.4], 0.1)
        lacking = labelled.with_columns(~pl.col("boolean_value"))
        assert alerts_shown(lacking, [0.1, 0.2, 0.4], 0.1) == found
        return found

    every = list(range(0, 400, 2))
    assert shown(every) == [0.1, 0.2, 0.4]
    assert shown([7, *range(200, 229)]) == []  # one of those alerted
    assert shown([i for i in every if i < 160 or i > 390]) == [0.1, 0.2]  # four of those left over
    assert shown([i for i in every if not 40 <= i < 76]) == [0.1, 0.4]  # two between the first two
    assert shown([i for i in every if not 40 <= i < 80]) == [0.1, 0.2, 0.4]  # none
    # Ten alerts among 290 that tie: about four of them.
    tied = [*np.linspace(0.9, 0.6, 30).tolist(), *[0.5] * 290, *np.linspace(0.4, 0.1, 80).tolist()]
    assert 0.1 not in shown([*range(4), *range(30, 160), *range(330, 360)], tied)


def test_an_ordinary_report_keeps_its_alerts() -> None:
    draw = np.random.default_rng(0)
    p = draw.beta(1.5, 12, 3000)
    labelled = stays((np.arange(3000) // 2).tolist(), p.tolist())
    labelled = labelled.with_columns(boolean_value=pl.Series(draw.random(3000) < p))
    assert 300 < labelled["boolean_value"].sum() < 360
    assert alerts_shown(labelled, [0.05, 0.1, 0.15, 0.2], 0.15) == [0.05, 0.1, 0.15, 0.2]


def test_alerts_that_are_not_shown_are_nowhere(make: Any) -> None:
    data = make(200, baselines={}, subgroups=None)
    data = with_events(data, 60)
    found = evaluate(data, n_resamples=2)
    assert list(found.alerts) == [0.05, 0.1, 0.2]
    assert list(found.as_dict()["alerts"]) == ["0.2"]
    page = words(render_report(data, found))
    assert "(chosen)" not in page
    assert "stays can be looked at" not in page


def test_outcomes_of_few_are_not_compared(run: EvaluationData) -> None:
    assert compare_outcomes(run.task, run.scores, run.cohort) is not None
    asked = pl.when(pl.col("subject_id") < 14).then("probability_competing")
    three = run.scores.with_columns(asked.alias("probability_competing"))
    assert compare_outcomes(run.task, three, run.cohort) is None
    assert run.cohort is not None
    died = pl.col("outcome") == "competing"
    rare = run.cohort.filter(~died | (pl.col("subject_id") < 40))
    assert 0 < rare.filter(died).height < 11
    assert compare_outcomes(run.task, run.scores, rare) is None
    never = run.cohort.filter(~died)
    assert compare_outcomes(run.task, run.scores, never) is not None


def fitting_counts(auroc: float, n: int) -> int:
    """How many numbers of outcomes have an AUROC of so many digits: half pairs are whole."""
    digits = 10.0 ** -len(str(auroc).partition(".")[2]) / 2
    return sum(
        abs(round(2 * auroc * k * (n - k)) / (2 * k * (n - k)) - auroc) < digits
        for k in range(1, n)
    )


@pytest.mark.parametrize("n_events", [3, 192])
def test_a_few_with_the_outcome_or_without_are_not_counted(make: Any, n_events: int) -> None:
    data = with_events(make(), n_events)
    found = evaluate(data, n_resamples=2)
    first, *_ = found.as_text().splitlines()
    assert first.endswith("fewer than 11 of them with, or without, the outcome")
    plain = found.as_dict()
    assert plain["models"]["demo"]["n_events"] is None
    for model in plain["models"].values():
        assert fitting_counts(model["auroc"]["value"], model["n"]) > 20
        assert model["auroc"]["n_used"] == model["auroc"]["n_drawn"]
        for figure in ("brier", "intercept", "ece"):
            assert model[figure] is None, figure
        assert model["auprc"]["value"] is None
    assert (plain["alerts"], plain["outcomes"]) == ({}, None)
    assert {row["prevalence"] for row in plain["subgroups"]} <= {None, 0.0, 1.0}
    page = render_report(data, found)
    assert page.count("<svg") == 1  # scores alone
    assert "what would tell how many is not shown" in words(page)
    assert "Few outcomes" in words(page)
    assert "Shares of the outcome are left out" in words(page)


def test_of_few_stays_no_auroc_is_told_beside_a_hidden_number() -> None:
    """Of 12 stays .73 is 8 of 11 pairs: one has the outcome, or lacks it."""
    auroc = Interval(8 / 11, 0.5, 0.9, 90, 100)
    figures = ModelFigures("a", 12, 1, auroc, auroc, auroc, 1.0, 0.1, 0.01, auroc)
    shown = figures.without_count()
    assert np.isnan([shown.auroc.value, shown.auroc.low, shown.auroc.high]).all()
    assert (shown.auroc_behind, shown.brier, shown.n_events) == (None, None, None)
    assert replace(figures, n=200).without_count().auroc == Interval(0.73, 0.5, 0.9, 100, 100)


def test_a_baseline_does_not_tell_the_outcomes_of_the_few_it_lacks(make: Any) -> None:
    whole = make()
    noisy = whole.baselines["noisy"].filter(pl.col("subject_id") > 10)
    data = replace(whole, baselines={"all": whole.baselines["noisy"], "most": noisy})
    found = evaluate(data, n_resamples=2)
    assert found.models[2].n < found.models[0].n
    counts = {name: model["n_events"] for name, model in found.as_dict()["models"].items()}
    assert counts["all"] == counts["demo"] == found.models[0].n_events
    assert counts["most"] is None


def test_reasons_of_few_are_counted_together() -> None:
    assert pooled_reasons({"minor": 50, "died": 11}) == {"minor": 50, "died": 11}
    assert pooled_reasons({"a": 6, "b": 6, "minor": 50}) == {"minor": 50, "other reasons": 12}
    together = {"died": 60, "other reasons": 52}
    assert pooled_reasons({"hospice": 2, "died": 60, "minor": 50}) == together
    assert pooled_reasons({"hospice": 2}) == {"other reasons": None}
    assert pooled_reasons({}) == {}


def test_a_reason_of_few_subjects_is_no_count_of_their_stays() -> None:
    def rows(**subjects: list[int]) -> pl.DataFrame:
        found = [(subject, reason) for reason, own in subjects.items() for subject in own]
        return pl.DataFrame(found, schema=["subject_id", "reason"], orient="row")

    minors, often = list(range(50)), [7] * 12
    left_out = rows(minor=minors, died=often)
    assert pooled_reasons({"minor": 50, "died": 12}, left_out) == {"other reasons": 62}
    assert pooled_reasons({"died": 12}, rows(died=often)) == {"other reasons": None}
    # Six of each, the same six: what they have in common is of six subjects still.
    twice = rows(minor=minors, a=[0, 1, 2, 3, 4, 5], b=[0, 1, 2, 3, 4, 5])
    assert pooled_reasons({"minor": 50, "a": 6, "b": 6}, twice) == {"other reasons": 62}
    # Of a split's stays alone it is not known whose the others are.
    counts = {"minor": 90, "died": 12, "hospice": 15}
    part = rows(minor=minors, died=[60, 61])
    assert pooled_reasons(counts, part) == {"other reasons": 117}
    unknown = left_out.with_columns(reason=pl.lit(None, pl.String))
    assert pooled_reasons({"unknown": 62}, unknown) == {"unknown": 62}


def test_the_page_names_no_reason_of_few(make: Any) -> None:
    whole = make(baselines={}, subgroups=None)
    left_out = pl.col("reason") == "minor"
    first = pl.int_range(pl.len()).over("eligible") < 2

    def page(cohort: pl.DataFrame) -> str:
        data = replace(whole, cohort=cohort)
        return words(render_report(data, evaluate(data, n_resamples=2)))

    hospice = pl.when(left_out & first).then(pl.lit("hospice")).otherwise("reason")
    told = page(whole.cohort.with_columns(hospice.alias("reason")))
    assert "hospice" not in told
    assert "not eligible: other reasons 20" in told
    assert "Stays looked at 420" in told
    told = page(whole.cohort.filter(pl.col("eligible") | first))
    assert "not eligible: other reasons of fewer than 11 subjects" in told
    assert "Stays looked at not shown" in told
    one = pl.when(left_out).then(100_000).otherwise("subject_id").alias("subject_id")
    told = page(whole.cohort.with_columns(one))
    assert "not eligible: other reasons of fewer than 11 subjects" in told
    assert "Stays looked at not shown" in told
    two = pl.when(left_out & (pl.int_range(pl.len()) % 2 == 0)).then(pl.lit("died"))
    many = pl.concat([whole.cohort, whole.cohort.filter(left_out).with_columns(
        pl.col("subject_id") + 1000)])  # fmt: skip
    told = page(many.with_columns(two.otherwise("reason").alias("reason")))
    assert "not eligible: died 20" in told
    assert "Stays looked at 440" in told


def test_ties_leave_no_point_of_few_subjects() -> None:
    p = np.r_[np.full(197, 0.1), 0.4, 0.5, 0.6]
    y = np.r_[np.zeros(180), np.ones(17), 1, 0, 0]
    assert reliability_curve(y, p).n.min() < 11
    one = reliability_curve(y, p, fewest=11)
    assert one.n.tolist() == [200]
    assert one.observed.tolist() == [y.mean()]
    p = np.linspace(0.1, 0.9, 200)
    assert reliability_curve(y, p, fewest=11).n.tolist() == [20] * 10
    # Twenty rows a bin, of five subjects: three bins together are of fifteen.
    often = reliability_curve(y, p, subject_ids=np.arange(200) // 4, fewest=11)
    assert often.n.tolist() == [60, 60, 80]


def test_rows_of_a_group_must_agree(run: EvaluationData) -> None:
    assert run.subgroups is not None
    by_subject = run.subgroups.select("subject_id").unique().with_columns(sex=pl.lit("F"))
    other = by_subject.with_columns(sex=pl.lit("M"))
    with pytest.raises(FormatError, match="bad_groups"):
        evaluate(replace(run, subgroups=pl.concat([by_subject, other])), n_resamples=2)
    twice = replace(run, subgroups=pl.concat([by_subject, by_subject]), baselines={})
    told = evaluate(twice, n_resamples=2).subgroups
    assert told is not None
    assert told["n"].to_list() == [390]


def test_keys_of_groups_are_those_of_the_scores(run: EvaluationData) -> None:
    assert run.subgroups is not None
    bare = replace(run, baselines={})
    told = evaluate(bare, n_resamples=2).subgroups
    assert told is not None
    time = pl.col("prediction_time")
    for same in (time.dt.cast_time_unit("ns"), pl.col("subject_id").cast(pl.Int32)):
        groups = run.subgroups.with_columns(same)
        found = evaluate(replace(bare, subgroups=groups), n_resamples=2).subgroups
        assert found is not None
        assert found.equals(told)
    for other in (
        time.dt.replace_time_zone("Europe/Zurich"),
        pl.lit("x").alias("subject_id"),
    ):
        with pytest.raises(FormatError, match="wrong_column_type"):
            evaluate(replace(bare, subgroups=run.subgroups.with_columns(other)), n_resamples=2)
    with pytest.raises(FormatError, match="missing_column"):
        evaluate(replace(bare, subgroups=run.subgroups.drop("subject_id")), n_resamples=2)
