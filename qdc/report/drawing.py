"""Drawings as SVG text that takes its colours and its font from the page that it is put into.

Drawn without pyplot and without a display. Text stays text; each colour is a stand-in that becomes
a variable of the page's style sheet, so that one drawing serves light and dark.
"""

import html
import io
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, LINE, ACCENT, SURFACE = "#100001", "#100002", "#100003", "#100004", "#100005"
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", ACCENT: "accent", SURFACE: "surface"}
LIGHT = {
    "ink": "#16181d", "muted": "#626a78", "line": "#dfe3ea", "accent": "#3453d9",
    "surface": "#ffffff",
}  # fmt: skip
"""The variables of the style sheet on a light ground."""
PIXEL = 1 / 96
"""One CSS pixel in inches."""
DIGIT = 7
"""Width of a digit of a tick in CSS pixels, in the widest font that a page may be shown in."""
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": MUTED,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.linewidth": 1.0,
    "lines.solid_capstyle": "round",
}


class CellTitle(NamedTuple):
    """What is said of some cells of a row."""

    row: int
    column: int
    wide: int
    """Cells."""
    text: str


def canvas(
    width: float, height: float, *, left: int, bottom: int, top: int, right: int
) -> tuple[Figure, Axes]:
    """One pair of axes with fixed margins; everything in CSS pixels."""
    figure = Figure(figsize=(width * PIXEL, height * PIXEL), dpi=96)
    FigureCanvasSVG(figure)
    box = (
        left / width,
        bottom / height,
        (width - left - right) / width,
        (height - bottom - top) / height,
    )
    figure.patch.set_visible(False)
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    return figure, axes


def bare_frame(axes: Axes) -> None:
    """Leave nothing but the lower edge of the axes."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, pad=5)


def make_room(figure: Figure, axes: Axes) -> None:
    """Widen the left margin where the numbers beside the axis need more than it has."""
    low, high = sorted(axes.get_ylim())
    places = axes.get_yticks()
    numbers = axes.yaxis.get_major_formatter().format_ticks(list(places))
    shown = [text for place, text in zip(places, numbers, strict=True) if low <= place <= high]
    beside = 16 if axes.get_ylabel() else 4
    needed = (DIGIT * max(map(len, shown), default=0) + 5 + beside) / (
        figure.get_figwidth() / PIXEL
    )
    box = axes.get_position()
    if needed > box.x0:
        axes.set_position((needed, box.y0, box.x1 - needed, box.height))


@contextmanager
def styled(*salt: object) -> Iterator[None]:
    """Settings of one drawing, whatever the user's own matplotlibrc says.

    The salt keeps the identifiers of drawings on one page apart.
    """
    settings: Any = {**STYLE, "svg.hashsalt": repr(salt)}
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        yield


def svg(figure: Figure, title: str, description: str, cells: str = "") -> str:
    """The drawing as an element to put into a page.

    Args:
        figure: what is drawn.
        title: its name for whoever does not see it.
        description: what it shows, in words and numbers.
        cells: of ``cell_titles``, put on top.
    """
    file = io.StringIO()
    figure.savefig(
        file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[\w.]+_\d+"', "<g", text)
    text = re.sub(r'(width|height)="([\d.]+)pt"', _in_pixels, text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    spoken = f"<title>{html.escape(title)}</title><desc>{html.escape(description)}</desc>"
    text = re.sub(r"<svg\b([^>]*)>", lambda tag: f'<svg role="img"{tag[1]}>{spoken}', text, count=1)
    return text.strip().removesuffix("</svg>") + f"{cells}</svg>"


def cell_titles(axes: Axes, rows: int, columns: int, titles: Iterable[CellTitle]) -> str:
    """Invisible cells above a heat map that fills its axes; a browser shows the title of each.

    Args:
        axes: of the heat map; their place must not change any more.
        rows: of the heat map.
        columns: of the heat map.
        titles: any text, which is escaped here.
    """
    box = axes.get_position()
    assert isinstance(axes.figure, Figure)
    width, height = (72 * inches for inches in axes.figure.get_size_inches())
    place = f"translate({box.x0 * width:.5g} {(1 - box.y1) * height:.5g})"
    cell = f"scale({box.width * width / columns:.6g} {box.height * height / rows:.6g})"
    drawn = "".join(
        f'<path d="M{each.column} {each.row}h{each.wide}v1h-{each.wide}z">'
        f"<title>{html.escape(each.text)}</title></path>"
        for each in titles
    )
    return (
        f'<g class="cells" fill="none" pointer-events="fill" transform="{place} {cell}">{drawn}</g>'
    )


def _in_pixels(match: re.Match[str]) -> str:
    return f'{match[1]}="{float(match[2]) * 96 / 72:g}"'


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between the bounds: 1, 2, 5 of each power of ten, or fewer."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10.0**p for p in powers for d in digits if low <= d * 10.0**p <= high]
        if len(ticks) <= 5:
            return ticks or [low, high]
    return ticks[:: -(-len(ticks) // 5)]


def standalone(drawing: str) -> str:
    """A drawing as a file of its own, on a light ground, for what has no style sheet."""
    for variable, color in LIGHT.items():
        drawing = drawing.replace(f"var(--{variable})", color)
    drawing = drawing.replace("<svg ", f'<svg style="background:{LIGHT["surface"]}" ', 1)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{drawing}\n'
