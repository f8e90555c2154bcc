"""Five questions to the tiny hospital: their cohorts, its hidden history, and a model of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tsfm.models.checkpoint import ModelDirectory, load_model
from tsfm.training.loop import TrainConfig, TrainResult
from tsfm.training.multitask import MultitaskConfig
from tsfm.training.questions import Site, open_site

FIVE = (
    "readmission_30d", "mortality_in_hospital", "length_of_stay_bins", "comorbidity_charlson",
    "claim_denial",
)  # fmt: skip
QUICK = MultitaskConfig(train=TrainConfig(epochs=2, max_tokens=4096, lr=3e-3, patience=3))


@dataclass(frozen=True)
class FiveTasks:
    """What is asked of the tiny hospital, and a model fine-tuned to all of it."""

    cohorts: dict[str, pl.DataFrame]
    hidden: Path
    model: Path
    result: TrainResult

    @property
    def loaded(self) -> ModelDirectory:
        """The model."""
        return load_model(self.model)

    def site(self, hospital: Any, *names: str, **options: Any) -> Site:
        """Questions of some tasks, of all by default."""
        cohorts = {name: self.cohorts[name] for name in names or FIVE}
        return open_site(
            hospital.tokens, cohorts, vocabulary_hash=self.loaded.vocabulary.hash,
            hidden_tokens=self.hidden, **options,
        )  # fmt: skip


def claims_like(cohort: pl.DataFrame) -> pl.DataFrame:
    """Made-up answers to a claim for each stay."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(["event", "competing"], cohort.height, p=[0.3, 0.7])
    return cohort.with_columns(
        outcome=pl.when("eligible").then(pl.Series(drawn)),
        outcome_days=pl.when("eligible").then(pl.Series(rng.uniform(1, 90, cohort.height))),
    )


@pytest.fixture(scope="session")
def five_tasks(tiny_hospital: Any, tmp_path_factory: pytest.TempPathFactory) -> FiveTasks:
    """Find the cohorts, hide the history, and fine-tune all tasks together."""
    from tsfm.tasks.registry import find_cohort
    from tsfm.training.multitask import multitask_finetune
    from tsfm.training.questions import hidden_token_store

    root = tmp_path_factory.mktemp("five")
    cohorts = {name: find_cohort(tiny_hospital.events, name) for name in FIVE[:-1]}
    cohorts["claim_denial"] = claims_like(cohorts["readmission_30d"])
    hidden = root / "hidden"
    hidden_token_store(tiny_hospital.events, hidden, vocabulary_from=tiny_hospital.pretrained)
    result = multitask_finetune(
        tiny_hospital.pretrained, tiny_hospital.tokens, cohorts, root / "model",
        hidden_tokens=hidden, config=QUICK, progress=False,
    )  # fmt: skip
    return FiveTasks(cohorts, hidden, root / "model", result)
