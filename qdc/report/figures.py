"""The figures of a report, as SVG text that takes its colours and its font from the page.

Nothing here draws or says a name that the user chose: captions are the page's. Titles and
descriptions are for readers of screens; cells of heat maps have titles that browsers show.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from qdc.report.drawing import (
    ACCENT,
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

FILL = (92, 124, 250)
"""The accent of heat maps, which are pixels and know no style sheet; legible on either ground."""
ORDER_OPACITY = {1: 0.11, 2: 0.36, 3: 0.76, 4: 1.0}
FAINTEST = 0.06
TILES = 4000
"""Up to this many cells are drawn with a gap between them, and each has its own title."""
Rows = Sequence[Sequence[float]]
"""One row a layer, one value a block; rows may differ in length."""


def order_map(rows: Rows, widest: int) -> str:
    """Orders as a heat map; ``widest`` is the most blocks of any layer of the model."""
    opacity = _grid(rows)
    for order, value in ORDER_OPACITY.items():
        opacity[opacity == order] = value
    return _heat_map(
        opacity,
        rows,
        widest,
        "orders",
        "Orders of blocks by depth",
        lambda order: f"order {order:g}",
    )


def error_map(rows: Rows, widest: int, low: float, high: float) -> str:
    """Errors of blocks as a heat map, logarithmic from ``low`` to ``high``."""
    values = _grid(rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.log(np.maximum(values, low) / low) / max(math.log(high / low), 1e-9)
    opacity = FAINTEST + (1 - FAINTEST) * np.clip(place, 0, 1)
    title = "Errors of blocks by depth"
    return _heat_map(opacity, rows, widest, "errors", title, lambda error: f"{error:.3g}")


def depth_lines(lines: Sequence[Sequence[float]], chosen: int, low: float, high: float) -> str:
    """Error by depth of one kind of layer among all kinds, which are drawn faintly."""
    with styled("depth", chosen):
        figure, axes = canvas(236, 142, left=42, bottom=36, top=8, right=8)
        for place, values in enumerate(lines):
            own = place == chosen
            axes.plot(
                range(len(values)), np.maximum(values, low), color=ACCENT if own else LINE,
                linewidth=1.8 if own else 1.0, zorder=3 if own else 1,
                marker="o" if own and len(values) <= 12 else "", markersize=3.2,
            )  # fmt: skip
        axes.set_yscale("log")
        axes.set_ylim(low / 1.15, high * 1.15)
        axes.yaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.margins(x=0.03)
        axes.grid(axis="y", color=LINE, linewidth=0.6, alpha=0.6)
        bare_frame(axes)
        axes.set_xlabel("depth", labelpad=2)
        make_room(figure, axes)
        own_line = lines[chosen]
        worst = max(range(len(own_line)), key=own_line.__getitem__)
        return svg(
            figure,
            "Error by depth",
            f"One kind of layer among {len(lines)}, on a logarithmic axis. Its error is "
            f"{own_line[0]:.3g} at depth 0 and {own_line[-1]:.3g} at depth {len(own_line) - 1}, "
            f"highest at depth {worst}: {own_line[worst]:.3g}.",
        )


def loss_lines(
    ratios: Sequence[float], compiled: Sequence[float], original: Sequence[float] | None
) -> str:
    """Loss by mask ratio, of the artifact and of the model that it was compared with."""
    with styled("loss"):
        figure, axes = canvas(410, 250, left=46, bottom=38, top=14, right=62)
        for values, color, label in ((original, MUTED, "original"), (compiled, ACCENT, "compiled")):
            if values is None:
                continue
            axes.plot(ratios, values, color=color, linewidth=2, marker="o", markersize=4.5)
            axes.annotate(
                label, (ratios[-1], values[-1]), xytext=(9, -3), textcoords="offset points",
                color=color, fontsize=9, annotation_clip=False,
                va="bottom" if color == ACCENT else "top",
            )  # fmt: skip
        axes.set_xlabel("share of the tokens that are masked")
        axes.set_ylabel("cross-entropy, nats a token")
        axes.xaxis.set_major_locator(FixedLocator(ratios))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y", color=LINE, linewidth=0.6, alpha=0.6)
        axes.margins(x=0.06, y=0.12)
        bare_frame(axes)
        make_room(figure, axes)
        pairs = [
            f"{ratio:g}: {loss:.4f}" + ("" if original is None else f", original {original[n]:.4f}")
            for n, (ratio, loss) in enumerate(zip(ratios, compiled, strict=True))
        ]
        return svg(figure, "Loss by mask ratio", f"In nats a token, at {'; at '.join(pairs)}.")


def rise_bars(ratios: Sequence[float], rises: Sequence[float], errors: Sequence[float]) -> str:
    """Rise of the loss by mask ratio, with two standard errors either way."""
    with styled("rise"):
        figure, axes = canvas(360, 250, left=46, bottom=38, top=14, right=12)
        places = range(len(ratios))
        axes.bar(places, rises, width=0.5, color=ACCENT, alpha=0.28)
        axes.errorbar(
            places, rises, yerr=[2 * error for error in errors], fmt="o", color=ACCENT,
            markersize=4.5, elinewidth=1.6, capsize=4, capthick=1.6,
        )  # fmt: skip
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.set_xticks(places, [f"{ratio:g}" for ratio in ratios])
        axes.set_xlabel("share of the tokens that are masked")
        axes.set_ylabel("rise, nats a token")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y", color=LINE, linewidth=0.6, alpha=0.6)
        axes.set_axisbelow(True)
        axes.set_xlim(-0.6, len(ratios) - 0.4)
        bare_frame(axes)
        make_room(figure, axes)
        bars = [
            f"{ratio:g}: {rise:+.4f}, standard error {error:.4f}"
            for ratio, rise, error in zip(ratios, rises, errors, strict=True)
        ]
        return svg(
            figure, "Rise of the loss by mask ratio", f"In nats a token, at {'; at '.join(bars)}."
        )


def _grid(rows: Rows) -> NDArray[np.float64]:
    """Pad the rows to one length with NaN."""
    grid = np.full((len(rows), max(map(len, rows))), np.nan)
    for place, row in enumerate(rows):
        grid[place, : len(row)] = row
    return grid


def _heat_map(
    opacity: NDArray[np.float64],
    rows: Rows,
    widest: int,
    salt: str,
    title: str,
    said: Callable[[float], str],
) -> str:
    """Draw cells of one colour; the more opaque, the higher. A cell has its size at every width.

    ``said`` is what the title of a cell says of its value.
    """
    layers, blocks = opacity.shape
    wide, high = _clamp(880 / widest, 6, 26), _clamp(300 / layers, 5, 22)
    pixels = np.zeros((layers, blocks, 4), np.uint8)
    pixels[..., :3] = FILL
    pixels[..., 3] = np.round(255 * np.nan_to_num(opacity)).astype(np.uint8)
    with styled(salt, *(tuple(row) for row in rows)):
        width, height = max(wide * blocks, 96.0), high * layers
        figure, axes = canvas(width + 38, height + 36, left=32, bottom=32, top=4, right=6)
        axes.imshow(pixels, interpolation="none", aspect="auto")
        if layers * blocks <= TILES:
            axes.hlines(np.arange(layers - 1) + 0.5, -0.5, blocks - 0.5, color=SURFACE, lw=1.5)
            axes.vlines(np.arange(blocks - 1) + 0.5, -0.5, layers - 0.5, color=SURFACE, lw=1.5)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axes.tick_params(length=0, pad=3)
        axes.set_xlabel("block", labelpad=2)
        axes.set_ylabel("depth", labelpad=3)
        for spine in axes.spines.values():
            spine.set_visible(False)
        make_room(figure, axes)
        cells = cell_titles(axes, layers, blocks, _titles(rows, said))
        return svg(figure, title, _described(rows, said), cells)


def _titles(rows: Rows, said: Callable[[float], str]) -> Iterator[CellTitle]:
    """One title for each run of equal cells; with more cells than ``TILES`` one a row.

    Either keeps the page small.
    """
    each = sum(map(len, rows)) <= TILES
    for depth, row in enumerate(rows):
        if not each:
            ends = f"{said(min(row))} to {said(max(row))}"
            yield CellTitle(depth, 0, len(row), f"depth {depth}, {len(row)} blocks: {ends}")
            continue
        start = 0
        for value, run in groupby(row):
            wide = len(list(run))
            where = f"block {start}" if wide == 1 else f"blocks {start} to {start + wide - 1}"
            yield CellTitle(depth, start, wide, f"depth {depth}, {where}: {said(value)}")
            start += wide


def _described(rows: Rows, said: Callable[[float], str]) -> str:
    """The size of a heat map, and where its highest value is."""
    depth = max(range(len(rows)), key=lambda n: max(rows[n]))
    block = max(range(len(rows[depth])), key=rows[depth].__getitem__)
    least = min(map(min, rows))
    return (
        f"{len(rows)} layers of up to {max(map(len, rows))} blocks, from {said(least)} to "
        f"{said(rows[depth][block])}, which is first reached at depth {depth}, block {block}."
    )


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
