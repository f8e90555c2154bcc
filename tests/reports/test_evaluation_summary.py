"""The figures of a run: right, comparable, and absent where nothing can be said."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from tsfm.errors import FormatError, InputError
from tsfm.reports.evaluation_data import EvaluationData
from tsfm.reports.evaluation_summary import NOTHING, Evaluation, evaluate, labels_and_scores
from tsfm.reports.html_report import render_report


@pytest.fixture(scope="module")
def found(run: EvaluationData) -> Evaluation:
    return evaluate(run, n_resamples=60)


def test_our_figures_agree_with_sklearn(found: Evaluation) -> None:
    from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

    ours = found.models[0]
    y, p = labels_and_scores(found.labelled)
    assert (ours.n, ours.n_events) == (390, int(y.sum()))
    assert ours.brier is not None
    assert ours.auroc.value == pytest.approx(roc_auc_score(y, p))
    assert ours.auprc.value == pytest.approx(average_precision_score(y, p))
    assert ours.brier.value == pytest.approx(brier_score_loss(y, p))
    assert ours.auroc.low < ours.auroc.value < ours.auroc.high


def test_baselines_are_measured_on_the_stays_that_we_scored(found: Evaluation) -> None:
    assert [m.name for m in found.models] == ["demo", "noisy", "LACE"]
    assert {m.n for m in found.models} == {390}
    ours, noisy, _ = found.models
    assert noisy.auroc_behind is not None
    assert noisy.auroc_behind.value == pytest.approx(ours.auroc.value - noisy.auroc.value)
    assert ours.auroc_behind is None


def test_points_are_ranked_but_not_read_as_probabilities(found: Evaluation) -> None:
    lace = found.models[2]
    assert lace.brier is None
    assert lace.slope is None
    assert lace.ece is None
    assert 0.5 < lace.auroc.value < 1
    assert f"{NOTHING}" in found.as_text().splitlines()[-1]


def test_a_baseline_with_fewer_stays_is_compared_on_those(run: EvaluationData) -> None:
    fewer = run.baselines["noisy"].gather_every(2)
    found = evaluate(replace(run, baselines={"noisy": fewer}), n_resamples=5)
    assert [m.n for m in found.models] == [390, 195]


def test_the_chosen_capacity_stands_beside_the_usual_ones(run: EvaluationData) -> None:
    found = evaluate(replace(run, baselines={}, subgroups=None), capacity=0.125, n_resamples=5)
    assert list(found.alerts) == [0.05, 0.10, 0.125, 0.20]
    assert found.alerts[0.125].n_alerts == 49
    for wrong in (0.0, 10):
        with pytest.raises(InputError, match="bad_capacity"):
            evaluate(run, capacity=wrong)


def test_predicted_and_observed_outcomes_agree_where_scores_are_calibrated(make: Any) -> None:
    data = make(4000, baselines={}, subgroups=None)
    outcomes = evaluate(data, n_resamples=5).outcomes
    assert outcomes is not None
    assert outcomes.n == 3990
    for name in ("event", "competing", "none"):
        assert outcomes.observed[name] == pytest.approx(outcomes.predicted[name], abs=0.02)
    assert sum(outcomes.observed.values()) == pytest.approx(1)


def test_small_groups_are_suppressed(found: Evaluation) -> None:
    assert found.subgroups is not None
    rare = found.subgroups.filter(pl.col("group") == "RARE")
    assert rare["suppressed"].to_list() == [True]
    assert rare["n"].to_list() == [None]


def test_groups_may_be_of_subjects_alone(run: EvaluationData) -> None:
    groups = run.subgroups
    assert groups is not None
    by_subject = groups.select("subject_id", "sex").unique(maintain_order=True)
    found = evaluate(replace(run, subgroups=by_subject, baselines={}), n_resamples=5)
    assert found.subgroups is not None
    assert found.subgroups["n"].sum() == 390
    total = pl.concat(
        [by_subject, pl.DataFrame({"subject_id": None, "sex": "all"}, by_subject.schema)]
    )
    again = evaluate(replace(run, subgroups=total, baselines={}), n_resamples=5)
    assert again.subgroups is not None
    assert again.subgroups.equals(found.subgroups)


def test_the_same_run_gives_the_same_figures(run: EvaluationData, found: Evaluation) -> None:
    assert evaluate(run, n_resamples=60).as_dict() == found.as_dict()


def test_the_dictionary_is_json_and_holds_no_rows(found: Evaluation) -> None:
    plain = found.as_dict()
    text = json.dumps(plain, allow_nan=False)
    assert "prediction_time" not in text
    assert plain["models"]["demo"]["auroc"]["value"] == found.models[0].auroc.value


def test_text_and_html_show_the_same_table(found: Evaluation) -> None:
    text, html = found.as_text(), found._repr_html_()
    assert "model" in text
    for name in ("demo", "noisy", "LACE"):
        assert name in text
        assert name in html
    assert f"{found.models[0].auroc.value:.3f}" in text


@pytest.mark.parametrize("labels", [None, "empty"])
def test_without_labels_there_are_counts_and_no_figures(run: EvaluationData, labels: Any) -> None:
    empty = None if labels is None or run.labels is None else run.labels.head(0)
    found = evaluate(replace(run, labels=empty, cohort=None))
    assert (found.n_scored, found.n_labelled) == (390, 0)
    assert found.models == ()
    assert found.alerts == {}
    assert "no outcome known yet" in found.as_text()
    json.dumps(found.as_dict(), allow_nan=False)


def test_one_class_only_leaves_out_what_it_cannot_say(run: EvaluationData) -> None:
    assert run.labels is not None
    nobody = run.labels.with_columns(boolean_value=pl.lit(False))
    found = evaluate(replace(run, labels=nobody), n_resamples=5)
    assert found.models[0].slope is None
    assert found.as_dict()["models"]["demo"]["auroc"]["value"] is None
    assert NOTHING in found.as_text()


def test_a_baseline_with_two_scores_for_a_stay_is_refused(run: EvaluationData) -> None:
    twice = pl.concat([run.baselines["noisy"], run.baselines["noisy"].head(1)])
    with pytest.raises(FormatError, match="bad_baseline"):
        evaluate(replace(run, baselines={"noisy": twice}))
    with pytest.raises(FormatError, match="bad_baseline"):
        evaluate(replace(run, baselines={"noisy": twice.drop("probability")}))


def test_a_baseline_of_another_clock_or_of_cut_ids_is_refused(run: EvaluationData) -> None:
    """Cast, it would be joined to other stays than its own, and fewer of them."""
    moment, subject = pl.col("prediction_time"), pl.col("subject_id")
    assert run.labels is not None
    same = run.baselines["noisy"].with_columns(moment.cast(pl.Datetime("ns")), subject.cast(float))
    assert evaluate(replace(run, baselines={"noisy": same}), n_resamples=5).models[1].n > 300
    for bad in (moment.dt.replace_time_zone("Europe/Zurich"), subject + 0.5):
        baselines = {"noisy": run.baselines["noisy"].with_columns(bad)}
        with pytest.raises(FormatError, match="wrong_column_type"):
            evaluate(replace(run, baselines=baselines), n_resamples=5)
    zoned = run.labels.with_columns(moment.dt.replace_time_zone("Europe/Zurich"))
    with pytest.raises(FormatError, match="wrong_column_type"):
        evaluate(replace(run, labels=zoned), n_resamples=5)


def test_figures_of_training_subjects_say_so_unless_others_are_asked_for(
    run: EvaluationData, found: Evaluation
) -> None:
    assert found.note == ""
    told = replace(run, manifest={"scored_by_split": {"train": 250, "held_out": 1140}})
    judged = evaluate(told, n_resamples=20)
    assert judged.note.startswith("250 of 1,390 scored stays are of subjects of the training split")
    assert judged.as_text().endswith(f"note: {judged.note}")
    assert judged.note in judged._repr_html_()
    assert judged.as_dict()["note"] == judged.note
    assert judged.note in render_report(told, judged)
    train = evaluate(replace(run, subset="train"), n_resamples=20).note
    assert train.startswith("All judged stays are of subjects of the training split")
    for other in (
        replace(told, subset="held_out"),
        replace(run, manifest={"scored_by_split": {"held_out": 390}}),
    ):
        assert evaluate(other, n_resamples=20).note == ""


def few(make: Any, n_subjects: int = 10, **changes: Any) -> EvaluationData:
    """A run of a few subjects with two stays each, all scored."""
    data = make(2 * n_subjects + 10, **changes)
    keep = pl.col("subject_id") > 5
    assert data.labels is not None
    return replace(
        data,
        scores=data.scores.filter(keep),
        labels=data.labels.filter(keep),
        cohort=None,
        manifest={},
    )


def test_figures_of_few_subjects_are_neither_written_nor_printed(make: Any) -> None:
    data = few(make)
    found = evaluate(data, n_resamples=5)
    assert found.n_subjects == 10
    assert found.models  # who computes may look
    plain = found.as_dict()
    assert (plain["models"], plain["alerts"], plain["subgroups"]) == ({}, {}, None)
    assert (plain["n_scored"], plain["n_labelled"], plain["n_subjects"]) == (20, None, None)
    for text in (found.as_text(), found._repr_html_()):
        assert "fewer than 11 subjects" in text
        assert "AUROC" not in text
    page = render_report(data, found)
    assert "<svg" not in page
    assert "AUROC" not in page
    assert 'with a known outcome</th><td class="r">not shown' in page
    for score in data.scores["probability"]:
        assert f"{score:.3f}" not in page
    assert "<svg" in render_report(few(make, 11), evaluate(few(make, 11), n_resamples=5))


def test_scores_of_few_subjects_are_not_drawn_while_no_outcome_is_known(make: Any) -> None:
    data = replace(few(make), labels=None)
    page = render_report(data, evaluate(data))
    assert "<svg" not in page
    assert "Figures of so few" in page


def test_a_baseline_of_few_subjects_is_left_out(make: Any) -> None:
    data = make(baselines={})
    shown = make().baselines["noisy"]
    data = replace(data, baselines={"ample": shown, "Sparse": shown.tail(20)})
    found = evaluate(data, n_resamples=5)
    assert [m.name for m in found.models] == ["demo", "ample", "Sparse"]
    assert list(found.as_dict()["models"]) == ["demo", "ample"]
    assert "Sparse" not in found.as_text()
    assert "Sparse" not in render_report(data, found)


def test_a_threshold_is_shown_rounded_and_used_as_it_is(found: Evaluation) -> None:
    told = found.as_dict()["alerts"]["0.1"]["threshold"]
    used = found.alerts[0.1].threshold
    assert told == round(used, 3) != used


def test_a_point_of_the_calibration_plot_is_never_a_few_subjects(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tsfm.reports import figures

    asked: list[tuple[int, int]] = []
    drawn = figures.reliability_plot

    def spy(*arguments: Any, n_bins: int, fewest: int, **more: Any) -> Any:
        asked.append((n_bins, fewest))
        return drawn(*arguments, n_bins=n_bins, fewest=fewest, **more)

    monkeypatch.setattr(figures, "reliability_plot", spy)
    for n_subjects in (11, 60, 200):
        data = few(make, n_subjects)
        render_report(data, evaluate(data, n_resamples=2))
    # Of eleven subjects fewer than eleven have the outcome: nothing that counts them is drawn.
    assert asked == [(5, 11), (10, 11)]
