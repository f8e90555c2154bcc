# pyright: strict
"""An Encounter as other resources need it: whose it is, of what kind, from when to when.

Of a stay's bounds two things are not believed. A month or a year is no moment at which anybody came
or went: such a stay would hold all exact stays of its month, and be asked about at the end of it,
so it is a contact and no stay. And what a source says of the time after it was written is a plan or
a slip of the pen: who is to leave after the export was taken is still there. But who came only
after it was taken can't be there at all: the end of such a stay is no worse than its start, and an
export in which most stays are of that kind has its dates shifted.
"""

from __future__ import annotations

from dataclasses import dataclass

from tsfm.clock import HOUR_US, LONGEST_DAY_US, Clock, Stamp, StampError

HOSPITAL, EMERGENCY, INTENSIVE, WARD = "hospital", "ed", "icu", "ward"
OUTPATIENT, OTHER = "outpatient", "other"
FARTHEST_ZONES_US = 26 * HOUR_US
"""No two clocks on the wall are farther apart."""


@dataclass(frozen=True, slots=True)
class ExportTime:
    """When an export was taken.

    Attributes:
        us: Microseconds on the data set's clock; of the present where no manifest says more.
    """

    us: int

    def is_before_start(self, start: Stamp | None) -> bool:
        """Whether a stay began only later: by more than a zone that was lost could explain."""
        return start is not None and start.us > self.us + FARTHEST_ZONES_US

    def is_before_end(self, start: Stamp | None, end: Stamp, clock: Clock) -> bool:
        """Whether a stay that had begun was still to end.

        On the wall clock a stamp has lost its zone, and is compared only where no two zones could
        explain it.
        """
        if self.is_before_start(start):
            return False
        return end.us > self.us + (FARTHEST_ZONES_US if clock.mode == "wall" else 0)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the period of an Encounter says.

    Attributes:
        start: Period's start; None where absent or unreadable.
        end: Period's end; None where absent, unreadable or after the export.
        problem: Why the period can't be used, as a quarantine reason.
        is_vague: Whether start or end may mean more than a day.
        lasts: Whether an end was given that is after the export.
        is_ahead: Whether the start is after the export.
    """

    start: Stamp | None = None
    end: Stamp | None = None
    problem: str = ""
    is_vague: bool = False
    lasts: bool = False
    is_ahead: bool = False


@dataclass(slots=True)
class Stay:
    """An Encounter as others need it.

    Attributes:
        encounter_id: Integer key.
        subject: Reference of its patient, as written.
        kind: `hospital`, `ed`, `icu`, `ward` (a part of a hospital stay), `outpatient`, `other`.
        disposition: How it ended, in MIMIC's words; None where not said.
        bounds: Its period.
        is_contact: Whether it would be a stay, were it not for its vague bounds.
    """

    encounter_id: int
    subject: str
    kind: str
    disposition: str | None
    bounds: Bounds = Bounds()
    is_contact: bool = False

    @property
    def start(self) -> Stamp | None:
        """When it began."""
        return self.bounds.start

    @property
    def end(self) -> Stamp | None:
        """When it ended; None while it lasts."""
        return self.bounds.end

    @property
    def problem(self) -> str:
        """Why its period can't be used."""
        return self.bounds.problem

    def settle(self, bounds: Bounds) -> None:
        """Take the bounds; with vague ones it is a contact."""
        self.bounds = bounds
        if bounds.is_vague and self.kind in (HOSPITAL, EMERGENCY, INTENSIVE):
            self.kind, self.is_contact = OTHER, True


def read_bounds(
    start: str | None, end: str | None, clock: Clock, export: ExportTime | None
) -> Bounds:
    """Read the period of an Encounter.

    Args:
        start: Period's start as written.
        end: Period's end as written; None also of a stay that says that it lasts.
        clock: The data set's clock.
        export: When the export was taken; None if the dates of the stays are shifted.
    """
    try:
        begun = clock.read(start) if start else None
        over = clock.read(end) if end else None
    except StampError as error:
        return Bounds(problem=str(error))
    if begun and over and over.end_us < begun.us:
        return Bounds(problem="discharge_before_admission")
    lasts = over is not None and export is not None and export.is_before_end(begun, over, clock)
    if lasts:
        over = None
    is_vague = any(
        stamp is not None and stamp.end_us - stamp.us > LONGEST_DAY_US for stamp in (begun, over)
    )
    is_ahead = export is not None and export.is_before_start(begun)
    return Bounds(begun, over, is_vague=is_vague, lasts=lasts, is_ahead=is_ahead)
