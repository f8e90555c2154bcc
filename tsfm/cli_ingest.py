"""`tsfm ingest ...`: one command a kind of source; imports inside the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import tsfm

if TYPE_CHECKING:
    from tsfm.ingest.provenance import IngestSummary

app = typer.Typer(
    help="Turn a source's files into an event table (MEDS parquet).",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Source = Annotated[Path, typer.Argument(help="Folder of the source's files.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", help="Folder of the event table to write.")]
Shards = Annotated[int, typer.Option(help="Files to spread the subjects over.")]
CodingDelay = Annotated[
    float,
    typer.Option(help="Hours from the end of a stay until its billing codes are known."),
]
MaxQuarantined = Annotated[
    float,
    typer.Option(help="Largest share of rows that may be set aside.", min=0.0, max=1.0),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")]


@app.command("fhir", epilog="Example: tsfm ingest fhir export/ --out events/")
def ingest_fhir_command(
    src: Source,
    out: Out,
    clock: Annotated[
        str, typer.Option(help="utc, wall (as written, offsets dropped) or auto.")
    ] = "auto",
    time_zone: Annotated[
        str | None, typer.Option(help="IANA zone of stamps without an offset.")
    ] = None,
    coding_delay_hours: CodingDelay = 120.0,
    n_shards: Shards = 4,
    max_quarantined: MaxQuarantined = 0.5,
    as_json: AsJson = False,
) -> None:
    """Read a FHIR R4 export: NDJSON(.gz) and JSON bundles.

    Files may have any names: the type of a resource is read from the resource itself.
    """
    from tsfm.ingest.fhir_ndjson import ingest_fhir

    finish(
        ingest_fhir(
            src,
            out,
            clock=clock,
            time_zone=time_zone,
            coding_delay_hours=coding_delay_hours,
            n_shards=n_shards,
            max_quarantined=max_quarantined,
        ),
        as_json,
    )


def _add_tables_command(
    name: str, example: str, text: str, ingest: Callable[[], Callable[..., IngestSummary]]
) -> None:
    """Add the command of a source that is made of tables; `ingest` is asked for when it runs."""

    @app.command(name, help=text, epilog=f"Example: tsfm ingest {name} {example}")
    def _(
        src: Source,
        out: Out,
        coding_delay_hours: CodingDelay = 120.0,
        n_shards: Shards = 4,
        max_quarantined: MaxQuarantined = 0.5,
        as_json: AsJson = False,
    ) -> None:
        summary = ingest()(
            src,
            out,
            coding_delay_hours=coding_delay_hours,
            n_shards=n_shards,
            max_quarantined=max_quarantined,
        )
        finish(summary, as_json)


_add_tables_command(
    "mimic4",
    "mimiciv/3.1/ --out events/",
    "Read MIMIC-IV's hosp/, icu/ and ed/ tables (CSV or CSV.gz).",
    lambda: tsfm.ingest_mimic4,
)
_add_tables_command(
    "meds",
    "their_meds/ --out events/",
    "Read a MEDS 0.3 or 0.4 data set.\n\n"
    "It is checked, put in order and re-sharded; what the source says is kept.",
    lambda: tsfm.ingest_meds,
)


@app.command("wfdb", epilog="Example: tsfm ingest wfdb wfdb/ --out events/ --subjects records.csv")
def ingest_wfdb_command(
    src: Source,
    out: Annotated[Path, typer.Option("--out", help="An event table to add to, or a new folder.")],
    subjects: Annotated[
        Path | None,
        typer.Option(help="CSV with record, subject and, if known, start_time and encounter."),
    ] = None,
    max_quarantined: MaxQuarantined = 0.5,
    as_json: AsJson = False,
) -> None:
    """Read ECG and PPG records of the WFDB format.

    Their samples go into the signal store, and an event a record into the event table.
    """
    from tsfm.ingest.wfdb_records import ingest_wfdb

    finish(ingest_wfdb(src, out, subjects=subjects, max_quarantined=max_quarantined), as_json)


def finish(summary: IngestSummary, as_json: bool) -> None:
    """Print the summary; exit 3 where rows were set aside."""
    typer.echo(json.dumps(summary.as_dict(), indent=2) if as_json else summary.as_text())
    if summary.exit_code:
        raise typer.Exit(summary.exit_code)
