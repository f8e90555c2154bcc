"""Score every eligible index stay of an event table, shard by shard.

The same road as training: events, tokens in the order of knowing, one packed forward pass, a head.
A stay is scored from the last token known at its prediction time; nothing later can reach it. Every
eligible stay comes out exactly once: scored, or not scored with a reason, because a missing score
must never look like a low risk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from tsfm import event_table, schema
from tsfm.batches.dataset import CohortIndex, batches_of
from tsfm.evaluation.recalibration import Recalibration
from tsfm.kernels.heap import keep_freed_memory
from tsfm.models.checkpoint import ModelDirectory
from tsfm.tasks.cohorts import Followup, Task, follow_up_of
from tsfm.tasks.registry import labels_of, task_named
from tsfm.tokens.signal_vectors import SignalVectors, vectors_of
from tsfm.tokens.vocabulary import EncodingCounts

NO_KNOWN_EVENT = "no_event_known_by_then"
NO_KNOWN_CODE = "no_code_known_to_the_model"


@dataclass(frozen=True)
class ScoredCohort:
    """What a scoring run found.

    Attributes:
        task: The question.
        scores: Rows of `schema.SCORES`, one an eligible index stay.
        cohort: Rows of `schema.COHORT`, every index stay with its reason or outcome.
        labels: Rows of `schema.LABELS`, where the answer is known.
        counts: How faithfully the codes were encoded.
    """

    task: Task
    scores: pl.DataFrame
    cohort: pl.DataFrame
    labels: pl.DataFrame
    counts: EncodingCounts

    def _repr_html_(self) -> str:
        n = self.scores.height
        scored = self.scores.filter(pl.col("status") == "scored").height
        return (
            f"<b>{self.task.description}</b><p>{n:,} eligible stays, {scored:,} scored</p>"
            + self.scores.head(10)._repr_html_()
        )


def score_events(
    model: ModelDirectory,
    root: str | Path,
    task_name: str,
    *,
    followup: Followup | None = None,
    signals: SignalVectors | None = None,
    max_tokens: int = 16384,
    progress: bool | None = None,
) -> ScoredCohort:
    """Score an event table with a fine-tuned model.

    Args:
        model: Loaded model directory.
        root: Root of the event table.
        task_name: Task of the model.
        followup: Instead of what the data set says; touches the known outcomes, never the scores.
        signals: Vectors of the waveforms; by default those of the data set.
        max_tokens: Tokens a batch.
        progress: Show a bar; None: on a terminal only.

    Raises:
        InputError: The model reads waveforms, and those of the data set are not encoded; or its
            calibration is none.
        ModelMismatch: The model was not fine-tuned for the task, or the waveforms were encoded by
            another encoder.
    """
    keep_freed_memory()
    task = task_named(task_name)
    model.model.task_head(task.name)
    followup = followup or follow_up_of(root)
    signals = signals or vectors_of(root)
    counts = EncodingCounts()
    cohorts: list[pl.DataFrame] = []
    scores: list[pl.DataFrame] = []
    bar = tqdm(
        event_table.shard_paths(root), desc=f"score {task.name}", unit="shard",
        disable=None if progress is None else not progress, leave=False,
    )  # fmt: skip
    for path in bar:
        events = event_table.read_events(path)
        cohort = task.find_cohort(events, followup, task.rules)
        cohorts.append(cohort)
        scores.append(_score_shard(model, task, events, cohort, counts, max_tokens, signals))
    everyone = pl.concat(cohorts).sort(schema.SUBJECT_ID, "start_time", maintain_order=True)
    return ScoredCohort(
        task=task,
        scores=pl.concat(scores).sort(schema.SUBJECT_ID, schema.PREDICTION_TIME),
        cohort=everyone,
        labels=labels_of(everyone, task),
        counts=counts,
    )


def _score_shard(
    model: ModelDirectory,
    task: Task,
    events: pl.DataFrame,
    cohort: pl.DataFrame,
    counts: EncodingCounts,
    max_tokens: int,
    signals: SignalVectors | None,
) -> pl.DataFrame:
    index_stays = cohort.filter("eligible")
    subjects = index_stays[schema.SUBJECT_ID].unique()
    own = events.filter(pl.col(schema.SUBJECT_ID).is_in(subjects.implode()))
    tokens = model.tokenize(own, signals=signals)
    counts.add(tokens.counts)
    index = CohortIndex.create(index_stays, outcomes=False)
    incidence = np.full((index_stays.height, 2), np.nan, np.float32)
    n_known = np.zeros(index_stays.height, np.int64)
    head = model.model.task_head(task.name)
    with torch.inference_mode():
        for batch in batches_of(tokens, model.scale, max_tokens=max_tokens):
            points = index.points_in(batch)
            if len(points) == 0:
                continue
            log_hazard = model.model.log_hazard(
                task.name, model.model(batch), points.position, points.elapsed_hours
            )
            rows = points.row.numpy()
            incidence[rows] = head.cumulative_incidence(log_hazard, task.horizon_days).numpy()
            n_known[rows] = _known_codes_by(batch.code.numpy(), batch.cu_seqlens.numpy(),
                                            points.position.numpy())  # fmt: skip
    return _score_rows(model, task, index_stays, incidence, n_known)


def _known_codes_by(
    code: NDArray[np.int64], borders: NDArray[np.int64], position: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Tokens of a known code from each subject's first one to each position."""
    known = np.concatenate([[0], np.cumsum(code > 0)])
    start = borders[np.searchsorted(borders, position, side="right") - 1]
    return known[position + 1] - known[start]


def _score_rows(
    model: ModelDirectory,
    task: Task,
    index_stays: pl.DataFrame,
    incidence: NDArray[np.float32],
    n_known: NDArray[np.int64],
) -> pl.DataFrame:
    event, competing = incidence[:, 0].astype(float), incidence[:, 1].astype(float)
    none = np.clip(1.0 - event - competing, 0.0, 1.0)  # rounding goes below nought
    raw = event if task.positive == "event" else none
    positive = Recalibration.from_dict(model.calibration.get(task.name, {})).apply(raw)
    # What the recalibration gives to one outcome it takes from the others in proportion.
    shrink = np.divide(1 - positive, 1 - raw, out=np.ones_like(raw), where=raw < 1)
    competing = competing * shrink
    none = none * shrink if task.positive == "event" else positive
    reason = np.where(
        np.isnan(raw), NO_KNOWN_EVENT, np.where(n_known == 0, NO_KNOWN_CODE, "")
    ).tolist()
    scored = np.array([r == "" for r in reason])

    def column(values: NDArray[np.float64]) -> pl.Series:
        return pl.Series(np.where(scored, values, np.nan), dtype=pl.Float32).fill_nan(None)

    return index_stays.select(
        schema.SUBJECT_ID,
        schema.PREDICTION_TIME,
        schema.ENCOUNTER_ID,
        pl.lit(task.name).alias("task"),
        pl.Series("status", np.where(scored, "scored", "not_scored").tolist(), dtype=pl.String),
        pl.Series("reason", [r or None for r in reason], dtype=pl.String),
        column(positive).alias("probability"),
        column(competing).alias("probability_competing"),
        column(none).alias("probability_none"),
        pl.lit(model.hash).alias("model_hash"),
    )
