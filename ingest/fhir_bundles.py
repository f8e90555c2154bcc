# pyright: strict
"""What wraps resources: Bundles and bulk-export manifests, and what they say is deleted.

A bulk export since a moment tells what was deleted since by Bundles whose entries have a request
and no resource, `DELETE Type/id` (Bulk Data Access, manifest's `deleted`:
https://hl7.org/fhir/uv/bulkdata/export.html); a history tells it the same way. A deletion counts in
whatever Bundle it is found. It takes what was written up to then; a copy that is newer was made
anew. Where the deletion or the copy does not say its time, the deletion counts: what a source has
withdrawn is not to be scored.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath

import msgspec

from tsfm.ingest.fhir_addresses import Addresses
from tsfm.ingest.fhir_fields import NO_RAW, Fields, Meta

_TARGET = re.compile(r"(?:[^?#]*/)?([A-Z][A-Za-z]{1,60})/([^/?#]+)")
Name = tuple[str, str]
"""Type and id of a resource."""


class EntryRequest(Fields):
    """What a Bundle entry asks of a server, or what was once asked."""

    method: str = ""
    url: str = ""


class EntryResponse(Fields):
    """When what was asked was done."""

    last_modified: str = ""


class BundleEntry(Fields):
    """Entry of a Bundle; its resource is decoded later, on its own."""

    full_url: str = ""
    resource: msgspec.Raw = NO_RAW
    request: EntryRequest | None = None
    response: EntryResponse | None = None


class Bundle(Fields):
    """Bundle of any type."""

    meta: Meta | None = None
    timestamp: str = ""
    entry: list[BundleEntry] = msgspec.field(default_factory=list[BundleEntry])


class Manifest(Fields):
    """Bulk-export manifest: not a resource, but says when the export was taken."""

    transaction_time: str
    output: list[msgspec.Raw]


@dataclass(slots=True)
class Deletions:
    """Resources that a source says it has deleted.

    Attributes:
        n_unclear: Deletions that name no resource by its id, such as those by a search.
        n_outlived: Deleted resources of which there is a newer copy.
    """

    n_unclear: int = 0
    n_outlived: int = 0
    _told: list[tuple[Name, str, float | None, str]] = field(
        default_factory=list[tuple[Name, str, float | None, str]]
    )
    _manifests: dict[PurePosixPath, float] = field(default_factory=dict[PurePosixPath, float])

    def add_manifest(self, manifest: Manifest, file: str) -> None:
        """Keep when the export of a folder was taken."""
        taken = updated_at(manifest.transaction_time)
        folder = PurePosixPath(file).parent
        if taken is not None:
            self._manifests[folder] = max(taken, self._manifests.get(folder, taken))

    def add(self, bundle: Bundle, file: str) -> None:
        """Keep what a Bundle says is deleted."""
        for entry in bundle.entry:
            if entry.request is None or entry.request.method != "DELETE":
                continue
            url = entry.request.url or entry.full_url
            found = _TARGET.fullmatch(url)
            if not found:
                self.n_unclear += 1
                continue
            said = (
                entry.response.last_modified if entry.response else "",
                bundle.meta.last_updated if bundle.meta else "",
                bundle.timestamp,
            )
            times = (updated_at(text) for text in said)
            when = next((time for time in times if time is not None), None)
            self._told.append(((found[1], found[2]), url, when, file))

    def times(self, addresses: Addresses) -> dict[Name, float]:
        """Last moment of deletion by resource, in seconds; infinite where it is not known.

        Raises:
            FormatError: `mixed_servers`.
        """
        times: dict[Name, float] = {}
        for name, url, when, file in self._told:
            addresses.check_server("/".join(name), url)
            time = self._taken(file) if when is None else when
            times[name] = max(time, times.get(name, time))
        return times

    def _taken(self, file: str) -> float:
        """When an export was taken: by the manifest of the nearest folder, else by the last one."""
        for folder in PurePosixPath(file).parents:
            if folder in self._manifests:
                return self._manifests[folder]
        return max(self._manifests.values(), default=math.inf)


def updated_at(text: str) -> float | None:
    """Seconds since 1970 of a FHIR instant, for the order of versions; None if it is none.

    >>> updated_at("2020-01-01T00:30:00-01:00") == updated_at("2020-01-01T01:30:00Z")
    True
    """
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
