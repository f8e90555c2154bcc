"""When alarms are raised, and what came of it, as figures and in words.

A figure is shown only where it tells of no few subjects: none of fewer than eleven; where one to
ten have the event, or lack it, nothing from which their number follows; and nothing of alarms, of
true or false ones, of found or missed events, that are of one to ten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import timedelta
from numbers import Real
from typing import Any

from tsfm.errors import InputError
from tsfm.evaluation.bootstrap import Interval
from tsfm.evaluation.subgroups import SMALLEST_CELL, is_few


@dataclass(frozen=True)
class AlarmPolicy:
    """When alarms are raised.

    Attributes:
        threshold: Least risk that raises one.
        silence: After an alarm the stay raises none for this long.

    Raises:
        InputError: The threshold is no number, or the silence no time from 0.
    """

    threshold: float
    silence: timedelta = timedelta(hours=12)

    def __post_init__(self) -> None:
        """Refuse a policy that raises nothing or everything by mistake."""
        counts = isinstance(self.threshold, Real) and not math.isnan(self.threshold)
        if not counts or not is_silence(self.silence):
            raise InputError(
                "the threshold is no number, or the silence no time from 0", code="bad_policy",
                place="AlarmPolicy", remedy="Use for example 0.2 and timedelta(hours=12).",
            )  # fmt: skip


@dataclass(frozen=True)
class AlarmReport:
    """What a policy does on some stays; `as_text` tells it without what tells of few subjects.

    Attributes:
        policy: The policy.
        n_stays: Stays watched.
        n_subjects: Their subjects.
        n_by_event: Subjects of stays with the event, and of stays without.
        n_by_alarm: Subjects with an alarm, with a true one, and with a false one.
        n_by_finding: Subjects of stays whose event was found, and was missed.
        n_events: Stays with the event.
        n_alarms: Alarms raised.
        patient_days: Days watched, of all stays.
        sensitivity: Share of stays with the event that had a true alarm before it.
        ppv: Share of alarms that are true.
        per_100_days: Alarms per 100 patient-days.
        lead_hours: Quantile to hours from a stay's first true alarm to its event.
    """

    policy: AlarmPolicy
    n_stays: int
    n_subjects: int
    n_by_event: tuple[int, int] = field(repr=False)
    n_by_alarm: tuple[int, int, int] = field(repr=False)
    n_by_finding: tuple[int, int] = field(repr=False)
    n_events: int
    n_alarms: int
    patient_days: float
    sensitivity: Interval
    ppv: Interval
    per_100_days: Interval
    lead_hours: dict[float, Interval]

    def as_text(self) -> str:
        """Aligned lines: what was raised, and every figure with its interval."""
        rows = self._rows()
        width = max((len(name) for name, _, _ in rows), default=0)
        far = max((len(value) for _, value, _ in rows), default=0)
        lines = [f"  {name:<{width}}  {value:>{far}} {ends}".rstrip() for name, value, ends in rows]
        return "\n".join([f"alarms {self._told()}", *lines, *self._left_out()])

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{name}</td><td>{value}</td><td>{ends}</td></tr>"
            for name, value, ends in self._rows()
        )
        notes = "".join(f"<br>{note}" for note in self._left_out())
        return f"<b>Alarms</b> {self._told()}<table>{cells}</table>{notes}"

    def _told(self) -> str:
        alarmed, *_ = self.n_by_alarm
        n_alarms = "alarms of few" if is_few(alarmed) else f"{self.n_alarms:,}"
        told = (
            f"from {self.policy.threshold:.1%}: {n_alarms} in {self.patient_days:,.0f} patient-days"
        )
        if self._hides_events():
            return told
        return (
            f"{told}; {self.n_events:,} of {self.n_stays:,} stays "
            f"({self.n_subjects:,} subjects) with the event"
        )

    def _rows(self) -> list[tuple[str, str, str]]:
        """Name, figure and interval of all that may be shown."""
        if is_few(self.n_subjects):
            return []
        alarmed, true, false = self.n_by_alarm
        rows = []
        # With an alarm a stay, true alarms are events that were found: either tells the other.
        if not (self._hides_events() or any(map(is_few, (true, false, *self.n_by_finding)))):
            rows += [
                ("sensitivity", *_shown(self.sensitivity, ".1%")),
                ("positive predictive value", *_shown(self.ppv, ".1%")),
            ]
        if not is_few(alarmed):
            rows.append(("alarms per 100 patient-days", *_shown(self.per_100_days, ".1f")))
        if not self._hides_events() and not is_few(self.n_by_finding[0]):
            rows += [
                (f"lead time in hours, {q:.0%} quantile", *_shown(found, ".1f"))
                for q, found in self.lead_hours.items()
            ]
        return rows

    def _hides_events(self) -> bool:
        return is_few(self.n_subjects) or any(map(is_few, self.n_by_event))

    def _left_out(self) -> list[str]:
        """Why figures are left out; empty where all are shown."""
        if is_few(self.n_subjects):
            return [f"fewer than {SMALLEST_CELL} subjects were watched: no figure is shown"]
        if self._hides_events():
            return [
                f"fewer than {SMALLEST_CELL} subjects have, or lack, the event: what would tell "
                "how many is not shown"
            ]
        if any(map(is_few, (*self.n_by_alarm, *self.n_by_finding))):
            return [
                f"fewer than {SMALLEST_CELL} subjects had an alarm, a true or a false one, or were "
                "missed: what rests on them is not shown"
            ]
        return []


def is_silence(silence: Any) -> bool:
    """Whether this is a time from 0."""
    return isinstance(silence, timedelta) and silence >= timedelta(0)


def _shown(found: Interval, form: str) -> tuple[str, str]:
    """A figure and its interval as text."""
    if not math.isfinite(found.value):
        return "not defined", ""
    ends = f"[{found.low:{form}}, {found.high:{form}}]" if math.isfinite(found.low) else ""
    return f"{found.value:{form}}", ends
