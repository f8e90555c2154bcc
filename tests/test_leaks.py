"""No score of any kind, source or task moves with what became known after its prediction time.

Each source gives a few dozen subjects. Of every task with eligible stays there, some are audited
and scored by everything that scores: a timeline model at random weights, the features of both
baselines of boosted trees, LACE, HOSPITAL and the early warning scores. The streams of the token
store are audited themselves, to the bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from tsfm import event_table, schema
from tsfm.batches.dataset import CohortIndex, batches_of
from tsfm.evaluation.baselines.count_features import count_features
from tsfm.evaluation.baselines.early_warning import mews_scores, news2_scores
from tsfm.evaluation.baselines.hospital_score import hospital_scores
from tsfm.evaluation.baselines.lace import lace_scores
from tsfm.evaluation.baselines.trend_features import trend_features
from tsfm.evaluation.baselines.window_features import window_features
from tsfm.evaluation.leak_audit import (
    ADDED,
    CODES,
    KINDS,
    TIMES,
    VALUES,
    Scorer,
    audit_leaks,
    stream_scorer,
)
from tsfm.models.mamba import MambaConfig
from tsfm.models.timeline import TimelineConfig, TimelineModel
from tsfm.tasks.comorbidity import COMORBIDITY, hide_history
from tsfm.tasks.registry import CLAIM_TASKS, CLASS_TASKS, TASKS
from tsfm.tokens.event_tokens import tokenize_events
from tsfm.tokens.value_scale import fit_value_scale
from tsfm.tokens.vocabulary import fit_vocabulary

from .leak_sources import ALL_TASKS, KEY, MADE, REAL, LeakSource, small

IN_PLACE = (VALUES, CODES, TIMES)
MODEL, HIDDEN_MODEL = "timeline model", "timeline model, history hidden"
ROUNDS: dict[str, dict[float, list[tuple[str, ...]]]] = {
    MODEL: {0.0: [IN_PLACE], 1e-4: [KINDS]},
    HIDDEN_MODEL: {0.0: [(VALUES, TIMES)], 1e-4: [KINDS]},
}
"""Rounds of the scorers whose sums are done in another order where a record has more or fewer
tokens (other codes hide more or fewer): bit for bit as long as it keeps its length, else nearly."""

POINTS: dict[str, Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame]] = {
    "LACE": lace_scores,
    "HOSPITAL": hospital_scores,
    "NEWS2": news2_scores,
    "MEWS": mews_scores,
}
HAZARD_TASKS = (*TASKS, *CLAIM_TASKS)
SEEN_TASKS = tuple(name for name in ALL_TASKS if name != COMORBIDITY.name)


@pytest.fixture(scope="module")
def source(
    tmp_path_factory: pytest.TempPathFactory, data_dir: Callable[[str], Path]
) -> Callable[[str], LeakSource]:
    """Return a function that reads a source once."""
    done: dict[str, LeakSource] = {}

    def read(name: str) -> LeakSource:
        if name not in done:
            work = tmp_path_factory.mktemp("source")
            if name in MADE:
                root = MADE[name](work)
            else:
                folder, ingest = REAL[name]
                root = ingest(data_dir(folder), work)
            done[name] = small(root, work)
        return done[name]

    return read


def model_scorer(source: LeakSource, tasks: tuple[str, ...]) -> Scorer:
    """What some heads of a model at random weights say at each row, side by side."""
    store = source.tokens
    torch.manual_seed(0)
    sizes = tuple(len(task.classes) for task in CLASS_TASKS.values())
    model = TimelineModel(
        TimelineConfig(
            len(store.vocabulary), MambaConfig(d_model=16, n_layers=2, d_state=4), 16,
            tasks=HAZARD_TASKS, class_tasks=tuple(CLASS_TASKS), n_classes=sizes,
        )
    ).eval()  # fmt: skip
    for name in HAZARD_TASKS:
        torch.nn.init.normal_(model.task_head(name).score.weight)
    for name in CLASS_TASKS:
        torch.nn.init.normal_(model.class_head(name).logits.weight)

    @torch.inference_mode()
    def score(events: pl.DataFrame, cohort: pl.DataFrame) -> np.ndarray:
        index = CohortIndex.create(cohort, outcomes=False)
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        own = pl.col(schema.SUBJECT_ID).is_in(cohort[schema.SUBJECT_ID].unique().implode())
        tokens = tokenize_events(events.filter(own), store.vocabulary, store.scale)
        for batch in batches_of(tokens, store.scale, max_tokens=4096):
            points, hidden = index.points_in(batch), model(batch)
            answers = [
                model.class_head(name)(hidden[points.position], points.elapsed_hours)
                if name in CLASS_TASKS
                else model.log_hazard(name, hidden, points.position, points.elapsed_hours)
                for name in tasks
            ]
            parts.append(
                (points.row.numpy(), torch.cat([a.flatten(1) for a in answers], 1).numpy())
            )
        found = np.full((cohort.height, parts[0][1].shape[1]), np.nan, np.float32)
        for rows, answers in parts:
            found[rows] = answers
        return found

    return score


def hidden_scorer(source: LeakSource) -> Scorer:
    """The same of the task that hides the history: it is asked of what `hide_history` leaves."""
    score = model_scorer(source, (COMORBIDITY.name,))
    return lambda events, cohort: score(hide_history(events), cohort)


def points_scorer(points: Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame]) -> Scorer:
    """All columns of a score made of points."""

    def score(events: pl.DataFrame, cohort: pl.DataFrame) -> np.ndarray:
        found = cohort.select(KEY).join(
            points(events, cohort), on=KEY, how="left", maintain_order="left"
        )
        return found.drop(KEY).cast(pl.Float64).fill_null(float("nan")).to_numpy()

    return score


def window_scorer(source: LeakSource) -> Scorer:
    """Features of windows, chosen on the taught stays."""
    return _features(source, lambda events, rows, taught: window_features(
        events, rows, taught, min_subjects=3))  # fmt: skip


def count_scorer(source: LeakSource) -> Scorer:
    """Count features and slopes, chosen on the taught stays."""

    def features(
        events: pl.DataFrame, rows: pl.DataFrame, taught: list[int]
    ) -> tuple[np.ndarray, list[str]]:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "data").mkdir()
            event_table.write_events(events, Path(folder) / "data" / "0.parquet")
            counts, slopes = (
                describe(folder, rows, taught) for describe in (count_features, trend_features)
            )
        return np.concatenate([counts[0], slopes[0]], axis=1), [*counts[1], *slopes[1]]

    return _features(source, features)


def _features(source: LeakSource, features: Callable[..., tuple[np.ndarray, list[str]]]) -> Scorer:
    taught = source.taught[schema.SUBJECT_ID].unique().to_list()

    def score(events: pl.DataFrame, cohort: pl.DataFrame) -> np.ndarray:
        rows = pl.concat([cohort, source.taught.select(cohort.columns)])
        found, names = features(events, rows, taught)
        assert len(names) > 20
        return found[: cohort.height]

    return score


SCORERS: dict[str, Callable[[LeakSource], Scorer]] = {
    MODEL: lambda source: model_scorer(source, SEEN_TASKS),
    HIDDEN_MODEL: hidden_scorer,
    "window features": window_scorer,
    "count features and slopes": count_scorer,
    "token store": lambda source: stream_scorer(source.tokens.path),
    **{name: lambda _, points=points: points_scorer(points) for name, points in POINTS.items()},
}

SOURCES = [*MADE, *(pytest.param(name, marks=pytest.mark.slow) for name in REAL)]


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("name", SOURCES)
def test_no_score_moves_with_what_became_known_later(
    source: Callable[[str], LeakSource], name: str, scorer: str
) -> None:
    found = source(name)
    score = SCORERS[scorer](found)
    for tolerance, own in ROUNDS.get(scorer, {0.0: [IN_PLACE, KINDS]}).items():
        audit = audit_leaks(found.events, found.audited, score, rounds=own, tolerance=tolerance)
        assert audit.is_clean, audit.leaks
        assert audit.n_altered[ADDED if KINDS in own else TIMES] > 50


@pytest.mark.parametrize("name", SOURCES)
def test_every_task_that_a_source_can_answer_is_audited(
    source: Callable[[str], LeakSource], name: str
) -> None:
    found = source(name)
    expected = {*TASKS, *CLAIM_TASKS, *CLASS_TASKS}
    if not name.startswith("simulated hospital"):
        expected -= set(CLAIM_TASKS)
    if name.endswith("PhysioNet 2012"):
        expected.remove(COMORBIDITY.name)  # the source codes no diagnoses
    assert set(found.tasks) == expected


@pytest.mark.parametrize("name", SOURCES)
def test_a_scorer_that_peeks_at_one_later_event_is_caught_on_every_source(
    source: Callable[[str], LeakSource], name: str
) -> None:
    """The smallest leak of a timeline model: the state one token after the last known one."""
    found = source(name)

    def peek(events: pl.DataFrame, cohort: pl.DataFrame) -> np.ndarray:
        tokens = tokenize_events(events, found.tokens.vocabulary, found.tokens.scale)
        index = CohortIndex.create(cohort, outcomes=False)
        (batch,) = batches_of(tokens, found.tokens.scale, max_tokens=10**9)
        points = index.points_in(batch)
        later = np.zeros((cohort.height, 2))
        place = torch.clamp(points.position + 1, max=batch.n_tokens - 1)
        later[points.row.numpy()] = torch.stack([batch.code[place], batch.value[place]], 1).numpy()
        return later

    leaks = audit_leaks(found.events, found.audited, peek, rounds=[KINDS]).leaks
    assert leaks.select(KEY).unique().height > 0.8 * found.audited.height


@pytest.mark.parametrize("year", [1971, 2024, 2107, 2160, 2214])
def test_a_model_sees_the_moment_it_is_asked_at_and_not_the_next_microsecond(year: int) -> None:
    """Seconds since 1970 as floats are coarser than half a microsecond from 2106 on."""
    now = datetime(year, 5, 9, 17, 15, 0, 123_456)
    times = [now + timedelta(microseconds=k) for k in (-1, 0, 1, 2)]
    events = pl.DataFrame(
        {"subject_id": [7] * 4, "time": times, "code": list("abcd"), "available_time": times}
    )
    full = events.select(
        (pl.col(n) if n in events.columns else pl.lit(None)).cast(kind).alias(n)
        for n, kind in event_table.POLARS_EVENTS.items()
    )
    vocabulary = fit_vocabulary(dict.fromkeys("abcd", 50))
    scale = fit_value_scale(
        np.zeros(0, np.int32), np.zeros(0, np.float32), n_codes=len(vocabulary),
        subjects=np.zeros(0, np.int64),
    )  # fmt: skip
    tokens = tokenize_events(full, vocabulary, scale)
    asked = pl.DataFrame({"subject_id": [7] * 4, "prediction_time": times}).with_columns(
        outcome=pl.lit("censored"), outcome_days=0.0
    )
    (batch,) = batches_of(tokens, scale, max_tokens=10)
    assert CohortIndex.create(asked).points_in(batch).position.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["simulated hospital", "made-up MIMIC-IV"])
@pytest.mark.parametrize("scorer", [MODEL, "window features", "count features and slopes", "LACE"])
def test_reading_facts_at_the_time_of_which_they_tell_is_caught(
    source: Callable[[str], LeakSource], name: str, scorer: str
) -> None:
    """The leak of systems that know no `available_time`: a late diagnosis stands at its stay."""
    found = source(name)
    score = SCORERS[scorer](found)

    def naive(events: pl.DataFrame, cohort: pl.DataFrame) -> np.ndarray:
        undated = events.with_columns(pl.col(schema.TIME).alias(schema.AVAILABLE_TIME))
        return score(undated, cohort)

    assert not audit_leaks(found.events, found.audited, naive, rounds=[KINDS]).is_clean
