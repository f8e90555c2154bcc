# pyright: strict
"""From the rows of a declared table to events, with every row accounted for.

Each row read ends in exactly one place: used (it gave at least one event), ignored (it is sound but
says nothing that is read) or quarantined with the first reason that applies. What a chunk gives
does not depend on where the chunks are cut.

The declarations are `source_table`'s; which tables there are is each source's business.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from tsfm import clock, schema
from tsfm.event_table import EventWriter
from tsfm.ingest.csv_rows import LINE, BadRow
from tsfm.ingest.provenance import IngestSummary
from tsfm.ingest.quarantine import Quarantine
from tsfm.ingest.source_table import (
    DATED,
    EACH,
    ENCOUNTER,
    REASON,
    STAY_END,
    STAY_START,
    EventRule,
    SourceTable,
    bare_flag,
    end_of_day,
    has,
    is_bare,
)

MAX_MINUTES = 500 * 366 * 24 * 60
"""Minutes from the start of a stay beyond which a number is no time: 500 years."""
MAX_ENTRIES = 1000
"""Rows of one table and reason that are listed one by one; more are listed as one entry a chunk."""

_RAW = "_raw"
_TIME_FORMATS = ("%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f")


class TableEvents:
    """Turns rows into events for one data set.

    Args:
        writer: Where events go.
        quarantine: Where unusable rows go.
        summary: Counts `rows_read`, `rows_used`, `rows_ignored` by table, and gains notes.

    Attributes:
        subjects: Known subject ids; rows of others can't be used. None: not known yet.
        stays: By kind of stay: `stay_frame`.
        joins: By identifier: rows of `subject_id`, the identifier and what `joined` wants of it.
        seen_codes: Codes of all events so far.
    """

    def __init__(self, writer: EventWriter, quarantine: Quarantine, summary: IngestSummary) -> None:
        """Start with no subjects and no stays."""
        self.subjects: pl.Series | None = None
        self.stays: dict[str, pl.DataFrame] = {}
        self.joins: dict[str, pl.DataFrame] = {}
        self.seen_codes: set[str] = set()
        self._writer, self._quarantine, self._summary = writer, quarantine, summary
        self._listed: dict[tuple[str, str], int] = {}
        self._given: dict[tuple[str, int], pl.Series] = {}
        self._fallbacks: dict[tuple[str, str], int] = {}

    def read(self, table: SourceTable, file: str, rows: pl.DataFrame, bad: list[BadRow]) -> None:
        """Clean a chunk of rows and write its events."""
        self.write(table, self.clean(table, file, rows, bad))

    def clean(
        self, table: SourceTable, file: str, rows: pl.DataFrame, bad: list[BadRow]
    ) -> pl.DataFrame:
        """Parse a chunk and set aside what can't be used.

        Args:
            table: Declaration.
            file: File name for the quarantine.
            rows: Text columns of `table.columns`, and `LINE`.
            bad: Rows that the reader could not tell apart.

        Returns:
            Usable rows: ids as integers, times as naive microseconds, trimmed text.
        """
        _count(self._summary.rows_read, table.name, rows.height + len(bad))
        self.set_aside(table.name, file, bad)
        if not rows.height:
            return self._parse(table, rows)
        parsed = self._with_reason(table, self._parse(table, rows))
        failed = parsed.filter(pl.col(REASON).is_not_null())
        if failed.height:
            raw = pl.concat_str(table.columns, separator=",", ignore_nulls=True).alias(_RAW)
            text = rows.select(LINE, raw).join(failed.select(LINE, REASON), on=LINE)
            for (reason,), part in text.group_by([REASON], maintain_order=True):
                lines = part[LINE].to_list(), part[_RAW].to_list()
                pairs = zip(*lines, strict=True)
                aside = [BadRow(str(reason), line, raw.encode()) for line, raw in pairs]
                self.set_aside(table.name, file, aside)
            parsed = parsed.filter(pl.col(REASON).is_null())
        for column in table.fallbacks:
            key = (table.name, column)
            self._fallbacks[key] = self._fallbacks.get(key, 0) + parsed[column].null_count()
        return parsed.drop(REASON)

    def write(self, table: SourceTable, rows: pl.DataFrame) -> None:
        """Write the events of cleaned rows and count the rows that gave any."""
        parts = [self._events(table, number, rule, rows) for number, rule in enumerate(table.rules)]
        events = pl.concat(parts).sort(LINE, maintain_order=True)
        n_used = events[LINE].n_unique()
        _count(self._summary.rows_used, table.name, n_used)
        _count(self._summary.rows_ignored, table.name, rows.height - n_used)
        self.seen_codes.update(events[schema.CODE].unique().to_list())
        self._writer.add(events.drop(LINE))

    def set_aside(self, table: str, file: str, rows: list[BadRow]) -> None:
        """Send rows of a table to the quarantine."""
        unlisted: dict[str, list[BadRow]] = {}
        for row in rows:
            n = self._listed.get((table, row.reason), 0)
            self._listed[table, row.reason] = n + 1
            if n < MAX_ENTRIES:
                self._quarantine.add(row.reason, file=file, line=row.line, raw=row.raw, kind=table)
            else:
                unlisted.setdefault(row.reason, []).append(row)
        for reason, more in unlisted.items():
            line = more[0].line
            self._quarantine.add(reason, file=file, line=line, kind=table, rows=len(more))

    def add_notes(self, tables: Mapping[str, SourceTable]) -> None:
        """Say in the summary which rows lacked the time at which they were known."""
        for (name, column), n in self._fallbacks.items():
            if n:
                text = tables[name].fallbacks[column]
                self._summary.notes.append(f"{n:,} rows of {name} have no {column}: {text}")

    def _parse(self, table: SourceTable, rows: pl.DataFrame) -> pl.DataFrame:
        texts = [pl.col(name).str.strip_chars() for name in table.columns]
        trimmed = rows.select(LINE, *(pl.when(t.str.len_bytes() > 0).then(t) for t in texts))
        given = (*table.times, *table.minutes, *_encounter_ids(table))
        parsed = trimmed.with_columns(
            *(pl.col(name).cast(pl.Int64, strict=False) for name in table.ids),
            *(
                parse_stored(trimmed[name]) if name in table.stored else parse_times(trimmed[name])
                for name in table.times
            ),
            *(are_bare(trimmed[name]).alias(bare_flag(name)) for name in table.times),
            *(trimmed[name].is_not_null().alias(_given(name)) for name in given),
        )
        if table.names_subject:
            names = [pl.col(name) for name in _encounter_ids(table)]
            parsed = parsed.with_columns(
                pl.coalesce(names or pl.lit(None, pl.Int64)).alias(ENCOUNTER)
            )
        if table.stay is not None:
            stays = self.stays[table.stay]
            stays = stays.drop(ENCOUNTER, strict=False) if table.names_subject else stays
            key = [*(["subject_id"] if table.names_subject else []), table.ids[-1]]
            parsed = parsed.join(
                stays, on=key, how="left", maintain_order="left", validate="m:1"
            ).with_columns(_after_start(name) for name in table.minutes)
        if table.joined:
            parsed = self._join(table.joined, parsed)
        dates = [pl.col(name) for name in table.dated_by]
        bare = [
            pl.when(has(name)).then(is_bare(name) if _is_dated(table, name) else False)
            for name in table.dated_by
        ]
        return parsed.with_columns(
            pl.coalesce(dates or pl.lit(None, pl.Datetime("us"))).alias(DATED),
            pl.coalesce([*bare, False]).alias(bare_flag(DATED)),
        )

    def _join(self, joined: tuple[str, ...], parsed: pl.DataFrame) -> pl.DataFrame:
        """Rows with the columns of another table; the latest where it has several."""
        key, *columns = joined
        parsed = parsed.with_columns(pl.col(key).cast(pl.Int64, strict=False))
        if key not in self.joins:
            return parsed.with_columns(pl.lit(None, pl.Datetime("us")).alias(n) for n in columns)
        on = ["subject_id", key]
        # Few rows of a chunk against many of a whole table: a join would go over those again.
        found = self.joins[key].filter(pl.col(key).is_in(parsed[key].implode()))
        found = found.group_by(on).agg(pl.col(columns).max())
        return parsed.join(found, on=on, how="left", maintain_order="left", validate="m:1")

    def _with_reason(self, table: SourceTable, parsed: pl.DataFrame) -> pl.DataFrame:
        """Rows with the first reason for which they can't be used; null where they can."""
        subject = pl.col("subject_id")
        unknown = subject.is_null()
        if self.subjects is not None:
            unknown = unknown | ~subject.is_in(self.subjects.implode())
        times = (*table.times, *table.minutes)
        bad_time = [pl.col(_given(n)) & pl.col(n).is_null() for n in times]
        year = [pl.col(name).dt.year() for name in times]
        late = [~y.is_between(clock.FIRST_YEAR, clock.LAST_YEAR) for y in year]
        by_stay = {STAY_START, STAY_END}.intersection(table.dated_by)
        bad_ids = [pl.col(_given(n)) & pl.col(n).is_null() for n in _encounter_ids(table)]
        named = table.names_subject
        checks: list[tuple[str, list[pl.Expr]]] = [
            ("unknown_patient", [unknown] if named else []),
            ("bad_encounter", bad_ids),
            ("unknown_encounter", [] if named else [pl.col(STAY_START).is_null()]),
            ("bad_time", bad_time),
            ("time_out_of_range", late),
            ("no_code", [pl.col(name).is_null() for name in table.needs]),
            ("unknown_encounter", [pl.col(STAY_START).is_null()] if by_stay else []),
            ("no_time", [pl.col(DATED).is_null()] if table.dated_by else []),
            *((name, [check]) for name, check in table.checks),
        ]
        parsed = parsed.with_columns(pl.lit(None, pl.String).alias(REASON))
        for name, tests in checks:
            if tests:
                failed = pl.any_horizontal(test.fill_null(False) for test in tests)
                reason = pl.when(failed & ~has(REASON)).then(pl.lit(name)).otherwise(REASON)
                parsed = parsed.with_columns(reason.alias(REASON))
        return parsed

    def _events(
        self, table: SourceTable, number: int, rule: EventRule, rows: pl.DataFrame
    ) -> pl.DataFrame:
        no_time = pl.lit(None, pl.Datetime("us"))
        if rule.each is not None:
            rows = rows.with_columns(rule.each.alias(EACH)).explode(EACH)
            rows = rows.filter(pl.col(EACH).is_not_null())
        if rule.time is not None:
            rows = rows.filter(pl.col(rule.time).is_not_null())
        if rule.where is not None:
            rows = rows.filter(rule.where)
        if rule.once_per:
            rows = self._first_of(table, number, rule, rows)
        return rows.select(
            LINE,
            pl.col("subject_id").alias(schema.SUBJECT_ID),
            (no_time if rule.time is None else pl.col(rule.time)).alias(schema.TIME),
            rule.code.alias(schema.CODE),
            (pl.lit(None) if rule.numeric is None else rule.numeric)
            .cast(pl.Float32)
            .alias(schema.NUMERIC_VALUE),
            (pl.lit(None) if rule.text is None else rule.text)
            .cast(pl.String)
            .alias(schema.TEXT_VALUE),
            _known(table, rule).alias(schema.AVAILABLE_TIME),
            pl.col(ENCOUNTER).alias(schema.ENCOUNTER_ID),
        )

    def _first_of(
        self, table: SourceTable, number: int, rule: EventRule, rows: pl.DataFrame
    ) -> pl.DataFrame:
        """Rows whose `once_per` values were not met before, in this chunk or an earlier one."""
        before = self._given.get((table.name, number), pl.Series(dtype=pl.UInt64))
        values = rows.select(rule.once_per)
        key = values.to_struct("key").hash(seed=1)
        new = key.is_first_distinct() & ~key.is_in(before.implode())
        self._given[table.name, number] = pl.concat([before, key.filter(new)])
        incomplete = values.select(pl.any_horizontal(pl.all().is_null())).to_series()
        return rows.filter(new | incomplete)


def stay_frame(
    rows: pl.DataFrame, *, key: str, start: str, end: str, encounter: str | None = None
) -> pl.DataFrame:
    """Stays by subject and key, as `TableEvents.stays` wants them.

    Args:
        rows: Cleaned rows of the table of stays.
        key: Its identifier.
        start: Column of its first moment.
        end: Column of its last.
        encounter: Column of the encounter id of its events; the identifier itself if None.
    """
    return rows.select(
        "subject_id",
        key,
        pl.col(start).alias(STAY_START),
        pl.col(end).alias(STAY_END),
        pl.col(encounter or key).alias(ENCOUNTER),
    )


def parse_times(text: pl.Series) -> pl.Series:
    """Times of `YYYY-MM-DD HH:MM:SS` and its usual relatives; null where there is none.

    >>> parse_times(pl.Series(["2180-05-06 22:23:00", "2180-05-06", "0000-00-00"])).null_count()
    1
    """
    times = text.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us")
    if times.null_count() == text.null_count():
        return times
    column = pl.col(text.name)
    others = [column.str.to_datetime(f, strict=False, time_unit="us") for f in _TIME_FORMATS]
    date = column.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us"))
    return text.to_frame().select(pl.coalesce(pl.lit(times), date, *others).alias(text.name))[
        text.name
    ]


def are_bare(text: pl.Series) -> pl.Series:
    """Whether texts of times are dates without an hour."""
    return ~text.str.contains(":", literal=True).fill_null(True)


def parse_stored(text: pl.Series) -> pl.Series:
    """Times at which something was stored: a date without an hour is the end of its day."""
    frame = parse_times(text).to_frame().with_columns(are_bare(text).alias(bare_flag(text.name)))
    day = pl.when(is_bare(text.name)).then(end_of_day(text.name))
    return frame.select(pl.coalesce(day, text.name).alias(text.name)).to_series()


def _is_dated(table: SourceTable, time: str) -> bool:
    """Whether a bare date stands at the start of its day in a column."""
    return time == DATED or time in set(table.times) - set(table.stored)


def _known(table: SourceTable, rule: EventRule) -> pl.Expr:
    """When an event could first be known; null: at its time."""
    known = pl.lit(None, pl.Datetime("us")) if rule.available is None else rule.available
    if rule.time is None or not _is_dated(table, rule.time):
        return known
    return pl.max_horizontal(known, pl.when(is_bare(rule.time)).then(end_of_day(rule.time)))


def _given(column: str) -> str:
    return f"_given_{column}"


def _encounter_ids(table: SourceTable) -> tuple[str, ...]:
    return table.ids[1:] if table.names_subject else table.ids


def _after_start(column: str) -> pl.Expr:
    """Time of a text column of whole minutes; null where it holds no such number."""
    minutes = pl.col(column).cast(pl.Int64, strict=False)
    minutes = pl.when(minutes.is_between(-MAX_MINUTES, MAX_MINUTES)).then(minutes)
    return (pl.col(STAY_START) + pl.duration(minutes=minutes, time_unit="us")).alias(column)


def _count(counts: dict[str, int], name: str, n: int) -> None:
    if n:
        counts[name] = counts.get(name, 0) + n
