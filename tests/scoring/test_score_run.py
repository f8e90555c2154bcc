"""A scoring run on disk: whole, named, and traceable by its hashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tsfm.errors import InputError
from tsfm.models.checkpoint import load_model
from tsfm.scoring.risk_assessment import OUTCOME_TEXTS, RiskBands
from tsfm.scoring.run_manifest import RunManifest, hash_file
from tsfm.scoring.score_run import run_scoring
from tsfm.tasks.registry import CLAIM_TASKS, TASKS

TASK = "readmission_30d"
BANDS = RiskBands(0.05, 0.15, 0.3)


def test_a_run_names_its_model_and_all_its_files(
    tiny_hospital: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_hospital.model)
    run = tmp_path / "run"
    manifest = run_scoring(
        ".", tiny_hospital.events, TASK, run, bands=BANDS, capacity=0.2, progress=False
    )
    assert RunManifest.read(run / "run.json") == manifest
    assert manifest.settings == {
        "bands": {"low": 0.05, "moderate": 0.15, "high": 0.3},
        "threshold": None,
        "followup": None,
        "capacity": 0.2,
    }
    assert manifest.model_name == tiny_hospital.model.name
    assert manifest.model_hash == load_model(tiny_hospital.model).hash
    assert {path.name for path in run.iterdir()} == {*manifest.outputs, "run.json"}
    assert all(hash_file(run / name) == found for name, found in manifest.outputs.items())
    assert sum(manifest.scored_by_split.values()) == manifest.counts.scored
    assert set(manifest.scored_by_split) == {"train", "tuning", "held_out"}
    first = json.loads((run / "risk_assessments.ndjson").read_text().splitlines()[0])
    assert first["method"]["text"].startswith(f"{tiny_hospital.model.name}, version ")
    with pytest.raises(InputError, match="output_exists"):
        run_scoring(".", tiny_hospital.events, TASK, run, bands=BANDS, progress=False)


def test_every_task_that_is_scored_has_words_for_its_outcome_and_horizon() -> None:
    tasks = TASKS | CLAIM_TASKS
    assert OUTCOME_TEXTS.keys() == tasks.keys()
    for name, task in tasks.items():
        words = OUTCOME_TEXTS[name]
        assert words.short, name
        assert (words.competing is None) == task.competing_name.startswith("nothing"), name
        if words.horizon_days is not None:
            assert words.horizon_days == pytest.approx(task.horizon_days), name


def test_a_task_without_words_is_refused_before_anything_is_scored(
    tiny_hospital: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(OUTCOME_TEXTS, TASK)
    with pytest.raises(InputError, match="unknown_task"):
        run_scoring(
            tmp_path / "no model", tiny_hospital.events, TASK, tmp_path / "run", bands=BANDS
        )
    assert not (tmp_path / "run").exists()
