# pyright: strict
"""What wraps resources: Bundles and bulk-export manifests, and what they say is deleted.

A bulk export since a moment tells what was deleted since by Bundles whose entries have a request
and no resource, `DELETE Type/id` (Bulk Data Access, manifest's `deleted`:
https://hl7.org/fhir/uv/bulkdata/export.html); a history tells it the same way. A deletion counts in
whatever Bundle it is found. It takes what was written up to then; a copy that is newer was made
anew. Where the deletion or the copy does not say its time, the deletion counts: what a source has
withdrawn is not to be scored.

Within one Bundle the order says more than the Bundle's time. A history has the newest first, so
what stands above a deletion without a time of its own was written after it. A transaction or batch
that deletes a resource and holds it too leaves it there.

What a Bundle says about its entries is read loosely: a time or a request of an odd shape is as
absent, and costs no resource.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath

import msgspec

from tsfm.ingest.fhir_addresses import Addresses, id_of_address
from tsfm.ingest.fhir_fields import NO_RAW, Fields, LooseVersion
from tsfm.ingest.fhir_loose_fields import read_loosely, text_in

_TARGET = re.compile(r"(?:[^?#]*/)?([A-Z][A-Za-z]{1,60})/([^/?#]+)")
_DONE_AT_ONCE = ("transaction", "batch")
_BEFORE_ALL = -math.inf
Name = tuple[str, str]
"""Type and id of a resource."""


class BundleEntry(Fields):
    """Entry of a Bundle; its resource is decoded later, on its own."""

    full_url: object = None
    resource: msgspec.Raw = NO_RAW
    request: msgspec.Raw = NO_RAW
    response: msgspec.Raw = NO_RAW

    @property
    def address(self) -> str:
        """Address of what the entry is about; "" if it is not said."""
        return self.full_url if isinstance(self.full_url, str) else ""

    @property
    def is_filled(self) -> bool:
        """Whether it holds a resource."""
        return self.resource is not NO_RAW and bytes(memoryview(self.resource)[:5]) != b"null"


class Bundle(Fields):
    """Bundle of any type."""

    type: object = None
    meta: msgspec.Raw = NO_RAW
    timestamp: object = None
    entry: list[BundleEntry] | None = None

    def resources(self) -> Iterator[tuple[msgspec.Raw, str]]:
        """Resources of the entries that hold one, each with its address."""
        return ((e.resource, e.address) for e in self.entry or () if e.is_filled)


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
    _told: list[tuple[Name, tuple[str, str], float | None, str]] = field(
        default_factory=list[tuple[Name, tuple[str, str], float | None, str]]
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
        requests = [read_loosely(entry.request) for entry in bundle.entry or ()]
        deletes = [text_in(request, "method") == "DELETE" for request in requests]
        if not any(deletes):
            return
        is_history, is_done_at_once = bundle.type == "history", bundle.type in _DONE_AT_ONCE
        entries = list(zip(bundle.entry or (), requests, deletes, strict=True))
        held: set[Name] = set()  # in this Bundle, and newer than a deletion that says no time
        if is_done_at_once:
            held = {
                _name_and_time(entry)[0] for entry, _, is_deletion in entries if not is_deletion
            }
        latest = _time_of_bundle(bundle)
        for entry, request, is_deletion in entries:
            done = updated_at(text_in(read_loosely(entry.response), "lastModified"))
            if is_deletion:
                urls = text_in(request, "url") or entry.address, entry.address
                newer = held if is_done_at_once or done is None else set[Name]()
                self._tell(urls, latest if done is None else done, newer, file)
            elif is_history:
                name, written = _name_and_time(entry)
                held.add(name)
                done = written if done is None else done
            if is_history and done is not None:
                latest = done

    def _tell(self, urls: tuple[str, str], when: float | None, newer: set[Name], file: str) -> None:
        found = _TARGET.fullmatch(urls[0])
        if not found:
            self.n_unclear += 1
            return
        name = found[1], found[2]
        self._told.append((name, urls, _BEFORE_ALL if name in newer else when, file))

    def times(self, addresses: Addresses) -> dict[Name, float]:
        """Last moment of deletion by resource, in seconds; infinite where it is not known.

        Raises:
            FormatError: `mixed_servers`.
        """
        times: dict[Name, float] = {}
        for name, urls, when, file in self._told:
            for url in urls:
                addresses.check_server("/".join(name), url, file)
            time = self._taken(file) if when is None else when
            times[name] = max(time, times.get(name, time))
        return times

    def _taken(self, file: str) -> float:
        """When an export was taken: by the manifest of the nearest folder, else by the last one."""
        for folder in PurePosixPath(file).parents:
            if folder in self._manifests:
                return self._manifests[folder]
        return max(self._manifests.values(), default=math.inf)


def _time_of_bundle(bundle: Bundle) -> float | None:
    when = updated_at(text_in(read_loosely(bundle.meta), "lastUpdated"))
    return updated_at(text_in(bundle.timestamp)) if when is None else when


def _name_and_time(entry: BundleEntry) -> tuple[Name, float | None]:
    """Which resource an entry holds, and when that was written."""
    try:
        row = msgspec.json.decode(entry.resource, type=LooseVersion)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ("", ""), None
    name = row.resource_type, row.id or (id_of_address(entry.address) if entry.address else "")
    return name, updated_at(row.meta.last_updated)


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
