# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
"""ICU stays of the PhysioNet/CinC Challenge 2012 to the event table.

A folder holds `observations-*.parquet` (record_id, minute, parameter, value: the rows of the
published text files) and `outcomes-*.parquet` (record_id and the columns of `Outcomes-*.txt`). What
a row says is declared in `physionet2012_tables`; this file finds the files, runs them and sums up.

**Clock.** The source has minutes since the admission to the ICU and no dates. Every stay is put at
the same made-up moment, 2000-01-01T00:00, so intervals within a stay are true and calendar dates
and hours of the day mean nothing; `metadata/dataset.json` says so (`synthetic_clock`). The stay in
hospital is taken to begin with that in the ICU, from which the source counts.

Each stay is a subject of its own: the source does not say which stays are of one person, nor who
came back, so readmission can't be asked of it. Results have one time, when they were charted, and
are taken as known then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from tsfm.checked_parquet import typed_errors
from tsfm.errors import FormatError, InputError
from tsfm.event_table import EventWriter
from tsfm.ingest import physionet2012_tables as tables
from tsfm.ingest.csv_rows import LINE
from tsfm.ingest.provenance import IngestSummary, dataset_facts
from tsfm.ingest.quarantine import Quarantine
from tsfm.ingest.table_events import TableEvents

BATCH_ROWS = 1 << 18
SYNTHETIC_CLOCK = (
    f"every ICU admission is put at {tables.ADMITTED.isoformat()}: times since it are true, "
    "dates and hours of the day are not"
)
_KEY = "record_id"


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
        folders: One folder or several.
        out: Root of the data set to write.
        n_shards: Event files to spread the subjects over.
        progress: Show a progress bar; None: on a terminal only.
        max_quarantined: Share of rows set aside above which the run fails.
        batch_rows: Rows held in memory at a time; the events do not depend on it.

    Raises:
        InputError: `missing_source`, `empty_source`, `repeated_stay` or `output_exists`.
        FormatError: `missing_column`, `bad_parquet` or `too_many_quarantined`.
        IntegrityError: `checksum_mismatch`.
    """
    sources = [folders] if isinstance(folders, (str, Path)) else folders
    paths = _find_files([Path(source) for source in sources])
    summary = IngestSummary("physionet2012")
    with EventWriter(out, n_shards=n_shards) as writer:
        for stale in (Path(out) / "quarantine").glob("*.ndjson"):
            stale.unlink()  # of a run that failed
        quarantine = Quarantine(out)
        try:
            events = TableEvents(writer, quarantine, summary)
            stays = _read_all(paths, events, summary, batch_rows, progress)
        finally:
            quarantine.close()
        summary.quarantined = dict(quarantine.counts)
        if quarantine.total > max_quarantined * max(1, summary.n_rows):
            raise FormatError(
                f"{quarantine.total:,} of {summary.n_rows:,} rows can't be used",
                code="too_many_quarantined",
                place=str(quarantine.folder),
                remedy="See the reasons there, or raise --max-quarantined.",
            )
        end = tables.ADMITTED + timedelta(minutes=tables.OBSERVED_MINUTES)
        info = writer.finish(
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
    summary.n_subjects, summary.n_events = info.n_subjects, info.n_events
    summary.events_by_class = info.events_by_class
    summary.notes += [
        f"clock: {SYNTHETIC_CLOCK}",
        "results are taken as known when they were charted: the source has no later time",
        "who came back is not in the source: readmission can't be asked of it",
    ]
    summary.stop()
    return summary


def _find_files(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Files of each table, in the order of the folders."""
    found: dict[str, list[Path]] = {"observations": [], "outcomes": []}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(
                "no such folder", code="missing_source", place=str(folder), remedy="Check the path."
            )
        for name, paths in found.items():
            here = sorted(folder.glob(f"{name}-*.parquet"))
            if not here and name == "observations":
                raise InputError(
                    "no observations-*.parquet",
                    code="empty_source",
                    place=str(folder),
                    remedy="Give the folder of the Challenge 2012 tables.",
                )
            paths += here
    return found


def _read_all(
    paths: dict[str, list[Path]],
    events: TableEvents,
    summary: IngestSummary,
    batch_rows: int,
    progress: bool | None,
) -> list[int]:
    """Read all files; the subjects that have events."""
    observations, outcomes = tables.observations(), tables.outcomes()
    stays: set[int] = set()
    hide = None if progress is None else not progress
    files = [path for name in paths for path in paths[name]]
    with tqdm(total=sum(p.stat().st_size for p in files), unit="B", unit_scale=True, disable=hide,
              desc="physionet2012") as bar:  # fmt: skip
        for path in paths["observations"]:
            here: set[int] = set()
            for rows in _batches(path, observations.columns, batch_rows):
                cleaned = tables.add_times(events.clean(observations, path.name, rows, []))
                here.update(cleaned["subject_id"].unique())
                events.write(observations, cleaned)
            _check_new(stays & here, path)
            stays |= here
            bar.update(path.stat().st_size)
        events.subjects = pl.Series(sorted(stays), dtype=pl.Int64)
        told: set[int] = set()
        n_left = 0
        for path in paths["outcomes"]:
            # Whole, since two rows of a stay contradict each other wherever they stand.
            frames = list(_batches(path, outcomes.columns, batch_rows))
            if not frames:
                continue
            rows = tables.add_outcome_times(
                events.clean(outcomes, path.name, pl.concat(frames), [])
            )
            here = set(rows["subject_id"])
            _check_new(told & here, path)
            told |= here
            n_left += rows.height - rows[tables.LEFT].null_count()
            events.write(outcomes, rows)
            bar.update(path.stat().st_size)
    if len(stays) > n_left:
        summary.notes.append(f"{len(stays) - n_left:,} stays have no discharge: none is known")
    return sorted(stays)


def _check_new(again: set[int], path: Path) -> None:
    if again:
        raise InputError(
            f"{len(again):,} stays are in more than one file",
            code="repeated_stay",
            place=path.name,
            remedy="Give each set once.",
        )


def _batches(path: Path, columns: tuple[str, ...], batch_rows: int) -> Iterator[pl.DataFrame]:
    """Rows as text columns with their number in the file, from 1."""
    wanted = {_KEY if name == "subject_id" else name for name in columns}
    n_before = 0
    with typed_errors(path.name, remedy="Copy the file again from its source."):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        names = {name.lower(): name for name in file.schema_arrow.names}
        for name in sorted(wanted - names.keys()):
            raise FormatError(
                f"column '{name}' is missing",
                code="missing_column",
                place=path.name,
                remedy=f"The table needs {', '.join(sorted(wanted))}.",
            )
        read = [names[name] for name in sorted(wanted)]
        for batch in file.iter_batches(batch_rows, columns=read):
            frame = pl.DataFrame(pa.Table.from_batches([batch]))
            lines = pl.int_range(n_before + 1, n_before + frame.height + 1, dtype=pl.Int64)
            n_before += frame.height
            text = frame.rename(str.lower).with_columns(pl.all().cast(pl.String))
            yield text.select(
                *(pl.col(_KEY if name == "subject_id" else name).alias(name) for name in columns),
                lines.alias(LINE),
            )
