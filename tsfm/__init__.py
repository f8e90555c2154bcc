"""Patient timelines in continuous time.

Public names are loaded when first used, so that `import tsfm` costs little and imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC: dict[str, str] = {
    "TsfmError": "tsfm.errors",
    "ingest_fhir": "tsfm.ingest.fhir_ndjson",
    "ingest_mimic4": "tsfm.ingest.mimic4",
    "ingest_meds": "tsfm.ingest.meds_dataset",
    "ingest_eicu": "tsfm.ingest.eicu",
    "ingest_physionet2012": "tsfm.ingest.physionet2012",
    "ingest_diabetes130": "tsfm.ingest.diabetes130",
    "ingest_wfdb": "tsfm.ingest.wfdb_records",
    "simulate_hospital": "tsfm.simulation.hospital",
    "build_token_store": "tsfm.tokens.token_store",
    "write_labels": "tsfm.tasks.registry",
    "pretrain": "tsfm.training.pretrain",
    "finetune": "tsfm.training.finetune",
    "sample_futures": "tsfm.rollouts.sample",
    "estimate_risks": "tsfm.rollouts.estimators",
    "run_scoring": "tsfm.scoring.score_run",
    "evaluate_run": "tsfm.reports.run_evaluation",
    "Forecaster": "tsfm.forecasting.forecaster",
    "load": "tsfm.loading",
}

__all__ = ["__version__", *_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name in _PUBLIC:
        # Some names are also rooms (tsfm.training.pretrain): the function is what is asked for.
        value = getattr(import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'tsfm' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Names for completion."""
    return sorted(__all__)
