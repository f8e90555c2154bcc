# pyright: strict
"""Until when the subjects of a data set were watched.

One rule for labels (`tsfm.tasks.cohorts.follow_up_of`) and for token stores, so that what
pretraining takes as seen is what a label takes as seen: dates shifted a subject at a time have no
common end; `data_as_of` is one; without it the data end with their last event, by its time or by
when it was known, whichever is earlier (coding delays reach past the end of the data, and so do
appointments).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import polars as pl

from tsfm import clock, schema
from tsfm.errors import FormatError


class DataEnd:
    """Finds the end of follow-up while events go by.

    Args:
        facts: Contents of `metadata/dataset.json`.

    Attributes:
        is_told: Whether the facts say it all, so that no event has to be seen.

    Raises:
        FormatError: `bad_data_as_of`: it is not a time stamp.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        """Read what the data set says of itself."""
        self._is_shifted = bool(facts.get("dates_shifted"))
        as_of = None if self._is_shifted else facts.get("data_as_of")
        self._as_of_us = _read_moment(str(as_of), facts.get("clock")) if as_of else None
        self.is_told = self._is_shifted or self._as_of_us is not None
        self._last: dict[str, datetime] = {}

    def see(self, events: pl.DataFrame) -> None:
        """Take a shard's last moments into account."""
        for column in (schema.TIME, schema.AVAILABLE_TIME):
            latest = events[column].max()
            if isinstance(latest, datetime):
                self._last[column] = max(latest, self._last.get(column, latest))

    @property
    def until_us(self) -> int | None:
        """Last moment of knowledge, microseconds on the data set's clock; None if there is none."""
        if self.is_told:
            return self._as_of_us
        return clock.to_us(min(self._last.values())) if self._last else 0


def _read_moment(text: str, clock_mode: str | None) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise FormatError(
            "data_as_of is not a time stamp",
            code="bad_data_as_of",
            place="metadata/dataset.json",
            remedy="Write it as 2024-05-31T23:59:59.",
        ) from error
    if moment.tzinfo is not None and clock_mode != "wall":
        moment = moment.astimezone(UTC)
    return clock.to_us(moment.replace(tzinfo=None))
