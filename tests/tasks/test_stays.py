"""Recorded stays become the stays that happened."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl

from tsfm.tasks.stays import hospital_stays, merge_stays

ADMIT = "HOSPITAL_ADMISSION//EW EMER.//EMERGENCY ROOM"
HOME = "HOSPITAL_DISCHARGE//HOME"


def day(number: float, hour: float = 0) -> datetime:
    return datetime(2020, 1, 1) + timedelta(days=number, hours=hour)


def times(stays: pl.DataFrame) -> list[tuple[datetime, datetime | None]]:
    return list(stays.select("admit_time", "discharge_time").iter_rows())


def test_encounters_pair_by_id_even_when_they_interleave(events_of):
    stays = hospital_stays(
        events_of([(1, day(0), ADMIT, 7), (1, day(2), ADMIT, 8), (1, day(3), HOME, 7),
                   (1, day(9), "HOSPITAL_DISCHARGE//UNK", 8)])
    )  # fmt: skip
    assert times(stays) == [(day(0), day(3)), (day(2), day(9))]
    assert stays["disposition"].to_list() == ["HOME", None]
    assert stays["admission_type"].to_list() == ["EW EMER."] * 2


def test_without_ids_an_admission_takes_the_next_discharge(events_of):
    stays = hospital_stays(
        events_of([(1, day(0), ADMIT, None), (1, day(1), HOME, None), (1, day(2), ADMIT, None),
                   (1, day(5), ADMIT, None), (1, day(6), HOME, None)])
    )  # fmt: skip
    assert times(stays) == [(day(0), day(1)), (day(2), None), (day(5), day(6))]


def test_without_ids_a_transfer_at_one_stamp_ends_the_stay_before(events_of):
    stays = hospital_stays(
        events_of([(1, day(0), ADMIT, None), (1, day(4), HOME, None), (1, day(4), ADMIT, None),
                   (1, day(6), HOME, None)])
    )  # fmt: skip
    assert times(stays) == [(day(0), day(4)), (day(4), day(6))]


def test_without_ids_a_stay_may_have_no_length(events_of):
    stays = hospital_stays(events_of([(1, day(0), ADMIT, None), (1, day(0), HOME, None)]))
    assert times(stays) == [(day(0), day(0))]


def test_a_discharge_before_its_admission_is_no_discharge(events_of):
    stays = hospital_stays(events_of([(1, day(3), ADMIT, 7), (1, day(2), HOME, 7)]))
    assert times(stays) == [(day(3), None)]
    assert stays["flawed"].to_list() == [True]


def test_a_birthday_is_kept_to_the_day(events_of):
    born = [(1, datetime(2002, 3, 1), "MEDS_BIRTH", None), (2, datetime(2002, 3, 1), "MEDS_BIRTH",
             None), (3, datetime(2000, 2, 29), "MEDS_BIRTH", None)]  # fmt: skip
    stays = hospital_stays(
        events_of([*born, (1, datetime(2020, 3, 1), ADMIT, 1), (2, datetime(2020, 2, 29, 23), ADMIT,
                   2), (3, datetime(2018, 2, 28), ADMIT, 3), (4, day(0), ADMIT, 4)])
    )  # fmt: skip
    ages = stays["age_years"].to_list()
    assert ages[0] == 18.0
    assert 17.9 < ages[1] < 18.0
    assert ages[2] == 18.0
    assert ages[3] is None


def test_a_death_belongs_to_the_stay_it_falls_in(events_of):
    def died(moment: datetime | None, disposition: str) -> bool:
        rows: list[tuple[int, datetime, str, int | None]] = [
            (1, day(0, 9), ADMIT, 1),
            (1, day(3, 14), f"HOSPITAL_DISCHARGE//{disposition}", 1),
        ]
        if moment is not None:
            rows.append((1, moment, "MEDS_DEATH", None))
        return hospital_stays(events_of(rows))["died"].item()

    assert died(None, "DIED")
    assert died(day(2, 5), "UNK")
    assert not died(day(4), "HOME")
    # A date of death on the day of discharge: the disposition knows.
    assert died(day(3), "UNK")
    assert not died(day(3), "HOME")
    assert not died(day(3, 23), "UNK")
    end_of_day = day(4) - timedelta(microseconds=1)
    assert died(end_of_day, "UNK")
    assert not died(end_of_day, "HOME")


def test_an_open_last_stay_ends_with_death(events_of):
    rows = [(1, day(0), ADMIT, 1), (1, day(2, 3), "MEDS_DEATH", None)]
    assert hospital_stays(events_of(rows))["died"].item()


def test_same_day_transfers_are_one_episode_unless_switched_off(events_of):
    rows = [(1, day(0), ADMIT, 1), (1, day(2, 8), HOME, 1), (1, day(2, 20), ADMIT, 2),
            (1, day(4), HOME, 2), (1, day(5, 1), ADMIT, 3), (1, day(6), HOME, 3)]  # fmt: skip
    stays = hospital_stays(events_of(rows))
    merged = merge_stays(stays)
    assert merged["last"].to_list() == [False, True, True]
    assert merged["start_time"].to_list() == [day(0), day(0), day(5, 1)]
    assert merged["end_time"].to_list() == [day(4), day(4), day(6)]
    assert merge_stays(stays, merge_same_day=False)["last"].to_list() == [True, True, True]
    within_a_day = merge_stays(stays, merge_same_day=False, merge_hours=25)
    assert within_a_day["last"].to_list() == [False, False, True]


def test_a_nested_stay_ends_with_its_outer_one(events_of):
    outer = [(1, day(0), ADMIT, 1), (1, day(9), HOME, 1)]
    rows = [*outer, (1, day(2), ADMIT, 2), (1, day(4), HOME, 2), (1, day(5), ADMIT, 3)]
    merged = merge_stays(hospital_stays(events_of(rows)), merge_same_day=False)
    assert merged["last"].to_list() == [True, False, False]
    assert merged["end_time"].to_list() == [day(9)] * 3


def test_no_stays_is_an_empty_frame(events_of):
    stays = hospital_stays(events_of([(1, day(0), "LAB//50912//mg/dL", None)]))
    assert stays.height == 0
    assert merge_stays(stays).height == 0
