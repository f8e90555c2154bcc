"""A FHIR R4 bulk export on disk: NDJSON files by resource type and their manifest.

The layout is that of Bulk Data Access: one or several files a type, and a manifest that names each
with its count and says up to which moment the server knew (`transactionTime`). What a resource says
is `tsfm.simulation.fhir_resources`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self
from zoneinfo import ZoneInfo

import msgspec

from tsfm.simulation.chart import Chart
from tsfm.simulation.fhir_resources import ChartResources, Resource, facility

_SERVER = "https://hospital.example.org/fhir"


class FhirWriter:
    """Writes charts as NDJSON; use as a context manager, then call `finish`.

    Args:
        folder: Created; files are `<Type>.<part>.ndjson`.
        export: `transactionTime`, seconds since 1970 UTC.
        zone: The facility's time zone.
        patients_per_part: Patients after which every type starts a new file.
    """

    def __init__(
        self, folder: Path, *, export: int, zone: ZoneInfo, patients_per_part: int = 2000
    ) -> None:
        """Create the folder and write the facility itself."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.counts: Counter[str] = Counter()
        self.resources = ChartResources(export=export, zone=zone)
        self._transaction_time = self.resources.stamp(export)
        self._encode = msgspec.json.Encoder().encode
        self._patients_per_part = patients_per_part
        self._n_patients = 0
        self._part = 0
        self._files: dict[str, BinaryIO] = {}
        self._lines: dict[str, int] = {}
        self._write(facility())

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files, also after a failure."""
        self._close()

    def add(self, chart: Chart, more: Mapping[str, list[Resource]] | None = None) -> None:
        """Write one patient's resources, as far as they are known at the export.

        Args:
            chart: The patient's record.
            more: Further resources of the patient by type, such as claims.
        """
        if self._n_patients and self._n_patients % self._patients_per_part == 0:
            self._close()
            self._part += 1
        self._n_patients += 1
        self._write({**self.resources.of_chart(chart), **(more or {})})

    def finish(self) -> Path:
        """Close the files and write `manifest.json` as a bulk-data server answers.

        Returns:
            Path of the manifest.
        """
        self._close()
        manifest = {
            "transactionTime": self._transaction_time,
            "request": f"{_SERVER}/$export?_outputFormat=application/fhir+ndjson",
            "requiresAccessToken": False,
            "output": [
                {"type": name.partition(".")[0], "url": f"{_SERVER}/bulk/{name}", "count": count}
                for name, count in self._lines.items()
            ],
            "error": [],
        }
        path = self.folder / "manifest.json"
        path.write_text(json.dumps(manifest, indent=2) + "\n")
        return path

    def _write(self, resources: dict[str, list[Resource]]) -> None:
        for kind, several in resources.items():
            if not several:
                continue
            name = f"{kind}.{self._part:03d}.ndjson"
            if kind not in self._files:
                self._files[kind] = (self.folder / name).open("wb", buffering=1 << 20)
                self._lines[name] = 0
            self._files[kind].write(b"\n".join(map(self._encode, several)) + b"\n")
            self._lines[name] += len(several)
            self.counts[kind] += len(several)

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
