"""What a report keeps to itself: what would tell of one to ten subjects.

One rule for all that is printed or written (`tsfm.evaluation.subgroups`): a figure rests on eleven
subjects or more, and what they have in common, the outcome or a reason, is no count of fewer. How
many stays were looked at, scored or known is no fact about a patient, and always shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

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

    Args:
        alerts: By the share of stays that are alerted.
        labelled: The stays, with `probability`.
        chosen: Share that is kept where two are too close to be shown both.
    """
    p = pl.col("probability").cast(pl.Float64)
    kept: dict[float, Alerts] = {}
    for share in sorted(alerts, key=lambda share: (share != chosen, share)):
        asked = sorted([*kept.values(), alerts[share]], key=lambda found: found.n_alerts)
        counts = [0, *(found.n_alerts for found in asked), labelled.height]
        ends = [float("inf"), *(found.threshold for found in asked), float("-inf")]
        steps = [labelled.filter((p < above) & (p >= below)) for above, below in pairwise(ends)]
        if not any(is_few(b - a) for a, b in pairwise(counts)) and not any(map(of_few, steps)):
            kept[share] = alerts[share]
    return dict(sorted(kept.items()))


def pooled_reasons(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts by reason, those of fewer than eleven together, with others until they are eleven.

    A small count alone could be had from the sum of all, so a second one joins it.
    """
    order = sorted(counts, key=lambda reason: (counts[reason], reason))
    pooled = [reason for reason in order if is_few(counts[reason])]
    rest = [reason for reason in order if counts[reason] >= SMALLEST_CELL]
    while pooled and rest and sum(counts[reason] for reason in pooled) < SMALLEST_CELL:
        pooled.append(rest.pop(0))
    found = {reason: n for reason, n in counts.items() if reason not in pooled}
    if pooled:
        found[OTHER_REASONS] = sum(counts[reason] for reason in pooled)
    return found
