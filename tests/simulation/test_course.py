"""Patients' courses: the risk written down is the risk that the events were drawn from."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tsfm.simulation.chart import DAY
from tsfm.simulation.course import Course, simulate_course
from tsfm.simulation.hospital import EXPORT_TIME, WINDOW_START

START, EXPORT = int(WINDOW_START.timestamp()), int(EXPORT_TIME.timestamp())
Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def course_of(i: int, seed: int = 0) -> Course:
    rng = np.random.default_rng([seed, i])
    return simulate_course(rng, f"sim-{i:06d}", start=START, end=EXPORT)


@pytest.fixture(scope="module")
def courses() -> list[Course]:
    return [course_of(i) for i in range(3500)]


@pytest.fixture(scope="module")
def many_discharges(courses: list[Course]) -> Columns:
    """p_readmission, p_death, readmitted, died of discharges with 30 days before the export."""
    rows = [
        (d.p_readmission, d.p_death, d.outcome == "readmission", d.outcome == "death")
        for course in courses
        for d in course.discharges
        if EXPORT - d.time >= 30 * DAY
    ]
    table = np.array(rows, float)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3]


@pytest.fixture(scope="module")
def many_stays(courses: list[Course]) -> Columns:
    """p_death, p_long, died, lasted a week, of stays a day after admission."""
    rows = [
        (risk.p_death, risk.p_long, risk.dies, risk.end - risk.time >= 6 * DAY)
        for course in courses
        for risk in course.stays
    ]
    table = np.array(rows, float)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3]


def test_true_risk_is_calibrated(
    many_discharges: Columns,
) -> None:
    p_readmission, p_death, readmitted, died = many_discharges
    assert len(p_readmission) > 8000
    for p, happened in ((p_readmission, readmitted), (p_death, died)):
        for group in np.array_split(np.argsort(p), 10):
            error = math.sqrt(float((p[group] * (1 - p[group])).sum()))
            assert abs(happened[group].sum() - p[group].sum()) < 3 * error
    slope, intercept = logistic_fit(np.log(p_readmission / (1 - p_readmission)), readmitted)
    assert 0.95 < slope < 1.05
    assert abs(intercept) < 0.1


def test_rates_and_ceiling_are_in_the_designed_range(
    many_discharges: Columns,
) -> None:
    p_readmission, _, readmitted, died = many_discharges
    assert 0.17 < readmitted.mean() < 0.21
    assert 0.025 < died.mean() < 0.045
    positive, negative = p_readmission[readmitted == 1], np.sort(p_readmission[readmitted == 0])
    auroc = np.searchsorted(negative, positive).mean() / len(negative)
    assert 0.79 < auroc < 0.84


def test_the_risk_of_a_stay_is_calibrated_and_in_the_designed_range(many_stays: Columns) -> None:
    p_death, p_long, died, lasted = many_stays
    assert len(p_death) > 8000
    for p, happened in ((p_death, died), (p_long, lasted)):
        for group in np.array_split(np.argsort(p), 10):
            error = math.sqrt(float((p[group] * (1 - p[group])).sum()))
            assert abs(happened[group].sum() - p[group].sum()) < 3 * error
    assert 0.03 < died.mean() < 0.05
    assert 0.15 < lasted.mean() < 0.22


def test_the_same_seed_and_number_give_the_same_course() -> None:
    assert course_of(3).chart == course_of(3).chart
    assert course_of(3).chart != course_of(3, seed=1).chart


def logistic_fit(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    design = np.stack([x, np.ones_like(x)], axis=1)
    beta = np.zeros(2)
    for _ in range(30):
        p = 1.0 / (1.0 + np.exp(-design @ beta))
        beta += np.linalg.solve(design.T @ (design * (p * (1 - p))[:, None]), design.T @ (y - p))
    return float(beta[0]), float(beta[1])
