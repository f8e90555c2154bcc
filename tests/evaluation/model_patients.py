"""A small untrained model and made-up patients, for tests of what a score rests on."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import torch

from tsfm import event_table
from tsfm.models.checkpoint import ModelDirectory
from tsfm.models.mamba import MambaConfig
from tsfm.models.timeline import TimelineConfig, TimelineModel
from tsfm.tokens.value_scale import fit_value_scale
from tsfm.tokens.vocabulary import fit_vocabulary

TASK = "readmission_30d"
ADMITTED = datetime(2150, 3, 1, 8)
LABS = ("LAB//LOINC//2160-0//mg/dL", "LAB//LOINC//2951-2//mmol/L", "LAB//LOINC//718-7//g/dL")
OTHERS = ("MEDICATION//RXNORM//4603", "DIAGNOSIS//ICD//10//I509", "PROCEDURE//SNOMED//1")
START, END = "HOSPITAL_ADMISSION//EMERGENCY", "HOSPITAL_DISCHARGE//HOME"


def make_events(subject: int, n: int, *, seed: int = 0, stays: int = 1) -> pl.DataFrame:
    """Stays of `n` events in all, with repeated codes, ties, lags and a birth."""
    rng = np.random.default_rng([seed, subject])
    each = n // stays
    rows: list[tuple] = [(subject, datetime(2080, 5, 1), "MEDS_BIRTH", None, None)]
    rows.append((subject, None, "GENDER//F", None, None))
    for stay in range(stays):
        start = ADMITTED + timedelta(days=60 * stay)
        rows.append((subject, start, START, None, start))
        for hours in np.cumsum(rng.choice([0.0, 0.3, 2.0, 7.5], each)):
            time = start + timedelta(hours=float(hours) + 0.2)
            is_lab = rng.random() < 0.7
            code = (LABS if is_lab else OTHERS)[rng.integers(3)]
            value = float(np.round(rng.normal(5, 2), 2)) if is_lab else None
            rows.append((subject, time, code, value, time + timedelta(minutes=40 * is_lab)))
        end = rows[-1][1] + timedelta(hours=2)
        rows.append((subject, end, END, None, end))
    names = ("subject_id", "time", "code", "numeric_value", "available_time")
    frame = pl.DataFrame(
        rows, schema={name: event_table.POLARS_EVENTS[name] for name in names}, orient="row"
    )
    full = frame.select(
        (pl.col(name) if name in names else pl.lit(None, dtype=kind)).alias(name)
        for name, kind in event_table.POLARS_EVENTS.items()
    ).with_columns(pl.col("available_time").fill_null(pl.col("time")))
    return event_table.sort_events(full)


def make_model(*, seed: int = 0, tasks: tuple[str, ...] = (TASK,)) -> ModelDirectory:
    """A model whose heads say something, with a calibration that is not the identity."""
    torch.manual_seed(seed)
    counts = {code: 50 for code in (*LABS, *OTHERS, START, END, "GENDER//F", "MEDS_BIRTH")}
    vocabulary = fit_vocabulary(counts)
    rng = np.random.default_rng(seed)
    ids = np.repeat([vocabulary.ids[code] for code in LABS], 100).astype(np.int32)
    values = rng.normal(5, 2, len(ids)).astype(np.float32)
    scale = fit_value_scale(
        ids, values, n_codes=len(vocabulary), subjects=np.arange(len(ids)) // 10
    )
    config = TimelineConfig(
        len(vocabulary), MambaConfig(d_model=16, n_layers=2, d_state=4), 24, tasks=tasks
    )
    model = TimelineModel(config)
    for task in tasks:
        torch.nn.init.normal_(model.task_head(task).score.weight, std=1.0)
    calibration = {task: {"slope": 0.8, "offset": -0.3} for task in tasks}
    return ModelDirectory(Path(), model.eval(), vocabulary, scale, calibration, {}, "ab" * 32)
