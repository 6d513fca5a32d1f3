"""The plot of all ablations: a panel a question, a bar a variant."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from bench.common.style import BAR, BASE_BAR, INK, MUTED, figure, styled, svg
from qdc.comparing.result import Result
from qdc.comparing.statistics import difference, gap

Variants = Mapping[str, Sequence[Result]]
COLUMNS = 3
WIDTH, BAR_HEIGHT, ROOM = 3.8, 0.215, 0.62
"""Inches: of a panel, of a bar, and above and below the bars of a panel."""


def ablation_bars(questions: Mapping[str, tuple[str, Variants]]) -> str:
    """Draw every question with the name of its base and the results of its variants.

    A whisker is one standard error over windows of the difference from the base, or, with several
    seeds, the deviation over seeds where that is larger.
    """
    columns: list[list[str]] = [[] for _ in range(COLUMNS)]
    heights = [0.0] * COLUMNS
    for question, (_, variants) in questions.items():
        shortest = heights.index(min(heights))
        columns[shortest].append(question)
        heights[shortest] += _height(variants)
    with styled():
        total = max(heights)
        drawn = figure(WIDTH * COLUMNS, total)
        for place, column in enumerate(columns):
            top = total
            for question in column:
                base, variants = questions[question]
                height = _height(variants)
                box = (
                    (place + 0.4) / COLUMNS,
                    (top - height + 0.25) / total,
                    0.55 / COLUMNS,
                    (height - ROOM) / total,
                )
                _panel(drawn.add_axes(box), question, base, variants)
                top -= height
        return svg(drawn)


def _panel(axes: Axes, question: str, base: str, variants: Variants) -> None:
    names = list(variants)
    gaps = [gap(variants[name]).mean for name in names]
    whiskers = [_whisker(name, base, variants) for name in names]
    axes.barh(
        range(len(names)), gaps, height=0.68, xerr=whiskers,
        color=[BASE_BAR if name == base else BAR for name in names],
        error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
    )  # fmt: skip
    if base in variants:
        axes.axvline(gap(variants[base]).mean, color=BASE_BAR, lw=0.9, ls=(0, (2, 2)), zorder=0)
    for place, (value, whisker) in enumerate(zip(gaps, whiskers, strict=True)):
        axes.text(
            max(0, value) + whisker, place, f" {value:.3f}", va="center", fontsize=7.5, color=INK
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_xlim(min(0, *gaps), 1.22 * max(g + w for g, w in zip(gaps, whiskers, strict=True)))
    axes.tick_params(axis="both", length=0, labelsize=7.5)
    axes.locator_params(axis="x", nbins=4)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_title(question, pad=5, x=-0.65)
    for label in axes.get_yticklabels():
        label.set_color(INK if label.get_text() == base else MUTED)


def _whisker(name: str, base: str, variants: Variants) -> float:
    over_seeds = gap(variants[name]).deviation
    over_windows = 0.0
    if name != base and base in variants:
        over_windows = difference(variants[name], variants[base]).error
    return max(0.0 if math.isnan(over_seeds) else over_seeds, over_windows)


def _height(variants: Variants) -> float:
    return ROOM + BAR_HEIGHT * len(variants)
