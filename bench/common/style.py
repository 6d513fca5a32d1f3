"""How the plots look: one style sheet, one palette, SVG text that is the same on every run."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

INK, MUTED, GRID, PAPER = "#1d2733", "#5c6875", "#dfe4ea", "#ffffff"
OWN, OTHER, LIBRARY = "#2f5bea", "#8a94a0", "#e0702b"
FAMILY = {"preset": OWN, "baseline": OTHER, "library": LIBRARY}
"""Colour of each family of methods."""
BAR, BASE_BAR = "#a9bdf7", OWN
LINES = (OTHER, OWN, "#0d9c84", LIBRARY, "#b04ad0", "#c0392b")
ORDERS = {1: "#dfe7fd", 2: "#9db4f5", 3: "#4a6ff0", 4: "#1b2f8f"}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "quality",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "figure.facecolor": PAPER,
    "legend.frameon": False,
}


@contextmanager
def styled() -> Iterator[None]:
    """The style, whatever the user's own matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        settings: Any = STYLE
        mpl.rcParams.update(settings)
        yield


def figure(width: float, height: float) -> Figure:
    """An empty drawing, its size in inches."""
    made = Figure(figsize=(width, height), dpi=100)
    FigureCanvasSVG(made)
    return made


def svg(drawn: Figure) -> str:
    """The drawing as a file's text, without a date."""
    file = io.StringIO()
    plain = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    drawn.savefig(file, format="svg", bbox_inches="tight", pad_inches=0.12, metadata=plain)
    text = file.getvalue()
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)


def plain_numbers(axes: Axes, which: str) -> None:
    """Label a logarithmic axis with 0.05, 0.1, 0.2 ... instead of powers of ten."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=50))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
