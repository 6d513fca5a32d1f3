"""The plot: our curve a line, every library's points in a colour of their own."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bench.common.style import INK, LINES, MUTED, OWN, figure, plain_numbers, styled, svg
from qdc.comparing.labels import spread_labels

from .judgement import HIGH, LOW, Point, front

WIDTH, HEIGHT = 9.4, 5.4
LABEL = 0.155
"""Inches between two labels."""
COLORS = tuple(color for color in LINES if color != OWN)
MARKERS = "s^DvPX"


def curve(ours: Sequence[Point], theirs: Mapping[str, Sequence[Point]], what: str) -> str:
    """Gap against effective bits, logarithmic unless some gap is none.

    Args:
        ours: our points; the line joins the front of them.
        theirs: points of others by library.
        what: said beside the gap's axis.
    """
    everything = [*ours, *(point for points in theirs.values() for point in points)]
    with styled():
        rows = max(HEIGHT, LABEL * len(everything) + 0.8)
        drawn = figure(WIDTH, rows)
        axes = drawn.add_axes((0.07, 0.1, 0.66, 0.87))
        axes.axvspan(LOW, HIGH, color=OWN, alpha=0.04, lw=0)
        if min(point.gap for point in everything) > 0:
            axes.set_yscale("log")
        best = front(ours)
        axes.plot(
            [p.bits for p in best], [p.gap for p in best], color=OWN, lw=2.2, marker="o", ms=6,
            zorder=4,
        )  # fmt: skip
        rest = [point for point in ours if point not in best]
        axes.plot(
            [p.bits for p in rest], [p.gap for p in rest], ls="", marker="o", ms=6, mfc="w",
            color=OWN, zorder=3,
        )  # fmt: skip
        colors = {point.name: OWN for point in ours}
        handles = [Line2D([], [], color=OWN, marker="o", lw=2.2, ms=6, label="qdc")]
        for (library, points), color, marker in zip(theirs.items(), COLORS, MARKERS, strict=False):
            axes.plot(
                [p.bits for p in points], [p.gap for p in points], ls="", marker=marker, ms=6,
                color=color, zorder=3,
            )  # fmt: skip
            handles.append(Line2D([], [], ls="", color=color, marker=marker, label=library))
            colors |= {point.name: color for point in points}
        axes.set_xlabel("effective bits a weight: every stored byte of the layers counted")
        axes.set_ylabel(what)
        axes.legend(handles=handles, loc="upper right", fontsize=8.5)
        axes.margins(x=0.04, y=0.05)
        axes.autoscale_view()
        if axes.get_yscale() == "log":
            plain_numbers(axes, "y")
        _label(axes, everything, colors, LABEL / (0.87 * rows))
        return svg(drawn)


def _label(axes: Axes, points: Sequence[Point], colors: Mapping[str, str], apart: float) -> None:
    """Names to the right, in the order of the gaps, each with a thin line to its point."""
    to_axes = axes.transData + axes.transAxes.inverted()
    spots = [to_axes.transform((point.bits, point.gap)) for point in points]
    places = spread_labels([float(y) for _, y in spots], apart, 0.0, 1.0)
    for point, (x, y), place in zip(points, spots, places, strict=True):
        axes.annotate(
            "", (x, y), (1.02, place), xycoords="axes fraction", textcoords="axes fraction",
            annotation_clip=False, zorder=2,
            arrowprops={"arrowstyle": "-", "color": colors[point.name], "lw": 0.5, "alpha": 0.4,
                        "shrinkA": 0, "shrinkB": 4},
        )  # fmt: skip
        own = colors[point.name] == OWN
        axes.text(
            1.025, place, f"{point.gap:.4f}  {point.name}", transform=axes.transAxes, va="center",
            fontsize=8, color=INK if own else MUTED, fontweight="bold" if own else "normal",
        )  # fmt: skip
