"""Denial of a claim by its payer, asked when the claim is submitted.

Index is a claim, not a stay: its row has the submission as `start_time` and prediction time, the
final answer as `end_time`, and the stay that it bills as `encounter_id`. The event is a denial as
the final answer; payment, in whole or in part, competes. A claim may be answered several times
(denied, then paid after an appeal; paid, then taken back), so the answer that counts is the last
one with a decision by the end of follow-up, at most `HORIZON_DAYS` after the submission. Answers
that say `PENDING` or nothing that can be read (`UNK`) decide nothing. Of decisions of one moment,
such as answers with a bare date, a payment in part counts before a denial and one in whole before
both, whatever their order in the source: an appeal follows a denial.

No answer is not a yes: a claim without a decision is `censored` while its answer may still come,
and after that it is no index claim, with the reason. So an export without answers gives no labels,
where it might have given a cohort of claims that all seem paid.

Claims are read from the codes of `tsfm.ingest.fhir_claims`, whose text names the claim. ReMedE
(Jiang et al., arXiv 2511.13703) counts a denial that was overturned as denied too: `ever_denied`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import polars as pl

from tsfm import clock, schema
from tsfm.tasks.cohorts import Followup, Task, conclude, days_between, first_reason
from tsfm.tasks.stays import code_part, in_class

CLAIM, RESPONSE = "CLAIM", "CLAIM_RESPONSE"
DENIED, APPROVED, PARTIAL = "DENIED", "APPROVED", "PARTIAL"
HORIZON_DAYS = 180.0
"""Days after the submission, inclusive, within which an answer counts."""

_WEIGHT = pl.col("_decision").replace_strict(
    {DENIED: 0, PARTIAL: 1, APPROVED: 2}, default=-1, return_dtype=pl.Int8
)


@dataclass(frozen=True)
class ClaimRules:
    """Which claims are asked about, and what counts as a denial.

    Attributes:
        use: FHIR's use of a claim: `claim`, `preauthorization` or `predetermination`.
        ever_denied: Count a claim that was denied at any time by the end of follow-up, also one
            that was paid in the end.
        partial_is_denial: Count an answer in part as a denial.
    """

    use: str = "claim"
    ever_denied: bool = False
    partial_is_denial: bool = False


def find_claim_cohort(
    events: pl.DataFrame, followup: Followup, rules: ClaimRules | None = None
) -> pl.DataFrame:
    """One row of `schema.COHORT` for every claim of the rules' use.

    Args:
        events: Whole records, columns of `schema.EVENTS`.
        followup: How long subjects were watched.
        rules: Switches; the defaults if None.
    """
    rules = rules or ClaimRules()
    subject = schema.SUBJECT_ID
    known = pl.coalesce(schema.AVAILABLE_TIME, schema.TIME)
    claims = (
        events.filter(in_class(CLAIM) & (code_part(1) == rules.use) & known.is_not_null())
        .select(subject, schema.ENCOUNTER_ID, schema.TEXT_VALUE, known.alias("start_time"))
        .sort(subject, "start_time", maintain_order=True)
        .with_row_index("_claim")
    )
    answers = events.filter(in_class(RESPONSE) & known.is_not_null()).select(
        subject, schema.TEXT_VALUE, known.alias("_at"), code_part(3).alias("_decision")
    )
    ends = pl.col("start_time") + timedelta(days=HORIZON_DAYS)
    until = None
    if followup.until_us is not None:
        until = pl.lit(clock.from_us(followup.until_us), dtype=pl.Datetime("us"))
        ends = pl.min_horizontal(ends, until)
    given = (
        claims.join(answers, on=[subject, schema.TEXT_VALUE], maintain_order="left_right")
        .filter((pl.col("_at") >= pl.col("start_time")) & (pl.col("_at") <= ends))
        .sort("_claim", "_at", _WEIGHT, maintain_order=True)
    )
    found = claims.join(_decide(given, rules), on="_claim", how="left", maintain_order="left")
    open_days = pl.lit(None, dtype=pl.Float64)
    waits = pl.lit(False)
    if until is not None:
        open_days = days_between(pl.col("start_time"), until)
        waits = open_days < HORIZON_DAYS
    undecided = pl.col("_denied").is_null()
    again = pl.col(schema.TEXT_VALUE).is_not_null().cum_sum().over(subject, "start_time") > 1
    reasons = [
        (pl.col(schema.TEXT_VALUE).is_null(), "claim_without_key"),
        (again, "submitted_with_another_claim"),
        (pl.lit(False) if until is None else pl.col("start_time") > until, "after_follow_up"),
        (undecided & ~waits & pl.col("_answered"), "no_readable_decision"),
        (undecided & ~waits, "no_answer"),
    ]
    return conclude(
        found.with_columns(pl.col("_answered").fill_null(False)).with_columns(
            pl.col("start_time").alias(schema.PREDICTION_TIME),
            pl.col("_decided_at").alias("end_time"),
            first_reason(reasons).alias("reason"),
            outcome=pl.when(undecided)
            .then(pl.lit("censored"))
            .when("_denied")
            .then(pl.lit("event"))
            .otherwise(pl.lit("competing")),
            outcome_days=pl.when(undecided)
            .then(open_days)
            .otherwise(days_between(pl.col("start_time"), pl.col("_decided_at"))),
        )
    )


def _decide(given: pl.DataFrame, rules: ClaimRules) -> pl.DataFrame:
    """What came of each claim that was answered: decided when, denied or not.

    Args:
        given: Answers in order of claim, time and weight.
        rules: What counts as a denial.

    Returns:
        _claim, _answered (true), _decided_at and _denied (null where no answer decides).
    """
    denials = [DENIED, PARTIAL] if rules.partial_is_denial else [DENIED]
    decides = pl.col("_decision").is_in([DENIED, APPROVED, PARTIAL])
    denies = pl.col("_decision").is_in(denials)
    at_last, denied_last = pl.col("_at").filter(decides).last(), denies.filter(decides).last()
    if rules.ever_denied:
        at_last = pl.coalesce(pl.col("_at").filter(denies).first(), at_last)
        denied_last = denied_last | denies.any()
    return given.group_by("_claim", maintain_order=True).agg(
        _answered=pl.lit(True), _decided_at=at_last, _denied=denied_last
    )


CLAIM_DENIAL = Task(
    name="claim_denial",
    description="The payer's final answer to a claim is a denial, asked at submission",
    horizon_days=HORIZON_DAYS,
    positive="event",
    event_name="denial",
    competing_name="payment in whole or in part",
    find_cohort=find_claim_cohort,
    rules=ClaimRules(),
)
