# pyright: strict
"""Results that were changed: which of their versions count, and since when each could be known.

A changed result has a new value under the old times, and whoever read it there would know of the
change before it was made. So its value is available when its version was written, and where the
export holds what it changed, the value before is told as well, at its own time.

When a version was written (`meta.lastUpdated`) counts for changed results alone: many servers
write there when they were loaded, years later, and a result that never changed was known when it
was issued. For the same reason versions that differ in nothing but `meta` are one version, known
since the first of them: to be loaded once more, or labelled, is no change.

The time of writing is a server's, most often in UTC, and the wall clock has lost all zones. There
it is brought to the zone of the result's own stamps.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec

from tsfm.clock import HOUR_US, StampError
from tsfm.ingest.fhir_encounters import FARTHEST_ZONES_US
from tsfm.ingest.fhir_events import EventBatch
from tsfm.ingest.fhir_fields import DiagnosticReport, Observation, Period

CHANGED = frozenset({"amended", "corrected", "appended"})
"""Statuses of a result that was changed after it was issued."""

RESULTS = frozenset({"Observation", "DiagnosticReport"})
"""Types whose versions are told one by one."""

Age = tuple[float, int, bytes]
"""Order of versions: time of the last update (0: unknown), version number, content."""

Version = tuple[Age, int, bytes]
"""Age of a version, its place, and where it changes an issued result the digest of what it says."""

_FARTHEST_EAST_US = 14 * HOUR_US


def content_digest(raw: bytes | msgspec.Raw) -> bytes:
    """Digest of what a resource says: of its JSON but for `meta`, however it is written.

    >>> content_digest(b'{"a": 1, "meta": {}, "b": 2}') == content_digest(b'{"b":2,"a":1}')
    True
    """
    try:
        row = msgspec.json.decode(raw, type=dict[str, Any])
        row.pop("meta", None)
        text = msgspec.json.encode(row, order="sorted")
    except (ValueError, RecursionError):  # such as bad UTF-8 in a field that nobody reads
        text = bytes(raw)
    return hashlib.blake2b(text, digest_size=16).digest()


def versions_to_keep(versions: list[Version]) -> tuple[set[int], set[int]]:
    """Places of the versions that are told, and of those among them that change a change.

    Told are the newest version and, where that changes a result, what it changed, even if both were
    loaded at one time. Copies of one version are told once, and of versions in a row that say the
    same the earliest. What lies below a version that changes nothing is replaced by it, as a
    preliminary value is by the final one; a change whose time is not known stands for all before
    it.

    >>> first, change = ((1.0, 1, b""), 0, b""), ((2.0, 2, b""), 1, b"said")
    >>> versions_to_keep([first, ((2.0, 2, b""), 1, b"")])
    ({1}, set())
    >>> versions_to_keep([first, change, ((3.0, 3, b""), 2, b"said")])
    ({0, 1}, set())
    """
    told: list[tuple[int, bytes]] = []  # newest first
    earliest = float("inf")
    newest_first = sorted(versions, key=lambda version: (version[0], -version[1]), reverse=True)
    for (when, _, _), place, change in newest_first:
        if change and (when >= earliest or (told and when <= 0)):
            continue
        if change and told and told[-1][1] == change:
            told.pop()
        told.append((place, change))
        earliest = when
        if not change or when <= 0:
            break
    changes = [place for place, change in told if change]
    return {place for place, _ in told}, set(changes[:-1])


@dataclass(slots=True)
class ResultVersions:
    """Versions of the results that occur more than once, while they are met.

    Of a result's versions that change nothing only the newest can count, and is all that is kept:
    exports side by side hold each of them every night.
    """

    _versions: dict[tuple[int, str], list[Version]] = field(
        default_factory=dict[tuple[int, str], list[Version]]
    )

    def add(
        self, name: tuple[int, str], age: Age, place: int, status: str, raw: msgspec.Raw | bytes
    ) -> int | None:
        """Keep a version of a result, and give the place of one that is replaced by another.

        What it says is looked at only where it is a change.
        """
        change = content_digest(raw) if status in CHANGED else b""
        kept = self._versions.setdefault(name, [])
        first = next((i for i, known in enumerate(kept) if not known[2]), None)
        if change or first is None:
            kept.append((age, place, change))
            return None
        older, newer = sorted(
            [kept[first], (age, place, change)], key=lambda version: (version[0], -version[1])
        )
        kept[first] = newer
        return older[1]

    def settle(self) -> tuple[list[int], set[int]]:
        """Places of the versions that others replace, and of those that change a change."""
        replaced: list[int] = []
        changed_again: set[int] = set()
        for versions in self._versions.values():
            told, again = versions_to_keep(versions)
            replaced += [place for _, place, _ in versions if place not in told]
            changed_again |= again
        return replaced, changed_again


def known_us(row: Observation | DiagnosticReport, available_us: int, events: EventBatch) -> int:
    """When a result could be known that is said to be available at some time.

    Args:
        row: The result.
        available_us: When it was issued or measured.
        events: Gives the clock, and counts results that were changed.
    """
    if row.status not in CHANGED:
        return available_us
    text = row.meta.last_updated if row.meta else ""
    try:
        # Not a moment of care: the stamps that tell until when patients were watched don't see it.
        written_us = events.clock.read(text).end_us
    except StampError:
        events.counts["changed_sometime"] += not events.is_changed_again
        return available_us
    events.counts["changed_results"] += not events.is_changed_again
    if events.clock.mode == "wall":
        written_us += _to_zone_us(text, row)
    return max(available_us, written_us)


def _to_zone_us(written: str, row: Observation | DiagnosticReport) -> int:
    """From the clock on which a version was written to that on the wall of its result.

    Where a zone is not known it is the one that makes the change known last.
    """
    from_utc_us = _utc_offset_us(written)
    if from_utc_us is None:
        return FARTHEST_ZONES_US
    period = row.effective_period or Period()
    stamps = [row.issued, row.effective_date_time, period.start, period.end]
    if isinstance(row, Observation):
        stamps.append(row.effective_instant)
    zones = [zone for text in stamps if text and (zone := _utc_offset_us(text)) is not None]
    return max(zones, default=_FARTHEST_EAST_US) - from_utc_us


def _utc_offset_us(text: str) -> int | None:
    try:
        offset = datetime.fromisoformat(text).utcoffset()
    except ValueError:  # such as a month
        return None
    return None if offset is None else offset // timedelta(microseconds=1)
