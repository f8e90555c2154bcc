"""Real records take the whole road: three exports of one hospital, scored and trained on.

The 100 patients of the MIMIC-IV demo exist as FHIR, as tables and as MEDS. A model of a simulated
hospital knows few of their codes; it must say so and still account for every discharge. A model
trained on the records themselves must do the same, and nothing that became known after a prediction
time may move a score. The figures of such models mean nothing: the roads are what is tested.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tsfm import event_table, schema
from tsfm.event_table import read_table
from tsfm.ingest.fhir_ndjson import ingest_fhir
from tsfm.ingest.meds_dataset import ingest_meds
from tsfm.ingest.mimic4 import ingest_mimic4
from tsfm.models.checkpoint import ModelDirectory, load_model
from tsfm.models.mamba import MambaConfig
from tsfm.scoring.batch_score import score_events
from tsfm.scoring.risk_assessment import RiskBands
from tsfm.scoring.run_manifest import RunManifest
from tsfm.scoring.score_run import run_scoring
from tsfm.tasks.registry import write_labels
from tsfm.tokens.token_store import build_token_store
from tsfm.training.finetune import FinetuneConfig, finetune
from tsfm.training.loop import TrainConfig
from tsfm.training.pretrain import pretrain

TASK = "readmission_30d"
KEY = [schema.SUBJECT_ID, schema.PREDICTION_TIME]
BANDS = RiskBands(0.05, 0.15, 0.30)
SOURCES: dict[str, tuple[str, Callable[..., Any]]] = {
    "fhir": ("mimic-iv-fhir-demo/fhir", ingest_fhir),
    "tables": ("mimic-iv-demo", ingest_mimic4),
    "meds": ("mimic-iv-demo-meds", ingest_meds),
}
N_STAYS, N_ELIGIBLE = 275, 247

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Scored:
    """An event table that was labelled and scored."""

    events: Path
    cohort: pl.DataFrame
    labels: pl.DataFrame
    manifest: RunManifest
    run: Path

    @property
    def scores(self) -> pl.DataFrame:
        """One row an eligible stay."""
        return pl.read_parquet(self.run / "scores.parquet")


def label(events: Path, out: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    summary = write_labels(events, TASK, out)
    return pl.read_parquet(summary.paths["cohort"]), pl.read_parquet(summary.paths["labels"])


@pytest.fixture(scope="module")
def scored(
    data_dir: Callable[[str], Path], tiny_hospital: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Scored]:
    """Return a function that takes a source the whole road, once, with the simulation's model."""
    done: dict[str, Scored] = {}

    def score(name: str) -> Scored:
        if name not in done:
            folder, ingest = SOURCES[name]
            source = data_dir(folder)
            root = tmp_path_factory.mktemp(name)
            ingest(source, root / "events", progress=False)
            cohort, labels = label(root / "events", root / "labels")
            run = root / "run"
            manifest = run_scoring(tiny_hospital.model, root / "events", TASK, run, bands=BANDS)
            done[name] = Scored(root / "events", cohort, labels, manifest, run)
        return done[name]

    return score


def check_run(found: Scored) -> None:
    """Every eligible stay has one row: scored, or not scored with a reason."""
    eligible = found.cohort.filter("eligible").select(KEY).sort(KEY)
    scores = found.scores
    assert scores.select(KEY).sort(KEY).equals(eligible)
    is_scored = pl.col("status") == "scored"
    assert scores.filter(is_scored == pl.col("reason").is_not_null()).is_empty()
    assert scores.filter(is_scored == pl.col("probability").is_null()).is_empty()
    counts = json.loads((found.run / "run.json").read_text())["counts"]
    assert counts["scored"] + sum(counts["not_scored"].values()) == eligible.height
    assert counts["scored"] == scores.filter(is_scored).height
    assert sum(counts["not_eligible"].values()) + eligible.height == found.cohort.height
    resources = (found.run / "risk_assessments.ndjson").read_text().splitlines()
    assert len(resources) == counts["scored"]


@pytest.mark.parametrize("source", SOURCES)
def test_every_eligible_discharge_is_accounted_for(
    scored: Callable[[str], Scored], source: str
) -> None:
    found = scored(source)
    check_run(found)
    assert found.cohort.height == N_STAYS
    assert found.scores.height == N_ELIGIBLE
    assert found.manifest.counts.scored == N_ELIGIBLE


@pytest.mark.parametrize("source", SOURCES)
def test_codes_that_the_model_does_not_know_are_counted(
    scored: Callable[[str], Scored], tiny_hospital: Any, source: str
) -> None:
    found = scored(source)
    counts = json.loads((found.run / "run.json").read_text())["unknown_codes"]
    asked = set(found.cohort.filter("eligible")[schema.SUBJECT_ID])
    events = pl.concat(event_table.scan_events(found.events))
    read = events.filter(pl.col(schema.SUBJECT_ID).is_in(list(asked)))[schema.CODE]
    known = set(load_model(tiny_hospital.model).vocabulary.codes)
    assert counts["tokens"] == len(read)
    exact = sum(n for code, n in read.value_counts().iter_rows() if code in known)
    assert counts["mapped_to_parent"] + counts["unknown"] == len(read) - exact
    assert counts["unknown"] > 0  # the simulation knows nothing of, for example, culture results


def test_three_exports_of_one_hospital_ask_and_answer_the_same(
    scored: Callable[[str], Scored],
) -> None:
    fhir, *others = (scored(source) for source in SOURCES)
    columns = [*KEY, "start_time", "end_time", "eligible", "reason", "outcome"]
    for other in others:
        assert other.cohort.select(columns).equals(fhir.cohort.select(columns))
        assert other.labels.equals(fhir.labels)


@pytest.fixture(scope="module")
def own_model(scored: Callable[[str], Scored], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model pretrained and fine-tuned on the FHIR demo itself."""
    found = scored("fhir")
    root = tmp_path_factory.mktemp("own")
    build_token_store(found.events, root / "tokens")
    train = TrainConfig(epochs=1, max_tokens=16384)
    backbone = MambaConfig(d_model=16, n_layers=1, d_state=4)
    pretrain(root / "tokens", root / "pretrained", backbone=backbone, config=train)
    cohort = pl.from_arrow(read_table(found.run / "cohort.parquet"))
    assert isinstance(cohort, pl.DataFrame)
    config = FinetuneConfig(train=train)
    finetune(root / "pretrained", root / "tokens", cohort, TASK, root / "model", config=config)
    return root / "model"


def test_a_model_trained_on_the_records_scores_every_eligible_discharge(
    scored: Callable[[str], Scored], own_model: Path, tmp_path: Path
) -> None:
    found = scored("fhir")
    manifest = run_scoring(own_model, found.events, TASK, tmp_path, bands=BANDS)
    check_run(Scored(found.events, found.cohort, found.labels, manifest, tmp_path))
    assert manifest.counts.scored == N_ELIGIBLE
    # Its vocabulary is of these records: what is rare or of other splits takes a parent's id.
    assert manifest.unknown_codes.unknown < 0.01 * manifest.unknown_codes.tokens
    other = found.manifest.unknown_codes
    assert manifest.unknown_codes.mapped_to_parent < other.mapped_to_parent


def medians(scores: pl.DataFrame) -> pl.DataFrame:
    """Each subject's cut: the middle one of its own prediction times (dates are shifted)."""
    middle = pl.col(schema.PREDICTION_TIME).sort().get(pl.len() // 2 - (pl.len() % 2 == 0))
    return scores.group_by(schema.SUBJECT_ID).agg(middle.alias("cut"))


def rewrite(
    root: Path, out: Path, cuts: pl.DataFrame, change: Callable[[pl.DataFrame], pl.DataFrame]
) -> None:
    """Write a changed copy of an event table; `change` finds each subject's `cut` beside it."""
    with event_table.EventWriter(out, n_shards=4) as writer:
        for shard in event_table.scan_events(root):
            beside = shard.join(cuts, on=schema.SUBJECT_ID, how="left", maintain_order="left")
            writer.add(change(beside))
        writer.finish(
            dataset=event_table.dataset_facts(root),
            subject_splits=event_table.subject_splits(root),
            subject_ids=event_table.subject_ids(root),
        )


LATER = pl.col(schema.AVAILABLE_TIME) > pl.col("cut")
# What says which stays there are: changing it would change the questions, not the answers.
STAYS = pl.col(schema.CODE).str.contains("^(HOSPITAL|ICU|ED|MEDS)_")


def scramble(shard: pl.DataFrame) -> pl.DataFrame:
    """Make every later fact another one, of another value."""
    drawn = shard.filter(~STAYS)[schema.CODE].sample(shard.height, with_replacement=True, seed=5)
    return shard.with_columns(
        pl.when(LATER & ~STAYS).then(drawn).otherwise(schema.CODE).alias(schema.CODE),
        *(
            pl.when(LATER).then(pl.lit(other)).otherwise(name).alias(name)
            for name, other in ((schema.NUMERIC_VALUE, -99.0), (schema.TEXT_VALUE, "x"))
        ),
    )


def scores_around(
    model: ModelDirectory, before: pl.DataFrame, changed: Path, cuts: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Scores before and after the change side by side, until each subject's cut and after it."""
    after = score_events(model, changed, TASK, progress=False).scores
    columns = [*KEY, "status", "probability", "probability_competing", "probability_none"]
    both = before.select(columns).join(after.select(columns), on=KEY, suffix="_after")
    both = both.join(cuts, on=schema.SUBJECT_ID)
    early = pl.col(schema.PREDICTION_TIME) <= pl.col("cut")
    return both.filter(early), both.filter(~early)


@pytest.mark.parametrize("trained_on", ["simulation", "records"])
def test_leak_audit_later_facts_changed_and_no_earlier_score_moves(
    scored: Callable[[str], Scored],
    tiny_hospital: Any,
    own_model: Path,
    tmp_path: Path,
    trained_on: str,
) -> None:
    root = scored("fhir").events
    model = load_model(tiny_hospital.model if trained_on == "simulation" else own_model)
    before = score_events(model, root, TASK, progress=False).scores
    cuts = medians(before)
    rewrite(root, tmp_path / "changed", cuts, scramble)
    early, late = scores_around(model, before, tmp_path / "changed", cuts)
    assert early.height >= before[schema.SUBJECT_ID].n_unique()
    assert early.height + late.height == before.height
    for name in ("status", "probability", "probability_competing", "probability_none"):
        assert early[name].equals(early[f"{name}_after"], check_names=False)  # bit for bit
    moved = late.filter(pl.col("probability") != pl.col("probability_after"))
    assert moved.height > 0.9 * late.height  # the change is felt where it may be


def test_leak_audit_a_record_cut_off_scores_as_if_it_went_on(
    scored: Callable[[str], Scored], own_model: Path, tmp_path: Path
) -> None:
    """What the hospital would have known that day is all that the score of that day needs."""
    root = scored("fhir").events
    model = load_model(own_model)
    before = score_events(model, root, TASK, progress=False).scores
    cuts = medians(before)
    rewrite(root, tmp_path / "cut", cuts, lambda shard: shard.filter((~LATER).fill_null(True)))
    early, late = scores_around(model, before, tmp_path / "cut", cuts)
    assert late.is_empty()
    assert early.height >= 0.95 * cuts.height
    np.testing.assert_allclose(
        early["probability"].to_numpy(), early["probability_after"].to_numpy(), rtol=1e-4
    )


def test_scoring_again_gives_the_same_bytes(
    scored: Callable[[str], Scored], tiny_hospital: Any, tmp_path: Path
) -> None:
    found = scored("tables")
    run_scoring(tiny_hospital.model, found.events, TASK, tmp_path, bands=BANDS)
    for name in ("scores.parquet", "cohort.parquet", "labels.parquet", "predictions.parquet"):
        digests = [hashlib.sha256((run / name).read_bytes()) for run in (found.run, tmp_path)]
        assert digests[0].hexdigest() == digests[1].hexdigest(), name
