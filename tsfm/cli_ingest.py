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
Shards = Annotated[int, typer.Option(help="Files to spread the subjects over.", min=1)]
CodingDelay = Annotated[
    float,
    typer.Option(help="Hours from the end of a stay until its billing codes are known.", min=0.0),
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


@app.command("eicu", epilog="Example: tsfm ingest eicu eicu-crd/2.0/ --out events/")
def ingest_eicu_command(
    src: Source,
    out: Out,
    culture_delay_hours: Annotated[
        float, typer.Option(help="Hours from taking a culture until its result is known.", min=0.0)
    ] = 120.0,
    n_shards: Shards = 4,
    max_quarantined: MaxQuarantined = 0.5,
    as_json: AsJson = False,
) -> None:
    """Read the tables of eICU, or of its demo (CSV or CSV.gz).

    eICU has minutes from the admission to a unit, and no dates. A subject is one hospital stay,
    which ends on 1 July of its year; all stays of a patient are in one split. Nobody is watched
    after the discharge: readmissions are unknown here.
    """
    from tsfm.ingest.eicu import ingest_eicu

    finish(
        ingest_eicu(
            src,
            out,
            culture_delay_hours=culture_delay_hours,
            n_shards=n_shards,
            max_quarantined=max_quarantined,
        ),
        as_json,
    )


@app.command("p12", epilog="Example: tsfm ingest p12 set-a/ set-b/ --out events/")
def ingest_p12_command(
    src: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of sets: text files as published, or parquet.", show_default=False
        ),
    ],
    out: Out,
    n_shards: Shards = 4,
    max_quarantined: MaxQuarantined = 0.5,
    as_json: AsJson = False,
) -> None:
    """Read ICU stays of the PhysioNet/CinC Challenge 2012.

    The source has minutes since the admission and no dates: every stay is put at 2000-01-01.
    Values of -1 are unknown; values that no living adult has are set aside. How a stay ended is an
    event when it could be known; SAPS-I and SOFA are not read.
    """
    from tsfm.ingest.physionet2012 import ingest_physionet2012

    finish(
        ingest_physionet2012(src, out, n_shards=n_shards, max_quarantined=max_quarantined), as_json
    )


@app.command(
    "diabetes130", epilog="Example: tsfm ingest diabetes130 diabetic_data.csv --out events/"
)
def ingest_diabetes130_command(
    src: Annotated[Path, typer.Argument(help="CSV or CSV.gz of the stays.", show_default=False)],
    out: Out,
    mapping: Annotated[
        Path | None, typer.Option(help="What the ids mean; by default IDs_mapping.csv beside it.")
    ] = None,
    coding_delay_hours: CodingDelay = 120.0,
    n_shards: Shards = 4,
    max_quarantined: MaxQuarantined = 0.5,
    as_json: AsJson = False,
) -> None:
    """Read the stays of UCI's Diabetes 130-US hospitals.

    The source has no dates: stays follow each other in the order of their ids on a made-up clock,
    and only the lengths of stays and the answer to "back within 30 days?" are true. That answer is
    an event when the 30 days are over, never before.
    """
    from tsfm.ingest.diabetes130 import ingest_diabetes130

    finish(
        ingest_diabetes130(
            src,
            out,
            mapping=mapping,
            coding_delay_hours=coding_delay_hours,
            n_shards=n_shards,
            max_quarantined=max_quarantined,
        ),
        as_json,
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

    Their samples go into the signal store, and for each record an event a kind of signal into the
    event table.
    """
    from tsfm.ingest.wfdb_records import ingest_wfdb

    finish(ingest_wfdb(src, out, subjects=subjects, max_quarantined=max_quarantined), as_json)


def finish(summary: IngestSummary, as_json: bool) -> None:
    """Print the summary; exit 3 where rows were set aside."""
    typer.echo(json.dumps(summary.as_dict(), indent=2) if as_json else summary.as_text())
    if summary.exit_code:
        raise typer.Exit(summary.exit_code)
