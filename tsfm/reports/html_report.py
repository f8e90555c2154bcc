"""The evaluation as one HTML page that can be sent, printed and archived.

The page holds aggregates only, no row of a patient, and no figure of so few that it would tell of
one (`Evaluation.shown`), but for the curves: see `tsfm.reports.small_cells`. It is one file: styles
and figures are inside, there is no script, and its content policy forbids every request, so that it
reads the same in an air-gapped hospital and in ten years. The same input gives the same bytes.

Words are in `evaluation_report.html.j2`; figures come from `tsfm.reports.figures`, numbers from
`tsfm.reports.evaluation_summary`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import polars as pl

from tsfm import schema
from tsfm.errors import InputError
from tsfm.evaluation.subgroups import SMALLEST_CELL
from tsfm.reports.evaluation_data import EvaluationData, check_events, keep_split, load_run
from tsfm.reports.evaluation_summary import (
    NOTHING,
    THRESHOLD_DECIMALS,
    Evaluation,
    evaluate,
    labels_and_scores,
    number,
    with_interval,
)
from tsfm.reports.small_cells import pooled_reasons
from tsfm.reports.tables import html_table

FILE_NAME = "report.html"
TEMPLATE = "evaluation_report.html.j2"

_GROUP_TITLES = {"age_band": "Age", "race": "Race or ethnicity"}


def write_report(
    source: EvaluationData | str | Path,
    path: str | Path,
    *,
    capacity: float = 0.10,
    n_resamples: int = 1000,
    evaluation: Evaluation | None = None,
) -> Path:
    """Write the report of a run; without known outcomes it holds scores and counts only.

    Args:
        source: Data of the evaluation, or the folder of a scoring run (see `load_run`).
        path: HTML file to write; it is written whole or not at all.
        capacity: Share of stays that can be looked at, a fraction.
        n_resamples: Bootstrap resamples for each interval.
        evaluation: Figures already computed from the same data; spares the time of a second
            computation.

    Raises:
        TsfmError: What `load_run` and `evaluate` raise.
    """
    data = source if isinstance(source, EvaluationData) else load_run(source)
    found = evaluation or evaluate(data, capacity=capacity, n_resamples=n_resamples)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_text(render_report(data, found), encoding="utf-8")
    os.replace(temporary, target)
    return target


def write_run_report(
    run_dir: str | Path,
    *,
    capacity: float = 0.10,
    events: str | Path | None = None,
    split: str | None = None,
) -> Path:
    """Write `report.html` into the folder of a scoring run and return its path.

    Args:
        run_dir: Folder of the run; see `load_run`.
        capacity: Share of stays that can be looked at, a fraction.
        events: Event table that was scored; needed for a split.
        split: Judge only this split's subjects, such as those that training never saw.

    Raises:
        TsfmError: What `load_run` and `evaluate` raise.
    """
    data = load_run(run_dir)
    if events is not None:
        data = check_events(data, events)
    if split is not None:
        if events is None:
            raise InputError(
                "a split needs the event table",
                code="missing_events",
                place="--events",
                remedy="Give the event table that was scored.",
            )
        data = keep_split(data, events, split)
    return write_report(data, Path(run_dir) / FILE_NAME, capacity=capacity)


def render_report(data: EvaluationData, evaluation: Evaluation) -> str:
    """The page as text."""
    from jinja2 import Environment, StrictUndefined

    evaluation = evaluation.shown()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = resources.files("tsfm.reports").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(text).render(
        outcome=data.outcome,
        task=data.task,
        model_name=data.model_name,
        subset=data.subset,
        evaluation=evaluation,
        ours=evaluation.models[0] if evaluation.models else None,
        baselines=evaluation.models[1:],
        chosen=evaluation.alerts.get(evaluation.capacity),
        facts=_run_facts(data),
        counts=_counts_table(data, evaluation),
        unknown_codes=data.manifest.get("unknown_codes") or {},
        clock=(data.manifest.get("dataset") or {}).get("clock", ""),
        tables=_tables(evaluation),
        figures=_figures(data, evaluation),
        subgroup_tables=_subgroup_tables(evaluation.subgroups),
        shares_left_out=_shares_left_out(evaluation.subgroups),
        smallest_cell=SMALLEST_CELL,
        share_text=_share_text,
        number=number,
        with_interval=with_interval,
    )


def _run_facts(data: EvaluationData) -> list[tuple[str, str]]:
    """What a reader must know to repeat the run, as far as the manifest says it."""
    manifest = data.manifest
    dataset = manifest.get("dataset") or {}
    clocks = {"utc": "UTC", "wall": "the source's local clock, offsets dropped"}
    facts = [
        ("Task", data.task),
        ("Model", data.model_name),
        ("Model hash (sha256)", manifest.get("model_hash")),
        ("Data set", dataset.get("dataset_name")),
        ("Data as of", manifest.get("data_as_of")),
        ("Clock", clocks.get(dataset.get("clock", ""), dataset.get("clock"))),
        ("Run", manifest.get("run_id")),
        ("Run started", manifest.get("started")),
        ("tsfm version", manifest.get("tsfm_version")),
    ]
    return [(name, str(value)) for name, value in facts if value]


def _counts_table(data: EvaluationData, evaluation: Evaluation) -> Any:
    from tsfm.scoring.predictions import check_scores
    from tsfm.scoring.run_manifest import StayCounts, count_stays

    stored = data.manifest.get("counts")
    counts = StayCounts(**stored) if stored else count_stays(check_scores(data.scores), data.cohort)
    # Without a cohort nobody says how many stays the task did not ask for.
    # A reason tells of a patient, such as a discharge to a hospice; that one wasn't scored, no.
    left_out = None if data.cohort is None else data.cohort.filter(~pl.col("eligible"))
    by_reason = pooled_reasons(counts.not_eligible, left_out)
    few = f"of fewer than {SMALLEST_CELL} subjects"
    seen = "not shown" if None in by_reason.values() else f"{counts.seen:,}"
    cells = [["Stays looked at", seen]] if stored or data.cohort is not None else []
    cells += [
        [f"\N{EM DASH} not eligible: {_words(k)}", few if n is None else f"{n:,}"]
        for k, n in by_reason.items()
    ]
    cells += [["Eligible stays", f"{counts.eligible:,}"]]
    cells += [
        [f"\N{EM DASH} not scored: {_words(k)}", f"{n:,}"] for k, n in counts.not_scored.items()
    ]
    cells += [["Scored stays", f"{counts.scored:,}"]]
    known = "not shown" if evaluation.too_few else f"{evaluation.n_labelled:,}"
    # What was scored is counted over the whole run, what is known over the split alone.
    judged = f"of them judged here ({data.subset.replace('_', '-')}), " if data.subset else ""
    cells += [[f"\N{EM DASH} {judged}with a known outcome", known]]
    return _markup(html_table(["", "Stays"], cells))


def _tables(evaluation: Evaluation) -> dict[str, Any]:
    headers = ["Model", "Stays", "AUROC [95%]", "AUPRC [95%]", "Brier score [95%]"]
    models = [
        [
            each.name,
            f"{each.n:,}",
            with_interval(each.auroc),
            with_interval(each.auprc),
            with_interval(each.brier, 4) if each.brier else NOTHING,
        ]
        for each in evaluation.models
    ]
    if len(evaluation.models) > 1:
        headers.append("Our AUROC minus its [95%]")
        for row, each in zip(models, evaluation.models, strict=True):
            row.append(with_interval(each.auroc_behind) if each.auroc_behind else NOTHING)
    calibration = [
        [each.name, number(each.slope, 2), number(each.intercept, 2), number(each.ece, 4)]
        for each in evaluation.models
    ]
    alerts = [
        [
            _share_text(share) + (" (chosen)" if share == evaluation.capacity else ""),
            f"{found.n_alerts:,}",
            number(found.threshold, THRESHOLD_DECIMALS),
            f"{found.true_positives:,.0f}",
            f"{found.ppv:.1%}",
            f"{found.sensitivity:.1%}" if math.isfinite(found.sensitivity) else NOTHING,
            number(found.number_needed_to_evaluate, 1),
        ]
        for share, found in evaluation.alerts.items()
    ]
    tables = {
        "models": html_table(headers, models),
        "calibration": html_table(
            ["Model", "Slope", "Intercept", "Calibration error (ECE)"], calibration
        ),
        "alerts": html_table(
            [
                "Share alerted",
                "Alerts",
                "Lowest score",
                "With the outcome",
                "Positive predictive value",
                "Sensitivity",
                "Alerts for one outcome",
            ],
            alerts,
        ),
    }
    if evaluation.outcomes is not None:
        found = evaluation.outcomes
        names = {**found.names, "none": "neither"}
        tables["outcomes"] = html_table(
            ["Outcome", "Mean predicted", "Observed", "Observed / predicted"],
            [
                [
                    name,
                    f"{found.predicted[key]:.1%}",
                    f"{found.observed[key]:.1%}",
                    number(_ratio(found.observed[key], found.predicted[key]), 2),
                ]
                for key, name in names.items()
            ],
        )
    return {name: _markup(text) for name, text in tables.items()}


def _figures(data: EvaluationData, evaluation: Evaluation) -> dict[str, Any]:
    from tsfm.reports import figures

    outcome = data.outcome
    if evaluation.too_few:
        return {}
    n_events = evaluation.models[0].n_events if evaluation.models else None
    if n_events is None:
        p = data.scores["probability"].drop_nulls().to_numpy()
        drawn = {}
        if p.size:
            drawn["scores"] = (
                figures.score_histogram(p, outcome=outcome),
                f"Histogram of predicted probabilities of {outcome}",
            )
    else:
        ours = evaluation.models[0]
        y, p = labels_and_scores(evaluation.labelled)
        drawn = {
            "calibration": (
                figures.reliability_plot(
                    y,
                    p,
                    # A point of fewer subjects than a cell would be close to one of them. That
                    # few of its subjects have the outcome is ordinary, and shown.
                    n_bins=max(1, min(10, evaluation.n_subjects // SMALLEST_CELL)),
                    slope=ours.slope,
                    intercept=ours.intercept,
                    outcome=outcome,
                    subject_ids=evaluation.labelled[schema.SUBJECT_ID].to_numpy(),
                    fewest=SMALLEST_CELL,
                ),
                "Calibration plot: observed share against predicted probability",
            )
        }
        if evaluation.alerts:
            chosen = evaluation.capacity if evaluation.capacity in evaluation.alerts else None
            drawn["capacity"] = (
                figures.capacity_plot(y, p, chosen=chosen, most=max(0.5, evaluation.capacity)),
                "Sensitivity and positive predictive value against the share of stays alerted",
            )
        if 0 < n_events < ours.n:
            curves = {ours.name: (y, p)}
            for each in evaluation.models[1:]:
                rows = evaluation.baseline_scores[each.name]
                curves[each.name] = labels_and_scores(rows, "_other")
            drawn["roc"] = (figures.roc_plot(curves), "ROC curves")
            drawn["precision"] = (
                figures.precision_recall_plot(curves),
                "Positive predictive value against sensitivity",
            )
    return {
        name: _markup(figures.figure_to_svg(figure, name=name, title=title))
        for name, (figure, title) in drawn.items()
    }


def _subgroup_tables(table: pl.DataFrame | None) -> list[Any]:
    """One table a column."""
    if table is None:
        return []
    headers = [
        "Stays",
        "Subjects",
        "Observed",
        "Mean predicted",
        "Obs. / pred.",
        "AUROC [95%]",
    ]
    found: list[Any] = []
    for (column,), part in table.group_by(["column"], maintain_order=True):
        hidden = set(part.filter("suppressed")["group"])
        rows = [
            [row["group"], "not shown", *[""] * (len(headers) - 1)]
            if row["group"] in hidden
            else _subgroup_cells(row)
            for row in part.iter_rows(named=True)
        ]
        title = _GROUP_TITLES.get(str(column), _words(str(column)).capitalize())
        found.append(_markup(html_table([title, *headers], rows)))
    return found


def _shares_left_out(table: pl.DataFrame | None) -> bool:
    shown = None if table is None else table.filter(~pl.col("suppressed"))
    return shown is not None and shown["prevalence"].null_count() > 0


def _subgroup_cells(row: Mapping[str, Any]) -> list[str]:
    bounds = f"[{number(row['auroc_low'], 2)}, {number(row['auroc_high'], 2)}]"
    return [
        row["group"],
        f"{row['n']:,}",
        f"{row['n_subjects']:,}",
        NOTHING if row["prevalence"] is None else f"{row['prevalence']:.1%}",
        f"{row['mean_predicted']:.1%}",
        number(row["observed_to_expected"], 2),
        NOTHING if row["auroc"] is None else f"{number(row['auroc'], 2)} {bounds}",
    ]


def _share_text(share: float) -> str:
    return f"{share:.1%}".replace(".0%", "%")


def _ratio(above: float, below: float) -> float | None:
    return above / below if below > 0 else None


def _words(name: str) -> str:
    return name.replace("_", " ")


def _markup(html: str) -> Any:
    from markupsafe import Markup

    # Built by `html_table` and `figure_to_svg`, which escape what they are given.
    return Markup(html)
