"""The model directory of a forecaster, beside that of a timeline model (`checkpoint`).

It holds `config.json` (sizes, variables with their units, covariates, facts of the training),
`model.safetensors` (scales of the variables among them), `calibration.json`, `README.md` (the card)
and `manifest.json`. Sizes are read from the configuration and compared with the header of the
weights before a network is built, so a forged one asks for no memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tsfm import __version__
from tsfm.errors import IntegrityError, ModelMismatch
from tsfm.models.checkpoint import (
    FORMAT_VERSION,
    MOST_PARAMETERS,
    check_keys,
    find_model,
    load_weights,
    verify_directory,
    writing_directory,
)
from tsfm.models.entity_table import N_FEATURES as N_TABLE_FEATURES
from tsfm.models.forecaster import ForecasterConfig, ForecasterModel
from tsfm.models.weights_file import write_weights

FORECASTER_TYPE = "forecaster"
_AT_LEAST_ONE = {"n_variables", "d_model", "n_heads", "n_reader_layers", "d_state"}
_MOST = {
    "n_variables": 100_000, "d_model": 4096, "n_known": 1000, "d_state": 1024, "table": 4096,
}  # fmt: skip
_MOST_OF_OTHERS = 256


@dataclass(frozen=True)
class Variable:
    """A variable that the model knows.

    Attributes:
        name: As in frames.
        unit: Unit of its values; empty if it has none or it is not told.
    """

    name: str
    unit: str = ""


@dataclass(frozen=True)
class Covariate:
    """What is known of a query's time beforehand.

    Attributes:
        name: Column in frames.
        location: What is taken off its values.
        scale: What they are divided by; positive.
    """

    name: str
    location: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class ForecasterDirectory:
    """A loaded forecaster with what belongs to it.

    Attributes:
        model: The network, in evaluation mode.
        variables: Its known variables in order; none for anonymous series.
        covariates: Its known covariates in order.
        calibration: Contents of `calibration.json`.
        facts: Plain facts about its training.
        hash: sha256 of its manifest.
    """

    model: ForecasterModel
    variables: tuple[Variable, ...]
    covariates: tuple[Covariate, ...]
    calibration: dict[str, Any]
    facts: dict[str, Any]
    hash: str


def save_forecaster(
    path: str | Path,
    model: ForecasterModel,
    *,
    variables: Sequence[Variable],
    covariates: Sequence[Covariate] = (),
    calibration: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> str:
    """Write a model directory atomically and return its hash.

    Args:
        path: Final folder.
        model: Network to save.
        variables: Known variables in the order of their embeddings; none for anonymous series.
        covariates: Known covariates in order.
        calibration: Plain contents of `calibration.json`.
        facts: Plain scalars about the training.

    Raises:
        InputError: The folder is not empty, or is a file.
        ModelMismatch: Variables or covariates do not fit the model, or it could not be loaded.
    """
    _check_names(model.config, variables, covariates, str(path))
    if not _is_sane(model.config):
        raise ModelMismatch(
            "a network of a size that is not loaded again", code="bad_model_config",
            place=str(path), remedy="Use smaller sizes.",
        )  # fmt: skip
    config = {
        "format_version": FORMAT_VERSION,
        "tsfm_version": __version__,
        "model_type": FORECASTER_TYPE,
        "model": asdict(model.config),
        "variables": [asdict(v) for v in variables],
        "covariates": [asdict(c) for c in covariates],
        "facts": dict(facts or {}),
    }
    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    card = forecaster_card(
        model, variables=variables, covariates=covariates, calibration=calibration, facts=facts
    )
    with writing_directory(path) as folder:
        (folder / "config.json").write_text(_to_json(config), encoding="utf-8")
        write_weights(weights, folder / "model.safetensors")
        (folder / "calibration.json").write_text(_to_json(calibration or {}), encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
    return verify_directory(Path(path))


def load_forecaster(path_or_name: str | Path) -> ForecasterDirectory:
    """Load a forecaster's model directory, by its path or by the name of a packaged one.

    Raises:
        InputError: There is no model.
        IntegrityError: A file differs from what was written.
        ModelMismatch: Its parts do not belong together.
    """
    folder = find_model(path_or_name)
    digest = verify_directory(folder)
    place = str(folder)
    stored = _read_json(folder / "config.json")
    if stored.get("model_type") != FORECASTER_TYPE or stored.get("format_version") != 1:
        raise ModelMismatch(
            "not a forecaster, or of an unknown format", code="unknown_model_type", place=place,
            remedy=f"This version reads {FORECASTER_TYPE}, format {FORMAT_VERSION}.",
        )  # fmt: skip
    expected = {"format_version", "tsfm_version", "model_type", "model", "variables",
                "covariates", "facts"}  # fmt: skip
    if unknown := sorted(set(stored) - expected):
        raise _bad_config(f"unknown key '{unknown[0]}'", place, code="unknown_config_key")
    try:
        config = read_forecaster_config(stored["model"], place=place)
        for kind, name in ((Variable, "variables"), (Covariate, "covariates")):
            for one in stored[name]:
                check_keys(one, kind, place)
        variables = tuple(Variable(**one) for one in stored["variables"])
        covariates = tuple(Covariate(**one) for one in stored["covariates"])
        facts = dict(stored["facts"])
        if not all(isinstance(x, str | int | float | None) for x in facts.values()):
            raise TypeError("facts")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _bad_config("keys are missing or of wrong types", place) from error
    _check_names(config, variables, covariates, place)
    _check_header(config, folder / "model.safetensors")
    model = ForecasterModel(config)
    load_weights(model, folder / "model.safetensors")
    if not bool((model.variable_scale > 0).all()):
        raise ModelMismatch(
            "a variable's scale is not positive", code="weights_mismatch", place=place,
            remedy="Use the weights that were written with this configuration.",
        )  # fmt: skip
    model.eval()
    calibration = _read_json(folder / "calibration.json")
    return ForecasterDirectory(model, variables, covariates, calibration, facts, digest)


def read_forecaster_config(stored: Mapping[str, Any], *, place: str = "") -> ForecasterConfig:
    """Configuration from plain values; an unknown key is an error, a missing one its default.

    Raises:
        ModelMismatch: Unknown keys, wrong types, or an impossible size.
    """
    check_keys(stored, ForecasterConfig, place)
    for name, usual in asdict(ForecasterConfig()).items():
        kind = type(usual)
        allowed = {float: (int, float), tuple: (list, tuple)}.get(kind, (kind,))
        if type(stored.get(name, usual)) not in allowed:
            raise _bad_config(f"'{name}' is of the wrong type", place)
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    try:
        config = ForecasterConfig(**plain)
    except ValueError as error:
        raise _bad_config("a part has an unknown name", place) from error
    if not _is_sane(config):
        raise _bad_config("it asks for an impossible size", place)
    return config


def _is_sane(config: ForecasterConfig) -> bool:
    sizes = all(
        (name in _AT_LEAST_ONE) <= size <= _MOST.get(name, _MOST_OF_OTHERS)
        for name, size in asdict(config).items()
        if type(size) is int and name not in ("fastest", "slowest", "dropout")
    )
    periods = config.rotary_periods_s
    times = [config.fastest, config.slowest, *periods] if len(periods) == 2 else [math.nan]
    if not sizes or not all(type(t) in (int, float) and 0 < t < 1e18 for t in times):
        return False
    in_order = periods[0] < periods[1] and config.fastest <= config.slowest
    layers = 30 * config.n_reader_layers + 16 * (config.n_query_layers + config.n_variable_layers)
    layers *= 1 + config.experts
    size = config.n_variables * (3 * config.d_model + 64) + (layers + 20) * config.d_model**2
    size += config.table * (config.n_variables * (N_TABLE_FEATURES + 1) + config.d_model)
    divides = config.d_model % config.n_heads == 0
    return in_order and divides and 0 <= config.dropout < 1 and size < MOST_PARAMETERS


def _check_header(config: ForecasterConfig, path: Path) -> None:
    """Compare names and shapes with a network that has no storage."""
    with torch.device("meta"):
        expected = {k: list(v.shape) for k, v in ForecasterModel(config).state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            found = {k: file.get_slice(k).get_shape() for k in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise IntegrityError(
            "unreadable weights", code="bad_weights", place=path.name,
            remedy="Restore model.safetensors.",
        ) from error  # fmt: skip
    wrong = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
    if wrong:
        raise ModelMismatch(
            f"{len(wrong)} tensors are missing, extra or misshapen, first {wrong[0]}",
            code="weights_mismatch", place=path.name,
            remedy="Use the weights that were written with this configuration.",
        )  # fmt: skip


def _check_names(
    config: ForecasterConfig,
    variables: Sequence[Variable],
    covariates: Sequence[Covariate],
    place: str,
) -> None:
    names = [v.name for v in variables]
    columns = [c.name for c in covariates]
    texts = [*names, *columns, *(v.unit for v in variables)]
    numbers = [x for c in covariates for x in (c.location, c.scale)]
    defects = {
        "names or units are no text": not all(isinstance(text, str) for text in texts),
        "a name is empty or twice there": any(len(set(x)) < len(x) or "" in x
                                              for x in (names, columns)),
        "covariates have no finite location and positive scale": not (
            all(type(x) in (int, float) and math.isfinite(x) for x in numbers)
            and all(c.scale > 0 for c in covariates)
        ),
        f"{len(names)} variables are named, the model has {config.n_variables}":
            len(names) != (config.n_variables if names or config.scale == "variable" else 0),
        f"{len(columns)} covariates are named, the model has {config.n_known}":
            len(columns) != config.n_known,
    }  # fmt: skip
    for message, is_so in defects.items():
        if is_so:
            raise _bad_config(message, place)


def forecaster_card(
    model: ForecasterModel,
    *,
    variables: Sequence[Variable],
    covariates: Sequence[Covariate] = (),
    calibration: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> str:
    """The card as Markdown, from what the directory itself holds; see `save_forecaster`."""
    import yaml

    front = {
        "library_name": "tsfm",
        "pipeline_tag": "time-series-forecasting",
        "tags": ["time-series", "irregular-time-series", "probabilistic-forecasting"],
    }
    what = (
        f"It knows {len(variables)} variables and reads all of an item together."
        if variables
        else "It forecasts series that it has never seen, each from its own past."
    )
    columns = ', variable_column="variable"' if variables else ""
    units = [f"- {_cell(v.name)}: {_cell(v.unit) or 'unit not told'}" for v in variables]
    sizes = {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "width": model.config.d_model, "reader": model.config.reader, "flow": model.config.flow,
        "table of all variables": model.config.table or None,
        "clock": model.config.clock, "known covariates": ", ".join(c.name for c in covariates),
        "written by": f"tsfm {__version__}",
    }  # fmt: skip
    held = "Quantiles were calibrated on held-out items."
    sections = {
        "What it forecasts": "Mean and quantiles of irregular series at any later times, each "
        f"forecast answered at once. {what}",
        "How to use it": "```python\nimport tsfm\n\nforecaster = tsfm.load(folder)\n"
        f"forecast = forecaster.predict_df(frame, prediction_length=24{columns})\n```",
        "Variables": "\n".join(units),
        "Model": _bullets(sizes),
        "Training": _bullets(dict(facts or {})),
        "Calibration": held if calibration else "None: quantiles are the network's own.",
        "Limits": "- It has learnt the habits and gaps of its training data; elsewhere they "
        "differ.\n- Intervals hold on average over items like those they were calibrated on, not "
        "for each of them.\n- A forecast is no advice on treatment, and must be validated where "
        "it is used.",
    }
    blocks = [f"---\n{yaml.safe_dump(front, sort_keys=False)}---", "# Forecaster"]
    blocks += [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return "\n\n".join(blocks) + "\n"


def _bullets(facts: Mapping[str, Any]) -> str:
    told = {name: value for name, value in facts.items() if value not in (None, "")}
    return "\n".join(f"- {_cell(name)}: {_cell(value)}" for name, value in told.items())


def _cell(value: Any) -> str:
    return " ".join(str(value).split())


def _to_json(value: Any) -> str:
    try:
        return json.dumps(value, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise _bad_config("a fact is no plain finite value", "facts") from error


def _read_json(path: Path) -> dict[str, Any]:
    def refuse(name: str) -> float:
        raise ValueError(name)

    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise _bad_config("it is no JSON", path.name) from error
    if not isinstance(found, dict):
        raise _bad_config("it is no JSON object", path.name)
    return found


def _bad_config(message: str, place: str, code: str = "bad_model_config") -> ModelMismatch:
    return ModelMismatch(
        f"the configuration is not usable: {message}", code=code, place=place,
        remedy="Restore the model directory as it was written.",
    )  # fmt: skip
