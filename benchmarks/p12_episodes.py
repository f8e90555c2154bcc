"""PhysioNet 2012 as episodes for the forecaster: stays cut at some hour, before and after.

For evaluation every stay is cut where the protocol cuts. For training the cut is drawn, so that a
stay gives many episodes and a laboratory value that is taken once a day is a target at every lead;
now and then a variable's whole past is hidden, so that the others learn to speak for it. Weights
are those of the protocol's score: under A a point of variable v counts sd_v^2 / n_v, bounded,
because TroponinI's 194 training points would otherwise rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from p12_data import TRAIN, Points, Protocol

from tsfm.models.forecast_data import ForecastContext, ForecastQueries
from tsfm.training.forecast import Episode

HORIZON_HOURS = {"A": 24.0, "B": 3.0}
CUTS_HOURS = {"A": (10.0, 40.0), "B": (12.0, 36.0)}
_LEAST_SD = 1e-6
_SCALE_OF_CONSTANT = 1e-9  # whatever a network says of it, it stays what it is


@dataclass(frozen=True)
class EpisodeConfig:
    """How training episodes are drawn.

    Attributes:
        n_stays: Stays an episode.
        at_the_cut: Share of stays cut where the protocol cuts.
        hide: Share of series whose past is hidden.
        most_queries: Queries of a stay, in the mean; frequent variables are thinned.
        rarest: A target of a rare variable weighs at most this many times one of heart rate.
        balance: Share of the plain squared error in the weights, beside the score's.
    """

    n_stays: int = 32
    at_the_cut: float = 0.5
    hide: float = 0.1
    most_queries: float = 120.0
    rarest: float = 15.0
    balance: float = 0.3


class Stays:
    """All points of all stays, and how variables are standardised and weighed.

    Args:
        protocol: The data.
        config: How to draw.
    """

    def __init__(self, protocol: Protocol, config: EpisodeConfig) -> None:
        """Sort the points of history and targets together, and fit the scales on train stays."""
        self.protocol, self.config = protocol, config
        self.n_variables = len(protocol.variables)
        joined = [
            np.concatenate([getattr(protocol.history, name), getattr(protocol.targets, name)])
            for name in ("stay", "variable", "hours", "value")
        ]
        order = np.lexsort((joined[2], joined[1], joined[0]))
        self.points = Points(*(column[order] for column in joined))
        self.starts = np.searchsorted(self.points.stay, np.arange(len(protocol.part) + 1))
        self.train = np.flatnonzero(protocol.part == TRAIN)
        self.location, self.scale = self._scales()
        self.square_weight, self.crps_weight, self.kept = self._weights()

    def _train_points(self, points: Points) -> Points:
        return points.where(self.protocol.part[points.stay] == TRAIN)

    def _scales(self) -> tuple[np.ndarray, np.ndarray]:
        """Median and robust spread of each variable, of the train stays."""
        points = self._train_points(self.points)
        location, scale = np.zeros(self.n_variables), np.ones(self.n_variables)
        for v in range(self.n_variables):
            values = points.value[points.variable == v].astype(np.float64)
            if not len(values):
                continue
            low, _, high = np.quantile(values, [0.05, 0.5, 0.95])
            inside = values[
                (values >= low - 1.5 * (high - low)) & (values <= high + 1.5 * (high - low))
            ]
            location[v] = inside.mean()
            spread = inside.std()
            scale[v] = spread if spread > _LEAST_SD else _SCALE_OF_CONSTANT
        return location, scale

    def _weights(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights of squared error and CRPS, and the share of targets kept, by variable."""
        targets = self._train_points(self.protocol.targets)
        n = np.bincount(targets.variable, minlength=self.n_variables).astype(np.float64)
        asked = (n > 0) & (self.scale > _SCALE_OF_CONSTANT)
        n_stays = len(self.train)
        common = np.sort(n)[-4]
        total = n.sum()
        if self.protocol.name == "A":
            each = np.minimum(1 / np.maximum(n, 1), self.config.rarest / common)
            square = np.where(asked, self.scale**2 * each, 0.0)
            square *= total / (square * n).sum()
            plain = np.where(asked, 1 / np.sqrt(np.maximum(n, 30)), 0.0)
            plain *= total / (plain * n).sum()
        else:
            square = np.where(asked, self.scale**2, 0.0)
            square *= total / (square * n).sum()
            plain = np.where(asked, 1.0, 0.0)
        square = (1 - self.config.balance) * square + self.config.balance * plain
        a_stay = n / n_stays
        level = 1e9
        for _ in range(60):  # thin the frequent ones to a common level
            if np.minimum(a_stay, level).sum() <= self.config.most_queries:
                break
            level = min(level, a_stay.max()) * 0.93
        kept = np.minimum(1.0, level / np.maximum(a_stay, 1e-9))
        return square, plain, np.where(asked, kept, 0.0)

    def cut(
        self,
        stays: np.ndarray,
        cut_hours: np.ndarray,
        horizon: np.ndarray,
        rng: np.random.Generator | None = None,
    ) -> tuple[ForecastContext, ForecastQueries, np.ndarray, np.ndarray]:
        """Context, queries, and value and variable of each query.

        Args:
            stays: Index of each stay.
            cut_hours: Where each is cut: points at or after it are asked for.
            horizon: Hours after the cut that are asked for.
            rng: Hide series and thin queries by it; None: all.
        """
        n, n_variables = len(stays), self.n_variables
        lengths = self.starts[stays + 1] - self.starts[stays]
        entity = np.repeat(np.arange(n), lengths)
        offset = np.repeat(self.starts[stays] - np.r_[0, lengths.cumsum()[:-1]], lengths)
        rows = np.arange(lengths.sum()) + offset
        hours, variable = self.points.hours[rows], self.points.variable[rows]
        series = entity * n_variables + variable
        past = hours < cut_hours[entity]
        asked = ~past & (hours <= (cut_hours + horizon)[entity])
        if rng is not None:
            hidden = rng.random(n * n_variables) < self.config.hide
            past &= ~hidden[series]
            asked &= rng.random(len(rows)) < self.kept[variable]
        values = self.points.value[rows]

        def borders(chosen: np.ndarray) -> torch.Tensor:
            counts = np.bincount(series[chosen], minlength=n * n_variables)
            return torch.from_numpy(np.r_[0, counts.cumsum()])

        context = ForecastContext(
            torch.from_numpy(hours[past] * 3600.0), torch.from_numpy(values[past]), borders(past),
            torch.arange(n_variables).repeat(n), torch.arange(n + 1) * n_variables,
            torch.from_numpy(cut_hours * 3600.0),
        )  # fmt: skip
        queries = ForecastQueries(torch.from_numpy(hours[asked] * 3600.0), borders(asked))
        return context, queries, values[asked], variable[asked]

    def episode(self, step: int, seed: int) -> Episode:
        """The training episode of a step."""
        rng = np.random.default_rng([seed, step])
        name = self.protocol.name
        stays = rng.choice(self.train, self.config.n_stays, replace=False)
        cuts = rng.uniform(*CUTS_HOURS[name], len(stays))
        if name == "B":
            cuts = np.round(cuts)
        at_cut = rng.random(len(stays)) < self.config.at_the_cut
        cuts = np.where(at_cut, self.protocol.cut_hours, cuts)
        horizon = np.full(len(stays), HORIZON_HOURS[name])
        context, queries, values, variable = self.cut(stays, cuts, horizon, rng)
        weight = 1 / np.maximum(self.kept, 1e-9)
        return Episode(
            context, queries, torch.from_numpy(values),
            torch.from_numpy((self.square_weight * weight)[variable]).float(),
            torch.from_numpy((self.crps_weight * weight)[variable]).float(),
        )  # fmt: skip

    def batches(
        self, part: int, n_stays: int = 64
    ) -> Iterator[tuple[ForecastContext, ForecastQueries, np.ndarray]]:
        """All stays of a part, cut by the protocol, and the row of each target asked for."""
        protocol = self.protocol
        targets = protocol.targets
        starts = np.searchsorted(targets.stay, np.arange(len(protocol.part) + 1))
        stays = np.flatnonzero(protocol.part == part)
        for at in range(0, len(stays), n_stays):
            some = stays[at : at + n_stays]
            cuts = np.full(len(some), protocol.cut_hours)
            context, queries, values, _ = self.cut(some, cuts, np.full(len(some), 1e4))
            rows = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in some])
            if len(rows) != len(values) or not np.array_equal(targets.value[rows], values):
                raise AssertionError("targets and what is asked are not the same points")
            yield context, queries, rows
