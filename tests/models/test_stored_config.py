"""A configuration from a file is checked in every value before anything is built of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tsfm.errors import ModelMismatch
from tsfm.models.mamba import MambaConfig
from tsfm.models.stored_config import build_model, n_parameters, read_config
from tsfm.models.timeline import TimelineConfig, TimelineModel

PLAIN = TimelineConfig(30, MambaConfig(d_model=8, n_layers=1, d_state=2), memory_width=8)


def stored(change: dict[str, Any]) -> dict[str, Any]:
    """Plain values of a small model, changed; keys with a dot are the backbone's."""
    values = json.loads(json.dumps(PLAIN.stored()))
    for name, value in change.items():
        place, _, key = name.rpartition(".")
        (values[place] if place else values)[key] = value
    return values


@pytest.mark.parametrize(
    "change",
    [
        {"backbone.n_layers": 2.5},
        {"backbone.n_layers": True},
        {"backbone.n_layers": 10**6},
        {"backbone.d_state": 10**10},
        {"backbone.expand": 10**7},
        {"backbone.expand": -2},
        {"backbone.d_conv": 0},
        {"backbone.input": "zoh2"},
        {"backbone.dropout": float("nan")},
        {"backbone.dropout": 3},
        {"backbone.fastest_hours": 0},
        {"backbone.dt_rank": "2"},
        {"backbone": [1]},
        {"memory_width": "x"},
        {"memory_width": 10**13},
        {"hazard_rank": 10**13},
        {"code_words": 10**13},
        {"signal_vectors": 10**7, "signal_width": 10**7},
        {"tasks": ["a.b"]},
        {"tasks": ["keys"]},
        {"tasks": [""]},
        {"tasks": ["a", "a"]},
        {"tasks": "ab"},
        {"tasks": [3]},
        {"n_classes": [3]},
        {"class_tasks": ["a"], "n_classes": [0]},
        {"class_tasks": ["a"], "n_classes": [10**12]},
        {"edges_days": [0, 5, 3]},
        {"edges_days": [1, 2]},
        {"edges_days": []},
        {"hazard_edges_days": [0, "1"]},
        {"attention_after": [-1]},
        {"code_dropout": 2.0},
        {"share_codes": 1},
        {"signal_encoder": 3},
    ],
)
def test_a_value_that_none_may_say_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ModelMismatch, match="bad_model_config"):
        read_config(stored(change))


def test_parts_that_do_not_go_together_are_refused_when_they_are_built() -> None:
    config = read_config(stored({"attention_only": True, "attention_heads": 3}))
    with pytest.raises(ModelMismatch, match="do not go together"):
        build_model(config)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"backbone.dt_rank": 2, "backbone.fastest_hours": 1},
        {"attention_after": (1,)},
        {"attention_only": True},
        {"share_codes": True, "code_words": 64},
        {"hazard_codes": ("LAB", "A.B"), "tasks": ("a",), "class_tasks": ("b",), "n_classes": (4,)},
        {"signal_vectors": 2, "signal_width": 4, "memory_width": 0},
    ],
)
def test_what_a_model_writes_is_read_back(change: dict[str, Any]) -> None:
    config = read_config(stored(change))
    model = build_model(config)
    assert read_config(json.loads(json.dumps(model.config.stored()))) == config
    n = sum(p.numel() for p in model.parameters())
    assert 0.4 * n < n_parameters(config) < 1.5 * n


def test_the_count_of_parameters_is_near_the_true_one_for_a_model_of_use() -> None:
    config = TimelineConfig(2000, tasks=("a", "b"))
    n = sum(p.numel() for p in TimelineModel(config).parameters())
    assert n_parameters(config) == pytest.approx(n, rel=0.1)
