"""Early warning scores from vital signs: NEWS2 (0 to 20) and MEWS (0 to 14).

NEWS2: Royal College of Physicians, National Early Warning Score 2 (2017), with oxygen saturation
scale 1; scale 2 is for patients whom a clinician has put on it, which no event says. MEWS: Subbe et
al., QJM 94 (2001), table 1; where its rows leave a value between them (a pulse of 40, a pressure of
70) the value takes the points of the row below it.

At each prediction time the last value of every component counts whose time is no more than 24 hours
back and which was available by then. A component that was not measured scores nothing, and
`n_missing` counts it: a low score of few components is no good news.

Values are rounded to the digits in which the tables are written: one decimal for temperature, whole
numbers for the rest. Values no adult can have are passed over, as are units that can't be
converted. Consciousness is a coded AVPU answer or the Glasgow coma scale, whichever is later; its
three parts count where there is no total and all are there. NEWS2 takes everything but a scale of
15 as not alert. For MEWS the scale is cut midway between the medians that AVPU's levels were found
to have (15, 13, 8 and 3; Kelly et al., Annals of Emergency Medicine 44, 2004), and confusion counts
as a response to voice. An intubated patient's verbal response is taken as it was written.
"""

from __future__ import annotations

import polars as pl

from tsfm import codes, schema, units

WINDOW_HOURS = 24
"""Age beyond which a value no longer says how the patient is."""

_KEYS = [schema.SUBJECT_ID, schema.PREDICTION_TIME]

# Parts of a code that name a measurement: LOINC, MIMIC's chart items, eICU's and our own names; the
# unit they must have, or none; and the bounds of a living adult.
_MEASURES: dict[str, tuple[tuple[str, ...], str, float, float]] = {
    "respiration": (("9279-1", "220210"), "/min", 0, 120),
    "saturation": (("59408-5", "2708-6", "220277"), "%", 10, 100),
    "pressure": (
        ("8480-6", "76534-7", "76215-3", "220179", "220050", "225309", "systemicsystolic"),
        "mm[Hg]", 1, 350,
    ),
    "pulse": (("8867-4", "220045"), "/min", 0, 350),
    "temperature": (("8310-5", "223761", "223762"), "Cel", 20, 45),
    "gcs": (("9269-2", "GCS Total"), "{score}", 3, 15),
    "gcs_eye": (("9267-6", "220739"), "{score}", 1, 4),
    "gcs_verbal": (("9270-0", "223900"), "{score}", 1, 5),
    "gcs_motor": (("9268-4", "223901"), "{score}", 1, 6),
    "oxygen_share": (("3150-6", "223835", "FiO2"), "%", 0.21, 100),
    "oxygen_flow": (("3151-8", "223834"), "L/min", 0, 100),
}  # fmt: skip
_FAHRENHEIT_ITEM = "223761"
_FAHRENHEIT = "[degF]"
_ROOM_AIR = 21.0

ALERT, CONFUSED, VOICE, PAIN, UNRESPONSIVE = range(5)
_ANSWERS = {
    "LA9340-6": ALERT,
    "248234008": ALERT,
    "130987000": CONFUSED,
    "LA9341-4": VOICE,
    "300202002": VOICE,
    "LA9342-2": PAIN,
    "450847001": PAIN,
    "LA9343-0": UNRESPONSIVE,
    "422768004": UNRESPONSIVE,
}
"""LOINC and SNOMED CT answers of the AVPU scale, with NEWS2's confusion."""

# The largest value, in the rounded unit, that gets each number of points; the rest gets the last.
_NEWS2: dict[str, tuple[tuple[float, int], ...]] = {
    "respiration": ((8, 3), (11, 1), (20, 0), (24, 2), (999, 3)),
    "saturation": ((91, 3), (93, 2), (95, 1), (999, 0)),
    "pressure": ((90, 3), (100, 2), (110, 1), (219, 0), (999, 3)),
    "pulse": ((40, 3), (50, 1), (90, 0), (110, 1), (130, 2), (999, 3)),
    "temperature": ((350, 3), (360, 1), (380, 0), (390, 1), (999, 2)),
    "consciousness": ((ALERT, 0), (UNRESPONSIVE, 3)),
    "oxygen": ((0, 0), (1, 2)),
}
_MEWS: dict[str, tuple[tuple[float, int], ...]] = {
    "pressure": ((70, 3), (80, 2), (100, 1), (199, 0), (999, 2)),
    "pulse": ((40, 2), (50, 1), (100, 0), (110, 1), (129, 2), (999, 3)),
    "respiration": ((8, 2), (14, 0), (20, 1), (29, 2), (999, 3)),
    "temperature": ((349, 2), (384, 0), (999, 2)),
    "consciousness": ((ALERT, 0), (VOICE, 1), (PAIN, 2), (UNRESPONSIVE, 3)),
}


def news2_scores(events: pl.DataFrame, asked: pl.DataFrame) -> pl.DataFrame:
    """NEWS2 at each prediction time.

    Args:
        events: Records of the subjects, columns of `schema.EVENTS`.
        asked: Rows with subject_id and prediction_time, such as a cohort; repeated ones give one.

    Returns:
        subject_id, prediction_time, news2, n_missing (0 to 7), news2_red (whether a single
        component has three points, which asks for an urgent look whatever the sum), and the points
        news2_respiration, _saturation, _pressure, _pulse, _temperature, _consciousness and _oxygen,
        null where not measured.
    """
    scored = _scores(events, asked, "news2", _NEWS2)
    points = [f"news2_{name}" for name in _NEWS2]
    red = pl.any_horizontal([pl.col(name) == 3 for name in points]).fill_null(False)
    return scored.select(*_KEYS, "news2", "n_missing", red.alias("news2_red"), *points)


def mews_scores(events: pl.DataFrame, asked: pl.DataFrame) -> pl.DataFrame:
    """MEWS at each prediction time.

    Args:
        events: Records of the subjects, columns of `schema.EVENTS`.
        asked: Rows with subject_id and prediction_time, such as a cohort; repeated ones give one.

    Returns:
        subject_id, prediction_time, mews, n_missing (0 to 5), and the points mews_pressure, _pulse,
        _respiration, _temperature and _consciousness, null where not measured.
    """
    return _scores(events, asked, "mews", _MEWS)


def _scores(
    events: pl.DataFrame,
    asked: pl.DataFrame,
    name: str,
    table: dict[str, tuple[tuple[float, int], ...]],
) -> pl.DataFrame:
    found = _components(events, asked)
    points = {f"{name}_{part}": _points(pl.col(part), rows) for part, rows in table.items()}
    return found.with_columns(**points).select(
        *_KEYS,
        pl.sum_horizontal(list(points)).cast(pl.Int64).alias(name),
        pl.sum_horizontal([pl.col(p).is_null().cast(pl.Int64) for p in points]).alias("n_missing"),
        *points,
    )


def _points(value: pl.Expr, rows: tuple[tuple[float, int], ...]) -> pl.Expr:
    found = pl.lit(None, dtype=pl.Int64)
    for largest, points in reversed(rows):
        found = pl.when(value <= largest).then(pl.lit(points, dtype=pl.Int64)).otherwise(found)
    return found


def _components(events: pl.DataFrame, asked: pl.DataFrame) -> pl.DataFrame:
    """Last known value of every component, rounded as the tables are; null where there is none."""
    asked = asked.select(_KEYS).unique(maintain_order=True)
    measured = _measured(events)
    found = asked
    for part in [*_MEASURES, "avpu"]:
        last = _last(measured.filter(pl.col("part") == part), asked)
        found = found.join(last.rename({"value": part, "_at": f"{part}_at"}), on=_KEYS, how="left")
    whole = [(pl.col(n) + 0.5).floor().alias(n) for n in ("respiration", "saturation", "pressure")]
    share = pl.col("oxygen_share")
    share = pl.when(share <= 1).then(share * 100).otherwise(share)  # eICU writes either
    signs = (share > _ROOM_AIR, pl.col("oxygen_flow") > 0)
    told = pl.any_horizontal([sign.is_not_null() for sign in signs])
    at = (pl.col("oxygen_share_at"), pl.col("oxygen_flow_at"))
    # The later of the two tells, and either where they are of one moment.
    newest = [
        sign.fill_null(False) & (mine >= other).fill_null(True)
        for sign, mine, other in zip(signs, at, at[::-1], strict=True)
    ]
    on_oxygen = pl.when(told).then(pl.any_horizontal(newest))
    return found.with_columns(
        *whole,
        (pl.col("pulse") + 0.5).floor().alias("pulse"),
        (pl.col("temperature") * 10 + 0.5).floor().alias("temperature"),
        on_oxygen.cast(pl.Int64).alias("oxygen"),
        _consciousness().alias("consciousness"),
    )


def _consciousness() -> pl.Expr:
    """Level of the later of AVPU and the coma scale."""
    names = ("eye", "verbal", "motor")
    parts = [pl.col(f"gcs_{part}") for part in names]
    added = parts[0] + parts[1] + parts[2]
    all_at = pl.min_horizontal([f"gcs_{p}_at" for p in names])
    # Parts that were all told after the total are the later finding.
    later = added.is_not_null() & (pl.col("gcs").is_null() | (all_at > pl.col("gcs_at")))
    total = pl.when(later).then(added).otherwise("gcs")
    newest = pl.max_horizontal([f"gcs_{p}_at" for p in names])
    at = pl.when(later).then(newest).otherwise("gcs_at")
    level = (
        pl.when(total >= 15)
        .then(ALERT)
        .when(total >= 14)
        .then(CONFUSED)
        .when(total >= 11)
        .then(VOICE)
        .when(total >= 6)
        .then(PAIN)
        .when(total >= 3)
        .then(UNRESPONSIVE)
    )
    answered = pl.col("avpu").is_not_null() & (
        level.is_null() | (pl.col("avpu_at") >= at).fill_null(True)
    )
    return pl.when(answered).then(pl.col("avpu")).otherwise(level)


def _measured(events: pl.DataFrame) -> pl.DataFrame:
    """Usable values of all components: subject_id, time, _known, part, value."""
    distinct = events.select(pl.col(schema.CODE).unique())[schema.CODE].to_list()
    rows = [(code, *found) for code in distinct if (found := _read_code(code)) is not None]
    kinds = {"code": pl.String, "part": pl.String, "factor": pl.Float64, "offset": pl.Float64,
             "low": pl.Float64, "high": pl.Float64, "answer": pl.Float64}  # fmt: skip
    known = pl.DataFrame(rows, schema=kinds, orient="row")
    number = pl.col(schema.NUMERIC_VALUE).cast(pl.Float64) * pl.col("factor") + pl.col("offset")
    # float32 made 35.1 a little less: rounding first keeps a value within its bounds and its row.
    value = pl.coalesce("answer", number.round(4))
    return (
        events.join(known, on=schema.CODE)
        .select(
            schema.SUBJECT_ID,
            schema.TIME,
            pl.coalesce(schema.AVAILABLE_TIME, schema.TIME).alias("_known"),
            "part",
            value.alias("value"),
            "low",
            "high",
        )
        .filter(pl.col("value").is_between(pl.col("low"), pl.col("high")))
        .drop_nulls(schema.TIME)
    )


def _read_code(code: str) -> tuple[str, float, float, float, float, float | None] | None:
    """Component, factor and offset to its unit, bounds, and the answer if the code holds one."""
    parts = code.split(codes.SEPARATOR)
    answer = next((_ANSWERS[part] for part in parts if part in _ANSWERS), None)
    if answer is not None:
        return "avpu", 1.0, 0.0, ALERT, UNRESPONSIVE, float(answer)
    for name, (items, wanted, low, high) in _MEASURES.items():
        item = next((part for part in parts if part in items), None)
        if item is None:
            continue
        unit = parts[-1] if parts[-1] not in (item, codes.UNKNOWN) else ""
        if item == _FAHRENHEIT_ITEM and not unit:
            unit = _FAHRENHEIT
        zero, target = units.canonical(0.0, unit or wanted)
        many, _ = units.canonical(1e6, unit or wanted)
        if zero is None or many is None or (target != wanted and wanted != "{score}"):
            return None
        return name, (many - zero) / 1e6, zero, low, high, None
    return None


def _last(values: pl.DataFrame, asked: pl.DataFrame) -> pl.DataFrame:
    """Latest value within the window among those available, with its time."""
    now = pl.col(schema.PREDICTION_TIME)
    return (
        asked.join(values, on=schema.SUBJECT_ID)
        .filter(
            (pl.col(schema.TIME) >= now - pl.duration(hours=WINDOW_HOURS))
            & (pl.col(schema.TIME) <= now)
            & (pl.col("_known") <= now)
        )
        .sort(schema.TIME, "_known", maintain_order=True)
        .group_by(_KEYS, maintain_order=True)
        .agg(pl.col("value").last(), pl.col(schema.TIME).last().alias("_at"))
    )
