"""The model card: what is given is in it, what is not given is not, nothing breaks out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tsfm.errors import InputError
from tsfm.reports.model_card import FACTS, render_model_card, write_model_card

FULL: dict[str, Any] = {
    "name": "timeline-demo",
    "description": "Risk of readmission.",
    "version": "1.2",
    "license": "Apache-2.0",
    "tags": ["ehr", "mamba"],
    "datasets": ["simulated"],
    "model_hash": "ab" * 32,
    "created": "2026-03-01",
    "architecture": {"layers": 4, "parameters": 1234567},
    "tasks": {"readmission_30d": "Readmission within 30 days"},
    "intended_use": ["Lists for a discharge team."],
    "out_of_scope": "Single decisions.",
    "training": {"subjects": 12000, "seed": 0},
    "metrics": {
        "held out": {"AUROC": {"value": 0.781234, "low": 0.76, "high": 0.8012}, "Brier": 0.12},
        "LACE": {"AUROC": 0.65, "Brier": None},
    },
    "calibration": {"slope": 0.98},
    "subgroups": [{"group": "F", "AUROC": 0.78}, {"group": "M", "AUROC": 0.79}],
    "limits": ["One simulated hospital."],
    "usage": "tsfm score MODEL EVENTS --task readmission_30d --out OUT",
}


def front_matter(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_every_known_fact_can_be_given_and_is_written() -> None:
    assert set(FULL) == set(FACTS)
    text = render_model_card(FULL)
    assert front_matter(text) == {
        "library_name": "tsfm",
        "model_name": "timeline-demo",
        "license": "Apache-2.0",
        "tags": ["ehr", "mamba"],
        "datasets": ["simulated"],
    }
    for part in (
        "Risk of readmission.",
        "- parameters: 1,234,567",
        "- readmission_30d: Readmission within 30 days",
        "- seed: 0",
        "| held out | 0.7812 [0.76, 0.8012] | 0.12 |",
        "| LACE | 0.65 |  |",
        "- slope: 0.98",
        "| F | 0.78 |",
        "One simulated hospital.",
        "tsfm score MODEL EVENTS",
    ):
        assert part in text


def test_what_is_not_given_has_no_line() -> None:
    text = render_model_card({"name": "x", "limits": [], "version": None, "training": {}})
    assert text == "---\nlibrary_name: tsfm\nmodel_name: x\n---\n\n# x\n"


@pytest.mark.parametrize("absent", [name for name in FULL if name != "name"])
def test_leaving_one_fact_out_leaves_the_others(absent: str) -> None:
    text = render_model_card({k: v for k, v in FULL.items() if k != absent})
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    whole = [line for line in render_model_card(FULL).splitlines() if line.startswith("## ")]
    assert len(whole) - len(headings) in (0, 1)
    assert "None" not in text


def test_a_misspelt_fact_is_an_error_and_not_lost() -> None:
    with pytest.raises(InputError, match="unknown_fact"):
        render_model_card({"name": "x", "metric": {}})
    with pytest.raises(InputError, match="missing_fact"):
        render_model_card({"version": "1"})


def test_a_value_stays_in_its_cell_and_its_front_matter() -> None:
    nasty = "a | b\n---\n# c"
    text = render_model_card({"name": nasty, "subgroups": [{"group": nasty, "n": 1}]})
    assert front_matter(text)["model_name"] == "a | b --- # c"
    (row,) = [line for line in text.splitlines() if line.startswith("| a")]
    assert row == "| a \\| b --- # c | 1 |"


def test_the_card_goes_into_a_model_directory_whole(tmp_path: Path) -> None:
    written = write_model_card(tmp_path, FULL)
    assert written == tmp_path / "README.md"
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]
    assert written.read_text(encoding="utf-8") == render_model_card(FULL)
