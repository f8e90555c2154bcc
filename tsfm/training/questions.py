"""What several tasks ask of one packed batch, and what they lose on it.

A question is a task with its index stays, found by the streams' keys. All questions read the hidden
states of the same forward pass: a hazard head where a task asks how long until its event, a softmax
where the answer is one of several classes.

**Hidden history.** `comorbidity_charlson` asks for the burden of disease of a patient who comes
without a past, so it may only be trained and scored on streams from whose events the diagnoses were
taken (`tsfm.tasks.comorbidity.hide_history`) before anything was made of them: a token store of its
own (`hidden_token_store`), with the model's vocabulary. Taking tokens out of a finished store would
not do: a diagnosis that the vocabulary does not know is a token of no class, and a first contact
that is a diagnosis says when the others stand. Other tasks read the whole stream, and both streams
of a patient stand in the same batch (`tsfm.batches.patient_views`).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tsfm import event_table, schema
from tsfm.batches.batch import Batch
from tsfm.batches.dataset import CohortIndex, PredictionPoints
from tsfm.batches.patient_views import PatientViews, View
from tsfm.errors import InputError
from tsfm.models.timeline import TimelineModel
from tsfm.tasks.class_tasks import CENSORED, ClassTask, class_labels_of
from tsfm.tasks.cohorts import Task
from tsfm.tasks.comorbidity import COMORBIDITY, HIDDEN, hide_history
from tsfm.tasks.registry import any_task_named
from tsfm.tokens.asked_frame import read_asked
from tsfm.tokens.signal_vectors import vectors_of
from tsfm.tokens.token_store import TokenStore, build_token_store
from tsfm.training.losses import AdmissionTargets

HIDING: dict[str, Callable[[pl.DataFrame], pl.DataFrame]] = {COMORBIDITY.name: hide_history}
"""Tasks that are asked on hidden history, with what hides it."""

UNKNOWN_CLASS = -1

TEACHES = (
    pl.col("outcome").is_not_null()
    & (pl.col("outcome_days") > 0)
    & pl.col("outcome_days").is_finite()
)
"""Stays of which something is known, if only that nothing happened for some days."""


@dataclass(frozen=True)
class Question:
    """A task and the index stays that are asked.

    Attributes:
        task: The task.
        stays: (R rows) of the cohort, with their own subject ids.
        index: Where they are found in a batch, by key.
        keys: (R,) key of each stay's stream.
        label: (R,) place of each stay's class, `UNKNOWN_CLASS` where there is none.
    """

    task: Task | ClassTask
    stays: pl.DataFrame
    index: CohortIndex
    keys: NDArray[np.int64]
    label: NDArray[np.int64]

    @classmethod
    def create(
        cls, task: Task | ClassTask, cohort: pl.DataFrame, view: View, *, known: bool
    ) -> Question:
        """Find a cohort's stays in a view.

        Args:
            task: The cohort's task.
            cohort: Columns of `schema.COHORT`.
            view: Streams that the task may read.
            known: Only stays whose outcome teaches something; else all that are eligible.

        Raises:
            FormatError: An outcome is none of the task's classes; or see `read_asked`.
            InputError: An outcome that is to teach is none of a task in time.
        """
        needed = ("outcome", "outcome_days") if known else ()
        stays = read_asked(cohort, "eligible", *needed, place=task.name).filter("eligible")
        classes = task.classes if isinstance(task, ClassTask) else ()
        if known and isinstance(task, ClassTask):
            class_labels_of(stays, task)  # refuses the cohort of another task
            stays = stays.filter(pl.col("outcome") != CENSORED)
        elif known:
            stays = stays.filter(TEACHES)
        keyed = view.keyed(stays)
        place = {name: k for k, name in enumerate(classes)}
        label = [UNKNOWN_CLASS] * stays.height
        if known:
            label = [place.get(outcome, UNKNOWN_CLASS) for outcome in stays["outcome"].to_list()]
        return cls(
            task, stays,
            CohortIndex.create(keyed, outcomes=known and not isinstance(task, ClassTask)),
            keyed[schema.SUBJECT_ID].to_numpy().astype(np.int64),
            np.array(label, np.int64),
        )  # fmt: skip

    def losses(self, model: TimelineModel, batch: Batch, hidden: Tensor) -> Float[Tensor, " point"]:
        """Negative log-likelihood of each stay that the batch holds, in nats."""
        points = self.index.points_in(batch)
        read = self.read(model, hidden, points)
        if isinstance(self.task, ClassTask):
            label = torch.from_numpy(self.label[points.row.numpy()])
            return F.cross_entropy(read, label, reduction="none")
        head = model.task_head(self.task.name)
        return head.negative_log_likelihood(read, points.outcome, points.days)

    def read(self, model: TimelineModel, hidden: Tensor, points: PredictionPoints) -> Tensor:
        """Log hazards (point, cause, bin) of a task in time, logits (point, class) of the other."""
        own = hidden[points.position], points.elapsed_hours
        if isinstance(self.task, ClassTask):
            return model.class_head(self.task.name)(*own)
        return model.task_head(self.task.name)(*own)


@dataclass(frozen=True)
class Site:
    """A hospital's streams and what is asked of them.

    Attributes:
        views: The whole stream of each patient, and the one with hidden history if a task needs it.
        questions: One a task.
        targets: Where pretraining finds the next admissions.
    """

    views: tuple[View, ...]
    questions: tuple[Question, ...]
    targets: AdmissionTargets

    @property
    def store(self) -> TokenStore:
        """Store of the whole streams."""
        return self.views[0].store

    def patients(self, split: str | None) -> PatientViews:
        """Patients of a split of whom something is asked, with the views that are asked.

        Raises:
            InputError: There are none.
        """
        asked = {s for q in self.questions for s in q.stays[schema.SUBJECT_ID].to_list()}
        found = PatientViews(self.views, split, subjects=asked)
        if len(found) == 0:
            raise InputError(
                f"no eligible stay with a known outcome in {split or 'any split'}",
                code="empty_cohort",
                place=", ".join(q.task.name for q in self.questions),
                remedy="Check the cohorts with `tsfm label`.",
            )
        return found

    @property
    def hash(self) -> str:
        """Names what the site teaches: its streams and its stays with their outcomes."""
        parts = [view.store.hash for view in self.views]
        parts += [f"{q.task.name} {stays_hash(q.stays)}" for q in self.questions]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def n_stays(self, patients: PatientViews) -> dict[str, int]:
        """Stays that each task asks of some patients."""
        return {q.task.name: int(np.isin(q.keys, patients.keys).sum()) for q in self.questions}


def stays_hash(stays: pl.DataFrame) -> str:
    """Names whom stays are of, when they are asked about and what came of them.

    Their order is a part of it: sums over a batch are taken in it, and so are rounded.
    """
    columns = (
        pl.col(schema.SUBJECT_ID).cast(pl.Int64),
        pl.col(schema.PREDICTION_TIME).cast(pl.Int64),
        pl.col("outcome_days").cast(pl.Float64).fill_null(float("nan")),
        pl.col("outcome").cast(pl.String),
    )
    *numbers, outcome = stays.select(columns)
    digest = hashlib.sha256(json.dumps(outcome.to_list()).encode())
    for column in numbers:
        digest.update(np.ascontiguousarray(column.to_numpy()).tobytes())
    return digest.hexdigest()


def open_site(
    tokens: str | Path,
    cohorts: Mapping[str, pl.DataFrame],
    *,
    vocabulary_hash: str,
    signal_encoder: str = "",
    hidden_tokens: str | Path | None = None,
    known: bool = True,
    first_key: int = 0,
) -> Site:
    """Open a site's token stores and find its cohorts in them.

    Args:
        tokens: Token store of whole histories.
        cohorts: Task name to a frame with the columns of `schema.COHORT`.
        vocabulary_hash: Vocabulary of the model.
        signal_encoder: Encoder of the waveforms that it reads, empty for none.
        hidden_tokens: Token store of `hidden_token_store`, for the tasks of `HIDING`.
        known: Only stays whose outcome teaches something; else all that are eligible.
        first_key: Where the streams' keys begin.

    Raises:
        InputError: No cohort, an unknown task, no store of hidden history where a task needs it, or
            one that hides nothing.
        ModelMismatch: A store's vocabulary, or the encoder of its waveforms, is not the model's.
    """
    if not cohorts:
        raise InputError("no task is asked", code="no_tasks", place="cohorts")
    view = View(_open(tokens, vocabulary_hash, signal_encoder), first_key)
    views = [view]
    if HIDING.keys() & cohorts.keys():
        views.append(_open_hidden(hidden_tokens, vocabulary_hash, signal_encoder, view.end_key))
    questions = tuple(
        Question.create(
            any_task_named(name), cohort, views[-1] if name in HIDING else view, known=known
        )
        for name, cohort in cohorts.items()
    )
    return Site(tuple(views), questions, AdmissionTargets.create(view.store))


def hidden_token_store(
    root: str | Path, out: str | Path, *, task: str = COMORBIDITY.name, vocabulary_from: str | Path
) -> TokenStore:
    """Token store of an event table without what a task hides.

    Args:
        root: Root of the event table.
        out: Folder to write.
        task: One of `HIDING`.
        vocabulary_from: Model, or token store, whose vocabulary is used.

    Raises:
        InputError: The task hides nothing.
    """
    if task not in HIDING:
        raise InputError(
            f"'{task}' is asked on the whole history", code="task_hides_nothing", place="task",
            remedy=f"Use one of {', '.join(HIDING)}.",
        )  # fmt: skip
    paths = event_table.shard_paths(root)
    with tempfile.TemporaryDirectory(prefix="tsfm-", dir=Path(out).parent) as folder:
        with event_table.EventWriter(folder, n_shards=len(paths)) as writer:
            for path in paths:
                writer.add(HIDING[task](event_table.read_events(path)))
            writer.finish(
                dataset=event_table.dataset_facts(root),
                subject_splits=event_table.subject_splits(root),
            )
        return build_token_store(
            folder, out, vocabulary_from=vocabulary_from, signals=vectors_of(root)
        )


def batch_states(
    model: TimelineModel, patients: PatientViews, max_tokens: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Every batch of some patients with its hidden states, one forward pass each, no gradients."""
    model.eval()
    for batch in patients.batches(max_tokens=max_tokens):
        with torch.no_grad():
            yield batch, model(batch)


def _open(tokens: str | Path, vocabulary_hash: str, signal_encoder: str) -> TokenStore:
    store = TokenStore.open(tokens)
    store.require_model(vocabulary_hash, signal_encoder)
    return store


def _open_hidden(
    tokens: str | Path | None, vocabulary_hash: str, signal_encoder: str, first_key: int
) -> View:
    tasks = ", ".join(HIDING)
    if tokens is None:
        raise InputError(
            f"{tasks} is asked on hidden history, which is not given", code="no_hidden_history",
            place="hidden_tokens", remedy="Make a store of it with `hidden_token_store`.",
        )  # fmt: skip
    store = _open(tokens, vocabulary_hash, signal_encoder)
    ids = [i for name in HIDDEN for i in store.vocabulary.ids_of_class(name)]
    if bool(np.isin(store.fields["code"], ids).any()):
        raise InputError(
            f"the store shows what {tasks} must not see", code="history_not_hidden",
            place=str(tokens), remedy="Make it with `hidden_token_store`.",
        )  # fmt: skip
    return View(store, first_key)
