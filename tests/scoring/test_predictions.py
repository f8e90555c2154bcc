"""The tables of a scoring run: nothing twice, nothing missing that looks like a low risk."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tsfm import schema
from tsfm.errors import FormatError, InputError, IntegrityError
from tsfm.event_table import read_table
from tsfm.scoring.predictions import (
    check_scores,
    labelled_scores,
    read_scores,
    write_predictions,
    write_scores,
)

MODEL = "0" * 64


def make_scores(n: int, *, seed: int = 0, not_scored: int = 0) -> pl.DataFrame:
    """`n` stays of `n // 2 + 1` subjects; the last `not_scored` of them without a score."""
    draw = np.random.default_rng(seed)
    three = draw.dirichlet([1, 1, 4], size=n).astype(np.float32)
    scored = np.arange(n) < n - not_scored
    start = datetime(2150, 1, 1)
    frame = pl.DataFrame(
        {
            schema.SUBJECT_ID: np.arange(n) // 2 + 1,
            schema.PREDICTION_TIME: [start + timedelta(hours=37 * i) for i in range(n)],
            schema.ENCOUNTER_ID: np.arange(n) + 1000,
            "task": ["readmission_30d"] * n,
            "status": ["scored" if s else "not_scored" for s in scored],
            "reason": [None if s else "no_history" for s in scored],
            "probability": three[:, 0],
            "probability_competing": three[:, 1],
            "probability_none": three[:, 2],
            "model_hash": [MODEL] * n,
        },
        schema_overrides={"reason": pl.String},
    )
    return frame.with_columns(
        pl.when(pl.col("status") == "scored").then(pl.col(name)).alias(name)
        for name in ("probability", "probability_competing", "probability_none")
    )


def make_labels(scores: pl.DataFrame, *, seed: int = 1) -> pl.DataFrame:
    """An outcome for every stay, drawn from its probability."""
    draw = np.random.default_rng(seed)
    chance = scores["probability"].fill_null(0.2).to_numpy()
    return scores.select(schema.SUBJECT_ID, schema.PREDICTION_TIME).with_columns(
        pl.Series(schema.BOOLEAN_VALUE, draw.random(scores.height) < chance)
    )


def test_scores_come_back_as_written_in_the_order_of_their_key(tmp_path: Path) -> None:
    scores = make_scores(40, not_scored=3)
    write_scores(scores.sample(fraction=1, shuffle=True, seed=3), tmp_path / "scores.parquet")
    assert read_table(tmp_path / "scores.parquet").schema.equals(schema.SCORES)
    assert read_scores(tmp_path / "scores.parquet").equals(check_scores(scores))


def test_the_same_scores_give_the_same_bytes_whatever_their_order(tmp_path: Path) -> None:
    scores = make_scores(40)
    write_scores(scores, tmp_path / "a.parquet")
    write_scores(scores.reverse(), tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_two_rows_of_one_key_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    scores = make_scores(6)
    with pytest.raises(FormatError, match="duplicate_rows"):
        write_scores(pl.concat([scores, scores.head(1)]), tmp_path / "scores.parquet")
    assert not list(tmp_path.iterdir())


def test_the_same_stay_under_two_models_is_two_rows() -> None:
    scores = make_scores(6)
    both = pl.concat([scores, scores.with_columns(model_hash=pl.lit("f" * 64))])
    assert check_scores(both).height == 12


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"probability": pl.lit(None, pl.Float32)}, "bad_probability"),
        ({"probability": pl.lit(float("nan"), pl.Float32)}, "bad_probability"),
        ({"probability": pl.lit(1.2, pl.Float32)}, "bad_probability"),
        ({"probability_competing": pl.lit(-0.1, pl.Float32)}, "bad_probability"),
        ({"probability_competing": pl.lit(float("nan"), pl.Float32)}, "bad_probability"),
        ({"probability_none": pl.lit(1.0, pl.Float32)}, "bad_probability"),
        ({"status": pl.lit("skipped")}, "bad_status"),
        ({"status": pl.lit("not_scored"), "reason": pl.lit("x")}, "probability_not_scored"),
    ],
)
def test_a_row_that_could_mislead_is_refused(change: dict[str, pl.Expr], code: str) -> None:
    scores = make_scores(4)
    first = pl.int_range(pl.len()) == 0
    broken = scores.with_columns(
        pl.when(first).then(value).otherwise(pl.col(name)).alias(name)
        for name, value in change.items()
    )
    with pytest.raises(FormatError, match=code):
        check_scores(broken)


def test_a_row_that_is_not_scored_needs_a_reason() -> None:
    scores = make_scores(4, not_scored=1).with_columns(reason=pl.lit(" "))
    with pytest.raises(FormatError, match="no_reason"):
        check_scores(scores)


def test_a_flipped_byte_is_seen_on_reading(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(make_scores(200), path)
    raw = bytearray(path.read_bytes())
    raw[60] ^= 0xFF
    path.write_bytes(bytes(raw))
    with pytest.raises((IntegrityError, FormatError)):
        read_scores(path)


def test_predictions_are_the_scored_stays_with_a_known_label(tmp_path: Path) -> None:
    scores = make_scores(60, not_scored=5)
    labels = make_labels(scores).gather_every(2)
    n = write_predictions(scores, labels, tmp_path / "predictions.parquet", threshold=0.2)
    table = read_table(tmp_path / "predictions.parquet")
    assert table.schema.equals(schema.PREDICTIONS)
    assert n == table.num_rows == labels.height - 2  # rows 56 and 58 have a label but no score
    for row in table.to_pylist():
        assert row["predicted_boolean_value"] == (
            row["predicted_boolean_probability"] >= np.float32(0.2)
        )


def test_without_a_threshold_no_alert_is_invented(tmp_path: Path) -> None:
    scores = make_scores(10)
    write_predictions(scores, make_labels(scores), tmp_path / "p.parquet")
    table = read_table(tmp_path / "p.parquet")
    assert table["predicted_boolean_value"].null_count == 10


def test_a_threshold_outside_zero_and_one_is_refused(tmp_path: Path) -> None:
    scores = make_scores(4)
    with pytest.raises(InputError, match="bad_threshold"):
        write_predictions(scores, make_labels(scores), tmp_path / "p.parquet", threshold=20.0)


def test_two_labels_of_one_stay_are_refused() -> None:
    scores = make_scores(4)
    labels = make_labels(scores)
    with pytest.raises(FormatError, match="duplicate_rows"):
        labelled_scores(scores, pl.concat([labels, labels.head(1)]))


def test_scores_of_two_models_cannot_be_evaluated_as_one() -> None:
    scores = make_scores(4)
    both = pl.concat([scores, scores.with_columns(model_hash=pl.lit("f" * 64))])
    with pytest.raises(InputError, match="mixed_scores"):
        labelled_scores(both, make_labels(scores))


def test_meds_evaluation_accepts_the_table_and_agrees_on_its_figures(tmp_path: Path) -> None:
    pytest.importorskip("meds_evaluation")
    from meds_evaluation.evaluate import evaluate_binary_classification
    from meds_evaluation.schema import PredictionSchema
    from sklearn.metrics import brier_score_loss, roc_auc_score

    scores = make_scores(300, not_scored=10)
    labels = make_labels(scores)
    write_predictions(scores, labels, tmp_path / "p.parquet", threshold=0.2)
    table = read_table(tmp_path / "p.parquet")
    PredictionSchema.validate(table)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    theirs = evaluate_binary_classification(frame)["samples_equally_weighted"]
    kept = labelled_scores(scores, labels)
    y, p = kept[schema.BOOLEAN_VALUE].to_numpy(), kept["probability"].to_numpy()
    assert theirs["roc_auc_score"] == pytest.approx(roc_auc_score(y, p), abs=1e-12)
    assert theirs["brier_score"] == pytest.approx(brier_score_loss(y, p), abs=1e-6)  # float32


def test_the_command_of_meds_evaluation_reads_the_file(tmp_path: Path) -> None:
    pytest.importorskip("meds_evaluation")
    from sklearn.metrics import roc_auc_score

    scores = make_scores(120)
    labels = make_labels(scores)
    write_predictions(scores, labels, tmp_path / "p.parquet", threshold=0.2)
    command = [
        sys.executable,
        "-m",
        "meds_evaluation",
        f"predictions_path={tmp_path / 'p.parquet'}",
        f"output_file={tmp_path / 'out.json'}",
        f"hydra.run.dir={tmp_path}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    theirs = json.loads((tmp_path / "out.json").read_text())["samples_equally_weighted"]
    y, p = labels[schema.BOOLEAN_VALUE].to_numpy(), scores["probability"].to_numpy()
    assert theirs["roc_auc_score"] == pytest.approx(roc_auc_score(y, p), abs=1e-12)
