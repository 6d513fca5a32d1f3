"""The study's tables as Markdown."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.common.markdown import table
from bench.objectives.statistics import Prediction, predict

Row = dict[str, Any]
FAMILIES = ("rounding", "block fit", "feedback", "polish", "library")
OBJECTIVES = {
    "layer error, states it was fitted on": "seen: layer all",
    "layer error": "fresh: layer all",
    "layer error, masked positions": "fresh: layer masked",
    "layer error, visible positions": "fresh: layer visible",
    "layer error, original's inputs": "fresh: spectral all",
    "… leading direction alone": "fresh: spectral within top 1",
    "… without the leading 16 directions": "fresh: spectral without top 16",
    "layer error, absolute, summed": "fresh: absolute layer error",
    "slope, first order (absolute value)": "fresh: layer first order",
    "layer error, inputs weighted by gradient": "fresh: layer input-weighted",
    "layer error, outputs weighted, diagonal": "fresh: layer diagonal fisher",
    "layer error, outputs weighted, full": "fresh: layer factored fisher",
    "layer error, weighted at each position": "fresh: layer position fisher",
    "all layers together, linearised to logits": "fresh: all layers linearised to logits",
    "region output, mean of regions": "fresh: mean region all",
    "region output, mean, masked positions": "fresh: mean region masked",
    "region output, last region": "fresh: last region all",
    "region output, last, masked positions": "fresh: last region masked",
    "region output, last, visible positions": "fresh: last region visible",
    "region output, weighted by gradient, diagonal": "fresh: region diagonal fisher",
    "region output, weighted by gradient, full": "fresh: region full fisher",
    "last region, linearised to logits": "fresh: last region linearised to logits",
    "hidden state behind the last norm": "fresh: final all",
    "hidden state, masked positions": "fresh: final masked",
    "divergence of predictions (KL)": "fresh: kl",
    "rise of the loss on calibration text": "fresh: rise",
}
"""What the objectives are called, and the figure of a row that holds each."""
SETS = {
    "all": FAMILIES,
    "feedback": ("feedback",),
    "feedback and polish": ("feedback", "polish", "library"),
}
"""Families over which objectives are judged."""


def judged(
    rows: Sequence[Row], families: Sequence[str], ratio: str = "0.5"
) -> dict[str, Prediction]:
    """Judge every objective on the versions of some families."""
    chosen = [row for row in rows if row["family"] in families]
    rise = np.array([row[f"rise {ratio}"] for row in chosen])
    return {
        name: predict(np.abs([row[figure] for row in chosen]), rise)
        for name, figure in OBJECTIVES.items()
    }


def tables(summary: dict[str, Any]) -> str:
    """All tables, one after the other, as a page."""
    rows = summary["versions"]
    parts = [
        ("Objectives", objectives(rows)),
        ("Mask ratios", ratios(rows)),
        ("Versions", versions(rows)),
        ("Spectrum", spectrum(summary["spectrum"])),
    ]
    if summary["explained"]:
        parts.append(("Experiments", experiments(summary["explained"])))
        parts.append(("Noise", noise(summary["explained"])))
    head = (
        "# All figures of the study of objectives\n\nWritten by `bench.objectives`; "
        "[objectives.md](objectives.md) says what they mean."
    )
    return "\n\n".join([head, *(f"## {title}\n\n{text}" for title, text in parts)]) + "\n"


def objectives(rows: Sequence[Row]) -> str:
    """Rank correlation, correlation of logarithms, and typical miss of each objective."""
    found = {name: judged(rows, families) for name, families in SETS.items()}
    counts = {name: next(iter(p.values())).count for name, p in found.items()}
    head = ["Objective", *(f"{name} ({counts[name]})" for name in SETS), "log-log", "misses by"]
    lines = []
    for name in OBJECTIVES:
        overall = found["all"][name]
        lines.append(
            [
                name,
                *(_interval(found[family][name].rank) for family in SETS),
                "" if overall.line is None else _interval(overall.line),
                "" if overall.factor is None else f"{overall.factor - 1:.0%}",
            ]
        )
    return _table(head, lines)


def ratios(rows: Sequence[Row]) -> str:
    """Rank correlation with the rise at each mask ratio."""
    found = {ratio: judged(rows, FAMILIES, ratio) for ratio in ("0.15", "0.5", "0.85")}
    lines = [
        [name, *(_interval(found[ratio][name].rank) for ratio in found)] for name in OBJECTIVES
    ]
    return _table(["Objective", *(f"ratio {ratio}" for ratio in found)], lines)


def versions(rows: Sequence[Row]) -> str:
    """What each version costs and errs, best first."""
    figures = {
        "gap": "rise 0.5",
        "s.e.": "error 0.5",
        "layer, seen": "seen: layer all",
        "layer, fresh": "fresh: layer all",
        "layer, held out": "held: layer all",
        "masked": "fresh: layer masked",
        "visible": "fresh: layer visible",
        "last region": "fresh: last region all",
        "linearised": "fresh: all layers linearised to logits",
        "KL": "fresh: kl",
        "rise, seen": "seen: rise",
        "rise, fresh": "fresh: rise",
    }
    lines = [
        [row["name"], row["family"], *(_number(row.get(figure)) for figure in figures.values())]
        for row in sorted(rows, key=lambda row: float(row["rise 0.5"]))
    ]
    return _table(["Version", "Family", *figures], lines)


def spectrum(shares: dict[str, dict[str, float]]) -> str:
    """Share of the states' energy in the leading directions."""
    names = list(next(iter(shares.values())))
    lines = [
        [f"{kind} and its stage", *(f"{row[n]:.0%}" for n in names)] for kind, row in shares.items()
    ]
    return _table(["Input of", *names], lines)


def experiments(explained: dict[str, dict[str, Sequence[float]]]) -> str:
    """The rise under parts of the errors, and sums of rises against the joint one."""
    lines = []
    labels = [
        label
        for label in next(iter(explained.values()))
        if not label.startswith(("layer ", "noise"))
    ]
    for label in labels:
        lines.append([label, *(_rise(done.get(label)) for done in explained.values())])
    for what in ("layer", "region", "kind"):
        sums = [_sum(done, f"{what} ") for done in explained.values()]
        lines.append([f"sum over single {what}s", *(_number(value) for value in sums)])
    return _table(["Errors applied", *explained], lines)


def noise(explained: dict[str, dict[str, Sequence[float]]]) -> str:
    """Rises under noise of one and the same layer error."""
    lines = []
    for version, done in explained.items():
        chosen = {label: value for label, value in done.items() if label.startswith("noise")}
        if chosen:
            lines.append([f"the errors of `{version}` themselves", _rise(done["all"])])
        lines += [[label.removeprefix("noise: "), _rise(value)] for label, value in chosen.items()]
    return _table(["Error of the same size in each layer", "Rise"], lines)


def _sum(done: dict[str, Sequence[float]], prefix: str) -> float:
    values = [value[0] for label, value in done.items() if label.startswith(prefix)]
    return sum(values) if values else math.nan


def _rise(value: Sequence[float] | None) -> str:
    return "" if value is None else f"{value[0]:.4f} ± {value[1]:.4f}"


def _interval(value: tuple[float, float, float]) -> str:
    return f"{value[0]:.2f} ({value[1]:.2f} .. {value[2]:.2f})"


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return table(head, lines, left=len(head))
