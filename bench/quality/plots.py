"""The plots of methods, as SVG text: loss against bits, error by layer, orders by block."""

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bench.common.statistics import spearman
from bench.common.style import (
    FAMILY,
    GRID,
    LINES,
    MUTED,
    ORDERS,
    figure,
    plain_numbers,
    styled,
    svg,
)  # fmt: skip
from qdc.comparing import figures
from qdc.comparing.figures import Point
from qdc.comparing.result import Result
from qdc.comparing.statistics import difference, gap
from qdc.report.drawing import standalone

Methods = Mapping[str, Sequence[Result]]
"""Results over seeds by name."""


def loss_by_bits(methods: Methods) -> str:
    """The gap of every method against its effective bits, as ``qdc compare`` draws it."""
    points = []
    for name, results in methods.items():
        found, apart = gap(results), difference(results, None)
        points.append(
            Point(
                name,
                statistics.fmean(r.effective_bits for r in results),
                found.mean,
                apart.interval,
                None if math.isnan(found.deviation) else found.deviation,
            )
        )
    what = "gap at ratio 0.5, nats a token"
    return standalone(figures.loss_by_bits(points, what))


def error_by_layer(methods: Methods) -> str:
    """Held-out relative output error of every linear: one panel a kind, depth to the right."""
    kinds: dict[str, list[str]] = {}
    for name in _drift(next(iter(methods.values()))):
        kinds.setdefault(name.rsplit(".", 1)[-1], []).append(name)
    columns = 4
    rows = -(-(len(kinds) + 1) // columns)
    with styled():
        drawn = figure(9, 2.15 * rows)
        grid = drawn.subplots(rows, columns, sharey=True, squeeze=False)
        drawn.subplots_adjust(hspace=0.42, wspace=0.1)
        cells = list(grid.flat)
        for axes, (kind, layers) in zip(cells, kinds.items(), strict=False):
            for color, (_, results) in zip(LINES, methods.items(), strict=False):
                values = [
                    statistics.fmean(r.drift.layers[n] for r in results if r.drift) for n in layers
                ]
                axes.plot(range(len(values)), values, color=color, marker="o", ms=3.4, lw=1.5)
            axes.set_yscale("log")
            axes.set_title(kind, pad=4)
            axes.set_xticks(range(len(layers)))
            axes.tick_params(labelsize=8)
            plain_numbers(axes, "y")
        for axes in cells[len(kinds) :]:
            axes.axis("off")
        handles = [
            Line2D([], [], color=color, marker="o", ms=3.4, label=name)
            for color, name in zip(LINES, methods, strict=False)
        ]
        cells[len(kinds)].legend(handles=handles, loc="center left", fontsize=9)
        drawn.supylabel("relative output error, held-out states", x=0.055, fontsize=9, color=MUTED)
        drawn.supxlabel("depth of the block", y=-0.01, fontsize=9, color=MUTED)
        return svg(drawn)


def orders_by_block(methods: Methods) -> str:
    """Sign bits of every block of columns: a row a layer, a panel a method."""
    with styled():
        sample = next(iter(methods.values()))[0].layers
        layers = sorted(sample, key=lambda name: (sample[name].kind, name))
        widest = max(len(r[0].layers[n].orders) for r in methods.values() for n in layers)
        drawn = figure(1.5 + 0.28 * widest * len(methods), 0.155 * len(layers) + 0.6)
        panels = drawn.subplots(1, len(methods), sharey=True, squeeze=False)[0]
        drawn.subplots_adjust(wspace=0.08)
        colors = ListedColormap([GRID, *ORDERS.values()])
        for axes, (name, results) in zip(panels, methods.items(), strict=True):
            pixels = np.full((len(layers), widest), np.nan)
            for row, layer in enumerate(layers):
                orders = results[0].layers[layer].orders
                pixels[row, : len(orders)] = orders
            axes.imshow(pixels, cmap=colors, vmin=-0.5, vmax=4.5, aspect="auto")
            axes.set_xticks(np.arange(widest - 1) + 0.5, [""] * (widest - 1))
            axes.set_yticks(np.arange(len(layers)), layers, fontsize=6.5)
            axes.grid(visible=False)
            axes.hlines(np.arange(len(layers) - 1) + 0.5, -0.5, widest - 0.5, color="w", lw=1)
            axes.vlines(np.arange(widest - 1) + 0.5, -0.5, len(layers) - 0.5, color="w", lw=1)
            axes.tick_params(length=0)
            axes.set_title(name, fontsize=8.5)
            axes.set_xlabel("block of columns", fontsize=8)
            for spine in axes.spines.values():
                spine.set_visible(False)
        handles = [Patch(color=color, label=f"{o} bit") for o, color in ORDERS.items()]
        panels[-1].legend(
            handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8
        )
        return svg(drawn)


def predictors(measures: Mapping[str, Mapping[str, float]], gaps: Mapping[str, float]) -> str:
    """What could stand for the loss against the loss itself: a panel a measure, a dot a method."""
    with styled():
        drawn = figure(2.45 * len(measures), 2.6)
        panels = drawn.subplots(1, len(measures), sharey=True, squeeze=False)[0]
        drawn.subplots_adjust(wspace=0.1)
        for axes, (title, values) in zip(panels, measures.items(), strict=True):
            names = [name for name in values if name in gaps]
            here, there = [values[n] for n in names], [gaps[n] for n in names]
            axes.scatter(here, there, s=15, color=FAMILY["preset"], alpha=0.55, linewidths=0)
            axes.set_xscale("log")
            axes.set_yscale("log")
            plain_numbers(axes, "x")
            plain_numbers(axes, "y")
            axes.set_title(title, pad=16, fontsize=8.5)
            axes.text(
                0, 1.03, f"rank correlation {spearman(here, there):.2f}",
                transform=axes.transAxes, fontsize=8, color=MUTED,
            )  # fmt: skip
            axes.tick_params(labelsize=7.5)
        panels[0].set_ylabel("gap, nats a token")
        return svg(drawn)


def _drift(results: Sequence[Result]) -> Mapping[str, float]:
    drift = results[0].drift
    return {} if drift is None else drift.layers
