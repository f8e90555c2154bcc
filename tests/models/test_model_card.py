"""The model card says what the directory holds and nothing else, and nothing breaks out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tsfm.models.checkpoint import load_model, save_model
from tsfm.models.mamba import MambaConfig
from tsfm.models.model_card import render_model_card
from tsfm.models.timeline import TimelineConfig, TimelineModel
from tsfm.tasks.registry import CLASS_TASKS, TASKS

TASK = "readmission_30d"
FACTS: dict[str, Any] = {
    "stage": "finetune",
    "dataset_name": "made",
    "n_training_subjects": 12_345,
    "tuning_loss": 4.75432,
    f"{TASK}.n_training_stays": 678,
    f"{TASK}.seed": 7,
}


def make_model(*tasks: str) -> TimelineModel:
    torch.manual_seed(0)
    backbone = MambaConfig(d_model=8, n_layers=1, d_state=2)
    return TimelineModel(TimelineConfig(30, backbone, memory_width=8, tasks=tasks))


def front_matter(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_card_of_a_directory_tells_what_its_other_files_hold(tiny_hospital: Any) -> None:
    for folder in (tiny_hospital.pretrained, tiny_hospital.model):
        text = (folder / "README.md").read_text(encoding="utf-8")
        loaded = load_model(folder)  # the card is under the manifest
        assert text == render_model_card(
            loaded.model, facts=loaded.facts, calibration=loaded.calibration
        )
        assert f"- codes: {len(loaded.vocabulary):,}\n" in text
        n = sum(p.numel() for p in loaded.model.parameters())
        assert f"- parameters: {n:,}\n" in text
        assert f"- training subjects: {loaded.facts['n_training_subjects']:,}\n" in text
        assert front_matter(text)["datasets"] == [loaded.facts["dataset_name"]]
        assert set(json.loads((folder / "manifest.json").read_text())) > {"README.md"}


def test_a_pretrained_model_claims_no_task_and_a_finetuned_one_its_own(tiny_hospital: Any) -> None:
    before = (tiny_hospital.pretrained / "README.md").read_text(encoding="utf-8")
    after = (tiny_hospital.model / "README.md").read_text(encoding="utf-8")
    assert TASK not in before
    assert "tsfm finetune MODEL" in section(before, "How to use it")
    assert "## Calibration" not in before
    assert TASKS[TASK].description in section(after, "What it predicts")
    assert f"--task {TASK}" in section(after, "How to use it")
    stays = load_model(tiny_hospital.model).facts[f"{TASK}.n_training_stays"]
    assert f"index stays of training subjects: {stays:,}" in section(after, "Training")


def test_calibration_is_told_as_it_was_fitted_or_not_at_all() -> None:
    def told(found: dict[str, float]) -> str:
        text = render_model_card(make_model(TASK), facts=FACTS, calibration={TASK: found})
        return section(text, "Calibration")

    assert "slope 1.250, offset -0.500 on the logit (40 stays" in told(
        {"slope": 1.25, "offset": -0.5, "n": 40}
    )
    assert "not recalibrated" in told({"slope": 1.0, "offset": 0.0, "n": 3})
    text = render_model_card(make_model(TASK), facts=FACTS, calibration={})
    assert "## Calibration" not in text


def test_tasks_with_classes_and_other_maps_are_told_as_well() -> None:
    task = CLASS_TASKS["length_of_stay_bins"]
    backbone = MambaConfig(d_model=8, n_layers=1, d_state=2)
    config = TimelineConfig(
        30, backbone, memory_width=8, class_tasks=(task.name,), n_classes=(len(task.classes),)
    )
    facts = {f"{task.name}.n_training_stays": 678}
    fitted = {task.name: {"temperature": 1.3, "n": 50}}
    text = render_model_card(TimelineModel(config), facts=facts, calibration=fitted)
    assert "No task yet" not in text
    assert task.description in section(text, "What it predicts")
    assert task.classes[-1] in section(text, "What it predicts")
    assert "678" in section(text, "Training")
    assert "temperature 1.300" in section(text, "Calibration")
    assert "tsfm score" not in text  # which has tasks in time only
    assert task.name in section(text, "How to use it")
    isotonic = {"kind": "isotonic", "slope": 1.0, "offset": 0.0, "knots": [0.1], "levels": [0.2]}
    text = render_model_card(make_model(TASK), facts=FACTS, calibration={TASK: isotonic})
    assert "isotonic, through 1 points" in section(text, "Calibration")


@pytest.mark.parametrize("name", FACTS)
def test_a_fact_that_is_not_known_has_no_line(name: str) -> None:
    whole = render_model_card(make_model(TASK), facts=FACTS, calibration={})
    for facts in ({k: v for k, v in FACTS.items() if k != name}, {**FACTS, name: None}):
        text = render_model_card(make_model(TASK), facts=facts, calibration={})
        assert "None" not in text
        assert set(text.splitlines()) < set(whole.splitlines()) or name == "stage"


def test_a_fact_stays_in_its_line_and_its_front_matter() -> None:
    nasty = "a\n---\n# b: *"
    text = render_model_card(make_model(), facts={"dataset_name": nasty}, calibration={})
    assert front_matter(text)["datasets"] == ["a --- # b: *"]
    assert "- data set: a --- # b: *\n" in text
    assert "\n# b" not in text


def test_the_same_model_has_the_same_card_and_hash_wherever_it_is_written(
    tiny_hospital: Any, tmp_path: Path
) -> None:
    found = load_model(tiny_hospital.model)
    parts = found.model, found.vocabulary, found.scale
    for name in ("a", "b"):
        written = save_model(
            tmp_path / name, *parts, facts=found.facts, calibration=found.calibration
        )
        assert written == found.hash
