"""All tasks by name, and the way from an event table to their label files.

`write_labels` writes two tables: `cohort.parquet` (every stay that was looked at, with its reason
or outcome) and `labels.parquet` (stays whose answer is known, as MEDS has labels). New tasks are
added by hand: to `TASKS` if they ask once a stay how long until something, to `CLAIM_TASKS` if they
ask that of a claim, to `CLASS_TASKS` if the answer is one of several classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from tsfm import clock, event_table, schema
from tsfm.errors import InputError
from tsfm.tasks.claim_denial import CLAIM_DENIAL
from tsfm.tasks.class_tasks import CLASS_LABELS, INTEGER_VALUE, ClassTask, class_labels_of
from tsfm.tasks.cohorts import Followup, Task, follow_up_of, label_of
from tsfm.tasks.comorbidity import COMORBIDITY
from tsfm.tasks.length_of_stay import LENGTH_OF_STAY_7D, LENGTH_OF_STAY_BINS
from tsfm.tasks.mortality import MORTALITY_IN_HOSPITAL
from tsfm.tasks.mortality_30d import MORTALITY_30D
from tsfm.tasks.readmission import READMISSION_30D

TASKS: dict[str, Task] = {
    task.name: task
    for task in (READMISSION_30D, MORTALITY_IN_HOSPITAL, LENGTH_OF_STAY_7D, MORTALITY_30D)
}
"""One question a stay: how long until its event."""

CLAIM_TASKS: dict[str, Task] = {CLAIM_DENIAL.name: CLAIM_DENIAL}
"""The same of claims: trained and scored like the others, but rows of the cohort are claims."""

CLASS_TASKS: dict[str, ClassTask] = {task.name: task for task in (LENGTH_OF_STAY_BINS, COMORBIDITY)}
"""One of several classes as answer."""


@dataclass(frozen=True)
class LabelSummary:
    """What a labelling run found.

    Attributes:
        task: Name.
        follow_up: `complete`, or the last moment of knowledge.
        n_stays: Rows of the cohort.
        n_eligible: Index stays.
        not_eligible: Stays by reason.
        n_positive: Labels that are true.
        n_negative: Labels that are false, those with a competing event first among them.
        n_competing: Index stays whose competing event came first, by the horizon.
        n_unknown: Index stays without a label: their follow-up ended before the horizon.
        notes: What the reader must know.
        paths: Tables by name.
        n_by_class: Labels by class, of a task with classes.
    """

    task: str
    follow_up: str
    n_stays: int
    n_eligible: int
    not_eligible: Mapping[str, int]
    n_positive: int
    n_negative: int
    n_competing: int
    n_unknown: int
    notes: tuple[str, ...]
    paths: Mapping[str, Path]
    n_by_class: Mapping[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            **vars(self),
            "not_eligible": dict(self.not_eligible),
            "notes": list(self.notes),
            "paths": {name: str(path) for name, path in self.paths.items()},
            "n_by_class": dict(self.n_by_class),
        }

    def as_text(self) -> str:
        """The table printed at the end of a run."""
        labelled = self.n_positive + self.n_negative
        rate = f"  ({self.n_positive / labelled:.1%} of the known)" if labelled else ""
        answers = [
            ("  positive", f"{self.n_positive:>12,}{rate}"),
            ("  negative", f"{self.n_negative:>12,}"),
            ("    of them a competing event first", f"{self.n_competing:>12,}"),
        ]
        if self.n_by_class:
            answers = [(f"  class {name}", f"{n:>12,}") for name, n in self.n_by_class.items()]
        rows = [
            ("stays", f"{self.n_stays:>12,}"),
            *((f"  not eligible: {name}", f"{n:>12,}") for name, n in self.not_eligible.items()),
            ("eligible", f"{self.n_eligible:>12,}"),
            *answers,
            ("  unknown: follow-up ends too soon", f"{self.n_unknown:>12,}"),
        ]
        width = max(len(name) for name, _ in rows) + 2
        lines = [f"task {self.task}, follow-up {self.follow_up}"]
        lines += [f"  {name:<{width}}{count}" for name, count in rows]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def task_named(name: str) -> Task:
    """The task of a name that asks how long until an event.

    Raises:
        InputError: There is none; the error lists the names.
    """
    found = any_task_named(name)
    if isinstance(found, ClassTask):
        raise InputError(
            f"task '{name}' has several classes, not one event in time",
            code="task_with_classes",
            place="--task",
            remedy=f"Its labels can be written; here use one of {', '.join(TASKS | CLAIM_TASKS)}.",
        )
    return found


def any_task_named(name: str) -> Task | ClassTask:
    """The task of a name, of either kind.

    Raises:
        InputError: There is none; the error lists the names.
    """
    tasks: dict[str, Task | ClassTask] = {**TASKS, **CLAIM_TASKS, **CLASS_TASKS}
    if name not in tasks:
        raise InputError(
            f"unknown task '{name}'",
            code="unknown_task",
            place="--task",
            remedy=f"Use one of {', '.join(tasks)}.",
        )
    return tasks[name]


def find_cohort(
    root: str | Path,
    task: Task | ClassTask | str,
    *,
    rules: Any = None,
    followup: Followup | None = None,
) -> pl.DataFrame:
    """Cohort of a task over all shards of an event table.

    Args:
        root: Root of the data set.
        task: A task or its name.
        rules: Instead of the task's own; of the same type.
        followup: Instead of what the data set says.

    Returns:
        Columns of `schema.COHORT`, ordered by subject and start.

    Raises:
        InputError: Unknown task, rules of another task, or no event table.
    """
    task = any_task_named(task) if isinstance(task, str) else task
    rules = task.rules if rules is None else rules
    if task.rules is not None and not isinstance(rules, type(task.rules)):
        raise InputError(
            f"rules are {type(rules).__name__}, not {type(task.rules).__name__}",
            code="rules_of_another_task",
            place=task.name,
            remedy="Pass the rules of this task.",
        )
    followup = followup or follow_up_of(root)
    bar = tqdm(
        event_table.shard_paths(root),
        desc=f"find stays for {task.name}",
        unit="shard",
        disable=None,
        leave=False,
    )
    parts = [task.find_cohort(event_table.read_events(path), followup, rules) for path in bar]
    return pl.concat(parts).sort(schema.SUBJECT_ID, "start_time", maintain_order=True)


def labels_of(cohort: pl.DataFrame, task: Task) -> pl.DataFrame:
    """Rows of `schema.LABELS` for the index stays whose answer is known."""
    index = cohort.filter("eligible")
    label = label_of(index["outcome"], index["outcome_days"], task.horizon_days, task.positive)
    return (
        index.select(schema.SUBJECT_ID, schema.PREDICTION_TIME)
        .with_columns(label.alias(schema.BOOLEAN_VALUE))
        .drop_nulls()
        .sort(schema.SUBJECT_ID, schema.PREDICTION_TIME)
    )


def write_labels(
    root: str | Path,
    task_name: str,
    out: str | Path,
    *,
    rules: Any = None,
    followup: Followup | None = None,
) -> LabelSummary:
    """Write `<out>/<task>/cohort.parquet` and `labels.parquet`.

    Args:
        root: Root of the event table.
        task_name: Key of `TASKS`, `CLAIM_TASKS` or `CLASS_TASKS`.
        out: Folder of all labels.
        rules: Instead of the task's own.
        followup: Instead of what the data set says.

    Raises:
        InputError: Unknown task or no event table.
    """
    task = any_task_named(task_name)
    followup = followup or follow_up_of(root)
    cohort = find_cohort(root, task, rules=rules, followup=followup)
    of_classes = isinstance(task, ClassTask)
    labels = class_labels_of(cohort, task) if of_classes else labels_of(cohort, task)
    folder = Path(out) / task.name
    paths = {"cohort": folder / "cohort.parquet", "labels": folder / "labels.parquet"}
    for name, frame, columns in (
        ("cohort", cohort, schema.COHORT),
        ("labels", labels, CLASS_LABELS if of_classes else schema.LABELS),
    ):
        table = schema.align(frame.to_arrow(), columns, place=paths[name].name)
        event_table.write_table(table, paths[name])
    return _summarise(task, followup, cohort, labels, paths)


def _summarise(
    task: Task | ClassTask,
    followup: Followup,
    cohort: pl.DataFrame,
    labels: pl.DataFrame,
    paths: Mapping[str, Path],
) -> LabelSummary:
    index = cohort.filter("eligible")
    n_positive = n_negative = n_competing = 0
    by_class: dict[str, int] = {}
    if isinstance(task, ClassTask):
        places = labels[INTEGER_VALUE].to_list()
        by_class = {name: places.count(place) for place, name in enumerate(task.classes)}
    else:
        forestalled = (pl.col("outcome") == "competing") & (
            pl.col("outcome_days") <= task.horizon_days
        )
        n_competing = index.filter(forestalled).height
        n_positive = int(labels[schema.BOOLEAN_VALUE].sum())
        n_negative = labels.height - n_positive
    reasons = cohort["reason"].drop_nulls().value_counts().sort("count", "reason", descending=True)
    notes: list[str] = []
    if cohort.height == 0:
        what = "claims" if task.name in CLAIM_TASKS else "hospital stays"
        where = "claims" if task.name in CLAIM_TASKS else "admissions"
        notes.append(f"no {what} were found: the event table holds no {where}")
    elif index.height == 0:
        notes.append("no stay is eligible; the reasons are above")
    elif labels.height == 0:
        notes.append("no label is known: follow-up ends before every horizon")
    return LabelSummary(
        task=task.name,
        follow_up=_tell(followup),
        n_stays=cohort.height,
        n_eligible=index.height,
        not_eligible=dict(reasons.iter_rows()),
        n_positive=n_positive,
        n_negative=n_negative,
        n_competing=n_competing,
        n_unknown=index.height - labels.height,
        notes=tuple(notes),
        paths=dict(paths),
        n_by_class=by_class,
    )


def _tell(followup: Followup) -> str:
    if followup.until_us is None:
        return followup.kind
    return f"until {clock.from_us(followup.until_us).isoformat(timespec='seconds')}"
