"""What is measured of one model, and what of it may be shown where few have the outcome."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tsfm.evaluation.bootstrap import Interval
from tsfm.evaluation.subgroups import ROUGH_DECIMALS, may_be_told


@dataclass(frozen=True)
class ModelFigures:
    """One model on the stays for which it has a score.

    Attributes:
        name: Name of the model.
        n: Stays.
        n_events: Of these, true labels; None where that is not shown.
        auroc: With its interval.
        auprc: With its interval.
        brier: With its interval; None where the score is no probability.
        slope: Calibration slope; None where it is not defined.
        intercept: Calibration intercept, of the same fit.
        ece: Expected calibration error, bins of equal size.
        auroc_behind: Our AUROC minus this model's, on the same stays; None for our own.
    """

    name: str
    n: int
    n_events: int | None
    auroc: Interval
    auprc: Interval
    brier: Interval | None
    slope: float | None
    intercept: float | None
    ece: float | None
    auroc_behind: Interval | None = None

    def without_count(self) -> ModelFigures:
        """Figures from which the number of outcomes does not follow.

        An AUROC is a whole number of half pairs, and a Brier score of low risks nearly the share
        of outcomes itself.
        """
        slope = None if self.slope is None else round(self.slope, ROUGH_DECIMALS)
        undefined = Interval(math.nan, math.nan, math.nan, 0, 0)
        auroc, behind = undefined, None
        if may_be_told(self.auroc.value, self.n):
            auroc = _rough(self.auroc)
            behind = None if self.auroc_behind is None else _rough(self.auroc_behind)
        return replace(
            self, n_events=None, auroc=auroc, auprc=undefined, brier=None, slope=slope,
            intercept=None, ece=None, auroc_behind=behind,
        )  # fmt: skip


def _rough(interval: Interval) -> Interval:
    """With few digits; how many resamples had an outcome tells of their number, too."""
    ends = (interval.value, interval.low, interval.high)
    value, low, high = (round(end, ROUGH_DECIMALS) for end in ends)
    return Interval(value, low, high, interval.n_drawn, interval.n_drawn)
