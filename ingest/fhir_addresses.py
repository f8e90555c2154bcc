# pyright: strict
"""Which resource of an export a reference means, and on which server that resource lives.

References are relative (`Patient/7`), absolute, or the address that a Bundle gave its entry. All of
them come down to `Type/id`, which is unique on one server and not on two: many servers number from
one. So the server is kept that the export gives a resource as its own, by the address of its entry
or of its deletion, and an export that gives one `Type/id` two servers is refused, before two people
become one. A reference to another server than the resource's own, such as a registry of others,
means somebody else's resource and leads nowhere here.

Where the export gives a resource no server an absolute reference means it all the same, unless
another means it on another server: then one of them is wrong, nobody knows which, and the export is
refused. Relative references and `urn:uuid:` say nothing of a server.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Container
from dataclasses import dataclass, field

from tsfm.errors import FormatError
from tsfm.ingest.fhir_fields import reference_key

_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,100}")


@dataclass(slots=True)
class Addresses:
    """Addresses that Bundles gave their entries, and servers.

    Attributes:
        elsewhere: Resources of the source that references mean at another server than their own.
    """

    elsewhere: set[str] = field(default_factory=set[str])
    _aliases: dict[str, str] = field(default_factory=dict[str, str])
    _servers: dict[str, str] = field(default_factory=dict[str, str])  # of their own
    _own: set[str] = field(default_factory=set[str])  # all of these
    _meant: dict[str, str] = field(default_factory=dict[str, str])  # by references alone

    def add(self, full_url: str, key: str, file: str) -> None:
        """Remember a Bundle entry's address, where it does not end in the resource's own id.

        Raises:
            FormatError: `mixed_servers`.
        """
        alias = reference_key(full_url, key.partition("/")[0])
        if alias and alias != key:
            self._aliases[alias] = key
        self.check_server(key, full_url, file)

    def key(self, reference: str, kind: str) -> str:
        """`kind/id` that a reference means, in the source or not; "" if of another kind."""
        key = reference_key(reference, kind)
        return self._aliases.get(key, key)

    def find(self, reference: str, kind: str, table: Container[str]) -> str:
        """Key in `table` that a reference means; "" if it leads nowhere.

        Raises:
            FormatError: `mixed_servers`.
        """
        known = self.key(reference, kind)
        if known not in table:
            return ""
        server = server_of(reference, kind) if "://" in reference else ""
        if not server:
            return known
        own = self._servers.get(known)
        if own is None:
            meant = self._meant.setdefault(known, sys.intern(server))
            if meant != server:
                raise _mixed(kind, meant, server, f"references to {kind}")
        elif own != server:
            self.elsewhere.add(known)
            return ""
        return known

    def is_ours(self, reference: str, key: str) -> bool:
        """Whether what a reference means is surely of this source, in it or not.

        An absolute reference must name the server that the source gives that resource as its own;
        where it gives none, the only one that it gives to any.
        """
        kind = key.partition("/")[0]
        server = server_of(reference, kind)
        if not server:
            return reference.startswith(("urn:", f"{kind}/"))
        own = self._servers.get(key)
        return {server} == self._own if own is None else server == own

    def check_server(self, key: str, address: str, file: str) -> None:
        """Keep the server that a resource is on by its own address.

        Args:
            key: `Type/id` of the resource.
            address: Address of its entry or deletion; one that is not absolute says nothing.
            file: Where that stands.

        Raises:
            FormatError: `mixed_servers`: another address of it had another server.
        """
        kind = key.partition("/")[0]
        server = sys.intern(server_of(address, kind))
        if not server:
            return
        own = self._servers.setdefault(key, server)
        if own != server:
            raise _mixed(kind, own, server, file)
        self._own.add(server)


def id_of_address(full_url: str) -> str:
    """Id that a Bundle entry without one has by its address.

    >>> id_of_address("urn:uuid:0c3a"), id_of_address("http://ehr.example/Patient/7")
    ('0c3a', '7')
    """
    return full_url.replace(":", "/").rpartition("/")[2]


def server_of(address: str, kind: str) -> str:
    """Base of a resource's absolute address, without the protocol: it tells no servers apart.

    >>> server_of("https://EHR.example/fhir/Patient/7/_history/2", "Patient")
    'ehr.example/fhir'
    >>> server_of("Patient/7", "Patient"), server_of("http://ehr.example/letters/7", "Patient")
    ('', '')
    """
    protocol, _, rest = address.partition("://")
    if not rest or protocol.lower() not in ("http", "https"):
        return ""
    parts = rest.partition("/_history/")[0].rsplit("/", 2)
    if len(parts) < 3 or parts[1] != kind:
        return ""
    host, _, path = parts[0].partition("/")
    return f"{host.lower()}/{path}".strip("/")


def _mixed(kind: str, first: str, second: str, place: str) -> FormatError:
    hosts = sorted({_host(first), _host(second)})
    where = f"{hosts[0]} and {hosts[1]}" if len(hosts) == 2 else f"two paths of {hosts[0]}"
    return FormatError(
        f"one {kind} id stands for two resources, on two servers: {where}",
        code="mixed_servers",
        place=place,
        remedy="Ingest each server's export on its own; if it is one server, give its addresses "
        "one base.",
    )


def _host(server: str) -> str:
    """Name of a server as it may be shown: what a path holds nobody knows."""
    host = server.partition("/")[0].rpartition("@")[2]
    return host if _HOST.fullmatch(host) else "one of no usual name"
