"""A largest share of rows set aside that is no share is refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

import tsfm
from tsfm.errors import InputError
from tsfm.ingest.quarantine import check_largest_share
from tsfm.ingest.table_run import table_run

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
