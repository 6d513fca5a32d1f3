"""Write the generated parts of docs/quality.md, and its plots, from the results."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.common.files import write
from bench.common.markdown import replace_part
from qdc.comparing.result import Result

from . import plots
from .ablations import ablations
from .cases import METHOD, TIMING
from .jobs import Job, Settings
from .panels import ablation_bars
from .tables import (
    ablation_tables,
    checklist,
    correlation_table,
    kind_table,
    method_table,
    predictor_values,
    setting,
    timing_table,
)  # fmt: skip
from .targets import Found, targets

PAGE = "quality.md"
SHOWN_LAYERS = ("release", "default", "best", "gptq", "autoround")
"""Methods of the plot of layers; those that are there."""
SHOWN_ORDERS = (
    "method/release",
    "ablation/allocation, blocks of 128/abmp 33%",
    "ablation/allocation, blocks of 128/knapsack stage",
    "ablation/allocation, blocks of 128/knapsack model",
    "ablation/allocation, blocks of 128/knapsack model, loss",
)
CAPTIONS = {
    "methods": ("loss-by-bits", "Loss against effective bits"),
    "kinds": ("error-by-layer", "Relative output error by kind and depth"),
    "orders": ("bits-by-block", "Sign bits of every block"),
    "predictors": ("predictors", "Measures against the gap"),
    "ablations": ("ablations", "Loss of every variant"),
}
"""The plot above each part's table, and what it shows."""
FEWEST_POINTS = 4
"""Of a plot that shows a correlation."""


def write_page(
    jobs: Sequence[Job], results: Mapping[str, Result], docs: Path, settings: Settings
) -> None:
    """Replace every generated part of the page, and write ``quality/*.svg`` beside it.

    Raises:
        ValueError: the page lacks the marks of a part.
    """
    found: dict[str, list[Result]] = {}
    for job in jobs:
        if job.path in results:
            found.setdefault(job.case.path, []).append(results[job.path])
    families = {job.case.name: job.case.group for job in jobs if job.case.kind == METHOD}
    page = docs / PAGE
    text = page.read_text(encoding="utf-8")
    parts = _parts(jobs, results, found, families, settings)
    drawn = _plots(found)
    for name, part in parts.items():
        plot, caption = CAPTIONS.get(name, ("", ""))
        picture = f"![{caption}](quality/{plot}.svg)\n\n" if plot in drawn else ""
        text = replace_part(text, f"bench.quality: {name}", picture + part)
    for name, drawing in drawn.items():
        write(drawing, docs / "quality" / f"{name}.svg")
    write(text, page)


def _parts(
    jobs: Sequence[Job],
    results: Mapping[str, Result],
    found: Found,
    families: Mapping[str, str],
    settings: Settings,
) -> dict[str, str]:
    methods = _named(found, METHOD)
    return {
        "setting": setting(jobs, results, settings),
        "targets": checklist(targets(found)),
        "methods": method_table(methods, families),
        "kinds": kind_table(methods),
        "orders": "",
        "times": timing_table(_named(found, TIMING)),
        "predictors": correlation_table(found),
        "ablations": ablation_tables(_questions(found)),
    }


def _plots(found: Found) -> dict[str, str]:
    """Every plot for which there are results."""
    methods = _named(found, METHOD)
    drawn: dict[str, str] = {}
    if methods:
        drawn["loss-by-bits"] = plots.loss_by_bits(methods)
    layers = {name: methods[name] for name in SHOWN_LAYERS if name in methods}
    if layers:
        drawn["error-by-layer"] = plots.error_by_layer(layers)
    orders = {path.rsplit("/", 1)[-1]: found[path] for path in SHOWN_ORDERS if path in found}
    if orders:
        drawn["bits-by-block"] = plots.orders_by_block(orders)
    measures, gaps = predictor_values(found)
    if len(gaps) >= FEWEST_POINTS:
        drawn["predictors"] = plots.predictors(measures, gaps)
    questions = _questions(found)
    if questions:
        drawn["ablations"] = ablation_bars(questions)
    return drawn


def _named(found: Found, kind: str) -> dict[str, Sequence[Result]]:
    start = f"{kind}/"
    return {k.removeprefix(start): v for k, v in found.items() if k.startswith(start)}


def _questions(found: Found) -> dict[str, tuple[str, dict[str, Sequence[Result]]]]:
    """Each question with its base and the variants that have results, if two or more have."""
    asked = {}
    for ablation in ablations():
        paths = {case.name: case.path for case in ablation.cases()}
        variants = {name: found[path] for name, path in paths.items() if path in found}
        if len(variants) > 1:
            asked[ablation.question] = (ablation.base, variants)
    return asked
