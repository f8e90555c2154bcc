"""From scores and known outcomes to the figures that are reported, with their uncertainty.

`evaluate` computes; it draws and writes nothing. Every model is measured on the same stays as ours
wherever it has a score for them, intervals come from resampling subjects, and what can't be said
(one class only, a point score that is no probability) is absent rather than zero. Figures of so few
subjects that they tell of single ones are computed, and left out of all that is printed or written.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tqdm import tqdm

from tsfm import schema
from tsfm.errors import FormatError, InputError
from tsfm.evaluation.bootstrap import Interval
from tsfm.evaluation.discrimination import Alerts
from tsfm.evaluation.subgroups import SMALLEST_CELL
from tsfm.reports.competing_outcomes import Outcomes, compare_outcomes
from tsfm.reports.evaluation_data import EvaluationData as EvaluationData
from tsfm.reports.model_figures import ModelFigures
from tsfm.reports.small_cells import of_few, outcome_of_few, shown_alerts, shown_count
from tsfm.reports.tables import format_table, html_table
from tsfm.scoring.predictions import SCORED, check_scores, labelled_scores

CAPACITIES = (0.05, 0.10, 0.20)
"""Shares of stays for which alerts are always reported."""

NOTHING = "\N{EN DASH}"
THRESHOLD_DECIMALS = 3
"""Decimals of a threshold that is shown: the whole number is one stay's score."""


@dataclass(frozen=True)
class Evaluation:
    """The figures of one run.

    Attributes:
        task: Name of the task.
        outcome: A few words for what is predicted.
        n_scored: Scored stays.
        n_labelled: Of these, stays whose outcome is known.
        n_subjects: Subjects of the labelled stays.
        models: Ours first, then the baselines; empty while no outcome is known.
        alerts: Share of stays alerted to what is found.
        capacity: The share chosen by the reader.
        subgroups: Table of `tsfm.evaluation.subgroups`, small cells suppressed; None if not asked.
        outcomes: Predicted against observed, competing outcome included; None if not known.
        labelled: The labelled stays themselves, for figures; never written.
        baseline_scores: The same for each baseline.
        note: What a reader must know before believing the figures; empty where nothing is.
        subset: Which of the run's subjects are judged, in a word; None for all.
        too_few: Whether the stays are of fewer subjects than may be shown.
    """

    task: str
    outcome: str
    n_scored: int
    n_labelled: int
    n_subjects: int
    models: tuple[ModelFigures, ...]
    alerts: dict[float, Alerts]
    capacity: float
    subgroups: pl.DataFrame | None
    outcomes: Outcomes | None
    labelled: pl.DataFrame = field(repr=False)
    baseline_scores: dict[str, pl.DataFrame] = field(repr=False)
    note: str = ""
    subset: str | None = None
    too_few: bool = False

    def shown(self) -> Evaluation:
        """The same without what tells of single subjects: figures of few, a threshold's digits.

        Where one to ten subjects have the outcome, or lack it, nothing that counts them is there,
        nor digits that do.
        """
        if self.too_few:
            return replace(self, models=(), alerts={}, subgroups=None, outcomes=None)
        stays = [self.labelled, *(self.baseline_scores[model.name] for model in self.models[1:])]
        models = tuple(
            model.without_count() if self._tells_of_few(rows) else model
            for model, rows in zip(self.models, stays[: len(self.models)], strict=True)
            if not of_few(rows)
        )
        if models and models[0].n_events is None:
            return replace(self, models=models, alerts={}, outcomes=None)
        alerts = {
            share: replace(found, threshold=round(found.threshold, THRESHOLD_DECIMALS))
            for share, found in shown_alerts(self.alerts, self.labelled, self.capacity).items()
        }
        return replace(self, models=models, alerts=alerts)

    def _tells_of_few(self, rows: pl.DataFrame) -> bool:
        """Whether the outcomes of these stays are of few subjects, or leave few of ours over."""
        stay = [schema.SUBJECT_ID, schema.PREDICTION_TIME]
        rest = self.labelled.join(rows, on=stay, how="anti")
        return outcome_of_few(rows) or outcome_of_few(self.labelled) or of_few(rest)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, aggregates only; what is not defined, or not shown, is None."""
        shown = self.shown()
        return _plain(
            {
                "task": self.task,
                "n_scored": self.n_scored,
                "n_labelled": None if self.too_few else self.n_labelled,
                "n_subjects": None if self.too_few else self.n_subjects,
                "models": {figures.name: asdict(figures) for figures in shown.models},
                "capacity": self.capacity,
                "alerts": {str(share): asdict(found) for share, found in shown.alerts.items()},
                "subgroups": None if shown.subgroups is None else shown.subgroups.to_dicts(),
                "outcomes": None if shown.outcomes is None else asdict(shown.outcomes),
                "note": self.note or None,
            }
        )

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and rows of the table of models."""
        headers = ["model", "n", "AUROC [95 %]", "AUPRC [95 %]", "Brier", "slope"]
        return headers, [
            [
                figures.name,
                f"{figures.n:,}",
                with_interval(figures.auroc),
                with_interval(figures.auprc),
                number(figures.brier.value if figures.brier else None, 4),
                number(figures.slope, 2),
            ]
            for figures in self.shown().models
        ]

    def as_text(self) -> str:
        """The table printed at the end of a run."""
        models = self.shown().models
        if not models:
            return f"{self.task}: {self.n_scored:,} stays scored, {self.why_nothing()}"
        n_events = models[0].n_events
        if n_events is None:
            told = f"{shown_count(1)} of them with, or without, the outcome"
        else:
            told = f"{n_events:,} with the outcome ({n_events / self.n_labelled:.1%})"
        return (
            f"{self.task}: {self.n_labelled:,} stays of {self.n_subjects:,} subjects, {told}\n"
            + format_table(*self.table())
            + (f"\nnote: {self.note}" if self.note else "")
        )

    def why_nothing(self) -> str:
        """In a few words, why there are no figures to show."""
        if self.too_few:
            return f"fewer than {SMALLEST_CELL} subjects to judge by: no figure is shown"
        return "no labelled stay in this split" if self.subset else "no outcome known yet"

    def _repr_html_(self) -> str:
        if not self.shown().models:
            return f"<p>{self.as_text()}</p>"
        first, *_ = self.as_text().splitlines()
        note = f"<p>Take care: {self.note}</p>" if self.note else ""
        return html_table(*self.table(), caption=first) + note


def evaluate(
    data: EvaluationData, *, capacity: float = 0.10, n_resamples: int = 1000, seed: int = 0
) -> Evaluation:
    """Compute the figures of a run.

    Args:
        data: Scores and what is known of their outcomes.
        capacity: Share of stays that can be looked at, a fraction; reported beside `CAPACITIES`.
        n_resamples: Bootstrap resamples of subjects for each interval.
        seed: Of the draws.

    Raises:
        FormatError: Scores, labels, groups or a baseline break their contract.
        InputError: Scores of more than one model, or a capacity that is no fraction.
    """
    from tsfm.evaluation.discrimination import alerts_at_capacity

    if not 0 < capacity <= 1:
        raise InputError(
            "the capacity is not a share of stays",
            code="bad_capacity",
            place="capacity",
            remedy="Give a fraction such as 0.1.",
        )
    scores = check_scores(data.scores)
    labels = schema.LABELS.empty_table() if data.labels is None else data.labels.to_arrow()
    labels_frame = pl.from_arrow(labels)
    assert isinstance(labels_frame, pl.DataFrame)
    labelled = labelled_scores(scores, labels_frame)
    baselines = {
        name: _baseline_rows(name, frame, labelled) for name, frame in data.baselines.items()
    }
    models: list[ModelFigures] = []
    alerts: dict[float, Alerts] = {}
    if labelled.height:
        asked = [(data.model_name, labelled, "probability")]
        asked += [(name, rows, "_other") for name, rows in baselines.items() if rows.height]
        bar = tqdm(asked, desc="evaluate", unit="model", disable=None, leave=False)
        models = [_measure(name, rows, column, n_resamples, seed) for name, rows, column in bar]
        y, p = labels_and_scores(labelled)
        shares = sorted({*CAPACITIES, capacity})
        alerts = {share: alerts_at_capacity(y, p, float(share)) for share in shares}
    return Evaluation(
        task=data.task,
        outcome=data.outcome,
        n_scored=scores.filter(pl.col("status") == SCORED).height,
        n_labelled=labelled.height,
        n_subjects=labelled[schema.SUBJECT_ID].n_unique(),
        models=tuple(models),
        alerts=alerts,
        capacity=capacity,
        subgroups=_subgroups(labelled, data.subgroups, seed),
        outcomes=compare_outcomes(data.task, scores, data.cohort),
        labelled=labelled,
        baseline_scores=baselines,
        note=" ".join(filter(None, (data.caution, _seen_in_training(data)))),
        subset=data.subset,
        too_few=_too_few(scores, labelled),
    )


def _too_few(scores: pl.DataFrame, labelled: pl.DataFrame) -> bool:
    """Whether the judged stays, or all scored ones, are of subjects that could be counted off."""
    asked = (labelled, scores.filter(pl.col("status") == SCORED))
    return any(0 < rows[schema.SUBJECT_ID].n_unique() < SMALLEST_CELL for rows in asked)


def _seen_in_training(data: EvaluationData) -> str:
    """Whether the figures rest on subjects that the model may have learned from."""
    if data.subset == schema.TRAIN:
        return (
            "All judged stays are of subjects of the training split, from whom the model may have "
            "learned. Judge others: --split held_out."
        )
    by_split: dict[str, int] = data.manifest.get("scored_by_split") or {}
    n_train = by_split.get(schema.TRAIN, 0) if data.subset is None else 0
    if not n_train:
        return ""
    return (
        f"{n_train:,} of {sum(by_split.values()):,} scored stays are of subjects of the training "
        "split, from whom the model may have learned. Judge others: --events EVENTS --split "
        "held_out."
    )


def labels_and_scores(
    rows: pl.DataFrame, column: str = "probability"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Labels and one column of scores as float64 vectors of shape `(n,)`."""
    y = rows[schema.BOOLEAN_VALUE].cast(pl.Float64).to_numpy()
    return y, rows[column].cast(pl.Float64).to_numpy()


def number(value: float | None, digits: int) -> str:
    """A number for a table; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def with_interval(interval: Interval, digits: int = 3) -> str:
    """`0.781 [0.760, 0.801]`, or a dash where the measure is not defined."""
    if not math.isfinite(interval.value):
        return NOTHING
    bounds = f"[{number(interval.low, digits)}, {number(interval.high, digits)}]"
    return f"{number(interval.value, digits)} {bounds}"


def _measure(
    name: str, rows: pl.DataFrame, column: str, n_resamples: int, seed: int
) -> ModelFigures:
    from tsfm.evaluation.bootstrap import bootstrap_interval, paired_difference
    from tsfm.evaluation.calibration import calibration_slope_intercept, ece
    from tsfm.evaluation.discrimination import auprc, auroc, brier

    y, p = labels_and_scores(rows, column)
    subjects = rows[schema.SUBJECT_ID].to_numpy()
    is_probability = bool(((p >= 0) & (p <= 1)).all())
    line = calibration_slope_intercept(y, p) if is_probability else None
    behind = None
    if column != "probability":
        ours = labels_and_scores(rows)[1]
        behind = paired_difference(auroc, subjects, y, ours, p, n_resamples, seed)
    return ModelFigures(
        name=name,
        n=rows.height,
        n_events=int(y.sum()),
        auroc=bootstrap_interval(auroc, subjects, y, p, n_resamples, seed),
        auprc=bootstrap_interval(auprc, subjects, y, p, n_resamples, seed),
        brier=bootstrap_interval(brier, subjects, y, p, n_resamples, seed)
        if is_probability
        else None,
        slope=line.slope if line and math.isfinite(line.slope) else None,
        intercept=line.intercept if line and math.isfinite(line.intercept) else None,
        ece=ece(y, p) if is_probability else None,
        auroc_behind=behind,
    )


def _baseline_rows(name: str, frame: pl.DataFrame, labelled: pl.DataFrame) -> pl.DataFrame:
    import pyarrow as pa

    stay = [schema.SUBJECT_ID, schema.PREDICTION_TIME]
    missing = [c for c in (*stay, "probability") if c not in frame.columns]
    if missing or frame.select(stay).is_duplicated().any():
        raise FormatError(
            f"lacks {', '.join(missing)}" if missing else "a stay has two scores",
            code="bad_baseline",
            place=name,
            remedy="One row a stay: subject_id, prediction_time, probability.",
        )
    columns = pa.schema(
        [(schema.SUBJECT_ID, pa.int64()), (schema.PREDICTION_TIME, pa.timestamp("us")),
         ("probability", pa.float64())]
    )  # fmt: skip
    other = pl.DataFrame(schema.align(frame.to_arrow(), columns, place=name)).select(
        *stay, pl.col("probability").fill_nan(None).alias("_other")
    )
    return labelled.join(other.drop_nulls("_other"), on=stay, how="inner").sort(stay)


def _subgroups(
    labelled: pl.DataFrame, groups: pl.DataFrame | None, seed: int
) -> pl.DataFrame | None:
    import pyarrow as pa

    from tsfm.evaluation.subgroups import PROBABILITY, subgroup_table

    if groups is None or not labelled.height:
        return None
    key = [schema.SUBJECT_ID]
    key += [schema.PREDICTION_TIME] if schema.PREDICTION_TIME in groups.columns else []
    # A row of totals, or of nobody.
    groups = groups.drop_nulls([name for name in key if name in groups.columns])
    kinds = pa.schema([schema.LABELS.field(name) for name in key])
    known = pl.DataFrame(schema.align(groups.to_arrow(), kinds, place="subgroups"))
    columns = [c for c in groups.columns if c not in key]
    known = known.hstack(groups.select(columns)).unique(maintain_order=True)
    if known.select(key).is_duplicated().any():
        raise FormatError(
            "a stay is in two groups of one column", code="bad_groups", place="subgroups",
            remedy="One row a subject, or a subject and prediction_time.",
        )  # fmt: skip
    joined = labelled.rename({"probability": PROBABILITY}).join(known, on=key, how="left")
    return subgroup_table(joined, columns, seed=seed)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
