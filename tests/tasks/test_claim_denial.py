"""A claim's final answer: the last decision counts, and no answer is not a yes."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import permutations
from typing import Any

import polars as pl
import pytest

from tsfm import clock, event_table
from tsfm.tasks.claim_denial import CLAIM_DENIAL, ClaimRules
from tsfm.tasks.cohorts import Followup, label_of
from tsfm.tasks.registry import write_labels

T0 = datetime(2024, 1, 1, 9)
COMPLETE = Followup("complete")
ANSWER = "CLAIM_RESPONSE//claim//complete//"


def after(days: float) -> datetime:
    return T0 + timedelta(days=days)


def until(days: float) -> Followup:
    return Followup("until", clock.to_us(after(days)))


def frame(*rows: tuple[float, str, str | None]) -> pl.DataFrame:
    """Events of one subject from (day, code, key of the claim)."""
    found = pl.DataFrame(
        {"subject_id": [1] * len(rows), "time": [after(day) for day, _, _ in rows],
         "code": [code for _, code, _ in rows], "text_value": [key for _, _, key in rows]},
        schema_overrides={"time": pl.Datetime("us"), "text_value": pl.String},
    )  # fmt: skip
    return found.select(
        (pl.col(n) if n in found.columns else pl.lit(None, dtype=k)).alias(n)
        for n, k in event_table.POLARS_EVENTS.items()
    ).with_columns(available_time="time", encounter_id=pl.lit(5, dtype=pl.Int64))


def claim(
    day: float = 0, key: str | None = "k", use: str = "claim"
) -> tuple[float, str, str | None]:
    return day, f"CLAIM//{use}//institutional//Medicare", key


def answer(day: float, decision: str, key: str = "k") -> tuple[float, str, str]:
    return day, ANSWER + decision, key


def ask(
    *rows: tuple[float, str, str | None],
    followup: Followup = COMPLETE,
    rules: ClaimRules | None = None,
) -> tuple[tuple[Any, ...], bool | None]:
    cohort = CLAIM_DENIAL.find_cohort(frame(*rows), followup, rules)
    label = label_of(cohort["outcome"], cohort["outcome_days"], CLAIM_DENIAL.horizon_days,
                     CLAIM_DENIAL.positive)  # fmt: skip
    return cohort.select("reason", "outcome", "outcome_days").row(0), label[0]


@pytest.mark.parametrize(
    ("answers", "outcome", "days"),
    [
        (["DENIED"], "event", 10.0),
        (["APPROVED"], "competing", 10.0),
        (["PARTIAL"], "competing", 10.0),
        (["DENIED", "APPROVED"], "competing", 20.0),
        (["APPROVED", "DENIED"], "event", 20.0),
        (["PENDING", "DENIED"], "event", 20.0),
        (["DENIED", "PENDING"], "event", 10.0),
        (["DENIED", "UNK"], "event", 10.0),
        (["DENIED", "APPROVED", "DENIED"], "event", 30.0),
    ],
)
def test_the_last_decision_is_the_answer(answers: list[str], outcome: str, days: float) -> None:
    given = [answer(10.0 * n, decision) for n, decision in enumerate(answers, 1)]
    row, label = ask(claim(), *given)
    assert row == (None, outcome, days)
    assert label is (outcome == "event")


def test_the_answer_is_the_last_one_that_the_follow_up_saw() -> None:
    rows = (claim(), answer(10, "DENIED"), answer(40, "APPROVED"))
    assert ask(*rows, followup=until(30))[1] is True
    assert ask(*rows, followup=until(40))[1] is False


def test_no_answer_yet_is_unknown_and_no_answer_at_all_no_payment() -> None:
    assert ask(claim(), followup=until(30)) == ((None, "censored", 30.0), None)
    assert ask(claim(), followup=until(180))[0] == ("no_answer", None, None)
    assert ask(claim())[0] == ("no_answer", None, None)
    assert ask(claim(), answer(10, "PENDING"), followup=until(30)) == (
        (None, "censored", 30.0),
        None,
    )


def test_an_answer_that_can_not_be_read_is_no_payment_either() -> None:
    assert ask(claim(), answer(10, "UNK"))[0] == ("no_readable_decision", None, None)
    assert ask(claim(), answer(10, "UNK"), followup=until(30))[1] is None


def test_an_answer_after_the_horizon_does_not_count() -> None:
    assert ask(claim(), answer(180, "DENIED"))[1] is True
    assert ask(claim(), answer(180.01, "DENIED"))[0] == ("no_answer", None, None)
    assert ask(claim(), answer(10, "APPROVED"), answer(200, "DENIED"))[1] is False


def test_answers_find_their_own_claim() -> None:
    rows = (claim(0, "a"), claim(1, "b"), answer(5, "DENIED", "a"), answer(6, "APPROVED", "b"),
            answer(7, "DENIED", "c"), answer(0.5, "DENIED", "b"))  # fmt: skip
    cohort = CLAIM_DENIAL.find_cohort(frame(*rows), COMPLETE, None)
    assert cohort["outcome"].to_list() == ["event", "competing"]
    assert cohort["prediction_time"].to_list() == [after(0), after(1)]
    assert cohort["end_time"].to_list() == [after(5), after(6)]
    assert cohort["encounter_id"].to_list() == [5, 5]


def test_claims_that_can_not_be_told_apart_are_named() -> None:
    rows = (claim(0, "a"), claim(0, "b"), claim(1, None), answer(5, "DENIED", "a"))
    cohort = CLAIM_DENIAL.find_cohort(frame(*rows), COMPLETE, None)
    assert cohort["reason"].to_list() == [None, "submitted_with_another_claim", "claim_without_key"]


def test_a_claim_without_a_key_takes_no_other_claims_place() -> None:
    for rows in ((claim(0, None), claim(0, "a")), (claim(0, "a"), claim(0, None))):
        cohort = CLAIM_DENIAL.find_cohort(frame(*rows, answer(5, "DENIED", "a")), COMPLETE, None)
        assert sorted(cohort["reason"].to_list(), key=str) == [None, "claim_without_key"]
        assert cohort.filter("eligible")["outcome"].to_list() == ["event"]
    more = frame(claim(0, None), claim(0, "a"), claim(0, None), claim(0, "b"))
    found = CLAIM_DENIAL.find_cohort(more, until(9), None)["reason"]
    assert found.to_list() == [
        "claim_without_key", None, "claim_without_key", "submitted_with_another_claim"]  # fmt: skip


@pytest.mark.parametrize(
    ("decisions", "outcome", "partly"),
    [
        (["APPROVED", "DENIED"], "competing", "competing"),
        (["APPROVED", "PARTIAL"], "competing", "competing"),
        (["PARTIAL", "DENIED"], "competing", "event"),
        (["PENDING", "DENIED"], "event", "event"),
        (["UNK", "APPROVED", "PENDING"], "competing", "competing"),
    ],
)
def test_answers_of_one_moment_do_not_go_by_their_order_in_the_source(
    decisions: list[str], outcome: str, partly: str
) -> None:
    for order in permutations(decisions):
        rows = (claim(), *(answer(10, decision) for decision in order))
        assert ask(*rows)[0] == (None, outcome, 10.0)
        assert ask(*rows, rules=ClaimRules(partial_is_denial=True))[0][1] == partly


def test_a_claim_is_asked_about_when_it_is_known() -> None:
    late = frame(claim(), answer(10, "DENIED")).with_columns(
        available_time=pl.when(pl.col("code").str.starts_with("CLAIM//"))
        .then(pl.lit(after(2)).cast(pl.Datetime("us")))
        .otherwise("available_time")
    )
    cohort = CLAIM_DENIAL.find_cohort(late, COMPLETE, None)
    assert cohort.select("prediction_time", "outcome_days").row(0) == (after(2), 8.0)


def test_what_counts_is_a_switch() -> None:
    overturned = (claim(), answer(10, "DENIED"), answer(40, "APPROVED"))
    assert ask(*overturned, rules=ClaimRules(ever_denied=True))[0] == (None, "event", 10.0)
    assert ask(claim(), answer(9, "APPROVED"), rules=ClaimRules(ever_denied=True))[1] is False
    partly = (claim(), answer(10, "PARTIAL"))
    assert ask(*partly, rules=ClaimRules(partial_is_denial=True))[1] is True
    asked_before = (claim(use="preauthorization"), answer(3, "DENIED"))
    assert CLAIM_DENIAL.find_cohort(frame(*asked_before), COMPLETE, None).height == 0
    assert ask(*asked_before, rules=ClaimRules(use="preauthorization"))[1] is True


def test_no_claims_is_said_not_raised(tmp_path: Any, data_set_of: Any) -> None:
    root = data_set_of(tmp_path / "events", [(1, T0, "LAB//1//g", None)])
    summary = write_labels(root, "claim_denial", tmp_path / "labels")
    assert summary.n_stays == 0
    assert "no claims were found" in summary.as_text()


def test_from_a_simulated_export_to_labels_nothing_is_lost(tmp_path: Any) -> None:
    from tsfm.ingest.fhir_ndjson import ingest_fhir
    from tsfm.simulation.hospital import simulate_hospital
    from tsfm.tasks.registry import find_cohort, labels_of

    hospital = simulate_hospital(
        tmp_path / "hospital", n_patients=60, waveform_fraction=0.0, claims=True, progress=False
    )
    assert hospital.claims_path is not None
    ingest_fhir(hospital.fhir_dir, tmp_path / "events", progress=False)
    truth = pl.read_parquet(hospital.claims_path)
    cohort = find_cohort(tmp_path / "events", "claim_denial")
    assert cohort.height == truth.height > 100
    assert cohort["eligible"].all()
    known = truth.filter("answered").select(
        prediction_time="submitted_time", told="denied", subject="patient_id"
    )
    found = known.join(labels_of(cohort, CLAIM_DENIAL), on="prediction_time", how="left")
    assert found["boolean_value"].to_list() == known["told"].to_list()
    assert found["boolean_value"].sum() > 5
