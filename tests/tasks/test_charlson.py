"""Comorbidities by prefix, by time of knowledge, and without counting a disease twice."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from tsfm.tasks.charlson import (
    CATEGORIES,
    CHARLSON_WEIGHTS,
    LACE_WEIGHTS,
    PREFIXES,
    categories_of,
    charlson_index,
)

T0 = datetime(2020, 5, 1, 12)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("DIAGNOSIS//ICD//10//I5023", ["heart_failure"]),
        ("DIAGNOSIS//ICD//10//I50.23", ["heart_failure"]),
        ("DIAGNOSIS//ICD//9//4280", ["heart_failure"]),
        ("DIAGNOSIS//ICD//9//25040", ["diabetes_complicated"]),
        ("DIAGNOSIS//ICD//10//E119", ["diabetes"]),
        ("DIAGNOSIS//ICD//10//C787", ["metastatic"]),
        ("DIAGNOSIS//ICD//9//V4511", ["renal"]),
        ("DIAGNOSIS//ICD//10//A419", []),
        ("DIAGNOSIS//ICD//9//I5023", []),
        ("DIAGNOSIS//SNOMED//84114007", []),
        ("PROCEDURE//ICD//9//4280", []),
    ],
)
def test_codes_fall_into_their_categories(code, expected):
    assert categories_of(code) == expected


def test_each_revision_knows_all_seventeen_categories():
    assert len(CATEGORIES) == 17
    assert all(set(table) == set(CATEGORIES) for table in PREFIXES.values())
    assert set(CHARLSON_WEIGHTS) == set(CATEGORIES)
    assert set(LACE_WEIGHTS) <= set(CATEGORIES)


def test_no_prefix_belongs_to_two_categories():
    for table in PREFIXES.values():
        pairs = [(prefix, name) for name, prefixes in table.items() for prefix in prefixes]
        clashes = [
            (a, b)
            for a, name_a in pairs
            for b, name_b in pairs
            if name_a != name_b and b.startswith(a)
        ]
        # Hypertensive heart and kidney disease with both failures counts as both, and Quan's
        # table has a cerebral aneurysm among the arteries as well.
        assert {b for _, b in clashes} <= {"40403", "40413", "40493", "4373"}


def test_a_diagnosis_counts_once_and_from_when_it_is_known(events_of, cohort_of):
    events = events_of(
        [
            (1, T0, "DIAGNOSIS//ICD//10//I5023"),
            (1, T0, "DIAGNOSIS//ICD//10//I509"),
            (1, T0, "DIAGNOSIS//ICD//10//N186", None, T0 + timedelta(days=5)),
            (2, None, "DIAGNOSIS//ICD//9//410"),
        ]
    )
    cohort = cohort_of(
        [
            (1, T0, T0 - timedelta(microseconds=1)),
            (1, T0, T0),
            (1, T0, T0 + timedelta(days=5)),
            (2, T0, T0),
            (3, T0, T0),
        ]
    )
    assert charlson_index(events, cohort)["charlson"].to_list() == [0, 1, 3, 1, 0]


def test_the_graver_form_replaces_the_milder(events_of, cohort_of):
    events = events_of(
        [(1, T0, f"DIAGNOSIS//ICD//10//{code}") for code in ("C500", "C787", "E119", "E112")]
    )
    row = charlson_index(events, cohort_of([(1, T0, T0)]))
    assert row["charlson"].item() == 6 + 2
    assert row["malignancy"].item()
    assert charlson_index(events, cohort_of([(1, T0, T0)]), LACE_WEIGHTS)["charlson"].item() == 8
