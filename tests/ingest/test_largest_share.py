"""The largest share of rows set aside: no share is refused at once, and copies take no part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tsfm
from tsfm.errors import FormatError, InputError
from tsfm.ingest.quarantine import check_largest_share
from tsfm.ingest.table_run import table_run

from .fhir_rows import PATIENT, STAY, is_balanced, observation

NONE = (float("nan"), -0.1, 1.5)


@pytest.mark.parametrize("share", NONE)
def test_what_is_no_share_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(InputError, match="bad_max_quarantined"):
        check_largest_share(share)
    with (
        pytest.raises(InputError, match="bad_max_quarantined"),
        table_run("made", tmp_path / "out", n_shards=1, max_quarantined=share),
    ):
        pass
    for ingest in (tsfm.ingest_fhir, tsfm.ingest_meds, tsfm.ingest_wfdb):
        with pytest.raises(InputError, match="bad_max_quarantined"):
            ingest(tmp_path, tmp_path / "out", max_quarantined=share)
    assert not (tmp_path / "out").exists()


def test_the_ends_are_shares() -> None:
    check_largest_share(0.0)
    check_largest_share(1.0)


@pytest.mark.parametrize("stranger", ["", "x"])
def test_exports_side_by_side_are_not_full_of_what_cannot_be_used(
    tmp_path: Path, stranger: str
) -> None:
    results = [observation(id=str(n), valueInteger=5) for n in range(8)]
    results += [
        observation(id=f"s{n}", valueInteger=5, subject={"reference": f"Patient/{stranger or 'p'}"})
        for n in range(12)
    ]
    for night in ("1", "2", "3"):
        folder = tmp_path / "src" / night
        folder.mkdir(parents=True)
        lines = [json.dumps(row) + "\n" for row in (PATIENT, STAY, *results)]
        (folder / "rows.ndjson").write_text("".join(lines))
    if stranger:  # 12 of the 22 that are no copies
        with pytest.raises(FormatError, match=r"12 of 22 resources can't be used") as caught:
            tsfm.ingest_fhir(tmp_path / "src", tmp_path / "out", progress=False)
        assert "unknown_patient" in str(caught.value)
    else:
        summary = tsfm.ingest_fhir(tmp_path / "src", tmp_path / "out", progress=False)
        assert summary.quarantined == {"duplicate_resource": 44}
        assert is_balanced(summary)
