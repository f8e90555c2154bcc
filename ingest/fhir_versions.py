# pyright: strict
"""Results that were changed: which of their versions count, and since when each could be known.

A changed result has a new value under the old times, and whoever read it there would know of the
change before it was made. So its value is available when its version was written, and where the
export holds what it changed, the value before is told as well, at its own time.

When a version was written (`meta.lastUpdated`) counts for changed results alone: many servers
write there when they were loaded, years later, and a result that never changed was known when it
was issued.
"""

from __future__ import annotations

from tsfm.clock import StampError
from tsfm.ingest.fhir_events import EventBatch
from tsfm.ingest.fhir_fields import Meta

CHANGED = frozenset({"amended", "corrected", "appended"})
"""Statuses of a result that was changed after it was issued."""

RESULTS = frozenset({"Observation", "DiagnosticReport"})
"""Types whose versions are told one by one."""

Age = tuple[float, int, bytes]
"""Order of versions: time of the last update (0: unknown), version number, content."""

Version = tuple[Age, int, bool]
"""Age of a version, its place, and whether it changes a result that had been issued."""


def versions_to_keep(versions: list[Version]) -> set[int]:
    """Places of the newest version and, where that changes a result, of what it changed.

    Copies of one version are told once. What lies below a version that changes nothing is replaced
    by it, as a preliminary value is by the final one; a change whose time is not known stands for
    all before it.

    >>> first = ((1.0, 1, b""), 0, False)
    >>> versions_to_keep([first, ((2.0, 2, b""), 1, False)])
    {1}
    >>> sorted(versions_to_keep([first, ((2.0, 2, b""), 1, True)]))
    [0, 1]
    """
    kept: set[int] = set()
    earliest = float("inf")
    newest_first = sorted(versions, key=lambda version: (version[0], -version[1]), reverse=True)
    for (when, _, _), place, is_change in newest_first:
        if when >= earliest or (kept and is_change and when <= 0):
            continue
        kept.add(place)
        earliest = when
        if not is_change or when <= 0:
            break
    return kept


def known_us(status: str, meta: Meta | None, available_us: int, events: EventBatch) -> int:
    """When a result could be known that is said to be available at some time.

    Args:
        status: Its status.
        meta: When its version was written.
        available_us: When it was issued or measured.
        events: Gives the clock, and counts results that were changed.
    """
    if status not in CHANGED:
        return available_us
    try:
        # Not a moment of care: the stamps that tell until when patients were watched don't see it.
        written = events.clock.read(meta.last_updated if meta else "")
    except StampError:
        events.counts["changed_sometime"] += 1
        return available_us
    events.counts["changed_results"] += 1
    return max(available_us, written.end_us)
