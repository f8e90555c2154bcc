"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests of a GPU out where there is none; `-m gpu` still asks for them."""
    import torch

    if torch.cuda.is_available() or "gpu" in (config.getoption("-m") or ""):
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def data_dir() -> Callable[[str], Path]:
    """Return a function that finds a folder of the real data sets, or skips the test."""
    root = Path(os.environ.get("TSFM_DATA", REPOSITORY.parent / "shared" / "data"))

    def find(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            pytest.skip(f"needs {name} under TSFM_DATA or ../shared/data")
        return folder

    return find


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@dataclass(frozen=True)
class TinyHospital:
    """A simulated hospital taken the whole way once, for tests to look at."""

    source: Path
    events: Path
    tokens: Path
    labels: Path
    pretrained: Path
    model: Path


@pytest.fixture(scope="session")
def tiny_hospital(tmp_path_factory: pytest.TempPathFactory) -> TinyHospital:
    """Simulate, ingest, tokenize, label, pretrain and fine-tune 120 patients."""
    import polars as pl

    from tsfm.event_table import read_table
    from tsfm.ingest.fhir_ndjson import ingest_fhir
    from tsfm.models.mamba import MambaConfig
    from tsfm.simulation.hospital import simulate_hospital
    from tsfm.tasks.registry import write_labels
    from tsfm.tokens.token_store import build_token_store
    from tsfm.training.finetune import FinetuneConfig, finetune
    from tsfm.training.loop import TrainConfig
    from tsfm.training.pretrain import pretrain

    root = tmp_path_factory.mktemp("hospital")
    paths = TinyHospital(
        source=root / "source",
        events=root / "events",
        tokens=root / "tokens",
        labels=root / "labels",
        pretrained=root / "pretrained",
        model=root / "model",
    )
    simulate_hospital(paths.source, n_patients=120, seed=3, waveform_fraction=0.02)
    ingest_fhir(paths.source / "fhir", paths.events, n_shards=2)
    build_token_store(paths.events, paths.tokens)
    write_labels(paths.events, "readmission_30d", paths.labels)
    backbone = MambaConfig(d_model=16, n_layers=1, d_state=4)
    train = TrainConfig(epochs=1, max_tokens=4096)
    pretrain(paths.tokens, paths.pretrained, backbone=backbone, config=train)
    cohort = pl.from_arrow(read_table(paths.labels / "readmission_30d" / "cohort.parquet"))
    assert isinstance(cohort, pl.DataFrame)
    finetune(
        paths.pretrained,
        paths.tokens,
        cohort,
        "readmission_30d",
        paths.model,
        config=FinetuneConfig(train=train),
    )
    return paths


@pytest.fixture(scope="session")
def cohort_of() -> Callable[[Sequence[tuple[int, datetime, datetime]]], pl.DataFrame]:
    """Cohort rows from (subject, start_time, prediction_time)."""

    def build(rows: Sequence[tuple[int, datetime, datetime]]) -> pl.DataFrame:
        return pl.DataFrame(
            rows,
            schema={
                "subject_id": pl.Int64,
                "start_time": pl.Datetime("us"),
                "prediction_time": pl.Datetime("us"),
            },
            orient="row",
        )

    return build
