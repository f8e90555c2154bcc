# pyright: strict
"""Which medication a resource means: by code, by reference, contained, or mixed from others.

A medication is named by its RxNorm or ATC code where it has one, else in words. MIMIC gives
national drug, formulary and generic sequence numbers; its `Medication` resources tie them to the
name that its tables use. Where one number has several names, the alphabetically first is taken, so
that the order of files does not matter. A mix is named by its parts.

Brand, strength and form are not taken apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from tsfm.ingest.fhir_addresses import Addresses
from tsfm.ingest.fhir_codes import ATC, RXNORM, choose, is_mimic, system_name
from tsfm.ingest.fhir_fields import (
    Concept,
    Head,
    Identifier,
    Medication,
    MedicationEvent,
    Reference,
)

MAX_MIX_DEPTH = 3
Name = tuple[str, ...]
"""Parts of the code that name a medication; empty where nothing does."""


@dataclass(slots=True)
class MedicationIndex:
    """`Medication` resources and the names of MIMIC's drug numbers.

    Attributes:
        addresses: What references mean, shared with the other references.
    """

    addresses: Addresses
    _rows: dict[str, Medication] = field(default_factory=dict[str, Medication])
    _by_number: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])

    def add(self, row: Medication) -> None:
        """Keep a medication and tie its numbers to its name."""
        self._rows[f"Medication/{row.id}"] = row
        name = _mimic_name(row.identifier)
        for key in row.identifier if name else ():
            if is_mimic(key.system) and key.value:
                number = (key.system, key.value)
                self._by_number[number] = min(name, self._by_number.get(number, name))

    def forget(self, medication: str) -> None:
        """Drop a medication; what its drug number is called stays true."""
        self._rows.pop(medication, None)

    def name(self, row: MedicationEvent) -> Name:
        """Name of the medication of an order, dose, dispense or statement."""
        name = self.name_of_concept(row.medication_codeable_concept)
        if name or row.medication_reference is None:
            return name
        found = self._find(row.medication_reference, row.contained)
        name = self._name(found, row.contained, MAX_MIX_DEPTH) if found else ()
        display = row.medication_reference.display.strip()
        return name or ((display,) if display else ())

    def name_of_concept(self, concept: Concept | None) -> Name:
        """Name of a medication that is given as codings or text."""
        if concept is None:
            return ()
        coding = choose(concept, RXNORM, ATC)
        name = system_name(coding.system) if coding else ""
        if coding and name in (RXNORM, ATC):
            return (name, coding.code)
        if concept.text.strip():
            return (concept.text,)
        if coding is None:
            display = next((c.display for c in concept.coding if c.display.strip()), "")
            return (display,) if display else ()
        known = self._by_number.get((coding.system, coding.code))
        return (known or coding.display or coding.code,)

    def _find(self, reference: Reference, contained: list[msgspec.Raw]) -> Medication | None:
        if not is_local(reference):
            return self._rows.get(
                self.addresses.find(reference.reference, "Medication", self._rows)
            )
        for raw in contained:
            try:
                head = msgspec.json.decode(raw, type=Head)
                if head.resource_type == "Medication" and f"#{head.id}" == reference.reference:
                    return msgspec.json.decode(raw, type=Medication)
            except msgspec.DecodeError:
                continue  # another contained resource with fields of unexpected types
        return None

    def _name(self, row: Medication, contained: list[msgspec.Raw], depth: int) -> Name:
        mimic_name = _mimic_name(row.identifier)
        name = (mimic_name,) if mimic_name else self.name_of_concept(row.code)
        if name or not depth:
            return name
        parts: list[str] = []
        for ingredient in row.ingredient:
            part = self.name_of_concept(ingredient.item_codeable_concept)
            if not part and ingredient.item_reference:
                found = self._find(ingredient.item_reference, contained)
                part = self._name(found, contained, depth - 1) if found else ()
            if part:
                parts.append(" ".join(part))
        return (" + ".join(parts),) if parts else ()


def is_local(reference: Reference | None) -> bool:
    """Whether a reference points to a resource contained in its own."""
    return reference is not None and reference.reference.startswith("#")


def _mimic_name(identifiers: list[Identifier]) -> str:
    return next(
        (i.value for i in identifiers if i.system.endswith("mimic-medication-name") and i.value),
        "",
    )
