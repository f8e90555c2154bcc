# pyright: strict
"""UCI's "Diabetes 130-US hospitals for years 1999-2008" to the event table.

One file of stays (`diabetic_data*.csv` or `.csv.gz`, the publisher's 50 columns) and one that says
what its ids mean (`IDs_mapping.csv`, beside it). What a row says is declared in
`diabetes130_tables`; this file reads the two, puts the stays on a clock and sums up.

**Clock.** The source has no dates at all. A patient's stays are taken in the order of their
`encounter_id`; a stay's length is true; where it stands is made up: the first begins on 2000-01-01
at noon, and between a discharge and the next stay lie 30 days where the label says `<30`, and 90
where it does not. So intervals within a stay, and the answer to "back within 30 days?", are the
source's; no other interval, date or hour of the day is, and `metadata/dataset.json` says so
(`synthetic_clock`). Ages are the middle of their band of ten years.

A patient back within 30 days in a stay that the file does not hold gets that admission and nothing
else, so that `readmission_30d` has the source's labels.
"""

from __future__ import annotations

import csv
import io
from datetime import timedelta
from pathlib import Path

import polars as pl
from tqdm import tqdm

from tsfm.errors import FormatError, InputError
from tsfm.ingest import diabetes130_tables as tables
from tsfm.ingest.csv_rows import BLOCK_BYTES, LINE, BadRow, CsvRows
from tsfm.ingest.provenance import IngestSummary, dataset_facts
from tsfm.ingest.table_run import table_run

MAPPING_NAME = "IDs_mapping.csv"
SYNTHETIC_CLOCK = (
    "stays are ordered by encounter_id; their lengths are true, their dates are not: a next stay "
    f"begins {tables.LABEL_DAYS} days after a discharge labelled <30, else "
    f"{tables.OTHER_GAP_DAYS} days after it"
)
_PATIENT = "patient_nbr"


def ingest_diabetes130(
    src: str | Path,
    out: str | Path,
    *,
    mapping: str | Path | None = None,
    coding_delay_hours: float = 120.0,
    n_shards: int = 4,
    progress: bool | None = None,
    max_quarantined: float = 0.5,
    block_bytes: int = BLOCK_BYTES,
) -> IngestSummary:
    """Read the file of stays into a new event table.

    Args:
        src: CSV or CSV.gz of the stays.
        out: Root of the data set to write.
        mapping: What the ids mean; `IDs_mapping.csv` beside `src` if None.
        coding_delay_hours: From a discharge to the moment its diagnoses are known.
        n_shards: Event files to spread the subjects over.
        progress: Show a progress bar; None: on a terminal only.
        max_quarantined: Share of rows set aside above which the run fails.
        block_bytes: Text parsed at a time; the events do not depend on it.

    Raises:
        InputError: `missing_source`, `missing_mapping`, `output_exists` or `bad_coding_delay`.
        FormatError: `missing_column`, `bad_mapping`, `truncated_gzip`, `bad_csv` or
            `too_many_quarantined`.
    """
    if not 0 <= coding_delay_hours < 24 * 3660:
        raise InputError(
            "the coding delay is negative or beyond ten years",
            code="bad_coding_delay",
            place="--coding-delay-hours",
            remedy="Give the hours from discharge to billing codes, such as 120.",
        )
    path = Path(src)
    if not path.is_file():
        raise InputError(
            "no such file",
            code="missing_source",
            place=str(path),
            remedy="Give the file of stays, such as diabetic_data.csv.",
        )
    meanings = read_mapping(path.with_name(MAPPING_NAME) if mapping is None else Path(mapping))
    table = tables.encounters(timedelta(hours=coding_delay_hours), meanings)
    with table_run("diabetes130", out, n_shards=n_shards, max_quarantined=max_quarantined) as run:
        with run.reading():
            rows, bad = _read(path, table.columns, block_bytes, progress)
            stays = tables.add_times(run.events.clean(table, path.name, rows, bad))
            run.events.write(table, stays)
        returns = tables.returns_elsewhere(stays)
        run.writer.add(returns)
        run.finish(
            dataset=dataset_facts(
                "diabetes-130-us-hospitals",
                clock="wall",
                module="diabetes130",
                license="CC BY 4.0",
                synthetic_clock=SYNTHETIC_CLOCK,
                coding_delay_hours=coding_delay_hours,
                data_as_of=None,
                dates_shifted=True,
            ),
            subject_ids={subject: str(subject) for subject in stays["subject_id"].unique().sort()},
        )
    run.summary.notes += [
        f"clock: {SYNTHETIC_CLOCK}",
        f"{returns.height:,} patients were back within 30 days in a stay that is not in the file: "
        "it is an admission and nothing else",
    ]
    return run.summary


def read_mapping(path: Path) -> dict[str, dict[str, str]]:
    """What the ids mean: for each column of ids, id to words.

    The file is three tables of id and description, one below the other, each with its own header.

    Raises:
        InputError: `missing_mapping`.
        FormatError: `bad_mapping`.
    """
    if not path.is_file():
        raise InputError(
            "the meaning of the ids is missing",
            code="missing_mapping",
            place=str(path),
            remedy=f"Put {MAPPING_NAME} beside the file of stays, or give --mapping.",
        )
    found: dict[str, dict[str, str]] = {}
    column = ""
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    for row in csv.reader(io.StringIO(text)):
        key, words = ([*(cell.strip() for cell in row), "", ""])[:2]
        if key in tables.IDS:
            column = key
            found[column] = {}
        elif key and column:
            found[column][key] = words
    absent = [name for name in tables.IDS if not found.get(name)]
    if absent:
        raise FormatError(
            f"no meanings of {absent[0]}",
            code="bad_mapping",
            place=path.name,
            remedy=f"The file needs a table of id and description for {', '.join(tables.IDS)}.",
        )
    return found


def _read(
    path: Path, columns: tuple[str, ...], block_bytes: int, progress: bool | None
) -> tuple[pl.DataFrame, list[BadRow]]:
    """All rows, missing values as nulls, and what could not be told apart."""
    wanted = [_PATIENT if name == "subject_id" else name for name in columns]
    rows = CsvRows(path, wanted, place=path.name, block_bytes=block_bytes)
    hide = None if progress is None else not progress
    frames = [pl.DataFrame(schema={**dict.fromkeys(wanted, pl.String), LINE: pl.Int64})]
    bad: list[BadRow] = []
    with tqdm(total=path.stat().st_size, unit="B", unit_scale=True, disable=hide,
              desc="diabetes130") as bar:  # fmt: skip
        before = 0
        for frame, bad_rows in rows.chunks():
            frames.append(frame)
            bad += bad_rows
            bar.update(rows.n_bytes - before)
            before = rows.n_bytes
    table = pl.concat(frames).rename({_PATIENT: "subject_id"})
    texts = [pl.col(name) for name in columns]
    known = [pl.when(text.str.strip_chars() != tables.MISSING).then(text) for text in texts]
    return table.select(*known, LINE), bad
