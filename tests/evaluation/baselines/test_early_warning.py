"""NEWS2 and MEWS: every border of the published tables, and what is known when."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest

from tsfm.evaluation.baselines.early_warning import mews_scores, news2_scores
from tsfm.ingest.physionet2012_tables import PARAMETERS
from tsfm.simulation.catalogue import MEASURES, SYSTOLIC

NOW = datetime(2150, 3, 2, 8)
HOUR = timedelta(hours=1)

RESPIRATION, SATURATION = "VITAL//LOINC//9279-1///min", "VITAL//LOINC//59408-5//%"
PRESSURE, PULSE = "VITAL//LOINC//8480-6//mm[Hg]", "VITAL//LOINC//8867-4///min"
TEMPERATURE, COMA = "VITAL//LOINC//8310-5//Cel", "OBSERVATION//LOINC//9269-2//{score}"
OXYGEN, FLOW = "VITAL//LOINC//3150-6//%", "VITAL//LOINC//3151-8//L/min"
AVPU = "OBSERVATION//LOINC//67775-7"

# As printed: points, first and last value of every box.
NEWS2 = {
    "respiration": (
        RESPIRATION, 1,
        [(3, 1, 8), (1, 9, 11), (0, 12, 20), (2, 21, 24), (3, 25, 60)],
    ),
    "saturation": (SATURATION, 1, [(3, 60, 91), (2, 92, 93), (1, 94, 95), (0, 96, 100)]),
    "pressure": (
        PRESSURE, 1,
        [(3, 40, 90), (2, 91, 100), (1, 101, 110), (0, 111, 219), (3, 220, 260)],
    ),
    "pulse": (
        PULSE, 1,
        [(3, 20, 40), (1, 41, 50), (0, 51, 90), (1, 91, 110), (2, 111, 130), (3, 131, 200)],
    ),
    "temperature": (
        TEMPERATURE, 10,
        [(3, 330, 350), (1, 351, 360), (0, 361, 380), (1, 381, 390), (2, 391, 420)],
    ),
}  # fmt: skip
MEWS = {
    "pressure": (
        PRESSURE, 1, [(3, 40, 70), (2, 71, 80), (1, 81, 100), (0, 101, 199), (2, 200, 260)],
    ),
    "pulse": (
        PULSE, 1,
        [(2, 20, 40), (1, 41, 50), (0, 51, 100), (1, 101, 110), (2, 111, 129), (3, 130, 200)],
    ),
    "respiration": (
        RESPIRATION, 1, [(2, 1, 8), (0, 9, 14), (1, 15, 20), (2, 21, 29), (3, 30, 60)],
    ),
    "temperature": (TEMPERATURE, 10, [(2, 330, 349), (0, 350, 384), (2, 385, 420)]),
}  # fmt: skip


def asked(*subjects: int, at: datetime = NOW) -> pl.DataFrame:
    return pl.DataFrame(
        {"subject_id": list(subjects), "prediction_time": [at] * len(subjects)},
        schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")},
    )


@pytest.mark.parametrize(
    ("scores", "prefix", "table"),
    [(news2_scores, "news2", NEWS2), (mews_scores, "mews", MEWS)],
    ids=["NEWS2", "MEWS"],
)
def test_every_value_has_the_points_of_its_printed_box(
    events_of: Any, scores: Any, prefix: str, table: Any
) -> None:
    for name, (code, per_unit, boxes) in table.items():
        # One subject a value; float32 in between, as an event table has it.
        values = {v: points for points, low, high in boxes for v in range(low, high + 1)}
        assert sorted(values) == list(range(min(values), max(values) + 1))
        events = events_of([(v, NOW - HOUR, code, v / per_unit) for v in values])
        found = scores(events, asked(*values))
        got = dict(zip(found["subject_id"], found[f"{prefix}_{name}"], strict=True))
        assert got == values
        assert found[prefix].to_list() == list(values.values())
        assert found["n_missing"].unique().to_list() == [{"news2": 6, "mews": 4}[prefix]]


def test_consciousness_by_the_coma_scale(events_of: Any) -> None:
    events = events_of([(v, NOW - HOUR, COMA, float(v)) for v in range(3, 16)])
    news2 = news2_scores(events, asked(*range(3, 16)))["news2_consciousness"].to_list()
    assert news2 == [3] * 12 + [0]
    mews = mews_scores(events, asked(*range(3, 16)))["mews_consciousness"].to_list()
    assert mews == [3] * 3 + [2] * 5 + [1] * 4 + [0]


@pytest.mark.parametrize(
    ("answer", "news2", "mews"),
    [
        ("LA9340-6", 0, 0), ("LA9341-4", 3, 1), ("LA9342-2", 3, 2), ("LA9343-0", 3, 3),
        ("248234008", 0, 0), ("130987000", 3, 1), ("300202002", 3, 1), ("450847001", 3, 2),
        ("422768004", 3, 3),
    ],
)  # fmt: skip
def test_consciousness_by_a_coded_answer(
    events_of: Any, answer: str, news2: int, mews: int
) -> None:
    events = events_of([(1, NOW - HOUR, f"{AVPU}//{answer}")])
    assert news2_scores(events, asked(1))["news2_consciousness"].to_list() == [news2]
    assert mews_scores(events, asked(1))["mews_consciousness"].to_list() == [mews]


def test_the_later_of_answer_and_coma_scale_counts(events_of: Any) -> None:
    alert, coma = (1, NOW - 2 * HOUR, f"{AVPU}//LA9340-6"), (1, NOW - HOUR, COMA, 5.0)
    assert mews_scores(events_of([alert, coma]), asked(1))["mews"].to_list() == [3]
    later = (1, NOW, f"{AVPU}//LA9340-6")
    assert mews_scores(events_of([alert, coma, later]), asked(1))["mews"].to_list() == [0]


def test_the_parts_of_the_coma_scale_add_up_where_all_are_there(events_of: Any) -> None:
    parts = [(1, NOW - HOUR, f"LAB//{item}//UNK", v)
             for item, v in (("220739", 3.0), ("223900", 3.0), ("223901", 5.0))]  # fmt: skip
    assert mews_scores(events_of(parts), asked(1))["mews_consciousness"].to_list() == [1]
    assert mews_scores(events_of(parts[:2]), asked(1))["mews_consciousness"].to_list() == [None]


def test_oxygen_counts_where_it_is_coded(events_of: Any) -> None:
    rows = [
        (1, NOW - HOUR, OXYGEN, 21.0),
        (2, NOW - HOUR, OXYGEN, 40.0),
        (3, NOW - HOUR, "RESPIRATORY_CHARTING//FiO2", 0.4),
        (4, NOW - HOUR, FLOW, 2.0),
        (5, NOW - HOUR, FLOW, 0.0),
        (6, NOW - HOUR, PULSE, 70.0),
    ]
    found = news2_scores(events_of(rows), asked(1, 2, 3, 4, 5, 6))
    assert found["news2_oxygen"].to_list() == [0, 2, 2, 2, 0, None]
    assert found["n_missing"].to_list() == [6] * 6


def test_a_whole_patient_by_hand(events_of: Any) -> None:
    rows = [
        (1, NOW - HOUR, RESPIRATION, 22.0),  # 2
        (1, NOW - HOUR, SATURATION, 93.0),  # 2
        (1, NOW - HOUR, OXYGEN, 28.0),  # 2
        (1, NOW - HOUR, PRESSURE, 105.0),  # 1
        (1, NOW - HOUR, PULSE, 115.0),  # 2
        (1, NOW - HOUR, COMA, 15.0),  # 0
        (1, NOW - HOUR, TEMPERATURE, 38.4),  # 1
    ]
    found = news2_scores(events_of(rows), asked(1)).row(0, named=True)
    assert (found["news2"], found["n_missing"], found["news2_red"]) == (10, 0, False)
    found = mews_scores(events_of(rows), asked(1)).row(0, named=True)
    assert (found["mews"], found["n_missing"]) == (2 + 0 + 2 + 0 + 0, 0)
    worse = [*rows, (1, NOW, PRESSURE, 88.0)]
    assert news2_scores(events_of(worse), asked(1))["news2_red"].to_list() == [True]


def test_the_last_value_known_within_a_day_counts(events_of: Any) -> None:
    def pulse(*rows: Any) -> int | None:
        events = events_of([(1, NOW + shift, PULSE, value, NOW + known)
                            for shift, value, known in rows])  # fmt: skip
        return news2_scores(events, asked(1))["news2_pulse"].to_list()[0]

    fast, calm = 140.0, 70.0
    assert pulse((-5 * HOUR, fast, -5 * HOUR), (-HOUR, calm, -HOUR)) == 0
    assert pulse((-5 * HOUR, calm, -5 * HOUR), (-HOUR, fast, HOUR)) == 0  # written down later
    assert pulse((-24 * HOUR, fast, -24 * HOUR)) == 3
    assert pulse((-24 * HOUR - timedelta(seconds=1), fast, -20 * HOUR)) is None
    assert pulse((HOUR, fast, -HOUR)) is None


def test_nothing_measured_is_a_sum_of_nothing_and_says_so(events_of: Any) -> None:
    events = events_of([(1, NOW - HOUR, "LAB//LOINC//2160-0//mg/dL", 1.0)])
    found = news2_scores(events, asked(1, 2))
    assert found["news2"].to_list() == [0, 0]
    assert found["n_missing"].to_list() == [7, 7]
    assert mews_scores(events, asked(1))["n_missing"].to_list() == [5]


def test_other_units_are_converted_or_passed_over(events_of: Any) -> None:
    rows = [
        (1, NOW - HOUR, "LAB//223761//°F", 95.0),  # 35.0 Cel
        (2, NOW - HOUR, "LAB//223761//UNK", 95.0),
        (3, NOW - HOUR, "LAB//223762//°C", 35.0),
        (4, NOW - HOUR, "VITAL//LOINC//8310-5//UNK", 95.0),  # no temperature of an adult
        (5, NOW - HOUR, "VITAL//LOINC//8310-5//K", 308.15),
    ]
    found = news2_scores(events_of(rows), asked(1, 2, 3, 4, 5))
    assert found["news2_temperature"].to_list() == [3, 3, 3, None, None]
    kilopascal = events_of([(1, NOW - HOUR, "VITAL//LOINC//8480-6//kPa", 12.0)])  # 90 mm[Hg]
    assert news2_scores(kilopascal, asked(1))["news2_pressure"].to_list() == [3]


def test_implausible_values_do_not_hide_the_one_before(events_of: Any) -> None:
    rows = [(1, NOW - 2 * HOUR, PRESSURE, 120.0), (1, NOW - HOUR, PRESSURE, 0.0)]
    assert news2_scores(events_of(rows), asked(1))["news2_pressure"].to_list() == [0]


def test_codes_of_every_source_are_read(events_of: Any) -> None:
    simulated = [
        f"VITAL//LOINC//{m.loinc}//{m.unit}"
        for m in (
            *(MEASURES[n] for n in
              ("heart_rate", "respiratory_rate", "temperature", "oxygen_saturation")),
            SYSTOLIC,
        )
    ]  # fmt: skip
    intensive = [PARAMETERS[n].code(n) for n in ("HR", "RespRate", "Temp", "SaO2", "SysABP")]
    charted = ["LAB//220045//bpm", "LAB//220210//insp/min", "LAB//223762//°C", "LAB//220277//%",
               "LAB//220179//mmHg"]  # fmt: skip
    values = (70.0, 15.0, 37.0, 98.0, 120.0)
    for subject, names in enumerate((simulated, intensive, charted), start=1):
        rows = [(subject, NOW - HOUR, c, v) for c, v in zip(names, values, strict=True)]
        found = news2_scores(events_of(rows), asked(subject)).row(0, named=True)
        assert (found["news2"], found["n_missing"]) == (0, 2)


def test_rows_come_once_in_the_order_asked(events_of: Any) -> None:
    events = events_of([(1, NOW - HOUR, PULSE, 140.0), (2, NOW - HOUR, PULSE, 70.0)])
    found = news2_scores(events, pl.concat([asked(2, 1, 2), asked(1, at=NOW + 30 * HOUR)]))
    assert found["subject_id"].to_list() == [2, 1, 1]
    assert found["news2"].to_list() == [0, 3, 0]
    assert found["n_missing"].to_list() == [6, 6, 7]


def test_parts_of_the_coma_scale_told_later_outdo_a_total(events_of: Any) -> None:
    total = (1, NOW - 3 * HOUR, COMA, 15.0)
    parts = [(1, NOW - HOUR, f"LAB//{item}//UNK", v)
             for item, v in (("220739", 1.0), ("223900", 1.0), ("223901", 4.0))]  # fmt: skip
    assert news2_scores(events_of([total, *parts]), asked(1))["news2_consciousness"][0] == 3
    early = [(1, NOW - 5 * HOUR, code, v) for _, _, code, v in parts]
    assert news2_scores(events_of([*early, total]), asked(1))["news2_consciousness"][0] == 0


def test_oxygen_that_was_stopped_later_does_not_count(events_of: Any) -> None:
    share, stopped = (1, NOW - 3 * HOUR, OXYGEN, 50.0), (1, NOW - HOUR, FLOW, 0.0)
    assert news2_scores(events_of([share, stopped]), asked(1))["news2_oxygen"].to_list() == [0]
    again = (1, NOW, OXYGEN, 40.0)
    found = news2_scores(events_of([share, stopped, again]), asked(1))
    assert found["news2_oxygen"].to_list() == [2]
