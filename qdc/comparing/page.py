"""Lay a comparison out as one HTML file: no script, no request, legible in light and in dark.

Every text comes from the template engine, which escapes it, or from the drawings, which do.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import qdc.report
from qdc.comparing import figures
from qdc.comparing.sheet import interval_text, ratio_text
from qdc.comparing.table import CompareResult, MethodRow, RiseRow
from qdc.report.figures import FAINTEST, FILL
from qdc.units import size

FOLDERS = (Path(__file__).parent / "template", Path(qdc.report.__file__).parent / "template")
"""Our page, and the style sheet of all pages."""


def render(compared: CompareResult) -> str:
    """The comparison as one HTML page that opens offline."""
    environment = Environment(
        loader=ChoiceLoader([FileSystemLoader(folder) for folder in FOLDERS]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": size, "interval": interval_text, "ratio": ratio_text}
    measured = [row for row in compared.rows if row.rises]
    drawn = figures.layer_map({r.name: r.layer_errors for r in measured if r.layer_errors})
    return environment.get_template("compare.html.j2").render(
        compared=compared,
        title=Path(compared.model).name,
        measured=measured,
        plots=_plots(compared, measured),
        layers=None if drawn is None else {"svg": Markup(drawn[0]), "ends": drawn[1:]},
        unseen=sorted({name for row in measured for name in row.unseen_layers}),
        options=[
            (option, list(rows))
            for option, rows in groupby(compared.variations, lambda v: v.option)
        ],
        fill=",".join(map(str, FILL)),
        faintest=FAINTEST,
    )


def _plots(compared: CompareResult, measured: Sequence[MethodRow]) -> list[dict[str, Any]]:
    """Loss against bits at each ratio, that by which rows are sorted first."""
    ratios = sorted((row.ratio for row in compared.original), key=lambda r: r != compared.ratio)
    found = []
    for ratio in ratios:
        points = [
            _point(row, rise)
            for row in measured
            if (rise := row.at(ratio)) is not None and row.effective_bits is not None
        ]
        if points:
            what = "rise of the cross-entropy, nats a token"
            found.append({"ratio": ratio, "svg": Markup(figures.loss_by_bits(points, what))})
    return found


def _point(row: MethodRow, rise: RiseRow) -> figures.Point:
    assert row.effective_bits is not None
    return figures.Point(row.name, row.effective_bits, rise.rise, rise.interval, rise.deviation)
