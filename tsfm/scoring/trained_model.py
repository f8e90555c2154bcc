"""A timeline model in a researcher's hands: `tsfm.load(dir)`, then `.score(events, task)`.

Events may be the root of an event table, or a data frame of polars, pandas or pyarrow with the
columns of `schema.EVENTS`; what comes back is of the same kind (polars for a path). It is the same
road as the nightly run's, so the same stays get the same numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from tsfm import event_table
from tsfm.evaluation.given_records import read_records
from tsfm.models.checkpoint import ModelDirectory
from tsfm.scoring.batch_score import ScoredCohort, score_events
from tsfm.tasks.cohorts import Followup
from tsfm.tokens.signal_vectors import SignalVectors


class TrainedModel:
    """A loaded model directory.

    Args:
        directory: What `load_model` read.
    """

    def __init__(self, directory: ModelDirectory) -> None:
        """Keep the directory."""
        self.directory = directory

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that the model was fine-tuned for."""
        return self.directory.model.config.tasks

    @property
    def hash(self) -> str:
        """Hash that names this model in every prediction."""
        return self.directory.hash

    def score(self, events: Any, task: str, *, signals: SignalVectors | None = None) -> Any:
        """Score every eligible index stay.

        Args:
            events: Root of an event table, or a data frame of whole subjects.
            task: One of `tasks`.
            signals: Vectors of the waveforms that a frame's events point to; a root has its own.

        Returns:
            Rows of `schema.SCORES`, in a frame of the kind that came in.

        Raises:
            InputError: Not a path and not a data frame; a column of the frame is missing, there
                twice, not of its type or has a time zone; or the model reads waveforms, and those
                of the events are not encoded.
            ModelMismatch: The model was not fine-tuned for the task.
        """
        if isinstance(events, str | Path):
            return self.score_cohort(events, task, signals=signals).scores
        frame = read_records(events)
        with tempfile.TemporaryDirectory(prefix="tsfm-") as folder:
            with event_table.EventWriter(folder, n_shards=1) as writer:
                writer.add(frame)
                writer.finish(dataset={"clock": "wall", "dates_shifted": True})
            scores = score_events(
                self.directory, folder, task, followup=Followup("complete"), progress=False,
                signals=signals,
            ).scores  # fmt: skip
        return _way_back(events)(scores)

    def score_cohort(
        self, root: str | Path, task: str, *, signals: SignalVectors | None = None
    ) -> ScoredCohort:
        """Scores with the cohort, the known labels and the coding counts."""
        return score_events(self.directory, root, task, signals=signals)

    def _repr_html_(self) -> str:
        return self.directory._repr_html_()


def _way_back(events: Any) -> Callable[[pl.DataFrame], Any]:
    """How scores become a frame of the library that the events came in."""
    kind = type(events).__module__.partition(".")[0]
    ways = {"pandas": pl.DataFrame.to_pandas, "pyarrow": pl.DataFrame.to_arrow}
    return ways.get(kind, lambda frame: frame)
