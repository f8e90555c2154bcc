"""A small scoring run with known outcomes, for the tests of summary and report."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from tsfm.reports.evaluation_data import EvaluationData


def make_run(n: int = 400, *, seed: int = 0, **changes: Any) -> EvaluationData:
    """`n` eligible stays of `n // 2` subjects, the first 10 not scored, 20 not eligible besides.

    Labels are drawn from the scores, so the scores are calibrated; death competes.
    """
    draw = np.random.default_rng(seed)
    p = draw.beta(1.5, 6, n)
    competing = (1 - p) * 0.05
    u = draw.random(n)
    event, died = u < p, (u >= p) & (u < p + competing)
    scored = np.arange(n) >= 10
    stays = pl.DataFrame(
        {
            "subject_id": np.arange(n) // 2 + 1,
            "prediction_time": [datetime(2150, 1, 1) + timedelta(hours=7 * i) for i in range(n)],
            "encounter_id": np.arange(n) + 9000,
        },
        schema_overrides={"prediction_time": pl.Datetime("us")},
    )

    def if_scored(values: Any) -> pl.Series:
        return pl.Series(np.where(scored, values, np.nan), dtype=pl.Float32).fill_nan(None)

    scores = stays.with_columns(
        task=pl.lit("readmission_30d"),
        status=pl.Series(np.where(scored, "scored", "not_scored").tolist()),
        reason=pl.Series([None if s else "no_event_known_by_then" for s in scored]),
        probability=if_scored(p),
        probability_competing=if_scored(competing),
        probability_none=if_scored(1 - p - competing),
        model_hash=pl.lit("ab" * 32),
    )
    cohort = stays.with_columns(
        eligible=pl.lit(True),
        reason=pl.lit(None, pl.String),
        outcome=pl.Series(
            np.where(event, "event", np.where(died, "competing", "censored")).tolist()
        ),
        outcome_days=pl.Series(np.where(event | died, draw.uniform(0, 30, n), 365.0)),
    )
    left_out = stays.head(20).with_columns(
        subject_id=pl.int_range(pl.len(), dtype=pl.Int64) + 100_000,
        eligible=pl.lit(False),
        reason=pl.lit("minor"),
        outcome=pl.lit(None, pl.String),
        outcome_days=pl.lit(None, pl.Float64),
    )
    groups = stays.select("subject_id", "prediction_time").with_columns(
        sex=pl.Series(np.where(np.arange(n) % 4 < 2, "F", "M").tolist()),
        race=pl.Series(["RARE" if i < 20 else "OTHER" if i < 120 else "WIDE" for i in range(n)]),
    )
    baseline = stays.select("subject_id", "prediction_time").with_columns(
        probability=pl.Series(np.clip(p + draw.normal(0, 0.12, n), 0.001, 0.999))
    )
    points = baseline.with_columns(probability=pl.Series(np.round(20 * p)))
    fields: dict[str, Any] = {
        "task": "readmission_30d",
        "model_name": "demo",
        "scores": scores,
        "labels": stays.select("subject_id", "prediction_time", boolean_value=pl.Series(event)),
        "cohort": pl.concat([cohort, left_out.select(cohort.columns)]),
        "subgroups": groups,
        "baselines": {"noisy": baseline, "LACE": points},
        "manifest": {"model_hash": "ab" * 32, "dataset": {"clock": "wall"}},
    }
    return EvaluationData(**{**fields, **changes})


@pytest.fixture(scope="session")
def run() -> EvaluationData:
    """The run of `make_run`; share it, it is never changed."""
    return make_run()


@pytest.fixture(scope="session")
def make() -> Any:
    """`make_run` itself, for runs that differ."""
    return make_run
