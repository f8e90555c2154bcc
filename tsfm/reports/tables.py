"""Tables of words and figures: aligned text for a terminal, HTML for a page or a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tsfm.errors import InputError


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    """Lay out cells in columns for a fixed-width font.

    Args:
        headers: Column titles.
        rows: Cells, as many a row as there are titles.
        align: `l` or `r` for each column; by default the first to the left, the others to the
            right.

    Raises:
        InputError: A row or `align` has another number of columns.

    >>> print(format_table(["model", "AUROC"], [["ours", "0.81"], ["LACE", "0.7"]]))
    model  AUROC
    ------------
    ours    0.81
    LACE     0.7
    """
    sides = _sides(headers, rows, align)
    widths = [max(len(line[column]) for line in [headers, *rows]) for column in range(len(headers))]
    lines = [
        "  ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(line, widths, sides, strict=True)
        ).rstrip()
        for line in [headers, *rows]
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([lines[0], rule, *lines[1:]])


def html_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    align: str = "",
    *,
    caption: str = "",
) -> str:
    """The same table as HTML, every cell escaped; see `format_table` for `align`.

    A number's cell has the class `r`; the first cell of a row is its header.
    """
    sides = _sides(headers, rows, align)
    kind = {"l": "", "r": ' class="r"'}

    def cells(line: Sequence[str], first: str, other: str, scope: str) -> str:
        names = [first] + [other] * (len(line) - 1)
        return "".join(
            f"<{name}{kind[side]}{scope if name == 'th' else ''}>{escape(cell)}</{name}>"
            for name, cell, side in zip(names, line, sides, strict=True)
        )

    head = cells(headers, "th", "th", ' scope="col"')
    lines = (cells(row, "th", "td", ' scope="row"') for row in rows)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    title = f"<caption>{escape(caption)}</caption>\n" if caption else ""
    return f"<table>\n{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _sides(headers: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    sides = align or "l" + "r" * (len(headers) - 1)
    if len(sides) != len(headers) or set(sides) - {"l", "r"}:
        raise InputError("align is not one l or r for each column", code="bad_table", place="align")
    if any(len(row) != len(headers) for row in rows):
        raise InputError(
            "a row has another number of cells than the header", code="bad_table", place="rows"
        )
    return sides
