"""Death within 30 days of admission, wherever it happens."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest

from tsfm import clock
from tsfm.errors import InputError
from tsfm.tasks.cohorts import Followup, label_of
from tsfm.tasks.mortality_30d import MORTALITY_30D

T0 = datetime(2150, 1, 1, 12)
COMPLETE = Followup("complete")


def after(days: float) -> datetime:
    return T0 + timedelta(days=days)


def ask(events_of: Any, end: float | None, died: float | None, to: str = "HOME",
        followup: Followup = COMPLETE) -> Any:  # fmt: skip
    rows = [(1, datetime(2100, 1, 1), "MEDS_BIRTH", None), (1, T0, "HOSPITAL_ADMISSION//X", 1)]
    if end is not None:
        rows.append((1, after(end), f"HOSPITAL_DISCHARGE//{to}", 1))
    if died is not None:
        rows.append((1, after(died), "MEDS_DEATH", None))
    cohort = MORTALITY_30D.find_cohort(events_of(rows), followup, None)
    label = label_of(cohort["outcome"], cohort["outcome_days"], MORTALITY_30D.horizon_days,
                     MORTALITY_30D.positive)  # fmt: skip
    return cohort.select("reason", "outcome", "outcome_days").row(0), label.item()


@pytest.mark.parametrize(
    ("end", "died", "to", "expected"),
    [
        (5, None, "DIED", True),
        (5, 5, "DIED", True),
        (5, 12, "HOME", True),
        (5, 30, "HOME", True),
        (5, 30.01, "HOME", False),
        (45, 45, "DIED", False),
        (5, None, "HOME", False),
        (5, 200, "HOME", False),
    ],
)
def test_thirty_days_from_admission_in_hospital_or_out(
    events_of: Any, end: float, died: float | None, to: str, expected: bool
) -> None:
    (reason, _, _), label = ask(events_of, end, died, to)
    assert (reason, label) == (None, expected)


def test_a_discharge_does_not_compete(events_of: Any) -> None:
    assert ask(events_of, 2, 20)[0] == (None, "event", 19.0)
    assert ask(events_of, 2, None)[0] == (None, "censored", 365.0)


def test_who_was_not_watched_for_thirty_days_has_no_label(events_of: Any) -> None:
    def until(days: float) -> Followup:
        return Followup("until", clock.to_us(after(days)))

    assert ask(events_of, 5, None, followup=until(29.9))[1] is None
    assert ask(events_of, 5, None, followup=until(30))[1] is False
    assert ask(events_of, 5, 20, followup=until(21))[1] is True
    assert ask(events_of, None, None, followup=until(20))[0] == (None, "censored", 19.0)


def test_a_stay_that_is_over_by_then_is_not_asked_about(events_of: Any) -> None:
    assert ask(events_of, 0.5, 10)[0] == ("left_before_prediction_time", None, None)
    assert ask(events_of, 0.5, 0.5, "DIED")[0] == ("left_before_prediction_time", None, None)


def test_a_transferred_patient_is_asked_about_once(events_of: Any) -> None:
    events = events_of([
        (1, datetime(2100, 1, 1), "MEDS_BIRTH", None),
        (1, T0, "HOSPITAL_ADMISSION//X", 1), (1, after(2), "HOSPITAL_DISCHARGE//HOME", 1),
        (1, after(2.1), "HOSPITAL_ADMISSION//X", 2), (1, after(9), "HOSPITAL_DISCHARGE//DIED", 2),
    ])  # fmt: skip
    cohort = MORTALITY_30D.find_cohort(events, COMPLETE, None)
    assert cohort["outcome"].to_list() == ["event", None]
    assert cohort["outcome_days"].to_list() == [8.0, None]


def test_what_happens_to_be_known_of_later_is_no_answer(events_of: Any) -> None:
    until = Followup("until", clock.to_us(after(10)))
    for died in (12, 20):
        (_, outcome, days), label = ask(events_of, 5, died, followup=until)
        assert (outcome, days, label) == ("censored", 9.0, None)
    assert ask(events_of, 5, 9, followup=until)[1] is True


def test_labels_of_what_is_not_known_are_not_known() -> None:
    outcome = pl.Series([None, "censored", "event", "event"], dtype=pl.String)
    days = pl.Series([40.0, float("nan"), float("nan"), 3.0])
    assert label_of(outcome, days, 30.0, "event").to_list() == [None, None, None, True]
    assert label_of(outcome, days, 30.0, "none").to_list() == [None, None, None, False]
    with pytest.raises(InputError, match="bad_outcome"):
        label_of(pl.Series(["Event"]), pl.Series([40.0]), 30.0, "event")
