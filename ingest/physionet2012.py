# pyright: strict
"""ICU stays of the PhysioNet/CinC Challenge 2012 to the event table.

A folder is a set as published, one text file a stay, or the same rows as parquet; the files are
`physionet2012_files`' business. What a row says is declared in `physionet2012_tables`; this file
runs them and sums up.

**Clock.** The source has minutes since the admission to the ICU and no dates. Every stay is put at
the same made-up moment, 2000-01-01T00:00, so intervals within a stay are true and calendar dates
and hours of the day mean nothing; `metadata/dataset.json` says so (`synthetic_clock`). The stay in
hospital is taken to begin with that in the ICU, from which the source counts.

Each stay is a subject of its own: the source does not say which stays are of one person, nor who
came back, so readmission can't be asked of it. Results have one time, when they were charted, and
are taken as known then.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import polars as pl
from tqdm import tqdm

from tsfm.errors import InputError
from tsfm.ingest import physionet2012_tables as tables
from tsfm.ingest.csv_rows import LINE
from tsfm.ingest.physionet2012_files import find_files, read_observations, read_outcomes
from tsfm.ingest.provenance import IngestSummary, dataset_facts
from tsfm.ingest.source_table import SourceTable
from tsfm.ingest.table_events import TableEvents
from tsfm.ingest.table_run import table_run

BATCH_ROWS = 1 << 18
SYNTHETIC_CLOCK = (
    f"every ICU admission is put at {tables.ADMITTED.isoformat()}: times since it are true, "
    "dates and hours of the day are not"
)


def ingest_physionet2012(
    folders: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    n_shards: int = 4,
    progress: bool | None = None,
    max_quarantined: float = 0.5,
    batch_rows: int = BATCH_ROWS,
) -> IngestSummary:
    """Read folders of observations and outcomes into a new event table.

    Args:
        folders: One folder or several, such as `set-a`.
        out: Root of the data set to write.
        n_shards: Event files to spread the subjects over.
        progress: Show a progress bar; None: on a terminal only.
        max_quarantined: Share of rows set aside above which the run fails.
        batch_rows: Rows held in memory at a time; the events do not depend on it.

    Raises:
        InputError: `missing_source`, `empty_source`, `repeated_stay` or `output_exists`.
        FormatError: `missing_column`, `no_header`, `bad_csv`, `bad_parquet` or
            `too_many_quarantined`.
        IntegrityError: `checksum_mismatch`.
    """
    sources = [folders] if isinstance(folders, (str, Path)) else folders
    observations, outcomes = find_files([Path(source) for source in sources])
    with table_run("physionet2012", out, n_shards=n_shards, max_quarantined=max_quarantined) as run:
        with run.reading():
            events, summary = run.events, run.summary
            stays = _read_all(observations, outcomes, events, summary, batch_rows, progress)
        end = tables.ADMITTED + timedelta(minutes=tables.OBSERVED_MINUTES)
        run.finish(
            dataset=dataset_facts(
                "physionet-challenge-2012",
                clock="wall",
                module="physionet2012",
                synthetic_clock=SYNTHETIC_CLOCK,
                data_as_of=end.isoformat(),
                dates_shifted=False,
            ),
            descriptions={
                code: text
                for code, text in tables.DESCRIPTIONS.items()
                if code in events.seen_codes
            },
            subject_ids={stay: str(stay) for stay in stays},
        )
    run.summary.notes += [
        f"clock: {SYNTHETIC_CLOCK}",
        "results are taken as known when they were charted: the source has no later time",
        "who came back is not in the source: readmission can't be asked of it",
    ]
    return run.summary


def _read_all(
    observation_files: list[Path],
    outcome_files: list[Path],
    events: TableEvents,
    summary: IngestSummary,
    batch_rows: int,
    progress: bool | None,
) -> list[int]:
    """Read all files; the subjects that have events."""
    stays: set[int] = set()
    told: set[int] = set()
    n_left = 0
    size = sum(path.stat().st_size for path in observation_files + outcome_files)
    hide = None if progress is None else not progress
    with tqdm(total=size, unit="B", unit_scale=True, desc="physionet2012", disable=hide) as bar:
        table = tables.observations()
        held: list[pl.DataFrame] = []
        for path in observation_files:
            here: set[int] = set()
            for rows, bad in read_observations(path, batch_rows):
                cleaned = events.clean(table, path.name, rows, bad)
                here.update(cleaned["subject_id"].unique())
                held.append(cleaned)
                if sum(frame.height for frame in held) >= batch_rows:
                    _write(events, table, held)
            _check_new(stays & here, path)
            stays |= here
            bar.update(path.stat().st_size)
        _write(events, table, held)
        events.subjects = pl.Series(sorted(stays), dtype=pl.Int64)
        table = tables.outcomes()
        for path in outcome_files:
            # Whole, since two rows of a stay contradict each other wherever they stand.
            rows, bad = read_outcomes(path, table.columns)
            ends = tables.add_outcome_times(events.clean(table, path.name, rows, bad))
            here = set(ends["subject_id"])
            _check_new(told & here, path)
            told |= here
            n_left += ends.height - ends[tables.LEFT].null_count()
            events.write(table, ends)
            bar.update(path.stat().st_size)
    if len(stays) > n_left:
        summary.notes.append(f"{len(stays) - n_left:,} stays have no discharge: none is known")
    return sorted(stays)


def _write(events: TableEvents, table: SourceTable, held: list[pl.DataFrame]) -> None:
    """Write the events of rows held back from many small files, and hold them no more."""
    if held:
        rows = pl.concat(held).with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias(LINE))
        events.write(table, tables.add_times(rows))
        held.clear()


def _check_new(again: set[int], path: Path) -> None:
    if again:
        raise InputError(
            f"{len(again):,} stays are in more than one file",
            code="repeated_stay",
            place=path.name,
            remedy="Give each set once.",
        )
