"""How the figures look, and how one becomes inline SVG.

The palette is Okabe and Ito's, darkened where it is used for text on white; lines differ in dash as
well as in colour. Figures are made through `matplotlib.figure.Figure`: `pyplot` keeps global state
and is never imported. Names are those of the user's models and codes, and stand as they are: no
dollar begins a formula, no underscore hides a line.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#A6508A",
    "#B87A00",
    "#3A93C8",
)
INK, GREY, PALE = "#222222", "#6b6b6b", "#dcdcdc"
LINES = (
    (BLUE, "-"),
    (VERMILLION, (0, (5, 1.5))),
    (GREEN, (0, (3, 1, 1, 1))),
    (PURPLE, (0, (1, 1))),
    (ORANGE, (0, (7, 2, 1, 2))),
    (SKY, (0, (2, 2))),
)
"""Colour and dash of the first, second ... model."""

FONT_SIZE = 9.5


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, laid out so that no label is cut off."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=120)


def as_written(figure: Figure) -> Figure:
    """The same figure, none of its words read as mathematics."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
    return figure


def label_ends(axes: Axes, x: float, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each line's name right of the axes at its last value, moved apart where they touch.

    Args:
        axes: Axes with fixed limits.
        x: Where the lines end.
        ends: Last value, name and colour of each line.
    """
    bottom, top = axes.get_ylim()
    gap = (top - bottom) * 0.075
    places: list[float] = []
    for value, name, colour in sorted(ends):
        place = max(value, places[-1] + gap) if places else value
        places.append(place)
        write_at(axes, name, (x, place), (6, 0), va="center", color=colour)


def figure_to_svg(figure: Figure, *, name: str = "figure", title: str = "") -> str:
    """Inline SVG of a figure: no external reference, the same bytes for the same figure.

    Args:
        figure: Any matplotlib figure.
        name: Prefix of all ids, so that several figures can stand on one page.
        title: Text for readers who can't see it.
    """
    import matplotlib as mpl

    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    buffer = io.StringIO()
    # Text stays text: it can be searched, read aloud and copied.
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}), warnings.catch_warnings():
        # The reader's fonts draw the words: only their width is guessed from ours.
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    prefix = re.sub(r"[^A-Za-z0-9_-]", "-", name)
    # In tags alone: a name may hold what looks like a reference.
    text = re.sub(r"<[^>]+>", lambda tag: _prefix_ids(tag[0], prefix), text)
    label = f' role="img" aria-label="{escape(title, quote=True)}"' if title else ' role="img"'
    return text.replace("<svg", f"<svg{label}", 1).strip()


def _prefix_ids(tag: str, prefix: str) -> str:
    tag = re.sub(r'\bid="', f'id="{prefix}-', tag)
    tag = re.sub(r'href="#', f'href="#{prefix}-', tag)
    return re.sub(r"url\(#", f"url(#{prefix}-", tag)


def percent_axes(axes: Axes, which: str) -> None:
    """Write the ticks of the axes named in `which` (`x`, `y` or `xy`) as per cent of 1."""
    from matplotlib.ticker import PercentFormatter

    for letter in which:
        axis = axes.xaxis if letter == "x" else axes.yaxis
        axis.set_major_formatter(PercentFormatter(xmax=1))


def thousands(axes: Axes) -> None:
    """Few whole-number ticks on the y axis, with separators."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def clean(axes: Axes) -> None:
    """Two spines, a pale grid behind the data, one size of type."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=FONT_SIZE - 1, color=GREY)
    axes.grid(color=PALE, lw=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_fontsize(FONT_SIZE)
    axes.yaxis.label.set_fontsize(FONT_SIZE)


def write_at(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    shift: tuple[float, float] = (0, 0),
    **style: Any,
) -> None:
    """Write a label beside a point of the data.

    Args:
        axes: Where to write.
        text: What to write.
        at: Point in data coordinates, or in those of `xycoords`.
        shift: Distance from the point, in points of type.
        style: As for matplotlib's `annotate`.
    """
    given = {"size": FONT_SIZE, "color": INK, "annotation_clip": False, **style}
    axes.annotate(text, at, xytext=shift, textcoords="offset points", **given)


def legend(
    axes: Axes, lines: Mapping[str, Line2D], place: Literal["lower right", "upper right"]
) -> None:
    """Legend of the models' lines, in the order in which the models were given.

    Args:
        axes: Where to write.
        lines: Each model's line, as drawn: the last model first.
        place: Corner.
    """
    names = list(lines)[::-1]
    # Numbers stand in for the names until all lines are there: one with a leading underscore would
    # be left out.
    made = axes.legend(
        [lines[name] for name in names],
        [str(rank) for rank in range(len(names))],
        loc=place,
        frameon=True,
        framealpha=0.9,
        edgecolor="none",
        fontsize=FONT_SIZE - 1,
        handlelength=2.6,
    )
    for text, name in zip(made.get_texts(), names, strict=True):
        text.set_text(name)
