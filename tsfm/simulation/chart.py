"""A patient's chart: what the simulated hospital wrote down, and what it says at an hour.

`Chart` is the whole record of one patient, later exported as FHIR. `read_covariates` is a perfect
reader of it: it looks only at entries known by the hour of discharge (a laboratory result counts
from its release, a chronic condition from the day it was put on the problem list), weighs them by
the time that has passed, and knows nothing of the physiology behind them. `read_stay_facts` reads
it so in the middle of a stay.

All times are whole seconds since 1970-01-01 UTC.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tsfm.simulation.catalogue import ANTIBIOTICS, OPIOIDS
from tsfm.simulation.hazards import Covariates
from tsfm.simulation.stay_hazards import StayFacts

HOUR, DAY = 3600, 86_400
YEAR = 365.25 * DAY

PRIOR_STAYS_DAYS = 90.0
ED_VISITS_DAYS = 30.0
FUROSEMIDE_HOURS = 36.0
OPIOIDS_HOURS = 24.0
ANTIBIOTICS_HOURS = 24.0
INTENSIVE_CARE_HOURS = 72.0
SLOPE_HOURS = 60.0

STAY, ED_VISIT, CLINIC_VISIT = "IMP", "EMER", "AMB"


class Measurement(NamedTuple):
    """A result or vital sign; `second` is the diastolic pressure of a blood pressure."""

    name: str
    time: int
    issued: int
    value: float
    second: float
    encounter: int


class Entry(NamedTuple):
    """Anything else with a name and a time: an order, an administration, a procedure."""

    name: str
    time: int
    encounter: int


class Place(NamedTuple):
    """A stretch of a stay spent in one location; no end while it lasts."""

    location: str
    start: int
    end: int | None


@dataclass(slots=True)
class Encounter:
    """A stay or visit; `end` is None while it lasts."""

    number: int
    kind: str
    start: int
    end: int | None = None
    elective: bool = False
    admit_source: str = ""
    disposition: str = ""
    diagnoses: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)


@dataclass(slots=True)
class Chart:
    """One patient's record.

    Attributes:
        patient: FHIR id.
        female: Sex.
        birth: Birth at noon UTC of the birth date.
        race: Index into `catalogue.RACES`.
        hispanic: Ethnicity.
        death: Time of death, None if alive at export.
        encounters: Stays and visits in order of start.
        measurements: By name, in order of time.
        orders: Drugs ordered.
        administrations: Drugs given.
        procedures: Procedures done.
        problems: Chronic conditions and when they were put on the problem list.
    """

    patient: str
    female: bool
    birth: int
    race: int
    hispanic: bool
    death: int | None = None
    encounters: list[Encounter] = field(default_factory=list)
    measurements: dict[str, list[Measurement]] = field(default_factory=dict)
    orders: list[Entry] = field(default_factory=list)
    administrations: list[Entry] = field(default_factory=list)
    procedures: list[Entry] = field(default_factory=list)
    problems: dict[str, int] = field(default_factory=dict)

    def encounter_id(self, number: int) -> str:
        """FHIR id of an encounter."""
        return f"{self.patient}-e{number}"


def read_covariates(chart: Chart, stay: Encounter) -> Covariates:
    """What the chart says at the end of `stay`, from entries known by then."""
    assert stay.end is not None
    now = stay.end
    listed = {name for name, recorded in chart.problems.items() if recorded <= now}
    others = [e for e in chart.encounters if e.start < stay.start or e.kind == ED_VISIT]
    last = {
        name: _last_known(chart.measurements.get(name, ()), now)
        for name in ("haemoglobin", "sodium", "creatinine", "bnp", "albumin")
    }
    return Covariates(
        age_years=(now - chart.birth) / YEAR,
        heart_failure=float("heart_failure" in listed),
        copd=float("copd" in listed),
        ckd_grade=max((grade for grade in (1, 2, 3) if f"ckd_{grade + 2}" in listed), default=0),
        cancer=float("cancer" in listed),
        dementia=float("dementia" in listed),
        atrial_fibrillation=float("atrial_fibrillation" in listed),
        diabetes=float("diabetes" in listed),
        prior_stays=_decayed(
            (e.end for e in others if e.kind == STAY and e.end is not None),
            now,
            PRIOR_STAYS_DAYS * DAY,
        ),
        ed_visits=_decayed(
            (e.start for e in others if e.kind == ED_VISIT), now, ED_VISITS_DAYS * DAY
        ),
        haemoglobin=last["haemoglobin"],
        sodium=last["sodium"],
        creatinine=last["creatinine"],
        bnp=last["bnp"],
        albumin=last["albumin"],
        creatinine_slope=_slope_per_day(chart.measurements.get("creatinine", ()), now),
        weight_slope=_slope_per_day(chart.measurements.get("weight", ()), now),
        **_drugs(chart, now),
        intensive_care=max(
            (
                math.exp((place.end - now) / (INTENSIVE_CARE_HOURS * HOUR))
                for encounter in chart.encounters
                for place in encounter.places
                if place.location == "icu" and place.end is not None and place.end <= now
            ),
            default=0.0,
        ),
        elective=float(stay.elective),
        stay_hours=(now - stay.start) / HOUR,
    )


def read_stay_facts(chart: Chart, stay: Encounter, now: int) -> StayFacts:
    """What the chart says of a stay in progress at `now`, from entries known by then."""
    listed = {name for name, recorded in chart.problems.items() if recorded <= now}
    measured = ("creatinine", "sodium", "haemoglobin", "albumin", "crp", "lactate", "heart_rate",
                "respiratory_rate", "oxygen_saturation")  # fmt: skip
    return StayFacts(
        age_years=(now - chart.birth) / YEAR,
        heart_failure=float("heart_failure" in listed),
        copd=float("copd" in listed),
        cancer=float("cancer" in listed),
        dementia=float("dementia" in listed),
        elective=float(stay.elective),
        intensive_care=float(
            any(
                place.location == "icu"
                and place.start <= now
                and (place.end is None or now < place.end)
                for place in stay.places
            )
        ),
        **{
            name: _last_known(
                (m for m in chart.measurements.get(name, ()) if m.encounter == stay.number), now
            )
            for name in measured
        },
        **_drugs(chart, now),
    )


def _drugs(chart: Chart, now: int) -> dict[str, float]:
    """Exposure to the drugs that risk hangs on: doses given, weighed by the time since."""
    kinds = {
        "furosemide": (("furosemide",), FUROSEMIDE_HOURS),
        "opioids": (OPIOIDS, OPIOIDS_HOURS),
        "antibiotics": (ANTIBIOTICS, ANTIBIOTICS_HOURS),
    }
    return {
        kind: _decayed(
            (given.time for given in chart.administrations if given.name in names),
            now,
            hours * HOUR,
        )
        for kind, (names, hours) in kinds.items()
    }


def _decayed(times: Iterable[int], now: int, seconds: float) -> float:
    return sum(math.exp((time - now) / seconds) for time in times if time <= now)


def _last_known(results: Iterable[Measurement], now: int) -> float | None:
    known = [result for result in results if result.issued <= now]
    return max(known, key=lambda r: (r.issued, r.time)).value if known else None


def _slope_per_day(results: Iterable[Measurement], now: int) -> float:
    """Slope of a weighted straight line through the values known by `now`.

    Weights are exp(-age / 60 h). Half a day squared is added to the spread of the times, so that
    two samples an hour apart give a slope near 0 and not a wild one.
    """
    weights = mean_time = mean_value = 0.0
    points: list[tuple[float, float, float]] = []
    for result in results:
        if result.issued <= now:
            days = (result.time - now) / DAY
            weight = math.exp(days * 24.0 / SLOPE_HOURS)
            points.append((weight, days, result.value))
            weights += weight
            mean_time += weight * days
            mean_value += weight * result.value
    if weights < 1e-12:
        return 0.0
    mean_time /= weights
    mean_value /= weights
    spread = covariance = 0.0
    for weight, days, value in points:
        spread += weight * (days - mean_time) ** 2
        covariance += weight * (days - mean_time) * (value - mean_value)
    return covariance / (spread + 0.25 * weights)
