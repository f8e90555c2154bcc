# pyright: strict
"""Declaring what the rows of a source's table say: code, time, when it was known, value.

A source that is a set of tables is read by declarations, not by code: each table names its columns
and the events that one row gives, as polars expressions over text columns that have been trimmed
and over integer and time columns that have been parsed. `table_events` runs them.

Nothing here knows any one source.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import polars as pl

from tsfm import codes

DATED = "_dated"
"""Column that each table is given: the first of its `dated_by` columns that holds a time."""
STAY_START, STAY_END, ENCOUNTER = "_stay_start", "_stay_end", "_encounter"
"""Columns that a table with a `stay` is given; without one only `ENCOUNTER`."""
EACH = "_each"
"""Column in which a rule with `each` finds one item of its list."""
REASON = "_reason"
"""Column in which a check finds the reason of an earlier one for which a row can't be used."""

_NUMBER = r"^\s*(?:[<>]=?|~)?\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?)\s*$"
_THOUSANDS = r"^\d{1,3}(?:,\d{3})+(?:\.\d+)?$"
_LARGEST = 3.4e38  # of a 32-bit float


@dataclass(frozen=True)
class EventRule:
    """How a row gives one event.

    Attributes:
        code: Code string.
        time: Column of the event's time; rows without it give no such event. None: a static fact.
        available: When it could first be known; at `time` where null or not given. Where `time` is
            a bare date of the table, not before the end of that day.
        numeric: Value.
        text: Value as text, where it is not a plain number.
        where: Rows that give this event.
        once_per: Only the first row with the same values in these columns gives it; a row that
            lacks one of them is no repetition of another.
        each: A list: the rule gives an event for each of its items that is not null, in `EACH`.
    """

    code: pl.Expr
    time: str | None
    available: pl.Expr | None = None
    numeric: pl.Expr | None = None
    text: pl.Expr | None = None
    where: pl.Expr | None = None
    once_per: tuple[str | pl.Expr, ...] = ()
    each: pl.Expr | None = None


@dataclass(frozen=True)
class SourceTable:
    """One table of the source.

    Attributes:
        name: Folder and file name without its suffix.
        times: Columns that hold times or dates.
        stored: Of these, the ones that say when something was stored: a bare date among them means
            the end of its day.
        texts: Other columns that are read.
        rules: The events of a row, in their order.
        needs: Columns without which a row has no code.
        dated_by: Columns of which one must hold a time; the first that does is `DATED`.
        ids: Integer columns: the subject, and what identifies the encounter.
        stay: Kind of stay whose start and end the table is given; a row of an unknown stay can't be
            used if it is dated by one of them. Where `ids` do not name the subject, the stay says
            who it is and which encounter, and a row of an unknown stay can't be used at all.
        minutes: Columns of whole minutes since the start of the stay; they become times.
        checks: Reason codes and what makes a row unusable for them, after all other reasons.
        joined: An identifier among `texts`, and the columns that `TableEvents.joins` has for it.
        fallbacks: Columns whose absence changes `available`, with the words of the note.
    """

    name: str
    times: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    rules: tuple[EventRule, ...] = ()
    needs: tuple[str, ...] = ()
    dated_by: tuple[str, ...] = ()
    ids: tuple[str, ...] = ("subject_id", "hadm_id")
    stay: str | None = None
    minutes: tuple[str, ...] = ()
    checks: tuple[tuple[str, pl.Expr], ...] = ()
    joined: tuple[str, ...] = ()
    fallbacks: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that the file must have."""
        return (*self.ids, *self.times, *self.minutes, *self.texts)

    @property
    def names_subject(self) -> bool:
        """Whether a row says whose it is, and not only of which stay."""
        return "subject_id" in self.ids


def code_of(*parts: str | pl.Expr) -> pl.Expr:
    """Code of literal parts (`str`) and column expressions; equals `codes.join` on every row."""
    return pl.concat_str(
        [pl.lit(codes.clean_part(p)) if isinstance(p, str) else _part(p) for p in parts],
        separator=codes.SEPARATOR,
    )


def number(text: str) -> pl.Expr:
    """A column's number, without the comparator of `<5`; null where it holds no finite number."""
    value = pl.col(text).str.extract(_NUMBER).cast(pl.Float64, strict=False)
    return pl.when(value.abs() <= _LARGEST).then(value)


def plain_number(text: str) -> pl.Expr:
    """A column's number where it is nothing but a number."""
    value = pl.col(text).cast(pl.Float64, strict=False)
    return pl.when(value.abs() <= _LARGEST).then(value)


def not_a_number(text: str) -> pl.Expr:
    """A column's text where it is more than a number."""
    return pl.when(plain_number(text).is_null()).then(pl.col(text))


def measured(value: str, parsed: str) -> pl.Expr:
    """A result's number: its parsed column's where that is one, else the number in its text."""
    fallback = pl.when(plain_number(parsed).is_null()).then(pl.col(value)).str.extract(_NUMBER)
    value_of_text = fallback.cast(pl.Float64, strict=False)
    return pl.coalesce(
        plain_number(parsed), pl.when(value_of_text.abs() <= _LARGEST).then(value_of_text)
    )


def dose_number(dose: str) -> pl.Expr:
    """A dose's number, which may have commas between its thousands: `25,000`."""
    whole = pl.col(dose).str.extract(f"({_THOUSANDS})").str.replace_all(",", "", literal=True)
    value = whole.cast(pl.Float64, strict=False)
    return pl.coalesce(number(dose), pl.when(value.abs() <= _LARGEST).then(value))


def dose_text(dose: str, unit: str) -> pl.Expr:
    """The unit of a dose that is a number, since its code does not say it; else dose and unit."""
    both = pl.concat_str([pl.col(dose), pl.col(unit)], separator=" ", ignore_nulls=True)
    return (
        pl.when(plain_number(dose).is_not_null() | pl.col(dose).str.contains(_THOUSANDS))
        .then(pl.col(unit))
        .when(has(dose) | has(unit))
        .then(both)
    )


def end_of_day(date: str) -> pl.Expr:
    """Last microsecond of a date: by then what is dated so was known."""
    return pl.col(date).dt.truncate("1d") + timedelta(days=1, microseconds=-1)


def is_bare(time: str) -> pl.Expr:
    """Whether one of a table's `times`, or `DATED`, is a date without an hour."""
    return pl.col(bare_flag(time))


def bare_flag(time: str) -> str:
    """Name of the column that says it."""
    return f"_bare_{time}"


def path_of(path: pl.Expr, separator: str, *, skip: int = 0) -> pl.Expr:
    """Parts of a code from a path such as `renal|dialysis|hemodialysis`, without its first few."""
    parts = path.str.split(separator).list.slice(skip).list.eval(_part(pl.element()))
    return parts.list.join(codes.SEPARATOR)


def is_first(column: str) -> pl.Expr:
    """Whether a row is the first with its value in a column that the earlier checks let pass."""
    return pl.col(REASON).is_null().cum_sum().over(column) == 1


def has(column: str) -> pl.Expr:
    """Whether a column holds anything."""
    return pl.col(column).is_not_null()


def _part(part: pl.Expr) -> pl.Expr:
    text = part.str.replace_all(r"\s+", " ").str.strip_chars().str.replace_all("/{2,}", "/")
    text = text.str.head(codes.MAX_PART_LENGTH).str.strip_chars_end("/ ")
    return (
        pl.when(text.str.len_bytes() > 0)
        .then(text.str.slice(0, codes.MAX_PART_LENGTH))
        .otherwise(pl.lit(codes.UNKNOWN))
    )
