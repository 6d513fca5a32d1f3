"""The figures of a comparison: loss against bits, and the error of each layer by method."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from qdc.comparing.labels import shortened, spread_labels
from qdc.evaluation.bootstrap import Interval
from qdc.report.drawing import (
    ACCENT,
    INK,
    LINE,
    MUTED,
    SURFACE,
    CellTitle,
    bare_frame,
    canvas,
    cell_titles,
    log_ticks,
    make_room,
    styled,
    svg,
)
from qdc.report.figures import FAINTEST, FILL, TILES

LETTERS = 32
"""Of a name in a figure."""
LABEL, LETTER = 15, 7
"""Height of a label and width of a letter in pixels."""
SPAN = 1e3
"""A map of errors spans at most this ratio."""


class Point(NamedTuple):
    """One method in the plot."""

    name: str
    bits: float
    rise: float
    interval: Interval | None
    deviation: float | None


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front, by bits: no other point has fewer bits, or as many, and a lower loss."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.bits, p.rise)):
        if not found or point.rise < found[-1].rise:
            found.append(point)
    return found


def loss_by_bits(points: Sequence[Point], what: str) -> str:
    """Rise of the loss against effective bits; the front is a line of steps.

    Bars are 95% intervals over documents, or a deviation over seeds where that is wider.
    """
    best = {point.name for point in front(points)}
    height = max(330, LABEL * len(points) + 70)
    left, right, bottom, top = 62, 306, 46, 14
    width = 940
    inner = width - left - right, height - bottom - top
    with styled("loss by bits", *(tuple(p[:3]) for p in points)):
        figure, axes = canvas(width, height, left=left, bottom=bottom, top=top, right=right)
        logarithmic = min(p.rise for p in points) > 0
        if logarithmic:
            axes.set_yscale("log")
        for point in points:
            own = point.name in best
            low, high = _ends(point)
            floor = point.rise / 4 if logarithmic else -math.inf
            axes.errorbar(
                point.bits, point.rise,
                yerr=[[point.rise - max(low, floor)], [high - point.rise]],
                fmt="o", color=ACCENT if own else MUTED, markersize=7 if own else 5.5,
                markeredgecolor=SURFACE, markeredgewidth=0.8, elinewidth=1.2, capsize=2.5,
                zorder=4 if own else 3,
            )  # fmt: skip
        axes.margins(x=0.06, y=0.06)
        axes.autoscale_view()
        _steps(axes, front(points))
        axes.set_xlabel("effective bits a weight: every stored byte of the layers counted")
        axes.set_ylabel(what)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        _values(axes, logarithmic)
        axes.grid(color=LINE, linewidth=0.6, alpha=0.6)
        axes.set_axisbelow(True)
        bare_frame(axes)
        make_room(figure, axes)
        to_axes = axes.transData + axes.transAxes.inverted()
        spots = [to_axes.transform((p.bits, p.rise)) for p in points]
        apart = LABEL / inner[1]
        places = spread_labels([float(y) for _, y in spots], apart, 0.0, 1.0)
        for point, (x, y), place in zip(points, spots, places, strict=True):
            own = point.name in best
            color = ACCENT if own else MUTED
            axes.annotate(
                "", (x, y), (1 + 14 / inner[0], place), xycoords="axes fraction",
                textcoords="axes fraction", annotation_clip=False, zorder=2,
                arrowprops={"arrowstyle": "-", "color": color, "lw": 0.6, "alpha": 0.45,
                            "shrinkA": 0, "shrinkB": 4},
            )  # fmt: skip
            axes.text(
                1 + 18 / inner[0], place, f"{point.rise:.4f}  {shortened(point.name, LETTERS)}",
                transform=axes.transAxes, va="center", fontsize=8.5, color=INK if own else MUTED,
                fontweight="bold" if own else "normal",
            )  # fmt: skip
        named = "; ".join(f"{p.name}, {p.bits:.3f} bits, rise {p.rise:.4f}" for p in front(points))
        return svg(
            figure,
            "Loss against bits",
            f"{len(points)} methods. On the front: {named}. The table has all of them.",
        )


def layer_map(errors: Mapping[str, Mapping[str, float]]) -> tuple[str, float, float] | None:
    """Error of each layer, a row a method; and the errors of the faintest and the fullest colour.

    Layers stand by kind, and within a kind by depth. None if there is no error above 0.
    """
    layers = ordered_layers(errors)
    values = np.array([[mine.get(n, np.nan) for n in layers] for mine in errors.values()])
    positive = values[values > 0]
    if not positive.size:
        return None
    high = float(positive.max())
    low = min(max(float(positive.min()), high / SPAN), high / 2)
    kinds = [kind_of(name) for name in layers]
    cell, tall = min(max(620 / len(layers), 3.0), 22.0), 18
    shown = [shortened(name, LETTERS) for name in errors]
    left, bottom, top, right = 16 + LETTER * max(map(len, shown)), 10, 72, 40
    width, height = left + right + cell * len(layers), bottom + top + tall * len(errors)
    pixels = np.zeros((*values.shape, 4), np.uint8)
    pixels[..., :3] = FILL
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.clip(np.log(np.maximum(values, low) / low) / math.log(high / low), 0, 1)
    opacity = np.where(np.isnan(values), 0, FAINTEST + (1 - FAINTEST) * place)
    pixels[..., 3] = np.round(255 * opacity).astype(np.uint8)
    with styled("layer map", tuple(map(tuple, values.tolist()))):
        figure, axes = canvas(width, height, left=left, bottom=bottom, top=top, right=right)
        axes.imshow(pixels, interpolation="none", aspect="auto")
        rows, columns = values.shape
        if values.size <= TILES:
            axes.hlines(np.arange(rows - 1) + 0.5, -0.5, columns - 0.5, color=SURFACE, lw=1.5)
            axes.vlines(np.arange(columns - 1) + 0.5, -0.5, rows - 0.5, color=SURFACE, lw=1.0)
        starts = [n for n in range(columns) if n == 0 or kinds[n] != kinds[n - 1]]
        axes.vlines([n - 0.5 for n in starts[1:]], -0.5, rows - 0.5, color=SURFACE, lw=4)
        ends = [*starts[1:], columns]
        axes.set_xticks(
            [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)],
            [shortened(kinds[n], 16) for n in starts],
            rotation=40, ha="left", rotation_mode="anchor",
        )  # fmt: skip
        axes.set_yticks(range(rows), shown, fontsize=8.5)
        axes.xaxis.set_ticks_position("top")
        axes.tick_params(length=0, pad=4)
        for spine in axes.spines.values():
            spine.set_visible(False)
        cells = cell_titles(axes, rows, columns, _titles(errors, layers))
        said = (
            f"{rows} methods and {columns} layers, from {low:.3g} or less to {high:.3g}. The "
            "higher the error, the fuller the colour."
        )
        return svg(figure, "Error of each layer by method", said, cells), low, high


def ordered_layers(errors: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Every layer that some method has, by kind and then by depth as they are executed."""
    names = list(dict.fromkeys(name for mine in errors.values() for name in mine))
    kinds = list(dict.fromkeys(map(kind_of, names)))
    return sorted(names, key=lambda name: kinds.index(kind_of(name)))


def kind_of(layer: str) -> str:
    """The name of a layer without its numbers: ``blocks.3.q_proj`` is a ``q_proj``."""
    return layer.rsplit(".", 1)[-1]


def _titles(
    errors: Mapping[str, Mapping[str, float]], layers: Sequence[str]
) -> Iterator[CellTitle]:
    """One title a cell; with more cells than ``TILES`` one a method, which keeps the page small."""
    each = len(errors) * len(layers) <= TILES
    for row, (name, mine) in enumerate(errors.items()):
        if not each:
            ends = f"{min(mine.values()):.3g} to {max(mine.values()):.3g}" if mine else "no error"
            yield CellTitle(row, 0, len(layers), f"{name}: {ends}")
            continue
        for column, layer in enumerate(layers):
            said = f"error {mine[layer]:.3g}" if layer in mine else "no error measured"
            yield CellTitle(row, column, 1, f"{name}, {layer}: {said}")


def _steps(axes: Axes, best: Sequence[Point]) -> None:
    """Draw the front: from each of its points on the best that can be had for more bits."""
    if len(best) < 2:
        return
    bits, rises = [p.bits for p in best], [p.rise for p in best]
    axes.step(bits, rises, where="post", color=ACCENT, linewidth=1.4, alpha=0.55, zorder=2)


def _ends(point: Point) -> Interval:
    low, high = point.interval or (point.rise, point.rise)
    spread = point.deviation or 0.0
    return min(low, point.rise - spread), max(high, point.rise + spread)


def _values(axes: Axes, logarithmic: bool) -> None:
    if not logarithmic:
        axes.yaxis.set_major_locator(MaxNLocator(6))
        return
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
