"""The study's plots as SVG: what predicts the loss, what an error costs, how errors add up."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from bench.common.files import write
from bench.common.style import (
    BAR,
    BASE_BAR,
    GRID,
    INK,
    LIBRARY,
    LINES,
    MUTED,
    ORDERS,
    figure,
    plain_numbers,
    styled,
    svg,
)  # fmt: skip
from bench.objectives.tables import FAMILIES, OBJECTIVES, Row, judged

COLOURS = dict(zip(FAMILIES, (LINES[i] for i in (0, 2, 1, 4, 3)), strict=True))
PANELS = (
    ("fresh: layer all", "Layer error"),
    ("fresh: last region masked", "Region output, last, masked"),
    ("fresh: kl", "Divergence of predictions"),
)
LABELLED = {
    "feedback": (2, -11),
    "feedback-polish": (0, -10),
    "feedback-damp1": (6, -3),
    "fit-exact-w3": (-52, 6),
    "rtn-64": (-4, 6),
    "autoround": (-2, 6),
    "gptq": (6, -3),
}
"""Versions that are named in the first panel, and where, in points from their mark."""
PILES = {
    "one layer at a time, summed": "layer ",
    "one kind of layer at a time, summed": "kind ",
    "one region at a time, summed": "region ",
}
PILE_COLOURS = tuple(ORDERS.values())[1:]
NOISES = {
    "white weights": "noise, white in the weights",
    "even over input directions": "noise, the same in every input direction",
    "inputs within top 1": "noise, leading input direction only",
    "inputs without top 1": "noise, all but the leading one",
    "inputs within top 16": "noise, 16 leading input directions",
    "inputs without top 16": "noise, all but these 16",
    "outputs within top 16": "noise, 16 outputs that the loss feels most",
    "outputs without top 16": "noise, all but these 16 outputs",
}
Explained = Mapping[str, Mapping[str, Sequence[float]]]


def draw(summary: dict[str, Any], folder: Path) -> None:
    """Write all plots that the summary has figures for."""
    rows = summary["versions"]
    made = {"objectives-scatter": scatter(rows), "objectives-ranking": ranking(rows)}
    if summary["explained"]:
        made["objectives-directions"] = directions(summary["explained"])
        made["objectives-sums"] = sums(summary["explained"])
    for name, text in made.items():
        write(text, folder / f"{name}.svg")


def scatter(rows: Sequence[Row]) -> str:
    """The gap against three objectives, one point a version."""
    with styled():
        drawn = figure(10, 3.9)
        plots = drawn.subplots(1, len(PANELS), sharey=True)
        for axes, (what, title) in zip(plots, PANELS, strict=True):
            axes.set(xscale="log", yscale="log", title=title)
            for family in FAMILIES:
                chosen = [row for row in rows if row["family"] == family]
                axes.scatter(
                    [row[what] for row in chosen],
                    [row["rise 0.5"] for row in chosen],
                    s=34,
                    color=COLOURS[family],
                    label=family,
                    edgecolor="white",
                    linewidth=0.6,
                    zorder=3,
                )
            for row in rows:
                if row["name"] in LABELLED and axes is plots[0]:
                    axes.annotate(
                        row["name"],
                        (row[what], row["rise 0.5"]),
                        LABELLED[row["name"]],
                        textcoords="offset points",
                        fontsize=7.5,
                        color=INK,
                    )
            _line(axes, [row[what] for row in rows], [row["rise 0.5"] for row in rows])
            plain_numbers(axes, "x")
            plain_numbers(axes, "y")
        plots[0].set_ylabel("gap, nats a masked token")
        handles, labels = plots[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="lower center", ncols=len(FAMILIES), fontsize=8)
        drawn.subplots_adjust(bottom=0.19, wspace=0.08)
        return svg(drawn)


def ranking(rows: Sequence[Row]) -> str:
    """Rank correlation of every objective with the gap, over all and within one family."""
    overall = judged(rows, FAMILIES)
    close = judged(rows, ("feedback", "polish", "library"))
    names = sorted(OBJECTIVES, key=lambda name: close[name].rank[0])
    with styled():
        drawn = figure(7.4, 0.27 * len(names) + 0.9)
        axes = drawn.add_axes((0.42, 0.1, 0.56, 0.86))
        for shift, found, colour, label in (
            (0.14, overall, "#a9b3bf", "all versions"),
            (-0.14, close, BASE_BAR, "feedback, polish and libraries only"),
        ):
            for place, name in enumerate(names):
                value, low, high = found[name].rank
                axes.plot([low, high], [place + shift] * 2, color=colour, linewidth=1.6, alpha=0.6)
                axes.plot(
                    value,
                    place + shift,
                    "o",
                    color=colour,
                    markersize=5,
                    label=label if not place else None,
                )
        axes.set_yticks(range(len(names)), names, fontsize=8, color=INK)
        axes.set(xlim=(-0.8, 1.02), xlabel="rank correlation with the gap (90 % interval)")
        axes.grid(axis="y", visible=False)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.legend(loc="upper left", fontsize=8)
        return svg(drawn)


def directions(explained: Explained) -> str:
    """What noise of one layer error costs, by where it points."""
    done = next(found for found in explained.values() if any("noise" in label for label in found))
    bars = {"the quantizer's own errors": done["all"]}
    bars |= {name: done[f"noise: {key}"] for key, name in NOISES.items()}
    with styled():
        drawn = figure(6.8, 0.34 * len(bars) + 0.7)
        axes = drawn.add_axes((0.42, 0.14, 0.56, 0.82))
        places = np.arange(len(bars))[::-1]
        values = [value[0] for value in bars.values()]
        axes.barh(
            places,
            values,
            xerr=[value[1] for value in bars.values()],
            height=0.62,
            color=[BASE_BAR] + [BAR] * (len(bars) - 1),
            ecolor=MUTED,
            capsize=2,
        )
        axes.set_yticks(places, bars, fontsize=8, color=INK)
        axes.set_xlabel("gap, nats a masked token; the same layer error in every layer")
        axes.grid(axis="y", visible=False)
        return svg(drawn)


def sums(explained: Explained) -> str:
    """Rises that parts of the errors cause alone, summed, beside what all cause together."""
    with styled():
        drawn = figure(7.6, 3.4)
        axes = drawn.add_axes((0.1, 0.13, 0.88, 0.82))
        for turn, (label, prefix) in enumerate(PILES.items()):
            totals = {
                place: sum(value[0] for key, value in done.items() if key.startswith(prefix))
                for place, done in enumerate(explained.values())
                if any(key.startswith(prefix) for key in done)
            }
            axes.bar(
                [place + 0.2 * (turn - 1.5) for place in totals],
                list(totals.values()),
                0.18,
                color=PILE_COLOURS[turn],
                label=label,
            )
        joint = [done["all"] for done in explained.values()]
        axes.bar(
            [place + 0.3 for place in range(len(joint))],
            [value[0] for value in joint],
            0.18,
            yerr=[value[1] for value in joint],
            color=LIBRARY,
            ecolor=MUTED,
            capsize=2,
            label="all together",
        )
        axes.set_xticks(range(len(explained)), list(explained), fontsize=8.5, color=INK)
        axes.set_ylabel("gap, nats a masked token")
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.25)
        axes.legend(loc="upper right", fontsize=8, ncols=2)
        return svg(drawn)


def _line(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """A straight line through the logarithms."""
    slope, offset = np.polyfit(np.log(x), np.log(y), 1)
    ends = np.array([min(x), max(x)])
    axes.plot(ends, np.exp(offset) * ends**slope, color=GRID, linewidth=1.6, zorder=1)
