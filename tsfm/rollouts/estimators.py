"""Risks from futures: Monte Carlo, SCOPE and REACH with their standard errors.

What each of them adds up is said in `outcomes.py`. Monte Carlo and SCOPE of all outcomes share one
set of ordinary futures; REACH needs futures kept from its outcome, one set an outcome. SCOPE's mean
may come out above one: it is cut there after averaging, which is the only bias in it.

A future cut off by the limit on tokens has said nothing of what it had not decided. It counts, with
what it had gathered by then, so such a risk is a lower bound; how many there are stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import schema
from tsfm.batches.batch import Batch
from tsfm.errors import InputError
from tsfm.models.checkpoint import ModelDirectory
from tsfm.rollouts.futures import Futures
from tsfm.rollouts.outcomes import Outcome
from tsfm.rollouts.sample import FutureSource, sample_futures

MONTE_CARLO, SCOPE, REACH = "monte_carlo", "scope", "reach"
METHODS = (MONTE_CARLO, SCOPE, REACH)


def estimate_risks(
    source: ModelDirectory | FutureSource,
    batch: Batch,
    outcomes: Iterable[Outcome],
    *,
    n_futures: int,
    seed: int,
    methods: Iterable[str] = METHODS,
    elapsed_hours: NDArray[np.float64] | None = None,
    max_tokens: int = 4096,
    max_rows: int = 1024,
) -> pl.DataFrame:
    """Estimate the risk of some outcomes for every subject of a batch.

    Args:
        source: See `sample_futures`.
        batch: Packed histories, each up to the moment of prediction.
        outcomes: What is asked, each with a name of its own.
        n_futures: Futures a subject, and for REACH once more an outcome.
        seed: Of the random streams.
        methods: Of `METHODS`.
        elapsed_hours: See `sample_futures`.
        max_tokens: Most tokens of a future.
        max_rows: Most futures that run at one time.

    Returns:
        A row a subject, outcome and method; see `risks_of`.

    Raises:
        InputError: An unknown method, two outcomes of one name, or what `sample_futures` refuses.
    """
    if isinstance(source, ModelDirectory):
        source = FutureSource.of(source)
    outcomes, methods = tuple(outcomes), tuple(methods)
    names = {outcome.name for outcome in outcomes}
    if not outcomes or len(names) < len(outcomes) or not methods or set(methods) - set(METHODS):
        raise InputError(
            "outcomes need different names, and methods must be known", code="bad_estimate",
            place="estimate_risks", remedy=f"Use methods of {', '.join(METHODS)}.",
        )  # fmt: skip
    for outcome in outcomes:
        outcome.check(source.stepper.n_codes)

    def futures(asked: Sequence[Outcome], kept_from: Outcome | None = None) -> Futures:
        return sample_futures(
            source, batch, n_futures=n_futures, seed=seed, outcomes=asked, kept_from=kept_from,
            horizon_days=max(outcome.horizon_days for outcome in asked), max_tokens=max_tokens,
            max_rows=max_rows, elapsed_hours=elapsed_hours, stop_when_decided=True,
            keep_tokens=False,
        )  # fmt: skip

    tables: list[pl.DataFrame] = []
    shared = [method for method in methods if method != REACH]
    if shared:
        ordinary = futures(outcomes)
        tables += [risks_of(ordinary, method) for method in shared]
    if REACH in methods:
        tables += [risks_of(futures([outcome], outcome), REACH) for outcome in outcomes]
    return pl.concat(tables)


def risks_of(futures: Futures, method: str) -> pl.DataFrame:
    """Read an estimate off futures.

    A subject who is dead already has the risk 0, without an error. Else an error of 0 says that all
    futures agree, not that the risk is known: if none of n met the outcome, Monte Carlo says 0, and
    a risk of up to 1 - 0.05 ** (1 / n), about 3 / n, is still compatible with that at 95 %.

    Args:
        futures: Ordinary ones for Monte Carlo and SCOPE, for REACH those kept from the outcome.
        method: One of `METHODS`.

    Returns:
        Columns subject_id, outcome, method, probability, standard_error (of the mean; NaN with one
        future), n_futures, n_unfinished (of which the outcome was not decided).

    Raises:
        InputError: The futures do not serve the method.
    """
    if (method == REACH) != futures.kept_from_outcome or method not in METHODS:
        raise InputError(
            f"these futures give no estimate '{method}'", code="wrong_futures", place="method",
            remedy="REACH takes futures kept from the outcome, the others take ordinary ones.",
        )  # fmt: skip
    n_futures = int(futures.number[-1]) + 1
    n_subjects, n_outcomes = len(futures) // n_futures, len(futures.tally.outcomes)
    tally = futures.tally
    shape = (n_subjects, n_futures, n_outcomes)
    each = {MONTE_CARLO: tally.came, SCOPE: tally.expected, REACH: 1.0 - tally.escaped}[method]
    each = each.astype(np.float64).reshape(shape)
    spread = each.std(1, ddof=1) if n_futures > 1 else np.full(shape[::2], np.nan)
    return pl.DataFrame(
        {
            schema.SUBJECT_ID: np.repeat(futures.subject_id[::n_futures], n_outcomes),
            "outcome": [outcome.name for outcome in tally.outcomes] * n_subjects,
            "method": [method] * (n_subjects * n_outcomes),
            "probability": each.mean(1).clip(0.0, 1.0).ravel(),
            "standard_error": (spread / np.sqrt(n_futures)).ravel(),
            "n_futures": np.full(n_subjects * n_outcomes, n_futures, np.int64),
            "n_unfinished": tally.undecided.reshape(shape).sum(1).ravel(),
        }
    )
