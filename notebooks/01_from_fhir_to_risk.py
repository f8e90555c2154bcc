# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a hospital's FHIR export to readmission risk
#
# A hospital exports its records as FHIR. We want to know, at each discharge, how likely the patient
# is to be back within 30 days. This notebook walks the whole way with the library; the command line
# walks the same one (`tsfm ingest fhir`, `tsfm tokenize`, ..., `tsfm score`).
#
# The hospital here is simulated. Its patients are drawn from hazards that we know, so beside every
# prediction stands the true risk, and we can see how close the model comes. It is small, to finish
# in a minute or so: the figures show the way, not how good the model can be. `make demo` takes a
# larger hospital the same way.

# %%
import tempfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.figure import Figure

import tsfm
from tsfm import event_table, schema
from tsfm.models.mamba import MambaConfig
from tsfm.reports.figures import reliability_plot, timeline_plot
from tsfm.scoring.risk_assessment import RiskBands
from tsfm.signals.store import SignalStore
from tsfm.training.finetune import FinetuneConfig
from tsfm.training.loop import TrainConfig

# %matplotlib inline

TASK = "readmission_30d"
KEY = [schema.SUBJECT_ID, schema.PREDICTION_TIME]
folder = tempfile.TemporaryDirectory(prefix="tsfm-notebook-")
work = Path(folder.name)

# %% [markdown]
# ## 1. A hospital's files
#
# `simulate_hospital` writes what a hospital would hand over: a FHIR bulk export, and some ECG and
# PPG records in WFDB files. The truth goes into a table of its own, which nothing below reads until
# the end. "AUROC of the true risk" is the best that any model can reach on these discharges.

# %%
hospital = tsfm.simulate_hospital(work / "hospital", n_patients=800, seed=7, waveform_fraction=0.01)
print(hospital.as_text())

# %% [markdown]
# ## 2. One table of events
#
# Every fact becomes one event: whose, when it was true, when it could first be known, what, and how
# much. The second time matters as much as the first. A laboratory value is drawn in the morning and
# released at noon; a billing code is written days after the patient has left. A score may use a
# fact only once it was known.
#
# What can't be used is counted with a reason and set aside; here nothing is.

# %%
events = work / "events"
print(tsfm.ingest_fhir(hospital.fhir_dir, events).as_text())

# %%
records = tsfm.ingest_wfdb(
    hospital.fhir_dir.parent / "wfdb", events, subjects=hospital.records_path
)
print(f"{records.rows_used['record']} records joined their patients' timelines")

# %% [markdown]
# ## 3. Stays and answers
#
# A task says which stays are asked about, at what moment, and what counts as an answer. Readmission
# is asked at discharge. Who died in hospital or went to a hospice is not asked about; a death at
# home before any readmission is a competing outcome, not a "no"; and where the records end before
# the 30 days are over, the answer is unknown. Every stay keeps a row with its reason.

# %%
labels = tsfm.write_labels(events, TASK, work / "labels")
print(labels.as_text())

# %% [markdown]
# ## 4. One patient's timeline
#
# The last year of one patient, as it was known at a discharge. What came later is not there, nor
# are the diagnoses of this very stay: they are coded in the days after. The model reads the same
# events, from the first one on.

# %%
YEAR = timedelta(days=365)
everything = pl.concat(event_table.scan_events(events))
cohort = pl.read_parquet(labels.paths["cohort"])
recorded = everything.filter(pl.col(schema.SIGNAL_ID).is_not_null())[schema.SUBJECT_ID]
last_year = (
    cohort.filter(pl.col("eligible") & pl.col(schema.SUBJECT_ID).is_in(recorded.implode()))
    .with_columns(pl.col(schema.PREDICTION_TIME).max().over(schema.SUBJECT_ID).alias("last"))
    .filter(pl.col("last") - pl.col("start_time") < YEAR)
)
stays = last_year.group_by(schema.SUBJECT_ID).agg(pl.len(), pl.col("last").first())
few = stays.filter(pl.col("len") <= 6)
patient, _, discharge = few.sort(["len", schema.SUBJECT_ID]).row(-1)
names = event_table.read_table(schema.metadata_dir(events) / "codes.parquet").to_pylist()
timeline_plot(
    everything.filter(
        (pl.col(schema.SUBJECT_ID) == patient) & (pl.col(schema.TIME) > discharge - YEAR)
    ),
    until=discharge,
    descriptions={row["code"]: row["description"] for row in names if row["description"]},
)

# %% [markdown]
# ## 5. Tokens
#
# One event is one token: its code, its value on the code's own scale, and its time in seconds.
# Nothing is binned in time and no patient is padded or cut. Codes and scales are learnt from the
# training subjects alone; a code that they never had takes the number of its parent.

# %%
tokens = tsfm.build_token_store(events, work / "tokens")
tokens

# %% [markdown]
# ## 6. A model
#
# Pretraining needs no labels: at every token the model says which code comes next, with what value,
# how soon, and whether an admission or death is ahead. Fine-tuning then fits the hazards of this
# task, and one slope and one offset on the tuning subjects calibrate what it says.

# %%
backbone = MambaConfig(d_model=32, n_layers=2)
pretraining = tsfm.pretrain(
    work / "tokens",
    work / "pretrained",
    backbone=backbone,
    config=TrainConfig(epochs=4, max_tokens=2048),
)
print(pretraining.as_text())

# %%
finetuning = tsfm.finetune(
    work / "pretrained",
    work / "tokens",
    cohort,
    TASK,
    work / "model",
    config=FinetuneConfig(train=TrainConfig(epochs=5, lr=1e-3, max_tokens=2048)),
)
print(finetuning.as_text())

# %% [markdown]
# The model is a folder of tensors and plain values. `tsfm.load` reads it; it scores a path or a
# data frame of pandas, polars or pyarrow.

# %%
model = tsfm.load(work / "model")
model

# %% [markdown]
# ## 7. A scoring run
#
# What a hospital runs each night: every eligible stay gets one row, scored or not scored with a
# reason. The folder also holds FHIR `RiskAssessment` resources to send back, and `run.json`, which
# names by their hashes the data and the model that the scores came from. `tsfm report` writes a
# page to read beside them.

# %%
run = tsfm.run_scoring(
    work / "model", events, TASK, work / "run", bands=RiskBands(0.05, 0.15, 0.30)
)
print(f"{run.counts.scored} of {run.counts.eligible} eligible discharges scored")
print(*sorted(path.name for path in (work / "run").iterdir()), sep="\n")

# %% [markdown]
# ## 8. How good is it?
#
# Only subjects that training never saw can say. The true risk stands in the table as if it were a
# model: no model can be expected to pass it, though on so few discharges one may by luck. That is
# what the intervals are for.

# %%
subject_of = {source: subject for subject, source in event_table.subject_ids(events).items()}
truth = pl.read_parquet(hospital.truth_path).select(
    pl.col("patient_id").replace_strict(subject_of).alias(schema.SUBJECT_ID),
    pl.col("discharge_time").alias(schema.PREDICTION_TIME),
    pl.col("p_readmission_30d").alias("probability"),
)
event_table.write_table(truth.to_arrow(), work / "run" / "baselines" / "True risk.parquet")
evaluation = tsfm.evaluate_run(work / "run", events=events, baselines=True, split="held_out")
evaluation

# %% [markdown]
# A risk of 20 % should come true for one in five. Each point is a group of discharges of similar
# risk; the bar is the uncertainty of what was observed.

# %%
held_out = evaluation.labelled
figures = evaluation.models[0]
reliability_plot(
    held_out[schema.BOOLEAN_VALUE].to_numpy(),
    held_out["probability"].to_numpy(),
    n_bins=5,
    slope=figures.slope,
    intercept=figures.intercept,
    outcome="readmission within 30 days",
)

# %% [markdown]
# ## 9. Who to call first
#
# The ten held-out patients at highest risk, each at the discharge where it was highest, and beside
# it what is otherwise never known: the true risk.

# %%
(
    held_out.join(truth.rename({"probability": "true risk"}), on=KEY)
    .join(cohort.select(*KEY, "start_time", "outcome"), on=KEY)
    .sort("probability", descending=True)
    .unique(schema.SUBJECT_ID, keep="first", maintain_order=True)
    .head(10)
    .select(
        schema.SUBJECT_ID,
        pl.col(schema.PREDICTION_TIME).dt.date().alias("discharge"),
        (pl.col(schema.PREDICTION_TIME) - pl.col("start_time")).dt.total_days().alias("days"),
        pl.col("probability").round(2).alias("predicted risk"),
        pl.col("true risk").round(2),
        pl.col("probability_competing").round(3).alias("death first"),
        "outcome",
    )
)

# %% [markdown]
# ## 10. Waveforms on the same timeline
#
# A record is an event too: it has a patient, a time, and a key into the signal store, where each
# lead keeps its own sampling rate and units. Nothing is resampled, and gaps stay gaps. This one is
# of the patient of section 4, two leads of ECG in millivolts and a PPG in arbitrary units.

# %%
store = SignalStore(events)
of_patient = store.index.filter(pl.col(schema.SUBJECT_ID) == patient)
record = store.read_record(of_patient[schema.SIGNAL_ID][0], stop_s=8.0)
figure = Figure(figsize=(9, 4.5), layout="constrained")
panels = figure.subplots(len(record.leads), 1, sharex=True)
for axes, lead, fs_hz, units, values in zip(
    panels, record.leads, record.fs_hz, record.units, record.values, strict=True
):
    axes.plot(np.arange(len(values)) / fs_hz, values, lw=0.9, color="#0072B2")
    axes.set_ylabel(f"{lead}\n({units}, {fs_hz:g} Hz)")
    axes.spines[["top", "right"]].set_visible(False)
panels[-1].set_xlabel(f"Seconds from {record.start_time:%Y-%m-%d %H:%M} UTC")
figure

# %%
folder.cleanup()
