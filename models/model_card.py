"""`README.md` of a model directory: what the model predicts, what it was trained on, its limits.

The card is written from what the directory itself holds (configuration, facts of the training,
calibration) and from nothing else, so it can't say another thing than the files beside it. The
front matter is the YAML that model hubs read. How good the scores are is no part of it: training
never sees the held-out subjects, and `tsfm evaluate` says it for each run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsfm import __version__
from tsfm.models.timeline import TimelineModel
from tsfm.tasks.registry import CLAIM_TASKS, CLASS_TASKS, TASKS

_TAGS = ("electronic-health-records", "survival-analysis", "state-space-model")
_WORDS = {
    "dataset_name": "data set",
    "n_training_subjects": "training subjects",
    "n_training_tokens": "tokens of training subjects",
    "n_training_stays": "index stays of training subjects",
    "n_epochs": "epochs",
    "epoch_kept": "epoch kept, by the loss on the tuning subjects",
    "tuning_loss": "its loss on the tuning subjects",
    "seed": "seed",
}

_WHAT = (
    "Reads one patient's events in the order in which they became known, with the hours between "
    "them, and gives the probability of each outcome from what was known at the moment of asking."
)
_USE = (
    "Scores support decisions of people who know the patient, and do not make them. Before the "
    "model is used in a place it must be validated there, on that place's patients."
)
_LIMITS = (
    "It has learnt the codes, habits and gaps of its training data; elsewhere all of them differ.",
    "A code that its vocabulary lacks is read as a wider code, or as unknown: `run.json` counts "
    "both for every run.",
    "The tuning subjects chose the epoch and the calibration, so the loss above flatters the "
    "model. Held-out subjects took no part: `tsfm evaluate` and `tsfm report` judge it on them.",
)


def render_model_card(
    model: TimelineModel,
    *,
    facts: Mapping[str, Any],
    calibration: Mapping[str, Mapping[str, Any]],
) -> str:
    """The card as Markdown.

    Args:
        model: The network.
        facts: Plain values about its training, as `config.json` keeps them; those of one task are
            named `<task>.<fact>`. Facts that are None have no line.
        calibration: Task to its recalibration, with the number of stays that it was fitted on.
    """
    import yaml

    tasks = (*model.config.tasks, *model.config.class_tasks)
    name = f"Timeline model: {', '.join(tasks) or 'pretrained'}"
    front: dict[str, Any] = {"library_name": "tsfm", "model_name": name, "tags": list(_TAGS)}
    if facts.get("dataset_name"):
        front["datasets"] = [_one_line(facts["dataset_name"])]
    sections = {
        "What it predicts": _predictions(tasks),
        "Intended use": _USE,
        "How to use it": _usage(model.config.tasks, model.config.class_tasks),
        "Model": _bullets(_architecture(model)),
        "Training": _training(facts, tasks),
        "Calibration": _bullets({task: _line(calibration.get(task)) for task in tasks}),
        "Limits": "\n".join(f"- {limit}" for limit in _LIMITS),
    }
    blocks = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        _WHAT,
    ]
    blocks += [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return "\n\n".join(blocks) + "\n"


def _predictions(tasks: tuple[str, ...]) -> str:
    if not tasks:
        return (
            "No task yet: it is pretrained on the course of events, without labels, and a start "
            "for `tsfm finetune`."
        )
    every = TASKS | CLAIM_TASKS
    known = {
        name: f"{task.description}. Event: {task.event_name}; competing: "
        f"{task.competing_name}; horizon: {task.horizon_days:g} days."
        for name, task in every.items()
    } | {
        name: f"{task.description}. Classes: {', '.join(task.classes)}."
        for name, task in CLASS_TASKS.items()
    }
    return _bullets({name: known[name] for name in tasks if name in known})


def _usage(tasks: tuple[str, ...], class_tasks: tuple[str, ...]) -> str:
    if class_tasks and not tasks:
        lines = (
            "from tsfm.training.task_answers import score_tasks",
            f'score_tasks("MODEL", "TOKENS", {{"{class_tasks[-1]}": cohort}})',
        )
        return "```python\n" + "\n".join(lines) + "\n```"
    command = (
        f"tsfm score MODEL EVENTS --task {tasks[-1]} --out RUN"
        if tasks
        else "tsfm finetune MODEL TOKENS --labels LABELS --task TASK --out OUT"
    )
    return f"```sh\n{command}\n```"


def _architecture(model: TimelineModel) -> dict[str, Any]:
    config, backbone = model.config, model.config.backbone
    blocks = "attention layers" if config.attention_only else "Mamba blocks in real time"
    more = {
        "attention layers between them": len(config.attention_after),
        "codes with hazards of their own": len(config.hazard_codes),
        "tasks with classes": len(config.class_tasks),
    }
    return {
        blocks: backbone.n_layers,
        **{name: n for name, n in more.items() if n},
        "width between blocks": backbone.d_model,
        "state components a channel": backbone.d_state,
        "channels of the event memory": config.memory_width,
        "codes": config.n_codes,
        "parameters": sum(p.numel() for p in model.parameters()),
        "written by": f"tsfm {__version__}",
    }


def _training(facts: Mapping[str, Any], tasks: tuple[str, ...]) -> str:
    """Facts of pretraining, then those of each task."""
    of_task = {task: _below(facts, f"{task}.") for task in tasks}
    parts = {"Pretraining": {k: v for k, v in facts.items() if "." not in k and k != "stage"}}
    parts |= {f"Fine-tuning for {task}": found for task, found in of_task.items()}
    return "\n\n".join(
        f"{title}:\n\n{lines}"
        for title, found in parts.items()
        if (lines := _bullets({_WORDS.get(k, k): v for k, v in found.items()}))
    )


def _line(found: Mapping[str, Any] | None) -> str | None:
    if not found:
        return None
    slope, offset = found.get("slope", 1.0), found.get("offset", 0.0)
    temperature = found.get("temperature")
    if found.get("knots"):
        fit = f"isotonic, through {len(found['knots'])} points"
    elif temperature is not None and temperature != 1.0:
        fit = f"temperature {temperature:.3f} of the logits of the classes"
    elif (slope, offset) == (1.0, 0.0):
        fit = "not recalibrated, for want of outcomes"
    else:
        fit = f"slope {slope:.3f}, offset {offset:+.3f} on the logit"
    return f"{fit} ({int(found['n']):,} stays of the tuning subjects)" if "n" in found else fit


def _below(facts: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name[len(prefix) :]: v for name, v in facts.items() if name.startswith(prefix)}


def _bullets(facts: Mapping[str, Any]) -> str:
    given = {_one_line(name): value for name, value in facts.items() if value is not None}
    return "\n".join(f"- {name}: {_value(value)}" for name, value in given.items())


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.5g}" if isinstance(value, float) else _one_line(value)


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())
