"""Drawings as SVG text that takes its colours and its font from the page that it is put into.

Drawn without pyplot and without a display. Text stays text; each colour is a stand-in that becomes
a variable of the page's style sheet, so that one drawing serves light and dark.
"""

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


def svg(figure: Figure) -> str:
    """The drawing as an element to put into a page."""
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
    return text.strip()


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
