"""`tsfm`: the command line. Data and tables on stdout, progress and errors on stderr.

Exit codes: 0 done, 1 failure, 2 wrong usage, 3 done but some rows were set aside, 4 bytes on disk
are not what was written, 130 stopped by hand. Every command imports what it needs when it runs, so
that `tsfm --help` is quick.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tsfm import __version__
from tsfm.cli_doctor import doctor
from tsfm.cli_exit import STOPPED, note_interrupts, tell_error, tell_stopped
from tsfm.cli_exit import TRACEBACK as TRACEBACK
from tsfm.cli_ingest import app as ingest_app

if TYPE_CHECKING:
    from tsfm.scoring.risk_assessment import RiskBands

app = typer.Typer(
    name="tsfm",
    help="Patient timelines in continuous time: from FHIR, MIMIC, MEDS, ECG and PPG to risk.",
    epilog="The way of the data: simulate | ingest, tokenize, label, pretrain, finetune, score, "
    "evaluate, report. Each has --help with an example.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(ingest_app, name="ingest")

Events = Annotated[Path, typer.Argument(help="Root of an event table.", show_default=False)]
Model = Annotated[Path, typer.Argument(help="Model directory.", show_default=False)]
Run = Annotated[Path, typer.Argument(help="Folder of a scoring run.", show_default=False)]
_SCORED = "readmission_30d, mortality_in_hospital, mortality_30d, length_of_stay_7d, claim_denial"
TaskName = Annotated[str, typer.Option("--task", help=f"{_SCORED}.")]
LabelledTask = Annotated[
    str,
    typer.Option(
        "--task", help=f"{_SCORED}; with classes: length_of_stay_bins, comorbidity_charlson."
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]


def _above_zero(value: float) -> float:
    """Refuse what a range lets pass: no number is below its least, and infinity above it."""
    if not 0 < value < math.inf:
        raise typer.BadParameter("give a finite number above 0")
    return value


def _seed(value: int) -> int:
    """Refuse what the generators of chance can't be started with."""
    if value >= 2**63:
        raise typer.BadParameter("give a number below 2**63")
    return value


Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0, callback=_seed)]
Capacity = Annotated[
    float,
    typer.Option(
        help="Share of stays that can be acted on, for the report.",
        min=0.001,
        max=1.0,
        callback=_above_zero,
    ),
]
LearningRate = Annotated[
    float, typer.Option("--lr", help="Peak learning rate, above 0.", callback=_above_zero)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tsfm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: tsfm simulate --out hospital/ --patients 6000 --seed 1")
def simulate(
    out: Out,
    patients: Annotated[int, typer.Option(help="Patients to simulate.", min=1)] = 6000,
    seed: Seed = 0,
    claims: Annotated[bool, typer.Option(help="Also write claims and payers' answers.")] = False,
) -> None:
    """Simulate a hospital whose true risks are known.

    It is written as a FHIR bulk export and WFDB records, with the true risks of every discharge and
    of every stay of over a day beside them.
    """
    from tsfm.simulation.hospital import simulate_hospital

    typer.echo(simulate_hospital(out, n_patients=patients, seed=seed, claims=claims).as_text())


@app.command(epilog="Example: tsfm encode events/ --encoder ecg-encoder")
def encode(
    events: Events,
    encoder: Annotated[
        str, typer.Option(help="Model directory of an encoder, or the name of a packaged one.")
    ] = "ecg-encoder",
    window_s: Annotated[
        float,
        typer.Option(
            help="Longest stretch that is read at once, in seconds.", min=1, callback=_above_zero
        ),
    ] = 30.0,
) -> None:
    """Encode a data set's waveforms for its timelines.

    Vectors of every record with a standard lead of an ECG are written to signal_vectors/ below the
    data set's root; `tsfm tokenize` and `tsfm score` find them there. Run it again when the signals
    have changed.
    """
    from tsfm.scoring.encode_signals import encode_signals

    typer.echo(encode_signals(events, encoder, window_s=window_s).as_text())


@app.command(epilog="Example: tsfm tokenize events/ --out tokens/")
def tokenize(
    events: Events,
    out: Out,
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="Model or token store whose vocabulary to use; else one is fitted."),
    ] = None,
    min_count: Annotated[
        int, typer.Option(help="Codes rarer than this in training take their parent's id.", min=1)
    ] = 10,
) -> None:
    """Turn events into the packed token store.

    Tokens stand in the order in which the facts became known.
    """
    from tsfm.tokens.token_store import build_token_store

    store = build_token_store(events, out, vocabulary_from=vocabulary, min_count=min_count)
    config = store.config
    for name, value in (
        ("subjects", config["n_subjects"]),
        ("tokens", config["n_tokens"]),
        ("  by their own code", config["n_exact"]),
        ("  by a parent code", config["n_fallback"]),
        ("  unknown", config["n_unknown"]),
        ("codes in the vocabulary", len(store.vocabulary)),
    ):
        typer.echo(f"{name:<28}{value:>14,}")


@app.command(epilog="Example: tsfm label events/ --task readmission_30d --out labels/")
def label(events: Events, task: LabelledTask, out: Out, as_json: AsJson = False) -> None:
    """Find a task's index stays and their outcomes.

    Every stay that was looked at is written, with its outcome or the reason why it has none.
    """
    from tsfm.tasks.registry import write_labels

    summary = write_labels(events, task, out)
    typer.echo(json.dumps(summary.as_dict(), indent=2) if as_json else summary.as_text())


@app.command(epilog="Example: tsfm pretrain tokens/ --out pretrained/ --epochs 5")
def pretrain(
    tokens: Annotated[Path, typer.Argument(help="Token store.", show_default=False)],
    out: Out,
    epochs: Annotated[int, typer.Option(help="Passes over the training subjects.", min=1)] = 3,
    d_model: Annotated[int, typer.Option(help="Width of the model.", min=1)] = 64,
    layers: Annotated[int, typer.Option(help="Mamba blocks.", min=1)] = 2,
    lr: LearningRate = 3e-3,
    max_tokens: Annotated[int, typer.Option(help="Tokens a batch.", min=1)] = 2048,
    seed: Seed = 0,
) -> None:
    """Train a timeline model on the training subjects.

    Every token teaches; no labels are needed. Run it again to resume a stopped run.
    """
    from tsfm.models.mamba import MambaConfig
    from tsfm.training.loop import TrainConfig
    from tsfm.training.pretrain import pretrain as run

    result = run(
        tokens,
        out,
        backbone=MambaConfig(d_model=d_model, n_layers=layers),
        config=TrainConfig(epochs=epochs, lr=lr, max_tokens=max_tokens, seed=seed),
    )
    typer.echo(result.as_text())


@app.command(
    epilog="Example: tsfm finetune pretrained/ tokens/ --labels labels/ "
    "--task readmission_30d --out model/"
)
def finetune(
    model: Model,
    tokens: Annotated[Path, typer.Argument(help="Token store.", show_default=False)],
    labels: Annotated[Path, typer.Option(help="Folder written by `tsfm label`.")],
    task: TaskName,
    out: Out,
    epochs: Annotated[int, typer.Option(help="Most passes over the training subjects.", min=1)] = 3,
    lr: LearningRate = 1.2e-3,
    seed: Seed = 0,
) -> None:
    """Fit a task's hazards and calibrate them.

    Calibrated on the tuning split. Run it again to resume a stopped run.
    """
    from dataclasses import replace

    import polars as pl

    from tsfm.event_table import read_table
    from tsfm.tasks.registry import task_named
    from tsfm.training.finetune import FINETUNE_DEFAULTS, FinetuneConfig
    from tsfm.training.finetune import finetune as run

    cohort = pl.from_arrow(read_table(labels / task_named(task).name / "cohort.parquet"))
    assert isinstance(cohort, pl.DataFrame)
    train = replace(FINETUNE_DEFAULTS, epochs=epochs, lr=lr, seed=seed)
    result = run(model, tokens, cohort, task, out, config=FinetuneConfig(train=train))
    typer.echo(result.as_text())


@app.command(epilog="Example: tsfm score model/ events/ --task readmission_30d --out run/")
def score(
    model: Model,
    events: Events,
    task: TaskName,
    out: Out,
    bands: Annotated[
        str, typer.Option(help="Probabilities from which a risk is called low, moderate, high.")
    ] = "0.05,0.15,0.30",
    capacity: Capacity = 0.1,
    as_json: AsJson = False,
) -> None:
    """Score every eligible stay of an event table.

    Writes scores.parquet, predictions.parquet, FHIR RiskAssessments, run.json and an HTML report.
    """
    from tsfm.reports.html_report import write_run_report
    from tsfm.scoring.score_run import run_scoring

    manifest = run_scoring(model, events, task, out, bands=_bands(bands), capacity=capacity)
    report = write_run_report(out, capacity=capacity)
    if as_json:
        typer.echo(json.dumps(manifest.as_dict(), indent=2))
        return
    counts = manifest.counts
    rows = [("eligible stays", counts.eligible), ("  scored", counts.scored)]
    rows += [(f"  not scored: {reason}", n) for reason, n in counts.not_scored.items()]
    rows += [(f"not eligible: {reason}", n) for reason, n in counts.not_eligible.items()]
    codes = manifest.unknown_codes
    rows += [
        ("tokens read", codes.tokens),
        ("  by a parent code", codes.mapped_to_parent),
        ("  unknown to the model", codes.unknown),
    ]
    for name, value in rows:
        typer.echo(f"{name:<46}{value:>12,}")
    typer.echo(f"report: {report}")


def _bands(text: str) -> RiskBands:
    from tsfm.scoring.risk_assessment import RiskBands

    try:
        low, moderate, high = (float(edge) for edge in text.split(","))
        return RiskBands(low, moderate, high)
    except ValueError as error:
        raise typer.BadParameter(
            "give three numbers that ascend between 0 and 1, such as 0.05,0.15,0.30"
        ) from error


@app.command(epilog="Example: tsfm evaluate run/ --events events/ --baselines")
def evaluate(
    run: Run,
    events: Annotated[
        Path | None, typer.Option(help="Event table of the run, for the baselines.")
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Also fit LACE, HOSPITAL and boosted count features."),
    ] = False,
    split: Annotated[
        str | None, typer.Option(help="Only this split's subjects (needs --events).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a scoring run against the known outcomes.

    Discrimination, calibration and alerts at a capacity, with intervals by resampling subjects.
    """
    from tsfm.reports.run_evaluation import evaluate_run

    result = evaluate_run(run, events=events, baselines=baselines, split=split)
    typer.echo(json.dumps(result.as_dict(), indent=2) if as_json else result.as_text())


@app.command(epilog="Example: tsfm report run/ --capacity 0.2")
def report(
    run: Run,
    capacity: Capacity = 0.1,
    events: Annotated[
        Path | None, typer.Option(help="Event table of the run, for --split.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Judge only this split's subjects (needs --events).")
    ] = None,
) -> None:
    """Write a run's HTML report anew.

    For example once outcomes are known, or for another capacity.
    """
    from tsfm.reports.html_report import write_run_report

    path = write_run_report(run, capacity=capacity, events=events, split=split)
    typer.echo(f"report: {path}")


app.command(epilog="Example: tsfm doctor --json")(doctor)


def main() -> None:
    """Run the command line; errors raised on purpose become one line and an exit code.

    What is not foreseen is told in one line too: the text of an unknown error may quote the data,
    and what a nightly job writes to stderr is kept where patients' data must not be.
    """
    # Whatever a command writes may tell of patients: nobody but its owner may read it.
    os.umask(0o077)
    # Threads that wait without spinning: a shared machine's other work, and ours, runs faster.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with note_interrupts() as interrupted:
        try:
            app()
        except BaseException as error:
            # Typer makes an exit of an interrupt, and an import that is cut short anything at all.
            is_exit = isinstance(error, SystemExit)
            if (error.code == STOPPED) if is_exit else interrupted.is_set():
                sys.exit(tell_stopped())
            if not isinstance(error, Exception):
                raise
            sys.exit(tell_error(error))


if __name__ == "__main__":
    main()
