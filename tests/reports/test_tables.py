"""Tables: columns line up, nothing in a cell becomes markup."""

from __future__ import annotations

import pytest

from tsfm.errors import InputError
from tsfm.reports.tables import format_table, html_table

HEADERS = ["model", "AUROC"]
ROWS = [["ours", "0.81"], ["gradient boosting", "0.7"]]


def test_columns_line_up_left_and_right() -> None:
    lines = format_table(HEADERS, ROWS).splitlines()
    assert lines[2].startswith("ours ")
    ends = {len(line) for line in lines}
    assert len(ends) == 1
    swapped = format_table(HEADERS, ROWS, "rl").splitlines()
    assert swapped[2].index("ours") == len("gradient boosting") - len("ours")


def test_no_rows_still_have_a_header() -> None:
    assert format_table(HEADERS, []).splitlines()[0] == "model  AUROC"


@pytest.mark.parametrize("table", [format_table, html_table])
def test_a_short_row_is_refused(table) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="bad_table"):
        table(HEADERS, [["ours"]])
    with pytest.raises(InputError, match="bad_table"):
        table(HEADERS, ROWS, "lc")


def test_cells_are_text_and_never_markup() -> None:
    page = html_table(["<b>", "x"], [["<script>", "a&b"]], caption="<i>")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "a&amp;b" in page
    assert "<caption>&lt;i&gt;</caption>" in page
    assert '<td class="r">' in page
