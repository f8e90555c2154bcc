# pyright: strict
"""Who the patients of an export are: their keys, their deaths, and who is one person.

A hospital that finds that it has registered somebody twice keeps one Patient and links the other to
it as `replaced-by`, which must then no longer be used (https://hl7.org/fhir/R4/patient.html). Facts
go on referring to the old one. So what refers to a replaced patient belongs to the survivor, who
alone says sex, birth and death. The survivor's own `replaces` means the same, also where the old
one is not in the export at all.

A link that leads nowhere, in a circle or to several survivors merges nobody: to take two people for
one is worse than to miss a merge. Nor does one that names a server of which the export does not say
that it is its own: the patient of that number here may be a stranger to the one there. Links of
other types (`refer`, `seealso`) merge nobody either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import cast

from tsfm.clock import LONGEST_DAY_US, Clock, Stamp, StampError
from tsfm.ingest.fhir_addresses import Addresses
from tsfm.ingest.fhir_fields import Patient, stable_id
from tsfm.ingest.fhir_loose_fields import read_loosely, text_in

REPLACED_BY, REPLACES = "replaced-by", "replaces"


@dataclass(slots=True)
class PatientIndex:
    """Patients by `Patient/id`, settled once all resources are in.

    Attributes:
        addresses: What references mean.
        subjects: Patient to subject id; to the survivor's for one who was replaced.
        source_ids: Subject id to the Patient's id.
        deaths: Subject id to the stamp of death.
        vague_deaths: Subjects of whose death no day is known.
        shared_keys: Patients whose MIMIC key is claimed by another patient too.
        merged: Patients of the source who were replaced by another of it.
        unused_links: Patients whose links merge them with nobody, though they should.
        unused_deaths: Replaced patients with a date of death where the survivor has none.
    """

    addresses: Addresses
    subjects: dict[str, int] = field(default_factory=dict[str, int])
    source_ids: dict[int, str] = field(default_factory=dict[int, str])
    deaths: dict[int, Stamp] = field(default_factory=dict[int, Stamp])
    vague_deaths: set[int] = field(default_factory=set[int])
    shared_keys: int = 0
    merged: set[str] = field(default_factory=set[str])
    unused_links: set[str] = field(default_factory=set[str])
    unused_deaths: int = 0
    _waiting: dict[str, tuple[str, str | None]] = field(
        default_factory=dict[str, tuple[str, str | None]]
    )
    _links: dict[str, list[tuple[str, str]]] = field(
        default_factory=dict[str, list[tuple[str, str]]]
    )
    _deleted: set[str] = field(default_factory=set[str])

    def add(self, row: Patient, mimic_key: str) -> None:
        """Keep a patient's key, death and links; a later copy takes the place of an earlier one."""
        patient = f"Patient/{row.id}"
        self._waiting[patient] = mimic_key, row.deceased_date_time
        links = _links_of(row)
        self._links.pop(patient, None)
        if links:
            self._links[patient] = links

    def forget(self, patient: str) -> None:
        """Drop a patient whom the source has deleted."""
        self._waiting.pop(patient, None)
        self._links.pop(patient, None)
        self._deleted.add(patient)

    def is_deleted(self, reference: str) -> bool:
        """Whether a reference means a patient whom the source has deleted."""
        return bool(self.addresses.find(reference, "Patient", self._deleted))

    def deaths_as_written(self) -> Iterator[str | None]:
        """Dates of death, until they are settled."""
        return (death for _, death in self._waiting.values())

    def settle(self, clock: Clock) -> None:
        """Give every patient a subject, and every subject a death, once all are in."""
        survivors = self._survivors()
        alone = {patient: row for patient, row in self._waiting.items() if patient not in survivors}
        claims = Counter(key for key, _ in alone.values() if key)
        for patient, (mimic_key, death) in alone.items():
            own = bool(mimic_key) and claims[mimic_key] == 1
            self.shared_keys += bool(mimic_key) and not own
            subject = int(mimic_key) if own else stable_id(patient.removeprefix("Patient/"))
            self.subjects[patient] = subject
            self.source_ids[subject] = patient.removeprefix("Patient/")
            if death:
                # A Patient with an unreadable date is set aside for it in the second pass.
                with suppress(StampError):
                    self.deaths[subject] = stamp = clock.read(death)
                    if stamp.end_us - stamp.us > LONGEST_DAY_US:
                        self.vague_deaths.add(subject)
        for patient, survivor in survivors.items():
            self.subjects[patient] = self.subjects[survivor]
            if patient in self._waiting:
                self.merged.add(patient)
                _, death = self._waiting[patient]
                self.unused_deaths += bool(death) and not alone[survivor][1]
        self._waiting.clear()
        self._links.clear()

    def _survivors(self) -> dict[str, str]:
        """Of every patient who was replaced, in the source or not, who is left in the end."""
        replaced_by: dict[str, set[str]] = {}
        for patient, links in self._links.items():
            for kind, reference in links:
                other = self.addresses.key(reference, "Patient")
                if not other or not self.addresses.is_ours(reference, other):
                    self.unused_links.add(patient)
                elif kind == REPLACED_BY and other in self._waiting:
                    replaced_by.setdefault(patient, set()).add(other)
                elif kind == REPLACES:
                    replaced_by.setdefault(other, set()).add(patient)
                else:
                    self.unused_links.add(patient)
        order = TopologicalSorter(replaced_by)
        with suppress(CycleError):  # the sorter still gives all whose way leads into no circle
            order.prepare()
        survivors: dict[str, str] = {}
        while order.is_active():
            for patient in order.get_ready():
                ends = {survivors.get(other, other) for other in replaced_by.get(patient, ())}
                if len(ends) == 1:
                    survivors[patient] = ends.pop()
                order.done(patient)
        self.unused_links = (self.unused_links | replaced_by.keys()) - survivors.keys()
        return survivors


def _links_of(row: Patient) -> list[tuple[str, str]]:
    """Links of replacement by type and reference; what is no link that can be read has no type."""
    value = read_loosely(row.link)
    if value is None:
        return []
    links = cast("list[object]", value) if isinstance(value, list) else [None]
    told = [(text_in(link, "type"), text_in(link, "other", "reference")) for link in links]
    return [(kind, reference) for kind, reference in told if kind in (REPLACED_BY, REPLACES, "")]
