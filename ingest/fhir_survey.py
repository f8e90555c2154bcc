# pyright: strict
"""First pass over a FHIR export: what each line is, what others refer to, what is stale or deleted.

The survey leaves a ledger, one byte a resource, so that the second pass decodes every resource
straight into the struct of its type. A resource that occurs more than once (bulk exports overlap,
and bundles repeat) is kept once, in its newest version, but for results that were changed
(`fhir_versions`); finding copies takes eight bytes a resource, not its name. What the source says
that it deleted (`fhir_bundles`) is marked in the ledger and taken out of the references.

No event is made here.
"""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tsfm.errors import FormatError
from tsfm.ingest import fhir_claim_fields as claim_fields
from tsfm.ingest import fhir_fields as fields
from tsfm.ingest.fhir_addresses import id_of_address
from tsfm.ingest.fhir_bundles import Bundle, Deletions, Manifest, Name, updated_at
from tsfm.ingest.fhir_files import Block, ByteCount, SourceFile, read_blocks
from tsfm.ingest.fhir_references import ReferenceIndex
from tsfm.ingest.fhir_versions import RESULTS, Age, ResultVersions
from tsfm.ingest.quarantine import Quarantine

EVENT_TYPES: dict[str, type[fields.Fields]] = {
    "Patient": fields.Patient,
    "Encounter": fields.Encounter,
    "Location": fields.Location,
    "Medication": fields.Medication,
    "Specimen": fields.Specimen,
    "MedicationRequest": fields.MedicationRequest,
    "MedicationAdministration": fields.MedicationAdministration,
    "MedicationDispense": fields.MedicationDispense,
    "MedicationStatement": fields.MedicationStatement,
    "Condition": fields.Condition,
    "Observation": fields.Observation,
    "Procedure": fields.Procedure,
    "Immunization": fields.Immunization,
    "AllergyIntolerance": fields.AllergyIntolerance,
    "DiagnosticReport": fields.DiagnosticReport,
    "Claim": claim_fields.Claim,
    "ClaimResponse": claim_fields.ClaimResponse,
}
"""Resource types that are read; all others are counted."""

UNREADABLE = "(unreadable)"
FIRST_TYPE = 5
"""Ledger mark of the first of `EVENT_TYPES`; the others follow in order."""

COPY, DELETED = 3, 4
"""Ledger marks of a resource of which another copy is used, and of one that the source deleted."""

_NOTHING, _SPENT, _BUNDLE = range(3)
_MARKS = {name: FIRST_TYPE + n for n, name in enumerate(EVENT_TYPES)}
_REPORT = _MARKS["DiagnosticReport"]
_RESULT_MARKS = frozenset(_MARKS[name] for name in RESULTS)
_TYPE_NAME = re.compile(r"[A-Z][A-Za-z]{1,60}")
_MAX_BUNDLE_DEPTH = 8
_UNREADABLE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_decode_head = msgspec.json.Decoder(fields.Head).decode
_decode_bundle = msgspec.json.Decoder(Bundle).decode
_decode_version = msgspec.json.Decoder(fields.Version).decode
_decode_loosely = msgspec.json.Decoder(fields.LooseVersion).decode

Json = msgspec.Raw | bytes
Row = tuple[int, int, Json, str, Block, int]
"""Position in the ledger, ledger mark, JSON, address in a Bundle, block, index within it."""


@dataclass(slots=True)
class Survey:
    """What the first pass found.

    Attributes:
        files: Files in order of reading.
        quarantine: Where unreadable lines go.
        references: Referenced resources, not yet settled.
        read: Resources by type.
        ignored: Resources of types that hold no patient events.
        n_bundles: Bundles unpacked.
        transaction_times: Of the bulk-export manifests found.
        deletions: What the source says it has deleted.
        changed_again: Positions of results' versions that change a change.
    """

    files: list[SourceFile]
    quarantine: Quarantine
    references: ReferenceIndex = field(default_factory=ReferenceIndex)
    read: Counter[str] = field(default_factory=Counter[str])
    ignored: Counter[str] = field(default_factory=Counter[str])
    n_bundles: int = 0
    transaction_times: list[str] = field(default_factory=list[str])
    deletions: Deletions = field(default_factory=Deletions)
    changed_again: set[int] = field(default_factory=set[int])
    _ledger: bytearray = field(default_factory=bytearray)
    _keys: array[int] = field(default_factory=lambda: array("q"))
    _keepers: dict[str, tuple[Callable[[Any], Any], Callable[[Any], None]]] = field(
        default_factory=dict[str, tuple[Callable[[Any], Any], Callable[[Any], None]]]
    )

    def __post_init__(self) -> None:
        """Say which types are indexed, and how."""
        keep = self.references
        for name, add in (
            ("Patient", keep.add_patient),
            ("Encounter", keep.add_encounter),
            ("Location", keep.add_location),
            ("Medication", keep.add_medication),
            ("MedicationRequest", keep.add_request),
            ("Specimen", keep.add_specimen),
        ):
            self._keepers[name] = (msgspec.json.Decoder(EVENT_TYPES[name]).decode, add)

    def run(self, read: ByteCount, advance: Callable[[], None]) -> None:
        """Read all files once; `advance` is called after every block."""
        for file in self.files:
            for block in read_blocks(file, read):
                if block.problem:
                    self._set_aside(block.problem, b"", block, 0)
                    continue
                for index, raw in enumerate(block.lines):
                    if raw:
                        self._note(raw, "", block, index, 0)
                    else:
                        self._mark(_NOTHING)
                advance()
        for name, mark in _MARKS.items():
            self.read[name] += self._ledger.count(mark)
        self.read = +self.read
        self._drop_copies()
        self._drop_deleted()

    def rows(self, read: ByteCount, advance: Callable[[], None]) -> Iterator[Row]:
        """All resources of `EVENT_TYPES`, in the order of the first pass.

        Raises:
            FormatError: A file has changed since the first pass.
        """
        position = 0
        ledger = self._ledger
        for file in self.files:
            _check_unchanged(file)
            for block in read_blocks(file, read):
                if position + len(block.lines) > len(ledger):
                    raise _changed(file)
                for index, raw in enumerate(block.lines):
                    mark = ledger[position]
                    if mark >= COPY:
                        yield position, mark, raw, "", block, index
                    elif mark == _BUNDLE:
                        position = yield from self._entries(raw, position, block, index)
                    position += 1
                advance()
            _check_unchanged(file)

    def _entries(
        self, raw: Json, position: int, block: Block, index: int
    ) -> Generator[Row, None, int]:
        for resource, full_url in _decode_bundle(raw).resources():
            position += 1
            mark = self._ledger[position]
            if mark == _BUNDLE:
                position = yield from self._entries(resource, position, block, index)
            elif mark >= COPY:
                yield position, mark, resource, full_url, block, index
        return position

    def _mark(self, mark: int, key: int = 0) -> None:
        self._ledger.append(mark)
        self._keys.append(key)

    def _set_aside(
        self, reason: str, raw: Json, block: Block, index: int, kind: str = UNREADABLE
    ) -> None:
        self._mark(_SPENT)
        self.read[kind] += 1
        quarantine_row(self.quarantine, reason, raw, block, index, kind)

    def _note(self, raw: Json, full_url: str, block: Block, index: int, depth: int) -> None:
        """Write a resource into the ledger, and into the references if others may need it."""
        try:
            head = _decode_head(raw)
        except _UNREADABLE_ERRORS as error:
            if bytes(raw).strip():
                reason = reason_of(error)
                reason = "not_a_resource" if reason == "bad_field" else reason
                self._set_aside(reason, raw, block, index)
            else:
                self._mark(_NOTHING)
            return
        kind = head.resource_type
        mark = _MARKS.get(kind)
        if mark is None:
            self._note_other(kind, raw, block, index, depth)
            return
        id = head.id or (id_of_address(full_url) if full_url else "")
        if not id:
            self._set_aside("no_id", raw, block, index, kind)
            return
        self._ledger.append(mark)
        self._keys.append(hash((kind, id)))
        if kind in self._keepers:
            self._keep(kind, id, raw)
            if full_url:
                self.references.addresses.add(full_url, f"{kind}/{id}", block.file.name)

    def _note_other(self, kind: str, raw: Json, block: Block, index: int, depth: int) -> None:
        if kind == "Bundle":
            self._unpack(raw, block, index, depth)
        elif _TYPE_NAME.fullmatch(kind):
            self.read[kind] += 1
            self.ignored[kind] += 1
            self._mark(_SPENT)
        elif kind:
            self._set_aside("bad_resource_type", raw, block, index)
        else:
            try:
                manifest = msgspec.json.decode(raw, type=Manifest)
            except msgspec.DecodeError:
                self._set_aside("no_resource_type", raw, block, index)
            else:
                self.transaction_times.append(manifest.transaction_time)
                self.deletions.add_manifest(manifest, block.file.name)
                self._mark(_NOTHING)

    def _unpack(self, raw: Json, block: Block, index: int, depth: int) -> None:
        try:
            bundle = _decode_bundle(raw)
        except _UNREADABLE_ERRORS as error:
            self._set_aside(reason_of(error), raw, block, index, "Bundle")
            return
        if depth == _MAX_BUNDLE_DEPTH:
            self._set_aside("too_deep", raw, block, index, "Bundle")
            return
        self.read["Bundle"] += 1
        self.n_bundles += 1
        self._mark(_BUNDLE)
        self.deletions.add(bundle, block.file.name)
        for resource, full_url in bundle.resources():
            self._note(resource, full_url, block, index, depth + 1)

    def _keep(self, kind: str, id: str, raw: Json) -> None:
        decode, add = self._keepers[kind]
        try:
            row = decode(raw)
        except _UNREADABLE_ERRORS:
            return  # set aside for the same reason in the second pass
        row.id = id
        add(row)

    def _drop_copies(self) -> None:
        """Mark all but the versions that count of each resource that occurs more than once."""
        import numpy as np

        if not self._ledger:
            return
        marks = np.frombuffer(self._ledger, dtype=np.uint8)
        keys = np.frombuffer(self._keys, dtype=np.int64)[marks >= FIRST_TYPE]
        unique, counts = np.unique(keys, return_counts=True)
        repeated = set(unique[counts > 1].tolist())
        del marks, keys, unique, counts  # the ledger can't be written while arrays look at it
        if not repeated:
            return
        best: dict[tuple[int, str], tuple[Age, int, Json]] = {}
        results = ResultVersions()
        for position, mark, raw, full_url, block, _ in self.rows(ByteCount(), _do_nothing):
            if mark == COPY or self._keys[position] not in repeated:
                continue
            try:
                row = (_decode_loosely if mark == _REPORT else _decode_version)(raw)
            except _UNREADABLE_ERRORS:
                continue
            name = (mark, row.id or id_of_address(full_url))
            key = f"{row.resource_type}/{name[1]}"
            self.references.addresses.check_server(key, full_url, block.file.name)
            # Of versions that say nothing of their age, the content decides and not the place.
            age = (*_age(row.meta), hashlib.sha256(raw).digest())
            other = best.get(name)
            if mark in _RESULT_MARKS:
                replaced = results.add(name, age, position, row.status, raw)
                if replaced is not None:
                    self._ledger[replaced] = COPY
            elif other is None:
                best[name] = age, position, raw
            elif age > other[0]:
                self._ledger[other[1]] = COPY
                best[name] = age, position, raw
            else:
                self._ledger[position] = COPY
        others, self.changed_again = results.settle()
        for position in others:
            self._ledger[position] = COPY
        names = list(EVENT_TYPES)
        for (mark, id), (_, _, raw) in best.items():
            if names[mark - FIRST_TYPE] in self._keepers:
                self._keep(names[mark - FIRST_TYPE], id, raw)

    def _drop_deleted(self) -> None:
        """Mark all versions of what the source has deleted, unless one is newer than that."""
        times = self.deletions.times(self.references.addresses)
        keys = {hash(name) for name in times}
        if not keys or keys.isdisjoint(self._keys):
            return
        versions: dict[Name, list[int]] = {}
        outlived: set[Name] = set()
        for position, _, raw, full_url, block, _ in self.rows(ByteCount(), _do_nothing):
            if self._keys[position] not in keys:
                continue
            row = _version_of(raw)
            name = (row.resource_type, row.id or id_of_address(full_url))
            if name in times:
                file = block.file.name
                self.references.addresses.check_server("/".join(name), full_url, file)
                versions.setdefault(name, []).append(position)
                if _age(row.meta)[0] > times[name]:
                    outlived.add(name)
        self.deletions.n_outlived = len(outlived)
        for name in versions.keys() - outlived:
            self.references.forget(*name)
            for position in versions[name]:
                self._ledger[position] = DELETED


def quarantine_row(
    quarantine: Quarantine, reason: str, raw: Json, block: Block, index: int, kind: str
) -> None:
    """Set a resource aside under its place in the source."""
    quarantine.add(
        reason,
        file=block.file.name,
        line=block.line_number(index),
        offset=block.line_offset(index),
        raw=bytes(raw) or None,
        kind=None if kind == UNREADABLE else kind,
    )


def kind_of(raw: Json) -> str:
    """Resource type of JSON that the survey could read."""
    return _decode_head(raw).resource_type


def reason_of(error: Exception) -> str:
    """Quarantine reason of JSON that can't be decoded."""
    if isinstance(error, RecursionError):
        return "too_deep"
    return "bad_field" if isinstance(error, msgspec.ValidationError) else "bad_json"


def _version_of(raw: Json) -> fields.LooseVersion:
    try:
        return _decode_loosely(raw)
    except _UNREADABLE_ERRORS:  # such as a status that is a number
        head = _decode_head(raw)
        return fields.LooseVersion(head.resource_type, head.id)


def _age(meta: fields.Meta | None) -> tuple[float, int]:
    """Order of versions: by the time of the last update, then by version number."""
    if meta is None:
        return 0.0, -1
    when = updated_at(meta.last_updated) or 0.0
    number = meta.version_id
    return when, int(number) if number.isascii() and number.isdigit() and len(number) < 19 else -1


def _do_nothing() -> None:
    """Show no progress."""


def _check_unchanged(file: SourceFile) -> None:
    try:
        status = os.stat(file.path)
    except OSError as error:
        raise _changed(file) from error
    if (status.st_size, status.st_mtime_ns) != (file.size, file.modified_ns):
        raise _changed(file)


def _changed(file: SourceFile) -> FormatError:
    return FormatError(
        "the file changed while it was read",
        code="file_changed",
        place=file.name,
        remedy="Wait until the export is complete, then run once more.",
    )
