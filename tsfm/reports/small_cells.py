"""What a report keeps to itself: what would tell of one to ten subjects.

One rule for all that is printed or written (`tsfm.evaluation.subgroups`): a figure rests on eleven
subjects or more, and what they have in common, the outcome or a reason, is no count of fewer. How
many stays were looked at, scored or known is no fact about a patient, and always shown.

Curves are exempt: those of the page step at single stays, and a point of its calibration plot rests
on eleven subjects or more, but tells how many of its stays have the outcome, however few. In bins
of low risk one to ten are ordinary, and without them there would be no plot.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise, starmap

import polars as pl

from tsfm import schema
from tsfm.evaluation.discrimination import Alerts
from tsfm.evaluation.subgroups import SMALLEST_CELL, is_few

OTHER_REASONS = "other reasons"


def shown_count(n: int) -> str:
    """A count as it may be read."""
    return f"fewer than {SMALLEST_CELL}" if is_few(n) else f"{n:,}"


def of_few(rows: pl.DataFrame) -> bool:
    """Whether the rows are of one to ten subjects."""
    return is_few(rows[schema.SUBJECT_ID].n_unique())


def outcome_of_few(labelled: pl.DataFrame) -> bool:
    """Whether one to ten subjects have the outcome, or lack it."""
    y = pl.col(schema.BOOLEAN_VALUE)
    return of_few(labelled.filter(y)) or of_few(labelled.filter(~y))


def shown_alerts(
    alerts: Mapping[float, Alerts], labelled: pl.DataFrame, chosen: float
) -> dict[float, Alerts]:
    """Alerts that tell of eleven subjects or more: those alerted, those not, and those between.

    Of each of these as many have the outcome, and lack it, or nobody does.

    Args:
        alerts: By the share of stays that are alerted.
        labelled: The stays, with `probability` and the outcome.
        chosen: Share that is kept where two are too close to be shown both.
    """
    p = pl.col("probability").cast(pl.Float64)
    n_events = int(labelled[schema.BOOLEAN_VALUE].sum())
    kept: dict[float, Alerts] = {}
    for share in sorted(alerts, key=lambda share: (share != chosen, share)):
        asked = sorted([*kept.values(), alerts[share]], key=lambda found: found.n_alerts)
        told = [(found.n_alerts, found.true_positives) for found in asked]
        told = [(0, 0.0), *told, (labelled.height, n_events)]
        ends = [float("inf"), *(found.threshold for found in asked), float("-inf")]
        steps = [labelled.filter((p < above) & (p >= below)) for above, below in pairwise(ends)]
        if not any(starmap(_counts_few, pairwise(told))) and not any(map(_tells_of_few, steps)):
            kept[share] = alerts[share]
    return dict(sorted(kept.items()))


def pooled_reasons(
    counts: Mapping[str, int], left_out: pl.DataFrame | None = None
) -> dict[str, int | None]:
    """Stays by reason, those of fewer than eleven subjects together, with others until they are.

    A small count alone could be had from the sum of all, so a second one joins it.

    Args:
        counts: Stays that the task did not ask for, by reason.
        left_out: Those stays, of the cohort, or the ones of a split among them: a subject who is
            not there is not counted. None where they are not at hand; each stay is then taken for
            a subject.

    Returns:
        Stays by reason; None where all reasons together are of one to ten subjects.
    """
    reason = pl.col("reason").fill_null("unknown")

    def of_too_few(reasons: list[str]) -> bool:
        n_stays = sum(counts[name] for name in reasons)
        if left_out is None:
            return is_few(n_stays)
        own = left_out.filter(reason.is_in(reasons))
        return n_stays > 0 and own[schema.SUBJECT_ID].n_unique() < SMALLEST_CELL

    order = sorted(counts, key=lambda name: (counts[name], name))
    pooled = [name for name in order if of_too_few([name])]
    rest = [name for name in order if counts[name] and name not in pooled]
    while rest and of_too_few(pooled):
        pooled.append(rest.pop(0))
    found: dict[str, int | None] = {k: n for k, n in counts.items() if k not in pooled}
    if pooled:
        n_stays = sum(counts[name] for name in pooled)
        found[OTHER_REASONS] = None if of_too_few(pooled) else n_stays
    return found


def _tells_of_few(rows: pl.DataFrame) -> bool:
    return of_few(rows) or outcome_of_few(rows)


def _counts_few(before: tuple[int, float], after: tuple[int, float]) -> bool:
    """Whether between two (alerts, those with the outcome) there are few, or few with it or not.

    Where scores tie at a threshold, the second number is that of a fair draw, and no whole one.
    """
    n, with_it = after[0] - before[0], round(after[1] - before[1], 6)
    return is_few(n) or is_few(with_it) or is_few(n - with_it)
