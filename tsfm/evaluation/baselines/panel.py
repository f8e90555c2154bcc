"""All baselines at once: fitted on the training split, answering for every stay.

LACE and HOSPITAL are points; a logistic line fitted on the training split turns them into
probabilities, so that they can be judged by more than their order. Boosting on count features is
fitted on the training split and stopped on the tuning split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from tsfm import event_table, schema
from tsfm.errors import InputError
from tsfm.evaluation.baselines.boosting import fit_boosting
from tsfm.evaluation.baselines.count_features import count_features
from tsfm.evaluation.baselines.hospital_score import hospital_scores
from tsfm.evaluation.baselines.lace import lace_scores
from tsfm.evaluation.calibration import fit_score_model

KEY = [schema.SUBJECT_ID, schema.PREDICTION_TIME]


def fit_panel(
    root: str | Path, cohort: pl.DataFrame, labels: pl.DataFrame, *, seed: int = 0
) -> dict[str, pl.DataFrame]:
    """Fit LACE, HOSPITAL and boosting, and predict for every labelled stay.

    Args:
        root: Root of the event table.
        cohort: Rows of `schema.COHORT`.
        labels: Rows of `schema.LABELS`; those of training and tuning subjects are learnt from.
        seed: Of the boosting.

    Returns:
        Baseline to subject_id, prediction_time, probability.

    Raises:
        InputError: No labelled stay in training or tuning.
    """
    splits = event_table.subject_splits(root)
    stays = (
        cohort.filter("eligible")
        .join(labels, on=KEY)
        .with_columns(
            pl.col(schema.SUBJECT_ID)
            .replace_strict(splits, default=schema.TRAIN, return_dtype=pl.String)
            .alias("split")
        )
    )
    parts = {name: (stays["split"] == name).to_numpy() for name in schema.SPLITS}
    if not parts[schema.TRAIN].any() or not parts[schema.TUNING].any():
        raise InputError(
            "no labelled stays to fit baselines on",
            code="empty_split",
            place="metadata/subject_splits.parquet",
            remedy="Baselines need labelled stays in training and tuning.",
        )
    y = stays[schema.BOOLEAN_VALUE].to_numpy().astype(np.float64)
    panel = {
        "LACE": _from_points(root, stays, y, parts[schema.TRAIN], "lace"),
        "HOSPITAL": _from_points(root, stays, y, parts[schema.TRAIN], "hospital"),
    }
    training_subjects = stays.filter(pl.col("split") == schema.TRAIN)[schema.SUBJECT_ID]
    features, _ = count_features(
        root, stays.select(cohort.columns), set(training_subjects.to_list())
    )
    model = fit_boosting(
        features[parts[schema.TRAIN]],
        y[parts[schema.TRAIN]],
        features[parts[schema.TUNING]],
        y[parts[schema.TUNING]],
        seed=seed,
    )
    panel["Boosted counts"] = stays.select(KEY).with_columns(
        probability=pl.Series(model.predict_probability(features))
    )
    return panel


def _from_points(
    root: str | Path, stays: pl.DataFrame, y: np.ndarray, training: np.ndarray, which: str
) -> pl.DataFrame:
    score = {"lace": lace_scores, "hospital": hospital_scores}[which]
    found: list[pl.DataFrame] = []
    for shard in event_table.scan_events(root):
        subjects = shard[schema.SUBJECT_ID].unique().implode()
        own = stays.filter(pl.col(schema.SUBJECT_ID).is_in(subjects))
        found.append(score(shard, own).select(*KEY, which))
    points = stays.select(KEY).join(pl.concat(found), on=KEY, how="left", maintain_order="left")
    values = points[which].to_numpy().astype(np.float64)
    line = fit_score_model(values[training], y[training])
    return stays.select(KEY).with_columns(probability=pl.Series(line.probability(values)))
