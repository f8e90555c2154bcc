"""A timeline model in a researcher's hands: `tsfm.load(dir)`, then `.score(events, task)`.

Events may be the root of an event table, or a data frame of polars, pandas or pyarrow with the
columns of `schema.EVENTS`; what comes back is of the same kind (polars for a path). It is the same
road as the nightly run's, so the same stays get the same numbers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from tsfm import event_table, schema
from tsfm.errors import FormatError, InputError
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
            InputError: Not a path and not a data frame; or the model reads waveforms, and those
                of the events are not encoded.
            FormatError: A column of the frame is missing, there twice, or not of its type.
            ModelMismatch: The model was not fine-tuned for the task.
        """
        if isinstance(events, str | Path):
            return self.score_cohort(events, task, signals=signals).scores
        frame, give_back = _read_frame(events)
        with tempfile.TemporaryDirectory(prefix="tsfm-") as folder:
            with event_table.EventWriter(folder, n_shards=1) as writer:
                writer.add(frame)
                writer.finish(dataset={"clock": "wall", "dates_shifted": True})
            scores = score_events(
                self.directory, folder, task, followup=Followup("complete"), progress=False,
                signals=signals,
            ).scores  # fmt: skip
        return give_back(scores)

    def score_cohort(
        self, root: str | Path, task: str, *, signals: SignalVectors | None = None
    ) -> ScoredCohort:
        """Scores with the cohort, the known labels and the coding counts."""
        return score_events(self.directory, root, task, signals=signals)

    def _repr_html_(self) -> str:
        return self.directory._repr_html_()


def _read_frame(events: Any) -> tuple[pl.DataFrame, Any]:
    """The events as polars, with the event table's types, and the way back to the caller's kind."""
    if isinstance(events, pl.DataFrame):
        return _typed({name: events[name] for name in events.columns}), lambda frame: frame
    kind = type(events).__module__.partition(".")[0]
    if kind == "pandas" and hasattr(events, "columns"):
        return _typed(_columns(events, list(events.columns))), lambda frame: frame.to_pandas()
    if kind == "pyarrow" and hasattr(events, "schema"):
        return _typed(_columns(events, events.schema.names)), lambda frame: frame.to_arrow()
    raise InputError(
        f"events are a {type(events).__name__}",
        code="unknown_frame",
        place="events",
        remedy=f"Give a path, or a polars, pandas or pyarrow table with {schema.EVENTS.names}.",
    )


def _columns(events: Any, names: list[Any]) -> dict[str, pl.Series]:
    """The columns of the event table that another library's frame has."""
    found: dict[str, pl.Series] = {}
    for name in names:
        if name in event_table.POLARS_EVENTS:
            if names.count(name) > 1:
                raise _bad_column(name, "is there twice")
            try:
                found[name] = pl.Series(name, events[name])
            # What they raise quotes the value, and is told without it.
            except (TypeError, ValueError, pl.exceptions.PolarsError):
                raise _bad_column(name, "holds values of several types") from None
    return found


def _typed(columns: dict[str, pl.Series]) -> pl.DataFrame:
    """An event frame of the event table's types, from columns that can be read as them."""
    for name in (schema.SUBJECT_ID, schema.TIME, schema.CODE):
        if name not in columns:
            raise _bad_column(name, "is missing")
    typed: list[pl.Series] = []
    for name, kind in event_table.POLARS_EVENTS.items():
        if name not in columns:
            continue
        column = columns[name]
        try:
            read = column.cast(kind)
        # The message of polars quotes values.
        except pl.exceptions.PolarsError:
            raise _bad_column(name, f"can't be read as {kind}") from None
        if kind == pl.Int64 and column.dtype.is_float() and not (read == column).all():
            raise _bad_column(name, "holds numbers that are not whole")
        typed.append(read)
    return pl.DataFrame(typed)


def _bad_column(name: str, what: str) -> FormatError:
    return FormatError(
        f"the column '{name}' of the events {what}",
        code="bad_column",
        place="events",
        remedy=f"Give {schema.SUBJECT_ID}, {schema.TIME}, {schema.CODE} and what else there is of "
        "`schema.EVENTS`, each once and of its type.",
    )
