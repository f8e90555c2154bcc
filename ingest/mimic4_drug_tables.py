# pyright: strict
"""MIMIC-IV's tables of drugs in `hosp/`: what was ordered, what the pharmacy began, what was given.

Codes follow the official MEDS conversion; it does not read prescriptions. An order may be entered
after the moment from which it counts, and then nobody knew of it before: orders, starts and stops
are known at the `entertime` of `hosp/pharmacy`, never before they come. A prescription finds its
own by `pharmacy_id`.

Columns: https://mimic.mit.edu/docs/iv/modules/hosp/.
"""

from __future__ import annotations

import polars as pl

from tsfm import codes
from tsfm.ingest.source_table import (
    EventRule,
    SourceTable,
    code_of,
    dose_number,
    dose_text,
)

ENTERED = ("pharmacy_id", "entertime")
"""Identifier of an order, and when the pharmacy entered it: `hosp/pharmacy` tells prescriptions."""


def drug_tables() -> tuple[SourceTable, ...]:
    """Tables of drugs, in their order."""
    name = pl.col("medication")
    return (
        SourceTable(
            "hosp/prescriptions",
            times=("starttime",),
            texts=("pharmacy_id", "drug", "dose_val_rx", "dose_unit_rx"),
            dated_by=("starttime",),
            joined=ENTERED,
            fallbacks={"entertime": "not in hosp/pharmacy, available at starttime"},
            rules=(
                EventRule(
                    code_of(codes.MEDICATION, pl.col("drug"), "ORDERED"),
                    "starttime",
                    pl.max_horizontal("starttime", "entertime"),
                    dose_number("dose_val_rx"),
                    dose_text("dose_val_rx", "dose_unit_rx"),
                ),
            ),
        ),
        SourceTable(
            "hosp/pharmacy",
            times=("starttime", "stoptime", "entertime"),
            stored=("entertime",),
            texts=("medication",),
            dated_by=("starttime", "stoptime"),
            fallbacks={"entertime": "available at starttime and stoptime"},
            rules=(
                EventRule(
                    code_of(codes.MEDICATION, "START", name),
                    "starttime",
                    pl.max_horizontal("starttime", "entertime"),
                ),
                EventRule(
                    code_of(codes.MEDICATION, "STOP", name),
                    "stoptime",
                    pl.max_horizontal("stoptime", "entertime"),
                ),
            ),
        ),
        SourceTable(
            "hosp/emar",
            times=("charttime", "storetime"),
            stored=("storetime",),
            texts=("medication", "event_txt"),
            dated_by=("charttime",),
            fallbacks={"storetime": "available at charttime"},
            rules=(
                EventRule(
                    code_of(codes.MEDICATION, name, pl.col("event_txt")),
                    "charttime",
                    pl.max_horizontal("charttime", "storetime"),
                ),
            ),
        ),
    )
