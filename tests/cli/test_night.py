"""The script of a night, as its page prints it: it may be repeated, and then does what is left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tsfm import event_table


class Night:
    """The page's script with its folders moved below a root."""

    def __init__(self, page: Path, root: Path, road: Any) -> None:
        (script,) = re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)
        assert script.count("/srv/tsfm") >= 1
        for name, folder in (
            ("/srv/tsfm", root / "srv"),
            ("/exports", root / "exports"),
            ("/models/readmission", road / "model"),
        ):
            script = script.replace(name, str(folder))
        # A night that goes on past midnight is still that night.
        self.script = script.replace("$(date +%F)", str(date(2150, 1, 2)))
        assert self.script != script
        (root / "exports").mkdir()
        self.export = root / "exports" / "2150-01-02"
        self.folder = root / "srv" / "2150-01-02"

    def run(self) -> int:
        """Run the script; returns its exit code."""
        scripts = Path(sys.executable).parent
        environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(
            ["bash", "-c", self.script], env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=600, check=False,
        ).returncode  # fmt: skip

    def bytes(self) -> dict[str, bytes]:
        """Contents of all files of the night."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }


@pytest.fixture
def night(repository: Path, tmp_path: Path, road: Any) -> Night:
    return Night(repository / "docs" / "how-to" / "score-every-night.md", tmp_path, road)


def test_a_night_may_be_repeated_and_does_what_is_left(night: Night, road: Any) -> None:
    night.export.symlink_to(road / "hospital" / "fhir")
    assert night.run() == 0
    whole = night.bytes()
    summary = json.loads(whole["ingest.json"])
    assert sum(summary["rows_read"].values()) > 0
    assert {"run/run.json", "run/report.html", "run/scores.parquet"} <= set(whole)
    assert not [name for name in whole if name.endswith(".new")]

    assert night.run() == 0  # nothing is left to do
    assert night.bytes() == whole

    (night.folder / "run" / "report.html").unlink()  # stopped while the report was written
    assert night.run() == 0
    assert set(night.bytes()) == set(whole)
    assert night.bytes()["run/run.json"] == whole["run/run.json"]

    for name in ("run.json", "report.html"):  # stopped while stays were scored
        (night.folder / "run" / name).unlink()
    assert night.run() == 0
    again = night.bytes()
    assert set(again) == set(whole)
    assert again["ingest.json"] == whole["ingest.json"]
    assert again["run/scores.parquet"] == whole["run/scores.parquet"]


def test_a_night_without_an_export_fails_and_is_made_once_it_is_there(
    night: Night, road: Any
) -> None:
    assert night.run() == 1
    assert not (night.folder / "ingest.json").exists()
    assert not (night.folder / "run").exists()
    bad = b'{"resourceType": "Observation"'
    night.export.mkdir()
    for file in (road / "hospital" / "fhir").iterdir():
        (night.export / file.name).write_bytes(file.read_bytes())
    (night.export / "more.ndjson").write_bytes(bad)
    assert night.run() == 0  # rows set aside do not stop a night
    assert json.loads((night.folder / "ingest.json").read_text())["quarantined"] == {"bad_json": 1}
    assert event_table.shard_paths(night.folder / "events")
    assert (night.folder / "run" / "report.html").exists()
