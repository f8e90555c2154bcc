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
        FormatError: `bad_data_as_of`: it is not a time stamp. `bad_dates_shifted`: it is neither
            true nor false.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        """Read what the data set says of itself."""
        shifted = facts.get("dates_shifted")
        if shifted is not None and not isinstance(shifted, bool):
            raise FormatError(  # the text "false" would count as true
                "dates_shifted is neither true nor false",
                code="bad_dates_shifted",
                place="metadata/dataset.json",
                remedy="Write true or false, without quotation marks.",
            )
        self._is_shifted = bool(shifted)
        as_of = None if self._is_shifted else facts.get("data_as_of")
        self._as_of_us = None
        if as_of is not None and as_of != "":
            self._as_of_us = _read_moment(as_of, facts.get("clock"))
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


def _read_moment(text: object, clock_mode: str | None) -> int:
    try:
        if not isinstance(text, str):  # 20240531 is a number of something, not a day
            raise ValueError
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
