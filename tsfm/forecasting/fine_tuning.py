"""Training on users' series: random cuts, held-out items, and calibration on them.

An entity is cut at the time of one of its points, drawn at random; what lies before is known, the
next points of each series are asked. Items that are held out choose the step whose weights are
kept, and then calibrate the quantiles, so their score flatters a little; what was promised for new
items has to be checked on items that took no part.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tsfm.errors import InputError, ModelMismatch
from tsfm.forecasting.conformal import SplitConformal, fit_split_conformal
from tsfm.forecasting.frame_questions import pack, series_of
from tsfm.forecasting.frames import (
    Layout,
    check_whole,
    fit_covariates,
    read_frame,
    read_history,
)
from tsfm.forecasting.packed_series import Floats, Integers, PackedSeries, Questions, answer
from tsfm.models.forecaster import ForecasterConfig, ForecasterModel
from tsfm.models.forecaster_checkpoint import Covariate, Variable
from tsfm.models.quantile_head import LEVELS
from tsfm.models.series_scale import fit_series_scale
from tsfm.training.forecast import (
    Episode,
    ForecastTrainConfig,
    forecast_loss,
    train_forecaster,
)

UNTRAINED = "untrained"  # the fact that scales are still to be learnt
LEAD_EDGES = {"hours": (1.0, 6.0, 24.0), "context": (2.0, 8.0, 32.0)}
"""Between the lead times that are calibrated apart, in units of the clock: hours, or steps."""
_CONFORMAL = "split_conformal"
_VALIDATION_ROUNDS = 4
_CALIBRATION_ROUNDS = 8


@dataclass(frozen=True)
class RandomCuts:
    """Where entities may be cut: at each of their points that has a later one.

    Attributes:
        packed: The series.
        points: Times of such points, those of an entity end to end.
        borders: Borders of the entities' times.
    """

    packed: PackedSeries
    points: Floats
    borders: Integers

    @classmethod
    def of(cls, packed: PackedSeries) -> RandomCuts:
        """Of all entities."""
        entity = packed.entity_of_series()[packed.series_of_point()]
        last = np.full(len(packed.item), -np.inf)
        np.maximum.at(last, entity, packed.seconds)
        inside = packed.seconds < last[entity]
        counts = np.bincount(entity[inside], minlength=len(last))
        return cls(packed, packed.seconds[inside], np.r_[0, counts.cumsum()])

    @property
    def entities(self) -> Integers:
        """Entities that can be cut."""
        return np.flatnonzero(np.diff(self.borders))

    def draw(
        self, rng: np.random.Generator, entities: Integers, n_ahead: int
    ) -> tuple[PackedSeries, Questions]:
        """Cut each of some entities once, and ask the next points of each of their series."""
        counts = np.diff(self.borders)[entities]
        place = self.borders[entities] + (rng.random(len(entities)) * counts).astype(np.int64)
        return self.packed.take(entities).cut(self.points[place], n_ahead)


@dataclass(frozen=True)
class Training:
    """How episodes are drawn from users' series.

    Attributes:
        n_ahead: Points of each series that are asked after a cut.
        validation_fraction: Share of the items that is held out.
        batch_size: Entities of a step.
        seed: Of all chance.

    Raises:
        InputError: One can't be meant.
    """

    n_ahead: int
    validation_fraction: float
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse what can't be meant before anything is read."""
        check_draws(self.n_ahead, self.batch_size, self.seed)
        if not _between(0, self.validation_fraction, 1):
            raise InputError(
                "validation_fraction is not between 0 and 1", code="bad_fraction",
                place="validation_fraction", remedy="Give such as 0.1.",
            )  # fmt: skip

    def config(self, steps: int, learning_rate: float) -> ForecastTrainConfig:
        """How to train for some steps.

        Raises:
            InputError: No whole number of steps, or no positive rate.
        """
        check_whole("steps", steps)
        if not _between(0, learning_rate, math.inf):
            raise InputError(
                "learning_rate is not positive and finite", code="bad_learning_rate",
                place="learning_rate", remedy="Give such as 1e-3.",
            )  # fmt: skip
        every = max(1, min(100, steps // 5))
        return ForecastTrainConfig(
            n_steps=steps, lr=learning_rate, validate_every=every, seed=self.seed
        )


def check_draws(n_ahead: Any, batch_size: Any, seed: Any) -> None:
    """Check how random cuts are drawn and read.

    Raises:
        InputError: A number is not whole, or too small.
    """
    check_whole("prediction_length", n_ahead)
    check_whole("batch_size", batch_size)
    check_whole("seed", seed, least=0)


def named(
    variables: Sequence[str | Variable], covariates: Sequence[str]
) -> tuple[tuple[Variable, ...], tuple[Covariate, ...]]:
    """Variables and covariates of a new forecaster.

    Raises:
        InputError: One text instead of several, or a name twice.
    """
    for place, given in {"variables": variables, "covariates": covariates}.items():
        names = [one.name if isinstance(one, Variable) else one for one in given]
        if isinstance(given, str) or len(set(names)) < len(names):
            raise InputError(
                "names are one text, or one is there twice", code="bad_names", place=place,
                remedy="Give a list in which each name stands once.",
            )  # fmt: skip
    known = [v if isinstance(v, Variable) else Variable(v) for v in variables]
    return tuple(known), tuple(Covariate(name) for name in covariates)


def untrained_model(
    n_variables: int, n_covariates: int, config: ForecasterConfig | None, *, seed: int
) -> ForecasterModel:
    """A network with random weights.

    Args:
        n_variables: Known variables; 0 for anonymous series.
        n_covariates: Known covariates.
        config: Sizes; None takes the usual ones.
        seed: Of the weights.

    Raises:
        InputError: The configuration is for another number of variables or covariates.
    """
    check_whole("seed", seed, least=0)
    if config is None and n_variables:
        config = ForecasterConfig(n_variables=n_variables, n_known=n_covariates)
    elif config is None:
        config = ForecasterConfig(
            clock="context", scale="context", calendar=True, query_reads_points=True,
            rotary_periods_s=(2.0, 2000.0), n_known=n_covariates,
        )  # fmt: skip
    fits = config.scale == ("variable" if n_variables else "context")
    if not fits or (config.n_variables, config.n_known) != (max(n_variables, 1), n_covariates):
        raise InputError(
            "the configuration is for other variables or covariates", code="bad_forecaster_config",
            place="config", remedy="Set n_variables and n_known to how many are named; anonymous "
            "series need n_variables=1 and scale='context'.",
        )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ForecasterModel(config)


def training_series(
    df: Any, layout: Layout, *, learn: bool
) -> tuple[PackedSeries, tuple[str, ...], tuple[Covariate, ...]]:
    """All series of a frame, the names of its variables, and the covariates.

    Args:
        df: Frame with the columns of the layout and of its covariates.
        layout: Its columns.
        learn: Take the covariates' scales from the frame.

    Raises:
        InputError: As `read_frame` and `read_history`.
    """
    told = [c.name for c in layout.covariates]
    frame, _ = read_frame(df, [*layout.columns, *told], "df")
    if learn:
        layout = replace(layout, covariates=fit_covariates(frame, told))
    history = read_history(frame, layout, with_covariates=True)
    packed, _ = pack(history, layout, series_of(history, layout))
    return packed, history.names, layout.covariates


def fine_tune(
    model: ForecasterModel,
    packed: PackedSeries,
    names: Sequence[str],
    how: Training,
    config: ForecastTrainConfig,
    *,
    folder: Path | None,
    learn_scale: bool,
    progress: bool | None,
) -> tuple[dict[str, Any], SplitConformal]:
    """Train in place on random cuts, and calibrate on the items held out.

    Args:
        model: Network to train.
        packed: All series.
        names: Names of the variables.
        how: How episodes are drawn.
        config: How to train.
        folder: Where the checkpoint lives, to go on after a stop; None keeps none.
        learn_scale: Standardise variables by the training items' values.
        progress: Show a bar; None: on a terminal only.

    Returns:
        Facts of the training, and the calibration.

    Raises:
        InputError: Fewer than two items with two different times.
    """
    cuts = RandomCuts.of(packed)
    training, held_out = _split(packed, cuts.entities, how)
    if learn_scale and model.config.scale == "variable":
        _learn_scale(model, packed.take(training))
    device = model.variable_scale.device

    def episode(rng: np.random.Generator, entities: Integers) -> Episode:
        context, questions = cuts.draw(rng, entities, how.n_ahead)
        weight = torch.ones(len(questions.seconds), device=device)
        truth = torch.as_tensor(questions.truth, device=device)
        queries = questions.queries(len(context.variable), device)
        return Episode(context.context(device), queries, truth, weight, weight)

    def draw(step: int) -> Episode:
        rng = np.random.default_rng([config.seed, step])
        n = min(how.batch_size, len(training))
        return episode(rng, rng.choice(training, n, replace=False))

    rng = np.random.default_rng([config.seed, 0, 1])
    parts = np.array_split(held_out, max(1, -(-len(held_out) // how.batch_size)))
    judged = [episode(rng, part) for _ in range(_VALIDATION_ROUNDS) for part in parts]

    def validate(found: ForecasterModel) -> tuple[float, dict[str, float]]:
        losses = [(len(e.truth), float(forecast_loss(found, e, config)[0])) for e in judged]
        return sum(n * loss for n, loss in losses) / sum(n for n, _ in losses), {}

    digest = hashlib.sha256(repr((config, how)).encode())
    for array in (packed.seconds, packed.values, packed.known, packed.cu_points, packed.item):
        digest.update(np.ascontiguousarray(array).tobytes())
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().numpy().tobytes())
    with tempfile.TemporaryDirectory(prefix="tsfm-") as temporary, torch.random.fork_rng():
        result = train_forecaster(
            model, draw, validate, config, folder=folder or Path(temporary),
            fingerprint=digest.hexdigest(), progress=progress,
        )  # fmt: skip
    calibration = calibrate(
        model, packed.take(held_out), names, n_ahead=how.n_ahead, batch_size=how.batch_size,
        seed=how.seed,
    )  # fmt: skip
    facts = {
        "n_training_items": len(np.unique(packed.item[training])),
        "n_held_out_items": len(np.unique(packed.item[held_out])),
        "steps": config.n_steps, "step_kept": result.best_step, "seed": how.seed,
        "held_out_loss": result.best_score, "prediction_length": how.n_ahead,
    }  # fmt: skip
    return facts, calibration


def calibrate(
    model: ForecasterModel,
    packed: PackedSeries,
    names: Sequence[str],
    *,
    n_ahead: int,
    batch_size: int,
    seed: int,
) -> SplitConformal:
    """Shifts by variable and lead time, from random cuts of these items.

    Args:
        model: Network in evaluation mode.
        packed: Series of items that took no part in training.
        names: Names of the series.
        n_ahead: Points of a series that are asked after a cut.
        batch_size: Entities read at once.
        seed: Of the cuts.

    Raises:
        InputError: No item has two different times, or an argument that can't be meant.
    """
    check_draws(n_ahead, batch_size, seed)
    cuts = RandomCuts.of(packed)
    if not len(cuts.entities):
        raise _too_few(0, "calibrate on")
    rng = np.random.default_rng([seed, 2])
    labels: list[NDArray[np.str_]] = []
    leads, quantiles, truths, items = [], [], [], []
    for _ in range(_CALIBRATION_ROUNDS):
        context, questions = cuts.draw(rng, cuts.entities, n_ahead)
        found = answer(model, context, questions, batch_size=batch_size)
        labels.append(np.array(names)[context.name[questions.series]])
        leads.append(found.lead)
        quantiles.append(found.quantiles)
        truths.append(questions.truth)
        items.append(context.item[context.entity_of_series()[questions.series]])
    return fit_split_conformal(
        np.concatenate(labels), np.concatenate(leads), LEVELS, np.concatenate(quantiles),
        np.concatenate(truths), lead_edges_hours=LEAD_EDGES[model.config.clock],
        groups=np.concatenate(items),
    )  # fmt: skip


def plain_calibration(calibration: SplitConformal | None) -> dict[str, Any]:
    """Contents of `calibration.json`."""
    return {} if calibration is None else {_CONFORMAL: calibration.to_dict()}


def read_calibration(stored: Mapping[str, Any]) -> SplitConformal | None:
    """From `plain_calibration`.

    Raises:
        ModelMismatch: It is of another kind.
        FormatError: It can't be read.
    """
    if set(stored) - {_CONFORMAL}:
        raise ModelMismatch(
            "an unknown kind of calibration", code="unknown_config_key", place="calibration.json",
            remedy="Use a tsfm version that knows it.",
        )  # fmt: skip
    return SplitConformal.from_dict(stored[_CONFORMAL]) if stored else None


def _split(packed: PackedSeries, entities: Integers, how: Training) -> tuple[Integers, Integers]:
    """Entities for training and held out; those of one item stay together."""
    items = np.unique(packed.item[entities])
    if len(items) < 2:
        raise _too_few(len(items), "train on")
    n = min(max(1, round(how.validation_fraction * len(items))), len(items) - 1)
    chosen = np.random.default_rng([how.seed, 1]).permutation(items)[:n]
    held_out = np.isin(packed.item[entities], chosen)
    return entities[~held_out], entities[held_out]


def _between(low: float, given: Any, high: float) -> bool:
    return isinstance(given, int | float | np.number) and low < float(given) < high


def _learn_scale(model: ForecasterModel, packed: PackedSeries) -> None:
    variable = packed.variable[packed.series_of_point()]
    order = np.argsort(variable, kind="stable")
    counts = np.bincount(variable, minlength=model.config.n_variables)
    there = counts > 0  # a variable that was never measured keeps location 0 and scale 1
    values = torch.as_tensor(packed.values[order])
    fitted = fit_series_scale(
        values, torch.ones_like(values, dtype=torch.bool),
        torch.as_tensor(np.r_[0, counts[there].cumsum()]),
    )  # fmt: skip
    location, scale = model.variable_location.clone(), model.variable_scale.clone()
    location[torch.as_tensor(there)] = fitted.location.to(location)
    scale[torch.as_tensor(there)] = fitted.scale.to(scale)
    model.set_variable_scale(location, scale)


def _too_few(n: int, what: str) -> InputError:
    return InputError(
        f"{n} items with two different times are too few to {what}", code="too_few_items",
        place="df", remedy="Give more items; whole items are held out.",
    )  # fmt: skip
